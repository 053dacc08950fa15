//! Ports: where messages go in and out.
//!
//! - [`Client`] and [`Server`]: a typed request and its reply.
//! - [`Sender`] and [`Receiver`]: one way.
//! - [`hub`]: what the receiving two have in common: many lanes, one place to wait; [`port`]: how
//!   lanes come to it.

mod client;
mod connect;
mod hub;
mod one_way;
mod port;
mod server;

pub use client::Client;
pub use one_way::{Receiver, Sender};
pub use server::{Call, Server};

/// The most cells of replies that a client holds before it refuses to call again. A server's lane
/// has twice as many, so it is never full of honestly held replies.
pub(crate) const MOST_HELD: usize = crate::memory::layout::MOST_CELLS / 2;

/// Why a server has no reply, as it travels in one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Dropped = 1,
    TooLarge = 2,
    Encode = 3,
    Memory = 4,
}

impl Failure {
    /// What a client says of it.
    pub(crate) fn text(byte: u8) -> Option<&'static str> {
        match byte {
            2 => Some("it is larger than the server's bus allows"),
            3 => Some("it cannot be archived"),
            4 => Some("the server has no memory for it"),
            _ => None,
        }
    }
}
