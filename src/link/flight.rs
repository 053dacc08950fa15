//! The flight recorder: what lay in the lanes of a link when it ended without a word.
//!
//! A dead process's memory can be read for as long as it is mapped, and what was sent to it lies in our own. So
//! nothing is recorded while the link lives: a lane is noted when it opens ([`Flight`]), and when its link ends, the
//! last messages are copied out of both directions, before any of it is unmapped or used again ([`Copied`]).
//! They are read by their schemas when somebody asks for them ([`record`]).
//!
//! Where something lies is noted as a reference, which holds nothing mapped, and is resolved anew at the end. The
//! peer's bytes are copied first and judged then; ours are read from the file that they lie in, since other threads
//! may write there meanwhile.

mod record;

pub use record::{FlightLane, FlightMessage, FlightRecord};

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use super::ending::Ending;
use super::node::Node;
use super::{LaneId, Line, Link, lock};
use crate::error::Fault;
use crate::memory::layout::{CELL, Kind, MOST_CELLS, SegmentRef, Starts};
use crate::memory::ring::mark::{Mark, Marked, Taken};
use crate::memory::ring::past::{self, Past};
use crate::message::Layout;

/// The most messages of each lane and direction.
const MOST_MESSAGES: usize = 256;
/// The most lanes of one link.
const MOST_LANES: usize = 256;
/// The most bytes of a message that are read. The root comes last, so that of a longer one nothing can be.
const MOST_BYTES: u64 = 64 << 10;
/// The most bytes of one record.
const BUDGET: usize = 8 << 20;
/// The most records that wait to be taken.
const MOST_RECORDS: usize = 16;
/// How many bytes are shown of what cannot be read.
const PREFIX: usize = 64;

/// What the two directions of a port carry.
#[derive(Clone)]
pub(crate) struct Carried {
    pub(crate) request: &'static Layout,
    /// Replies, items and errors; none where the port does not answer.
    pub(crate) answers: Vec<&'static Layout>,
    /// Only the numbers of newest values go over the lane.
    pub(crate) numbers: bool,
}

/// One direction of a lane.
pub(crate) struct Side {
    /// Where its cells are, those that it started with first.
    pub(crate) rows: Vec<SegmentRef>,
    pub(crate) starts: Starts,
    pub(crate) known: Known,
}

/// What is known of how far its halves are.
pub(crate) enum Known {
    /// We send: what the sending half says, and where the peer's words are in which it hands back.
    Sent(Arc<Mark>, SegmentRef),
    Received(Arc<Taken>),
}

/// A lane that is open.
struct Note {
    id: LaneId,
    port: String,
    carried: Carried,
    line: Weak<Line>,
    sides: Vec<Side>,
}

/// The lanes of a link that are open; none where nobody wants to know.
#[derive(Default)]
pub(super) struct Flight(Mutex<Vec<Note>>);

/// How many messages of each lane a node records.
fn most(node: &Node) -> usize {
    node.config().flight_recorder.min(MOST_MESSAGES)
}

impl Link {
    /// Notes to which port a lane leads that is about to open.
    pub(crate) fn note_port(&self, node: &Node, id: LaneId, port: &str, carried: Carried) {
        if most(node) > 0 {
            lock(&self.flight.0).push(Note {
                id,
                port: port.to_owned(),
                carried,
                line: Weak::new(),
                sides: Vec::new(),
            });
        }
    }

    /// Whether the port of a lane was noted, so that its sides are to be, too.
    pub(crate) fn is_noted(&self, id: LaneId) -> bool {
        lock(&self.flight.0).iter().any(|note| note.id == id)
    }

    pub(crate) fn note_sides(&self, id: LaneId, line: &Arc<Line>, sides: Vec<Side>) {
        if let Some(note) = lock(&self.flight.0).iter_mut().find(|note| note.id == id) {
            (note.line, note.sides) = (Arc::downgrade(line), sides);
        }
    }

    /// Notes cells that were added to a lane.
    pub(crate) fn note_row(&self, line: &Arc<Line>, is_sent: bool, row: SegmentRef) {
        let mut notes = lock(&self.flight.0);
        let is_it = |note: &&mut Note| note.line.as_ptr() == Arc::as_ptr(line);
        for side in notes
            .iter_mut()
            .filter(is_it)
            .flat_map(|note| &mut note.sides)
        {
            let most = MOST_CELLS / 64;
            if is_sent == matches!(side.known, Known::Sent(..)) && side.rows.len() < most {
                side.rows.push(row);
            }
        }
    }

    pub(super) fn forget_lane(&self, id: LaneId) {
        lock(&self.flight.0).retain(|note| note.id != id);
    }

    /// The link has just ended: copies what lies in its lanes, before anybody learns of it.
    pub(super) fn record_flight(&self) {
        let Some(node) = self.node.upgrade() else {
            return;
        };
        let fault = self.fault();
        if node.has_quit() || (fault.is_none() && self.ending.has_said_bye()) {
            return;
        }
        let notes = std::mem::take(&mut *lock(&self.flight.0));
        if notes.is_empty() {
            return;
        }
        let mut budget = BUDGET;
        let lanes_left_out = notes.len().saturating_sub(MOST_LANES);
        let mut lanes = Vec::new();
        for note in notes.iter().take(MOST_LANES) {
            for side in &note.sides {
                lanes.push(self.copy_lane(&node, note, side, &mut budget));
            }
        }
        node.flights().add(Copied {
            pid: self.pid(),
            ending: self.ending.clone(),
            fault,
            lanes,
            lanes_left_out,
        });
    }

    fn copy_lane(
        &self,
        node: &Arc<Node>,
        note: &Note,
        side: &Side,
        budget: &mut usize,
    ) -> CopiedLane {
        let is_sent = matches!(side.known, Known::Sent(..));
        let copy = |at| self.copy(node, is_sent, at);
        let mut cells = Vec::new();
        let mut rows = Vec::new();
        for row in &side.rows {
            // Rows are numbered on from those before, so none behind one that is gone can be told.
            let Ok(bytes) = copy(*row) else { break };
            rows.push(bytes.len() / CELL);
            cells.extend_from_slice(&bytes);
        }
        let progress = match &side.known {
            Known::Sent(mark, back) => {
                Progress::Sent(mark.get().map(Box::new), self.copy(node, false, *back).ok())
            }
            Known::Received(taken) => Progress::Received(taken.get()),
        };
        let found = past::last(&cells, &rows, side.starts, progress.count(), most(node));
        let mut newer = Vec::new();
        let messages = found.into_iter().map(|past| {
            let payload = &cells[past.payload.clone()];
            let taken = progress.is_taken(&past);
            let bytes = content(past.kind, payload, (budget, &mut newer), copy);
            CopiedMessage {
                carries: Carries::of(&note.carried, is_sent == note.id.ours, past.kind),
                tag: past.tag,
                taken,
                is_old: is_block(past.kind) && taken == Some(true),
                bytes,
            }
        });
        CopiedLane {
            port: note.port.clone(),
            is_sent,
            carried: note.carried.clone(),
            carries_requests: is_sent == note.id.ours,
            messages: messages.collect(),
        }
    }

    /// Copies bytes of ours, or of the peer's, that may not be there any more.
    fn copy(&self, node: &Arc<Node>, is_ours: bool, at: SegmentRef) -> Result<Vec<u8>, String> {
        let gone = || "its memory is not mapped any more".to_owned();
        match is_ours {
            true => {
                let segment = node.arena().segment(at.segment).ok_or_else(gone)?;
                segment.read_out(at).map_err(|error| error.to_string())
            }
            false => {
                let segment = self.mapped.get(at.segment).ok_or_else(gone)?;
                segment.read_out(at).map_err(|fault| fault.to_string())
            }
        }
    }
}

fn overlap(one: SegmentRef, other: SegmentRef) -> bool {
    let end = |at: SegmentRef| at.offset.saturating_add(at.len);
    one.segment == other.segment && one.offset < end(other) && other.offset < end(one)
}

/// Whether a message lies in the slab.
fn is_block(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Block | Kind::ItemBlock | Kind::ErrorBlock | Kind::CallBlock
    )
}

/// The bytes of a message, or why they are not there.
fn content(
    kind: Kind,
    payload: &[u8],
    (budget, newer): (&mut usize, &mut Vec<SegmentRef>),
    copy: impl Fn(SegmentRef) -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, String> {
    let at = match payload.get(..size_of::<SegmentRef>()) {
        Some(at) if is_block(kind) => Some(bytemuck::pod_read_unaligned::<SegmentRef>(at)),
        _ => None,
    };
    let len = at.map_or(payload.len() as u64, |at| at.len);
    let cost = len.min(MOST_BYTES) as usize + size_of::<CopiedMessage>();
    *budget = budget
        .checked_sub(cost)
        .ok_or("the record is full".to_owned())?;
    match at {
        None => Ok(payload.to_vec()),
        Some(at) if newer.iter().any(|newer| overlap(*newer, at)) => {
            Err("a newer message lies there".to_owned())
        }
        Some(at) if at.len <= MOST_BYTES => {
            newer.push(at);
            copy(at)
        }
        Some(at) => {
            newer.push(at);
            let prefix = copy(SegmentRef {
                len: PREFIX as u64,
                ..at
            })?;
            let most = MOST_BYTES >> 10;
            let shown = record::hex(&prefix);
            Err(format!(
                "{len} bytes, and {most} KiB are read at the most: {shown}"
            ))
        }
    }
}

enum Progress {
    Sent(Option<Box<Marked>>, Option<Vec<u8>>),
    Received(u64),
}

impl Progress {
    /// How many records there were, at least.
    fn count(&self) -> u64 {
        match self {
            Progress::Sent(marked, _) => marked.as_ref().map_or(0, |marked| marked.sequence),
            Progress::Received(taken) => *taken,
        }
    }

    fn is_taken(&self, past: &Past) -> Option<bool> {
        match self {
            Progress::Sent(marked, back) => {
                let mut bits = [0; MOST_CELLS / 64];
                let words = back.as_ref()?.chunks_exact(8).skip(8);
                for (bits, word) in bits.iter_mut().zip(words) {
                    *bits = u64::from_le_bytes(word.try_into().ok()?);
                }
                Some(marked.as_ref()?.is_back(past.sequence, past.cell, &bits))
            }
            // Some that were taken may not be told of yet.
            Progress::Received(taken) => (past.sequence < *taken).then_some(true),
        }
    }
}

/// What a message is, by its kind.
enum Carries {
    Message(&'static Layout),
    Item(&'static Layout),
    Error(&'static Layout),
    /// Of a newest value: its entry.
    Number,
    Failed,
    Missed,
    /// Nothing that an honest peer sends there.
    Unknown,
}

impl Carries {
    fn of(carried: &Carried, is_request: bool, kind: Kind) -> Carries {
        let answer = |at: usize| carried.answers.get(at).copied();
        let of = match kind {
            Kind::Failed => Some(Carries::Failed),
            Kind::Missed => Some(Carries::Missed),
            _ if is_request && carried.numbers => Some(Carries::Number),
            _ if is_request => Some(Carries::Message(carried.request)),
            Kind::Item | Kind::ItemBlock => answer(1).map(Carries::Item),
            Kind::Error | Kind::ErrorBlock => answer(2).map(Carries::Error),
            _ => answer(0).map(Carries::Message),
        };
        of.unwrap_or(Carries::Unknown)
    }
}

struct CopiedMessage {
    carries: Carries,
    tag: u16,
    taken: Option<bool>,
    /// Its memory may be another's since.
    is_old: bool,
    bytes: Result<Vec<u8>, String>,
}

struct CopiedLane {
    port: String,
    is_sent: bool,
    carried: Carried,
    carries_requests: bool,
    messages: Vec<CopiedMessage>,
}

/// What was copied of a link.
struct Copied {
    pid: u32,
    ending: Ending,
    fault: Option<Fault>,
    lanes: Vec<CopiedLane>,
    lanes_left_out: usize,
}

/// The records of a node that nobody has taken yet.
#[derive(Default)]
pub(crate) struct Flights(Mutex<(VecDeque<Copied>, usize)>);

impl Flights {
    fn add(&self, copied: Copied) {
        let mut all = lock(&self.0);
        if all.0.len() >= MOST_RECORDS {
            all.0.pop_front();
            all.1 += 1;
        }
        all.0.push_back(copied);
    }

    /// Reads them, the oldest first. May wait a little for the ends of processes.
    ///
    /// `why` says what the byte is called that says why no message came of a call.
    pub(crate) fn take(&self, why: fn(u8) -> &'static str) -> Vec<FlightRecord> {
        let (all, mut lost) = std::mem::take(&mut *lock(&self.0));
        // Of some it was found only behind the end of the link that it was no death.
        let is_death = |copied: &Copied| copied.fault.is_some() || !copied.ending.has_said_bye();
        let all = all.into_iter().filter(is_death);
        all.map(|copied| FlightRecord::of(copied, std::mem::take(&mut lost), why))
            .collect()
    }
}
