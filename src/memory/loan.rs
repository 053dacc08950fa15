//! A block of the slab that is filled before its message exists.
//!
//! The message is archived around the elements later: what it archives before them goes into the
//! room in front, the rest behind.
//!
//! Unsafe code is needed to form the address of the elements.
#![allow(unsafe_code)]

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::arena::Block;
use crate::sync::{AtomicBool, Ordering};

/// The room before a loan's elements, for what its message archives before them, in bytes.
pub(crate) const BEFORE: usize = 4096;
/// The room behind them, for the rest of the message, in bytes.
const BEHIND: usize = 4096;

/// How large a block must be for a loan of so many bytes.
pub(crate) fn loan_len(bytes: usize) -> usize {
    BEFORE + bytes + BEHIND
}

/// A block that was lent to be filled. Clones name the same one.
#[doc(hidden)]
#[derive(Clone)]
pub struct LoanBlock(Arc<Loan>);

struct Loan {
    block: Arc<Block>,
    bytes: usize,
    sent: AtomicBool,
}

impl fmt::Debug for LoanBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoanBlock({} bytes)", self.0.bytes)
    }
}

impl LoanBlock {
    /// Lends a block whose elements have so many bytes.
    pub(crate) fn new(block: Arc<Block>, bytes: usize) -> LoanBlock {
        assert!(loan_len(bytes) <= block.len());
        LoanBlock(Arc::new(Loan {
            block,
            bytes,
            sent: AtomicBool::new(false),
        }))
    }

    /// Whether both name the same loan.
    pub(crate) fn is(&self, other: &LoanBlock) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Takes the elements for one message: true for the first that asks.
    pub(crate) fn claim(&self) -> bool {
        // Relaxed: the handle is lent to one sender at a time; the flag says only that it was used.
        !self.0.sent.swap(true, Ordering::Relaxed)
    }

    /// Undoes [`claim`](Self::claim): the message was not published.
    pub(crate) fn unclaim(&self) {
        self.0.sent.store(false, Ordering::Relaxed);
    }

    pub(crate) fn block(&self) -> &Arc<Block> {
        &self.0.block
    }

    /// The first of the elements' bytes.
    ///
    /// # Panics
    ///
    /// In a forked child, which does not have them.
    pub(crate) fn start(&self) -> NonNull<u8> {
        assert!(
            !self.0.block.segment().is_forked(),
            "this process was forked from the one that was lent this memory"
        );
        // SAFETY: the block is larger than that: it was checked when it was lent.
        unsafe { self.0.block.start().add(BEFORE) }
    }

    /// How many bytes the elements have.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Whether a message refers to the elements, which are then only read.
    pub(crate) fn was_sent(&self) -> bool {
        self.0.sent.load(Ordering::Relaxed)
    }
}
