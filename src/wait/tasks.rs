//! How a task waits, which no thread of its own could sleep for.
//!
//! Whoever is asked to ring for a port of tasks does so by a descriptor ([`rings`]). Who learns of that
//! *drives* the port: has it look at everything, and wake the tasks that have something.
//! So the port needs no thread, and the rest is as for a sleeper: ask, pass a barrier, look once more, and
//! then wait.
//!
//! Whoever drives holds no lock, and whoever has a port looked at from somewhere else leaves that to the
//! quiet thread: a port may be driven while it is used.
//!
//! [`rings`]: super::rings

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crossbeam_queue::SegQueue;

use super::rings::RingSet;
use crate::sys::poll::Event;

/// A port of tasks.
pub(crate) trait Drive: Send + Sync {
    /// Looks at everything, and wakes the tasks that have something. True where that was too much for
    /// one turn, and is to go on with the next: a peer that sends without end holds up nobody else.
    fn drive(&self) -> bool;
}

/// What the quiet thread is to do for ports of tasks.
pub(crate) struct Due {
    ports: SegQueue<Weak<dyn Drive>>,
    timers: Mutex<Timers>,
    /// Wakes the quiet thread.
    pub(crate) event: Event,
    /// Where peers ring.
    pub(crate) rings: RingSet,
}

#[derive(Default)]
struct Timers {
    next: u64,
    wakers: BTreeMap<(Instant, u64), Waker>,
}

/// The wakers of those who wait for something, one for each of them.
#[derive(Default)]
pub(crate) struct Wakers {
    kept: BTreeMap<u64, Waker>,
}

/// Wakers that are woken, and dropped, once the lock is given back under which they were found: each may be all
/// that is left of its task, which may do anything.
#[derive(Default)]
pub(crate) struct Later {
    woken: Vec<Waker>,
    dropped: Vec<Waker>,
}

impl Later {
    pub(crate) fn wake(&mut self, wakers: impl IntoIterator<Item = Waker>) {
        self.woken.extend(wakers);
    }

    pub(crate) fn discard(&mut self, waker: Option<Waker>) {
        self.dropped.extend(waker);
    }
}

/// Does something under a lock, and then what is left for later.
#[inline]
pub(crate) fn enter<S, T>(
    mut state: MutexGuard<'_, S>,
    later: impl FnOnce(&mut S) -> &mut Later,
    work: impl FnOnce(&mut S) -> T,
) -> T {
    let done = work(&mut state);
    let Later { woken, dropped } = std::mem::take(later(&mut state));
    drop(state);
    wake(woken);
    drop(dropped);
    done
}

/// The place of one who waits among [`Wakers`], if it has one.
#[derive(Default)]
pub(crate) struct Place(Option<u64>);

impl Place {
    /// Whether it may have a waker kept.
    pub(crate) fn is_taken(&self) -> bool {
        self.0.is_some()
    }
}

impl Wakers {
    /// Keeps a waker, in place of the one that was kept before; that is returned, to be dropped without a
    /// lock: it may be all that is left of its task.
    pub(crate) fn keep(&mut self, place: &mut Place, waker: &Waker) -> Option<Waker> {
        // Numbers of all of them together: a place may come to others than it was first among. Relaxed: only
        // that none comes twice matters.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let next = || NEXT.fetch_add(1, Ordering::Relaxed);
        let number = *place.0.get_or_insert_with(next);
        self.kept.insert(number, waker.clone())
    }

    /// Forgets who waits no longer; the waker is returned, to be dropped without a lock.
    pub(crate) fn forget(&mut self, place: &mut Place) -> Option<Waker> {
        self.kept.remove(&place.0.take()?)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// All of them, to be woken.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Waker> + use<> {
        std::mem::take(&mut self.kept).into_values()
    }
}

/// Keeps a waker among those who wait for the same, once.
pub(crate) fn keep(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|other| other.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}

/// Forgets who waits no longer; the waker is returned, to be dropped without a lock.
pub(crate) fn forget(wakers: &mut Vec<Waker>, waker: &Waker) -> Option<Waker> {
    let at = wakers.iter().position(|other| other.will_wake(waker))?;
    Some(wakers.swap_remove(at))
}

/// Wakes tasks. One whose waker panics takes no other with it, nor the thread: the panic was told by the
/// hook for panics.
pub(crate) fn wake(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
    }
}

/// Names a timer that was set.
type Timer = (Instant, u64);

/// Wakes the task that polls this when a moment has come, if there is one.
pub(crate) struct Timeout(Option<(Arc<Due>, Instant, Option<Timer>)>);

impl Timeout {
    pub(crate) fn new(due: &Arc<Due>, at: Option<Instant>) -> Timeout {
        Timeout(at.map(|at| (due.clone(), at, None)))
    }

    /// Whether the moment has come.
    pub(crate) fn is_over(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|(_, at, _)| Instant::now() >= *at)
    }

    /// Ready once the moment has come; before that, its task is woken then.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.clear();
        let Some((due, at, timer)) = &mut self.0 else {
            return Poll::Pending;
        };
        if Instant::now() >= *at {
            return Poll::Ready(());
        }
        *timer = Some(due.set_timer(*at, cx.waker().clone()));
        Poll::Pending
    }

    fn clear(&mut self) {
        if let Some((due, _, timer)) = &mut self.0 {
            // In a forked child the timers are the parent's, and so is their lock.
            if let Some(timer) = timer.take().filter(|_| !due.rings.is_forked()) {
                due.clear_timer(timer);
            }
        }
    }
}

impl Drop for Timeout {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Due {
    pub(crate) fn new(rings: RingSet) -> io::Result<Due> {
        Ok(Due {
            ports: SegQueue::new(),
            timers: Mutex::default(),
            event: Event::new()?,
            rings,
        })
    }

    /// Has a port driven soon.
    pub(crate) fn push(&self, port: Weak<dyn Drive>) {
        self.ports.push(port);
        self.event.set();
    }

    /// Has a task woken at this moment.
    pub(crate) fn set_timer(&self, at: Instant, waker: Waker) -> Timer {
        let mut timers = self.timers();
        timers.next += 1;
        let timer = (at, timers.next);
        let is_first = timers
            .wakers
            .first_key_value()
            .is_none_or(|(first, _)| timer < *first);
        timers.wakers.insert(timer, waker);
        drop(timers);
        if is_first {
            self.event.set();
        }
        timer
    }

    /// Has the task not be woken at that moment.
    fn clear_timer(&self, timer: Timer) {
        let waker = self.timers().wakers.remove(&timer);
        // Dropped without the lock: it may be all that is left of its task.
        drop(waker);
    }

    /// When [`run`](Self::run) is due at the latest.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers()
            .wakers
            .first_key_value()
            .map(|((at, _), _)| *at)
    }

    /// How many timers are set.
    #[cfg(test)]
    pub(crate) fn timers_set(&self) -> usize {
        self.timers().wakers.len()
    }

    /// Drives the ports and wakes the tasks whose time has come. For the quiet thread alone.
    pub(crate) fn run(&self) {
        // As many as there are now: what they cause comes with the next turn.
        for _ in 0..self.ports.len() {
            let Some(weak) = self.ports.pop() else { break };
            if weak.upgrade().is_some_and(|port| port.drive()) {
                self.push(weak);
            }
        }
        while let Some(waker) = self.take_timer() {
            wake([waker]);
        }
    }

    fn take_timer(&self) -> Option<Waker> {
        let mut timers = self.timers();
        let first = timers.wakers.first_entry()?;
        (first.key().0 <= Instant::now()).then(|| first.remove())
    }

    fn timers(&self) -> MutexGuard<'_, Timers> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
