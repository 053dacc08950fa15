//! A peer with one lane to or from each kind of port, that writes what it likes into its own memory while the
//! ports are used.

use arbitrary::{Result, Unstructured};
use shmbus::__fuzz::{
    Ask, MOVES, Moved, News, Peer, Port, Said, State, header, location, map, message_start,
    value_start,
};
use shmbus::{
    Bus, Change, Client, Delivery, Kept, Latest, LatestPublisher, Publisher, Publishing, Receiver,
    Sender, Server, Subscriber,
};

mod calls;

use calls::{call, news, serve};

/// The port of the bus under test.
enum Honest {
    Server(Server<Ask>),
    Receiver(Receiver<Moved>),
    Subscriber(Subscriber<News>),
    Latest(Latest<State>),
    Client(Client<Ask>),
    Sender(Sender<Moved>),
    Publisher(Publisher<News>),
    LatestPublisher(LatestPublisher<State>),
}

/// What a scene is about: which ports there are, and which steps are likely.
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(dead_code)] // each target has one
pub enum About {
    Slots,
    HandBacks,
    Board,
}

/// The lane on which the peer sends, as an honest sender would know it.
struct Stream {
    lane: u32,
    port: Port,
    /// Whether what it sends are answers.
    back: bool,
    sequence: u64,
    at: u16,
    count: u16,
}

pub struct Scene {
    honest: Honest,
    peer: Peer,
    about: About,
    stream: Stream,
    /// Segments with messages in them, and how long those are.
    blocks: Vec<(u64, usize)>,
    /// How many cells were handed back in order.
    returned: usize,
    kept: Vec<Kept<Moved>>,
    /// How many values the board has.
    versions: u64,
}

impl Scene {
    pub fn begin(about: About, u: &mut Unstructured<'_>) -> Result<Scene> {
        let mut peer = Peer::greeting();
        peer.settle();
        let which = match about {
            About::Slots => u.int_in_range(0..=3)?,
            About::HandBacks => u.int_in_range(3..=7)?,
            About::Board => 8,
        };
        let opened = |peer: &mut Peer, port| {
            // As a client, or a publisher, opens its lane.
            peer.say(&Said::open(port, 0));
            if matches!(port, Port::News | Port::State) {
                peer.say(&Said::joined(port, 0));
            }
            peer.settle();
            peer.listen();
        };
        let bus = peer.bus().clone();
        let (honest, port, back) = match which {
            0 => {
                let server = bus.server().expect("nobody else does");
                opened(&mut peer, Port::Ask);
                (Honest::Server(server), Port::Ask, false)
            }
            1 => {
                let receiver = bus.receiver(MOVES).expect("nobody else does");
                opened(&mut peer, Port::Moves);
                (Honest::Receiver(receiver), Port::Moves, false)
            }
            2 => {
                let subscriber = bus.subscriber().expect("there is memory");
                opened(&mut peer, Port::News);
                (Honest::Subscriber(subscriber), Port::News, false)
            }
            3 => {
                let client = peer.while_answering(|bus: &Bus| bus.client());
                (
                    Honest::Client(client.expect("it is answered")),
                    Port::Ask,
                    true,
                )
            }
            4 => {
                let sender = peer.while_answering(|bus: &Bus| bus.sender(MOVES));
                (
                    Honest::Sender(sender.expect("it is answered")),
                    Port::Moves,
                    false,
                )
            }
            5 => {
                let delivery = *u.choose(&[Delivery::Reliable, Delivery::Lossy])?;
                let history = u.int_in_range(0..=2)?;
                let how = Publishing { delivery, history };
                let publisher = bus.publisher_as(how).expect("there is memory");
                peer.say(&Said::serving(Port::News));
                peer.settle();
                (Honest::Publisher(publisher), Port::News, false)
            }
            6 => {
                let publisher = bus.latest_publisher().expect("there is memory");
                peer.say(&Said::serving(Port::State));
                peer.settle();
                (Honest::LatestPublisher(publisher), Port::State, false)
            }
            7 => {
                let server = bus.server().expect("nobody else does");
                opened(&mut peer, Port::Ask);
                (Honest::Server(server), Port::Ask, false)
            }
            _ => {
                let latest = bus.latest().expect("there is memory");
                opened(&mut peer, Port::State);
                (Honest::Latest(latest), Port::State, false)
            }
        };
        while peer.answer(None).is_some() {}
        peer.settle();
        Ok(Scene {
            honest,
            peer,
            about,
            stream: Stream {
                lane: 0,
                port,
                back,
                sequence: 0,
                at: 0,
                count: port.cells(),
            },
            blocks: Vec::new(),
            returned: 0,
            kept: Vec::new(),
            versions: 0,
        })
    }

    pub fn play(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        while !u.is_empty() {
            match (self.about, u.int_in_range(0..=15)?) {
                (_, 0) => self.scribble(u)?,
                (_, 1) => self.say(u)?,
                (About::Slots, 2..=8) => self.record(u)?,
                (About::Slots, 9) => self.block(u)?,
                (About::HandBacks, 2..=5) => self.hand_back(u)?,
                (About::HandBacks, 6 | 7) => self.record(u)?,
                (About::Board, 2..=5) => self.value(u)?,
                (About::Board, 6 | 7) => self.note(u)?,
                (About::Board, 8) => self.board(u)?,
                _ => self.use_it(u)?,
            }
            if self.peer.is_dead() {
                break;
            }
        }
        // What came before the end is still taken.
        self.use_it(u)
    }

    /// Any word of the peer's, mostly those that are looked at.
    fn scribble(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let lane = self.stream.lane;
        let offset = match u.int_in_range(0..=8)? {
            0 => map::BELL,
            1 => map::DOOR,
            2 => map::DOOR + 64 + 8 * u.int_in_range(0..=63)?,
            3 => map::sending(lane) + 8 * u.int_in_range(0..=7)?,
            4 => map::offered(lane),
            5 => map::receiving(lane),
            6 => map::hold(lane),
            7 => map::cells(lane, self.stream.port) + 64 * usize::from(u.arbitrary::<u8>()?),
            _ => 8 * usize::from(u.arbitrary::<u16>()?),
        };
        let word = match u.int_in_range(0..=3)? {
            0 => u.arbitrary()?,
            1 => self.peer.load(offset).wrapping_add(1),
            2 => self.peer.load(offset) ^ 1 << u.int_in_range(0..=63)?,
            _ => u64::from(u.arbitrary::<u8>()?),
        };
        self.peer.store(offset, word);
        Ok(())
    }

    fn say(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let lane = self.stream.lane;
        let said = match u.int_in_range(0..=15)? {
            0 => Said::closed(lane, u.arbitrary()?),
            1 => Said::released(lane, u.arbitrary()?),
            2 => Said::retired(u.int_in_range(1..=4)?),
            3 => Said::bye(),
            4 => Said::choose(u)?,
            _ => {
                self.ring();
                return Ok(());
            }
        };
        self.peer.say(&said);
        self.peer.settle();
        Ok(())
    }

    /// As an honest sender rings.
    fn ring(&mut self) {
        let ready = map::DOOR + 64;
        self.peer.store(ready, self.peer.load(ready) ^ 1);
        self.count(map::DOOR);
    }

    /// Adds one to a word.
    fn count(&mut self, offset: usize) {
        let word = self.peer.load(offset);
        self.peer.store(offset, word.wrapping_add(1));
    }

    /// Bytes of a message, and perhaps not quite.
    fn message(&mut self, u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        if u.ratio(1, 8)? {
            let len = u.int_in_range(0..=120)?;
            return Ok(u.bytes(len.min(u.len()))?.to_vec());
        }
        let mut bytes = self.stream.port.message(u.arbitrary()?, self.stream.back);
        if u.ratio(1, 4)? {
            let at = u.choose_index(bytes.len())?;
            bytes[at] = u.arbitrary()?;
        }
        Ok(bytes)
    }

    /// A segment that holds a message.
    fn block(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if self.peer.segments() < 6 {
            let bytes = self.message(u)?;
            let id = self.peer.add_segment(&bytes);
            self.blocks.push((id, bytes.len()));
        }
        Ok(())
    }

    fn reference(&mut self, u: &mut Unstructured<'_>) -> Result<[u64; 3]> {
        if u.ratio(1, 8)? {
            return u.arbitrary();
        }
        Ok(match self.blocks.last() {
            Some(&(id, len)) if u.ratio(3, 4)? => [id, 0, len as u64],
            _ => {
                let id = u.int_in_range(0..=4)?;
                let offset = u64::from(u.arbitrary::<u8>()?) * 64;
                [id, offset, u64::from(u.arbitrary::<u16>()?)]
            }
        })
    }

    /// Writes a record where the next one is looked for, and publishes it.
    fn record(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let Stream {
            lane,
            port,
            back,
            sequence,
            at,
            count,
        } = self.stream;
        const ANSWERS: [u8; 8] = [1, 1, 6, 6, 8, 5, 2, 7];
        let usual: &[u8] = match (port, back) {
            (Port::Ask, true) => &ANSWERS,
            (Port::Ask, false) => &[10, 10, 10, 11],
            (Port::Moves, _) => &[1, 1, 2],
            (Port::News, _) => &[1, 1, 2, 12],
            (Port::State, _) => &[1, 12],
        };
        let kind = match u.int_in_range(0..=9)? {
            0 => u.int_in_range(0..=15)?,
            1 => 3,
            2 => 4,
            _ => *u.choose(usual)?,
        };
        let mut body = vec![0u8; 8];
        let mut len = None;
        match kind {
            2 | 4 | 7 | 9 | 11 => {
                let mut at = self.reference(u)?;
                if kind == 4 && u.ratio(1, 2)? {
                    // More cells: any memory of the peer's may be some.
                    at = [0, map::sending(1) as u64, 64 * 64 * u.int_in_range(1..=3)?];
                }
                at.iter().for_each(|word| body.extend(word.to_le_bytes()));
                if kind == 11 {
                    body.extend([0; 32]);
                }
            }
            3 => {}
            5 => body.extend(&b"\x01a reason"[..u.int_in_range(1..=9)?]),
            12 => body.extend(u64::from(u.arbitrary::<u8>()?).to_le_bytes()),
            _ => {
                let message = self.message(u)?;
                let start = message_start(port, back, kind);
                if kind == 10 && u.ratio(1, 4)? {
                    // A deadline, or any other word of its envelope.
                    body.extend(u.arbitrary::<u64>()?.to_le_bytes());
                }
                body.resize(start, 0);
                body.extend(&message);
                len = Some(message.len());
            }
        }
        let len = len.unwrap_or(body.len() - 8) as u16;
        let cells = body.len().div_ceil(64) as u16;
        let next = match u.int_in_range(0..=15)? {
            0 => u.arbitrary()?,
            1 => u.int_in_range(0..=count)?,
            _ if kind == 4 => count,
            _ if at + cells + 40 > count => 0,
            _ => at + cells,
        };
        let len = if u.ratio(1, 24)? { u.arbitrary()? } else { len };
        let tag = match u.int_in_range(0..=7)? {
            0 => u.arbitrary()?,
            _ => u.int_in_range(0..=3)?,
        };
        let stamp = match u.ratio(1, 32)? {
            true => u.arbitrary()?,
            false => sequence + 1,
        };
        let place = map::cells(lane, port) + 64 * usize::from(at);
        self.peer.write(place + 8, &body[8..]);
        self.peer.store(place, header(stamp, kind, len, next, tag));
        self.stream.sequence += 1;
        self.stream.at = next.min(count);
        if kind == 4 {
            self.stream.count += (body.len() / 64) as u16;
            // Where those cells are, only their first is known to be right.
            self.stream.at = 0;
        }
        self.ring();
        Ok(())
    }

    /// Hands back as an honest receiver would, or any bit.
    fn hand_back(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let cell = match u.int_in_range(0..=3)? {
            0 => u.int_in_range(0..=1023)?,
            1 => u.int_in_range(0..=63)?,
            _ => {
                self.returned += 1;
                self.returned - 1
            }
        } % 1024;
        let place = map::handed_back(self.stream.lane) + cell / 64 * 8;
        let bits = if u.ratio(1, 16)? { u.arbitrary()? } else { 1 };
        self.peer
            .store(place, self.peer.load(place) ^ bits << (cell % 64));
        Ok(())
    }

    /// A value in memory of its own, and an entry that says where; or part of that.
    fn value(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let index = u.int_in_range(0..=5)?;
        let entry = map::ROW + map::ENTRY * index;
        self.versions += 1;
        let version = match u.ratio(1, 8)? {
            true => u.int_in_range(0..=self.versions)?,
            false => self.versions,
        };
        let place = match u.int_in_range(0..=9)? {
            0 => 0,
            1 => u.arbitrary()?,
            2 => location(u.int_in_range(0..=6)?, 64 * u.int_in_range(0..=64)?),
            3 => self
                .peer
                .load(map::ROW + map::ENTRY * u.int_in_range(0..=5)?),
            _ if self.peer.segments() < 24 => {
                let message = self.message(u)?;
                let len = match u.ratio(1, 8)? {
                    true => u.arbitrary()?,
                    false => message.len() as u64,
                };
                let mut bytes = Vec::new();
                for word in [version, len, u.int_in_range(0..=9)?] {
                    bytes.extend(u64::to_le_bytes(word));
                }
                bytes.resize(value_start(), 0);
                bytes.extend(message);
                location(self.peer.add_segment(&bytes), 0)
            }
            _ => location(1, 0),
        };
        self.peer.store(entry, place);
        self.peer.store(entry + 8, version);
        self.count(map::BINDINGS);
        self.peer.settle();
        Ok(())
    }

    /// Says on the lane that an entry has changed.
    fn note(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if u.ratio(1, 4)? {
            return self.record(u);
        }
        let Stream {
            lane,
            port,
            sequence,
            at,
            count,
            ..
        } = self.stream;
        let place = map::cells(lane, port) + 64 * usize::from(at);
        let index = match u.ratio(1, 16)? {
            true => u.arbitrary()?,
            false => u.int_in_range(0..=6)?,
        };
        let next = (at + 1) % count.max(1);
        self.peer.store(place + 8, index);
        self.peer.store(place, header(sequence + 1, 1, 8, next, 0));
        (self.stream.sequence, self.stream.at) = (sequence + 1, next);
        self.count(map::offered(lane));
        self.ring();
        Ok(())
    }

    /// The words of the board itself.
    fn board(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let count = match u.int_in_range(0..=7)? {
            0 => u.arbitrary()?,
            1 => u.int_in_range(0..=70_000)?,
            _ => 6,
        };
        self.peer.store(map::COUNT, count);
        let row = match u.int_in_range(0..=7)? {
            0 => u.arbitrary()?,
            1 => location(u.int_in_range(0..=2)?, 64 * u.int_in_range(0..=4000)?),
            _ => location(0, map::ROW as u64),
        };
        let which = if u.ratio(1, 8)? {
            u.int_in_range(0..=9)?
        } else {
            0
        };
        self.peer.store(map::ROWS + 8 * which, row);
        self.count(map::BINDINGS);
        Ok(())
    }

    /// What the port's owner does.
    fn use_it(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let turns = 1 + u.arbitrary::<u8>().unwrap_or(0) % 4;
        let how = u.arbitrary::<u8>().unwrap_or(0);
        for _ in 0..turns {
            match &mut self.honest {
                Honest::Server(server) => serve(server, how),
                Honest::Receiver(receiver) => {
                    if let Ok(Some(moved)) = receiver.try_next() {
                        std::hint::black_box((moved.line, moved.text.len(), moved.sequence()));
                        if let Some(pin) = moved.pin.as_ref() {
                            if let Ok(news) = pin.open(&moved) {
                                assert!(!format!("{:?}", &*news).is_empty());
                            }
                        }
                        if how % 4 == 0 && self.kept.len() < 40 {
                            self.kept.push(moved.keep());
                        }
                    }
                    if how % 8 == 1 && !self.kept.is_empty() {
                        self.kept.swap_remove(usize::from(how) % self.kept.len());
                    }
                }
                Honest::Subscriber(subscriber) => {
                    if let Ok(Some(news)) = subscriber.try_next() {
                        assert!(!format!("{:?}", &*news).is_empty());
                    }
                }
                Honest::Latest(latest) => {
                    match latest.try_next() {
                        Ok(Some(Change::Value(state))) => {
                            assert!(!format!("{:?}", &*state).is_empty());
                            let _ = state.to_value().expect("its fields refuse nothing");
                        }
                        Ok(Some(Change::Removed(key))) => drop(key),
                        _ => {}
                    }
                    for key in ["key 0", "key 1", ""] {
                        if let Ok(Some(state)) = latest.get(key) {
                            assert_eq!(state.key.as_str(), key);
                        }
                    }
                }
                Honest::Client(client) => call(client, how, u)?,
                Honest::Sender(sender) => {
                    let text = "x".repeat(*u.choose(&[0, 9, 80, 700, 9000])?);
                    let moved = Moved {
                        line: 1,
                        text,
                        pin: None,
                    };
                    let _ = sender.try_send(&moved);
                }
                Honest::Publisher(publisher) => {
                    let _ = publisher.try_publish(&news(u)?);
                    while self.peer.answer(None).is_some() {
                        self.peer.settle();
                    }
                }
                Honest::LatestPublisher(publisher) => {
                    let state = State {
                        key: format!("key {}", how % 3),
                        flags: vec![true; usize::from(how)],
                    };
                    let _ = publisher.publish(&state);
                    if how % 8 == 0 {
                        let _ = publisher.remove("key 0");
                    }
                    while self.peer.answer(None).is_some() {
                        self.peer.settle();
                    }
                }
            }
        }
        Ok(())
    }
}
