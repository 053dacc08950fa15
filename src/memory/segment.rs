//! One memory file: written by its owner, read by everybody else.
//!
//! Unsafe code is needed to name the bytes of a mapping.
//!
//! # Why only the owner can write
//!
//! The owner maps the file writable and then seals it `FUTURE_WRITE`: the kernel refuses every
//! later writable mapping, and clears the right to make a read-only one writable. `SHRINK` and
//! `GROW` fix the size, so that no reader can fault behind its end, and `SEAL` closes the list.
//! A reader checks all four and the size before it maps; what it was promised is not believed.
#![allow(unsafe_code)]

use std::any::Any;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{Advice, MmapOptions, MmapRaw};

use super::layout::SegmentRef;
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
    pub(crate) fn copy(&self, range: SegmentRef) -> std::io::Result<Vec<u8>> {
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

/// A segment of a peer's arena: mapped read-only.
pub(crate) struct PeerSegment {
    map: MmapRaw,
    /// Dropped behind the mapping: says that it is gone.
    _share: Box<dyn Any + Send + Sync>,
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
        Ok(PeerSegment { map, _share: share })
    }

    /// Copies bytes, whatever becomes of them meanwhile.
    #[cfg(all(feature = "json", not(loom)))]
    pub(crate) fn copy(&self, range: SegmentRef) -> Result<Vec<u8>, Fault> {
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
        self.map.len() as u64
    }

    /// The address of `range`, if all of it lies in the segment and starts on `align`.
    pub(crate) fn resolve(&self, range: SegmentRef, align: u64) -> Result<NonNull<u8>, Fault> {
        let end = range.offset.checked_add(range.len);
        if end.is_none_or(|end| end > self.len()) || range.offset % align != 0 {
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
        }
        // An empty range may start at the very end: that is one byte behind, still a valid place.
        // SAFETY: the offset is at most the length of the mapping.
        let place = unsafe { self.map.as_mut_ptr().add(range.offset as usize) };
        // SAFETY: a mapping never starts at zero.
        Ok(unsafe { NonNull::new_unchecked(place) })
    }
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
    fn what_is_no_memory_file_is_refused() {
        for path in ["/dev/null", "/dev/zero", "/proc/self/status", "/"] {
            let fd = std::fs::File::open(path).expect("every system has it");
            assert_eq!(map(&fd.into(), PAGE), Err(Fault::NotMemory), "{path}");
        }
        let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert_eq!(map(&socket.into(), PAGE), Err(Fault::NotMemory));
    }
}
