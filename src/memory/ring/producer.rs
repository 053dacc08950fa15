//! The sending half: places records in free cells and learns which were handed back.
//!
//! Unsafe code is needed to form the address of a payload.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;

use super::super::arena::Block;
use super::super::layout::{
    CELL, Cell, Header, Kind, MOST_CELLS, ReceiverBlock, is_stamped, stamp_of, unstamped,
};
use super::super::shared::Shared;
use super::{Extent, extent_of};
use crate::error::Fault;
use crate::sync::{Ordering, load_acquire};

const WORDS: usize = MOST_CELLS / 64;

/// No cells are free: wait until the receiver hands some back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// Free cells in which a record may be written, not yet published.
#[derive(Debug)]
pub(crate) struct Space {
    cell: usize,
    cells: usize,
    start: NonNull<u8>,
}

impl Space {
    /// The first byte of the first cell, where the header will be.
    #[inline(always)]
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// How many bytes there are from the start, the header's included.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> usize {
        self.cells * CELL
    }
}

/// The sending half of a ring.
pub(crate) struct Producer {
    extents: Vec<Extent>,
    cells: usize,
    receiver: Shared<ReceiverBlock>,
    /// The reserved cell.
    next: usize,
    /// The number of the record that will be published next. It may wrap: see the module.
    sequence: u64,
    /// Cells that are published or reserved.
    busy: [u64; WORDS],
    /// First cells of published records.
    heads: [u64; WORDS],
    /// How the receiver's bits stood when last looked at.
    seen: [u64; WORDS],
    /// How many cells a record took, by its first cell.
    span: Vec<u16>,
    /// The block that a record refers to, by its first cell.
    lent: Vec<Option<Arc<Block>>>,
    /// Blocks that came back and may be used again.
    returned: Vec<Arc<Block>>,
}

impl Producer {
    /// A ring whose first cells are these. The receiver starts at cell 0.
    pub(crate) fn new(cells: Shared<[Cell]>, receiver: Shared<ReceiverBlock>) -> Producer {
        let mut producer = Producer {
            extents: Vec::with_capacity(1),
            cells: 0,
            receiver,
            next: 0,
            sequence: 0,
            busy: [!0; WORDS],
            heads: [0; WORDS],
            seen: [0; WORDS],
            span: Vec::new(),
            lent: Vec::new(),
            returned: Vec::with_capacity(2),
        };
        producer.add(cells);
        producer.take(0, 1);
        producer
    }

    /// How many cells the ring has.
    pub(crate) fn cells(&self) -> usize {
        self.cells
    }

    /// The longest row of cells that a record could ever get.
    pub(crate) fn longest_row(&self) -> usize {
        self.extents
            .iter()
            .map(|e| e.cells.len())
            .max()
            .unwrap_or(0)
    }

    /// The cells from the reserved one on that are free now: at least one, at most `most`.
    #[inline(always)]
    pub(crate) fn here(&self, most: usize) -> Space {
        let extent = extent_of(&self.extents, self.next).expect("the reserved cell is in the ring");
        let end = extent.end().min(self.next + most);
        let mut cell = self.next + 1;
        while cell < end {
            // Bits from `cell` on, of its word: the first that is set ends the row.
            let busy = self.busy[cell / 64] >> (cell % 64);
            if busy != 0 {
                cell += busy.trailing_zeros() as usize;
                break;
            }
            cell = (cell / 64 + 1) * 64;
        }
        let cells = cell.min(end) - self.next;
        Space {
            cell: self.next,
            cells,
            start: address(extent, self.next),
        }
    }

    /// A row of free cells elsewhere, large enough; the reserved cell will then be a jump.
    pub(crate) fn elsewhere(&self, cells: usize) -> Result<Space, NoRoom> {
        for extent in &self.extents {
            let mut row = 0;
            for cell in extent.first..extent.end() {
                row = if self.is_free(cell) { row + 1 } else { 0 };
                if row == cells {
                    let cell = cell + 1 - cells;
                    return Ok(Space {
                        cell,
                        cells,
                        start: address(extent, cell),
                    });
                }
            }
        }
        Err(NoRoom)
    }

    /// Publishes a record of `cells` cells that was written at the start of `space`.
    ///
    /// With [`NoRoom`] nothing is published and nothing has changed.
    #[inline(always)]
    pub(crate) fn publish(
        &mut self,
        space: &Space,
        (kind, len, tag): (Kind, u16, u16),
        cells: usize,
        block: Option<Arc<Block>>,
    ) -> Result<(), NoRoom> {
        debug_assert!(cells <= space.cells);
        let jumps = space.cell != self.next;
        let fresh = if jumps {
            (space.cell, cells)
        } else {
            (space.cell + 1, cells - 1)
        };
        self.take(fresh.0, fresh.1);
        let Some(next) = self.find_free(space.cell + cells) else {
            self.free(fresh.0, fresh.1);
            return Err(NoRoom);
        };
        let sequence = self.sequence.wrapping_add(u64::from(jumps));
        self.reserve(next, sequence.wrapping_add(1));
        if block.is_some() {
            self.lent[space.cell] = block;
        }
        self.commit(
            space.cell,
            cells,
            sequence,
            Header {
                kind,
                len,
                next: next as u16,
                tag,
            },
        );
        if jumps {
            // The record stands already when the jump leads to it.
            let jump = Header {
                kind: Kind::Jump,
                len: 0,
                next: space.cell as u16,
                tag: 0,
            };
            self.commit(self.next, 1, self.sequence, jump);
        }
        self.sequence = sequence.wrapping_add(1);
        self.next = next;
        Ok(())
    }

    /// Adds cells; the record that says so to the receiver is published by this call, and the next
    /// record starts in the new cells. `len` bytes of it stand behind the reserved cell's header.
    pub(crate) fn extend(&mut self, cells: Shared<[Cell]>, len: u16) {
        let first = self.cells;
        self.add(cells);
        self.take(first, 1);
        self.reserve(first, self.sequence.wrapping_add(1));
        let header = Header {
            kind: Kind::Extend,
            len,
            next: first as u16,
            tag: 0,
        };
        self.commit(self.next, 1, self.sequence, header);
        self.sequence = self.sequence.wrapping_add(1);
        self.next = first;
    }

    /// Looks which records were handed back; true where any were.
    ///
    /// # Errors
    ///
    /// A bit that was flipped for no record of ours: the peer is broken.
    #[inline]
    pub(crate) fn collect(&mut self) -> Result<bool, Fault> {
        let mut any = false;
        for word in 0..self.cells / 64 {
            // SYNC(hand-back): Acquire; pairs with the Release in `HandBack::flip`.
            let bits = load_acquire(&self.receiver.handed_back[word]);
            let back = bits ^ self.seen[word];
            if back == 0 {
                continue;
            }
            if back & !self.heads[word] != 0 {
                return Err(Fault::HandBack {
                    cell: word * 64 + back.trailing_zeros() as usize,
                });
            }
            any = true;
            self.seen[word] = bits;
            self.heads[word] &= !back;
            let mut left = back;
            while left != 0 {
                let cell = word * 64 + left.trailing_zeros() as usize;
                left &= left - 1;
                self.free(cell, self.span[cell].into());
                if let Some(block) = self.lent[cell].take() {
                    self.keep_returned(block);
                }
            }
        }
        Ok(any)
    }

    /// True while records are out that the receiver has not handed back, as far as is known.
    pub(crate) fn has_lent(&self) -> bool {
        self.heads.iter().any(|&w| w != 0)
    }

    /// A block that came back, is large enough and not more than four times too large, and that
    /// nobody else holds.
    #[inline]
    pub(crate) fn take_returned(&mut self, len: usize) -> Option<Arc<Block>> {
        let fits = |b: &Arc<Block>| {
            b.len() >= len && b.len() / 4 <= len.max(4096) && Arc::strong_count(b) == 1
        };
        let at = self.returned.iter().position(fits)?;
        Some(self.returned.swap_remove(at))
    }

    /// Gives back the blocks that are kept for the next message.
    pub(crate) fn drop_returned(&mut self) {
        self.returned.clear();
    }

    /// Keeps a block for the next message of its size, if it is not too large to hoard.
    #[inline]
    pub(crate) fn keep_returned(&mut self, block: Arc<Block>) {
        const MOST: usize = 2;
        const LARGEST: usize = 1 << 20;
        if block.len() <= LARGEST {
            if self.returned.len() == MOST {
                self.returned.remove(0);
            }
            self.returned.push(block);
        }
    }

    fn add(&mut self, cells: Shared<[Cell]>) {
        let count = cells.len();
        assert!(count % 64 == 0 && self.cells + count <= MOST_CELLS);
        self.extents.push(Extent {
            first: self.cells,
            cells,
        });
        for word in &mut self.busy[self.cells / 64..(self.cells + count) / 64] {
            *word = 0;
        }
        self.cells += count;
        self.span.resize(self.cells, 0);
        self.lent.resize_with(self.cells, || None);
    }

    #[inline(always)]
    fn is_free(&self, cell: usize) -> bool {
        self.busy[cell / 64] & 1 << (cell % 64) == 0
    }

    #[inline(always)]
    fn take(&mut self, first: usize, count: usize) {
        each_word(first, count, |word, bits| self.busy[word] |= bits);
    }

    #[inline(always)]
    fn free(&mut self, first: usize, count: usize) {
        each_word(first, count, |word, bits| self.busy[word] &= !bits);
    }

    /// A free cell, best the one behind the record: cells are then used in a row.
    #[inline(always)]
    fn find_free(&self, behind: usize) -> Option<usize> {
        let wish = if behind < self.cells { behind } else { 0 };
        if self.is_free(wish) {
            Some(wish)
        } else {
            self.search_free(wish)
        }
    }

    #[cold]
    fn search_free(&self, wish: usize) -> Option<usize> {
        let words = self.cells / 64;
        (0..words)
            .map(|i| (wish / 64 + i) % words)
            .find_map(|word| {
                let free = !self.busy[word];
                (free != 0).then(|| word * 64 + free.trailing_zeros() as usize)
            })
    }

    /// Makes sure that nothing in the cell looks like the record that will be there.
    #[inline(always)]
    fn reserve(&mut self, cell: usize, sequence: u64) {
        self.take(cell, 1);
        let header = self.header(cell);
        let stamp = stamp_of(sequence);
        // Relaxed: our own word, written by nobody else. The Release of the header that leads here
        // orders the overwriting before the receiver's look.
        if is_stamped(header.load(Ordering::Relaxed), stamp) {
            header.store(unstamped(stamp), Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn commit(&mut self, cell: usize, cells: usize, sequence: u64, header: Header) {
        self.heads[cell / 64] |= 1 << (cell % 64);
        self.span[cell] = cells as u16;
        let word = header.to_word(stamp_of(sequence));
        // SYNC(publish): Release; pairs with Acquire in `Consumer::poll`.
        self.header(cell).store(word, Ordering::Release);
    }

    #[inline(always)]
    fn header(&self, cell: usize) -> &crate::sync::AtomicU64 {
        let extent = extent_of(&self.extents, cell).expect("our cells lie in our extents");
        &extent.cells[cell - extent.first].header
    }

    #[cfg(test)]
    pub(crate) fn start_at(&mut self, sequence: u64) {
        self.sequence = sequence;
    }
}

/// The bits of `count` cells from `first` on, word by word.
#[inline(always)]
fn each_word(first: usize, count: usize, mut then: impl FnMut(usize, u64)) {
    let (mut cell, end) = (first, first + count);
    while cell < end {
        let here = (64 - cell % 64).min(end - cell);
        then(cell / 64, (!0 >> (64 - here)) << (cell % 64));
        cell += here;
    }
}

#[inline(always)]
fn address(extent: &Extent, cell: usize) -> NonNull<u8> {
    let cells = &*extent.cells;
    let index = cell - extent.first;
    debug_assert!(index < cells.len());
    // SAFETY: the index lies in the extent; the pointer keeps the provenance of the whole row.
    NonNull::from(cells)
        .cast::<u8>()
        .map_addr(|a| a.saturating_add(index * size_of::<Cell>()))
}
