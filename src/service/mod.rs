//! Ports: where messages go in and out.
//!
//! - [`Client`] and [`Server`]: a typed request and its reply.
//! - [`Sender`] and [`Receiver`]: one way.
//! - [`hub`]: what the receiving two have in common: many lanes, one place to wait; [`port`]: how
//!   lanes come to it.

mod calls;
pub(crate) mod client;
pub(crate) mod connect;
pub(crate) mod contract;
mod failure;
pub(crate) mod hub;
mod items;
mod newest;
mod one_way;
#[cfg(test)]
mod orders;
pub(crate) mod port;
mod scope;
mod server;
mod tasks;
mod trace;

pub use client::Client;
#[cfg(feature = "json")]
pub(crate) use failure::Failure;
pub use items::Items;
pub use one_way::{Receiver, Sender};
pub use server::{Call, Server};
pub(crate) use tasks::OfBus;
pub use tasks::{
    AsyncCall, AsyncClient, AsyncItems, AsyncServer, Next, Pending, Sending, Services, Serving,
    Task,
};

/// The most cells of replies that a client holds before it refuses to call again. A server's lane
/// has twice as many, so it is never full of honestly held replies.
pub(crate) const MOST_HELD: usize = crate::memory::layout::MOST_CELLS / 2;
