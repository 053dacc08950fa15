//! A lane as a stranger keeps it: where its words and cells lie, and how records follow each other.

use crate::memory::Memory;
use crate::wire::{Control, End, SendingEnd, Types, Where};

/// Which kind of lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Call,
    OneWay,
    Topic,
    Latest,
}

/// Where all lies in the one segment that a stranger has.
pub(crate) mod at {
    /// The block of a sender, and of a topic; behind them the cells.
    pub(crate) const SENDER: usize = 0;
    pub(crate) const CANCELLED: usize = 8;
    pub(crate) const TOPIC: usize = 64;
    /// The block of a receiver, and its hold.
    pub(crate) const RECEIVER: usize = 36_864;
    pub(crate) const HANDED_BACK: usize = RECEIVER + 64;
    pub(crate) const HOLD: usize = RECEIVER + 192;
    pub(crate) const BELL: usize = 37_120;
    pub(crate) const DOOR: usize = 37_376;
    pub(crate) const READY: usize = DOOR + 64;
    pub(crate) const BOARD: usize = 38_400;
    pub(crate) const ROWS: usize = BOARD + 64;
    pub(crate) const ENTRIES: usize = 40_960;
    /// For messages.
    pub(crate) const FREE: usize = 49_152;
}

/// The number of the one segment.
pub(crate) const SEGMENT: u64 = 7;

pub(crate) const CELL: usize = 64;

impl Form {
    /// How many bytes of words stand before the cells, and how many cells there are.
    pub(crate) fn cells(self) -> (usize, usize) {
        match self {
            Form::Call => (64, 64),
            Form::OneWay => (64, 512),
            Form::Topic | Form::Latest => (128, 512),
        }
    }

    pub(crate) fn sending_len(self) -> usize {
        let (words, cells) = self.cells();
        words + cells * CELL
    }

    fn receiving_len(self) -> usize {
        192 + if self == Form::Latest { 64 } else { 0 }
    }
}

pub(crate) fn place(offset: usize, len: usize) -> Where {
    Where {
        segment: SEGMENT,
        offset: offset as u64,
        len: len as u64,
    }
}

/// What the side that opens a lane contributes.
pub(crate) fn opener(form: Form) -> End {
    End {
        sends: Some(SendingEnd {
            cells: place(at::SENDER, form.sending_len()),
            timed: false,
            board: (form == Form::Latest).then(|| place(at::BOARD, 192)),
        }),
        receives: (form == Form::Call).then(|| place(at::RECEIVER, form.receiving_len())),
        bell: (place(at::BELL, 64), 1),
        tasks: false,
        door: Some((place(at::DOOR, 576), 5, false)),
    }
}

/// What the side that is asked for a lane contributes.
pub(crate) fn answerer(form: Form) -> End {
    End {
        sends: (form == Form::Call).then(|| SendingEnd {
            cells: place(at::SENDER, form.sending_len()),
            timed: false,
            board: None,
        }),
        receives: Some(place(at::RECEIVER, form.receiving_len())),
        bell: (place(at::BELL, 64), 1),
        tasks: false,
        door: None,
    }
}

/// Asks for a port.
pub(crate) fn open(
    lane: u32,
    (name, from): (&str, Option<u32>),
    types: Types,
    end: End,
) -> Control {
    let name = name.to_owned();
    Control::Open {
        lane,
        name,
        from,
        types,
        end,
    }
}

/// What a record is; the numbers that no record has are told to the victim, too.
pub(crate) mod kind {
    pub(crate) const INLINE: u64 = 1;
    pub(crate) const BLOCK: u64 = 2;
    pub(crate) const JUMP: u64 = 3;
    pub(crate) const EXTEND: u64 = 4;
    pub(crate) const FAILED: u64 = 5;
    pub(crate) const ITEM: u64 = 6;
    pub(crate) const ERROR: u64 = 8;
    pub(crate) const CALL: u64 = 10;
    pub(crate) const CALL_BLOCK: u64 = 11;
    pub(crate) const MISSED: u64 = 12;
}

/// The cells of a lane that a stranger sends on.
pub(crate) struct Cells<'a> {
    memory: &'a Memory,
    start: usize,
    count: usize,
    /// The cell of the next record, and its number.
    pub(crate) at: usize,
    sequence: u64,
}

impl<'a> Cells<'a> {
    pub(crate) fn new(memory: &'a Memory, form: Form) -> Cells<'a> {
        let (start, count) = form.cells();
        Cells {
            memory,
            start,
            count,
            at: 0,
            sequence: 0,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    fn offset(&self, cell: usize) -> usize {
        self.start + cell % self.count * CELL
    }

    /// Publishes a record of these bytes, behind its header and what leads them.
    pub(crate) fn publish(&mut self, (kind, tag): (u64, u64), lead: &[u8], bytes: &[u8]) {
        let cells = (8 + lead.len() + bytes.len()).div_ceil(CELL);
        if self.at + cells >= self.count {
            self.jump(0);
        }
        let here = self.offset(self.at);
        self.memory.put(here + 8, lead);
        self.memory.put(here + 8 + lead.len(), bytes);
        self.header((kind, tag), bytes.len() as u64, self.at + cells);
    }

    /// Publishes a record that leads elsewhere.
    pub(crate) fn jump(&mut self, to: usize) {
        self.header((kind::JUMP, 0), 0, to);
    }

    /// Publishes a message that was written elsewhere, in whatever place these words say; `more` stands behind.
    pub(crate) fn refer(&mut self, (kind, tag): (u64, u64), words: [u64; 3], more: &[u8]) {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(more);
        self.publish((kind, tag), &[], &bytes);
    }

    /// Publishes whatever stands in the cell, with this header.
    pub(crate) fn header(&mut self, (kind, tag): (u64, u64), len: u64, next: usize) {
        let reserved = self.offset(next);
        if next != self.at {
            self.memory.set(reserved, 0);
        }
        let stamp = self.sequence.wrapping_add(1) & 0xfff;
        let word = stamp
            | (kind & 0xf) << 12
            | (len & 0xffff) << 16
            | (next as u64 & 0xffff) << 32
            | (tag & 0xffff) << 48;
        self.memory.set(self.offset(self.at), word);
        self.sequence += 1;
        self.at = next % self.count;
    }
}

/// Flips the lane's bit in the doorbell, and counts the ring.
pub(crate) fn ring(memory: &Memory) {
    use std::sync::atomic::Ordering;
    memory.word(at::READY).fetch_xor(1 << 5, Ordering::Release);
    memory.word(at::DOOR).fetch_add(1, Ordering::Release);
}
