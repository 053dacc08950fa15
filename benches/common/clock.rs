//! The clock of the benches: the processor's time stamp counter where it can be trusted, else
//! [`Instant`].
//!
//! Reading it is the only unsafe operation here, which is why this module opts in. No fence stands
//! around the read: what is timed waits for another core, and a fence would cost as much as a
//! cache line's way there.
#![allow(unsafe_code)]

use std::fs;
use std::time::{Duration, Instant};

/// How long the counter is compared with [`Instant`] to find its rate.
const CALIBRATION: Duration = Duration::from_millis(50);

/// Reads a time in ticks and converts differences to nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    counter: bool,
    origin: Instant,
    ns_per_tick: f64,
}

impl Clock {
    /// [`Instant`], for a side that measures nothing.
    pub fn uncalibrated() -> Self {
        Clock {
            counter: false,
            origin: Instant::now(),
            ns_per_tick: 1.0,
        }
    }

    /// Chooses the source and, for the counter, measures its rate.
    pub fn calibrate() -> Self {
        let mut clock = Self::uncalibrated();
        if counter_is_invariant() {
            let (ticks_before, before) = simultaneous();
            std::thread::sleep(CALIBRATION);
            let (ticks_after, after) = simultaneous();
            clock.counter = true;
            clock.ns_per_tick =
                (after - before).as_nanos() as f64 / (ticks_after - ticks_before) as f64;
        }
        clock
    }

    /// The time now, in ticks of this clock.
    #[inline]
    pub fn now(&self) -> u64 {
        if self.counter {
            counter()
        } else {
            self.origin.elapsed().as_nanos() as u64
        }
    }

    /// Nanoseconds since `start`, a result of [`now`](Self::now).
    #[inline]
    pub fn since(&self, start: u64) -> u64 {
        self.ns(self.now().saturating_sub(start))
    }

    /// Ticks as nanoseconds.
    pub fn ns(&self, ticks: u64) -> u64 {
        (ticks as f64 * self.ns_per_tick).round() as u64
    }

    /// What is read: `rdtsc` or `Instant`.
    pub fn source(&self) -> &'static str {
        if self.counter { "rdtsc" } else { "Instant" }
    }

    /// The nanoseconds that two reads in a row see pass: the median of many.
    pub fn cost(&self) -> u64 {
        let mut seen: Vec<u64> = (0..1001)
            .map(|_| {
                let start = self.now();
                self.now() - start
            })
            .collect();
        seen.sort_unstable();
        self.ns(seen[seen.len() / 2])
    }
}

/// The counter and the time at one moment: of many pairs, the one whose reads were closest.
fn simultaneous() -> (u64, Instant) {
    let pair = || {
        let before = counter();
        let now = Instant::now();
        let after = counter();
        (after - before, before + (after - before) / 2, now)
    };
    let (_, ticks, now) = (0..1000)
        .map(|_| pair())
        .min_by_key(|&(width, ..)| width)
        .unwrap_or_else(pair);
    (ticks, now)
}

/// Whether the counter runs at one rate at all times and the kernel itself trusts it.
fn counter_is_invariant() -> bool {
    let flag = |name: &str| super::report::cpu_field("flags").is_some_and(|f| f.contains(name));
    let trusted =
        fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")
            .is_ok_and(|source| matches!(source.trim(), "tsc" | "kvm-clock"));
    cfg!(target_arch = "x86_64") && flag("constant_tsc") && flag("nonstop_tsc") && trusted
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn counter() -> u64 {
    // SAFETY: `rdtsc` belongs to every x86-64 processor, and touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    0
}
