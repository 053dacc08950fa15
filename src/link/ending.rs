//! How the process at the other end of a link ended, where the system knows.
//!
//! The end of a socket comes a little before its process can be waited for. Whoever says that a link ended waits
//! for that, some milliseconds at the most; the quiet thread never does, but watches the process and tells of one
//! that a signal ended (`Node::bury`).

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::node::{Node, Reach};
use super::{Link, lock};
use crate::error::{ConnectError, Ended};
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::sys::poll::Epoll;
use crate::sys::process::Process;

/// How long after the end of its link a process is waited for.
const PATIENCE: Duration = Duration::from_millis(10);
/// How long lies between two looks whether a process is being killed, which each read some files.
const LOOK: Duration = Duration::from_millis(1);
/// The end of a process so long after that of its link has nothing to do with it.
const LATE: Duration = Duration::from_secs(10);
/// The most processes that are watched after the end of their links: an honest one ends at once.
const MOST_DYING: usize = 64;

thread_local! {
    static WAITS_NEVER: Cell<bool> = const { Cell::new(false) };
}

/// On this thread, nobody waits for the end of a process.
pub(super) fn wait_never() {
    WAITS_NEVER.set(true);
}

/// What is known of the peer's end. Clones know the same.
#[derive(Clone)]
pub(super) struct Ending {
    /// Known from the peer's hello on: a stranger is to cost no further descriptor.
    process: OnceLock<Arc<Process>>,
    /// When its link ended.
    since: OnceLock<Instant>,
    /// When it was last looked whether the process is being killed: microseconds behind that, and one more.
    looked: Arc<AtomicU64>,
    /// Whether it said that it ends the link: then its process may well live on.
    said_bye: Arc<AtomicBool>,
}

impl Ending {
    pub(super) fn new(process: Option<Process>) -> Ending {
        Ending {
            process: process
                .map(Arc::new)
                .map_or_else(OnceLock::new, OnceLock::from),
            since: OnceLock::new(),
            looked: Arc::default(),
            said_bye: Arc::default(),
        }
    }

    /// The peer has said hello.
    pub(super) fn know(&self, process: impl FnOnce() -> Option<Process>) {
        if self.process.get().is_none() {
            let process = process().map(Arc::new);
            process.map(|process| self.process.set(process));
        }
    }

    pub(super) fn begin(&self) {
        let _ = self.since.set(Instant::now());
    }

    pub(super) fn say_bye(&self) {
        // Relaxed: only tells whether to wait, and to report.
        self.said_bye.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_said_bye(&self) -> bool {
        // Relaxed: as in `say_bye`.
        self.said_bye.load(Ordering::Relaxed)
    }

    /// How the process ended, if its link did, and that is known; may wait for its end, if that is what ended the link.
    pub(super) fn how(&self, is_fault: bool) -> Option<Ended> {
        let since = self.since.get()?;
        let patience = match is_fault || self.has_said_bye() || WAITS_NEVER.get() {
            true => Duration::ZERO,
            false => PATIENCE.saturating_sub(since.elapsed()),
        };
        self.ended(patience, is_fault)
    }

    /// Who broke the protocol, or said that it ends the link, was not killed.
    fn ended(&self, patience: Duration, is_fault: bool) -> Option<Ended> {
        let process = self.process.get()?;
        let status = match is_fault || self.has_said_bye() {
            true => process.status_of_ended(patience)?,
            false => process.status(patience)?,
        };
        Some(Ended::from_status(status))
    }

    fn known(&self) -> Option<Ended> {
        self.process.get()?.known().map(Ended::from_status)
    }

    /// Whether nobody has looked lately at what becomes of the process: peers must not make that what we are busy with.
    fn is_look_due(&self) -> bool {
        let elapsed = self.since.get().map_or(Duration::ZERO, Instant::elapsed);
        let now = elapsed.as_micros() as u64 + 1;
        // Relaxed: only how often is looked.
        let last = self.looked.load(Ordering::Relaxed);
        let is_due = last == 0 || now >= last + LOOK.as_micros() as u64;
        if is_due {
            self.looked.store(now, Ordering::Relaxed);
        }
        is_due
    }
}

impl Link {
    /// How the peer's process ended, if that ended the link, and is known; may wait for its end.
    #[cold]
    pub(crate) fn ended(&self) -> Option<Ended> {
        match self.origin.is_forked() {
            true => None,
            false => self.ending.how(self.fault.get().is_some()),
        }
    }

    /// As [`ended`](Self::ended), as far as is known at once.
    #[cold]
    pub(crate) fn ended_by_now(&self) -> Option<Ended> {
        let ending = &self.ending;
        if self.origin.is_forked() || ending.since.get().is_none() {
            return None;
        }
        // Asked with each message that is not sent.
        match ending.is_look_due() {
            true => ending.ended(Duration::ZERO, self.fault.get().is_some()),
            false => ending.known(),
        }
    }
}

impl Node {
    /// Has the quiet thread see how a process ends whose link ended without a word.
    pub(super) fn watch_end(&self, link: &Link) {
        // SYNC(quits): Acquire; pairs with Release in `stop`.
        if self.quits.load(Ordering::Acquire) {
            return;
        }
        // Relaxed: only its uniqueness matters.
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let Some(dying) = Dying::of(link, token) else {
            return;
        };
        let mut all = lock(&self.dying);
        // One that lived on when another link of it ended is watched for this one; and if there are too many, the
        // first lives on, as it seems.
        // (A process of another PID namespace has no number here.)
        let is_same = |other: &Dying| other.pid == dying.pid && dying.pid != 0;
        let same = all.iter().position(is_same);
        let other = same.or((all.len() >= MOST_DYING).then_some(0));
        let other = other.and_then(|at| all.remove(at));
        other.inspect(|other| other.unwatch(&self.epoll));
        if self.epoll.add(dying.as_fd(), token).is_ok() {
            all.push_back(dying);
        }
    }

    /// Looks away from processes that live on though their links have ended, or that the kernel takes its time for; says
    /// when to look again.
    pub(super) fn late_ends(&self) -> Option<Duration> {
        let mut all = lock(&self.dying);
        let mut late = Vec::new();
        while all.front().is_some_and(Dying::is_late) {
            late.extend(all.pop_front());
        }
        let more = (!all.is_empty()).then_some(LATE / 10);
        drop(all);
        late.iter().for_each(|dying| self.tell_of_end(dying));
        more
    }

    fn tell_of_end(&self, dying: &Dying) {
        dying.unwatch(&self.epoll);
        if let Some(killed) = dying.killed() {
            self.report(dying.pid(), killed.to_string());
        }
    }

    /// A process has ended whose link did before.
    pub(super) fn bury(&self, token: u64) {
        let mut all = lock(&self.dying);
        let at = all.iter().position(|dying| dying.token() == token);
        let dying = at.and_then(|at| all.remove(at));
        drop(all);
        dying.iter().for_each(|dying| self.tell_of_end(dying));
    }

    /// Whether all there was is an inherited link, and that has ended.
    pub(crate) fn is_cut_off(&self) -> bool {
        matches!(self.reach, Reach::Inherited) && self.all_links().is_empty()
    }

    /// Why an inherited link has ended, where that is a fault of the peer's.
    pub(crate) fn cut_off_by(&self) -> Option<ConnectError> {
        let links: Vec<_> = lock(&self.links).values().cloned().collect();
        let mut faults = links.iter().filter_map(|l| Some((l.pid(), l.fault()?)));
        // In this order: a link is forgotten behind having said how it ended.
        let (pid, fault) = faults.next().or_else(|| self.cut_off.get().cloned())?;
        let (fault, ended) = (Some(fault), None);
        Some(ConnectError::Lost { pid, fault, ended })
    }
}

/// A process whose link ended without a word.
pub(super) struct Dying {
    token: u64,
    pid: u32,
    process: Arc<Process>,
    ending: Ending,
}

impl Dying {
    /// The one at the other end of a link; `None` where it said that it ends the link, or is not known.
    pub(super) fn of(link: &Link, token: u64) -> Option<Dying> {
        let ending = link.ending.clone();
        let process = ending.process.get()?.clone();
        let pid = link.pid();
        // Of a stranger it matters to nobody.
        (!ending.has_said_bye() && link.has_said_hello()).then_some(Dying {
            token,
            pid,
            process,
            ending,
        })
    }

    /// Whether its end would have nothing to do with that of its link.
    fn is_late(&self) -> bool {
        let since = self.ending.since.get();
        since.is_none_or(|since| since.elapsed() > LATE)
    }

    pub(super) fn token(&self) -> u64 {
        self.token
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    pub(super) fn unwatch(&self, epoll: &Epoll) {
        epoll.remove(self.as_fd());
    }

    /// How a signal ended it, and with it the link.
    pub(super) fn killed(&self) -> Option<Ended> {
        if self.ending.has_said_bye() || self.is_late() {
            return None;
        }
        self.ending
            .ended(Duration::ZERO, false)
            .filter(|ended| ended.is_killed())
    }
}
