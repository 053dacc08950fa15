//! The newest values of a publisher: where they lie, and when their memory may be used again.
//!
//! A value is archived into a block of the slab, behind a header. The block is the newest of its entry until
//! another is *put* there; then it waits until no reader holds it (`memory::board`), which costs a heavy
//! barrier to find out, and so is done for many at once.
//!
//! The board, and all that lies on it, stays as long as any lane to a reader does: it is part of the lane's estate.
//! So does what a reader holds: it is looked at until that reader looks at nothing any more, also where its lane is
//! closed already.
//!
//! Unsafe code is needed to archive into shared memory.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::outbox::unchanged;
use crate::error::{MemoryError, SendError};
use crate::link::node::Node;
use crate::link::{Link, lock};
use crate::memory::arena::Block;
use crate::memory::board::{Held, Location, held_by, place_of, replace, row_len};
use crate::memory::layout::{
    BOARD_ROWS, BoardBlock, CELL, Entry, HoldBlock, SegmentRef, ValueHeader,
};
use crate::memory::pins::Pins;
use crate::memory::segment::OwnSegment;
use crate::memory::shared::Shared;
use crate::message::{EncodeError, ShmMessage, SlotWriter, encode, layout_of};
use crate::sync::{Ordering, heavy_barrier};
use crate::sys::clock;

/// So many values were replaced, or so many bytes of them, before it is looked for who still holds one.
const FEW: usize = 64;
const FEW_BYTES: usize = 2 << 20;
/// How many blocks are kept that may be used again, and of how many bytes together.
const SPARE: usize = 64;
const SPARE_BYTES: usize = 2 << 20;

/// Where the message of a value starts in its block, on this alignment.
pub(super) fn message_start(align: usize) -> usize {
    size_of::<ValueHeader>().next_multiple_of(align)
}

/// A value that is archived, and not yet on a board.
pub(crate) struct Packed {
    block: Block,
    len: usize,
}

impl Packed {
    pub(crate) fn block(&self) -> &Block {
        &self.block
    }
}

/// One who reads a board, as soon as its lane is open: its hold, and whether it uses the light barrier.
#[derive(Default)]
pub(crate) struct Reader(OnceLock<(Shared<HoldBlock>, bool)>);

/// See the module.
pub(crate) struct Board {
    head: Shared<BoardBlock>,
    block: Arc<Block>,
    node: Weak<Node>,
    most: usize,
    book: Mutex<Book>,
    readers: Mutex<Vec<Weak<Reader>>>,
}

/// The private book of a board.
#[derive(Default)]
struct Book {
    rows: Vec<(Shared<[Entry]>, Arc<Block>)>,
    /// The newest value of each entry.
    newest: Vec<Option<Block>>,
    replaced: Vec<Replaced>,
    replaced_bytes: usize,
    /// How many of them were held when that was looked for, and how many bytes.
    held: usize,
    held_bytes: usize,
    spare: VecDeque<Block>,
    spare_bytes: usize,
    /// How many changes there were.
    version: u64,
}

/// A value that is not the newest any more, but may be held.
struct Replaced {
    block: Block,
    location: Location,
    index: usize,
}

impl Board {
    /// A board without entries.
    pub(crate) fn new(node: &Arc<Node>) -> Result<Arc<Board>, MemoryError> {
        let size = size_of::<BoardBlock>();
        let block = Arc::new(node.arena().allocate(size as u64)?);
        Ok(Arc::new(Board {
            head: Shared::own(block.clone()),
            block,
            node: Arc::downgrade(node),
            most: node.config().max_message,
            book: Mutex::default(),
            readers: Mutex::default(),
        }))
    }

    /// Where its readers find it.
    pub(super) fn place(&self) -> SegmentRef {
        self.block.reference(0, size_of::<BoardBlock>())
    }

    pub(super) fn block(&self) -> &Arc<Block> {
        &self.block
    }

    /// A reader's hold is known: from now on it is looked at, so the reader may begin.
    pub(super) fn join(&self, reader: &Arc<Reader>, hold: Shared<HoldBlock>, link: &Link) {
        // Both sides have said hello by now.
        let _ = reader.0.set((hold, link.is_asymmetric()));
        lock(&self.readers).push(Arc::downgrade(reader));
    }

    /// The segments in which its rows and newest values lie.
    pub(crate) fn segments(&self) -> Vec<Arc<OwnSegment>> {
        let book = lock(&self.book);
        let rows = book.rows.iter().map(|(_, block)| block.segment());
        let values = book.newest.iter().flatten().map(Block::segment);
        let mut segments: Vec<_> = rows.chain(values).cloned().collect();
        segments.sort_by_key(|segment| segment.id());
        segments.dedup_by_key(|segment| segment.id());
        segments
    }

    /// Archives a value.
    pub(crate) fn pack<T: ShmMessage>(&self, value: &T) -> Result<Packed, SendError> {
        let refused = |error: EncodeError| SendError::Encode {
            what: error.to_string(),
        };
        let start = message_start(layout_of::<T>().align);
        // Its size first: a value may stay for long, and is to take no more memory than it needs.
        let mut pins = Pins::default();
        // SAFETY: 1. it is borrowed for longer than the writer lives.
        let counting = unsafe { SlotWriter::counting().with_pins::<T>(&mut pins) };
        let len = encode(value, counting).map_err(refused)?;
        if !pins.is_empty() {
            // No record lends them: nobody would know when they are not looked at any more.
            return Err(SendError::Encode {
                what: "newest values cannot refer to pins".to_owned(),
            });
        }
        if len > self.most {
            let (bytes, most) = (len, self.most);
            return Err(SendError::TooLarge { bytes, most });
        }
        let block = self.allocate(start + len)?;
        // SAFETY: the block is longer than what stands before its message.
        let base = unsafe { block.start().add(start) };
        // SAFETY: 1. and 2. so many bytes of the block are left there, and it is ours alone: it was just cut, or nobody
        // holds it any more.
        let writer = unsafe { SlotWriter::new(base.as_ptr(), block.len() - start) };
        unchanged(encode(value, writer).map_err(refused)?, len)?;
        Ok(Packed { block, len })
    }

    /// Makes another entry; and its block, where a row begins with it.
    pub(crate) fn add_entry(&self) -> Result<(usize, Option<Arc<Block>>), SendError> {
        let mut book = lock(&self.book);
        let index = book.newest.len();
        let Some((row, _)) = place_of(index) else {
            return Err(self.has_too_many());
        };
        let mut block = None;
        if row == book.rows.len() {
            drop(book);
            let size = row_len(row) * size_of::<Entry>();
            let new = Arc::new(self.allocate_new(size)?);
            book = lock(&self.book);
            let entries = Shared::own_slice(new.clone(), 0, row_len(row));
            book.rows.push((entries, new.clone()));
            block = Some(new);
        }
        book.newest.push(None);
        Ok((index, block))
    }

    /// Why no other key can have a value.
    pub(crate) fn has_too_many(&self) -> SendError {
        let most = (0..BOARD_ROWS).map(row_len).sum();
        SendError::Keys { most }
    }

    /// Tells readers of an entry that was made, after its row can be found by them.
    pub(crate) fn show_entry(&self, index: usize) {
        let book = lock(&self.book);
        let Some((row, 0)) = place_of(index) else {
            return self.count(index);
        };
        let block = &book.rows[row].1;
        if let Some(location) = Location::of(block.reference(0, 0)) {
            // SYNC(rows): Release; pairs with Acquire in `Reading::find_row`.
            self.head.rows[row].store(location.to_word(), Ordering::Release);
        }
        drop(book);
        self.count(index);
    }

    fn count(&self, index: usize) {
        // SYNC(count): Release; pairs with Acquire in `Reading::count`. Its row is told of.
        self.head.count.store(index as u64 + 1, Ordering::Release);
    }

    /// An entry was given to another key, or to none.
    pub(crate) fn bind(&self) {
        // Relaxed: our own word.
        let bindings = self.head.bindings.load(Ordering::Relaxed) + 1;
        // SYNC(bindings): Release; pairs with Acquire in `Reading::bindings`. The entry has its value, or none.
        self.head.bindings.store(bindings, Ordering::Release);
    }

    /// Makes a value the newest of an entry, or nothing.
    pub(crate) fn put(&self, index: usize, value: Option<Packed>) {
        let mut book = lock(&self.book);
        book.version += 1;
        let version = book.version;
        let location = match &value {
            Some(Packed { block, len }) => {
                let header = ValueHeader {
                    version,
                    len: *len as u64,
                    published: clock::now(),
                };
                // SAFETY: a block starts on a cache line and is longer than the header; nobody looks at it yet.
                unsafe { block.start().cast::<ValueHeader>().write(header) };
                Location::of(block.reference(0, 0)).unwrap_or(Location::NOWHERE)
            }
            None => Location::NOWHERE,
        };
        let Some((row, at)) = place_of(index) else {
            return;
        };
        replace(&book.rows[row].0[at], location, version);
        let old = std::mem::replace(&mut book.newest[index], value.map(|value| value.block));
        if let Some(block) = old {
            book.replaced_bytes += block.len();
            let location = Location::of(block.reference(0, 0)).unwrap_or(Location::NOWHERE);
            book.replaced.push(Replaced {
                block,
                location,
                index,
            });
        }
        // Of those that were held, many may be for long: all are looked at anew each time.
        let is_many = book.replaced.len() >= book.held + FEW.max(book.held / 4);
        let is_much = book.replaced_bytes >= book.held_bytes + FEW_BYTES;
        drop(book);
        if is_many || is_much {
            self.collect();
        }
    }

    /// A block of at least so many bytes: one that nobody holds any more, or a new one.
    fn allocate(&self, size: usize) -> Result<Block, SendError> {
        let spare = {
            let mut book = lock(&self.book);
            let spare = book.spare.pop_front();
            book.spare_bytes -= spare.as_ref().map_or(0, Block::len);
            spare
        };
        let fits = |block: &Block| block.len() >= size && block.len() <= 2 * size + CELL;
        match spare {
            Some(block) if fits(&block) => Ok(block),
            // Given up without the lock: that gives memory back, and may tell peers so.
            _ => self.allocate_new(size),
        }
    }

    fn allocate_new(&self, size: usize) -> Result<Block, SendError> {
        let node = self.node.upgrade().ok_or(SendError::Closed {
            pid: std::process::id(),
            fault: None,
            ended: None,
        })?;
        match node.arena().allocate(size as u64) {
            Err(MemoryError::Limit { .. }) => {
                self.collect();
                let spare = std::mem::take(&mut lock(&self.book).spare);
                lock(&self.book).spare_bytes = 0;
                drop(spare);
                Ok(node.arena().allocate(size as u64)?)
            }
            other => Ok(other?),
        }
    }

    /// Keeps a block to be used again, if there are few.
    fn spare(&self, block: Block) {
        let mut book = lock(&self.book);
        if book.spare.len() < SPARE && book.spare_bytes + block.len() <= SPARE_BYTES {
            book.spare_bytes += block.len();
            book.spare.push_back(block);
        }
    }

    /// Takes back what was replaced and nobody holds.
    fn collect(&self) {
        let mut book = lock(&self.book);
        let replaced = std::mem::take(&mut book.replaced);
        book.replaced_bytes = 0;
        // Behind what was replaced: who joins later finds nothing of it.
        let readers: Vec<_> = {
            let mut readers = lock(&self.readers);
            readers.retain(|reader| reader.strong_count() > 0);
            readers.iter().filter_map(Weak::upgrade).collect()
        };
        // SYNC(board): behind `replace`; pairs with the light barrier in `hold_newest`.
        let holds = || readers.iter().filter_map(|reader| reader.0.get());
        heavy_barrier(holds().any(|(_, asymmetric)| *asymmetric));
        let held: Vec<Held> = holds().map(|(hold, _)| held_by(&hold.hold)).collect();
        let mut free = Vec::new();
        for old in replaced {
            if held.iter().any(|held| held.keeps(old.location, old.index)) {
                book.replaced_bytes += old.block.len();
                book.replaced.push(old);
            } else {
                free.push(old.block);
            }
        }
        (book.held, book.held_bytes) = (book.replaced.len(), book.replaced_bytes);
        drop(book);
        free.into_iter().for_each(|block| self.spare(block));
    }
}

/// What a publisher of another make could write.
#[cfg(test)]
impl Board {
    pub(crate) fn forge_location(&self, index: usize, word: u64) {
        let (row, at) = place_of(index).expect("there is such an entry");
        let book = lock(&self.book);
        let entry = &book.rows[row].0[at];
        entry.location.store(word, Ordering::Release);
        entry.version.store(u64::MAX, Ordering::Release);
    }

    pub(crate) fn forge_count(&self, count: u64) {
        self.head.count.store(count, Ordering::Release);
        self.bind();
    }

    /// Writes a header before a value's message, and bytes over that; as the newest value.
    pub(crate) fn forge_value(
        &self,
        index: usize,
        header: ValueHeader,
        start: usize,
        bytes: &[u8],
    ) {
        let mut book = lock(&self.book);
        let block = book.newest[index].as_mut().expect("it has a value");
        assert!(start + bytes.len() <= block.len());
        // SAFETY: the block is ours, and has room for both; whoever reads it does so by single words, or has to
        // notice.
        unsafe { block.start().cast::<ValueHeader>().write_volatile(header) };
        // SAFETY: as above.
        let at = unsafe { block.start().add(start) };
        // SAFETY: as above.
        unsafe {
            at.as_ptr()
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
        let (row, at) = place_of(index).expect("there is such an entry");
        book.rows[row].0[at]
            .version
            .store(header.version, Ordering::Release);
    }

    pub(crate) fn location(&self, index: usize) -> u64 {
        let (row, at) = place_of(index).expect("there is such an entry");
        lock(&self.book).rows[row].0[at]
            .location
            .load(Ordering::Relaxed)
    }
}
