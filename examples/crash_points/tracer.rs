//! Runs one thread of a child instruction by instruction.
//!
//! An instruction that repeats itself (`rep movs`) stops after each of its rounds: so those are counted. A point that
//! is far behind the first instruction is run to: a breakpoint register of the processor, which is that
//! thread's alone, stops it shortly before, and it is stepped from there on.
//!
//! Unsafe code is needed for `ptrace`, which no safe crate here does, and for what it fills in.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::mem::{offset_of, size_of};

use anyhow::{Context, Result, bail, ensure};

use crate::page::{Page, Phase, Word};
use crate::plan::Anchor;
use crate::watcher::Watcher;

/// Why a thread stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After a step, or at a breakpoint.
    Trapped,
    /// It was woken, since there is nothing more that it would do.
    Idle,
    /// It is gone: it was killed while it slept, or since it hung.
    Dead,
}

/// How a run ended, with the thread stopped, or the child dead.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// Where it stands, from the start of the program's text.
    pub at: Option<u64>,
    /// Whether it stands where it was meant to, and the operation was not over before.
    pub reached: bool,
    /// Whether it is dead already.
    pub dead: bool,
    /// Whether it did not come by the breakpoint that it was to run to.
    pub missed: bool,
}

/// A stopped thread, which is ours alone to run.
pub struct Thread<'a> {
    pid: i32,
    tid: i32,
    page: &'a Page,
    watcher: &'a Watcher,
    /// Where the program's own code begins and ends.
    text: (u64, u64),
}

fn ptrace(request: libc::c_uint, tid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: no request that is made here has the kernel write to this process's memory.
    let done = unsafe { libc::ptrace(request, tid, address, data) };
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Where a debug register lies in what the kernel calls the user area.
fn debug_register(number: usize) -> usize {
    offset_of!(libc::user, u_debugreg) + number * size_of::<u64>()
}

/// `waitpid` of one thread.
fn wait(tid: i32) -> io::Result<i32> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a local that the kernel fills in.
        let waited = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
        if waited == tid {
            return Ok(status);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The threads of a process that have this name.
pub fn named(pid: i32, name: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        let comm = fs::read_to_string(task.path().join("comm"))?;
        if comm.trim_end() == name {
            found.push(task.file_name().to_string_lossy().parse()?);
        }
    }
    Ok(found)
}

/// Where the program's own code lies in a process.
fn text(pid: i32) -> Result<(u64, u64)> {
    let program = fs::read_link(format!("/proc/{pid}/exe"))?;
    let program = program.to_string_lossy();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let of_it = maps.lines().filter(|line| line.ends_with(&*program));
    let mut text = (u64::MAX, 0);
    for line in of_it {
        let (start, rest) = line.split_once('-').context("a line of no mapping")?;
        let (end, _) = rest.split_once(' ').context("a line of no mapping")?;
        text.0 = text.0.min(u64::from_str_radix(start, 16)?);
        text.1 = text.1.max(u64::from_str_radix(end, 16)?);
    }
    ensure!(text.0 < text.1, "{program} is not mapped");
    Ok(text)
}

impl<'a> Thread<'a> {
    /// Stops a thread of a child, which is then killed with the harness.
    pub fn seize(pid: i32, tid: i32, page: &'a Page, watcher: &'a Watcher) -> Result<Thread<'a>> {
        let text = text(pid)?;
        let exit_kill = libc::PTRACE_O_EXITKILL as usize;
        ptrace(libc::PTRACE_SEIZE, tid, 0, exit_kill).context("the child cannot be traced")?;
        ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0)?;
        let status = wait(tid)?;
        ensure!(libc::WIFSTOPPED(status), "the child ended: {status:#x}");
        watcher.watch(pid, tid);
        Ok(Thread {
            pid,
            tid,
            page,
            watcher,
            text,
        })
    }

    /// Has the child go on from its gate, up to the first instruction of the operation.
    pub fn enter(&self) -> Result<()> {
        self.page.set(Word::Go, 1);
        while self.tid == self.pid && self.page.phase() < Phase::Running {
            let stop = self.step()?;
            let hung = self.watcher.hung();
            ensure!(
                stop == Stop::Trapped,
                "the child is lost at its gate: {stop:?}, hung {hung:?}"
            );
        }
        Ok(())
    }

    /// The next instruction, as a distance from the program's first byte; `None` where it is another's code.
    pub fn at(&self) -> Result<Option<u64>> {
        let address = self.address()?;
        let (start, end) = self.text;
        Ok((start..end).contains(&address).then(|| address - start))
    }

    fn address(&self) -> Result<u64> {
        let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::uninit();
        let to = registers.as_mut_ptr();
        // SAFETY: the kernel writes as many bytes as the struct has, and the thread is stopped.
        let got = unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.tid, 0, to) };
        ensure!(got == 0, "no registers: {}", io::Error::last_os_error());
        // SAFETY: the kernel has filled it in.
        Ok(unsafe { registers.assume_init() }.rip)
    }

    /// What the code that it stands in is called: a file, and the distance in it.
    pub fn place(&self) -> Result<String> {
        let address = self.address()?;
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid))?;
        let mut first = ("", 0);
        for line in maps.lines() {
            let name = line.split_whitespace().nth(5).unwrap_or("");
            let Some((start, end)) = line.split(' ').next().and_then(|at| at.split_once('-'))
            else {
                continue;
            };
            let start = u64::from_str_radix(start, 16)?;
            if first.0 != name {
                first = (name, start);
            }
            if (start..u64::from_str_radix(end, 16)?).contains(&address) {
                let name = name.rsplit('/').next().unwrap_or(name);
                return Ok(format!("{name}+{:#x}", address - first.1));
            }
        }
        Ok(format!("{address:#x}"))
    }

    fn stopped(&self) -> Result<Stop> {
        let status = wait(self.tid)?;
        self.watcher.tick();
        if !libc::WIFSTOPPED(status) {
            return Ok(Stop::Dead);
        }
        match libc::WSTOPSIG(status) {
            libc::SIGTRAP => Ok(Stop::Trapped),
            libc::SIGSTOP if self.watcher.is_idle() => Ok(Stop::Idle),
            signal => bail!("the child got signal {signal} at {}", self.place()?),
        }
    }

    /// One instruction.
    pub fn step(&self) -> Result<Stop> {
        match ptrace(libc::PTRACE_SINGLESTEP, self.tid, 0, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(Stop::Dead),
            stepped => {
                stepped?;
                self.stopped()
            }
        }
    }

    fn break_at(&self, address: Option<u64>) -> Result<()> {
        if let Some(address) = address {
            ptrace(
                libc::PTRACE_POKEUSER,
                self.tid,
                debug_register(0),
                address as usize,
            )?;
        }
        // Bit 0: register 0, on execution, in this thread.
        let control = usize::from(address.is_some());
        Ok(ptrace(
            libc::PTRACE_POKEUSER,
            self.tid,
            debug_register(7),
            control,
        )?)
    }

    /// Runs to an anchor.
    fn run_to(&self, anchor: &Anchor) -> Result<Stop> {
        self.break_at(Some(self.text.0 + anchor.at))?;
        for _ in 0..anchor.times {
            ptrace(libc::PTRACE_CONT, self.tid, 0, 0)?;
            let stop = self.stopped()?;
            if stop != Stop::Trapped {
                return Ok(stop);
            }
        }
        self.break_at(None)?;
        Ok(Stop::Trapped)
    }

    /// Runs so many instructions, with the help of an anchor if there is one.
    pub fn run(&self, point: usize, anchor: Option<&Anchor>) -> Result<Ran> {
        let mut steps = 0;
        let mut stop = Stop::Trapped;
        if let Some(anchor) = anchor {
            stop = self.run_to(anchor)?;
            steps = anchor.index;
        }
        let missed = stop != Stop::Trapped;
        while stop == Stop::Trapped && steps < point && self.page.phase() != Phase::Ended {
            stop = self.step()?;
            steps += 1;
        }
        let dead = stop == Stop::Dead;
        Ok(Ran {
            at: if dead { None } else { self.at()? },
            reached: stop == Stop::Trapped && self.page.phase() != Phase::Ended,
            dead,
            missed,
        })
    }

    /// Has it sleep in its next instruction, a system call, and kills it there. False where it did not sleep.
    pub fn kill_asleep(&self) -> Result<bool> {
        self.watcher.kill_asleep();
        self.step()?;
        Ok(self.watcher.has_killed())
    }

    /// Kills the child, and waits until this thread is gone.
    pub fn kill(self) -> Result<()> {
        self.watcher.leave();
        // SAFETY: sends a signal to a child that was not waited for.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // Of the main thread, the end is told to whoever waits for the process.
        if self.tid != self.pid {
            while libc::WIFSTOPPED(wait(self.tid)?) {}
        }
        Ok(())
    }
}
