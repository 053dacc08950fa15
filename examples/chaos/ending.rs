//! The end: what was begun arrives, and nothing is left.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::audit::{Audit, audit};
use crate::crowd::{Crowd, set_wrong};
use crate::ledger::{Slot, order, phase};
use crate::process::{self, Mapped};

/// What a bus makes when it is first needed, and keeps: the socket on which it is reached, what watches the directory,
/// and what stands for either in a set. Segments without a block in use are kept, too.
const MADE_ONCE: u64 = 4;
/// How long anything may take to arrive.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the kernel may take to clear up behind a kill, for which no peer has to wait.
const CLEARS: Duration = Duration::from_secs(300);
/// What links may need that have no lane any more: a doorbell for each port of a peer's.
const OF_LINKS: u64 = 4096;

/// Ends everything in order; what was not kept goes to `broken`.
pub fn end(crowd: &mut Crowd, rng: &mut fastrand::Rng, broken: &mut Vec<String>) -> Result<Audit> {
    crowd.go_on(true)?;
    if !broken.is_empty() || crowd.ledger.complaints.get() > 0 {
        // What is found from here on would only follow from that.
        return Ok(audit(crowd.ledger));
    }
    crowd.ledger.phase.set(phase::DRAIN);
    let start = Instant::now();
    while crowd.bury()? > 0 {
        if start.elapsed() > CLEARS {
            broken.push("a process that was killed is not gone".to_owned());
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let audited = until(|| {
        let found = audit(crowd.ledger);
        let mut open = found.broken.clone();
        open.extend(found.pending.iter().cloned());
        (open, found)
    });
    let (mut open, audited) = audited;
    broken.append(&mut open);
    broken.extend(crowd.fallen()?);
    if !broken.is_empty() {
        return Ok(audited);
    }
    crowd.ledger.phase.set(phase::CLOSE);
    let (mut open, ()) = until(|| (not_bare(crowd), ()));
    broken.append(&mut open);
    let mut order: Vec<usize> = (0..crowd.len()).collect();
    rng.shuffle(&mut order);
    let last = order[order.len() - 1];
    for slot in order {
        leave(crowd, slot, slot == last, broken)?;
    }
    sweep(crowd, rng, broken)?;
    Ok(audited)
}

/// Looks that nothing is left in the directory. A socket of one that was killed may be, for some seconds: nobody can tell
/// it from one that is being made. So time passes, on a clock that is wrong, and somebody comes and leaves.
fn sweep(crowd: &Crowd, rng: &mut fastrand::Rng, broken: &mut Vec<String>) -> Result<()> {
    let files = crowd.files();
    let is_socket = |file: &PathBuf| file.extension().is_none();
    if !files.iter().all(is_socket) {
        broken.push(format!("left in the directory of the bus: {files:?}"));
    }
    files.iter().for_each(|file| set_wrong(file, rng));
    let status = crowd.visit()?;
    if !status.success() || crowd.bus().exists() {
        let files = crowd.files();
        broken.push(format!(
            "left in the directory for good: {files:?}, {status}"
        ));
    }
    Ok(())
}

/// Looks until nothing is open any more, or for too long; returns what is.
fn until<T>(mut look: impl FnMut() -> (Vec<String>, T)) -> (Vec<String>, T) {
    let start = Instant::now();
    loop {
        let (open, found) = look();
        if open.is_empty() || start.elapsed() > PATIENCE {
            return (open, found);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What processes have that have dropped all their ports: nothing but what the living have.
fn not_bare(crowd: &Crowd) -> Vec<String> {
    let mut open = Vec::new();
    for (slot, words) in crowd.ledger.slots().iter().enumerate() {
        if words.is_bare.get() == 0 {
            open.push(crowd.whereabouts(slot));
        } else if words.memory_end.get() > words.memory_start.get() + OF_LINKS {
            open.push(too_much(slot, words));
        }
    }
    open.extend(mapped_of_nobody(crowd));
    open
}

fn too_much(slot: usize, words: &Slot) -> String {
    format!(
        "place {slot} had {} bytes in use at its start, and has {}",
        words.memory_start.get(),
        words.memory_end.get()
    )
}

/// Mapped memory of processes that are gone.
fn mapped_of_nobody(crowd: &Crowd) -> Vec<String> {
    let there = (0..crowd.len()).filter(|slot| !crowd.has_left(*slot));
    let all: Vec<(usize, BTreeSet<Mapped>)> = there
        .map(|slot| {
            let pid = crowd.pid(slot).to_string();
            (slot, process::memory_files(&pid).unwrap_or_default())
        })
        .collect();
    let owned: BTreeSet<u64> = all
        .iter()
        .flat_map(|(_, mapped)| mapped)
        .filter(|mapped| mapped.is_writable)
        .map(|mapped| mapped.inode)
        .collect();
    let mut open = Vec::new();
    for (slot, mapped) in &all {
        let nobodys = mapped
            .iter()
            .filter(|one| !owned.contains(&one.inode))
            .count();
        if nobodys > 0 {
            open.push(format!(
                "place {slot} has {nobodys} segments mapped that are nobody's"
            ));
        }
    }
    open
}

/// Has a process leave, and looks that it has nothing left.
fn leave(crowd: &mut Crowd, slot: usize, is_last: bool, broken: &mut Vec<String>) -> Result<()> {
    let words = &crowd.ledger.slots[slot];
    if is_last {
        // The last one has nobody to have a link to.
        let (mut open, ()) = until(|| {
            let files = process::files_of(crowd.pid(slot));
            let sockets = files
                .iter()
                .filter(|file| file.starts_with("socket:"))
                .count();
            let memory = files
                .iter()
                .filter(|file| file.starts_with("/memfd:"))
                .count();
            let has = (files.len() - memory) as u64;
            let had = words.fds_open.get();
            let open =
                format!("the last process had {had} descriptors at its start, and has {files:?}");
            let mut all = Vec::new();
            if has > had + MADE_ONCE || sockets > 1 {
                all.push(open);
            }
            if words.memory_end.get() > words.memory_start.get() {
                all.push(too_much(slot, words));
            }
            (all, ())
        });
        broken.append(&mut open);
    }
    words.order.set(order::LEAVE);
    match crowd.wait_for(slot, PATIENCE)? {
        Some(status) if status.success() => {}
        Some(status) => broken.push(format!("place {slot} ended: {status}")),
        None => broken.push(crowd.whereabouts(slot)),
    }
    if words.fds_end.get() != words.fds_start.get() {
        broken.push(format!(
            "place {slot} had {} descriptors at its start, and {} at its end",
            words.fds_start.get(),
            words.fds_end.get()
        ));
    }
    let (mut open, ()) = until(|| (mapped_of_nobody(crowd), ()));
    broken.append(&mut open);
    Ok(())
}
