//! The sender's private book of items: how much of each stream the receiver still holds.
//!
//! A lane carries the replies of many calls. Were one stream, whose reader is slow, to take all of
//! its cells, no other call would be answered. So items have a quarter of the cells, and each stream
//! has at most half of what the others leave of that.

use super::super::layout::MOST_CELLS;

/// The most cells that items of all streams take together, but for the last item.
const MOST_ITEMS: usize = MOST_CELLS / 4;

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

    /// A record of these cells was handed back, whatever it was.
    #[inline]
    pub(super) fn returned(&mut self, cell: usize, cells: usize) {
        let owner = self.owner.get_mut(cell).map_or(0, std::mem::take);
        if owner > 0 {
            let behind = &mut self.behind[owner as usize - 1];
            behind.items -= 1;
            behind.cells -= cells;
            self.cells -= cells;
        }
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
