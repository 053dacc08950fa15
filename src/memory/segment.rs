//! One memory file: written by its owner, read by everybody else.
//!
//! Unsafe code is needed to name the bytes of a mapping, and to copy from one.
//!
//! # Why only the owner can write
//!
//! The owner maps the file writable and then seals it `FUTURE_WRITE`: the kernel refuses every
//! later writable mapping, and clears the right to make a read-only one writable. `SHRINK` and
//! `GROW` fix the size, so that no reader can fault behind its end, and `SEAL` closes the list.
//! A reader checks all four and the size before it maps; what it was promised is not believed.
//!
//! # Why a copy does not change
//!
//! The owner may change what it shares at any moment, also while it is copied. Each byte is read once, by a
//! volatile load, with no reference to it; what came of that lies in private memory, and is what is then checked
//! and borrowed. It may be of two moments, and is then as invalid, or as valid, as anything else that a peer sends.
#![allow(unsafe_code)]

use std::any::Any;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{Advice, MmapOptions, MmapRaw};
use rkyv::util::AlignedVec;

use super::layout::{CELL, SegmentRef};
use crate::error::{Fault, MemoryError};
use crate::sys::fork::Origin;
use crate::sys::{kernel_version, memfd};

/// The granule of a segment's size, in bytes.
pub(crate) const PAGE: u64 = 4096;

/// A segment of this process's own arena: mapped writable here, and nowhere else.
pub(crate) struct OwnSegment {
    id: u64,
    map: ManuallyDrop<MmapRaw>,
    fd: OwnedFd,
    origin: Origin,
}

/// The descriptor to hand to a peer.
impl AsFd for OwnSegment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl OwnSegment {
    /// Makes a segment of `len` bytes, rounded up to whole pages, all of them allocated now.
    pub(crate) fn create(id: u64, len: u64) -> Result<OwnSegment, MemoryError> {
        let len = len.next_multiple_of(PAGE);
        let exhausted = |source| MemoryError::Exhausted { bytes: len, source };
        let origin = Origin::here().map_err(exhausted)?;
        let fd = memfd::create(c"shmbus", len).map_err(exhausted)?;
        let map = MmapOptions::new()
            .len(usize::try_from(len).map_err(|_| MemoryError::TooLarge { bytes: len })?)
            .populate()
            .map_raw(&fd)
            .map_err(exhausted)?;
        // A forked child must not be a second writer. It then has no arena at all.
        map.advise(Advice::DontFork).map_err(exhausted)?;
        memfd::seal(fd.as_fd()).map_err(|source| MemoryError::Unsealable {
            kernel: kernel_version(),
            source,
        })?;
        Ok(OwnSegment {
            id,
            map: ManuallyDrop::new(map),
            fd,
            origin,
        })
    }

    /// The number by which messages refer to this segment; never used twice by one arena.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether this process was forked off the one that made it, and so does not have it.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        self.origin.is_forked()
    }

    /// The size in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// The address of a byte; the caller holds the range that starts there.
    pub(crate) fn at(&self, offset: u64) -> NonNull<u8> {
        assert!(offset < self.len(), "an own offset lies in its segment");
        // SAFETY: the offset was just checked to lie in the mapping.
        let place = unsafe { self.map.as_mut_ptr().add(offset as usize) };
        // SAFETY: a mapping never starts at zero.
        unsafe { NonNull::new_unchecked(place) }
    }
}

#[cfg(all(feature = "json", not(loom)))]
impl OwnSegment {
    /// Copies bytes out of the file that it is: other threads of ours may write there meanwhile.
    pub(crate) fn read_out(&self, range: SegmentRef) -> std::io::Result<Vec<u8>> {
        if range.len > self.len() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; range.len as usize];
        memfd::read_at(self.fd.as_fd(), &mut bytes, range.offset)?;
        Ok(bytes)
    }
}

impl Drop for OwnSegment {
    fn drop(&mut self) {
        // In a forked child there is no such mapping, and another may have taken its addresses.
        if !self.origin.is_forked() {
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.map) };
        }
    }
}

/// A segment of a peer's arena, mapped read-only; or, of a peer that is not trusted, a private copy of a part.
pub(crate) struct PeerSegment {
    bytes: Bytes,
    /// Dropped behind the mapping: says that it is gone.
    _share: Box<dyn Any + Send + Sync>,
}

enum Bytes {
    Mapped(MmapRaw),
    Copied {
        bytes: AlignedVec<CELL>,
        /// Where in its segment it was copied from.
        offset: u64,
        in_block: bool,
    },
}

impl PeerSegment {
    /// Checks the seals and the size of a descriptor that a peer sent, and maps it for reading.
    ///
    /// `share` is dropped once it is no longer mapped.
    pub(crate) fn map(
        fd: &OwnedFd,
        len: u64,
        most: u64,
        share: Box<dyn Any + Send + Sync>,
    ) -> Result<PeerSegment, Fault> {
        if len == 0 || len > most || len % PAGE != 0 {
            return Err(Fault::SegmentSize {
                announced: len,
                most,
            });
        }
        let seals = memfd::seals(fd.as_fd()).map_err(|_| Fault::NotMemory)?;
        if seals & memfd::SEALS != memfd::SEALS {
            return Err(Fault::Unsealed {
                found: seals,
                wanted: memfd::SEALS,
            });
        }
        let (size, allocated) = memfd::size(fd.as_fd()).map_err(|_| Fault::NotMemory)?;
        // Pages that its owner did not allocate would be allocated by our reading them.
        let found = if size == len { allocated } else { size };
        if size != len || found < len {
            return Err(Fault::SegmentShort {
                announced: len,
                found,
            });
        }
        let map = MmapOptions::new()
            .len(len as usize)
            .populate()
            .map_raw_read_only(fd)
            .map_err(|_| Fault::CannotMap { bytes: len })?;
        let bytes = Bytes::Mapped(map);
        Ok(PeerSegment {
            bytes,
            _share: share,
        })
    }

    /// Copies a message of a peer that is not trusted; the copy is aligned as any message may be.
    ///
    /// `offset` is where it lies in its segment, of a message that others refer to; `in_block` whether it lies in a
    /// segment's block, and not in cells. `share` is dropped with the copy.
    ///
    /// # Safety
    ///
    /// 1. The range is mapped for reading.
    pub(crate) unsafe fn copy(
        from: NonNull<[u8]>,
        offset: u64,
        in_block: bool,
        share: Box<dyn Any + Send + Sync>,
    ) -> PeerSegment {
        // SAFETY: 1.
        let bytes = unsafe { copy_once(from) };
        PeerSegment {
            bytes: Bytes::Copied {
                bytes,
                offset,
                in_block,
            },
            _share: share,
        }
    }

    /// Whether it is a copy.
    pub(crate) fn is_copy(&self) -> bool {
        matches!(self.bytes, Bytes::Copied { .. })
    }

    /// Whether a message in it came in a block, and not in the cells of its lane.
    pub(crate) fn is_block(&self) -> bool {
        match self.bytes {
            Bytes::Mapped(_) => true,
            Bytes::Copied { in_block, .. } => in_block,
        }
    }

    /// All of its bytes.
    pub(crate) fn bytes(&self) -> NonNull<[u8]> {
        let (start, len) = match &self.bytes {
            Bytes::Mapped(map) => (map.as_mut_ptr(), map.len()),
            Bytes::Copied { bytes, .. } => (bytes.as_ptr().cast_mut(), bytes.len()),
        };
        // SAFETY: neither a mapping nor a vector starts at zero.
        let start = unsafe { NonNull::new_unchecked(start) };
        NonNull::slice_from_raw_parts(start, len)
    }

    /// Copies bytes, whatever becomes of them meanwhile.
    #[cfg(all(feature = "json", not(loom)))]
    pub(crate) fn read_out(&self, range: SegmentRef) -> Result<Vec<u8>, Fault> {
        let place = self.resolve(range, 8)?.cast::<u64>();
        let len = range.len as usize;
        let mut bytes = Vec::with_capacity(len.next_multiple_of(8));
        for word in 0..len.div_ceil(8) {
            // SAFETY: the word starts in the range, which lies in the mapping, as whole words do: it has whole pages.
            let at = unsafe { place.add(word) };
            // SAFETY: as above, and aligned. Read once: the peer may be writing there.
            let word = unsafe { at.read_volatile() };
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    /// The size in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    /// The address of `range`, if all of it lies in the segment, or in the part that this is a copy of, and starts on
    /// `align`.
    pub(crate) fn resolve(&self, range: SegmentRef, align: u64) -> Result<NonNull<u8>, Fault> {
        let before = match self.bytes {
            Bytes::Mapped(_) => 0,
            Bytes::Copied { offset, .. } => offset,
        };
        let offset = range.offset.checked_sub(before);
        let offset = offset.filter(|offset| {
            let end = offset.checked_add(range.len);
            end.is_some_and(|end| end <= self.len()) && range.offset % align == 0
        });
        let Some(offset) = offset else {
            let SegmentRef {
                segment,
                offset,
                len,
                ..
            } = range;
            return Err(Fault::Reference {
                segment,
                offset,
                len,
                size: self.len(),
            });
        };
        // An empty range may start at the very end: that is one byte behind, still a valid place.
        // SAFETY: the offset is at most the length of the bytes.
        Ok(unsafe { self.bytes().cast::<u8>().add(offset as usize) })
    }
}

/// Copies bytes that somebody else may change meanwhile: each is read once. As fast as memory is, for all but short
/// ones.
///
/// # Safety
///
/// 1. The range is mapped for reading.
pub(crate) unsafe fn copy_once(from: NonNull<[u8]>) -> AlignedVec<CELL> {
    const WORD: usize = size_of::<u64>();
    let (start, len) = (from.cast::<u8>(), from.len());
    // One that has no memory is not aligned.
    let mut copy = AlignedVec::with_capacity(len.max(1));
    let first = start.as_ptr().align_offset(WORD).min(len);
    let words = (len - first) / WORD;
    let copy_byte = |copy: &mut AlignedVec<CELL>, at: usize| {
        // SAFETY: the byte lies in the range.
        let byte = unsafe { start.add(at) };
        // SAFETY: 1.
        copy.push(unsafe { byte.read_volatile() });
    };
    (0..first).for_each(|at| copy_byte(&mut copy, at));
    for at in 0..words {
        // SAFETY: the word lies in the range.
        let word = unsafe { start.add(first + at * WORD) }.cast::<u64>();
        // SAFETY: 1., and it is aligned.
        let word = unsafe { word.read_volatile() };
        // SAFETY: the word lies in the capacity of the vector.
        let to = unsafe { copy.as_mut_ptr().add(first + at * WORD) };
        // SAFETY: as above; it may be unaligned.
        unsafe { to.cast::<u64>().write_unaligned(word) };
    }
    // SAFETY: so many bytes were written, within the capacity.
    unsafe { copy.set_len(first + words * WORD) };
    (first + words * WORD..len).for_each(|at| copy_byte(&mut copy, at));
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 1 << 20;

    fn file(len: u64) -> OwnedFd {
        memfd::create(c"shmbus-test", len).expect("the system has memory")
    }

    fn map(fd: &OwnedFd, len: u64) -> Result<u64, Fault> {
        PeerSegment::map(fd, len, MOST, Box::new(())).map(|segment| segment.len())
    }

    #[test]
    fn a_sealed_segment_is_mapped() {
        let own = OwnSegment::create(1, 3 * PAGE - 5).expect("the system has memory");
        let fd = own.as_fd().try_clone_to_owned().expect("it can be cloned");
        assert_eq!(map(&fd, own.len()), Ok(3 * PAGE));
    }

    #[test]
    fn an_unsealed_segment_is_refused() {
        let fd = file(PAGE);
        let seals = |fd: &OwnedFd| memfd::seals(fd.as_fd()).expect("a memory file");
        let found = seals(&fd);
        let wanted = memfd::SEALS;
        assert_eq!(map(&fd, PAGE), Err(Fault::Unsealed { found, wanted }));
        // Each one that is needed is missed.
        for missing in [
            libc::F_SEAL_SHRINK,
            libc::F_SEAL_GROW,
            libc::F_SEAL_FUTURE_WRITE,
            libc::F_SEAL_SEAL,
        ] {
            let fd = file(PAGE);
            memfd::add_seals(fd.as_fd(), wanted & !missing).expect("seals can be added");
            let found = seals(&fd);
            assert_eq!(found & missing, 0);
            assert_eq!(map(&fd, PAGE), Err(Fault::Unsealed { found, wanted }));
        }
    }

    #[test]
    fn a_segment_of_another_size_is_refused() {
        let fd = file(2 * PAGE);
        memfd::seal(fd.as_fd()).expect("it can be sealed");
        for announced in [PAGE, 3 * PAGE, MOST] {
            let found = 2 * PAGE;
            let fault = Fault::SegmentShort { announced, found };
            assert_eq!(map(&fd, announced), Err(fault));
        }
        for announced in [0, 1, PAGE + 1, MOST + PAGE, u64::MAX] {
            let most = MOST;
            let fault = Fault::SegmentSize { announced, most };
            assert_eq!(map(&fd, announced), Err(fault));
        }
    }

    #[test]
    fn a_sparse_segment_is_refused() {
        let fd = file(2 * PAGE);
        let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        memfd::allocate(fd.as_fd(), hole, 0, PAGE).expect("it is not sealed yet");
        memfd::seal(fd.as_fd()).expect("it can be sealed");
        let (announced, found) = (2 * PAGE, PAGE);
        let fault = Fault::SegmentShort { announced, found };
        assert_eq!(map(&fd, announced), Err(fault));
    }

    #[test]
    fn a_copy_has_all_bytes_wherever_they_lie() {
        let bytes: Vec<u8> = (0..=255).collect();
        for start in 0..17 {
            for len in 0..40 {
                let part = &bytes[start..start + len];
                // SAFETY: 1. it is a slice.
                let copy = unsafe {
                    PeerSegment::copy(NonNull::from(part), start as u64, false, Box::new(()))
                };
                // SAFETY: they are the bytes of the copy, which lives.
                assert_eq!(unsafe { copy.bytes().as_ref() }, part);
                assert_eq!(copy.bytes().addr().get() % CELL, 0);
            }
        }
    }

    #[test]
    fn a_copy_answers_for_the_part_that_it_is_of() {
        let from = NonNull::from(&[7u8; 192][..]);
        // SAFETY: 1. it is an array.
        let copy = unsafe { PeerSegment::copy(from, 128, true, Box::new(())) };
        let at = |offset, len| {
            let segment = 3;
            let range = SegmentRef {
                segment,
                offset,
                len,
            };
            let place = copy.resolve(range, 64).ok()?;
            Some(place.addr().get() - copy.bytes().addr().get())
        };
        assert_eq!(at(128, 192), Some(0));
        assert_eq!(at(192, 128), Some(64));
        assert_eq!(at(320, 0), Some(192));
        for (offset, len) in [
            (64, 64),
            (0, 1),
            (128, 193),
            (192, 129),
            (130, 8),
            (u64::MAX, 1),
        ] {
            assert_eq!(at(offset, len), None, "{offset}..+{len}");
        }
    }

    #[test]
    fn what_is_no_memory_file_is_refused() {
        for path in ["/dev/null", "/dev/zero", "/proc/self/status", "/"] {
            let fd = std::fs::File::open(path).expect("every system has it");
            assert_eq!(map(&fd.into(), PAGE), Err(Fault::NotMemory), "{path}");
        }
        let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert_eq!(map(&socket.into(), PAGE), Err(Fault::NotMemory));
    }
}
