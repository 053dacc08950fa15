//! Tasks that are woken by the loop of their own program.
//!
//! Unsafe code is needed to hand tokio a descriptor.
#![cfg_attr(feature = "tokio", allow(unsafe_code))]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Weak};

use crate::link::node::Node;
use crate::wait::tasks::Due;

/// Wakes the tasks of a bus from the loop that runs them, rather than from another thread.
///
/// A task that waits for a message is woken by a thread of the bus, unless there is a driver. Then this
/// descriptor becomes readable, and [`dispatch`](Self::dispatch) wakes the task: that saves a switch
/// between threads, and so most of what the bus adds to waking. It is also how a loop without tasks, of mio
/// or `poll`, has messages among its other descriptors: it polls what it waits for, such as
/// [`AsyncServer::next`](crate::AsyncServer::next), with a waker of its own.
///
/// As long as there is a driver, it has to be dispatched. Some things do not wait for it: threads are woken
/// all the same, also in [`Pending::wait`](crate::Pending::wait) and its like; deadlines hold, and a
/// bus that is closed or a peer that dies is told of. A port without tasks, such as a
/// [`Client`](crate::Client) or a [`Server`](crate::Server), does not know it. But a
/// [`Publisher`](crate::Publisher) does, of threads, too: what a lossy one keeps for a subscriber without room is
/// given when the loop dispatches, or with its next message.
///
/// # Examples
///
/// On smol. On tokio, with the feature `tokio`, it is `tokio::spawn(bus.driver().run_on_tokio())`.
///
/// ```
/// # use shmbus::{Bus, Driver, ShmMessage};
/// # #[derive(ShmMessage)]
/// # #[shm(service = "double", reply = Doubled)]
/// # struct Double { number: u32 }
/// # #[derive(ShmMessage)]
/// # struct Doubled { number: u32 }
/// async fn drive(driver: Driver) -> std::io::Result<()> {
///     let driver = smol::Async::new(driver)?;
///     while driver.get_ref().dispatch() {
///         driver.readable().await?;
///     }
///     Ok(())
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let bus = Bus::open("doc-driver")?;
/// # let serving = bus.serve::<Double, _>(1, |call| Ok(Doubled { number: call.number.to_native() * 2 }))?;
/// # let client = bus.async_client::<Double>()?;
/// smol::spawn(drive(bus.driver())).detach();
/// # smol::block_on(async {
/// assert_eq!(client.call(&Double { number: 4 }).await?.number, 8);
/// # Ok(()) })
/// # }
/// ```
pub struct Driver {
    node: Weak<Node>,
    due: Arc<Due>,
}

impl Driver {
    pub(crate) fn new(node: &Arc<Node>) -> Driver {
        node.due().rings.attach_driver();
        Driver {
            node: Arc::downgrade(node),
            due: node.due().clone(),
        }
    }

    /// Wakes every task that has something. Never waits, and need not be called from a task.
    ///
    /// The descriptor is readable until this was called. False once the bus is gone, which a driver
    /// does not keep open: nothing will come any more.
    pub fn dispatch(&self) -> bool {
        let node = self.node.upgrade();
        node.is_some_and(|node| node.take_rings())
    }
}

#[cfg(feature = "tokio")]
impl Driver {
    /// Dispatches on tokio, until the bus is gone.
    ///
    /// # Errors
    ///
    /// Those of the system, when it refuses to watch one more descriptor.
    ///
    /// # Panics
    ///
    /// Where there is no runtime, or one whose I/O is not enabled.
    pub async fn run_on_tokio(self) -> std::io::Result<()> {
        use tokio::io::unix::AsyncFd;
        // SAFETY: there is one descriptor, that of the set, which is open as long as `due` is held.
        let driver = unsafe { AsyncFd::register(self) }?;
        // Cleared before the look: what comes behind that is found by the next one.
        while driver.get_ref().dispatch() {
            driver.readable().await?.clear_ready();
        }
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.due.rings.detach_driver();
    }
}

impl AsFd for Driver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.due.rings.fd()
    }
}

impl AsRawFd for Driver {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
