//! A lane as a stranger keeps it: where its words and cells lie, and how records follow each other.

use std::sync::atomic::Ordering;

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

/// Where all lies in the two segments that a stranger has.
pub(crate) mod at {
    /// The block of a sender, and of a topic; behind them the cells.
    pub(crate) const SENDER: usize = 0;
    pub(crate) const CANCELLED: usize = 8;
    pub(crate) const TOPIC: usize = 64;
    pub(crate) const BOARD: usize = 33_024;
    pub(crate) const ROWS: usize = BOARD + 64;
    pub(crate) const ENTRIES: usize = 34_816;
    /// For messages.
    pub(crate) const FREE: usize = 49_152;
    /// So many bytes in all.
    pub(crate) const LEN: usize = 131_072;

    /// In the other segment: the block of a receiver, and its hold; the bell, and the doorbell.
    pub(crate) const RECEIVER: usize = 0;
    pub(crate) const HANDED_BACK: usize = RECEIVER + 64;
    pub(crate) const HOLD: usize = RECEIVER + 192;
    pub(crate) const BELL: usize = 256;
    pub(crate) const DOOR: usize = 320;
    pub(crate) const READY: usize = DOOR + 64;
    pub(crate) const WORDS_LEN: usize = 4_096;
}

/// The number of the segment with cells and messages.
pub(crate) const SEGMENT: u64 = 0x5a;
/// The number of the one with words, to which no message refers.
pub(crate) const WORDS: u64 = 0x5eed_0123_4567;

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

/// A place among the words.
pub(crate) fn words(offset: usize, len: usize) -> Where {
    Where {
        segment: WORDS,
        ..place(offset, len)
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
        receives: (form == Form::Call).then(|| words(at::RECEIVER, form.receiving_len())),
        bell: (words(at::BELL, 64), 1),
        tasks: false,
        door: Some((words(at::DOOR, 576), 5, false)),
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
        receives: Some(words(at::RECEIVER, form.receiving_len())),
        bell: (words(at::BELL, 64), 1),
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
    /// Cells that the victim may look at, where nothing is to change that it has looked at.
    used: Option<Vec<bool>>,
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
            used: None,
        }
    }

    /// As [`new`](Self::new); nothing that was written is written again.
    pub(crate) fn once(memory: &'a Memory, form: Form) -> Cells<'a> {
        let (_, count) = form.cells();
        let used = Some(vec![false; count]);
        Cells {
            used,
            ..Cells::new(memory, form)
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    fn offset(&self, cell: usize) -> usize {
        self.start + cell % self.count * CELL
    }

    /// Whether so many cells may be written, from here on.
    fn take(&mut self, cells: usize) -> bool {
        let (at, count) = (self.at, self.count);
        let Some(used) = &mut self.used else {
            return true;
        };
        let end = (at + cells).min(count);
        let is_free = !used[at..end].contains(&true);
        if is_free {
            used[at..end].fill(true);
        }
        is_free
    }

    /// Publishes a record of these bytes, behind its header and what leads them.
    pub(crate) fn publish(&mut self, (kind, tag): (u64, u64), lead: &[u8], bytes: &[u8]) {
        let cells = (8 + lead.len() + bytes.len()).div_ceil(CELL);
        if self.at + cells >= self.count {
            self.jump(0);
        }
        if !self.take(cells) {
            return;
        }
        let here = self.offset(self.at);
        self.memory.put(here + 8, lead);
        self.memory.put(here + 8 + lead.len(), bytes);
        self.write((kind, tag), bytes.len() as u64, self.at + cells);
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

    /// Publishes whatever stands in the cells, with this header.
    pub(crate) fn header(&mut self, (kind, tag): (u64, u64), len: u64, next: usize) {
        // With whatever may stand before the message.
        let most = 48 + (len & 0xffff) as usize;
        if self.take(most.div_ceil(CELL)) {
            self.write((kind, tag), len, next);
        }
    }

    fn write(&mut self, (kind, tag): (u64, u64), len: u64, next: usize) {
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
pub(crate) fn ring(words: &Memory) {
    words.word(at::READY).fetch_xor(1 << 5, Ordering::Release);
    words.word(at::DOOR).fetch_add(1, Ordering::Release);
}
