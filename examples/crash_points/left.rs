//! What is left of the dead: in the survivor's process, and in the directory of the bus.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::operation::BUS;
use crate::survivor::Survivor;

/// What a survivor has of this process's resources.
#[derive(Clone, Debug)]
pub struct Resources {
    /// Of each bus: the bytes in use.
    used: Vec<u64>,
    descriptors: usize,
    /// Mappings of memory files.
    mapped: usize,
}

impl Resources {
    /// What it has now.
    pub fn of(survivor: &dyn Survivor) -> Result<Resources> {
        let maps = fs::read_to_string("/proc/self/maps")?;
        Ok(Resources {
            used: survivor.buses().iter().map(|bus| bus.memory().1).collect(),
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            mapped: maps.lines().filter(|line| line.contains("/memfd:")).count(),
        })
    }

    /// Whether that is no more than it had.
    pub fn is_within(&self, most: &Resources) -> bool {
        self.used
            .iter()
            .zip(&most.used)
            .all(|(used, most)| used <= most)
            && self.descriptors <= most.descriptors
            && self.mapped <= most.mapped
    }
}

/// What each thread of a process does: its name, its state, its system call, where that waits, and for how many
/// nanoseconds it has run, and has waited for a processor.
pub fn threads(pid: u32) -> Result<String> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let read = |file| fs::read_to_string(task.as_ref().map(|t| t.path().join(file)).ok()?).ok();
        let files = ["comm", "stat", "syscall", "wchan", "schedstat"];
        let words = files.map(|file| read(file).unwrap_or_default());
        let [name, stat, call, wait, ran] = words.each_ref().map(|word| word.trim_end());
        let state = stat.rsplit_once(") ").map_or("", |(_, state)| &state[..1]);
        found.push(format!("{name} {state}, call {call}, in {wait}, ran {ran}"));
    }
    Ok(found.join("; "))
}

/// The directory of the bus.
fn directory() -> Result<PathBuf> {
    let root = std::env::var_os("XDG_RUNTIME_DIR").context("no XDG_RUNTIME_DIR")?;
    Ok(PathBuf::from(root).join("shmbus").join(BUS))
}

/// What the directory of the bus is left with when nobody has it open.
pub fn leftovers() -> Result<Vec<PathBuf>> {
    match fs::read_dir(directory()?) {
        Err(_) => Ok(Vec::new()),
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
    }
}

/// Removes the socket of a child that is dead. The bus does so, too, but not before some seconds have passed: until
/// then thousands of children would leave thousands of them, and each look at the directory take as long.
pub fn remove_socket(pid: i32) -> Result<()> {
    let of_it = format!("node-{pid}-");
    for entry in fs::read_dir(directory()?)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&of_it) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
