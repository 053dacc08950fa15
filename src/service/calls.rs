//! The client's book of calls that are not answered yet, and of what came for each.
//!
//! A call bears a tag, and keeps it until the server's last word on it has come, also when nobody
//! waits for that any more: so no answer is ever taken for that of another call.

use std::collections::VecDeque;

use super::newest::Ticket;
use crate::error::Fault;
use crate::lane::{Message, Role};
use crate::memory::layout::{MOST_CELLS, MOST_OPEN};

/// What a server does that answers what was answered, or was never asked.
const TWICE: Fault = Fault::Control {
    what: "an answer to no call",
};

/// What a server does that sends more than a lane has room for, since it never waits for what is handed back.
const ENDLESS: Fault = Fault::Control {
    what: "more answers than a lane has room for",
};

/// Where a call stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// There is none of this tag.
    #[default]
    Free,
    /// Its answer is waited for; the last word may have come, and not been looked at yet.
    Open { ended: bool },
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
    /// How many messages came for others than who looked.
    kept: usize,
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
        (slot.state, slot.serial) = (State::Open { ended: false }, self.sent);
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
        let State::Open { ended } = slot.state else {
            return None;
        };
        if slot.serial != ticket.serial {
            return None;
        }
        let came = std::mem::take(&mut slot.came);
        self.kept -= came.len();
        slot.state = State::Superseded { ended };
        Some((came, ended))
    }

    /// Whether a call is waited for, and nothing came for it that was not taken.
    #[inline]
    pub(crate) fn is_next(&self, tag: u16) -> bool {
        let slot = &self.slots[usize::from(tag)];
        slot.state == State::Open { ended: false } && slot.came.is_empty()
    }

    /// A message of a call was found by who waits for it, which [is next](Self::is_next).
    #[inline]
    pub(crate) fn found(&mut self, message: &Message) {
        if message.record.role != Role::Item {
            self.slots[usize::from(message.record.tag)].state = State::Open { ended: true };
        }
    }

    /// Whether a newer call superseded this one.
    #[inline]
    pub(crate) fn is_superseded(&self, tag: u16) -> bool {
        matches!(self.slots[usize::from(tag)].state, State::Superseded { .. })
    }

    /// The first message that came for a call while another was waited for.
    #[inline]
    pub(crate) fn take(&mut self, tag: u16) -> Option<Message> {
        let came = self.slots[usize::from(tag)].came.pop_front();
        self.kept -= usize::from(came.is_some());
        came
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
            Some(slot) => {
                let is_last = message.record.role != Role::Item;
                match &mut slot.state {
                    State::Open { ended: true } | State::Superseded { ended: true } => {
                        return Err(TWICE);
                    }
                    State::Open { .. } if self.kept >= MOST_CELLS => return Err(ENDLESS),
                    State::Open { ended } => {
                        *ended = is_last;
                        self.kept += 1;
                        slot.came.push_back(message);
                        return Ok(None);
                    }
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
        self.kept -= came.len();
        let ended = matches!(
            slot.state,
            State::Open { ended: true } | State::Superseded { ended: true }
        );
        slot.state = State::Dropped;
        if ended {
            self.end(tag);
        }
        (came, ended)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::ptr::NonNull;

    use super::*;
    use crate::lane::Received;

    fn message(tag: u16, role: Role) -> Message {
        let record = Received {
            cell: 0,
            cells: 1,
            tag,
            role,
            failed: 0,
            number: 0,
            bytes: NonNull::slice_from_raw_parts(NonNull::dangling(), 0),
        };
        Message {
            record,
            segment: None,
        }
    }

    fn open(calls: &mut Calls) -> u16 {
        let tag = calls.next().expect("there is one");
        calls.sent(tag);
        tag
    }

    #[test]
    fn nothing_comes_behind_a_last_word() {
        for last in [Role::Message, Role::Error, Role::Failed] {
            for more in [Role::Item, Role::Message, Role::Failed] {
                let mut calls = Calls::default();
                let tag = open(&mut calls);
                assert!(matches!(calls.keep(message(tag, Role::Item)), Ok(None)));
                assert!(matches!(calls.keep(message(tag, last)), Ok(None)));
                assert_eq!(calls.keep(message(tag, more)).err(), Some(TWICE));
                // Also where the last word was found by who waits, and is not looked at yet.
                let tag = open(&mut calls);
                assert!(calls.is_next(tag));
                calls.found(&message(tag, last));
                assert_eq!(calls.keep(message(tag, more)).err(), Some(TWICE));
                calls.end(tag);
                assert_eq!(calls.keep(message(tag, more)).err(), Some(TWICE));
            }
        }
    }

    #[test]
    fn a_call_that_is_dropped_keeps_its_tag_until_its_last_word() {
        let mut calls = Calls::default();
        let tag = open(&mut calls);
        assert!(matches!(calls.keep(message(tag, Role::Item)), Ok(None)));
        let (came, ended) = calls.drop(tag);
        assert_eq!((came.len(), ended, calls.open()), (1, false, 1));
        assert!(matches!(calls.keep(message(tag, Role::Item)), Ok(Some(_))));
        assert!(matches!(
            calls.keep(message(tag, Role::Message)),
            Ok(Some(_))
        ));
        assert_eq!(calls.open(), 0);
        let tag = open(&mut calls);
        assert!(matches!(calls.keep(message(tag, Role::Message)), Ok(None)));
        let (came, ended) = calls.drop(tag);
        assert_eq!((came.len(), ended, calls.open()), (1, true, 0));
    }

    #[test]
    fn no_more_is_kept_than_a_lane_has_room_for() {
        let mut calls = Calls::default();
        let tag = open(&mut calls);
        for _ in 0..MOST_CELLS {
            assert!(matches!(calls.keep(message(tag, Role::Item)), Ok(None)));
        }
        assert_eq!(calls.keep(message(tag, Role::Item)).err(), Some(ENDLESS));
        assert!(calls.take(tag).is_some());
        assert!(matches!(calls.keep(message(tag, Role::Item)), Ok(None)));
        assert_eq!(calls.drop(tag).0.len(), MOST_CELLS);
        assert_eq!(calls.kept, 0);
    }
}
