//! What one open bus has: its arena, its links, its ports, and its quiet thread.
//!
//! The quiet thread sleeps until a link has something to say, somebody connects, or the bus is
//! dropped. It makes and ends links and lanes. No message goes through it, and nothing on the
//! path of a message waits for it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::awaited::Awaited;
use super::ending::Dying;
use super::offer::Port;
use super::pins::Shelf;
use super::place::{Owner, Place};
use super::topics::Topics;
use super::wire::Control;
use super::{Link, lock};
use crate::error::{ConnectError, Fault, MemoryError, OpenError};
use crate::memory::arena::{Arena, Limits};
use crate::memory::layout::Bell;
use crate::memory::shared::Shared;
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::sys::fork::{Mine, Origin};
use crate::sys::inotify::Seat;
use crate::sys::membarrier;
use crate::sys::poll::{self, Epoll};
use crate::sys::process::Process;
use crate::sys::socket::{Credentials, Listener, Socket};
use crate::sys::user_id;
use crate::wait::rings::RingSet;
use crate::wait::tasks::{Drive, Due};
use crate::wait::{Sleeper, Waiter};
use crate::{Config, Trust};

/// Something that went wrong with a peer and did not concern anybody else.
///
/// What is told of here ended one link, or refused one connection; every other one goes on. See
/// [`Bus::take_incidents`](crate::Bus::take_incidents).
///
/// # Examples
///
/// ```
/// let incident = shmbus::Incident { pid: 4711, what: "it sent garbage".into() };
/// assert!(incident.what.contains("garbage"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// The process at the other end.
    pub pid: u32,
    /// What went wrong.
    pub what: String,
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}: {}", self.pid, self.what)
    }
}

/// How peers reach this bus.
pub(crate) enum Reach {
    /// By name.
    Name {
        name: String,
        place: Place,
        socket: String,
    },
    /// Over one link that was inherited, with no name at all.
    Inherited,
}

/// See the module.
pub(crate) struct Node {
    pub(super) reach: Reach,
    config: Config,
    origin: Origin,
    arena: Arc<Arena>,
    pub(super) epoll: Arc<Epoll>,
    due: Arc<Due>,
    pins: Arc<Shelf>,
    pub(super) quits: AtomicBool,
    pub(super) next_token: AtomicU64,
    pub(super) links: Mutex<HashMap<u64, Arc<Link>>>,
    /// Links that we made, by the socket we connected to.
    by_socket: Mutex<HashMap<String, Weak<Link>>>,
    pub(super) ports: Mutex<HashMap<String, Arc<dyn Port>>>,
    pub(super) listener: Mutex<Option<Arc<Mine<Listener>>>>,
    sleepers: Mutex<Vec<Weak<Sleeper>>>,
    incidents: Mutex<Vec<Incident>>,
    /// Peers whose links ended without a word, and whose processes may be about to end.
    pub(super) dying: Mutex<VecDeque<Dying>>,
    #[cfg(feature = "json")]
    flights: super::flight::Flights,
    pub(super) topics: Topics,
    pub(super) awaited: Awaited,
    quiet: Mutex<Option<JoinHandle<()>>>,
    /// Whose inherited link has ended by a fault, and which.
    pub(super) cut_off: OnceLock<(u32, Fault)>,
}

pub(super) const EVENT: u64 = 0;
pub(super) const LISTENER: u64 = 1;
pub(super) const RINGS: u64 = 2;
pub(super) const MEMBERS: u64 = 3;
const FIRST_LINK: u64 = 4;
/// How long a bus that is dropped waits for peers that do not read, to say that it ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a thread sleeps at a time where peers are not trusted: one of them may sleep on its bell, and be woken in
/// its place.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);
/// More incidents than anybody reads are counted, not kept.
const MOST_INCIDENTS: usize = 256;

impl Node {
    pub(crate) fn start(reach: Reach, config: Config) -> Result<Arc<Node>, OpenError> {
        let origin = Origin::here().map_err(OpenError::system("mark the process"))?;
        // Before all other descriptors.
        let seat = match &reach {
            Reach::Name { .. } => Some(Seat::new().map_err(OpenError::system("make an eventfd"))?),
            Reach::Inherited => None,
        };
        let epoll = Epoll::new().map_err(OpenError::system("make an epoll set"))?;
        let epoll = Arc::new(epoll);
        let rings = RingSet::new(epoll.clone(), RINGS, origin)
            .map_err(OpenError::system("make an epoll set"))?;
        let due = Due::new(rings).map_err(OpenError::system("make an eventfd"))?;
        epoll
            .add(due.event.fd(), EVENT)
            .map_err(OpenError::system("watch an eventfd"))?;
        let due = Arc::new(due);
        let node = Arc::new_cyclic(|weak: &Weak<Node>| {
            let weak = weak.clone();
            let on_retire = Box::new(move |id| {
                if let Some(node) = weak.upgrade().filter(|n: &Arc<Node>| !n.origin.is_forked()) {
                    node.all_links().iter().for_each(|link| link.retire(id));
                }
            });
            Node {
                reach,
                config,
                origin,
                arena: Arena::new(
                    Limits {
                        memory: config.memory_limit as u64,
                    },
                    on_retire,
                ),
                epoll,
                pins: Shelf::new(&due, origin),
                due,
                quits: AtomicBool::new(false),
                next_token: AtomicU64::new(FIRST_LINK),
                links: Mutex::default(),
                by_socket: Mutex::default(),
                ports: Mutex::default(),
                listener: Mutex::default(),
                sleepers: Mutex::default(),
                incidents: Mutex::default(),
                dying: Mutex::default(),
                #[cfg(feature = "json")]
                flights: super::flight::Flights::default(),
                topics: Topics::with(seat),
                awaited: Awaited::default(),
                quiet: Mutex::default(),
                cut_off: OnceLock::new(),
            }
        });
        // What each link asks for. In a process of one thread it costs nothing; with another, the kernel waits for all
        // processors: some milliseconds, and seconds where they are busy, in which a peer waits for our greeting.
        membarrier::register();
        let thread = std::thread::Builder::new().name("shmbus".into());
        let quiet = thread
            .spawn({
                let node = node.clone();
                move || node.run()
            })
            .map_err(OpenError::system("start the quiet thread"))?;
        *lock(&node.quiet) = Some(quiet);
        Ok(node)
    }

    /// Ends every link, and the quiet thread.
    pub(crate) fn stop(&self) {
        if self.origin.is_forked() {
            return;
        }
        // SYNC(quits): Release; pairs with Acquire in `run`.
        self.quits.store(true, Ordering::Release);
        self.due.event.set();
        if let Some(quiet) = lock(&self.quiet).take() {
            if quiet.thread().id() != std::thread::current().id() {
                let _ = quiet.join();
            }
        }
        self.end_links();
        self.due.rings.end();
        let listens = lock(&self.listener).take().is_some();
        if let Reach::Name { place, socket, .. } = &self.reach {
            place.leave(listens.then_some(socket.as_str()));
        }
    }

    /// Ends every link. The arena goes with the bus, so nothing that was lent is used again.
    fn end_links(&self) {
        let links: Vec<_> = lock(&self.links).values().cloned().collect();
        links.iter().for_each(|link| link.die(None));
        let deadline = Instant::now() + LAST_WORDS;
        for link in &links {
            // The quiet thread is gone: what waits for a peer that does not read is sent here.
            while !link.flush() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() || !poll::writable(link.socket().as_fd(), left) {
                    break;
                }
            }
            link.free();
        }
    }

    /// Refuses to go on in a forked child, which has no arena.
    pub(crate) fn check_fork(&self) -> Result<(), OpenError> {
        if self.origin.is_forked() {
            return Err(OpenError::Forked);
        }
        Ok(())
    }

    pub(crate) fn reach(&self) -> &Reach {
        &self.reach
    }

    /// The name to use in errors.
    pub(crate) fn name(&self) -> &str {
        match &self.reach {
            Reach::Name { name, .. } => name,
            Reach::Inherited => "(inherited)",
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// What the quiet thread is to do for ports of tasks.
    pub(crate) fn due(&self) -> &Arc<Due> {
        &self.due
    }

    /// Which pins of ours are lent.
    pub(crate) fn pins(&self) -> &Arc<Shelf> {
        &self.pins
    }

    #[inline(always)]
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    pub(crate) fn link(&self, token: u64) -> Option<Arc<Link>> {
        lock(&self.links).get(&token).cloned()
    }

    /// The links that have not ended.
    pub(crate) fn all_links(&self) -> Vec<Arc<Link>> {
        let links = lock(&self.links);
        links.values().filter(|l| !l.is_dead()).cloned().collect()
    }

    /// A new place to sleep.
    pub(crate) fn new_sleeper(&self, waiter: Waiter) -> Result<Arc<Sleeper>, MemoryError> {
        let block = Arc::new(self.arena.allocate(size_of::<Bell>() as u64)?);
        let mut sleepers = lock(&self.sleepers);
        let free = sleepers.iter().position(|s| s.strong_count() == 0);
        let id = free.unwrap_or(sleepers.len());
        let sleeper = Sleeper::new(Shared::own(block), id as u32, waiter);
        let longest = self.config.copies().map(|_| LONGEST_SLEEP);
        let sleeper = Arc::new(sleeper.with_longest(longest));
        match free {
            Some(id) => sleepers[id] = Arc::downgrade(&sleeper),
            None => sleepers.push(Arc::downgrade(&sleeper)),
        }
        Ok(sleeper)
    }

    /// Rings a bell of ours for a peer that found nobody sleeping. An unknown number is no fault:
    /// the port may just have gone.
    pub(crate) fn rouse(&self, bell: u32) {
        if let Some(sleeper) = self.sleeper(bell) {
            sleeper.rouse();
        }
    }

    pub(super) fn sleeper(&self, bell: u32) -> Option<Arc<Sleeper>> {
        let sleepers = lock(&self.sleepers);
        sleepers.get(bell as usize).and_then(Weak::upgrade)
    }

    /// Drives the ports that peers rang for; false once the bus is gone. The caller holds no lock.
    pub(crate) fn take_rings(self: &Arc<Self>) -> bool {
        // SYNC(quits): Acquire; pairs with Release in `stop`.
        if self.origin.is_forked() || self.quits.load(Ordering::Acquire) {
            return false;
        }
        if self.drive() {
            self.due.push(Arc::downgrade(self) as Weak<_>);
        }
        true
    }

    pub(crate) fn report(&self, pid: u32, what: String) {
        let mut incidents = lock(&self.incidents);
        if incidents.len() < MOST_INCIDENTS {
            incidents.push(Incident { pid, what });
        } else if let Some(last) = incidents.last_mut() {
            *last = Incident {
                pid,
                what: format!("{what} (and others before that)"),
            };
        }
    }

    pub(crate) fn take_incidents(&self) -> Vec<Incident> {
        std::mem::take(&mut lock(&self.incidents))
    }

    /// Adopts a socket: checks who is there, greets, and has the quiet thread listen to it.
    pub(crate) fn adopt(self: &Arc<Self>, socket: Socket) -> Result<Arc<Link>, OpenError> {
        let peer = socket
            .credentials()
            .map_err(OpenError::system("see who connected"))?;
        self.check_user(&peer)?;
        self.adopt_from(socket, (peer, None), true)
    }

    /// Adopts one end of a socket pair whose other end a child of ours inherited: the kernel only
    /// knows who made the pair, so the child's user is looked at with its hello.
    pub(crate) fn adopt_child(
        self: &Arc<Self>,
        socket: Socket,
        pid: u32,
    ) -> Result<Arc<Link>, OpenError> {
        let uid = user_id();
        let peer = (Credentials { pid, uid }, Process::of_child(pid));
        self.adopt_from(socket, peer, false)
    }

    /// Whether peers of another user are let in.
    pub(super) fn lets_in(&self, uid: u32) -> bool {
        uid == user_id() || self.config.trust == Trust::AnyUser
    }

    fn check_user(&self, peer: &Credentials) -> Result<(), OpenError> {
        if self.lets_in(peer.uid) {
            return Ok(());
        }
        let problem = format!(
            "it runs as user {}, this one as {}: to let it in, and copy what it sends, set \
             `Config::trust` to `Trust::AnyUser`",
            peer.uid,
            user_id()
        );
        let pid = peer.pid;
        Err(OpenError::Peer { pid, problem })
    }

    fn adopt_from(
        self: &Arc<Self>,
        socket: Socket,
        (peer, process): (Credentials, Option<Process>),
        is_known: bool,
    ) -> Result<Arc<Link>, OpenError> {
        // Relaxed: only its uniqueness matters.
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let link = Arc::new(Link::new(
            token,
            socket,
            (peer, process),
            (Arc::downgrade(self), self.epoll.clone()),
            self.origin,
        ));
        if !is_known {
            link.ask_who();
        }
        // The greeting is the first of all that is said: others speak to a link that is among the others.
        let greeted = link.hello().and_then(|()| {
            lock(&self.links).insert(token, link.clone());
            self.epoll.add(link.socket().as_fd(), token)
        });
        if let Err(error) = greeted {
            link.die(None);
            // One that has died is found dead, as if that had been right behind the greeting.
            let has_died = matches!(
                error.kind(),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
            );
            if !has_died || matches!(self.reach, Reach::Inherited) {
                return Err(OpenError::system("greet a peer")(error));
            }
        }
        let names: Vec<_> = lock(&self.ports).keys().cloned().collect();
        for name in names {
            let _ = link.say(&Control::Serving { name });
        }
        Ok(link)
    }

    /// The link to whoever listens on this socket, made if there is none. Never waits.
    pub(super) fn begin_link(self: &Arc<Self>, owner: &Owner) -> Result<Arc<Link>, OpenError> {
        let Reach::Name { place, .. } = &self.reach else {
            return Err(OpenError::NoParent);
        };
        let mut known = lock(&self.by_socket);
        if let Some(link) = known.get(&owner.socket).and_then(Weak::upgrade) {
            if !link.is_dead() {
                return Ok(link);
            }
        }
        let action = format!("connect to {}", place.dir().join(&owner.socket).display());
        let socket = place
            .connect(&owner.socket)
            .map_err(OpenError::system(action))?;
        let link = self.adopt(socket)?;
        known.retain(|_, link| link.strong_count() > 0);
        known.insert(owner.socket.clone(), Arc::downgrade(&link));
        Ok(link)
    }

    /// As [`begin_link`](Self::begin_link), for who connects to a port.
    pub(crate) fn link_to(self: &Arc<Self>, owner: &Owner) -> Result<Arc<Link>, ConnectError> {
        match self.begin_link(owner) {
            // Its lock stands and nobody listens: it is about to end.
            Err(OpenError::System { source, .. })
                if source.kind() == ErrorKind::ConnectionRefused =>
            {
                Err(ConnectError::Lost {
                    pid: owner.pid,
                    fault: None,
                    ended: None,
                })
            }
            begun => Ok(begun?),
        }
    }

    /// A link has ended, once.
    pub(crate) fn ended(&self, link: &Link) {
        if let Some(fault) = link.fault() {
            self.report(link.pid(), fault.to_string());
            if matches!(self.reach, Reach::Inherited) {
                let _ = self.cut_off.set((link.pid(), fault));
            }
        } else {
            self.watch_end(link);
        }
        if matches!(self.reach, Reach::Inherited) {
            self.end_ports();
            // Nobody will ever offer what they wait for.
            self.offered(None);
        }
    }

    #[cfg(feature = "json")]
    pub(crate) fn flights(&self) -> &super::flight::Flights {
        &self.flights
    }

    /// Whether this bus ends its links itself.
    #[cfg(feature = "json")]
    pub(super) fn has_quit(&self) -> bool {
        // SYNC(quits): Acquire; pairs with Release in `stop`.
        self.quits.load(Ordering::Acquire)
    }

    /// A link has ended, and its peer looks at nothing of ours any more.
    pub(crate) fn forget(&self, link: &Link) {
        self.epoll.remove(link.socket().as_fd());
        let gone = lock(&self.links).remove(&link.token());
        drop(gone);
        self.pins.sweep();
    }

    /// Has every port end once it has received what was sent.
    pub(crate) fn end_ports(&self) {
        let ports: Vec<_> = lock(&self.ports).values().cloned().collect();
        ports.iter().for_each(|port| port.end());
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
