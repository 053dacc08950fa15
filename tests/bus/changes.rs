//! Newest values: who waits for a change of them.

use std::thread;
use std::time::Duration;

use shmbus::{Change, Config, Event, Wait};

use crate::latest::{Progress, changes, check, latest, publisher, state};
use crate::support::{Child, name, open, tell, together, told};

/// Publishes one value and then others, as it is told; part of tests.
pub(crate) fn publishes_newest(bus: &str) {
    let bus = open(bus);
    let mut publisher = publisher(&bus);
    publisher.publish(&state("a", 1)).expect("there is memory");
    tell("published");
    let mut version = 1;
    while told().is_some() {
        version += 1;
        publisher
            .publish(&state("a", version))
            .expect("there is memory");
        tell("published");
    }
}

#[test]
fn a_change_wakes_who_waits() {
    let _together = together();
    for wait in [Wait::Adaptive, Wait::Park, Wait::Spin] {
        let name = name(&format!("waits-for-change-{wait:?}"));
        let config = Config {
            wait,
            ..Config::default()
        };
        let bus = config.open(&name).expect("it opens");
        let mut latest = latest(&bus);
        let shortly = Duration::from_millis(1);
        assert!(!latest.changed().wait_timeout(shortly).expect("not forked"));
        let mut child = Child::start("publishes-newest", &[&name]);
        for version in 1..200 {
            assert!(latest.changed().wait().expect("not forked"));
            assert_eq!(changes(&mut latest), [format!("a={version}")]);
            assert_eq!(child.hear(), "published");
            child.say("go on");
        }
        assert!(latest.changed().wait().expect("not forked"));
        assert_eq!(changes(&mut latest), ["a=200"]);
        // Its end is a change, too, also where it is killed.
        child.kill();
        assert!(latest.changed().wait().expect("not forked"));
        assert_eq!(changes(&mut latest), ["a"]);
        let waiting = thread::spawn(move || latest.changed().wait());
        bus.close();
        let changed = waiting.join().expect("it does not panic");
        assert!(!changed.expect("not forked"));
    }
}

#[test]
fn tasks_wait_for_changes() {
    let _together = together();
    let name = name("task-changes");
    let bus = open(&name);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("threads");
    runtime.block_on(async {
        let mut latest = latest(&bus);
        let reading = tokio::spawn(async move {
            let mut last = 0;
            while last < 1_000 {
                assert!(latest.changed().await.expect("not forked"));
                while let Some(change) = latest.try_next().expect("not forked") {
                    let Change::Value(state) = change else {
                        panic!("nothing is removed");
                    };
                    assert!(check(&state) > last);
                    last = check(&state);
                }
            }
        });
        let mut publisher = publisher(&bus);
        for version in 1..=1_000 {
            publisher
                .publish(&state("a", version))
                .expect("there is memory");
            tokio::task::yield_now().await;
        }
        reading.await.expect("it comes to the end");
    });
}

#[test]
fn a_set_waits_for_changes() {
    let _together = together();
    for wait in [Wait::Adaptive, Wait::Park, Wait::Spin] {
        let name = name(&format!("set-of-newest-{wait:?}"));
        let bus = open(&name);
        let (mut one, mut other) = (latest(&bus), bus.latest::<Progress>().expect("it joins"));
        let mut set = bus.wait_set().expect("it is made");
        set.set_wait(wait);
        set.add(1, &one).expect("it is added");
        set.add(2, &other).expect("it is added");
        let there = open(&name);
        let publishing = thread::spawn(move || {
            let mut states = publisher(&there);
            let mut progress = there.latest_publisher().expect("it joins");
            for version in 1..=2_000u64 {
                states
                    .publish(&state("a", version))
                    .expect("there is memory");
                if version % 20 == 0 {
                    let percent = (version / 20) as u8;
                    progress
                        .publish(&Progress { percent })
                        .expect("there is memory");
                }
            }
            (states, progress)
        });
        let (mut last, mut percent) = (0, 0);
        while (last, percent) != (2_000, 100) {
            match set.wait().expect("not forked").expect("both are there") {
                Event::Ready(1) => {
                    while let Some(change) = one.try_next().expect("not forked") {
                        let Change::Value(state) = change else {
                            panic!("nothing is removed");
                        };
                        assert!(check(&state) > last);
                        last = check(&state);
                    }
                }
                Event::Ready(_) => {
                    while let Some(change) = other.try_next().expect("not forked") {
                        let Change::Value(progress) = change else {
                            panic!("nothing is removed");
                        };
                        percent = progress.percent;
                    }
                }
                Event::Ended(token) => panic!("{token} has not ended"),
            }
        }
        // The end of its publishers is a change; that of the bus, an end.
        drop(publishing.join().expect("it does not panic"));
        let mut removed = 0;
        while removed < 2 {
            let ready = set.wait().expect("not forked").expect("both are there");
            match ready {
                Event::Ready(1) => removed += changes(&mut one).len(),
                Event::Ready(_) => {
                    while other.try_next().expect("not forked").is_some() {
                        removed += 1;
                    }
                }
                Event::Ended(token) => panic!("{token} has not ended"),
            }
        }
        bus.close();
        let mut ended = 0;
        while let Some(event) = set.wait().expect("not forked") {
            match event {
                Event::Ready(1) => assert_eq!(changes(&mut one), [""; 0]),
                Event::Ready(_) => assert!(other.try_next().expect("not forked").is_none()),
                Event::Ended(_) => ended += 1,
            }
        }
        assert_eq!(ended, 2);
    }
}
