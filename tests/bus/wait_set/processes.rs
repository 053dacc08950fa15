//! Sets that hear other processes, and sets in forked children.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use shmbus::{Event, OpenError, Wait};

use super::Who::{self, Pipe};
use super::{Everything, Negate, Negated, One, SHORT, Two, one, waiting};
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

/// How often the quiet thread of this process has slept.
fn quiet_sleeps() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("it is mounted");
    let mut quiet = tasks.filter_map(|task| {
        let path = task.expect("it can be read").path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        (name.trim() == "shmbus").then_some(path.join("status"))
    });
    let status = std::fs::read_to_string(quiet.next().expect("it runs")).expect("it runs");
    assert!(quiet.next().is_none(), "there is one bus");
    let count = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    let count = count.expect("the kernel counts");
    count.trim().parse().expect("it is a number")
}

/// A part: answers from a set, and says how often its quiet thread ran meanwhile.
pub(crate) fn waits_for_itself(name: &str) {
    let bus = waiting(name, Wait::Park);
    let server = bus.async_server::<Negate>().expect("nobody else serves");
    let mut set = bus.wait_set().expect("there are descriptors");
    set.add((), &server).expect("not forked");
    tell("ready");
    let mut before = None;
    loop {
        let event = set.wait().expect("not forked");
        assert_eq!(event, Some(Event::Ready(())));
        while let Some(call) = server.try_next().expect("not forked") {
            let number = -call.number.to_native();
            call.reply(&Negated { number }).expect("it fits");
            let before = *before.get_or_insert_with(quiet_sleeps);
            if number == -(DIRECT - 1) {
                return tell(&(quiet_sleeps() - before).to_string());
            }
        }
    }
}

const DIRECT: i64 = 2_000;

/// The ring of a peer wakes the thread of the set, and not another one that wakes it.
#[test]
fn a_ring_comes_to_the_thread_that_waits() {
    let _together = together();
    let name = name("set-direct");
    let mut child = Child::start("waits-for-itself", &[&name]);
    assert_eq!(child.hear(), "ready");
    let client = waiting(&name, Wait::Park).client::<Negate>();
    let client = client.expect("a server is there");
    for number in 0..DIRECT {
        let reply = client.call(&Negate { number }).expect("it answers");
        assert_eq!(reply.number, -number);
    }
    // Now and then it is faster: between the look of the thread and its sleep.
    let sleeps: i64 = child.hear().parse().expect("it counted");
    assert!(sleeps < DIRECT / 8, "it ran {sleeps} times");
    assert!(child.end().success());
}

/// A part: a set in a forked child.
pub(crate) fn forks_with_a_set() {
    let bus = open("set-fork");
    let subscriber = bus.async_subscriber::<Two>().expect("it joins");
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
