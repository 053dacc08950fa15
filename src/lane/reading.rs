//! Newest values, as one reader finds them on the board of one publisher.
//!
//! What the board says is the peer's: each word is read once, checked, and then used. A value is looked at only
//! while it is held (`memory::board`).
//!
//! Unsafe code is needed to read a value's header, and to lay entries over rows that were checked.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::board::message_start;
use crate::error::Fault;
use crate::link::Link;
use crate::memory::board::{Location, hold_newest, let_go, place_of, row_len};
use crate::memory::layout::{BOARD_ROWS, BoardBlock, CELL, Entry, HoldBlock, ValueHeader};
use crate::memory::ring::HandBack;
use crate::memory::segment::PeerSegment;
use crate::memory::shared::Shared;
use crate::message::MAX_MESSAGE;
use crate::sync::load_acquire;
use crate::sys::fork::Origin;

/// How long a segment is waited for that a board refers to. Its announcement was made before, but lies with its
/// sender as long as our socket is full, which we empty while we wait.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(if cfg!(fuzzing) { 0 } else { 1 });

/// What a lane of newest values is opened with.
pub(crate) struct Newest {
    pub(super) head: Shared<BoardBlock>,
    pub(super) hold: Shared<HoldBlock>,
}

/// See the module.
pub(crate) struct Reading {
    newest: Newest,
    rows: Vec<Shared<[Entry]>>,
    align: usize,
    link: Arc<Link>,
    asymmetric: bool,
    origin: Origin,
    /// Dropped last: says that nothing of the publisher's is looked at any more.
    _back: Arc<HandBack>,
}

/// A value that is held until this is dropped.
pub(crate) struct Holding<'a> {
    hold: &'a HoldBlock,
    origin: Origin,
}

impl Drop for Holding<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // A forked child has no hold: the memory of this one is its parent's alone.
        if !self.origin.is_forked() {
            let_go(&self.hold.hold);
        }
    }
}

/// A value, as its publisher describes it: its range is checked, its content is not yet.
pub(crate) struct Found {
    pub(crate) version: u64,
    pub(crate) published: u64,
    pub(crate) header: NonNull<ValueHeader>,
    pub(crate) bytes: NonNull<[u8]>,
    /// Where both lie; or, of a publisher that is not trusted, the copy of its bytes, which holds that mapped.
    pub(crate) segment: Arc<PeerSegment>,
}

impl Reading {
    /// A board whose values have messages of this alignment.
    pub(super) fn new(
        newest: Newest,
        align: usize,
        link: Arc<Link>,
        back: Arc<HandBack>,
    ) -> Reading {
        Reading {
            newest,
            rows: Vec::new(),
            align,
            asymmetric: link.is_asymmetric(),
            origin: back.origin(),
            link,
            _back: back,
        }
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// How often entries were given to other keys.
    pub(crate) fn bindings(&self) -> u64 {
        // SYNC(bindings): Acquire; pairs with Release in `Board::bind`.
        load_acquire(&self.newest.head.bindings)
    }

    /// How many entries there are; those can be asked for from then on.
    pub(crate) fn count(&mut self) -> Result<usize, Fault> {
        // SYNC(count): Acquire; pairs with Release in `Board::count`.
        let count = load_acquire(&self.newest.head.count) as usize;
        let Some(last) = count.checked_sub(1) else {
            return Ok(0);
        };
        let (row, _) = place_of(last).ok_or(Fault::Control {
            what: "a board of too many entries",
        })?;
        while self.rows.len() <= row {
            self.find_row()?;
        }
        Ok(count)
    }

    #[cold]
    fn find_row(&mut self) -> Result<(), Fault> {
        let row = self.rows.len();
        debug_assert!(row < BOARD_ROWS);
        // SYNC(rows): Acquire; pairs with Release in `Board::show_entry`.
        let location = Location::from_word(load_acquire(&self.newest.head.rows[row]));
        let size = row_len(row) * size_of::<Entry>();
        let at = location.reference(size).ok_or(Fault::Control {
            what: "a board without one of its rows",
        })?;
        let segment = self.segment(at.segment)?;
        let place = segment.resolve(at, CELL as u64)?;
        // SAFETY: 1. the range was resolved for so many entries, on a larger alignment.
        let entries = unsafe { Shared::<[Entry]>::peer_slice(segment, place, row_len(row)) };
        self.rows.push(entries);
        Ok(())
    }

    fn entry(&self, index: usize) -> Option<&Entry> {
        let (row, at) = place_of(index)?;
        self.rows.get(row)?.get(at)
    }

    /// The number of an entry's last change; zero where there was none.
    pub(crate) fn version(&self, index: usize) -> u64 {
        // SYNC(version): Acquire; pairs with Release in `replace`.
        self.entry(index)
            .map_or(0, |entry| load_acquire(&entry.version))
    }

    /// Where the newest value of an entry lies, which is not held.
    pub(crate) fn location(&self, index: usize) -> Location {
        let location = self.entry(index).map(|entry| load_acquire(&entry.location));
        location.map_or(Location::NOWHERE, Location::from_word)
    }

    /// Holds the newest value of an entry, until another is held or this one is [let go](Self::let_go).
    #[inline(always)]
    pub(crate) fn hold(&self, index: usize) -> Location {
        let hold = &self.newest.hold.hold;
        self.entry(index).map_or(Location::NOWHERE, |entry| {
            hold_newest(entry, index, hold, self.asymmetric)
        })
    }

    /// Nothing is looked at any more.
    #[inline(always)]
    pub(crate) fn let_go(&self) {
        let_go(&self.newest.hold.hold);
    }

    /// Lets go when it is dropped.
    #[inline(always)]
    pub(crate) fn holding(&self) -> Holding<'_> {
        Holding {
            hold: &self.newest.hold,
            origin: self.origin,
        }
    }

    /// Holds whatever that says.
    #[cfg(test)]
    pub(crate) fn forge_hold(&self, word: u64) {
        let hold = &self.newest.hold.hold;
        hold.store(word, crate::sync::Ordering::Release);
    }

    /// Finds a value that is held.
    pub(crate) fn find(&self, location: Location) -> Result<Found, Fault> {
        const NONE: Fault = Fault::Control {
            what: "a board that refers to no place",
        };
        let head = location.reference(size_of::<ValueHeader>()).ok_or(NONE)?;
        let segment = self.segment(head.segment)?;
        let header: NonNull<ValueHeader> = segment.resolve(head, CELL as u64)?.cast();
        let word = |at: usize| {
            let words = header.as_ptr().cast::<u64>().cast_const();
            // SAFETY: the header was resolved on its alignment, for three words. Each is read once: what is checked
            // must be what is then used.
            unsafe { words.wrapping_add(at).read_volatile() }
        };
        let (version, len, published) = (word(0), word(1), word(2));
        let start = message_start(self.align);
        let len = usize::try_from(len).ok().filter(|&len| len <= MAX_MESSAGE);
        let whole = location.reference(start + len.ok_or(NONE)?).ok_or(NONE)?;
        let place = segment.resolve(whole, CELL as u64)?;
        // SAFETY: the range was resolved, with the message's start in it.
        let message = unsafe { place.add(start) };
        let mut bytes = NonNull::slice_from_raw_parts(message, whole.len as usize - start);
        let mut segment = segment;
        if let Some(most) = self.link.copies() {
            if bytes.len() > most {
                let bytes = bytes.len();
                return Err(Fault::TooLarge { bytes, most });
            }
            // With the segment: the header stays where it is.
            // SAFETY: 1. the range was resolved in the segment.
            let copy = unsafe { PeerSegment::copy(bytes, 0, true, Box::new(segment)) };
            bytes = copy.bytes();
            segment = Arc::new(copy);
        }
        Ok(Found {
            version,
            published,
            header,
            bytes,
            segment,
        })
    }

    fn segment(&self, id: u64) -> Result<Arc<PeerSegment>, Fault> {
        if let Ok(segment) = self.link.segment(id) {
            return Ok(segment);
        }
        let deadline = Instant::now() + ANNOUNCED_WITHIN;
        loop {
            match self.link.segment(id) {
                Err(_) if Instant::now() < deadline && !self.link.is_dead() => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                found => return found,
            }
        }
    }
}

/// The version of a value that is held, and was found before.
///
/// # Safety
///
/// 1. `header` is that of a [`Found`] whose segment is held.
#[inline(always)]
pub(crate) unsafe fn version_at(header: NonNull<ValueHeader>) -> u64 {
    // SAFETY: 1. the first word of a header in a mapping; read once.
    unsafe { header.as_ptr().cast::<u64>().read_volatile() }
}
