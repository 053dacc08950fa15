//! A peer that says and writes what it likes: what the fuzz targets need of the inside, and nothing else.
//!
//! It is the other end of a real link to a real bus, in the same process: it has a socket, and segments that it
//! alone writes. What it says is a control message, or any bytes, with any descriptors.
//!
//! It keeps to one rule, which is the crate's own (see *Trust* there): the bytes of a message are never changed
//! once it was sent. So messages lie in segments that are written when they are made, and words and cells in the
//! first one, which is written at any time.
//!
//! Unsafe code is needed to write its memory, to send several descriptors at once, and for the derives.
#![allow(unsafe_code)]
#![allow(missing_docs, clippy::missing_panics_doc)] // Nobody's interface.

use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Result, Unstructured};

use crate::lane::Form;
use crate::link::Link;
use crate::link::wire::{self, Control, End, Refusal, Schemas, SendingEnd, Types, Where};
use crate::memory::layout::{
    Bell, BoardBlock, CELL, Cell, Doorbell, Entry, FIRST_ROW, HEADER, HoldBlock, LAYOUT_VERSION,
    ReceiverBlock, SegmentRef, SenderBlock, TopicBlock, ValueHeader,
};
use crate::memory::segment::{OwnSegment, PAGE};
use crate::message::private::to_bytes;
use crate::message::{ShmLatest, ShmRequest, ShmTopic};
use crate::service::contract::Contract;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::memfd;
use crate::sys::socket::Socket;
use crate::{Bus, Config, Fault, Pinned, Wait};

/// A request.
#[derive(shmbus_derive::ShmMessage, Debug, Clone)]
#[rkyv(derive(Debug))]
#[shm(service = "ask", reply = Reply, stream = Item, error = Problem, supersedes = "key")]
pub struct Ask {
    pub key: u8,
    pub text: String,
    pub numbers: Vec<u64>,
}

#[derive(shmbus_derive::ShmMessage, Debug, Clone)]
#[rkyv(derive(Debug))]
pub struct Reply {
    pub text: Option<String>,
    pub number: u64,
}

#[derive(shmbus_derive::ShmMessage, Debug, Clone)]
#[rkyv(derive(Debug))]
pub struct Item {
    pub flag: bool,
    pub bytes: Vec<u8>,
}

#[derive(shmbus_derive::ShmMessage, Debug, Clone)]
#[rkyv(derive(Debug))]
pub enum Problem {
    None,
    Text(String),
}

/// What goes one way, and refers to pins.
#[derive(shmbus_derive::ShmMessage)]
pub struct Moved {
    pub line: u64,
    pub text: String,
    pub pin: Option<Pinned<News>>,
}

/// What is published.
#[derive(shmbus_derive::ShmMessage, Debug, Clone)]
#[rkyv(derive(Debug))]
#[shm(topic = "news")]
pub struct News {
    pub number: u64,
    pub text: String,
    pub flag: bool,
}

/// A newest value.
#[derive(shmbus_derive::ShmMessage, Debug, Clone)]
#[rkyv(derive(Debug))]
#[shm(latest = "state", key = "key")]
pub struct State {
    pub key: String,
    pub flags: Vec<bool>,
}

/// The name of the one-way port.
pub const MOVES: &str = "moves";

/// What lanes lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Ask,
    Moves,
    News,
    State,
}

impl Port {
    pub const ALL: [Port; 4] = [Port::Ask, Port::Moves, Port::News, Port::State];

    fn contract(self) -> Contract {
        match self {
            Port::Ask => Contract::service::<Ask>(),
            Port::Moves => Contract::one_way::<Moved>(),
            Port::News => Contract::topic::<News>(),
            Port::State => Contract::latest::<State>(),
        }
    }

    /// By which a lane to the first such port is asked for.
    pub fn name(self) -> String {
        match self {
            Port::Ask => Ask::SERVICE.to_owned(),
            Port::Moves => MOVES.to_owned(),
            Port::News => format!("{}/sub/0", News::TOPIC),
            Port::State => format!("{}/get/0", State::LATEST),
        }
    }

    fn of(name: &str) -> Option<Port> {
        let mut all = Port::ALL.into_iter();
        all.find(|port| port.name() == name)
    }

    fn form(self) -> Form {
        self.contract().form()
    }

    fn is_topic(self) -> bool {
        matches!(self, Port::News | Port::State)
    }

    /// How many cells a lane to it starts with.
    pub fn cells(self) -> u16 {
        match self.form() {
            Form::Call => crate::lane::CALL_CELLS as u16,
            _ => crate::lane::STREAM_CELLS as u16,
        }
    }

    /// Archives one of some messages that go there, or come back from there.
    pub fn message(self, which: u8, back: bool) -> Vec<u8> {
        let text = "some text ".repeat(usize::from(which / 8 % 4));
        let number = u64::from(which);
        let bytes = match (self, back) {
            (Port::Ask, false) => to_bytes(&Ask {
                key: which % 3,
                text,
                numbers: vec![number; usize::from(which % 8)],
            }),
            (Port::Ask, true) => match which % 3 {
                0 => to_bytes(&Reply {
                    text: Some(text),
                    number,
                }),
                1 => to_bytes(&Item {
                    flag: true,
                    bytes: text.into_bytes(),
                }),
                _ => to_bytes(&Problem::Text(text)),
            },
            (Port::Moves, _) => to_bytes(&Moved {
                line: number,
                text,
                pin: None,
            }),
            (Port::News, _) => to_bytes(&News {
                number,
                text,
                flag: which % 2 == 0,
            }),
            (Port::State, _) => to_bytes(&State {
                key: format!("key {}", which % 5),
                flags: vec![true; usize::from(which % 8)],
            }),
        };
        bytes.expect("it can be archived").to_vec()
    }
}

/// Where things lie in the peer's first segment.
pub mod map {
    use super::*;

    pub const BELL: usize = 0;
    pub const DOOR: usize = size_of::<Bell>();
    const LANES: usize = PAGE as usize;
    const LANE: usize = 10 * PAGE as usize;
    /// How many lanes there is room for.
    pub const MOST_LANES: u32 = 3;
    pub const BOARD: usize = LANES + MOST_LANES as usize * LANE;
    pub const ROW: usize = BOARD + size_of::<BoardBlock>();
    pub const END: usize = BOARD + 4 * PAGE as usize;
    pub const COUNT: usize = BOARD + offset_of!(BoardBlock, count);
    pub const BINDINGS: usize = BOARD + offset_of!(BoardBlock, bindings);
    pub const ROWS: usize = BOARD + offset_of!(BoardBlock, rows);
    pub const ENTRY: usize = size_of::<Entry>();
    pub const VALUE: usize = size_of::<ValueHeader>();

    /// The sender's block of a lane.
    pub fn sending(lane: u32) -> usize {
        LANES + (lane % MOST_LANES) as usize * LANE
    }

    /// How many messages of a topic were meant for its receiver.
    pub fn offered(lane: u32) -> usize {
        sending(lane) + size_of::<SenderBlock>()
    }

    /// The first cell of a lane to such a port, or back from it.
    pub fn cells(lane: u32, port: Port) -> usize {
        offered(lane)
            + match port.is_topic() {
                true => size_of::<TopicBlock>(),
                false => 0,
            }
    }

    /// The receiver's block of a lane.
    pub fn receiving(lane: u32) -> usize {
        sending(lane) + LANE - size_of::<(ReceiverBlock, HoldBlock)>()
    }

    pub fn handed_back(lane: u32) -> usize {
        receiving(lane) + offset_of!(ReceiverBlock, handed_back)
    }

    pub fn hold(lane: u32) -> usize {
        receiving(lane) + size_of::<ReceiverBlock>()
    }
}

/// A record's header.
pub fn header(stamp: u64, kind: u8, len: u16, next: u16, tag: u16) -> u64 {
    stamp & 0xfff
        | u64::from(kind & 0xf) << 12
        | u64::from(len) << 16
        | u64::from(next) << 32
        | u64::from(tag) << 48
}

/// Where the message of such a record starts in it.
pub fn message_start(port: Port, back: bool, kind: u8) -> usize {
    let (request, answers) = port.contract().aligns();
    let align = if back { answers } else { request };
    let behind = if kind == 10 { HEADER + 32 } else { HEADER };
    behind.next_multiple_of(align)
}

/// The word by which a board says where something lies.
pub fn location(segment: u64, offset: u64) -> u64 {
    let at = SegmentRef {
        segment,
        offset,
        len: 0,
    };
    crate::memory::board::Location::of(at).map_or(0, |location| location.to_word())
}

/// Where the message of a value starts behind its header.
pub fn value_start() -> usize {
    let align = crate::message::layout_of::<State>().align;
    map::VALUE.next_multiple_of(align)
}

/// What travels with a control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    Nothing,
    /// The segment of the peer's with this place in its list.
    Segment(u8),
    Unsealed,
    Event,
    Null,
    Socket,
    /// An event and a segment.
    Two,
    /// More than any message carries.
    Five,
}

impl Carried {
    fn choose(u: &mut Unstructured<'_>) -> Result<Carried> {
        Ok(match u.int_in_range(0..=8)? {
            0 | 8 => Carried::Nothing,
            1 => Carried::Segment(u.arbitrary()?),
            2 => Carried::Unsealed,
            3 => Carried::Event,
            4 => Carried::Null,
            5 => Carried::Socket,
            6 => Carried::Two,
            _ => Carried::Five,
        })
    }
}

/// A control message, and what it carries.
#[derive(Debug)]
pub struct Said {
    control: Control,
    carried: Carried,
}

impl Said {
    pub fn hello() -> Said {
        Said::from(Control::Hello {
            layout: LAYOUT_VERSION,
            barrier: true,
        })
    }

    pub fn open(port: Port, lane: u32) -> Said {
        Said::from(Control::Open {
            lane,
            name: port.name(),
            from: port.is_topic().then_some(7),
            types: port.contract().types(),
            end: end(port, lane, false),
        })
    }

    pub fn joined(port: Port, lane: u32) -> Said {
        let name = port.name();
        Said::from(Control::Joined { name, lane })
    }

    pub fn serving(port: Port) -> Said {
        Said::from(Control::Serving { name: port.name() })
    }

    pub fn retired(id: u64) -> Said {
        Said::from(Control::Retired { id })
    }

    pub fn closed(lane: u32, mine: bool) -> Said {
        Said::from(Control::Closed { lane, mine })
    }

    pub fn released(lane: u32, mine: bool) -> Said {
        Said::from(Control::Released { lane, mine })
    }

    pub fn bye() -> Said {
        Said::from(Control::Bye)
    }

    /// Any control message: more often than not one that an honest peer could send.
    pub fn choose(u: &mut Unstructured<'_>) -> Result<Said> {
        let mut said = Said::from(control(u)?);
        if u.ratio(1, 16)? {
            said.carried = Carried::choose(u)?;
        }
        Ok(said)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(&self.control).unwrap_or_default()
    }
}

impl From<Control> for Said {
    fn from(control: Control) -> Said {
        let carried = match &control {
            Control::Segment { id, .. } => Carried::Segment(*id as u8),
            Control::Bell { .. } => Carried::Event,
            _ => Carried::Nothing,
        };
        Said { control, carried }
    }
}

fn at(offset: usize, len: usize) -> Where {
    Where {
        segment: 0,
        offset: offset as u64,
        len: len as u64,
    }
}

/// What an honest peer contributes to a lane: one that it opens, or one that was opened to it.
fn end(port: Port, lane: u32, is_answer: bool) -> End {
    let cells = usize::from(port.cells()) * size_of::<Cell>();
    let sending = map::cells(lane, port) - map::sending(lane) + cells;
    let receiving = match port {
        Port::State => size_of::<(ReceiverBlock, HoldBlock)>(),
        _ => size_of::<ReceiverBlock>(),
    };
    let sends = (!is_answer || port == Port::Ask).then(|| SendingEnd {
        cells: at(map::sending(lane), sending),
        timed: false,
        board: (port == Port::State).then(|| at(map::BOARD, size_of::<BoardBlock>())),
    });
    let receives = is_answer || port == Port::Ask;
    End {
        sends,
        receives: receives.then(|| at(map::receiving(lane), receiving)),
        bell: (at(map::BELL, size_of::<Bell>()), 0),
        tasks: false,
        door: (!is_answer).then(|| {
            (
                at(map::DOOR, size_of::<Doorbell>()),
                lane as u16 % 4096,
                false,
            )
        }),
    }
}

fn place(u: &mut Unstructured<'_>) -> Result<Where> {
    if u.ratio(1, 4)? {
        let (segment, offset, len) = u.arbitrary()?;
        return Ok(Where {
            segment,
            offset,
            len,
        });
    }
    let sizes = [
        0,
        size_of::<Bell>(),
        size_of::<ReceiverBlock>(),
        size_of::<(ReceiverBlock, HoldBlock)>(),
        size_of::<Doorbell>(),
        size_of::<SenderBlock>() + 64 * CELL,
        size_of::<SenderBlock>() + 512 * CELL,
        size_of::<(SenderBlock, TopicBlock)>() + 512 * CELL,
    ];
    Ok(Where {
        segment: u.int_in_range(0..=3)?,
        offset: u64::from(u.arbitrary::<u16>()?) * 16,
        len: *u.choose(&sizes)? as u64,
    })
}

/// An honest end, but perhaps for some part of it.
fn spoiled_end(u: &mut Unstructured<'_>, mut end: End) -> Result<End> {
    for _ in 0..u.int_in_range(0..=2)? {
        match u.int_in_range(0..=9)? {
            0 => end.sends = None,
            1 => end.receives = None,
            2 => end.door = None,
            3 => end.tasks = u.arbitrary()?,
            4 => end.bell = (place(u)?, u.arbitrary()?),
            5 => end.door = Some((place(u)?, u.arbitrary()?, u.arbitrary()?)),
            6 => end.receives = Some(place(u)?),
            7 => {
                end.sends = Some(SendingEnd {
                    cells: place(u)?,
                    timed: u.arbitrary()?,
                    board: u.arbitrary::<bool>()?.then(|| at(map::BOARD, 192)),
                });
            }
            8 => {
                if let Some(sends) = &mut end.sends {
                    sends.timed = true;
                }
            }
            _ => {
                let board = place(u)?;
                if let Some(sends) = &mut end.sends {
                    sends.board = Some(board);
                }
            }
        }
    }
    Ok(end)
}

fn name(u: &mut Unstructured<'_>) -> Result<String> {
    let names = [
        "",
        "ask",
        "moves",
        "nobody",
        "news",
        "news/sub/0",
        "news/sub/1",
        "news/pub/0",
        "state/get/0",
        "state/get/4294967295",
        "state/put/0",
        "a/b/sub/1",
        "news/sub/00",
        "..",
    ];
    Ok(match u.ratio(1, 8)? {
        true => u.arbitrary::<&str>()?.to_owned(),
        false => (*u.choose(&names)?).to_owned(),
    })
}

fn schemas(u: &mut Unstructured<'_>) -> Result<Schemas> {
    let mut schemas = u.choose(&Port::ALL)?.contract().schemas();
    if u.ratio(1, 2)? && !schemas.request.is_empty() {
        let at = u.choose_index(schemas.request.len())?;
        schemas.request[at] = u.arbitrary()?;
    }
    if u.ratio(1, 4)? {
        schemas.answers.push(u.arbitrary::<&[u8]>()?.to_vec());
    }
    Ok(schemas)
}

fn control(u: &mut Unstructured<'_>) -> Result<Control> {
    let lane = u.int_in_range(0..=map::MOST_LANES)?;
    Ok(match u.int_in_range(0..=19)? {
        0 => Control::Hello {
            layout: LAYOUT_VERSION + u32::from(u.ratio(1, 8)?),
            barrier: u.arbitrary()?,
        },
        1 => Control::Segment {
            id: u.int_in_range(0..=5)?,
            len: match u.ratio(1, 2)? {
                true => PAGE * u.int_in_range(0..=50)?,
                false => u.arbitrary()?,
            },
        },
        2 => Control::Bell {
            bell: u.int_in_range(0..=3)?,
        },
        3 => Control::Retired {
            id: u.int_in_range(0..=5)?,
        },
        4..=7 => {
            let port = *u.choose(&Port::ALL)?;
            let other = *u.choose(&Port::ALL)?;
            let is_other = u.ratio(1, 16)?;
            let types = if is_other { other } else { port };
            Control::Open {
                lane: if u.ratio(1, 8)? { u.arbitrary()? } else { lane },
                name: if u.ratio(1, 8)? {
                    name(u)?
                } else {
                    port.name()
                },
                from: port.is_topic().then_some(u.int_in_range(0..=3)?),
                types: match u.ratio(1, 16)? {
                    true => Types {
                        request: u.arbitrary()?,
                        answers: vec![u.arbitrary()?],
                    },
                    false => types.contract().types(),
                },
                end: spoiled_end(u, end(port, lane, false))?,
            }
        }
        8 | 9 => {
            let port = *u.choose(&Port::ALL)?;
            let end = spoiled_end(u, end(port, lane, true))?;
            Control::Opened { lane, end }
        }
        10 => {
            let why = match u.int_in_range(0..=2)? {
                0 => Refusal::NoServer,
                1 => Refusal::Layout(schemas(u)?),
                _ => Refusal::NoMemory,
            };
            Control::Refused { lane, why }
        }
        11 => Control::Differs {
            name: name(u)?,
            schemas: schemas(u)?,
        },
        12 => Control::Closed {
            lane,
            mine: u.arbitrary()?,
        },
        13 => Control::Released {
            lane,
            mine: u.arbitrary()?,
        },
        14 => Control::Ring {
            bell: u.int_in_range(0..=5)?,
        },
        15 | 16 => Control::Serving { name: name(u)? },
        17 => Control::Gone { name: name(u)? },
        18 => Control::Joined {
            name: name(u)?,
            lane,
        },
        _ => Control::Bye,
    })
}

/// See the module.
pub struct Peer {
    // Dropped first: what an honest process does when the other is there, and when it is not.
    bus: Option<Bus>,
    link: Arc<Link>,
    socket: Option<Socket>,
    segments: Vec<OwnSegment>,
    /// How many messages were sent that were perhaps not read.
    sent: usize,
    /// Lanes that were asked for, and not answered yet.
    asked: Vec<(u32, String)>,
}

impl Peer {
    /// A bus with a link to the peer, which has its first segment, and has said nothing.
    pub fn new() -> Peer {
        let (socket, theirs) = Socket::pair().expect("there are descriptors");
        let config = Config {
            max_message: 1 << 16,
            memory_limit: 4 << 20,
            wait: Wait::Park,
            timestamps: false,
        };
        let (bus, link) = config.over(theirs).expect("there is memory");
        let first = OwnSegment::create(0, map::END as u64).expect("there is memory");
        Peer {
            bus: Some(bus),
            link,
            socket: Some(socket),
            segments: vec![first],
            sent: 0,
            asked: Vec::new(),
        }
    }

    /// As [`new`](Self::new), of an honest beginning.
    pub fn greeting() -> Peer {
        let mut peer = Peer::new();
        peer.say(&Said::hello());
        peer.announce(0);
        peer
    }

    pub fn bus(&self) -> &Bus {
        self.bus.as_ref().expect("it is dropped last")
    }

    pub fn fault(&self) -> Option<Fault> {
        self.link.fault()
    }

    pub fn is_dead(&self) -> bool {
        self.link.is_dead()
    }

    pub fn say(&mut self, said: &Said) {
        self.send(&said.to_bytes(), said.carried);
    }

    /// Sends any bytes, with any descriptors.
    pub fn send(&mut self, bytes: &[u8], carried: Carried) {
        let mut own: Vec<OwnedFd> = Vec::new();
        let event = || crate::sys::chime::Chime::new().and_then(|c| c.as_fd().try_clone_to_owned());
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        let made = match carried {
            Carried::Nothing => Ok(None),
            Carried::Segment(which) => {
                let which = usize::from(which) % self.segments.len();
                fds.push(self.segments[which].as_fd());
                Ok(None)
            }
            Carried::Unsealed => memfd::create(c"unsealed", PAGE).map(Some),
            Carried::Event | Carried::Two | Carried::Five => event().map(Some),
            Carried::Null => std::fs::File::open("/dev/null").map(|file| Some(file.into())),
            Carried::Socket => std::os::unix::net::UnixDatagram::unbound().map(|s| Some(s.into())),
        };
        own.extend(made.expect("there are descriptors"));
        fds.extend(own.iter().map(AsFd::as_fd));
        if matches!(carried, Carried::Two | Carried::Five) {
            let more = if carried == Carried::Two { 1 } else { 4 };
            fds.extend((0..more).map(|_| self.segments[0].as_fd()));
        }
        if let Some(socket) = &self.socket {
            send_all(socket, bytes, &fds);
            self.sent += 1;
        }
    }

    /// Says that a segment is there, as it is.
    pub fn announce(&mut self, which: usize) {
        let segment = &self.segments[which];
        let (id, len) = (segment.id(), segment.len());
        let bytes = Said::from(Control::Segment { id, len }).to_bytes();
        self.send(&bytes, Carried::Segment(which as u8));
    }

    /// Makes a segment that holds these bytes, which nobody changes any more, and says so. Its number.
    pub fn add_segment(&mut self, bytes: &[u8]) -> u64 {
        let id = self.segments.len() as u64;
        let segment = OwnSegment::create(id, bytes.len().max(1) as u64);
        let segment = segment.expect("there is memory");
        // SAFETY: the segment is as long, and nobody else has it yet.
        unsafe {
            (segment.at(0).as_ptr()).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        self.segments.push(segment);
        self.announce(id as usize);
        id
    }

    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Writes a word of the first segment.
    pub fn store(&self, offset: usize, word: u64) {
        let offset = offset % map::END / 8 * 8;
        let place = self.segments[0].at(offset as u64).cast::<AtomicU64>();
        // SAFETY: an aligned word of a mapping that is ours to write.
        unsafe { place.as_ref() }.store(word, Ordering::Release);
    }

    pub fn load(&self, offset: usize) -> u64 {
        let offset = offset % map::END / 8 * 8;
        let place = self.segments[0].at(offset as u64).cast::<AtomicU64>();
        // SAFETY: an aligned word of a mapping that is ours.
        unsafe { place.as_ref() }.load(Ordering::Acquire)
    }

    /// Writes bytes of the first segment, word by word, from a multiple of eight on.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.store(offset + 8 * index, u64::from_le_bytes(word));
        }
    }

    /// Has all that was said be handled.
    pub fn settle(&mut self) {
        for _ in 0..=std::mem::take(&mut self.sent) / 64 {
            self.link.tend();
        }
    }

    /// Reads what the bus has said: remembers which lanes it asks for.
    pub fn listen(&mut self) {
        let mut buffer = vec![0; wire::MOST_BYTES];
        while let Some(Ok(Some((n, _)))) = self.socket.as_ref().map(|s| s.receive(&mut buffer)) {
            // An honest process says nothing else.
            match wire::decode(&buffer[..n]).expect("the bus keeps to the protocol") {
                Control::Open { lane, name, .. } => self.asked.push((lane, name)),
                _ => {}
            }
        }
    }

    /// Answers the first lane that was asked for, as an honest peer would, but for what `u` spoils of that;
    /// returns its number.
    pub fn answer(&mut self, u: Option<&mut Unstructured<'_>>) -> Option<u32> {
        self.listen();
        if self.asked.is_empty() {
            return None;
        }
        let (lane, name) = self.asked.remove(0);
        let Some(port) = Port::of(&name) else {
            let why = Refusal::NoServer;
            self.say(&Said::from(Control::Refused { lane, why }));
            return Some(lane);
        };
        let mut end = end(port, lane, true);
        if let Some(u) = u {
            end = spoiled_end(u, end).ok()?;
        }
        self.say(&Said::from(Control::Opened { lane, end }));
        Some(lane)
    }

    /// Does what needs an answer from the peer, which it gives meanwhile.
    pub fn while_answering<T: Send>(&mut self, work: impl FnOnce(&Bus) -> T + Send) -> T {
        let bus = self.bus().clone();
        std::thread::scope(|scope| {
            let working = scope.spawn(move || work(&bus));
            while !working.is_finished() {
                if self.answer(None).is_none() {
                    std::thread::sleep(Duration::from_micros(20));
                }
            }
            working.join().expect("it does not panic")
        })
    }

    /// Ends the peer's half of the connection.
    pub fn hang_up(&mut self) {
        self.socket = None;
        self.sent += 1;
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The bus first, while the peer is there.
        self.bus = None;
    }
}

/// `sendmsg` with any number of descriptors; what cannot be sent is not.
fn send_all(socket: &Socket, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    const ROOM: usize = 8;
    let mut control = [0u64; ROOM];
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeros is a valid `msghdr`.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let len = 16 + size_of_val(fds);
        assert!(len <= 8 * ROOM);
        control[0] = len as u64;
        control[1] = libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32;
        for (index, fd) in fds.iter().enumerate() {
            control[2 + index / 2] |= (fd.as_raw_fd() as u64) << (32 * (index % 2));
        }
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = len.next_multiple_of(8);
    }
    // SAFETY: the header and all that it points to outlive the call.
    let _ = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &header, libc::MSG_NOSIGNAL) };
}
const _: () = assert!(FIRST_ROW * map::ENTRY <= map::END - map::ROW);
