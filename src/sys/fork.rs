//! Knowing that this process is a fork of the one that made a bus.
//!
//! A child made by `fork` has the descriptors of its parent but not its arenas (they are
//! `MADV_DONTFORK`), so every use of a bus in it must be refused before memory is touched. The
//! mark is a page that the kernel wipes in the child (`MADV_WIPEONFORK`, Linux 4.14): reading it
//! costs one load, where `getpid` would be a system call.

use std::sync::OnceLock;

struct Mark(*const u8);
// SAFETY: the page is written once, before this value exists, and only read after that.
unsafe impl Send for Mark {}
// SAFETY: as above.
unsafe impl Sync for Mark {}

/// A handle on the mark, taken by the process that made the bus.
#[derive(Clone, Copy)]
pub(crate) struct Origin(*const u8);
// SAFETY: points to a page that is never unmapped and never written again.
unsafe impl Send for Origin {}
// SAFETY: as above.
unsafe impl Sync for Origin {}

impl Origin {
    /// Marks this process, once, and returns the handle.
    pub(crate) fn here() -> std::io::Result<Origin> {
        static MARK: OnceLock<Option<Mark>> = OnceLock::new();
        MARK.get_or_init(make_mark)
            .as_ref()
            .map(|mark| Origin(mark.0))
            .ok_or_else(std::io::Error::last_os_error)
    }

    /// True in a process that was forked off after the mark was set.
    #[inline(always)]
    pub(crate) fn is_forked(self) -> bool {
        // SAFETY: the page stays mapped for the life of the process, and of a forked child's.
        // Volatile, because the kernel changes it where the compiler sees no write.
        unsafe { self.0.read_volatile() == 0 }
    }
}

fn make_mark() -> Option<Mark> {
    const LEN: usize = 4096;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            LEN,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the range is the mapping just made.
    if unsafe { libc::madvise(page, LEN, libc::MADV_WIPEONFORK) } != 0 {
        return None;
    }
    // SAFETY: the page is mapped writable and nobody else knows it yet.
    unsafe { page.cast::<u8>().write_volatile(1) };
    Some(Mark(page.cast()))
}
