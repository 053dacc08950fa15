//! Messages that go through the slab.
//!
//! Unsafe code is needed to archive into shared memory.
#![allow(unsafe_code)]

use std::sync::Arc;

use bytemuck::bytes_of;

use super::{MOST_INLINE, Outbox, REFERENCE, Stop, To};
use crate::error::{MemoryError, SendError};
use crate::lane::Parcel;
use crate::lane::stage::write_behind_header;
use crate::memory::arena::Block;
use crate::memory::layout::{CELL, Envelope, Kind, SegmentRef, TIME};
use crate::memory::loan::BEFORE;
use crate::memory::pins::Pins;
use crate::message::{EncodeError, Loans, ShmMessage, SlotWriter, Wanted, encode};
use crate::sys::clock;

impl Outbox {
    /// Archives into a block of the slab: `needed` bytes, or around the elements of a loan.
    #[cold]
    pub(super) fn send_large<T: ShmMessage>(
        &mut self,
        value: &T,
        needed: usize,
        wanted: Option<Wanted>,
        to: To,
    ) -> Result<(), Stop> {
        let out = wanted.as_ref().map_or(needed, |w| w.loan.block().len());
        let waits = !self.parts.grows_when_full || to.kind == Kind::Item;
        if waits && self.is_over_budget(out) {
            return Err(Stop::Wait);
        }
        // A loan of another bus is copied like any other elements: its memory is no peer's of ours.
        let arena = self.parts.node.arena();
        let ours = wanted.filter(|w| w.loan.block().is_of(arena) && w.loan.claim());
        if let Some(wanted) = ours {
            let sent = self.send_around(value, &wanted, to);
            if !matches!(sent, Ok(true)) {
                wanted.loan.unclaim();
            }
            if sent? {
                self.was_around = true;
                return Ok(());
            }
            // No room around the loan: then its elements are copied like any others.
        }
        let block = match self.ring.take_returned(needed) {
            Some(block) => block,
            None => match self.parts.node.arena().allocate(needed as u64) {
                Ok(block) => Arc::new(block),
                Err(MemoryError::Limit { .. }) if self.ring.has_lent() && waits => {
                    self.ring.drop_returned();
                    return Err(Stop::Wait);
                }
                Err(error) => return Err(Stop::Never(error.into())),
            },
        };
        // SAFETY: 1. the block is ours alone: it was just cut, or came back from its last receiver.
        let writer = unsafe { SlotWriter::new(block.start().as_ptr(), block.len()) };
        // SAFETY: 1. nobody else uses them meanwhile.
        let writer = unsafe { writer.with_pins::<T>(&mut self.pins) };
        let written = encode(value, writer)?;
        unchanged(written, needed)?;
        let reference = block.reference(0, needed);
        self.publish_own(block, reference, to)?;
        self.was_large = true;
        Ok(())
    }

    /// Whether so many bytes more would be more than one lane may have out, so that it cannot use
    /// up the arena for all others. What replies take is bounded by what their client may hold.
    fn is_over_budget(&self, bytes: usize) -> bool {
        let lent = self.ring.lent_bytes();
        lent > bytes.saturating_mul(3) && lent + bytes > self.budget
    }

    /// Archives a message around the elements of a loan; false where it needs more room.
    fn send_around<T: ShmMessage>(
        &mut self,
        value: &T,
        wanted: &Wanted,
        to: To,
    ) -> Result<bool, Stop> {
        let Some(reference) = archive_around(value, wanted, &mut self.pins)? else {
            return Ok(false);
        };
        self.check_size(reference.len as usize)?;
        self.publish_block(wanted.loan.block(), reference, to)?;
        Ok(true)
    }

    /// A message that follows one with a loan: if it has one, nothing else is tried before.
    #[cold]
    pub(super) fn send_around_again<T: ShmMessage>(
        &mut self,
        value: &T,
        to: To,
    ) -> Result<Option<()>, Stop> {
        self.was_around = false;
        let mut loans = Loans::None;
        // SAFETY: 1. `loans` is a local that nobody else uses.
        let writer = unsafe { SlotWriter::counting().with_loans(&mut loans) };
        // SAFETY: 1. nobody else uses them meanwhile.
        let writer = unsafe { writer.with_pins::<T>(&mut self.pins) };
        let needed = encode(value, writer)?;
        let Some(wanted) = loans.into_wanted() else {
            return Ok(None);
        };
        self.was_around = true;
        self.check_size(needed)?;
        self.collect()?;
        self.send_large(value, needed, Some(wanted), to).map(Some)
    }

    /// A message that follows a large one: likely a block that came back fits, and no size has to
    /// be known first.
    #[cold]
    pub(super) fn send_large_again<T: ShmMessage>(
        &mut self,
        value: &T,
        to: To,
    ) -> Result<Option<()>, Stop> {
        self.was_large = false;
        self.collect()?;
        let Some(block) = self.ring.take_returned(MOST_INLINE) else {
            return Ok(None);
        };
        let mut loans = Loans::None;
        // SAFETY: 1. the block is ours alone: nobody else holds it, and no record refers to it.
        let writer = unsafe { SlotWriter::new(block.start().as_ptr(), block.len()) };
        // SAFETY: 1. `loans` is a local that nobody else uses.
        let writer = unsafe { writer.with_loans(&mut loans) };
        // SAFETY: 1. nobody else uses them meanwhile.
        let writer = unsafe { writer.with_pins::<T>(&mut self.pins) };
        let len = encode(value, writer)?;
        if len > block.len() || len <= MOST_INLINE || loans.into_wanted().is_some() {
            self.ring.keep_returned(block);
            return Ok(None);
        }
        self.check_size(len)?;
        let reference = block.reference(0, len);
        self.publish_own(block, reference, to)?;
        self.was_large = true;
        Ok(Some(()))
    }

    /// Publishes what was archived in a block that nobody else holds, which is kept for the next message where
    /// that fails.
    fn publish_own(
        &mut self,
        block: Arc<Block>,
        reference: SegmentRef,
        to: To,
    ) -> Result<(), Stop> {
        let sent = self.publish_block(&block, reference, to);
        if sent.is_err() {
            self.ring.keep_returned(block);
        }
        sent
    }

    pub(super) fn publish_block(
        &mut self,
        block: &Arc<Block>,
        reference: SegmentRef,
        to: To,
    ) -> Result<(), Stop> {
        if !self.announce(block)? {
            return Err(Stop::Wait);
        }
        self.announce_pins()?;
        let space = self.ring.here(1);
        let kind = to.kind.in_block();
        let mut said = [0; REFERENCE + size_of::<Envelope>()];
        let (at, more) = said.split_at_mut(REFERENCE);
        at.copy_from_slice(bytes_of(&reference));
        if to.kind == Kind::Call {
            more.copy_from_slice(bytes_of(&to.envelope));
        } else if self.starts.is_timed() {
            more[..TIME].copy_from_slice(bytes_of(&clock::now()));
        }
        let len = kind.block_len(self.starts);
        write_behind_header(&space, &said[..len]);
        let record = (kind, len as u16, to.tag);
        let pins = match self.is_keeping {
            true => self.pins.clone(),
            false => Pins::default(),
        };
        let mut sent = self.publish(&space, record, 1, Some(block.clone()));
        if sent.is_err() && self.collect()? {
            sent = self.publish(&space, record, 1, Some(block.clone()));
        }
        if sent.is_err() {
            return self.full();
        }
        if self.is_keeping {
            self.kept = Some(Parcel::in_block(block, reference, pins));
        }
        self.signal();
        Ok(())
    }
}

/// Archives a value around the elements of a loan that it has claimed; `None` where that needs more room.
pub(in crate::lane) fn archive_around<T: ShmMessage>(
    value: &T,
    wanted: &Wanted,
    pins: &mut Pins,
) -> Result<Option<SegmentRef>, EncodeError> {
    // What comes before the elements is archived right before them, on a cache line.
    let before = wanted.before.next_multiple_of(CELL);
    if before > BEFORE {
        return Ok(None);
    }
    let block = wanted.loan.block();
    let offset = BEFORE - before;
    // SAFETY: the offset lies in the block, which is larger than the room before its elements.
    let base = unsafe { block.start().add(offset) };
    // Only the room before the elements at first: the user may be reading them.
    // SAFETY: 1. and 2. the block is ours: it was cut for this loan, which this message has
    // claimed; nobody has a reference to what lies around the elements.
    let writer = unsafe { SlotWriter::new(base.as_ptr(), before) };
    let room = block.len() - offset;
    let mut loans = Loans::Around(wanted.loan.clone(), before, room);
    // SAFETY: 1. `loans` is a local that nobody else uses.
    let writer = unsafe { writer.with_loans(&mut loans) };
    // SAFETY: 1. they are borrowed for longer than the writer lives.
    let writer = unsafe { writer.with_pins::<T>(pins) };
    let len = encode(value, writer)?;
    let capacity = if matches!(loans, Loans::Passed) {
        room
    } else {
        before
    };
    Ok((len <= capacity).then(|| block.reference(offset, len)))
}

/// Refuses a value whose archive has another size each time: it was changed meanwhile.
pub(in crate::lane) fn unchanged(written: usize, needed: usize) -> Result<(), SendError> {
    if written == needed {
        return Ok(());
    }
    Err(SendError::Encode {
        what: format!("it had {needed} bytes and then {written}: was it changed meanwhile?"),
    })
}
