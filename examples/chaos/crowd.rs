//! The processes that take part, and what is done to them.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::ledger::{Ledger, now};
use crate::process;
use crate::worker::BUS;

/// Who does nothing for so long hangs.
const HANG: Duration = Duration::from_secs(20);
/// A killed process that the kernel takes so long for is what others may wait for: its sockets are closed only then.
const LONG_DEATH: Duration = Duration::from_secs(10);

/// What was done to the processes of one place.
#[derive(Clone, Copy, Default)]
pub struct Done {
    pub instances: u64,
    pub kills: u64,
    pub stops: u64,
}

struct Member {
    child: Child,
    instance: u64,
    /// Until when it is stopped.
    stopped: Option<Instant>,
    /// What it had done when that last changed.
    progress: (u64, Instant),
    has_left: bool,
}

/// See the module.
pub struct Crowd {
    pub ledger: &'static Ledger,
    directory: PathBuf,
    log: File,
    members: Vec<Member>,
    /// Those that were killed, and are not gone yet.
    dying: Vec<(Child, Instant)>,
    /// The longest that one took to be gone.
    pub longest_death: Duration,
    pub done: Vec<Done>,
}

impl Crowd {
    /// Starts so many processes.
    pub fn start(ledger: &'static Ledger, directory: &Path, processes: usize) -> Result<Crowd> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(directory.join("log"))?;
        let mut crowd = Crowd {
            ledger,
            directory: directory.to_owned(),
            log,
            members: Vec::new(),
            dying: Vec::new(),
            longest_death: Duration::ZERO,
            done: vec![Done::default(); processes],
        };
        for slot in 0..processes {
            let member = crowd.begin(slot)?;
            crowd.members.push(member);
        }
        Ok(crowd)
    }

    pub fn bus(&self) -> PathBuf {
        self.directory.join("shmbus").join(BUS)
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .env("XDG_RUNTIME_DIR", &self.directory)
            .env("RUST_BACKTRACE", "1")
            .stderr(self.log.try_clone()?);
        Ok(command)
    }

    /// Has somebody come who was not there, and leave.
    pub fn visit(&self) -> Result<ExitStatus> {
        Ok(self.command()?.arg("--visit").status()?)
    }

    fn begin(&mut self, slot: usize) -> Result<Member> {
        let number = self.ledger.instances_used.add(1);
        let instance = self.ledger.instance(number);
        instance.slot.set(slot as u64);
        instance.began.set(now());
        let words = &self.ledger.slots[slot];
        words.instance.set(number);
        words.order.set(0);
        words.is_bare.set(0);
        let child = self
            .command()?
            .args(["--slot", &slot.to_string()])
            .args(["--instance", &number.to_string()])
            .arg("--directory")
            .arg(&self.directory)
            .spawn()
            .context("cannot start a process")?;
        instance.pid.set(u64::from(child.id()));
        self.done[slot].instances += 1;
        Ok(Member {
            child,
            instance: number,
            stopped: None,
            progress: (words.progress.get(), Instant::now()),
            has_left: false,
        })
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn pid(&self, slot: usize) -> u32 {
        self.members[slot].child.id()
    }

    fn signal(&self, slot: usize, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.members[slot].child);
        Ok(kill_process(pid, signal)?)
    }

    /// Kills the process in this place where it stands, and starts another: at once, not when it is gone, since the
    /// kernel may take its time for that.
    pub fn kill(&mut self, slot: usize) -> Result<()> {
        // Before others can know of it.
        let instance = self.members[slot].instance;
        self.ledger.instance(instance).ended.set(now());
        self.signal(slot, Signal::KILL)?;
        self.done[slot].kills += 1;
        let next = self.begin(slot)?;
        let killed = std::mem::replace(&mut self.members[slot], next);
        self.dying.push((killed.child, Instant::now()));
        Ok(())
    }

    /// Looks which of the killed are gone; returns how many are not.
    pub fn bury(&mut self) -> Result<usize> {
        for n in (0..self.dying.len()).rev() {
            let (child, killed) = &mut self.dying[n];
            if child.try_wait()?.is_some() {
                self.longest_death = self.longest_death.max(killed.elapsed());
                self.dying.swap_remove(n);
            }
        }
        Ok(self.dying.len())
    }

    /// Stops the process in this place where it stands, for a while.
    pub fn stop(&mut self, slot: usize, time: Duration) -> Result<()> {
        if self.members[slot].stopped.is_none() {
            self.signal(slot, Signal::STOP)?;
            self.members[slot].stopped = Some(Instant::now() + time);
            self.done[slot].stops += 1;
        }
        Ok(())
    }

    /// Has those go on whose time is over, or all.
    pub fn go_on(&mut self, all: bool) -> Result<()> {
        for slot in 0..self.members.len() {
            let until = self.members[slot].stopped;
            if until.is_some_and(|until| all || Instant::now() >= until) {
                self.signal(slot, Signal::CONT)?;
                self.members[slot].stopped = None;
                self.members[slot].progress.1 = Instant::now();
            }
        }
        Ok(())
    }

    /// Those that ended by themselves, as nobody is to.
    pub fn fallen(&mut self) -> Result<Vec<String>> {
        let mut fallen = Vec::new();
        for (slot, member) in self.members.iter_mut().enumerate() {
            if member.has_left {
                continue;
            }
            if let Some(status) = member.child.try_wait()? {
                member.has_left = true;
                fallen.push(format!(
                    "instance {} in place {slot} ended: {status}",
                    member.instance
                ));
            }
        }
        Ok(fallen)
    }

    /// Those that do nothing, and where they are.
    pub fn hanging(&mut self) -> Vec<String> {
        let mut hanging = Vec::new();
        let mut others = Vec::new();
        let is_long = |(_, killed): &(Child, Instant)| killed.elapsed() > LONG_DEATH;
        let waits = self.dying.iter().any(is_long);
        for (slot, member) in self.members.iter_mut().enumerate() {
            let progress = self.ledger.slots[slot].progress.get();
            if progress != member.progress.0 || member.stopped.is_some() || waits {
                member.progress = (progress, Instant::now());
            } else if member.progress.1.elapsed() > HANG {
                hanging.push(describe(slot, member));
            } else {
                let idle = member.progress.1.elapsed();
                others.push(format!(
                    "instance {} in place {slot}: idle for {idle:?}",
                    member.instance
                ));
            }
        }
        if !hanging.is_empty() {
            hanging.extend(others);
            hanging.extend(self.dying.iter().map(|(child, killed)| {
                let dump = process::tasks(u64::from(child.id()));
                format!(
                    "process {} was killed {:?} ago:\n{dump}",
                    child.id(),
                    killed.elapsed()
                )
            }));
        }
        hanging
    }

    /// Where a process is.
    pub fn whereabouts(&self, slot: usize) -> String {
        describe(slot, &self.members[slot])
    }

    /// Waits for the end of a process that was told to leave.
    pub fn wait_for(&mut self, slot: usize, time: Duration) -> Result<Option<ExitStatus>> {
        let start = Instant::now();
        let member = &mut self.members[slot];
        loop {
            if let Some(status) = member.child.try_wait()? {
                member.has_left = true;
                self.ledger.instance(member.instance).ended.set(now());
                return Ok(Some(status));
            }
            if start.elapsed() > time {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn has_left(&self, slot: usize) -> bool {
        self.members[slot].has_left
    }

    /// What is in the directory of the bus.
    pub fn files(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.bus())
            .into_iter()
            .flatten()
            .flatten();
        files.map(|file| file.path()).collect()
    }

    /// Gives a file of the bus a time that a clock would give it that is wrong.
    pub fn touch(&self, rng: &mut fastrand::Rng) {
        let files = self.files();
        if !files.is_empty() {
            set_wrong(&files[rng.usize(..files.len())], rng);
        }
    }
}

/// Gives a file the time of a clock that is wrong.
pub fn set_wrong(file: &Path, rng: &mut fastrand::Rng) {
    let hours = Duration::from_secs(3600 * rng.u64(1..1000));
    let time = match rng.bool() {
        true => SystemTime::now() + hours,
        false => SystemTime::now() - hours,
    };
    process::set_time(file, time);
}

fn describe(slot: usize, member: &Member) -> String {
    let pid = u64::from(member.child.id());
    format!(
        "instance {} in place {slot}, process {pid}, hangs:\n{}",
        member.instance,
        process::dump(pid)
    )
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let members = self.members.iter_mut().map(|member| &mut member.child);
        let dying = self.dying.iter_mut().map(|(child, _)| child);
        members.chain(dying).for_each(|child| {
            let _ = child.kill();
            let _ = child.wait();
        });
    }
}
