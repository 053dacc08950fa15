//! Calls of tasks, and a small call behind a large one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use shmbus::{Config, ShmMessage};
use tokio::runtime::{Builder, Runtime};

use crate::common::messages::{Small, Sum};
use crate::common::pages;
use crate::common::report::Figures;
use crate::common::{Histogram, Peer, Run, START, histogram, quantiles};
use crate::drive::drive;

/// Bytes of a large request: 40 MiB.
pub const UPLOAD: usize = 40 << 20;
/// Memory for two of them, and more.
const MEMORY: usize = 1 << 30;

/// A large request, copied from the heap.
#[derive(ShmMessage)]
#[shm(service = "upload", reply = Sum)]
struct Upload {
    id: u64,
    content: Vec<u8>,
}

/// One thread, which also watches descriptors.
pub fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_io().build()?)
}

fn config(run: &Run) -> Config {
    Config {
        wait: run.mode.wait(),
        max_message: UPLOAD + (1 << 20),
        memory_limit: MEMORY,
        ..Config::default()
    }
}

pub fn small(run: &Run) -> Result<Figures> {
    let (bus, child) = config(run).spawn(run.command(None)?)?;
    let child = Peer(child);
    let client = bus.async_client_timeout::<Small>(START)?;
    let mut times = histogram()?;
    let mut request = Small::new();
    runtime()?.block_on(async {
        let _driving = tokio::spawn(drive(bus.driver()));
        for id in 1..=run.total() {
            request.number(id);
            let start = run.clock.now();
            let reply = client.call(&request).await?;
            let right = reply.carries(id + 1);
            drop(reply);
            let time = run.clock.since(start);
            ensure!(right, "the reply to request {id} came changed");
            run.record(&mut times, id, time)?;
        }
        Ok(())
    })?;
    drop(client);
    drop(bus);
    child.finish()?;
    Ok(quantiles(&times))
}

pub fn small_child(run: &Run) -> Result<()> {
    let bus = config(run).from_parent()?;
    let server = bus.async_server::<Small>()?;
    let mut reply = Small::new();
    let mut id = 0;
    runtime()?.block_on(async {
        let _driving = tokio::spawn(drive(bus.driver()));
        while let Some(call) = server.next().await? {
            id += 1;
            ensure!(call.carries(id), "request {id} came changed");
            reply.number(id + 1);
            call.reply(&reply)?;
        }
        Ok(())
    })?;
    run.all_came(id)
}

/// The small call alone.
pub fn behind(run: &Run) -> Result<Figures> {
    let (behind, _) = upload_and_call(run)?;
    Ok(quantiles(&behind))
}

/// What making the large call took.
pub fn upload(run: &Run) -> Result<Figures> {
    let (_, upload) = upload_and_call(run)?;
    Ok(quantiles(&upload))
}

fn upload_and_call(run: &Run) -> Result<(Histogram, Histogram)> {
    let (bus, child) = config(run).spawn(run.command(None)?)?;
    let child = Peer(child);
    let client = bus.client_timeout::<Small>(START)?;
    let uploading = bus.async_client_timeout::<Upload>(START)?;
    let (mut behind, mut uploads) = (histogram()?, histogram()?);
    let mut request = Small::new();
    let mut upload = Upload {
        id: 0,
        content: vec![0; UPLOAD],
    };
    for id in 1..=run.total() {
        request.number(id);
        upload.id = id;
        pages::mark(&mut upload.content, id);
        let start = run.clock.now();
        let pending = uploading.call(&upload);
        let made = run.clock.since(start);
        let start = run.clock.now();
        let reply = client.call(&request)?;
        let right = reply.carries(id + 1);
        drop(reply);
        let time = run.clock.since(start);
        ensure!(right, "the reply to request {id} came changed");
        let sum = pending.wait()?.sum.to_native();
        ensure!(
            sum == pages::sum(&upload.content),
            "upload {id} came changed"
        );
        run.record(&mut behind, id, time)?;
        run.record(&mut uploads, id, made)?;
    }
    drop((client, uploading));
    drop(bus);
    child.finish()?;
    Ok((behind, uploads))
}

/// Answers both by one pool, which looks at the small call first and has a thread for it while an upload
/// is read. They may run on either processor: one alone would have the small call wait for that reading.
pub fn behind_child(run: &Run) -> Result<()> {
    run.unpin()?;
    let bus = config(run).from_parent()?;
    let seen = Arc::new(AtomicU64::new(0));
    let pool = bus.services().on::<Small, _>({
        let seen = seen.clone();
        move |call| {
            // One is asked after the other.
            let id = seen.fetch_add(1, Ordering::Relaxed) + 1;
            assert!(call.carries(id), "request {id} came changed");
            let mut reply = Small::new();
            reply.number(id + 1);
            Ok(reply)
        }
    })?;
    let pool = pool.on::<Upload, _>(|call| {
        let sum = pages::sum(call.content.as_slice());
        Ok(Sum { sum })
    })?;
    // Until the parent is gone.
    pool.start(2)?.join();
    run.all_came(seen.load(Ordering::Relaxed))
}
