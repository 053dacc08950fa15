//! What we look at of a peer's memory, and the word to it that we look no more.
//!
//! Our half of the socket is shut down when the last mapping of a segment of the peer's is gone,
//! and not before: the end of the stream is what the peer waits for before it uses memory again
//! that was lent over a link that ended. The kernel gives the same word for a process that died.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::pins::Known;
use super::{Link, lock};
use crate::error::Fault;
use crate::memory::segment::PeerSegment;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::fork::{Mine, Origin};
use crate::sys::socket::Socket;

/// The most bytes of a peer's memory that we map: its own limit may not cost us ours.
const MOST_BYTES: u64 = 1 << 36;
/// The most segments of a peer that we map at once.
const MOST_SEGMENTS: u64 = 4096;

/// The segments of a peer that messages may refer to.
pub(super) struct Mapped {
    segments: RwLock<HashMap<u64, Arc<PeerSegment>>>,
    presence: Mutex<Option<Arc<Presence>>>,
    /// What of them was validated.
    pub(super) known_pins: Mutex<Known>,
}

/// Lives as long as anything of the peer's is mapped, or may yet be.
struct Presence {
    socket: Arc<Mine<Socket>>,
    origin: Origin,
    bytes: AtomicU64,
    segments: AtomicU64,
}

impl Drop for Presence {
    fn drop(&mut self) {
        // The socket of a forked child is its parent's, too.
        if !self.origin.is_forked() {
            self.socket.shutdown_write();
        }
    }
}

/// The part that one mapped segment has in all that are mapped.
struct Share {
    presence: Arc<Presence>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        // Relaxed: counts that only bound how much is mapped.
        self.presence.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.presence.segments.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Link {
    /// Where the peer is not trusted: what it sends is copied before it is validated, of so many bytes at most.
    pub(crate) fn copies(&self) -> Option<usize> {
        self.copies
    }

    /// How many bytes of the peer's memory are mapped.
    pub(crate) fn mapped_bytes(&self) -> u64 {
        self.mapped.bytes()
    }
}

impl Mapped {
    pub(super) fn new(socket: Arc<Mine<Socket>>, origin: Origin) -> Mapped {
        let presence = Presence {
            socket,
            origin,
            bytes: AtomicU64::new(0),
            segments: AtomicU64::new(0),
        };
        Mapped {
            segments: RwLock::default(),
            presence: Mutex::new(Some(Arc::new(presence))),
            known_pins: Mutex::new(Known::new(Known::OF_LINK)),
        }
    }

    /// Maps a segment. Called by one thread at a time.
    pub(super) fn add(&self, id: u64, len: u64, fd: &OwnedFd) -> Result<(), Fault> {
        let Some(presence) = lock(&self.presence).clone() else {
            return Ok(());
        };
        if self.get(id).is_some() {
            return Err(Fault::Segment { segment: id });
        }
        // Relaxed: as in `Share`. Segments that are retired and still looked at count.
        let bytes = presence.bytes.fetch_add(len, Ordering::Relaxed);
        let segments = presence.segments.fetch_add(1, Ordering::Relaxed);
        let share = Share {
            presence,
            bytes: len,
        };
        let most = if segments < MOST_SEGMENTS {
            MOST_BYTES.saturating_sub(bytes)
        } else {
            0
        };
        let segment = PeerSegment::map(fd, len, most, Box::new(share))?;
        let mut segments = self
            .segments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        segments.insert(id, Arc::new(segment));
        Ok(())
    }

    /// The segment of this number.
    pub(super) fn get(&self, id: u64) -> Option<Arc<PeerSegment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.get(&id).cloned()
    }

    /// How many bytes are mapped.
    pub(super) fn bytes(&self) -> u64 {
        let presence = lock(&self.presence);
        // Relaxed: as in `Share`.
        let bytes = |presence: &Arc<Presence>| presence.bytes.load(Ordering::Relaxed);
        presence.as_ref().map_or(0, bytes)
    }

    /// Forgets a segment that no new message refers to.
    pub(super) fn remove(&self, id: u64) -> Result<(), Fault> {
        let mut segments = self
            .segments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let gone = segments.remove(&id);
        drop(segments);
        gone.map(drop).ok_or(Fault::Segment { segment: id })
    }

    /// Looks at nothing any more but at what is held.
    pub(super) fn let_go(&self) {
        let mut segments = self
            .segments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let gone = std::mem::take(&mut *segments);
        drop(segments);
        drop(gone);
        let presence = lock(&self.presence).take();
        drop(presence);
    }
}
