//! What a process that was forked off a user of a bus has of it: nothing.
//!
//! A child made by `fork` has no arena (they are `MADV_DONTFORK`), so every use of a bus in it must
//! be refused before memory is touched. The mark is a page that the kernel wipes in the child
//! (`MADV_WIPEONFORK`, Linux 4.14): reading it costs one load, where `getpid` would be a system
//! call.
//!
//! Nor may a child keep its parent's sockets and locks open: peers would take the parent for alive
//! as long as the child lives. A handler that runs in each child (`pthread_atfork`) puts something
//! harmless in their place, so that the numbers stay taken until their owners drop them.

use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

/// The page that is wiped; null before there is one, and in a forked child.
static MARK: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

/// A handle on the mark, taken by the process that made the bus.
#[derive(Clone, Copy)]
pub(crate) struct Origin(*const u8);
// SAFETY: points to a page that is never unmapped and never written again, or to a static.
unsafe impl Send for Origin {}
// SAFETY: as above.
unsafe impl Sync for Origin {}

impl Origin {
    /// Marks this process, once, and returns the handle.
    pub(crate) fn here() -> std::io::Result<Origin> {
        watch_forks()?;
        // SYNC(mark): Acquire; pairs with Release below.
        let known = MARK.load(Ordering::Acquire);
        if !known.is_null() {
            return Ok(Origin(known));
        }
        let made = make_mark()?;
        // SYNC(mark): Release; pairs with Acquire above.
        let set = MARK.compare_exchange(
            std::ptr::null_mut(),
            made,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        // Where another thread was faster, a page stays unused: once in a process's life.
        Ok(Origin(set.map_or_else(|theirs| theirs, |_| made)))
    }

    /// The handle of a process that this one was forked off, as it seems.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn of_parent() -> Origin {
        static WIPED: u8 = 0;
        Origin(&raw const WIPED)
    }

    /// True in a process that was forked off after the mark was set.
    #[inline(always)]
    pub(crate) fn is_forked(self) -> bool {
        // SAFETY: the page stays mapped for the life of the process, and of a forked child's.
        // Volatile, because the kernel changes it where the compiler sees no write.
        unsafe { self.0.read_volatile() == 0 }
    }
}

fn make_mark() -> std::io::Result<*mut u8> {
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
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the range is the mapping just made.
    super::check(unsafe { libc::madvise(page, LEN, libc::MADV_WIPEONFORK) })?;
    let page = page.cast::<u8>();
    // SAFETY: the page is mapped writable and nobody else knows it yet.
    unsafe { page.write_volatile(1) };
    Ok(page)
}

/// A descriptor that a forked child does not have.
pub(crate) struct Mine<F: AsFd> {
    slot: &'static Slot,
    inner: F,
}

/// One number of the list that the handler goes through. Never freed, and used again.
struct Slot {
    /// Negative where the slot is free.
    fd: AtomicI32,
    next: *const Slot,
}
// SAFETY: `next` is written once, before the slot can be found, and points to a slot that is never
// freed.
unsafe impl Sync for Slot {}

static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());
/// What takes the place of a descriptor: an event that nobody sets.
static HARMLESS: AtomicI32 = AtomicI32::new(-1);

impl<F: AsFd> Mine<F> {
    /// Keeps a descriptor from children that are forked off from now on.
    pub(crate) fn new(inner: F) -> Mine<F> {
        let slot = take_slot(inner.as_fd().as_raw_fd());
        Mine { slot, inner }
    }
}

impl<F: AsFd> Deref for Mine<F> {
    type Target = F;

    fn deref(&self) -> &F {
        &self.inner
    }
}

impl<F: AsFd> AsFd for Mine<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl<F: AsFd> Drop for Mine<F> {
    fn drop(&mut self) {
        // Relaxed: before the descriptor closes, in this thread. A fork by another thread between
        // the two leaves its child a copy: the time of one system call.
        self.slot.fd.store(-1, Ordering::Relaxed);
    }
}

fn slots() -> impl Iterator<Item = &'static Slot> {
    // SYNC(slots): Acquire; pairs with Release in `take_slot`.
    let mut at: *const Slot = SLOTS.load(Ordering::Acquire);
    std::iter::from_fn(move || {
        // SAFETY: null, or a slot that is never freed.
        let slot = unsafe { at.as_ref() }?;
        at = slot.next;
        Some(slot)
    })
}

fn take_slot(fd: RawFd) -> &'static Slot {
    let take = |slot: &&Slot| {
        // Relaxed: the number is all that is read by it.
        let taken = slot
            .fd
            .compare_exchange(-1, fd, Ordering::Relaxed, Ordering::Relaxed);
        taken.is_ok()
    };
    if let Some(slot) = slots().find(take) {
        return slot;
    }
    let slot: &'static mut Slot = Box::leak(Box::new(Slot {
        fd: AtomicI32::new(fd),
        next: std::ptr::null(),
    }));
    let mut head = SLOTS.load(Ordering::Relaxed);
    loop {
        slot.next = head;
        // SYNC(slots): Release; pairs with Acquire in `slots`.
        match SLOTS.compare_exchange(head, slot, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return slot,
            Err(now) => head = now,
        }
    }
}

/// Has every child forked from now on go through [`in_child`].
fn watch_forks() -> std::io::Result<()> {
    static WATCHED: OnceLock<Result<(), i32>> = OnceLock::new();
    let watched = WATCHED.get_or_init(|| {
        // SAFETY: takes integers only. The descriptor is never closed.
        let harmless = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if harmless < 0 {
            return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        HARMLESS.store(harmless, Ordering::Relaxed);
        // SAFETY: the handler makes only system calls and atomic accesses.
        match unsafe { libc::pthread_atfork(None, None, Some(in_child)) } {
            0 => Ok(()),
            error => Err(error),
        }
    });
    watched.map_err(std::io::Error::from_raw_os_error)
}

/// Runs in a forked child, before `fork` returns there: takes no lock and allocates nothing.
extern "C" fn in_child() {
    // A bus that the child opens itself is its own.
    MARK.store(std::ptr::null_mut(), Ordering::Relaxed);
    let harmless = HARMLESS.load(Ordering::Relaxed);
    for slot in slots() {
        let fd = slot.fd.load(Ordering::Relaxed);
        if fd >= 0 {
            // SAFETY: plain integers. The number is a descriptor of ours, whose owner in this child
            // closes what is put there, as it would have closed the copy.
            unsafe { libc::dup3(harmless, fd, libc::O_CLOEXEC) };
        }
    }
}
