//! What a wake-up each way costs by eventfd, which the kernel's own reading and writing waits for.
//!
//! Unsafe code is needed to take a descriptor over by its number.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, ensure};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};

use crate::common::report::Figures;
use crate::common::{Peer, Run, histogram, quantiles};

/// In the child: the number of the descriptor for the way back.
const BACK: &str = "SHMBUS_BENCH_BACK";

/// Wakes the child, and is woken by it.
pub fn parent(run: &Run) -> Result<Figures> {
    // Without close-on-exec: the child is to have them.
    let make = || eventfd(0, EventfdFlags::empty()).context("cannot make an eventfd");
    let (there, back): (OwnedFd, OwnedFd) = (make()?, make()?);
    let mut command = run.command(Some(there.as_raw_fd()))?;
    command.env(BACK, back.as_raw_fd().to_string());
    let child = Peer(command.spawn()?);
    let mut times = histogram()?;
    for id in 1..=run.total() {
        let start = run.clock.now();
        post(&there, id)?;
        let answer = wait(&back)?;
        let time = run.clock.since(start);
        ensure!(answer == id + 1, "answer {answer} to {id}");
        run.record(&mut times, id, time)?;
    }
    child.finish()?;
    Ok(quantiles(&times))
}

/// Answers each wake-up.
pub fn child(run: &Run) -> Result<()> {
    let back: RawFd = std::env::var(BACK)?.parse()?;
    let there = inherited(run.inherited()?);
    let back = inherited(back);
    for id in 1..=run.total() {
        let came = wait(&there)?;
        ensure!(came == id, "{came} came in place of {id}");
        post(&back, id + 1)?;
    }
    Ok(())
}

fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: the parent made this descriptor for this process, which has no other handle on it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

fn post(fd: &OwnedFd, value: u64) -> Result<()> {
    let written = write(fd, &value.to_ne_bytes())?;
    ensure!(written == 8, "an eventfd took {written} bytes");
    Ok(())
}

fn wait(fd: &OwnedFd) -> Result<u64> {
    let mut value = [0; 8];
    let len = read(fd, &mut value)?;
    ensure!(len == 8, "an eventfd gave {len} bytes");
    Ok(u64::from_ne_bytes(value))
}
