//! Memory as a stranger makes it: honest, or with something missing.
//!
//! Unsafe code is needed to name the bytes of a mapping, which another process reads meanwhile.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

/// What an honest segment is sealed with.
pub(crate) const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::FUTURE_WRITE)
    .union(SealFlags::SEAL);

/// The name by which mappings of it are found in `/proc/<pid>/maps`.
pub(crate) const NAME: &str = "of-a-stranger";

/// A memory file of so many bytes, all of them allocated, without seals.
pub(crate) fn file(len: u64) -> OwnedFd {
    let fd = sparse(len);
    rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len).expect("there is memory");
    fd
}

/// As [`file`], with nothing allocated.
pub(crate) fn sparse(len: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create(NAME, flags).expect("there is memory");
    rustix::fs::ftruncate(&fd, len).expect("it has no size yet");
    fd
}

/// Seals a file.
pub(crate) fn seal(fd: &OwnedFd, seals: SealFlags) {
    rustix::fs::fcntl_add_seals(fd, seals).expect("it is not sealed yet");
}

/// Memory of the victim's, as any peer of it sees it.
pub(crate) struct Theirs(MmapRaw);

impl Theirs {
    pub(crate) fn map(fd: &OwnedFd) -> Theirs {
        let map = MmapOptions::new().map_raw_read_only(fd);
        Theirs(map.expect("it can be mapped"))
    }

    /// The word at this place.
    pub(crate) fn word(&self, at: usize) -> u64 {
        assert!(at % 8 == 0 && at + 8 <= self.0.len(), "{at} is a place");
        // SAFETY: the place was just checked to lie in the mapping.
        let word = unsafe { self.0.as_ptr().add(at) }.cast::<AtomicU64>();
        // SAFETY: it is aligned, and is only ever looked at as atomics here.
        unsafe { &*word }.load(Ordering::Acquire)
    }
}

/// A segment that is honest in all but its content.
pub(crate) struct Memory {
    fd: OwnedFd,
    map: MmapRaw,
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Memory {
    /// So many bytes.
    pub(crate) fn new(len: usize) -> Memory {
        let fd = file(len as u64);
        let map = MmapOptions::new().len(len).map_raw(&fd);
        let map = map.expect("it can be mapped");
        seal(&fd, SEALS);
        Memory { fd, map }
    }

    /// The word at this place.
    pub(crate) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at % 8 == 0 && at + 8 <= self.map.len(), "{at} is a place");
        // SAFETY: the place was just checked to lie in the mapping.
        let word = unsafe { self.map.as_mut_ptr().add(at) }.cast::<AtomicU64>();
        // SAFETY: it is aligned, and is only ever looked at as atomics, here and in the other process.
        unsafe { &*word }
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.map.len(), "{at} is a place");
        // SAFETY: the place was just checked to lie in the mapping.
        let byte = unsafe { self.map.as_mut_ptr().add(at) }.cast::<AtomicU8>();
        // SAFETY: as in `word`.
        unsafe { &*byte }
    }

    /// Writes bytes, as far as there is room.
    pub(crate) fn put(&self, at: usize, bytes: &[u8]) {
        let room = self.map.len().saturating_sub(at);
        for (offset, byte) in bytes.iter().take(room).enumerate() {
            // Relaxed: a header that is stored with Release comes after.
            self.byte(at + offset).store(*byte, Ordering::Relaxed);
        }
    }

    /// Writes a word, behind all that was written before it.
    pub(crate) fn set(&self, at: usize, word: u64) {
        self.word(at).store(word, Ordering::Release);
    }
}
