//! The claims of waiting, one a test: explored in every order of their steps.
//!
//! Nobody is woken by the clock here, so a wake that is lost is a deadlock, which loom reports.

mod lent;
mod tasks;

use std::sync::{Arc, Mutex};

use loom::cell::UnsafeCell;
use loom::thread::{JoinHandle, spawn};

use super::attend::{Attend, Rung, Seen};
use super::{Post, Ringer, Sleeper, Waiter};
use crate::memory::layout::{Bell, Cell, Doorbell, ReceiverBlock, SenderBlock};
use crate::memory::ring::models::{Lane, read, receive, send};
use crate::memory::ring::{Consumer, Producer};
use crate::memory::shared::Shared;
use crate::sync::{AtomicU64, Ordering, explore, light_barrier};

/// The quiet thread of the sleeper's process: gets to a message whenever it does.
struct QuietThread {
    sleeper: Arc<Sleeper>,
    messages: Mutex<Vec<JoinHandle<()>>>,
}

impl Post for QuietThread {
    fn ring(&self, _: u32) {
        let sleeper = self.sleeper.clone();
        let message = spawn(move || sleeper.rouse());
        self.messages.lock().unwrap().push(message);
    }

    fn ring_tasks(&self, _: u32) {
        unreachable!("a thread sleeps here");
    }
}

/// A place to sleep, and what wakes the one that does.
struct Bed {
    sleeper: Arc<Sleeper>,
    bell: Shared<Bell>,
    quiet: Arc<QuietThread>,
}

impl Bed {
    fn new() -> Bed {
        let bell = Shared::heap(Bell::new());
        let sleeper = Arc::new(Sleeper::heap(bell.clone()));
        let quiet = Arc::new(QuietThread {
            sleeper: sleeper.clone(),
            messages: Mutex::default(),
        });
        Bed {
            sleeper,
            bell,
            quiet,
        }
    }

    fn ringer(&self) -> Ringer {
        Ringer::new(self.bell.clone(), 0, Waiter::Thread, self.quiet.clone())
    }

    /// Waits for those who ring, and then for what they had the quiet thread do.
    fn end(self, ringing: impl IntoIterator<Item = JoinHandle<()>>) {
        ringing
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        let messages = std::mem::take(&mut *self.quiet.messages.lock().unwrap());
        messages
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    }
}

/// *Why no wake is lost*: the sleeper may be before, in, or behind the kernel.
#[test]
fn no_wake_is_lost() {
    explore(None, || {
        let bed = Bed::new();
        let (news, ringer) = (Arc::new(AtomicU64::new(0)), bed.ringer());
        let published = news.clone();
        let ringing = spawn(move || {
            published.store(1, Ordering::Relaxed);
            light_barrier(false);
            ringer.ring();
        });
        let mut look = || news.load(Ordering::Relaxed) == 1;
        while !look() {
            bed.sleeper.sleep(None, &mut look, |_| false, |look| look());
        }
        bed.end([ringing]);
    });
}

/// SYNC(poke): a poke from a thread of the same process is found, and what was done before it.
#[test]
fn no_poke_is_lost() {
    explore(None, || {
        let bed = Bed::new();
        let (sleeper, news) = (bed.sleeper.clone(), Arc::new(UnsafeCell::new(0)));
        let (other, theirs) = (sleeper.clone(), news.clone());
        let poking = spawn(move || {
            theirs.with_mut(|news| set(news, 1));
            other.poke();
        });
        while !sleeper.take_poke() {
            sleeper.sleep(None, &mut (), |_| false, |_| sleeper.is_poked());
        }
        assert_eq!(news.with(get), 1);
        bed.end([poking]);
    });
}

#[allow(unsafe_code)]
fn set(news: *mut u64, value: u64) {
    // SAFETY: loom gives out the pointer, and reports whoever else has it.
    unsafe { *news = value }
}

#[allow(unsafe_code)]
fn get(news: *const u64) -> u64 {
    // SAFETY: as in `set`.
    unsafe { *news }
}

/// The sending end of a lane, as `Outbox` has it.
struct Sending {
    producer: Producer,
    lane: Ends,
    door: Option<(Shared<Doorbell>, u16)>,
    ringer: Ringer,
    rung: Rung,
}

/// The receiving end of a lane, as `Inbox` has it.
struct Receiving {
    consumer: Consumer,
    lane: Ends,
    attend: Attend,
    next: u16,
}

/// What both ends see.
#[derive(Clone)]
struct Ends {
    cells: Shared<[Cell]>,
    receiver: Shared<ReceiverBlock>,
}

/// A lane whose receiver sleeps, and has or has not a doorbell.
fn lane(ringer: Ringer, door: Option<(Shared<Doorbell>, u16)>) -> (Sending, Receiving) {
    let lane = Lane::awake(&[0, 1, 2, 3]);
    let ends = Ends {
        cells: lane.cells,
        receiver: lane.receiver,
    };
    let sending = Sending {
        producer: lane.producer,
        lane: ends.clone(),
        door,
        ringer,
        rung: Rung::default(),
    };
    let mut receiving = Receiving {
        consumer: lane.consumer,
        lane: ends,
        attend: Attend::default(),
        next: 1,
    };
    receiving.arm();
    (sending, receiving)
}

impl Sending {
    /// Sends a record and signals it.
    fn send(&mut self, tag: u16) {
        if self.send_quietly(tag) {
            self.ring();
        }
    }

    /// Sends a record; true where its receiver asks to be rung.
    fn send_quietly(&mut self, tag: u16) -> bool {
        send(&mut self.producer, &self.lane.cells, (1, tag), 0).expect("there is room");
        Rung::is_asked(&self.lane.receiver, false)
    }

    /// Has the receiver look, if it asks for that, though nothing was sent.
    fn signal(&mut self) {
        if Rung::is_asked(&self.lane.receiver, false) {
            self.ring();
        }
    }

    fn ring(&mut self) {
        let door = self.door.as_ref().map(|(bell, bit)| (&**bell, *bit));
        self.rung.ring(&self.lane.receiver, door, &self.ringer);
    }
}

impl Receiving {
    fn arm(&mut self) {
        self.attend.arm(&self.lane.receiver.attend);
    }

    fn watch(&mut self) {
        self.attend.watch(&self.lane.receiver.attend);
    }

    fn rearm(&mut self) -> bool {
        self.attend.rearm(&self.lane.receiver.attend);
        self.consumer.is_ready()
    }

    /// Takes a record if one has come.
    fn take(&mut self) -> bool {
        let Some(record) = receive(&mut self.consumer) else {
            return false;
        };
        assert_eq!(record.tag, self.next, "not what was sent");
        read(&self.lane.cells, &record);
        self.next += 1;
        true
    }
}

/// *Why no ring is lost*, and *Why one ring for each asking is enough*: a client sleeps whenever it
/// finds nothing, and its sender may ring for what it has taken already.
#[test]
fn no_ring_is_lost() {
    explore(Some(4), || {
        let bed = Bed::new();
        let (mut sending, mut receiving) = lane(bed.ringer(), None);
        receiving.watch();
        let sender = spawn(move || {
            sending.send(1);
            sending.send(2);
        });
        while receiving.next < 3 {
            if receiving.take() {
                continue;
            }
            let ask = |lane: &mut Receiving| {
                lane.arm();
                false
            };
            bed.sleeper
                .sleep(None, &mut receiving, ask, |lane| lane.consumer.is_ready());
            receiving.watch();
        }
        bed.end([sender]);
    });
}

/// A lane of a port, as `Hub` has it.
struct Entry {
    lane: Receiving,
    watched: bool,
    /// Whether the ring that was last asked for has been seen.
    rung: bool,
    /// How many rings were seen.
    rings: u64,
}

/// A port with a doorbell of a peer, in the steps of `Hub`.
struct Port {
    lanes: Vec<Entry>,
    ready: Vec<usize>,
    bell: Shared<Doorbell>,
    seen: Seen,
    /// Whether it watches lanes that have rung.
    watches: bool,
}

impl Port {
    fn new(lanes: Vec<Receiving>, bell: Shared<Doorbell>, watches: bool) -> Port {
        let mut seen = Seen::new();
        (0..lanes.len()).for_each(|lane| seen.join(&bell, lane as u16, false));
        let entry = |lane| Entry {
            lane,
            watched: false,
            rung: false,
            rings: 0,
        };
        Port {
            lanes: lanes.into_iter().map(entry).collect(),
            ready: Vec::new(),
            bell,
            seen,
            watches,
        }
    }

    /// Takes what has come, until nothing is left.
    fn look(&mut self) {
        self.seen.look(&self.bell, |lane| {
            self.lanes[lane].rung = true;
            self.lanes[lane].rings += 1;
            self.ready.push(lane);
        });
        while let Some(number) = self.ready.pop() {
            let entry = &mut self.lanes[number];
            if self.watches && entry.rung && !entry.watched {
                entry.lane.watch();
                entry.watched = true;
            }
            while entry.lane.take() {}
            if entry.rung && !entry.watched {
                entry.rung = false;
                if entry.lane.rearm() {
                    self.ready.push(number);
                }
            }
        }
        let watched = self.lanes.iter_mut().filter(|entry| entry.watched);
        watched.for_each(|entry| while entry.lane.take() {});
    }

    fn arm_watched(&mut self) -> bool {
        for (number, entry) in self.lanes.iter_mut().enumerate() {
            if std::mem::take(&mut entry.watched) {
                entry.lane.arm();
                entry.rung = false;
                self.ready.push(number);
            }
        }
        false
    }

    fn has_news(&mut self) -> bool {
        let lanes = &self.lanes;
        self.ready.retain(|&n| lanes[n].lane.consumer.is_ready());
        !self.ready.is_empty() || self.seen.is_rung(&self.bell)
    }

    /// Takes so many records of each lane, and sleeps whenever there are none.
    fn run(mut self, sleeper: &Sleeper, records: u16) {
        loop {
            self.look();
            if self.lanes.iter().all(|entry| entry.lane.next > records) {
                return;
            }
            sleeper.sleep(None, &mut self, Port::arm_watched, Port::has_news);
        }
    }
}

/// *Why no ring is lost*, for one that is armed anew after each ring: the bit of its doorbell does
/// not flip twice between two looks.
#[test]
fn no_ring_of_a_doorbell_is_lost() {
    explore(Some(4), || {
        let (bed, bell) = (Bed::new(), Shared::heap(Doorbell::new()));
        let (mut sending, receiving) = lane(bed.ringer(), Some((bell.clone(), 0)));
        let sender = spawn(move || {
            sending.send(1);
            sending.send(2);
        });
        Port::new(vec![receiving], bell, false).run(&bed.sleeper, 2);
        bed.end([sender]);
    });
}

/// Two lanes of one process share a doorbell, and its counter.
#[test]
fn two_lanes_share_a_doorbell() {
    explore(Some(3), || {
        let (bed, bell) = (Bed::new(), Shared::heap(Doorbell::new()));
        let (senders, lanes): (Vec<_>, Vec<_>) = (0..2)
            .map(|bit| lane(bed.ringer(), Some((bell.clone(), bit))))
            .unzip();
        let senders: Vec<_> = senders
            .into_iter()
            .map(|mut sending| spawn(move || sending.send(1)))
            .collect();
        Port::new(lanes, bell, false).run(&bed.sleeper, 1);
        bed.end(senders);
    });
}

/// A lane that a port watches is armed when the port goes to sleep, and rings then.
#[test]
fn a_watched_lane_rings_when_its_port_sleeps() {
    explore(Some(4), || {
        let (bed, bell) = (Bed::new(), Shared::heap(Doorbell::new()));
        let (mut sending, receiving) = lane(bed.ringer(), Some((bell.clone(), 0)));
        let sender = spawn(move || {
            sending.send(1);
            sending.send(2);
        });
        Port::new(vec![receiving], bell, true).run(&bed.sleeper, 2);
        bed.end([sender]);
    });
}

/// The sender never sleeps while something is handed back, though its receiver may ring for what
/// the sender has collected already.
#[test]
fn no_room_is_missed() {
    explore(Some(4), || {
        let bed = Bed::new();
        let mut lane = Lane::new(&[0, 1, 2], bed.ringer());
        let records = [1, 2].map(|tag| {
            send(&mut lane.producer, &lane.cells, (1, tag), 0).expect("there is room");
            receive(&mut lane.consumer).expect("it was just sent").cell
        });
        let (mut producer, mut consumer) = (lane.producer, lane.consumer);
        let receiver = spawn(move || {
            for cell in records {
                consumer.hand_back(cell);
                consumer.flush();
            }
        });
        wait_until_all_is_back(&mut producer, &lane.sender, &bed.sleeper);
        bed.end([receiver]);
    });
}

/// As before, with a record that is kept, and handed back by another thread.
#[test]
fn no_room_is_missed_by_two() {
    explore(Some(3), || {
        let bed = Bed::new();
        let mut lane = Lane::new(&[0, 1, 2], bed.ringer());
        let records = [1, 2].map(|tag| {
            send(&mut lane.producer, &lane.cells, (1, tag), 0).expect("there is room");
            receive(&mut lane.consumer).expect("it was just sent").cell
        });
        let threads = records.map(|cell| {
            let back = lane.consumer.back().clone();
            spawn(move || back.release_kept(cell, 1))
        });
        wait_until_all_is_back(&mut lane.producer, &lane.sender, &bed.sleeper);
        bed.end(threads);
    });
}

/// *Why no cancel is missed*: a sender that waits for room learns that nobody waits for what it sends,
/// though nothing is handed back.
#[test]
fn no_cancel_is_missed_by_a_sender_that_waits_for_room() {
    const TAG: u16 = 3;
    explore(Some(3), || {
        let bed = Bed::new();
        let mut lane = Lane::new(&[0, 1, 2], bed.ringer());
        let requests = Shared::heap(SenderBlock::new());
        let (back, caller) = (lane.consumer.back().clone(), requests.clone());
        let caller = spawn(move || {
            caller.cancel(TAG);
            back.nudge();
        });
        while !requests.is_cancelled(TAG) {
            let look = |_: &mut Producer| requests.is_cancelled(TAG);
            bed.sleeper
                .sleep_for_room(&lane.sender, None, &mut lane.producer, look);
        }
        bed.end([caller]);
    });
}

/// Waits for room, and for more room, in the steps of `Outbox`.
fn wait_until_all_is_back(producer: &mut Producer, block: &SenderBlock, sleeper: &Sleeper) {
    let collect = |producer: &mut Producer| producer.collect().expect("the receiver is honest");
    while producer.has_lent() {
        if !collect(producer) {
            sleeper.sleep_for_room(block, None, producer, collect);
        }
    }
}
