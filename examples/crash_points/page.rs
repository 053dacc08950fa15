//! The page that the harness shares with each child: what the child was promised, and how far it is.
//!
//! Unsafe code is needed to see words of a mapped page as atomics.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const BYTES: usize = 4096;

/// What each word of the page says.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub enum Word {
    /// How far the child is: see [`Phase`].
    Phase,
    /// Set by the harness: the child goes on from its gate.
    Go,
    /// How many of its calls the child has begun.
    Begun,
    /// How many of them have returned that they did what they are for.
    Done,
    /// How many messages the child wants of the survivor.
    Wanted,
    /// Set by the harness: how many it has sent.
    Sent,
    /// Which child this is.
    Run,
}

const WORDS: [Word; 7] = [
    Word::Phase,
    Word::Go,
    Word::Begun,
    Word::Done,
    Word::Wanted,
    Word::Sent,
    Word::Run,
];

/// How far a child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It sets itself up.
    Starting,
    /// It offers its port to the survivor.
    Offered,
    /// It waits at its gate, right before the operation.
    Ready,
    /// It is in the operation.
    Running,
    /// It has left the operation.
    Ended,
}

/// See the module.
pub struct Page {
    file: File,
    map: MmapRaw,
}

impl Page {
    /// A new page, whose descriptor children inherit.
    pub fn new() -> Result<Page> {
        let fd = memfd_create("crash-points", MemfdFlags::empty())?;
        ftruncate(&fd, BYTES as u64)?;
        Page::map(File::from(fd))
    }

    /// The page that this child inherited as descriptor `fd`.
    pub fn inherited(fd: RawFd) -> Result<Page> {
        if fd <= 2 {
            bail!("{fd} is no descriptor of a page");
        }
        // SAFETY: the harness left it to this process, whose first and only call of this takes it.
        Page::map(unsafe { File::from_raw_fd(fd) })
    }

    fn map(file: File) -> Result<Page> {
        let map = MmapOptions::new().len(BYTES).map_raw(&file);
        let map = map.context("the shared page cannot be mapped")?;
        Ok(Page { file, map })
    }

    /// The number of the descriptor that a child inherits.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        let at = self.map.as_mut_ptr().cast::<u64>();
        let at = at.wrapping_add(word as usize);
        // SAFETY: the page is mapped as long as `self` lives, has more words than `Word` names, is aligned,
        // and is looked at as atomics only, by both processes.
        unsafe { AtomicU64::from_ptr(at) }
    }

    /// What a word says now.
    pub fn get(&self, word: Word) -> u64 {
        // SYNC(page): Acquire; pairs with Release in `set`.
        self.word(word).load(Ordering::Acquire)
    }

    /// Says something else.
    pub fn set(&self, word: Word, value: u64) {
        // SYNC(page): Release; pairs with Acquire in `get`.
        self.word(word).store(value, Ordering::Release);
    }

    /// Makes it the page of the next child.
    pub fn reset(&self, run: u64) {
        WORDS.iter().for_each(|&word| self.set(word, 0));
        self.set(Word::Run, run);
    }

    /// How far the child is.
    pub fn phase(&self) -> Phase {
        match self.get(Word::Phase) {
            0 => Phase::Starting,
            1 => Phase::Offered,
            2 => Phase::Ready,
            3 => Phase::Running,
            _ => Phase::Ended,
        }
    }

    /// In the child: says how far it is.
    pub fn enter(&self, phase: Phase) {
        self.set(Word::Phase, phase as u64);
    }

    /// The number of the child's message `number`, which no other message of any child has.
    pub fn id(&self, number: u64) -> u64 {
        self.get(Word::Run) << 16 | number
    }

    /// Whether the child was promised at most, and begun at least, so much.
    pub fn allows(&self, number: u64) -> bool {
        (self.get(Word::Done)..=self.get(Word::Begun)).contains(&number)
    }
}
