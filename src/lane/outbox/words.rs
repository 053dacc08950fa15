//! What a sender says beside its messages: that none comes; and the memory that it
//! lends to its user.

use std::sync::Arc;

use bytemuck::Pod;

use super::Outbox;
use crate::error::SendError;
use crate::lane::Bulk;
use crate::lane::stage::write_behind_header;
use crate::memory::layout::{CELL, HEADER, Kind, MOST_REASON, SenderBlock, cells_for};
use crate::memory::loan::loan_len;
use crate::memory::ring::Behind;
use crate::memory::shared::Shared;

impl Outbox {
    /// Says that no message comes for this tag, why, and in words.
    pub(crate) fn fail(&mut self, tag: u16, why: u8, text: &str) -> Result<(), SendError> {
        let mut said = [0; MOST_REASON];
        let len = 1 + cut(text, MOST_REASON - 1);
        said[0] = why;
        said[1..len].copy_from_slice(&text.as_bytes()[..len - 1]);
        let cells = cells_for(HEADER, len);
        loop {
            self.collect()?;
            // Without room for the words, the reason alone.
            let space = self.ring.here(cells.min(self.ring.most_of_reply(false)));
            let len = if space.bytes() < cells * CELL { 1 } else { len };
            write_behind_header(&space, &said[..len]);
            let record = (Kind::Failed, len as u16, tag);
            let cells = cells_for(HEADER, len);
            if self.ring.publish(&space, record, cells, None).is_ok() {
                break;
            }
            if !self.grow(self.ring.cells())? {
                return Err(SendError::Full);
            }
        }
        self.signal();
        Ok(())
    }

    /// Memory of our own to fill in place, with room for its message around it.
    pub(crate) fn loan<T: Pod>(&mut self, len: usize) -> Result<Bulk<T>, SendError> {
        if self.origin.is_forked() {
            return Err(SendError::Forked);
        }
        let bytes = len.saturating_mul(size_of::<T>());
        self.check_size(bytes)?;
        self.collect()?;
        let room = loan_len(bytes);
        let block = match self.ring.take_returned(room) {
            Some(block) => block,
            None => Arc::new(self.parts.node.arena().allocate(room as u64)?),
        };
        Ok(Bulk::lend(block, len))
    }

    /// Asks to be rung when the receiver hands something back. The caller then tries once more.
    pub(crate) fn ask_for_room(&mut self) {
        self.parts.block.ask_for_room();
    }

    /// Puts off the rings for what is sent from now on, or not any longer.
    pub(crate) fn set_quiet(&mut self, is_quiet: bool) {
        self.is_quiet = is_quiet;
    }

    /// Whether the receiver asked for a ring that was put off.
    pub(crate) fn owes_ring(&self) -> bool {
        self.owes_ring
    }

    /// Gives the ring that was put off, if there is one.
    pub(crate) fn ring_owed(&mut self) {
        if self.owes_ring && !self.origin.is_forked() {
            self.ring();
        }
    }

    /// Where the caller of this lane cancels requests.
    pub(crate) fn requests(&self) -> Option<Shared<SenderBlock>> {
        self.parts.requests.clone()
    }

    /// Cancels the request that bears this tag.
    pub(crate) fn cancel(&mut self, tag: u16) {
        if self.origin.is_forked() {
            return;
        }
        self.parts.block.cancel(tag);
        // Whoever waits for a cancel looks when it is rung.
        self.signal();
    }

    /// Has the next request of this tag not be cancelled from the start.
    #[inline(always)]
    pub(crate) fn uncancel(&mut self, tag: u16) {
        if self.origin.is_forked() {
            return;
        }
        self.parts.block.uncancel(tag);
    }

    /// Whether the caller has cancelled the request with this tag.
    #[inline]
    pub(crate) fn is_cancelled(&self, tag: u16) -> bool {
        let requests = self.parts.requests.as_ref();
        requests.is_some_and(|requests| requests.is_cancelled(tag))
    }

    /// What of a stream the receiver has not handed back.
    pub(crate) fn behind(&mut self, tag: u16) -> Result<Behind, SendError> {
        self.collect()?;
        Ok(self.ring.streams().behind(tag))
    }

    /// Whether a stream has out all that it may, so that its next item has to wait.
    #[inline]
    pub(super) fn is_behind(&mut self, tag: u16) -> Result<bool, SendError> {
        if self.ring.streams().is_full(tag) {
            self.collect()?;
        }
        Ok(self.ring.streams().is_full(tag))
    }
}

/// How many bytes of a text there are up to the last whole character of the first `most`.
fn cut(text: &str, most: usize) -> usize {
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8());
    end.take_while(|end| *end <= most).last().unwrap_or(0)
}
