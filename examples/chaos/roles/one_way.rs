//! Letters, one way.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use anyhow::Result;
use shmbus::{Kept, PinError, Pinned, ReceiveError, SendError, Sender, View};

use super::{SOON, chain, insist, is_refusal, rest};
use crate::ledger::{Row, ended, kind};
use crate::messages::{ArchivedLetter, Letter, Page, body, is_body, size};
use crate::plan::{self, Role};
use crate::worker::Context;

/// How many letters a receiver keeps for a while.
const KEPT: usize = 12;
/// The most letters on one lane, before its sender makes another.
const LETTERS: u32 = 20_000;

/// Takes letters of all senders, each in order and without a hole.
pub fn receive(context: &mut Context) -> Result<()> {
    let name = plan::letters(context.number);
    let Some(mut receiver) = insist(context, || context.bus.receiver::<Letter>(&name)) else {
        return Ok(());
    };
    let mut seen = HashMap::new();
    let mut kept = VecDeque::new();
    loop {
        match receiver.next() {
            Ok(Some(letter)) => {
                take(context, &mut seen, &letter);
                open(context, &letter);
                if context.rng.u32(..64) == 0 {
                    kept.push_back(letter.keep());
                }
            }
            Ok(None) => break,
            Err(error) => {
                context.complain(error);
                break;
            }
        }
        context.goes_on();
        if kept.len() > KEPT {
            look_again(context, kept.pop_front());
        }
        context.fork_if_ordered(|| matches!(receiver.try_next(), Err(ReceiveError::Forked)));
        context.take_incidents();
    }
    while !kept.is_empty() {
        look_again(context, kept.pop_front());
    }
    Ok(())
}

/// Looks at a letter, and writes down that it came.
fn take(context: &Context, seen: &mut HashMap<u64, u64>, letter: &ArchivedLetter) {
    let (row, number) = (letter.row.to_native(), letter.number.to_native());
    let Some(lane) = context.ledger.row(row) else {
        context.complain(format_args!("a letter of no lane: {row}"));
        return;
    };
    if !is_body(row, number, &letter.body) {
        context.complain(format_args!(
            "letter {number} of lane {row} has other contents"
        ));
    }
    lane.to.set(context.instance + 1);
    let before = seen.insert(row, number).unwrap_or(0);
    if number != before + 1 {
        context.complain(format_args!(
            "letter {number} of lane {row} came behind letter {before}"
        ));
    }
    lane.seen.set(number);
    lane.count.add(1);
    context.slot.seen.add(1);
}

/// Follows a letter to its page.
fn open(context: &Context, letter: &View<'_, Letter>) {
    let Some(page) = letter.page.as_ref() else {
        return;
    };
    match page.open(letter) {
        Ok(page) => {
            let (row, number) = (page.row.to_native(), page.number.to_native());
            if row != letter.row.to_native() || !is_body(row, number, &page.body) {
                context.complain(format_args!(
                    "page {number} of lane {row} has other contents"
                ));
            }
        }
        // Its sender was killed before it could tell where the page lies.
        Err(PinError::Lost { fault: None, .. }) => {
            context.slot.refused.add(1);
        }
        Err(error) => context.complain(chain(&error)),
    }
}

/// Looks at a letter that was kept; its sender may be gone.
fn look_again(context: &Context, kept: Option<Kept<Letter>>) {
    let Some(letter) = kept else { return };
    let (row, number) = (letter.row.to_native(), letter.number.to_native());
    if !is_body(row, number, &letter.body) {
        context.complain(format_args!(
            "letter {number} of lane {row} changed while it was kept"
        ));
    }
}

/// Writes letters to one receiver after the other.
pub fn send(context: &mut Context) -> Result<()> {
    let receivers: Vec<usize> = (0..context.ledger.slots().len())
        .filter(|slot| Role::of(*slot) == Role::Receiver)
        .collect();
    loop {
        let to = receivers[context.rng.usize(..receivers.len())];
        let name = plan::letters(to);
        let made = insist(context, || {
            context.bus.sender_timeout::<Letter>(&name, SOON)
        });
        let Some(mut sender) = made else {
            return Ok(());
        };
        let (row, lane) = context
            .ledger
            .begin(kind::LANE, context.instance, to as u64);
        let how = write(context, &mut sender, row, lane);
        if !context.is_running() && how == ended::DROPPED {
            rest(context);
        }
        lane.ended.set(how);
        drop(sender);
        context.take_incidents();
    }
}

/// Writes some letters, and says how that ended.
fn write(context: &mut Context, sender: &mut Sender<Letter>, row: u64, lane: &Row) -> u64 {
    let mut page = None;
    let most = context.rng.u32(1..LETTERS);
    for _ in 0..most {
        if !context.goes_on() {
            break;
        }
        let number = lane.promised.get() + 1;
        if number % 500 == 1 {
            page = pin(context, row, number);
        }
        let letter = Letter {
            row,
            number,
            body: body(row, number, size(&mut context.rng)),
            page: page.clone().filter(|_| number % 7 == 0),
        };
        lane.trying.set(number);
        let sent = match context.rng.u32(..8) {
            0 => sender.try_send(&letter),
            1 => sender.send_timeout(&letter, Duration::from_micros(200)),
            _ => sender.send(&letter),
        };
        match sent {
            Ok(()) => {
                lane.promised.set(number);
                context.slot.promised.add(1);
            }
            Err(SendError::Closed {
                pid, fault: None, ..
            }) => {
                lane.trying.set(number - 1);
                note_end(context, lane, pid);
                return ended::LOST;
            }
            Err(error) => {
                lane.trying.set(number - 1);
                context.slot.refused.add(1);
                if !is_refusal(context, &error) {
                    context.complain(format_args!("letter {number}: {}", chain(&error)));
                }
            }
        }
        context.fork_if_ordered(|| matches!(sender.try_send(&letter), Err(SendError::Forked)));
    }
    ended::DROPPED
}

fn pin(context: &Context, row: u64, number: u64) -> Option<Pinned<Page>> {
    let page = Page {
        row,
        number,
        body: body(row, number, 20_000),
    };
    let pinned = context.bus.pin(&page);
    if let Err(error) = &pinned {
        context.slot.refused.add(1);
        if !is_refusal(context, error) {
            context.complain(format_args!("page {number}: {}", chain(error)));
        }
    }
    pinned.ok()
}

/// Writes down which process was said to be gone.
pub fn note_end(context: &Context, row: &Row, pid: u32) {
    match context.ledger.by_pid(pid) {
        Some(instance) => row.to.set(instance + 1),
        None => context.complain(format_args!("process {pid} is none of ours")),
    }
    context.slot.lost.add(1);
}
