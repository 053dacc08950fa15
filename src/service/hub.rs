//! A port that many lanes lead to, and one thread that waits for all of them.
//!
//! A few lanes that were busy lately are *watched*: looked at directly, so that their senders ring
//! nobody. All others are *armed*: their senders flip a bit in the doorbell that their process has
//! at this port, and count the ring. So one look at the counters, one a process, finds every lane
//! that has something; lanes that are idle cost nothing, however many they are.
//!
//! An armed lane is told to be watched, or armed anew, only after its ring was seen (`wait::attend`
//! says why). What the doorbells say is a hint: a forged bit has a lane looked at in vain, a withheld
//! one delays nothing but the lane of the peer that withholds it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;

use super::connect::Closer;
use crate::error::{Fault, MemoryError};
use crate::lane::{Inbox, Message, Outbox, complete, lay_door, offer_end};
use crate::link::node::{Node, Port};
use crate::link::wire::{End, Refusal, Schemas, Types};
use crate::link::{Answer, LaneId, Line, Link, lock};
use crate::memory::layout::{DOORBELL_LANES, Doorbell, SegmentRef};
use crate::memory::shared::Shared;
use crate::message::ShmMessage;
use crate::sync::{AtomicBool, Ordering, heavy_barrier};
use crate::wait::attend::Seen;
use crate::wait::{Patience, Sleeper, Step, Wait};

use super::connect::{differences, schemas_of, types_of};

/// How many lanes are looked at directly.
const MOST_WATCHED: usize = 4;
/// After so many looks in vain, a watched lane makes room for another.
const IDLE: u32 = 2_000;
/// After so many messages of watched lanes, the others are looked after.
const TURN: u32 = 32;

/// The side of a hub that the quiet thread knows: opens lanes and puts them into its queue.
pub(crate) struct HubPort {
    name: String,
    replies: bool,
    types: Types,
    make: Make,
    schemas: fn(bool) -> Schemas,
    explain: fn(bool, &Schemas) -> Vec<crate::schema::Difference>,
    sleeper: Arc<Sleeper>,
    bell: SegmentRef,
    opened: SegQueue<Lane>,
    closed: Arc<SegQueue<usize>>,
    numbers: Mutex<Numbers>,
    ended: AtomicBool,
}

/// After so many looks in vain, hand-backs of a watched lane are not gathered any longer.
const SETTLED: u32 = 32;
/// How often the lane of the last message is looked at before all else is.
const GLANCES: usize = 16;
/// So many messages, one right after the other, are a stream.
const STREAM: u32 = 8;
/// How many pauses a receiver looks away from the stream that it caught up with.
const AWAY: usize = 4;

type Joined = Result<(Option<Outbox>, Option<Inbox>), Fault>;
type Make = fn(&Arc<Node>, &Arc<Link>, (&Arc<Line>, LaneId), crate::lane::Near, &End) -> Joined;
/// A peer's doorbell, where it lies, its link's token, a lane's bit in it, and how that bit stood.
type DoorOf = (Shared<Doorbell>, SegmentRef, u64, u16, bool);

#[derive(Default)]
struct Numbers {
    free: Vec<usize>,
    next: usize,
}

/// One lane, as the hub has it.
pub(crate) struct Lane {
    number: usize,
    pub(crate) inbox: RefCell<Inbox>,
    pub(crate) outbox: Option<RefCell<Outbox>>,
    /// How many cells of its messages are held as views.
    pub(crate) held: Cell<usize>,
    door: Option<DoorOf>,
    closing: bool,
    watched: bool,
    /// Whether the ring that was last asked for has been seen.
    rung: bool,
    idle: u32,
    _closer: Closer,
}

/// A doorbell, and what was seen of it.
struct Door {
    bell: Shared<Doorbell>,
    /// The link it belongs to, and its place there.
    key: (u64, SegmentRef),
    seen: Seen,
    lanes: Box<[u32; DOORBELL_LANES]>,
    count: usize,
}

const NOBODY: u32 = u32::MAX;

/// See the module.
pub(crate) struct Hub {
    port: Arc<HubPort>,
    lanes: Vec<Option<Lane>>,
    watched: Vec<usize>,
    ready: VecDeque<usize>,
    doors: Vec<Door>,
    turn: u32,
    /// How many messages came one right after the other.
    run: u32,
    pub(crate) wait: Wait,
}

impl HubPort {
    /// A port that receives `T`, and replies with `R` if it `replies`.
    pub(crate) fn new<T: ShmMessage, R: ShmMessage>(
        node: &Node,
        name: &str,
        replies: bool,
    ) -> Result<Arc<HubPort>, MemoryError> {
        let (sleeper, bell) = node.new_sleeper()?;
        Ok(Arc::new(HubPort {
            name: name.to_owned(),
            replies,
            types: types_of::<T, R>(replies),
            make: |node, link, line, near, end| complete::<R, T>(node, link, line, near, end, true),
            schemas: schemas_of::<T, R>,
            explain: differences::<T, R>,
            sleeper,
            bell,
            opened: SegQueue::new(),
            closed: Arc::new(SegQueue::new()),
            numbers: Mutex::default(),
            ended: AtomicBool::new(false),
        }))
    }

    fn new_number(&self) -> usize {
        let mut numbers = lock(&self.numbers);
        numbers.free.pop().unwrap_or_else(|| {
            numbers.next += 1;
            numbers.next - 1
        })
    }

    fn door_of(&self, link: &Link, end: &End) -> Result<Option<DoorOf>, Fault> {
        let Some((at, bit, stands)) = end.door else {
            return Err(Fault::Control {
                what: "a lane without a doorbell",
            });
        };
        if usize::from(bit) >= DOORBELL_LANES {
            return Err(Fault::Control {
                what: "a bit outside of its doorbell",
            });
        }
        let bell = lay_door(link, at.into())?;
        Ok(Some((bell, at.into(), link.token(), bit, stands)))
    }
}

impl Port for HubPort {
    fn accept(
        &self,
        node: &Arc<Node>,
        link: &Arc<Link>,
        id: LaneId,
        types: Types,
        end: End,
    ) -> Result<Answer, Fault> {
        if self.ended.load(Ordering::Acquire) {
            return Ok(Err(Refusal::NoServer));
        }
        if types != self.types {
            return Ok(Err(Refusal::Layout((self.schemas)(self.replies))));
        }
        let bell = (&self.sleeper, self.bell);
        let Ok(offered) = offer_end(node, link, bell, (self.replies, true), None) else {
            return Ok(Err(Refusal::NoMemory));
        };
        let number = self.new_number();
        let line = Line::one_of_many(self.sleeper.clone(), self.closed.clone(), number);
        let door = self.door_of(link, &end)?;
        let (outbox, inbox) = (self.make)(node, link, (&line, id), offered.near, &end)?;
        let inbox = inbox.ok_or(Fault::Control {
            what: "a lane that sends nothing",
        })?;
        if !link.add_lane(id, line) {
            return Err(Fault::Control {
                what: "a lane whose number is in use",
            });
        }
        self.opened.push(Lane {
            number,
            inbox: RefCell::new(inbox),
            outbox: outbox.map(RefCell::new),
            held: Cell::new(0),
            door,
            closing: false,
            watched: false,
            rung: false,
            idle: 0,
            _closer: Closer::new(link.clone(), id),
        });
        self.sleeper.poke();
        Ok(Ok(offered.end))
    }

    fn differs(&self, pid: u32, schemas: &Schemas) -> String {
        let differences = (self.explain)(self.replies, schemas);
        let mut text = format!(
            "{:?} was asked for by process {pid} with another layout",
            self.name
        );
        for difference in differences {
            text += &format!("\n  {difference}");
        }
        text
    }

    fn end(&self) {
        // SYNC(ended): Release; pairs with Acquire in `Hub::next`.
        self.ended.store(true, Ordering::Release);
        self.sleeper.poke();
    }
}

impl Hub {
    pub(crate) fn new(port: Arc<HubPort>, wait: Wait) -> Hub {
        Hub {
            port,
            lanes: Vec::new(),
            watched: Vec::with_capacity(MOST_WATCHED),
            ready: VecDeque::new(),
            doors: Vec::new(),
            turn: 0,
            run: 0,
            wait,
        }
    }

    /// The lane that a message came from.
    #[inline]
    pub(crate) fn lane(&self, number: usize) -> &Lane {
        self.lanes[number]
            .as_ref()
            .expect("a message's lane stays while its view borrows the hub")
    }

    /// Waits for the next message of any lane: until the deadline, or until the port ended.
    #[inline(always)]
    pub(crate) fn next(&mut self, deadline: Option<Instant>) -> Next {
        let mut patience = Patience::new(self.wait, deadline);
        loop {
            if let Some((number, message)) = self.look_at_last() {
                return Next::Message(number, message);
            }
            if let Some(next) = self.look_and_wait(&mut patience) {
                return next;
            }
        }
    }

    /// The lane of the last message, most likely the lane of the next one: looked at some times in
    /// a row, as that takes no longer than a cache line takes to come.
    #[inline(always)]
    fn look_at_last(&mut self) -> Option<(usize, Message)> {
        if self.turn >= TURN {
            return None;
        }
        let &number = self.watched.last()?;
        let lane = self.lanes[number].as_mut()?;
        let inbox = lane.inbox.get_mut();
        for _ in 0..GLANCES {
            if let Some(message) = inbox.poll_inline() {
                self.turn += 1;
                self.run += 1;
                lane.idle = 0;
                return Some((number, message));
            }
            // Each look takes the line from the sender that is about to write it.
            std::hint::spin_loop();
            if self.run >= STREAM {
                break;
            }
        }
        None
    }

    /// The sender of a stream was caught up with. It writes faster where nobody looks over its
    /// shoulder, so this looks away for a moment; between calls there is no such moment.
    #[inline]
    fn look_away(&mut self) {
        if self.run >= STREAM {
            for _ in 0..AWAY {
                std::hint::spin_loop();
            }
        }
        self.run = 0;
    }

    /// Looks at everything once, and waits a little or sleeps if there is nothing.
    #[inline(never)]
    fn look_and_wait(&mut self, patience: &mut Patience) -> Option<Next> {
        if self.turn < TURN {
            self.look_away();
        }
        // SYNC(ended): Acquire, before the look: what came before the end is still taken.
        let ended = self.port.ended.load(Ordering::Acquire);
        if let Some((number, message)) = self.look() {
            return Some(Next::Message(number, message));
        }
        if ended {
            return Some(Next::Ended);
        }
        match patience.step() {
            // In a stream the next message is a moment away, and hand-backs are worth gathering.
            Step::Again if patience.has_settled() => self.flush(),
            Step::Again => {}
            Step::TimeUp => {
                self.flush();
                return Some(Next::TimeUp);
            }
            Step::Sleep(timeout) => {
                self.flush();
                self.sleep(timeout);
            }
        }
        None
    }

    /// Looks once, at everything.
    pub(crate) fn try_next(&mut self) -> Option<(usize, Message)> {
        let found = self.look();
        if found.is_none() {
            self.flush();
        }
        found
    }

    fn flush(&mut self) {
        for &number in &self.watched {
            if let Some(lane) = &mut self.lanes[number] {
                lane.inbox.get_mut().flush();
            }
        }
    }

    /// Looks at everything once.
    #[inline]
    fn look(&mut self) -> Option<(usize, Message)> {
        self.turn += 1;
        if self.turn < TURN {
            if let Some(found) = self.look_at_watched() {
                return Some(found);
            }
        }
        self.turn = 0;
        if self.port.sleeper.take_poke() {
            self.take_news();
        }
        self.look_at_doors();
        self.look_at_ready().or_else(|| self.look_at_watched())
    }

    #[inline]
    fn look_at_watched(&mut self) -> Option<(usize, Message)> {
        for at in 0..self.watched.len() {
            let number = self.watched[at];
            let Some(lane) = &mut self.lanes[number] else {
                continue;
            };
            let inbox = lane.inbox.get_mut();
            if let Some(message) = inbox.poll() {
                lane.idle = 0;
                // It is looked at first for a few messages, and then last.
                self.watched[at..].rotate_left(1);
                return Some((number, message));
            }
            lane.idle = lane.idle.saturating_add(1);
            if lane.idle == SETTLED {
                inbox.flush();
            }
        }
        None
    }

    #[inline]
    fn look_at_doors(&mut self) {
        for Door {
            bell, seen, lanes, ..
        } in &mut self.doors
        {
            seen.look(bell, |bit| {
                let number = lanes[bit] as usize;
                if let Some(lane) = self.lanes.get_mut(number).and_then(Option::as_mut) {
                    lane.rung = true;
                    self.ready.push_back(number);
                }
            });
        }
    }

    fn look_at_ready(&mut self) -> Option<(usize, Message)> {
        while let Some(number) = self.ready.pop_front() {
            let watched = self.watch(number);
            let Some(lane) = self.lanes.get_mut(number).and_then(Option::as_mut) else {
                continue;
            };
            match lane.inbox.get_mut().poll() {
                Some(message) => {
                    if !watched || lane.closing {
                        // Others first, then this one again.
                        self.ready.push_back(number);
                    }
                    return Some((number, message));
                }
                None if lane.closing => self.remove(number),
                None => self.rearm(number),
            }
        }
        None
    }

    /// Watches a lane that has rung, if there is a place for it. True where it is watched.
    fn watch(&mut self, number: usize) -> bool {
        let has_place = self.watched.len() < MOST_WATCHED || self.evict();
        let Some(lane) = self.lanes.get_mut(number).and_then(Option::as_mut) else {
            return false;
        };
        if !lane.watched && lane.rung && has_place {
            lane.inbox.get_mut().watch();
            (lane.watched, lane.idle) = (true, 0);
            self.watched.push(number);
        }
        lane.watched
    }

    /// Has a lane that was emptied ring again.
    fn rearm(&mut self, number: usize) {
        let Some(lane) = self.lanes[number].as_mut() else {
            return;
        };
        let inbox = lane.inbox.get_mut();
        inbox.flush();
        if lane.rung && !lane.watched {
            lane.rung = false;
            if inbox.rearm() {
                self.ready.push_back(number);
            }
        }
    }

    /// Arms a watched lane that was idle for long; false where there is none.
    fn evict(&mut self) -> bool {
        let idle = |n: &usize| self.lanes[*n].as_ref().is_none_or(|l| l.idle > IDLE);
        let Some(at) = self.watched.iter().position(idle) else {
            return false;
        };
        let number = self.watched.swap_remove(at);
        if let Some(lane) = &mut self.lanes[number] {
            let inbox = lane.inbox.get_mut();
            (lane.watched, lane.rung) = (false, false);
            inbox.flush();
            inbox.arm();
            // SYNC(attend): pairs with the light barrier in `Rung::is_asked`.
            heavy_barrier(inbox.is_asymmetric());
            if inbox.is_ready() {
                self.ready.push_back(number);
            }
        }
        true
    }

    /// Takes lanes that were opened, and notes those that ended.
    #[cold]
    fn take_news(&mut self) {
        self.take_opened();
        while let Some(number) = self.port.closed.pop() {
            // It was opened before it was closed, perhaps a moment ago.
            self.take_opened();
            if let Some(lane) = self.lanes.get_mut(number).and_then(Option::as_mut) {
                lane.closing = true;
                self.ready.push_back(number);
            } else {
                // It ended before it was taken here, or failed to open.
                lock(&self.port.numbers).free.push(number);
            }
        }
    }

    fn take_opened(&mut self) {
        while let Some(mut lane) = self.port.opened.pop() {
            let number = lane.number;
            if let Some((bell, at, token, bit, stands)) = lane.door.take() {
                let door = self.door(bell.clone(), (token, at));
                door.seen.join(&door.bell, bit, stands);
                door.lanes[usize::from(bit)] = number as u32;
                door.count += 1;
                lane.door = Some((bell, at, token, bit, stands));
            }
            if self.lanes.len() <= number {
                self.lanes.resize_with(number + 1, || None);
            }
            self.lanes[number] = Some(lane);
            self.ready.push_back(number);
        }
    }

    fn door(&mut self, bell: Shared<Doorbell>, key: (u64, SegmentRef)) -> &mut Door {
        let at = self
            .doors
            .iter()
            .position(|d| d.key == key)
            .unwrap_or_else(|| {
                self.doors.push(Door {
                    bell,
                    key,
                    seen: Seen::new(),
                    lanes: Box::new([NOBODY; DOORBELL_LANES]),
                    count: 0,
                });
                self.doors.len() - 1
            });
        &mut self.doors[at]
    }

    fn remove(&mut self, number: usize) {
        self.watched.retain(|&n| n != number);
        let Some(lane) = self.lanes[number].take() else {
            return;
        };
        if let Some((_, at, token, bit, _)) = lane.door {
            if let Some(i) = self.doors.iter().position(|d| d.key == (token, at)) {
                let door = &mut self.doors[i];
                if door.lanes[usize::from(bit)] == number as u32 {
                    door.lanes[usize::from(bit)] = NOBODY;
                }
                door.count -= 1;
                if door.count == 0 {
                    self.doors.swap_remove(i);
                }
            }
        }
        lock(&self.port.numbers).free.push(number);
    }

    #[cold]
    fn sleep(&mut self, timeout: Option<Duration>) {
        let sleeper = self.port.sleeper.clone();
        // SYNC(attend): its barrier pairs with the light barrier in `Rung::is_asked`, and the fence
        // in `Rung::ring`.
        sleeper.sleep(timeout, self, Hub::arm_watched, Hub::has_news);
    }

    /// Arms the lanes that are watched. True where one of their senders uses the light barrier.
    fn arm_watched(&mut self) -> bool {
        let mut asymmetric = false;
        for number in std::mem::take(&mut self.watched) {
            if let Some(lane) = &mut self.lanes[number] {
                lane.inbox.get_mut().arm();
                (lane.watched, lane.rung) = (false, false);
                asymmetric |= lane.inbox.get_mut().is_asymmetric();
                self.ready.push_back(number);
            }
        }
        asymmetric
    }

    /// The last look before sleeping.
    fn has_news(&mut self) -> bool {
        // The lanes just armed are looked at once more; none of them needs another barrier, as
        // none is armed anew before its ring was seen.
        let lanes = &self.lanes;
        self.ready.retain(|&n| {
            lanes[n]
                .as_ref()
                .is_some_and(|l| l.closing || l.inbox.borrow().is_ready())
        });
        let rung = self.doors.iter().any(|d| d.seen.is_rung(&d.bell));
        !self.ready.is_empty() || rung || self.port.sleeper.is_poked()
    }
}

/// What waiting for a message came to.
pub(crate) enum Next {
    /// A message of the lane with this number.
    Message(usize, Message),
    /// The time is up.
    TimeUp,
    /// Nobody will send any more.
    Ended,
}

impl Next {
    /// The message, if there is one.
    #[inline(always)]
    pub(crate) fn message(self) -> Option<(usize, Message)> {
        match self {
            Next::Message(number, message) => Some((number, message)),
            Next::TimeUp | Next::Ended => None,
        }
    }
}
