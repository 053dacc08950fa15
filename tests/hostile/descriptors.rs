//! Descriptors that are not what they should be, too many, or none.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::SealFlags;

use crate::bench::{Bench, Expect};
use crate::memory::{SEALS, file, seal, sparse};
use crate::stranger::MOST_FDS;
use crate::support::Dir;
use crate::wire::{self, Control};

const PAGE: u64 = 4096;

fn sealed(len: u64) -> OwnedFd {
    let fd = file(len);
    seal(&fd, SEALS);
    fd
}

/// A segment that is announced with so many bytes, and what is wrong with it.
fn segments(dir: &Dir) -> Vec<(&'static str, u64, OwnedFd)> {
    let open = |path: &str| File::open(path).expect("every system has it").into();
    let path = dir.path().join("file");
    let mut regular = File::create_new(&path).expect("it can be made");
    regular
        .write_all(&[0; PAGE as usize])
        .expect("there is room");
    let (socket, _) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let (pipe, pipe_end) = rustix::pipe::pipe().expect("a pipe");
    let event = eventfd(1, EventfdFlags::CLOEXEC).expect("an eventfd");
    const NONE: &str = "no sealable memory file";
    let mut all = vec![
        (NONE, PAGE, open("/dev/null")),
        (NONE, PAGE, open("/dev/zero")),
        (NONE, PAGE, open("/proc/self/mem")),
        (NONE, PAGE, open("/")),
        (NONE, PAGE, regular.into()),
        (NONE, PAGE, socket.into()),
        (NONE, PAGE, pipe),
        (NONE, PAGE, pipe_end),
        (NONE, PAGE, event),
        ("with seals", PAGE, file(PAGE)),
    ];
    for missing in [
        SealFlags::SHRINK,
        SealFlags::GROW,
        SealFlags::FUTURE_WRITE,
        SealFlags::SEAL,
    ] {
        let fd = file(PAGE);
        seal(&fd, SEALS - missing);
        all.push(("with seals", PAGE, fd));
    }
    // Writable by all others: sealed against nobody but the one who made it.
    let fd = file(PAGE);
    seal(&fd, SealFlags::SHRINK | SealFlags::GROW);
    all.push(("with seals", PAGE, fd));
    for announced in [
        0,
        1,
        PAGE - 1,
        PAGE + 1,
        1 << 37,
        u64::MAX,
        u64::MAX - PAGE + 1,
    ] {
        all.push(("whole pages up to", announced, sealed(PAGE)));
    }
    for announced in [PAGE, 3 * PAGE, 1 << 30] {
        all.push(("but its file has", announced, sealed(2 * PAGE)));
    }
    for (allocated, announced) in [(0, 2 * PAGE), (PAGE, 1 << 30)] {
        let fd = sparse(announced);
        if allocated > 0 {
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&fd, flags, 0, allocated).expect("there is memory");
        }
        seal(&fd, SEALS);
        all.push(("but its file has", announced, fd));
    }
    all
}

#[test]
fn a_segment_that_is_none_ends_the_link() {
    let mut bench = Bench::start("segments");
    let dir = Dir::new();
    for (fault, len, fd) in segments(&dir) {
        let stranger = bench.greet();
        // One that is as it should be stays mapped until then.
        stranger.give(&Control::Segment { id: 1, len: PAGE }, sealed(PAGE));
        stranger.give(&Control::Segment { id: 2, len }, fd);
        stranger.wait_for_bye();
        drop(stranger);
        bench.check(Expect::Fault(fault), format!("{fault}: {len} bytes"));
    }
    bench.end();
}

#[test]
fn a_segment_is_announced_twice_or_by_two_numbers() {
    let mut bench = Bench::start("twice");
    let (id, len) = (1, PAGE);
    let stranger = bench.greet();
    let fd = sealed(PAGE);
    stranger.give(&Control::Segment { id: 1, len }, &fd);
    stranger.give(&Control::Segment { id: 2, len }, &fd);
    stranger.say(&Control::Retired { id: 2 });
    stranger.give(&Control::Segment { id: 2, len }, &fd);
    drop(stranger);
    bench.check(Expect::Nothing, "two numbers");
    let stranger = bench.greet();
    stranger.give(&Control::Segment { id, len }, &fd);
    stranger.give(&Control::Segment { id, len }, &fd);
    stranger.wait_for_bye();
    drop(stranger);
    bench.check(Expect::Fault("or announced twice"), "twice");
    bench.end();
}

#[test]
fn more_segments_than_anybody_has_end_the_link() {
    let mut bench = Bench::start("too-many");
    let fd = sealed(PAGE);
    let stranger = bench.greet();
    for id in 0..4097 {
        stranger.give(&Control::Segment { id, len: PAGE }, &fd);
    }
    stranger.wait_for_bye();
    drop(stranger);
    bench.check(Expect::Fault("whole pages up to 0"), "segments");

    let stranger = bench.greet();
    for bell in 0..1025 {
        let event = eventfd(1, EventfdFlags::CLOEXEC).expect("an eventfd");
        if !stranger.give(&Control::Bell { bell }, event) {
            break;
        }
    }
    stranger.wait_for_bye();
    drop(stranger);
    // The victim may have fewer descriptors than that: it then rings otherwise.
    bench.check(Expect::Either, "bells");
    bench.end();
}

#[test]
fn a_bell_that_is_none_ends_the_link() {
    let mut bench = Bench::start("bells");
    let dir = Dir::new();
    for (_, _, fd) in segments(&dir) {
        let name = std::fs::read_link(format!("/proc/self/fd/{}", raw(&fd)));
        let is_event = name.is_ok_and(|name| name.to_string_lossy().contains("eventfd"));
        if is_event {
            continue;
        }
        let stranger = bench.greet();
        stranger.give(&Control::Bell { bell: 1 }, fd);
        stranger.wait_for_bye();
        drop(stranger);
        bench.check(Expect::Fault("a bell that is no eventfd"), "a bell");
    }
    bench.end();
}

fn raw(fd: &OwnedFd) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(fd)
}

#[test]
fn descriptors_that_belong_to_nothing_are_closed() {
    let mut bench = Bench::start("strays");
    let fd = sealed(PAGE);
    let hello = wire::encode(&Control::Hello {
        layout: 1,
        barrier: true,
    });
    let segment = wire::encode(&Control::Segment { id: 1, len: PAGE });
    let ring = wire::encode(&Control::Ring { bell: 0 });
    const COUNTS: [usize; 8] = [0, 1, 2, 3, 4, 5, 7, MOST_FDS];
    for count in COUNTS {
        for (message, bytes) in [(0, &hello), (1, &segment), (1, &ring), (1, &vec![0; 9])] {
            let stranger = match message {
                0 => bench.connect(),
                _ => bench.greet(),
            };
            let fds: Vec<BorrowedFd<'_>> = (0..count).map(|_| fd.as_fd()).collect();
            stranger.send(bytes, &fds);
            let is_right = match message {
                0 => count == 0,
                _ => *bytes == ring && count == 0 || *bytes == segment && count == 1,
            };
            if !is_right {
                stranger.wait_for_bye();
            }
            drop(stranger);
            let expect = match is_right {
                true => Expect::Nothing,
                // More than the kernel is given room for.
                false if count > 6 => Expect::Fault("too long"),
                false if bytes.len() == 9 => Expect::Fault("not of shmbus"),
                false => Expect::Fault("without, or with too many, descriptors"),
            };
            bench.check(
                expect,
                format!("{count} descriptors, {} bytes", bytes.len()),
            );
        }
    }
    // Those that nobody has read when the link ends.
    for count in COUNTS {
        let stranger = bench.greet();
        let fds: Vec<BorrowedFd<'_>> = (0..count).map(|_| fd.as_fd()).collect();
        stranger.say(&Control::Bye);
        for _ in 0..8 {
            stranger.send(&segment, &fds);
        }
        drop(stranger);
        bench.check(Expect::Nothing, "behind a bye");
    }
    // Descriptors alone: no message has no bytes.
    let stranger = bench.greet();
    stranger.send(&[], &[fd.as_fd()]);
    stranger.wait_for_bye();
    drop(stranger);
    bench.check(Expect::Fault("too short"), "without a message");
    bench.end();
}
