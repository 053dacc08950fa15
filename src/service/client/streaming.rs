//! How a client takes the messages of a stream.

use std::time::Instant;

use super::session::Session;
use super::{Error, give_back};
use crate::error::CallError;
use crate::lane::{Message, Role, View};
use crate::message::ShmRequest;
use crate::service::hub::STREAM;
use crate::wait::Patience;

/// How many pauses a client looks away from a stream that it caught up with: as long as some items take,
/// so that it then finds more than one. Items take longer to send than messages of a one-way lane.
const AWAY: usize = 40;

impl<R: ShmRequest> Session<R> {
    /// The next item of a stream, if it is there, and lies in the cells as most do.
    #[inline(always)]
    pub(in crate::service) fn glance(
        &self,
        tag: u16,
    ) -> Option<Result<View<'_, R::Item>, Error<R>>> {
        if !self.calls.borrow().is_next(tag) {
            return None;
        }
        let message = self.inbox.borrow_mut().poll_item()?;
        if message.record.tag != tag {
            self.put_aside(&mut self.inbox.borrow_mut(), message);
            return None;
        }
        Some(self.view(message))
    }

    /// An item that nobody asked for, or why there is nothing.
    #[cold]
    pub(super) fn pass_over(
        &self,
        waited: Result<Message, Error<R>>,
        deadline: Option<Instant>,
    ) -> Result<(), Error<R>> {
        give_back(&mut self.inbox.borrow_mut(), &waited?);
        // A server that sends without end makes nobody wait for longer than was said.
        match deadline.is_some_and(|at| Instant::now() >= at) {
            true => Err(CallError::TimedOut),
            false => Ok(()),
        }
    }

    /// Waits for the next message of a stream, if none has come while another was waited for. Items
    /// `run` where one came right after the other.
    #[inline(always)]
    pub(in crate::service) fn next(
        &self,
        (tag, run): (u16, &mut u32),
        deadline: Option<Instant>,
    ) -> Result<Message, Error<R>> {
        let mut calls = self.calls.borrow_mut();
        if calls.is_superseded(tag) {
            return Err(CallError::Superseded);
        }
        let came = calls.take(tag);
        drop(calls);
        *run += 1;
        let came = came.or_else(|| {
            let mut inbox = self.inbox.borrow_mut();
            let found = inbox.poll()?;
            if found.record.tag == tag {
                return Some(found);
            }
            self.put_aside(&mut inbox, found);
            None
        });
        let next = came.map_or_else(|| self.wait_for_next(tag, run, deadline), Ok)?;
        if next.record.role != Role::Item {
            self.calls.borrow_mut().found(&next);
        }
        Ok(next)
    }

    /// The server of a stream was caught up with.
    #[inline(never)]
    fn wait_for_next(
        &self,
        tag: u16,
        run: &mut u32,
        deadline: Option<Instant>,
    ) -> Result<Message, Error<R>> {
        if *run >= STREAM {
            // It writes faster where nobody looks over its shoulder.
            for _ in 0..AWAY {
                std::hint::spin_loop();
            }
        }
        *run = 0;
        let mut patience = Patience::new(self.wait.get(), deadline);
        let mut inbox = self.inbox.borrow_mut();
        loop {
            match inbox.poll() {
                Some(message) if message.record.tag == tag => return Ok(message),
                Some(message) => self.put_aside(&mut inbox, message),
                None => std::hint::spin_loop(),
            }
            self.pause(&mut inbox, &mut patience)?;
        }
    }
}
