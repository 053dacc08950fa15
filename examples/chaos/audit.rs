//! Compares what was promised with what was seen.

use std::collections::HashMap;

use crate::ledger::{Instance, Ledger, Row, ended, kind};
use crate::plan::Role;

/// What an audit found.
#[derive(Default)]
pub struct Audit {
    /// What can never be made good.
    pub broken: Vec<String>,
    /// What is still to come; broken, if it does not.
    pub pending: Vec<String>,
    /// Messages that were promised and are lost with who received them, by the slot of who sent them.
    pub lost: HashMap<usize, u64>,
    /// Of these, those where a process had said that a link ended as it lacked something.
    pub parted: u64,
}

/// Looks at everything. While it runs, what is pending means nothing.
pub fn audit(ledger: &Ledger) -> Audit {
    let mut audit = Audit::default();
    let mut readings = HashMap::new();
    let mut published = Vec::new();
    for (number, row) in ledger.all_rows() {
        match row.kind.get() {
            kind::LANE => audit.lane(ledger, number, row),
            kind::CALLS => audit.calls(ledger, number, row),
            kind::RELIABLE | kind::LOSSY | kind::NEWEST => published.push((number, row)),
            kind::READ => {
                readings.insert((row.of.get(), row.from.get()), row);
            }
            // Just being begun.
            _ => {}
        }
    }
    for (number, instance) in ledger.all_instances() {
        if instance.ended.get() != 0 || has_parted(instance) {
            continue;
        }
        let role = Role::of(instance.slot.get() as usize);
        for (row, words) in &published {
            let reading = readings.get(&(*row, number)).copied();
            match (role, words.kind.get()) {
                (Role::ReliableSubscriber, kind::RELIABLE)
                | (Role::LossySubscriber, kind::LOSSY) => {
                    audit.subscribed(ledger, (*row, words), (number, instance), reading);
                }
                (Role::NewestReader, kind::NEWEST) => {
                    audit.newest(ledger, (*row, words), number, reading);
                }
                _ => {}
            }
        }
    }
    audit
}

fn has_parted(instance: &Instance) -> bool {
    instance.has_parted.get() != 0
}

impl Audit {
    fn lane(&mut self, ledger: &Ledger, number: u64, row: &Row) {
        let (seen, promised) = (row.seen.get(), row.promised.get());
        let trying = row.trying.get();
        if seen > trying {
            self.broken.push(format!(
                "lane {number}: {seen} came, and {trying} were sent"
            ));
        }
        if seen != row.count.get() {
            self.pending.push(format!(
                "lane {number}: {seen} is the last of {}",
                row.count.get()
            ));
        }
        let sender = ledger.instance(row.from.get());
        let (to, is_parted) = match row.to.get().checked_sub(1) {
            Some(to) => (Some(to), has_parted(ledger.instance(to))),
            None => (only_one(ledger, row), false),
        };
        let is_alive = to.is_some_and(|to| ledger.is_alive(to));
        let is_parted = is_parted || has_parted(sender);
        if seen < promised {
            let text = format!(
                "lane {number} of instance {} to {to:?}: {promised} were promised, {seen} came",
                row.from.get()
            );
            match (is_alive, is_parted) {
                (true, false) => self.pending.push(text),
                (_, is_parted) => {
                    let lost = promised - seen;
                    *self.lost.entry(sender.slot.get() as usize).or_default() += lost;
                    self.parted += if is_parted { lost } else { 0 };
                }
            }
        }
        if row.ended.get() == ended::LOST && is_alive && !is_parted {
            let text = format!("lane {number}: instance {to:?} was said to be gone, and is alive");
            self.pending.push(text);
        }
    }

    fn calls(&mut self, ledger: &Ledger, number: u64, row: &Row) {
        let client = ledger.instance(row.from.get());
        let server = row.to.get().checked_sub(1);
        let is_parted =
            has_parted(client) || server.is_some_and(|to| has_parted(ledger.instance(to)));
        let is_served = server.is_some_and(|to| ledger.is_alive(to));
        if row.ended.get() == ended::LOST && is_served && !is_parted {
            let text =
                format!("calls {number}: instance {server:?} was said to be gone, and is alive");
            self.pending.push(text);
        }
        let (holes, skips) = (row.holes.get(), row.skips.get());
        if holes > skips {
            self.broken.push(format!(
                "calls {number}: {holes} never came, {skips} were given up"
            ));
        }
        let (seen, begun) = (row.seen.get(), row.trying.get());
        if seen > begun {
            self.broken.push(format!(
                "calls {number}: {seen} came, and {begun} were made"
            ));
        }
        let is_calling = client.ended.get() == 0;
        let worded = row.worded.get();
        if worded > begun || worded + 1 < begun || is_calling && worded != begun {
            let text = format!("calls {number}: {begun} were made, {worded} had a last word");
            self.pending.push(text);
        }
        let (answered, replies) = (row.answered.get(), row.replies.get());
        let most = answered + u64::from(!is_served);
        let is_kept = is_served && is_calling && row.ended.get() != ended::LOST;
        if replies > most || is_kept && answered > replies + skips {
            let text = format!("calls {number}: {answered} were answered, {replies} replies came");
            self.pending.push(text);
        }
    }

    fn subscribed(
        &mut self,
        ledger: &Ledger,
        (number, row): (u64, &Row),
        (subscriber, instance): (u64, &Instance),
        reading: Option<&Row>,
    ) {
        let joined = instance.joined.get();
        let publisher = ledger.instance(row.from.get());
        let is_promised = joined > 0 && row.last_begun.get() > joined && !has_parted(publisher);
        if !is_promised || reading.is_none() && row.is_late.get() != 0 {
            return;
        }
        let (promised, trying) = (row.promised.get(), row.trying.get());
        let seen = reading.map_or(0, |reading| reading.seen.get());
        if seen < promised || seen > trying {
            self.pending.push(format!(
                "row {number} of instance {} ({}): {promised} were promised, {trying} tried, and {seen} came or \
                 were told to instance {subscriber}",
                row.from.get(),
                if publisher.ended.get() == 0 { "alive" } else { "killed" }
            ));
        }
    }

    fn newest(
        &mut self,
        ledger: &Ledger,
        (number, row): (u64, &Row),
        reader: u64,
        reading: Option<&Row>,
    ) {
        let publisher = ledger.instance(row.from.get());
        if publisher.ended.get() != 0 || has_parted(publisher) {
            return;
        }
        let promised = row.promised.get();
        let seen = reading.map_or(0, |reading| reading.seen.get());
        if seen != promised {
            self.pending.push(format!(
                "row {number}: value {promised} is the newest, instance {reader} sees {seen}"
            ));
        }
    }
}

/// The only receiver that a lane can have gone to, of which no letter was taken.
fn only_one(ledger: &Ledger, row: &Row) -> Option<u64> {
    let sender = ledger.instance(row.from.get());
    let until = match sender.ended.get() {
        0 => u64::MAX,
        ended => ended,
    };
    let mut there = ledger.all_instances().filter(|(_, receiver)| {
        let ended = receiver.ended.get();
        receiver.slot.get() == row.of.get()
            && receiver.began.get() < until
            && (ended == 0 || ended > row.began.get())
    });
    match (there.next(), there.next()) {
        (Some((only, _)), None) => Some(only),
        _ => None,
    }
}
