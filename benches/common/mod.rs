//! What the benches share: two pinned processes, rounds interleaved over the cases, a clock, a
//! report.
//!
//! A bench is a list of [`Case`]s, each with the code of both sides. The parent starts this same
//! program once for every case and round; the child finds its side by the case's name. Beside each
//! measurement stands a probe, the time of one cache line there and back at that moment: where it
//! changes while a case runs, the case is run again.
#![allow(dead_code, reason = "each bench uses a part")]

pub mod clock;
pub mod limits;
pub mod line;
pub mod messages;
pub mod options;
pub mod pages;
pub mod report;
pub mod ring;
pub mod shared;
pub mod small;

use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};

use clock::Clock;
pub use options::Mode;
use options::{Cores, Options};
use report::Figures;

/// Times in nanoseconds.
pub type Histogram = hdrhistogram::Histogram<u64>;

/// What the child is called in `--child` when it serves the probe.
const PROBE: &str = "probe";
/// Round trips of one probe.
const PROBE_TRIPS: u64 = 10_000;
/// A probe this many times another one is another phase of the machine.
const PHASE: f64 = 2.0;
/// How often one round of a case is run again because the phase changed.
const RERUNS: u32 = 3;
/// How long a child may take to end.
const END: Duration = Duration::from_secs(10);

/// How long the child may take to offer its service.
pub const START: Duration = Duration::from_secs(10);

/// One thing that is measured, with the code of both sides.
pub struct Case {
    /// Its name in reports.
    pub name: &'static str,
    /// How both sides wait.
    pub mode: Mode,
    /// Iterations of one round.
    pub iterations: u64,
    /// Bytes of payload of one iteration; 0 where that says nothing.
    pub bytes: u64,
    /// Measures.
    pub parent: fn(&Run) -> Result<Figures>,
    /// Serves the parent until it is done.
    pub child: fn(&Run) -> Result<()>,
}

/// A case whose iterations carry so many bytes each.
pub fn case(
    name: &'static str,
    mode: Mode,
    iterations: u64,
    bytes: usize,
    parent: fn(&Run) -> Result<Figures>,
    child: fn(&Run) -> Result<()>,
) -> Case {
    Case {
        name,
        mode,
        iterations,
        bytes: bytes as u64,
        parent,
        child,
    }
}

/// One round of one case, as either side sees it.
pub struct Run {
    name: &'static str,
    /// How to wait.
    pub mode: Mode,
    /// Iterations that are measured; others come before them.
    pub iterations: u64,
    /// The clock.
    pub clock: Clock,
    cores: Cores,
    fd: Option<i32>,
}

impl Run {
    /// The case's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Iterations that are not measured.
    pub fn warm_up(&self) -> u64 {
        self.iterations / 10 + 100
    }

    /// All iterations.
    pub fn total(&self) -> u64 {
        self.warm_up() + self.iterations
    }

    /// Records `time` unless iteration `id`, counted from 1, is of the warm-up.
    #[inline]
    pub fn record(&self, times: &mut Histogram, id: u64, time: u64) -> Result<()> {
        if id > self.warm_up() {
            times.record(time)?;
        }
        Ok(())
    }

    /// Fails unless so many requests came as were to come.
    pub fn all_came(&self, seen: u64) -> Result<()> {
        let total = self.total();
        ensure!(seen == total, "{seen} requests came of {total}");
        Ok(())
    }

    /// This program again, as the child of this case, with the descriptor of a raw case.
    pub fn command(&self, fd: Option<i32>) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--child", self.name, "--mode", self.mode.name()]);
        command.arg(format!("--iterations={}", self.iterations));
        command.arg(format!(
            "--cores={},{}",
            self.cores.parent, self.cores.child
        ));
        if let Some(fd) = fd {
            command.arg(format!("--fd={fd}"));
        }
        Ok(command)
    }

    /// Lets this thread, and those it starts, run on both processors.
    pub fn unpin(&self) -> Result<()> {
        pin_to(&[self.cores.parent, self.cores.child])
    }

    /// In the child of a raw case: the descriptor's number.
    pub fn inherited(&self) -> Result<i32> {
        self.fd.context("no descriptor was given")
    }
}

/// The other process; killed when dropped before it is finished.
pub struct Peer(pub Child);

impl Peer {
    /// An error once the child has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            Some(status) => bail!("the child ended too soon: {status}"),
            None => Ok(()),
        }
    }

    /// Waits until the child ends, and fails unless it did well.
    pub fn finish(mut self) -> Result<()> {
        let deadline = Instant::now() + END;
        loop {
            if let Some(status) = self.0.try_wait()? {
                ensure!(status.success(), "the child failed: {status}");
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the child does not end");
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All rounds of one case.
pub struct Measured {
    /// The case's name.
    pub name: &'static str,
    /// How both sides waited.
    pub mode: Mode,
    /// Iterations of one round.
    pub iterations: u64,
    /// Bytes of payload of one iteration.
    pub bytes: u64,
    /// What each round gave.
    pub rounds: Vec<Figures>,
    /// p50 of the probes beside the rounds.
    pub line_ns: Vec<u64>,
    /// Rounds that were run again since the machine changed phase.
    pub reruns: u32,
}

/// The whole of a bench's `main`: either side.
pub fn main(bench: &str, cases: &[Case]) -> ExitCode {
    let options = Options::parse();
    let done = match &options.child {
        Some(name) => serve(&options, name, cases).with_context(|| format!("child of {name}")),
        None => measure_all(bench, &options, cases),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{bench}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A histogram of nanoseconds with three digits.
pub fn histogram() -> Result<Histogram> {
    Ok(Histogram::new(3)?)
}

/// The quantiles of a round of round trips.
pub fn quantiles(times: &Histogram) -> Figures {
    vec![
        ("p50_ns", times.value_at_quantile(0.5) as f64),
        ("p99_ns", times.value_at_quantile(0.99) as f64),
        ("p999_ns", times.value_at_quantile(0.999) as f64),
        ("min_ns", times.min() as f64),
        ("max_ns", times.max() as f64),
    ]
}

fn serve(options: &Options, name: &str, cases: &[Case]) -> Result<()> {
    pin(options.cores.child)?;
    // A parent that is killed must not leave a process behind that spins.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let (name, child) = if name == PROBE {
        (PROBE, line::child as fn(&Run) -> Result<()>)
    } else {
        let case = cases
            .iter()
            .find(|case| case.name == name && case.mode == options.mode)
            .ok_or_else(|| anyhow!("there is no such case"))?;
        (case.name, case.child)
    };
    child(&Run {
        name,
        mode: options.mode,
        iterations: options.iterations,
        clock: Clock::uncalibrated(),
        cores: options.cores,
        fd: options.fd,
    })
}

fn measure_all(bench: &str, options: &Options, cases: &[Case]) -> Result<()> {
    let apart = options.cores.parent != options.cores.child;
    let chosen: Vec<&Case> = cases
        .iter()
        .filter(|case| {
            let name = format!("{}/{}", case.name, case.mode.name());
            options.case.iter().any(|part| name.contains(part))
        })
        .filter(|case| apart || case.mode == Mode::Park)
        .collect();
    ensure!(
        !chosen.is_empty(),
        "no case is called like {}",
        options.case.join(" or ")
    );
    pin(options.cores.parent)?;
    let clock = Clock::calibrate();
    let machine = report::machine(bench, &clock, options.cores);
    let rounds = if options.quick { 2 } else { options.rounds };
    let mut results: Vec<Measured> = chosen.iter().map(|case| case.unmeasured(options)).collect();

    // Drawn only when it moves: nothing else of it runs beside a measurement.
    let bar = ProgressBar::new(u64::from(rounds) * chosen.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?);
    for _ in 0..rounds {
        for (case, measured) in chosen.iter().zip(&mut results) {
            bar.set_message(format!("{} {}", case.name, case.mode.name()));
            let run = |name, mode, iterations| Run {
                name,
                mode,
                iterations,
                clock,
                cores: options.cores,
                fd: None,
            };
            let probe = || match apart {
                true => {
                    Ok(line::parent(&run(PROBE, Mode::Spin, PROBE_TRIPS))?.value_at_quantile(0.5))
                }
                false => Ok(0),
            };
            measured
                .round(
                    case,
                    &run(case.name, case.mode, measured.iterations),
                    &probe,
                )
                .with_context(|| format!("case {} {}", case.name, case.mode.name()))?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    report::print(options.json, &machine, &results);
    Ok(())
}

impl Case {
    fn unmeasured(&self, options: &Options) -> Measured {
        let part = if options.quick { 20 } else { 1 };
        Measured {
            name: self.name,
            mode: self.mode,
            iterations: (self.iterations / part).max(1),
            bytes: self.bytes,
            rounds: Vec::new(),
            line_ns: Vec::new(),
            reruns: 0,
        }
    }
}

impl Measured {
    /// Adds one round, measured while the machine stayed in one phase if that can be had.
    fn round(&mut self, case: &Case, run: &Run, probe: &dyn Fn() -> Result<u64>) -> Result<()> {
        let mut before = probe()?;
        let mut left = RERUNS;
        loop {
            let figures = (case.parent)(run)?;
            let after = probe()?;
            let (low, high) = (before.min(after), before.max(after));
            if left > 0 && high as f64 > low as f64 * PHASE {
                left -= 1;
                self.reruns += 1;
                before = after;
                continue;
            }
            self.rounds.push(figures);
            self.line_ns.extend([before, after]);
            return Ok(());
        }
    }
}

/// Binds this thread, and those it starts, to one processor.
fn pin(core: usize) -> Result<()> {
    pin_to(&[core])
}

fn pin_to(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &core in cores {
        ensure!(core < CpuSet::MAX_CPU, "there is no processor {core}");
        set.set(core);
    }
    sched_setaffinity(None, &set).with_context(|| format!("cannot pin to processors {cores:?}"))
}
