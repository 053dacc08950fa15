//! Who waits for a change of newest values.
//!
//! A [`WaitSet`](crate::WaitSet) waits without the reader, whose look is the user's to take. So a reader that is in one has
//! its lanes ring whenever it was found to have nothing new, and a ring is remembered until it is found so again.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use crate::link::lock;
use crate::service::port::HubPort;
use crate::sys::fork::Origin;
use crate::wait::sources::{Readiness, Ready};
use crate::wait::tasks::{Drive, Place, Wakers, forget, keep, wake};

/// See the module.
pub(super) struct Waiting {
    state: Mutex<State>,
    pub(super) port: Arc<HubPort>,
    pub(super) origin: Origin,
}

struct State {
    changed: Wakers,
    /// Those who wait for one of many ports.
    sets: Vec<Waker>,
    /// Whether there may be something that the reader has not found.
    may_have: bool,
    /// How many sets may ask.
    asking: usize,
}

impl Waiting {
    pub(super) fn new(port: &Arc<HubPort>, origin: Origin) -> Arc<Waiting> {
        Arc::new(Waiting {
            state: Mutex::new(State {
                changed: Wakers::default(),
                sets: Vec::new(),
                may_have: true,
                asking: 0,
            }),
            port: port.clone(),
            origin,
        })
    }

    /// A task waits for a change.
    pub(super) fn keep(&self, place: &mut Place, waker: &Waker) {
        let before = lock(&self.state).changed.keep(place, waker);
        // Without the lock: it may be all that is left of its task.
        drop(before);
    }

    /// It does no more.
    pub(super) fn leave(&self, place: &mut Place) {
        if place.is_taken() && !self.origin.is_forked() {
            let waker = lock(&self.state).changed.forget(place);
            drop(waker);
        }
    }

    /// A set may ask from now on.
    pub(super) fn is_in_set(&self) {
        // In a forked child the lock is the parent's.
        if !self.origin.is_forked() {
            lock(&self.state).asking += 1;
        }
    }

    /// Nothing was found; true where the lanes are to ring, since a set may wait. What rings from now on is
    /// remembered.
    pub(super) fn has_nothing(&self) -> bool {
        let mut state = lock(&self.state);
        let is_asked = state.asking > 0;
        if is_asked {
            state.may_have = false;
        }
        is_asked
    }
}

impl Drive for Waiting {
    fn drive(&self) -> bool {
        if self.origin.is_forked() {
            return false;
        }
        let mut state = lock(&self.state);
        state.may_have = true;
        let woken: Vec<Waker> = state.changed.take().collect();
        let sets = std::mem::take(&mut state.sets);
        drop(state);
        wake(woken);
        wake(sets);
        false
    }
}

impl Ready for Waiting {
    fn poll_ready(&self, waker: Option<&Waker>) -> Readiness {
        // In this order: what came before the end is still told of.
        let ended = self.port.has_ended();
        let mut state = lock(&self.state);
        if state.may_have {
            return Readiness::Ready;
        }
        if ended {
            return Readiness::Ended;
        }
        if let Some(waker) = waker {
            keep(&mut state.sets, waker);
        }
        Readiness::Nothing
    }

    fn forget(&self, waker: &Waker) {
        let mut state = lock(&self.state);
        state.asking = state.asking.saturating_sub(1);
        let forgotten = forget(&mut state.sets, waker);
        drop(state);
        drop(forgotten);
    }

    fn is_forked(&self) -> bool {
        self.origin.is_forked()
    }
}

impl Drop for Waiting {
    /// Those who wait for one of many ports learn that this is gone; nobody else is left.
    fn drop(&mut self) {
        if !self.origin.is_forked() {
            let state = self.state.get_mut();
            let state = state.unwrap_or_else(PoisonError::into_inner);
            wake(std::mem::take(&mut state.sets));
        }
    }
}
