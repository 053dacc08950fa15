//! Memory that both processes of a raw case map writable: what the bus is measured against.
//!
//! Unsafe because a mapping is a raw pointer: everything here hands out atomics, or copies whole
//! blocks while the other side is known to wait.
//!
//! | word | written by | read by | publishes |
//! |---|---|---|---|
//! | any | as the case says: one side only | the other | what the case stored before it |
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64};

use anyhow::{Context, Result, ensure};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, memfd_create};

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// A shared mapping of a memfd.
pub struct Shared {
    /// Invariant 1: maps `map.len()` bytes, readable and writable, until it is dropped.
    map: MmapRaw,
    file: File,
}

impl Shared {
    /// Makes `len` bytes of zeros that a child started later inherits.
    pub fn create(len: usize) -> Result<Self> {
        // Not closed on exec: the child finds it under the same number.
        let fd: OwnedFd = memfd_create("bench", MemfdFlags::empty()).context("memfd_create")?;
        let file = File::from(fd);
        file.set_len(len as u64)?;
        Self::map(file)
    }

    /// Maps what the parent made, by the number of its descriptor.
    pub fn inherited(fd: i32) -> Result<Self> {
        let path = format!("/proc/self/fd/{fd}");
        let file = File::options().read(true).write(true).open(&path);
        Self::map(file.with_context(|| format!("cannot open {path}"))?)
    }

    fn map(file: File) -> Result<Self> {
        let map = MmapOptions::new().populate().map_raw(&file)?;
        ensure!(map.len() >= LINE, "mapping of {} bytes", map.len());
        Ok(Shared { map, file })
    }

    /// The descriptor's number, which the child inherits.
    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// The 64-bit word at byte `offset`.
    ///
    /// # Panics
    /// When `offset` is not a multiple of 8 within the mapping.
    #[inline]
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset % 8 == 0 && offset < self.map.len() - 7);
        // SAFETY: the word lies within the mapping (assertion above and invariant 1).
        let word = unsafe { self.map.as_mut_ptr().add(offset) };
        // SAFETY: aligned, since a mapping starts on a page; it lives as long as `self`; every
        // access of either process to it, but for `copy_in`, is atomic.
        unsafe { AtomicU64::from_ptr(word.cast()) }
    }

    /// The 32-bit word at byte `offset`: the size that a futex has.
    ///
    /// # Panics
    /// When `offset` is not a multiple of 8 within the mapping.
    pub fn futex_word(&self, offset: usize) -> &AtomicU32 {
        let word = self.word(offset).as_ptr();
        // SAFETY: the first half of a word that `word` checked; no case uses it as 64 bits.
        unsafe { AtomicU32::from_ptr(word.cast()) }
    }

    /// Copies `source` to byte `offset` with one memcpy. The other side must not touch those bytes
    /// meanwhile: it waits for the stamp that is stored afterwards.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn copy_in(&self, offset: usize, source: &[u8]) {
        let end = offset.checked_add(source.len());
        assert!(end.is_some_and(|end| end <= self.map.len()));
        // SAFETY: within the mapping (assertion above and invariant 1).
        let target = unsafe { self.map.as_mut_ptr().add(offset) };
        // SAFETY: `target` has room for `source.len()` bytes; a slice of this process's heap does
        // not overlap a mapping; no one else accesses the target now, as the contract says.
        unsafe { target.copy_from_nonoverlapping(source.as_ptr(), source.len()) };
    }
}
