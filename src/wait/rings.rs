//! Rings for ports of tasks, which have no thread that the kernel could wake.
//!
//! Each side of a link has a socket on which the other says numbers of bells. Whoever takes such a number,
//! whatever it is, has that port look at everything: so garbage, too much, or an end of the socket
//! costs time and nothing else, and only this peer's rings. What the socket does not take goes as a
//! control message.
//!
//! The numbers are taken by the quiet thread, or by whoever has a [`Driver`](crate::Driver): it finds
//! them in the same set of descriptors, and the quiet thread leaves the set alone. While a thread
//! sleeps that waits for a future, the quiet thread looks all the same: it may be the one that drives.
//!
//! # Why no ring stays in a socket
//!
//! Only what is taken is lost to those who look next, and who takes it drives the port behind that. Sockets
//! stay *ready* as long as they have something, and so does the set. Whoever stops before a
//! socket is empty leaves the rest to the quiet thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::sys::fork::{Mine, Origin};
use crate::sys::poll::{Epoll, Event};

/// The number of the event in the set, which is no link's.
const ENDED: u64 = 0;

/// The set of the sockets of all links, and who looks at it.
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

    /// Adds the socket of a link.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, link: u64) -> io::Result<()> {
        self.set.add(fd, link)
    }

    /// Takes the socket of a link out.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        self.set.remove(fd);
    }

    /// The links that have rings; true where there may be more.
    pub(crate) fn ready(&self, links: &mut Vec<u64>) -> io::Result<bool> {
        self.set.wait(links, Some(Duration::ZERO))?;
        Ok(links.len() == Epoll::MOST)
    }

    /// Nothing is rung for any more: the set stays ready for good.
    pub(crate) fn end(&self) {
        self.ended.set();
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

    /// A thread sleeps until a future is ready, as long as it has this.
    pub(crate) fn fall_asleep(&self) -> Asleep<'_> {
        self.change(|watchers| watchers.asleep += 1);
        Asleep(self)
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

/// See [`RingSet::fall_asleep`].
pub(crate) struct Asleep<'a>(&'a RingSet);

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.0.change(|watchers| watchers.asleep -= 1);
    }
}
