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
//! | `SenderBlock::starving` | sender | receiver | Release / Acquire, fences | (with a bell) the sender waits for room | nobody waits any more |
//! | `SenderBlock::cancelled` | caller | server | Release / Acquire | nobody waits for an answer | the link's end says so |
//! | `ReceiverBlock::attend` | receiver | sender | Release / Relaxed, fences | (with a bell) the receiver wants to be rung | nobody is to be rung |
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

mod cancel;
mod consumer;
#[cfg(all(feature = "json", not(loom)))]
pub(crate) mod mark;
#[cfg(all(feature = "json", not(loom)))]
pub(crate) mod past;
mod producer;
mod streams;

pub(crate) use consumer::{Consumer, HandBack, Polled, Record};
pub(crate) use producer::{NoRoom, Producer, Sent, Space};
pub(crate) use streams::Behind;

use std::ptr::NonNull;

use super::layout::Cell;
use super::shared::Shared;
use crate::sync::AtomicU64;

/// The cells of a lane: those it started with, and those that were added.
struct Cells {
    first: Shared<[Cell]>,
    more: Vec<Extent>,
    count: usize,
}

/// Cells in a row that were added, and the number of the first of them.
struct Extent {
    first: usize,
    cells: Shared<[Cell]>,
}

/// A cell, and how many follow it in the row that holds it, itself included.
#[derive(Clone, Copy)]
struct Spot<'a> {
    row: &'a [Cell],
}

impl Spot<'_> {
    #[inline(always)]
    fn header(&self) -> &AtomicU64 {
        &self.row[0].header
    }

    /// The first byte of the cell; the pointer may be used for the whole row.
    #[inline(always)]
    fn start(&self) -> NonNull<u8> {
        NonNull::from(self.row).cast()
    }
}

impl Cells {
    fn new(first: Shared<[Cell]>) -> Cells {
        Cells {
            count: first.len(),
            first,
            more: Vec::new(),
        }
    }

    fn add(&mut self, cells: Shared<[Cell]>) {
        let first = self.count;
        self.count += cells.len();
        self.more.push(Extent { first, cells });
    }

    /// Where a cell is; `None` where the lane has no such cell.
    #[inline(always)]
    fn spot(&self, cell: usize) -> Option<Spot<'_>> {
        match self.first.get(cell..) {
            Some(row @ [_, ..]) => Some(Spot { row }),
            _ => self.spot_in_more(cell),
        }
    }

    #[cold]
    fn spot_in_more(&self, cell: usize) -> Option<Spot<'_>> {
        let extent = self.more.iter().rev().find(|e| cell >= e.first)?;
        let row = extent
            .cells
            .get(cell - extent.first..)
            .filter(|row| !row.is_empty())?;
        Some(Spot { row })
    }

    /// The number of the first cell of each row, and how many it has.
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        let more = self.more.iter().map(|e| (e.first, e.cells.len()));
        std::iter::once((0, self.first.len())).chain(more)
    }
}

#[cfg(all(test, not(loom)))]
mod properties;

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
pub(crate) mod models;
