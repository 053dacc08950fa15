//! Steps through an operation once, to know which instructions it has and which of them store where others see it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::Result;

use crate::page::{Page, Phase};
use crate::tracer::{Stop, Thread};
use crate::watcher::Watcher;

/// More instructions than any operation has.
const MOST: usize = 400_000;
/// Shared memory that is compared after each instruction, in bytes.
const COMPARED: usize = 2 << 20;
/// Of stores of one instruction, so many are of interest by themselves.
const FEW: usize = 8;

/// What one run of an operation did.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Each instruction, from the start of the program; `None` of those of libraries.
    pub at: Vec<Option<u64>>,
    /// After how many instructions it slept.
    pub slept: Vec<usize>,
    /// Those behind which shared memory was another than before.
    pub stores: Vec<usize>,
}

impl Trace {
    /// Of the stores, those that are of interest by themselves: of each instruction the first ones and the last.
    pub fn edges(&self) -> Vec<usize> {
        let place = |store: usize| self.at.get(store.wrapping_sub(1)).copied().flatten();
        let mut of_each: HashMap<_, Vec<usize>> = HashMap::new();
        for &store in &self.stores {
            of_each.entry(place(store)).or_default().push(store);
        }
        let mut edges = Vec::new();
        for stores in of_each.into_values() {
            let last = stores.len().saturating_sub(FEW).max(FEW.min(stores.len()));
            edges.extend(stores.iter().take(FEW));
            edges.extend(&stores[last..]);
        }
        edges.sort_unstable();
        edges
    }
}

/// The memory that a child shares with others, as it was after the last instruction.
struct Shared {
    memory: File,
    ranges: Vec<(u64, Vec<u8>)>,
    now: Vec<u8>,
}

impl Shared {
    fn of(pid: i32) -> Result<Shared> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let mut ranges = Vec::new();
        let mut left = COMPARED;
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (Some(range), Some(rights)) = (words.next(), words.next()) else {
                continue;
            };
            let is_page = line.contains("crash-points");
            let Some((start, end)) = range
                .split_once('-')
                .filter(|_| rights == "rw-s" && !is_page)
            else {
                continue;
            };
            let (start, end) = (
                u64::from_str_radix(start, 16)?,
                u64::from_str_radix(end, 16)?,
            );
            let len = ((end - start) as usize).min(left);
            left -= len;
            ranges.push((start, vec![0; len]));
        }
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let now = Vec::new();
        let mut shared = Shared {
            memory,
            ranges,
            now,
        };
        shared.has_changed();
        Ok(shared)
    }

    fn has_changed(&mut self) -> bool {
        let mut changed = false;
        for (start, before) in &mut self.ranges {
            self.now.resize(before.len(), 0);
            // What is mapped no more has not changed.
            let is_there = self.memory.read_exact_at(&mut self.now, *start).is_ok();
            if is_there && *before != self.now {
                changed = true;
                std::mem::swap(before, &mut self.now);
            }
        }
        changed
    }
}

/// Steps a thread through its whole operation.
pub fn record(thread: &Thread<'_>, pid: i32, page: &Page, watcher: &Watcher) -> Result<Trace> {
    let mut shared = Shared::of(pid)?;
    let mut trace = Trace::default();
    while page.phase() != Phase::Ended && trace.at.len() < MOST {
        let at = thread.at()?;
        let slept = watcher.slept();
        if thread.step()? != Stop::Trapped {
            break;
        }
        if watcher.slept() > slept {
            trace.slept.push(trace.at.len());
        }
        trace.at.push(at);
        if shared.has_changed() {
            trace.stores.push(trace.at.len());
        }
    }
    Ok(trace)
}
