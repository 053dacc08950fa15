//! One typed direction between two ports.
//!
//! - [`Outbox`]: archives messages into the ring or the slab, and rings where that was asked for.
//! - [`Inbox`]: finds them, checks every reference in them, and validates them once.
//! - [`View`], [`Kept`]: a message borrowed where its sender wrote it.
//! - [`Pinned`]: a message that others refer to; [`Opened`]: how they are followed.
//! - [`Bytes`], [`Bulk`]: payloads that were filled in place.
//! - [`Parcel`]: a message that is archived once, for several lanes.
//! - [`Board`], [`Reading`]: newest values, which are read where they lie, and the lane says what changed.
//!
//! Why no ring is lost between the two ends, and no wake: see `wait::attend` and `wait`.

mod board;
mod bulk;
mod inbox;
mod open;
mod opened;
mod outbox;
mod parcel;
mod pin;
mod reading;
mod stage;
mod view;

pub(crate) use board::{Board, Packed as PackedValue, Reader};
pub use bulk::{Bulk, Bytes};
pub(crate) use inbox::{Inbox, Message, Received, Role};
pub(crate) use open::{Near, Offered, complete, lay_door, offer_end};
pub use opened::{Incoming, Opened};
pub(crate) use opened::{Sealed, Within};
pub(crate) use outbox::{Outbox, To};
pub(crate) use parcel::{Packer, Parcel};
pub use pin::{ArchivedPinned, Pinned};
pub(crate) use reading::{Found, Holding, Reading, version_at};
pub(crate) use view::{Held, is_large};
pub use view::{Kept, View};

/// Which kind of lane. Both sides know from the port that it leads to, so that nothing needs to be said,
/// nor believed, about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Requests, or what answers them.
    Call,
    OneWay,
    /// From a publisher to one of its subscribers.
    Topic,
    /// From a publisher of newest values to one who reads them: says which have changed.
    Latest,
}

/// The cells that each lane of a call starts with: 4 KiB, which stay in the nearest cache.
pub(crate) const CALL_CELLS: usize = 64;

/// The cells that a one-way lane starts with: 32 KiB. A stream is half as fast again as with 64,
/// where its two ends wait for each other after every 32 messages.
pub(crate) const STREAM_CELLS: usize = 512;

/// The longest message that is archived into the ring, in bytes; others go through the slab.
pub(crate) const MOST_INLINE: usize = 8 * 1024;
