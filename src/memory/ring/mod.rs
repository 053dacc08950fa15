//! A one-way stream of records from one sender to one receiver, in cells of one cache line.
//!
//! - The sender's cells lie in the sender's arena; the hand-backs lie in the receiver's.
//! - A record takes one or more cells in a row. Its first eight bytes are its header, and the
//!   header's store is the publication. The receiver polls that one word; there is no shared
//!   cursor, so a small message costs one cache line.
//! - A header names the cell where the next record will start. That cell is *reserved*: free, and
//!   kept free until it is published. So cells can be used in any order, a record that is held for
//!   long is simply gone around, and new cells can be added to a lane at work.
//! - A record is handed back by flipping the bit of its first cell, in any order, in the
//!   receiver's memory. The sender remembers how each bit stood, so that nothing is ever reset.
//!
//! | word | written by | read by | orderings | publishes | after a crash of its writer |
//! |---|---|---|---|---|---|
//! | `Cell::header` | sender | receiver | Release / Acquire | payload and cells of the record | published records stand, a half-written one was never published |
//! | `ReceiverBlock::handed_back` | threads of the receiver | sender | Release / Acquire | the receiver reads the record no more | the sender takes all back, from its private book |
//! | `SenderBlock::starving` | sender | receiver | Relaxed, fences | (with a bell) the sender waits for room | nobody waits any more |
//! | `ReceiverBlock::attend` | receiver | sender | Relaxed, fences | (with a bell) the receiver wants to be rung | nobody is to be rung |
//!
//! # Why no cell is read while it is written
//!
//! The receiver reads a record's cells from the moment it has seen the header with the stamp it
//! expects, until it flips the record's bit. The sender writes to a cell only while it is *free*:
//! never published since it was made, or its record's bit was seen flipped (Acquire, so all reads
//! came before). A published record's cells are *busy* until then.
//!
//! # Why a stale word is never taken for a header
//!
//! A reserved cell can hold anything: an old header, or the bytes of an old payload. Before the
//! record that leads to it is published, the sender looks at the word and, should it bear the
//! stamp that the next record will have, overwrites it. So when the receiver gets there, only the
//! publication itself can show that stamp. This is exact for any width of the stamp; its 12 bits
//! merely make the overwriting rare. The same holds when the sequence number wraps around: only
//! the equality with one expected value is ever asked.
//!
//! # What a peer can write, and what follows
//!
//! The header is read once into a local. A kind that is none, a cell or a length that lies outside
//! of the lane, or a bit flipped for a record that was never sent, is a [`Fault`](crate::error::Fault)
//! that ends the link. A record chain that never ends costs its sender's own link time: a poll
//! follows a few jumps only, and the caller decides when it polls again.

mod consumer;
mod producer;

pub(crate) use consumer::{Consumer, HandBack, Polled, Record};
pub(crate) use producer::{NoRoom, Producer, Space};

use super::layout::Cell;
use super::shared::Shared;

/// Cells in a row, and the number of the first.
struct Extent {
    first: usize,
    cells: Shared<[Cell]>,
}

impl Extent {
    #[inline(always)]
    fn end(&self) -> usize {
        self.first + self.cells.len()
    }
}

/// Finds the extent that holds a cell; nearly always the first one.
#[inline(always)]
fn extent_of(extents: &[Extent], cell: usize) -> Option<&Extent> {
    extents.iter().find(|e| cell < e.end())
}

#[cfg(all(test, not(loom)))]
mod tests;
