//! Where the system gives nothing more: errors, for as long as that lasts, and nobody is blamed.
//!
//! Unsafe code is needed to have a limit of file sizes be an error rather than a signal.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shmbus::{Bytes, CallError, MemoryError, SendError, Sender, ShmMessage};

use crate::support::{Ask, Child, Dir, open, tell, together};

const LARGE: usize = 600 << 10;

/// Runs something with so little of a resource.
fn with_little<T>(resource: Resource, little: u64, run: impl FnOnce() -> T) -> T {
    let before = getrlimit(resource);
    let less = Rlimit {
        current: Some(little),
        ..before
    };
    setrlimit(resource, less).expect("less is always allowed");
    let done = run();
    setrlimit(resource, before).expect("it was so before");
    done
}

/// The number that the next descriptor will have.
fn next_descriptor() -> u64 {
    let file = File::open("/dev/null").expect("it can be opened");
    file.as_raw_fd() as u64
}

/// A part: takes two messages, the second of which comes with a segment, where there is one descriptor left.
pub(crate) fn takes_with_one_descriptor() {
    let bus = open("want");
    let mut receiver = bus.receiver::<Ask>("asks").expect("nobody else does");
    tell("ready");
    let first = receiver.next().expect("not forked").expect("it was sent");
    drop(first);
    with_little(Resource::Nofile, next_descriptor() + 1, || {
        tell("one is left");
        let second = receiver.next().expect("not forked").expect("it was sent");
        assert_eq!(second.text.len(), LARGE);
    });
    assert_eq!(bus.take_incidents(), []);
    tell("good");
}

#[test]
fn one_descriptor_is_enough_for_a_segment() {
    let dir = Dir::new();
    let _together = together();
    let mut child = Child::start_in(dir.path(), "takes-with-one-descriptor", &[]);
    assert_eq!(child.hear(), "ready");
    let mut sender = Child::start_in(dir.path(), "sends-large", &[]);
    assert_eq!(sender.hear(), "sent a small one");
    assert_eq!(child.hear(), "one is left");
    sender.say("go");
    assert_eq!(child.hear(), "good");
    assert!(sender.end().success());
    assert!(child.end().success());
}

/// A request whose reply is as large as it says.
#[derive(ShmMessage)]
#[shm(service = "grow", reply = Grown)]
struct Grow {
    bytes: u64,
}

#[derive(ShmMessage)]
struct Grown {
    bytes: Bytes,
}

/// A part: answers, as long as its caller takes the answers.
pub(crate) fn grows() {
    let bus = open("want");
    let mut server = bus.server::<Grow>().expect("nobody else does");
    tell("ready");
    while let Some(call) = server.next().expect("not forked") {
        let bytes = vec![7; call.bytes.to_native() as usize].into();
        let _ = call.reply(&Grown { bytes });
    }
}

/// A part: calls where there is no descriptor for the segment of the reply, as long as that is waited for.
pub(crate) fn calls_with_no_descriptor() {
    let bus = open("want");
    let client = bus.client::<Grow>().expect("it is served");
    let small = client.call(&Grow { bytes: 24 }).expect("it is answered");
    drop(small);
    with_little(Resource::Nofile, next_descriptor(), || {
        let bytes = LARGE as u64;
        let lost = client.call(&Grow { bytes }).err();
        let nobody_is_blamed = matches!(lost, Some(CallError::Lost { fault: None, .. }));
        assert!(nobody_is_blamed, "{lost:?}");
    });
    let incidents = bus.take_incidents();
    let [said] = &incidents[..] else {
        panic!("{incidents:?}");
    };
    assert!(said.what.contains("ulimit -n"), "{said}");
    tell("good");
}

#[test]
fn who_sent_what_there_was_no_descriptor_for_is_not_blamed() {
    let dir = Dir::new();
    let _together = together();
    let mut server = Child::start_in(dir.path(), "grows", &[]);
    assert_eq!(server.hear(), "ready");
    let mut client = Child::start_in(dir.path(), "calls-with-no-descriptor", &[]);
    assert_eq!(client.hear(), "good");
    assert!(client.end().success());
}

/// A part: sends a small message, and a large one when it is told to.
pub(crate) fn sends_large() {
    let bus = open("want");
    let mut sender = bus.sender::<Ask>("asks").expect("a receiver is there");
    sender.send(&Ask::new(1, 24)).expect("there is room");
    tell("sent a small one");
    assert_eq!(crate::support::told().as_deref(), Some("go"));
    sender.send(&Ask::new(2, LARGE)).expect("there is room");
    while crate::support::told().is_some() {}
}

fn check_exhausted(sender: &mut Sender<Ask>) {
    for _ in 0..3 {
        let sent = sender.send(&Ask::new(1, LARGE));
        let is_exhausted = matches!(sent, Err(SendError::Memory(MemoryError::Exhausted { .. })));
        assert!(is_exhausted, "{sent:?}");
        // What needs no new segment goes on.
        sender.send(&Ask::new(2, 24)).expect("there is room");
    }
}

/// A part: sends where there are no descriptors, and where files may not be as large as a segment.
pub(crate) fn sends_in_want() {
    // SAFETY: no handler is installed; what would write too much gets an error instead.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let bus = open("want");
    let mut receiver = bus.receiver::<Ask>("asks").expect("nobody else does");
    let mut sender = bus.sender::<Ask>("asks").expect("a receiver is there");
    with_little(Resource::Nofile, next_descriptor(), || {
        check_exhausted(&mut sender)
    });
    with_little(Resource::Fsize, 4096, || check_exhausted(&mut sender));
    sender.send(&Ask::new(3, LARGE)).expect("there is memory");
    for id in [2, 2, 2, 2, 2, 2, 3] {
        let got = receiver.next().expect("not forked").expect("it was sent");
        assert_eq!(got.id, id);
    }
    assert_eq!(bus.take_incidents(), []);
    tell("good");
}

#[test]
fn what_the_system_refuses_is_an_error() {
    let dir = Dir::new();
    let _together = together();
    let mut child = Child::start_in(dir.path(), "sends-in-want", &[]);
    assert_eq!(child.hear(), "good");
    assert!(child.end().success());
}

#[derive(ShmMessage)]
#[shm(topic = "wants")]
struct Wanted {
    number: u64,
}

/// A part: subscribes, and stays.
pub(crate) fn subscribes_to_wanted() {
    let _subscriber = open("want").subscriber::<Wanted>().expect("nothing lacks");
    tell("there");
    while crate::support::told().is_some() {}
}

/// A part: publishes with no descriptor left, with one, and so on: it is refused, or reaches who is there, or says why
/// not, or has waited as long as a publisher waits.
pub(crate) fn publishes_in_want() {
    /// Far more than it takes.
    const MOST: u64 = 12;
    let mut refused = 0;
    for free in 0..MOST {
        let bus = open("want");
        let few = next_descriptor() + free;
        let begun = Instant::now();
        match with_little(Resource::Nofile, few, || bus.publisher::<Wanted>()) {
            Err(_) => refused += 1,
            Ok(publisher) => {
                let told = bus.take_incidents();
                let subscribers = publisher.subscribers();
                let waited = begun.elapsed() >= Duration::from_secs(1);
                assert!(
                    subscribers == 1 || !told.is_empty() || waited,
                    "{free} were left"
                );
                assert!(subscribers == 1 || free < MOST - 1, "{told:?}");
            }
        }
    }
    assert!(refused > 0);
    tell("good");
}

#[test]
fn who_cannot_see_who_is_there_is_refused() {
    let dir = Dir::new();
    let _together = together();
    let mut subscriber = Child::start_in(dir.path(), "subscribes-to-wanted", &[]);
    assert_eq!(subscriber.hear(), "there");
    let mut child = Child::start_in(dir.path(), "publishes-in-want", &[]);
    assert_eq!(child.hear(), "good");
    assert!(child.end().success());
    assert!(subscriber.end().success());
}
