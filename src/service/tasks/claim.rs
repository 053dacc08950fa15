//! How calls of tasks supersede each other, whichever strand they were sent on.

use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::OfBus;
use super::strand::Strand;
use crate::service::newest::{Newest, Ticket};
use crate::sys::fork::Origin;
use crate::wait::tasks::wake;

/// What the handles of one client share.
pub(super) struct Claims<K> {
    newest: Mutex<Newest<K, At>>,
    origin: Origin,
}

/// Where a call is, to be told that a newer one was made.
enum At {
    /// It waits for room.
    Waits(Waker),
    Sent(OfBus<Strand>, Ticket),
}

impl At {
    fn supersede(self) {
        match self {
            At::Waits(waker) => wake([waker]),
            At::Sent(strand, ticket) => strand.supersede(ticket),
        }
    }
}

/// A call of a key, which is released when this is dropped.
pub(super) struct Claim<K: Eq + Hash> {
    claims: Arc<Claims<K>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash> Claims<K> {
    pub(super) fn new(origin: Origin) -> Arc<Self> {
        Arc::new(Claims {
            newest: Mutex::default(),
            origin,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Newest<K, At>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call of this key the newest, and cancels the one before. None in a forked child, where
    /// the lock may be held for ever, and nothing is sent anyhow.
    pub(super) fn claim(self: &Arc<Self>, key: K) -> Option<Claim<K>>
    where
        K: Clone,
    {
        if self.origin.is_forked() {
            return None;
        }
        let (number, older) = self.lock().claim(key.clone());
        // Without the lock: whoever waits there is woken.
        older.into_iter().for_each(At::supersede);
        let claims = self.clone();
        Some(Claim {
            claims,
            key,
            number,
        })
    }
}

// Nothing in it is ever pinned.
impl<K: Eq + Hash> Unpin for Claim<K> {}

impl<K: Eq + Hash> Claim<K> {
    pub(super) fn is_newest(&self) -> bool {
        self.claims.lock().is_newest(&self.key, self.number)
    }

    /// The call waits for room, with this waker.
    pub(super) fn waits(&self, waker: &Waker) {
        let at = At::Waits(waker.clone());
        let before = self.claims.lock().put(&self.key, self.number, at);
        // Without the lock: it may be all that is left of a task.
        drop(before);
    }

    /// The call was sent there. Where a newer one was made meanwhile, it is cancelled.
    pub(super) fn sent(&self, strand: &OfBus<Strand>, tag: u16) {
        let ticket = strand.ticket(tag);
        let at = At::Sent(strand.clone(), ticket);
        let before = self.claims.lock().put(&self.key, self.number, at);
        if let Err(at) = before {
            at.supersede();
        }
    }
}

impl<K: Eq + Hash> Drop for Claim<K> {
    fn drop(&mut self) {
        if !self.claims.origin.is_forked() {
            let at = self.claims.lock().release(&self.key, self.number);
            drop(at);
        }
    }
}
