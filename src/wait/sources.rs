//! How one thread waits for several ports of tasks: what a [`WaitSet`](crate::WaitSet) knows of them.
//!
//! Each of its sources has a waker of its own, which says in one list which source it was. So the thread
//! that waits learns who has something, and looks at nobody else.
//!
//! # Why no waking is missed
//!
//! A waker adds its source to the list, and the thread says that it sleeps, under one lock. Either the thread
//! finds the source in the list and does not sleep, or the waker finds it asleep, and sets the event,
//! which stays set until the thread has cleared it; behind that, it looks at the list.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use crate::sys::fork::Origin;
use crate::sys::poll::Event;

/// What a look at a port came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// There may be something to take.
    Ready,
    Nothing,
    /// Nothing, now or later.
    Ended,
}

/// A port of tasks that can be looked at without taking anything.
pub(crate) trait Ready: Send + Sync {
    /// Looks whether there is something to take. With a waker, that is kept where there is nothing, and woken
    /// when this may have changed.
    fn poll_ready(&self, waker: Option<&Waker>) -> Readiness;

    /// Forgets a waker that it may have kept.
    fn forget(&self, waker: &Waker);

    /// Whether it is of a process that this one was forked off. Then neither of the others may be called.
    fn is_forked(&self) -> bool;
}

/// Which sources of one set were woken.
pub(crate) struct Woken {
    list: Mutex<List>,
    /// Wakes the thread of the set.
    event: Event,
    origin: Origin,
}

#[derive(Default)]
struct List {
    calls: VecDeque<Arc<Call>>,
    /// Whether the thread of the set has to be told by the event.
    is_asleep: bool,
    /// There is no set any more.
    is_over: bool,
}

/// Wakes a set for one source.
struct Call {
    woken: Arc<Woken>,
    number: u64,
    /// Whether it stands in the list. Relaxed: only looked at and changed under the lock of the list.
    is_listed: AtomicBool,
}

impl Woken {
    pub(crate) fn new(origin: Origin) -> io::Result<Arc<Woken>> {
        Ok(Arc::new(Woken {
            list: Mutex::default(),
            event: Event::new()?,
            origin,
        }))
    }

    /// A waker for the source of this number.
    pub(crate) fn waker(self: &Arc<Self>, number: u64) -> Waker {
        Waker::from(Arc::new(Call {
            woken: self.clone(),
            number,
            is_listed: AtomicBool::new(false),
        }))
    }

    /// Readable while a thread that sleeps is to wake.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.event.fd()
    }

    /// The event was readable. The caller looks at the list behind this.
    pub(crate) fn clear(&self) {
        self.event.clear();
    }

    /// Takes the next source that was woken.
    pub(crate) fn take(&self) -> Option<u64> {
        let mut list = self.lock();
        let call = list.calls.pop_front()?;
        call.is_listed.store(false, Ordering::Relaxed);
        // Dropped without the lock: it may be the last of its source.
        drop(list);
        Some(call.number)
    }

    /// How many were woken and not taken yet.
    pub(crate) fn len(&self) -> usize {
        self.lock().calls.len()
    }

    /// The thread sleeps from now on. False where it must not, as some source was woken.
    pub(crate) fn fall_asleep(&self) -> bool {
        let mut list = self.lock();
        list.is_asleep = list.calls.is_empty();
        list.is_asleep
    }

    /// The thread looks at the list by itself from now on.
    pub(crate) fn wake_up(&self) {
        self.lock().is_asleep = false;
    }

    /// Nobody looks any more. What is listed would hold this, and this holds it.
    pub(crate) fn end(&self) {
        let mut list = self.lock();
        list.is_over = true;
        let calls = std::mem::take(&mut list.calls);
        drop(list);
        drop(calls);
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        let woken = &self.woken;
        // In a forked child the list is the parent's, and so is its lock.
        if woken.origin.is_forked() {
            return;
        }
        let mut list = woken.lock();
        if list.is_over || self.is_listed.swap(true, Ordering::Relaxed) {
            return;
        }
        list.calls.push_back(self.clone());
        let was_asleep = std::mem::take(&mut list.is_asleep);
        drop(list);
        if was_asleep {
            woken.event.set();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::poll::Epoll;

    fn all(woken: &Woken) -> Vec<u64> {
        std::iter::from_fn(|| woken.take()).collect()
    }

    #[test]
    fn a_source_is_listed_once_until_it_was_taken() {
        let woken = Woken::new(Origin::here().unwrap()).unwrap();
        let (one, two) = (woken.waker(1), woken.waker(2));
        for _ in 0..3 {
            one.wake_by_ref();
            two.wake_by_ref();
            one.wake_by_ref();
            let mut listed = all(&woken);
            listed.sort_unstable();
            assert_eq!(listed, [1, 2]);
        }
    }

    #[test]
    fn who_sleeps_is_told_and_who_does_not_is_not() {
        let woken = Woken::new(Origin::here().unwrap()).unwrap();
        let set = Epoll::new().unwrap();
        set.add(woken.fd(), 7).unwrap();
        let mut ready = Vec::new();
        let mut told = || {
            set.wait(&mut ready, Some(Duration::ZERO)).unwrap();
            !ready.is_empty()
        };
        let (one, two) = (woken.waker(1), woken.waker(2));
        one.wake_by_ref();
        assert!(!told(), "nobody sleeps");
        assert!(!woken.fall_asleep(), "somebody was woken");
        two.wake_by_ref();
        assert!(!told(), "nobody sleeps");
        assert_eq!(all(&woken).len(), 2);
        assert!(woken.fall_asleep());
        assert!(!told());
        one.wake_by_ref();
        assert!(told());
        woken.clear();
        woken.wake_up();
        two.wake_by_ref();
        assert!(!told(), "it is awake");
        assert_eq!(all(&woken).len(), 2);
    }

    #[test]
    fn what_is_listed_when_a_set_ends_is_freed() {
        let woken = Woken::new(Origin::here().unwrap()).unwrap();
        let (listed, late) = (woken.waker(1), woken.waker(2));
        listed.wake_by_ref();
        woken.end();
        late.wake_by_ref();
        drop((listed, late));
        assert_eq!(Arc::strong_count(&woken), 1);
    }
}
