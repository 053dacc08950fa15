//! What a round trip costs without any bus: asleep on futexes, and with 512 KiB.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use anyhow::{Result, ensure};
use rustix::io::Errno;
use rustix::thread::{Timespec, futex};

use super::line;
use super::pages::{self, LARGE, PAGE};
use super::shared::Shared;
use super::{Histogram, Peer, Run};

/// The words that the two sides sleep on, each followed by its content.
const PING: usize = 0;
const PONG: usize = 256;
/// Where the large content starts; the lines that announce it lie before.
const CONTENT: usize = 4096;
/// How long a side sleeps before it looks whether the other is still there.
const NAP: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Which part of a trip with 512 KiB is told.
#[derive(Clone, Copy, Debug)]
pub enum Timed {
    /// The copy into shared memory alone.
    Copy,
    /// Announcing it, the child's reading of one byte of each page, and the answer.
    Reads,
    /// Both.
    Trip,
}

/// Times round trips in which each side sleeps until the other wakes it.
pub fn futex_parent(run: &Run) -> Result<Histogram> {
    let shared = Shared::create(CONTENT)?;
    let mut child = Peer(run.command(Some(shared.fd()))?.spawn()?);
    let mut times = super::histogram()?;
    for id in 1..=run.total() {
        let start = run.clock.now();
        ring(&shared, PING, id, !id)?;
        let answer = sleep(&shared, PONG, id, || child.check())?;
        let time = run.clock.since(start);
        ensure!(answer == id + 1, "answer {answer} to {id}");
        run.record(&mut times, id, time)?;
    }
    child.finish()?;
    Ok(times)
}

/// Answers each wake-up.
pub fn futex_child(run: &Run) -> Result<()> {
    let shared = Shared::inherited(run.inherited()?)?;
    for id in 1..=run.total() {
        let content = sleep(&shared, PING, id, || Ok(()))?;
        ensure!(content == !id, "content {content} in wake-up {id}");
        ring(&shared, PONG, id, id + 1)?;
    }
    Ok(())
}

/// Times a part of round trips that carry 512 KiB there.
pub fn large_parent(run: &Run, timed: Timed) -> Result<Histogram> {
    let shared = Shared::create(CONTENT + LARGE)?;
    let mut child = Peer(run.command(Some(shared.fd()))?.spawn()?);
    let mut times = super::histogram()?;
    let mut source = pages::content();
    for id in 1..=run.total() {
        pages::mark(&mut source, id);
        let start = run.clock.now();
        shared.copy_in(CONTENT, &source);
        let copied = run.clock.now();
        line::post(&shared, PING, id, LARGE as u64);
        let sum = line::receive(&shared, PONG, id, &mut || child.check())?;
        let end = run.clock.now();
        ensure!(sum == pages::sum(&source), "sum {sum} of trip {id}");
        let ticks = match timed {
            Timed::Copy => copied - start,
            Timed::Reads => end - copied,
            Timed::Trip => end - start,
        };
        run.record(&mut times, id, run.clock.ns(ticks))?;
    }
    child.finish()?;
    Ok(times)
}

/// Reads one byte of each page and answers with the sum.
pub fn large_child(run: &Run) -> Result<()> {
    let shared = Shared::inherited(run.inherited()?)?;
    for id in 1..=run.total() {
        let len = line::receive(&shared, PING, id, &mut || Ok(()))? as usize;
        let first_byte = |offset| {
            // Relaxed: the stamp was read with Acquire, and the parent waits for the answer.
            let word = shared.word(CONTENT + offset).load(Relaxed);
            u64::from(word.to_ne_bytes()[0])
        };
        let sum = (0..len).step_by(PAGE).map(first_byte).sum();
        line::post(&shared, PONG, id, sum);
    }
    Ok(())
}

fn ring(shared: &Shared, at: usize, id: u64, content: u64) -> Result<()> {
    // Relaxed: published by the futex word.
    shared.word(at + 8).store(content, Relaxed);
    let word = shared.futex_word(at);
    // SYNC(futex): Release; pairs with Acquire in `sleep`.
    word.store(id as u32, Release);
    futex::wake(word, futex::Flags::empty(), 1)?;
    Ok(())
}

fn sleep(
    shared: &Shared,
    at: usize,
    id: u64,
    mut still_there: impl FnMut() -> Result<()>,
) -> Result<u64> {
    let word = shared.futex_word(at);
    loop {
        // SYNC(futex): Acquire; pairs with Release in `ring`.
        let seen = word.load(Acquire);
        if seen == id as u32 {
            // Relaxed: the word was read with Acquire, and the writer waits for our answer.
            return Ok(shared.word(at + 8).load(Relaxed));
        }
        match futex::wait(word, futex::Flags::empty(), seen, Some(&NAP)) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::TIMEDOUT) => still_there()?,
            Err(error) => return Err(error.into()),
        }
    }
}
