//! What is said where nobody serves, and waiting for somebody who will.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use shmbus::{Bus, ConnectError};

use crate::support::{Ask, Child, check_call, name, open, together, told};

fn check_no_server<T>(result: Result<T, ConnectError>, of: &str, port: &str) -> PathBuf {
    let error = result.map(drop).expect_err("nobody serves");
    let text = error.to_string();
    let ConnectError::NoServer {
        bus,
        service,
        place,
    } = error
    else {
        panic!("{text}");
    };
    assert_eq!((bus.as_str(), service.as_str()), (of, port));
    for part in [of, port, &place] {
        assert!(text.contains(part), "{text}");
    }
    PathBuf::from(place)
}

#[test]
fn nobody_serves() {
    let _together = together();
    let of = name("nobody");
    let bus = open(&of);
    let soon = Duration::from_millis(20);
    let ends = |port: &str| format!("{of}/{port}.port");
    for _ in 0..2 {
        let looked_at = [
            check_no_server(bus.client::<Ask>(), &of, "ask"),
            check_no_server(bus.client_timeout::<Ask>(Duration::ZERO), &of, "ask"),
            check_no_server(bus.client_timeout::<Ask>(soon), &of, "ask"),
        ];
        for path in looked_at {
            assert!(path.ends_with(ends("ask")), "{path:?}");
            assert!(path.parent().is_some_and(Path::is_dir), "{path:?}");
        }
        let looked_at = [
            check_no_server(bus.sender::<Ask>("asks"), &of, "asks"),
            check_no_server(bus.sender_timeout::<Ask>("asks", soon), &of, "asks"),
        ];
        for path in looked_at {
            assert!(path.ends_with(ends("asks")), "{path:?}");
        }
        // The same once somebody has served: one who was killed, and could not take anything back.
        let mut server = Child::start("echo", &[&of]);
        assert_eq!(server.hear(), "ready");
        check_call(&bus.client().expect("a server is there"), 1, 24);
        server.kill();
        let path = check_no_server(bus.client::<Ask>(), &of, "ask");
        assert!(path.exists(), "{path:?}");
    }
}

/// A part: a child that does not serve its parent.
pub(crate) fn serves_nobody() {
    let _bus = Bus::from_parent().expect("a bus started this");
    while told().is_some() {}
}

#[test]
fn no_server_over_an_inherited_link() {
    let _together = together();
    let (bus, child) = Bus::spawn(Child::command("serves-nobody", &[])).expect("it starts");
    let mut child = Child::adopt(child);
    let link = format!("the link to process {}", child.pid());
    let soon = Duration::from_millis(20);
    for result in [bus.client::<Ask>(), bus.client_timeout::<Ask>(soon)] {
        let place = check_no_server(result, "(inherited)", "ask");
        assert_eq!(place, Path::new(&link));
    }
    assert!(child.end().success());
}

/// How often a thread of this process has gone to sleep so far.
fn sleeps(thread: i32) -> u64 {
    let path = format!("/proc/self/task/{thread}/status");
    let status = fs::read_to_string(path).expect("the thread waits");
    let line = status.lines().find_map(|line| {
        let count = line.strip_prefix("voluntary_ctxt_switches:")?;
        count.trim().parse().ok()
    });
    line.expect("the kernel counts them")
}

/// Waits for somebody who comes only when the waiter is seen to wait.
#[test]
fn whoever_waits_finds_who_comes() {
    let _together = together();
    for timeout in [Duration::from_secs(1000), Duration::MAX] {
        let of = name("waits");
        let bus = open(&of);
        let other = bus.clone();
        let (this, who) = mpsc::channel();
        let waiting = std::thread::spawn(move || {
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            this.send(thread).expect("the test listens");
            let client = other.client_timeout::<Ask>(timeout).expect("one comes");
            check_call(&client, 1, 24);
            this.send(thread).expect("the test listens");
            let mut sender = other
                .sender_timeout::<Ask>("asks", timeout)
                .expect("one comes");
            sender.send(&Ask::new(2, 24)).expect("there is room");
            client.server_pid()
        });
        let until_it_waits = || {
            let thread = who.recv().expect("it says who it is");
            let before = sleeps(thread);
            while sleeps(thread) < before + 5 {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        until_it_waits();
        // Another process, and a thread of this one.
        let mut server = Child::start("echo", &[&of]);
        assert_eq!(server.hear(), "ready");
        until_it_waits();
        let mut receiver = open(&of).receiver::<Ask>("asks").expect("nobody else does");
        let got = receiver.next().expect("not forked").expect("it comes");
        assert_eq!(got.id, 2);
        let pid = waiting.join().expect("the waiter does not panic");
        assert_eq!(pid, server.pid());
        assert!(server.end().success());
    }
}
