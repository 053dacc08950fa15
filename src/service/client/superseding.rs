//! How a request has older ones of its key cancelled.

use super::session::Session;
use crate::message::ShmRequest;
use crate::service::newest::Ticket;

/// A stream of a key: which is the newest for as long as this is not released.
pub(in crate::service) struct Claim<K> {
    key: K,
    number: u64,
}

impl<R: ShmRequest> Session<R> {
    /// Cancels the older stream of a request's key. For a request that is answered before the next one
    /// can be made.
    #[inline(always)]
    pub(super) fn supersede(&self, request: &R) {
        if let Some(key) = request.supersedes() {
            let older = self.newest.borrow_mut().pass(key);
            if let Some(ticket) = older {
                self.cancel_older(ticket);
            }
        }
    }

    /// As [`supersede`](Self::supersede), and has a newer request supersede this one.
    pub(in crate::service) fn claim(&self, request: &R) -> Option<Claim<R::Key>> {
        let key = request.supersedes()?.clone();
        let (number, older) = self.newest.borrow_mut().claim(key.clone());
        if let Some(ticket) = older {
            self.cancel_older(ticket);
        }
        Some(Claim { key, number })
    }

    /// The stream of a claim has begun.
    pub(in crate::service) fn claimed(&self, claim: &Claim<R::Key>, tag: u16) {
        let ticket = self.calls.borrow().ticket(tag);
        let Claim { key, number } = claim;
        // One thread makes its calls one after the other: this is still the newest.
        let _ = self.newest.borrow_mut().put(key, *number, ticket);
    }

    pub(in crate::service) fn release(&self, claim: &Claim<R::Key>) {
        self.newest.borrow_mut().release(&claim.key, claim.number);
    }

    #[cold]
    fn cancel_older(&self, ticket: Ticket) {
        let superseded = self.calls.borrow_mut().supersede(ticket);
        if let Some((came, ended)) = superseded {
            self.cancel(ticket.tag, &came, ended);
        }
    }
}
