//! A lane as its link names and sees it.

use std::sync::Arc;

use crossbeam_queue::SegQueue;

use crate::sync::{AtomicBool, Ordering};
use crate::wait::Sleeper;

/// Which lane of a link: who opened it, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneId {
    pub(crate) ours: bool,
    pub(crate) number: u32,
}

/// A lane as its link knows it: to be told that its other end is gone.
pub(crate) struct Line {
    closed: AtomicBool,
    sleeper: Arc<Sleeper>,
    /// Where a port with many lanes learns which of them closed.
    notice: Option<(Arc<SegQueue<usize>>, usize)>,
}

impl Line {
    /// The line of a port that has no other and sleeps here.
    pub(crate) fn new(sleeper: Arc<Sleeper>) -> Arc<Line> {
        Arc::new(Line {
            closed: AtomicBool::new(false),
            sleeper,
            notice: None,
        })
    }

    /// One line of many: `number` is put into the queue when it closes.
    pub(crate) fn one_of_many(
        sleeper: Arc<Sleeper>,
        queue: Arc<SegQueue<usize>>,
        number: usize,
    ) -> Arc<Line> {
        Arc::new(Line {
            closed: AtomicBool::new(false),
            sleeper,
            notice: Some((queue, number)),
        })
    }

    /// True once the other end is gone; what it published before can still be read.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        // SYNC(closed): Acquire; pairs with Release in `close`.
        self.closed.load(Ordering::Acquire)
    }

    /// Has its port look around, if it waits.
    pub(super) fn rouse(&self) {
        self.sleeper.rouse();
    }

    pub(super) fn close(&self) {
        // SYNC(closed): Release; pairs with Acquire in `is_closed`.
        if self.closed.swap(true, Ordering::Release) {
            // Closed by the peer before the link ended: its port was told.
            return;
        }
        if let Some((queue, number)) = &self.notice {
            queue.push(*number);
        }
        self.sleeper.poke();
    }
}
