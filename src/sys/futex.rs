//! `futex(2)`: sleeping until a word in shared memory changes.
//!
//! The word may lie in memory that the caller maps read-only: for waiting and for waking the
//! kernel only reads it (`kernel/futex/core.c`, `FUTEX_READ`). The private flag is never set, as
//! the two sides are different processes.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// `futex(FUTEX_WAIT)`: sleeps while the word holds `expected`, at most `timeout`.
///
/// Returns on a wake, on a signal, when the word differs, or when the time is up: the caller looks
/// again at what it waits for.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let time = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().min(i64::MAX as u64) as libc::time_t,
        tv_nsec: t.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `word` outlives the call, and `time` is null or points to a local that does.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            time,
        )
    };
}

/// `futex(FUTEX_WAKE)`: wakes all sleepers, and says whether there was one. All, because any
/// process that maps the word may sleep on it, and could take the wake of the one it is meant for.
pub(crate) fn wake(word: &AtomicU32) -> bool {
    // SAFETY: `word` is mapped for the whole call; the kernel only uses its address as a key.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) > 0 }
}
