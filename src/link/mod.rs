//! Links between processes: one Unix socket for each pair, and what came over it.
//!
//! - [`wire`]: the control messages.
//! - [`node`]: what one open bus has: its arena, its links, its ports, its quiet thread.
//! - [`place`]: the directory of a bus: names, locks, sockets.
//!
//! The socket's end-of-file is the death notice: the kernel writes it, whatever happened to the
//! peer. Nothing that lies on the path of a message waits for the quiet thread.
//!
//! # What a peer's death leaves behind
//!
//! Its segments stay mapped while a view refers to them, and no longer. What was lent to it
//! returns when the lanes are dropped, from our own book. Its names are taken over by whoever
//! comes next, since the kernel has freed its locks.

pub(crate) mod node;
pub(crate) mod place;
pub(crate) mod wire;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;

use crate::error::Fault;
use crate::memory::layout::{Doorbell, LAYOUT_VERSION, SegmentRef, SenderBlock};
use crate::memory::ring::{Consumer, Producer};
use crate::memory::segment::{OwnSegment, PeerSegment};
use crate::memory::shared::Shared;
use crate::sync::{AtomicBool, Ordering};
use crate::sys::fork::Origin;
use crate::sys::poll;
use crate::sys::socket::{Credentials, Socket};
use crate::wait::{Post, Sleeper};
use node::Node;
use wire::{Control, End, Refusal};

/// The most bytes of a peer's memory that we map: its own limit may not cost us ours.
const MOST_MAPPED: u64 = 1 << 36;
/// The most segments of a peer that we map at once.
const MOST_SEGMENTS: usize = 4096;
/// How long a peer may take to say hello, or to read what we sent it.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);

/// A lane as its link knows it: to be told that its other end is gone.
pub(crate) struct Line {
    closed: AtomicBool,
    sleeper: Arc<Sleeper>,
    /// Where a port with many lanes learns which of them closed.
    notice: Option<(Arc<SegQueue<usize>>, usize)>,
}

impl Line {
    /// The line of a port that has no other and sleeps here.
    pub(crate) fn new(sleeper: Arc<Sleeper>) -> Arc<Line> {
        Arc::new(Line {
            closed: AtomicBool::new(false),
            sleeper,
            notice: None,
        })
    }

    /// One line of many: `number` is put into the queue when it closes.
    pub(crate) fn one_of_many(
        sleeper: Arc<Sleeper>,
        queue: Arc<SegQueue<usize>>,
        number: usize,
    ) -> Arc<Line> {
        Arc::new(Line {
            closed: AtomicBool::new(false),
            sleeper,
            notice: Some((queue, number)),
        })
    }

    /// True once the other end is gone; what it published before can still be read.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        // SYNC(closed): Acquire; pairs with Release in `close`.
        self.closed.load(Ordering::Acquire)
    }

    fn close(&self) {
        // SYNC(closed): Release; pairs with Acquire in `is_closed`.
        if self.closed.swap(true, Ordering::Release) {
            // Closed by the peer before the link ended: its port was told.
            return;
        }
        if let Some((queue, number)) = &self.notice {
            queue.push(*number);
        }
        self.sleeper.poke();
    }
}

/// Which lane of a link: who opened it, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneId {
    pub(crate) ours: bool,
    pub(crate) number: u32,
}

/// The answer to a request for a port.
pub(crate) type Answer = Result<End, Refusal>;

/// The connection to one other process.
pub(crate) struct Link {
    token: u64,
    socket: Socket,
    peer: Credentials,
    node: Weak<Node>,
    /// Held while control messages are read, so that they are handled one by one.
    reading: Mutex<Vec<u8>>,
    segments: RwLock<HashMap<u32, Arc<PeerSegment>>>,
    announced: Mutex<HashSet<u32>>,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether both sides can use the cheap half of a barrier, known from the hello on.
    asymmetric: OnceLock<bool>,
    dead: AtomicBool,
    fault: OnceLock<Fault>,
    origin: Origin,
}

#[derive(Default)]
struct State {
    serving: HashSet<String>,
    answers: HashMap<u32, Option<Answer>>,
    lanes: HashMap<LaneId, LaneEntry>,
    /// Senders' halves of lanes that are closed on both sides, and of which views are still kept.
    lingering: Vec<Producer>,
    doors: HashMap<String, Vec<Door>>,
    next_lane: u32,
}

/// A lane, until both sides have closed it.
struct LaneEntry {
    line: Arc<Line>,
    ours_closed: bool,
    theirs_closed: bool,
    /// What the peer may still look at.
    remains: Vec<Remains>,
}

impl LaneEntry {
    fn new(line: Arc<Line>) -> LaneEntry {
        LaneEntry {
            line,
            ours_closed: false,
            theirs_closed: false,
            remains: Vec::new(),
        }
    }
}

/// Half of a lane that its port has dropped. Its memory is the lane's until the peer has closed
/// its side too: the peer reads cells, flags and hand-backs as long as it has not.
#[allow(clippy::large_enum_variant)] // moved twice in the life of a lane
pub(crate) enum Remains {
    /// What was sent, and what of it was not handed back.
    Sent(Producer, #[allow(dead_code)] Shared<SenderBlock>),
    /// What was received, and what of it was not looked at.
    Received(Consumer),
}

/// A doorbell of ours at one port of the peer's, and which of its bits are in use.
struct Door {
    bell: Shared<Doorbell>,
    at: SegmentRef,
    used: HashSet<u16>,
}

impl Link {
    pub(crate) fn new(
        token: u64,
        socket: Socket,
        peer: Credentials,
        node: Weak<Node>,
        origin: Origin,
    ) -> Link {
        Link {
            token,
            socket,
            peer,
            node,
            reading: Mutex::new(Vec::new()),
            segments: RwLock::default(),
            announced: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            asymmetric: OnceLock::new(),
            dead: AtomicBool::new(false),
            fault: OnceLock::new(),
            origin,
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

    /// Sends a control message.
    ///
    /// A peer that reads so little that its socket is full is waited for, for a bounded time, and
    /// then given up: it is stopped, or broken.
    pub(crate) fn say(&self, control: &Control) -> io::Result<()> {
        self.say_with(control, None)
    }

    fn say_with(&self, control: &Control, segment: Option<&OwnSegment>) -> io::Result<()> {
        if self.origin.is_forked() {
            // The socket is the parent's to speak on.
            return Err(io::ErrorKind::Unsupported.into());
        }
        let bytes = wire::encode(control).ok_or(io::ErrorKind::InvalidInput)?;
        let deadline = Instant::now() + HANDSHAKE;
        loop {
            match self.socket.send(&bytes, segment.map(OwnSegment::fd)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if self.is_dead() || left.is_zero() {
                        self.die(None);
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                    poll::writable(self.socket.as_fd(), left.min(Duration::from_millis(100)));
                }
                Err(e) => {
                    self.die(None);
                    return Err(e);
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Says hello; the answer is awaited with [`wait_hello`](Self::wait_hello).
    pub(crate) fn hello(&self) -> io::Result<()> {
        let barrier = crate::sys::membarrier::register();
        self.say(&Control::Hello {
            layout: LAYOUT_VERSION,
            barrier,
        })
    }

    /// Waits until the peer has said hello.
    pub(crate) fn wait_hello(&self) -> bool {
        self.wait_for(Instant::now() + HANDSHAKE, |_| {
            self.asymmetric.get().copied()
        })
        .is_some()
    }

    pub(crate) fn has_said_hello(&self) -> bool {
        self.asymmetric.get().is_some()
    }

    /// Has the peer map a segment of ours, unless it was told to before: to be called before a
    /// reference to it is published.
    pub(crate) fn announce(&self, segment: &OwnSegment) -> io::Result<()> {
        let mut announced = lock(&self.announced);
        if !announced.contains(&segment.id()) {
            let control = Control::Segment {
                id: segment.id(),
                len: segment.len(),
            };
            self.say_with(&control, Some(segment))?;
            announced.insert(segment.id());
        }
        Ok(())
    }

    /// Has the peer unmap a segment of ours.
    pub(crate) fn retire(&self, id: u32) {
        if lock(&self.announced).remove(&id) {
            // A peer that cannot be told is given up by `say`.
            let _ = self.say(&Control::Retired { id });
        }
    }

    /// The peer's segment with this number.
    ///
    /// Its announcement was sent before any reference to it, so if it is not here yet, it lies in
    /// the socket: reading that is all the waiting there is.
    pub(crate) fn segment(&self, id: u32) -> Result<Arc<PeerSegment>, Fault> {
        let find = || {
            self.segments
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&id)
                .cloned()
        };
        if let Some(segment) = find() {
            return Ok(segment);
        }
        self.pump();
        find().ok_or(Fault::Segment { segment: id })
    }

    /// Checks a reference of the peer's, and returns the place and what keeps it mapped.
    pub(crate) fn resolve(
        &self,
        at: SegmentRef,
        align: u64,
    ) -> Result<(Arc<PeerSegment>, NonNull<u8>), Fault> {
        let segment = self.segment(at.segment)?;
        let place = segment.resolve(at, align)?;
        Ok((segment, place))
    }

    /// Reads and handles all control messages that have come. Called by the quiet thread, and by
    /// whoever cannot wait for it.
    pub(crate) fn pump(&self) {
        let Some(node) = self.node.upgrade() else {
            return;
        };
        let mut buffer = lock(&self.reading);
        buffer.resize(wire::MOST_BYTES, 0);
        while !self.is_dead() {
            match self.socket.receive(&mut buffer) {
                Ok(Some((n, fds))) => {
                    let handled =
                        wire::decode(&buffer[..n]).and_then(|c| self.handle(&node, c, fds));
                    if let Err(fault) = handled {
                        self.die(Some(fault));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    self.die(Some(Fault::Control { what: "too long" }));
                }
                Ok(None) | Err(_) => self.die(None),
            }
        }
        // Links are many, control messages few.
        *buffer = Vec::new();
    }

    fn handle(&self, node: &Arc<Node>, control: Control, fds: Vec<OwnedFd>) -> Result<(), Fault> {
        let carries = usize::from(matches!(control, Control::Segment { .. }));
        if fds.len() != carries {
            return Err(Fault::Control {
                what: "without, or with too many, descriptors",
            });
        }
        if !self.has_said_hello() && !matches!(control, Control::Hello { .. }) {
            return Err(Fault::Control {
                what: "not a hello",
            });
        }
        match control {
            Control::Hello { layout, barrier } => self.greeted(layout, barrier)?,
            Control::Segment { id, len } => self.map(id, len, &fds[0])?,
            Control::Retired { id } => {
                let mut segments = self
                    .segments
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                segments.remove(&id).ok_or(Fault::Segment { segment: id })?;
            }
            Control::Open {
                lane,
                name,
                types,
                end,
            } => {
                let id = LaneId {
                    ours: false,
                    number: lane,
                };
                let answer = match self
                    .me(node)
                    .map(|me| node.accept(&me, id, &name, types, end))
                {
                    Some(answer) => answer?,
                    None => Err(Refusal::NoServer),
                };
                let _ = self.say(&match answer {
                    Ok(end) => Control::Opened { lane, end },
                    Err(why) => Control::Refused { lane, why },
                });
            }
            Control::Opened { lane, end } => self.answered(lane, Ok(end))?,
            Control::Refused { lane, why } => self.answered(lane, Err(why))?,
            Control::Differs { name, schemas } => node.differs(self.pid(), &name, &schemas),
            Control::Closed { lane, mine } => {
                self.closed(LaneId {
                    ours: !mine,
                    number: lane,
                });
            }
            Control::Ring { bell } => node.rouse(bell),
            Control::Serving { name } => {
                if self.state().serving.len() >= 4096 {
                    return Err(Fault::Control {
                        what: "one of too many names",
                    });
                }
                self.state().serving.insert(name);
                self.changed.notify_all();
            }
        }
        Ok(())
    }

    fn me(&self, node: &Node) -> Option<Arc<Link>> {
        node.link(self.token)
    }

    fn greeted(&self, layout: u32, barrier: bool) -> Result<(), Fault> {
        if layout != LAYOUT_VERSION {
            return Err(Fault::Control {
                what: "of another layout of shared memory",
            });
        }
        let both = barrier && crate::sys::membarrier::register();
        let _held = self.state();
        self.asymmetric.set(both).map_err(|_| Fault::Control {
            what: "a second hello",
        })?;
        self.changed.notify_all();
        Ok(())
    }

    fn map(&self, id: u32, len: u64, fd: &OwnedFd) -> Result<(), Fault> {
        let mut segments = self
            .segments
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mapped: u64 = segments.values().map(|s| s.len()).sum();
        if segments.contains_key(&id) || segments.len() >= MOST_SEGMENTS {
            return Err(Fault::Segment { segment: id });
        }
        let segment = PeerSegment::map(fd, len, MOST_MAPPED.saturating_sub(mapped))?;
        segments.insert(id, Arc::new(segment));
        Ok(())
    }

    fn answered(&self, lane: u32, answer: Answer) -> Result<(), Fault> {
        let mut state = self.state();
        match state.answers.get_mut(&lane) {
            Some(slot @ None) => {
                let refused = answer.is_err();
                *slot = Some(answer);
                let id = LaneId {
                    ours: true,
                    number: lane,
                };
                if let Some(entry) = state.lanes.get_mut(&id) {
                    entry.theirs_closed = refused;
                }
            }
            _ => {
                return Err(Fault::Control {
                    what: "an answer that nobody waits for",
                });
            }
        }
        self.changed.notify_all();
        Ok(())
    }

    /// A number for a lane that we open; its answer is then awaited.
    pub(crate) fn new_lane(&self, line: Arc<Line>) -> LaneId {
        let mut state = self.state();
        let id = LaneId {
            ours: true,
            number: state.next_lane,
        };
        state.next_lane = state.next_lane.wrapping_add(1);
        state.answers.insert(id.number, None);
        state.lanes.insert(id, LaneEntry::new(line));
        id
    }

    /// Waits for the answer to a request for a port; `None` when the link died or time is up.
    pub(crate) fn wait_answer(&self, id: LaneId, deadline: Instant) -> Option<Answer> {
        let answer = self.wait_for(deadline, |state| state.answers.get_mut(&id.number)?.take());
        self.state().answers.remove(&id.number);
        answer
    }

    /// Waits until the peer says that it offers a port of this name.
    pub(crate) fn wait_serving(&self, name: &str, deadline: Instant) -> bool {
        self.wait_for(deadline, |state| state.serving.contains(name).then_some(()))
            .is_some()
    }

    fn wait_for<T>(
        &self,
        deadline: Instant,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.state();
        loop {
            if let Some(found) = ready(&mut state) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            if self.is_dead() {
                return None;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Registers a lane that the peer opened. False where the number is in use.
    pub(crate) fn add_lane(&self, id: LaneId, line: Arc<Line>) -> bool {
        match self.state().lanes.entry(id) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(LaneEntry::new(line));
                true
            }
        }
    }

    /// Ends a lane from our side. Its halves were buried before.
    pub(crate) fn close_lane(&self, id: LaneId) {
        let mut state = self.state();
        let Some(entry) = state.lanes.get_mut(&id) else {
            return;
        };
        entry.ours_closed = true;
        let gone = if entry.theirs_closed {
            state.lanes.remove(&id)
        } else {
            None
        };
        drop(state);
        drop(gone);
        let _ = self.say(&Control::Closed {
            lane: id.number,
            mine: id.ours,
        });
    }

    /// The peer has closed a lane: it looks at nothing of it any more, but for what it keeps.
    fn closed(&self, id: LaneId) {
        let mut state = self.state();
        let Some(entry) = state.lanes.get_mut(&id) else {
            return;
        };
        entry.theirs_closed = true;
        let line = entry.line.clone();
        let remains = std::mem::take(&mut entry.remains);
        if entry.ours_closed {
            state.lanes.remove(&id);
        }
        drop(state);
        remains.into_iter().for_each(|remains| self.settle(remains));
        line.close();
    }

    /// Takes half of a lane from its port, for as long as the peer may look at it.
    pub(crate) fn bury(&self, id: LaneId, remains: Remains) {
        let mut state = self.state();
        match state.lanes.get_mut(&id) {
            Some(entry) if !entry.theirs_closed => entry.remains.push(remains),
            Some(_) => {
                drop(state);
                self.settle(remains);
            }
            // The link is dead, or the lane was never opened.
            None => drop(state),
        }
    }

    /// Half of a lane whose other half is gone.
    fn settle(&self, remains: Remains) {
        let mut done = Vec::new();
        match remains {
            Remains::Received(mut ring) => ring.drain(),
            Remains::Sent(ring, _) => {
                let mut state = self.state();
                state.lingering.push(ring);
                // Dropped below, without the lock: that gives memory back, and may tell peers so.
                for mut ring in std::mem::take(&mut state.lingering) {
                    let keeps = if ring.is_lent() {
                        &mut state.lingering
                    } else {
                        &mut done
                    };
                    keeps.push(ring);
                }
            }
        }
        drop(done);
    }

    /// A free bit in a doorbell of ours at the peer's port of this name.
    pub(crate) fn take_bit(
        &self,
        node: &Node,
        name: &str,
    ) -> Result<(Shared<Doorbell>, SegmentRef, u16), crate::error::MemoryError> {
        const LANES: u16 = crate::memory::layout::DOORBELL_LANES as u16;
        let mut state = self.state();
        let doors = state.doors.entry(name.to_owned()).or_default();
        if let Some(door) = doors.iter_mut().find(|d| d.used.len() < usize::from(LANES)) {
            let bit = (0..LANES).find(|b| !door.used.contains(b)).unwrap_or(0);
            door.used.insert(bit);
            return Ok((door.bell.clone(), door.at, bit));
        }
        let block = Arc::new(node.arena().allocate(size_of::<Doorbell>() as u64)?);
        let at = block.reference(0, size_of::<Doorbell>());
        let bell = Shared::<Doorbell>::own(block);
        doors.push(Door {
            bell: bell.clone(),
            at,
            used: HashSet::from([0]),
        });
        Ok((bell, at, 0))
    }

    /// Gives a bit back.
    pub(crate) fn free_bit(&self, at: SegmentRef, bit: u16) {
        let mut state = self.state();
        for door in state.doors.values_mut().flatten().filter(|d| d.at == at) {
            door.used.remove(&bit);
        }
    }

    /// Ends the link: every lane of it is closed, and whoever waits on one is woken.
    pub(crate) fn die(&self, fault: Option<Fault>) {
        if let Some(fault) = fault {
            let _ = self.fault.set(fault);
        }
        // SYNC(dead): Release; pairs with Acquire in `is_dead`.
        if self.dead.swap(true, Ordering::Release) {
            return;
        }
        self.socket.shutdown();
        let (lanes, lingering) = {
            let mut state = self.state();
            (
                std::mem::take(&mut state.lanes),
                std::mem::take(&mut state.lingering),
            )
        };
        lanes.values().for_each(|entry| entry.line.close());
        self.changed.notify_all();
        if let Some(node) = self.node.upgrade() {
            node.forget(self.token);
        }
        // Without a lock: this gives memory back, and may tell other peers so.
        drop((lanes, lingering));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Post for Link {
    fn ring(&self, bell: u32) {
        let _ = self.say(&Control::Ring { bell });
    }
}

/// Locks, also where a thread panicked meanwhile: no critical section leaves a half-made change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
