//! Who is looked at, and how often.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use super::*;
use crate::Bus;
use crate::wait::sources::Ready;

const SHORT: Duration = Duration::from_millis(1);

/// A port that counts the looks at it, and is ready as long as it is told to be.
#[derive(Default)]
struct Port {
    is_ready: AtomicBool,
    has_ended: AtomicBool,
    /// It has something right behind the last look.
    is_late: AtomicBool,
    looks: AtomicU64,
    kept: Mutex<Option<Waker>>,
}

impl Port {
    fn kept(&self) -> Option<Waker> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.take()
    }

    fn wake(&self) {
        self.kept().into_iter().for_each(Waker::wake);
    }

    fn looks(&self) -> u64 {
        self.looks.load(Ordering::SeqCst)
    }
}

impl Ready for Arc<Port> {
    fn poll_ready(&self, waker: Option<&Waker>) -> Readiness {
        self.looks.fetch_add(1, Ordering::SeqCst);
        if self.is_ready.load(Ordering::SeqCst) {
            return Readiness::Ready;
        }
        if self.has_ended.load(Ordering::SeqCst) {
            return Readiness::Ended;
        }
        if let Some(waker) = waker {
            if self.is_late.swap(false, Ordering::SeqCst) {
                self.is_ready.store(true, Ordering::SeqCst);
                waker.wake_by_ref();
                return Readiness::Nothing;
            }
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
        }
        Readiness::Nothing
    }

    fn forget(&self, _waker: &Waker) {
        drop(self.kept());
    }

    fn is_forked(&self) -> bool {
        false
    }
}

/// A set of such ports, by their numbers.
fn set_of(ports: usize, name: &str, wait: Wait) -> (WaitSet<usize>, Vec<Arc<Port>>) {
    let bus = Bus::open(&format!("unit-{name}-{}", std::process::id())).unwrap();
    let mut set = bus.wait_set().unwrap();
    set.set_wait(wait);
    let ports: Vec<_> = (0..ports).map(|_| Arc::new(Port::default())).collect();
    for (number, port) in ports.iter().enumerate() {
        set.add_port(number, Box::new(port.clone())).unwrap();
    }
    (set, ports)
}

/// One of a thousand and one is busy: how many of the others were looked at meanwhile.
fn looked_at_beside(wait: Wait, name: &str) -> usize {
    const ROUNDS: u64 = 100;
    let (mut set, ports) = set_of(1_001, name, wait);
    assert_eq!(set.wait_timeout(SHORT).unwrap(), None);
    let (busy, idle) = ports.split_first().unwrap();
    // From here on it is one of those that a thread which spins goes on looking at.
    busy.is_ready.store(true, Ordering::SeqCst);
    busy.wake();
    assert_eq!(set.wait().unwrap(), Some(Event::Ready(0)));
    let before: Vec<_> = idle.iter().map(|port| port.looks()).collect();
    let looks = busy.looks();
    for _ in 0..ROUNDS {
        busy.is_ready.store(false, Ordering::SeqCst);
        assert_eq!(set.wait_timeout(SHORT).unwrap(), None);
        busy.is_ready.store(true, Ordering::SeqCst);
        busy.wake();
        assert_eq!(set.wait().unwrap(), Some(Event::Ready(0)));
    }
    assert!(busy.looks() >= looks + 2 * ROUNDS);
    let changed = idle
        .iter()
        .zip(before)
        .filter(|(port, n)| port.looks() != *n);
    changed.count()
}

#[test]
fn only_who_is_busy_is_looked_at() {
    assert_eq!(looked_at_beside(Wait::Park, "park"), 0);
    assert_eq!(looked_at_beside(Wait::Adaptive, "adaptive"), 0);
    // It goes on looking at some, one of which makes room for the one that is busy.
    let spun = looked_at_beside(Wait::Spin, "spin");
    assert!(spun <= MOST_SPUN, "{spun}");
}

#[test]
fn whoever_is_ready_has_its_turn() {
    let (mut set, ports) = set_of(3, "turns", Wait::Adaptive);
    for port in &ports {
        port.is_ready.store(true, Ordering::SeqCst);
    }
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    set.add_readable(3, &reader).unwrap();
    set.add_writable(4, &writer).unwrap();
    let waker = set.add_waker(5).unwrap();
    rustix::io::write(&writer, b"x").unwrap();
    let mut told = [0; 6];
    for _ in 0..600 {
        waker.wake_by_ref();
        match set.wait().unwrap() {
            Some(Event::Ready(number)) => told[number] += 1,
            other => panic!("{other:?}"),
        }
    }
    // Descriptors every other time at the least.
    assert!(told[..3].iter().all(|&times| times >= 100), "{told:?}");
    assert!(told[3..5].iter().all(|&times| times >= 50), "{told:?}");
    assert!(told[5] >= 100, "{told:?}");
}

#[test]
fn an_end_is_told_of_once() {
    let (mut set, ports) = set_of(2, "end", Wait::Adaptive);
    assert_eq!(set.wait_timeout(SHORT).unwrap(), None);
    ports[1].has_ended.store(true, Ordering::SeqCst);
    assert_eq!(set.wait_timeout(SHORT).unwrap(), None, "nobody said so");
    ports[1].wake();
    assert_eq!(set.wait().unwrap(), Some(Event::Ended(1)));
    assert_eq!(set.wait_timeout(SHORT).unwrap(), None);
    assert!(!set.remove(1));
    assert!(set.remove(0));
    assert_eq!(set.wait().unwrap(), None, "nothing is left");
}

#[test]
fn what_was_removed_is_not_told_of() {
    let (mut set, ports) = set_of(2, "removed", Wait::Adaptive);
    for port in &ports {
        port.is_ready.store(true, Ordering::SeqCst);
    }
    // Both are of this round.
    assert_eq!(set.wait().unwrap(), Some(Event::Ready(0)));
    assert!(set.remove(1));
    for _ in 0..3 {
        assert_eq!(set.wait().unwrap(), Some(Event::Ready(0)));
    }
    // A new one under the same token is another one.
    ports[0].is_ready.store(false, Ordering::SeqCst);
    let other = Arc::new(Port::default());
    set.add_port(0, Box::new(other.clone())).unwrap();
    assert_eq!(set.wait_timeout(SHORT).unwrap(), None);
    assert!(ports[0].kept().is_none());
    other.is_ready.store(true, Ordering::SeqCst);
    other.wake();
    assert_eq!(set.wait().unwrap(), Some(Event::Ready(0)));
}

/// Between the last look at it and the sleep of the thread.
#[test]
fn who_is_woken_late_keeps_the_thread_awake() {
    const LONG: Duration = Duration::from_secs(20);
    for wait in [Wait::Park, Wait::Adaptive, Wait::Spin] {
        let (mut set, ports) = set_of(MOST_SPUN + 1, "late", wait);
        ports[0].is_late.store(true, Ordering::SeqCst);
        let event = set.wait_timeout(LONG).unwrap();
        assert_eq!(event, Some(Event::Ready(0)));
    }
}

/// The thread drives while it sleeps, and at no other time.
#[test]
fn who_sleeps_drives() {
    const LONG: Duration = Duration::from_secs(20);
    let (mut set, _ports) = set_of(1, "drives", Wait::Park);
    let (bus, waker) = (set.bus.clone(), set.add_waker(1).unwrap());
    let has_quiet = || bus.node().due().rings.has_quiet();
    let is_over = AtomicBool::new(false);
    for _ in 0..20 {
        is_over.store(false, Ordering::SeqCst);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while has_quiet() && !is_over.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                if !has_quiet() {
                    waker.wake_by_ref();
                }
            });
            let event = set.wait_timeout(LONG);
            is_over.store(true, Ordering::SeqCst);
            assert_eq!(event.unwrap(), Some(Event::Ready(1)));
            assert!(has_quiet());
        });
    }
}

/// What ports keep does not outlive the set, nor hold it.
#[test]
fn wakers_go_with_their_set() {
    let (mut set, ports) = set_of(2, "wakers", Wait::Park);
    assert_eq!(set.wait_timeout(SHORT).unwrap(), None);
    let woken = Arc::downgrade(&set.woken);
    ports[0].wake();
    drop(set);
    assert!(ports[1].kept().is_none());
    assert_eq!(woken.strong_count(), 0);
}
