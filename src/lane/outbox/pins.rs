//! How a message takes along what it refers to.

use std::marker::PhantomData;
use std::sync::Arc;

use super::{Outbox, Stop};
use crate::error::SendError;
use crate::lane::pin::FOREIGN;
use crate::memory::arena::Block;
use crate::memory::layout::Kind;
use crate::memory::pins::Pins;
use crate::memory::ring::{NoRoom, Space};
use crate::message::{ShmMessage, may_refer};

/// An outbox that sends a `T`, of which it keeps no pins: not either where the value panics while it is archived.
pub(super) struct Clearing<'a, T: ShmMessage> {
    pub(super) outbox: &'a mut Outbox,
    ty: PhantomData<fn(&T)>,
}

impl<'a, T: ShmMessage> Clearing<'a, T> {
    #[inline(always)]
    pub(super) fn new(outbox: &'a mut Outbox) -> Self {
        let ty = PhantomData;
        Clearing { outbox, ty }
    }

    /// The record has the pins by now: there are none to clear, and nobody is to look.
    #[inline(always)]
    pub(super) fn into_sent(self) -> Result<(), SendError> {
        debug_assert!(self.outbox.pins.is_empty());
        std::mem::forget(self);
        Ok(())
    }
}

impl<T: ShmMessage> Drop for Clearing<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // Nothing at all for messages that cannot refer to pins, as most.
        if may_refer::<T>() {
            self.outbox.pins.clear();
        }
    }
}

impl Outbox {
    /// Says whether messages may refer to pins, and may so be held by tasks where others are copied.
    pub(crate) fn set_elastic(&mut self, is_elastic: bool) {
        self.is_elastic = is_elastic;
    }

    /// Whether the message that was just archived refers to nothing, as most do.
    #[inline(always)]
    pub(super) fn refers_to_nothing<T: ShmMessage>(&self) -> bool {
        !may_refer::<T>() || self.pins.is_empty()
    }

    /// Has the peer learn of the segments of all that the message refers to which is about to be published.
    #[inline(always)]
    pub(super) fn announce_pins(&mut self) -> Result<(), Stop> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let pins = std::mem::take(&mut self.pins);
        self.announce_all(&pins)?;
        self.pins = pins;
        Ok(())
    }

    #[inline(never)]
    fn announce_all(&mut self, pins: &Pins) -> Result<(), Stop> {
        for pin in pins.iter() {
            if !pin.block().is_of(self.parts.node.arena()) {
                let what = FOREIGN.to_owned();
                return Err(Stop::Never(SendError::Encode { what }));
            }
            if !self.announce(pin.block())? {
                return Err(Stop::Wait);
            }
        }
        Ok(())
    }

    /// As for a message that is sent, for pins of ours that one refers to which was archived before. False
    /// where the peer does not read its socket at the moment.
    pub(super) fn announce_those(&mut self, pins: &Pins) -> Result<bool, SendError> {
        for pin in pins.iter() {
            if !self.announce(pin.block())? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Publishes a message, and notes what its record lends beside.
    #[inline(always)]
    pub(super) fn publish(
        &mut self,
        space: &Space,
        record: (Kind, u16, u16),
        cells: usize,
        block: Option<Arc<Block>>,
    ) -> Result<(), NoRoom> {
        self.ring.publish(space, record, cells, block)?;
        if !self.pins.is_empty() {
            self.lend_pins(space);
        }
        Ok(())
    }

    #[inline(never)]
    fn lend_pins(&mut self, space: &Space) {
        let pins = std::mem::take(&mut self.pins);
        let (shelf, link) = (self.parts.node.pins(), &self.parts.link);
        let book = |receiver| shelf.new_book(receiver, link.free_flag());
        if self.ring.lend(space, pins, book) {
            shelf.look_later();
        }
    }
}
