//! How many messages a second go one way, and how many bytes?
//!
//! Two processes, each pinned to a processor of its own: the parent sends, the child receives,
//! checks every message (its number in order, and each field), and reports the sum of what it read.
//! The clock runs from the first message after the warm-up until that report has come.
//!
//! | case | message |
//! |---|---|
//! | `raw-ring-…` | 64-byte slots, so many of them, bare atomics: the limit |
//! | `line` | four numbers: one cache line |
//! | `small` | four numbers and a text of 24 bytes |
//! | `large-copy` | `Vec<u8>` of 512 KiB, archived; one byte of each page written and read |
//! | `large-in-place` | the same as `Bytes`, where only those bytes are written |
//!
//! `cargo bench --bench stream -- --help` lists the options.

mod common;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use common::messages::{Copied, InPlace, LINE_BYTES, Line, SMALL_BYTES, Small, Sum};
use common::pages::{self, LARGE};
use common::report::Figures;
use common::{Case, Mode, Peer, Run, START, case, ring};
use shmbus::Bus;

/// The lane of the child's sums.
const REPORT: &str = "report";

fn main() -> ExitCode {
    let cases = [
        raw("raw-ring-64", ring_64, ring_child_64),
        raw("raw-ring-256", ring_256, ring_child_256),
        raw("raw-ring-1024", ring_1024, ring_child_1024),
        case("line", Mode::Spin, 5_000_000, LINE_BYTES, line, line_child),
        case("line", Mode::Park, 1_000_000, LINE_BYTES, line, line_child),
        case(
            "small",
            Mode::Spin,
            3_000_000,
            SMALL_BYTES,
            small,
            small_child,
        ),
        case(
            "small",
            Mode::Park,
            1_000_000,
            SMALL_BYTES,
            small,
            small_child,
        ),
        case("large-copy", Mode::Spin, 5_000, LARGE, copied, copied_child),
        case("large-copy", Mode::Park, 5_000, LARGE, copied, copied_child),
        case(
            "large-in-place",
            Mode::Spin,
            20_000,
            LARGE,
            in_place,
            in_place_child,
        ),
        case(
            "large-in-place",
            Mode::Park,
            20_000,
            LARGE,
            in_place,
            in_place_child,
        ),
    ];
    common::main("stream", &cases)
}

fn raw(
    name: &'static str,
    parent: fn(&Run) -> Result<Figures>,
    child: fn(&Run) -> Result<()>,
) -> Case {
    case(name, Mode::Spin, 10_000_000, LINE_BYTES, parent, child)
}

fn ring_64(run: &Run) -> Result<Figures> {
    Ok(rates(run, LINE_BYTES, ring::parent(run, 64)?))
}

fn ring_child_64(run: &Run) -> Result<()> {
    ring::child(run, 64)
}

fn ring_256(run: &Run) -> Result<Figures> {
    Ok(rates(run, LINE_BYTES, ring::parent(run, 256)?))
}

fn ring_child_256(run: &Run) -> Result<()> {
    ring::child(run, 256)
}

fn ring_1024(run: &Run) -> Result<Figures> {
    Ok(rates(run, LINE_BYTES, ring::parent(run, 1024)?))
}

fn ring_child_1024(run: &Run) -> Result<()> {
    ring::child(run, 1024)
}

fn line(run: &Run) -> Result<Figures> {
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let child = Peer(child);
    let mut sender = bus.sender_timeout::<Line>("line", START)?;
    sender.set_wait(run.mode.wait());
    let mut message = Line::new();
    let figures = timed(run, &bus, LINE_BYTES, sum_of_number, |id| {
        message.number(id);
        Ok(sender.send(&message)?)
    })?;
    drop(sender);
    drop(bus);
    child.finish()?;
    Ok(figures)
}

fn line_child(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut receiver = bus.receiver::<Line>("line")?;
    receiver.set_wait(run.mode.wait());
    let mut reports = bus.sender_timeout::<Sum>(REPORT, START)?;
    let mut tally = Tally::new(run);
    while let Some(message) = receiver.next()? {
        let right = message.has_numbers(tally.expected());
        if let Some(sum) = tally.add(right, message.line.to_native().into())? {
            reports.send(&Sum { sum })?;
        }
    }
    tally.finish()
}

fn small(run: &Run) -> Result<Figures> {
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let child = Peer(child);
    let mut sender = bus.sender_timeout::<Small>("small", START)?;
    sender.set_wait(run.mode.wait());
    let mut message = Small::new();
    let figures = timed(run, &bus, SMALL_BYTES, sum_of_number, |id| {
        message.number(id);
        Ok(sender.send(&message)?)
    })?;
    drop(sender);
    drop(bus);
    child.finish()?;
    Ok(figures)
}

fn small_child(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut receiver = bus.receiver::<Small>("small")?;
    receiver.set_wait(run.mode.wait());
    let mut reports = bus.sender_timeout::<Sum>(REPORT, START)?;
    let mut tally = Tally::new(run);
    while let Some(message) = receiver.next()? {
        let right = message.carries(tally.expected());
        if let Some(sum) = tally.add(right, message.line.to_native().into())? {
            reports.send(&Sum { sum })?;
        }
    }
    tally.finish()
}

fn copied(run: &Run) -> Result<Figures> {
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let child = Peer(child);
    let mut sender = bus.sender_timeout::<Copied>("large-copy", START)?;
    sender.set_wait(run.mode.wait());
    let mut message = Copied {
        id: 0,
        content: pages::content(),
    };
    let figures = timed(run, &bus, LARGE, pages::expected, |id| {
        message.id = id;
        pages::mark(&mut message.content, id);
        Ok(sender.send(&message)?)
    })?;
    drop(sender);
    drop(bus);
    child.finish()?;
    Ok(figures)
}

fn copied_child(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut receiver = bus.receiver::<Copied>("large-copy")?;
    receiver.set_wait(run.mode.wait());
    let mut reports = bus.sender_timeout::<Sum>(REPORT, START)?;
    let mut tally = Tally::new(run);
    while let Some(message) = receiver.next()? {
        let right = message.id.to_native() == tally.expected() && message.content.len() == LARGE;
        if let Some(sum) = tally.add(right, pages::sum(message.content.as_slice()))? {
            reports.send(&Sum { sum })?;
        }
    }
    tally.finish()
}

fn in_place(run: &Run) -> Result<Figures> {
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let child = Peer(child);
    let mut sender = bus.sender_timeout::<InPlace>("large-in-place", START)?;
    sender.set_wait(run.mode.wait());
    let figures = timed(run, &bus, LARGE, pages::expected, |id| {
        let mut content = sender.loan_bytes(LARGE)?;
        pages::mark(&mut content, id);
        Ok(sender.send(&InPlace { id, content })?)
    })?;
    drop(sender);
    drop(bus);
    child.finish()?;
    Ok(figures)
}

fn in_place_child(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut receiver = bus.receiver::<InPlace>("large-in-place")?;
    receiver.set_wait(run.mode.wait());
    let mut reports = bus.sender_timeout::<Sum>(REPORT, START)?;
    let mut tally = Tally::new(run);
    while let Some(message) = receiver.next()? {
        let right = message.id.to_native() == tally.expected() && message.content.len() == LARGE;
        if let Some(sum) = tally.add(right, pages::sum(message.content.as_slice()))? {
            reports.send(&Sum { sum })?;
        }
    }
    tally.finish()
}

/// Sends all messages with `send`, the clock running after the warm-up, and compares the child's
/// last sum with the sum of what `value` says of each number.
fn timed(
    run: &Run,
    bus: &Bus,
    bytes: usize,
    value: fn(u64) -> u64,
    mut send: impl FnMut(u64) -> Result<()>,
) -> Result<Figures> {
    let mut reports = bus.receiver::<Sum>(REPORT)?;
    reports.set_wait(run.mode.wait());
    let mut report = || -> Result<u64> {
        let sum = reports.next()?.context("the child ended early")?;
        Ok(sum.sum.to_native())
    };
    (1..=run.warm_up()).try_for_each(&mut send)?;
    report()?;

    let start = run.clock.now();
    (run.warm_up() + 1..=run.total()).try_for_each(&mut send)?;
    let sum = report()?;
    let time = run.clock.since(start);
    let expected = (1..=run.total()).map(value).fold(0, u64::wrapping_add);
    ensure!(sum == expected, "the child's sum is {sum}, not {expected}");
    Ok(rates(run, bytes, time as f64 / 1e9))
}

fn rates(run: &Run, bytes: usize, seconds: f64) -> Figures {
    let per_second = run.iterations as f64 / seconds;
    vec![
        ("msgs_per_s", per_second.round()),
        ("gb_per_s", per_second * bytes as f64 / 1e9),
    ]
}

/// What one message of numbers adds to the sum: its line.
fn sum_of_number(id: u64) -> u64 {
    (id as u32).into()
}

/// What a child has seen.
struct Tally<'a> {
    run: &'a Run,
    seen: u64,
    sum: u64,
}

impl<'a> Tally<'a> {
    fn new(run: &'a Run) -> Self {
        Tally {
            run,
            seen: 0,
            sum: 0,
        }
    }

    /// The number of the next message.
    fn expected(&self) -> u64 {
        self.seen + 1
    }

    /// Counts a message; returns the sum when it is time to report it.
    fn add(&mut self, right: bool, value: u64) -> Result<Option<u64>> {
        ensure!(right, "message {} came changed", self.expected());
        self.seen += 1;
        self.sum = self.sum.wrapping_add(value);
        let due = self.seen == self.run.warm_up() || self.seen == self.run.total();
        Ok(due.then_some(self.sum))
    }

    fn finish(&self) -> Result<()> {
        let total = self.run.total();
        ensure!(self.seen == total, "{} messages came of {total}", self.seen);
        Ok(())
    }
}
