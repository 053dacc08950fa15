//! Tasks that are woken by the loop of their own program.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Weak};

use crate::link::node::Node;
use crate::wait::tasks::Due;

/// Wakes the tasks of a bus from the loop that runs them, rather than from another thread.
///
/// A task that waits for a message is woken by a thread of the bus, unless there is a driver: then this
/// descriptor becomes readable, and [`dispatch`](Self::dispatch) wakes the tasks. That saves a switch
/// between threads, which is most of the time that waking takes; and it is how a loop without
/// tasks, of mio, calloop or glib, learns that there is something for it. Messages between threads
/// do not need it: a [`Client`](crate::Client) or a [`Server`](crate::Server) has a thread that sleeps.
///
/// As long as there is a driver, it must be dispatched. What can not wait for it does not: a thread
/// that sleeps in [`Pending::wait`](crate::Pending::wait) is woken all the same, deadlines hold, and links
/// are kept.
///
/// # Examples
///
/// On tokio; with smol it is `Async::new(driver)`, and without tasks a `poll` of the descriptor:
///
/// ```
/// # use shmbus::{Bus, Driver, ShmMessage};
/// # use tokio::io::unix::AsyncFd;
/// # #[derive(ShmMessage)]
/// # #[shm(service = "double", reply = Doubled)]
/// # struct Double { number: u32 }
/// # #[derive(ShmMessage)]
/// # struct Doubled { number: u32 }
/// async fn drive(driver: Driver) -> std::io::Result<()> {
///     let driver = AsyncFd::new(driver)?;
///     while driver.get_ref().dispatch() {
///         driver.readable().await?.clear_ready();
///     }
///     Ok(())
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// # runtime.block_on(async {
/// # let bus = Bus::open("doc-driver")?;
/// tokio::spawn(drive(bus.driver()));
/// # let server = bus.async_server::<Double>()?;
/// # let client = bus.async_client::<Double>()?;
/// # let calling = async {
/// #     let eight = client.call(&Double { number: 4 }).await.map(|reply| reply.number.to_native());
/// #     server.stop();
/// #     eight
/// # };
/// # let serving = server.run(|task| drop(tokio::spawn(task)), |call| async move {
/// #     Ok(Doubled { number: call.number.to_native() * 2 })
/// # });
/// # let (ended, eight) = tokio::join!(serving, calling);
/// # ended?;
/// # assert_eq!(eight?, 8);
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
