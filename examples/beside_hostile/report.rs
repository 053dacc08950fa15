//! What was measured, as a table.

use clap::ValueEnum;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

use crate::pair::Figures;
use crate::rage::{Rage, Raged};
use crate::{LIMIT, Options};

/// Of the ratios, these many have a limit: of the mean, most is what the scheduler takes.
const COUNT: usize = 2;

/// A way to rage, or none, over all rounds.
pub(crate) struct Phase {
    kind: Option<Rage>,
    rounds: Vec<(Figures, Raged)>,
}

impl Phase {
    pub(crate) fn new(kind: Option<Rage>) -> Phase {
        Phase {
            kind,
            rounds: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, figures: Figures, raged: Raged) {
        self.rounds.push((figures, raged));
    }

    fn median(&self, of: impl Fn(&(Figures, Raged)) -> f64) -> f64 {
        median(self.rounds.iter().map(of).collect())
    }

    /// The median of the rounds of how much slower it was than alone, in the same round.
    fn ratio(&self, alone: &Phase, of: impl Fn(&Figures) -> f64) -> f64 {
        let rounds = self.rounds.iter().zip(&alone.rounds);
        median(
            rounds
                .map(|(here, alone)| of(&here.0) / of(&alone.0))
                .collect(),
        )
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

/// By which it is told, and told of.
pub(crate) fn name(kind: Option<Rage>) -> &'static str {
    match kind {
        None => "alone",
        Some(Rage::Busy) => "busy",
        Some(Rage::Forged) => "forged",
        Some(Rage::Silent) => "silent",
        Some(Rage::Flood) => "flood",
        Some(Rage::HandBack) => "hand-back",
    }
}

/// What is to be known of the run.
pub(crate) fn head(options: &Options, offender: u32, blamed: &str) -> String {
    let cores = &options.cores;
    let wait = options.wait.to_possible_value();
    let wait = wait.map_or_else(String::new, |wait| wait.get_name().to_owned());
    format!(
        "{} rounds of {} ms, waiting: {wait}; client on processor {}, server on {}, offender (process {offender}) on \
         {}, {} blows a second\nfaults that the server found: {blamed}",
        options.rounds, options.phase, cores[0], cores[1], cores[2], options.rate
    )
}

/// Medians of the rounds.
pub(crate) fn table(phases: &[Phase]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY);
    table.set_header([
        "beside",
        "p50 ns",
        "p99 ns",
        "p99.99 ns",
        "mean ns",
        "p50 ×",
        "p99 ×",
        "mean ×",
        "blows/s",
        "its processor",
        "",
    ]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let alone = &phases[0];
    for phase in phases {
        let ratios = ratios(phase, alone);
        let is_within = ratios[..COUNT].iter().all(|&ratio| ratio <= LIMIT);
        let seconds = |raged: &Raged| raged.seconds.max(f64::MIN_POSITIVE);
        table.add_row([
            name(phase.kind).to_owned(),
            format!("{:.0}", phase.median(|(figures, _)| figures.p50)),
            format!("{:.0}", phase.median(|(figures, _)| figures.p99)),
            format!("{:.0}", phase.median(|(figures, _)| figures.p9999)),
            format!("{:.0}", phase.median(|(figures, _)| figures.mean)),
            format!("{:.2}", ratios[0]),
            format!("{:.2}", ratios[1]),
            format!("{:.2}", ratios[2]),
            format!("{:.0}", phase.median(|(_, r)| r.blows as f64 / seconds(r))),
            format!(
                "{:.1} %",
                phase.median(|(_, r)| 100.0 * r.worked / seconds(r))
            ),
            if is_within { "" } else { "beyond the limit" }.to_owned(),
        ]);
    }
    table
}

fn ratios(phase: &Phase, alone: &Phase) -> [f64; 3] {
    [
        phase.ratio(alone, |figures| figures.p50),
        phase.ratio(alone, |figures| figures.p99),
        phase.ratio(alone, |figures| figures.mean),
    ]
}

/// The largest ratio of all that rages; that of one who is merely busy is the scheduler's.
pub(crate) fn worst(phases: &[Phase]) -> f64 {
    let raging = phases.iter().filter(|phase| {
        let kind = phase.kind;
        kind.is_some_and(|kind| kind != Rage::Busy)
    });
    let all = raging.flat_map(|phase| ratios(phase, &phases[0]).into_iter().take(COUNT));
    all.fold(f64::NAN, f64::max)
}
