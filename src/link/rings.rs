//! How the two sides of a link ring for tasks of each other: see [`RingSet`].

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use super::node::Node;
use super::outgoing::Descriptor;
use super::wire::Control;
use super::{Link, lock};
use crate::error::Fault;
use crate::sys::chime::Chime;
use crate::sys::fork::Mine;
use crate::wait::Sleeper;
use crate::wait::rings::RingSet;

/// The most bells for tasks that one peer has: each takes a descriptor.
const MOST: usize = 1024;

/// The chimes of one link, by the numbers of their bells.
#[derive(Default)]
pub(super) struct Rings {
    ours: Mutex<HashMap<u32, Ours>>,
    theirs: RwLock<HashMap<u32, Mine<Chime>>>,
}

impl Link {
    /// Has the peer ring for the tasks that wait here, unless it was told how before.
    pub(crate) fn announce_bell(&self, node: &Node, port: &Arc<Sleeper>) -> io::Result<()> {
        let Some(chime) = self.rings.offer(&node.due().rings, port) else {
            return Ok(());
        };
        let posted = self.post(&Control::Bell { bell: port.id() }, Some(chime));
        posted.map_err(|unsent| self.unsaid(unsent))
    }
}

/// A chime that the peer has, for as long as the port that waits for it is there, and some more.
struct Ours {
    port: Weak<Sleeper>,
    chime: Arc<Mine<Chime>>,
}

impl Rings {
    /// A chime for the tasks that wait here, where the peer has none yet; none, too, where there are no more
    /// descriptors: it is then rung by control messages.
    pub(super) fn offer(&self, all: &RingSet, port: &Arc<Sleeper>) -> Option<Descriptor> {
        let mut ours = lock(&self.ours);
        let known = ours.get(&port.id());
        if known.is_some_and(|known| known.port.as_ptr() == Arc::as_ptr(port)) {
            return None;
        }
        // The peer takes no more than that, and rings by control messages for all others.
        if known.is_none() && ours.len() >= MOST {
            return None;
        }
        let chime = Arc::new(Mine::new(Chime::new().ok()?));
        all.add(chime.as_fd(), port.id()).ok()?;
        let new = Ours {
            port: Arc::downgrade(port),
            chime: chime.clone(),
        };
        if let Some(old) = ours.insert(port.id(), new) {
            all.remove(old.chime.as_fd());
        }
        Some(chime)
    }

    /// Nobody is rung for any more.
    pub(super) fn end(&self, all: &RingSet) {
        for ours in lock(&self.ours).values() {
            all.remove(ours.chime.as_fd());
        }
    }

    /// Takes a chime of the peer's.
    pub(super) fn take(&self, bell: u32, chime: OwnedFd) -> Result<(), Fault> {
        let mut theirs = self.theirs.write().unwrap_or_else(PoisonError::into_inner);
        if theirs.len() >= MOST && !theirs.contains_key(&bell) {
            let what = "one of too many bells";
            return Err(Fault::Control { what });
        }
        match Chime::of_peer(chime) {
            Ok(Some(chime)) => drop(theirs.insert(bell, Mine::new(chime))),
            Ok(None) => {
                let what = "a bell that is no eventfd";
                return Err(Fault::Control { what });
            }
            // Said otherwise from now on; the one of the port that had this bell before is dead.
            Err(_) => drop(theirs.remove(&bell)),
        }
        Ok(())
    }

    /// A chime of the peer's could not be taken: it is rung by control messages.
    pub(super) fn lack(&self, bell: u32) {
        let mut theirs = self.theirs.write().unwrap_or_else(PoisonError::into_inner);
        let before = theirs.remove(&bell);
        drop(before);
    }

    /// Rings for tasks of the peer's; false where that has to be said otherwise.
    pub(super) fn ring(&self, bell: u32) -> bool {
        let theirs = self.theirs.read().unwrap_or_else(PoisonError::into_inner);
        theirs.get(&bell).is_some_and(|chime| chime.ring())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::node::Reach;
    use super::super::wire;
    use super::*;
    use crate::memory::layout::LAYOUT_VERSION;
    use crate::sys::socket::Socket;
    use crate::{Config, Trust};

    #[test]
    fn chimes_are_taken_of_who_is_trusted() {
        for trust in [Trust::SameUser, Trust::Untrusted, Trust::AnyUser] {
            let config = Config {
                trust,
                ..Config::default()
            };
            let node = Node::start(Reach::Inherited, config).unwrap();
            let (near, far) = Socket::pair().unwrap();
            let link = node.adopt(near).unwrap();
            let (layout, barrier) = (LAYOUT_VERSION, false);
            let hello = Control::Hello { layout, barrier };
            far.send(&wire::encode(&hello).unwrap(), None).unwrap();
            let (chime, bell) = (Chime::new().unwrap(), Control::Bell { bell: 7 });
            let bell = wire::encode(&bell).unwrap();
            far.send(&bell, Some(chime.as_fd())).unwrap();
            // One after the other, if the quiet thread reads meanwhile.
            link.pump();
            link.pump();
            assert!(link.has_said_hello() && !link.is_dead());
            assert_eq!(link.rings.ring(7), trust == Trust::SameUser, "{trust:?}");
            node.stop();
        }
    }
}
