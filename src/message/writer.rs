//! The writer that archives a message where it is sent from.
//!
//! Unsafe code: the destination is memory that a peer may read at the same time, so there is no
//! `&mut [u8]` over it, only a pointer that bytes are copied to. All of it is in two functions here.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::Arc;

use rkyv::rancor::Strategy;
use rkyv::ser::{Positional, Serializer, Writer};

use super::ShmMessage;
use super::codec::CodecError;
use crate::memory::loan::LoanBlock;
use crate::memory::pins::{PinBlock, Pins};

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
    /// Where the next byte goes, or would go. Only grows; beyond `capacity` nothing is written.
    pos: usize,
    /// What is known of loans, with whoever chose the destination.
    ///
    /// 3. Valid, and used by nobody else, for as long as the writer is used.
    loans: Option<ptr::NonNull<Loans>>,
    /// What is noted of pins, with whoever publishes the message. As 3.
    pins: Option<ptr::NonNull<Pins>>,
}

/// Whether a value may refer to a pin, as far as the compiler knows: a type without pointers and pins has nothing
/// to resolve.
#[inline(always)]
pub(crate) const fn may_refer<T: ShmMessage>() -> bool {
    size_of::<T::Resolver>() != 0
}

/// What is known of elements that were filled in place.
#[derive(Debug, Default)]
pub(crate) enum Loans {
    /// None was met.
    #[default]
    None,
    /// The first that was met, and how many bytes came before it: its block would be the better
    /// destination.
    Wanted(Wanted),
    /// The destination is the block of this loan, whose elements stand at this position. Once they
    /// were passed over, it has so many bytes; until then, it ends with that position.
    Around(LoanBlock, usize, usize),
    /// As `Around`, after the elements.
    Passed,
}

impl Loans {
    /// The first loan that was met and could not be left out.
    #[inline(always)]
    pub(crate) fn into_wanted(self) -> Option<Wanted> {
        match self {
            Loans::Wanted(wanted) => Some(wanted),
            _ => None,
        }
    }
}

/// A loan that a message holds, for whoever chooses the destination.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The loan.
    pub(crate) loan: LoanBlock,
    /// How many bytes of the message are archived before its elements.
    pub(crate) before: usize,
}

impl SlotWriter {
    /// Creates a writer over `capacity` bytes at `base`.
    ///
    /// What is written beyond [`MAX_MESSAGE`] is refused, so a larger capacity is not used.
    ///
    /// # Safety
    ///
    /// 1. `base` is valid for reads and writes of `capacity` bytes until the writer was last used.
    /// 2. Nobody else writes there meanwhile, and no Rust reference to these bytes is used.
    #[inline(always)]
    pub unsafe fn new(base: *mut u8, capacity: usize) -> Self {
        Self {
            base,
            capacity: capacity.min(MAX_MESSAGE),
            pos: 0,
            loans: None,
            pins: None,
        }
    }

    /// Creates a writer that only counts.
    #[inline(always)]
    pub fn counting() -> Self {
        Self {
            base: ptr::NonNull::dangling().as_ptr(),
            capacity: 0,
            pos: 0,
            loans: None,
            pins: None,
        }
    }

    /// Returns the position after the last byte that was written or counted.
    #[inline(always)]
    pub fn pos(&self) -> usize {
        self.pos
    }

    /// Returns how many bytes the destination must have for what was written or counted so far.
    #[inline(always)]
    pub fn needed(&self) -> usize {
        self.pos
    }

    /// Tells whether something did not fit, so that what stands in the destination is no message.
    #[inline(always)]
    pub fn overflowed(&self) -> bool {
        self.pos > self.capacity
    }

    /// Has the writer ask there about loans that it meets.
    ///
    /// # Safety
    ///
    /// 1. `loans` is not touched until the writer was last used.
    /// 2. If it is `Around`, `base` is valid for so many bytes, of which the loan's elements start at
    ///    that position.
    #[inline(always)]
    pub(crate) unsafe fn with_loans(mut self, loans: &mut Loans) -> Self {
        self.loans = Some(ptr::NonNull::from(loans));
        self
    }

    /// Has the writer note there which pins it meets in a `T`, and nothing else be noted there.
    ///
    /// # Safety
    ///
    /// 1. `pins` is not touched until the writer was last used.
    #[inline(always)]
    pub(crate) unsafe fn with_pins<T: ShmMessage>(mut self, pins: &mut Pins) -> Self {
        if !may_refer::<T>() {
            debug_assert!(pins.is_empty(), "left by a message that was not sent");
            return self;
        }
        pins.clear();
        self.pins = Some(ptr::NonNull::from(pins));
        self
    }

    /// Returns what was written, if everything fitted.
    #[inline(always)]
    pub(super) fn written(&self) -> Option<*const [u8]> {
        (!self.overflowed()).then(|| ptr::slice_from_raw_parts(self.base, self.pos))
    }
}

impl Positional for SlotWriter {
    #[inline(always)]
    fn pos(&self) -> usize {
        self.pos
    }
}

impl Writer<CodecError> for SlotWriter {
    #[inline(always)]
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

/// A serializer that knows which bytes of its destination were filled before it began.
///
/// A field whose elements the user has filled in place asks for their position, instead of writing
/// them again.
pub trait InPlace {
    /// Returns the position of the loan's elements, if they stand in the destination already and
    /// nothing was written behind them; they are then passed over.
    #[doc(hidden)]
    fn in_place(&mut self, loan: &LoanBlock) -> Option<usize>;

    /// Has the message lend a pin, which it refers to. False where nobody would keep the pin for it.
    #[doc(hidden)]
    fn lend(&mut self, pin: &Arc<PinBlock>) -> bool;
}

impl InPlace for SlotWriter {
    #[inline(always)]
    fn in_place(&mut self, loan: &LoanBlock) -> Option<usize> {
        // SAFETY: invariant 3.
        let loans = unsafe { self.loans?.as_mut() };
        match loans {
            Loans::None => {
                *loans = Loans::Wanted(Wanted {
                    loan: loan.clone(),
                    before: self.pos,
                });
                None
            }
            Loans::Around(mine, at, room) if mine.is(loan) && self.pos <= *at => {
                let at = *at;
                self.capacity = *room;
                self.pos = at + loan.bytes();
                *loans = Loans::Passed;
                Some(at)
            }
            _ => None,
        }
    }

    fn lend(&mut self, pin: &Arc<PinBlock>) -> bool {
        let Some(mut pins) = self.pins else {
            return false;
        };
        // SAFETY: invariant 3, for pins.
        unsafe { pins.as_mut() }.note(pin);
        true
    }
}

impl<W: InPlace, A, S, E> InPlace for Strategy<Serializer<W, A, S>, E> {
    #[inline(always)]
    fn in_place(&mut self, loan: &LoanBlock) -> Option<usize> {
        self.writer.in_place(loan)
    }

    #[inline(always)]
    fn lend(&mut self, pin: &Arc<PinBlock>) -> bool {
        self.writer.lend(pin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(bytes: &mut [u8]) -> SlotWriter {
        // SAFETY: the tests do not touch `bytes` until they are done with the writer.
        unsafe { SlotWriter::new(bytes.as_mut_ptr(), bytes.len()) }
    }

    #[test]
    fn counts_on_when_it_is_full() {
        let mut bytes = [0xEE; 8];
        let mut writer = over(&mut bytes);
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
}
