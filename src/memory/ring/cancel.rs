//! How a caller says that it waits for an answer no longer: a bit in its own memory.
//!
//! # Why no cancel is missed, and none hits another request
//!
//! The bit is set with Release, and stays until the tag is used again. That is only after the server's
//! last word on the request has come, so the server looks no more. It is cleared before the next
//! request of the tag is published, whose Release and Acquire order that: who finds the request finds
//! the bit clear, or set for this very request.
//!
//! A server that sleeps until its caller has taken some items is woken by
//! [`HandBack::nudge`](super::HandBack::nudge), in the way of a hand-back (`wait`).

use super::super::layout::SenderBlock;
use crate::sync::{Ordering, load_acquire};

impl SenderBlock {
    /// Cancels the request that bears this tag: for its caller alone.
    pub(crate) fn cancel(&self, tag: u16) {
        let (word, bit) = bit_of(tag);
        // SYNC(cancel): Release; pairs with Acquire in `is_cancelled`.
        self.cancelled[word].fetch_or(bit, Ordering::Release);
    }

    /// Has the next request of this tag not be cancelled from the start: for its caller alone.
    #[inline(always)]
    pub(crate) fn uncancel(&self, tag: u16) {
        let (word, bit) = bit_of(tag);
        // Relaxed, both: only this end writes the word; publishing the request orders it.
        if self.cancelled[word].load(Ordering::Relaxed) & bit != 0 {
            self.cancelled[word].fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Whether the caller has cancelled the request with this tag, which was checked.
    #[inline]
    pub(crate) fn is_cancelled(&self, tag: u16) -> bool {
        let (word, bit) = bit_of(tag);
        // SYNC(cancel): Acquire; pairs with Release in `cancel`.
        load_acquire(&self.cancelled[word]) & bit != 0
    }
}

#[inline(always)]
fn bit_of(tag: u16) -> (usize, u64) {
    (usize::from(tag) / 64, 1 << (tag % 64))
}
