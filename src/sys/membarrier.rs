//! `membarrier(2)`: a fence that one thread pays for all.

use std::sync::OnceLock;

/// `membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED)`, once a process.
///
/// True where this process is registered, so that its threads may use the cheap half of a barrier
/// towards peers that issue the dear one.
pub(crate) fn register() -> bool {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED.get_or_init(|| call(libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED as libc::c_int))
}

/// `membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED)`: every running thread of a registered process
/// passes a full fence before this returns.
pub(crate) fn global_expedited() {
    // It cannot fail once a process on this kernel could register, and only such peers ask for it.
    let done = call(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED as libc::c_int);
    debug_assert!(
        done,
        "membarrier was refused after a registration was granted"
    );
}

fn call(command: libc::c_int) -> bool {
    // SAFETY: the command takes no pointer; flags and cpu are zero as the call demands.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}
