//! What the kernel tells nobody: more happened in the directory of a bus than it keeps for who watches it.

use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::support::{Child, Dir, open, tell, together, told};
use crate::topics::{News, news};

/// A part: publishes until it is told to end.
pub(crate) fn publishes_on() {
    let bus = open("unseen");
    let mut publisher = bus.publisher::<News>().expect("it joins");
    tell("ready");
    let ending = std::thread::spawn(|| while told().is_some() {});
    while !ending.is_finished() {
        publisher.publish(&news(1, 0)).expect("there is room");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Touches files until one more is lost on who watches the directory and reads nothing.
fn overflow(dir: &Path) {
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events");
    let most: usize = most
        .expect("it can be read")
        .trim()
        .parse()
        .expect("a number");
    // The kernel joins two that are the same: of two files, no two are.
    let files = ["one", "two"].map(|name| File::create(dir.join(name)).expect("it can be made"));
    // It may have read some, before it stopped.
    for turn in 0..2 * most {
        // Of both times, the kernel tells as who makes a name does.
        let now = SystemTime::now();
        let both = FileTimes::new().set_accessed(now).set_modified(now);
        files[turn % 2].set_times(both).expect("it is ours");
    }
}

#[test]
fn who_came_while_too_much_happened_is_seen() {
    let _together = together();
    let dir = Dir::new();
    let mut publishes = Child::start_in(dir.path(), "publishes-on", &[]);
    assert_eq!(publishes.hear(), "ready");
    publishes.stop();
    overflow(&dir.path().join("shmbus/unseen"));
    let mut subscribes = Child::start_in(dir.path(), "subscribes", &["unseen", "holds"]);
    assert_eq!(subscribes.hear(), "joined");
    publishes.go_on();
    assert_eq!(subscribes.hear(), "0");
    assert!(subscribes.end().success());
    assert!(publishes.end().success());
}
