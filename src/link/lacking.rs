//! What comes while this process has no descriptor left.
//!
//! A control message is looked at before it is taken, so that a segment whose descriptor finds no number stays in the
//! socket, and all that was said behind it: for a second, in which another descriptor may be closed. Then the link
//! ends, as what refers to the segment could never be read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Link;
use crate::error::Fault;
use crate::memory::segment::PeerSegment;
use crate::sys::socket::Descriptors;

/// How long lies between two looks whether this process has a descriptor left.
pub(super) const SHORT: Duration = Duration::from_millis(10);
/// How long a segment waits for one, before the link is given up, and how often that is looked at: both, as this process
/// may be stopped in between.
const HELD: Duration = Duration::from_secs(1);
const MOST_LOOKS: usize = (HELD.as_millis() / SHORT.as_millis()) as usize;

/// Whether a look at the socket found all there was.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    All,
    Some,
    /// All before a segment for which this process has no descriptor left now. It stays where it is.
    Held,
}

/// What is known of whoever reads next.
#[derive(Default)]
pub(super) struct Reading {
    pub(super) buffer: Vec<u8>,
    /// Since when the next message waits for a descriptor, and how often that was looked at.
    held: Option<(Instant, usize)>,
}

impl Reading {
    /// Whether a message has to wait for a descriptor, and may.
    pub(super) fn holds(&mut self, descriptors: &Descriptors) -> bool {
        match descriptors {
            Descriptors::Came(_) => {
                self.held = None;
                false
            }
            Descriptors::Lacking => {
                let (since, looks) = self.held.get_or_insert_with(|| (Instant::now(), 0));
                *looks += 1;
                since.elapsed() < HELD || *looks < MOST_LOOKS
            }
        }
    }
}

impl Link {
    /// The peer's segment with this number.
    ///
    /// Its announcement was sent before any reference to it, so if it is not here yet, it lies in
    /// the socket, also of a peer that died: reading that is all the waiting there is, but for a process that has no
    /// descriptor left for it.
    pub(crate) fn segment(&self, id: u64) -> Result<Arc<PeerSegment>, Fault> {
        /// More than any honest peer says between an announcement and the first reference.
        const MOST_TURNS: usize = 1024;
        let mut held = 0..MOST_LOOKS;
        for _ in 0..MOST_TURNS {
            if let Some(segment) = self.mapped.get(id) {
                return Ok(segment);
            }
            match self.pump() {
                Read::Some => {}
                Read::Held if held.next().is_some() => std::thread::sleep(SHORT),
                Read::All | Read::Held => break,
            }
        }
        self.mapped.get(id).ok_or(Fault::Segment { segment: id })
    }
}
