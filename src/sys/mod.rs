//! System calls: the only floor that names `libc`, one function a call.
//!
//! Unsafe code is needed because every one of these is foreign; each function takes and gives
//! owned descriptors and plain values, so that nothing above has to.
#![allow(unsafe_code)]

pub(crate) mod chime;
pub(crate) mod clock;
pub(crate) mod fork;
#[cfg_attr(loom, path = "futex_model.rs")]
pub(crate) mod futex;
pub(crate) mod inotify;
pub(crate) mod lock;
pub(crate) mod membarrier;
pub(crate) mod memfd;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod socket;

use std::io;

/// Turns the `-1` of a system call into the error it left in `errno`.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// `getuid()`: the user this process runs as.
pub(crate) fn user_id() -> u32 {
    // SAFETY: takes no argument and cannot fail.
    unsafe { libc::getuid() }
}

/// What the kernel says of this release: `(major, minor)`, or zeros where it cannot be read.
pub(crate) fn kernel_version() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = text
        .split(|c: char| !c.is_ascii_digit())
        .map(|p| p.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// `O_NOFOLLOW | O_CLOEXEC`, for files in a directory of ours.
pub(crate) const NO_FOLLOW: i32 = libc::O_NOFOLLOW | libc::O_CLOEXEC;
