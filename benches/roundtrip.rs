//! How long does one call take, from the request's archiving to the reply that was read?
//!
//! Two processes, each pinned to a processor of its own. The clock runs from before `call` until
//! the reply has been read and handed back; each round trip is timed by itself, with the
//! processor's counter where it is invariant. Every message is checked on both sides.
//!
//! | case | there | back |
//! |---|---|---|
//! | `raw-line` | one cache line | one cache line: the physical limit |
//! | `raw-futex` | a wake-up | a wake-up |
//! | `memcpy` | (only the copying of 512 KiB into shared memory) | |
//! | `page-reads` | 512 KiB in place, one byte of each page read | one cache line |
//! | `raw-copy` | the two together | one cache line |
//! | `small` | five fields, one of them a text of 24 bytes | the same |
//! | `medium` | as `small` | 20 × {text of 24, text of 60, number}: lengths and numbers read |
//! | `large-copy` | `Vec<u8>` of 512 KiB, archived; one byte of each page read | their sum |
//! | `large-in-place` | the same as `Bytes`, filled before the clock starts | their sum |
//!
//! `cargo bench --bench roundtrip -- --help` lists the options.

mod common;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use common::limits::{self, Timed};
use common::messages::expected_items;
use common::messages::{Copied, InPlace, Items, MEDIUM_BYTES, Query, SMALL_BYTES, Sum};
use common::pages::{self, LARGE};
use common::report::Figures;
use common::{Case, Mode, Peer, Run, START, case, histogram, line, quantiles, small};
use shmbus::Bus;

/// The same case once spinning and once asleep.
macro_rules! both {
    ($name:literal, $spins:expr, $sleeps:expr, $bytes:expr, $parent:path, $child:path) => {
        [
            case($name, Mode::Spin, $spins, $bytes, $parent, $child),
            case($name, Mode::Park, $sleeps, $bytes, $parent, $child),
        ]
    };
}

fn main() -> ExitCode {
    let raw = [
        case("raw-line", Mode::Spin, 200_000, 8, raw_line, line::child),
        case(
            "raw-futex",
            Mode::Park,
            5_000,
            8,
            raw_futex,
            limits::futex_child,
        ),
        case(
            "memcpy",
            Mode::Spin,
            5_000,
            LARGE,
            memcpy,
            limits::large_child,
        ),
        case(
            "page-reads",
            Mode::Spin,
            5_000,
            LARGE,
            page_reads,
            limits::large_child,
        ),
        case(
            "raw-copy",
            Mode::Spin,
            5_000,
            LARGE,
            raw_copy,
            limits::large_child,
        ),
    ];
    let bus = [
        both!(
            "small",
            200_000,
            5_000,
            SMALL_BYTES,
            small::parent,
            small::child
        ),
        both!("medium", 200_000, 5_000, MEDIUM_BYTES, medium, medium_child),
        both!("large-copy", 5_000, 5_000, LARGE, copied, copied_child),
        both!(
            "large-in-place",
            5_000,
            5_000,
            LARGE,
            in_place,
            in_place_child
        ),
    ];
    let cases: Vec<Case> = raw.into_iter().chain(bus.into_iter().flatten()).collect();
    common::main("roundtrip", &cases)
}

fn raw_line(run: &Run) -> Result<Figures> {
    Ok(quantiles(&line::parent(run)?))
}

fn raw_futex(run: &Run) -> Result<Figures> {
    Ok(quantiles(&limits::futex_parent(run)?))
}

fn memcpy(run: &Run) -> Result<Figures> {
    Ok(quantiles(&limits::large_parent(run, Timed::Copy)?))
}

fn page_reads(run: &Run) -> Result<Figures> {
    Ok(quantiles(&limits::large_parent(run, Timed::Reads)?))
}

fn raw_copy(run: &Run) -> Result<Figures> {
    Ok(quantiles(&limits::large_parent(run, Timed::Trip)?))
}

fn medium(run: &Run) -> Result<Figures> {
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let child = Peer(child);
    let mut client = bus.client_timeout::<Query>(START)?;
    client.set_wait(run.mode.wait());
    let mut times = histogram()?;
    let mut request = Query::new();
    for id in 1..=run.total() {
        request.number(id);
        let start = run.clock.now();
        let reply = client.call(&request)?;
        let read = reply.read();
        drop(reply);
        let time = run.clock.since(start);
        ensure!(
            read == expected_items(id),
            "the reply to {id} came changed: {read:?}"
        );
        run.record(&mut times, id, time)?;
    }
    drop(client);
    drop(bus);
    child.finish()?;
    Ok(quantiles(&times))
}

fn medium_child(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut server = bus.server::<Query>()?;
    server.set_wait(run.mode.wait());
    let mut reply = Items::new();
    let mut id = 0;
    while let Some(call) = server.next()? {
        id += 1;
        ensure!(call.carries(id), "request {id} came changed");
        reply.number(id);
        call.reply(&reply)?;
    }
    run.all_came(id)
}

fn copied(run: &Run) -> Result<Figures> {
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let child = Peer(child);
    let mut client = bus.client_timeout::<Copied>(START)?;
    client.set_wait(run.mode.wait());
    let mut times = histogram()?;
    let mut request = Copied {
        id: 0,
        content: pages::content(),
    };
    for id in 1..=run.total() {
        request.id = id;
        pages::mark(&mut request.content, id);
        let start = run.clock.now();
        let reply = client.call(&request)?;
        let sum = reply.sum.to_native();
        drop(reply);
        let time = run.clock.since(start);
        ensure!(sum == pages::expected(id), "sum {sum} of request {id}");
        run.record(&mut times, id, time)?;
    }
    drop(client);
    drop(bus);
    child.finish()?;
    Ok(quantiles(&times))
}

fn copied_child(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut server = bus.server::<Copied>()?;
    server.set_wait(run.mode.wait());
    let mut id = 0;
    while let Some(call) = server.next()? {
        id += 1;
        let reply = read_large(id, call.id.to_native(), call.content.as_slice())?;
        call.reply(&reply)?;
    }
    run.all_came(id)
}

fn in_place(run: &Run) -> Result<Figures> {
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let child = Peer(child);
    let mut client = bus.client_timeout::<InPlace>(START)?;
    client.set_wait(run.mode.wait());
    let mut times = histogram()?;
    let mut source = pages::content();
    for id in 1..=run.total() {
        pages::mark(&mut source, id);
        let mut content = client.loan_bytes(LARGE)?;
        content.copy_from_slice(&source);
        let request = InPlace { id, content };
        let start = run.clock.now();
        let reply = client.call(&request)?;
        let sum = reply.sum.to_native();
        drop(reply);
        let time = run.clock.since(start);
        ensure!(sum == pages::expected(id), "sum {sum} of request {id}");
        run.record(&mut times, id, time)?;
    }
    drop(client);
    drop(bus);
    child.finish()?;
    Ok(quantiles(&times))
}

fn in_place_child(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut server = bus.server::<InPlace>()?;
    server.set_wait(run.mode.wait());
    let mut id = 0;
    while let Some(call) = server.next()? {
        id += 1;
        let reply = read_large(id, call.id.to_native(), call.content.as_slice())?;
        call.reply(&reply)?;
    }
    run.all_came(id)
}

fn read_large(expected: u64, id: u64, content: &[u8]) -> Result<Sum> {
    ensure!(id == expected, "request {id} came in place of {expected}");
    ensure!(content.len() == LARGE, "{} bytes came", content.len());
    let sum = pages::sum(content);
    Ok(Sum { sum })
}
