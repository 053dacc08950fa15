//! The options, and the workers: one process for each operation, two at a time.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::child;
use crate::operation::Operation;
use crate::page::Page;
use crate::report::{self, Outcome};
use crate::task::{self, Failure, Summary, Task, Word};

/// A worker that says nothing for so long hangs.
const SILENT: Duration = Duration::from_secs(300);
/// How finely progress is shown.
const PARTS: f64 = 1_000.0;

/// Kills processes at each instruction of what they do with a bus, and looks what their peers make of it.
#[derive(Parser)]
struct Options {
    /// Kill at each instruction, rather than at a sample of them.
    #[arg(long)]
    all: bool,
    /// What the sample depends on; printed, and chosen anew each time where it is not given.
    #[arg(long, conflicts_with = "all")]
    seed: Option<u64>,
    /// How long a sample may take.
    #[arg(long, default_value_t = 2.0, conflicts_with = "all")]
    minutes: f64,
    /// Only these operations.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Operation>,
    /// Operations at a time; one a processor where it is not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Also write what was found to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Be the worker of this operation.
    #[arg(long, hide = true)]
    worker: Option<Operation>,
    /// How long the worker may take.
    #[arg(long, hide = true)]
    seconds: Option<f64>,
    /// The processor of the worker and its children.
    #[arg(long, hide = true)]
    processor: Option<usize>,
    /// Be a child that does this operation.
    #[arg(long, hide = true)]
    child: Option<Operation>,
    /// The descriptor of the child's page.
    #[arg(long, hide = true)]
    page: Option<i32>,
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let options = Options::parse();
    let done = match (options.child, options.worker) {
        (Some(operation), _) => be_child(&options, operation),
        (_, Some(operation)) => be_worker(&options, operation),
        _ => kill_all(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("crash_points: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn be_child(options: &Options, operation: Operation) -> Result<bool> {
    let page = Page::inherited(options.page.context("a child has a page")?)?;
    child::run(operation, &page).with_context(|| format!("child of {}", operation.name()))?;
    Ok(true)
}

fn be_worker(options: &Options, operation: Operation) -> Result<bool> {
    if let Some(processor) = options.processor {
        // The child and who steps it take turns: on one processor, that costs no waking of another.
        let mut set = CpuSet::new();
        set.set(processor);
        sched_setaffinity(None, &set)?;
    }
    task::run(Task {
        operation,
        seed: options.seed.unwrap_or(0),
        time: options.seconds.map(Duration::from_secs_f64),
    })?;
    Ok(true)
}

/// A directory in which buses of one worker have their names; removed when dropped.
struct Runtime(PathBuf);

impl Runtime {
    fn new(operation: Operation) -> Result<Runtime> {
        let name = format!("crash-points-{}-{}", std::process::id(), operation.name());
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Runtime(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A worker, killed when nobody listens to it any more.
struct Work(Child);

impl Drop for Work {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What all workers of a run have in common.
struct Common<'a> {
    options: &'a Options,
    seed: u64,
    /// How long each worker may take.
    seconds: Option<f64>,
    bar: &'a ProgressBar,
}

impl Common<'_> {
    /// Has a worker do an operation, and listens to it until it is done.
    fn work(&self, operation: Operation, processor: usize) -> Result<Summary> {
        let runtime = Runtime::new(operation)?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--worker", &operation.name()])
            .args(["--processor", &processor.to_string()])
            .args(["--seed", &self.seed.to_string()])
            .env("XDG_RUNTIME_DIR", runtime.path())
            .stdout(Stdio::piped());
        if let Some(seconds) = self.seconds {
            command.args(["--seconds", &seconds.to_string()]);
        }
        let mut work = Work(command.spawn()?);
        let out = work.0.stdout.take().context("it is piped")?;
        let (said, words) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(out).lines();
            // Until nobody listens any more.
            while lines.next().is_some_and(|line| said.send(line).is_ok()) {}
        });
        let mut shown = 0.0;
        loop {
            let line = match words.recv_timeout(SILENT) {
                Ok(line) => line?,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => return Err(anyhow!("the worker hangs")),
            };
            match serde_json::from_str(&line)? {
                Word::Progress { done } => {
                    self.bar.inc(((done - shown) * PARTS).max(0.0) as u64);
                    shown = done;
                }
                Word::Done(summary) => {
                    self.bar.inc(((1.0 - shown) * PARTS) as u64);
                    return Ok(summary);
                }
            }
        }
        let status = work.0.wait()?;
        Err(anyhow!("the worker ended with {status}"))
    }

    /// As [`work`](Self::work); that it failed is a failure of the operation.
    fn outcome(&self, operation: Operation, processor: usize) -> Outcome {
        self.bar.set_message(operation.name());
        let summary = self
            .work(operation, processor)
            .unwrap_or_else(|error| Summary {
                failures: vec![Failure {
                    steps: 0,
                    asleep: false,
                    place: "-".to_owned(),
                    what: format!("{error:#}"),
                }],
                ..Summary::default()
            });
        Outcome { operation, summary }
    }
}

fn processors() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&processor| set.is_set(processor))
        .collect())
}

fn kill_all(options: &Options) -> Result<bool> {
    let operations = match options.only.is_empty() {
        true => Operation::value_variants().to_vec(),
        false => options.only.clone(),
    };
    let processors = processors()?;
    let jobs = options
        .jobs
        .unwrap_or(processors.len())
        .clamp(1, operations.len());
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = options.seed.unwrap_or(u64::from(now.subsec_nanos()));
    if !options.all {
        println!("seed {seed}");
    }
    let bar = ProgressBar::new(operations.len() as u64 * PARTS as u64);
    let style = "{bar:30} {percent}% {elapsed} of {duration}, {eta} left: {msg}";
    bar.set_style(ProgressStyle::with_template(style)?);
    bar.enable_steady_tick(Duration::from_millis(250));
    let each = options.minutes * 60.0 * jobs as f64 / operations.len() as f64;
    let common = Common {
        options,
        seed,
        seconds: (!options.all).then_some(each),
        bar: &bar,
    };
    // The longest first, so that no processor has nothing to do at the end.
    let (long, short): (Vec<_>, Vec<_>) = operations.iter().partition(|o| o.is_long());
    let left = Mutex::new([long, short].concat().into_iter());
    let next = || left.lock().ok().and_then(|mut left| left.next());
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for job in 0..jobs {
            let processor = processors[job % processors.len()];
            let (common, outcomes, next) = (&common, &outcomes, &next);
            scope.spawn(move || {
                while let Some(operation) = next() {
                    let outcome = common.outcome(operation, processor);
                    if let Ok(mut outcomes) = outcomes.lock() {
                        outcomes.push(outcome);
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut outcomes = outcomes
        .into_inner()
        .map_err(|_| anyhow!("a thread panicked"))?;
    let place = |outcome: &Outcome| operations.iter().position(|&o| o == outcome.operation);
    outcomes.sort_by_key(place);
    println!("{}", report::table(&outcomes));
    report::failures(&outcomes)
        .iter()
        .for_each(|line| println!("{line}"));
    if let Some(file) = &common.options.json {
        fs::write(file, report::json(&outcomes, seed)?)?;
    }
    Ok(outcomes
        .iter()
        .all(|outcome| outcome.summary.failures.is_empty()))
}
