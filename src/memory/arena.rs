//! All segments of this process, and which part of them is in use: the slab.
//!
//! The book is private: a sorted map of free ranges on the ordinary heap. Nothing that a peer
//! writes reaches it, so a crash anywhere leaves it whole in every other process, and the kernel
//! frees the memory of the dead one when the last reader unmaps it.
//!
//! Ranges are cut best fit in granules of one cache line, and joined again when they return. A
//! segment whose last range returned is retired, where more than an eighth of the limit is spare: the
//! only way to give memory back that is sealed against hole punching. Its number is never used again.
//! An eighth is what one lane may have out, so that a stream of large messages goes on in memory that
//! both sides have mapped, and does not make, announce and retire a segment for each.
//!
//! The lock is not on the hot path: lanes keep the blocks that they used last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::layout::SegmentRef;
use super::segment::{OwnSegment, PAGE};
use crate::error::MemoryError;

/// The granule of an allocation in bytes: one cache line.
pub(crate) const GRANULE: u64 = 64;

/// The first segment holds lanes and bells, and little else: it starts small.
const FIRST: u64 = 64 * 1024;
/// Later segments are half as large as all before together, between these, or as large as needed.
const LATER: u64 = 1024 * 1024;
const MOST_LATER: u64 = 8 * LATER;

/// How much memory an arena may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The most bytes of all segments together.
    pub(crate) memory: u64,
}

/// Called with the number of a segment that is gone.
type OnRetire = Box<dyn Fn(u64) + Send + Sync>;

/// The memory that this process alone writes.
pub(crate) struct Arena {
    limits: Limits,
    book: Mutex<Book>,
    on_retire: OnRetire,
}

#[derive(Default)]
struct Book {
    segments: BTreeMap<u64, Ranges>,
    next_id: u64,
    /// The bytes of all segments.
    total: u64,
    /// The most of them that may lie idle.
    most_spare: u64,
}

/// One segment and its free ranges, by offset.
struct Ranges {
    segment: Arc<OwnSegment>,
    free: BTreeMap<u64, u64>,
    used: u64,
}

/// A range of this process's own memory, given back when dropped.
pub(crate) struct Block {
    arena: Weak<Arena>,
    segment: Arc<OwnSegment>,
    offset: u64,
    len: u64,
}

impl Arena {
    /// An arena without memory; the first block makes the first segment.
    pub(crate) fn new(limits: Limits, on_retire: OnRetire) -> Arc<Arena> {
        let book = Book {
            most_spare: limits.memory / 8 + MOST_LATER,
            ..Book::default()
        };
        Arc::new(Arena {
            limits,
            book: Mutex::new(book),
            on_retire,
        })
    }

    /// Cuts a block of at least `len` bytes, aligned to a cache line.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Limit`] where the arena would outgrow its limit: blocks that receivers hand
    /// back later make room. [`MemoryError::Exhausted`] where the system has no memory.
    pub(crate) fn allocate(self: &Arc<Self>, len: u64) -> Result<Block, MemoryError> {
        let len = len.max(1).next_multiple_of(GRANULE);
        let mut book = self.book();
        let (segment, offset) = match book.cut(len) {
            Some(found) => found,
            None => {
                book.grow(len, self.limits.memory)?;
                book.cut(len).ok_or(MemoryError::TooLarge { bytes: len })?
            }
        };
        Ok(Block {
            arena: Arc::downgrade(self),
            segment,
            offset,
            len,
        })
    }

    /// The segment with this number, while it is in use.
    pub(crate) fn segment(&self, id: u64) -> Option<Arc<OwnSegment>> {
        self.book().segments.get(&id).map(|r| r.segment.clone())
    }

    /// The bytes of all segments, and those of them that are in use.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let book = self.book();
        (book.total, book.segments.values().map(|r| r.used).sum())
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        // Nothing in here panics half-way through a change.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, segment: u64, offset: u64, len: u64) {
        let retired = self.book().put(segment, offset, len);
        if let Some(segment) = retired {
            (self.on_retire)(segment.id());
        }
    }
}

impl Book {
    /// Takes the smallest free range that is large enough.
    fn cut(&mut self, len: u64) -> Option<(Arc<OwnSegment>, u64)> {
        let (&id, offset, found) = self
            .segments
            .iter()
            .flat_map(|(id, r)| r.free.iter().map(move |(o, l)| (id, *o, *l)))
            .filter(|&(_, _, l)| l >= len)
            .min_by_key(|&(_, _, l)| l)?;
        let ranges = self.segments.get_mut(&id)?;
        ranges.free.remove(&offset);
        if found > len {
            ranges.free.insert(offset + len, found - len);
        }
        ranges.used += len;
        Some((ranges.segment.clone(), offset))
    }

    fn grow(&mut self, len: u64, limit: u64) -> Result<(), MemoryError> {
        let least = if self.segments.is_empty() {
            FIRST
        } else {
            (self.total / 2).clamp(LATER, MOST_LATER)
        };
        let left = limit.saturating_sub(self.total);
        let size = len
            .max(least.min(left / PAGE * PAGE))
            .next_multiple_of(PAGE);
        if size > left {
            return Err(MemoryError::Limit {
                bytes: len,
                used: self.total,
                limit,
            });
        }
        let segment = Arc::new(OwnSegment::create(self.next_id, size)?);
        let free = BTreeMap::from([(0, segment.len())]);
        self.total += segment.len();
        self.segments.insert(
            self.next_id,
            Ranges {
                segment,
                free,
                used: 0,
            },
        );
        self.next_id += 1;
        Ok(())
    }

    /// Joins a range with its free neighbours; returns the segment if it is to go.
    fn put(&mut self, id: u64, mut offset: u64, mut len: u64) -> Option<Arc<OwnSegment>> {
        let ranges = self.segments.get_mut(&id)?;
        ranges.used -= len;
        if let Some((&before, &l)) = ranges.free.range(..offset).next_back() {
            if before + l == offset {
                ranges.free.remove(&before);
                (offset, len) = (before, len + l);
            }
        }
        if let Some(l) = ranges.free.remove(&(offset + len)) {
            len += l;
        }
        ranges.free.insert(offset, len);
        // Segment 0 holds what lives as long as the bus.
        let spare = |r: &&Ranges| r.segment.id() != 0 && r.used == 0;
        if !spare(&&*ranges) {
            return None;
        }
        let spares = self.segments.values().filter(spare);
        if spares.map(|r| r.segment.len()).sum::<u64>() <= self.most_spare {
            return None;
        }
        let gone = self.segments.remove(&id)?;
        self.total -= gone.segment.len();
        Some(gone.segment)
    }
}

impl Block {
    /// The first byte. Readable and writable for [`len`](Self::len) bytes while the block lives.
    #[inline]
    pub(crate) fn start(&self) -> std::ptr::NonNull<u8> {
        self.segment.at(self.offset)
    }

    /// The size in bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// The number of the segment.
    #[inline]
    pub(crate) fn segment(&self) -> &Arc<OwnSegment> {
        &self.segment
    }

    /// Whether it was cut from this arena: another's segments have the same numbers.
    #[inline]
    pub(crate) fn is_of(&self, arena: &Arc<Arena>) -> bool {
        std::ptr::eq(self.arena.as_ptr(), Arc::as_ptr(arena))
    }

    /// How to refer to `len` bytes of it.
    #[inline]
    pub(crate) fn reference(&self, offset: usize, len: usize) -> SegmentRef {
        debug_assert!(offset + len <= self.len());
        let offset = self.offset + offset as u64;
        SegmentRef {
            segment: self.segment.id(),
            offset,
            len: len as u64,
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.segment.is_forked() {
            // The book is the parent's, and may have been locked when this process was forked off.
            return;
        }
        if let Some(arena) = self.arena.upgrade() {
            arena.give_back(self.segment.id(), self.offset, self.len);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod properties;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn arena(memory: u64) -> (Arc<Arena>, Arc<AtomicU32>) {
        let retired = Arc::new(AtomicU32::new(0));
        let count = retired.clone();
        let on_retire = Box::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        (Arena::new(Limits { memory }, on_retire), retired)
    }

    #[test]
    fn blocks_never_overlap_and_everything_returns() {
        // A plain model: the bytes in use, as a set of granules a segment.
        let (arena, _) = arena(64 << 20);
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut held: Vec<Block> = Vec::new();
        let mut used = std::collections::HashSet::new();
        let granules = |b: &Block| {
            let id = b.segment.id();
            (b.offset / GRANULE..(b.offset + b.len) / GRANULE).map(move |g| (id, g))
        };
        for _ in 0..5_000 {
            if held.len() < 40 && random() % 3 != 0 {
                let block = arena.allocate(random() % 300_000).unwrap();
                for granule in granules(&block) {
                    assert!(used.insert(granule), "{granule:?} was cut twice");
                }
                held.push(block);
            } else if !held.is_empty() {
                let block = held.swap_remove(random() as usize % held.len());
                granules(&block).for_each(|g| assert!(used.remove(&g)));
            }
        }
        held.clear();
        let (total, in_use) = arena.usage();
        assert_eq!(in_use, 0);
        assert!(
            total <= FIRST + (64 << 20) / 8 + MOST_LATER,
            "{total} bytes stayed"
        );
    }

    #[test]
    fn a_large_segment_is_retired_with_its_last_block() {
        let (arena, retired) = arena(64 << 20);
        let first = arena.allocate(64).unwrap();
        let large = arena.allocate(24 << 20).unwrap();
        assert!(arena.usage().0 >= 24 << 20);
        drop(large);
        assert_eq!(retired.load(Ordering::Relaxed), 1);
        assert_eq!(arena.usage().0, FIRST);
        drop(first);
    }

    #[test]
    fn the_limit_is_an_error_that_names_the_sizes() {
        let (arena, _) = arena(2 << 20);
        let error = arena.allocate(4 << 20).err().unwrap();
        assert!(
            matches!(
                error,
                MemoryError::Limit {
                    limit: 0x20_0000,
                    ..
                }
            ),
            "{error}"
        );
    }
}
