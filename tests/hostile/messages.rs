//! What the victim and its peers say.

use shmbus::{Pinned, ShmMessage, schema_of};

/// Nothing but numbers: whoever changes them while they are read changes what is read, and no more.
#[derive(ShmMessage, Clone)]
pub(crate) struct Plain {
    pub(crate) number: u64,
    pub(crate) many: [u64; 256],
    pub(crate) share: f64,
}

/// To be answered with numbers, and their sum.
#[derive(ShmMessage, Clone)]
#[shm(service = "flow", stream = Number, reply = Sum, error = Refused)]
pub(crate) struct Flow {
    pub(crate) id: u64,
    pub(crate) count: u32,
    pub(crate) padding: Vec<u8>,
}

/// The same, answered by tasks, and not in order.
#[derive(ShmMessage, Clone)]
#[shm(service = "later", stream = Number, reply = Sum, error = Refused)]
pub(crate) struct Later {
    pub(crate) id: u64,
    pub(crate) count: u32,
    pub(crate) padding: Vec<u8>,
}

/// What the victim asks of whoever serves.
#[derive(ShmMessage, Clone)]
#[shm(service = "prey", stream = Number, reply = Sum, error = Refused)]
pub(crate) struct Prey {
    pub(crate) id: u64,
    pub(crate) text: String,
}

/// The same, by tasks.
#[derive(ShmMessage, Clone)]
#[shm(service = "prey-later", stream = Number, reply = Sum, error = Refused)]
pub(crate) struct PreyLater {
    pub(crate) id: u64,
    pub(crate) text: String,
}

#[derive(ShmMessage, Clone)]
pub(crate) struct Number {
    pub(crate) number: u32,
}

#[derive(ShmMessage, Clone)]
pub(crate) struct Sum {
    pub(crate) id: u64,
    pub(crate) sum: u64,
    pub(crate) padding: Vec<u8>,
}

#[derive(ShmMessage, Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) id: u64,
}

#[derive(ShmMessage, Clone)]
pub(crate) struct Document {
    pub(crate) number: u64,
    pub(crate) text: String,
}

#[derive(ShmMessage)]
pub(crate) struct Refer {
    pub(crate) number: u64,
    pub(crate) document: Pinned<Document>,
}

/// Published by strangers, and by the victim.
#[derive(ShmMessage, Clone)]
#[shm(topic = "news")]
pub(crate) struct News {
    pub(crate) number: u64,
    pub(crate) text: String,
}

#[derive(ShmMessage, Clone)]
#[shm(topic = "feed")]
pub(crate) struct Feed {
    pub(crate) number: u64,
    pub(crate) text: String,
}

#[derive(ShmMessage, Clone)]
#[shm(latest = "state", key = "path")]
pub(crate) struct State {
    pub(crate) path: String,
    pub(crate) version: u64,
    pub(crate) text: String,
}

#[derive(ShmMessage, Clone)]
#[shm(latest = "board", key = "path")]
pub(crate) struct Board {
    pub(crate) path: String,
    pub(crate) version: u64,
    pub(crate) text: String,
}

/// By which the two sides of a port compare their types.
pub(crate) fn fingerprint<T: ShmMessage>() -> u128 {
    schema_of::<T>().fingerprint()
}

/// An honest archive.
macro_rules! archive {
    ($value:expr) => {
        rkyv::to_bytes::<rkyv::rancor::Error>(&$value)
            .expect("it can be archived")
            .to_vec()
    };
}
pub(crate) use archive;
