//! Newest values.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use shmbus::{Change, Latest, ReceiveError, SendError};

use super::{chain, insist, is_refusal, rest};
use crate::ledger::{Row, kind, phase};
use crate::messages::{ArchivedNewest, Newest, body, is_body, size};
use crate::plan::KEYS;
use crate::worker::Context;

/// A reader looks by itself so often whether all is over.
const LOOK: Duration = Duration::from_millis(50);
/// The most changes between two looks whether all is over.
const TURN: usize = 64;

/// Replaces the values of its keys, as fast as it can.
pub fn publish(context: &mut Context) -> Result<()> {
    let made = insist(context, || context.bus.latest_publisher::<Newest>());
    let Some(mut publisher) = made else {
        return Ok(());
    };
    let first = context.number as u64 * KEYS;
    let rows: Vec<_> = (first..first + KEYS)
        .map(|key| context.ledger.begin(kind::NEWEST, context.instance, key))
        .collect();
    while context.goes_on() {
        let (row, words) = rows[context.rng.usize(..rows.len())];
        let number = words.promised.get() + 1;
        let value = Newest {
            key: words.of.get(),
            row,
            number,
            body: body(row, number, size(&mut context.rng)),
        };
        words.trying.set(number);
        match publisher.publish(&value) {
            Ok(()) => {
                words.promised.set(number);
                context.slot.promised.add(1);
            }
            Err(error) => {
                words.trying.set(number - 1);
                context.slot.refused.add(1);
                if !is_refusal(context, &error) {
                    context.complain(format_args!("value {number}: {}", chain(&error)));
                }
            }
        }
        context.fork_if_ordered(|| matches!(publisher.publish(&value), Err(SendError::Forked)));
        context.take_incidents();
    }
    rest(context);
    Ok(())
}

/// The values that a reader has seen, by their rows.
struct Seen<'a> {
    context: &'a Context,
    by_row: HashMap<u64, (u64, &'static Row)>,
}

impl Seen<'_> {
    fn take(&mut self, value: &ArchivedNewest) {
        let context = self.context;
        let (row, number) = (value.row.to_native(), value.number.to_native());
        if context
            .ledger
            .row(row)
            .is_none_or(|of| of.of.get() != value.key)
        {
            context.complain(format_args!("value {number} of row {row} is nobody's"));
            return;
        }
        if !is_body(row, number, &value.body) {
            context.complain(format_args!(
                "value {number} of row {row} has other contents"
            ));
        }
        context.slot.seen.add(1);
        let entry = self.by_row.entry(row);
        let (newest, words) = entry.or_insert_with(|| (0, context.reading(row).1));
        if number < *newest {
            context.complain(format_args!(
                "value {number} of row {row} came behind {newest}"
            ));
        }
        *newest = number;
        words.seen.set(number);
    }
}

/// Looks at all values, as they change and at other times.
pub fn read(context: &mut Context) -> Result<()> {
    let Some(mut latest) = insist(context, || context.bus.latest::<Newest>()) else {
        return Ok(());
    };
    let mut rng = context.rng.clone();
    let keys = context.ledger.slots().len() as u64 * KEYS;
    let mut seen = Seen {
        context,
        by_row: HashMap::new(),
    };
    while context.ledger.phase.get() < phase::CLOSE {
        context.goes_on();
        if let Err(error) = latest.changed().wait_timeout(LOOK) {
            context.complain(error);
        }
        take_changes(&mut latest, &mut seen);
        let key = rng.u64(..keys);
        look_twice(&mut latest, &mut seen, key);
        context.fork_if_ordered(|| matches!(latest.get(&key), Err(ReceiveError::Forked)));
        context.take_incidents();
        if !context.is_running() {
            (0..keys).for_each(|key| look_twice(&mut latest, &mut seen, key));
        }
    }
    Ok(())
}

fn take_changes(latest: &mut Latest<Newest>, seen: &mut Seen<'_>) {
    for _ in 0..TURN {
        match latest.try_next() {
            Ok(Some(Change::Value(value))) => seen.take(&value),
            Ok(Some(Change::Removed(_))) => {}
            Ok(None) => break,
            Err(error) => {
                seen.context.complain(error);
                break;
            }
        }
    }
}

/// A value stays as it is while it is looked at.
fn look_twice(latest: &mut Latest<Newest>, seen: &mut Seen<'_>, key: u64) {
    match latest.get(&key) {
        Ok(Some(value)) => {
            seen.take(&value);
            std::thread::yield_now();
            seen.take(&value);
        }
        Ok(None) => {}
        Err(error) => seen.context.complain(error),
    }
}
