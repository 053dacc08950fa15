//! What the tests share: messages, other processes, private directories, and a watchdog.
//!
//! Unsafe code is needed for the system calls that no safe crate here makes.
#![allow(unsafe_code)]

use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use shmbus::{Bus, Client, Server, ShmMessage};

/// A request with a string.
#[derive(ShmMessage, Debug, Clone, Default, PartialEq)]
#[shm(service = "ask", reply = Answer)]
pub(crate) struct Ask {
    pub(crate) id: u64,
    pub(crate) line: u32,
    pub(crate) col: u32,
    pub(crate) kind: u8,
    pub(crate) text: String,
}

/// Its reply, which says who wrote it.
#[derive(ShmMessage, Debug, Clone, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) id: u64,
    pub(crate) pid: u32,
    pub(crate) text: String,
}

impl Ask {
    /// A request of this number, with a text of so many bytes.
    pub(crate) fn new(id: u64, len: usize) -> Ask {
        Ask {
            id,
            line: 7,
            col: 9,
            kind: 3,
            text: "x".repeat(len),
        }
    }
}

/// Answers every request with its own number and text, to the end.
pub(crate) fn answer(mut server: Server<Ask>) {
    while let Some(call) = server.next().expect("this process was not forked") {
        let reply = Answer {
            id: call.id.to_native(),
            pid: std::process::id(),
            text: call.text.as_str().to_owned(),
        };
        call.reply(&reply).expect("the reply fits");
    }
}

/// Calls once, and checks that the reply is the one to this request.
pub(crate) fn check_call(client: &Client<Ask>, id: u64, len: usize) {
    let ask = Ask::new(id, len);
    let reply = client.call(&ask).expect("the server answers");
    assert_eq!(reply.id, id);
    assert_eq!(reply.text.as_str(), ask.text);
    assert_eq!(reply.pid, client.server_pid());
}

/// A bus name of this test's own.
pub(crate) fn name(of: &str) -> String {
    format!("test-{of}-{}", std::process::id())
}

/// Opens a bus.
pub(crate) fn open(name: &str) -> Bus {
    Bus::open(name).expect("the bus opens")
}

/// Counts how many wakers there are, and how often one was woken.
#[derive(Default)]
pub(crate) struct Counting(pub(crate) AtomicUsize);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) fn poll<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

static MACHINE: RwLock<()> = RwLock::new(());

/// Runs beside other tests.
pub(crate) fn together() -> (RwLockReadGuard<'static, ()>, Watchdog) {
    let guard = MACHINE.read().unwrap_or_else(|e| e.into_inner());
    (guard, Watchdog::start("a test"))
}

/// Runs while no other test does: two threads that spin need a core each.
pub(crate) fn alone() -> (RwLockWriteGuard<'static, ()>, Watchdog) {
    let guard = MACHINE.write().unwrap_or_else(|e| e.into_inner());
    (guard, Watchdog::start("a test that spins"))
}

/// Ends the process when a test hangs.
pub(crate) struct Watchdog {
    _alive: mpsc::Sender<()>,
}

impl Watchdog {
    /// Watches until it is dropped.
    pub(crate) fn start(what: &'static str) -> Watchdog {
        let (alive, watched) = mpsc::channel::<()>();
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        std::thread::spawn(move || {
            let end = watched.recv_timeout(Duration::from_secs(300));
            if end == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{what} hangs: {test}");
                std::process::abort();
            }
        });
        Watchdog { _alive: alive }
    }
}

const ROLE: &str = "SHMBUS_TEST_ROLE";
const ARGUMENTS: &str = "SHMBUS_TEST_ARGUMENTS";

/// What this process was started to do, if it is a part of a test.
pub(crate) fn role() -> Option<(String, Vec<String>)> {
    let role = std::env::var(ROLE).ok()?;
    let arguments = std::env::var(ARGUMENTS).unwrap_or_default();
    Some((role, arguments.split('\n').map(str::to_owned).collect()))
}

/// In a child: tells the test a line.
pub(crate) fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{line}").expect("the test listens");
    out.flush().expect("the test listens");
}

/// In a child: waits for a line of the test, or for its end.
pub(crate) fn told() -> Option<String> {
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    (read.expect("standard input is open") > 0).then(|| line.trim_end().to_owned())
}

/// Another process, which plays a part in a test. Killed when dropped.
pub(crate) struct Child {
    process: std::process::Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Child {
    /// The command that starts this program in a role.
    pub(crate) fn command(role: &str, arguments: &[&str]) -> Command {
        let program = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(program);
        command
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(ROLE, role)
            .env(ARGUMENTS, arguments.join("\n"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// Starts this program in a role.
    pub(crate) fn start(role: &str, arguments: &[&str]) -> Child {
        Child::run(Child::command(role, arguments))
    }

    /// Starts it with runtime files of its own.
    pub(crate) fn start_in(dir: &Path, role: &str, arguments: &[&str]) -> Child {
        let mut command = Child::command(role, arguments);
        command.env("XDG_RUNTIME_DIR", dir);
        Child::run(command)
    }

    fn run(mut command: Command) -> Child {
        Child::adopt(command.spawn().expect("the program starts"))
    }

    /// Takes a process that was started by a command of ours.
    pub(crate) fn adopt(mut process: std::process::Child) -> Child {
        let output = process.stdout.take().expect("it is piped");
        Child {
            input: process.stdin.take(),
            output: BufReader::new(output),
            process,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits for the next line that the child tells; empty where it ended.
    pub(crate) fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line);
            if read.expect("the pipe can be read") == 0 {
                return String::new();
            }
            if let Some((_, told)) = line.split_once('@') {
                return told.trim_end().to_owned();
            }
        }
    }

    /// Tells the child a line.
    pub(crate) fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("it was not ended");
        writeln!(input, "{line}").expect("the child listens");
    }

    /// Stops it where it stands.
    pub(crate) fn stop(&mut self) {
        let pid = self.pid() as i32;
        // SAFETY: sends a signal to a child that was not waited for.
        let sent = unsafe { libc::kill(pid, libc::SIGSTOP) };
        assert_eq!(sent, 0);
    }

    /// Has it go on, which was stopped.
    pub(crate) fn go_on(&mut self) {
        let pid = self.pid() as i32;
        // SAFETY: as in `stop`.
        let sent = unsafe { libc::kill(pid, libc::SIGCONT) };
        assert_eq!(sent, 0);
    }

    /// Kills it where it stands.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("it can be killed");
        let status = self.process.wait().expect("it can be waited for");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }

    /// Closes its input, and waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.input = None;
        self.process.wait().expect("it can be waited for")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A private directory, removed when dropped.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = format!("shmbus-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(path);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .expect("a directory can be made");
        Dir(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
