//! How much slower is an honest pair beside a process that means harm?
//!
//! A client calls a server in another process, and times each call: alone, and while a third process of the same user
//! rages against that very server. It speaks the protocol by hand, as in `tests/hostile`:
//!
//! | how | what it does with each blow |
//! |---|---|
//! | `busy` | nothing with the bus: it takes the processor for as long as a blow of the others may take |
//! | `forged` | connects, opens a lane, publishes a header that means nothing, waits until it is dropped |
//! | `silent` | connects and says nothing; of those connections, it keeps the last 64 |
//! | `flood` | says 32 control messages over a link that stays |
//! | `hand-back` | opens a lane, calls, and hands back what it never had, until it is dropped |
//!
//! What is asked is how much of this reaches the pair, not what a scheduler does with three processes on two
//! processors. So the offender's blows are paced, it is pinned to one processor, and `busy` says what that alone
//! costs. Phases alternate, each round begins with another, and each is compared with the phase alone of its own round.
//! The medians of the
//! rounds count.
//!
//! `cargo run --release --example beside_hostile -- --help`

// Parts of the tests, of which an example uses some.
#[path = "../../tests/hostile/lane.rs"]
#[allow(dead_code)]
mod lane;
#[path = "../../tests/hostile/memory.rs"]
#[allow(dead_code)]
mod memory;
mod pair;
mod rage;
mod report;
#[path = "../../tests/hostile/stranger.rs"]
#[allow(dead_code)]
mod stranger;
#[path = "../../tests/hostile/wire.rs"]
#[allow(dead_code)]
mod wire;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::thread::{CpuSet, sched_setaffinity};

use pair::Figures;
use rage::Rage;
use report::Phase;

/// By how much an honest pair may become slower.
const LIMIT: f64 = 2.0;

/// Times an honest pair alone, and beside a process that means harm.
#[derive(Parser)]
struct Options {
    /// Rounds; in each, every phase is measured once.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How long a phase lasts, in milliseconds.
    #[arg(long, default_value_t = 500)]
    phase: u64,
    /// Blows of the offender in one second.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// How both sides of the pair wait.
    #[arg(long, value_enum, default_value_t = Waiting::Adaptive)]
    wait: Waiting,
    /// Processors of the client, the server and the offender.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 0])]
    cores: Vec<usize>,
    /// Only these ways to rage; all by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Rage>,
    /// The part that this process plays; for its own use.
    #[arg(long, hide = true)]
    part: Option<Part>,
    /// The bus; for its own use.
    #[arg(long, hide = true, default_value = "")]
    bus: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Waiting {
    Adaptive,
    Spin,
    Park,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Server,
    Offender,
}

impl Options {
    fn wait(&self) -> shmbus::Wait {
        match self.wait {
            Waiting::Adaptive => shmbus::Wait::Adaptive,
            Waiting::Spin => shmbus::Wait::Spin,
            Waiting::Park => shmbus::Wait::Park,
        }
    }
}

fn main() -> Result<ExitCode> {
    let mut options = Options::parse();
    ensure!(options.cores.len() == 3, "three processors are to be named");
    match options.part {
        None => compare(&mut options),
        Some(part) => {
            match part {
                Part::Server => pin(options.cores[1])?,
                Part::Offender => pin(options.cores[2])?,
            }
            match part {
                Part::Server => pair::serve(&options.bus, options.wait())?,
                Part::Offender => rage::offend(&options.bus, options.rate)?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Keeps this process on one processor, if there is such a one.
fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("cannot stay on processor {core}"))
}

/// Another process of this program, which hears and tells lines.
pub(crate) struct Other {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Other {
    fn start(part: &str, bus: &str) -> Result<Other> {
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        // The same options, and some more.
        command.args(std::env::args().skip(1));
        command.args(["--part", part, "--bus", bus]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let output = process.stdout.take().context("it is piped")?;
        let output = BufReader::new(output);
        let mut other = Other { process, output };
        ensure!(other.hear()? == "ready", "the {part} does not start");
        Ok(other)
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let input = self.process.stdin.as_mut().context("it is piped")?;
        writeln!(input, "{line}").context("it has ended")
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "another part of this has ended");
        Ok(line.trim_end().to_owned())
    }

    /// Lets it end, and waits for that.
    fn end(mut self) -> Result<()> {
        drop(self.process.stdin.take());
        let status = self.process.wait()?;
        ensure!(status.success(), "another part of this failed: {status}");
        Ok(())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn compare(options: &mut Options) -> Result<ExitCode> {
    let bus = format!("beside-hostile-{}", std::process::id());
    if options.only.is_empty() {
        options.only = Rage::value_variants().to_vec();
    }
    let mut server = Other::start("server", &bus)?;
    let mut offender = Other::start("offender", &bus)?;
    pin(options.cores[0])?;
    let client = pair::Caller::connect(&bus, options.wait())?;
    let duration = Duration::from_millis(options.phase);
    client.measure(duration)?;

    let kinds: Vec<Option<Rage>> = std::iter::once(None)
        .chain(options.only.iter().copied().map(Some))
        .collect();
    let mut phases: Vec<Phase> = kinds.iter().map(|kind| Phase::new(*kind)).collect();
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} phases {eta} left: {msg}")?;
    let progress = ProgressBar::new((options.rounds * kinds.len()) as u64).with_style(style);
    for round in 0..options.rounds {
        for step in 0..kinds.len() {
            let which = (round + step) % kinds.len();
            let kind = kinds[which];
            progress.set_message(report::name(kind));
            let (figures, raged) = phase(&client, &mut offender, kind, duration)?;
            phases[which].add(figures, raged);
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    server.say("incidents")?;
    let blamed = server.hear()?;
    drop(client);
    let offender_pid = offender.process.id();
    offender.end()?;
    server.end()?;

    println!("{}", report::head(options, offender_pid, &blamed));
    println!("{}", report::table(&phases));
    match report::worst(&phases) {
        worst if worst <= LIMIT => {
            println!("at the worst {worst:.2} times as slow as alone: within {LIMIT}");
            Ok(ExitCode::SUCCESS)
        }
        worst if worst.is_nan() => bail!("nothing was compared"),
        worst => {
            println!("at the worst {worst:.2} times as slow as alone: beyond {LIMIT}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Measures once, while the offender rages or not.
fn phase(
    client: &pair::Caller,
    offender: &mut Other,
    kind: Option<Rage>,
    duration: Duration,
) -> Result<(Figures, rage::Raged)> {
    let Some(kind) = kind else {
        return Ok((client.measure(duration)?, rage::Raged::default()));
    };
    offender.say(report::name(Some(kind)))?;
    ensure!(offender.hear()? == "raging", "the offender does not begin");
    let figures = client.measure(duration)?;
    offender.say("stop")?;
    let raged = rage::Raged::parse(&offender.hear()?)?;
    Ok((figures, raged))
}
