//! A link on which a lane is open, and a stranger at one end of it who was honest so far.

use shmbus::{Nothing, ShmMessage, ShmRequest};

use crate::bench::Bench;
use crate::lane::{Cells, Form, SEGMENT, answerer, open, opener, ring};
use crate::memory::Memory;
use crate::messages::{Flow, Later, News, Plain, Refer, State, archive, fingerprint};
use crate::stranger::{Stranger, Trap};
use crate::support::Ask;
use crate::wire::{Control, End, Types};

/// A port of the victim's that a stranger opens a lane to.
pub(crate) struct Port {
    pub(crate) name: &'static str,
    pub(crate) form: Form,
    pub(crate) from: Option<u32>,
    types: fn() -> Types,
    /// An honest message of this number.
    pub(crate) message: fn(u64) -> Vec<u8>,
}

fn service<R: ShmRequest>() -> Types {
    Types {
        request: fingerprint::<R>(),
        answers: vec![
            fingerprint::<R::Reply>(),
            fingerprint::<R::Item>(),
            fingerprint::<R::Error>(),
        ],
    }
}

fn one_way<T: ShmMessage>() -> Types {
    Types {
        request: fingerprint::<T>(),
        answers: Vec::new(),
    }
}

/// So many bytes: in a cell, in some, in a block.
fn padding(number: u64) -> Vec<u8> {
    vec![number as u8; [0, 20, 300, 2_000][number as usize % 4]]
}

fn text(number: u64) -> String {
    "x".repeat([0, 20, 300, 2_000][number as usize % 4])
}

/// The words of a handle on a pin that never was, and its message's number.
fn refer(number: u64) -> Vec<u8> {
    let words = [number, SEGMENT, crate::lane::at::FREE as u64, 24, number];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(crate) const PORTS: [Port; 7] = [
    Port {
        name: "ask",
        form: Form::Call,
        from: None,
        types: service::<Ask>,
        message: |number| archive!(Ask::new(number, padding(number).len())),
    },
    Port {
        name: "flow",
        form: Form::Call,
        from: None,
        types: service::<Flow>,
        message: |id| {
            let (count, padding) = (id as u32 * 33, padding(id));
            archive!(Flow { id, count, padding })
        },
    },
    Port {
        name: "later",
        form: Form::Call,
        from: None,
        types: service::<Later>,
        message: |id| {
            let (count, padding) = (id as u32 * 3, padding(id));
            archive!(Later { id, count, padding })
        },
    },
    Port {
        name: "plain",
        form: Form::OneWay,
        from: None,
        types: one_way::<Plain>,
        message: |number| {
            let (many, share) = ([number; 256], 0.5);
            archive!(Plain {
                number,
                many,
                share
            })
        },
    },
    Port {
        name: "refer",
        form: Form::OneWay,
        from: None,
        types: one_way::<Refer>,
        message: refer,
    },
    Port {
        name: "news/sub/0",
        form: Form::Topic,
        from: Some(3),
        types: one_way::<News>,
        message: |number| {
            let text = text(number);
            archive!(News { number, text })
        },
    },
    Port {
        name: "state/get/0",
        form: Form::Latest,
        from: Some(3),
        types: one_way::<State>,
        message: |version| {
            let path = ["a", "b", "c"][version as usize % 3].to_owned();
            let text = text(version);
            archive!(State {
                path,
                version,
                text
            })
        },
    },
];

impl Port {
    pub(crate) fn types(&self) -> Types {
        (self.types)()
    }

    pub(crate) fn open(&self, lane: u32, end: End) -> Control {
        open(lane, (self.name, self.from), self.types(), end)
    }
}

pub(crate) fn port(name: &str) -> &'static Port {
    let port = PORTS.iter().find(|port| port.name.starts_with(name));
    port.expect("the victim has it")
}

/// What a service is that answers nothing of its own.
pub(crate) fn nothing() -> u128 {
    fingerprint::<Nothing>()
}

/// See the module.
pub(crate) struct Session {
    pub(crate) stranger: Stranger,
    pub(crate) memory: Memory,
    pub(crate) form: Form,
    pub(crate) lane: u32,
    /// Whether the stranger has opened the lane.
    pub(crate) opened: bool,
    /// The bell of the port at the other end.
    pub(crate) bell: u32,
}

impl Session {
    /// Opens a lane to a port of the victim's.
    pub(crate) fn open(bench: &Bench, port: &Port) -> Session {
        Session::open_over(bench.greet(), Memory::new(), port)
    }

    pub(crate) fn open_over(stranger: Stranger, memory: Memory, port: &Port) -> Session {
        let (id, len) = (SEGMENT, Memory::LEN as u64);
        stranger.give(&Control::Segment { id, len }, &memory);
        stranger.say(&port.open(1, opener(port.form)));
        let end = loop {
            match stranger.hear().expect("the lane is opened") {
                Control::Opened { end, .. } => break end,
                Control::Refused { why, .. } => panic!("{}: {why:?}", port.name),
                _ => {}
            }
        };
        if port.from.is_some() {
            let (name, lane) = (port.name.to_owned(), 1);
            stranger.say(&Control::Joined { name, lane });
        }
        Session {
            stranger,
            memory,
            form: port.form,
            lane: 1,
            opened: true,
            bell: end.bell.1,
        }
    }

    /// Lets the victim walk into a trap: it opens a lane of this kind.
    pub(crate) fn trap(trap: &Trap, form: Form) -> Session {
        Session::answer(trap.accept(), form, answerer(form))
    }

    /// Answers what the victim says first of all, with this end.
    pub(crate) fn answer(stranger: Stranger, form: Form, end: End) -> Session {
        let memory = Memory::new();
        stranger.greet();
        let (id, len) = (SEGMENT, Memory::LEN as u64);
        stranger.give(&Control::Segment { id, len }, &memory);
        let (lane, bell) = loop {
            let heard = stranger.hear().expect("the victim asks for a lane");
            if let Control::Open { lane, end, .. } = heard {
                break (lane, end.bell.1);
            }
        };
        stranger.say(&Control::Opened { lane, end });
        Session {
            stranger,
            memory,
            form,
            lane,
            opened: false,
            bell,
        }
    }

    pub(crate) fn cells(&self) -> Cells<'_> {
        Cells::new(&self.memory, self.form)
    }

    /// Has the victim look.
    pub(crate) fn ring(&self) {
        ring(&self.memory);
        self.stranger.say(&Control::Ring { bell: self.bell });
    }
}
