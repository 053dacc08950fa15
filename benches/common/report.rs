//! What a bench says: the machine, the median of the rounds with their spread, as JSON lines or as
//! a table.

use std::fs;

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use serde_json::{Map, Value, json};

use super::Measured;
use super::clock::Clock;
use super::options::Cores;

/// Named figures of one round. The first is the one whose spread over the rounds is told.
pub type Figures = Vec<(&'static str, f64)>;

/// Prints all results to stdout.
pub fn print(as_json: bool, machine: &Map<String, Value>, results: &[Measured]) {
    if as_json {
        println!("{}", Value::Object(machine.clone()));
        for measured in results {
            println!("{}", Value::Object(object(measured)));
        }
    } else {
        let words: Vec<String> = machine
            .iter()
            .filter(|(key, _)| *key != "case")
            .map(|(key, value)| format!("{key}: {value}"))
            .collect();
        println!("{}\n{}", words.join(", "), table(results));
    }
}

/// The line about the machine.
pub fn machine(bench: &str, clock: &Clock, cores: Cores) -> Map<String, Value> {
    let read = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let load = read("/proc/loadavg");
    let fields = json!({
        "case": "machine",
        "bench": bench,
        "cpu": cpu_field("model name").unwrap_or_else(|| "unknown".to_owned()),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cores": [cores.parent, cores.child],
        "clock": clock.source(),
        "clock_ns": clock.cost(),
        "load": load.split(' ').next().and_then(|one| one.parse::<f64>().ok()),
    });
    match fields {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The first value of a field of `/proc/cpuinfo`.
pub fn cpu_field(name: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
}

fn object(measured: &Measured) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("case".into(), measured.name.into());
    map.insert("mode".into(), measured.mode.name().into());
    for (key, value) in medians(&measured.rounds) {
        map.insert(key.into(), number(value));
    }
    map.insert("iters".into(), measured.iterations.into());
    map.insert("bytes".into(), measured.bytes.into());
    map.insert("rounds".into(), measured.rounds.len().into());
    map.insert("reruns".into(), measured.reruns.into());
    if let Some((key, low, high)) = spread(&measured.rounds) {
        map.insert(format!("{key}_spread"), json!([number(low), number(high)]));
    }
    let (low, high) = range(measured.line_ns.iter().map(|&ns| ns as f64));
    map.insert("line_ns".into(), json!([number(low), number(high)]));
    map
}

fn table(results: &[Measured]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY);
    let figures: Vec<&str> = results
        .first()
        .and_then(|measured| measured.rounds.first())
        .map(|figures| figures.iter().map(|&(key, _)| key).collect())
        .unwrap_or_default();
    let spread_of = figures.first().map(|key| format!("{key} of rounds"));
    table.set_header(
        ["case", "mode"]
            .into_iter()
            .chain(figures.iter().copied())
            .chain(spread_of.as_deref())
            .chain(["line_ns beside it"]),
    );
    for measured in results {
        let mut row = vec![measured.name.to_owned(), measured.mode.name().to_owned()];
        row.extend(medians(&measured.rounds).iter().map(|&(_, v)| grouped(v)));
        row.extend(spread(&measured.rounds).map(|(_, low, high)| between(low, high)));
        let (low, high) = range(measured.line_ns.iter().map(|&ns| ns as f64));
        row.push(between(low, high));
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// For each figure the median of the rounds: one that was measured, the lower of the middle two.
fn medians(rounds: &[Figures]) -> Figures {
    let Some(first) = rounds.first() else {
        return Figures::new();
    };
    let middle = |index: usize| {
        let mut values: Vec<f64> = rounds.iter().map(|figures| figures[index].1).collect();
        values.sort_by(f64::total_cmp);
        values[(values.len() - 1) / 2]
    };
    first
        .iter()
        .enumerate()
        .map(|(index, &(key, _))| (key, middle(index)))
        .collect()
}

fn spread(rounds: &[Figures]) -> Option<(&'static str, f64, f64)> {
    let (key, _) = *rounds.first()?.first()?;
    let (low, high) = range(rounds.iter().map(|figures| figures[0].1));
    Some((key, low, high))
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0), |(low, high), value| {
        (low.min(value), high.max(value))
    })
}

fn number(value: f64) -> Value {
    if value.fract() == 0.0 {
        json!(value as u64)
    } else {
        json!((value * 100.0).round() / 100.0)
    }
}

fn between(low: f64, high: f64) -> String {
    format!("{}–{}", grouped(low), grouped(high))
}

/// `1234567.0` as `1,234,567`; small fractions with two digits.
fn grouped(value: f64) -> String {
    if value.fract() != 0.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
