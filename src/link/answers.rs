//! What a peer is asked, and who waits for its answer: its hello, the ports that it offers, the lanes that it opens.
//!
//! A thread waits, for as long as it has time; a task is woken; of lanes to subscribers nobody waits, and what is to be
//! done with them is done by whoever reads control messages.

use std::sync::{MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::wire::{End, Refusal};
use super::{LaneId, Link, State};
use crate::error::Fault;
use crate::wait::tasks::keep;

/// How long a peer may take to say hello, or to answer.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);

/// The answer to a request for a port.
pub(crate) type Answer = Result<End, Refusal>;

/// What is done with an answer.
pub(crate) type Then = Box<dyn FnOnce(Answer) + Send>;

/// Who waits for the answer to a request for a port.
pub(super) enum Waiting {
    /// A thread or a task, and it has not come yet.
    Yet,
    /// A thread or a task, and it has come.
    Came(Answer),
    /// Nobody: this is done with it, by whoever reads control messages.
    Then(Then),
}

/// How long an answer is waited for, if it does not come.
#[derive(Clone, Copy)]
pub(crate) enum Until<'a> {
    /// As long as the peer may take.
    Overdue,
    /// At most until then.
    At(Instant),
    /// Not at all: this is woken when there is something to look at, by the quiet thread.
    Woken(&'a Waker),
}

impl Link {
    /// Waits until the peer has said hello, which is due then.
    pub(crate) fn wait_hello(&self, due: Instant, until: Until<'_>) -> bool {
        let hello = |_: &mut State| self.asymmetric.get().copied();
        self.wait_for(due, until, hello).is_some()
    }

    pub(crate) fn has_said_hello(&self) -> bool {
        self.asymmetric.get().is_some()
    }

    /// Waits for the answer to a request for a port, which is due then; `None` when the link died or time is up. Where
    /// it is not waited for any more, its lane is closed.
    pub(crate) fn wait_answer(&self, id: LaneId, due: Instant, until: Until<'_>) -> Option<Answer> {
        let take = |state: &mut State| match state.answers.remove(&id.number)? {
            Waiting::Came(answer) => Some(answer),
            other => {
                state.answers.insert(id.number, other);
                None
            }
        };
        self.wait_for(due, until, take)
    }

    /// Waits until the peer says that it offers a port of this name.
    pub(crate) fn wait_serving(&self, name: &str, at: Instant) -> bool {
        self.wait_for(at, Until::Overdue, |state| {
            state.serving.contains(name).then_some(())
        })
        .is_some()
    }

    fn wait_for<T>(
        &self,
        due: Instant,
        until: Until<'_>,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.state();
        loop {
            if let Some(found) = ready(&mut state) {
                return Some(found);
            }
            let deadline = match until {
                Until::Overdue => due,
                Until::At(at) => at.min(due),
                Until::Woken(waker) => {
                    // A link that died has woken all under this lock, or will.
                    if !self.is_dead() {
                        keep(&mut state.wakers, waker);
                    }
                    return None;
                }
            };
            let left = deadline.checked_duration_since(Instant::now())?;
            if self.is_dead() {
                return None;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Has all who wait look again, now that something has changed. Whoever reads a link calls this, so the quiet
    /// thread wakes tasks, behind that.
    pub(super) fn tell(&self, mut state: MutexGuard<'_, State>) {
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.changed.notify_all();
        if wakers.is_empty() {
            return;
        }
        // A bus that is gone drives nobody, and its links have ended: what waits on them was woken by that.
        if let Some(node) = self.node.upgrade() {
            let now = Instant::now();
            for waker in wakers {
                node.due().set_timer(now, waker);
            }
        }
    }

    /// Says what is done with the answer to a request for a port, which is not asked for yet. It is dropped
    /// where the link dies first.
    pub(crate) fn answer_later(&self, id: LaneId, then: Then) {
        let mut state = self.state();
        // A link that died has dropped them under this lock, or will.
        let then = match self.is_dead() {
            true => Some(then),
            false => {
                state.answers.insert(id.number, Waiting::Then(then));
                None
            }
        };
        drop(state);
        drop(then);
    }

    /// Whether a request for a port was refused, and nobody has looked yet.
    #[cfg(test)]
    pub(crate) fn has_refused(&self, id: LaneId) -> bool {
        let state = self.state();
        matches!(state.answers.get(&id.number), Some(Waiting::Came(Err(_))))
    }

    /// Nobody waits for the answer any more. What was to be done with one is its own lane's, and closes that itself.
    pub(super) fn await_no_answer(&self, id: LaneId) {
        let answers = &mut self.state().answers;
        if id.ours
            && matches!(
                answers.get(&id.number),
                Some(Waiting::Yet | Waiting::Came(_))
            )
        {
            answers.remove(&id.number);
        }
    }

    pub(super) fn answered(&self, lane: u32, answer: Answer) -> Result<(), Fault> {
        let id = LaneId {
            ours: true,
            number: lane,
        };
        let mut state = self.state();
        let issued = state.next_lane;
        let freed = answer.is_err().then(|| state.lanes.refused(id));
        let mut later = None;
        let mut is_news = true;
        match state.answers.remove(&lane) {
            Some(Waiting::Yet) => {
                state.answers.insert(lane, Waiting::Came(answer));
            }
            Some(Waiting::Then(then)) => later = Some((then, answer)),
            // Its caller has given up waiting.
            None if lane < issued => is_news = false,
            _ => {
                let what = "an answer that nobody waits for";
                return Err(Fault::Control { what });
            }
        }
        match is_news {
            true => self.tell(state),
            false => drop(state),
        }
        drop(freed);
        if let Some((then, answer)) = later {
            then(answer);
        }
        Ok(())
    }
}
