//! Links between processes: one Unix socket for each pair, and what came over it.
//!
//! - [`wire`]: the control messages; [`incoming`]: what they do; [`answers`]: who waits for them; [`lacking`]: those that
//!   wait for a descriptor; [`outgoing`]: those that wait for a peer that does not read.
//! - [`rings`]: how tasks of the other side are woken.
//! - [`lanes`], [`doors`]: what lies in our memory for the peer to look at; [`presence`]: what we
//!   look at in its memory; [`pins`]: of both, what messages refer to.
//! - [`node`]: what one open bus has: its arena, its links, its ports; [`quiet`]: its quiet thread.
//! - [`ending`]: how the peer's process ended, where the system knows.
//! - [`place`]: the directory of a bus: names, locks, sockets; [`awaited`]: who waits for a name; [`member`],
//!   [`topics`]: who takes part in a topic, and who learns of it.
//!
//! Nothing that lies on the path of a message waits for the quiet thread.
//!
//! # How a link ends
//!
//! 1. One side says `Bye`, or its process dies: no more is sent on either side, every lane is
//!    closed, and whoever waits on one is woken. The link is *dead*.
//! 2. A side that looks at nothing of the other any more, in no port and in no kept view, shuts its
//!    half of the socket down; for a process that died the kernel does.
//! 3. The other side sees that end of the stream: all that it lent over the link is its own again,
//!    from its private book. The link is *free*.
//!
//! So memory is used again when nobody looks at it, and neither a fault nor a bus that is dropped
//! takes it from under a peer that lives on. A dead process's segments stay mapped here while a
//! view refers to them, and no longer; its names are taken over by whoever comes next, since the
//! kernel has freed its locks.

mod answers;
mod awaited;
mod doors;
mod ending;
#[cfg(feature = "json")]
pub(crate) mod flight;
mod incoming;
mod lacking;
mod lanes;
mod line;
pub(crate) mod member;
pub(crate) mod node;
pub(crate) mod offer;
mod outgoing;
pub(crate) mod pins;
pub(crate) mod place;
mod presence;
mod quiet;
mod rings;
pub(crate) mod topics;
pub(crate) mod wire;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Waker;

use crate::error::Fault;
use crate::memory::layout::{LAYOUT_VERSION, SegmentRef};
use crate::memory::ring::Sent;
use crate::memory::segment::{OwnSegment, PeerSegment};
use crate::sync::{AtomicBool, Ordering};
use crate::sys::fork::{Mine, Origin};
use crate::sys::poll::{self, Epoll};
use crate::sys::process::Process;
use crate::sys::socket::{Credentials, Socket};
use crate::wait::Post;
use answers::Waiting;
pub(crate) use answers::{Answer, HANDSHAKE, Until};
pub(crate) use doors::DoorBit;
use doors::Doors;
use ending::Ending;
use lacking::{Read, Reading};
pub(crate) use lanes::Estate;
use lanes::Lanes;
pub(crate) use line::{LaneId, Line};
use member::Member;
use node::Node;
use outgoing::{Descriptor, Outgoing, Unsent};
use presence::Mapped;
use rings::Rings;
use wire::Control;

/// The connection to one other process.
pub(crate) struct Link {
    token: u64,
    socket: Arc<Mine<Socket>>,
    peer: Credentials,
    ending: Ending,
    node: Weak<Node>,
    epoll: Arc<Epoll>,
    outgoing: Mutex<Outgoing>,
    /// Held while control messages are read, so that they are handled one by one.
    reading: Mutex<Reading>,
    mapped: Mapped,
    announced: Mutex<HashSet<u64>>,
    state: Mutex<State>,
    changed: Condvar,
    rings: Rings,
    /// Whether both sides can use the cheap half of a barrier, known from the hello on.
    asymmetric: OnceLock<bool>,
    dead: AtomicBool,
    fault: OnceLock<Fault>,
    origin: Origin,
    /// See [`Link::copies`].
    copies: Option<usize>,
    /// What is not known yet of a child that inherited its end: which user it runs as.
    is_unknown: AtomicBool,
    #[cfg(feature = "json")]
    flight: flight::Flight,
}

#[derive(Default)]
struct State {
    serving: HashSet<String>,
    answers: HashMap<u32, Waiting>,
    /// Tasks that wait for what a thread waits for with `changed`.
    wakers: Vec<Waker>,
    lanes: Lanes,
    doors: Doors,
    their_doors: HashSet<SegmentRef>,
    next_lane: u32,
}

impl Link {
    /// A link over a socket that `epoll` watches under the number `token`.
    pub(crate) fn new(
        token: u64,
        socket: Socket,
        (peer, process): (Credentials, Option<Process>),
        (node, epoll): (Weak<Node>, Arc<Epoll>),
        origin: Origin,
    ) -> Link {
        let socket = Arc::new(Mine::new(socket));
        let copies = node.upgrade().and_then(|node| node.config().copies());
        Link {
            token,
            mapped: Mapped::new(socket.clone(), origin),
            socket,
            peer,
            ending: Ending::new(process),
            node,
            epoll,
            outgoing: Mutex::default(),
            reading: Mutex::default(),
            announced: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            rings: Rings::default(),
            asymmetric: OnceLock::new(),
            dead: AtomicBool::new(false),
            fault: OnceLock::new(),
            origin,
            copies,
            is_unknown: AtomicBool::new(false),
            #[cfg(feature = "json")]
            flight: flight::Flight::default(),
        }
    }

    /// The process at the other end.
    pub(crate) fn pid(&self) -> u32 {
        self.peer.pid
    }

    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether lanes of this link use the cheap half of a barrier.
    pub(crate) fn is_asymmetric(&self) -> bool {
        self.asymmetric.get().copied().unwrap_or(false)
    }

    /// True once the other process is gone or was given up.
    pub(crate) fn is_dead(&self) -> bool {
        // SYNC(dead): Acquire; pairs with Release in `die`.
        self.dead.load(Ordering::Acquire)
    }

    /// How the peer broke the protocol, if it did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault.get().cloned()
    }

    /// Sends a control message: now, or as soon as the peer has read enough. Never waits.
    pub(crate) fn say(&self, control: &Control) -> io::Result<()> {
        let posted = self.post(control, None);
        posted.map_err(|unsent| self.unsaid(unsent))
    }

    fn post(&self, control: &Control, descriptor: Option<Descriptor>) -> Result<(), Unsent> {
        if self.origin.is_forked() {
            // The socket is the parent's to speak on.
            return Err(Unsent::Ended);
        }
        let bytes = wire::encode(control)
            .ok_or_else(|| Unsent::System(io::ErrorKind::InvalidInput.into()))?;
        let mut outgoing = lock(&self.outgoing);
        let was_due = outgoing.is_due();
        let sent = outgoing.send(&self.socket, bytes, descriptor);
        if outgoing.is_due() != was_due {
            self.watch(&outgoing);
        }
        sent
    }

    /// A control message that was not taken ends the link, unless it has ended or is not ours.
    fn unsaid(&self, unsent: Unsent) -> io::Error {
        match unsent {
            Unsent::Ended => {}
            Unsent::Deaf(bytes) => self.die(Some(Fault::Deaf { bytes })),
            Unsent::System(_) => self.die(None),
        }
        io::ErrorKind::BrokenPipe.into()
    }

    /// Sends what waits, as far as the peer has read; true where nothing waits any more.
    pub(crate) fn flush(&self) -> bool {
        let mut outgoing = lock(&self.outgoing);
        if !outgoing.is_due() {
            return true;
        }
        let flushed = outgoing.flush(&self.socket);
        let owes_look = outgoing.take_look();
        self.watch(&outgoing);
        drop(outgoing);
        match flushed {
            Ok(true) if !owes_look => true,
            Ok(true) => {
                // A task may wait for room, and not know that it is this which it waits for.
                let lines = self.state().lanes.lines();
                lines.iter().for_each(|line| line.rouse());
                true
            }
            Ok(false) => false,
            Err(_) => {
                self.die(None);
                true
            }
        }
    }

    /// What is wrong with a peer that does not read what was said to it.
    pub(crate) fn deafness(&self) -> Option<Fault> {
        let outgoing = lock(&self.outgoing);
        let bytes = outgoing.bytes();
        outgoing.waits().then_some(Fault::Deaf { bytes })
    }

    /// Has the quiet thread wait for what this link waits for.
    fn watch(&self, outgoing: &Outgoing) {
        self.epoll.change(
            self.socket.as_fd(),
            self.token,
            !self.is_dead(),
            outgoing.is_due(),
        );
    }

    /// Says hello; the answer is awaited with [`wait_hello`](Self::wait_hello).
    pub(crate) fn hello(&self) -> io::Result<()> {
        let barrier = crate::sys::membarrier::register();
        self.say(&Control::Hello {
            layout: LAYOUT_VERSION,
            barrier,
        })
    }

    /// Has the peer map a segment of ours, unless it was told to before.
    ///
    /// A reference that goes by control message may follow at once; one that goes through shared
    /// memory only once this was sent: see [`flush`](Self::flush).
    pub(crate) fn announce(&self, segment: &Arc<OwnSegment>) -> io::Result<()> {
        let mut announced = lock(&self.announced);
        if announced.contains(&segment.id()) {
            return Ok(());
        }
        let control = Control::Segment {
            id: segment.id(),
            len: segment.len(),
        };
        let posted = self.post(&control, Some(segment.clone()));
        if posted.is_ok() {
            announced.insert(segment.id());
        }
        drop(announced);
        posted.map_err(|unsent| self.unsaid(unsent))
    }

    /// Has the peer unmap a segment of ours.
    pub(crate) fn retire(&self, id: u64) {
        if lock(&self.announced).remove(&id) {
            // A peer that cannot be told is given up by `say`.
            let _ = self.say(&Control::Retired { id });
        }
    }

    /// Checks a reference of the peer's, and returns the place and what keeps it mapped.
    ///
    /// For references that came by control message: what was announced before is known by then, so
    /// nothing is read here. The quiet thread may be reading already.
    pub(crate) fn resolve(
        &self,
        at: SegmentRef,
        align: u64,
    ) -> Result<(Arc<PeerSegment>, NonNull<u8>), Fault> {
        let segment = self.mapped.get(at.segment).ok_or(Fault::Segment {
            segment: at.segment,
        })?;
        let place = segment.resolve(at, align)?;
        Ok((segment, place))
    }

    /// Does what there is to do at the socket, and returns whether there is more as soon as a descriptor is left. Called
    /// by the quiet thread.
    pub(crate) fn tend(&self) -> bool {
        self.flush();
        if !self.is_dead() {
            return self.pump() == Read::Held;
        }
        if poll::is_ended(self.socket.as_fd()) {
            // What it said last, where a system error told of its end first.
            if self.pump() == Read::Held {
                return true;
            }
            self.free();
        }
        false
    }

    /// A number for a lane that we open, on which we send; its answer is then awaited.
    pub(crate) fn new_lane(&self, line: Arc<Line>, estate: Estate) -> LaneId {
        let mut state = self.state();
        let id = LaneId {
            ours: true,
            number: state.next_lane,
        };
        state.next_lane = state.next_lane.wrapping_add(1);
        state.answers.insert(id.number, Waiting::Yet);
        state.lanes.add(id, line, estate, true);
        id
    }

    /// Whether the peer says that it offers a port of this name, or takes part in a topic by it.
    pub(crate) fn is_serving(&self, name: &str) -> bool {
        self.state().serving.contains(name)
    }

    /// Those that the peer says take part in topics.
    pub(crate) fn members(&self) -> Vec<Member> {
        let state = self.state();
        let members = state.serving.iter().filter_map(|name| Member::parse(name));
        members.collect()
    }

    /// True where the peer may open no more lanes.
    pub(crate) fn is_full(&self) -> bool {
        self.state().lanes.is_full()
    }

    /// Registers a lane that the peer opened. False where the number is in use.
    pub(crate) fn add_lane(
        &self,
        id: LaneId,
        line: Arc<Line>,
        estate: Estate,
        sends: bool,
    ) -> bool {
        let mut state = self.state();
        // A link that died closed its lines under this lock, or will.
        !self.is_dead() && state.lanes.add(id, line, estate, sends)
    }

    /// The port of a lane is dropped: what it sent was buried before.
    pub(crate) fn close_lane(&self, id: LaneId) {
        if self.origin.is_forked() {
            // The books are the parent's, and may have been locked when it was forked.
            return;
        }
        #[cfg(feature = "json")]
        self.forget_lane(id);
        self.await_no_answer(id);
        let freed = self.state().lanes.close(id);
        drop(freed);
        let _ = self.say(&Control::Closed {
            lane: id.number,
            mine: id.ours,
        });
        self.let_go_if_idle();
    }

    /// Nothing that came on a lane is looked at any more.
    pub(crate) fn release_lane(&self, id: LaneId) {
        let _ = self.say(&Control::Released {
            lane: id.number,
            mine: id.ours,
        });
    }

    /// Takes what was sent on a lane from its port, for as long as the peer may look at it.
    pub(crate) fn bury(&self, id: LaneId, sent: Sent) {
        if self.origin.is_forked() {
            return;
        }
        let buried = self.state().lanes.bury(id, sent);
        buried.settle();
    }

    /// Ends the link: every lane of it is closed, and whoever waits on one is woken.
    pub(crate) fn die(&self, fault: Option<Fault>) {
        if self.origin.is_forked() {
            return;
        }
        if let Some(fault) = fault {
            let _ = self.fault.set(fault);
        }
        // SYNC(dead): Release; pairs with Acquire in `is_dead`.
        if self.dead.swap(true, Ordering::Release) {
            return;
        }
        self.ending.begin();
        #[cfg(feature = "json")]
        self.record_flight();
        let (ended, waiting) = {
            let mut state = self.state();
            let all = std::mem::take(&mut state.answers);
            let (waiting, others): (Vec<_>, Vec<_>) = all
                .into_iter()
                .partition(|(_, w)| matches!(w, Waiting::Then(_)));
            state.answers.extend(others);
            (state.lanes.end(), waiting)
        };
        ended.close();
        // Without the lock: what they hold is closed by this.
        drop(waiting);
        self.tell(self.state());
        if let Some(bye) = wire::encode(&Control::Bye) {
            let mut outgoing = lock(&self.outgoing);
            outgoing.end(&self.socket, bye);
            self.watch(&outgoing);
        }
        if let Some(node) = self.node.upgrade() {
            self.rings.end(&node.due().rings);
            node.ended(self);
        }
        self.let_go_if_idle();
        // A stranger: nothing of ours was ever shown to it.
        if lock(&self.announced).is_empty() {
            self.free();
        }
    }

    /// Looks at nothing of the peer's any more, if the link is dead and no port uses it.
    fn let_go_if_idle(&self) {
        if self.is_dead() && !self.state().lanes.is_used() {
            self.mapped.let_go();
        }
    }

    /// The peer looks at nothing of ours any more, and the link is dead.
    pub(crate) fn free(&self) {
        self.die(None);
        let (ended, freed) = {
            let mut state = self.state();
            // Another thread may just be about to end them, and find none any more.
            let ended = state.lanes.end();
            (
                ended,
                (state.lanes.free(), std::mem::take(&mut state.doors)),
            )
        };
        ended.close();
        // Without a lock: this gives memory back, and may tell other peers so.
        drop(freed);
        if let Some(node) = self.node.upgrade() {
            node.forget(self);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Post for Link {
    fn ring(&self, bell: u32) {
        let _ = self.say(&Control::Ring { bell });
    }

    fn ring_tasks(&self, bell: u32) {
        if self.origin.is_forked() || self.rings.ring(bell) {
            return;
        }
        self.ring(bell);
    }
}

/// Locks, also where a thread panicked meanwhile: no critical section leaves a half-made change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
