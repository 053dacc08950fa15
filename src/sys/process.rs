//! `pidfd_open(2)`: another process, and how it ended.
//!
//! A descriptor of a process stands for that one, whoever has its number later. What can be asked of it depends
//! on who asks, and when:
//!
//! | the process | who knows its status |
//! |---|---|
//! | is our child, and was not waited for | `waitid(P_PIDFD, WNOWAIT)`, which leaves it to be waited for |
//! | is another's, and was not waited for | `/proc/PID/stat`, while the descriptor says that the number is its own |
//! | was waited for | `ioctl(PIDFD_GET_INFO)`, Linux 6.15 |
//! | is being killed, and has closed what we shared | `/proc/PID/stat` |
//!
//! The last can take long: some descriptors close slowly, and a process that has one ends only behind that.

use std::fs::read_to_string;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// `struct pidfd_info` of Linux 6.13, as long as it was then.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    /// The process, its group, its parent, and eight numbers of users and groups.
    ids: [u32; 11],
    exit_code: i32,
}
static_assertions::const_assert_eq!(size_of::<Info>(), 64);

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::Ioctl =
    (3 << 30 | (size_of::<Info>() as u32) << 16 | 0xff << 8 | 11) as _;

/// A process.
pub(crate) struct Process {
    fd: OwnedFd,
    /// As `wait` gives it, once it is known.
    status: OnceLock<i32>,
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Process {
    fn from(fd: OwnedFd) -> Process {
        let status = OnceLock::new();
        Process { fd, status }
    }
}

impl Process {
    /// `pidfd_open`: a child that nobody has waited for yet. `None` where the kernel is older than Linux 5.3.
    pub(crate) fn of_child(pid: u32) -> Option<Process> {
        // SAFETY: takes integers only.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the kernel just gave this descriptor to us alone.
        Some(Process::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// How it ended, as `wait` gives it; waits so long for its end. `None` where it lives on, and where the kernel
    /// does not say.
    pub(crate) fn status(&self, patience: Duration) -> Option<i32> {
        let dying = || self.of_dying();
        let known = self.known().or_else(dying);
        match known {
            Some(status) => Some(*self.status.get_or_init(|| status)),
            None => self.status_of_ended(patience),
        }
    }

    /// As [`status`](Self::status), where somebody has looked.
    pub(crate) fn known(&self) -> Option<i32> {
        self.status.get().copied()
    }

    /// As [`status`](Self::status), of one for which all is over: one that is being killed has none yet.
    pub(crate) fn status_of_ended(&self, patience: Duration) -> Option<i32> {
        if let Some(status) = self.known() {
            return Some(status);
        }
        let deadline = Instant::now() + patience;
        if !super::poll::readable_until(self.as_fd(), deadline) {
            // Another thread may have seen it.
            return self.known();
        }
        // Whoever is waited for between two of these is known to the last.
        let status = self
            .of_reaped()
            .or_else(|| self.of_our_child())
            .or_else(|| self.of_zombie())
            .or_else(|| self.of_reaped())?;
        Some(*self.status.get_or_init(|| status))
    }

    /// `ioctl(PIDFD_GET_INFO)`.
    fn of_reaped(&self) -> Option<i32> {
        let mut info = Info {
            mask: PIDFD_INFO_EXIT,
            ..Info::default()
        };
        // SAFETY: the number says how long the structure is, a local that outlives the call.
        let asked = unsafe { libc::ioctl(self.fd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        (asked == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
    }

    /// `waitid(P_PIDFD)`, which leaves the child to whoever waits for it.
    fn of_our_child(&self) -> Option<i32> {
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: all zeros is a valid `siginfo_t`: integers and null pointers.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = self.fd.as_raw_fd() as libc::id_t;
        // SAFETY: the structure is a local that outlives the call.
        let asked = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, flags) };
        if asked != 0 {
            return None;
        }
        // SAFETY: `waitid` fills what this reads, or leaves the zeros.
        let pid = unsafe { info.si_pid() };
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        let status = match info.si_code {
            libc::CLD_EXITED => (status & 0xff) << 8,
            libc::CLD_KILLED | libc::CLD_DUMPED => status & 0x7f,
            _ => return None,
        };
        (pid != 0).then_some(status)
    }

    /// `/proc/PID/stat`, of one that was not waited for.
    fn of_zombie(&self) -> Option<i32> {
        self.of_stat(|fields| fields.first() == Some(&"Z"))
    }

    /// `/proc/PID/stat`, of one whose first thread is ending: only where a signal kills all of it, as that thread may
    /// also end by itself, or stop.
    fn of_dying(&self) -> Option<i32> {
        const PF_EXITING: u32 = 4;
        const STOPS: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        let flags = |fields: &[&str]| fields.get(6).and_then(|flags| flags.parse::<u32>().ok());
        let is_ending = |fields: &[&str]| flags(fields).is_some_and(|f| f & PF_EXITING != 0);
        let signal = |status: &i32| status & 0x7f;
        let status = self.of_stat(is_ending);
        status.filter(|status| signal(status) != 0 && !STOPS.contains(&signal(status)))
    }

    /// `/proc/PID/stat`: the status of one of which the fields behind the name say that it has one.
    fn of_stat(&self, has_one: impl FnOnce(&[&str]) -> bool) -> Option<i32> {
        let pid = self.number()?;
        let stat = read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Its name, in brackets, may hold anything; its status is the last of 52 fields.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        has_one(&fields).then_some(())?;
        let users = read_to_string(format!("/proc/{pid}/status")).ok()?;
        // Until here, nobody else had that number.
        (self.number() == Some(pid)).then_some(())?;
        let status = fields.get(49)?.parse().ok()?;
        // To some of those that were other users' for a while the kernel says zero.
        let ours = super::user_id().to_string();
        let line = users.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        let is_ours = line.split_whitespace().all(|user| user == ours);
        (status != 0 || is_ours).then_some(status)
    }

    /// Its number in this process's `/proc`, until it is waited for.
    fn number(&self) -> Option<u32> {
        let path = format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd());
        let text = read_to_string(path).ok()?;
        let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"))?;
        // None is -1, and one of other numbers is 0.
        pid.trim().parse().ok().filter(|pid| *pid > 0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::sys::inotify::Inotify;

    const LONG: Duration = Duration::from_secs(300);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        command.stdin(Stdio::piped());
        command
    }

    #[test]
    fn a_child_is_left_to_be_waited_for() {
        for (script, expected) in [
            ("exit 3", 3 << 8),
            ("exit 0", 0),
            ("kill -9 $$", 9),
            ("ulimit -c 0; kill -SEGV $$", 11),
        ] {
            let mut child = shell(script).spawn().unwrap();
            let process = Process::of_child(child.id()).unwrap();
            assert!(super::super::poll::readable_until(
                process.as_fd(),
                Instant::now() + LONG
            ));
            assert_eq!(process.of_reaped(), None, "{script}");
            assert_eq!(process.of_our_child(), Some(expected), "{script}");
            assert_eq!(process.of_zombie(), Some(expected), "{script}");
            assert_eq!(process.status(Duration::ZERO), Some(expected), "{script}");
            let status = child.wait().unwrap();
            assert_eq!(
                std::os::unix::process::ExitStatusExt::into_raw(status),
                expected
            );
            assert_eq!(process.of_our_child(), None);
            assert_eq!(process.of_zombie(), None);
            // Kept, whatever the kernel still says.
            assert_eq!(process.status(Duration::ZERO), Some(expected), "{script}");
            if super::super::kernel_version() >= (6, 15) {
                assert_eq!(process.of_reaped(), Some(expected), "{script}");
            }
        }
    }

    /// It has an inotify, which the kernel takes some milliseconds to close, behind all that has a higher number.
    #[test]
    fn who_takes_long_to_end_has_a_status_before() {
        let inotify = Inotify::new(Path::new("/proc/self")).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let above = rustix::io::fcntl_dupfd_cloexec(&theirs, 1000).unwrap();
        drop(theirs);
        assert!(inotify.as_raw_fd() < above.as_raw_fd());
        // SAFETY: the child does nothing but one system call.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        }
        drop((inotify, above));
        let process = Process::of_child(u32::try_from(pid).unwrap()).unwrap();
        assert_eq!(process.status(Duration::ZERO), None);
        // SAFETY: a child that nobody has waited for.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
        assert_eq!(process.status(Duration::ZERO), Some(9));
        // SAFETY: null says that the status is not wanted.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    }

    #[test]
    fn who_lives_has_no_status() {
        let mut child = shell("read line").spawn().unwrap();
        let process = Process::of_child(child.id()).unwrap();
        assert_eq!(process.status(Duration::from_millis(1)), None);
        assert_eq!(process.of_zombie(), None);
        child.kill().unwrap();
        assert_eq!(process.status(LONG), Some(9));
        child.wait().unwrap();
    }

    #[test]
    fn one_that_is_not_our_child() {
        // The grandchild says its number, and ends when it is told to; its parent waits for it, or does not.
        for (script, is_reaped) in [
            (
                r#"sh -c 'echo $$; read line <&3; exit 3' 3<&0; echo waited; read line"#,
                true,
            ),
            (
                r#"exec 3<&0; sh -c 'echo $$; read line <&3; exit 3' & exec sh -c 'exec sleep 1000' >&-"#,
                false,
            ),
        ] {
            let mut child = shell(script).spawn().unwrap();
            let mut out = child.stdout.take().unwrap();
            let mut pid = String::new();
            while !pid.ends_with('\n') {
                let mut byte = [0];
                out.read_exact(&mut byte).unwrap();
                pid.push(byte[0].into());
            }
            let process = Process::of_child(pid.trim().parse().unwrap()).unwrap();
            assert_eq!(process.status(Duration::ZERO), None);
            let mut input = child.stdin.take().unwrap();
            input.write_all(b"end\n").unwrap();
            if is_reaped {
                let mut waited = [0; 7];
                out.read_exact(&mut waited).unwrap();
                assert_eq!(process.of_zombie(), None);
                let known = super::super::kernel_version() >= (6, 15);
                assert_eq!(process.status(LONG), known.then_some(3 << 8));
            } else {
                assert!(super::super::poll::readable_until(
                    process.as_fd(),
                    Instant::now() + LONG
                ));
                assert_eq!(process.of_reaped(), None);
                assert_eq!(process.of_our_child(), None);
                assert_eq!(process.status(LONG), Some(3 << 8));
            }
            drop(input);
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
