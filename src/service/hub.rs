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

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::port::{DoorAt, HubPort, Lane};
use crate::lane::{Form, Message};
use crate::memory::layout::{DOORBELL_LANES, Doorbell, SegmentRef};
use crate::memory::shared::Shared;
use crate::sync::{Ordering, heavy_barrier};
use crate::wait::attend::Seen;
use crate::wait::{Patience, Step, Wait};

/// How many lanes are looked at directly.
const MOST_WATCHED: usize = 4;
/// After so many looks in vain, a watched lane makes room for another.
const IDLE: u32 = 2_000;
/// After so many messages of watched lanes, the others are looked after.
const TURN: u32 = 32;

/// After so many looks in vain, hand-backs of a watched lane are not gathered any longer.
const SETTLED: u32 = 32;
/// How often the lane of the last message is looked at before all else is.
const GLANCES: usize = 16;
/// So many messages, one right after the other, are a stream.
pub(super) const STREAM: u32 = 8;
/// How many pauses a receiver looks away from the stream that it caught up with.
const AWAY: usize = 4;

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
    /// Of a topic: publishers that are gone, and how many of their messages are lost, of which was not told.
    lost: Vec<(u32, u64)>,
    /// Of newest values: lanes whose publishers are gone, of which was not told.
    gone: Vec<usize>,
    pub(crate) wait: Wait,
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
            lost: Vec::new(),
            gone: Vec::new(),
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

    /// As [`lane`](Self::lane), to change it.
    pub(crate) fn lane_mut(&mut self, number: usize) -> &mut Lane {
        self.lanes[number]
            .as_mut()
            .expect("a lane stays as long as its message was not looked at")
    }

    /// How many rings of a lane were [seen](Self::look_at_doors); `None` where it has ended.
    pub(crate) fn rings(&mut self, number: usize) -> Option<u64> {
        let lane = self.lanes.get_mut(number).and_then(Option::as_mut)?;
        let has_ended = lane.closing || lane.inbox.get_mut().line().is_closed();
        (!has_ended).then_some(lane.rings)
    }

    /// Has every lane ring for what comes next. True where something has come already.
    pub(crate) fn listen(&mut self) -> bool {
        self.flush();
        let asymmetric = self.arm_watched();
        // SYNC(attend): pairs with the light barrier in `Rung::is_asked`.
        heavy_barrier(asymmetric);
        self.has_news()
    }

    /// Has a lane ring for what comes next, also where it has rung and was not emptied since.
    pub(crate) fn attend_to(&mut self, number: usize) {
        self.look_at_doors();
        // SYNC(attend): as in `listen`; `rearm` passes its own fence.
        heavy_barrier(self.arm_watched());
        if self.lanes.get(number).is_some_and(Option::is_some) {
            self.rearm(number);
        }
    }

    /// A publisher that is gone, and how many of its messages are lost.
    pub(crate) fn take_lost(&mut self) -> Option<(u32, u64)> {
        (!self.lost.is_empty()).then(|| self.lost.remove(0))
    }

    /// Lanes of newest values that ended; to be asked for before each message is looked at, since their numbers are
    /// used again.
    pub(crate) fn take_gone(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.gone)
    }

    /// How many messages were meant for a lane, where not all of them have come.
    pub(crate) fn behind(&mut self, number: usize) -> Option<u64> {
        let lane = self.lanes.get_mut(number).and_then(Option::as_mut)?;
        lane.inbox.get_mut().behind()
    }

    /// Whether lanes were opened or ended, or have rung. Where none has, the others are not looked at.
    #[inline]
    pub(crate) fn is_rung(&self) -> bool {
        let rung = |door: &Door| door.seen.is_rung(&door.bell);
        self.port.sleeper.is_poked() || self.doors.iter().any(rung)
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
        if !self.lost.is_empty() {
            return Some(Next::Lost);
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

    /// Whether there is something to take, in one look at everything that takes nothing.
    ///
    /// Where there is nothing, the lanes are left as by a [look](Self::try_next) that found nothing: those that
    /// rang are asked to ring again.
    pub(crate) fn is_ready(&mut self) -> bool {
        if self.port.sleeper.take_poke() {
            self.take_news();
        }
        self.look_at_doors();
        let lanes = &mut self.lanes;
        let mut is_ready = |number: usize| {
            let lane = lanes.get_mut(number).and_then(Option::as_mut);
            lane.is_some_and(|lane| lane.inbox.get_mut().is_ready())
        };
        if self.watched.iter().any(|&number| is_ready(number)) {
            return true;
        }
        while let Some(&number) = self.ready.front() {
            let Some(lane) = self.lanes.get_mut(number).and_then(Option::as_mut) else {
                self.ready.pop_front();
                continue;
            };
            if lane.inbox.get_mut().is_ready() {
                // It keeps its place.
                return true;
            }
            lane.queued = false;
            self.ready.pop_front();
            match lane.closing {
                true => self.remove(number),
                false => self.rearm(number),
            }
        }
        self.flush();
        !self.lost.is_empty()
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
    pub(crate) fn look_at_doors(&mut self) {
        for Door {
            bell, seen, lanes, ..
        } in &mut self.doors
        {
            seen.look(bell, |bit| {
                let number = lanes[bit] as usize;
                if let Some(lane) = self.lanes.get_mut(number).and_then(Option::as_mut) {
                    lane.rung = true;
                    lane.rings += 1;
                    lane.queue(&mut self.ready);
                }
            });
        }
    }

    fn look_at_ready(&mut self) -> Option<(usize, Message)> {
        while let Some(number) = self.ready.pop_front() {
            if let Some(lane) = self.lanes.get_mut(number).and_then(Option::as_mut) {
                lane.queued = false;
            }
            let watched = self.watch(number);
            let Some(lane) = self.lanes.get_mut(number).and_then(Option::as_mut) else {
                continue;
            };
            let left = lane.closing.then(|| lane.left.checked_sub(1));
            match lane.inbox.get_mut().poll() {
                Some(_) if left == Some(None) => self.remove(number),
                Some(message) => {
                    lane.left = left.flatten().unwrap_or(lane.left);
                    if !watched || lane.closing {
                        // Others first, then this one again.
                        lane.queue(&mut self.ready);
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
        if !lane.watched && lane.rung && has_place && !lane.closing {
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
                lane.queue(&mut self.ready);
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
                lane.queue(&mut self.ready);
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
            // Where there is none, it is still on its way, and will be found closed when it is taken.
            // Where it is not closed, this was said of the one before it.
            if let Some(lane) = self.lanes.get_mut(number).and_then(Option::as_mut) {
                if lane.inbox.get_mut().line().is_closed() && !lane.closing {
                    lane.end();
                    lane.queue(&mut self.ready);
                    self.watched.retain(|&n| n != number);
                }
            }
        }
    }

    fn take_opened(&mut self) {
        while let Some(mut lane) = self.port.opened.pop() {
            let number = lane.number;
            if let Some(at) = &lane.door {
                let door = self.door(at);
                door.seen.join(&door.bell, at.bit, at.stands);
                door.lanes[usize::from(at.bit)] = number as u32;
                door.count += 1;
            }
            if self.lanes.len() <= number {
                self.lanes.resize_with(number + 1, || None);
            }
            lane.queue(&mut self.ready);
            if lane.inbox.get_mut().line().is_closed() {
                lane.end();
            }
            self.lanes[number] = Some(lane);
        }
    }

    fn door(&mut self, at: &DoorAt) -> &mut Door {
        let known = self.doors.iter().position(|d| d.key == at.key);
        let at = known.unwrap_or_else(|| {
            self.doors.push(Door {
                bell: at.bell.clone(),
                key: at.key,
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
        let Some(mut lane) = self.lanes[number].take() else {
            return;
        };
        if self.port.form() == Form::Latest {
            self.gone.push(number);
        }
        if self.port.form() == Form::Topic {
            let inbox = lane.inbox.get_mut();
            let lost = inbox.lost();
            if lost > 0 {
                self.lost.push((inbox.link().pid(), lost));
            }
        }
        if let Some(at) = &lane.door {
            if let Some(i) = self.doors.iter().position(|d| d.key == at.key) {
                let door = &mut self.doors[i];
                if door.lanes[usize::from(at.bit)] == number as u32 {
                    door.lanes[usize::from(at.bit)] = NOBODY;
                }
                door.count -= 1;
                if door.count == 0 {
                    self.doors.swap_remove(i);
                }
            }
        }
        self.port.free_number(number);
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
                lane.queue(&mut self.ready);
            }
        }
        asymmetric
    }

    /// The last look before sleeping.
    fn has_news(&mut self) -> bool {
        // The lanes just armed are looked at once more; none of them needs another barrier, as
        // none is armed anew before its ring was seen.
        let lanes = &mut self.lanes;
        self.ready.retain(|&n| {
            lanes[n].as_mut().is_some_and(|lane| {
                // One that has rung, and was not found empty since, was not asked to ring again.
                let owes_look = lane.closing || (lane.rung && !lane.watched);
                lane.queued = owes_look || lane.inbox.get_mut().is_ready();
                lane.queued
            })
        });
        let rung = self.doors.iter().any(|d| d.seen.is_rung(&d.bell));
        !self.ready.is_empty() || rung || self.port.sleeper.is_poked()
    }
}

/// What waiting for a message came to.
pub(crate) enum Next {
    /// A message of the lane with this number.
    Message(usize, Message),
    /// Messages are lost, of which [`Hub::take_lost`] tells.
    Lost,
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
            Next::Lost | Next::TimeUp | Next::Ended => None,
        }
    }
}
