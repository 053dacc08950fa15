//! Newest values: the state, whoever asks and whenever.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use shmbus::{Bus, Change, Config, Latest, LatestPublisher, Pinned, SendError, ShmMessage};

use crate::support::{Child, name, open, tell, together, told};

/// Of each document; with a text that its version says, of very different lengths.
#[derive(ShmMessage, Debug)]
#[shm(latest = "state", key = "path")]
pub(crate) struct State {
    path: String,
    version: u64,
    text: String,
}

pub(crate) fn state(path: &str, version: u64) -> State {
    let len = [0, 7, 40, 200, 3_000, 20_000, 90_000][(version % 7) as usize];
    let letter = char::from(b'a' + (version % 26) as u8);
    State {
        path: path.to_owned(),
        version,
        text: letter.to_string().repeat(len),
    }
}

/// The version of a value that is whole.
pub(crate) fn check(state: &ArchivedState) -> u64 {
    let version = state.version.to_native();
    let expected = self::state(&state.path, version);
    assert!(
        state.text.as_str() == expected.text,
        "version {version} is torn"
    );
    version
}

/// Of which there is one.
#[derive(ShmMessage)]
#[shm(latest = "progress")]
pub(crate) struct Progress {
    pub(crate) percent: u8,
}

pub(crate) fn publisher(bus: &Bus) -> LatestPublisher<State> {
    bus.latest_publisher().expect("it joins")
}

pub(crate) fn latest(bus: &Bus) -> Latest<State> {
    bus.latest().expect("it joins")
}

fn version_of(latest: &mut Latest<State>, path: &str) -> Option<u64> {
    latest
        .get(path)
        .expect("not forked")
        .map(|state| check(&state))
}

#[test]
fn the_newest_value_is_found_by_its_key() {
    let _together = together();
    let name = name("newest");
    let bus = open(&name);
    let mut early = latest(&bus);
    let mut publisher = publisher(&open(&name));
    assert_eq!(publisher.readers(), 1);
    for version in 0..500 {
        for path in ["a", "b"] {
            publisher
                .publish(&state(path, version))
                .expect("there is memory");
        }
        assert_eq!(version_of(&mut early, "a"), Some(version));
    }
    let mut late = latest(&bus);
    for latest in [&mut early, &mut late] {
        assert_eq!(version_of(latest, "b"), Some(499));
        assert_eq!(version_of(latest, "c"), None);
    }
    assert!(publisher.remove("a").expect("not forked"));
    assert!(!publisher.remove("a").expect("not forked"));
    assert_eq!(version_of(&mut early, "a"), None);
    // The entry goes to another key, and back.
    publisher.publish(&state("c", 1)).expect("there is memory");
    assert_eq!(version_of(&mut early, "c"), Some(1));
    assert_eq!(version_of(&mut early, "a"), None);
    publisher.publish(&state("a", 2)).expect("there is memory");
    for latest in [&mut early, &mut late] {
        assert_eq!(version_of(latest, "a"), Some(2));
        assert_eq!(version_of(latest, "b"), Some(499));
        assert_eq!(version_of(latest, "c"), Some(1));
    }
    drop(publisher);
    // Its end is told of over the link, as a change.
    while version_of(&mut early, "b").is_some() {
        early.changed().wait().expect("not forked");
        changes(&mut early);
    }
}

/// Times are said on the lanes of a bus that says them, and change nothing about newest values.
#[test]
fn a_bus_may_say_when_it_publishes() {
    let _together = together();
    let name = name("timed-newest");
    let config = Config {
        timestamps: true,
        ..Config::default()
    };
    let mut latest = latest(&open(&name));
    let mut publisher = publisher(&config.open(&name).expect("it opens"));
    for version in 0..2_000 {
        publisher
            .publish(&state("a", version))
            .expect("there is memory");
        assert_eq!(changes(&mut latest), [format!("a={version}")]);
    }
}

#[test]
fn there_may_be_one_value_without_a_key() {
    let _together = together();
    let bus = open(&name("one-value"));
    let mut latest = bus.latest::<Progress>().expect("it joins");
    assert!(latest.value().expect("not forked").is_none());
    let mut publisher = bus.latest_publisher::<Progress>().expect("it joins");
    for percent in 0..=100 {
        publisher
            .publish(&Progress { percent })
            .expect("there is memory");
        let value = latest
            .value()
            .expect("not forked")
            .expect("it was published");
        assert_eq!(value.percent, percent);
    }
}

#[test]
fn there_may_be_thousands_of_keys() {
    const KEYS: u64 = 5_000;
    let _together = together();
    let name = name("many-keys");
    let mut publisher = publisher(&open(&name));
    let bus = open(&name);
    let mut early = latest(&bus);
    for key in 0..KEYS {
        publisher
            .publish(&state(&key.to_string(), key))
            .expect("there is memory");
    }
    let mut late = latest(&bus);
    for latest in [&mut early, &mut late] {
        for key in (0..KEYS).rev() {
            assert_eq!(version_of(latest, &key.to_string()), Some(key));
        }
        assert_eq!(version_of(latest, "other"), None);
    }
}

#[test]
fn there_are_not_more_keys_than_a_board_has() {
    const MOST: u64 = 65_472;
    #[derive(ShmMessage)]
    #[shm(latest = "keys", key = "key")]
    struct Key {
        key: u64,
    }
    let _together = together();
    let bus = open(&name("too-many-keys"));
    let mut publisher = bus.latest_publisher::<Key>().expect("it joins");
    for key in 0..MOST {
        publisher.publish(&Key { key }).expect("there is room");
    }
    let refused = publisher.publish(&Key { key: MOST });
    assert!(
        matches!(refused, Err(SendError::Keys { most: 65_472 })),
        "{refused:?}"
    );
    let mut latest = bus.latest::<Key>().expect("it joins");
    assert!(latest.get(&(MOST - 1)).expect("not forked").is_some());
    assert!(latest.get(&MOST).expect("not forked").is_none());
    assert!(publisher.remove(&17).expect("not forked"));
    publisher
        .publish(&Key { key: MOST })
        .expect("there is room again");
    assert!(latest.get(&MOST).expect("not forked").is_some());
    assert!(latest.get(&17).expect("not forked").is_none());
}

/// Reads as fast as it can until told to end: no value is torn, and none is older than one before it.
fn read_until(mut latest: Latest<State>, ended: &AtomicBool) -> u64 {
    let (mut last, mut reads) = (0, 0);
    while !ended.load(Ordering::Relaxed) {
        if let Some(version) = version_of(&mut latest, "hot") {
            assert!(version >= last, "{version} behind {last}");
            (last, reads) = (version, reads + 1);
        }
    }
    reads
}

#[test]
fn no_value_is_torn_while_others_replace_it() {
    let _together = together();
    let name = name("storm");
    let there = open(&name);
    static ENDED: AtomicBool = AtomicBool::new(false);
    let mut child = Child::start("reads-newest", &[&name]);
    assert_eq!(child.hear(), "reads");
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let latest = latest(&there);
            thread::spawn(move || read_until(latest, &ENDED))
        })
        .collect();
    let bus = open(&name);
    let mut publisher = publisher(&bus);
    assert_eq!(publisher.readers(), 4);
    for version in 0..60_000 {
        publisher
            .publish(&state("hot", version))
            .expect("there is memory");
    }
    child.say("end");
    let reads: u64 = child.hear().parse().expect("it counts");
    assert!(reads > 0);
    ENDED.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().expect("no value is torn") > 0);
    }
    assert_eq!(
        (bus.take_incidents(), there.take_incidents()),
        (vec![], vec![])
    );
    // What was replaced was used again.
    assert!(bus.memory().0 < 16 << 20, "{:?}", bus.memory());
}

/// A part of tests: reads until it is told to end.
pub(crate) fn reads_newest(bus: &str) {
    static ENDED: AtomicBool = AtomicBool::new(false);
    let bus = open(bus);
    let latest = latest(&bus);
    tell("reads");
    let reader = thread::spawn(move || read_until(latest, &ENDED));
    told();
    ENDED.store(true, Ordering::Relaxed);
    tell(&reader.join().expect("no value is torn").to_string());
}

#[test]
fn a_value_stays_while_it_is_looked_at() {
    let _together = together();
    let name = name("looked-at");
    let (here, there) = (open(&name), open(&name));
    let mut publisher = publisher(&here);
    let mut latest = latest(&there);
    publisher.publish(&state("a", 13)).expect("there is memory");
    let held = latest
        .get("a")
        .expect("not forked")
        .expect("it was published");
    for version in 14..10_000 {
        publisher
            .publish(&state("a", version))
            .expect("there is memory");
    }
    assert_eq!(check(&held), 13);
    assert!(here.memory().0 < 16 << 20, "{:?}", here.memory());
    assert_eq!(held.to_value().expect("it is whole").version, 13);
    assert!(held.published().is_some());
    drop(held);
    assert_eq!(version_of(&mut latest, "a"), Some(9_999));
}

/// What has changed, until nothing has: `path=version`, or the path of what was removed.
pub(crate) fn changes(latest: &mut Latest<State>) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(change) = latest.try_next().expect("not forked") {
        all.push(match change {
            Change::Value(state) => format!("{}={}", state.path, check(&state)),
            Change::Removed(path) => path,
        });
    }
    all
}

#[test]
fn each_change_is_told_of_once_and_the_newest_of_each_key() {
    let _together = together();
    let name = name("changes");
    let (here, there) = (open(&name), open(&name));
    let mut publisher = publisher(&here);
    let mut latest = latest(&there);
    assert_eq!(changes(&mut latest), [""; 0]);
    for version in 0..5_000 {
        publisher
            .publish(&state("a", version))
            .expect("there is memory");
    }
    publisher.publish(&state("b", 1)).expect("there is memory");
    assert_eq!(changes(&mut latest), ["a=4999", "b=1"]);
    assert_eq!(changes(&mut latest), [""; 0]);
    // A look at the state takes nothing from what is told.
    publisher.publish(&state("b", 2)).expect("there is memory");
    assert_eq!(version_of(&mut latest, "b"), Some(2));
    assert_eq!(changes(&mut latest), ["b=2"]);
    // What came and went unseen is not told of; what was seen and goes is.
    publisher.publish(&state("c", 1)).expect("there is memory");
    publisher.remove("c").expect("not forked");
    publisher.remove("b").expect("not forked");
    assert_eq!(changes(&mut latest), ["b"]);
    // Its entry goes to another key before the end of the old one was told of.
    publisher.remove("a").expect("not forked");
    publisher.publish(&state("d", 3)).expect("there is memory");
    let mut told = changes(&mut latest);
    told.sort();
    assert_eq!(told, ["a", "d=3"]);
    drop(publisher);
    assert!(latest.changed().wait().expect("not forked"));
    assert_eq!(changes(&mut latest), ["d"]);
}

#[test]
fn a_publisher_that_comes_later_is_found_by_who_has_looked_before() {
    let _together = together();
    let name = name("comes-later");
    let bus = open(&name);
    let mut latest = latest(&bus);
    let mut one = publisher(&open(&name));
    one.publish(&state("a", 1)).expect("there is memory");
    assert_eq!(version_of(&mut latest, "a"), Some(1));
    let mut other = publisher(&open(&name));
    assert_eq!(version_of(&mut latest, "a"), Some(1));
    other.publish(&state("a", 2)).expect("there is memory");
    assert_eq!(version_of(&mut latest, "a"), Some(2));
    for version in 3..50 {
        let publisher = if version % 3 == 0 {
            &mut one
        } else {
            &mut other
        };
        publisher
            .publish(&state("a", version))
            .expect("there is memory");
        assert_eq!(version_of(&mut latest, "a"), Some(version));
        // Told of once, and never an older one behind it.
        assert_eq!(changes(&mut latest).last(), Some(&format!("a={version}")));
        assert_eq!(changes(&mut latest), [""; 0]);
    }
}

#[test]
fn an_older_value_is_not_told_of_behind_a_newer_one() {
    let _together = together();
    let name = name("older-behind");
    let (mut one, mut other) = (publisher(&open(&name)), publisher(&open(&name)));
    // Whichever of them is looked at first.
    for turn in 0..20 {
        let (first, last) = match turn % 2 {
            0 => (&mut one, &mut other),
            _ => (&mut other, &mut one),
        };
        first
            .publish(&state("a", 2 * turn))
            .expect("there is memory");
        last.publish(&state("a", 2 * turn + 1))
            .expect("there is memory");
        let bus = open(&name);
        let mut latest = latest(&bus);
        let told = changes(&mut latest);
        assert_eq!(
            told.last(),
            Some(&format!("a={}", 2 * turn + 1)),
            "{told:?}"
        );
    }
}

#[test]
fn of_several_publishers_the_last_one_counts() {
    let _together = together();
    let name = name("several");
    let bus = open(&name);
    let mut latest = latest(&bus);
    let (mut one, mut other) = (publisher(&open(&name)), publisher(&open(&name)));
    one.publish(&state("a", 1)).expect("there is memory");
    other.publish(&state("a", 2)).expect("there is memory");
    assert_eq!(version_of(&mut latest, "a"), Some(2));
    one.publish(&state("a", 3)).expect("there is memory");
    assert_eq!(version_of(&mut latest, "a"), Some(3));
    // The newest last, and nothing older behind it.
    assert_eq!(changes(&mut latest).last(), Some(&"a=3".to_owned()));
    // One that goes takes its value with it; that of the other counts again.
    drop(one);
    assert!(latest.changed().wait().expect("not forked"));
    assert_eq!(version_of(&mut latest, "a"), Some(2));
    assert_eq!(changes(&mut latest), ["a=2"]);
    drop(other);
    assert!(latest.changed().wait().expect("not forked"));
    assert_eq!(changes(&mut latest), ["a"]);
    assert_eq!(version_of(&mut latest, "a"), None);
}

/// Looks at a value for good; part of tests.
pub(crate) fn looks_at_a_value(bus: &str) {
    let bus = open(bus);
    let mut latest = latest(&bus);
    assert!(latest.changed().wait().expect("not forked"));
    let value = latest
        .get("a")
        .expect("not forked")
        .expect("it was published");
    tell("looks");
    told();
    check(&value);
    tell("whole");
    drop(value);
    while told().is_some() {
        latest.changed().wait().expect("not forked");
        let version = version_of(&mut latest, "a").expect("it was published");
        tell(&version.to_string());
    }
}

#[test]
fn who_is_stopped_or_killed_while_it_looks_holds_up_nobody() {
    const MANY: u64 = 20_000;
    let _together = together();
    let name = name("stopped-reader");
    let bus = open(&name);
    let mut publisher = publisher(&bus);
    let mut stopped = Child::start("looks-at-a-value", &[&name]);
    let mut killed = Child::start("looks-at-a-value", &[&name]);
    while publisher.readers() < 2 {
        thread::yield_now();
    }
    publisher.publish(&state("a", 5)).expect("there is memory");
    assert_eq!(
        (stopped.hear(), killed.hear()),
        ("looks".into(), "looks".into())
    );
    stopped.stop();
    killed.kill();
    for version in 6..MANY {
        publisher
            .publish(&state("a", version))
            .expect("there is memory");
    }
    assert!(bus.memory().0 < 16 << 20, "{:?}", bus.memory());
    stopped.go_on();
    stopped.say("look");
    assert_eq!(stopped.hear(), "whole");
    stopped.say("look");
    assert_eq!(stopped.hear(), (MANY - 1).to_string());
    assert!(stopped.end().success());
}

/// The other side of an inherited link; part of tests.
pub(crate) fn shares_state() {
    let bus = Bus::from_parent().expect("there is a parent");
    let mut publisher = publisher(&bus);
    publisher
        .publish(&state("child", 1))
        .expect("there is memory");
    let mut latest = latest(&bus);
    tell("ready");
    while latest.changed().wait().expect("not forked") {
        // In this order: what comes behind the look at the state is told of the next time.
        while latest.try_next().expect("not forked").is_some() {}
        if let Some(version) = version_of(&mut latest, "parent") {
            publisher
                .publish(&state("child", version))
                .expect("there is memory");
        }
    }
}

#[test]
fn a_child_and_its_parent_share_a_state() {
    let _together = together();
    let (bus, child) = Bus::spawn(Child::command("shares-state", &[])).expect("it starts");
    let mut child = Child::adopt(child);
    assert_eq!(child.hear(), "ready");
    let mut publisher = publisher(&bus);
    let mut latest = latest(&bus);
    assert_eq!(version_of(&mut latest, "child"), Some(1));
    for version in 2..300 {
        publisher
            .publish(&state("parent", version))
            .expect("there is memory");
        while version_of(&mut latest, "child") != Some(version) {
            assert!(latest.changed().wait().expect("not forked"));
            while latest.try_next().expect("not forked").is_some() {}
        }
    }
    drop((publisher, latest, bus));
    assert!(child.end().success());
}

#[test]
fn all_memory_returns() {
    let _together = together();
    let name = name("latest-memory");
    let (here, there) = (open(&name), open(&name));
    let used = || (here.memory().1, there.memory().1);
    let mut before = None;
    for _ in 0..3 {
        let mut publisher = publisher(&here);
        let mut latest = latest(&there);
        for version in 0..1_000 {
            publisher
                .publish(&state("a", version))
                .expect("there is memory");
            publisher
                .publish(&state(&version.to_string(), version))
                .expect("there is memory");
        }
        assert_eq!(changes(&mut latest).len(), 1_001);
        assert_eq!(version_of(&mut latest, "a"), Some(999));
        drop((publisher, latest));
        // What a link has for good comes with its first lane: less than a value, and no more from then on.
        let is_more = |most: (u64, u64)| used().0 > most.0 || used().1 > most.1;
        while used().0 + used().1 > 4096 || before.is_some_and(is_more) {
            thread::sleep(Duration::from_millis(1));
        }
        before = Some(used());
    }
}

#[test]
fn newest_values_refer_to_no_pins() {
    #[derive(ShmMessage)]
    #[shm(latest = "pinned-state")]
    struct Refers {
        document: Pinned<State>,
    }
    let _together = together();
    let bus = open(&name("newest-pins"));
    let mut publisher = bus.latest_publisher::<Refers>().expect("it joins");
    let document = bus.pin(&state("a", 1)).expect("there is memory");
    let refused = publisher.publish(&Refers { document }).err();
    match refused {
        Some(SendError::Encode { what }) => assert!(what.contains("newest values"), "{what}"),
        other => panic!("{other:?}"),
    }
}
