//! The lanes of a link, and how long their memory stays.
//!
//! A pure book: what is to be dropped is returned, so that the caller drops it without a lock.
//!
//! # When the memory of a lane returns
//!
//! A side *closes* a lane when its port is dropped: it sends nothing on it any more, and so looks
//! no more at hand-backs, flags and bells of the other. It *releases* a lane when its receiving
//! end is dropped and no message of it is kept any more: it looks at no cell and no block of the
//! other. So what a side contributed stays until its own port is dropped, and the other side has
//! closed, and, where this side sent, released. A link that ends changes nothing of that for a
//! peer that lives on: the promise is then given by the end of its half of the socket, which comes
//! when it looks at nothing any more, or is dead.
//!
//! So that two which both live on do not wait for each other, what stays of a lane that sent, when its port is
//! dropped and its link has ended, looks at nothing of the other's: it is blocks, cells and pins of ours.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::line::{LaneId, Line};
use crate::memory::pins::Book;
use crate::memory::ring::Sent;

/// How many lanes one link may have: what it costs us is bounded before our memory is used up.
const MOST_LANES: usize = 16_384;

/// What a side puts into a lane: the blocks that hold its cells, words and bell, and whatever else is to stay as
/// long as they.
pub(crate) type Estate = Vec<Arc<dyn Any + Send + Sync>>;

/// See the module.
#[derive(Default)]
pub(super) struct Lanes {
    entries: HashMap<LaneId, Entry>,
    /// How many lanes are used by ports of ours, and how many hold what came on them.
    used: usize,
    /// Nothing is sent any more on either side.
    has_ended: bool,
    /// The peer looks at nothing any more: also to be seen without the lock that stands before this book.
    is_free: Arc<AtomicBool>,
}

/// A lane, from its opening until nobody looks at it any more.
pub(super) struct Entry {
    line: Arc<Line>,
    sends: bool,
    ours_closed: bool,
    theirs_closed: bool,
    theirs_released: bool,
    #[allow(dead_code)] // held for its drop
    estate: Estate,
    /// What was sent, and what of it was not handed back, after our port was dropped.
    sent: Option<Sent>,
}

impl Entry {
    fn is_over(&self) -> bool {
        self.ours_closed && self.theirs_closed && (self.theirs_released || !self.sends)
    }
}

/// What the peer looks at no more: to be dropped without a lock, since that gives memory back, and
/// may tell peers so.
#[must_use = "to be dropped without a lock"]
pub(super) struct Freed(#[allow(dead_code)] Option<Entry>);

/// What was buried, or need not be.
#[must_use = "to be settled without a lock"]
pub(super) struct Buried {
    /// To look away, since its link has ended.
    book: Option<Arc<Book>>,
    /// Returned, since the peer does not look at it.
    #[allow(dead_code)] // held for its drop
    sent: Option<Sent>,
}

impl Buried {
    pub(super) fn settle(self) {
        self.book.iter().for_each(|book| book.look_away());
    }
}

/// The lanes of a link that has ended.
#[must_use = "to be closed without a lock"]
pub(super) struct Ended {
    lines: Vec<Arc<Line>>,
    /// Of what was buried before.
    books: Vec<Arc<Book>>,
}

impl Ended {
    /// Wakes whoever waits on one of them, and looks away from what the peer hands back.
    pub(super) fn close(self) {
        self.lines.iter().for_each(|line| line.close());
        self.books.iter().for_each(|book| book.look_away());
    }
}

impl Lanes {
    /// Adds a lane that a port of ours uses; false where its number is in use.
    pub(super) fn add(&mut self, id: LaneId, line: Arc<Line>, estate: Estate, sends: bool) -> bool {
        if self.entries.contains_key(&id) {
            return false;
        }
        self.used += 1;
        // Relaxed: under the lock under which it is set.
        if !self.is_free.load(Ordering::Relaxed) {
            let entry = Entry {
                line,
                sends,
                ours_closed: false,
                theirs_closed: false,
                theirs_released: false,
                estate,
                sent: None,
            };
            self.entries.insert(id, entry);
        }
        true
    }

    /// True where the peer may open no more.
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= MOST_LANES
    }

    /// Set once the peer looks at nothing any more.
    pub(super) fn is_free(&self) -> &Arc<AtomicBool> {
        &self.is_free
    }

    /// Counts one more who looks at what came on a lane, and is no port.
    pub(super) fn hold(&mut self) {
        self.used += 1;
    }

    pub(super) fn unhold(&mut self) {
        self.used -= 1;
    }

    /// True while a port of ours uses a lane, or what came on one is held that may refer to more.
    pub(super) fn is_used(&self) -> bool {
        self.used > 0
    }

    /// The lines of all lanes.
    pub(super) fn lines(&self) -> Vec<Arc<Line>> {
        self.entries.values().map(|e| e.line.clone()).collect()
    }

    /// The port of a lane that was added is dropped.
    pub(super) fn close(&mut self, id: LaneId) -> Freed {
        self.used -= 1;
        self.change(id, |entry| entry.ours_closed = true)
    }

    /// The peer has closed a lane, whose line is returned.
    pub(super) fn closed(&mut self, id: LaneId) -> (Option<Arc<Line>>, Freed) {
        let line = self.entries.get(&id).map(|entry| entry.line.clone());
        (line, self.change(id, |entry| entry.theirs_closed = true))
    }

    /// The peer has refused a lane: it never looked at it.
    pub(super) fn refused(&mut self, id: LaneId) -> Freed {
        self.change(id, |entry| {
            (entry.theirs_closed, entry.theirs_released) = (true, true);
        })
    }

    /// The peer looks at nothing that was sent on a lane.
    pub(super) fn released(&mut self, id: LaneId) -> (Option<Sent>, Freed) {
        let mut sent = None;
        let freed = self.change(id, |entry| {
            entry.theirs_released = true;
            sent = entry.sent.take();
        });
        (sent, freed)
    }

    /// Takes what was sent from its port, where the peer may look at it.
    pub(super) fn bury(&mut self, id: LaneId, sent: Sent) -> Buried {
        match self.entries.get_mut(&id) {
            Some(entry) if !entry.theirs_released => {
                let book = sent.book().filter(|_| self.has_ended).cloned();
                entry.sent = Some(sent);
                Buried { book, sent: None }
            }
            _ => Buried {
                book: None,
                sent: Some(sent),
            },
        }
    }

    /// Nothing is sent any more.
    pub(super) fn end(&mut self) -> Ended {
        self.has_ended = true;
        let sent = self.entries.values().filter_map(|e| e.sent.as_ref());
        let books = sent.filter_map(Sent::book).cloned().collect();
        let lines = self.lines();
        Ended { lines, books }
    }

    /// The peer looks at nothing any more, and never will.
    pub(super) fn free(&mut self) -> Vec<Freed> {
        // SYNC(free): Release; pairs with Acquire in `Book::is_back`. Whoever sees it uses again what the peer read.
        self.is_free.store(true, Ordering::Release);
        let all = std::mem::take(&mut self.entries);
        all.into_values().map(|entry| Freed(Some(entry))).collect()
    }

    fn change(&mut self, id: LaneId, then: impl FnOnce(&mut Entry)) -> Freed {
        let Some(entry) = self.entries.get_mut(&id) else {
            return Freed(None);
        };
        then(entry);
        let over = entry.is_over();
        Freed(over.then(|| self.entries.remove(&id)).flatten())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::memory::arena::{Arena, Limits};
    use crate::memory::layout::{Cell, Kind, ReceiverBlock};
    use crate::memory::pins::{PinBlock, Pins};
    use crate::memory::ring::Producer;
    use crate::memory::shared::Shared;
    use crate::wait::{Sleeper, Waiter};

    /// A lane of a book with nothing else in it, and a way to see whether its memory is in use.
    struct Bench {
        lanes: Lanes,
        arena: Arc<Arena>,
        id: LaneId,
    }

    fn bench(sends: bool) -> Bench {
        let memory = 1 << 20;
        let arena = Arena::new(Limits { memory }, Box::new(|_| {}));
        let sleeper = Sleeper::new(
            Shared::own(Arc::new(arena.allocate(64).unwrap())),
            0,
            Waiter::Thread,
        );
        let line = Line::new(Arc::new(sleeper));
        let estate: Estate = vec![Arc::new(arena.allocate(4096).unwrap())];
        let (ours, number) = (true, 0);
        let id = LaneId { ours, number };
        let mut lanes = Lanes::default();
        assert!(lanes.add(id, line, estate, sends));
        Bench { lanes, arena, id }
    }

    impl Bench {
        fn is_in_use(&self) -> bool {
            self.arena.usage().1 >= 4096
        }

        fn step(&mut self, step: usize) {
            let id = self.id;
            match step {
                0 => drop(self.lanes.close(id)),
                1 => drop(self.lanes.closed(id)),
                _ => drop(self.lanes.released(id)),
            }
        }
    }

    #[test]
    fn a_lane_that_sends_stays_until_it_is_closed_twice_and_released() {
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let mut bench = bench(true);
            for step in order {
                assert!(bench.is_in_use(), "{order:?} before {step}");
                bench.step(step);
            }
            assert!(!bench.is_in_use(), "{order:?}");
        }
    }

    #[test]
    fn a_lane_that_only_receives_stays_until_it_is_closed_twice() {
        for order in [[0, 1], [1, 0]] {
            let mut bench = bench(false);
            bench.step(order[0]);
            assert!(bench.is_in_use());
            bench.step(order[1]);
            assert!(!bench.is_in_use());
        }
    }

    #[test]
    fn a_refused_lane_goes_with_its_port() {
        let mut bench = bench(true);
        drop(bench.lanes.refused(bench.id));
        assert!(bench.is_in_use());
        bench.step(0);
        assert!(!bench.is_in_use());
    }

    #[test]
    fn when_the_peer_is_gone_everything_returns_and_ports_are_still_counted() {
        let mut bench = bench(true);
        drop(bench.lanes.free());
        assert!(bench.lanes.is_free().load(Ordering::Acquire));
        assert!(!bench.is_in_use());
        assert!(bench.lanes.is_used());
        bench.step(0);
        assert!(!bench.lanes.is_used());
    }

    const PIN: u64 = 1 << 17;

    impl Bench {
        /// What was sent to a receiver, whose first record lends a pin.
        fn sent(&self, receiver: &Shared<ReceiverBlock>) -> (Sent, Arc<Book>) {
            let cells = Shared::heap_slice((0..64).map(|_| Cell::new()).collect());
            let mut producer = Producer::new(cells, receiver.clone(), true);
            let space = producer.here(1);
            producer
                .publish(&space, (Kind::Inline, 8, 0), 1, None)
                .unwrap();
            let mut pins = Pins::default();
            pins.note(&PinBlock::new(Arc::new(self.arena.allocate(PIN).unwrap())));
            let is_free = self.lanes.is_free().clone();
            producer.lend(&space, pins, |receiver| {
                Arc::new(Book::new(receiver, is_free))
            });
            let sent = Sent::from(producer);
            let book = sent.book().unwrap().clone();
            (sent, book)
        }

        fn is_lent(&self, book: &Book) -> bool {
            book.sweep();
            self.arena.usage().1 >= PIN
        }
    }

    #[test]
    fn what_is_buried_looks_at_the_peer_until_the_link_has_ended() {
        // It never ends, ends behind the port, or before it.
        for ends in [None, Some(false), Some(true)] {
            let mut bench = bench(true);
            let receiver = Shared::heap(ReceiverBlock::new());
            let (sent, book) = bench.sent(&receiver);
            if ends == Some(true) {
                bench.lanes.end().close();
            }
            bench.lanes.bury(bench.id, sent).settle();
            if ends == Some(false) {
                bench.lanes.end().close();
            }
            assert!(bench.is_lent(&book));
            receiver.handed_back[0].fetch_xor(1, Ordering::Release);
            assert_eq!(bench.is_lent(&book), ends.is_some(), "{ends:?}");
            drop(bench.lanes.free());
            assert!(!bench.is_lent(&book));
        }
    }
}
