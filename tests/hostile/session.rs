//! A link on which a lane is open, and a stranger at one end of it who was honest so far.

use std::collections::HashMap;

use shmbus::{Nothing, ShmMessage, ShmRequest};

use crate::bench::Bench;
use crate::lane::{Cells, Form, SEGMENT, WORDS, answerer, at, open, opener, ring};
use crate::memory::{Memory, Theirs};
use crate::messages::{Flow, Later, News, Plain, Refer, State, archive, fingerprint};
use crate::stranger::{Stranger, Trap};
use crate::support::Ask;
use crate::wire::{self, Control, End, Types, Where};

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

/// A message with a handle on what is no document, in a segment that is none.
fn refer(number: u64) -> Vec<u8> {
    let words = [number, !SEGMENT, at::FREE as u64, 24, number];
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
    /// With cells and messages; and with the words of the receiving end, the bell and the doorbell.
    pub(crate) memory: Memory,
    pub(crate) words: Memory,
    pub(crate) form: Form,
    pub(crate) lane: u32,
    /// Whether the stranger has opened the lane.
    pub(crate) opened: bool,
    /// Whether it says when it publishes.
    pub(crate) timed: bool,
    /// The bell of the port at the other end.
    pub(crate) bell: u32,
    /// What the victim has announced, and the words in which it hands back.
    theirs: HashMap<u64, Theirs>,
    receiver: Option<Where>,
}

/// Makes the two segments of a stranger, and announces them.
pub(crate) fn announce(stranger: &Stranger) -> (Memory, Memory) {
    let (memory, words) = (Memory::new(at::LEN), Memory::new(at::WORDS_LEN));
    for (id, len, memory) in [(SEGMENT, at::LEN, &memory), (WORDS, at::WORDS_LEN, &words)] {
        let len = len as u64;
        stranger.give(&Control::Segment { id, len }, memory);
    }
    (memory, words)
}

/// Hears what is next, and maps what is announced.
fn hear(stranger: &Stranger, theirs: &mut HashMap<u64, Theirs>) -> Control {
    let (bytes, fds) = stranger.hear_all().expect("the victim goes on");
    let control = wire::decode(&bytes);
    if let (Control::Segment { id, .. }, [fd]) = (&control, &fds[..]) {
        theirs.insert(*id, Theirs::map(fd));
    }
    control
}

impl Session {
    /// Opens a lane to a port of the victim's.
    pub(crate) fn open(bench: &Bench, port: &Port) -> Session {
        let stranger = bench.greet();
        let announced = announce(&stranger);
        Session::opened(stranger, announced, port, opener(port.form))
    }

    /// Opens a lane with this end.
    pub(crate) fn opened(
        stranger: Stranger,
        (memory, words): (Memory, Memory),
        port: &Port,
        end: End,
    ) -> Session {
        let timed = end.sends.is_some_and(|sends| sends.timed);
        stranger.say(&port.open(1, end));
        let mut theirs = HashMap::new();
        let end = loop {
            match hear(&stranger, &mut theirs) {
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
            words,
            form: port.form,
            lane: 1,
            opened: true,
            timed,
            bell: end.bell.1,
            receiver: end.receives,
            theirs,
        }
    }

    /// Lets the victim walk into a trap: it opens a lane of this kind.
    pub(crate) fn trap(trap: &Trap, form: Form) -> Session {
        Session::answer(trap.accept(), form, answerer(form))
    }

    /// Answers what the victim says first of all, with this end.
    pub(crate) fn answer(stranger: Stranger, form: Form, end: End) -> Session {
        stranger.greet();
        let (memory, words) = announce(&stranger);
        let mut theirs = HashMap::new();
        let (lane, asked) = loop {
            if let Control::Open { lane, end, .. } = hear(&stranger, &mut theirs) {
                break (lane, end);
            }
        };
        stranger.say(&Control::Opened { lane, end });
        Session {
            stranger,
            memory,
            words,
            form,
            lane,
            opened: false,
            timed: end.sends.is_some_and(|sends| sends.timed),
            bell: asked.bell.1,
            receiver: asked.receives,
            theirs,
        }
    }

    pub(crate) fn cells(&self) -> Cells<'_> {
        Cells::new(&self.memory, self.form)
    }

    /// The number with which the victim asks to be rung; even where it looks by itself.
    pub(crate) fn attend(&self) -> u64 {
        let at = self.receiver.expect("the victim receives");
        self.theirs[&at.segment].word(at.offset as usize)
    }

    /// The bits in which the victim hands back what came in the first cells.
    pub(crate) fn returned(&self) -> u64 {
        let at = self.receiver.expect("the victim receives");
        self.theirs[&at.segment].word(at.offset as usize + 64)
    }

    /// Has the victim look.
    pub(crate) fn ring(&self) {
        ring(&self.words);
        self.stranger.say(&Control::Ring { bell: self.bell });
    }
}
