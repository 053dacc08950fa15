//! How long does a conversation take: streams, tasks, cancelled calls, a small call behind a large one?
//!
//! Two processes, each pinned to a processor of its own, with all of their threads. Every message is
//! checked. Times are in nanoseconds.
//!
//! | case | what is timed | beside it |
//! |---|---|---|
//! | `small` | a call and its reply, on a thread | the baseline of most others |
//! | `time-to-first-item` | from before `stream` until the first item was read | `small` |
//! | `one-way` | 1,000 messages of one cache line, one way, divided by 1,000 | |
//! | `items` | 1,000 such items of a stream, divided by 1,000 | `one-way` |
//! | `async-small` | a call of a task and its reply from a task, each on tokio's current thread, which also wakes them | `small` spinning; `raw-eventfd`, `tokio-eventfd` |
//! | `raw-eventfd` | an eventfd there and one back: the limit of those that sleep | |
//! | `tokio-eventfd` | the same, each side a task on tokio's current thread | `raw-eventfd` |
//! | `cancel-to-seen` | from before a stream is dropped until `is_cancelled` says so on the other side | `small`, halved |
//! | `small-behind-40MiB` | a call right after another was made that carries 40 MiB | `small` asleep |
//! | `upload-40MiB` | making that other call: 40 MiB are copied into shared memory | |
//!
//! `cargo bench --bench conversation -- --help` lists the options.

#[path = "../common/mod.rs"]
mod common;
mod drive;
mod event;
mod stream;
mod tasks;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use common::messages::{LINE_BYTES, SMALL_BYTES, Small};
use common::report::Figures;
use common::{Case, Mode, Peer, Run, histogram, quantiles};
use shmbus::Bus;

/// How long the child may take to offer its service.
pub const START: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let spin = [
        case("small", 200_000, SMALL_BYTES, small, small_child),
        case(
            "time-to-first-item",
            100_000,
            SMALL_BYTES,
            stream::first,
            stream::first_child,
        ),
        case(
            "one-way",
            5_000,
            LINE_BYTES,
            stream::one_way,
            stream::one_way_child,
        ),
        case(
            "items",
            5_000,
            LINE_BYTES,
            stream::items,
            stream::items_child,
        ),
        case(
            "async-small",
            100_000,
            SMALL_BYTES,
            tasks::small,
            tasks::small_child,
        ),
        case(
            "cancel-to-seen",
            20_000,
            SMALL_BYTES,
            stream::cancel,
            stream::cancel_child,
        ),
    ];
    let park = [
        case("raw-eventfd", 5_000, 8, event::parent, event::child),
        case(
            "tokio-eventfd",
            5_000,
            8,
            event::task_parent,
            event::task_child,
        ),
        case("small", 5_000, SMALL_BYTES, small, small_child),
        case(
            "async-small",
            5_000,
            SMALL_BYTES,
            tasks::small,
            tasks::small_child,
        ),
        case(
            "small-behind-40MiB",
            100,
            SMALL_BYTES,
            tasks::behind,
            tasks::behind_child,
        ),
        case(
            "upload-40MiB",
            100,
            tasks::UPLOAD,
            tasks::upload,
            tasks::behind_child,
        ),
    ];
    let park = park.map(|case| Case {
        mode: Mode::Park,
        ..case
    });
    let cases: Vec<Case> = spin.into_iter().chain(park).collect();
    common::main("conversation", &cases)
}

fn case(
    name: &'static str,
    iterations: u64,
    bytes: usize,
    parent: fn(&Run) -> Result<Figures>,
    child: fn(&Run) -> Result<()>,
) -> Case {
    Case {
        name,
        mode: Mode::Spin,
        iterations,
        bytes: bytes as u64,
        parent,
        child,
    }
}

fn small(run: &Run) -> Result<Figures> {
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let child = Peer(child);
    let mut client = bus.client_timeout::<Small>(START)?;
    client.set_wait(run.mode.wait());
    let mut times = histogram()?;
    let mut request = Small::new();
    for id in 1..=run.total() {
        request.number(id);
        let start = run.clock.now();
        let reply = client.call(&request)?;
        let right = reply.carries(id + 1);
        drop(reply);
        let time = run.clock.since(start);
        ensure!(right, "the reply to request {id} came changed");
        run.record(&mut times, id, time)?;
    }
    drop(client);
    drop(bus);
    child.finish()?;
    Ok(quantiles(&times))
}

fn small_child(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut server = bus.server::<Small>()?;
    server.set_wait(run.mode.wait());
    let mut reply = Small::new();
    let mut id = 0;
    while let Some(call) = server.next()? {
        id += 1;
        ensure!(call.carries(id), "request {id} came changed");
        reply.number(id + 1);
        call.reply(&reply)?;
    }
    all_came(run, id)
}

/// Fails unless so many requests came as were to come.
pub fn all_came(run: &Run, seen: u64) -> Result<()> {
    ensure!(
        seen == run.total(),
        "{seen} requests came of {}",
        run.total()
    );
    Ok(())
}
