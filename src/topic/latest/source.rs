//! What a reader knows of the board of one publisher.
//!
//! Unsafe code is needed to look at values that were validated, while they are held.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use super::current::Current;
use crate::error::Fault;
use crate::lane::{Found, Reading, version_at};
use crate::memory::board::{Location, MOST_KEY, MOST_KEY_BYTES};
use crate::memory::layout::ValueHeader;
use crate::memory::segment::PeerSegment;
use crate::message::{LatestKey, ShmLatest, check};

/// What was mapped a moment ago is little more than this.
const SLACK: u64 = 64 << 20;

/// What is known of an entry.
pub(super) struct Known<T: ShmLatest> {
    /// The value that was read last, and where it lies. Weak, so that its segment is not held.
    location: Location,
    pub(super) version: u64,
    pub(super) published: u64,
    header: NonNull<ValueHeader>,
    archived: NonNull<T::Archived>,
    segment: Weak<PeerSegment>,
    /// The key by which the entry is found; none where it has no value.
    pub(super) key: Option<Box<[u8]>>,
    /// The last change that was told of, and the key of its value.
    pub(super) told: u64,
    pub(super) told_key: Option<Box<[u8]>>,
    /// Whether it stands in the queue of those that may have changed.
    pub(super) is_queued: bool,
}

// SAFETY: its pointers lead into mappings that are only read, and are only followed while their source holds the value.
unsafe impl<T: ShmLatest<Archived: Sync>> Send for Known<T> {}

impl<T: ShmLatest> Known<T> {
    fn new() -> Known<T> {
        Known {
            location: Location::NOWHERE,
            version: 0,
            published: 0,
            header: NonNull::dangling(),
            archived: NonNull::dangling(),
            segment: Weak::new(),
            key: None,
            told: 0,
            told_key: None,
            is_queued: false,
        }
    }
}

/// What holding an entry came to.
pub(super) enum Hold {
    Nothing,
    /// The value that was read before; its segment.
    Known(Arc<PeerSegment>),
    /// Another one, of this key.
    Read(Arc<PeerSegment>, Box<[u8]>),
}

/// See the module.
pub(super) struct Source<T: ShmLatest> {
    reading: Reading,
    pub(super) entries: Vec<Known<T>>,
    /// How often entries had been given to other keys when all of them were last looked at.
    pub(super) bindings: u64,
    /// How many notes were meant for this reader when all entries were last looked at for want of some.
    pub(super) offered: u64,
    /// How many bytes the keys of its entries have, and how many of messages were validated.
    key_bytes: usize,
    pub(super) validated: u64,
    /// Its publisher broke the protocol.
    is_broken: bool,
}

impl<T: ShmLatest> Source<T> {
    pub(super) fn new(reading: Reading) -> Source<T> {
        Source {
            reading,
            entries: Vec::new(),
            bindings: 0,
            offered: 0,
            key_bytes: 0,
            validated: 0,
            is_broken: false,
        }
    }

    /// How often entries were given to other keys.
    pub(super) fn bindings_now(&self) -> u64 {
        self.reading.bindings()
    }

    /// The number of the last change of an entry.
    pub(super) fn version(&self, index: usize) -> u64 {
        self.reading.version(index)
    }

    /// Learns how many entries there are, of which so many may be known here.
    pub(super) fn count(&mut self, most: usize) -> usize {
        match self.reading.count() {
            _ if self.is_broken => 0,
            Ok(count) if count > most => {
                self.broken(Fault::Control {
                    what: "one of too many boards of newest values",
                });
                0
            }
            Ok(count) => {
                let count = count.max(self.entries.len());
                self.entries.resize_with(count, Known::new);
                count
            }
            Err(fault) => {
                self.broken(fault);
                0
            }
        }
    }

    /// Holds the newest value of an entry until it is let go; validates it, where it is another than before.
    #[inline]
    pub(super) fn hold(&mut self, index: usize) -> Hold {
        if self.is_broken || index >= self.entries.len() {
            return Hold::Nothing;
        }
        let location = self.reading.hold(index);
        let known = &self.entries[index];
        if location == known.location && location != Location::NOWHERE {
            if let Some(segment) = known.segment.upgrade() {
                // SAFETY: 1. it is that of the value that was found there, in this segment.
                if unsafe { version_at(known.header) } == known.version {
                    return Hold::Known(segment);
                }
            }
        }
        self.read(index, location)
    }

    /// Reads a value that was not read before, and is held.
    #[cold]
    fn read(&mut self, index: usize, location: Location) -> Hold {
        if location == Location::NOWHERE {
            let known = &mut self.entries[index];
            (known.location, known.segment) = (location, Weak::new());
            return Hold::Nothing;
        }
        let found = self.reading.find(location);
        let valid = found.and_then(|found| Ok((validate::<T>(&found)?, found)));
        let (archived, found) = match valid {
            Ok(valid) => valid,
            Err(fault) => {
                self.broken(fault);
                return Hold::Nothing;
            }
        };
        self.validated += found.bytes.len() as u64;
        let known = &mut self.entries[index];
        known.location = location;
        known.version = found.version;
        known.published = found.published;
        known.header = found.header;
        known.archived = archived;
        known.segment = Arc::downgrade(&found.segment);
        // SAFETY: it was just validated, and is held.
        let key = T::archived_key(unsafe { archived.as_ref() });
        let key = T::Key::with_archived(key, |key| Box::from(key));
        Hold::Read(found.segment, key)
    }

    /// An entry has this key from now on. False, and the end of the link, where its keys are too long.
    pub(super) fn bind(&mut self, index: usize, key: Box<[u8]>) -> bool {
        self.key_bytes += key.len();
        if key.len() > MOST_KEY || self.key_bytes > MOST_KEY_BYTES {
            self.broken(Fault::Control {
                what: "a board whose keys are too long",
            });
            return false;
        }
        self.entries[index].key = Some(key);
        true
    }

    /// An entry has no key any more.
    pub(super) fn unbind(&mut self, index: usize) -> Option<Box<[u8]>> {
        let key = self.entries[index].key.take()?;
        self.key_bytes -= key.len();
        Some(key)
    }

    /// Whether the value of an entry is still the one that was read last.
    pub(super) fn is_as_read(&self, index: usize) -> bool {
        let known = &self.entries[index];
        // Its version was written behind its location: of an honest publisher, both show a value that was removed.
        self.reading.version(index) == known.version
            && self.reading.location(index) == known.location
    }

    /// Ends the link of a publisher that has several values of one key, or has had more validated than it can have.
    #[cold]
    pub(super) fn refuse(&mut self, what: &'static str) {
        self.broken(Fault::Control { what });
    }

    /// The most bytes of messages that an honest publisher has: two times what there is of its memory, as values may be
    /// replaced while others are looked at.
    pub(super) fn most_bytes(&self) -> u64 {
        2 * self.reading.link().mapped_bytes() + SLACK
    }

    /// Nothing of this board is looked at any more.
    pub(super) fn let_go(&self) {
        self.reading.let_go();
    }

    /// Borrows the value of an entry.
    ///
    /// # Safety
    ///
    /// 1. It is held: the last thing that was asked of this source was to hold it, which has returned this segment.
    #[inline]
    pub(super) unsafe fn current(&self, index: usize, segment: Arc<PeerSegment>) -> Current<'_, T> {
        let known = &self.entries[index];
        // SAFETY: by 1. it was validated, and its publisher does not write it before it is let go, which the returned
        // does when it is dropped. Until then nothing else can be held, since that needs `&mut self`.
        let archived = unsafe { known.archived.as_ref() };
        Current::new(archived, self.reading.holding(), known.published, segment)
    }

    #[cfg(test)]
    pub(super) fn forge_hold(&self, word: u64) {
        self.reading.forge_hold(word);
    }

    #[cold]
    fn broken(&mut self, fault: Fault) {
        self.is_broken = true;
        self.reading.let_go();
        self.reading.link().die(Some(fault));
    }
}

fn validate<T: ShmLatest>(found: &Found) -> Result<NonNull<T::Archived>, Fault> {
    // SAFETY: the range lies in a segment that is mapped as long as what was found, and an honest publisher does not
    // write it while it is held; or it is a copy. For a malicious one that is trusted, see the crate's documentation,
    // under trust.
    let bytes = unsafe { found.bytes.as_ref() };
    match check::<T>(bytes) {
        Ok(archived) => Ok(NonNull::from(archived)),
        Err(error) => Err(Fault::Message {
            message: T::NAME,
            what: error.to_string(),
        }),
    }
}
