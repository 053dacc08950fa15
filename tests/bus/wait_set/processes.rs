//! Sets that hear other processes, and sets in forked children.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use shmbus::{Event, OpenError, ShmMessage, Wait};

use super::Who::{self, Pipe};
use super::{Everything, Negate, One, SHORT, Two, one, waiting};
use crate::fork::in_fork;
use crate::support::{Child, Dir, name, open, tell, together};

/// A part: publishes and calls.
pub(crate) fn tells_a_set(name: &str) {
    const EACH: u64 = 2_000;
    let bus = open(name);
    let mut publisher = bus.publisher::<One>().expect("it joins");
    let client = bus.client::<Negate>().expect("a server is there");
    for number in 0..EACH {
        publisher.publish(&one(number)).expect("there is room");
        if number % 4 == 0 {
            let number = number as i64;
            let reply = client.call(&Negate { number }).expect("it answers");
            assert_eq!(reply.number, -number);
        }
    }
}

#[test]
fn another_process_is_heard() {
    let _together = together();
    for wait in [Wait::Park, Wait::Adaptive] {
        let name = name(&format!("set-child-{wait:?}"));
        let here = waiting(&name, wait);
        let (pipe, _end) = UnixStream::pair().expect("there are descriptors");
        let mut all = Everything::new(&here, pipe);
        let mut child = Child::start("tells-a-set", &[&name]);
        all.take_until([2_000, 0, 500, 0, 0], false);
        assert!(child.end().success());
        // And one that dies leaves the set as it was.
        assert_eq!(all.set.wait_timeout(SHORT).expect("not forked"), None);
    }
}

/// A part: a set in a forked child.
#[derive(ShmMessage)]
#[shm(latest = "set-newest")]
struct Newest {
    number: u64,
}

pub(crate) fn forks_with_a_set() {
    let bus = open("set-fork");
    let subscriber = bus.async_subscriber::<Two>().expect("it joins");
    let newest = bus.latest::<Newest>().expect("it joins");
    let (pipe, mut end) = UnixStream::pair().expect("there are descriptors");
    let mut set = Some(bus.wait_set().expect("there are descriptors"));
    let waker = {
        let set = set.as_mut().expect("made");
        set.add(Who::Two, &subscriber).expect("not forked");
        set.add_readable(Pipe, &pipe).expect("it is a socket");
        assert_eq!(set.wait_timeout(SHORT).expect("not forked"), None);
        set.add_waker(Who::Waker).expect("not forked")
    };
    // Forked while the lock of the list is most likely taken.
    let stops = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stops.load(Ordering::Relaxed) {
                waker.wake_by_ref();
            }
        });
        for _ in 0..30 {
            let end = in_fork(|| {
                let mut set = set.take().expect("made");
                let is_forked = |result: Result<(), OpenError>| {
                    i32::from(!matches!(result, Err(OpenError::Forked)))
                };
                waker.wake_by_ref();
                let mut wrong = is_forked(set.wait().map(drop));
                wrong += is_forked(set.try_wait().map(drop));
                wrong += is_forked(set.add(Who::One, &subscriber));
                wrong += is_forked(set.add_readable(Who::One, &pipe));
                wrong += is_forked(set.add_waker(Who::One).map(drop));
                set.remove(Pipe);
                drop(set);
                // Nor has a set of its own anything of its parent's ports.
                let own = open(&format!("set-fork-{}", std::process::id()));
                let mut set = own.wait_set().expect("there are descriptors");
                wrong += is_forked(set.add(Who::One, &subscriber));
                wrong += is_forked(set.add(Who::One, &newest));
                wrong
            });
            assert_eq!(end, 0);
        }
        stops.store(true, Ordering::Relaxed);
    });
    // All of it stays the parent's, and works.
    let mut set = set.expect("only children dropped it");
    set.remove(Who::Waker);
    end.write_all(b"x").expect("there is room");
    let event = set.wait().expect("not forked");
    assert_eq!(event, Some(Event::Ready(Pipe)));
    tell("good");
}

#[test]
fn a_forked_child_has_no_set() {
    let _together = together();
    let dir = Dir::new();
    let mut child = Child::start_in(dir.path(), "forks-with-a-set", &[]);
    assert_eq!(child.hear(), "good");
    assert!(child.end().success());
}
