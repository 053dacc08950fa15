//! Streams: how soon the first item comes, how many a second, how fast a cancel is seen.

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use shmbus::{Bus, SendError, ShmMessage};

use crate::common::messages::{Line, Small};
use crate::common::report::Figures;
use crate::common::{Peer, Run, START, histogram, quantiles};

/// Items that are timed together.
const CHUNK: u64 = 1_000;

/// As a small request, but answered item by item, and then with when a cancel was last seen.
#[derive(ShmMessage)]
#[shm(service = "tokens", stream = Small, reply = Seen)]
struct First {
    id: u64,
    text: String,
}

/// A moment of the clock that all processes share, in nanoseconds.
#[derive(ShmMessage)]
struct Seen {
    at: u64,
}

/// Lines, so many.
#[derive(ShmMessage)]
#[shm(service = "lines", stream = Line, reply = Seen)]
struct Lines {
    count: u64,
}

/// When was the last cancel seen?
#[derive(ShmMessage)]
#[shm(service = "seen", reply = Seen)]
struct Ask {
    id: u64,
}

fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Items of each stream of `time-to-first-item`.
const FEW: u64 = 3;

pub fn first(run: &Run) -> Result<Figures> {
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let child = Peer(child);
    let mut client = bus.client_timeout::<First>(START)?;
    client.set_wait(run.mode.wait());
    let mut times = histogram()?;
    let mut request = First {
        id: 0,
        text: Small::new().text,
    };
    for id in 1..=run.total() {
        request.id = id;
        let start = run.clock.now();
        let mut items = client.stream(&request)?;
        let first = items.next().context("a stream without items")??;
        let right = first.carries(id);
        drop(first);
        let time = run.clock.since(start);
        ensure!(right, "the first item of stream {id} came changed");
        for (more, item) in (1..).zip(&mut items) {
            ensure!(item?.carries(id + more), "item {more} came changed");
        }
        ensure!(items.finish()?.at == id, "the end of another stream");
        run.record(&mut times, id, time)?;
    }
    drop(client);
    drop(bus);
    child.finish()?;
    Ok(quantiles(&times))
}

pub fn first_child(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut server = bus.server::<First>()?;
    server.set_wait(run.mode.wait());
    let mut item = Small::new();
    let mut id = 0;
    while let Some(call) = server.next()? {
        id += 1;
        ensure!(
            call.id == id && call.text == item.text,
            "request {id} came changed"
        );
        for number in id..id + FEW {
            item.number(number);
            call.send(&item)?;
        }
        call.reply(&Seen { at: id })?;
    }
    run.all_came(id)
}

pub fn one_way(run: &Run) -> Result<Figures> {
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let child = Peer(child);
    let mut receiver = bus.receiver::<Line>("lines")?;
    receiver.set_wait(run.mode.wait());
    let mut times = histogram()?;
    let mut number = 0;
    for chunk in 1..=run.total() {
        let start = run.clock.now();
        for _ in 0..CHUNK {
            number += 1;
            let line = receiver.next()?.context("the child ended early")?;
            ensure!(line.has_numbers(number), "line {number} came changed");
        }
        let time = run.clock.since(start) / CHUNK;
        run.record(&mut times, chunk, time)?;
    }
    child.finish()?;
    Ok(quantiles(&times))
}

pub fn one_way_child(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut sender = bus.sender_timeout::<Line>("lines", START)?;
    sender.set_wait(run.mode.wait());
    let mut line = Line::new();
    for number in 1..=run.total() * CHUNK {
        line.number(number);
        sender.send(&line)?;
    }
    Ok(())
}

pub fn items(run: &Run) -> Result<Figures> {
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let child = Peer(child);
    let mut client = bus.client_timeout::<Lines>(START)?;
    client.set_wait(run.mode.wait());
    let mut times = histogram()?;
    let count = run.total() * CHUNK;
    let mut items = client.stream(&Lines { count })?;
    let mut number = 0;
    for chunk in 1..=run.total() {
        let start = run.clock.now();
        for _ in 0..CHUNK {
            number += 1;
            let line = items.next().context("the stream ended early")??;
            ensure!(line.has_numbers(number), "item {number} came changed");
        }
        let time = run.clock.since(start) / CHUNK;
        run.record(&mut times, chunk, time)?;
    }
    ensure!(items.finish()?.at == count, "another end");
    drop(client);
    drop(bus);
    child.finish()?;
    Ok(quantiles(&times))
}

pub fn items_child(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut server = bus.server::<Lines>()?;
    server.set_wait(run.mode.wait());
    let mut line = Line::new();
    while let Some(call) = server.next()? {
        let count = call.count.to_native();
        for number in 1..=count {
            line.number(number);
            call.send(&line)?;
        }
        call.reply(&Seen { at: count })?;
    }
    Ok(())
}

pub fn cancel(run: &Run) -> Result<Figures> {
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let child = Peer(child);
    let mut client = bus.client_timeout::<First>(START)?;
    let mut asking = bus.client_timeout::<Ask>(START)?;
    client.set_wait(run.mode.wait());
    asking.set_wait(run.mode.wait());
    let mut times = histogram()?;
    let text = Small::new().text;
    let mut request = First { id: 0, text };
    for id in 1..=run.total() {
        request.id = id;
        let mut items = client.stream(&request)?;
        let item = items.next().context("a stream without items")??;
        ensure!(item.carries(id), "the item of stream {id} came changed");
        drop(item);
        let start = now();
        drop(items);
        // Answered once the cancel was seen.
        let seen = asking.call(&Ask { id })?.at.to_native();
        ensure!(seen >= start, "a cancel was seen before it was said");
        run.record(&mut times, id, seen - start)?;
    }
    drop((client, asking));
    drop(bus);
    child.finish()?;
    Ok(quantiles(&times))
}

/// Looks for the cancel without pause, as a handler in the middle of generating does.
pub fn cancel_child(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut server = bus.server::<First>()?;
    let mut asked = bus.server::<Ask>()?;
    server.set_wait(run.mode.wait());
    asked.set_wait(run.mode.wait());
    let mut item = Small::new();
    let mut id = 0;
    while let Some(call) = server.next()? {
        id += 1;
        ensure!(call.id == id, "stream {id} came changed");
        item.number(id);
        call.send(&item)?;
        while !call.is_cancelled() {
            std::hint::spin_loop();
        }
        let at = now();
        ensure!(
            matches!(call.try_send(&item), Err(SendError::Cancelled)),
            "an item of a cancelled call was sent"
        );
        drop(call);
        let question = asked.next()?.context("nobody asks")?;
        ensure!(question.id == id, "another question");
        question.reply(&Seen { at })?;
    }
    run.all_came(id)
}
