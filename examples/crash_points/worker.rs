//! One child after the other, each killed at one point, and the survivor asked what is wrong then.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::left::{Resources, remove_socket, threads};
use crate::operation::Operation;
use crate::page::{Page, Phase};
use crate::plan::{Anchor, Anchors, Point};
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
/// So many children leave what they leave, for the bus to remove.
const LEFT: u64 = 20;
/// So that no copy of a message is done in one instruction.
const TUNABLES: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1048576:glibc.cpu.x86_rep_stosb_threshold=1048576";
/// How long lies between two looks: both sides share a processor.
pub const LOOK: Duration = Duration::from_micros(20);

/// See the module.
pub struct Worker {
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
pub struct Death {
    pub ran: Ran,
    pub asleep: bool,
    pub place: String,
}

/// What is to be done with a child at its gate.
enum Way<'a> {
    Record(&'a mut Trace),
    Kill(Point, Option<Anchor>),
}

impl Worker {
    /// With a survivor, and no child yet.
    pub fn start(operation: Operation) -> Result<Worker> {
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
        if let Some(does) = self.watcher.hung() {
            bail!("the child hung at {place}: {does}");
        }
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
            // But for what is true: that it was killed.
            let is_true = |incident: &shmbus::Incident| {
                incident.pid == self.pid as u32 && incident.what.contains("SIGKILL")
            };
            let mut incidents = bus.take_incidents();
            incidents.retain(|incident| !is_true(incident));
            ensure!(incidents.is_empty(), "incidents: {incidents:?}");
        }
        Ok(())
    }

    /// Lets some children die, and then knows what a survivor has in between, and what the operation does.
    pub fn first(&mut self) -> Result<Trace> {
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
    pub fn renew(&mut self) -> Result<()> {
        // The old one leaves the bus first.
        self.survivor = Box::new(survivor::Gone);
        self.survivor = survivor::of(self.operation, &self.page)?;
        self.first().map(drop)
    }

    /// Has a child live up to a point, and the survivor say what is wrong then.
    pub fn kill_at(&mut self, point: Point, anchors: &Anchors) -> Result<(Death, Result<()>)> {
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

    /// One more child is served.
    pub fn last(&mut self) -> Result<()> {
        let (steps, asleep) = (usize::MAX, false);
        self.live(Way::Kill(Point { steps, asleep }, None))?;
        self.bury()
    }
}
