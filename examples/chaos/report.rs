//! What a run comes to: as a table, and as JSON.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::audit::Audit;
use crate::crowd::Crowd;
use crate::plan::Role;

/// The figures of all processes that played one role.
#[derive(Serialize)]
struct Line {
    role: &'static str,
    instances: u64,
    kills: u64,
    stops: u64,
    forks: u64,
    starved: u64,
    squeezed: u64,
    promised: u64,
    seen: u64,
    missed: u64,
    lost: u64,
    calls: u64,
    answered: u64,
    items: u64,
    refused: u64,
    gone: u64,
    memory_start: u64,
    memory_end: u64,
    descriptors_start: u64,
    descriptors_end: u64,
}

/// See the module.
#[derive(Serialize)]
pub struct Report {
    seed: u64,
    seconds: f64,
    lost_for_want_of_descriptors: u64,
    /// From a kill until the kernel had cleared up behind it.
    longest_death_ms: u64,
    roles: Vec<Line>,
    broken: Vec<String>,
}

impl Report {
    pub fn new(
        seed: u64,
        time: Duration,
        crowd: &Crowd,
        audited: &Audit,
        broken: &[String],
    ) -> Report {
        let mut roles: Vec<Line> = Vec::new();
        for slot in 0..crowd.len() {
            let role = Role::of(slot).name();
            let line = line(role, slot, crowd, audited);
            match roles.iter_mut().find(|other| other.role == role) {
                Some(other) => other.add(&line),
                None => roles.push(line),
            }
        }
        Report {
            seed,
            seconds: time.as_secs_f64(),
            lost_for_want_of_descriptors: audited.parted,
            longest_death_ms: crowd.longest_death.as_millis() as u64,
            roles,
            broken: broken.to_vec(),
        }
    }

    pub fn print(&self) {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN);
        table.set_header([
            "role",
            "instances",
            "kills",
            "stops",
            "forks",
            "no fds",
            "no memory",
            "promised",
            "seen",
            "missed",
            "lost",
            "calls",
            "answered",
            "items",
            "refused",
            "gone",
            "memory",
            "fds",
        ]);
        for line in &self.roles {
            let numbers = [
                line.instances,
                line.kills,
                line.stops,
                line.forks,
                line.starved,
                line.squeezed,
                line.promised,
                line.seen,
                line.missed,
                line.lost,
                line.calls,
                line.answered,
                line.items,
                line.refused,
                line.gone,
            ];
            let mut cells = vec![line.role.to_owned()];
            cells.extend(numbers.iter().map(u64::to_string));
            cells.push(format!("{} → {}", line.memory_start, line.memory_end));
            cells.push(format!(
                "{} → {}",
                line.descriptors_start, line.descriptors_end
            ));
            table.add_row(cells);
        }
        let numbers = table.column_iter_mut().skip(1);
        numbers.for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        println!("{table}");
        println!(
            "{:.1} s, seed {}; lost: with a receiver that was killed, and {} where a link ended for want of \
             descriptors; gone: the other end was killed; memory and fds: of those who lived to the end; the \
             kernel took {} ms at most to clear up behind a kill",
            self.seconds, self.seed, self.lost_for_want_of_descriptors, self.longest_death_ms
        );
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        Ok(std::fs::write(path, serde_json::to_string_pretty(self)?)?)
    }
}

fn line(role: &'static str, slot: usize, crowd: &Crowd, audited: &Audit) -> Line {
    let (words, done) = (&crowd.ledger.slots[slot], crowd.done[slot]);
    Line {
        role,
        instances: done.instances,
        kills: done.kills,
        stops: done.stops,
        forks: words.forks.get(),
        starved: words.starvations.get(),
        squeezed: words.squeezes.get(),
        promised: words.promised.get(),
        seen: words.seen.get(),
        missed: words.missed.get(),
        lost: audited.lost.get(&slot).copied().unwrap_or(0),
        calls: words.calls.get(),
        answered: words.answered.get(),
        items: words.items.get(),
        refused: words.refused.get(),
        gone: words.lost.get(),
        memory_start: words.memory_start.get(),
        memory_end: words.memory_end.get(),
        descriptors_start: words.fds_start.get(),
        descriptors_end: words.fds_end.get(),
    }
}

impl Line {
    fn add(&mut self, other: &Line) {
        let pairs = [
            (&mut self.instances, other.instances),
            (&mut self.kills, other.kills),
            (&mut self.stops, other.stops),
            (&mut self.forks, other.forks),
            (&mut self.starved, other.starved),
            (&mut self.squeezed, other.squeezed),
            (&mut self.promised, other.promised),
            (&mut self.seen, other.seen),
            (&mut self.missed, other.missed),
            (&mut self.lost, other.lost),
            (&mut self.calls, other.calls),
            (&mut self.answered, other.answered),
            (&mut self.items, other.items),
            (&mut self.refused, other.refused),
            (&mut self.gone, other.gone),
            (&mut self.memory_start, other.memory_start),
            (&mut self.memory_end, other.memory_end),
            (&mut self.descriptors_start, other.descriptors_start),
            (&mut self.descriptors_end, other.descriptors_end),
        ];
        pairs.into_iter().for_each(|(sum, more)| *sum += more);
    }
}
