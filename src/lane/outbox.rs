//! The sending end of a lane.
//!
//! Unsafe code is needed to archive into shared memory.
#![allow(unsafe_code)]

mod room;

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Instant;

use bytemuck::{Pod, bytes_of};

use super::stage::{Stage, encode_at, write_behind_header};
use super::{Bulk, MOST_INLINE};
use crate::error::{MemoryError, SendError};
use crate::link::node::Node;
use crate::link::{DoorBit, LaneId, Line, Link};
use crate::memory::arena::Block;
use crate::memory::layout::{
    CELL, Cell, Kind, MOST_CELLS, ReceiverBlock, SegmentRef, SenderBlock, cells_for,
};
use crate::memory::loan::{BEFORE, loan_len};
use crate::memory::ring::{NoRoom, Producer, Space};
use crate::memory::shared::Shared;
use crate::message::{EncodeError, Loans, ShmMessage, SlotWriter, Wanted, encode, layout_of};
use crate::sys::fork::Origin;
use crate::wait::attend::Rung;
use crate::wait::{Ringer, Sleeper, Wait};

const REFERENCE: usize = size_of::<SegmentRef>();

/// What an outbox is made of.
pub(crate) struct OutboxParts {
    pub(crate) node: Arc<Node>,
    pub(crate) link: Arc<Link>,
    pub(crate) line: Arc<Line>,
    pub(crate) id: LaneId,
    pub(crate) block: Shared<SenderBlock>,
    pub(crate) cells: Shared<[Cell]>,
    pub(crate) receiver: Shared<ReceiverBlock>,
    pub(crate) ringer: Ringer,
    pub(crate) door: Option<DoorBit>,
    pub(crate) sleeper: Arc<Sleeper>,
    /// Whether a full ring can only mean that views are held, so that it should grow.
    pub(crate) grows_when_full: bool,
}

/// See the module.
pub(crate) struct Outbox {
    parts: OutboxParts,
    ring: ManuallyDrop<Producer>,
    origin: Origin,
    asymmetric: bool,
    rung: Rung,
    /// Segments of ours that the peer has, as far as this lane knows.
    known: Vec<u64>,
    /// Whether a segment was announced that the peer's socket has not taken yet.
    is_stuck: bool,
    /// Whether the last message went through the slab: then the next one likely does.
    was_large: bool,
    /// Whether the last message was archived around a loan: then the next one likely holds one, too.
    was_around: bool,
    /// How many cells the last message took. Where it was more than one, the next is not worth
    /// staging, and likely needs as many.
    last: usize,
    most: usize,
    /// How many bytes of the slab this lane may have out at once.
    budget: usize,
    /// Where a message starts behind its record: behind the header, on its own alignment.
    start: usize,
}

/// Why a message was not sent at once.
enum Stop {
    /// Room was made: try again at once.
    Again,
    /// Room will come when the receiver hands back.
    Wait,
    Never(SendError),
}

impl From<NoRoom> for Stop {
    fn from(_: NoRoom) -> Stop {
        Stop::Wait
    }
}

impl From<EncodeError> for Stop {
    #[cold]
    fn from(error: EncodeError) -> Stop {
        let what = error.to_string();
        Stop::Never(SendError::Encode { what })
    }
}

impl From<SendError> for Stop {
    fn from(error: SendError) -> Stop {
        Stop::Never(error)
    }
}

impl Outbox {
    /// An outbox for messages of type `S`.
    pub(crate) fn new<S: ShmMessage>(parts: OutboxParts) -> Outbox {
        Outbox {
            ring: ManuallyDrop::new(Producer::new(parts.cells.clone(), parts.receiver.clone())),
            origin: parts.node.origin(),
            asymmetric: parts.link.is_asymmetric(),
            rung: Rung::default(),
            known: Vec::new(),
            is_stuck: false,
            was_large: false,
            was_around: false,
            last: 1,
            most: parts.node.config().max_message,
            budget: parts.node.config().memory_limit / 8,
            start: layout_of::<S>().align,
            parts,
        }
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.parts.link
    }

    pub(crate) fn line(&self) -> &Line {
        &self.parts.line
    }

    /// Archives a value where the receiver will borrow it, and publishes it.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] where room will come when the receiver hands back; the others for good.
    #[inline(always)]
    pub(crate) fn try_send<T: ShmMessage>(&mut self, value: &T, tag: u16) -> Result<(), SendError> {
        loop {
            match self.send_now(value, tag) {
                Ok(()) => return Ok(()),
                Err(Stop::Again) => {}
                Err(Stop::Wait) => return Err(SendError::Full),
                Err(Stop::Never(error)) => return Err(error),
            }
        }
    }

    /// As [`try_send`](Self::try_send), waiting for room until the deadline, or for ever.
    #[inline(always)]
    pub(crate) fn send<T: ShmMessage>(
        &mut self,
        value: &T,
        tag: u16,
        wait: Wait,
        deadline: Option<Instant>,
    ) -> Result<(), SendError> {
        loop {
            match self.send_now(value, tag) {
                Ok(()) => return Ok(()),
                Err(Stop::Again) => {}
                Err(Stop::Wait) => self.wait_for_room(wait, deadline)?,
                Err(Stop::Never(error)) => return Err(error),
            }
        }
    }

    #[inline(always)]
    fn send_now<T: ShmMessage>(&mut self, value: &T, tag: u16) -> Result<(), Stop> {
        if self.origin.is_forked() {
            return Err(Stop::Never(SendError::Forked));
        }
        if self.parts.line.is_closed() {
            return Err(Stop::Never(self.closed()));
        }
        let start = self.start;
        if self.was_large && self.send_large_again(value, tag)?.is_some() {
            return Ok(());
        }
        if self.was_around && self.send_around_again(value, tag)?.is_some() {
            return Ok(());
        }
        if self.last == 1 {
            let mut stage = Stage::default();
            let len = stage.encode(value, start)?;
            if start + len <= CELL {
                if let Some(space) = self.ring.one() {
                    stage.copy_to(&space);
                    self.ring.publish_one(&space, (len as u16, tag));
                    self.signal();
                    return Ok(());
                }
                return self.publish_staged(&stage, start, len, tag);
            }
        }
        let mut space = self.ring.here(MOST_INLINE / CELL);
        if space.bytes() < self.last * CELL {
            space = self.space_for_another()?;
        }
        let capacity = space.bytes().saturating_sub(start);
        let mut loans = Loans::None;
        let needed = encode_at(value, &space, start, &mut loans)?;
        if needed <= capacity && start <= space.bytes() {
            return self.publish_inline(&space, start, needed, tag);
        }
        self.send_elsewhere(value, start, needed, loans.into_wanted(), tag)
    }

    /// Cells for a message as long as the last one, where the row from the reserved cell on is too
    /// short: found before it is archived in vain.
    #[cold]
    fn space_for_another(&mut self) -> Result<Space, Stop> {
        self.collect()?;
        let here = self.ring.here(MOST_INLINE / CELL);
        if here.bytes() >= self.last * CELL {
            return Ok(here);
        }
        Ok(self.ring.elsewhere(self.last).unwrap_or(here))
    }

    /// Publishes a message of one cell, in the less common case.
    #[inline(never)]
    fn publish_staged(
        &mut self,
        stage: &Stage,
        start: usize,
        len: usize,
        tag: u16,
    ) -> Result<(), Stop> {
        let space = self.ring.here(1);
        stage.copy_to(&space);
        self.publish_inline(&space, start, len, tag)
    }

    #[inline(always)]
    fn publish_inline(
        &mut self,
        space: &Space,
        start: usize,
        len: usize,
        tag: u16,
    ) -> Result<(), Stop> {
        let record = (Kind::Inline, len as u16, tag);
        let cells = cells_for(start, len);
        self.last = cells;
        match self.ring.publish(space, record, cells, None) {
            Ok(()) => self.signal(),
            Err(NoRoom) => self.publish_late(space, record, cells)?,
        }
        Ok(())
    }

    /// As far as was known, no cell was free behind the record.
    #[cold]
    fn publish_late(
        &mut self,
        space: &Space,
        record: (Kind, u16, u16),
        cells: usize,
    ) -> Result<(), Stop> {
        self.collect()?;
        // The cells that were written are still free, and what was written still stands.
        if self.ring.publish(space, record, cells, None).is_err() {
            return self.full();
        }
        self.signal();
        Ok(())
    }

    /// The ring has not a single free cell.
    #[cold]
    fn full(&mut self) -> Result<(), Stop> {
        // The reserved cell is the last one: it can say where more cells are.
        if self.parts.grows_when_full && self.grow(self.ring.cells())? {
            return Err(Stop::Again);
        }
        Err(Stop::Wait)
    }

    /// The message did not fit behind the reserved cell.
    #[cold]
    fn send_elsewhere<T: ShmMessage>(
        &mut self,
        value: &T,
        start: usize,
        needed: usize,
        wanted: Option<Wanted>,
        tag: u16,
    ) -> Result<(), Stop> {
        self.check_size(needed)?;
        self.collect()?;
        if needed > MOST_INLINE || wanted.is_some() {
            return self.send_large(value, needed, wanted, tag);
        }
        let cells = cells_for(start, needed);
        if cells * 4 > self.ring.longest_row() {
            self.grow((cells * 4).next_multiple_of(64))?;
        }
        // Behind the reserved cell there may be room now: a jump is only needed where not.
        let here = self.ring.here(cells);
        let space = if here.bytes() >= cells * CELL {
            Ok(here)
        } else {
            self.ring.elsewhere(cells)
        };
        let Ok(space) = space else {
            return self.send_large(value, needed, None, tag);
        };
        let written = encode_at(value, &space, start, &mut Loans::None)?;
        debug_assert_eq!(written, needed);
        self.ring
            .publish(&space, (Kind::Inline, needed as u16, tag), cells, None)?;
        self.was_large = false;
        self.signal();
        Ok(())
    }

    /// Archives into a block of the slab: `needed` bytes, or around the elements of a loan.
    #[cold]
    fn send_large<T: ShmMessage>(
        &mut self,
        value: &T,
        needed: usize,
        wanted: Option<Wanted>,
        tag: u16,
    ) -> Result<(), Stop> {
        let out = wanted.as_ref().map_or(needed, |w| w.loan.block().len());
        if self.is_over_budget(out) {
            return Err(Stop::Wait);
        }
        if let Some(wanted) = wanted.filter(|w| w.loan.claim()) {
            let sent = self.send_around(value, &wanted, tag);
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
                Err(MemoryError::Limit { .. })
                    if self.ring.has_lent() && !self.parts.grows_when_full =>
                {
                    self.ring.drop_returned();
                    return Err(Stop::Wait);
                }
                Err(error) => return Err(Stop::Never(error.into())),
            },
        };
        // SAFETY: 1. the block is ours alone: it was just cut, or came back from its last receiver.
        let writer = unsafe { SlotWriter::new(block.start().as_ptr(), block.len()) };
        let written = encode(value, writer)?;
        debug_assert_eq!(written, needed);
        let reference = block.reference(0, needed);
        self.publish_block(block, reference, tag)?;
        self.was_large = true;
        Ok(())
    }

    /// Whether so many bytes more would be more than one lane may have out, so that it cannot use
    /// up the arena for all others. A lane of replies is bounded by what its client may hold.
    fn is_over_budget(&self, bytes: usize) -> bool {
        let lent = self.ring.lent_bytes();
        !self.parts.grows_when_full && lent > bytes.saturating_mul(3) && lent + bytes > self.budget
    }

    /// Archives a message around the elements of a loan; false where it needs more room.
    fn send_around<T: ShmMessage>(
        &mut self,
        value: &T,
        wanted: &Wanted,
        tag: u16,
    ) -> Result<bool, Stop> {
        // What comes before the elements is archived right before them, on a cache line.
        let before = wanted.before.next_multiple_of(CELL);
        if before > BEFORE {
            return Ok(false);
        }
        let block = wanted.loan.block();
        let offset = BEFORE - before;
        // SAFETY: the offset lies in the block, which is larger than the room before its elements.
        let base = unsafe { block.start().add(offset) };
        // SAFETY: 1. the block is ours: it was cut for this loan, which this message has claimed.
        let writer = unsafe { SlotWriter::new(base.as_ptr(), block.len() - offset) };
        let mut loans = Loans::Around(wanted.loan.clone(), before);
        // SAFETY: 1. `loans` is a local that nobody else uses.
        let writer = unsafe { writer.with_loans(&mut loans) };
        let len = encode(value, writer)?;
        if len > block.len() - offset {
            return Ok(false);
        }
        self.check_size(len)?;
        let reference = block.reference(offset, len);
        self.publish_block(block.clone(), reference, tag)?;
        Ok(true)
    }

    /// A message that follows one with a loan: if it has one, nothing else is tried before.
    #[cold]
    fn send_around_again<T: ShmMessage>(
        &mut self,
        value: &T,
        tag: u16,
    ) -> Result<Option<()>, Stop> {
        self.was_around = false;
        let mut loans = Loans::None;
        // SAFETY: 1. `loans` is a local that nobody else uses.
        let writer = unsafe { SlotWriter::counting().with_loans(&mut loans) };
        let needed = encode(value, writer)?;
        let Some(wanted) = loans.into_wanted() else {
            return Ok(None);
        };
        self.was_around = true;
        self.check_size(needed)?;
        self.collect()?;
        self.send_large(value, needed, Some(wanted), tag).map(Some)
    }

    /// A message that follows a large one: likely a block that came back fits, and no size has to
    /// be known first.
    #[cold]
    fn send_large_again<T: ShmMessage>(&mut self, value: &T, tag: u16) -> Result<Option<()>, Stop> {
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
        let len = encode(value, writer)?;
        if len > block.len() || len <= MOST_INLINE || loans.into_wanted().is_some() {
            self.ring.keep_returned(block);
            return Ok(None);
        }
        self.check_size(len)?;
        let reference = block.reference(0, len);
        self.publish_block(block, reference, tag)?;
        self.was_large = true;
        Ok(Some(()))
    }

    fn publish_block(
        &mut self,
        block: Arc<Block>,
        reference: SegmentRef,
        tag: u16,
    ) -> Result<(), Stop> {
        if !self.announce(&block)? {
            return Err(Stop::Wait);
        }
        let space = self.ring.here(1);
        write_behind_header(&space, bytes_of(&reference));
        let record = (Kind::Block, REFERENCE as u16, tag);
        let mut sent = self.ring.publish(&space, record, 1, Some(block.clone()));
        if sent.is_err() && self.collect()? {
            sent = self.ring.publish(&space, record, 1, Some(block.clone()));
        }
        if sent.is_err() {
            self.ring.keep_returned(block);
            return self.full();
        }
        self.signal();
        Ok(())
    }

    /// Says that no message comes for this tag.
    pub(crate) fn fail(&mut self, tag: u16, why: u8) -> Result<(), SendError> {
        loop {
            self.collect()?;
            let space = self.ring.here(1);
            write_behind_header(&space, &[why]);
            if self
                .ring
                .publish(&space, (Kind::Failed, 1, tag), 1, None)
                .is_ok()
            {
                break;
            }
            if !self.grow(self.ring.cells())? {
                return Err(SendError::Full);
            }
        }
        self.signal();
        Ok(())
    }

    /// Adds cells to the lane; false where it has all that it may have, or cannot say so yet.
    fn grow(&mut self, cells: usize) -> Result<bool, SendError> {
        let cells = cells.min(MOST_CELLS - self.ring.cells());
        if cells == 0 {
            return Ok(false);
        }
        let bytes = cells * CELL;
        let block = Arc::new(self.parts.node.arena().allocate(bytes as u64)?);
        if !self.announce(&block)? {
            return Ok(false);
        }
        let space = self.ring.here(1);
        write_behind_header(&space, bytes_of(&block.reference(0, bytes)));
        self.ring
            .extend(Shared::own_slice(block, 0, cells), REFERENCE as u16);
        self.signal();
        Ok(true)
    }

    /// Has the peer learn of a block's segment before a record refers to it; false where it does
    /// not read its socket at the moment.
    fn announce(&mut self, block: &Block) -> Result<bool, SendError> {
        let segment = block.segment();
        if !self.known.contains(&segment.id()) {
            let link = &self.parts.link;
            link.announce(segment).map_err(|_| self.closed())?;
            self.is_stuck = !link.flush();
            if self.is_stuck {
                return Ok(false);
            }
            if self.known.len() == 16 {
                self.known.remove(0);
            }
            self.known.push(segment.id());
        }
        Ok(true)
    }

    fn check_size(&self, bytes: usize) -> Result<(), SendError> {
        if bytes > self.most {
            return Err(SendError::TooLarge {
                bytes,
                most: self.most,
            });
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<bool, SendError> {
        self.ring.collect().map_err(|fault| {
            self.parts.link.die(Some(fault));
            self.closed()
        })
    }

    #[cold]
    fn closed(&self) -> SendError {
        SendError::Closed {
            pid: self.parts.link.pid(),
            fault: self.parts.link.fault(),
        }
    }

    /// Rings the receiver, if it asked for that.
    #[inline(always)]
    fn signal(&mut self) {
        if Rung::is_asked(&self.parts.receiver, self.asymmetric) {
            self.ring();
        }
    }

    #[cold]
    fn ring(&mut self) {
        let parts = &self.parts;
        let door = parts.door.as_ref().map(|door| (&*door.bell, door.bit));
        self.rung.ring(&parts.receiver, door, &parts.ringer);
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
}

impl Drop for Outbox {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and `self` is used no more.
        let ring = unsafe { ManuallyDrop::take(&mut self.ring) };
        self.parts.link.bury(self.parts.id, Box::new(ring));
    }
}
