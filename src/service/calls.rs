//! The client's book of calls that are not answered yet, and of what came for each.
//!
//! A call bears a tag, and keeps it until the server's last word on it has come, also when nobody
//! waits for that any more: so no answer is ever taken for that of another call.

use std::collections::VecDeque;

use super::newest::Ticket;
use crate::error::Fault;
use crate::lane::{Message, Role};
use crate::memory::layout::MOST_OPEN;

/// What a server does that answers what was answered, or was never asked.
const TWICE: Fault = Fault::Control {
    what: "an answer to no call",
};

/// Where a call stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// There is none of this tag.
    #[default]
    Free,
    /// Its answer is waited for.
    Open,
    /// A newer call superseded it, of which its user is still to learn; its answer may have come.
    Superseded { ended: bool },
    /// Nobody waits for its answer, which has still to come.
    Dropped,
}

#[derive(Default)]
struct Slot {
    state: State,
    /// What came for it while another call was waited for.
    came: VecDeque<Message>,
    /// Which call of this client it is.
    serial: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Calls {
    slots: Vec<Slot>,
    free: Vec<u16>,
    sent: u64,
}

impl Calls {
    /// How many calls have not been answered.
    #[inline]
    pub(crate) fn open(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is a tag for one more call.
    pub(crate) fn has_next(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < MOST_OPEN
    }

    /// A tag for one more call, if there may be one more. It is not taken yet.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<u16> {
        if self.free.is_empty() && self.slots.len() < MOST_OPEN {
            self.free.push(self.slots.len() as u16);
            self.slots.push(Slot::default());
        }
        self.free.last().copied()
    }

    /// Takes the tag that [`next`](Self::next) just gave: its request was sent.
    #[inline]
    pub(crate) fn sent(&mut self, tag: u16) {
        let last = self.free.pop();
        debug_assert_eq!(last, Some(tag));
        self.sent += 1;
        let slot = &mut self.slots[usize::from(tag)];
        (slot.state, slot.serial) = (State::Open, self.sent);
    }

    /// By which a call that was sent is named also later.
    pub(crate) fn ticket(&self, tag: u16) -> Ticket {
        let serial = self.slots[usize::from(tag)].serial;
        Ticket { tag, serial }
    }

    /// A newer call is made: what came for this one, and whether its last word is among that. `None`
    /// where it is over.
    pub(crate) fn supersede(&mut self, ticket: Ticket) -> Option<(VecDeque<Message>, bool)> {
        let slot = self.slots.get_mut(usize::from(ticket.tag))?;
        if slot.serial != ticket.serial || slot.state != State::Open {
            return None;
        }
        let came = std::mem::take(&mut slot.came);
        let ended = is_ended(&came);
        slot.state = State::Superseded { ended };
        Some((came, ended))
    }

    /// Whether a call is waited for, and nothing came for it that was not taken.
    #[inline]
    pub(crate) fn is_next(&self, tag: u16) -> bool {
        let slot = &self.slots[usize::from(tag)];
        slot.state == State::Open && slot.came.is_empty()
    }

    /// Whether a newer call superseded this one.
    #[inline]
    pub(crate) fn is_superseded(&self, tag: u16) -> bool {
        matches!(self.slots[usize::from(tag)].state, State::Superseded { .. })
    }

    /// The first message that came for a call while another was waited for.
    #[inline]
    pub(crate) fn take(&mut self, tag: u16) -> Option<Message> {
        self.slots[usize::from(tag)].came.pop_front()
    }

    /// The last word on a call was taken: its tag is free.
    #[inline]
    pub(crate) fn end(&mut self, tag: u16) {
        let slot = &mut self.slots[usize::from(tag)];
        debug_assert!(slot.came.is_empty());
        slot.state = State::Free;
        self.free.push(tag);
    }

    /// Keeps a message for the call that it belongs to; returned where nobody waits for it.
    pub(crate) fn keep(&mut self, message: Message) -> Result<Option<Message>, Fault> {
        let tag = message.record.tag;
        let slot = self.slots.get_mut(usize::from(tag));
        match slot.filter(|slot| slot.state != State::Free) {
            None => Err(TWICE),
            Some(slot) if slot.state == State::Open => {
                slot.came.push_back(message);
                Ok(None)
            }
            Some(slot) => {
                let is_last = message.record.role != Role::Item;
                match &mut slot.state {
                    State::Superseded { ended: true } => return Err(TWICE),
                    State::Superseded { ended } => *ended = is_last,
                    _ if is_last => self.end(tag),
                    _ => {}
                }
                Ok(Some(message))
            }
        }
    }

    /// Nobody waits for a call any more: what came for it, and whether its last word is among that.
    pub(crate) fn drop(&mut self, tag: u16) -> (VecDeque<Message>, bool) {
        let slot = &mut self.slots[usize::from(tag)];
        let came = std::mem::take(&mut slot.came);
        let ended = is_ended(&came) || slot.state == State::Superseded { ended: true };
        slot.state = State::Dropped;
        if ended {
            self.end(tag);
        }
        (came, ended)
    }
}

/// Whether the last word on a call is among what came for it.
fn is_ended(came: &VecDeque<Message>) -> bool {
    came.back().is_some_and(|m| m.record.role != Role::Item)
}
