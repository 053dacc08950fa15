//! A bus: what processes that belong together have in common.

mod config;
mod topics;

use std::hash::Hash;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::config::{Config, Trust};
use crate::driver::Driver;
use crate::error::{ConnectError, OpenError};
#[cfg(feature = "json")]
use crate::link::flight::FlightRecord;
use crate::link::node::{Incident, Node, Reach};
use crate::message::{ShmMessage, ShmRequest};
use crate::service::{
    AsyncCall, AsyncClient, AsyncServer, Client, Receiver, Sender, Server, Services, Serving,
};
use crate::wait_set::WaitSet;

/// When a time is over; one that the clock cannot show is as good as a century.
fn after(timeout: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or_else(|| now + CENTURY)
}

/// What the bus and its ports share: the last one to go stops the quiet thread.
pub(crate) struct Shared {
    node: Arc<Node>,
}

impl Shared {
    #[inline(always)]
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.node.stop();
    }
}

/// A bus, opened by this process: where ports are made.
///
/// Clones are handles on the same bus. It lives as long as any handle or port of it.
///
/// ```
/// use shmbus::{Bus, ShmMessage};
///
/// #[derive(ShmMessage)]
/// #[shm(service = "double", reply = Doubled)]
/// struct Double { number: u32 }
///
/// #[derive(ShmMessage)]
/// struct Doubled { number: u32 }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = Bus::open("doc-bus")?;
/// let mut server = bus.server::<Double>()?;
/// let serving = std::thread::spawn(move || -> Result<(), shmbus::SendError> {
///     while let Ok(Some(call)) = server.next() {
///         let number = call.number.to_native() * 2;
///         call.reply(&Doubled { number })?;
///     }
///     Ok(())
/// });
///
/// let client = bus.client::<Double>()?;
/// let reply = client.call(&Double { number: 21 })?;
/// assert_eq!(reply.number, 42);
///
/// drop(reply);
/// bus.close();
/// serving.join().expect("the server does not panic")?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Bus {
    shared: Arc<Shared>,
}

impl Bus {
    fn start(reach: Reach, config: Config) -> Result<Bus, OpenError> {
        let node = Node::start(reach, config)?;
        Ok(Bus {
            shared: Arc::new(Shared { node }),
        })
    }

    /// Opens the bus of this name, whoever else has it open.
    ///
    /// Its names live in a private directory of the user's: `$XDG_RUNTIME_DIR/shmbus/<name>`, or
    /// `shmbus-<uid>/<name>` under the temporary directory where that variable is not set.
    ///
    /// # Errors
    ///
    /// - [`OpenError::Name`]: empty, over 100 bytes, or with a slash or a zero byte.
    /// - [`OpenError::Directory`]: the directory belongs to another user, or is open to others.
    /// - [`OpenError::System`]: the system refused something.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let bus = shmbus::Bus::open("doc-open")?;
    /// # Ok(()) }
    /// ```
    pub fn open(name: &str) -> Result<Bus, OpenError> {
        Config::default().open(name)
    }

    /// Starts a child process that inherits one end of a link, and returns the other end as a bus.
    ///
    /// There is no name and no path: it works in a sandbox, and leaves nothing behind. The child
    /// calls [`Bus::from_parent`].
    ///
    /// # Errors
    ///
    /// [`OpenError::System`] where the program cannot be started.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::{process::Command, time::Duration};
    /// use shmbus::Bus;
    /// # use shmbus::ShmMessage;
    /// # #[derive(ShmMessage)]
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (bus, mut child) = Bus::spawn(Command::new("engine"))?;
    /// let client = bus.client_timeout::<Double>(Duration::from_secs(10))?;
    /// assert_eq!(client.call(&Double { number: 21 })?.number, 42);
    /// drop((client, bus)); // the child's server ends
    /// child.wait()?;
    /// # Ok(()) }
    /// ```
    pub fn spawn(command: Command) -> Result<(Bus, Child), OpenError> {
        Config::default().spawn(command)
    }

    /// Takes the link to the process that started this one with [`Bus::spawn`].
    ///
    /// # Errors
    ///
    /// [`OpenError::NoParent`] where there is none, or it was taken before.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use shmbus::Bus;
    /// # use shmbus::ShmMessage;
    /// # #[derive(ShmMessage)]
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let bus = Bus::from_parent()?;
    /// let mut server = bus.server::<Double>()?;
    /// while let Some(call) = server.next()? {
    ///     let number = call.number.to_native() * 2;
    ///     call.reply(&Doubled { number })?;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn from_parent() -> Result<Bus, OpenError> {
        Config::default().from_parent()
    }

    /// Offers the service of the request `R`. Exactly one process of a bus does at a time.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Taken`], which names the process that offers it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-bus-server")?;
    /// use shmbus::ConnectError;
    ///
    /// let server = bus.server::<Double>()?;
    /// let other = Bus::open("doc-bus-server")?;
    /// assert!(matches!(other.server::<Double>(), Err(ConnectError::Taken { .. })));
    /// # Ok(()) }
    /// ```
    pub fn server<R: ShmRequest>(&self) -> Result<Server<R>, ConnectError> {
        Server::offer(&self.shared)
    }

    /// Connects to the service of the request `R`.
    ///
    /// # Errors
    ///
    /// - [`ConnectError::NoServer`], at once, where nobody offers it.
    /// - [`ConnectError::Layout`] where the server's types differ; each difference is named.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-bus-client")?;
    /// use shmbus::ConnectError;
    ///
    /// assert!(matches!(bus.client::<Double>(), Err(ConnectError::NoServer { .. })));
    /// let server = bus.server::<Double>()?;
    /// let client = bus.client::<Double>()?;
    /// assert_eq!(client.server_pid(), std::process::id());
    /// # Ok(()) }
    /// ```
    pub fn client<R: ShmRequest>(&self) -> Result<Client<R>, ConnectError> {
        Client::connect(&self.shared, None)
    }

    /// Offers the service of the request `R`, for any number of tasks and threads to answer.
    ///
    /// # Errors
    ///
    /// As [`server`](Self::server).
    pub fn async_server<R: ShmRequest>(&self) -> Result<AsyncServer<R>, ConnectError> {
        AsyncServer::offer(&self.shared)
    }

    /// Answers the service of the request `R` on so many threads, at least one, until what this returns
    /// is dropped.
    ///
    /// A handler returns the reply, or an error of the service's own. Where it panics, its caller gets
    /// [`CallError::Panicked`](crate::CallError::Panicked) with what the panic said, and the thread
    /// goes on.
    ///
    /// # Errors
    ///
    /// As [`server`](Self::server).
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-serve")?;
    /// let serving = bus.serve::<Double, _>(4, |call| {
    ///     Ok(Doubled { number: call.number.to_native() * 2 })
    /// })?;
    ///
    /// let client = bus.client::<Double>()?;
    /// assert_eq!(client.call(&Double { number: 21 })?.number, 42);
    /// # drop(client);
    /// drop(serving); // what was taken is answered, and the threads end
    /// # Ok(()) }
    /// ```
    pub fn serve<R, H>(&self, threads: usize, handler: H) -> Result<Serving, ConnectError>
    where
        R: ShmRequest,
        H: Fn(&AsyncCall<R>) -> Result<R::Reply, R::Error> + Send + Sync + 'static,
    {
        Ok(self.services().on(handler)?.start(threads)?)
    }

    /// Answers several services by one pool of threads: as [`serve`](Self::serve), for more than one.
    ///
    /// They are looked at in the order in which they are added, so those that must not wait come first:
    /// what a user waits for before an index that is built meanwhile. A handler that works is not
    /// interrupted, so a pool has a thread more than there are long ones at once.
    ///
    /// # Examples
    ///
    /// ```
    /// use shmbus::{Bus, ShmMessage};
    ///
    /// #[derive(ShmMessage)]
    /// #[shm(service = "double", reply = Number)]
    /// struct Double { number: u32 }
    ///
    /// #[derive(ShmMessage)]
    /// #[shm(service = "sum", reply = Number)]
    /// struct Sum { numbers: Vec<u32> }
    ///
    /// #[derive(ShmMessage)]
    /// struct Number { number: u32 }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-services")?;
    /// let serving = bus
    ///     .services()
    ///     .on::<Double, _>(|call| Ok(Number { number: call.number.to_native() * 2 }))?
    ///     .on::<Sum, _>(|call| Ok(Number { number: call.numbers.iter().map(|n| n.to_native()).sum() }))?
    ///     .start(2)?;
    ///
    /// assert_eq!(bus.client::<Double>()?.call(&Double { number: 21 })?.number, 42);
    /// assert_eq!(bus.client::<Sum>()?.call(&Sum { numbers: vec![1, 2, 3] })?.number, 6);
    /// # Ok(()) }
    /// ```
    pub fn services(&self) -> Services {
        Services::new(&self.shared)
    }

    /// Connects to the service of the request `R`, for any number of tasks and threads.
    ///
    /// # Errors
    ///
    /// As [`client`](Self::client).
    pub fn async_client<R: ShmRequest>(&self) -> Result<AsyncClient<R>, ConnectError> {
        AsyncClient::connect(&self.shared, None)
    }

    /// As [`async_client`](Self::async_client), waiting at most so long, on this thread, for somebody
    /// to offer the service.
    ///
    /// # Errors
    ///
    /// As [`client`](Self::client).
    pub fn async_client_timeout<R: ShmRequest>(
        &self,
        timeout: Duration,
    ) -> Result<AsyncClient<R>, ConnectError> {
        AsyncClient::connect(&self.shared, Some(after(timeout)))
    }

    /// As [`client`](Self::client), waiting at most so long for somebody to offer the service.
    ///
    /// # Errors
    ///
    /// As [`client`](Self::client). Whoever offers it when it is looked has five seconds to say hello, and five to
    /// answer, whatever is left of that time.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-client-timeout")?;
    /// use std::time::Duration;
    ///
    /// # let other = bus.clone();
    /// let starting = std::thread::spawn(move || other.server::<Double>());
    /// let client = bus.client_timeout::<Double>(Duration::from_secs(10))?;
    /// # drop(client);
    /// # starting.join().expect("the server does not panic")?;
    /// # Ok(()) }
    /// ```
    pub fn client_timeout<R: ShmRequest>(
        &self,
        timeout: Duration,
    ) -> Result<Client<R>, ConnectError> {
        Client::connect(&self.shared, Some(after(timeout)))
    }

    /// Receives messages of type `T` under a name. Exactly one process of a bus does at a time.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Taken`], which names the process that does.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # struct Moved { line: u32, column: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-bus-receiver")?;
    /// let mut receiver = bus.receiver::<Moved>("cursor")?;
    /// assert!(receiver.try_next()?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn receiver<T: ShmMessage>(&self, name: &str) -> Result<Receiver<T>, ConnectError> {
        Receiver::offer(&self.shared, name)
    }

    /// Connects to the receiver of this name.
    ///
    /// # Errors
    ///
    /// As [`client`](Self::client).
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # struct Moved { line: u32, column: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-bus-sender")?;
    /// let mut receiver = bus.receiver::<Moved>("cursor")?;
    /// let mut sender = bus.sender::<Moved>("cursor")?;
    /// sender.send(&Moved { line: 3, column: 14 })?;
    /// assert_eq!(receiver.next()?.expect("the bus is open").column, 14);
    /// # Ok(()) }
    /// ```
    pub fn sender<T: ShmMessage>(&self, name: &str) -> Result<Sender<T>, ConnectError> {
        Sender::connect(&self.shared, name, None)
    }

    /// As [`sender`](Self::sender), waiting at most so long for somebody to receive.
    ///
    /// # Errors
    ///
    /// As [`client`](Self::client).
    pub fn sender_timeout<T: ShmMessage>(
        &self,
        name: &str,
        timeout: Duration,
    ) -> Result<Sender<T>, ConnectError> {
        Sender::connect(&self.shared, name, Some(after(timeout)))
    }

    /// Has every server and receiver of this bus end, once it has taken what came before.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # struct Moved { line: u32, column: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-close")?;
    /// let mut receiver = bus.receiver::<Moved>("cursor")?;
    /// let receiving = std::thread::spawn(move || receiver.next().map(|moved| moved.is_none()));
    /// bus.close();
    /// assert!(receiving.join().expect("the receiver does not panic")?);
    /// # Ok(()) }
    /// ```
    pub fn close(&self) {
        self.shared.node.end_ports();
    }

    /// Wakes the tasks of this bus from a loop of the program's own; see [`Driver`].
    pub fn driver(&self) -> Driver {
        Driver::new(&self.shared.node)
    }

    /// Waits for several ports and descriptors on one thread; see [`WaitSet`].
    ///
    /// # Errors
    ///
    /// [`OpenError::System`], [`OpenError::Forked`].
    pub fn wait_set<T: Copy + Eq + Hash>(&self) -> Result<WaitSet<T>, OpenError> {
        WaitSet::new(&self.shared)
    }

    /// What went wrong with peers since the last call: refused layouts, broken protocol.
    ///
    /// At most 256 are kept; the last one says if there were more.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = shmbus::Bus::open("doc-incidents")?;
    /// for incident in bus.take_incidents() {
    ///     eprintln!("{incident}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn take_incidents(&self) -> Vec<Incident> {
        self.shared.node.take_incidents()
    }

    /// The last messages of each link that ended since the last call because its peer died, or broke the protocol.
    ///
    /// What a peer sent, and what was sent to it, still lies in memory when it is dead. So with
    /// [`Config::flight_recorder`] the last messages of all lanes that are open then are copied, and read here by
    /// their schemas. Nothing is recorded while the peer lives. A peer that says that it ends its bus leaves no
    /// record, nor does one that never had a lane. See [`failures`](crate::failures).
    ///
    /// With the feature `json`.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shmbus::Config;
    ///
    /// let config = Config { flight_recorder: 16, ..Config::default() };
    /// let bus = config.open("doc-flight")?;
    /// for record in bus.take_flight_records() {
    ///     eprintln!("{:#}", record.to_json());
    /// }
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "json")]
    pub fn take_flight_records(&self) -> Vec<FlightRecord> {
        let flights = self.shared.node.flights();
        flights.take(crate::service::Failure::name_of)
    }

    /// The bytes of shared memory that this bus has taken, and those of them in use.
    ///
    /// Pins that were handed back are freed by this, if they were not yet.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = shmbus::Bus::open("doc-memory")?;
    /// let (taken, used) = bus.memory();
    /// assert!(used <= taken);
    /// # Ok(()) }
    /// ```
    pub fn memory(&self) -> (u64, u64) {
        self.shared.node.pins().sweep();
        self.shared.node.arena().usage()
    }
}
