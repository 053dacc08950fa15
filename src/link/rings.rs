//! The sockets on which the two sides of a link ring for ports of tasks: see [`RingSet`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use crate::sys::fork::Mine;
use crate::sys::numbers;
use crate::wait::rings::RingSet;

/// The sockets of one link, from its hello on.
#[derive(Default)]
pub(super) struct Rings {
    ours: OnceLock<Mine<OwnedFd>>,
    theirs: OnceLock<Mine<OwnedFd>>,
}

impl Rings {
    /// Listens to rings of the peer, which is to have what this returns.
    pub(super) fn listen(&self, all: &RingSet, link: u64) -> io::Result<OwnedFd> {
        let (take, put) = numbers::pair()?;
        let ours = self.ours.get_or_init(|| Mine::new(take));
        all.add(ours.as_fd(), link)?;
        Ok(put)
    }

    /// Listens no more.
    pub(super) fn close(&self, all: &RingSet) {
        if let Some(ours) = self.ours.get() {
            all.remove(ours.as_fd());
        }
    }

    /// The peer's bells are rung by this from now on.
    pub(super) fn greeted(&self, theirs: OwnedFd) {
        let _ = self.theirs.set(Mine::new(theirs));
    }

    /// Rings a bell of the peer's; false where that has to be said otherwise.
    pub(super) fn ring(&self, bell: u32) -> bool {
        let theirs = self.theirs.get();
        theirs.is_some_and(|theirs| numbers::put(theirs.as_fd(), bell))
    }

    /// Takes rings of the peer's; true where there may be more.
    pub(super) fn take(&self, all: &RingSet, bells: &mut Vec<u32>) -> bool {
        let Some(ours) = self.ours.get() else {
            return false;
        };
        match numbers::take(ours.as_fd(), bells) {
            Some(came) => came == numbers::MOST,
            None => {
                self.close(all);
                false
            }
        }
    }
}
