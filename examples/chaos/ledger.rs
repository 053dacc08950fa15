//! What was promised and what was seen: one file that the supervisor and all workers map.
//!
//! A worker writes down what it is told, at once, into words that are its own; so this is known when it has been
//! killed. It is no part of the bus: nothing in it goes through what is looked at here.
//!
//! Unsafe code is needed to lay words over the mapped file.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use memmap2::MmapOptions;

/// The most processes at a time.
pub const MOST_SLOTS: usize = 64;
/// The most processes of one run.
pub const MOST_INSTANCES: usize = 1 << 16;
/// The most lanes, publishers and readers of one run.
pub const MOST_ROWS: usize = 1 << 20;

/// A word of the ledger. Zero in a new file.
#[repr(transparent)]
pub struct Word(AtomicU64);

impl Word {
    pub fn get(&self) -> u64 {
        // SYNC(ledger): Acquire; pairs with Release in `set` and `add`.
        self.0.load(Ordering::Acquire)
    }

    pub fn set(&self, value: u64) {
        // SYNC(ledger): Release; pairs with Acquire in `get`.
        self.0.store(value, Ordering::Release);
    }

    pub fn add(&self, value: u64) -> u64 {
        // SYNC(ledger): AcqRel; pairs with Acquire in `get`, and with itself.
        self.0.fetch_add(value, Ordering::AcqRel)
    }

    /// Takes what is there, and leaves zero.
    pub fn take(&self) -> u64 {
        // SYNC(ledger): AcqRel; pairs with Release in `set`, and Acquire in `get`.
        self.0.swap(0, Ordering::AcqRel)
    }
}

/// How far a run is.
pub mod phase {
    /// Everything at full load.
    pub const RUN: u64 = 0;
    /// Nobody begins anything more; what was begun arrives.
    pub const DRAIN: u64 = 1;
    /// All ports are dropped.
    pub const CLOSE: u64 = 2;
}

/// What the supervisor wants of a process, once.
pub mod order {
    /// Fork, and have the child use what it inherits.
    pub const FORK: u64 = 1;
    /// Have no descriptors left for a while.
    pub const STARVE: u64 = 2;
    /// Have the system refuse new memory files for a while.
    pub const SQUEEZE: u64 = 4;
    /// Leave the bus, and end.
    pub const LEAVE: u64 = 8;
}

/// One place for a process: its role is known by its number, and who is killed there is followed by another.
#[repr(C)]
pub struct Slot {
    /// The process that is there now.
    pub instance: Word,
    pub order: Word,
    pub progress: Word,
    /// 1 when all ports are dropped.
    pub is_bare: Word,
    /// What the bus used before its first port, and since.
    pub memory_start: Word,
    pub memory_end: Word,
    /// Descriptors before the bus was opened, with it, and when it was dropped.
    pub fds_start: Word,
    pub fds_open: Word,
    pub fds_end: Word,
    /// What follows adds up over all processes that were there.
    pub promised: Word,
    pub seen: Word,
    pub missed: Word,
    pub calls: Word,
    pub answered: Word,
    pub items: Word,
    pub lost: Word,
    /// Errors that were to be expected: of a limit, a deadline, or want of descriptors.
    pub refused: Word,
    pub forks: Word,
    pub starvations: Word,
    pub squeezes: Word,
}

/// One process, from its start to its end.
#[repr(C)]
pub struct Instance {
    pub slot: Word,
    pub pid: Word,
    pub began: Word,
    /// Zero while it lives.
    pub ended: Word,
    /// When it had made its subscriber; zero if it has not, or if that took too long to be a promise.
    pub joined: Word,
    /// It had no descriptors left for a while.
    pub was_starved: Word,
    /// It said that a link ended as it lacked something.
    pub has_parted: Word,
}

/// What a row is of.
pub mod kind {
    /// A sender's lane, from its connecting on.
    pub const LANE: u64 = 1;
    /// A client, or a task that calls.
    pub const CALLS: u64 = 2;
    pub const RELIABLE: u64 = 3;
    pub const LOSSY: u64 = 4;
    /// A key of a publisher of newest values.
    pub const NEWEST: u64 = 5;
    /// What one subscriber or reader has of one publisher.
    pub const READ: u64 = 6;
}

/// How a row ended; zero while it has not.
pub mod ended {
    /// Its owner let go of it.
    pub const DROPPED: u64 = 1;
    /// Its owner was told that the other process is gone.
    pub const LOST: u64 = 2;
}

/// What one side promises another.
#[repr(C)]
pub struct Row {
    pub kind: Word,
    /// The instance that wrote it.
    pub from: Word,
    /// Of a lane: the slot of the receiver. Of what is read: the row of what is published.
    pub of: Word,
    /// The instance at the other end and one, when that is known.
    pub to: Word,
    /// The number of the last message that was sent, or call that was begun.
    pub promised: Word,
    /// The number of the message that is being sent.
    pub trying: Word,
    /// The number up to which all is accounted for by who receives.
    pub seen: Word,
    /// How many messages that were.
    pub count: Word,
    /// How many were told to be missed.
    pub missed: Word,
    /// Calls that had their last word.
    pub worded: Word,
    /// Replies among them.
    pub replies: Word,
    /// Replies that the server was told Ok for.
    pub answered: Word,
    /// Calls that may never be taken: cancelled, or too late.
    pub skips: Word,
    /// Numbers that the server never saw.
    pub holes: Word,
    pub ended: Word,
    /// When it was begun, and when the last that was promised was.
    pub began: Word,
    pub last_begun: Word,
    /// Whether those who were there before may have been left out.
    pub is_late: Word,
}

/// See the module.
#[repr(C)]
pub struct Ledger {
    pub phase: Word,
    pub seed: Word,
    pub rows_used: Word,
    pub instances_used: Word,
    pub complaints: Word,
    pub slots_used: Word,
    pub slots: [Slot; MOST_SLOTS],
    pub instances: [Instance; MOST_INSTANCES],
    pub rows: [Row; MOST_ROWS],
}

impl Ledger {
    /// Makes the file if there is none, and maps it for the life of this process.
    pub fn open(path: &Path) -> Result<&'static Ledger> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        file.set_len(size_of::<Ledger>() as u64)?;
        // SAFETY: the file is in a directory of this run, is never made shorter, and all who map it look at it
        // through atomics only.
        let map = unsafe { MmapOptions::new().map_mut(&file)? };
        ensure!(map.len() >= size_of::<Ledger>(), "the ledger is too short");
        let map = Box::leak(Box::new(map));
        // SAFETY: as many bytes are mapped, writable, for ever, on a page's boundary; a `Ledger` is nothing but
        // atomics, for which all bit patterns are good.
        Ok(unsafe { &*map.as_mut_ptr().cast::<Ledger>() })
    }

    /// Takes a row. It is found by its number.
    pub fn begin(&self, kind: u64, from: u64, of: u64) -> (u64, &Row) {
        let number = self.rows_used.add(1);
        assert!((number as usize) < MOST_ROWS, "the ledger is full");
        let row = &self.rows[number as usize];
        row.from.set(from);
        row.of.set(of);
        row.began.set(now());
        row.kind.set(kind);
        (number, row)
    }

    /// The row of this number, if there is one.
    pub fn row(&self, number: u64) -> Option<&Row> {
        (number < self.rows_used.get()).then(|| &self.rows[number as usize])
    }

    pub fn all_rows(&self) -> impl Iterator<Item = (u64, &Row)> {
        let used = self.rows_used.get() as usize;
        (0..).zip(&self.rows[..used])
    }

    pub fn instance(&self, number: u64) -> &Instance {
        &self.instances[number as usize]
    }

    pub fn all_instances(&self) -> impl Iterator<Item = (u64, &Instance)> {
        let used = self.instances_used.get() as usize;
        (0..).zip(&self.instances[..used])
    }

    pub fn slots(&self) -> &[Slot] {
        &self.slots[..self.slots_used.get() as usize]
    }

    /// The last process of this number.
    pub fn by_pid(&self, pid: u32) -> Option<u64> {
        let used = self.instances_used.get();
        (0..used)
            .rev()
            .find(|n| self.instance(*n).pid.get() == u64::from(pid))
    }

    pub fn is_alive(&self, instance: u64) -> bool {
        self.instance(instance).ended.get() == 0
    }
}

/// Nanoseconds of the clock that all processes share; never zero.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
