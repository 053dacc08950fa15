//! The options that every bench has, and those that the parent gives its child.

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use shmbus::Wait;

/// How a side waits for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Looks again and again.
    Spin,
    /// Sleeps at once.
    Park,
}

impl Mode {
    /// As it is written in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Spin => "spin",
            Mode::Park => "park",
        }
    }

    /// The bus's own word for it.
    pub fn wait(self) -> Wait {
        match self {
            Mode::Spin => Wait::Spin,
            Mode::Park => Wait::Park,
        }
    }
}

/// The processor of each side.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    /// Where the parent is pinned.
    pub parent: usize,
    /// Where the child is pinned.
    pub child: usize,
}

impl std::str::FromStr for Cores {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (parent, child) = text
            .split_once(',')
            .context("expected two processors, such as 0,1")?;
        Ok(Cores {
            parent: parent.parse()?,
            child: child.parse()?,
        })
    }
}

/// Measures, with both processes pinned, and prints a table.
///
/// `--quick` only checks that it runs. The names of cases are those of the table.
#[derive(Parser, Debug)]
pub struct Options {
    /// Print one JSON object a line.
    #[arg(long)]
    pub json: bool,
    /// Rounds, interleaved over the cases; the median is told.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Only cases with one of these in `name/mode`, such as `small,raw-line` or `/park`.
    #[arg(long, value_delimiter = ',', default_value = "")]
    pub case: Vec<String>,
    /// A twentieth of the iterations, and two rounds: to see whether it works.
    #[arg(long)]
    pub quick: bool,
    /// Processors of the two processes; the same twice leaves out what spins.
    #[arg(long, default_value = "0,1")]
    pub cores: Cores,
    /// Given by cargo.
    #[arg(long, hide = true)]
    pub bench: bool,
    /// In the child: the case to serve.
    #[arg(long, hide = true)]
    pub child: Option<String>,
    /// In the child: how to wait.
    #[arg(long, hide = true, default_value = "spin")]
    pub mode: Mode,
    /// In the child: iterations that are measured.
    #[arg(long, hide = true, default_value_t = 0)]
    pub iterations: u64,
    /// In the child of a raw case: the descriptor of the memory.
    #[arg(long, hide = true)]
    pub fd: Option<i32>,
}
