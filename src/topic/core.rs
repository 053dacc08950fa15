//! The lanes of a publisher, and who is behind on them.
//!
//! One thread publishes; the quiet thread adds subscribers, removes those that are gone, and gives those that
//! were behind what is kept for them. A lock stands between the two, which nobody waits with: who publishes
//! waits for room without it.
//!
//! # Why nothing is lost without being told
//!
//! Each message is *offered* to each subscriber, which is counted in the publisher's memory (`TopicBlock`). It
//! is then sent; or is kept as the newest, where there is no room and the publisher does not wait; and the one
//! that was kept before is *missed*. Before the next message is sent, the number of those is, so the subscriber
//! learns of it where it happened. What is still kept or missed when the lane ends, also by a death, is the
//! difference between what was offered and what the subscriber found: it tells its user that.
//!
//! # Why nobody waits for ever for room
//!
//! Who waits leaves a waker here, asks the lane without room to ring, and looks once more (`wait`). A ring, the
//! end of a lane, and a subscriber that comes have the port driven, which wakes it.

mod newest;

pub(super) use newest::Change;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::ErrorKind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use super::publisher::Delivery;
use crate::error::{ConnectError, OpenError, SendError};
use crate::lane::{Board, Outbox, Parcel, To};
use crate::link::member::Member;
use crate::link::node::Node;
use crate::link::topics::Follow;
use crate::link::wire::Control;
use crate::link::{Line, lock};
use crate::message::ShmTopic;
use crate::service::connect::{Closer, Connected, open_lane_later};
use crate::service::contract::Contract;
use crate::sys::fork::Origin;
use crate::wait::Sleeper;
use crate::wait::tasks::{Drive, Due, Place, Wakers, wake};

/// How long lies between two tries where nobody tells when the next one would do.
const BUSY: Duration = Duration::from_millis(5);

/// The most lanes that are being opened over one link: each takes memory, and a peer may never answer.
const MOST_OPENING: usize = 64;
/// After so many messages in blocks, each lane has looked what came back.
const ROUND: usize = 16;

/// See the module.
pub(super) struct Core {
    state: Mutex<State>,
    /// Told when a lane was opened, or is not to be.
    settled: Condvar,
    number: u32,
    contract: Contract,
    sleeper: Arc<Sleeper>,
    delivery: Delivery,
    /// How many bytes of the slab all lanes together may have out in messages that were not handed back.
    budget: usize,
    /// Where the newest values are, of a publisher of such.
    board: Option<Arc<Board>>,
    node: Weak<Node>,
    due: Arc<Due>,
    origin: Origin,
    me: Weak<Core>,
}

struct State {
    lanes: Vec<Lane>,
    opening: Vec<Opening>,
    /// Who is asked once others of the same link have answered.
    behind: HashSet<Key>,
    /// Subscribers that could not be reached; and whether that is tried again in a moment.
    unreached: HashMap<Member, bool>,
    /// What those get who come later; how many messages that are at most, and how many bytes of blocks it is.
    history: VecDeque<Parcel>,
    depth: usize,
    history_bytes: usize,
    /// The lane that has looked last what came back, and how many looks are due, in `ROUND`ths.
    turn: usize,
    looks: usize,
    /// Whether a timer has lanes tried again for which no ring will come.
    tries: bool,
    room: Wakers,
    /// To be woken, and to be dropped, without the lock.
    woken: Vec<Waker>,
    dropped: Vec<Waker>,
}

/// Names a subscriber: its link, and its name there.
type Key = (u64, Member);

/// A lane that a subscriber was asked for.
struct Opening {
    key: Key,
    line: Arc<Line>,
    /// Whether somebody came under this name since: another one, perhaps, than who was asked.
    came: bool,
}

/// The lane to one subscriber.
struct Lane {
    outbox: Outbox,
    key: Key,
    /// The newest message, for which there was no room, and how many before it there was none for.
    kept: Option<Parcel>,
    missed: u64,
    /// Behind the outbox: once it is dropped, nothing more may be sent.
    _closer: Closer,
}

impl Core {
    pub(super) fn new(
        node: &Arc<Node>,
        number: u32,
        contract: Contract,
        sleeper: Arc<Sleeper>,
        (delivery, depth): (Delivery, usize),
        board: Option<Arc<Board>>,
    ) -> Arc<Core> {
        // Who reads a board begins when it hears of it.
        let begin = board
            .iter()
            .map(|_| Parcel::note(0, node.config().timestamps));
        let state = State {
            lanes: Vec::new(),
            opening: Vec::new(),
            behind: HashSet::new(),
            unreached: HashMap::new(),
            history: begin.collect(),
            depth,
            history_bytes: 0,
            turn: 0,
            looks: 0,
            tries: false,
            room: Wakers::default(),
            woken: Vec::new(),
            dropped: Vec::new(),
        };
        Arc::new_cyclic(|me| Core {
            state: Mutex::new(state),
            settled: Condvar::new(),
            number,
            contract,
            sleeper,
            delivery,
            budget: node.config().memory_limit / 8,
            board,
            node: Arc::downgrade(node),
            due: node.due().clone(),
            origin: node.origin(),
            me: me.clone(),
        })
    }

    pub(super) fn due(&self) -> &Arc<Due> {
        &self.due
    }

    /// Does something under the lock, and then wakes whom that concerns.
    fn enter<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let done = work(&mut state);
        let woken = std::mem::take(&mut state.woken);
        let dropped = std::mem::take(&mut state.dropped);
        drop(state);
        wake(woken);
        drop(dropped);
        done
    }

    /// Whom it reaches now.
    pub(super) fn subscribers(&self) -> usize {
        if self.origin.is_forked() {
            return 0;
        }
        let state = lock(&self.state);
        let lanes = state.lanes.iter();
        lanes.filter(|lane| !lane.outbox.line().is_closed()).count()
    }

    /// Waits until no lane is being opened, at most so long.
    pub(super) fn settle(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut state: MutexGuard<'_, State> = lock(&self.state);
        while state.is_joining() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.settled.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Publishes a message, unless it has to wait for room: then false.
    #[inline]
    pub(super) fn publish(&self, parcel: &Parcel) -> Result<bool, SendError> {
        if self.origin.is_forked() {
            return Err(SendError::Forked);
        }
        let mut state = lock(&self.state);
        Ok(self.publish_to(&mut state, parcel).is_none())
    }

    /// Publishes a message to the one subscriber that there is: archived in its lane, as any other message. `None`
    /// where there are more, or none, or where it has no room; else whether the message was a small one.
    #[inline]
    pub(super) fn publish_to_one<T: ShmTopic>(
        &self,
        message: &T,
    ) -> Result<Option<bool>, SendError> {
        let mut state = lock(&self.state);
        if state.depth > 0 {
            return Ok(None);
        }
        let [lane] = &mut state.lanes[..] else {
            return Ok(None);
        };
        if lane.kept.is_some() {
            return Ok(None);
        }
        lane.outbox.offer();
        match lane.outbox.try_send(message, To::tag(0)) {
            Ok(()) => Ok(Some(!lane.outbox.was_large())),
            // It has ended: nobody is there to get it.
            Err(SendError::Closed { .. }) => Ok(Some(true)),
            Err(SendError::Full) => {
                lane.outbox.unoffer();
                Ok(None)
            }
            Err(error) => {
                lane.outbox.unoffer();
                Err(error)
            }
        }
    }

    /// As [`publish`](Self::publish), and has the waker woken when there may be room.
    pub(super) fn publish_or_wait(
        &self,
        parcel: &Parcel,
        place: &mut Place,
        waker: &Waker,
    ) -> Result<bool, SendError> {
        if self.origin.is_forked() {
            return Err(SendError::Forked);
        }
        Ok(self.enter(|state| {
            let before = state.room.keep(place, waker);
            state.dropped.extend(before);
            // Each lane that has no room is asked once; none is asked that has some.
            let mut asked = None;
            while let Some(full) = self.publish_to(state, parcel) {
                if asked == Some(full) {
                    return false;
                }
                asked = Some(full);
                self.ask(&mut state.tries, &mut state.lanes[full].outbox);
            }
            let waker = state.room.forget(place);
            state.dropped.extend(waker);
            true
        }))
    }

    /// Has a waker woken when anything comes back; false where nothing is out.
    pub(super) fn wait_for_memory(&self, place: &mut Place, waker: &Waker) -> bool {
        self.enter(|state| {
            let before = state.room.keep(place, waker);
            state.dropped.extend(before);
            let mut is_any = false;
            for lane in &mut state.lanes {
                let is_out = lane.outbox.has_lent();
                is_any |= is_out;
                if is_out {
                    lane.outbox.ask_for_room();
                }
            }
            is_any
        })
    }

    /// Whether anything is out that may come back.
    pub(super) fn has_lent(&self) -> bool {
        lock(&self.state)
            .lanes
            .iter()
            .any(|lane| lane.outbox.has_lent())
    }

    /// Who waited does no more.
    pub(super) fn leave(&self, place: &mut Place) {
        if place.is_taken() && !self.origin.is_forked() {
            self.enter(|state| {
                let waker = state.room.forget(place);
                state.dropped.extend(waker);
            });
        }
    }

    /// Gives up the oldest message that is kept for those who come later; false where none is.
    pub(super) fn forget_oldest(&self) -> bool {
        lock(&self.state).forget_oldest()
    }

    /// Has every lane look what came back.
    pub(super) fn take_back(&self) {
        if !self.origin.is_forked() {
            for lane in &mut lock(&self.state).lanes {
                // A lane that ends is found closed by whoever sends on it next.
                let _ = lane.outbox.take_back();
            }
        }
    }

    /// Asks a lane to ring when there is room, or has it tried again where no ring will come.
    fn ask(&self, tries: &mut bool, outbox: &mut Outbox) {
        outbox.ask_for_room();
        // One timer for all, however many lanes and messages: a peer decides how long it does not read.
        if outbox.is_stuck() && !*tries {
            *tries = true;
            let again = Waker::from(Arc::new(Again(self.me.clone(), None)));
            self.due.set_timer(Instant::now() + BUSY, again);
        }
    }

    /// Gives a message to every lane; or says which has no room, where each must have it.
    #[inline]
    fn publish_to(&self, state: &mut State, parcel: &Parcel) -> Option<usize> {
        let budget = self.budget / state.lanes.len().max(1);
        if self.delivery == Delivery::Reliable {
            let full = state
                .lanes
                .iter_mut()
                .position(|lane| !lane.is_free(parcel, budget));
            if full.is_some() {
                return full;
            }
        }
        for lane in &mut state.lanes {
            if lane.give(parcel, budget) {
                continue;
            }
            // It is given when there is room.
            self.ask(&mut state.tries, &mut lane.outbox);
            lane.give_kept(budget);
        }
        if parcel.block_len() > 0 {
            state.take_some_back();
        }
        if state.depth > 0 {
            state.remember(parcel, self.budget);
        }
        None
    }

    /// A lane was opened, or is not to be.
    fn joined(&self, key: &Key, connected: Result<Connected, ConnectError>) {
        let is_lost = matches!(connected, Err(ConnectError::Lost { .. }));
        let failed = match &connected {
            // Nobody is there any more, or not over this link.
            Ok(_) | Err(ConnectError::NoServer { .. } | ConnectError::Lost { .. }) => None,
            Err(error) => Some((error.to_string(), is_lasting(error), pid_of(error))),
        };
        let joined = self.enter(|state| {
            let is_other = |opening: &Opening| opening.key != *key;
            let came = state.opening.iter().any(|o| !is_other(o) && o.came);
            state.opening.retain(is_other);
            let Ok(Connected { outbox, closer, .. }) = connected else {
                return Err(came || is_lost);
            };
            state.unreached.remove(&key.1);
            let joined = (outbox.link().clone(), closer.number());
            let mut lane = Lane {
                outbox,
                key: key.clone(),
                kept: None,
                missed: 0,
                _closer: closer,
            };
            if let Some(board) = &self.board {
                for segment in board.segments() {
                    // A link that cannot be told anything is given up.
                    let _ = lane.outbox.link().announce(&segment);
                }
            }
            for parcel in &state.history {
                if !lane.give(parcel, self.budget) {
                    self.ask(&mut state.tries, &mut lane.outbox);
                    lane.give_kept(self.budget);
                }
            }
            state.lanes.push(lane);
            Ok(joined)
        });
        match (joined, failed) {
            (Ok((link, lane)), _) => {
                let name = key.1.name();
                // A link that cannot be told anything is given up.
                let _ = link.say(&Control::Joined { name, lane });
            }
            (Err(came), Some((what, is_lasting, pid))) => {
                self.unreached(&key.1, came || !is_lasting, Some((pid, what)));
            }
            (Err(true), None) => self.unreached(&key.1, true, None),
            (Err(false), None) => self.gone(&key.1),
        }
        // Who waits for room looks again, and others are asked; not here, where the reader of the link holds its
        // lock.
        self.due.push(self.me.clone());
        self.settled.notify_all();
    }

    /// A subscriber could not be reached: says so once, and tries it again in a moment where that may help.
    fn unreached(&self, member: &Member, is_tried: bool, told: Option<(u32, String)>) {
        let (is_new, is_timed) = self.enter(|state| {
            let before = state.unreached.insert(member.clone(), is_tried);
            (before.is_none(), before == Some(true))
        });
        if let (true, Some((pid, what)), Some(node)) = (is_new, told, self.node.upgrade()) {
            node.report(pid, what);
        }
        // One timer for each, however often it comes.
        if is_tried && !is_timed {
            let again = Again(self.me.clone(), Some(member.clone()));
            let waker = Waker::from(Arc::new(again));
            self.due.set_timer(Instant::now() + BUSY, waker);
        }
    }

    /// A subscriber is not there any more.
    fn gone(&self, member: &Member) {
        lock(&self.state).unreached.remove(member);
    }

    /// Forgets lanes that ended, and gives those behind what is kept for them.
    fn look_around(&self) -> (Vec<Lane>, Vec<Opening>) {
        self.enter(|state| {
            let (gone, lanes) = std::mem::take(&mut state.lanes)
                .into_iter()
                .partition(|lane| lane.outbox.line().is_closed());
            state.lanes = lanes;
            let (closed, opening) = std::mem::take(&mut state.opening)
                .into_iter()
                .partition(|opening| opening.line.is_closed());
            state.opening = opening;
            let budget = self.budget / state.lanes.len().max(1);
            for lane in state.lanes.iter_mut().filter(|lane| lane.kept.is_some()) {
                if !lane.give_kept(budget) {
                    self.ask(&mut state.tries, &mut lane.outbox);
                    lane.give_kept(budget);
                }
            }
            let waiting = state.room.take();
            state.woken.extend(waiting);
            (gone, closed)
        })
    }

    /// Opens no lanes any more, and closes those that are open.
    pub(super) fn end(&self) {
        if self.origin.is_forked() {
            return;
        }
        let ended = self.enter(|state| {
            while state.forget_oldest() {}
            state.behind.clear();
            for lane in &mut state.lanes {
                lane.give_kept(self.budget);
            }
            (
                std::mem::take(&mut state.lanes),
                std::mem::take(&mut state.opening),
            )
        });
        // Without the lock: this gives memory back, and tells peers.
        drop(ended);
    }
}

impl State {
    /// Whether somebody is about to be reached.
    fn is_joining(&self) -> bool {
        let mut unreached = self.unreached.values();
        !self.opening.is_empty() || !self.behind.is_empty() || unreached.any(|&is_tried| is_tried)
    }

    /// How many lanes are being opened over a link.
    fn opening_over(&self, link: u64) -> usize {
        let over = |opening: &&Opening| opening.key.0 == link && !opening.line.is_closed();
        self.opening.iter().filter(over).count()
    }

    /// Takes those that are to be asked now; and whether others may be the next time.
    fn take_behind(&mut self) -> (Vec<Member>, bool) {
        let mut counts = HashMap::new();
        let mut next = Vec::new();
        let mut behind = std::mem::take(&mut self.behind);
        behind.retain(|(link, member)| {
            let count = counts
                .entry(*link)
                .or_insert_with(|| self.opening_over(*link));
            let is_next = *count < MOST_OPENING;
            if is_next {
                *count += 1;
                next.push(member.clone());
            }
            !is_next
        });
        self.behind = behind;
        let are_more = !next.is_empty() && !self.behind.is_empty();
        (next, are_more)
    }

    /// Has some lanes look what came back, others the next time: so that blocks return before they are missed,
    /// and no message costs the look at all lanes.
    fn take_some_back(&mut self) {
        let count = self.lanes.len();
        self.looks += count;
        while self.looks >= ROUND {
            self.looks -= ROUND;
            self.turn = (self.turn + 1) % count;
            // A lane that ends is found closed by whoever sends on it next.
            let _ = self.lanes[self.turn].outbox.take_back();
        }
    }

    /// Keeps a message for those who come later: of the newest as many as they get, and as fit in so many bytes.
    fn remember(&mut self, parcel: &Parcel, most: usize) {
        self.history_bytes += parcel.block_len();
        self.history.push_back(parcel.clone());
        while self.history.len() > self.depth || self.history_bytes > most {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let oldest = self.history.pop_front();
        self.history_bytes -= oldest.as_ref().map_or(0, Parcel::block_len);
        oldest.is_some()
    }
}

/// Whether it will fail again for the same reason.
fn is_lasting(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Layout { .. })
}

/// The process at the other end, where that is known.
fn pid_of(error: &ConnectError) -> u32 {
    match error {
        ConnectError::Layout { pid, .. } | ConnectError::NoAnswer { pid, .. } => *pid,
        _ => std::process::id(),
    }
}

impl Lane {
    /// Whether there is room for a message, and nothing older is kept.
    fn is_free(&mut self, parcel: &Parcel, budget: usize) -> bool {
        // One that ended is passed over.
        self.give_kept(budget) && self.outbox.has_room(parcel, 0, budget).unwrap_or(true)
    }

    /// Sends a message; or keeps it as the newest, and returns false.
    #[inline]
    fn give(&mut self, parcel: &Parcel, budget: usize) -> bool {
        self.outbox.offer();
        if self.give_kept(budget) {
            match self.outbox.has_room(parcel, 0, budget) {
                Ok(true) => match self.outbox.send_parcel(parcel) {
                    Ok(true) | Err(_) => return true,
                    Ok(false) => {}
                },
                // It has ended: nobody is there to get it.
                Err(_) => return true,
                Ok(false) => {}
            }
        }
        let before = self.kept.replace(parcel.clone());
        self.missed += u64::from(before.is_some());
        false
    }

    /// Sends what is kept, and before it how many were missed; true where nothing is kept any more.
    fn give_kept(&mut self, budget: usize) -> bool {
        let Some(kept) = &self.kept else {
            return true;
        };
        let notes = usize::from(self.missed > 0);
        match self.outbox.has_room(kept, notes, budget) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(_) => return true,
        }
        if self.missed > 0 && matches!(self.outbox.say_missed(self.missed), Ok(true)) {
            self.missed = 0;
        }
        if self.missed == 0 && matches!(self.outbox.send_parcel(kept), Ok(true)) {
            self.kept = None;
        }
        self.kept.is_none()
    }
}

/// Has a publisher look around again, or for a subscriber that could not be reached.
struct Again(Weak<Core>, Option<Member>);

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        let Some(core) = self.0.upgrade() else {
            return;
        };
        match (&self.1, core.node.upgrade()) {
            (Some(member), Some(node)) => {
                if let Some(is_tried) = lock(&core.state).unreached.get_mut(member) {
                    *is_tried = false;
                }
                core.clone().found(&node, member);
                core.settled.notify_all();
            }
            _ => {
                lock(&core.state).tries = false;
                core.drive();
            }
        }
    }
}

/// Whether a connection that failed so found nobody.
fn is_gone(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

impl Follow for Core {
    fn found(self: Arc<Self>, node: &Arc<Node>, member: &Member) {
        let link = match node.link_of(member) {
            Ok(Some(link)) => link,
            Ok(None) => return self.gone(member),
            Err(OpenError::System { source, .. }) if is_gone(source.kind()) => {
                return self.gone(member);
            }
            Err(OpenError::System { source, .. }) if source.kind() == ErrorKind::WouldBlock => {
                return self.unreached(member, true, None);
            }
            // For want of a descriptor, say.
            Err(error) => {
                let told = (std::process::id(), error.to_string());
                return self.unreached(member, true, Some(told));
            }
        };
        let key: Key = (link.token(), member.clone());
        let line = Line::new(self.sleeper.clone());
        let is_new = self.enter(|state| {
            let mut open = state
                .lanes
                .iter()
                .filter(|lane| !lane.outbox.line().is_closed());
            let known = open.any(|lane| lane.key == key)
                || state.opening.iter_mut().any(|opening| {
                    let is_it = opening.key == key && !opening.line.is_closed();
                    opening.came |= is_it;
                    is_it
                });
            if known {
                return false;
            }
            if state.opening_over(key.0) >= MOST_OPENING {
                state.behind.insert(key.clone());
                return false;
            }
            let (key, line) = (key.clone(), line.clone());
            let came = false;
            state.opening.push(Opening { key, line, came });
            true
        });
        if !is_new {
            return;
        }
        let (core, joining) = (self.me.clone(), key.clone());
        let opened = open_lane_later(
            node,
            &link,
            (&member.name(), self.number),
            &self.contract,
            (self.sleeper.clone(), line),
            self.board.as_ref(),
            move |connected| {
                if let Some(core) = core.upgrade() {
                    core.joined(&joining, connected);
                }
            },
        );
        if let Err(error) = opened {
            self.joined(&key, Err(error));
        }
    }
}

impl Drive for Core {
    fn drive(&self) -> bool {
        if self.origin.is_forked() {
            return false;
        }
        let (gone, closed) = self.look_around();
        // Others may have come under the names of those that are gone, before these were found to be gone.
        let lanes = gone.iter().map(|lane| &lane.key.1);
        let openings = closed.iter().map(|opening| &opening.key.1);
        let mut members: Vec<Member> = lanes.chain(openings).cloned().collect();
        drop((gone, closed));
        let (behind, are_more) = self.enter(State::take_behind);
        members.extend(behind);
        if let (Some(node), Some(me)) = (self.node.upgrade(), self.me.upgrade()) {
            for member in &members {
                me.clone().found(&node, member);
            }
        }
        self.settled.notify_all();
        are_more
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
