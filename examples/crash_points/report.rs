//! What a run prints: a table of operations, and each failure.

use anyhow::Result;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::operation::Operation;
use crate::task::Summary;

/// What one operation came to.
#[derive(Serialize)]
pub struct Outcome {
    pub operation: Operation,
    #[serde(flatten)]
    pub summary: Summary,
}

const HEADER: [&str; 10] = [
    "operation",
    "instructions",
    "stores",
    "points",
    "deaths",
    "exact",
    "asleep",
    "early",
    "seconds",
    "failures",
];

/// All operations, and their sum.
pub fn table(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_header(HEADER);
    let mut sums = [0; 8];
    let mut seconds = 0.0;
    for Outcome { operation, summary } in outcomes {
        let numbers = numbers(summary);
        sums.iter_mut()
            .zip(numbers)
            .for_each(|(sum, number)| *sum += number);
        seconds += summary.seconds;
        table.add_row(row(operation.name(), numbers, summary.seconds));
    }
    table.add_row(row("all".to_owned(), sums, seconds));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn numbers(summary: &Summary) -> [usize; 8] {
    [
        summary.instructions,
        summary.stores,
        summary.points,
        summary.deaths,
        summary.exact,
        summary.asleep,
        summary.early,
        summary.failures.len(),
    ]
}

fn row(name: String, numbers: [usize; 8], seconds: f64) -> Vec<String> {
    let mut row = vec![name];
    row.extend(numbers[..7].iter().map(usize::to_string));
    row.push(format!("{seconds:.1}"));
    row.push(numbers[7].to_string());
    row
}

/// A line of each failure.
pub fn failures(outcomes: &[Outcome]) -> Vec<String> {
    let mut lines = Vec::new();
    for Outcome { operation, summary } in outcomes {
        for failure in &summary.failures {
            let (name, steps) = (operation.name(), failure.steps);
            let how = if failure.asleep { " asleep" } else { "" };
            let (place, what) = (&failure.place, &failure.what);
            lines.push(format!(
                "{name}: killed{how} after {steps} instructions ({place}): {what}"
            ));
        }
    }
    lines
}

/// The same for programs.
///
/// # Errors
///
/// None that can be helped.
pub fn json(outcomes: &[Outcome], seed: u64) -> Result<String> {
    let all = serde_json::json!({ "seed": seed, "operations": outcomes });
    Ok(serde_json::to_string_pretty(&all)?)
}
