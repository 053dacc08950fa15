//! Ports that many tasks and threads share, on any executor.
//!
//! - [`AsyncClient`]: one handle, any number of calls that are not answered yet; [`Pending`] and
//!   [`AsyncItems`] are what one of them is waited for with.
//! - [`AsyncServer`], [`AsyncCall`]: a server whose calls are answered by any task or thread.
//! - [`Services`], [`Serving`]: a pool of threads that does that.
//! - [`strand`]: one lane pair of such a client; [`strands`]: all of them; [`open`]: a call that was sent on one.
//!
//! `wait::tasks` says how a task waits.

mod call;
mod claim;
mod client;
mod gather;
mod items;
mod open;
mod pending;
mod run;
mod serve;
mod server;
mod strand;
mod strands;
#[cfg(feature = "futures")]
mod stream;

pub(super) use call::Answers;
pub use call::{AsyncCall, Sending};
pub use client::AsyncClient;
pub use items::AsyncItems;
pub use pending::Pending;
pub use run::Task;
pub use serve::{Services, Serving};
pub use server::{AsyncServer, Next};

use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::task::Waker;

use crate::bus::Shared as BusShared;
use crate::wait::sources::{Readiness, Ready};

/// What the users of a port share, and the bus with it: whoever waits has it stay, which wakes them.
///
/// Apart from what is driven, so that whoever drives a port never has the last handle of a bus.
pub(crate) struct OfBus<T>(Arc<(Arc<T>, Arc<BusShared>)>);

impl<T> OfBus<T> {
    pub(crate) fn new(port: Arc<T>, bus: &Arc<BusShared>) -> OfBus<T> {
        OfBus(Arc::new((port, bus.clone())))
    }

    /// What knows the port, and keeps neither it nor the bus.
    pub(crate) fn downgrade(&self) -> WeakOfBus<T> {
        WeakOfBus(Arc::downgrade(&self.0))
    }
}

/// See [`OfBus::downgrade`].
pub(crate) struct WeakOfBus<T>(Weak<(Arc<T>, Arc<BusShared>)>);

impl<T: Ready> Ready for WeakOfBus<T> {
    fn poll_ready(&self, waker: Option<&Waker>) -> Readiness {
        let port = self.0.upgrade();
        port.map_or(Readiness::Ended, |port| port.0.poll_ready(waker))
    }

    fn forget(&self, waker: &Waker) {
        if let Some(port) = self.0.upgrade() {
            port.0.forget(waker);
        }
    }

    fn is_forked(&self) -> bool {
        let port = self.0.upgrade();
        port.is_some_and(|port| port.0.is_forked())
    }
}

impl<T> Clone for OfBus<T> {
    fn clone(&self) -> Self {
        OfBus(self.0.clone())
    }
}

impl<T> Deref for OfBus<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0.0
    }
}
