//! The writer that archives a message where it is sent from.
//!
//! Unsafe code: the destination is memory that a peer may read at the same time, so there is no
//! `&mut [u8]` over it, only a pointer that bytes are copied to. All of it is in two functions here.
#![allow(unsafe_code)]

use std::ptr;

use rkyv::rancor::Strategy;
use rkyv::ser::{Positional, Serializer, Writer};

use super::codec::CodecError;

/// The longest message, in bytes: 1 GiB.
///
/// Relative pointers have 31 bits and text has lengths of 30 bits; beyond this, archiving would fail
/// in less orderly ways.
pub const MAX_MESSAGE: usize = 1 << 30;

/// Writes a message into a destination of fixed size, and goes on counting when it is full.
///
/// So one pass either writes the message, or says exactly how large a destination it needs.
/// Nothing is written past the end.
///
/// # Examples
///
/// ```
/// use rkyv::ser::Writer;
/// use shmbus::message::{CodecError, SlotWriter};
///
/// let mut writer = SlotWriter::counting();
/// Writer::<CodecError>::write(&mut writer, b"hello")?;
/// assert!(writer.overflowed());
/// assert_eq!(writer.needed(), 5);
/// # Ok::<(), CodecError>(())
/// ```
#[derive(Debug)]
pub struct SlotWriter {
    /// Start of the destination.
    ///
    /// # Invariants
    ///
    /// 1. `base` is valid for reads and writes of `capacity` bytes for as long as the writer is used, and
    ///    nobody else writes there meanwhile.
    /// 2. `capacity <= MAX_MESSAGE`.
    base: *mut u8,
    capacity: usize,
    /// Bytes below this were there before.
    start: usize,
    /// Where the next byte goes, or would go. Only grows; beyond `capacity` nothing is written.
    pos: usize,
}

impl SlotWriter {
    /// Creates a writer over `capacity` bytes at `base`, of which the first `start` are filled already.
    ///
    /// What is written beyond [`MAX_MESSAGE`] is refused, so a larger capacity is not used.
    ///
    /// # Safety
    ///
    /// 1. `base` is valid for reads and writes of `capacity` bytes until the writer was last used.
    /// 2. Nobody else writes there meanwhile, and no Rust reference to these bytes is used.
    #[inline]
    pub unsafe fn new(base: *mut u8, capacity: usize, start: usize) -> Self {
        Self {
            base,
            capacity: capacity.min(MAX_MESSAGE),
            start,
            pos: start,
        }
    }

    /// Creates a writer that only counts.
    #[inline]
    pub fn counting() -> Self {
        Self {
            base: ptr::NonNull::dangling().as_ptr(),
            capacity: 0,
            start: 0,
            pos: 0,
        }
    }

    /// Returns the position after the last byte that was written or counted.
    #[inline]
    pub fn pos(&self) -> usize {
        self.pos
    }

    /// Returns how many bytes the destination must have for what was written or counted so far.
    #[inline]
    pub fn needed(&self) -> usize {
        self.pos
    }

    /// Tells whether something did not fit, so that what stands in the destination is no message.
    #[inline]
    pub fn overflowed(&self) -> bool {
        self.pos > self.capacity
    }

    /// Returns what was written, if everything fitted.
    #[inline]
    pub(super) fn written(&self) -> Option<*const [u8]> {
        (!self.overflowed()).then(|| ptr::slice_from_raw_parts(self.base, self.pos))
    }
}

impl Positional for SlotWriter {
    #[inline]
    fn pos(&self) -> usize {
        self.pos
    }
}

impl Writer<CodecError> for SlotWriter {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        // No overflow: `pos` is at most `MAX_MESSAGE` and a slice at most `isize::MAX` long.
        let end = self.pos + bytes.len();
        if end <= self.capacity {
            // SAFETY: `pos <= end <= capacity`, and `base` is valid for `capacity` bytes
            // (invariant 1).
            let to = unsafe { self.base.add(self.pos) };
            // SAFETY: `to` is valid for writes of `bytes.len() = end - pos` bytes, since
            // `end <= capacity`; nobody holds a reference there (invariant 1), so `bytes` does not
            // overlap.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        } else if end > MAX_MESSAGE {
            return Err(CodecError::too_large());
        }
        self.pos = end;
        Ok(())
    }
}

/// A serializer that knows which bytes of its destination were there before it began.
///
/// A field whose bytes the user has filled in place already asks for their position, instead of
/// writing them again.
pub trait InPlace {
    /// Returns the position of `len` bytes at `ptr`, if they lie in the part of the destination that
    /// was filled before the serializer began.
    fn in_place(&mut self, ptr: *const u8, len: usize) -> Option<usize>;
}

impl InPlace for SlotWriter {
    #[inline]
    fn in_place(&mut self, ptr: *const u8, len: usize) -> Option<usize> {
        let pos = ptr.addr().checked_sub(self.base.addr())?;
        let end = pos.checked_add(len)?;
        (end <= self.start.min(self.capacity)).then_some(pos)
    }
}

impl<W: InPlace, A, S, E> InPlace for Strategy<Serializer<W, A, S>, E> {
    #[inline]
    fn in_place(&mut self, ptr: *const u8, len: usize) -> Option<usize> {
        self.writer.in_place(ptr, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(bytes: &mut [u8], start: usize) -> SlotWriter {
        // SAFETY: the tests do not touch `bytes` until they are done with the writer.
        unsafe { SlotWriter::new(bytes.as_mut_ptr(), bytes.len(), start) }
    }

    #[test]
    fn counts_on_when_it_is_full() {
        let mut bytes = [0xEE; 8];
        let mut writer = over(&mut bytes, 0);
        writer.write(b"abcdef").unwrap();
        assert!(!writer.overflowed());
        writer.write(b"ghi").unwrap();
        writer.write(b"j").unwrap();
        assert!(writer.overflowed());
        assert_eq!(writer.needed(), 10);
        assert!(writer.written().is_none());
        assert_eq!(&bytes, b"abcdef\xEE\xEE");
    }

    #[test]
    fn refuses_more_than_the_longest_message() {
        let mut writer = SlotWriter::counting();
        writer.pos = MAX_MESSAGE - 1;
        writer.write(b"a").unwrap();
        assert!(writer.write(b"b").is_err());
        assert_eq!(writer.needed(), MAX_MESSAGE);
    }

    #[test]
    fn finds_what_is_in_place() {
        let mut bytes = [0; 32];
        let ptr = bytes.as_ptr();
        let mut writer = over(&mut bytes, 16);
        assert_eq!(writer.in_place(ptr.wrapping_add(4), 12), Some(4));
        assert_eq!(writer.in_place(ptr.wrapping_add(4), 13), None);
        assert_eq!(writer.in_place(ptr.wrapping_sub(1), 1), None);
        assert_eq!(writer.in_place(ptr.wrapping_add(16), 0), Some(16));
        assert_eq!(writer.in_place(ptr.wrapping_add(16), 1), None);
        assert_eq!(writer.in_place(ptr, usize::MAX), None);
    }
}
