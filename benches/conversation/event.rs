//! What a wake-up each way costs by eventfd: where reading waits for it, and where a task of tokio does.
//!
//! Unsafe code is needed to take a descriptor over by its number, and to hand one to tokio.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, ensure};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};
use tokio::io::unix::AsyncFd;

use crate::common::report::Figures;
use crate::common::{Peer, Run, histogram, quantiles};
use crate::tasks::runtime;

/// In the child: the number of the descriptor for the way back.
const BACK: &str = "SHMBUS_BENCH_BACK";

/// Wakes the child, and is woken by it.
pub fn parent(run: &Run) -> Result<Figures> {
    let (there, back, child) = start(run, EventfdFlags::empty())?;
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

/// As [`parent`], for tasks.
pub fn task_parent(run: &Run) -> Result<Figures> {
    let (there, back, child) = start(run, EventfdFlags::NONBLOCK)?;
    let mut times = histogram()?;
    runtime()?.block_on(async {
        let back = watched(back)?;
        for id in 1..=run.total() {
            let start = run.clock.now();
            post(&there, id)?;
            let answer = wait_as_task(&back).await?;
            let time = run.clock.since(start);
            ensure!(answer == id + 1, "answer {answer} to {id}");
            run.record(&mut times, id, time)?;
        }
        Ok(())
    })?;
    child.finish()?;
    Ok(quantiles(&times))
}

/// As [`child`], for tasks.
pub fn task_child(run: &Run) -> Result<()> {
    let back: RawFd = std::env::var(BACK)?.parse()?;
    let there = inherited(run.inherited()?);
    let back = inherited(back);
    runtime()?.block_on(async {
        let there = watched(there)?;
        for id in 1..=run.total() {
            let came = wait_as_task(&there).await?;
            ensure!(came == id, "{came} came in place of {id}");
            post(&back, id + 1)?;
        }
        Ok(())
    })
}

/// Both descriptors, and a child that has them.
fn start(run: &Run, flags: EventfdFlags) -> Result<(OwnedFd, OwnedFd, Peer)> {
    // Without close-on-exec: the child is to have them.
    let make = || eventfd(0, flags).context("cannot make an eventfd");
    let (there, back): (OwnedFd, OwnedFd) = (make()?, make()?);
    let mut command = run.command(Some(there.as_raw_fd()))?;
    command.env(BACK, back.as_raw_fd().to_string());
    Ok((there, back, Peer(command.spawn()?)))
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

fn watched(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>> {
    // SAFETY: one descriptor, which stays open as long as it is watched.
    let watched = unsafe { AsyncFd::register(fd) };
    watched.map_err(|error| std::io::Error::from(error).into())
}

async fn wait_as_task(fd: &AsyncFd<OwnedFd>) -> Result<u64> {
    loop {
        let mut ready = fd.readable().await?;
        let came = ready.try_io(|fd| {
            let mut value = [0; 8];
            read(fd, &mut value)?;
            Ok(u64::from_ne_bytes(value))
        });
        if let Ok(value) = came {
            return Ok(value?);
        }
    }
}
