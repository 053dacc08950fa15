//! Watches the thread that is stepped, while the tracer waits for it: one that sleeps is given what it waits
//! for, is killed there if that is the point, and one that hangs is killed.
//!
//! Unsafe code is needed to send signals to one thread.
#![allow(unsafe_code)]

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::left::threads;
use crate::page::{Page, Phase};

/// How often it looks.
const LOOK: Duration = Duration::from_millis(1);
/// A thread that stands for so long, and does not sleep, or sleeps for nothing, hangs.
const HANGS: Duration = Duration::from_secs(60);

/// What a thread that sleeps is given.
pub type Awaited = Arc<dyn Fn() + Send + Sync>;

/// Which thread is looked at, and what is to be done when it sleeps.
#[derive(Default)]
struct Watched {
    thread: Option<(i32, i32)>,
    awaited: Option<Awaited>,
    /// Set where the thread that sleeps has nothing more to do.
    over: Option<Arc<AtomicBool>>,
    kills_asleep: bool,
    slept: usize,
    /// What it did when it was killed since it hung.
    hung: Option<String>,
}

/// See the module.
pub struct Watcher {
    watched: Mutex<Watched>,
    ticks: AtomicU64,
    idle: AtomicBool,
    killed: AtomicBool,
}

impl Watcher {
    /// Starts to watch children with this page.
    pub fn start(page: Arc<Page>) -> Arc<Watcher> {
        let watcher = Arc::new(Watcher {
            watched: Mutex::default(),
            ticks: AtomicU64::new(0),
            idle: AtomicBool::new(false),
            killed: AtomicBool::new(false),
        });
        thread::spawn({
            let watcher = watcher.clone();
            move || watcher.look(&page)
        });
        watcher
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next thread is given when it sleeps, and what says that it is done.
    pub fn prepare(&self, awaited: Option<Awaited>, over: Option<Arc<AtomicBool>>) {
        *self.watched() = Watched {
            awaited,
            over,
            ..Watched::default()
        };
        // Relaxed: nobody is watched.
        self.idle.store(false, Ordering::Relaxed);
        self.killed.store(false, Ordering::Relaxed);
        self.ticks.store(0, Ordering::Relaxed);
    }

    /// Watches this thread from now on.
    pub fn watch(&self, pid: i32, tid: i32) {
        self.watched().thread = Some((pid, tid));
    }

    /// Watches no more.
    pub fn leave(&self) {
        self.watched().thread = None;
    }

    /// From now on the thread is killed when it sleeps.
    pub fn kill_asleep(&self) {
        self.watched().kills_asleep = true;
    }

    /// How often the thread was seen asleep.
    pub fn slept(&self) -> usize {
        self.watched().slept
    }

    /// What it did when it was killed since it hung.
    pub fn hung(&self) -> Option<String> {
        self.watched().hung.clone()
    }

    /// Whether it was killed asleep.
    pub fn has_killed(&self) -> bool {
        // SYNC(killed): Acquire; pairs with Release in `asleep`.
        self.killed.load(Ordering::Acquire)
    }

    /// The thread has stopped once more.
    pub fn tick(&self) {
        // Relaxed: only that it changes is looked at.
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the thread was woken, as there is nothing more that it would do.
    pub fn is_idle(&self) -> bool {
        // SYNC(idle): Acquire; pairs with Release in `asleep`.
        self.idle.load(Ordering::Acquire)
    }

    fn look(&self, page: &Page) {
        let mut last = (0, u64::MAX);
        let mut since = Instant::now();
        let mut given = false;
        loop {
            thread::sleep(LOOK);
            let mut watched = self.watched();
            let Some((pid, tid)) = watched.thread else {
                last = (0, u64::MAX);
                continue;
            };
            // Relaxed: as in `tick`.
            let now = (pid, self.ticks.load(Ordering::Relaxed));
            if now != last {
                (last, since, given) = (now, Instant::now(), false);
                continue;
            }
            if since.elapsed() > HANGS {
                let does = threads(pid as u32);
                watched.hung = Some(does.unwrap_or_else(|error| error.to_string()));
                watched.thread = None;
                signal(pid, None, libc::SIGKILL);
            } else if sleeps(pid, tid) {
                self.asleep(page, &mut watched, (pid, tid), &mut given);
            }
        }
    }

    fn asleep(&self, page: &Page, watched: &mut Watched, (pid, tid): (i32, i32), given: &mut bool) {
        // Relaxed: what was done before is not looked at through it.
        let is_over = |over: &Arc<AtomicBool>| over.load(Ordering::Relaxed);
        if page.phase() == Phase::Ended || watched.over.as_ref().is_some_and(is_over) {
            if !self.is_idle() {
                // SYNC(idle): Release; pairs with Acquire in `is_idle`.
                self.idle.store(true, Ordering::Release);
                signal(pid, Some(tid), libc::SIGSTOP);
            }
        } else if watched.kills_asleep {
            watched.thread = None;
            // SYNC(killed): Release; pairs with Acquire in `has_killed`.
            self.killed.store(true, Ordering::Release);
            signal(pid, None, libc::SIGKILL);
        } else if !*given {
            *given = true;
            watched.slept += 1;
            if let Some(awaited) = &watched.awaited {
                awaited();
            }
        }
    }
}

/// Whether a thread sleeps, rather than stands or runs.
pub fn sleeps(pid: i32, tid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat"));
    let state = stat.ok().and_then(|stat| {
        let (_, behind_name) = stat.rsplit_once(')')?;
        behind_name.trim_start().chars().next()
    });
    state == Some('S')
}

fn signal(pid: i32, tid: Option<i32>, signal: i32) {
    match tid {
        // SAFETY: sends a signal to a child that was not waited for; else nothing comes of it.
        None => _ = unsafe { libc::kill(pid, signal) },
        // SAFETY: as above, to one thread of it.
        Some(tid) => _ = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) },
    }
}
