//! Newest values that anybody may read where they lie, while their publisher replaces them.
//!
//! Each key has an [`Entry`] in the publisher's memory: the location of its newest value. A reader says in a
//! word of its own, in its own memory, which value it looks at: its *hold*. The publisher writes no value
//! that was published; it publishes another, and uses the memory of the old one again once no reader holds it.
//!
//! | word | written by | read by | orderings | what it publishes | after a crash of its writer |
//! |---|---|---|---|---|---|
//! | `Entry::location` | publisher | readers | Release / Acquire | the value there, and its header | the last value stands |
//! | `Entry::version` | publisher | readers | Release / Acquire | the location was changed | a reader finds the change when it reads the entry |
//! | `HoldBlock::hold` | reader | publisher | Release / Acquire; light / heavy barrier | a value is looked at; or the one before it is not any more | nothing is held any more |
//!
//! # Why no value is written while it is read
//!
//! A reader writes its hold, passes the light barrier, and loads the location. The publisher stores a new
//! location, passes the heavy barrier, and looks at the holds before it uses the old value's memory again. One of
//! the two sees the other's store: so the publisher finds the hold, or the reader finds the new location, and
//! does not look at the old one. What a hold says is one location, which stands as it was read; or a whole entry:
//! then no value that was ever replaced there is used again.
//!
//! A location that is used again for a newer value of the same entry is no trap: what counts is that the value is
//! the newest *after* the hold was written.
//!
//! # Why a read never waits
//!
//! Where the location has changed since it was put into the hold, the reader holds the whole entry instead.
//! Whatever it finds there behind that is protected, so the third look is the last. Then it narrows its hold to what
//! it found: one who is stopped while it reads has the publisher keep a single value.

use super::layout::{BOARD_ROWS, Entry, FIRST_ROW, SegmentRef};
use crate::sync::{AtomicU64, Ordering, light_barrier, load_acquire};

/// Where a value lies, in one word: the number of its segment and one, and its distance from the segment's
/// start in cache lines. Values lie in blocks of the slab, which start on one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Location(u64);

/// The bits of the distance: 4 GiB, more than any segment has.
const DISTANCE: u32 = 26;
const LINE: u64 = 64;
/// Says that the rest of a hold is the number of an entry.
const WHOLE: u64 = 1 << 63;

impl Location {
    /// Where nothing is.
    pub(crate) const NOWHERE: Location = Location(0);

    /// Of a place of our own; `None` where it cannot be told in one word, which no arena comes to.
    pub(crate) fn of(at: SegmentRef) -> Option<Location> {
        let distance = at.offset / LINE;
        let fits = at.offset % LINE == 0 && distance >> DISTANCE == 0;
        let fits = fits && at.segment < (1 << (63 - DISTANCE)) - 1;
        fits.then_some(Location((at.segment + 1) << DISTANCE | distance))
    }

    /// As it stands in shared memory.
    pub(crate) fn to_word(self) -> u64 {
        self.0
    }

    /// As a peer says it: every word is one, to be checked.
    pub(crate) fn from_word(word: u64) -> Location {
        Location(word)
    }

    /// The same place, of so many bytes; `None` where it is none. As a peer says it: to be checked.
    pub(crate) fn reference(self, len: usize) -> Option<SegmentRef> {
        Some(SegmentRef {
            segment: (self.0 >> DISTANCE).checked_sub(1)?,
            offset: (self.0 & ((1 << DISTANCE) - 1)) * LINE,
            len: len as u64,
        })
    }
}

/// The most bytes of a key: of a path on Linux.
pub(crate) const MOST_KEY: usize = 4096;

/// The most bytes of all keys of a board.
pub(crate) const MOST_KEY_BYTES: usize = 16 << 20;

/// In which row of a board an entry lies, and where in it. `None` where no board has so many.
pub(crate) fn place_of(index: usize) -> Option<(usize, usize)> {
    let row = (index / FIRST_ROW + 1).ilog2() as usize;
    (row < BOARD_ROWS).then(|| (row, index - entries_before(row)))
}

/// How many entries lie in a row.
pub(crate) fn row_len(row: usize) -> usize {
    FIRST_ROW << row
}

fn entries_before(row: usize) -> usize {
    FIRST_ROW * ((1 << row) - 1)
}

/// Holds the newest value of an entry, whose number is `index`; returns where it is. The hold stands until the next
/// one, or until it is [let go](let_go).
#[inline(always)]
pub(crate) fn hold_newest(
    entry: &Entry,
    index: usize,
    hold: &AtomicU64,
    asymmetric: bool,
) -> Location {
    let found = load_acquire(&entry.location);
    if found == 0 {
        return Location::NOWHERE;
    }
    // SYNC(hold): Release; pairs with Acquire in `held_by`. What was held before is read no more.
    hold.store(found & !WHOLE, Ordering::Release);
    // SYNC(board): pairs with the heavy barrier before `held_by`.
    light_barrier(asymmetric);
    // SYNC(location): Acquire; pairs with Release in `replace`.
    match load_acquire(&entry.location) {
        again if again == found && found & WHOLE == 0 => Location(found),
        _ => hold_whole(entry, index, hold, asymmetric),
    }
}

#[cold]
fn hold_whole(entry: &Entry, index: usize, hold: &AtomicU64, asymmetric: bool) -> Location {
    // SYNC(hold), SYNC(board), SYNC(location): as in `hold_newest`.
    hold.store(WHOLE | index as u64, Ordering::Release);
    light_barrier(asymmetric);
    // No honest publisher has a location that is none of a value.
    let found = load_acquire(&entry.location) & !WHOLE;
    // SYNC(hold): as above. The publisher finds one or the other, and each protects what was found.
    hold.store(found, Ordering::Release);
    Location(found)
}

/// Nothing is looked at any more.
#[inline(always)]
pub(crate) fn let_go(hold: &AtomicU64) {
    // SYNC(hold): Release; pairs with Acquire in `held_by`.
    hold.store(0, Ordering::Release);
}

/// Makes a value the newest of an entry, or nothing.
#[inline(always)]
pub(crate) fn replace(entry: &Entry, location: Location, version: u64) {
    // SYNC(location): Release; pairs with Acquire in `hold_newest`.
    entry.location.store(location.0, Ordering::Release);
    // SYNC(version): Release; pairs with Acquire of who looks for changes.
    entry.version.store(version, Ordering::Release);
}

/// What a reader holds: to be looked at behind a heavy barrier, which comes behind [`replace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Nothing,
    Value(Location),
    /// Whatever was the newest of this entry since some moment.
    Entry(usize),
}

/// See [`Held`].
pub(crate) fn held_by(hold: &AtomicU64) -> Held {
    // SYNC(hold): Acquire; pairs with Release in `hold_newest` and `let_go`.
    match load_acquire(hold) {
        0 => Held::Nothing,
        word if word & WHOLE != 0 => Held::Entry((word & !WHOLE) as usize),
        word => Held::Value(Location(word)),
    }
}

impl Held {
    /// Whether this keeps the memory of a value that was replaced.
    pub(crate) fn keeps(self, location: Location, index: usize) -> bool {
        match self {
            Held::Nothing => false,
            Held::Value(held) => held == location,
            Held::Entry(held) => held == index,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn locations_survive_their_word() {
        for (segment, offset) in [
            (0, 0),
            (0, 64),
            (7, 1 << 20),
            ((1 << 37) - 2, (1 << 32) - 64),
        ] {
            let at = SegmentRef {
                segment,
                offset,
                len: 24,
            };
            let location = Location::of(at).unwrap();
            assert_ne!(location, Location::NOWHERE);
            assert_eq!(location.0 & WHOLE, 0);
            assert_eq!(location.reference(24), Some(at));
        }
        assert_eq!(Location::NOWHERE.reference(24), None);
        for (segment, offset) in [(0, 8), (0, 1 << 32), ((1 << 37) - 1, 0)] {
            let at = SegmentRef {
                segment,
                offset,
                len: 24,
            };
            assert_eq!(Location::of(at), None, "{at:?}");
        }
    }

    #[test]
    fn every_entry_has_one_place() {
        let mut at = (0, 0);
        for index in 0..5_000 {
            assert_eq!(place_of(index), Some(at), "{index}");
            at.1 += 1;
            if at.1 == row_len(at.0) {
                at = (at.0 + 1, 0);
            }
        }
        let all = entries_before(BOARD_ROWS);
        assert!(place_of(all - 1).is_some());
        assert_eq!(place_of(all), None);
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::cell::UnsafeCell;
    use loom::thread;
    use std::sync::Arc;

    use super::*;
    use crate::sync::{explore, heavy_barrier};

    /// The memory of a few values: whoever writes one while another reads it is reported.
    struct Bench {
        entry: Entry,
        holds: Vec<AtomicU64>,
        values: Vec<UnsafeCell<u64>>,
    }

    // SAFETY: it is for the model to find out whether the cells are used as they should be.
    #[allow(unsafe_code)]
    unsafe impl Sync for Bench {}

    impl Bench {
        fn new(readers: usize, values: usize) -> Arc<Bench> {
            Arc::new(Bench {
                entry: Entry::new(),
                holds: (0..readers).map(|_| AtomicU64::new(0)).collect(),
                values: (0..values).map(|_| UnsafeCell::new(0)).collect(),
            })
        }

        fn location(value: usize) -> Location {
            Location((value as u64 + 1) << DISTANCE)
        }

        /// Writes a value that nobody may look at, and makes it the newest.
        fn publish(&self, value: usize, version: u64) {
            // SAFETY: checked by the model.
            #[allow(unsafe_code)]
            self.values[value].with_mut(|at| unsafe { *at = version });
            replace(&self.entry, Bench::location(value), version);
        }

        /// Whether a value that was replaced may be written again.
        fn is_free(&self, value: usize) -> bool {
            heavy_barrier(false);
            let keeps = |hold: &AtomicU64| held_by(hold).keeps(Bench::location(value), 0);
            !self.holds.iter().any(keeps)
        }

        fn read(&self, reader: usize) -> u64 {
            let hold = &self.holds[reader];
            let found = hold_newest(&self.entry, 0, hold, false);
            let value = found
                .reference(0)
                .expect("there is one from the start")
                .segment as usize;
            // SAFETY: checked by the model.
            #[allow(unsafe_code)]
            let version = self.values[value].with(|at| unsafe { *at });
            let_go(hold);
            version
        }
    }

    /// *Why no value is written while it is read*, and no older value is found behind a newer one.
    #[test]
    fn no_value_is_written_while_it_is_read() {
        explore(Some(3), || {
            let bench = Bench::new(1, 2);
            bench.publish(0, 1);
            let reader = {
                let bench = bench.clone();
                thread::spawn(move || {
                    let first = bench.read(0);
                    let second = bench.read(0);
                    assert!(1 <= first && first <= second && second <= 3);
                })
            };
            bench.publish(1, 2);
            if bench.is_free(0) {
                bench.publish(0, 3);
            }
            reader.join().unwrap();
        });
    }

    /// The same, with one location that is used again for the same entry while a reader has seen it before.
    #[test]
    fn a_location_that_is_used_again_is_no_trap() {
        explore(Some(2), || {
            let bench = Bench::new(1, 2);
            bench.publish(0, 1);
            let reader = {
                let bench = bench.clone();
                thread::spawn(move || assert!((1..=4).contains(&bench.read(0))))
            };
            let mut free = 1;
            for version in 2..=4 {
                bench.publish(free, version);
                let old = 1 - free;
                if !bench.is_free(old) {
                    break;
                }
                free = old;
            }
            reader.join().unwrap();
        });
    }

    /// Two readers, each with a hold of its own.
    #[test]
    fn each_reader_holds_for_itself() {
        explore(Some(2), || {
            let bench = Bench::new(2, 2);
            bench.publish(0, 1);
            let readers = [0, 1].map(|reader| {
                let bench = bench.clone();
                thread::spawn(move || assert!((1..=3).contains(&bench.read(reader))))
            });
            bench.publish(1, 2);
            if bench.is_free(0) {
                bench.publish(0, 3);
            }
            readers
                .into_iter()
                .for_each(|reader| reader.join().unwrap());
        });
    }
}
