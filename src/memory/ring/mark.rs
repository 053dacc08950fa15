//! How far the halves of a ring are, for a third who looks at the ring when the other process is gone.
//!
//! They say so where they hand back, and where they look what was handed back: once in many messages, and only where
//! somebody asked for it. The words lie on the heap of this process, and decide about nothing.
//!
//! | word | written by | read by | orderings |
//! |---|---|---|---|
//! | `Mark::version` | the producer | the recorder | odd, Relaxed, and a fence / Acquire; even, Release / Relaxed, behind a fence |
//! | `Mark::sequence`, `seen`, `heads` | the producer | the recorder | Relaxed, between two looks at the same even version |
//! | `Taken` | the consumer | the recorder | Relaxed: a lower bound |

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::super::layout::MOST_CELLS;
use super::Producer;

const WORDS: usize = MOST_CELLS / 64;

/// How many records a consumer has found, at least.
#[derive(Default)]
pub(crate) struct Taken(AtomicU64);

impl Taken {
    #[inline]
    pub(super) fn set(&self, sequence: u64) {
        // Relaxed: see the module.
        self.0.store(sequence, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        // Relaxed: see the module.
        self.0.load(Ordering::Relaxed)
    }
}

/// What a producer knew when it last found that something was handed back.
#[derive(Default)]
pub(crate) struct Mark {
    version: AtomicU64,
    sequence: AtomicU64,
    seen: [AtomicU64; WORDS],
    heads: [AtomicU64; WORDS],
}

/// A copy of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marked {
    /// How many records there were.
    pub(crate) sequence: u64,
    seen: [u64; WORDS],
    heads: [u64; WORDS],
}

impl Mark {
    /// Called by one thread at a time.
    pub(super) fn set(&self, sequence: u64, seen: &[u64; WORDS], heads: &[u64; WORDS]) {
        // Relaxed: our own word.
        let version = self.version.load(Ordering::Relaxed).wrapping_add(1);
        self.version.store(version, Ordering::Relaxed);
        // SYNC(mark-begin): Release fence; pairs with the Acquire fence in `get`: whoever sees what follows sees the odd
        // version.
        fence(Ordering::Release);
        // Relaxed, as all of these: between two versions.
        self.sequence.store(sequence, Ordering::Relaxed);
        for (to, from) in self.seen.iter().zip(seen) {
            to.store(*from, Ordering::Relaxed);
        }
        for (to, from) in self.heads.iter().zip(heads) {
            to.store(*from, Ordering::Relaxed);
        }
        // SYNC(mark-end): Release; pairs with Acquire in `get`.
        self.version
            .store(version.wrapping_add(1), Ordering::Release);
    }

    /// What it says; `None` where it is being changed all the time.
    pub(crate) fn get(&self) -> Option<Marked> {
        const TRIES: usize = 100;
        (0..TRIES).find_map(|_| {
            // SYNC(mark-end): Acquire; pairs with Release in `set`.
            let version = self.version.load(Ordering::Acquire);
            // Relaxed, as all of these: used only where the version is still the same.
            let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
            let marked = Marked {
                sequence: load(&self.sequence),
                seen: std::array::from_fn(|word| load(&self.seen[word])),
                heads: std::array::from_fn(|word| load(&self.heads[word])),
            };
            // SYNC(mark-begin): Acquire fence; pairs with the Release fence in `set`.
            fence(Ordering::Acquire);
            (version % 2 == 0 && load(&self.version) == version).then_some(marked)
        })
    }
}

impl Producer {
    /// Where it says from now on how far it is.
    pub(crate) fn set_mark(&mut self, mark: Arc<Mark>) {
        self.mark = Some(mark);
    }
}

impl Marked {
    /// Whether a record was handed back that still stands in its cell; `bits` are those of its receiver now.
    pub(crate) fn is_back(&self, sequence: u64, cell: usize, bits: &[u64; WORDS]) -> bool {
        let (word, bit) = (cell / 64, 1 << (cell % 64));
        let (Some(bits), Some(seen), Some(heads)) =
            (bits.get(word), self.seen.get(word), self.heads.get(word))
        else {
            return false;
        };
        let was_there = self.sequence.wrapping_sub(sequence).wrapping_sub(1) < u64::MAX / 2;
        (was_there && heads & bit == 0) || (bits ^ seen) & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::{Cell, Kind, ReceiverBlock};
    use crate::memory::shared::Shared;

    #[test]
    fn what_was_handed_back_is_known_of_each_record() {
        let receiver = Shared::heap(ReceiverBlock::new());
        let cells = Shared::heap_slice((0..64).map(|_| Cell::new()).collect());
        let mut producer = Producer::new(cells, receiver.clone(), true);
        let mark = Arc::new(Mark::default());
        producer.set_mark(mark.clone());
        // Each message is handed back three messages later, but for every seventh, which is held for a while.
        let mut out: Vec<(u64, usize, bool)> = Vec::new();
        let mut cell = 0;
        for sequence in 0..20_000u64 {
            if !producer.has_room(2) {
                producer.collect().unwrap();
            }
            let space = producer.here(1);
            producer
                .publish(&space, (Kind::Inline, 8, 0), 1, None)
                .unwrap();
            out.retain(|(_, at, _)| *at != cell);
            out.push((sequence, cell, false));
            cell = producer.position().1;
            for (number, at, is_back) in &mut out {
                let age = if *number % 7 == 0 { 20 } else { 3 };
                if *number + age == sequence {
                    // SYNC(hand-back): Release; pairs with Acquire in `Producer::collect`.
                    receiver.handed_back[*at / 64].fetch_xor(1 << (*at % 64), Ordering::Release);
                    *is_back = true;
                }
            }
            let bits =
                std::array::from_fn(|word| receiver.handed_back[word].load(Ordering::Relaxed));
            let marked = mark.get().unwrap();
            for (number, at, is_back) in &out {
                assert_eq!(
                    marked.is_back(*number, *at, &bits),
                    *is_back,
                    "{number} at {sequence}"
                );
            }
        }
        assert!(mark.get().unwrap().sequence > 19_000);
    }

    #[test]
    fn what_is_read_is_of_one_moment() {
        let mark = Arc::new(Mark::default());
        let writer = {
            let mark = mark.clone();
            std::thread::spawn(move || {
                for turn in 1..200_000u64 {
                    mark.set(turn, &[turn; WORDS], &[turn; WORDS]);
                }
            })
        };
        while !writer.is_finished() {
            if let Some(marked) = mark.get() {
                let all = [marked.sequence; WORDS];
                assert_eq!((marked.seen, marked.heads), (all, all));
            }
        }
        writer.join().unwrap();
    }
}
