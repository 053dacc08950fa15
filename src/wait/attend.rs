//! How a receiver asks to be rung for the next record of a lane, and how its sender answers.
//!
//! # Why no ring is lost
//!
//! The sender (1) publishes, (2) passes a light barrier, (3) looks whether the receiver wants to be
//! rung. The receiver (a) writes that it wants to be rung, (b) passes a heavy barrier, (c) looks at
//! the lane once more. One of (3) and (c) sees the other side's write.
//!
//! A receiver that wants to be rung says so with a number that it never used before, and is rung
//! once for each. Where it is rung by a doorbell, only when that ring has arrived does it say
//! anything else. So a bit of its doorbell never flips twice between two looks, and flips back are
//! not missed.
//!
//! When a receiver goes from one such number to the next, the heavy barrier is not needed: a sender
//! that finds a number at all passes a full barrier and looks again before it decides.

use super::Ringer;
use crate::memory::layout::{DOORBELL_LANES, Doorbell, ReceiverBlock};
use crate::sync::{AtomicU64, Ordering, fence, light_barrier, load_acquire, load_acquire_u32};

/// The receiver's half: what its word says, which each call is given.
#[derive(Default)]
pub(crate) struct Attend {
    number: u64,
}

impl Attend {
    /// Asks to be rung for the next record, with a number that was not used before.
    ///
    /// The caller passes a heavy barrier and looks again.
    pub(crate) fn arm(&mut self, word: &AtomicU64) {
        self.number = (self.number | 1) + if self.number % 2 == 1 { 2 } else { 0 };
        // SYNC(attend): Release; pairs with the fence in `Rung::ring` behind the load, so that who
        // finds the number finds the bell as it was made before (`wait`). The caller's barrier
        // orders this before the caller's look. (No model tells this Release: loom takes a fence
        // behind a Relaxed load for one that pairs with any store.)
        word.store(self.number, Ordering::Release);
    }

    /// Says that this side looks by itself.
    pub(crate) fn watch(&mut self, word: &AtomicU64) {
        if self.number % 2 == 1 {
            self.number += 1;
            // SYNC(attend): Relaxed; a sender that still sees the old number rings once too often.
            word.store(self.number, Ordering::Relaxed);
        }
    }

    /// Asks to be rung after having been rung. The caller looks again.
    pub(crate) fn rearm(&mut self, word: &AtomicU64) {
        self.arm(word);
        // SYNC(attend): pairs with the fence in `Rung::ring` before the load.
        fence(Ordering::SeqCst);
    }
}

/// The sender's half: the number of the last ring that was asked for and given.
#[derive(Default)]
pub(crate) struct Rung {
    number: u64,
}

impl Rung {
    /// Whether the receiver asks to be rung for what was just published.
    #[inline(always)]
    pub(crate) fn is_asked(receiver: &ReceiverBlock, asymmetric: bool) -> bool {
        // SYNC(attend): pairs with the heavy barrier of whoever arms the lane.
        light_barrier(asymmetric);
        // Relaxed: the barrier orders it behind the publication.
        receiver.attend.load(Ordering::Relaxed) % 2 == 1
    }

    /// Rings the receiver, where this was not done yet for what it asks: by a bit of its doorbell,
    /// if it has one, and by its bell.
    #[cold]
    pub(crate) fn ring(
        &mut self,
        receiver: &ReceiverBlock,
        door: Option<(&Doorbell, u16)>,
        ringer: &Ringer,
    ) {
        // SYNC(attend): a full barrier, so that going from one number to the next needs no other.
        fence(Ordering::SeqCst);
        let asked = receiver.attend.load(Ordering::Relaxed);
        if asked % 2 == 0 || asked == self.number {
            return;
        }
        self.number = asked;
        if let Some((bell, bit)) = door {
            let (word, bit) = (usize::from(bit) / 64, 1u64 << (bit % 64));
            // SYNC(door): Release, in this order; pairs with Acquire in `Seen::look`.
            bell.ready[word].fetch_xor(bit, Ordering::Release);
            bell.rings.fetch_add(1, Ordering::Release);
        }
        // The barrier that `Ringer::ring` asks for: step (b) of `wait`.
        fence(Ordering::SeqCst);
        ringer.ring();
    }
}

/// What a port saw of a doorbell, which each call is given.
pub(crate) struct Seen {
    rings: u32,
    ready: Box<[u64; DOORBELL_LANES / 64]>,
}

impl Seen {
    /// A doorbell that was not looked at yet.
    pub(crate) fn new() -> Seen {
        Seen {
            rings: 0,
            ready: Box::new([0; DOORBELL_LANES / 64]),
        }
    }

    /// Says how the bit of a lane stood when it was opened. The next look finds what rang since.
    pub(crate) fn join(&mut self, bell: &Doorbell, bit: u16, stands: bool) {
        let (word, mask) = (usize::from(bit) / 64, 1 << (bit % 64));
        self.ready[word] = self.ready[word] & !mask | if stands { mask } else { 0 };
        self.rings = load_acquire_u32(&bell.rings).wrapping_sub(1);
    }

    /// Whether somebody rang since the last look.
    #[inline]
    pub(crate) fn is_rung(&self, bell: &Doorbell) -> bool {
        // SYNC(door): Acquire; pairs with Release in `Rung::ring`.
        load_acquire_u32(&bell.rings) != self.rings
    }

    /// Looks which lanes rang.
    #[inline]
    pub(crate) fn look(&mut self, bell: &Doorbell, mut rang: impl FnMut(usize)) {
        // SYNC(door): Acquire; pairs with Release in `Rung::ring`.
        let rings = load_acquire_u32(&bell.rings);
        if rings == self.rings {
            return;
        }
        self.rings = rings;
        for word in 0..DOORBELL_LANES / 64 {
            // SYNC(door): Acquire; pairs with Release in `Rung::ring`.
            let now = load_acquire(&bell.ready[word]);
            let mut flipped = now ^ self.ready[word];
            self.ready[word] = now;
            while flipped != 0 {
                rang(word * 64 + flipped.trailing_zeros() as usize);
                flipped &= flipped - 1;
            }
        }
    }
}
