//! The items of a stream, as its client takes them.
//!
//! Unsafe code is needed to borrow items for as long as the client.
#![allow(unsafe_code)]

use std::iter::FusedIterator;
use std::time::Instant;

use super::client::{Claim, Error, Lease, Session};
use super::trace::Calling;
use crate::error::CallError;
use crate::lane::{Message, Role, View};
use crate::message::ShmRequest;

/// After so many items, the clock is looked at.
const TURN: u32 = 64;

/// What a call is answered with, item by item, and then in one reply.
///
/// An iterator over borrowed items: several may be held, in any order, and their memory goes back
/// to the server as they are dropped. A server whose items are not taken waits, once it has sent so
/// many as the lane has room for; none is ever lost. Dropped before its end, the call is cancelled.
pub struct Items<'a, R: ShmRequest> {
    lease: Lease<'a, R>,
    tag: u16,
    deadline: Option<Instant>,
    end: End,
    /// How many items came one right after the other.
    run: u32,
    taken: u32,
    /// Where the request says what it supersedes.
    claim: Option<Claim<R::Key>>,
    calling: Calling,
}

/// How far a stream has come.
enum End {
    /// More will come.
    Open,
    /// The last word was found, and not looked at yet.
    Found(Message),
    /// All was said.
    Over,
}

impl<'a, R: ShmRequest> Items<'a, R> {
    /// Sends a request whose answers are taken by this.
    pub(super) fn begin(
        lease: Lease<'a, R>,
        request: &R,
        deadline: Option<Instant>,
    ) -> Result<Self, Error<R>> {
        let claim = lease.claim(request);
        let calling = Calling::begin(R::SERVICE, || lease.pid());
        let begun = lease.begin(request, &mut None, (deadline, &calling));
        if let Err(error) = &begun {
            calling.failed(error);
        }
        match (&claim, &begun) {
            (Some(claim), Ok(tag)) => lease.claimed(claim, *tag),
            (Some(claim), Err(_)) => lease.release(claim),
            (None, _) => {}
        }
        Ok(Items {
            tag: begun?,
            lease,
            deadline,
            end: End::Open,
            run: 0,
            taken: 0,
            claim,
            calling,
        })
    }

    #[inline(always)]
    fn session(&self) -> &'a Session<R> {
        // SAFETY: 1. what is borrowed for longer than this, and so the lease, are views.
        unsafe { self.lease.session() }
    }

    /// Waits for the reply that ends the stream. Items that were not taken are dropped.
    ///
    /// # Errors
    ///
    /// As [`Client::call`](crate::Client::call); [`CallError::Unanswered`] where the iterator gave the error already.
    pub fn finish(mut self) -> Result<View<'a, R::Reply>, CallError<R::Error>> {
        for item in &mut self {
            item?;
        }
        match std::mem::replace(&mut self.end, End::Over) {
            End::Found(message) => self.session().end(self.tag, message),
            End::Open | End::Over => Err(CallError::Unanswered {
                pid: self.lease.pid(),
            }),
        }
    }

    /// Its time is up, or its server is gone, or broken.
    #[cold]
    fn give_up(&mut self) {
        self.end = End::Over;
        self.lease.abandon(self.tag);
    }

    #[inline(never)]
    fn take(&mut self) -> Result<Option<View<'a, R::Item>>, Error<R>> {
        let session = self.session();
        let message = session.next((self.tag, &mut self.run), self.deadline)?;
        match message.record.role {
            Role::Item => session.view(message).map(Some),
            Role::Message => {
                self.end = End::Found(message);
                Ok(None)
            }
            Role::Error | Role::Failed | Role::Call | Role::Missed => {
                self.end = End::Over;
                session.end(self.tag, message).map(|_| None)
            }
        }
    }
}

impl<'a, R: ShmRequest> Iterator for Items<'a, R> {
    type Item = Result<View<'a, R::Item>, CallError<R::Error>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if !matches!(self.end, End::Open) {
            return None;
        }
        self.taken = self.taken.wrapping_add(1);
        // Items may come without end, and be there whenever they are looked for.
        if self.taken % TURN == 0 && self.deadline.is_some_and(|at| Instant::now() >= at) {
            self.give_up();
            self.calling.failed::<R::Error>(&CallError::TimedOut);
            return Some(Err(CallError::TimedOut));
        }
        if let Some(item) = self.session().glance(self.tag) {
            self.run += 1;
            if item.is_err() {
                self.give_up();
            }
            return Some(item);
        }
        let taken = self.take();
        if let Err(error) = &taken {
            self.calling.failed(error);
            if matches!(self.end, End::Open) {
                self.give_up();
            }
        }
        taken.transpose()
    }
}

impl<R: ShmRequest> FusedIterator for Items<'_, R> {}

impl<R: ShmRequest> Drop for Items<'_, R> {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.end, End::Over) {
            End::Open => self.lease.abandon(self.tag),
            // A reply that nobody wants goes back like one that was looked at.
            End::Found(message) => drop(self.lease.end(self.tag, message)),
            End::Over => {}
        }
        if let Some(claim) = &self.claim {
            self.lease.release(claim);
        }
    }
}
