//! One typed direction between two ports.
//!
//! - [`Outbox`]: archives messages into the ring or the slab, and rings where that was asked for.
//! - [`Inbox`]: finds them, checks every reference in them, and validates them once.
//! - [`View`], [`Kept`]: a message borrowed where its sender wrote it.
//! - [`Bytes`], [`Bulk`]: payloads that were filled in place.
//!
//! # Why no ring is lost
//!
//! The sender (1) publishes, (2) passes a light barrier, (3) looks whether the receiver wants to be
//! rung. The receiver (a) writes that it wants to be rung, (b) passes a heavy barrier, (c) looks at
//! the lane once more. One of (3) and (c) sees the other side's write.
//!
//! A receiver that wants to be rung says so with a number that it never used before, and is rung
//! once for each. Only when that ring has arrived does it say anything else. So a bit of its
//! doorbell never flips twice between two looks, and flips back are not missed.
//!
//! When a receiver goes from one such number to the next, the heavy barrier is not needed: a sender
//! that finds a number at all passes a full barrier and looks again before it decides.

mod bulk;
mod inbox;
mod open;
mod outbox;
mod stage;
mod view;

pub use bulk::{Bulk, Bytes};
pub(crate) use inbox::{Inbox, Message, Received};
pub(crate) use open::{Near, Offered, complete, lay_door, offer_end};
pub(crate) use outbox::Outbox;
pub(crate) use view::Held;
pub use view::{Kept, View};

/// The cells that each lane of a call starts with: 4 KiB, which stay in the nearest cache.
pub(crate) const CALL_CELLS: usize = 64;

/// The cells that a one-way lane starts with: 32 KiB. A stream is half as fast again as with 64,
/// where its two ends wait for each other after every 32 messages.
pub(crate) const STREAM_CELLS: usize = 512;

/// The longest message that is archived into the ring, in bytes; others go through the slab.
pub(crate) const MOST_INLINE: usize = 8 * 1024;
