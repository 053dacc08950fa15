//! Newest values: what it costs to read one, and to replace one.

use anyhow::{Context, Result, bail, ensure};
use shmbus::{Bus, Latest, ShmMessage};

use crate::common::report::Figures;
use crate::common::{Peer, Run, START, histogram, quantiles};

/// Reads that are timed together: one takes hardly longer than a look at the clock.
const CHUNK: u64 = 1_000;
/// Documents that there are values of.
const KEYS: u64 = 1_000;
/// Values that are published before it is looked whether the other side is done.
const ROW: u64 = 64;

/// The newest of all.
#[derive(ShmMessage)]
#[shm(latest = "value")]
struct Value {
    number: u64,
    content: Vec<u8>,
}

/// The newest of each document.
#[derive(ShmMessage)]
#[shm(latest = "of-document", key = "path")]
struct OfDocument {
    path: String,
    number: u64,
    content: Vec<u8>,
}

/// Ends the other side; answered by how much it has done.
#[derive(ShmMessage)]
#[shm(service = "end", reply = Ended)]
struct End {
    number: u64,
}

#[derive(ShmMessage)]
struct Ended {
    number: u64,
}

fn content(name: &str) -> Result<Vec<u8>> {
    let size = match name.split('-').nth(2) {
        Some("64B") => 64,
        Some("512KiB") => 512 << 10,
        _ => bail!("{name} has no size"),
    };
    Ok(vec![7; size - 16])
}

fn value(name: &str) -> Result<Value> {
    let content = content(name)?;
    Ok(Value { number: 0, content })
}

fn path(key: u64) -> String {
    format!("crates/editor/src/part_{key:04}.rs")
}

/// The other process of a case, and the client that ends it.
struct Other {
    bus: Bus,
    child: Peer,
    client: shmbus::Client<End>,
}

impl Other {
    fn start(run: &Run) -> Result<Other> {
        let (bus, child) = Bus::spawn(run.command(None)?)?;
        let child = Peer(child);
        let client = bus.client_timeout::<End>(START)?;
        Ok(Other { bus, child, client })
    }

    fn end(self, number: u64) -> Result<u64> {
        let ended = self.client.call(&End { number })?.number.to_native();
        drop((self.client, self.bus));
        self.child.finish()?;
        Ok(ended)
    }
}

/// Times reads of a value that a peer has published; in cases that are `busy`, of one that it replaces as fast as
/// it can.
pub fn get(run: &Run) -> Result<Figures> {
    let other = Other::start(run)?;
    let mut latest: Latest<Value> = other.bus.latest()?;
    ensure!(latest.changed().wait()?, "nothing is published");
    let len = content(run.name())?.len();
    let mut times = histogram()?;
    let (mut last, mut newer) = (0, 0);
    for chunk in 1..=run.total() {
        let start = run.clock.now();
        for _ in 0..CHUNK {
            let value = latest.value()?.context("it was published")?;
            let number = value.number.to_native();
            let right = number >= last && value.content.len() == len && value.content[len - 1] == 7;
            ensure!(right, "an older value, or another");
            newer += u64::from(number > last);
            last = number;
        }
        let time = run.clock.since(start) / CHUNK;
        run.record(&mut times, chunk, time)?;
    }
    let published = other.end(0)?;
    let is_busy = run.name().ends_with("busy");
    ensure!(
        newer <= published && (newer > run.total()) == is_busy,
        "{newer} of {published} values"
    );
    Ok(quantiles(&times))
}

pub fn put(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut publisher = bus.latest_publisher::<Value>()?;
    let mut value = value(run.name())?;
    let mut server = bus.server::<End>()?;
    server.set_wait(run.mode.wait());
    let row = if run.name().ends_with("busy") { ROW } else { 0 };
    value.number = 1;
    publisher.publish(&value)?;
    loop {
        for _ in 0..row {
            value.number += 1;
            publisher.publish(&value)?;
        }
        if let Some(call) = server.try_next()? {
            return Ok(call.reply(&Ended {
                number: value.number,
            })?);
        }
    }
}

/// Times reads of one document after another.
pub fn get_keyed(run: &Run) -> Result<Figures> {
    let other = Other::start(run)?;
    let mut latest: Latest<OfDocument> = other.bus.latest()?;
    let paths: Vec<String> = (0..KEYS).map(path).collect();
    while latest.get(&paths[KEYS as usize - 1])?.is_none() {
        ensure!(latest.changed().wait()?, "nothing is published");
        while latest.try_next()?.is_some() {}
    }
    let mut times = histogram()?;
    for chunk in 1..=run.total() {
        let start = run.clock.now();
        for (key, path) in paths.iter().enumerate() {
            let value = latest.get(path)?.context("it was published")?;
            ensure!(
                value.number == key as u64 && value.content.len() == 48,
                "another value"
            );
        }
        let time = run.clock.since(start) / KEYS;
        run.record(&mut times, chunk, time)?;
    }
    other.end(0)?;
    Ok(quantiles(&times))
}

pub fn put_keyed(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut publisher = bus.latest_publisher::<OfDocument>()?;
    let mut server = bus.server::<End>()?;
    server.set_wait(run.mode.wait());
    for number in 0..KEYS {
        let (path, content) = (path(number), content(run.name())?);
        publisher.publish(&OfDocument {
            path,
            number,
            content,
        })?;
    }
    let call = server.next()?.context("the parent ends this")?;
    Ok(call.reply(&Ended { number: KEYS })?)
}

/// Times each publishing of a value, which readers of the other process look at as often as they can.
pub fn publish(run: &Run) -> Result<Figures> {
    let other = Other::start(run)?;
    let mut publisher = other.bus.latest_publisher::<Value>()?;
    let readers = readers(run.name())?;
    while publisher.readers() < readers {
        std::thread::yield_now();
    }
    let mut value = value(run.name())?;
    let mut times = histogram()?;
    for number in 1..=run.total() {
        value.number = number;
        let start = run.clock.now();
        publisher.publish(&value)?;
        let time = run.clock.since(start);
        run.record(&mut times, number, time)?;
    }
    let seen = other.end(run.total())?;
    ensure!(seen == run.total(), "the last value seen was {seen}");
    Ok(quantiles(&times))
}

fn readers(name: &str) -> Result<usize> {
    let count = name
        .rsplit('-')
        .next()
        .and_then(|word| word.strip_prefix('x'));
    Ok(count.context("how many?")?.parse()?)
}

/// Looks at the newest value by all readers in turn, to the last one.
pub fn look(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut server = bus.server::<End>()?;
    server.set_wait(run.mode.wait());
    let readers = (0..readers(run.name())?).map(|_| bus.latest::<Value>());
    let mut readers = readers.collect::<Result<Vec<_>, _>>()?;
    let mut last = 0;
    let mut look = |last: &mut u64| -> Result<()> {
        for latest in &mut readers {
            if let Some(value) = latest.value()? {
                let number = value.number.to_native();
                ensure!(number >= *last, "an older value");
                *last = number;
            }
        }
        Ok(())
    };
    loop {
        look(&mut last)?;
        if let Some(call) = server.try_next()? {
            look(&mut last)?;
            return Ok(call.reply(&Ended { number: last })?);
        }
    }
}
