//! How a process ended, as the kernel says.

use std::fmt;

/// How the process at the other end of a link ended.
///
/// The kernel's word, which no process can forge. It is not known of a process that lives on, nor on a kernel
/// that does not tell: that needs Linux 6.5 for processes that a bus of a name connects, 5.3 for those of
/// [`Bus::spawn`](crate::Bus::spawn), and 6.15 for one that is not our child, and that its parent has waited
/// for already.
///
/// # Examples
///
/// ```
/// use shmbus::Ended;
///
/// assert_eq!(Ended::Exited(3).to_string(), "it exited with status 3");
/// assert_eq!(Ended::Killed(11).to_string(), "it was killed by signal 11 (SIGSEGV)");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ended {
    /// It ended by itself, with this status.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
}

impl Ended {
    /// Of a status as `wait` gives it.
    #[cfg(not(loom))]
    pub(crate) fn from_status(status: i32) -> Ended {
        match status & 0x7f {
            0 => Ended::Exited(status >> 8 & 0xff),
            signal => Ended::Killed(signal),
        }
    }

    /// Whether a signal ended it.
    #[cfg(not(loom))]
    pub(crate) fn is_killed(self) -> bool {
        matches!(self, Ended::Killed(_))
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Ended::Exited(status) => write!(f, "it exited with status {status}"),
            Ended::Killed(signal) => {
                write!(f, "it was killed by signal {signal}")?;
                name(signal).map_or(Ok(()), |name| write!(f, " ({name})"))
            }
        }
    }
}

fn name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGVTALRM => "SIGVTALRM",
        libc::SIGPROF => "SIGPROF",
        libc::SIGSYS => "SIGSYS",
        _ => return None,
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_wait_is_read() {
        for (status, ended) in [
            (0, Ended::Exited(0)),
            (3 << 8, Ended::Exited(3)),
            (255 << 8, Ended::Exited(255)),
            (9, Ended::Killed(9)),
            // With a core file.
            (11 | 0x80, Ended::Killed(11)),
        ] {
            assert_eq!(Ended::from_status(status), ended, "{status:#x}");
        }
    }
}
