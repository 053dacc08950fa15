//! One operation: kills a child at each of its points, and has the survivor say what is wrong then.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::operation::{BUS, Operation};
use crate::page::{Page, Phase};
use crate::plan::{self, Anchors, Point};
use crate::record::{Trace, record};
use crate::survivor::{self, Stage, Survivor};
use crate::tracer::{Ran, Thread, named};
use crate::watcher::Watcher;

/// How long a survivor may take to learn of a death, and to have all back: far longer than it ever does.
const LEARNS: Duration = Duration::from_secs(10);
/// How long a child may take to get to its gate.
const START: Duration = Duration::from_secs(60);
/// Children that die before what a survivor has is taken for what it always has.
const FIRST: usize = 3;
/// How long they are waited for.
const SETTLES: Duration = Duration::from_millis(50);
/// An operation with so many failures is left alone.
const MOST_FAILURES: usize = 5;
/// So many runs in a row that end before their point end the operation.
const MOST_EARLY: usize = 3;
/// So that no copy of a message is done in one instruction.
const TUNABLES: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1048576:glibc.cpu.x86_rep_stosb_threshold=1048576";
/// So many children leave what they leave, for the bus to remove.
const LEFT: u64 = 20;
/// What was left so long ago is removed.
const OLD: Duration = Duration::from_secs(11);
/// How long lies between two looks: both sides share a processor.
pub const LOOK: Duration = Duration::from_micros(20);
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

/// What a survivor has of this process's resources.
#[derive(Clone, Debug)]
struct Resources {
    /// Of each bus: the bytes in use.
    used: Vec<u64>,
    descriptors: usize,
    /// Mappings of memory files.
    mapped: usize,
}

impl Resources {
    fn of(survivor: &dyn Survivor) -> Result<Resources> {
        let maps = fs::read_to_string("/proc/self/maps")?;
        Ok(Resources {
            used: survivor.buses().iter().map(|bus| bus.memory().1).collect(),
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            mapped: maps.lines().filter(|line| line.contains("/memfd:")).count(),
        })
    }

    fn is_within(&self, most: &Resources) -> bool {
        self.used
            .iter()
            .zip(&most.used)
            .all(|(used, most)| used <= most)
            && self.descriptors <= most.descriptors
            && self.mapped <= most.mapped
    }
}

/// See the module.
struct Worker {
    operation: Operation,
    page: Arc<Page>,
    watcher: Arc<Watcher>,
    survivor: Box<dyn Survivor>,
    /// What the survivor has when no child lives.
    has: Option<Resources>,
    runs: u64,
    /// The child that lives, or died last.
    pid: i32,
}

/// Kills a child when nobody waits for it any more.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where and how a child was killed.
struct Death {
    ran: Ran,
    asleep: bool,
    place: String,
}

/// What is to be done with a child at its gate.
enum Way<'a> {
    Record(&'a mut Trace),
    Kill(Point, Option<plan::Anchor>),
}

impl Worker {
    fn start(operation: Operation) -> Result<Worker> {
        let page = Arc::new(Page::new()?);
        let survivor = survivor::of(operation, &page)?;
        Ok(Worker {
            operation,
            watcher: Watcher::start(page.clone()),
            page,
            survivor,
            has: None,
            runs: 0,
            pid: 0,
        })
    }

    fn spawn(&self) -> Result<Reaped> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--child", &self.operation.name()])
            .args(["--page", &self.page.fd().to_string()])
            // Copies and clears in loops: a `rep movsb` is stepped round by round, a byte each.
            .env("GLIBC_TUNABLES", TUNABLES)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Ok(Reaped(command.spawn().context("the child does not start")?))
    }

    /// Has a child go to its gate.
    fn meet(&mut self) -> Result<Reaped> {
        self.runs += 1;
        self.page.reset(self.runs);
        let mut child = self.spawn()?;
        let start = Instant::now();
        while self.page.phase() < Phase::Ready || !self.survivor.is_ready() {
            self.survivor.tend(&self.page, Stage::Meeting)?;
            if let Some(status) = child.0.try_wait()? {
                bail!("a new peer is not served: it ended with {status}");
            }
            if start.elapsed() > START {
                let pid = child.0.id();
                bail!("a new peer is not served in time: {}", threads(pid)?);
            }
            thread::sleep(LOOK);
        }
        self.survivor.tend(&self.page, Stage::Meeting)?;
        Ok(child)
    }

    /// Lets one child live, up to its death.
    fn live(&mut self, way: Way<'_>) -> Result<Death> {
        let mut child = self.meet()?;
        let pid = child.0.id() as i32;
        self.pid = pid;
        let tid = match self.operation.is_of_quiet_thread() {
            true => *named(pid, "shmbus")?.first().context("no quiet thread")?,
            false => pid,
        };
        self.watcher
            .prepare(self.survivor.awaited(), self.survivor.over());
        let thread = Thread::seize(pid, tid, &self.page, &self.watcher)?;
        thread.enter()?;
        if let Some(started) = self.survivor.started() {
            started();
        }
        let (ran, asleep) = match way {
            Way::Record(trace) => {
                *trace = record(&thread, pid, &self.page, &self.watcher)?;
                (thread.run(0, None)?, false)
            }
            Way::Kill(point, anchor) => {
                let mut ran = thread.run(point.steps, anchor.as_ref())?;
                let asleep = point.asleep && ran.reached && thread.kill_asleep()?;
                ran.reached &= asleep || !point.asleep;
                (ran, asleep)
            }
        };
        let is_dead = ran.dead || self.watcher.has_killed();
        let place = match is_dead {
            true => "asleep".to_owned(),
            false => thread.place()?,
        };
        let looked = match is_dead {
            true => Ok(()),
            false => self.survivor.tend(&self.page, Stage::Stopped),
        };
        thread.kill()?;
        // Who was killed asleep was waited for already.
        let waited = child.0.wait();
        if !is_dead {
            waited?;
        }
        looked.with_context(|| format!("before the death at {place}"))?;
        ensure!(!self.watcher.has_hung(), "the child hung at {place}");
        Ok(Death { ran, asleep, place })
    }

    /// Waits until a survivor knows of a death and has all back, and has it judge what came.
    fn bury(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            self.survivor.tend(&self.page, Stage::Dead)?;
            let missing = self.survivor.missing(&self.page)?;
            let resources = Resources::of(&*self.survivor)?;
            let is_back = match &self.has {
                Some(most) => resources.is_within(most),
                None => start.elapsed() > SETTLES,
            };
            if missing.is_none() && is_back {
                break;
            }
            if start.elapsed() > LEARNS {
                let what = missing.unwrap_or_else(|| {
                    format!(
                        "not all is back: {resources:?}, where it was {:?}",
                        self.has
                    )
                });
                bail!("{what}");
            }
            thread::sleep(LOOK);
        }
        self.survivor.tend(&self.page, Stage::Dead)?;
        self.survivor.conclude(&self.page)?;
        if self.runs > LEFT {
            remove_socket(self.pid)?;
        }
        for bus in self.survivor.buses() {
            let incidents = bus.take_incidents();
            ensure!(incidents.is_empty(), "incidents: {incidents:?}");
        }
        Ok(())
    }

    /// Lets some children die, and then knows what a survivor has in between, and what the operation does.
    fn first(&mut self) -> Result<Trace> {
        let mut trace = Trace::default();
        self.has = None;
        for number in 1..=FIRST {
            let steps = if number % 2 == 0 { 0 } else { usize::MAX };
            let asleep = false;
            let way = match number {
                FIRST => Way::Record(&mut trace),
                _ => Way::Kill(Point { steps, asleep }, None),
            };
            self.live(way)?;
            self.bury()?;
        }
        self.has = Some(Resources::of(&*self.survivor)?);
        Ok(trace)
    }

    /// Starts with another survivor, as this one may have been harmed.
    fn renew(&mut self) -> Result<()> {
        // The old one leaves the bus first.
        self.survivor = Box::new(survivor::Gone);
        self.survivor = survivor::of(self.operation, &self.page)?;
        self.first().map(drop)
    }

    fn kill_at(&mut self, point: Point, anchors: &Anchors) -> Result<(Death, Result<()>)> {
        let anchor = anchors.before(point.steps).copied();
        let mut death = self.live(Way::Kill(point, anchor))?;
        if death.ran.missed {
            // This run went another way.
            self.bury()?;
            death = self.live(Way::Kill(point, None))?;
        }
        let buried = self.bury();
        Ok((death, buried))
    }
}

/// What each thread of a process does: its name, its state, its system call, and where that waits.
fn threads(pid: u32) -> Result<String> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let read = |file| fs::read_to_string(task.as_ref().map(|t| t.path().join(file)).ok()?).ok();
        let words = ["comm", "stat", "syscall", "wchan"].map(|file| read(file).unwrap_or_default());
        let [name, stat, call, wait] = words.each_ref().map(|word| word.trim_end());
        let state = stat.rsplit_once(") ").map_or("", |(_, state)| &state[..1]);
        found.push(format!("{name} {state}, call {call}, in {wait}"));
    }
    Ok(found.join("; "))
}

/// The directory of the bus.
fn directory() -> Result<PathBuf> {
    let root = std::env::var_os("XDG_RUNTIME_DIR").context("no XDG_RUNTIME_DIR")?;
    Ok(PathBuf::from(root).join("shmbus").join(BUS))
}

/// What the directory of the bus is left with when nobody has it open.
fn leftovers() -> Result<Vec<PathBuf>> {
    match fs::read_dir(directory()?) {
        Err(_) => Ok(Vec::new()),
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
    }
}

/// Removes the socket of a child that is dead. The bus does so, too, but not before some seconds have passed: until
/// then thousands of children would leave thousands of them, and each look at the directory take as long.
fn remove_socket(pid: i32) -> Result<()> {
    let of_it = format!("node-{pid}-");
    for entry in fs::read_dir(directory()?)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&of_it) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
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
    let mut summary = Summary {
        instructions: trace.at.len(),
        stores: trace.stores.len(),
        points: points.len(),
        ..Summary::default()
    };
    let more = (trace.at.len() + 1..).map(|steps| Point {
        steps,
        asleep: false,
    });
    let more = more.take_while(|_| task.time.is_none());
    let (mut in_a_row, mut said) = (0, start);
    for (number, point) in points.iter().copied().chain(more).enumerate() {
        let is_late = task.time.is_some_and(|time| start.elapsed() > time);
        let is_over = number >= points.len() && in_a_row >= MOST_EARLY;
        if is_late || is_over || summary.failures.len() >= MOST_FAILURES {
            break;
        }
        if said.elapsed() > WORD {
            said = Instant::now();
            let of_points = number as f64 / points.len() as f64;
            let of_time = task.time.map_or(0.0, |time| {
                start.elapsed().as_secs_f64() / time.as_secs_f64()
            });
            let done = of_points.max(of_time).min(1.0);
            say(&Word::Progress { done })?;
        }
        let failure = match worker.kill_at(point, &anchors) {
            Ok((death, buried)) => {
                in_a_row = if death.ran.reached { 0 } else { in_a_row + 1 };
                summary.early += usize::from(!death.ran.reached);
                summary.deaths += usize::from(death.ran.reached);
                summary.asleep += usize::from(death.asleep);
                let recorded = trace.at.get(point.steps).copied();
                let is_exact = death.ran.reached && Some(death.ran.at) == recorded.or(Some(None));
                summary.exact += usize::from(is_exact || death.asleep);
                buried.err().map(|error| (death.place, error))
            }
            Err(error) => Some(("-".to_owned(), error)),
        };
        if let Some((place, error)) = failure {
            summary.failures.push(Failure {
                steps: point.steps,
                asleep: point.asleep,
                place,
                what: format!("{error:#}"),
            });
            if let Err(error) = worker.renew() {
                let place = "with another survivor".to_owned();
                summary.failures.push(Failure {
                    steps: 0,
                    asleep: false,
                    place,
                    what: format!("{error:#}"),
                });
                break;
            }
        }
    }
    // One more peer is served, and nothing is left when all are gone.
    let mut last = || {
        let (steps, asleep) = (usize::MAX, false);
        worker.live(Way::Kill(Point { steps, asleep }, None))?;
        worker.bury()
    };
    let mut last = last();
    drop(worker);
    let mut left = leftovers()?;
    if !left.is_empty() {
        // What is new may be about to be used: it is removed by whoever leaves later.
        thread::sleep(OLD);
        drop(survivor::of(Operation::Slot, &Arc::new(Page::new()?))?);
        left = leftovers()?;
    }
    if last.is_ok() && !left.is_empty() {
        last = Err(anyhow::anyhow!("the bus was left with {left:?}"));
    }
    if let Err(error) = last {
        summary.failures.push(Failure {
            steps: trace.at.len(),
            asleep: false,
            place: "at the end".to_owned(),
            what: format!("{error:#}"),
        });
    }
    summary.seconds = start.elapsed().as_secs_f64();
    say(&Word::Done(summary))
}
