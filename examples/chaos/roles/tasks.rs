//! Calls and streams, of many tasks on each side.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use shmbus::{AsyncCall, AsyncClient, CallError, Kept, ReceiveError, SendError};
use tokio::runtime::{Builder, Runtime};

use super::calls::{Seen, check_part, check_reply, done, is_unserved, judge, note_answer, part};
use super::one_way::note_end;
use super::{SOON, chain, insist, is_refusal, rest};
use crate::ledger::{Row, ended, kind};
use crate::messages::{Done, TaskWork, body, size};
use crate::worker::Context;

/// How many tasks call at once.
const TASKS: u64 = 12;
/// The most calls of one task, before its client is made anew.
const CALLS: u32 = 3_000;
const LITTLE: Duration = Duration::from_micros(150);
const SHORT: Duration = Duration::from_millis(1);

fn runtime(context: &Context) -> Result<Runtime> {
    loop {
        match Builder::new_multi_thread().worker_threads(2).build() {
            // It has descriptors of its own.
            Err(_) if context.was_starved() => std::thread::sleep(SHORT),
            built => return Ok(built?),
        }
    }
}

/// Answers all who call, each in a task.
pub fn serve(context: &mut Context) -> Result<()> {
    let made = insist(context, || context.bus.async_server::<TaskWork>());
    let Some(server) = made else { return Ok(()) };
    let seen = Mutex::new(Seen::default());
    let runtime = runtime(context)?;
    let shared = Arc::new(context.share());
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            match server.next().await {
                Ok(Some(call)) => {
                    let key = (call.row.to_native(), call.number.to_native());
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.take(context, key, &call.body);
                    tasks.spawn(answer(shared.clone(), call));
                }
                Ok(None) => break,
                Err(error) => {
                    context.complain(error);
                    break;
                }
            }
            while tasks.try_join_next().is_some() {}
            context.goes_on();
            context.fork_if_ordered(|| matches!(server.try_next(), Err(ReceiveError::Forked)));
            context.take_incidents();
        }
        while tasks.join_next().await.is_some() {}
    });
    Ok(())
}

async fn answer(context: Arc<Context>, call: AsyncCall<TaskWork>) {
    let key = (call.row.to_native(), call.number.to_native());
    let (items, size) = (call.items.to_native(), call.size.to_native());
    let mut sent = 0;
    for index in 0..items {
        match call.send(&part(key, index, size)).await {
            Ok(()) => sent += 1,
            Err(SendError::Cancelled | SendError::Closed { fault: None, .. }) => return,
            Err(error) => {
                context.slot.refused.add(1);
                if !is_refusal(&context, &error) {
                    context.complain(format_args!("item {index}: {}", chain(&error)));
                }
                break;
            }
        }
    }
    let is_cancelled = call.is_cancelled();
    note_answer(
        &context,
        key.0,
        is_cancelled,
        call.reply(&done(key, sent, size)),
    );
}

/// Calls whoever serves, from many tasks at once.
pub fn call(context: &mut Context) -> Result<()> {
    let runtime = runtime(context)?;
    // The one place where a client that lost its server is made anew.
    loop {
        let made = insist(context, || {
            context.bus.async_client_timeout::<TaskWork>(SOON)
        });
        let Some(client) = made else { break };
        let all: Vec<_> = (0..TASKS)
            .map(|_| {
                let mut other = context.share();
                other.rng = context.rng.fork();
                runtime.spawn(converse(other, client.clone()))
            })
            .collect();
        runtime.block_on(async {
            for task in all {
                if task.await.is_err() {
                    context.complain("a task panicked");
                }
            }
        });
        context.fork_if_ordered(|| {
            let request = request(&mut fastrand::Rng::new(), (0, 0));
            let refused = client.call(&request).wait().err();
            matches!(refused, Some(CallError::Send(SendError::Forked)))
        });
        if !context.is_running() {
            rest(context);
        }
        drop(client);
        context.take_incidents();
    }
    Ok(())
}

/// Makes some calls; each task has a row of its own.
async fn converse(mut context: Context, client: AsyncClient<TaskWork>) {
    let (row, calls) = context.ledger.begin(kind::CALLS, context.instance, 0);
    let mut how = ended::DROPPED;
    for _ in 0..context.rng.u32(1..CALLS) {
        if !context.goes_on() {
            break;
        }
        let number = calls.trying.get() + 1;
        calls.trying.set(number);
        context.slot.calls.add(1);
        let request = request(&mut context.rng, (row, number));
        let last = if request.items > 0 {
            stream(&mut context, &client, &request, calls).await
        } else if context.rng.u32(..32) == 0 {
            calls.skips.add(1);
            client.call_timeout(&request, LITTLE).await.map(Some)
        } else {
            client.call(&request).await.map(Some)
        };
        calls.worded.add(1);
        match last {
            Ok(Some(done)) => {
                check_reply(&context, (row, number), request.size, &done);
                calls.replies.add(1);
            }
            Ok(None) => {}
            Err(error) => {
                if let Some(pid) = judge(&context, &error) {
                    note_end(&context, calls, pid);
                    how = ended::LOST;
                    break;
                }
                if is_unserved(&error) {
                    calls.skips.add(1);
                    break;
                }
                // Where it was not even sent, it is never taken.
                calls.skips.add(1);
            }
        }
        tokio::task::yield_now().await;
    }
    calls.ended.set(how);
}

fn request(rng: &mut fastrand::Rng, (row, number): (u64, u64)) -> TaskWork {
    TaskWork {
        row,
        number,
        items: if rng.u32(..16) == 0 {
            rng.u32(1..40)
        } else {
            0
        },
        size: size(rng) as u32,
        body: body(row, number, size(rng)),
    }
}

/// Takes a stream to its end, or as far as it likes.
async fn stream(
    context: &mut Context,
    client: &AsyncClient<TaskWork>,
    request: &TaskWork,
    calls: &Row,
) -> Result<Option<Kept<Done>>, CallError> {
    let takes = match context.rng.u32(..8) {
        0 => context.rng.u32(..request.items),
        _ => u32::MAX,
    };
    if takes < request.items {
        calls.skips.add(1);
    }
    let mut items = client.stream(request).await?;
    let mut taken = 0;
    while taken < takes {
        let Some(item) = items.next().await else {
            break;
        };
        let item = item?;
        check_part(context, (request.row, request.number), taken, &item);
        taken += 1;
        context.slot.items.add(1);
    }
    if takes < request.items {
        return Ok(None);
    }
    let done = items.finish().await?;
    if done.items != taken {
        context.complain(format_args!("{} items were sent, {taken} came", done.items));
    }
    Ok(Some(done))
}
