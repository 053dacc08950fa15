//! How calls of tasks supersede each other, whichever strand they were sent on.

use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::strand::Strand;
use crate::service::newest::{Newest, Ticket};
use crate::sys::fork::Origin;

/// What the handles of one client share.
pub(super) struct Claims<K> {
    newest: Mutex<Newest<K, (Arc<Strand>, Ticket)>>,
    origin: Origin,
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

    fn lock(&self) -> MutexGuard<'_, Newest<K, (Arc<Strand>, Ticket)>> {
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
        if let Some((strand, ticket)) = older {
            strand.supersede(ticket);
        }
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

    /// The call was sent there. Where a newer one was made meanwhile, it is cancelled.
    pub(super) fn sent(&self, strand: &Arc<Strand>, tag: u16) {
        let ticket = strand.ticket(tag);
        let place = (strand.clone(), ticket);
        let is_newest = self.claims.lock().sent(&self.key, self.number, place);
        if !is_newest {
            strand.supersede(ticket);
        }
    }
}

impl<K: Eq + Hash> Drop for Claim<K> {
    fn drop(&mut self) {
        if !self.claims.origin.is_forked() {
            self.claims.lock().release(&self.key, self.number);
        }
    }
}
