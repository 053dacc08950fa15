//! The messages of the benches, and what message number `id` carries.

use shmbus::{Bytes, ShmMessage};

/// The text of small messages: 24 bytes.
const TEXT: &str = "completion_candidate_024";
/// The second text of an item: 60 bytes.
const DETAIL: &str = "fn completion_candidate_024(self, at: Place) -> Option<Item>";
/// Items of a medium reply.
const ITEMS: usize = 20;
/// Bytes of payload of a [`Line`].
pub const LINE_BYTES: usize = 17;
/// Bytes of payload of a [`Small`].
pub const SMALL_BYTES: usize = LINE_BYTES + TEXT.len();
/// Bytes of payload of [`Items`].
pub const MEDIUM_BYTES: usize = ITEMS * (TEXT.len() + DETAIL.len() + 4);

/// Four numbers: one cache line.
#[derive(ShmMessage)]
pub struct Line {
    pub id: u64,
    pub line: u32,
    pub column: u32,
    pub kind: u8,
}

/// Four numbers and a text, there and back.
#[derive(ShmMessage)]
#[shm(service = "small", reply = Small)]
pub struct Small {
    pub id: u64,
    pub line: u32,
    pub column: u32,
    pub kind: u8,
    pub text: String,
}

/// As [`Small`], but answered with [`Items`].
#[derive(ShmMessage)]
#[shm(service = "medium", reply = Items)]
pub struct Query {
    pub id: u64,
    pub line: u32,
    pub column: u32,
    pub kind: u8,
    pub text: String,
}

/// Twenty completions.
#[derive(ShmMessage)]
pub struct Items {
    pub items: Vec<Item>,
}

/// One completion.
#[derive(ShmMessage)]
pub struct Item {
    pub label: String,
    pub detail: String,
    pub score: f32,
}

/// Large content that the library copies from the heap.
#[derive(ShmMessage)]
#[shm(service = "large-copy", reply = Sum)]
pub struct Copied {
    pub id: u64,
    pub content: Vec<u8>,
}

/// Large content that was written where it is sent from.
#[derive(ShmMessage)]
#[shm(service = "large-in-place", reply = Sum)]
pub struct InPlace {
    pub id: u64,
    pub content: Bytes,
}

/// What a receiver found.
#[derive(ShmMessage)]
pub struct Sum {
    pub sum: u64,
}

/// The four numbers that several messages share.
macro_rules! numbered {
    ($message:ident, $archived:ident) => {
        impl $message {
            /// Puts the numbers of message `id` in.
            pub fn number(&mut self, id: u64) {
                self.id = id;
                self.line = id as u32;
                self.column = !id as u32;
                self.kind = id as u8;
            }
        }

        impl $archived {
            /// Whether the numbers are those of message `id`.
            pub fn has_numbers(&self, id: u64) -> bool {
                self.id.to_native() == id
                    && self.line.to_native() == id as u32
                    && self.column.to_native() == !id as u32
                    && self.kind == id as u8
            }
        }
    };
}

/// A message of four numbers and a text.
macro_rules! with_text {
    ($message:ident, $archived:ident) => {
        numbered!($message, $archived);

        impl $message {
            /// A message with its text, and no numbers yet.
            pub fn new() -> Self {
                $message {
                    id: 0,
                    line: 0,
                    column: 0,
                    kind: 0,
                    text: TEXT.to_owned(),
                }
            }
        }

        impl $archived {
            /// Whether this is message `id`, unchanged.
            pub fn carries(&self, id: u64) -> bool {
                self.has_numbers(id) && self.text.as_str() == TEXT
            }
        }
    };
}

numbered!(Line, ArchivedLine);
with_text!(Small, ArchivedSmall);
with_text!(Query, ArchivedQuery);

impl Line {
    /// A message without numbers yet.
    pub fn new() -> Self {
        Line {
            id: 0,
            line: 0,
            column: 0,
            kind: 0,
        }
    }
}

impl Items {
    /// All items, with a score of one each.
    pub fn new() -> Self {
        let item = |_| Item {
            label: TEXT.to_owned(),
            detail: DETAIL.to_owned(),
            score: 1.0,
        };
        Items {
            items: (0..ITEMS).map(item).collect(),
        }
    }

    /// Makes it the reply to message `id`.
    pub fn number(&mut self, id: u64) {
        if let Some(last) = self.items.last_mut() {
            last.score = (id % 1000) as f32;
        }
    }
}

impl ArchivedItems {
    /// The lengths of all labels, and the sum of all scores.
    pub fn read(&self) -> (usize, f32) {
        self.items.iter().fold((0, 0.0), |(lengths, scores), item| {
            (lengths + item.label.len(), scores + item.score.to_native())
        })
    }
}

/// What [`ArchivedItems::read`] finds in the reply to message `id`.
pub fn expected_items(id: u64) -> (usize, f32) {
    let scores = (ITEMS - 1) as f32 + (id % 1000) as f32;
    (ITEMS * TEXT.len(), scores)
}
