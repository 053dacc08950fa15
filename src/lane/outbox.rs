//! The sending end of a lane.
//!
//! Unsafe code is needed to archive into shared memory.
#![allow(unsafe_code)]

mod large;
mod pins;
mod room;
mod shared;
mod words;

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Instant;

use bytemuck::bytes_of;

pub(super) use large::{archive_around, unchanged};
use pins::Clearing;

use super::stage::{Stage, encode_at, write_behind_header};
use super::{MOST_INLINE, Parcel};
use crate::error::SendError;
use crate::link::node::Node;
use crate::link::{DoorBit, LaneId, Line, Link};
use crate::memory::arena::Block;
use crate::memory::layout::{
    CELL, Cell, Envelope, Kind, MOST_CELLS, ReceiverBlock, SegmentRef, SenderBlock, Starts,
    TopicBlock, cells_for,
};
use crate::memory::pins::Pins;
use crate::memory::ring::{NoRoom, Producer, Space};
use crate::memory::shared::Shared;
use crate::message::{EncodeError, Loans, ShmMessage, Wanted};
use crate::sys::clock;
use crate::sys::fork::Origin;
use crate::wait::attend::Rung;
use crate::wait::{Ringer, Sleeper, Wait};

const REFERENCE: usize = size_of::<SegmentRef>();

/// What a message is, and which call it belongs to.
#[derive(Clone, Copy)]
pub(crate) struct To {
    pub(crate) tag: u16,
    kind: Kind,
    envelope: Envelope,
}

impl To {
    /// A message of this tag, and no more to say.
    #[inline(always)]
    pub(crate) fn tag(tag: u16) -> To {
        To::kind(tag, Kind::Inline)
    }

    /// An item of a stream.
    pub(crate) fn stream(tag: u16) -> To {
        To::kind(tag, Kind::Item)
    }

    /// An error of the service's own type.
    pub(crate) fn error(tag: u16) -> To {
        To::kind(tag, Kind::Error)
    }

    /// A request that says more of itself.
    pub(crate) fn envelope(tag: u16, envelope: Envelope) -> To {
        To {
            envelope,
            ..To::kind(tag, Kind::Call)
        }
    }

    #[inline(always)]
    pub(crate) fn is_error(&self) -> bool {
        self.kind == Kind::Error
    }

    #[inline(always)]
    fn kind(tag: u16, kind: Kind) -> To {
        To {
            tag,
            kind,
            envelope: Envelope::default(),
        }
    }
}

/// What an outbox is made of.
pub(crate) struct OutboxParts {
    pub(crate) node: Arc<Node>,
    pub(crate) link: Arc<Link>,
    pub(crate) line: Arc<Line>,
    pub(crate) id: LaneId,
    pub(crate) block: Shared<SenderBlock>,
    /// On a lane of a topic.
    pub(crate) topic: Option<Shared<TopicBlock>>,
    pub(crate) cells: Shared<[Cell]>,
    pub(crate) receiver: Shared<ReceiverBlock>,
    pub(crate) ringer: Ringer,
    pub(crate) door: Option<DoorBit>,
    pub(crate) sleeper: Arc<Sleeper>,
    /// On a lane of replies: where its caller cancels requests.
    pub(crate) requests: Option<Shared<SenderBlock>>,
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
    /// Whether rings are put off, and whether one is owed since.
    is_quiet: bool,
    owes_ring: bool,
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
    /// Where its messages start in their records.
    starts: Starts,
    /// Whether the receiver may hold more messages than the ring has cells for, which then grows if it can.
    is_elastic: bool,
    /// What the message refers to that was just archived, and is about to be published.
    pins: Pins,
    /// Whether the last message that went through the slab is kept, and that message.
    is_keeping: bool,
    kept: Option<Parcel>,
}

/// Why a message was not sent at once.
enum Stop {
    /// Room was made: try again at once.
    Again,
    /// Room will come when the receiver hands back.
    Wait,
    Never(SendError),
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
    /// An outbox for messages of this alignment.
    pub(crate) fn new(parts: OutboxParts, align: usize) -> Outbox {
        Outbox {
            ring: ManuallyDrop::new(Producer::new(
                parts.cells.clone(),
                parts.receiver.clone(),
                // What several lanes share is kept by who shares it.
                parts.topic.is_none(),
            )),
            origin: parts.node.origin(),
            asymmetric: parts.link.is_asymmetric(),
            rung: Rung::default(),
            is_quiet: false,
            owes_ring: false,
            known: Vec::new(),
            is_stuck: false,
            was_large: false,
            was_around: false,
            last: 1,
            most: parts.node.config().max_message,
            budget: parts.node.config().memory_limit / 8,
            starts: Starts::new(align, parts.node.config().timestamps),
            is_elastic: false,
            pins: Pins::default(),
            is_keeping: false,
            kept: None,
            parts,
        }
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.parts.link
    }

    /// Where it says from now on how far it is; and where its messages start.
    #[cfg(feature = "json")]
    pub(super) fn mark(&mut self, mark: &Arc<crate::memory::ring::mark::Mark>) -> Starts {
        self.ring.set_mark(mark.clone());
        self.starts
    }

    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.parts.line
    }

    /// Archives a value where the receiver will borrow it, and publishes it.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] where room will come when the receiver hands back; the others for good.
    #[inline(always)]
    pub(crate) fn try_send<T: ShmMessage>(&mut self, value: &T, to: To) -> Result<(), SendError> {
        let clearing = Clearing::<T>::new(self);
        loop {
            match clearing.outbox.send_now(value, to) {
                Ok(()) => return clearing.into_sent(),
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
        to: To,
        wait: Wait,
        deadline: Option<Instant>,
    ) -> Result<(), SendError> {
        let clearing = Clearing::<T>::new(self);
        loop {
            match clearing.outbox.send_now(value, to) {
                Ok(()) => return clearing.into_sent(),
                Err(Stop::Again) => {}
                Err(Stop::Wait) => clearing.outbox.wait_for_room(to, wait, deadline)?,
                Err(Stop::Never(error)) => return Err(error),
            }
        }
    }

    #[inline(always)]
    fn send_now<T: ShmMessage>(&mut self, value: &T, to: To) -> Result<(), Stop> {
        if self.origin.is_forked() {
            return Err(Stop::Never(SendError::Forked));
        }
        if self.parts.line.is_closed() {
            return Err(Stop::Never(self.closed()));
        }
        let start = to.kind.start(self.starts);
        if to.kind == Kind::Item && self.is_behind(to.tag)? {
            return Err(Stop::Wait);
        }
        if self.was_large && self.send_large_again(value, to)?.is_some() {
            return Ok(());
        }
        if self.was_around && self.send_around_again(value, to)?.is_some() {
            return Ok(());
        }
        if self.last == 1 && to.kind != Kind::Call {
            let mut stage = Stage::default();
            let len = stage.encode(value, start, &mut self.pins)?;
            if start + len <= CELL {
                let is_plain = to.kind == Kind::Inline && self.refers_to_nothing::<T>();
                if let Some(space) = self.ring.one().filter(|_| is_plain) {
                    if self.starts.is_timed() {
                        stage.set_time(clock::now());
                    }
                    stage.copy_to(&space);
                    self.ring.publish_one(&space, (len as u16, to.tag));
                    self.signal();
                    return Ok(());
                }
                return self.publish_staged(&stage, start, len, to);
            }
        }
        let most = self.most_cells(to).min(MOST_INLINE / CELL);
        let mut space = self.ring.here(most);
        if space.bytes() < self.last * CELL && self.last <= most {
            space = self.space_for_another(most)?;
        }
        let capacity = space.bytes().saturating_sub(start);
        let mut loans = Loans::None;
        let needed = encode_at(value, &space, start, (&mut loans, &mut self.pins))?;
        if needed <= capacity && start <= space.bytes() {
            return self.publish_inline(&space, start, needed, to);
        }
        self.send_elsewhere(value, start, needed, loans.into_wanted(), to)
    }

    /// The most cells that a message may take: on a lane of replies fewer than elsewhere, so that none is left
    /// out.
    #[inline(always)]
    fn most_cells(&self, to: To) -> usize {
        // With a header, before a message as long as may be.
        const MOST: usize = MOST_INLINE / CELL + 1;
        // So that a subscriber may be some hundred messages behind, whatever their size.
        const MOST_OF_TOPIC: usize = 4;
        if self.parts.topic.is_some() {
            MOST_OF_TOPIC
        } else if self.parts.grows_when_full {
            self.ring.most_of_reply(to.kind == Kind::Item).min(MOST)
        } else {
            MOST
        }
    }

    /// Cells for a message as long as the last one, where the row from the reserved cell on is too
    /// short: found before it is archived in vain.
    #[cold]
    fn space_for_another(&mut self, most: usize) -> Result<Space, Stop> {
        self.collect()?;
        let here = self.ring.here(most);
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
        to: To,
    ) -> Result<(), Stop> {
        let space = self.ring.here(1);
        stage.copy_to(&space);
        self.publish_inline(&space, start, len, to)
    }

    #[inline(always)]
    fn publish_inline(
        &mut self,
        space: &Space,
        start: usize,
        len: usize,
        to: To,
    ) -> Result<(), Stop> {
        self.announce_pins()?;
        self.write_head(space, to);
        let record = (to.kind, len as u16, to.tag);
        let cells = cells_for(start, len);
        self.last = cells;
        match self.publish(space, record, cells, None) {
            Ok(()) => self.signal(),
            Err(NoRoom) => self.publish_late(space, record, cells)?,
        }
        Ok(())
    }

    /// Writes what stands between a header and its message, if anything.
    #[inline(always)]
    fn write_head(&self, space: &Space, to: To) {
        if to.kind == Kind::Call {
            write_behind_header(space, bytes_of(&to.envelope));
        } else if self.starts.is_timed() {
            write_behind_header(space, bytes_of(&clock::now()));
        }
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
        if self.publish(space, record, cells, None).is_err() {
            return self.full();
        }
        self.signal();
        Ok(())
    }

    /// The ring has not a single free cell.
    #[cold]
    fn full(&mut self) -> Result<(), Stop> {
        // The reserved cell is the last one: it can say where more cells are.
        let grown = match self.parts.grows_when_full || self.is_elastic {
            true => self.grow(self.ring.cells()),
            false => Ok(false),
        };
        match grown {
            Ok(true) => Err(Stop::Again),
            // Others may be handed back.
            Err(SendError::Memory(_)) if self.is_elastic => Err(Stop::Wait),
            Ok(false) => Err(Stop::Wait),
            Err(error) => Err(error.into()),
        }
    }

    /// The message did not fit behind the reserved cell.
    #[cold]
    fn send_elsewhere<T: ShmMessage>(
        &mut self,
        value: &T,
        start: usize,
        needed: usize,
        wanted: Option<Wanted>,
        to: To,
    ) -> Result<(), Stop> {
        self.check_size(needed)?;
        self.collect()?;
        if needed > MOST_INLINE || wanted.is_some() {
            return self.send_large(value, needed, wanted, to);
        }
        let cells = cells_for(start, needed);
        if cells > self.most_cells(to) {
            return self.send_large(value, needed, None, to);
        }
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
            return self.send_large(value, needed, None, to);
        };
        let written = encode_at(value, &space, start, (&mut Loans::None, &mut self.pins))?;
        unchanged(written, needed)?;
        self.announce_pins()?;
        self.write_head(&space, to);
        let record = (to.kind, needed as u16, to.tag);
        if self.publish(&space, record, cells, None).is_err() {
            // It would take the last free cells.
            return self.full();
        }
        self.was_large = false;
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
        let at = block.reference(0, bytes);
        write_behind_header(&space, bytes_of(&at));
        self.ring
            .extend(Shared::own_slice(block, 0, cells), REFERENCE as u16);
        #[cfg(feature = "json")]
        self.note_row(at);
        self.signal();
        Ok(true)
    }

    #[cfg(feature = "json")]
    fn note_row(&self, at: SegmentRef) {
        let OutboxParts { link, line, .. } = &self.parts;
        link.note_row(line, true, at);
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

    /// Whether a segment was announced that the peer's socket has not taken.
    pub(crate) fn is_stuck(&self) -> bool {
        self.is_stuck
    }

    /// Ends the link, for what is lacking here: the peer did nothing wrong.
    #[cold]
    pub(crate) fn give_up(&self, what: String) {
        let OutboxParts { node, link, .. } = &self.parts;
        node.report(link.pid(), what);
        link.die(None);
    }

    fn collect(&mut self) -> Result<bool, SendError> {
        self.ring.collect().map_err(|fault| {
            self.parts.link.die(Some(fault));
            self.closed()
        })
    }

    #[cold]
    pub(crate) fn closed(&self) -> SendError {
        SendError::Closed {
            pid: self.parts.link.pid(),
            fault: self.parts.link.fault(),
            ended: self.parts.link.ended_by_now(),
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
        self.owes_ring = self.is_quiet;
        if self.is_quiet {
            return;
        }
        let parts = &self.parts;
        let door = parts.door.as_ref().map(|door| (&*door.bell, door.bit));
        self.rung.ring(&parts.receiver, door, &parts.ringer);
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and `self` is used no more.
        let ring = unsafe { ManuallyDrop::take(&mut self.ring) };
        self.parts.link.bury(self.parts.id, ring.into());
    }
}
