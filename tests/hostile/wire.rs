//! The control messages as a stranger writes them: a mirror of what two honest nodes say.
//!
//! The library keeps its own types to itself. That these are the same is checked: an honest hello and
//! an honest request for a port are taken apart and put together again, byte by byte (`handshakes`).
//!
//! Unsafe code is allowed because the derives of rkyv emit it.
#![allow(unsafe_code)]

use rkyv::rancor::Failure;
use rkyv::{Archive, Deserialize, Serialize};

#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Where {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SendingEnd {
    pub(crate) cells: Where,
    pub(crate) timed: bool,
    pub(crate) board: Option<Where>,
}

#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) sends: Option<SendingEnd>,
    pub(crate) receives: Option<Where>,
    pub(crate) bell: (Where, u32),
    pub(crate) tasks: bool,
    pub(crate) door: Option<(Where, u16, bool)>,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Types {
    pub(crate) request: u128,
    pub(crate) answers: Vec<u128>,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Schemas {
    pub(crate) request: Vec<u8>,
    pub(crate) answers: Vec<Vec<u8>>,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoServer,
    Layout(Schemas),
    NoMemory,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    Hello {
        layout: u32,
        barrier: bool,
    },
    Segment {
        id: u64,
        len: u64,
    },
    Bell {
        bell: u32,
    },
    Retired {
        id: u64,
    },
    Open {
        lane: u32,
        name: String,
        from: Option<u32>,
        types: Types,
        end: End,
    },
    Opened {
        lane: u32,
        end: End,
    },
    Refused {
        lane: u32,
        why: Refusal,
    },
    Differs {
        name: String,
        schemas: Schemas,
    },
    Closed {
        lane: u32,
        mine: bool,
    },
    Released {
        lane: u32,
        mine: bool,
    },
    Ring {
        bell: u32,
    },
    Serving {
        name: String,
    },
    Gone {
        name: String,
    },
    Joined {
        name: String,
        lane: u32,
    },
    Bye,
}

/// What stands before every archive.
pub(crate) const HEAD: [u8; 8] = *b"shmb\x01\0\0\0";

/// The bytes of a control message.
pub(crate) fn encode(control: &Control) -> Vec<u8> {
    let mut bytes = HEAD.to_vec();
    let body = rkyv::to_bytes::<Failure>(control).expect("it can be archived");
    bytes.extend_from_slice(&body);
    bytes
}

/// A control message of an honest peer.
pub(crate) fn decode(bytes: &[u8]) -> Control {
    let (head, body) = bytes.split_at(8);
    assert_eq!(head, HEAD);
    let mut aligned = rkyv::util::AlignedVec::<16>::new();
    aligned.extend_from_slice(body);
    rkyv::from_bytes::<Control, Failure>(&aligned).expect("the victim is honest")
}
