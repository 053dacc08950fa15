//! What `futex(2)` promises, for the model checker: see `futex` for the calls themselves.
//!
//! One lock stands for the kernel's lock of a word's queue. Under it, a waiter compares the word and
//! joins the queue in one step, and a wake empties the queue and counts. Time never runs out and no
//! signal comes, so whoever is not woken sleeps for good: loom reports that as a deadlock.

use std::time::Duration;

use loom::sync::{Condvar, Mutex};

use crate::sync::{AtomicU32, Ordering};

#[derive(Default)]
struct Queue {
    /// The word that each sleeper sleeps on, by the number of its sleep.
    asleep: Vec<(u64, *const AtomicU32)>,
    sleeps: u64,
}
// SAFETY: the addresses are compared, and never followed.
unsafe impl Send for Queue {}

loom::lazy_static! {
    static ref QUEUE: Mutex<Queue> = Mutex::new(Queue::default());
    static ref WOKEN: Condvar = Condvar::new();
}

/// Sleeps while the word holds `expected`.
pub(crate) fn wait(word: &AtomicU32, expected: u32, _: Option<Duration>) {
    let mut queue = QUEUE.lock().expect("no model panics with it");
    // Relaxed: the kernel's look promises no more.
    if word.load(Ordering::Relaxed) != expected {
        return;
    }
    let number = queue.sleeps;
    queue.sleeps += 1;
    queue.asleep.push((number, word));
    while queue.asleep.iter().any(|(n, _)| *n == number) {
        queue = WOKEN.wait(queue).expect("no model panics with it");
    }
}

/// Wakes all that sleep on the word, and says whether there was one.
pub(crate) fn wake(word: &AtomicU32) -> bool {
    let mut queue = QUEUE.lock().expect("no model panics with it");
    let before = queue.asleep.len();
    queue.asleep.retain(|(_, w)| !std::ptr::eq(*w, word));
    let any = queue.asleep.len() < before;
    if any {
        WOKEN.notify_all();
    }
    any
}
