//! One thread that waits for many things at once.
//!
//! - [`rounds`]: how it finds who is ready, and sleeps.
//! - [`slots`]: which sources there are.

mod rounds;
mod slots;

use std::collections::VecDeque;
use std::hash::Hash;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use self::slots::{Key, Kind, Slots, Source};
use crate::bus::Shared as BusShared;
use crate::error::OpenError;
use crate::message::{ShmLatest, ShmRequest, ShmTopic};
use crate::service::AsyncServer;
use crate::sys::fork::Mine;
use crate::sys::poll::Epoll;
use crate::topic::{AsyncSubscriber, Latest};
use crate::wait::Wait;
use crate::wait::sources::{Ready, Woken};

/// The numbers of what is no source, in the kernel's set.
const WOKEN: u64 = u64::MAX;
const RINGS: u64 = u64::MAX - 1;

/// Waits for several ports, descriptors and wakers at once, on one thread: a `select` over messages and
/// whatever else a program waits for.
///
/// Each source is added under a token of the caller's, such as a variant of an enum of its own, or a number.
/// [`wait`](Self::wait) tells of one that is ready, and takes nothing: that is for the user to do, with
/// [`AsyncSubscriber::try_next`], [`AsyncServer::try_next`], or a read. What is left is told of again by a later
/// call, after all others that are ready. Now and then a source is told of that has nothing, as where another thread
/// took it first.
///
/// What waiting costs depends on how many sources are ready, and not on how many there are. While the thread
/// sleeps, the ring of a peer wakes it directly; while it does something else, the bus has its
/// quiet thread look, as ever. Several sets may wait on one bus, each on its thread; then a ring may wake all
/// of these for a moment. Ports may be of another bus, too, whose quiet thread is on the way then.
///
/// The set keeps its bus open, but not the ports in it.
///
/// # Examples
///
/// ```
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
/// use shmbus::{Bus, Event, ShmMessage};
///
/// #[derive(ShmMessage)]
/// #[shm(topic = "saved")]
/// struct Saved { path: String }
///
/// #[derive(ShmMessage)]
/// #[shm(service = "double", reply = Doubled)]
/// struct Double { number: u32 }
///
/// #[derive(ShmMessage)]
/// struct Doubled { number: u32 }
///
/// #[derive(Clone, Copy, PartialEq, Eq, Hash)]
/// enum Who { Saved, Calls, Socket }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let bus = Bus::open("doc-wait-set")?;
/// let saved = bus.async_subscriber::<Saved>()?;
/// let calls = bus.async_server::<Double>()?;
/// let (mut socket, mut other) = UnixStream::pair()?;
/// # let there = bus.clone();
/// # let others = std::thread::spawn(move || {
/// #     let client = there.client::<Double>().expect("a server is there");
/// #     let doubled = client.call(&Double { number: 4 }).expect("it answers").number.to_native();
/// #     there.publisher::<Saved>().expect("it joins").publish(&Saved { path: "main.rs".into() }).expect("there is room");
/// #     other.write_all(b"quit").expect("it is read");
/// #     doubled
/// # });
///
/// let mut set = bus.wait_set()?;
/// set.add(Who::Saved, &saved)?;
/// set.add(Who::Calls, &calls)?;
/// set.add_readable(Who::Socket, &socket)?;
///
/// while let Some(event) = set.wait()? {
///     match event {
///         Event::Ready(Who::Saved) => {
///             while let Some(saved) = saved.try_next()? {
///                 println!("{} was saved", saved.path);
///             }
///         }
///         Event::Ready(Who::Calls) => {
///             while let Some(call) = calls.try_next()? {
///                 let number = call.number.to_native() * 2;
///                 call.reply(&Doubled { number })?;
///             }
///         }
///         Event::Ready(Who::Socket) => {
///             let mut word = [0; 4];
///             socket.read_exact(&mut word)?;
///             if &word == b"quit" {
///                 break;
///             }
///         }
///         Event::Ended(_) => break, // the bus was closed
///     }
/// }
/// # assert_eq!(others.join().expect("it does not panic"), 8);
/// # Ok(()) }
/// ```
pub struct WaitSet<T: Copy + Eq + Hash> {
    slots: Slots<T>,
    /// The kernel's set: descriptors, the rings of the bus, and the event of the woken.
    set: Mine<Epoll>,
    woken: Arc<Woken>,
    bus: Arc<BusShared>,
    wait: Wait,
    /// Ports to be looked at before the thread sleeps; those that had something lately stand last.
    awake: Vec<Key>,
    /// Who is to be told of, and whether it has ended.
    round: VecDeque<(Key, bool)>,
    /// How many sources are descriptors.
    descriptors: usize,
    /// How many rounds the kernel was not asked in.
    turn: u32,
    /// What the kernel said, and ports that had something: their memory is used again.
    said: Vec<u64>,
    busy: Vec<Key>,
}

/// What a [`WaitSet`] tells of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event<T> {
    /// There may be something to take, or room to write; or the waker was woken.
    Ready(T),
    /// All of this port was taken, and no more will come: it has stopped, it was dropped, the bus was
    /// [closed](crate::Bus::close), or the parent of an inherited link is gone. It is not in the set any more.
    Ended(T),
}

/// A port that a [`WaitSet`] can wait for: an [`AsyncServer`], an [`AsyncSubscriber`], or newest values
/// ([`Latest`]), of which [`try_next`](Latest::try_next) is then to be asked until it has nothing more.
#[diagnostic::on_unimplemented(
    message = "a `WaitSet` cannot wait for `{Self}`",
    label = "not a port of tasks",
    note = "those of tasks can be waited for: `Bus::async_subscriber`, `Bus::async_server`, `Bus::latest`"
)]
pub trait WaitPort: sealed::Sealed {}

mod sealed {
    pub trait Sealed {
        fn port(&self) -> Port;
    }

    /// Not to be named elsewhere.
    pub struct Port(pub(crate) Box<dyn super::Ready>);
}

impl<R: ShmRequest> WaitPort for AsyncServer<R> {}
impl<R: ShmRequest> sealed::Sealed for AsyncServer<R> {
    fn port(&self) -> sealed::Port {
        sealed::Port(self.port())
    }
}

impl<M: ShmTopic> WaitPort for AsyncSubscriber<M> {}
impl<M: ShmTopic> sealed::Sealed for AsyncSubscriber<M> {
    fn port(&self) -> sealed::Port {
        sealed::Port(self.port())
    }
}

impl<M: ShmLatest> WaitPort for Latest<M> {}
impl<M: ShmLatest> sealed::Sealed for Latest<M> {
    fn port(&self) -> sealed::Port {
        sealed::Port(self.port())
    }
}

impl<T: Copy + Eq + Hash> WaitSet<T> {
    pub(crate) fn new(bus: &Arc<BusShared>) -> Result<WaitSet<T>, OpenError> {
        let node = bus.node();
        node.check_fork()?;
        let set = Epoll::new().map_err(OpenError::system("make an epoll set"))?;
        let woken = Woken::new(node.origin()).map_err(OpenError::system("make an eventfd"))?;
        set.add(woken.fd(), WOKEN)
            .and_then(|()| set.add(node.due().rings.fd(), RINGS))
            .map_err(OpenError::system("watch a descriptor"))?;
        Ok(WaitSet {
            slots: Slots::new(),
            set: Mine::new(set),
            woken,
            bus: bus.clone(),
            wait: node.config().wait,
            awake: Vec::new(),
            round: VecDeque::new(),
            descriptors: 0,
            turn: 0,
            said: Vec::new(),
            busy: Vec::new(),
        })
    }

    /// Chooses how this set waits, other than as [`Config::wait`](crate::Config::wait) says.
    ///
    /// One that never sleeps ([`Wait::Spin`]) looks directly at the four ports that had something last, and
    /// asks the kernel for all others, and for newest values.
    pub fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
    }

    /// Adds a port, for when it has something to take. What has come before counts, too.
    ///
    /// A source that had this token before is removed. A port that is dropped leaves the set by itself, with
    /// [`Event::Ended`].
    ///
    /// # Errors
    ///
    /// [`OpenError::Forked`].
    pub fn add(&mut self, token: T, port: &impl WaitPort) -> Result<(), OpenError> {
        let sealed::Port(port) = port.port();
        self.add_port(token, port)
    }

    fn add_port(&mut self, token: T, port: Box<dyn Ready>) -> Result<(), OpenError> {
        self.bus.node().check_fork()?;
        if port.is_forked() {
            return Err(OpenError::Forked);
        }
        self.remove(token);
        let key = self.slots.reserve();
        let kind = Kind::Port {
            port,
            waker: self.woken.waker(key.number()),
            is_awake: true,
        };
        self.slots.put(key, Source { token, kind });
        self.awake.push(key);
        Ok(())
    }

    /// Adds a descriptor, for when it can be read; also at its end, or after an error.
    ///
    /// The set has a copy of its own, so the caller's may be closed. But what it refers to, such as a connection,
    /// stays open until the source is [removed](Self::remove). A source that had this token before is
    /// removed. At its end it is told of for ever: remove it then.
    ///
    /// Read it without a buffer, or empty the buffer each time: what lies in a buffer of yours, as in that of
    /// [`std::io::stdin`], is not told of.
    ///
    /// # Errors
    ///
    /// - [`OpenError::System`] where the system has no more descriptors, or cannot wait for this one, as for a
    ///   file on a disk and `/dev/null`.
    /// - [`OpenError::Forked`].
    ///
    /// In each case the set is as before.
    pub fn add_readable(&mut self, token: T, fd: impl AsFd) -> Result<(), OpenError> {
        self.add_descriptor(token, fd.as_fd(), Epoll::add)
    }

    /// As [`add_readable`](Self::add_readable), for when it can be written. The same descriptor may be in the set
    /// for both, under two tokens.
    ///
    /// # Errors
    ///
    /// As [`add_readable`](Self::add_readable).
    pub fn add_writable(&mut self, token: T, fd: impl AsFd) -> Result<(), OpenError> {
        self.add_descriptor(token, fd.as_fd(), Epoll::add_writable)
    }

    fn add_descriptor(
        &mut self,
        token: T,
        fd: BorrowedFd<'_>,
        add: impl FnOnce(&Epoll, BorrowedFd<'_>, u64) -> std::io::Result<()>,
    ) -> Result<(), OpenError> {
        self.bus.node().check_fork()?;
        let fd = fd.try_clone_to_owned();
        let fd = Mine::new(fd.map_err(OpenError::system("copy a descriptor"))?);
        let key = self.slots.reserve();
        if let Err(error) = add(&self.set, fd.as_fd(), key.number()) {
            self.slots.give_back(key);
            return Err(OpenError::system("watch a descriptor")(error));
        }
        self.remove(token);
        let kind = Kind::Descriptor(fd);
        self.slots.put(key, Source { token, kind });
        self.descriptors += 1;
        Ok(())
    }

    /// Adds a waker, for when it is woken: by another thread, or by a future that is polled with it.
    ///
    /// So the set can wait for whatever is a future: a call that was sent
    /// ([`Pending`](crate::Pending)), or the items of a stream ([`AsyncItems`](crate::AsyncItems)). Waking it many
    /// times before it was told of is telling of it once. It stays in the set until it is removed; a source that
    /// had this token before is removed.
    ///
    /// # Errors
    ///
    /// [`OpenError::Forked`].
    ///
    /// # Examples
    ///
    /// ```
    /// use shmbus::Event;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = shmbus::Bus::open("doc-wait-set-waker")?;
    /// let mut set = bus.wait_set()?;
    /// let waker = set.add_waker("worker")?;
    /// std::thread::spawn(move || waker.wake());
    /// assert_eq!(set.wait()?, Some(Event::Ready("worker")));
    /// # Ok(()) }
    /// ```
    pub fn add_waker(&mut self, token: T) -> Result<Waker, OpenError> {
        self.bus.node().check_fork()?;
        self.remove(token);
        let key = self.slots.reserve();
        let kind = Kind::Waker;
        self.slots.put(key, Source { token, kind });
        Ok(self.woken.waker(key.number()))
    }

    /// Takes a source out: it is told of no more. False where no source has this token.
    pub fn remove(&mut self, token: T) -> bool {
        let key = self.slots.key(token);
        let source = key.and_then(|key| self.slots.remove(key));
        let is_descriptor = |source: &Source<T>| matches!(source.kind, Kind::Descriptor(_));
        self.descriptors -= usize::from(source.as_ref().is_some_and(is_descriptor));
        match source {
            None => false,
            Some(source) => {
                self.leave(source);
                true
            }
        }
    }

    /// Waits until a source is ready. `None` where no source is in the set any more.
    ///
    /// # Errors
    ///
    /// - [`OpenError::Forked`].
    /// - [`OpenError::System`] where the system cannot wait.
    pub fn wait(&mut self) -> Result<Option<Event<T>>, OpenError> {
        self.wait_until(None)
    }

    /// As [`wait`](Self::wait), for at most so long: `None` also when the time is up.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<Event<T>>, OpenError> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    /// Tells of a source if one is ready, at once. What came a moment ago may be told of by the next call.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn try_wait(&mut self) -> Result<Option<Event<T>>, OpenError> {
        self.wait_until(Some(Instant::now()))
    }

    /// Ends what a source has outside of the set.
    fn leave(&self, source: Source<T>) {
        if self.bus.node().origin().is_forked() {
            return;
        }
        match source.kind {
            Kind::Port { port, waker, .. } => port.forget(&waker),
            Kind::Descriptor(fd) => self.set.remove(fd.as_fd()),
            Kind::Waker => {}
        }
    }
}

impl<T: Copy + Eq + Hash> Drop for WaitSet<T> {
    fn drop(&mut self) {
        // In a forked child all of it is the parent's, and so are the locks.
        if self.bus.node().origin().is_forked() {
            return;
        }
        self.woken.end();
        let sources: Vec<_> = self.slots.drain().collect();
        sources.into_iter().for_each(|source| self.leave(source));
    }
}
