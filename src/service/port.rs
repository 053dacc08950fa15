//! The side of a hub that the quiet thread knows: opens lanes and puts them into its queue.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;

use super::connect::Closer;
use super::contract::Contract;
use super::tasks::Answers;
use crate::error::{Fault, MemoryError, OpenError};
use crate::lane::{Form, Inbox, Offered, Outbox, complete, lay_door, offer_end};
use crate::link::node::Node;
use crate::link::offer::{Asked, Port};
use crate::link::wire::{End, Refusal, Schemas};
use crate::link::{Answer, LaneId, Line, Link, lock};
use crate::memory::layout::{DOORBELL_LANES, Doorbell, MOST_CELLS, SegmentRef};
use crate::memory::shared::Shared;
use crate::sync::{AtomicBool, Ordering};
use crate::wait::tasks::Due;
use crate::wait::{Sleeper, Waiter};

/// The most publishers that one who begins waits for: a peer may say what it likes.
const MOST_JOINING: usize = 4096;

/// Of a topic: the publishers that have opened a lane, by link and number there, and those of which we have
/// been told that what they publish from then on comes here, or know that it never will.
#[derive(Default)]
struct Publishers {
    lanes: HashMap<(u64, u32), u32>,
    joined: HashSet<u32>,
}

/// See the module.
pub(crate) struct HubPort {
    name: String,
    contract: Contract,
    pub(crate) sleeper: Arc<Sleeper>,
    pub(super) opened: SegQueue<Lane>,
    pub(super) closed: Arc<SegQueue<usize>>,
    numbers: Mutex<Numbers>,
    pub(super) ended: AtomicBool,
    publishers: Mutex<Publishers>,
    joined: Condvar,
    due: Arc<Due>,
}

#[derive(Default)]
struct Numbers {
    free: Vec<usize>,
    next: usize,
    /// How many lanes there were.
    lanes: u64,
}

/// A lane's bit in a doorbell of a peer's, and how it stood when the lane was opened.
pub(super) struct DoorAt {
    pub(super) bell: Shared<Doorbell>,
    /// The link that the doorbell belongs to, and its place there.
    pub(super) key: (u64, SegmentRef),
    pub(super) bit: u16,
    pub(super) stands: bool,
}

/// One lane, as the hub has it.
pub(crate) struct Lane {
    pub(super) number: usize,
    pub(crate) inbox: RefCell<Inbox>,
    pub(crate) outbox: Option<RefCell<Outbox>>,
    /// How many cells of its messages are held as views.
    pub(crate) held: Cell<usize>,
    pub(super) door: Option<DoorAt>,
    /// Its other end is gone: what came before is still taken, but no more than there can be.
    pub(super) closing: bool,
    pub(super) left: usize,
    pub(super) watched: bool,
    /// Whether it stands in the queue of those that may have something.
    pub(super) queued: bool,
    /// Whether the ring that was last asked for has been seen.
    pub(super) rung: bool,
    /// How many rings were seen, counted on from where no other lane of the port ever comes: its number may
    /// be used again.
    pub(super) rings: u64,
    pub(super) idle: u32,
    /// Where tasks answer: it has the outbox and the closer then.
    pub(super) answers: Option<Arc<Answers>>,
    pub(super) closer: Option<Closer>,
}

impl Lane {
    /// Its other end is gone.
    pub(super) fn end(&mut self) {
        (self.closing, self.watched) = (true, false);
    }

    /// Has it looked at before the port sleeps, once.
    pub(super) fn queue(&mut self, ready: &mut VecDeque<usize>) {
        if !self.queued {
            self.queued = true;
            ready.push_back(self.number);
        }
    }
}

impl HubPort {
    /// A port of this name, and what goes in and out of it.
    pub(crate) fn new(
        node: &Node,
        name: &str,
        contract: Contract,
        waiter: Waiter,
    ) -> Result<Arc<HubPort>, MemoryError> {
        let sleeper = node.new_sleeper(waiter)?;
        Ok(Arc::new(HubPort {
            name: name.to_owned(),
            contract,
            sleeper,
            opened: SegQueue::new(),
            closed: Arc::new(SegQueue::new()),
            numbers: Mutex::default(),
            ended: AtomicBool::new(false),
            publishers: Mutex::default(),
            joined: Condvar::new(),
            due: node.due().clone(),
        }))
    }

    /// Whether nobody will be accepted any more.
    pub(crate) fn has_ended(&self) -> bool {
        // SYNC(ended): Acquire; pairs with Release in `end`.
        self.ended.load(Ordering::Acquire)
    }

    /// What the quiet thread is to do for ports of tasks.
    pub(crate) fn due(&self) -> &Arc<Due> {
        &self.due
    }

    /// Which kind of lanes lead to it.
    pub(super) fn form(&self) -> Form {
        self.contract.form()
    }

    /// Waits until each of these publishers has joined us, at most so long. `left` says which are still
    /// there.
    pub(crate) fn wait_for_publishers(
        &self,
        timeout: Duration,
        left: impl Fn() -> Result<Vec<u32>, OpenError>,
    ) -> Result<(), OpenError> {
        const SLICE: Duration = Duration::from_millis(20);
        let deadline = Instant::now() + timeout;
        let mut awaited = left()?;
        let mut publishers = lock(&self.publishers);
        loop {
            awaited.retain(|number| !publishers.joined.contains(number));
            if awaited.is_empty() || Instant::now() >= deadline {
                return Ok(());
            }
            let waited = self.joined.wait_timeout(publishers, SLICE);
            let (guard, time) = waited.unwrap_or_else(PoisonError::into_inner);
            publishers = guard;
            if time.timed_out() {
                // Who ended meanwhile is not waited for.
                drop(publishers);
                if let Ok(there) = left() {
                    awaited.retain(|number| there.contains(number));
                }
                publishers = lock(&self.publishers);
            }
        }
    }

    /// A publisher is not waited for any longer.
    fn has_joined(&self, from: Option<u32>) {
        let mut publishers = lock(&self.publishers);
        if let Some(from) = from.filter(|_| publishers.joined.len() < MOST_JOINING) {
            publishers.joined.insert(from);
            self.joined.notify_all();
        }
    }

    /// Takes a number back whose lane is gone.
    pub(super) fn free_number(&self, number: usize) {
        lock(&self.numbers).free.push(number);
    }

    fn first_ring(&self) -> u64 {
        let mut numbers = lock(&self.numbers);
        numbers.lanes += 1;
        numbers.lanes << 40
    }

    fn new_number(&self) -> usize {
        let mut numbers = lock(&self.numbers);
        numbers.free.pop().unwrap_or_else(|| {
            numbers.next += 1;
            numbers.next - 1
        })
    }

    /// Joins the two sides of a lane.
    fn join(
        &self,
        node: &Arc<Node>,
        (link, id): (&Arc<Link>, LaneId),
        number: usize,
        offered: Offered,
        end: &End,
    ) -> Result<Lane, Fault> {
        let line = Line::one_of_many(self.sleeper.clone(), self.closed.clone(), number);
        let door = self.door_of(link, end)?;
        let (received, sent) = self.contract.aligns();
        #[cfg(feature = "json")]
        link.note_port(node, id, &self.name, self.contract.carried());
        let near = offered.near;
        let (outbox, inbox) = complete(node, link, (&line, id), near, end, (sent, received), true)?;
        let mut inbox = inbox.ok_or(Fault::Control {
            what: "a lane that sends nothing",
        })?;
        inbox.set_prompt(self.contract.holds_pins().0);
        if !link.add_lane(id, line, offered.estate, self.contract.replies()) {
            return Err(Fault::Control {
                what: "a lane whose number is in use",
            });
        }
        Ok(Lane {
            number,
            inbox: RefCell::new(inbox),
            outbox: outbox.map(RefCell::new),
            held: Cell::new(0),
            door: Some(door),
            closing: false,
            left: MOST_CELLS,
            watched: false,
            queued: false,
            rung: false,
            rings: self.first_ring(),
            idle: 0,
            answers: None,
            closer: Some(Closer::new(link.clone(), id)),
        })
    }

    fn door_of(&self, link: &Link, end: &End) -> Result<DoorAt, Fault> {
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
        if !link.knows_door(at.into()) {
            return Err(Fault::Control {
                what: "one of too many doorbells",
            });
        }
        let bell = lay_door(link, at.into())?;
        Ok(DoorAt {
            bell,
            key: (link.token(), at.into()),
            bit,
            stands,
        })
    }
}

impl Port for HubPort {
    fn accept(
        &self,
        node: &Arc<Node>,
        link: &Arc<Link>,
        id: LaneId,
        asked: Asked,
    ) -> Result<Answer, Fault> {
        let Asked { types, end, from } = asked;
        if self.ended.load(Ordering::Acquire) {
            return Ok(Err(Refusal::NoServer));
        }
        if types != self.contract.types() {
            // It will never join: nobody is to wait for it.
            self.has_joined(from);
            return Ok(Err(Refusal::Layout(self.contract.schemas())));
        }
        if link.is_full() {
            return Ok(Err(Refusal::NoMemory));
        }
        let Ok(offered) = offer_end(
            node,
            link,
            &self.sleeper,
            (self.contract.form(), self.contract.replies(), true),
            None,
            None,
        ) else {
            return Ok(Err(Refusal::NoMemory));
        };
        let number = self.new_number();
        let answer = offered.end;
        let lane = self.join(node, (link, id), number, offered, &end);
        let lane = lane.inspect_err(|_| self.free_number(number))?;
        if let Some(from) = from {
            let mut publishers = lock(&self.publishers);
            if publishers.lanes.len() < MOST_JOINING {
                publishers.lanes.insert((link.token(), id.number), from);
            }
        }
        self.opened.push(lane);
        self.sleeper.poke();
        Ok(Ok(answer))
    }

    fn joined(&self, lane: (u64, u32)) {
        // By its lane: the name of this port may have been another's before.
        let from = lock(&self.publishers).lanes.remove(&lane);
        self.has_joined(from);
    }

    fn differs(&self, pid: u32, schemas: &Schemas) -> String {
        let differences = self.contract.differences(schemas);
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
