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

mod peer;
mod said;

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

pub use peer::Peer;
pub use said::{Carried, Said};
use said::{end, spoiled_end};

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

const _: () = assert!(FIRST_ROW * map::ENTRY <= map::END - map::ROW);
