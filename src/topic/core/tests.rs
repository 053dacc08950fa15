//! Cores of publishers, with peers that are held up where a test wants them to be.
//!
//! Unsafe code is allowed because the derives of rkyv emit it.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::Wake;

use super::lanes::MOST_OPENING;
use super::*;
use crate::error::{ConnectError, Fault};
use crate::lane::Packer;
use crate::link::member::Part;
use crate::link::offer::{Asked, Offer, Port};
use crate::link::topics::tests::{Party, parties};
use crate::link::wire::{Control, Refusal, Schemas};
use crate::link::{Answer, LaneId, Line, Link};
use crate::message::Nothing;
use crate::service::client::give_back;
use crate::service::connect::open_lane_later;
use crate::service::hub::Hub;
use crate::service::port::HubPort;
use crate::wait::{Wait, Waiter};

const TOPIC: &str = "news";
/// Only what hangs takes so long.
const WATCHDOG: Duration = Duration::from_secs(60);

#[derive(shmbus_derive::ShmMessage)]
struct News {
    number: u64,
    text: String,
}

/// In a cell, or in a block.
fn news(number: u64, is_large: bool) -> News {
    let text = "x".repeat(if is_large { 5_000 } else { 0 });
    News { number, text }
}

impl Party {
    fn subscribe(&self) -> (Arc<HubPort>, Offer) {
        let contract = Contract::topic::<News>();
        let port = HubPort::new(&self.0, TOPIC, contract, Waiter::Thread).unwrap();
        let offer = self.offer(port.clone());
        (port, offer)
    }

    fn offer(&self, port: Arc<dyn Port>) -> Offer {
        let joined = self.0.join_topic(TOPIC, Part::Subscriber, Some(port));
        joined.unwrap().1
    }

    /// As a publisher begins, but for the waiting, and without a look at who is there.
    fn begin(&self, contract: Contract, delivery: Delivery) -> (Arc<Core>, Offer) {
        let node = &self.0;
        let sleeper = node.new_sleeper(Waiter::Tasks).unwrap();
        let joined = node.join_topic(TOPIC, Part::Publisher, None);
        let (member, offer) = joined.unwrap();
        let core = Core::new(
            node,
            member.number,
            contract,
            sleeper.clone(),
            (delivery, 0),
            None,
        );
        sleeper.attach(Arc::downgrade(&core) as Weak<_>, node.due().clone());
        node.follow(TOPIC, Part::Subscriber, Arc::downgrade(&core) as Weak<_>);
        (core, offer)
    }

    fn publish(&self, delivery: Delivery) -> (Arc<Core>, Offer) {
        let (core, offer) = self.begin(Contract::topic::<News>(), delivery);
        for member in self.0.members(TOPIC, Part::Subscriber).unwrap() {
            core.clone().found(&self.0, &member);
        }
        (core, offer)
    }
}

/// Waits for what other threads are about to do.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < WATCHDOG, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Says so much to a peer that does not read that its socket takes no more.
fn fill_socket(core: &Core) {
    let link = lock(&core.state).lanes[0].outbox.link().clone();
    while link.flush() {
        link.say(&Control::Ring { bell: u32::MAX }).unwrap();
    }
}

fn pack(packer: &mut Packer, message: &News) -> Parcel {
    packer.pack(message, || {}).unwrap()
}

/// Takes all that has come and was missed: how many that is.
fn take(hub: &mut Hub) -> u64 {
    let mut all = 0;
    while let Some((lane, message)) = hub.try_next() {
        let inbox = hub.lane_mut(lane).inbox.get_mut();
        give_back(inbox, &message);
        all += match message.record.role {
            crate::lane::Role::Missed => message.record.number,
            _ => 1,
        };
    }
    all
}

#[test]
fn lanes_whose_peer_does_not_read_have_one_timer_together() {
    const SENT: u64 = 1_000;
    let [here, there] = parties();
    let subscribers = [there.subscribe(), there.subscribe()];
    let (core, _offer) = here.publish(Delivery::Lossy);
    until("both join", || core.subscribers() == 2);
    let halt = there.halt();
    fill_socket(&core);
    let mut packer = Packer::new::<News>(&here.0);
    for number in 0..SENT {
        let published = core.publish(&pack(&mut packer, &news(number, true)));
        assert!(published.unwrap(), "it never waits");
        let timers = here.0.due().timers_set();
        assert!(timers <= 1, "{timers} timers after {number} messages");
    }
    drop(halt);
    for (port, _) in &subscribers {
        let mut hub = Hub::new(port.clone(), Wait::Park);
        let mut all = 0;
        until("all is told", || {
            all += take(&mut hub);
            all == SENT
        });
    }
}

/// A ring comes for a lane that is full: no timer is needed, whatever was stuck before.
#[test]
fn a_lane_that_is_full_has_no_timer() {
    let [here, there] = parties();
    let _subscriber = there.subscribe();
    let (core, _offer) = here.publish(Delivery::Reliable);
    until("it joins", || core.subscribers() == 1);
    let _halt = there.halt();
    fill_socket(&core);
    let mut packer = Packer::new::<News>(&here.0);
    let large = pack(&mut packer, &news(0, true));
    assert!(
        !core.publish(&large).unwrap(),
        "its segment is not known there"
    );
    let small = pack(&mut packer, &news(0, false));
    while core.publish(&small).unwrap() {}
    let (mut place, waker) = (Place::default(), Waker::noop());
    let published = core.publish_or_wait(&small, &mut place, waker);
    assert!(!published.unwrap());
    assert_eq!(here.0.due().timers_set(), 0);
    core.leave(&mut place);
}

/// Refuses who asks, when told to; says that somebody did.
struct Refuses(Mutex<(Sender<()>, Receiver<Refusal>)>);

impl Port for Refuses {
    fn accept(&self, _: &Arc<Node>, _: &Arc<Link>, _: LaneId, _: Asked) -> Result<Answer, Fault> {
        let (asks, goes) = &*lock(&self.0);
        let _ = asks.send(());
        Ok(Err(goes.recv().unwrap_or(Refusal::NoServer)))
    }

    fn differs(&self, _: u32, _: &Schemas) -> String {
        "it has none".to_owned()
    }

    fn end(&self) {}
}

/// One goes and another comes under its name, while the publisher's request for the first is on its way.
#[test]
fn who_comes_under_a_name_that_is_being_refused_is_asked_too() {
    let none = Schemas {
        request: Vec::new(),
        answers: Vec::new(),
    };
    for refusal in [Refusal::NoServer, Refusal::Layout(none)] {
        let [here, there] = parties();
        let (core, _offer) = here.publish(Delivery::Reliable);
        let ((asks, asked), (go, goes)) = (channel(), channel());
        let _offer = there.offer(Arc::new(Refuses(Mutex::new((asks, goes)))));
        asked.recv_timeout(WATCHDOG).expect("the first is asked");
        let member = Member::new(TOPIC, Part::Subscriber, 0);
        core.clone().found(&here.0, &member);
        go.send(refusal).unwrap();
        asked.recv_timeout(WATCHDOG).expect("the second is asked");
        go.send(Refusal::NoServer).unwrap();
        // Nobody came since: it is over.
        until("it is given up", || {
            let state = lock(&core.state);
            state.opening.is_empty() && state.unreached.is_empty()
        });
    }
}

/// Does something for long when it is dropped.
struct Lingers(Option<Box<dyn FnOnce() + Send>>);

impl Drop for Lingers {
    fn drop(&mut self) {
        self.0.take().expect("it is dropped once")();
    }
}

/// A link that is about to end closes the lines that it has, and takes one more for a moment.
#[test]
fn a_lane_over_a_link_that_is_about_to_end_is_not_opened() {
    let [here, there] = parties();
    let _subscriber = there.subscribe();
    let (core, _offer) = here.publish(Delivery::Reliable);
    until("it joins", || core.subscribers() == 1);
    let link = lock(&core.state).lanes[0].outbox.link().clone();
    let ((ends, ending), (go, goes)) = (channel(), channel::<()>());
    let lingers = Lingers(Some(Box::new(move || {
        let _ = ends.send(());
        let _ = goes.recv();
    })));
    let id = link.new_lane(Line::new(core.sleeper.clone()), Vec::new());
    link.answer_later(id, Box::new(move |_| drop(lingers)));
    let dying = std::thread::spawn({
        let link = link.clone();
        move || link.die(None)
    });
    ending.recv_timeout(WATCHDOG).expect("it ends");
    let line = Line::new(core.sleeper.clone());
    let name = Member::new(TOPIC, Part::Subscriber, 0).name();
    let ends = (core.sleeper.clone(), line.clone());
    let opened = open_lane_later(
        &here.0,
        &link,
        (&name, 0),
        &core.contract,
        ends,
        None,
        |_| unreachable!("nobody answers"),
    );
    assert!(matches!(opened, Err(ConnectError::Lost { .. })) || line.is_closed());
    drop(go);
    dying.join().unwrap();
    until("it joins over another link", || core.subscribers() == 1);
}

/// Who is not reached over a link that ends is there, perhaps: over another link.
#[test]
fn who_is_lost_with_a_link_is_looked_for_again() {
    let [here, there] = parties();
    let _subscriber = there.subscribe();
    let (core, _offer) = here.begin(Contract::topic::<News>(), Delivery::Reliable);
    let key = (u64::MAX, Member::new(TOPIC, Part::Subscriber, 0));
    let fault = None;
    core.joined(
        &key,
        Err(ConnectError::Lost {
            pid: 0,
            fault,
            ended: None,
        }),
    );
    until("it joins", || core.subscribers() == 1);
}

/// Nobody waits for a publisher of another layout, whose messages never come.
#[test]
fn a_publisher_of_another_layout_is_not_waited_for() {
    let [here, there] = parties();
    let (_core, _offer) = here.begin(Contract::topic::<Nothing>(), Delivery::Reliable);
    let (port, _subscriber) = there.subscribe();
    let begun = Instant::now();
    port.wait_for_publishers(Duration::from_secs(3600), || {
        assert!(begun.elapsed() < WATCHDOG, "it is waited for");
        Ok(vec![0])
    })
    .unwrap();
}

/// A process with many names costs no more memory than those that answer need.
#[test]
fn few_lanes_at_a_time_are_opened_over_a_link() {
    const MANY: usize = 3 * MOST_OPENING + 7;
    for link_ends in [false, true] {
        let [here, there] = parties();
        let _subscribers = [(); MANY].map(|()| there.subscribe());
        let halt = there.halt();
        let (core, _offer) = here.publish(Delivery::Reliable);
        let link = {
            let state = lock(&core.state);
            assert_eq!(state.opening.len(), MOST_OPENING);
            assert_eq!(state.behind.len(), MANY - MOST_OPENING);
            here.0.link(state.opening[0].key.0).expect("it stands")
        };
        if link_ends {
            link.die(None);
        }
        drop(halt);
        until("all join", || core.subscribers() == MANY);
        until("all are asked", || !lock(&core.state).is_joining());
    }
}

#[test]
fn who_was_to_be_asked_and_is_gone_is_forgotten() {
    let [here] = parties();
    let (core, _offer) = here.begin(Contract::topic::<News>(), Delivery::Reliable);
    let gone = |number| (u64::MAX, Member::new(TOPIC, Part::Subscriber, number));
    let many = 2 * MOST_OPENING as u32 + 1;
    lock(&core.state).behind.extend((0..many).map(gone));
    assert!(core.drive(), "some are left");
    assert!(core.drive(), "one is left");
    assert!(!core.drive());
    assert!(!lock(&core.state).is_joining());
}

/// However often somebody comes who cannot be reached at the moment, as where its socket is too busy.
#[test]
fn who_is_not_reached_has_one_timer() {
    let [here] = parties();
    let (core, _offer) = here.begin(Contract::topic::<News>(), Delivery::Reliable);
    let _halt = here.halt();
    for number in [0, 0, 1, 1, 0, 1] {
        core.unreached(&Member::new(TOPIC, Part::Subscriber, number), true, None);
    }
    assert_eq!(here.0.due().timers_set(), 2);
}

struct Counting(AtomicUsize);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whoever reads a link holds its lock: a waker may do anything, as to read it.
#[test]
fn nobody_is_woken_by_who_reads_a_link() {
    let [here, there] = parties();
    let _subscriber = there.subscribe();
    let (core, _offer) = here.publish(Delivery::Reliable);
    until("it joins", || core.subscribers() == 1);
    let mut packer = Packer::new::<News>(&here.0);
    let small = pack(&mut packer, &news(0, false));
    while core.publish(&small).unwrap() {}
    let halt = here.halt();
    let counting = Arc::new(Counting(AtomicUsize::new(0)));
    let (mut place, waker) = (Place::default(), Waker::from(counting.clone()));
    let published = core.publish_or_wait(&small, &mut place, &waker);
    assert!(!published.unwrap());
    let gone = (u64::MAX, Member::new(TOPIC, Part::Subscriber, 1));
    // As the reader of a link does, which the quiet thread is not for now.
    core.joined(
        &gone,
        Err(ConnectError::Lost {
            pid: 0,
            fault: None,
            ended: None,
        }),
    );
    assert_eq!(counting.0.load(Ordering::Relaxed), 0);
    drop(halt);
    until("it is woken", || counting.0.load(Ordering::Relaxed) == 1);
    core.leave(&mut place);
}
