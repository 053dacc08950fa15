//! What the example prints: completions as a person reads them, and a table of times.

use std::time::Duration;

use anyhow::Result;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use hdrhistogram::Histogram;

use crate::corpus::Place;
use crate::messages::ArchivedCompletions;
use crate::typing::Typed;

/// Items that are shown of one reply.
const SHOWN: usize = 4;

/// The times of one kind of call.
pub struct Times {
    bytes: u64,
    whole: Histogram<u64>,
    engine: Histogram<u64>,
    bus: Histogram<u64>,
}

impl Times {
    /// No calls yet.
    pub fn new() -> Result<Self> {
        Ok(Times {
            bytes: 0,
            whole: Histogram::new(3)?,
            engine: Histogram::new(3)?,
            bus: Histogram::new(3)?,
        })
    }

    /// Adds one call with `bytes` of content, of whose time the engine worked `engine_ns`.
    pub fn record(&mut self, bytes: usize, whole: Duration, engine_ns: u64) -> Result<()> {
        let whole = whole.as_nanos() as u64;
        self.bytes += bytes as u64;
        self.whole.record(whole)?;
        self.engine.record(engine_ns)?;
        self.bus.record(whole.saturating_sub(engine_ns))?;
        Ok(())
    }
}

/// Shows the best items of one reply below the place that they are for.
pub fn show(place: &Place, reply: &ArchivedCompletions) {
    let Place {
        path,
        line,
        column,
        prefix,
        label,
    } = place;
    let matched = reply.matched.to_native();
    println!("{path}:{line}:{column}  {prefix}│  (was {label}; {matched} match)");
    for item in reply.items.iter().take(SHOWN) {
        println!(
            "    {:<32} {:<5} {:.2}  {:>5} uses  {}:{}",
            item.label.as_str(),
            item.kind.as_str(),
            item.score.to_native(),
            item.uses.to_native(),
            item.path.as_str(),
            item.line.to_native(),
        );
    }
}

/// The table of all kinds of calls: the whole, the engine's work in it, and what is left.
pub fn table(kinds: &[(&str, &Times)]) -> String {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY);
    table.set_header(["call", "calls", "bytes", "p50", "p99", "p99.9", "max"]);
    for (name, times) in kinds {
        let parts = [
            (*name, &times.whole, times.bytes.to_string()),
            ("  of it the engine", &times.engine, String::new()),
            ("  of it the bus", &times.bus, String::new()),
        ];
        for (name, histogram, bytes) in parts {
            let quantile = |of| time(histogram.value_at_quantile(of));
            table.add_row([
                name.to_owned(),
                histogram.len().to_string(),
                bytes,
                quantile(0.5),
                quantile(0.99),
                quantile(0.999),
                time(histogram.max()),
            ]);
        }
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let checked: u64 = kinds.iter().map(|(_, times)| times.whole.len()).sum();
    format!("{table}\n{checked} replies, each checked against its request")
}

fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        _ => format!("{:.1} ms", ns as f64 / 1e6),
    }
}

/// What came of typing, in words.
pub fn typed(typed: &Typed) -> String {
    let Typed {
        keystrokes,
        superseded,
        answered,
        given_up,
        waits,
    } = typed;
    let micros = |ns: u64| ns as f64 / 1e3;
    format!(
        "{keystrokes} keystrokes: {superseded} suggestions were superseded, {given_up} of them while \
         the engine thought; {answered} were answered.\nThe user interface waited {:.1} µs for the bus in the median, and {:.1} µs at \
         most.",
        micros(waits.value_at_quantile(0.5)),
        micros(waits.max()),
    )
}
