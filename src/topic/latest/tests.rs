//! What a peer of another make could write, and what comes of it.

use std::time::Duration;

use super::publisher::LatestPublisher;
use super::reader::Latest;
use crate::error::SendError;
use crate::memory::layout::ValueHeader;
use crate::{Bus, Config, ShmMessage};

#[derive(ShmMessage)]
#[shm(latest = "state", key = "path")]
struct State {
    path: String,
    number: u64,
}

/// A publisher that is forged, one that is not, and one who reads both.
struct Bench {
    forged: LatestPublisher<State>,
    honest: LatestPublisher<State>,
    latest: Latest<State>,
    reads: Bus,
    _publishes: [Bus; 2],
}

fn state(path: &str, number: u64) -> State {
    let path = path.to_owned();
    State { path, number }
}

fn bench(of: &str) -> Bench {
    let name = format!("unit-latest-{of}-{}", std::process::id());
    let open = || Bus::open(&name).unwrap();
    let (reads, one, other) = (open(), open(), open());
    let mut forged = one.latest_publisher().unwrap();
    let mut honest = other.latest_publisher().unwrap();
    forged.publish(&state("forged", 1)).unwrap();
    honest.publish(&state("honest", 2)).unwrap();
    let mut latest = reads.latest::<State>().unwrap();
    assert!(latest.get("forged").unwrap().is_some());
    Bench {
        forged,
        honest,
        latest,
        reads,
        _publishes: [one, other],
    }
}

impl Bench {
    /// The one is refused, and its link with it, by all ways to read; the other does not notice.
    fn check_refused(mut self, what: &str) {
        assert!(self.latest.get("forged").unwrap().is_none(), "{what}");
        while self.latest.try_next().unwrap().is_some() {}
        assert!(self.latest.get("forged").unwrap().is_none(), "{what}");
        let incidents = self.reads.take_incidents();
        // Once for each of its links, of which it makes another.
        assert!(!incidents.is_empty(), "{what}");
        self.honest.publish(&state("honest", 3)).unwrap();
        let honest = self.latest.get("honest").unwrap().unwrap();
        assert_eq!(honest.number, 3);
    }
}

const HEADER: ValueHeader = ValueHeader {
    version: 77,
    len: 16,
    published: 0,
};

/// Where a message starts behind its header.
const START: usize = 24;

#[test]
fn locations_that_are_none_end_the_link() {
    let far = 1 << 25;
    for (of, word) in [
        ("distance", |known| known | ((1 << 26) - 1)),
        ("segment", |known| known + (1 << 40)),
        ("all", |_| u64::MAX),
        ("no-segment", |_| 1),
    ] as [(&str, fn(u64) -> u64); 4]
    {
        let bench = bench(of);
        let board = bench.forged.board();
        board.forge_location(0, word(board.location(0)));
        bench.check_refused(of);
    }
    let bench = bench("far");
    let board = bench.forged.board();
    board.forge_location(0, board.location(0) + far);
    bench.check_refused("far");
}

#[test]
fn values_that_are_none_end_the_link() {
    for (of, len, bytes) in [
        ("endless", u64::MAX, [0; 16]),
        ("long", 1 << 29, [0; 16]),
        ("short", 3, [0; 16]),
        ("empty", 0, [0; 16]),
        // A text of so many bytes, somewhere.
        ("invalid", 16, [0x81; 16]),
    ] {
        let bench = bench(of);
        let header = ValueHeader { len, ..HEADER };
        bench.forged.board().forge_value(0, header, START, &bytes);
        bench.check_refused(of);
    }
}

#[test]
fn boards_that_are_none_end_the_link() {
    for (of, count) in [("count", u64::MAX), ("large", 65_473), ("rows", 65)] {
        let bench = bench(of);
        bench.forged.board().forge_count(count);
        // Only who looks for a key that is not there learns of it.
        let mut bench = bench;
        assert!(bench.latest.get("neither").unwrap().is_none());
        bench.check_refused(of);
    }
}

#[test]
fn two_values_of_one_key_end_the_link() {
    let mut bench = bench("twins");
    bench.forged.publish(&state("other", 1)).unwrap();
    assert!(bench.latest.get("other").unwrap().is_some());
    let board = bench.forged.board();
    board.forge_location(1, board.location(0));
    assert!(bench.latest.get("other").unwrap().is_none());
    bench.check_refused("twins");
}

/// A key that goes to another entry is found there, also by who has not looked since.
#[test]
fn a_key_may_come_back_elsewhere() {
    let mut bench = bench("elsewhere");
    bench.forged.publish(&state("other", 1)).unwrap();
    assert!(bench.latest.get("other").unwrap().is_some());
    bench.forged.remove("forged").unwrap();
    bench.forged.remove("other").unwrap();
    // In the other order, so that each has the entry of the other now.
    bench.forged.publish(&state("forged", 3)).unwrap();
    bench.forged.publish(&state("other", 4)).unwrap();
    assert_eq!(bench.latest.get("forged").unwrap().unwrap().number, 3);
    assert_eq!(bench.latest.get("other").unwrap().unwrap().number, 4);
    assert_eq!(bench.reads.take_incidents(), []);
}

#[test]
fn keys_have_a_most() {
    let mut bench = bench("long-keys");
    let longest = "x".repeat(4096);
    bench.honest.publish(&state(&longest, 5)).unwrap();
    assert_eq!(bench.latest.get(&longest).unwrap().unwrap().number, 5);
    let refused = bench.honest.publish(&state(&(longest + "x"), 6));
    assert!(
        matches!(refused, Err(SendError::Encode { .. })),
        "{refused:?}"
    );
    // As many as fit 16 MiB, those that are there among them.
    let key = |number: usize| format!("{number:04096}");
    let most = (16 << 20) / 4096 - 2;
    for number in 0..most {
        bench.honest.publish(&state(&key(number), 7)).unwrap();
    }
    let refused = bench.honest.publish(&state(&key(most), 7));
    assert!(
        matches!(refused, Err(SendError::Keys { .. })),
        "{refused:?}"
    );
    assert_eq!(bench.latest.get(&key(0)).unwrap().unwrap().number, 7);
    assert!(bench.honest.remove(&key(0)).unwrap());
    bench.honest.publish(&state(&key(most), 8)).unwrap();
    assert_eq!(bench.latest.get(&key(most)).unwrap().unwrap().number, 8);
    assert_eq!(bench.latest.get(&key(1)).unwrap().unwrap().number, 7);
}

/// Also where a look is cut off right behind the last note of a lane that is not watched.
#[test]
fn no_lane_goes_deaf() {
    let name = format!("unit-latest-deaf-{}", std::process::id());
    let buses: [Bus; 7] = std::array::from_fn(|_| Bus::open(&name).unwrap());
    let mut latest = buses[0].latest::<State>().unwrap();
    let mut publishers: Vec<_> = buses[1..]
        .iter()
        .map(|bus| bus.latest_publisher::<State>().unwrap())
        .collect();
    let mut number = 0;
    for _ in 0..20 {
        for publisher in &mut publishers {
            number += 1;
            publisher.publish(&state("a", number)).unwrap();
        }
        // Just the notes that there are, and no look that finds none.
        latest.take_some_and_listen(publishers.len());
        latest.forget_changes();
        for publisher in &mut publishers {
            number += 1;
            publisher.publish(&state("a", number)).unwrap();
            assert!(latest.hears(), "{number} is not heard of");
            latest.forget_changes();
        }
    }
}

/// One that says less than it has, or that something changed which did not: nothing comes of it.
#[test]
fn what_is_merely_odd_harms_nobody() {
    let mut bench = bench("odd");
    bench.forged.board().forge_count(0);
    assert!(bench.latest.get("neither").unwrap().is_none());
    assert_eq!(bench.latest.get("forged").unwrap().unwrap().number, 1);
    // A location with a bit that no location has.
    let board = bench.forged.board();
    board.forge_location(0, board.location(0) | 1 << 63);
    assert_eq!(bench.latest.get("forged").unwrap().unwrap().number, 1);
    bench.forged.note(u64::MAX);
    bench.forged.note(1 << 20);
    while bench.latest.changed().wait_timeout(Duration::ZERO).unwrap() {
        while bench.latest.try_next().unwrap().is_some() {}
    }
    assert_eq!(bench.latest.get("forged").unwrap().unwrap().number, 1);
    assert_eq!(bench.reads.take_incidents(), []);
}

/// A hold that is none keeps nothing; one of an entry for good keeps what its publisher has memory for, and only
/// of that key.
#[test]
fn holds_of_any_kind_cost_memory_at_most() {
    const LIMIT: usize = 8 << 20;
    let name = format!("unit-latest-holds-{}", std::process::id());
    let config = Config {
        memory_limit: LIMIT,
        ..Config::default()
    };
    let (publishes, reads) = (config.open(&name).unwrap(), Bus::open(&name).unwrap());
    let mut publisher = publishes.latest_publisher::<State>().unwrap();
    let mut latest = reads.latest::<State>().unwrap();
    let long = "x".repeat(4_000);
    publisher.publish(&state("a", 0)).unwrap();
    assert!(latest.get("a").unwrap().is_some());
    for word in [1, u64::MAX >> 1, u64::MAX, 1 << 63 | 500] {
        latest.forge_hold(word);
        for number in 0..5_000 {
            publisher.publish(&state("a", number)).unwrap();
            publisher.publish(&state(&long, number)).unwrap();
        }
    }
    assert!(publisher.remove(&long).unwrap());
    // The long text has the entry behind that of "a".
    latest.forge_hold(1 << 63 | 1);
    let full = (0..5_000).find_map(|number| publisher.publish(&state(&long, number)).err());
    assert!(matches!(full, Some(SendError::Memory(_))), "{full:?}");
    publisher.publish(&state("a", 7)).unwrap();
    latest.forge_hold(0);
    publisher.publish(&state(&long, 8)).unwrap();
    assert_eq!(latest.get(&long).unwrap().unwrap().number, 8);
    assert_eq!(latest.get("a").unwrap().unwrap().number, 7);
}
