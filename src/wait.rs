//! How a thread waits for a word to change in somebody else's memory.
//!
//! A sleeper sleeps on a *bell*: a word in its own arena, which only threads of its own process
//! write. A peer cannot change it, but the kernel lets it wake those who sleep on it.
//!
//! # Why no wake is lost
//!
//! The sleeper (1) makes the bell odd, (2) asks its peers to be rung, (3) passes a full barrier,
//! (4) looks at everything it waits for once more, (5) sleeps in the kernel while the bell still
//! has that odd value.
//! The ringer (a) publishes, (b) passes a barrier, (c) looks at the bell, (d) if it is odd, wakes.
//!
//! By the barriers of (3) and (b), either the look (4) finds what was published, or the look (c)
//! finds the bell odd. In the second case (d) finds the sleeper in the kernel, or finds nobody:
//! then it is not there yet, or awake already. The bell still having the same odd value, the ringer
//! sends a control message over the link, and the sleeper's own quiet thread makes the bell even
//! and wakes it: a change that (5) cannot miss. So no word needs to be written by two processes,
//! and no forged value can put anybody to sleep.
//!
//! # Why one ring for each asking is enough
//!
//! A peer rings once for each time it is asked (`attend`, `starving`), and it may come late: for
//! something that the sleeper has found by itself before it asked. Were the bell still even then,
//! that ring would be gone, and none would come for what is published next. But the asking is
//! written after (1) with Release. Who reads it finds the bell odd, and wakes: too early at worst,
//! and then the sleeper asks anew.

#[cfg(all(test, loom))]
mod models;

pub(crate) mod attend;
#[cfg(not(loom))]
pub(crate) mod block;
#[cfg(not(loom))]
pub(crate) mod rings;
#[cfg(not(loom))]
pub(crate) mod sources;
#[cfg(not(loom))]
pub(crate) mod tasks;

use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::{OnceLock, Weak};
use std::time::{Duration, Instant};

#[cfg(not(loom))]
use tasks::{Drive, Due};

use crate::memory::arena::Block;
use crate::memory::layout::{Bell, SegmentRef, SenderBlock};
use crate::memory::shared::Shared;
use crate::sync::{AtomicBool, Ordering, fence, heavy_barrier, load_acquire_u32};
use crate::sys::futex;

/// How a port waits while there is nothing for it.
///
/// # Examples
///
/// ```
/// use shmbus::{Bus, Config, Wait};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = Config { wait: Wait::Park, ..Config::default() }.open("doc-wait")?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Polls without ever sleeping: the shortest latency, for one whole core.
    Spin,
    /// Polls some microseconds, then sleeps until it is woken.
    #[default]
    Adaptive,
    /// Sleeps at once: no time of a core is spent on waiting.
    Park,
}

/// Who waits at a bell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    Thread,
    Tasks,
}

/// Carries the message that a bell should be rung, where no thread was found that sleeps on it.
pub(crate) trait Post: Send + Sync {
    /// Has the peer's quiet thread ring its bell of this number.
    fn ring(&self, bell: u32);

    /// Has the peer drive the port of tasks that has this bell.
    fn ring_tasks(&self, bell: u32);
}

/// Wakes those of a peer who wait at a bell.
pub(crate) struct Ringer {
    bell: Shared<Bell>,
    id: u32,
    waiter: Waiter,
    post: Arc<dyn Post>,
}

impl Ringer {
    /// A ringer for a peer's bell, which lies in its memory and has this number there.
    pub(crate) fn new(bell: Shared<Bell>, id: u32, waiter: Waiter, post: Arc<dyn Post>) -> Ringer {
        Ringer {
            bell,
            id,
            waiter,
            post,
        }
    }

    /// Wakes who waits there, if anybody does. A full barrier stands before this.
    #[cold]
    pub(crate) fn ring(&self) {
        if self.waiter == Waiter::Tasks {
            return self.post.ring_tasks(self.id);
        }
        let word = load_acquire_u32(&self.bell.word);
        if word % 2 == 1
            && !futex::wake(&self.bell.word)
            && load_acquire_u32(&self.bell.word) == word
        {
            self.post.ring(self.id);
        }
    }
}

/// One place to sleep, for one thread at a time; or where the tasks of one port wait.
pub(crate) struct Sleeper {
    bell: Shared<Bell>,
    id: u32,
    waiter: Waiter,
    poked: AtomicBool,
    /// How long it sleeps at a time, where a peer might keep a wake-up from it.
    longest: Option<Duration>,
    /// The port whose tasks wait here, once it stands.
    #[cfg(not(loom))]
    tasks: OnceLock<(Weak<dyn Drive>, Arc<Due>)>,
}

impl Sleeper {
    /// A bell of our own, and the number by which peers name it.
    pub(crate) fn new(bell: Shared<Bell>, id: u32, waiter: Waiter) -> Sleeper {
        Sleeper {
            bell,
            id,
            waiter,
            poked: AtomicBool::new(false),
            longest: None,
            #[cfg(not(loom))]
            tasks: OnceLock::new(),
        }
    }

    /// Has it sleep for at most so long at a time.
    pub(crate) fn with_longest(self, longest: Option<Duration>) -> Sleeper {
        Sleeper { longest, ..self }
    }

    /// Says which port's tasks wait here: it is driven from now on where a sleeper is woken.
    #[cfg(not(loom))]
    pub(crate) fn attach(&self, port: Weak<dyn Drive>, due: Arc<Due>) {
        let _ = self.tasks.set((port, due));
    }

    /// Drives the port whose tasks wait here, on this thread, which holds no lock of any port.
    #[cfg(not(loom))]
    pub(crate) fn drive(&self) {
        let Some((port, due)) = self.tasks.get() else {
            // A peer's mistake, or its ring came before the port stands, which looks by itself then.
            return self.rouse();
        };
        if port.upgrade().is_some_and(|port| port.drive()) {
            due.push(port.clone());
        }
    }

    /// A bell on the heap: a clone of it stands for what peers see.
    #[cfg(all(test, loom))]
    pub(crate) fn heap(bell: Shared<Bell>) -> Sleeper {
        Sleeper {
            bell,
            id: 0,
            waiter: Waiter::Thread,
            poked: AtomicBool::new(false),
            longest: None,
        }
    }

    /// The number by which peers name it.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Who waits here.
    pub(crate) fn waiter(&self) -> Waiter {
        self.waiter
    }

    /// Where the bell lies.
    pub(crate) fn place(&self) -> SegmentRef {
        self.block().reference(0, size_of::<Bell>())
    }

    /// What the bell lies in.
    pub(crate) fn block(&self) -> &Arc<Block> {
        self.bell.block().expect("a sleeper's bell is its own")
    }

    /// Sleeps until it is rung or poked, unless `look` finds that there is no need to. It may wake without a reason.
    ///
    /// `ask` asks peers to be rung, by a store with Release. It returns whether one of them uses the
    /// cheap half of a barrier.
    #[cold]
    pub(crate) fn sleep<C>(
        &self,
        timeout: Option<Duration>,
        caller: &mut C,
        ask: impl FnOnce(&mut C) -> bool,
        look: impl FnOnce(&mut C) -> bool,
    ) {
        let odd = self.prepare();
        let asymmetric = ask(caller);
        heavy_barrier(asymmetric);
        if !look(caller) {
            let timeout = timeout.into_iter().chain(self.longest).min();
            futex::wait(&self.bell.word, odd, timeout);
        }
        self.awake(odd);
    }

    /// Sleeps until the receiver of a lane hands something back, unless `look` finds that it did.
    #[cold]
    pub(crate) fn sleep_for_room<C>(
        &self,
        block: &SenderBlock,
        timeout: Option<Duration>,
        caller: &mut C,
        look: impl FnOnce(&mut C) -> bool,
    ) {
        let starving = &block.starving;
        // Relaxed: our own word.
        let number = starving.load(Ordering::Relaxed) | 1;
        let ask = |_: &mut C| {
            // SYNC(starving): Release; pairs with Acquire in `HandBack::flip`, which passes a full
            // fence by itself.
            starving.store(number, Ordering::Release);
            false
        };
        self.sleep(timeout, caller, ask, look);
        // Relaxed: a receiver that still finds the old number rings once too often.
        starving.store(number.wrapping_add(1), Ordering::Relaxed);
    }

    /// Says that this thread is about to sleep.
    fn prepare(&self) -> u32 {
        // Relaxed: the barrier in `sleep` orders this before the look, and the Release of what is
        // asked before the asking. The word only ever counts up by threads of this process, and
        // wraps: only its parity and equality are used.
        let word = self.bell.word.load(Ordering::Relaxed);
        let odd = word | 1;
        self.bell.word.store(odd, Ordering::Relaxed);
        odd
    }

    /// Says that this thread is awake.
    fn awake(&self, odd: u32) {
        let even = odd.wrapping_add(1);
        // Relaxed: whoever finds it odd still wakes nobody, which is harmless.
        let _ = self
            .bell
            .word
            .compare_exchange(odd, even, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Wakes the sleeper from another thread of this process, and has it look around.
    pub(crate) fn poke(&self) {
        // SYNC(poke): Release; pairs with Acquire in `take_poke`.
        self.poked.store(true, Ordering::Release);
        self.rouse();
    }

    /// Wakes the sleeper, for a peer that found nobody in the kernel.
    pub(crate) fn rouse(&self) {
        // SYNC(poke): either the look of who waits, after its barrier, sees the poke, or we see that it
        // waits: its bell odd, or its port attached.
        fence(Ordering::SeqCst);
        #[cfg(not(loom))]
        if let Some((port, due)) = self.tasks.get() {
            due.push(port.clone());
            return;
        }
        let word = self.bell.word.load(Ordering::Relaxed);
        if word % 2 == 1 {
            self.awake(word);
            futex::wake(&self.bell.word);
        }
    }

    /// Whether there was a poke since the last call.
    #[inline]
    pub(crate) fn take_poke(&self) -> bool {
        // SYNC(poke): Acquire; pairs with Release in `poke`.
        self.poked.load(Ordering::Relaxed) && self.poked.swap(false, Ordering::Acquire)
    }

    /// Whether a poke waits to be taken.
    #[inline]
    pub(crate) fn is_poked(&self) -> bool {
        self.poked.load(Ordering::Acquire)
    }
}

/// What a waiting loop does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Look again.
    Again,
    /// Sleep, at most so long.
    Sleep(Option<Duration>),
    /// The time is up.
    TimeUp,
}

/// How long a waiting loop has polled, and what it does next.
pub(crate) struct Patience {
    wait: Wait,
    deadline: Option<Instant>,
    polls: u32,
}

impl Patience {
    /// Adaptive waiting polls about as long as waking a sleeper costs.
    const ADAPTIVE_POLLS: u32 = 4_000;
    const SETTLED_POLLS: u32 = 32;
    /// The first polls follow each other at once: the answer may be a cache line away.
    const EAGER_POLLS: u32 = 256;

    pub(crate) fn new(wait: Wait, deadline: Option<Instant>) -> Patience {
        Patience {
            wait,
            deadline,
            polls: 0,
        }
    }

    /// Called after each look that found nothing.
    #[inline]
    pub(crate) fn step(&mut self) -> Step {
        self.polls = self.polls.wrapping_add(1);
        match self.wait {
            Wait::Spin => {}
            Wait::Adaptive if self.polls < Self::ADAPTIVE_POLLS => {}
            Wait::Adaptive | Wait::Park => return self.sleep(),
        }
        if self.polls > Self::EAGER_POLLS {
            std::hint::spin_loop();
        }
        if self.polls % 128 == 0 && self.deadline.is_some_and(|d| Instant::now() >= d) {
            return Step::TimeUp;
        }
        Step::Again
    }

    /// True once, after some looks in vain: what can be put off for a moment is due now.
    #[inline]
    pub(crate) fn has_settled(&self) -> bool {
        self.polls == Self::SETTLED_POLLS
    }

    #[cold]
    fn sleep(&self) -> Step {
        let Some(deadline) = self.deadline else {
            return Step::Sleep(None);
        };
        match deadline.checked_duration_since(Instant::now()) {
            None | Some(Duration::ZERO) => Step::TimeUp,
            left => Step::Sleep(left),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// As where whoever may ring the bell does not, and another one sleeps on it.
    #[test]
    fn a_sleeper_whom_nobody_wakes_looks_around_by_itself() {
        let bell = Shared::heap(Bell::new());
        let sleeper = Sleeper::new(bell, 0, Waiter::Thread);
        let sleeper = sleeper.with_longest(Some(Duration::from_millis(1)));
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            for timeout in [None, Some(Duration::from_secs(1_000))] {
                sleeper.sleep(timeout, &mut (), |()| false, |()| false);
            }
            done.send(())
        });
        is_done
            .recv_timeout(Duration::from_secs(60))
            .expect("it wakes");
    }
}
