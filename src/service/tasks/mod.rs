//! Ports that many tasks and threads share, on any executor.
//!
//! - [`AsyncClient`]: one handle, any number of calls that are not answered yet; [`Pending`] and
//!   [`AsyncItems`] are what one of them is waited for with.
//! - [`AsyncServer`], [`AsyncCall`]: a server whose calls are answered by any task or thread.
//! - [`Services`], [`Serving`]: a pool of threads that does that.
//! - [`strand`]: one lane pair of such a client.
//!
//! `wait::tasks` says how a task waits.

mod block;
mod call;
mod claim;
mod client;
mod gather;
mod run;
mod serve;
mod server;
mod strand;
#[cfg(feature = "futures")]
mod stream;

pub(super) use call::Answers;
pub use call::{AsyncCall, Sending};
pub use client::{AsyncClient, AsyncItems, Pending};
pub use run::Task;
pub use serve::{Services, Serving};
pub use server::{AsyncServer, Next};
