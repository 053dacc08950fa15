//! The sending half: places records in free cells and learns which were handed back.

use std::ptr::NonNull;
use std::sync::Arc;

use super::super::arena::Block;
use super::super::layout::{
    CELL, Cell, Header, Kind, MOST_CELLS, ReceiverBlock, SenderBlock, is_stamped, stamp_of,
    unstamped,
};
use super::super::pins::{Book, Pins};
use super::super::shared::Shared;
use super::Cells;
use super::streams::{MOST_WIDE, Streams};
use crate::error::Fault;
use crate::sync::{AtomicU64, Ordering, fence, load_acquire, prefetch_to_write};

/// How many cells ahead the line is fetched that will be written.
const AHEAD: usize = 6;
const WORDS: usize = MOST_CELLS / 64;
/// Stands for a jump among the cells that records take.
const JUMP: u16 = 0;

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
    cells: Cells,
    receiver: Shared<ReceiverBlock>,
    /// The reserved cell.
    next: usize,
    /// The number of the record that will be published next. It may wrap: see the module.
    sequence: u64,
    /// Cells that are published or reserved.
    busy: [u64; WORDS],
    /// First cells of published records.
    heads: [u64; WORDS],
    /// First cells of records that took more than one cell, are items, lend a block, or are jumps.
    large: [u64; WORDS],
    /// How the receiver's bits stood when last looked at.
    seen: [u64; WORDS],
    /// How many cells a large record took, by its first cell; or [`JUMP`].
    span: Vec<u16>,
    /// The block that a record refers to, by its first cell.
    lent: Vec<Option<Arc<Block>>>,
    /// How many bytes the blocks have that records refer to.
    lent_bytes: usize,
    /// How many cells are busy with records of more than one, other than items, and with jumps.
    wide: usize,
    streams: Streams,
    /// Blocks that came back and may be used again, if any are kept.
    returned: Vec<Arc<Block>>,
    keeps: bool,
    /// What records lend beside, if any ever did.
    book: Option<Arc<Book>>,
    /// Where it says how far it is, if somebody asked.
    #[cfg(all(feature = "json", not(loom)))]
    pub(super) mark: Option<Arc<super::mark::Mark>>,
}

impl Producer {
    /// A ring whose first cells are these. The receiver starts at cell 0. Blocks that come back are kept for
    /// the next messages, or are not.
    pub(crate) fn new(
        cells: Shared<[Cell]>,
        receiver: Shared<ReceiverBlock>,
        keeps: bool,
    ) -> Producer {
        let mut producer = Producer {
            cells: Cells::new(cells),
            receiver,
            next: 0,
            sequence: 0,
            busy: [!0; WORDS],
            heads: [0; WORDS],
            large: [0; WORDS],
            seen: [0; WORDS],
            span: Vec::new(),
            lent: Vec::new(),
            lent_bytes: 0,
            wide: 0,
            streams: Streams::default(),
            returned: Vec::new(),
            keeps,
            book: None,
            #[cfg(all(feature = "json", not(loom)))]
            mark: None,
        };
        producer.know_cells();
        take(&mut producer.busy, 0, 1);
        producer
    }

    /// How many cells the ring has.
    pub(crate) fn cells(&self) -> usize {
        self.cells.count
    }

    /// The longest row of cells that a record could ever get.
    pub(crate) fn longest_row(&self) -> usize {
        self.cells.rows().map(|(_, count)| count).max().unwrap_or(0)
    }

    /// The cells from the reserved one on that are free now: at least one, at most `most`.
    #[inline(always)]
    pub(crate) fn here(&self, most: usize) -> Space {
        let spot = self
            .cells
            .spot(self.next)
            .expect("the reserved cell is in the ring");
        let end = self.next + most.min(spot.row.len());
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
        Space {
            cell: self.next,
            cells: cell.min(end) - self.next,
            start: spot.start(),
        }
    }

    /// A row of free cells elsewhere, large enough; the reserved cell will then be a jump.
    pub(crate) fn elsewhere(&self, cells: usize) -> Result<Space, NoRoom> {
        for (first, count) in self.cells.rows() {
            let mut row = 0;
            for cell in first..first + count {
                row = if is_free(&self.busy, cell) {
                    row + 1
                } else {
                    0
                };
                if row == cells {
                    let cell = cell + 1 - cells;
                    let start = self.cells.spot(cell).ok_or(NoRoom)?.start();
                    return Ok(Space { cell, cells, start });
                }
            }
        }
        Err(NoRoom)
    }

    /// The reserved cell, in the common case: the one behind it is free.
    #[inline(always)]
    pub(crate) fn one(&self) -> Option<Space> {
        let cell = self.next;
        let row = self.cells.first.get(cell..cell + 2)?;
        is_free(&self.busy, cell + 1).then_some(Space {
            cell,
            cells: 1,
            start: NonNull::from(row).cast(),
        })
    }

    /// Publishes a message that was written into the space that [`one`](Self::one) just gave.
    #[inline(always)]
    pub(crate) fn publish_one(&mut self, space: &Space, (len, tag): (u16, u16)) {
        let cell = space.cell;
        debug_assert_eq!(cell, self.next);
        let next = cell + 1;
        let Some([here, behind]) = self.cells.first.get(cell..cell + 2) else {
            unreachable!("`one` found both cells in the first row");
        };
        let sequence = self.sequence;
        overwrite(&behind.header, sequence.wrapping_add(1));
        // The receiver had the line last. Fetched now, it is here when it is written: a stream is
        // an eighth faster for it. (Fetching ahead on the receiving side takes lines from a sender
        // that still writes them, and costs more than it gains.)
        if let Some(soon) = self.cells.first.get(cell + AHEAD) {
            prefetch_to_write(soon);
        }
        self.busy[next / 64] |= 1 << (next % 64);
        self.heads[cell / 64] |= 1 << (cell % 64);
        let header = Header {
            kind: Kind::Inline,
            len,
            next: next as u16,
            tag,
        };
        // SYNC(publish): Release; pairs with Acquire in `Consumer::poll_inline`.
        here.header
            .store(header.to_word(stamp_of(sequence)), Ordering::Release);
        self.sequence = sequence.wrapping_add(1);
        self.next = next;
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
        let Space { cell, .. } = *space;
        let jumps = cell != self.next;
        let fresh = if jumps {
            (cell, cells)
        } else {
            (cell + 1, cells - 1)
        };
        take(&mut self.busy, fresh.0, fresh.1);
        let Some(next) = self.find_free(cell + cells) else {
            free(&mut self.busy, fresh.0, fresh.1);
            return Err(NoRoom);
        };
        take(&mut self.busy, next, 1);
        let sequence = self.sequence.wrapping_add(u64::from(jumps));
        self.overwrite(next, sequence.wrapping_add(1));
        let is_item = matches!(kind, Kind::Item | Kind::ItemBlock);
        if is_item {
            self.streams.sent(tag, cell, cells);
        } else if cells > 1 {
            self.wide += cells;
        }
        if cells > 1 || is_item || block.is_some() {
            self.large[cell / 64] |= 1 << (cell % 64);
            self.span[cell] = cells as u16;
        }
        if let Some(block) = block {
            self.lent_bytes += block.len();
            self.lent[cell] = Some(block);
        }
        self.commit(
            cell,
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
                next: cell as u16,
                tag: 0,
            };
            self.commit(self.next, self.sequence, jump);
            self.large[self.next / 64] |= 1 << (self.next % 64);
            self.span[self.next] = JUMP;
            self.wide += 1;
        }
        self.sequence = sequence.wrapping_add(1);
        self.next = next;
        Ok(())
    }

    /// Notes what the record lends beside that was just published at the start of `space`. True where no
    /// handle of it is left. The first such record needs a book.
    pub(crate) fn lend(
        &mut self,
        space: &Space,
        pins: Pins,
        book: impl FnOnce(Shared<ReceiverBlock>) -> Arc<Book>,
    ) -> bool {
        let receiver = &self.receiver;
        let book = self.book.get_or_insert_with(|| book(receiver.clone()));
        let (word, bit) = (space.cell / 64, space.cell % 64);
        // All that was handed back of this cell before was collected, so the bit stands like that.
        book.lend(space.cell as u16, self.seen[word] >> bit & 1 == 1, pins)
    }

    /// Adds cells; the record that says so to the receiver is published by this call, and the next
    /// record starts in the new cells. `len` bytes of it stand behind the reserved cell's header.
    pub(crate) fn extend(&mut self, cells: Shared<[Cell]>, len: u16) {
        let first = self.cells.count;
        self.add(cells);
        take(&mut self.busy, first, 1);
        self.overwrite(first, self.sequence.wrapping_add(1));
        let header = Header {
            kind: Kind::Extend,
            len,
            next: first as u16,
            tag: 0,
        };
        self.commit(self.next, self.sequence, header);
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
        for word in 0..self.cells.count / 64 {
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
            self.busy[word] &= !back;
            let mut left = back & self.large[word];
            self.large[word] &= !back;
            while left != 0 {
                let cell = word * 64 + left.trailing_zeros() as usize;
                left &= left - 1;
                if self.span[cell] == JUMP {
                    self.wide -= 1;
                    continue;
                }
                let cells = self.span[cell].into();
                free(&mut self.busy, cell, cells);
                if !self.streams.returned(cell, cells) && cells > 1 {
                    self.wide -= cells;
                }
                if let Some(block) = self.lent[cell].take() {
                    self.lent_bytes -= block.len();
                    self.keep_returned(block);
                }
            }
        }
        // Before any of these cells is published again.
        if let Some(book) = self.book.as_ref().filter(|_| any) {
            book.sweep();
        }
        #[cfg(all(feature = "json", not(loom)))]
        if let Some(mark) = self.mark.as_ref().filter(|_| any) {
            mark.set(self.sequence, &self.seen, &self.heads);
        }
        Ok(any)
    }

    /// Whether so many records of one cell can be published, as far as is known.
    #[inline]
    pub(crate) fn has_room(&self, records: usize) -> bool {
        if records == 1 && self.one().is_some() {
            return true;
        }
        // The reserved cell is busy, and one more must be free behind the last of them.
        let free = self.busy.iter().map(|word| word.count_zeros()).sum::<u32>();
        free as usize >= records
    }

    /// True while records are out that the receiver has not handed back, as far as is known.
    pub(crate) fn has_lent(&self) -> bool {
        self.heads.iter().any(|&w| w != 0)
    }

    /// The most cells that one more record may take on a lane of replies, as far as is known: one at least,
    /// so that a last word always has room (`streams`).
    #[inline]
    pub(crate) fn most_of_reply(&self, is_item: bool) -> usize {
        // More than one only where a jump to it may be counted, too.
        let left = match MOST_WIDE.saturating_sub(self.wide + 1) {
            0 => 1,
            _ if is_item => self.streams.left(),
            left => left,
        };
        left.max(1)
    }

    /// How many bytes of the slab are out, as far as is known.
    pub(crate) fn lent_bytes(&self) -> usize {
        self.lent_bytes
    }

    /// What is out of each stream.
    pub(crate) fn streams(&self) -> &Streams {
        &self.streams
    }

    /// A block that came back, is large enough and not more than four times too large, and that
    /// nobody else holds.
    #[inline]
    pub(crate) fn take_returned(&mut self, len: usize) -> Option<Arc<Block>> {
        // `get_mut` orders what others did with a block before its next use.
        let fits = |b: &mut Arc<Block>| {
            b.len() >= len && b.len() / 4 <= len.max(4096) && Arc::get_mut(b).is_some()
        };
        // The last one that came back is the warmest in the caches.
        let at = self.returned.iter_mut().rposition(fits)?;
        Some(self.returned.remove(at))
    }

    /// Gives back the blocks that are kept for the next message.
    pub(crate) fn drop_returned(&mut self) {
        self.returned.clear();
    }

    /// Keeps a block for the next message of its size, if it is not too large to hoard.
    #[inline]
    pub(crate) fn keep_returned(&mut self, block: Arc<Block>) {
        const MOST: usize = 4;
        const LARGEST: usize = 1 << 20;
        if self.keeps && block.len() <= LARGEST {
            if self.returned.len() == MOST {
                self.returned.remove(0);
            }
            self.returned.push(block);
        }
    }

    fn add(&mut self, cells: Shared<[Cell]>) {
        assert!(self.cells.count + cells.len() <= MOST_CELLS);
        self.cells.add(cells);
        self.know_cells();
    }

    /// Cells that were not in the books are free.
    fn know_cells(&mut self) {
        let (known, count) = (self.span.len(), self.cells.count);
        assert!(count % 64 == 0);
        free(&mut self.busy, known, count - known);
        self.span.resize(count, 0);
        self.lent.resize_with(count, || None);
    }

    /// A free cell, best the one behind the record: cells are then used in a row.
    #[inline(always)]
    fn find_free(&self, behind: usize) -> Option<usize> {
        let wish = if behind < self.cells.count { behind } else { 0 };
        if is_free(&self.busy, wish) {
            Some(wish)
        } else {
            self.search_free(wish)
        }
    }

    #[cold]
    fn search_free(&self, wish: usize) -> Option<usize> {
        let words = self.cells.count / 64;
        (0..words)
            .map(|i| (wish / 64 + i) % words)
            .find_map(|word| {
                let free = !self.busy[word];
                (free != 0).then(|| word * 64 + free.trailing_zeros() as usize)
            })
    }

    /// Makes sure that nothing in a reserved cell looks like the record that will be there.
    #[inline(always)]
    fn overwrite(&self, cell: usize, sequence: u64) {
        let spot = self.cells.spot(cell).expect("our cells lie in our rows");
        overwrite(spot.header(), sequence);
    }

    #[inline(always)]
    fn commit(&mut self, cell: usize, sequence: u64, header: Header) {
        self.heads[cell / 64] |= 1 << (cell % 64);
        let word = header.to_word(stamp_of(sequence));
        let spot = self.cells.spot(cell).expect("our cells lie in our rows");
        // SYNC(publish): Release; pairs with Acquire in `Consumer::poll`.
        spot.header().store(word, Ordering::Release);
    }

    /// Has all other cells look busy for good, so that these few are used again soon.
    #[cfg(all(test, loom))]
    pub(crate) fn narrow(&mut self, cells: &[usize]) {
        let count = self.cells.count;
        take(&mut self.busy, 0, count);
        for &cell in cells.iter().filter(|cell| **cell != self.next) {
            free(&mut self.busy, cell, 1);
        }
    }

    #[cfg(all(test, feature = "json", not(loom)))]
    pub(super) fn position(&self) -> (u64, usize) {
        (self.sequence, self.next)
    }

    #[cfg(test)]
    pub(crate) fn start_at(&mut self, sequence: u64) {
        self.sequence = sequence;
        // As whatever came before had done.
        self.overwrite(self.next, sequence);
    }
}

/// Makes sure that what lies in a reserved cell does not look like the record of this number.
#[inline(always)]
fn overwrite(header: &AtomicU64, sequence: u64) {
    let stamp = stamp_of(sequence);
    // Relaxed: our own word, written by nobody else. The Release of the header that leads here
    // orders the overwriting before the receiver's look.
    if is_stamped(header.load(Ordering::Relaxed), stamp) {
        header.store(unstamped(stamp), Ordering::Relaxed);
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
fn is_free(busy: &[u64; WORDS], cell: usize) -> bool {
    busy[cell / 64] & 1 << (cell % 64) == 0
}

#[inline(always)]
fn take(busy: &mut [u64; WORDS], first: usize, count: usize) {
    each_word(first, count, |word, bits| busy[word] |= bits);
}

#[inline(always)]
fn free(busy: &mut [u64; WORDS], first: usize, count: usize) {
    each_word(first, count, |word, bits| busy[word] &= !bits);
}

/// What was sent of a ring whose producer is gone: all that its receiver may look at, and nothing of the
/// receiver's but what the book has.
pub(crate) struct Sent {
    #[allow(dead_code)] // held for their drop
    cells: Cells,
    #[allow(dead_code)] // held for their drop
    lent: Vec<Option<Arc<Block>>>,
    book: Option<Arc<Book>>,
}

impl Sent {
    /// What its records lend beside, if any ever did.
    pub(crate) fn book(&self) -> Option<&Arc<Book>> {
        self.book.as_ref()
    }
}

impl From<Producer> for Sent {
    fn from(producer: Producer) -> Sent {
        let Producer {
            cells, lent, book, ..
        } = producer;
        Sent { cells, lent, book }
    }
}

impl SenderBlock {
    /// Asks to be rung when the receiver hands something back. The caller then looks once more.
    pub(crate) fn ask_for_room(&self) {
        // Relaxed: our own word. A number that was not used before: the last one was answered.
        let last = self.starving.load(Ordering::Relaxed);
        let number = (last | 1) + if last % 2 == 1 { 2 } else { 0 };
        // SYNC(starving): Release, and a full fence before the look; pairs with Acquire, and the fence before it, in
        // `HandBack::flip`.
        self.starving.store(number, Ordering::Release);
        fence(Ordering::SeqCst);
    }
}
