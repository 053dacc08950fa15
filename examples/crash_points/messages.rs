//! What is sent. The number of a message says all of its content, so that half of one is found out.

use anyhow::{Result, ensure};
use shmbus::{Pinned, ShmMessage};

/// The content of a message that fits one cell.
pub const SMALL: usize = 24;
/// The content of one that goes through the slab: just larger than the largest in the ring.
pub const LARGE: usize = 9 << 10;
/// The content of one that is larger than any before, so that no block of another is used for it.
pub const LARGER: usize = 17 << 10;

/// The content of the largest message that does not go through the slab.
pub const WIDE: usize = (8 << 10) - 16;

/// The name of the port on which the survivor receives.
pub const OUTBOX: &str = "outbox";
/// The name of the port on which the child receives.
pub const INBOX: &str = "inbox";

/// A message, on a lane or a topic.
#[derive(ShmMessage, Debug)]
#[shm(topic = "notes")]
pub struct Note {
    pub id: u64,
    pub content: Vec<u8>,
}

/// A request.
#[derive(ShmMessage, Debug)]
#[shm(service = "asks", stream = Note, reply = Note)]
pub struct Ask {
    pub id: u64,
}

/// A newest value.
#[derive(ShmMessage, Debug)]
#[shm(latest = "states", key = "key")]
pub struct State {
    pub key: String,
    pub id: u64,
    pub content: Vec<u8>,
}

/// What is pinned.
#[derive(ShmMessage, Debug)]
pub struct Document {
    pub id: u64,
    pub content: Vec<u8>,
}

/// A message that refers to it.
#[derive(ShmMessage)]
pub struct Edit {
    pub id: u64,
    pub document: Pinned<Document>,
}

fn byte(id: u64, index: usize) -> u8 {
    (id.wrapping_mul(37) as u8).wrapping_add(index as u8)
}

/// What the message of this number carries.
pub fn content(id: u64, len: usize) -> Vec<u8> {
    (0..len).map(|index| byte(id, index)).collect()
}

/// The message of this number.
pub fn note(id: u64, len: usize) -> Note {
    let content = content(id, len);
    Note { id, content }
}

/// The value of this key and number.
pub fn state(key: &str, id: u64, len: usize) -> State {
    let (key, content) = (key.to_owned(), content(id, len));
    State { key, id, content }
}

/// Whether this is what the message of this number carries.
///
/// # Errors
///
/// What is wrong with it.
pub fn check(id: u64, found: &[u8], len: usize) -> Result<()> {
    ensure!(
        found.len() == len,
        "message {id:#x} has {} bytes",
        found.len()
    );
    let torn = found
        .iter()
        .enumerate()
        .find(|&(index, &b)| b != byte(id, index));
    ensure!(torn.is_none(), "message {id:#x} is torn at {torn:?}");
    Ok(())
}
