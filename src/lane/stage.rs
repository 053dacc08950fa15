//! Archiving a message where it will be published from.
//!
//! Unsafe code is needed to archive into shared memory.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use crate::memory::layout::{CELL, HEADER};
use crate::memory::pins::Pins;
use crate::memory::ring::Space;
use crate::message::{EncodeError, Loans, ShmMessage, SlotWriter, encode};

/// A cell on the stack, in which a message of one cell is archived first.
///
/// The receiver may be polling the cell it will be in. Were it written there field by field, the
/// cache line would go to the receiver and back in between; copied at once, it goes one time.
/// Zeroed first, so that a cell never shows what was on the stack.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Stage([u64; CELL / 8]);

impl Stage {
    /// Archives a value at `start`, and notes which pins it refers to; returns how many bytes it needs there.
    #[inline(always)]
    pub(super) fn encode<T: ShmMessage>(
        &mut self,
        value: &T,
        start: usize,
        pins: &mut Pins,
    ) -> Result<usize, EncodeError> {
        let base = self.0.as_mut_ptr().cast::<u8>().wrapping_add(start);
        // SAFETY: 1. and 2. so many bytes of our own are left there, and `self` is not used
        // meanwhile.
        let writer = unsafe { SlotWriter::new(base, CELL.saturating_sub(start)) };
        // SAFETY: 1. it is borrowed for longer than the writer lives.
        let writer = unsafe { writer.with_pins::<T>(pins) };
        encode(value, writer)
    }

    /// As [`encode`](Self::encode), and notes the first loan that is met.
    pub(super) fn encode_and_note<T: ShmMessage>(
        &mut self,
        value: &T,
        start: usize,
        (loans, pins): (&mut Loans, &mut Pins),
    ) -> Result<usize, EncodeError> {
        let base = self.0.as_mut_ptr().cast::<u8>().wrapping_add(start);
        // SAFETY: 1. and 2. as in `encode`.
        let writer = unsafe { SlotWriter::new(base, CELL.saturating_sub(start)) };
        // SAFETY: 1. it is borrowed for longer than the writer lives.
        let writer = unsafe { writer.with_loans(loans) };
        // SAFETY: 1. as above.
        encode(value, unsafe { writer.with_pins::<T>(pins) })
    }

    /// Writes a word at `start`, in place of a message.
    pub(super) fn put_word(&mut self, word: u64, start: usize) {
        self.0[start / 8] = word;
    }

    /// Writes a time behind the place of the header.
    #[inline(always)]
    pub(super) fn set_time(&mut self, time: u64) {
        self.0[HEADER / 8] = time;
    }

    /// Copies all but the header, which is published later.
    #[inline(always)]
    pub(super) fn copy_to(&self, space: &Space) {
        // SAFETY: the space has at least one cell.
        let to = unsafe { space.start().as_ptr().cast::<u64>().add(1) };
        // SAFETY: the cell is free and ours, and no part of the stage.
        unsafe { to.copy_from_nonoverlapping(self.0[1..].as_ptr(), CELL / 8 - 1) };
    }
}

/// Archives `offset` bytes behind the start of free cells; returns how many bytes are needed there.
#[inline(always)]
pub(super) fn encode_at<T: ShmMessage>(
    value: &T,
    space: &Space,
    offset: usize,
    (loans, pins): (&mut Loans, &mut Pins),
) -> Result<usize, EncodeError> {
    let base = space.start().as_ptr().wrapping_add(offset);
    // SAFETY: 1. and 2. the bytes lie in free cells of ours, which nobody reads.
    let writer = unsafe { SlotWriter::new(base, space.bytes().saturating_sub(offset)) };
    // SAFETY: 1. it is borrowed for longer than the writer lives.
    let writer = unsafe { writer.with_loans(loans) };
    // SAFETY: 1. as above.
    let writer = unsafe { writer.with_pins::<T>(pins) };
    encode(value, writer)
}

/// Writes behind the header of a record that is not published yet.
pub(super) fn write_behind_header(space: &Space, bytes: &[u8]) {
    assert!(HEADER + bytes.len() <= space.bytes());
    // SAFETY: the space has room for a header and these bytes.
    let to = unsafe { space.start().add(HEADER) };
    // SAFETY: the cells are free and ours, and do not overlap what is written.
    unsafe { to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
}
