//! Open-file-description locks: the kernel frees them when the last descriptor of their owner
//! closes, however it died. Asking who holds one takes nothing.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

fn request(kind: libc::c_int, byte: i64) -> libc::flock {
    // SAFETY: all zeros is a valid `flock`: integers only.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte;
    lock.l_len = 1;
    lock
}

/// `fcntl(F_OFD_SETLK, F_WRLCK)` on one byte: true where the lock is ours now.
pub(crate) fn try_lock(file: &File, byte: i64) -> io::Result<bool> {
    let lock = request(libc::F_WRLCK, byte);
    // SAFETY: the structure outlives the call.
    match super::check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// `fcntl(F_OFD_GETLK)`: true while another open file holds the lock on that byte.
pub(crate) fn is_locked(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = request(libc::F_WRLCK, byte);
    // SAFETY: the structure outlives the call, which writes it.
    super::check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) })?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}
