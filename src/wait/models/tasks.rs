//! The claims of waiting tasks: *Why no task waits for ever*, in the steps of the ports of tasks.
//!
//! A task is a thread that sleeps where it would return `Pending`, and its waker wakes it.

use std::sync::{Arc, OnceLock};

use loom::sync::{Mutex, Notify};
use loom::thread::{JoinHandle, spawn};

use super::{Port, Receiving, lane};
use crate::memory::layout::{Bell, Doorbell, SenderBlock};
use crate::memory::ring::models::{read, receive};
use crate::memory::shared::Shared;
use crate::sync::{explore, heavy_barrier};
use crate::wait::{Post, Ringer, Waiter};

/// Drives a port for each ring: gets to it whenever it does.
pub(super) struct Chimes<P> {
    port: OnceLock<Arc<P>>,
    rings: std::sync::Mutex<Vec<JoinHandle<()>>>,
}

/// A port of tasks.
pub(super) trait Driven: Send + Sync + 'static {
    fn drive(&self);
}

impl<P: Driven> Post for Chimes<P> {
    fn ring(&self, _: u32) {
        unreachable!("tasks wait here");
    }

    fn ring_tasks(&self, _: u32) {
        let port = self.port.get().expect("it stands before anything is sent");
        let port = port.clone();
        let ring = spawn(move || port.drive());
        self.rings.lock().unwrap().push(ring);
    }
}

impl<P: Driven> Chimes<P> {
    pub(super) fn new() -> Arc<Chimes<P>> {
        Arc::new(Chimes {
            port: OnceLock::new(),
            rings: std::sync::Mutex::default(),
        })
    }

    pub(super) fn ringer(self: &Arc<Self>) -> Ringer {
        let bell = Shared::heap(Bell::new());
        Ringer::new(bell, 0, Waiter::Tasks, self.clone())
    }

    /// The port that is rung from now on.
    pub(super) fn stand(&self, port: P) -> Arc<P> {
        self.port.get_or_init(|| Arc::new(port)).clone()
    }

    /// Waits for those who send, and then for what they rang for.
    pub(super) fn end(&self, sending: impl IntoIterator<Item = JoinHandle<()>>) {
        sending
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        let rings = std::mem::take(&mut *self.rings.lock().unwrap());
        rings.into_iter().for_each(|ring| ring.join().unwrap());
    }
}

type Waker = Arc<Notify>;

/// Polls until something is there.
fn wait(mut poll: impl FnMut(&Waker) -> bool) {
    let waker = Arc::new(Notify::new());
    while !poll(&waker) {
        waker.wait();
    }
}

/// Does something under a lock, and then wakes whom that concerns.
fn enter<S, T>(state: &Mutex<S>, work: impl FnOnce(&mut S, &mut Vec<Waker>) -> T) -> T {
    let mut woken = Vec::new();
    let done = work(&mut state.lock().unwrap(), &mut woken);
    woken.iter().for_each(|waker| waker.notify());
    done
}

/// The lane of a client of tasks.
struct Strand(Mutex<Answers>);

struct Answers {
    lane: Receiving,
    came: Vec<u16>,
    waiting: Vec<(u16, Waker)>,
    open: usize,
    armed: bool,
}

impl Strand {
    /// A strand with so many calls that are not answered, which nobody waits for yet.
    fn new(mut lane: Receiving, open: usize) -> Strand {
        lane.watch();
        Strand(Mutex::new(Answers {
            lane,
            came: Vec::new(),
            waiting: Vec::new(),
            open,
            armed: false,
        }))
    }

    fn poll(&self, tag: u16, waker: &Waker) -> bool {
        enter(&self.0, |state, woken| {
            state.waiting.retain(|(other, _)| *other != tag);
            loop {
                if state.waiting.is_empty() && state.open == 1 && std::mem::take(&mut state.armed) {
                    state.lane.watch();
                }
                state.drain(woken);
                if state.came.contains(&tag) {
                    state.open -= 1;
                    return true;
                }
                state.waiting.push((tag, waker.clone()));
                if !state.arm() {
                    return false;
                }
                state.waiting.pop();
            }
        })
    }
}

impl Answers {
    fn drain(&mut self, woken: &mut Vec<Waker>) {
        while let Some(record) = receive(&mut self.lane.consumer) {
            read(&self.lane.lane.cells, &record);
            self.came.push(record.tag);
            let waits = self.waiting.iter().position(|(tag, _)| *tag == record.tag);
            woken.extend(waits.map(|at| self.waiting.swap_remove(at).1));
        }
    }

    fn arm(&mut self) -> bool {
        if !std::mem::replace(&mut self.armed, true) {
            self.lane.arm();
            heavy_barrier(false);
        }
        self.lane.consumer.is_ready()
    }
}

impl Driven for Strand {
    fn drive(&self) {
        enter(&self.0, |state, woken| {
            loop {
                state.drain(woken);
                if state.waiting.is_empty() {
                    if std::mem::take(&mut state.armed) {
                        state.lane.watch();
                    }
                    return;
                }
                state.armed = true;
                if !state.lane.rearm() {
                    return;
                }
            }
        });
    }
}

/// Two tasks wait for answers on one lane, which come in either order.
fn answers_reach_their_tasks(order: [u16; 2]) {
    explore(Some(2), move || {
        let chimes = Chimes::new();
        let (mut sending, receiving) = lane(chimes.ringer(), None);
        let strand = chimes.stand(Strand::new(receiving, 2));
        let sender = spawn(move || order.into_iter().for_each(|tag| sending.send(tag)));
        let other = strand.clone();
        let task = spawn(move || wait(|waker| other.poll(1, waker)));
        wait(|waker| strand.poll(2, waker));
        chimes.end([sender, task]);
    });
}

#[test]
fn no_task_waits_for_ever_for_its_answer() {
    answers_reach_their_tasks([1, 2]);
    answers_reach_their_tasks([2, 1]);
}

/// The lane, its doorbell and its tasks, as a server of tasks has them.
struct Core(Mutex<Requests>);

struct Requests {
    port: Port,
    next: Vec<Waker>,
    /// Who waits for a cancel, and how many rings were seen when the first of them asked for one.
    cancelled: Option<(u64, Vec<Waker>)>,
}

impl Core {
    fn new(lane: Receiving, bell: Shared<Doorbell>) -> Core {
        Core(Mutex::new(Requests {
            port: Port::new(vec![lane], bell, true),
            next: Vec::new(),
            cancelled: None,
        }))
    }

    fn poll_next(&self, waker: &Waker) -> bool {
        enter(&self.0, |state, _| {
            loop {
                if state.port.take_one() {
                    return true;
                }
                state.next.push(waker.clone());
                state.port.arm_watched();
                heavy_barrier(false);
                if !state.port.has_news() {
                    return false;
                }
            }
        })
    }

    fn poll_cancelled(&self, waker: &Waker, is_cancelled: impl Fn() -> bool) -> bool {
        if is_cancelled() {
            return true;
        }
        enter(&self.0, |state, _| {
            let rings = state.port.rings(0);
            let watchers = state.cancelled.get_or_insert((rings, Vec::new()));
            watchers.1.push(waker.clone());
            state.port.attend_to(0);
        });
        is_cancelled()
    }
}

impl Driven for Core {
    fn drive(&self) {
        enter(&self.0, |state, woken| {
            woken.append(&mut state.next);
            let rings = state.port.rings(0);
            let rang = state.cancelled.take_if(|(seen, _)| *seen != rings);
            woken.extend(rang.into_iter().flat_map(|(_, watchers)| watchers));
        });
    }
}

impl Port {
    /// Takes one record, if there is one, in the steps of `Hub::look`.
    fn take_one(&mut self) -> bool {
        if self.take_watched() {
            return true;
        }
        self.look_at_doors();
        while let Some(number) = self.ready.pop() {
            let entry = &mut self.lanes[number];
            if entry.rung && !entry.watched {
                entry.lane.watch();
                entry.watched = true;
            }
            if entry.lane.take() {
                if !entry.watched {
                    self.ready.push(number);
                }
                return true;
            }
            self.rearm(number);
        }
        self.take_watched()
    }

    fn take_watched(&mut self) -> bool {
        let mut watched = self.lanes.iter_mut().filter(|entry| entry.watched);
        watched.any(|entry| entry.lane.take())
    }

    fn look_at_doors(&mut self) {
        self.seen.look(&self.bell, |lane| {
            self.lanes[lane].rung = true;
            self.lanes[lane].rings += 1;
            self.ready.push(lane);
        });
    }

    fn rings(&mut self, number: usize) -> u64 {
        self.look_at_doors();
        self.lanes[number].rings
    }

    fn rearm(&mut self, number: usize) {
        let entry = &mut self.lanes[number];
        if entry.rung && !entry.watched {
            entry.rung = false;
            if entry.lane.rearm() {
                self.ready.push(number);
            }
        }
    }

    fn attend_to(&mut self, number: usize) {
        self.look_at_doors();
        self.arm_watched();
        heavy_barrier(false);
        self.rearm(number);
    }
}

/// Two tasks wait for a request each.
#[test]
fn no_task_waits_for_ever_for_a_request() {
    explore(Some(2), || {
        let (chimes, bell) = (Chimes::new(), Shared::heap(Doorbell::new()));
        let (mut sending, receiving) = lane(chimes.ringer(), Some((bell.clone(), 0)));
        let core = chimes.stand(Core::new(receiving, bell));
        let sender = spawn(move || [1, 2].into_iter().for_each(|tag| sending.send(tag)));
        let other = core.clone();
        let task = spawn(move || wait(|waker| other.poll_next(waker)));
        wait(|waker| core.poll_next(waker));
        chimes.end([sender, task]);
    });
}

/// A task waits for a cancel, while another takes the next request of the same lane.
#[test]
fn no_task_waits_for_ever_for_a_cancel() {
    const TAG: u16 = 3;
    explore(Some(2), || {
        let (chimes, bell) = (Chimes::new(), Shared::heap(Doorbell::new()));
        let (mut sending, receiving) = lane(chimes.ringer(), Some((bell.clone(), 0)));
        let core = chimes.stand(Core::new(receiving, bell));
        let requests = Shared::heap(SenderBlock::new());
        let caller = requests.clone();
        let sender = spawn(move || {
            sending.send(1);
            caller.cancel(TAG);
            sending.signal();
        });
        let other = core.clone();
        let task = spawn(move || wait(|waker| other.poll_next(waker)));
        wait(|waker| core.poll_cancelled(waker, || requests.is_cancelled(TAG)));
        chimes.end([sender, task]);
    });
}

/// Two tasks wait for cancels on the same lane, one of which comes while the other asks.
#[test]
fn no_watcher_is_forgotten_for_another() {
    const TAGS: [u16; 2] = [3, 4];
    explore(Some(2), || {
        let (chimes, bell) = (Chimes::new(), Shared::heap(Doorbell::new()));
        let (mut sending, receiving) = lane(chimes.ringer(), Some((bell.clone(), 0)));
        let core = chimes.stand(Core::new(receiving, bell));
        let requests = Shared::heap(SenderBlock::new());
        let caller = requests.clone();
        let sender = spawn(move || {
            for tag in TAGS {
                caller.cancel(tag);
                sending.signal();
            }
        });
        let (other, others) = (core.clone(), requests.clone());
        let task = spawn(move || {
            wait(|waker| other.poll_cancelled(waker, || others.is_cancelled(TAGS[0])));
        });
        wait(|waker| core.poll_cancelled(waker, || requests.is_cancelled(TAGS[1])));
        chimes.end([sender, task]);
    });
}

/// A ring that is put off is given at the end of its window, also where the caller asked meanwhile.
#[test]
fn no_item_that_is_gathered_is_missed() {
    explore(Some(3), || {
        let chimes = Chimes::new();
        let (mut sending, receiving) = lane(chimes.ringer(), None);
        let strand = chimes.stand(Strand::new(receiving, 1));
        let sender = spawn(move || {
            let mut owes = sending.send_quietly(1);
            owes |= sending.send_quietly(2);
            // The window is over.
            if owes {
                sending.ring();
            }
        });
        wait(|waker| strand.poll(2, waker));
        chimes.end([sender]);
    });
}
