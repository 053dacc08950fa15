//! The lanes of a publisher, and who is behind on them.
//!
//! [`lanes`]: what it has of each subscriber; [`joins`]: how it reaches them.
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

mod joins;
mod lanes;
mod newest;
#[cfg(all(test, not(loom)))]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use joins::Again;
use lanes::{Lane, Opening, State};
pub(super) use newest::Change;

use super::publisher::Delivery;
use crate::error::SendError;
use crate::lane::{Board, Outbox, Parcel, To};
use crate::link::lock;
use crate::link::member::Member;
use crate::link::node::Node;
use crate::link::topics::Follow;
use crate::message::ShmTopic;
use crate::service::contract::Contract;
use crate::sys::fork::Origin;
use crate::wait::Sleeper;
use crate::wait::tasks::{Drive, Due, Later, Place, Wakers, enter};

/// How long lies between two tries where nobody tells when the next one would do.
const BUSY: Duration = Duration::from_millis(5);

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

/// A message that is meant for a subscriber, unless it is not sent: also where archiving it panics.
struct Offered<'a> {
    outbox: &'a mut Outbox,
    stands: bool,
}

impl<'a> Offered<'a> {
    #[inline]
    fn new(outbox: &'a mut Outbox) -> Self {
        outbox.offer();
        Offered {
            outbox,
            stands: false,
        }
    }
}

impl Drop for Offered<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.stands {
            self.outbox.unoffer();
        }
    }
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
            later: Later::default(),
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
        enter(lock(&self.state), |state| &mut state.later, work)
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
        let mut offered = Offered::new(&mut lane.outbox);
        let sent = offered.outbox.try_send(message, To::tag(0));
        offered.stands = matches!(sent, Ok(()) | Err(SendError::Closed { .. }));
        drop(offered);
        match sent {
            Ok(()) => Ok(Some(!lane.outbox.was_large())),
            // It has ended: nobody is there to get it.
            Err(SendError::Closed { .. }) => Ok(Some(true)),
            Err(SendError::Full) => Ok(None),
            Err(error) => Err(error),
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
            state.later.discard(state.room.keep(place, waker));
            // Each lane that has no room is asked once; none is asked that has some.
            let mut asked = None;
            while let Some(full) = self.publish_to(state, parcel) {
                if asked == Some(full) {
                    return false;
                }
                asked = Some(full);
                self.ask(&mut state.tries, &mut state.lanes[full].outbox);
            }
            state.later.discard(state.room.forget(place));
            true
        }))
    }

    /// Has a waker woken when anything comes back; false where nothing is out.
    pub(super) fn wait_for_memory(&self, place: &mut Place, waker: &Waker) -> bool {
        self.enter(|state| {
            state.later.discard(state.room.keep(place, waker));
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
                state.later.discard(state.room.forget(place));
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
        let is_reliable = self.delivery == Delivery::Reliable;
        if is_reliable {
            let full = state
                .lanes
                .iter_mut()
                .position(|lane| !lane.is_free(parcel, budget));
            if full.is_some() {
                return full;
            }
        }
        for lane in &mut state.lanes {
            let is_given = match is_reliable {
                true => lane.give_free(parcel),
                false => lane.give(parcel, budget),
            };
            if is_given {
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
            state.later.wake(state.room.take());
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
