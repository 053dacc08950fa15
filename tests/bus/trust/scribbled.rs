//! A sender that changes what it sent, while its receiver looks at it.
//!
//! Unsafe code is needed to write over one's own shared memory behind the library's back, and to look whether that
//! is seen.
#![allow(unsafe_code)]

use std::fs;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use shmbus::{SendError, ShmMessage, Trust};

use super::open;
use crate::support::{Child, name, tell, together, told};

const MARK: u64 = 0x5c1b_b1ed_0ddb_a115;
const TEXT: &str = "scribble";
const LENGTHS: [usize; 3] = [2, 300, 40_000];

#[derive(ShmMessage, Clone, Copy, Debug, PartialEq)]
enum Kind {
    First,
    Second,
}

/// Of which not every byte may be everything.
#[derive(ShmMessage, Clone, Debug, PartialEq)]
struct Marked {
    text: String,
    flag: bool,
    letter: char,
    kind: Kind,
    marks: [u64; 2],
}

fn marked(len: usize) -> Marked {
    Marked {
        text: TEXT.repeat(len),
        flag: true,
        letter: 'ß',
        kind: Kind::Second,
        marks: [MARK; 2],
    }
}

/// Where this process has memory that it writes and others read.
fn own_memory() -> Vec<(usize, usize)> {
    let maps = fs::read_to_string("/proc/self/maps").expect("it can be read");
    let own = maps
        .lines()
        .filter(|line| line.contains(" rw-s ") && line.contains("memfd:shmbus"));
    own.map(|line| {
        let (start, rest) = line.split_once('-').expect("a range");
        let end = rest.split(' ').next().expect("a range");
        let bound = |bound| usize::from_str_radix(bound, 16).expect("an address");
        (bound(start), bound(end))
    })
    .collect()
}

/// A byte of that memory.
fn byte(at: usize) -> &'static AtomicU8 {
    // SAFETY: it lies in a mapping that stays, as its bus does, and whose bytes this process may write.
    unsafe { AtomicU8::from_ptr(std::ptr::with_exposed_provenance_mut(at)) }
}

/// The places at which these bytes lie in memory of this process that others read.
fn places_of(pattern: [u8; 8]) -> Vec<usize> {
    let mut places = Vec::new();
    for (start, end) in own_memory() {
        for at in start..end - 7 {
            let is_there = |(n, b): (usize, &u8)| byte(at + n).load(Ordering::Relaxed) == *b;
            if pattern.iter().enumerate().all(is_there) {
                places.push(at);
            }
        }
    }
    places
}

/// Writes over all that was sent; or over its marks alone, which may be anything.
fn scribble(marks_alone: bool) -> usize {
    let places = places_of(MARK.to_ne_bytes());
    for &at in &places {
        (at..at + 8).for_each(|at| byte(at).store(0xff, Ordering::Relaxed));
    }
    if marks_alone {
        return places.len();
    }
    for mark in &places {
        // The first of the two marks says where its message is.
        if places.contains(&(mark + 8)) {
            let root = mark - offset_of!(ArchivedMarked, marks);
            let all = root..root + size_of::<ArchivedMarked>();
            all.for_each(|at| byte(at).store(0xff, Ordering::Relaxed));
        }
    }
    let texts = places_of(*b"scribble");
    for &at in &texts {
        (at..at + 8).for_each(|at| byte(at).store(0xff, Ordering::Relaxed));
    }
    texts.len()
}

/// A part: sends what it is told to, and writes over it when it is told to.
pub(crate) fn scribbles(bus: &str, what: &str) {
    let bus = open(bus, Trust::SameUser);
    let mut sender = bus.sender::<Marked>("marked").expect("somebody receives");
    let mut count = 0;
    while let Some(line) = told() {
        match line.parse() {
            Ok(len) => {
                sender.send(&marked(len)).expect("there is room");
                count = len;
            }
            Err(_) => {
                let found = scribble(what == "marks");
                let least = if what == "marks" { 2 } else { count };
                assert!(found >= least, "{found} of {least}");
                tell("scribbled");
            }
        }
    }
}

#[test]
fn a_copy_stays_as_it_was_validated() {
    let _together = together();
    let name = name("scribbled");
    let bus = open(&name, Trust::Untrusted);
    let mut receiver = bus.receiver::<Marked>("marked").expect("nobody else does");
    let mut child = Child::start("scribbles", &[&name, "all"]);
    for len in LENGTHS {
        child.say(&len.to_string());
        let view = receiver.next().expect("not forked").expect("it came");
        child.say("scribble");
        assert_eq!(child.hear(), "scribbled");
        assert_eq!(view.to_value().expect("it is whole"), marked(len));
        let kept = view.keep();
        assert_eq!(kept.to_value().expect("it is whole"), marked(len));
    }
    drop(receiver);
    assert!(child.end().success());
}

/// What the test above would see, were nothing copied.
#[test]
fn what_is_read_in_place_changes_with_what_its_sender_writes() {
    let _together = together();
    let name = name("scribbled-in-place");
    let bus = open(&name, Trust::SameUser);
    let mut receiver = bus.receiver::<Marked>("marked").expect("nobody else does");
    let mut child = Child::start("scribbles", &[&name, "marks"]);
    for len in LENGTHS {
        child.say(&len.to_string());
        let view = receiver.next().expect("not forked").expect("it came");
        let marks = (&raw const view.marks).cast::<u64>();
        // SAFETY: it lies in the message, which is held.
        assert_eq!(unsafe { marks.read_volatile() }, MARK);
        child.say("scribble");
        assert_eq!(child.hear(), "scribbled");
        // SAFETY: as above.
        assert_eq!(unsafe { marks.read_volatile() }, u64::MAX);
    }
    drop(receiver);
    assert!(child.end().success());
}

#[derive(ShmMessage)]
struct Flagged {
    mark: u64,
    flag: bool,
}

/// A part: sends messages without end, and changes their flags all the time: to what is one, and what is none.
pub(crate) fn flips(bus: &str) {
    let bus = open(bus, Trust::SameUser);
    let connect = || bus.sender_timeout::<Flagged>("flags", Duration::from_secs(100));
    let mut sender = connect().expect("somebody receives");
    thread::spawn(|| {
        loop {
            let marks = own_memory().into_iter().flat_map(|(start, end)| {
                (start..end).step_by(8).filter(|at| {
                    let word = std::ptr::with_exposed_provenance_mut(*at);
                    // SAFETY: as in `byte`; it is aligned.
                    let word = unsafe { AtomicU64::from_ptr(word) };
                    word.load(Ordering::Relaxed) == MARK
                })
            });
            let marks: Vec<_> = marks.collect();
            for _ in 0..1_000 {
                for mark in &marks {
                    byte(mark + offset_of!(ArchivedFlagged, flag)).fetch_xor(6, Ordering::Relaxed);
                }
            }
        }
    });
    let (mark, flag) = (MARK, true);
    loop {
        match sender.send(&Flagged { mark, flag }) {
            Ok(()) => {}
            Err(SendError::Closed { .. }) => sender = connect().expect("somebody receives"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Either it is refused, or it is valid and stays so: never is one moment checked and another one read.
#[test]
fn what_changes_all_the_time_is_one_thing_or_the_other() {
    let _together = together();
    let name = name("flips");
    let bus = open(&name, Trust::Untrusted);
    let mut receiver = bus.receiver::<Flagged>("flags").expect("nobody else does");
    let mut child = Child::start("flips", &[&name]);
    let (mut seen, mut refused) = (0, 0);
    while seen < 2_000 || refused < 10 {
        let view = receiver.next().expect("not forked").expect("it came");
        let flag = (&raw const view.flag).cast::<u8>();
        for _ in 0..50 {
            // SAFETY: it lies in the message, which is held.
            let flag = unsafe { flag.read_volatile() };
            assert_eq!(flag, 1, "it was validated as a flag that is set");
        }
        seen += 1;
        refused += bus.take_incidents().len();
    }
    child.kill();
}
