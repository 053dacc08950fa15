//! An `eventfd` by which another process has one look: it is never read, and its counter never changes.
//!
//! Its counter is one from the start, so it can always be read, and whoever rings adds zero. The kernel
//! wakes those who wait for it all the same: in an epoll set that tells of *edges*, each ring is
//! an event, and there is nothing to take back.
//!
//! Adding zero never blocks, whatever the other side did: the kernel has a writer wait only where the
//! counter would pass its end, which no write can bring it to. (Only signals of the kernel itself, such
//! as those of `io_submit`, could, of a process that means harm; it could as well stop this one.)

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// See the module.
pub(crate) struct Chime(OwnedFd);

impl AsFd for Chime {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Chime {
    /// `eventfd`, for somebody else to ring.
    pub(crate) fn new() -> io::Result<Chime> {
        // SAFETY: takes integers only.
        let fd = super::check(unsafe { libc::eventfd(1, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the kernel just gave this descriptor to us alone.
        Ok(Chime(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// What a peer says is one; `None` where it is anything else, whose writing might block or do harm.
    /// An error where this process cannot tell, as without `/proc`.
    pub(crate) fn of_peer(fd: OwnedFd) -> io::Result<Option<Chime>> {
        let what = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        Ok((what.as_os_str() == "anon_inode:[eventfd]").then_some(Chime(fd)))
    }

    /// `write`: adds zero. False where that cannot be.
    pub(crate) fn ring(&self) -> bool {
        let zero = [0u8; 8];
        // SAFETY: eight bytes of a local that outlives the call.
        let n = unsafe { libc::write(self.0.as_raw_fd(), zero.as_ptr().cast(), zero.len()) };
        n == zero.len() as isize
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::poll::Epoll;
    use super::*;

    fn taken(chime: &Chime) -> Chime {
        let theirs = chime.as_fd().try_clone_to_owned().unwrap();
        Chime::of_peer(theirs).unwrap().unwrap()
    }

    #[test]
    fn each_ring_is_an_event_that_needs_no_reading() {
        let (set, chime) = (Epoll::new().unwrap(), Chime::new().unwrap());
        let theirs = taken(&chime);
        set.add_edges(chime.as_fd(), 7).unwrap();
        let mut ready = Vec::new();
        let mut look = || {
            set.wait(&mut ready, Some(Duration::ZERO)).unwrap();
            ready.len()
        };
        assert_eq!(look(), 1, "it was just added");
        for _ in 0..3 {
            assert_eq!(look(), 0);
            assert!(theirs.ring() && theirs.ring());
            assert_eq!(look(), 1, "two rings at once are one");
        }
    }

    /// The worst that writing can do: it is full, and its writers are to wait.
    #[test]
    fn a_ring_never_blocks() {
        let chime = Chime::new().unwrap();
        rustix::io::write(&chime, &(u64::MAX - 2).to_ne_bytes()).unwrap();
        rustix::fs::fcntl_setfl(&chime, rustix::fs::OFlags::empty()).unwrap();
        let theirs = taken(&chime);
        assert!(theirs.ring());
    }

    #[test]
    fn nothing_else_is_taken() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let (pipe, _end) = rustix::pipe::pipe().unwrap();
        assert!(Chime::of_peer(file.into()).unwrap().is_none());
        assert!(Chime::of_peer(pipe).unwrap().is_none());
    }
}
