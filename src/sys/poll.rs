//! `epoll(7)`, `poll(2)` and `eventfd(2)`: how the quiet thread waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A set of descriptors, each with a number that tells it from the others. Readable while one of them is
/// ready.
pub(crate) struct Epoll(OwnedFd);

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Epoll {
    /// The most numbers that one [`wait`](Self::wait) gives.
    pub(crate) const MOST: usize = 64;

    /// `epoll_create1`.
    pub(crate) fn new() -> io::Result<Epoll> {
        // SAFETY: takes flags only.
        let fd = super::check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel just gave this descriptor to us alone.
        Ok(Epoll(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// `epoll_ctl(EPOLL_CTL_ADD)` for reading.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add_for(fd, token, libc::EPOLLIN)
    }

    /// `epoll_ctl(EPOLL_CTL_ADD)` for writing.
    pub(crate) fn add_writable(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add_for(fd, token, libc::EPOLLOUT)
    }

    /// As [`add`](Self::add), to be told once of each time that the descriptor is woken.
    pub(crate) fn add_edges(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add_for(fd, token, libc::EPOLLIN | libc::EPOLLET)
    }

    fn add_for(&self, fd: BorrowedFd<'_>, token: u64, events: libc::c_int) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: events as u32,
            u64: token,
        };
        let (set, fd) = (self.0.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: the event outlives the call.
        super::check(unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &mut event) })?;
        Ok(())
    }

    /// `epoll_ctl(EPOLL_CTL_MOD)`: for reading, or else for the end of what the other side sends;
    /// and for writing. A descriptor that is not in the set any more is no error.
    pub(crate) fn change(&self, fd: BorrowedFd<'_>, token: u64, reads: bool, writes: bool) {
        let input = if reads {
            libc::EPOLLIN
        } else {
            libc::EPOLLRDHUP
        };
        let output = if writes { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event {
            events: (input | output) as u32,
            u64: token,
        };
        let (set, fd) = (self.0.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: the event outlives the call.
        unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_MOD, fd, &mut event) };
    }

    /// `epoll_ctl(EPOLL_CTL_DEL)`; a descriptor that is not in the set is no error.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        let (set, fd) = (self.0.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: the event pointer may be null for this operation.
        unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
    }

    /// `epoll_wait`: the numbers of those that are ready, for ever or until `timeout`.
    pub(crate) fn wait(&self, ready: &mut Vec<u64>, timeout: Option<Duration>) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; Self::MOST];
        // Rounded up: who is woken too early would ask again and again until the time has come.
        let millis = |t: Duration| t.as_micros().div_ceil(1000).min(1 << 30) as libc::c_int;
        let millis = timeout.map_or(-1, millis);
        ready.clear();
        // SAFETY: the array outlives the call and holds as many events as is said.
        let n = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                Self::MOST as libc::c_int,
                millis,
            )
        };
        match super::check(n) {
            Ok(n) => ready.extend(events[..n as usize].iter().map(|e| e.u64)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// An `eventfd` by which other threads of this process wake the quiet one.
pub(crate) struct Event(OwnedFd);

impl Event {
    /// `eventfd`, non-blocking.
    pub(crate) fn new() -> io::Result<Event> {
        // SAFETY: takes integers only.
        let fd = super::check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the kernel just gave this descriptor to us alone.
        Ok(Event(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The descriptor, readable while the event is set.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Sets the event. A counter that is full already is set, so an error changes nothing.
    pub(crate) fn set(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes of a local that outlives the call.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Clears the event.
    pub(crate) fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight bytes of a local that outlives the call.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

/// `poll(POLLOUT)`: waits until a descriptor can be written; false when the time is up.
pub(crate) fn writable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    one(fd, libc::POLLOUT, timeout)
}

/// `poll(POLLRDHUP)`: whether the other side of a socket sends no more, now.
pub(crate) fn is_ended(fd: BorrowedFd<'_>) -> bool {
    one(fd, libc::POLLRDHUP, Duration::ZERO)
}

/// `poll(POLLIN)`: waits until a descriptor is readable; false when the time is up.
pub(crate) fn readable_until(fd: BorrowedFd<'_>, deadline: Instant) -> bool {
    one(
        fd,
        libc::POLLIN,
        deadline.saturating_duration_since(Instant::now()),
    )
}

fn one(fd: BorrowedFd<'_>, events: libc::c_short, timeout: Duration) -> bool {
    let mut set = libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    let millis = timeout.as_millis().min(1 << 30) as libc::c_int;
    // SAFETY: one entry, a local that outlives the call.
    unsafe { libc::poll(&mut set, 1, millis) > 0 }
}
