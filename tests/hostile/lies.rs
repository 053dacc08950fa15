//! What a stranger writes and says: some of it true, most of it not, all of it from a seed.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use fastrand::Rng;
use rustix::event::{EventfdFlags, eventfd};

use crate::lane::{Cells, Form, SEGMENT, answerer, at, kind, opener, place, words};
use crate::session::{Port, Session};
use crate::wire::{self, Control, End, Refusal, Schemas, Types, Where};

/// A word that somebody may trip over.
pub(crate) fn word(rng: &mut Rng) -> u64 {
    let len = at::LEN as u64;
    match rng.u8(..12) {
        0 => 0,
        1 => u64::MAX,
        2 => rng.u64(..70),
        3 => 1 << rng.u8(..64),
        4 => (1 << rng.u8(..64)) - 1,
        5 => !rng.u64(..4096),
        6 => len - rng.u64(..3) * 64,
        7 => rng.u64(..len) / 64 * 64,
        8 => rng.u64(..len),
        9 => SEGMENT,
        10 => u64::MAX - len + rng.u64(..3) * 64,
        _ => rng.u64(..),
    }
}

fn bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.u8(..)).collect()
}

/// Bytes of which some are not what they were.
pub(crate) fn spoil(rng: &mut Rng, bytes: &mut [u8]) {
    if bytes.is_empty() {
        return;
    }
    for _ in 0..rng.usize(1..5) {
        let at = match rng.bool() {
            // The root stands at the end.
            true => bytes.len() - 1 - rng.usize(..bytes.len().min(40)),
            false => rng.usize(..bytes.len()),
        };
        bytes[at] = match rng.bool() {
            true => rng.u8(..),
            false => bytes[at] ^ 1 << rng.u8(..8),
        };
    }
}

fn spoil_place(rng: &mut Rng, at: &mut Where) {
    match rng.u8(..4) {
        0 => at.segment = word(rng),
        1 => at.offset = word(rng),
        2 => at.len = word(rng),
        _ => at.offset = at.offset.wrapping_add(rng.u64(..65)),
    }
}

/// An end of which something is not true.
fn end(rng: &mut Rng, form: Form, is_opener: bool) -> End {
    let mut end = match is_opener {
        true => opener(form),
        false => answerer(form),
    };
    for _ in 0..rng.usize(1..3) {
        match rng.u8(..9) {
            0 => end
                .sends
                .iter_mut()
                .for_each(|s| spoil_place(rng, &mut s.cells)),
            1 => end.receives.iter_mut().for_each(|at| spoil_place(rng, at)),
            2 => spoil_place(rng, &mut end.bell.0),
            3 => end.bell.1 = word(rng) as u32,
            4 => end
                .door
                .iter_mut()
                .for_each(|door| spoil_place(rng, &mut door.0)),
            5 => end
                .door
                .iter_mut()
                .for_each(|door| door.1 = word(rng) as u16),
            6 => end.tasks = true,
            7 => match rng.u8(..4) {
                0 => end.sends = None,
                1 => end.receives = rng.bool().then(|| words(at::RECEIVER, 192)),
                2 => end.door = None,
                _ => end.sends.iter_mut().for_each(|s| s.timed = true),
            },
            _ => {
                if let Some(sends) = &mut end.sends {
                    sends.board = rng.bool().then(|| place(at::BOARD, 192));
                    sends.board.iter_mut().for_each(|at| spoil_place(rng, at));
                }
            }
        }
    }
    end
}

fn name(rng: &mut Rng) -> String {
    const NAMES: [&str; 11] = [
        "ask",
        "flow",
        "later",
        "plain",
        "refer",
        "news/sub/0",
        "state/get/0",
        "",
        "a/b",
        "..",
        "x/sub/01",
    ];
    match rng.u8(..6) {
        0 => "é".repeat(rng.usize(..300)),
        _ => NAMES[rng.usize(..NAMES.len())].to_owned(),
    }
}

fn types(rng: &mut Rng) -> Types {
    Types {
        request: rng.u128(..),
        answers: (0..rng.usize(..5)).map(|_| rng.u128(..)).collect(),
    }
}

/// Schemas that are none, or nearly one.
fn schemas(rng: &mut Rng) -> Schemas {
    let schema = |rng: &mut Rng| {
        let mut schema = shmbus::schema_of::<crate::messages::Flow>().to_bytes();
        match rng.u8(..3) {
            0 => {
                let len = rng.usize(..400);
                schema = bytes(rng, len);
            }
            1 => schema.truncate(rng.usize(..schema.len())),
            _ => spoil(rng, &mut schema),
        }
        schema
    };
    Schemas {
        request: schema(rng),
        answers: (0..rng.usize(..5)).map(|_| schema(rng)).collect(),
    }
}

/// Any control message, true or not.
pub(crate) fn control(rng: &mut Rng, form: Form) -> Control {
    let lane = match rng.bool() {
        true => rng.u32(..4),
        false => word(rng) as u32,
    };
    let mine = rng.bool();
    match rng.u8(..16) {
        0 => Control::Hello {
            layout: rng.u32(..3),
            barrier: mine,
        },
        1 => Control::Segment {
            id: word(rng),
            len: word(rng),
        },
        2 => Control::Bell {
            bell: word(rng) as u32,
        },
        3 => Control::Retired { id: word(rng) },
        4 | 5 => Control::Open {
            lane,
            name: name(rng),
            from: mine.then(|| word(rng) as u32),
            types: types(rng),
            end: end(rng, form, true),
        },
        6 => Control::Opened {
            lane,
            end: end(rng, form, false),
        },
        7 => Control::Refused {
            lane,
            why: match rng.u8(..3) {
                0 => Refusal::NoServer,
                1 => Refusal::NoMemory,
                _ => Refusal::Layout(schemas(rng)),
            },
        },
        8 => Control::Differs {
            name: name(rng),
            schemas: schemas(rng),
        },
        9 => Control::Closed { lane, mine },
        10 => Control::Released { lane, mine },
        11 => Control::Ring {
            bell: word(rng) as u32,
        },
        12 => Control::Serving { name: name(rng) },
        13 => Control::Gone { name: name(rng) },
        14 => Control::Joined {
            name: name(rng),
            lane,
        },
        _ => Control::Bye,
    }
}

/// The bytes of one, of which some may be others, and whatever descriptor is at hand.
pub(crate) fn message(rng: &mut Rng, form: Form) -> (Vec<u8>, Vec<OwnedFd>) {
    let control = control(rng, form);
    let mut bytes = wire::encode(&control);
    match rng.u8(..8) {
        0 => spoil(rng, &mut bytes[8..]),
        1 => bytes.truncate(rng.usize(1..bytes.len())),
        2 => {
            let len = rng.usize(..600);
            bytes.splice(8.., self::bytes(rng, len));
        }
        _ => {}
    }
    let carries = matches!(control, Control::Segment { .. } | Control::Bell { .. });
    let count = usize::from(carries ^ (rng.u8(..8) == 0));
    let fds = (0..count).map(|_| descriptor(rng)).collect();
    (bytes, fds)
}

/// A descriptor of some kind.
fn descriptor(rng: &mut Rng) -> OwnedFd {
    match rng.u8(..4) {
        0 => crate::memory::file(4096),
        1 => eventfd(1, EventfdFlags::CLOEXEC).expect("there is a descriptor left"),
        2 => rustix::pipe::pipe().expect("there is a descriptor left").0,
        _ => {
            let file = crate::memory::file(4096);
            crate::memory::seal(&file, crate::memory::SEALS);
            file
        }
    }
}

/// What an honest message is, and what may be done with it.
#[derive(Clone, Copy)]
pub(crate) struct Says {
    /// An honest message of some number.
    message: fn(u64) -> Vec<u8>,
    /// Whether it is of numbers alone, and so may change at any time.
    is_plain: bool,
}

impl Says {
    pub(crate) fn text(message: fn(u64) -> Vec<u8>) -> Says {
        Says {
            message,
            is_plain: false,
        }
    }

    pub(crate) fn of(port: &Port) -> Says {
        Says {
            message: port.message,
            is_plain: port.name == "plain",
        }
    }
}

/// One who lies on a lane.
///
/// What a message is made of does not change once the victim may have looked at it, but for messages of numbers alone:
/// that is what is promised (`arenas::numbers_that_change_while_they_are_read_are_numbers`). So no cell is written
/// twice, no two messages are written to one place, and no reference leads to where anything is still to be written.
/// All other words change at any time.
pub(crate) struct Liar<'a> {
    session: &'a Session,
    cells: Cells<'a>,
    pub(crate) rng: Rng,
    says: Says,
    number: u64,
    /// Behind all that was written for messages.
    free: usize,
}

impl<'a> Liar<'a> {
    pub(crate) fn new(session: &'a Session, says: Says, seed: u64) -> Liar<'a> {
        let (memory, form) = (&session.memory, session.form);
        Liar {
            session,
            cells: match says.is_plain {
                true => Cells::new(memory, form),
                false => Cells::once(memory, form),
            },
            rng: Rng::with_seed(seed),
            says,
            number: 0,
            free: at::FREE,
        }
    }

    /// The kind of an honest message on this lane.
    fn kind(&mut self) -> u64 {
        match (self.session.form, self.session.opened) {
            (Form::Call, true) if self.rng.bool() => kind::CALL,
            (Form::Call, false) => [kind::INLINE, kind::ITEM, kind::ERROR][self.rng.usize(..3)],
            _ => kind::INLINE,
        }
    }

    fn tag(&mut self) -> u64 {
        self.number += 1;
        match self.rng.u8(..8) {
            0 => word(&mut self.rng),
            _ if self.session.opened => self.number % 448,
            _ => self.rng.u64(..3),
        }
    }

    fn envelope(&mut self) -> Vec<u8> {
        let words = [(); 4].map(|()| word(&mut self.rng) * u64::from(self.rng.bool()));
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// On a lane that has times, one of any time.
    fn time(&mut self) -> Vec<u8> {
        match self.session.timed {
            true => word(&mut self.rng).to_le_bytes().to_vec(),
            false => Vec::new(),
        }
    }

    fn content(&mut self) -> Vec<u8> {
        let number = self.rng.u64(..64);
        let mut bytes = match self.session.form {
            // Of newest values, the number of an entry goes over the lane.
            Form::Latest => self.rng.u64(..70).to_le_bytes().to_vec(),
            _ => (self.says.message)(number),
        };
        if self.rng.u8(..4) == 0 {
            spoil(&mut self.rng, &mut bytes);
        }
        bytes
    }

    /// Writes bytes where nothing was written before; `None` where there is no room left.
    fn put(&mut self, bytes: &[u8]) -> Option<usize> {
        let place = self.free.next_multiple_of(64);
        if place + bytes.len() > at::LEN {
            return None;
        }
        self.session.memory.put(place, bytes);
        self.free = place + bytes.len();
        Some(place)
    }

    /// A place that is mostly none; where it is one, nothing is written there any more.
    fn reference(&mut self, place: usize, len: usize) -> [u64; 3] {
        let mut words = [SEGMENT, place as u64, len as u64];
        if self.rng.u8(..3) > 0 {
            let which = self.rng.usize(..3);
            words[which] = word(&mut self.rng);
        }
        let [segment, offset, len] = words;
        let end = offset.checked_add(len).filter(|&end| end <= at::LEN as u64);
        if let (SEGMENT, Some(end), false) = (segment, end, self.says.is_plain) {
            if offset < at::FREE as u64 {
                words[1] = at::FREE as u64 + offset % 2;
            }
            let end = end.max(words[1] + len).min(at::LEN as u64);
            self.free = self.free.max(end as usize);
        }
        words
    }

    /// Does one thing.
    pub(crate) fn step(&mut self) {
        let (memory, words) = (&self.session.memory, &self.session.words);
        let rng = &mut self.rng;
        match rng.u8(..22) {
            // Honest, or nearly.
            0..=4 => {
                let (kind, tag, content) = (self.kind(), self.tag(), self.content());
                let lead = match kind {
                    kind::CALL => self.envelope(),
                    _ => self.time(),
                };
                self.cells.publish((kind, tag), &lead, &content);
            }
            5..=7 => self.refer(),
            8 => {
                // A header of anything, behind which anything stands.
                let (kind, len) = (rng.u64(..16), word(rng));
                let next = match rng.u8(..3) {
                    0 => word(rng) as usize % 65_536,
                    _ => rng.usize(..self.cells.count()),
                };
                let tag = self.tag();
                self.cells.header((kind, tag), len, next);
            }
            9 => {
                for _ in 0..rng.usize(1..600) {
                    let to = (self.cells.at + rng.usize(..3)) % self.cells.count();
                    self.cells.jump(to);
                }
            }
            10 => {
                let cells = CELLS[rng.usize(..CELLS.len())];
                let words = self.reference(at::FREE, 64 * cells);
                self.cells.refer((kind::EXTEND, 0), words, &[]);
            }
            11 => {
                let kind = [kind::FAILED, kind::MISSED][rng.usize(..2)];
                let len = rng.usize(..300);
                let mut content = bytes(rng, len);
                if kind == kind::MISSED && rng.bool() {
                    content = word(rng).to_le_bytes().to_vec();
                }
                let tag = self.tag();
                self.cells.publish((kind, tag), &[], &content);
            }
            12 => memory.set(at::SENDER, word(rng)),
            13 => memory.set(at::CANCELLED + 8 * rng.usize(..7), word(rng)),
            14 => words.set(at::RECEIVER, word(rng)),
            15 => words.set(at::HANDED_BACK + 8 * rng.usize(..16), word(rng)),
            16 => {
                words.set(at::BELL, word(rng));
                words.set(at::HOLD, word(rng));
            }
            17 => {
                let door = words.word(at::READY + 8 * rng.usize(..64));
                door.fetch_xor(word(rng), Ordering::Release);
                let rings = words.word(at::DOOR);
                rings.fetch_add(word(rng), Ordering::Release);
            }
            18 | 19 if self.session.form == Form::Latest => self.publish_value(),
            18 if self.session.form == Form::Topic => memory.set(at::TOPIC, word(rng)),
            18..=20 => self.chaos(),
            _ => {
                let (bytes, fds) = message(rng, self.session.form);
                let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
                self.session.stranger.send(&bytes, &fds);
            }
        }
        if self.rng.bool() {
            self.session.ring();
        }
    }

    fn refer(&mut self) {
        let (tag, content) = (self.tag(), self.content());
        let Some(place) = self.put(&content) else {
            return;
        };
        let words = self.reference(place, content.len());
        let is_request = self.session.form == Form::Call && self.session.opened;
        match is_request && self.rng.bool() {
            true => {
                let envelope = self.envelope();
                self.cells.refer((kind::CALL_BLOCK, tag), words, &envelope);
            }
            false => {
                let kind = kind::BLOCK + [0, 5, 7][self.rng.usize(..3)];
                let time = self.time();
                self.cells.refer((kind, tag), words, &time);
            }
        }
    }

    /// Changes what a board says, a little or beyond all measure.
    fn publish_value(&mut self) {
        let number = self.rng.u64(..64);
        let mut content = (self.says.message)(number);
        if self.rng.u8(..4) == 0 {
            spoil(&mut self.rng, &mut content);
        }
        self.number += 1;
        let mut header = [self.number, content.len() as u64, 0];
        let lie = self.rng.u8(..10);
        if lie < 2 {
            header[self.rng.usize(..3)] = word(&mut self.rng);
        }
        let header = header.iter().flat_map(|word| word.to_le_bytes());
        let value: Vec<u8> = header.chain(content).collect();
        let Some(place) = self.put(&value) else {
            return;
        };
        if lie < 2 {
            // It may be said to be longer than it is: nothing is written behind it.
            self.free = at::LEN;
        }
        let memory = &self.session.memory;
        let location = |at: usize| (SEGMENT + 1) << 26 | (at / 64) as u64;
        let rng = &mut self.rng;
        let entry = at::ENTRIES + 16 * rng.usize(..4);
        memory.set(at::ROWS, location(at::ENTRIES));
        memory.set(entry, location(place));
        memory.set(entry + 8, self.number);
        memory.set(at::BOARD, 4);
        match lie {
            2 => memory.set(at::BOARD, word(rng)),
            3 => memory.set(at::BOARD + 8, word(rng)),
            4 => memory.set(at::ROWS + 8 * rng.usize(..10), word(rng)),
            5 => memory.set(entry, word(rng)),
            6 => memory.set(entry + 8, word(rng)),
            _ => {}
        }
    }

    /// Writes over some words, wherever they are.
    fn chaos(&mut self) {
        for _ in 0..self.rng.usize(1..200) {
            let (memory, len) = match self.says.is_plain && self.rng.bool() {
                true => (&self.session.memory, at::LEN),
                false => (&self.session.words, at::WORDS_LEN),
            };
            memory.set(self.rng.usize(..len / 8) * 8, word(&mut self.rng));
        }
    }
}

/// How many cells a lane is said to have more.
const CELLS: [usize; 7] = [0, 1, 63, 64, 512, 1024, 1 << 20];
