//! Calls and streams, of one thread on each side.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use anyhow::Result;
use shmbus::{Call, CallError, Client, ConnectError, Kept, ReceiveError, SendError};

use super::one_way::note_end;
use super::{SOON, chain, insist, is_refusal, rest};
use crate::ledger::{Row, ended, kind};
use crate::messages::{ArchivedDone, ArchivedPart, Done, Part, Work, body, is_body, size};
use crate::plan::{self, Role};
use crate::worker::Context;

/// The most calls of one client, before another is made.
const CALLS: u32 = 20_000;
/// How many replies a client keeps for a while.
const KEPT: usize = 8;
/// Too little for some calls, and enough for others.
const LITTLE: Duration = Duration::from_micros(60);

/// What a server has seen of those who call.
#[derive(Default)]
pub struct Seen(HashMap<u64, u64>);

impl Seen {
    /// Looks at a request, and writes down that it came.
    pub fn take(&mut self, context: &Context, (row, number): (u64, u64), contents: &[u8]) {
        let Some(calls) = context.ledger.row(row) else {
            context.complain(format_args!("a request of nobody: {row}"));
            return;
        };
        if !is_body(row, number, contents) {
            context.complain(format_args!(
                "request {number} of row {row} has other contents"
            ));
        }
        calls.to.set(context.instance + 1);
        // What one server has answered is no hole where the next begins.
        let before = self.0.insert(row, number);
        let before = before.unwrap_or_else(|| calls.seen.get());
        if number <= before {
            context.complain(format_args!(
                "request {number} of row {row} came behind request {before}"
            ));
        }
        calls.holes.add((number - before).saturating_sub(1));
        calls.seen.set(number);
        context.slot.seen.add(1);
    }
}

/// Answers all who call.
pub fn serve(context: &mut Context) -> Result<()> {
    let Some(mut server) = insist(context, || context.bus.server::<Work>()) else {
        return Ok(());
    };
    let mut seen = Seen::default();
    loop {
        match server.next() {
            Ok(Some(call)) => {
                let key = (call.row.to_native(), call.number.to_native());
                seen.take(context, key, &call.body);
                answer(context, call);
            }
            Ok(None) => break,
            Err(error) => {
                context.complain(error);
                break;
            }
        }
        context.goes_on();
        context.fork_if_ordered(|| matches!(server.try_next(), Err(ReceiveError::Forked)));
        context.take_incidents();
    }
    Ok(())
}

/// An item of an answer.
pub fn part((row, number): (u64, u64), index: u32, size: u32) -> Part {
    let body = body(row, number + u64::from(index), size as usize);
    Part {
        row,
        number,
        index,
        body,
    }
}

/// The end of an answer.
pub fn done((row, number): (u64, u64), items: u32, size: u32) -> Done {
    Done {
        row,
        number,
        items,
        body: body(row, number, size as usize),
    }
}

fn answer(context: &Context, call: Call<'_, Work>) {
    let key = (call.row.to_native(), call.number.to_native());
    let (items, size) = (call.items.to_native(), call.size.to_native());
    let mut sent = 0;
    for index in 0..items {
        match call.send(&part(key, index, size)) {
            Ok(()) => sent += 1,
            Err(SendError::Cancelled | SendError::Closed { fault: None, .. }) => return,
            Err(error) => {
                // The stream goes on without it: its caller is told how many there were.
                context.slot.refused.add(1);
                if !is_refusal(context, &error) {
                    context.complain(format_args!("item {index}: {}", chain(&error)));
                }
                break;
            }
        }
    }
    let is_cancelled = call.is_cancelled();
    note_answer(
        context,
        key.0,
        is_cancelled,
        call.reply(&done(key, sent, size)),
    );
}

/// Writes down that a reply was sent.
pub fn note_answer(
    context: &Context,
    row: u64,
    is_cancelled: bool,
    replied: Result<(), SendError>,
) {
    match replied {
        Ok(()) if is_cancelled => {}
        Ok(()) => {
            context.ledger.rows[row as usize].answered.add(1);
            context.slot.answered.add(1);
        }
        Err(error) => {
            context.slot.refused.add(1);
            if !is_refusal(context, &error) {
                context.complain(format_args!("no reply: {}", chain(&error)));
            }
        }
    }
}

/// Calls whoever serves, again and again.
pub fn call(context: &mut Context) -> Result<()> {
    let mut kept = VecDeque::new();
    // The one place where a client that lost its server is made anew.
    loop {
        let made = insist(context, || context.bus.client_timeout::<Work>(SOON));
        let Some(client) = made else { break };
        let (row, calls) = context.ledger.begin(kind::CALLS, context.instance, 0);
        let how = converse(context, &client, (row, calls), &mut kept);
        if !context.is_running() && how == ended::DROPPED {
            rest(context);
        }
        calls.ended.set(how);
        drop(client);
        context.take_incidents();
    }
    kept.iter().for_each(|done| look_again(context, done));
    Ok(())
}

fn look_again(context: &Context, done: &Kept<Done>) {
    if !is_body(done.row.to_native(), done.number.to_native(), &done.body) {
        context.complain("a reply changed while it was kept");
    }
}

/// Makes some calls, and says how that ended.
fn converse(
    context: &mut Context,
    client: &Client<Work>,
    (row, calls): (u64, &Row),
    kept: &mut VecDeque<Kept<Done>>,
) -> u64 {
    for _ in 0..context.rng.u32(1..CALLS) {
        if !context.goes_on() {
            break;
        }
        let request = request(context, (row, calls));
        let last = if request.items > 0 {
            stream(context, client, &request, calls)
        } else if context.rng.u32(..32) == 0 {
            calls.skips.add(1);
            client.call_timeout(&request, LITTLE).map(Some)
        } else {
            client.call(&request).map(Some)
        };
        calls.worded.add(1);
        match last {
            Ok(Some(done)) => {
                check_done(context, &request, &done);
                calls.replies.add(1);
                if context.rng.u32(..64) == 0 {
                    kept.push_back(done.keep());
                }
            }
            Ok(None) => {}
            Err(error) => {
                if let Some(pid) = judge(context, &error) {
                    note_end(context, calls, pid);
                    return ended::LOST;
                }
                if is_unserved(&error) {
                    calls.skips.add(1);
                    return ended::DROPPED;
                }
                // Where it was not even sent, it is never taken.
                calls.skips.add(1);
            }
        }
        if kept.len() > KEPT {
            kept.pop_front()
                .iter()
                .for_each(|done| look_again(context, done));
        }
        context.fork_if_ordered(|| {
            let refused = client.call(&request).err();
            matches!(refused, Some(CallError::Send(SendError::Forked)))
        });
    }
    ended::DROPPED
}

/// The next request.
fn request(context: &mut Context, (row, calls): (u64, &Row)) -> Work {
    let number = calls.trying.get() + 1;
    calls.trying.set(number);
    context.slot.calls.add(1);
    let rng = &mut context.rng;
    Work {
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

type Last<'a> = Result<Option<shmbus::View<'a, Done>>, CallError>;

/// Takes a stream to its end, or as far as it likes.
fn stream<'a>(
    context: &mut Context,
    client: &'a Client<Work>,
    request: &Work,
    calls: &Row,
) -> Last<'a> {
    let takes = match context.rng.u32(..8) {
        0 => context.rng.u32(..request.items),
        _ => u32::MAX,
    };
    if takes < request.items {
        calls.skips.add(1);
    }
    let mut items = client.stream(request)?;
    let mut taken = 0;
    while taken < takes {
        let Some(item) = items.next() else { break };
        let item = item?;
        check_part(context, (request.row, request.number), taken, &item);
        taken += 1;
        context.slot.items.add(1);
    }
    if takes < request.items {
        // Cancels it.
        return Ok(None);
    }
    let done = items.finish()?;
    if done.items != taken {
        context.complain(format_args!("{} items were sent, {taken} came", done.items));
    }
    Ok(Some(done))
}

/// Looks at an item.
pub fn check_part(context: &Context, (row, number): (u64, u64), index: u32, part: &ArchivedPart) {
    let is_next = (
        part.row.to_native(),
        part.number.to_native(),
        part.index.to_native(),
    ) == (row, number, index);
    if !is_next {
        context.complain(format_args!(
            "item {} of call {} came as item {index} of call {number}",
            part.index, part.number
        ));
    }
    if !is_body(row, number + u64::from(index), &part.body) {
        context.complain(format_args!(
            "item {index} of call {number} has other contents"
        ));
    }
}

fn check_done(context: &Context, request: &Work, done: &ArchivedDone) {
    check_reply(context, (request.row, request.number), request.size, done);
}

/// Looks at a reply.
pub fn check_reply(context: &Context, (row, number): (u64, u64), size: u32, done: &ArchivedDone) {
    if (done.row.to_native(), done.number.to_native()) != (row, number) {
        context.complain(format_args!(
            "the reply to call {} came for call {number} of row {row}",
            done.number
        ));
    }
    if done.body.len() != size as usize || !is_body(row, number, &done.body) {
        context.complain(format_args!(
            "the reply to call {number} has other contents"
        ));
    }
}

/// Whether a call may end without a reply like this; returns who is gone.
pub fn judge(context: &Context, error: &CallError) -> Option<u32> {
    match error {
        CallError::Lost {
            pid, fault: None, ..
        } => return Some(*pid),
        // It never got there, nor did the attempt before it: two servers were killed in a row.
        CallError::Send(SendError::Closed {
            pid, fault: None, ..
        }) => return Some(*pid),
        // Of one that is killed, and that the kernel has not cleared up behind for so long.
        CallError::Connect(ConnectError::NoAnswer { pid, .. }) if is_killed(context, *pid) => {
            context.slot.refused.add(1)
        }
        CallError::TimedOut => context.slot.refused.add(1),
        error if is_unserved(error) => 0,
        CallError::Send(error) if is_refusal(context, error) => context.slot.refused.add(1),
        // The server has little memory, or is in want of something.
        CallError::Failed { pid, .. } if may_fail(context, *pid) => context.slot.refused.add(1),
        error => {
            context.complain(format_args!("a call ended by: {}", chain(error)));
            0
        }
    };
    None
}

/// Whether a call was not sent, since nobody serves.
pub fn is_unserved(error: &CallError) -> bool {
    matches!(
        error,
        CallError::Connect(
            ConnectError::NoServer { .. }
                | ConnectError::Lost { fault: None, .. }
                | ConnectError::Open(_)
        )
    )
}

fn is_killed(context: &Context, pid: u32) -> bool {
    let server = context.ledger.by_pid(pid);
    server.is_some_and(|server| !context.ledger.is_alive(server))
}

fn may_fail(context: &Context, pid: u32) -> bool {
    context.ledger.by_pid(pid).is_some_and(|instance| {
        let server = context.ledger.instance(instance);
        let slot = server.slot.get() as usize;
        let is_server = matches!(Role::of(slot), Role::Server | Role::TaskServer);
        let was_in_want =
            server.was_starved.get() != 0 || context.ledger.slots[slot].squeezes.get() > 0;
        is_server && (plan::is_limited(slot) || was_in_want)
    })
}
