//! The receiving half: finds the next record, and hands records back in any order.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use super::super::layout::{
    CELL, Cell, HEADER, Header, Kind, MOST_CELLS, MOST_REASON, ReceiverBlock, SegmentRef,
    SenderBlock, Starts, cells_for, is_stamped, is_stamped_as, len_of, next_of, stamp_of, tag_of,
};
use super::super::shared::Shared;
#[cfg(all(feature = "json", not(loom)))]
use super::mark::Taken;
use super::{Cells, Spot};
use crate::error::Fault;
use crate::sync::{AtomicU64, Ordering, fence, load_acquire, prefetch_to_read};
use crate::sys::fork::Origin;
use crate::wait::Ringer;

/// How many jumps one poll follows: an honest sender makes at most one between two messages.
const MOST_JUMPS: usize = 4;

/// How many records are handed back at once at the most, but for those that are large.
pub(super) const GATHER: u32 = 32;

/// A record that was published for us: its cells are ours to read until it is handed back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// Its first cell, by which it is handed back.
    pub(crate) cell: u16,
    pub(crate) kind: Kind,
    pub(crate) tag: u16,
    /// The length of the payload in bytes; checked to lie in the lane's cells.
    pub(crate) len: u16,
    /// The first byte of the payload.
    pub(crate) payload: NonNull<u8>,
    /// How many cells it takes.
    pub(crate) cells: u16,
    /// How many messages came before it on this lane.
    pub(crate) number: u64,
}

/// What a look at the ring found.
#[derive(Debug)]
pub(crate) enum Polled {
    /// Nothing yet.
    Empty,
    /// A record.
    Record(Record),
    /// The sender added cells: map these and call [`Consumer::extend`]; the record that said so
    /// is handed back by that call.
    Extend(Record),
}

/// The receiving half of a ring.
pub(crate) struct Consumer {
    cells: Cells,
    starts: Starts,
    at: usize,
    /// How far the last record was from the one before it.
    stride: usize,
    /// The number of the record that comes next. It may wrap: see the module.
    sequence: u64,
    /// How many of the records so far were no messages.
    others: u64,
    back: Arc<HandBack>,
    /// Bits of one word that are to be flipped, and how many.
    pending: (usize, u64, u32),
    /// Where it says how far it is, if somebody asked.
    #[cfg(all(feature = "json", not(loom)))]
    taken: Option<Arc<Taken>>,
}

impl Consumer {
    /// A ring whose first cells are these, and where messages start in its records.
    pub(crate) fn new(cells: Shared<[Cell]>, starts: Starts, back: Arc<HandBack>) -> Consumer {
        let cells = Cells::new(cells);
        Consumer {
            cells,
            starts,
            at: 0,
            stride: 1,
            sequence: 0,
            others: 0,
            back,
            pending: (0, 0, 0),
            #[cfg(all(feature = "json", not(loom)))]
            taken: None,
        }
    }

    /// Where it says from now on how far it is.
    #[cfg(all(feature = "json", not(loom)))]
    pub(crate) fn set_taken(&mut self, taken: Arc<Taken>) {
        self.taken = Some(taken);
    }

    #[cfg(all(feature = "json", not(loom)))]
    #[inline]
    fn mark(&self) {
        if let Some(taken) = &self.taken {
            taken.set(self.sequence);
        }
    }

    /// Looks for the next record, if it is the common case: a message in the cells, and the next
    /// record in cells that are known. The record stays the caller's until it is handed back.
    #[inline(always)]
    pub(crate) fn poll_inline(&mut self) -> Option<Record> {
        self.poll_as(Kind::Inline)
    }

    /// As [`poll_inline`](Self::poll_inline), for the kinds whose message begins where that of
    /// [`Kind::Inline`] does.
    #[inline(always)]
    pub(crate) fn poll_as(&mut self, kind: Kind) -> Option<Record> {
        let spot = self.cells.spot(self.at)?;
        // SYNC(publish): Acquire; pairs with Release in `Producer::commit`.
        let word = load_acquire(spot.header());
        if !is_stamped_as(word, stamp_of(self.sequence), kind) {
            return None;
        }
        let next = next_of(word);
        let record = self.record(spot, kind, word, kind.start(self.starts))?;
        if next >= self.cells.count {
            return None;
        }
        if record.cells > 1 {
            fetch(&spot, record.cells);
        }
        self.sequence = self.sequence.wrapping_add(1);
        // Were `at` taken from the header, the look at the next line could only start when this one
        // has come from the other core. As a guess that is then compared, it starts at once.
        let guess = self.at + self.stride;
        if next == guess {
            self.at = guess;
        } else {
            self.turn_to(next);
        }
        Some(record)
    }

    /// The next record is not where the last ones suggested.
    #[cold]
    #[inline(never)]
    fn turn_to(&mut self, next: usize) {
        // Behind the end of the ring the same stride goes on.
        if next > self.at {
            self.stride = next - self.at;
        }
        self.at = next;
    }

    /// Looks for the next record of any kind.
    #[inline]
    pub(crate) fn poll(&mut self) -> Result<Polled, Fault> {
        for _ in 0..MOST_JUMPS {
            let spot = self
                .cells
                .spot(self.at)
                .ok_or_else(|| self.stray(self.at))?;
            // SYNC(publish): as in `poll_inline`. The word is read anew, and judged anew.
            let word = load_acquire(spot.header());
            if !is_stamped(word, stamp_of(self.sequence)) {
                break;
            }
            let header = Header::from_word(word).ok_or(Fault::Header { word })?;
            let record = self.read(spot, header, word)?;
            self.advance(header)?;
            if matches!(header.kind, Kind::Jump | Kind::Extend | Kind::Missed) {
                self.others = self.others.wrapping_add(1);
            }
            match header.kind {
                Kind::Jump => self.hand_back(record.cell),
                Kind::Extend => return Ok(Polled::Extend(record)),
                _ => {
                    // What is kept of these is handed back by others.
                    #[cfg(all(feature = "json", not(loom)))]
                    self.mark();
                    return Ok(Polled::Record(record));
                }
            }
        }
        Ok(Polled::Empty)
    }

    #[inline(always)]
    fn advance(&mut self, header: Header) -> Result<(), Fault> {
        let next = usize::from(header.next);
        // The first cell of an extension is known only once it is mapped.
        if next >= self.cells.count && !(header.kind == Kind::Extend && next == self.cells.count) {
            return Err(self.stray(next));
        }
        self.sequence = self.sequence.wrapping_add(1);
        // As in `poll_inline`: items of a stream follow each other, too.
        let guess = self.at + self.stride;
        if next == guess {
            self.at = guess;
        } else {
            self.turn_to(next);
        }
        Ok(())
    }

    fn stray(&self, cell: usize) -> Fault {
        Fault::Cell {
            cell,
            cells: self.cells.count,
        }
    }

    /// True where a record has come, which [`poll`](Self::poll) will then find.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        let stamp = stamp_of(self.sequence);
        self.cells
            .spot(self.at)
            .is_none_or(|spot| is_stamped(load_acquire(spot.header()), stamp))
    }

    /// How many messages were found.
    pub(crate) fn messages(&self) -> u64 {
        self.sequence.wrapping_sub(self.others)
    }

    /// Looks at nothing more.
    pub(crate) fn stop(&mut self) {
        self.at = usize::MAX;
    }

    /// Adds the cells that the sender announced.
    pub(crate) fn extend(&mut self, record: Record, cells: Shared<[Cell]>) -> Result<(), Fault> {
        let count = cells.len();
        let had = self.cells.count;
        if count == 0 || count % 64 != 0 || had + count > MOST_CELLS {
            return Err(Fault::Extension {
                cells: count,
                had,
                most: MOST_CELLS,
            });
        }
        self.cells.add(cells);
        self.hand_back(record.cell);
        Ok(())
    }

    /// Where it stands when a message was published, whose record starts in this cell; `None` where the
    /// lane's sender does not say that. A word of the cell, on its alignment.
    pub(crate) fn time(&self, cell: u16, in_block: bool) -> Option<NonNull<u64>> {
        let at = HEADER + if in_block { size_of::<SegmentRef>() } else { 0 };
        let spot = self.cells.spot(cell.into())?;
        let time = spot.start().map_addr(|a| a.saturating_add(at)).cast();
        self.starts.is_timed().then_some(time)
    }

    /// Hands a record back, at the latest with the next [`flush`](Self::flush).
    ///
    /// Some are gathered, so that a stream of messages does not cost a shared write each.
    #[inline(always)]
    pub(crate) fn hand_back(&mut self, cell: u16) {
        let (word, bit) = (usize::from(cell / 64), 1 << (cell % 64));
        if self.pending.0 != word {
            self.flush();
            self.pending.0 = word;
        }
        self.pending.1 |= bit;
        self.pending.2 += 1;
        if self.pending.2 >= GATHER {
            self.flush();
        }
    }

    /// Writes down what was gathered.
    #[inline]
    pub(crate) fn flush(&mut self) {
        let (word, bits, _) = self.pending;
        if bits != 0 {
            self.pending = (word, 0, 0);
            #[cfg(all(feature = "json", not(loom)))]
            self.mark();
            self.back.flip(word, bits);
        }
    }

    /// What hands back from other threads, and after this half is gone.
    pub(crate) fn back(&self) -> &Arc<HandBack> {
        &self.back
    }

    /// The record at `self.at`, if it lies in the cells of its row.
    #[inline(always)]
    fn record(&self, spot: Spot<'_>, kind: Kind, word: u64, start: usize) -> Option<Record> {
        let len = len_of(word);
        let cells = cells_for(start, usize::from(len));
        let payload = spot.start().map_addr(|a| a.saturating_add(start));
        let cell = self.at as u16;
        let record = Record {
            cell,
            kind,
            tag: tag_of(word),
            len,
            payload,
            cells: cells as u16,
            number: self.messages(),
        };
        (cells <= spot.row.len()).then_some(record)
    }

    fn read(&self, spot: Spot<'_>, header: Header, word: u64) -> Result<Record, Fault> {
        let len = usize::from(header.len);
        let (start, fixed) = match header.kind {
            Kind::Inline | Kind::Item | Kind::Error | Kind::Call => {
                (header.kind.start(self.starts), len)
            }
            Kind::Block | Kind::Extend | Kind::ItemBlock | Kind::ErrorBlock | Kind::CallBlock => {
                (HEADER, header.kind.block_len(self.starts))
            }
            Kind::Jump => (HEADER, 0),
            Kind::Missed => (HEADER, size_of::<u64>()),
            Kind::Failed => (HEADER, len.clamp(1, MOST_REASON)),
        };
        let record = self
            .record(spot, header.kind, word, start)
            .filter(|_| len == fixed);
        record.ok_or(Fault::Length {
            len,
            left: spot.row.len() * CELL,
        })
    }

    #[cfg(test)]
    pub(crate) fn start_at(&mut self, sequence: u64) {
        self.sequence = sequence;
    }
}

/// Has the lines of a record fetched that was found, all at once: it is about to be read, and whoever
/// follows pointers through it would wait for one line after the other.
#[inline]
fn fetch(spot: &Spot<'_>, cells: u16) {
    for cell in spot.row.iter().take(cells.into()).skip(1) {
        prefetch_to_read(cell);
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The receiver's words of a lane: outlives the receiving half while views are kept.
pub(crate) struct HandBack {
    block: Shared<ReceiverBlock>,
    sender: Shared<SenderBlock>,
    /// The last wait for room of the sender's that was answered.
    answered: AtomicU64,
    ringer: Ringer,
    origin: Origin,
    /// Cells of records that outlive the receiving half's own book.
    kept: AtomicU64,
    /// Dropped last: says that nothing is looked at any more.
    _end: Box<dyn Any + Send + Sync>,
}

impl HandBack {
    /// Whose memory it writes.
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// The words of a new lane, and how its sender is woken. `end` is dropped when nothing that
    /// came on the lane is looked at any more.
    pub(crate) fn new(
        block: Shared<ReceiverBlock>,
        sender: Shared<SenderBlock>,
        ringer: Ringer,
        origin: Origin,
        end: Box<dyn Any + Send + Sync>,
    ) -> HandBack {
        let (answered, kept) = (AtomicU64::new(0), AtomicU64::new(0));
        HandBack {
            block,
            sender,
            answered,
            ringer,
            origin,
            kept,
            _end: end,
        }
    }

    /// The word by which the receiver says whether it wants to be rung.
    #[inline]
    pub(crate) fn attend(&self) -> &AtomicU64 {
        &self.block.attend
    }

    /// Counts the cells of a record that is kept beyond its view.
    pub(crate) fn keep(&self, cells: u16) {
        // Relaxed: a count that only bounds how much one receiver holds.
        self.kept.fetch_add(cells.into(), Ordering::Relaxed);
    }

    /// Hands back a record of so many cells that was kept, on any thread.
    pub(crate) fn release_kept(&self, cell: u16, cells: u16) {
        self.flip(usize::from(cell / 64), 1 << (cell % 64));
        self.kept.fetch_sub(cells.into(), Ordering::Relaxed);
    }

    /// Wakes the sender if it waits for room: something else is to be looked at.
    pub(crate) fn nudge(&self) {
        // SYNC(cancel): either the sender's look, after its fence, sees what was written before
        // this, or we see that it starves; pairs with the barrier in `Sleeper::sleep`.
        fence(Ordering::SeqCst);
        self.wake_sender();
    }

    /// How many cells are kept.
    pub(crate) fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed) as usize
    }

    /// Flips bits of one word, on any thread, and wakes the sender if it waits for room.
    ///
    /// Each record is handed back once, by whoever holds it, so no bit is flipped twice.
    pub(crate) fn flip(&self, word: usize, bits: u64) {
        if self.origin.is_forked() {
            // The words are the parent's, and not even mapped here.
            return;
        }
        // SYNC(hand-back): Release; pairs with Acquire in `Producer::collect`.
        self.block.handed_back[word].fetch_xor(bits, Ordering::Release);
        // SYNC(starving): either the sender's look at the bits, after its fence, sees these, or
        // we see that it starves; pairs with the barrier in `Sleeper::sleep`.
        fence(Ordering::SeqCst);
        self.wake_sender();
    }

    #[inline]
    fn wake_sender(&self) {
        let starving = load_acquire(&self.sender.starving);
        // Relaxed: only whether this wait was answered already; an answer too many is harmless.
        if starving % 2 == 1 && self.answered.swap(starving, Ordering::Relaxed) != starving {
            self.ringer.ring();
        }
    }
}
