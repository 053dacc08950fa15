//! One operation: kills a child at each of its points, or at a sample of them, and says what came of it.

use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::left::leftovers;
use crate::operation::Operation;
use crate::page::Page;
use crate::plan::{self, Anchors, Point};
use crate::record::Trace;
use crate::survivor;
use crate::worker::{Death, Worker};

/// An operation with so many failures is left alone.
const MOST_FAILURES: usize = 5;
/// So many runs in a row that end before their point end the operation.
const MOST_EARLY: usize = 3;
/// What was left so long ago is removed.
const OLD: Duration = Duration::from_secs(11);
/// How long lies between two words of a worker.
const WORD: Duration = Duration::from_millis(200);

/// What is killed how, and until when.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    pub operation: Operation,
    pub seed: u64,
    /// `None`: until all is done.
    pub time: Option<Duration>,
}

/// What was wrong after a death.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// After how many instructions.
    pub steps: usize,
    pub asleep: bool,
    /// Where the child stood: a file, and the distance in it.
    pub place: String,
    pub what: String,
}

/// What an operation came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// How many instructions the operation had when it was recorded.
    pub instructions: usize,
    /// Those that stored to memory that others see.
    pub stores: usize,
    /// At how many points there is something to kill.
    pub points: usize,
    /// At how many of them a child was killed.
    pub deaths: usize,
    /// How many of those stood at the very instruction that was recorded.
    pub exact: usize,
    /// How many slept.
    pub asleep: usize,
    /// How many runs were over before their point.
    pub early: usize,
    pub seconds: f64,
    pub failures: Vec<Failure>,
}

/// What a worker says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// Of so many points, so many are done; or so much of its time.
    Progress { done: f64 },
    /// It is done.
    Done(Summary),
}

fn say(word: &Word) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(word)?)?;
    Ok(out.flush()?)
}

/// What a task has come to so far.
struct Progress {
    task: Task,
    trace: Trace,
    start: Instant,
    /// When it last said how far it is.
    said: Instant,
    /// Runs in a row that ended before their point.
    early: usize,
    summary: Summary,
}

impl Progress {
    fn is_late(&self) -> bool {
        let time = self.task.time;
        time.is_some_and(|time| self.start.elapsed() > time)
    }

    /// Says how far it is, now and then: of the points, or of the time.
    fn tell(&mut self, number: usize) -> Result<()> {
        if self.said.elapsed() < WORD {
            return Ok(());
        }
        self.said = Instant::now();
        let of_points = number as f64 / self.summary.points as f64;
        let of_time = self.task.time.map_or(0.0, |time| {
            self.start.elapsed().as_secs_f64() / time.as_secs_f64()
        });
        let done = of_points.max(of_time).min(1.0);
        say(&Word::Progress { done })
    }

    /// A child was killed at this point, or not.
    fn count(&mut self, point: Point, death: &Death) {
        let summary = &mut self.summary;
        if !death.ran.reached {
            self.early += 1;
            summary.early += 1;
            return;
        }
        self.early = 0;
        summary.deaths += 1;
        summary.asleep += usize::from(death.asleep);
        // Behind the last one that was recorded, any is as good.
        let recorded = self.trace.at.get(point.steps);
        let is_there = recorded.is_none_or(|&at| at == death.ran.at);
        summary.exact += usize::from(is_there || death.asleep);
    }

    fn fail(&mut self, point: Point, place: &str, error: &anyhow::Error) {
        self.summary.failures.push(Failure {
            steps: point.steps,
            asleep: point.asleep,
            place: place.to_owned(),
            what: format!("{error:#}"),
        });
    }

    /// Kills a child at a point. False where no other can be killed after it.
    fn kill(&mut self, worker: &mut Worker, anchors: &Anchors, point: Point) -> bool {
        let (place, error) = match worker.kill_at(point, anchors) {
            Ok((death, buried)) => {
                self.count(point, &death);
                match buried {
                    Ok(()) => return true,
                    Err(error) => (death.place, error),
                }
            }
            Err(error) => ("-".to_owned(), error),
        };
        self.fail(point, &place, &error);
        let renewed = worker.renew();
        if let Err(error) = &renewed {
            self.fail(point, "with another survivor", error);
        }
        renewed.is_ok()
    }
}

/// Does a task, and says how far it is on standard output.
pub fn run(task: Task) -> Result<()> {
    let start = Instant::now();
    let mut worker = Worker::start(task.operation)?;
    let trace = worker.first().context("the first children")?;
    let anchors = Anchors::of(&trace);
    let points = match task.time {
        None => plan::all(&trace),
        Some(_) => plan::sampled(&trace, task.seed),
    };
    let summary = Summary {
        instructions: trace.at.len(),
        stores: trace.stores.len(),
        points: points.len(),
        ..Summary::default()
    };
    let (said, early) = (start, 0);
    let mut progress = Progress {
        task,
        trace,
        start,
        said,
        early,
        summary,
    };
    // Another run may have more instructions than the one that was recorded.
    let end = Point {
        steps: progress.trace.at.len(),
        asleep: false,
    };
    let more = (end.steps + 1..).map(|steps| Point { steps, ..end });
    let more = more.take_while(|_| task.time.is_none());
    for (number, point) in points.iter().copied().chain(more).enumerate() {
        let is_over = number >= points.len() && progress.early >= MOST_EARLY;
        let is_lost = progress.summary.failures.len() >= MOST_FAILURES;
        if progress.is_late() || is_over || is_lost {
            break;
        }
        progress.tell(number)?;
        if !progress.kill(&mut worker, &anchors, point) {
            break;
        }
    }
    if let Err(error) = finish(worker) {
        progress.fail(end, "at the end", &error);
    }
    progress.summary.seconds = start.elapsed().as_secs_f64();
    say(&Word::Done(progress.summary))
}

/// One more child is served, and nothing is left when all are gone.
fn finish(mut worker: Worker) -> Result<()> {
    let served = worker.last();
    drop(worker);
    if !leftovers()?.is_empty() {
        // What is new may be about to be used: it is removed by whoever leaves later.
        thread::sleep(OLD);
        drop(survivor::of(Operation::Slot, &Arc::new(Page::new()?))?);
    }
    served?;
    let left = leftovers()?;
    ensure!(left.is_empty(), "the bus was left with {left:?}");
    Ok(())
}
