//! One publisher, and subscribers that one thread of another process looks after.

use anyhow::{Context, Result, bail, ensure};
use shmbus::{Bus, Publisher, ShmMessage, Subscriber};

use crate::common::report::Figures;
use crate::common::{Peer, Run, START, histogram, quantiles};

/// Bytes of payload.
pub const SMALL: usize = 64;
pub const MEDIUM: usize = 4 << 10;
pub const LARGE: usize = 512 << 10;

/// Messages that are published before the other side has to have taken them all: fewer than there is room for.
const BATCH: u64 = 64;
/// Messages of a stream that are timed together.
const CHUNK: u64 = 1_000;

/// A message, and what it carries beside its number.
#[derive(ShmMessage)]
#[shm(topic = "payload")]
struct Payload {
    id: u64,
    content: Vec<u8>,
}

/// Asks whether all messages up to this one were taken, by everybody; answered when they were.
#[derive(ShmMessage)]
#[shm(service = "taken", reply = Taken)]
struct Take {
    id: u64,
    bytes: u32,
    subscribers: u32,
}

#[derive(ShmMessage)]
struct Taken {
    /// When the last one was read.
    at: u64,
}

/// The clock of both processes, in nanoseconds.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub fn content(bytes: usize) -> Vec<u8> {
    // The number and the length are part of it.
    vec![7; bytes - 16]
}

fn is_right(payload: &ArchivedPayload, id: u64, bytes: usize) -> bool {
    let content = payload.content.as_slice();
    payload.id == id
        && content.len() == bytes - 16
        && [content.first(), content.last()] == [Some(&7); 2]
}

/// The size and the number of subscribers that a case has in its name.
pub fn parts(name: &str) -> Result<(usize, u32)> {
    let mut words = name.rsplit('-');
    let count = words.next().and_then(|word| word.strip_prefix('x'));
    let bytes = match words.next() {
        Some("64B") => SMALL,
        Some("4KiB") => MEDIUM,
        Some("512KiB") => LARGE,
        _ => bail!("{name} has no size"),
    };
    Ok((bytes, count.context("how many?")?.parse()?))
}

/// The publisher of a case, with all its subscribers, and the client that asks what they took.
struct Side {
    bus: Bus,
    child: Peer,
    publisher: Publisher<Payload>,
    client: shmbus::Client<Take>,
    payload: Payload,
    bytes: usize,
    subscribers: u32,
}

impl Side {
    fn start(run: &Run) -> Result<Side> {
        let (bytes, subscribers) = parts(run.name())?;
        let (bus, child) = Bus::spawn(run.command(None)?)?;
        let child = Peer(child);
        let mut client = bus.client_timeout::<Take>(START)?;
        client.set_wait(run.mode.wait());
        let mut publisher = bus.publisher::<Payload>()?;
        publisher.set_wait(run.mode.wait());
        let mut side = Side {
            bus,
            child,
            publisher,
            client,
            payload: Payload {
                id: 0,
                content: content(bytes),
            },
            bytes,
            subscribers,
        };
        side.taken()?;
        while side.publisher.subscribers() < subscribers as usize {
            side.child.check()?;
            std::thread::yield_now();
        }
        Ok(side)
    }

    fn publish(&mut self, id: u64) -> Result<()> {
        self.payload.id = id;
        Ok(self.publisher.publish(&self.payload)?)
    }

    /// Waits until all that was published is taken: when the last one was.
    fn taken(&self) -> Result<u64> {
        let take = Take {
            id: self.payload.id,
            bytes: self.bytes as u32,
            subscribers: self.subscribers,
        };
        Ok(self.client.call(&take)?.at.to_native())
    }

    fn end(self) -> Result<()> {
        let end = Take {
            id: END,
            bytes: self.bytes as u32,
            subscribers: self.subscribers,
        };
        self.client.call(&end)?;
        drop((self.client, self.publisher, self.bus));
        self.child.finish()
    }
}

/// Times each call of `publish`, to subscribers that have room.
pub fn publish(run: &Run) -> Result<Figures> {
    let mut side = Side::start(run)?;
    let mut times = histogram()?;
    for id in 1..=run.total() {
        let start = run.clock.now();
        side.publish(id)?;
        let time = run.clock.since(start);
        run.record(&mut times, id, time)?;
        if id % BATCH == 0 {
            side.taken()?;
        }
    }
    side.taken()?;
    side.end()?;
    Ok(quantiles(&times))
}

/// Times chunks of messages, each as one of its messages.
pub fn stream(run: &Run) -> Result<Figures> {
    let mut side = Side::start(run)?;
    let mut times = histogram()?;
    for chunk in 1..=run.total() {
        let start = run.clock.now();
        for nth in 1..=CHUNK {
            side.publish((chunk - 1) * CHUNK + nth)?;
        }
        let time = run.clock.since(start) / CHUNK;
        run.record(&mut times, chunk, time)?;
    }
    side.taken()?;
    side.end()?;
    Ok(quantiles(&times))
}

/// Messages that are taken of one subscriber before the next is looked at, as a stream comes.
const ROW: usize = 16;
/// Asked for, this ends the other side.
const END: u64 = u64::MAX;

/// All subscribers of the other side.
struct All {
    subscribers: Vec<(Subscriber<Payload>, u64)>,
    bytes: usize,
    /// When the last message was read.
    at: u64,
}

impl All {
    fn look(&mut self) -> Result<()> {
        for (subscriber, taken) in &mut self.subscribers {
            for _ in 0..ROW {
                let Some(payload) = subscriber.try_next()? else {
                    break;
                };
                *taken += 1;
                let right = is_right(&payload, *taken, self.bytes);
                ensure!(right, "message {taken} came changed");
                self.at = now();
            }
        }
        Ok(())
    }

    fn has(&self, id: u64) -> bool {
        self.subscribers.iter().all(|(_, taken)| *taken >= id)
    }
}

/// Looks after all subscribers, and answers when they have taken what was asked for.
pub fn take(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut server = bus.server::<Take>()?;
    server.set_wait(run.mode.wait());
    let mut all = All {
        subscribers: Vec::new(),
        bytes: 0,
        at: 0,
    };
    loop {
        all.look()?;
        let Some(call) = server.try_next()? else {
            continue;
        };
        all.bytes = call.bytes.to_native() as usize;
        while all.subscribers.len() < call.subscribers.to_native() as usize {
            all.subscribers.push((bus.subscriber()?, 0));
        }
        let id = call.id.to_native();
        let last = if id == END { run.total() } else { id };
        while !all.has(last) && id != END {
            all.look()?;
        }
        call.reply(&Taken { at: all.at })?;
        if id == END {
            let some = all.has(run.total());
            ensure!(some, "not all messages came to everybody");
            return Ok(());
        }
    }
}

/// Times a message from before it is published until the last of its subscribers has read it.
pub fn one_way(run: &Run) -> Result<Figures> {
    let mut side = Side::start(run)?;
    let mut times = histogram()?;
    for id in 1..=run.total() {
        let start = now();
        side.publish(id)?;
        let at = side.taken()?;
        ensure!(at >= start, "a message was read before it was published");
        run.record(&mut times, id, at - start)?;
    }
    side.end()?;
    Ok(quantiles(&times))
}
