//! How one of several lanes takes a message that was archived for all of them.

use std::time::Instant;

use bytemuck::bytes_of;

use super::{Outbox, Stop, To};
use crate::error::SendError;
use crate::lane::Parcel;
use crate::lane::parcel::Packed;
use crate::lane::stage::write_behind_header;
use crate::memory::arena::Block;
use crate::memory::layout::Kind;
use crate::sync::Ordering;
use crate::wait::Wait;

impl Outbox {
    /// Says that one more message is meant for this lane's receiver, whether it gets it or not.
    #[inline]
    pub(crate) fn offer(&mut self) {
        if let Some(topic) = &self.parts.topic {
            // Relaxed: our own word.
            let offered = topic.offered.load(Ordering::Relaxed).wrapping_add(1);
            // SYNC(offered): Release; pairs with Acquire in `Inbox::lost`. A receiver that has found the end
            // of the lane finds the count of all that was sent before it.
            topic.offered.store(offered, Ordering::Release);
        }
    }

    /// Undoes [`offer`](Self::offer): the message was not sent, and is offered again or was refused.
    #[cold]
    pub(crate) fn unoffer(&mut self) {
        if let Some(topic) = &self.parts.topic {
            // Relaxed, both: our own word. Who reads it meanwhile finds the lane's end, and one message more lost
            // than there will have been: it was about to be sent.
            let offered = topic.offered.load(Ordering::Relaxed).wrapping_sub(1);
            topic.offered.store(offered, Ordering::Relaxed);
        }
    }

    /// Tells the receiver of a block's segment, which something will refer to that is not sent on this lane. Where
    /// its socket does not take that, it is told when it does.
    pub(crate) fn tell_of(&mut self, block: &Block) {
        if !self.parts.line.is_closed() {
            // A link that cannot be told anything is given up.
            let _ = self.announce(block);
        }
    }

    /// Whether the last message went through the slab.
    pub(crate) fn was_large(&self) -> bool {
        self.was_large || self.was_around
    }

    /// Whether there is room for a message and so many records more; looks for what came back if there was
    /// none. The lane may have so many bytes of the slab out.
    #[inline]
    pub(crate) fn has_room(
        &mut self,
        parcel: &Parcel,
        more: usize,
        budget: usize,
    ) -> Result<bool, SendError> {
        if self.origin.is_forked() {
            return Err(SendError::Forked);
        }
        if self.parts.line.is_closed() {
            return Err(self.closed());
        }
        let bytes = parcel.block_len();
        self.is_stuck = false;
        if !self.fits(bytes, more, budget) {
            self.collect()?;
            if !self.fits(bytes, more, budget) {
                return Ok(false);
            }
        }
        if !self.announce_those(&parcel.pins)? {
            return Ok(false);
        }
        match &parcel.packed {
            Packed::Cell(..) => Ok(true),
            // So that it does not fail for that when others have the message already.
            Packed::Block(block, _) => self.announce(block),
        }
    }

    #[inline]
    fn fits(&self, bytes: usize, more: usize, budget: usize) -> bool {
        let lent = self.ring.lent_bytes();
        let is_over = bytes > 0 && lent > bytes.saturating_mul(3) && lent + bytes > budget;
        !is_over && self.ring.has_room(1 + more)
    }

    /// Publishes a message that was archived for lanes of its type; false where there is no room.
    ///
    /// # Errors
    ///
    /// [`SendError::Closed`], [`SendError::Forked`].
    #[inline]
    pub(crate) fn send_parcel(&mut self, parcel: &Parcel) -> Result<bool, SendError> {
        self.publish_parcel(parcel, To::tag(0))
    }

    #[inline]
    fn publish_parcel(&mut self, parcel: &Parcel, to: To) -> Result<bool, SendError> {
        if self.origin.is_forked() {
            return Err(SendError::Forked);
        }
        if self.parts.line.is_closed() {
            return Err(self.closed());
        }
        self.pins.clone_from(&parcel.pins);
        let sent = match &parcel.packed {
            Packed::Cell(stage, len) => {
                let start = to.kind.start(self.starts);
                self.publish_staged(stage, start, usize::from(*len), to)
            }
            Packed::Block(block, reference) => self.publish_block(block, *reference, to),
        };
        self.pins.clear();
        done(sent)
    }

    /// Has the last message that went through the slab be kept, so that it can be sent again from where it lies.
    pub(crate) fn set_keeping(&mut self, is_keeping: bool) {
        self.is_keeping = is_keeping;
    }

    /// The message that was just sent, if it went through the slab and is kept.
    pub(crate) fn take_kept(&mut self) -> Option<Parcel> {
        self.kept.take()
    }

    /// Sends a message again that was kept, waiting for room until the deadline, or for ever.
    pub(crate) fn send_again(
        &mut self,
        parcel: &Parcel,
        to: To,
        wait: Wait,
        deadline: Option<Instant>,
    ) -> Result<(), SendError> {
        while !self.publish_parcel(parcel, to)? {
            self.wait_for_room(to, wait, deadline)?;
        }
        self.kept = None;
        Ok(())
    }

    /// As [`send_again`](Self::send_again), without waiting.
    pub(crate) fn try_send_again(&mut self, parcel: &Parcel, to: To) -> Result<(), SendError> {
        let sent = self.publish_parcel(parcel, to)?;
        self.kept = None;
        match sent {
            true => Ok(()),
            false => Err(SendError::Full),
        }
    }

    /// Says that so many messages were not sent for want of room; false where there is none for that, either.
    pub(crate) fn say_missed(&mut self, missed: u64) -> Result<bool, SendError> {
        let space = self.ring.here(1);
        write_behind_header(&space, bytes_of(&missed));
        let record = (Kind::Missed, size_of::<u64>() as u16, 0);
        let sent = self.ring.publish(&space, record, 1, None).is_ok();
        if sent {
            self.signal();
        }
        Ok(sent)
    }

    /// Whether blocks are out that were not handed back, as far as is known.
    pub(crate) fn has_lent(&self) -> bool {
        self.ring.lent_bytes() > 0
    }

    /// Looks what the receiver handed back; true where it was anything.
    pub(crate) fn take_back(&mut self) -> Result<bool, SendError> {
        self.collect()
    }
}

fn done(sent: Result<(), Stop>) -> Result<bool, SendError> {
    match sent {
        Ok(()) => Ok(true),
        Err(Stop::Again | Stop::Wait) => Ok(false),
        Err(Stop::Never(error)) => Err(error),
    }
}
