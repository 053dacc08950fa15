//! What is sent. The contents of each message follow from who sent it and its number, so that whoever gets it can
//! tell each of its bytes.

use shmbus::{Pinned, ShmMessage};

/// Something to be done, and answered.
#[derive(ShmMessage)]
#[shm(service = "work", stream = Part, reply = Done)]
pub struct Work {
    pub row: u64,
    pub number: u64,
    /// How many items are wanted before the reply.
    pub items: u32,
    /// How long the reply, and each item, is to be.
    pub size: u32,
    pub body: Vec<u8>,
}

/// The same, between tasks.
#[derive(ShmMessage)]
#[shm(service = "task-work", stream = Part, reply = Done)]
pub struct TaskWork {
    pub row: u64,
    pub number: u64,
    pub items: u32,
    pub size: u32,
    pub body: Vec<u8>,
}

#[derive(ShmMessage)]
pub struct Part {
    pub row: u64,
    pub number: u64,
    pub index: u32,
    pub body: Vec<u8>,
}

#[derive(ShmMessage)]
pub struct Done {
    pub row: u64,
    pub number: u64,
    pub items: u32,
    pub body: Vec<u8>,
}

/// A message one way.
#[derive(ShmMessage)]
pub struct Letter {
    pub row: u64,
    pub number: u64,
    pub body: Vec<u8>,
    pub page: Option<Pinned<Page>>,
}

/// What many letters refer to.
#[derive(ShmMessage)]
pub struct Page {
    pub row: u64,
    pub number: u64,
    pub body: Vec<u8>,
}

/// A message of a topic on which nothing is missed.
#[derive(ShmMessage)]
#[shm(topic = "reliable")]
pub struct Reliable {
    pub row: u64,
    pub number: u64,
    /// When the message before it was begun.
    pub previous: u64,
    pub body: Vec<u8>,
}

/// A message of a topic on which what is missed is told.
#[derive(ShmMessage)]
#[shm(topic = "lossy")]
pub struct Lossy {
    pub row: u64,
    pub number: u64,
    pub previous: u64,
    pub body: Vec<u8>,
}

/// A newest value.
#[derive(ShmMessage)]
#[shm(latest = "newest", key = "key")]
pub struct Newest {
    pub key: u64,
    pub row: u64,
    pub number: u64,
    pub body: Vec<u8>,
}

const SMALL: usize = 40;
const MEDIUM: usize = 9 << 10;
const LARGE: usize = 600 << 10;

/// How large a message is to be: mostly small, seldom one that fills a segment.
pub fn size(rng: &mut fastrand::Rng) -> usize {
    match rng.u32(..512) {
        0 => LARGE,
        1..24 => MEDIUM,
        _ => rng.usize(..SMALL),
    }
}

fn step(row: u64, number: u64) -> (u64, u64) {
    let mut start = (row << 32 ^ number).wrapping_add(0x9E37_79B9_7F4A_7C15);
    start = (start ^ (start >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    start = (start ^ (start >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (start ^ (start >> 31), start | 1)
}

/// The contents of this message.
pub fn body(row: u64, number: u64, len: usize) -> Vec<u8> {
    let (mut word, by) = step(row, number);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&word.to_le_bytes());
        word = word.wrapping_add(by);
    }
    bytes.truncate(len);
    bytes
}

/// Whether these are the contents of this message.
pub fn is_body(row: u64, number: u64, bytes: &[u8]) -> bool {
    let (mut word, by) = step(row, number);
    bytes.chunks(8).all(|chunk| {
        let is_right = chunk == &word.to_le_bytes()[..chunk.len()];
        word = word.wrapping_add(by);
        is_right
    })
}
