//! A call whose server is killed: how soon does it find the next one?

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use shmbus::{Bus, Bytes, Client, Config, ShmMessage};

use crate::common::report::Figures;
use crate::common::{Peer, Run, START, histogram, quantiles};

/// Bytes that are never copied: they are sent again from where they lie.
pub const BYTES: usize = 1 << 20;

#[derive(ShmMessage)]
#[shm(service = "index", reply = Indexed, idempotent)]
struct Index {
    id: u64,
    content: Bytes,
}

#[derive(ShmMessage)]
struct Indexed {
    id: u64,
    /// When this server was about to offer its service, by the monotonic clock, in nanoseconds.
    offered: u64,
    bytes: u64,
}

fn name(parent: u32) -> String {
    format!("bench-successor-{parent}")
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Times from the moment that a successor is about to offer the service until the call that its predecessor took is
/// answered.
pub fn parent(run: &Run) -> Result<Figures> {
    let config = Config {
        max_message: 2 * BYTES,
        ..Default::default()
    };
    let bus = config.open(&name(std::process::id()))?;
    let mut server = Some(start(run)?);
    let mut client = bus.client_timeout::<Index>(START)?;
    // Each server answers its first call, and dies of its second.
    client.call_timeout(&request(&client, 0)?, START)?;
    let mut times = histogram()?;
    for id in 1..=run.total() {
        let request = request(&client, id)?;
        let before = server.take().context("one serves")?;
        let (next, time) = std::thread::scope(|scope| -> Result<(Peer, u64)> {
            let client = &mut client;
            let calling = scope.spawn(move || call(client, &request));
            // On this thread, with whose end a server ends.
            let next = replace(run, before)?;
            let time = calling.join().ok().context("it does not panic")??;
            Ok((next, time))
        })?;
        run.record(&mut times, id, time)?;
        server = Some(next);
    }
    for incident in bus.take_incidents() {
        ensure!(incident.what.contains("SIGKILL"), "{incident}");
    }
    Ok(quantiles(&times))
}

fn request(client: &Client<Index>, id: u64) -> Result<Index> {
    let mut content = client.loan_bytes(BYTES)?;
    content.fill(id as u8);
    Ok(Index { id, content })
}

/// Calls; returns how long it took behind the offer of the server that answered.
fn call(client: &Client<Index>, request: &Index) -> Result<u64> {
    let reply = client.call_timeout(request, START)?;
    let time = now() - reply.offered.to_native();
    let is_its_own = reply.id == request.id && reply.bytes == BYTES as u64;
    ensure!(is_its_own, "it is another's");
    Ok(time)
}

/// Starts a server.
fn start(run: &Run) -> Result<Peer> {
    let mut command = run.command(None)?;
    command.stdout(Stdio::piped());
    Ok(Peer(command.spawn()?))
}

/// Kills a server once it has taken a call, and starts another when it is gone.
fn replace(run: &Run, mut server: Peer) -> Result<Peer> {
    let mut said = [0];
    let out = server.0.stdout.as_mut().context("it is piped")?;
    out.read_exact(&mut said)?;
    server.0.kill()?;
    server.0.wait()?;
    std::thread::sleep(Duration::from_millis(1));
    start(run)
}

/// Answers a call, and takes another.
pub fn child(_: &Run) -> Result<()> {
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_pid() as u32);
    let bus = Bus::open(&name(parent))?;
    let offered = now();
    let mut server = bus.server::<Index>()?;
    let mut taken = 0;
    while let Some(call) = server.next()? {
        taken += 1;
        let id = call.id.to_native();
        ensure!(
            call.content.iter().all(|byte| *byte == id as u8),
            "it is another's"
        );
        if taken == 1 {
            let bytes = call.content.len() as u64;
            call.reply(&Indexed { id, offered, bytes })?;
            continue;
        }
        std::mem::forget(call);
        let mut out = std::io::stdout();
        out.write_all(b"!")?;
        out.flush()?;
    }
    Ok(())
}
