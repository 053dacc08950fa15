//! Pins of both sides: which of ours were handed back, and which of a peer's were validated.
//!
//! Ours: every lane that ever lent a pin has a book ([`Book`]), and a node knows all of them. Whoever drops
//! the last handle of a pin looks at all books; while one of them still has a record with a pin without
//! handle, the quiet thread looks from time to time. So a pin is freed when it was handed back the last time,
//! also where the lane has nothing more to say.
//!
//! A peer's: what was validated once is known by where it lies, its number, and its type. An honest peer
//! gives no number twice.

use std::any::TypeId;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use super::{Link, lock};
use crate::memory::layout::{ReceiverBlock, SegmentRef};
use crate::memory::pins::Book;
use crate::memory::segment::PeerSegment;
use crate::memory::shared::Shared;
use crate::sys::fork::Origin;
use crate::wait::tasks::Due;

/// All books of a node.
pub(crate) struct Board {
    state: Mutex<State>,
    due: Weak<Due>,
    origin: Origin,
}

#[derive(Default)]
struct State {
    books: Vec<Weak<Book>>,
    /// Whether a timer is set, and after which pause it was.
    is_set: bool,
    pause: Duration,
}

/// The first pause between two looks, and the longest: a receiver may hold a pin for hours.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

impl Board {
    pub(crate) fn new(due: &Arc<Due>, origin: Origin) -> Arc<Board> {
        Arc::new(Board {
            state: Mutex::default(),
            // Weak: a timer that is set holds the board.
            due: Arc::downgrade(due),
            origin,
        })
    }

    /// A book for a lane of this link whose records are handed back there.
    pub(crate) fn new_book(&self, link: &Link, receiver: Shared<ReceiverBlock>) -> Arc<Book> {
        let is_free = link.state().lanes.is_free().clone();
        let book = Arc::new(Book::new(receiver, is_free));
        let mut state = lock(&self.state);
        state.books.retain(|book| book.strong_count() > 0);
        state.books.push(Arc::downgrade(&book));
        book
    }

    /// Gives up all that was handed back. True where something is left of which there is no handle.
    pub(crate) fn sweep(&self) -> bool {
        if self.origin.is_forked() {
            // The books are the parent's, and may have been locked when this process was forked off.
            return false;
        }
        let books = lock(&self.state).books.clone();
        // All of them, whatever the first ones say.
        let books = books.iter().filter_map(Weak::upgrade);
        books.filter(|book| book.sweep()).count() > 0
    }

    /// The last handle of a pin is gone.
    pub(crate) fn dropped(self: &Arc<Self>) {
        if self.sweep() {
            self.look_later();
        }
    }

    /// Has it looked again from time to time what was handed back.
    pub(crate) fn look_later(self: &Arc<Self>) {
        self.set_timer(PAUSES.0);
    }

    /// Sets the timer, unless it is set.
    fn set_timer(self: &Arc<Self>, pause: Duration) {
        let mut state = lock(&self.state);
        if !std::mem::replace(&mut state.is_set, true) {
            state.pause = pause;
            drop(state);
            if let Some(due) = self.due.upgrade() {
                due.set_timer(Instant::now() + pause, Waker::from(self.clone()));
            }
        }
    }
}

impl Wake for Board {
    /// The timer's moment has come.
    fn wake(self: Arc<Self>) {
        let pause = {
            let mut state = lock(&self.state);
            // Before the look: who asks behind it sets a timer of its own.
            state.is_set = false;
            state.pause
        };
        if self.sweep() {
            self.set_timer((pause * 2).min(PAUSES.1));
        }
    }
}

/// What tells validated pins apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PinKey {
    pub(crate) at: SegmentRef,
    pub(crate) number: u64,
    /// What it was validated as: the bytes of one type may well be no value of another.
    pub(crate) ty: TypeId,
}

/// Pins that were validated lately.
///
/// With the mapping in which they were, since a segment's number is only as good as its peer's word. Weak, so
/// that one that is retired is not held.
pub(crate) struct Known {
    pins: Vec<(PinKey, Weak<PeerSegment>)>,
    most: usize,
}

impl Known {
    /// The most that is remembered of one lane, by its port alone; and of a link, for all.
    pub(crate) const OF_LANE: usize = 8;
    pub(super) const OF_LINK: usize = 256;

    pub(crate) fn new(most: usize) -> Known {
        Known {
            pins: Vec::new(),
            most,
        }
    }

    /// The segment in which this was validated, if it was.
    pub(crate) fn find(&mut self, key: &PinKey) -> Option<Arc<PeerSegment>> {
        let at = self.pins.iter().rposition(|(known, _)| known == key)?;
        let segment = self.pins[at].1.upgrade();
        // The last one is the newest, and first to be looked at.
        match segment.is_some() {
            true => self.pins[at..].rotate_left(1),
            false => drop(self.pins.remove(at)),
        }
        segment
    }

    /// Remembers what was validated, in place of what was not asked for longest.
    pub(crate) fn add(&mut self, key: PinKey, segment: &Arc<PeerSegment>) {
        if self.pins.len() == self.most {
            self.pins.remove(0);
        }
        self.pins.push((key, Arc::downgrade(segment)));
    }
}

/// Keeps all that is mapped of a peer, also when its link ends: what is held may yet refer to it.
pub(crate) struct Hold(Arc<Link>);

impl Hold {
    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.0.is_forked() {
            self.0.state().lanes.unhold();
            self.0.let_go_if_idle();
        }
    }
}

impl Link {
    /// Has all that is mapped of the peer stay so for as long as the returned lives. The caller has a port
    /// that uses a lane of the link.
    pub(crate) fn hold(self: &Arc<Link>) -> Hold {
        self.state().lanes.hold();
        Hold(self.clone())
    }

    /// Whether this process was forked off the one that has the link.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        self.origin.is_forked()
    }

    /// The segment in which a pin of the peer's was validated, if it was.
    pub(crate) fn known_pin(&self, key: &PinKey) -> Option<Arc<PeerSegment>> {
        lock(&self.mapped.known_pins).find(key)
    }

    /// Remembers that a pin of the peer's was validated.
    pub(crate) fn learn_pin(&self, key: PinKey, segment: &Arc<PeerSegment>) {
        lock(&self.mapped.known_pins).add(key, segment);
    }
}
