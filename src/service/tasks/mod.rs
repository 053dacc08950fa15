//! Ports that many tasks and threads share, on any executor.
//!
//! - [`AsyncClient`]: one handle, any number of calls that are not answered yet; [`Pending`] and
//!   [`AsyncItems`] are what one of them is waited for with.
//! - [`strand`]: one lane pair of such a client.
//!
//! `wait::tasks` says how a task waits.

mod client;
mod strand;

pub use client::{AsyncClient, AsyncItems, Pending};
