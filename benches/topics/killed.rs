//! A subscriber that is killed while it holds all that it may.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shmbus::{Bus, Publisher, SendError, ShmMessage};

use crate::common::report::Figures;
use crate::common::{Peer, Run, START, histogram, quantiles};

const BYTES: usize = 512 << 10;
/// Of what it holds, 32 MiB, so much may be in use when it is dead.
const FEW: u64 = 5 << 20;

#[derive(ShmMessage)]
#[shm(topic = "held")]
struct Held {
    content: Vec<u8>,
}

fn name(parent: u32) -> String {
    format!("bench-killed-{parent}")
}

/// Times from the kill until the publisher that waited for it has published, and all that the dead held is back.
pub fn parent(run: &Run) -> Result<Figures> {
    let bus = Bus::open(&name(std::process::id()))?;
    let mut publisher = bus.publisher::<Held>()?;
    let mut times = histogram()?;
    for id in 1..=run.total() {
        let time = kill_one(run, &bus, &mut publisher)?;
        run.record(&mut times, id, time.as_nanos() as u64)?;
        ensure!(publisher.subscribers() == 0, "it is still there");
    }
    drop((publisher, bus));
    Ok(quantiles(&times))
}

fn kill_one(run: &Run, bus: &Bus, publisher: &mut Publisher<Held>) -> Result<Duration> {
    let mut child = Peer(run.command(None)?.spawn()?);
    let start = Instant::now();
    while publisher.subscribers() == 0 {
        child.check()?;
        ensure!(start.elapsed() < START, "nobody subscribes");
        std::thread::yield_now();
    }
    let content = vec![7; BYTES];
    let message = Held { content };
    loop {
        match publisher.try_publish(&message) {
            Ok(()) => {}
            Err(SendError::Full) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let killing = std::thread::spawn(move || -> Result<(Peer, Instant)> {
        // So that the publisher waits.
        std::thread::sleep(Duration::from_millis(2));
        let killed = Instant::now();
        child.0.kill()?;
        Ok((child, killed))
    });
    publisher.publish(&message)?;
    // A few blocks are the publisher's, for its next messages.
    while bus.memory().1 > FEW {
        ensure!(start.elapsed() < START, "memory of the dead is not back");
        std::thread::yield_now();
    }
    let end = Instant::now();
    let killed = killing.join().ok().context("it does not panic")??;
    end.checked_duration_since(killed.1)
        .context("it was published before the kill")
}

pub fn child(_: &Run) -> Result<()> {
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_pid() as u32);
    let bus = Bus::open(&name(parent))?;
    let mut subscriber = bus.subscriber::<Held>()?;
    let mut all = Vec::new();
    while let Some(held) = subscriber.next()? {
        all.push(held.keep());
    }
    Ok(())
}
