//! A process that takes part in the bus, until it is killed or told to leave.
//!
//! Unsafe code is needed to fork, and to have a full file be an error rather than a signal.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use shmbus::Bus;

use crate::ledger::{Ledger, Row, Slot, kind, order, phase};
use crate::plan::{self, Role};
use crate::{process, roles};

/// How long a process has no descriptors left, or no memory files.
const WANT: Duration = Duration::from_millis(150);

/// The name of the bus.
pub const BUS: &str = "chaos";
/// How much less the load counts.
const NICE: i32 = 10;

/// What a process is told when it is started.
#[derive(Clone, Debug, clap::Args)]
pub struct Orders {
    /// Be the process of this place.
    #[arg(long, hide = true, requires_all = ["instance", "directory"])]
    pub slot: Option<usize>,
    #[arg(long, hide = true, default_value_t = 0)]
    pub instance: u64,
    #[arg(long, hide = true, default_value = ".")]
    pub directory: PathBuf,
    /// Open the bus, and leave it.
    #[arg(long, hide = true)]
    pub visit: bool,
}

/// What every role has.
pub struct Context {
    pub ledger: &'static Ledger,
    pub number: usize,
    pub slot: &'static Slot,
    pub instance: u64,
    pub rng: fastrand::Rng,
    pub bus: Bus,
    complaints: Arc<File>,
}

pub fn ledger_path(directory: &Path) -> PathBuf {
    directory.join("ledger")
}

pub fn complaints_path(directory: &Path) -> PathBuf {
    directory.join("complaints")
}

/// Opens the bus and leaves it, as somebody who comes later would.
pub fn visit() -> Result<()> {
    drop(Bus::open(BUS)?);
    Ok(())
}

pub fn run(slot: usize, orders: &Orders) -> Result<()> {
    // So that whoever supervises, and what the kernel does behind a kill, comes before all the load.
    rustix::process::nice(NICE)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // SAFETY: no handler of ours is installed; what would write too much gets an error instead.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let ledger = Ledger::open(&ledger_path(&orders.directory))?;
    let seed = ledger.seed.get().wrapping_add(orders.instance << 17);
    let complaints = OpenOptions::new()
        .append(true)
        .open(complaints_path(&orders.directory))?;
    let complaints = Arc::new(complaints);
    // The first bus of a process opens a descriptor for good.
    drop(plan::config(slot).open(BUS).context("the first bus")?);
    let words = &ledger.slots[slot];
    let me = ledger.instance(orders.instance);
    me.pid.set(u64::from(std::process::id()));
    words.fds_start.set(process::descriptors()?);
    let bus = plan::config(slot).open(BUS).context("the bus")?;
    words.fds_open.set(process::descriptors()?);
    words.memory_start.set(bus.memory().1);
    let mut context = Context {
        ledger,
        number: slot,
        slot: words,
        instance: orders.instance,
        rng: fastrand::Rng::with_seed(seed),
        bus,
        complaints,
    };
    let other = context.share();
    let minding = std::thread::spawn(move || mind(&other));
    roles::play(Role::of(slot), &mut context)?;
    ensure!(minding.join().is_ok(), "the thread that minds panicked");
    leave(context)
}

/// Has ports end when all is over, and the system refuse things meanwhile.
fn mind(context: &Context) {
    while context.ledger.phase.get() < phase::CLOSE {
        if context.is_ordered(order::STARVE) {
            context.slot.starvations.add(1);
            let me = context.ledger.instance(context.instance);
            me.was_starved.set(1);
            want(Resource::Nofile, process::descriptors().unwrap_or(0));
        }
        if context.is_ordered(order::SQUEEZE) {
            context.slot.squeezes.add(1);
            want(Resource::Fsize, 4096);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    context.bus.close();
}

/// Lives with so little of something for a while.
fn want(resource: Resource, little: u64) {
    let before = getrlimit(resource);
    let less = Rlimit {
        current: Some(little),
        ..before
    };
    if setrlimit(resource, less).is_ok() {
        std::thread::sleep(WANT);
        let _ = setrlimit(resource, before);
    }
}

/// Says what is left when all ports are dropped, and ends when it is told to.
fn leave(context: Context) -> Result<()> {
    while !context.is_ordered(order::LEAVE) {
        context.slot.memory_end.set(context.bus.memory().1);
        context.slot.is_bare.set(1);
        std::thread::sleep(Duration::from_millis(2));
    }
    context.take_incidents();
    let Context {
        bus,
        slot,
        complaints,
        ..
    } = context;
    drop((bus, complaints));
    // The file of complaints was open when they were counted.
    slot.fds_end.set(process::descriptors()? + 1);
    ensure!(
        process::memory_files("self")?.is_empty(),
        "memory files are mapped when the bus is dropped"
    );
    Ok(())
}

impl Context {
    /// The same, for another thread.
    pub fn share(&self) -> Context {
        Context {
            complaints: self.complaints.clone(),
            rng: self.rng.clone(),
            bus: self.bus.clone(),
            ..*self
        }
    }

    pub fn is_running(&self) -> bool {
        self.ledger.phase.get() == phase::RUN
    }

    /// Says that something went on; `false` when nothing new is to be begun.
    pub fn goes_on(&self) -> bool {
        self.slot.progress.add(1);
        self.is_running()
    }

    /// Whether this was wanted since it was last asked.
    fn is_ordered(&self, what: u64) -> bool {
        let wanted = self.slot.order.get();
        if wanted != what {
            return false;
        }
        self.slot.order.take() == what
    }

    /// Says that the bus broke a promise.
    pub fn complain(&self, what: impl std::fmt::Display) {
        self.ledger.complaints.add(1);
        let role = Role::of(self.number).name();
        let text = format!(
            "{role} in place {}, instance {}, process {}: {what}\n",
            self.number,
            self.instance,
            std::process::id()
        );
        let _ = (&*self.complaints).write_all(text.as_bytes());
    }

    /// Looks at what the bus says of peers. They are all honest.
    pub fn take_incidents(&self) {
        for incident in self.bus.take_incidents() {
            let lacks = incident.what.contains("no descriptor is left");
            if lacks && self.was_starved() {
                self.part();
                continue;
            }
            let is_ours = incident.pid == std::process::id();
            // Of one that is killed, and that the kernel has not cleared up behind for long.
            let peer = self.ledger.by_pid(incident.pid);
            let is_dead = peer.is_some_and(|peer| !self.ledger.is_alive(peer));
            let is_silent = is_dead && incident.what.contains("said no hello within");
            let gave_up = incident.what.contains("nothing can be answered any more");
            if gave_up && self.may_lack_memory() {
                // The link ended by that.
                self.part();
                continue;
            }
            // The kernel's word, and true.
            let is_killed = is_dead && incident.what.contains("killed by signal 9");
            if !(is_killed || is_silent || is_ours && self.was_in_want()) {
                self.complain(format_args!("incident: {incident}"));
            }
        }
    }

    pub fn was_starved(&self) -> bool {
        self.ledger.instance(self.instance).was_starved.get() != 0
    }

    fn part(&self) {
        self.ledger.instance(self.instance).has_parted.set(1);
    }

    pub fn has_parted(&self) -> bool {
        self.ledger.instance(self.instance).has_parted.get() != 0
    }

    /// Whether the system may have refused this process something.
    pub fn was_in_want(&self) -> bool {
        self.was_starved() || self.slot.squeezes.get() > 0
    }

    /// Whether memory may be refused to this process.
    pub fn may_lack_memory(&self) -> bool {
        plan::is_limited(self.number) || self.was_in_want()
    }

    /// Forks if that is wanted; the child returns what `refused` says of what it inherited.
    pub fn fork_if_ordered(&self, refused: impl FnOnce() -> bool) {
        if !self.is_ordered(order::FORK) {
            return;
        }
        // SAFETY: the child looks at one handle, and ends without returning.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let code = i32::from(!refused());
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: the status is ours to write.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        self.slot.forks.add(1);
        if pid < 0 || waited != pid || status != 0 {
            self.complain(format_args!(
                "a forked child was not refused: {pid}, {waited}, status {status:#x}"
            ));
        }
    }

    /// The connection to whoever publishes in this row.
    pub fn reading(&self, of: u64) -> (u64, &'static Row) {
        let (number, row) = self.ledger.begin(kind::READ, self.instance, of);
        (number, row)
    }
}
