//! The sender's private book of items: how much of each stream the receiver still holds.
//!
//! A lane carries the replies of many calls. Were one stream, whose reader is slow, to take all of
//! its cells, no other call would be answered. So items have a quarter of the cells, and each stream
//! has at most half of what the others leave of that.
//!
//! # Why a last word always has room
//!
//! An honest client has at most [`MOST_LAST`] replies that it holds and calls that are not answered. On a lane
//! of replies, items take at most [`MOST_ITEMS`] cells, and other records of more than one cell, and all jumps,
//! at most [`MOST_WIDE`]: who needs more goes through the slab, which takes one cell and no jump.
//! Hand-backs that the client gathers, records that add cells, and the reserved cell are the rest. All of them
//! together are no more than the cells that a lane may have.

use super::super::layout::MOST_CELLS;
use crate::memory::ring::consumer::GATHER;

/// The most cells that items of all streams take together.
const MOST_ITEMS: usize = MOST_CELLS / 4;

/// The most cells that other records of more than one cell take, and jumps to any.
pub(super) const MOST_WIDE: usize = 200;

/// The most last words of one cell that an honest client has not handed back: what it may hold and have
/// asked for, and one more.
const MOST_LAST: usize = MOST_CELLS / 2 + 1;

/// The most records that add cells to a lane: each adds 64 or more.
const MOST_EXTENDS: usize = MOST_CELLS / 64;

static_assertions::const_assert!(
    MOST_ITEMS + MOST_WIDE + MOST_LAST + MOST_EXTENDS + (GATHER as usize) < MOST_CELLS
);

/// What the receiver has not handed back of one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) items: usize,
    pub(crate) cells: usize,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Streams {
    /// By tag.
    behind: Vec<Behind>,
    /// By first cell: the tag and one, or zero where no item starts.
    owner: Vec<u32>,
    cells: usize,
}

impl Streams {
    /// What of a stream is out, as far as is known.
    pub(crate) fn behind(&self, tag: u16) -> Behind {
        self.behind
            .get(usize::from(tag))
            .copied()
            .unwrap_or_default()
    }

    /// Whether a stream has all that it may.
    #[inline]
    pub(crate) fn is_full(&self, tag: u16) -> bool {
        let behind = self.behind(tag);
        let others = self.cells - behind.cells;
        behind.cells >= MOST_ITEMS.saturating_sub(others) / 2
    }

    /// How many cells one more item may take.
    pub(super) fn left(&self) -> usize {
        MOST_ITEMS.saturating_sub(self.cells)
    }

    /// An item was published in these cells.
    #[inline]
    pub(super) fn sent(&mut self, tag: u16, cell: usize, cells: usize) {
        let stream = usize::from(tag);
        if self.behind.len() <= stream {
            self.behind.resize(stream + 1, Behind::default());
        }
        if self.owner.len() <= cell {
            self.owner.resize(MOST_CELLS, 0);
        }
        self.owner[cell] = u32::from(tag) + 1;
        self.behind[stream].items += 1;
        self.behind[stream].cells += cells;
        self.cells += cells;
    }

    /// A record of these cells was handed back, whatever it was; true where it was an item.
    #[inline]
    pub(super) fn returned(&mut self, cell: usize, cells: usize) -> bool {
        let owner = self.owner.get_mut(cell).map_or(0, std::mem::take);
        if owner > 0 {
            let behind = &mut self.behind[owner as usize - 1];
            behind.items -= 1;
            behind.cells -= cells;
            self.cells -= cells;
        }
        owner > 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_half_of_what_others_leave() {
        let mut streams = Streams::default();
        let mut sent = 0;
        while !streams.is_full(3) {
            streams.sent(3, sent, 1);
            sent += 1;
        }
        assert_eq!(sent, MOST_ITEMS / 2);
        let mut other = 0;
        while !streams.is_full(9) {
            streams.sent(9, sent + other, 1);
            other += 1;
        }
        assert_eq!(other, MOST_ITEMS / 4);
        streams.returned(0, 1);
        assert_eq!(streams.behind(3).items, sent - 1);
        streams.returned(0, 1);
        assert_eq!(
            streams.behind(3).items,
            sent - 1,
            "nothing starts there any more"
        );
    }
}
