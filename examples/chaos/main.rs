//! Processes of one bus at full load, which are killed, stopped, forked and starved at random.
//!
//! Whatever is promised is written down before anybody is killed, and compared with what came: each message and
//! each call is accounted for. At the end, nothing may be left. It fails at the first promise that is broken, and
//! says which.
//!
//! ```sh
//! cargo run --release --example chaos -- --minutes 2
//! ```

mod audit;
mod crowd;
mod ending;
mod ledger;
mod messages;
mod plan;
mod process;
mod report;
mod roles;
mod supervisor;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// Processes of one bus at full load, which are killed, stopped, forked and starved at random.
#[derive(Parser)]
#[command(name = "chaos")]
pub struct Options {
    /// How long, in minutes.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// How long, in seconds.
    #[arg(long, conflicts_with = "minutes")]
    seconds: Option<u64>,
    /// Chooses who is killed, and when; another one each time unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many processes there are at a time.
    #[arg(long, default_value_t = plan::FEWEST, value_parser = most_processes)]
    processes: usize,
    /// Write the figures into this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    orders: worker::Orders,
}

impl Options {
    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(self.minutes * 60))
    }
}

fn most_processes(text: &str) -> Result<usize, String> {
    let number = text.parse().map_err(|error| format!("{error}"))?;
    match (plan::FEWEST..=ledger::MOST_SLOTS).contains(&number) {
        true => Ok(number),
        false => Err(format!("{} to {}", plan::FEWEST, ledger::MOST_SLOTS)),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.orders.slot {
        Some(slot) => worker::run(slot, &options.orders).map(|()| true),
        None if options.orders.visit => worker::visit().map(|()| true),
        None => supervisor::run(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}
