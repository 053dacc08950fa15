//! What messages refer to beside their own bytes, and how long it stays.
//!
//! A *pin* is a message that was archived once, for any number of others to refer to. Each record with such a
//! message lends the pin's block as well, until it is handed back: its lane's [`Book`] says which. Unlike the
//! rest of a lane's books, others look at it, too: a pin is to be freed when it was handed back the last time,
//! also where nothing more is sent on that lane.
//!
//! # Why no pin is freed that a receiver may look at
//!
//! 1. Whoever archives a handle notes the pin in the same pass ([`Pins`]); a writer without such a list refuses.
//! 2. The list goes into the book of the lane with the record, before anything else happens on the lane.
//! 3. An entry goes when the bit of its record's cell stands otherwise than when it was published. It was
//!    exact then: a cell is published only after its last record was handed back and collected. It stays
//!    exact: the bit flips once more only after the cell was published again, before which the record was
//!    collected, and whoever collects it takes its entry out ([`Book::sweep`]).
//! 4. Or all entries go, when the peer has said by the end of its half of the socket that it looks at nothing
//!    any more. When its link has ended, and nothing is sent on the lane any more, this alone is waited for: the
//!    bits lie in the peer's memory, and whoever looks at that has the peer wait in turn ([`Book::look_away`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::arena::Block;
use super::layout::ReceiverBlock;
use super::shared::Shared;
use crate::sync::load_acquire;

/// The block of a pin.
#[doc(hidden)]
pub struct PinBlock {
    block: Arc<Block>,
    /// There is no handle of it any more: it goes with the last record.
    is_orphan: AtomicBool,
}

impl PinBlock {
    pub(crate) fn new(block: Arc<Block>) -> Arc<PinBlock> {
        Arc::new(PinBlock {
            block,
            is_orphan: AtomicBool::new(false),
        })
    }

    pub(crate) fn block(&self) -> &Arc<Block> {
        &self.block
    }

    /// The last handle is gone.
    pub(crate) fn orphan(&self) {
        // Relaxed, and where it is read: who drops the last handle looks at all books behind this, and so takes
        // their locks. Whoever lends it reads this with such a lock: behind that look, it finds this.
        self.is_orphan.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_orphan(&self) -> bool {
        self.is_orphan.load(Ordering::Relaxed)
    }
}

/// What one message refers to. Most refer to nothing, and nearly all others to one pin.
#[derive(Clone, Default)]
pub(crate) struct Pins {
    first: Option<Arc<PinBlock>>,
    more: Vec<Arc<PinBlock>>,
}

impl Pins {
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        if self.first.is_some() {
            *self = Pins::default();
        }
    }

    /// Notes a pin that is being archived.
    pub(crate) fn note(&mut self, pin: &Arc<PinBlock>) {
        let is_new = self.iter().all(|noted| !Arc::ptr_eq(noted, pin));
        if is_new {
            match &self.first {
                None => self.first = Some(pin.clone()),
                Some(_) => self.more.push(pin.clone()),
            }
        }
    }

    fn has_orphan(&self) -> bool {
        self.iter().any(|pin| pin.is_orphan())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<PinBlock>> {
        self.first.iter().chain(&self.more)
    }
}

/// The pins that records of one lane lend.
pub(crate) struct Book {
    /// The receiver looks at nothing any more: its link has ended on its side, too.
    is_free: Arc<AtomicBool>,
    entries: Mutex<Entries>,
}

struct Entries {
    /// Where records are handed back; looked at no more once the link has ended, and nothing more is sent.
    receiver: Option<Shared<ReceiverBlock>>,
    lent: Vec<Lent>,
    /// What was taken out last time, empty: so that no vector is made for it.
    spare: Vec<Lent>,
    /// With so many it is looked at which have come back.
    look_at: usize,
}

/// A record that was published.
struct Lent {
    cell: u16,
    /// How the bit of its cell stood.
    stood: bool,
    pins: Pins,
}

impl Book {
    /// A book of the lane whose records are handed back there, and whose receiver looks at nothing any more once
    /// that is set.
    pub(crate) fn new(receiver: Shared<ReceiverBlock>, is_free: Arc<AtomicBool>) -> Book {
        let entries = Entries {
            receiver: Some(receiver),
            lent: Vec::new(),
            spare: Vec::new(),
            look_at: 0,
        };
        Book {
            is_free,
            entries: Mutex::new(entries),
        }
    }

    /// Looks at nothing of the receiver's any more. What was not handed back yet comes back with all else.
    pub(crate) fn look_away(&self) {
        let receiver = self.entries().receiver.take();
        // Without the lock: it may be the last that is mapped of the peer's.
        drop(receiver);
    }

    /// Notes what a record lends that was just published. True where no handle of it is left.
    pub(crate) fn lend(&self, cell: u16, stood: bool, pins: Pins) -> bool {
        let mut entries = self.entries();
        let is_orphan = pins.has_orphan();
        entries.lent.push(Lent { cell, stood, pins });
        let is_many = entries.lent.len() > entries.look_at;
        drop(entries);
        if is_many {
            self.sweep();
        }
        is_orphan
    }

    /// Gives up what was handed back. True where something is left of which there is no handle.
    pub(crate) fn sweep(&self) -> bool {
        /// As few are looked at in no time.
        const FEW: usize = 8;
        let mut entries = self.entries();
        let mut gone = std::mem::take(&mut entries.spare);
        let mut at = 0;
        while let Some(lent) = entries.lent.get(at) {
            if self.is_back(lent, entries.receiver.as_deref()) {
                gone.push(entries.lent.swap_remove(at));
            } else {
                at += 1;
            }
        }
        entries.look_at = (2 * entries.lent.len()).max(FEW);
        let is_left = entries.lent.iter().any(|lent| lent.pins.has_orphan());
        drop(entries);
        // Without the lock: this gives memory back, and may tell peers so.
        if !gone.is_empty() {
            gone.clear();
            self.entries().spare = gone;
        }
        is_left
    }

    fn is_back(&self, lent: &Lent, receiver: Option<&ReceiverBlock>) -> bool {
        // SYNC(free): Acquire; pairs with Release in `Lanes::free`.
        if self.is_free.load(Ordering::Acquire) {
            return true;
        }
        let Some(receiver) = receiver else {
            return false;
        };
        let (word, bit) = (usize::from(lent.cell / 64), lent.cell % 64);
        // SYNC(hand-back): Acquire; pairs with the Release in `HandBack::flip`.
        let bits = load_acquire(&receiver.handed_back[word]);
        (bits >> bit & 1 == 1) != lent.stood
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Nothing in here panics half-way through a change.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
