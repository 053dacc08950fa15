//! Rings for ports of tasks, which have no thread that the kernel could wake.
//!
//! For each port of tasks, each peer has a [`Chime`](crate::sys::chime) to ring: the port then looks at
//! everything. So a peer that rings without end costs time, and one that does not ring, or spoils its
//! chime, harms only what it sends itself.
//!
//! The chimes are in one set of descriptors, at which the quiet thread looks, or whoever has a
//! [`Driver`](crate::Driver): then the quiet thread leaves the set alone. While a thread
//! sleeps that waits for a future, the quiet thread looks all the same: it may be the one that drives.
//!
//! # Why no ring is lost
//!
//! A ring is an edge, and the kernel tells of it once, to whoever looks at the set next: they have
//! the port look at everything behind that. What was published was published before the ring. The set is
//! *ready* as long as it has edges to tell of, and whoever stops before it has none leaves the
//! rest to the quiet thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::sys::fork::{Mine, Origin};
use crate::sys::poll::{Epoll, Event};

/// The number of the event in the set, which is no bell's.
const ENDED: u64 = u64::MAX;

/// The set of all chimes, and who looks at it.
pub(crate) struct RingSet {
    set: Mine<Epoll>,
    /// What the quiet thread waits on, and the number of the set there.
    quiet: (Arc<Epoll>, u64),
    watchers: Mutex<Watchers>,
    /// Set once nothing is rung for any more, so that whoever waits for the set learns of it.
    ended: Event,
    origin: Origin,
}

#[derive(Default)]
struct Watchers {
    drivers: usize,
    /// Threads that sleep until a future is ready.
    asleep: usize,
}

impl Watchers {
    fn has_quiet(&self) -> bool {
        self.drivers == 0 || self.asleep > 0
    }
}

impl RingSet {
    pub(crate) fn new(quiet: Arc<Epoll>, token: u64, origin: Origin) -> io::Result<RingSet> {
        let set = Mine::new(Epoll::new()?);
        let ended = Event::new()?;
        set.add(ended.fd(), ENDED)?;
        quiet.add(set.as_fd(), token)?;
        Ok(RingSet {
            set,
            ended,
            quiet: (quiet, token),
            watchers: Mutex::default(),
            origin,
        })
    }

    /// Readable while there are rings to take.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }

    /// Adds a chime that is rung for a bell.
    pub(crate) fn add(&self, chime: BorrowedFd<'_>, bell: u32) -> io::Result<()> {
        self.set.add_edges(chime, u64::from(bell))
    }

    /// Takes a chime out.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        self.set.remove(fd);
    }

    /// The bells that were rung, and with them what is none; true where there may be more.
    pub(crate) fn ready(&self, bells: &mut Vec<u64>) -> io::Result<bool> {
        self.set.wait(bells, Some(Duration::ZERO))?;
        Ok(bells.len() == Epoll::MOST)
    }

    /// Nothing is rung for any more: the set stays ready for good.
    pub(crate) fn end(&self) {
        self.ended.set();
    }

    /// Whether this process was forked off the one that has the bus.
    pub(crate) fn is_forked(&self) -> bool {
        self.origin.is_forked()
    }

    fn lock(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody else than the quiet thread takes rings from now on.
    pub(crate) fn attach_driver(&self) {
        self.change(|watchers| watchers.drivers += 1);
    }

    /// They do no more.
    pub(crate) fn detach_driver(&self) {
        self.change(|watchers| watchers.drivers -= 1);
    }

    /// As long as a thread has this, it takes rings in place of the quiet one.
    pub(crate) fn drive(&self) -> Driving<'_> {
        self.attach_driver();
        Driving(self)
    }

    /// A thread sleeps until a future is ready, as long as it has this.
    pub(crate) fn fall_asleep(&self) -> Asleep<'_> {
        self.change(|watchers| watchers.asleep += 1);
        Asleep(self)
    }

    /// Whether the quiet thread looks.
    #[cfg(test)]
    pub(crate) fn has_quiet(&self) -> bool {
        self.lock().has_quiet()
    }

    fn change(&self, change: impl FnOnce(&mut Watchers)) {
        if self.origin.is_forked() {
            return;
        }
        let mut watchers = self.lock();
        let before = watchers.has_quiet();
        change(&mut watchers);
        let looks = watchers.has_quiet();
        if looks != before {
            // What has come meanwhile is found at once: the kernel looks anew.
            let (quiet, token) = &self.quiet;
            quiet.change(self.fd(), *token, looks, false);
        }
    }
}

/// See [`RingSet::drive`].
pub(crate) struct Driving<'a>(&'a RingSet);

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.detach_driver();
    }
}

/// See [`RingSet::fall_asleep`].
pub(crate) struct Asleep<'a>(&'a RingSet);

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.0.change(|watchers| watchers.asleep -= 1);
    }
}
