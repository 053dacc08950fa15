//! What the kernel says of a process.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::Result;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

/// How many descriptors this process has, beside the one with which it looks.
pub fn descriptors() -> Result<u64> {
    Ok(fs::read_dir("/proc/self/fd")?.count() as u64 - 1)
}

/// What the descriptors of a process are of.
pub fn files_of(pid: u32) -> Vec<String> {
    let all = fs::read_dir(format!("/proc/{pid}/fd"));
    let files = all.into_iter().flatten().flatten();
    let links = files.map(|file| fs::read_link(file.path()));
    links.flatten().map(|to| to.display().to_string()).collect()
}

/// A memory file of a bus that a process has mapped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mapped {
    pub inode: u64,
    /// It is the process's own.
    pub is_writable: bool,
}

/// The memory files that a process has mapped.
pub fn memory_files(pid: &str) -> Result<BTreeSet<Mapped>> {
    let maps = fs::read_to_string(Path::new("/proc").join(pid).join("maps"))?;
    let of_bus = maps.lines().filter(|line| line.contains("/memfd:shmbus"));
    let parsed = of_bus.filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_writable = words.nth(1)?.starts_with("rw");
        let inode = words.nth(2)?.parse().ok()?;
        Some(Mapped { inode, is_writable })
    });
    Ok(parsed.collect())
}

/// What the kernel says of the tasks of a process.
pub fn tasks(pid: u64) -> String {
    let mut text = String::new();
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        text += &format!(
            "  task {} ({}): wchan {}, syscall {}\n{}",
            task.file_name().to_string_lossy(),
            read("comm").trim(),
            read("wchan").trim(),
            read("syscall").trim(),
            read("stack")
        );
    }
    text
}

/// Where a process is that does not go on.
pub fn dump(pid: u64) -> String {
    let mut text = tasks(pid);
    let debugger = Command::new("gdb")
        .args(["-p", &pid.to_string(), "-batch"])
        .args(["-ex", "set pagination off", "-ex", "thread apply all bt 25"])
        .output();
    if let Ok(output) = debugger {
        text += &String::from_utf8_lossy(&output.stdout);
    }
    text
}

/// Sets the times of a file, which may be gone by now.
pub fn set_time(path: &Path, time: SystemTime) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let time = Timespec {
        tv_sec: since.map_or(0, |since| since.as_secs() as i64),
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let _ = utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
}
