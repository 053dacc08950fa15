//! A flight record as its user has it, and how it is read: from copies, by schemas, within limits.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::{Carries, Copied, CopiedLane, CopiedMessage, PREFIX};
use crate::error::{Ended, Fault};
use crate::message::Layout;
use crate::schema::{Limits, Schema, decode_at};

/// What the byte is called that says why no message came of a call.
type Why = fn(u8) -> &'static str;

/// The last messages of a link whose peer died, or broke the protocol.
///
/// See [`Bus::take_flight_records`](crate::Bus::take_flight_records).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FlightRecord {
    /// The process at the other end.
    pub pid: u32,
    /// How it ended, where that is known.
    pub ended: Option<Ended>,
    /// How it broke the protocol, if it did.
    pub fault: Option<Fault>,
    /// Each lane that was open, in each direction in which it has messages.
    pub lanes: Vec<FlightLane>,
    /// How many lanes there were beside: 256 of a link are recorded.
    pub lanes_left_out: usize,
    /// How many records are missing before this one: 16 wait to be taken.
    pub lost_before: usize,
}

/// One direction of a lane.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FlightLane {
    /// The port that it leads to, or comes from: the name of a service, of a one-way lane, or of a member of a topic.
    pub port: String,
    /// Whether its messages are ours; else they are the peer's.
    pub is_sent: bool,
    /// What it carries: one type, or replies, items and errors.
    pub schemas: Vec<Schema>,
    /// The last messages, the newest first: fewer than were asked for where there were no more, or where the memory
    /// of those before was used again.
    pub messages: Vec<FlightMessage>,
}

/// A message of a lane.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FlightMessage {
    /// What it is: `"message"`, `"item"`, `"error"`, `"failed"` (no message came of a call), `"missed"` (how many a
    /// subscriber did not get), `"entry"` (which of the newest values changed), or `"unknown"`.
    pub kind: &'static str,
    /// Which call it belongs to: a request and all that answers it have the same. Used again when the call is over.
    pub tag: u16,
    /// Of ours: whether the peer has handed it back. Of the peer's: true where this process has taken it for sure.
    pub taken: Option<bool>,
    /// The bytes of the archived message.
    pub bytes: usize,
    /// What it says; or why it cannot be read, and how its bytes begin.
    ///
    /// This is what lies there now. Who sent a message may write over it when it was taken, so of one over 8 KiB, and of
    /// one of a topic, that was taken before, nothing may be left.
    pub content: Result<Value, String>,
}

impl FlightRecord {
    pub(super) fn of(copied: Copied, lost_before: usize, why: Why) -> FlightRecord {
        let lanes = copied
            .lanes
            .into_iter()
            .map(|lane| FlightLane::of(lane, why));
        FlightRecord {
            pid: copied.pid,
            ended: copied.ending.how(copied.fault.is_some()),
            fault: copied.fault,
            lanes: lanes.collect(),
            lanes_left_out: copied.lanes_left_out,
            lost_before,
        }
    }

    /// All of it as JSON: to be logged, or attached to a report of the crash.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = shmbus::Bus::open("doc-flight-json")?;
    /// for record in bus.take_flight_records() {
    ///     eprintln!("{:#}", record.to_json());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn to_json(&self) -> Value {
        let lanes = self.lanes.iter().map(FlightLane::to_json);
        json!({
            "pid": self.pid,
            "ended": self.ended.map(|ended| ended.to_string()),
            "fault": self.fault.as_ref().map(Fault::to_string),
            "lanes": lanes.collect::<Vec<_>>(),
            "lanes_left_out": self.lanes_left_out,
            "lost_before": self.lost_before,
        })
    }
}

impl FlightLane {
    fn of(copied: CopiedLane, why: Why) -> FlightLane {
        let carried = &copied.carried;
        let layouts = match copied.carries_requests {
            true => &[carried.request][..],
            false => &carried.answers,
        };
        let messages = copied.messages.into_iter();
        FlightLane {
            port: copied.port,
            is_sent: copied.is_sent,
            schemas: layouts.iter().map(|layout| layout.schema.clone()).collect(),
            messages: messages.map(|one| FlightMessage::of(one, why)).collect(),
        }
    }

    fn to_json(&self) -> Value {
        let schemas = self.schemas.iter().map(|schema| {
            let text = schema.to_json();
            serde_json::from_str::<Value>(&text).unwrap_or(Value::String(text))
        });
        let messages = self.messages.iter().map(FlightMessage::to_json);
        json!({
            "port": self.port,
            "sent": self.is_sent,
            "types": self.schemas.iter().map(Schema::name).collect::<Vec<_>>(),
            "messages": messages.collect::<Vec<_>>(),
            "schemas": schemas.collect::<Vec<_>>(),
        })
    }
}

impl FlightMessage {
    fn of(copied: CopiedMessage, name: Why) -> FlightMessage {
        let (kind, layout) = match copied.carries {
            Carries::Message(layout) => ("message", Some(layout)),
            Carries::Item(layout) => ("item", Some(layout)),
            Carries::Error(layout) => ("error", Some(layout)),
            Carries::Number => ("entry", None),
            Carries::Failed => ("failed", None),
            Carries::Missed => ("missed", None),
            Carries::Unknown => ("unknown", None),
        };
        let bytes = copied.bytes.as_ref().map_or(0, Vec::len);
        let content = copied.bytes.and_then(|bytes| match (kind, layout) {
            (_, Some(layout)) => read(layout, &bytes),
            ("entry" | "missed", _) => match bytes.first_chunk() {
                Some(word) => Ok(u64::from_le_bytes(*word).into()),
                None => Err(hex(&bytes)),
            },
            ("failed", _) => {
                let (why, text) = bytes
                    .split_first()
                    .map_or((0, &[][..]), |(why, text)| (*why, text));
                Ok(json!({ "why": name(why), "text": String::from_utf8_lossy(text) }))
            }
            _ => Err(hex(&bytes)),
        });
        let content = content.map_err(|what| match copied.is_old {
            true => format!("it was handed back, and its memory used again, it seems: {what}"),
            false => what,
        });
        FlightMessage {
            kind,
            tag: copied.tag,
            taken: copied.taken,
            bytes,
            content,
        }
    }

    fn to_json(&self) -> Value {
        let mut json = Map::new();
        json.insert("kind".into(), self.kind.into());
        json.insert("tag".into(), self.tag.into());
        json.insert("taken".into(), self.taken.into());
        json.insert("bytes".into(), self.bytes.into());
        match &self.content {
            Ok(value) => json.insert("value".into(), value.clone()),
            Err(what) => json.insert("unreadable".into(), what.clone().into()),
        };
        Value::Object(json)
    }
}

/// Reads a message by its schema, whatever its bytes are.
fn read(layout: &Layout, bytes: &[u8]) -> Result<Value, String> {
    // Bytes may refer to the same place again and again; none of 64 KiB needs more.
    const LIMITS: Limits = Limits {
        depth: 128,
        values: 128 << 10,
        text: 1 << 20,
    };
    let root = bytes.len().checked_sub(layout.root_size);
    let root = root.ok_or_else(|| format!("too short: {}", hex(bytes)))?;
    decode_at(&layout.schema, bytes, root, LIMITS)
        .map_err(|error| format!("{error}: {}", hex(bytes)))
}

/// The first bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes.iter().take(PREFIX) {
        let _ = write!(text, "{byte:02x}");
    }
    if bytes.len() > PREFIX {
        text.push('…');
    }
    text
}
