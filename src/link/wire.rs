//! What two quiet threads say to each other: archived, validated, at most [`MOST_BYTES`] long.
//!
//! Only setting up and tearing down goes this way; messages never do. Bytes and descriptors are
//! arguments, so that everything here can be tested without a socket.
//!
//! Unsafe code is allowed because the derives of rkyv emit it.
#![allow(unsafe_code)]

use rkyv::rancor::Failure;
use rkyv::{Archive, Deserialize, Serialize};

use crate::error::Fault;
use crate::memory::layout::SegmentRef;

/// The most bytes of one control message; schemas are the only large thing in them.
pub(crate) const MOST_BYTES: usize = 128 * 1024;

/// The first four bytes of every control message.
const MAGIC: [u8; 4] = *b"shmb";

/// The number of this protocol. It stands before the archived message, and never moves.
const VERSION: u32 = 1;

/// Where something lies, as it travels.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Where {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl From<SegmentRef> for Where {
    fn from(at: SegmentRef) -> Where {
        Where {
            segment: at.segment,
            offset: at.offset,
            len: at.len,
        }
    }
}

impl From<Where> for SegmentRef {
    fn from(at: Where) -> SegmentRef {
        SegmentRef {
            segment: at.segment,
            offset: at.offset,
            len: at.len,
        }
    }
}

/// The sending end of a lane, as its receiver needs it.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SendingEnd {
    /// The sender's block and, right behind it, the first cells.
    pub(crate) cells: Where,
    /// Whether each message says when it was published.
    pub(crate) timed: bool,
    /// Where the newest values of its sender are told of, if it has such.
    pub(crate) board: Option<Where>,
}

/// What one side of a port contributes.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// The lane on which this side sends, if it does.
    pub(crate) sends: Option<SendingEnd>,
    /// The receiver's block of the lane on which this side receives, if it does.
    pub(crate) receives: Option<Where>,
    /// The bell at which this side waits, and its number.
    pub(crate) bell: (Where, u32),
    /// Whether it is tasks that wait there, who are rung by the descriptor of its `Bell`.
    pub(crate) tasks: bool,
    /// The doorbell by which this side says that its lane has something, the lane's bit,
    /// and how that bit stands now.
    pub(crate) door: Option<(Where, u16, bool)>,
}

/// The types of a port, by their fingerprints.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Types {
    pub(crate) request: u128,
    /// Of replies, items and errors; none on a one-way lane.
    pub(crate) answers: Vec<u128>,
}

/// The canonical bytes of the schemas of a port.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Schemas {
    pub(crate) request: Vec<u8>,
    pub(crate) answers: Vec<Vec<u8>>,
}

/// Why a port was not opened.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoServer,
    Layout(Schemas),
    NoMemory,
}

/// One control message.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// First of all, from both sides.
    Hello { layout: u32, barrier: bool },
    /// A segment of the sender's arena; its descriptor comes with the message.
    Segment { id: u64, len: u64 },
    /// A bell of the sender's at which tasks wait; the eventfd to ring comes with the message.
    Bell { bell: u32 },
    /// A segment that is used no more.
    Retired { id: u64 },
    /// Asks for the port of this name; on a topic, as the publisher of this number.
    Open {
        lane: u32,
        name: String,
        from: Option<u32>,
        types: Types,
        end: End,
    },
    /// The answer to `Open`: the port is open.
    Opened { lane: u32, end: End },
    /// The answer to `Open`: it is not.
    Refused { lane: u32, why: Refusal },
    /// To a server whose layout is another: what its client would have sent.
    Differs { name: String, schemas: Schemas },
    /// The port is used no more. `mine`: the sender of this message opened it.
    Closed { lane: u32, mine: bool },
    /// Nothing that came on this lane is looked at any more, now or ever.
    Released { lane: u32, mine: bool },
    /// Ring this bell of yours.
    Ring { bell: u32 },
    /// A port of this name is offered from now on; on an inherited link, also who takes part in a topic.
    Serving { name: String },
    /// It is not, any more.
    Gone { name: String },
    /// To the subscriber of this name: what is published from now on comes on this lane.
    Joined { name: String, lane: u32 },
    /// Last of all: the link has ended.
    Bye,
}

/// Writes a control message.
pub(crate) fn encode(control: &Control) -> Option<Vec<u8>> {
    let mut head = Vec::with_capacity(256);
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    let body = rkyv::to_bytes::<Failure>(control).ok()?;
    head.extend_from_slice(&body);
    (head.len() <= MOST_BYTES).then_some(head)
}

/// Reads a control message.
pub(crate) fn decode(bytes: &[u8]) -> Result<Control, Fault> {
    let (magic, rest) = bytes
        .split_first_chunk::<4>()
        .ok_or(Fault::Control { what: "too short" })?;
    let (version, body) = rest
        .split_first_chunk::<4>()
        .ok_or(Fault::Control { what: "too short" })?;
    if *magic != MAGIC {
        return Err(Fault::Control {
            what: "not of shmbus",
        });
    }
    if u32::from_le_bytes(*version) != VERSION {
        return Err(Fault::Control {
            what: "of another version of shmbus",
        });
    }
    // What came from a socket may start anywhere; the archive wants its alignment.
    let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(body.len());
    aligned.extend_from_slice(body);
    rkyv::from_bytes::<Control, Failure>(&aligned).map_err(|_| Fault::Control { what: "garbled" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Control {
        let at = Where {
            segment: 1,
            offset: 64,
            len: 4160,
        };
        let end = End {
            sends: Some(SendingEnd {
                cells: at,
                timed: true,
                board: Some(at),
            }),
            receives: None,
            bell: (at, 3),
            tasks: true,
            door: Some((at, 17, true)),
        };
        let types = Types {
            request: 7,
            answers: vec![9, 10, 11],
        };
        Control::Open {
            lane: 2,
            name: "complete".into(),
            from: Some(5),
            types,
            end,
        }
    }

    #[test]
    fn control_survives_its_bytes() {
        let bytes = encode(&example()).unwrap();
        assert_eq!(decode(&bytes), Ok(example()));
    }

    #[test]
    fn hostile_bytes_are_faults_or_values() {
        let bytes = encode(&example()).unwrap();
        for cut in 0..bytes.len() {
            let _ = decode(&bytes[..cut]);
        }
        for at in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[at / 8] ^= 1 << (at % 8);
            let _ = decode(&bytes);
        }
        assert_eq!(decode(b"shm"), Err(Fault::Control { what: "too short" }));
        assert_eq!(
            decode(b"shmb\x02\0\0\0"),
            Err(Fault::Control {
                what: "of another version of shmbus"
            })
        );
    }
}
