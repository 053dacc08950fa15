//! One cache line each way between two processes: the physical limit, and the probe that says in
//! which phase the machine is.
//!
//! *Line*: seven words of payload and, in the same cache line, a stamp. Each side writes one line
//! and reads the other.

use std::hint::spin_loop;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use anyhow::{Result, ensure};

use super::shared::Shared;
use super::{Histogram, Peer, Run};

/// The line that the parent writes. It and [`PONG`] are not neighbours, which are fetched in pairs.
const PING: usize = 0;
/// The line that the child writes.
const PONG: usize = 256;
/// The last word of a line, which carries what is checked.
const LAST: usize = 56;
/// Bytes of the mapping.
const SPACE: usize = 4096;
/// Spins between two looks at whether the other process is still there.
const SPINS: u32 = 1 << 20;

/// Times `run.iterations` round trips of one line each way.
pub fn parent(run: &Run) -> Result<Histogram> {
    let shared = Shared::create(SPACE)?;
    let mut child = Peer(run.command(Some(shared.fd()))?.spawn()?);
    let mut times = super::histogram()?;
    for id in 1..=run.total() {
        let start = run.clock.now();
        post(&shared, PING, id, id ^ 0x5a);
        let answer = receive(&shared, PONG, id, &mut || child.check())?;
        let time = run.clock.since(start);
        ensure!(answer == id + 1, "answer {answer} to {id}");
        run.record(&mut times, id, time)?;
    }
    child.finish()?;
    Ok(times)
}

/// Answers each line.
pub fn child(run: &Run) -> Result<()> {
    let shared = Shared::inherited(run.inherited()?)?;
    for id in 1..=run.total() {
        let content = receive(&shared, PING, id, &mut || Ok(()))?;
        ensure!(content == id ^ 0x5a, "content {content} in line {id}");
        post(&shared, PONG, id, id + 1);
    }
    Ok(())
}

/// Writes one line: content first, then the stamp `id`.
#[inline]
pub fn post(shared: &Shared, line: usize, id: u64, content: u64) {
    // Relaxed: published by the stamp.
    shared.word(line + LAST).store(content, Relaxed);
    // SYNC(line): Release; pairs with Acquire in `receive`.
    shared.word(line).store(id, Release);
}

/// Spins until the stamp is `id` and returns the content. Now and then asks whether to go on.
#[inline]
pub fn receive(
    shared: &Shared,
    line: usize,
    id: u64,
    still_there: &mut dyn FnMut() -> Result<()>,
) -> Result<u64> {
    let stamp = shared.word(line);
    let mut spins = 0;
    // SYNC(line): Acquire; pairs with Release in `post`.
    while stamp.load(Acquire) != id {
        spin_loop();
        spins += 1;
        if spins == SPINS {
            still_there()?;
            spins = 0;
        }
    }
    // Relaxed: the stamp was read with Acquire, and the writer waits for our answer.
    Ok(shared.word(line + LAST).load(Relaxed))
}
