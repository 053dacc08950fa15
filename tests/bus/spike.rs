//! Memory of a busy moment: it goes back to the system, on both sides.

use std::fs;

use shmbus::{Bus, Bytes, Config, ShmMessage};

use crate::support::{Child, Dir, tell, together};

#[derive(ShmMessage)]
struct Bulk {
    number: u64,
    bytes: Bytes,
}

fn open() -> Bus {
    let config = Config {
        memory_limit: 128 << 20,
        max_message: 4 << 20,
        ..Config::default()
    };
    config.open("spike").expect("the bus opens")
}

/// How many segments are mapped as a peer's are, which nobody writes there.
fn mapped() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("it can be read");
    let is_peers = |line: &&str| line.contains(" r--s ") && line.contains("/memfd:shmbus");
    maps.lines().filter(is_peers).count()
}

/// A part: three senders have as much under way as they may, and then nothing more.
pub(crate) fn rises_and_falls() {
    const LARGE: usize = 7 << 19;
    let (here, there) = (open(), open());
    let mut receiver = here.receiver::<Bulk>("bulk").expect("nobody else does");
    let mut senders: Vec<_> = (0..3)
        .map(|_| there.sender::<Bulk>("bulk").expect("it is received"))
        .collect();
    let mut kept = Vec::new();
    for number in 0..4 {
        for sender in &mut senders {
            let bytes = vec![number as u8; LARGE].into();
            sender.send(&Bulk { number, bytes }).expect("there is room");
            let bulk = receiver.next().expect("not forked").expect("it was sent");
            assert_eq!(bulk.number, number);
            kept.push(bulk.keep());
        }
    }
    let (most, most_mapped) = (there.memory().0, mapped());
    assert!(most >= 12 * LARGE as u64);
    drop(kept);
    // What was handed back is looked at when something is sent.
    while there.memory().0 > most / 2 || mapped() >= most_mapped {
        for sender in &mut senders {
            let bytes = Bytes::default();
            sender
                .send(&Bulk { number: 0, bytes })
                .expect("there is room");
            drop(receiver.next().expect("not forked"));
        }
    }
    tell("fell");
}

#[test]
fn what_a_busy_moment_took_is_given_back() {
    let _together = together();
    let dir = Dir::new();
    let mut child = Child::start_in(dir.path(), "rises-and-falls", &[]);
    assert_eq!(child.hear(), "fell");
    assert!(child.end().success());
}
