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
use std::sync::atomic::AtomicBool;
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
pub(crate) struct Shelf {
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

impl Shelf {
    pub(crate) fn new(due: &Arc<Due>, origin: Origin) -> Arc<Shelf> {
        Arc::new(Shelf {
            state: Mutex::default(),
            // Weak: a timer that is set holds the shelf.
            due: Arc::downgrade(due),
            origin,
        })
    }

    /// A book for a lane whose records are handed back there, and whose link is over once that is set.
    pub(crate) fn new_book(
        &self,
        receiver: Shared<ReceiverBlock>,
        is_free: Arc<AtomicBool>,
    ) -> Arc<Book> {
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

impl Wake for Shelf {
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
        // The books are the parent's, and may have been locked when this process was forked off.
        if !self.is_forked() {
            self.state().lanes.hold();
        }
        Hold(self.clone())
    }

    /// Set once the peer looks at nothing of ours any more.
    pub(crate) fn free_flag(&self) -> Arc<AtomicBool> {
        self.state().lanes.is_free().clone()
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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc;
    use std::thread;

    use super::super::wire::{self, Control};
    use super::*;
    use crate::error::Fault;
    use crate::memory::arena::{Arena, Limits};
    use crate::memory::pins::{PinBlock, Pins};
    use crate::sync::Ordering;
    use crate::sys::poll::Epoll;
    use crate::sys::socket::Socket;
    use crate::wait::rings::RingSet;

    /// A lane that has lent one pin, of which there is no handle any more.
    struct Bench {
        due: Arc<Due>,
        shelf: Arc<Shelf>,
        book: Arc<Book>,
        arena: Arc<Arena>,
        receiver: Shared<ReceiverBlock>,
        is_free: Arc<AtomicBool>,
    }

    impl Bench {
        fn new() -> Bench {
            let origin = Origin::here().unwrap();
            let epoll = Arc::new(Epoll::new().unwrap());
            let rings = RingSet::new(epoll, 0, origin).unwrap();
            let due = Arc::new(Due::new(rings).unwrap());
            let shelf = Shelf::new(&due, origin);
            let arena = Arena::new(Limits { memory: 1 << 20 }, Box::new(|_| {}));
            let receiver = Shared::heap(ReceiverBlock::new());
            let is_free = Arc::new(AtomicBool::new(false));
            let book = shelf.new_book(receiver.clone(), is_free.clone());
            let mut pins = Pins::default();
            let pin = PinBlock::new(Arc::new(arena.allocate(64).unwrap()));
            pins.note(&pin);
            assert!(!book.lend(70, false, pins), "there is a handle");
            pin.orphan();
            Bench {
                due,
                shelf,
                book,
                arena,
                receiver,
                is_free,
            }
        }

        fn is_freed(&self) -> bool {
            self.arena.usage().1 == 0
        }
    }

    #[test]
    fn what_comes_back_to_an_idle_lane_is_freed_by_the_quiet_thread() {
        let bench = Bench::new();
        assert!(bench.due.next_timer().is_none());
        bench.shelf.dropped();
        let first = bench.due.next_timer().expect("somebody looks again");
        while bench.due.next_timer() == Some(first) {
            bench.due.run();
        }
        // Looked at, and still lent: looked at again, some time later.
        assert!(!bench.is_freed());
        assert!(bench.due.next_timer().is_some());
        bench.receiver.handed_back[1].fetch_xor(1 << 6, Ordering::Release);
        while bench.due.next_timer().is_some() {
            bench.due.run();
        }
        assert!(bench.is_freed());
    }

    #[test]
    fn what_is_lent_without_a_handle_is_looked_for() {
        let bench = Bench::new();
        let mut pins = Pins::default();
        let pin = PinBlock::new(Arc::new(bench.arena.allocate(64).unwrap()));
        pins.note(&pin);
        pin.orphan();
        assert!(bench.book.lend(71, false, pins));
    }

    #[test]
    fn a_link_that_is_over_lends_nothing() {
        let bench = Bench::new();
        assert!(bench.shelf.sweep());
        bench.is_free.store(true, Ordering::Release);
        assert!(!bench.shelf.sweep());
        assert!(bench.is_freed());
    }

    fn link(socket: Socket, origin: Origin) -> Arc<Link> {
        let peer = socket.credentials().unwrap();
        let epoll = Arc::new(Epoll::new().unwrap());
        Arc::new(Link::new(
            0,
            socket,
            (peer, None),
            (Weak::new(), epoll),
            origin,
        ))
    }

    /// Told of by an error of what is said to it, before what it had said is read.
    #[test]
    fn what_the_dead_had_announced_is_found_but_not_of_who_broke_the_protocol() {
        for fault in [None, Some(Fault::Control { what: "no message" })] {
            let (near, far) = Socket::pair().unwrap();
            let link = link(near, Origin::here().unwrap());
            let _hold = link.hold();
            let file = crate::sys::memfd::create(c"shmbus-test", 4096).unwrap();
            crate::sys::memfd::seal(file.as_fd()).unwrap();
            let segment = Control::Segment { id: 7, len: 4096 };
            let gone = Control::Gone { name: "x".into() };
            for (control, fd) in [(gone, None), (segment, Some(file.as_fd()))] {
                far.send(&wire::encode(&control).unwrap(), fd).unwrap();
            }
            drop(far);
            let is_honest = fault.is_none();
            match fault {
                None => drop(link.say(&Control::Ring { bell: 0 })),
                fault => link.die(fault),
            }
            assert!(link.is_dead());
            assert_eq!(link.segment(7).is_ok(), is_honest);
            assert!(link.segment(8).is_err());
        }
    }

    /// As in a child that was forked off while another thread of its parent looked at the books.
    #[test]
    fn a_forked_child_holds_nothing_and_takes_no_lock() {
        let (socket, _peer) = Socket::pair().unwrap();
        let link = link(socket, Origin::of_parent());
        let (done, is_done) = mpsc::channel();
        let held = link.state();
        let holding = thread::spawn({
            let link = link.clone();
            move || {
                drop(link.hold());
                done.send(())
            }
        });
        let end = is_done.recv_timeout(Duration::from_secs(60));
        drop(held);
        end.expect("it hangs at the lock");
        holding.join().unwrap().unwrap();
        assert!(!link.state().lanes.is_used());
    }

    #[test]
    fn few_are_known_and_those_that_were_asked_for_last() {
        let file = crate::sys::memfd::create(c"shmbus-test", 4096).unwrap();
        crate::sys::memfd::seal(std::os::fd::AsFd::as_fd(&file)).unwrap();
        let map = || Arc::new(PeerSegment::map(&file, 4096, 4096, Box::new(())).unwrap());
        let (segment, at) = (
            map(),
            SegmentRef {
                segment: 1,
                offset: 0,
                len: 64,
            },
        );
        let ty = TypeId::of::<u8>();
        let key = |number| PinKey { at, number, ty };
        let mut known = Known::new(3);
        for number in 0..3 {
            known.add(key(number), &segment);
        }
        assert!(known.find(&key(0)).is_some());
        known.add(key(3), &segment);
        assert!(known.find(&key(0)).is_some(), "it was asked for");
        assert!(known.find(&key(1)).is_none(), "it was not");
        assert!(
            known
                .find(&PinKey {
                    ty: TypeId::of::<i8>(),
                    ..key(0)
                })
                .is_none()
        );
        // A number of a segment is as good as its mapping.
        drop(segment);
        assert!(known.find(&key(0)).is_none());
        let segment = map();
        assert!(known.find(&key(0)).is_none());
        known.add(key(0), &segment);
        assert!(known.find(&key(0)).is_some());
    }
}
