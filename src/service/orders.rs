//! Every order of the steps by which a lane and its link end, taken by real links over real sockets.
//!
//! Both quiet threads are held up, and the test takes their turns. Nothing else runs at the same time, so a step is
//! atomic, and what is gone through is each order of them: the sender sends and drops its port; the receiver takes the
//! message, drops its port and then the message; the quiet threads look at their sockets; and in between, one side ends the
//! link, breaks the protocol, or is killed.
//!
//! After each step, the sender's process asks its arena for memory of the message's size and writes over it: so memory
//! that was given back too early is seen where the message is read.
//!
//! Unsafe code is needed for that.
#![allow(unsafe_code)]

use std::any::Any;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{Shutdown, shutdown};

use super::connect::{Closer, Connected, open_lane_later};
use super::contract::Contract;
use crate::error::Fault;
use crate::lane::{Inbox, Kept, Outbox, To, complete, offer_end};
use crate::link::node::Node;
use crate::link::offer::{Asked, Offer, Port};
use crate::link::topics::tests::{Halt, Party, parties};
use crate::link::wire::Schemas;
use crate::link::{Answer, LaneId, Line, Link, lock};
use crate::memory::arena::Block;
use crate::sys::poll::is_ended;
use crate::sys::socket::Socket;
use crate::wait::{Sleeper, Waiter};

#[derive(shmbus_derive::ShmMessage)]
struct News {
    text: String,
}

const NAME: &str = "news";
/// Goes through the slab.
const LEN: usize = 20_000;
/// How often one quiet thread looks at its socket, before the end.
const TURNS: usize = 3;

/// How a link ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Not: only the ports are dropped.
    Never,
    /// One side drops its bus.
    Bye(Side),
    /// One side finds that the other broke the protocol.
    Fault(Side),
    /// The kernel ends one side.
    Killed(Side),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Sender,
    Receiver,
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Send,
    DropSender,
    Take,
    DropReceiver,
    DropMessage,
    Turn(Side),
    End,
}

/// A port that gives its one lane to the test.
struct OneLane {
    sleeper: Arc<Sleeper>,
    opened: Mutex<Option<(Inbox, Closer)>>,
}

impl Port for OneLane {
    fn accept(
        &self,
        node: &Arc<Node>,
        link: &Arc<Link>,
        id: LaneId,
        asked: Asked,
    ) -> Result<Answer, Fault> {
        let contract = Contract::one_way::<News>();
        let ends = (contract.form(), false, true);
        let offered = offer_end(node, link, &self.sleeper, ends, None, None).unwrap();
        let answer = offered.end;
        let line = Line::new(self.sleeper.clone());
        let aligns = contract.aligns();
        let ends = (&line, id);
        let joined = complete(node, link, ends, offered.near, &asked.end, aligns, true);
        let inbox = joined?.1.expect("it receives");
        assert!(link.add_lane(id, line, offered.estate, false));
        *lock(&self.opened) = Some((inbox, Closer::new(link.clone(), id)));
        Ok(Ok(answer))
    }

    fn differs(&self, _: u32, _: &Schemas) -> String {
        unreachable!("both are of this program")
    }

    fn end(&self) {}
}

/// Two processes, which have a link for each order.
struct World {
    /// Before the buses, which wait for their quiet threads.
    _halts: [Halt; 2],
    _offer: Offer,
    port: Arc<OneLane>,
    sending: Party,
    receiving: Party,
}

impl World {
    fn new() -> World {
        let [sending, receiving] = parties();
        let sleeper = receiving.0.new_sleeper(Waiter::Thread).unwrap();
        let port = Arc::new(OneLane {
            sleeper,
            opened: Mutex::default(),
        });
        let offer = receiving.0.offer(NAME, port.clone()).unwrap();
        World {
            _halts: [sending.halt(), receiving.halt()],
            _offer: offer,
            port,
            sending,
            receiving,
        }
    }

    /// A link, and a lane that is open.
    fn connect(&self) -> Pair<'_> {
        let (here, there) = Socket::pair().unwrap();
        let here = self.sending.0.adopt(here).unwrap();
        let there = self.receiving.0.adopt(there).unwrap();
        here.tend();
        there.tend();
        let sleeper = self.sending.0.new_sleeper(Waiter::Thread).unwrap();
        let line = Line::new(sleeper.clone());
        let opened = Arc::new(Mutex::new(None));
        let then = {
            let opened = opened.clone();
            move |connected| *lock(&opened) = Some(connected)
        };
        let contract = Contract::one_way::<News>();
        let ends = (sleeper, line);
        open_lane_later(
            &self.sending.0,
            &here,
            (NAME, 0),
            &contract,
            ends,
            None,
            then,
        )
        .unwrap();
        // Its announcements and the request are read in one turn.
        there.tend();
        here.tend();
        let Connected { outbox, closer, .. } = lock(&opened).take().unwrap().unwrap();
        let receiver = lock(&self.port.opened).take().unwrap();
        Pair {
            world: self,
            here,
            there,
            sender: Some((outbox, closer)),
            receiver: Some(receiver),
            message: None,
            sent: false,
            refused: false,
            taken: None,
            turns: [0; 2],
            ended: false,
            remains: Vec::new(),
        }
    }
}

/// One link, and what is left of it.
struct Pair<'a> {
    world: &'a World,
    here: Arc<Link>,
    there: Arc<Link>,
    sender: Option<(Outbox, Closer)>,
    receiver: Option<(Inbox, Closer)>,
    message: Option<Kept<News>>,
    sent: bool,
    refused: bool,
    /// Whether there was something when it was looked for.
    taken: Option<bool>,
    turns: [usize; 2],
    ended: bool,
    /// What a side that was killed had, which none of its steps drops.
    remains: Vec<Box<dyn Any>>,
}

impl Pair<'_> {
    fn link(&self, side: Side) -> &Arc<Link> {
        match side {
            Side::Sender => &self.here,
            Side::Receiver => &self.there,
        }
    }

    fn node(&self, side: Side) -> &Arc<Node> {
        match side {
            Side::Sender => &self.world.sending.0,
            Side::Receiver => &self.world.receiving.0,
        }
    }

    /// Whether a side still takes steps.
    fn lives(&self, end: End, side: Side) -> bool {
        !(self.ended && end == End::Killed(side))
    }

    /// What may happen now.
    fn next(&self, end: End) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.lives(end, Side::Sender) && self.sender.is_some() {
            steps.push(match self.sent {
                false => Step::Send,
                true => Step::DropSender,
            });
        }
        if self.lives(end, Side::Receiver) {
            steps.extend(match (self.taken, &self.receiver, &self.message) {
                (None, ..) => Some(Step::Take),
                (Some(_), Some(_), _) => Some(Step::DropReceiver),
                (Some(_), None, Some(_)) => Some(Step::DropMessage),
                (Some(_), None, None) => None,
            });
        }
        for side in [Side::Sender, Side::Receiver] {
            let has_turns = self.turns[side as usize] < TURNS;
            if self.lives(end, side) && has_turns && stirs(self.link(side), self.node(side)) {
                steps.push(Step::Turn(side));
            }
        }
        if !self.ended && end != End::Never {
            steps.push(Step::End);
        }
        steps
    }

    fn take_step(&mut self, step: Step, end: End) {
        match step {
            Step::Send => {
                let (outbox, _) = self.sender.as_mut().unwrap();
                let text = "x".repeat(LEN);
                self.sent = true;
                let sent = outbox.try_send(&News { text }, To::tag(0));
                // Where it is known that nobody receives, nothing is lent.
                assert_eq!(sent.is_err(), outbox.line().is_closed());
                self.refused = sent.is_err();
            }
            Step::DropSender => drop(self.sender.take()),
            Step::Take => {
                let (inbox, _) = self.receiver.as_mut().unwrap();
                let message = inbox.poll();
                self.taken = Some(message.is_some());
                self.message = message.map(|message| Kept::of(inbox, message).unwrap());
            }
            Step::DropReceiver => drop(self.receiver.take()),
            Step::DropMessage => drop(self.message.take()),
            Step::Turn(side) => {
                self.turns[side as usize] += 1;
                self.link(side).tend();
            }
            Step::End => {
                self.ended = true;
                match end {
                    End::Never => unreachable!("it does not end"),
                    End::Bye(side) => self.link(side).die(None),
                    End::Fault(side) => {
                        let what = "found by a test";
                        self.link(side).die(Some(Fault::Control { what }));
                    }
                    End::Killed(side) => self.kill(side),
                }
            }
        }
    }

    /// What the kernel does for a process that is killed: nothing of its own is run.
    fn kill(&mut self, side: Side) {
        let socket = self.link(side).socket().as_fd();
        shutdown(socket, Shutdown::Both).unwrap();
        let remains: Box<dyn Any> = match side {
            Side::Sender => Box::new(self.sender.take()),
            Side::Receiver => Box::new((self.receiver.take(), self.message.take())),
        };
        self.remains.push(remains);
    }

    /// Writes over all memory of the sender's of that size that is free, and looks at what was received.
    fn check(&self, end: End) {
        if self.lives(end, Side::Sender) {
            let arena = self.world.sending.0.arena();
            // As much as the lane's cells and the message take, wherever that is free.
            let blocks = [(); 3].map(|()| arena.allocate(LEN as u64).unwrap());
            blocks.iter().for_each(scribble);
        }
        if let Some(message) = &self.message {
            let is_whole = message.text.len() == LEN && message.text.bytes().all(|b| b == b'x');
            assert!(is_whole, "it was used again while it was read");
        }
    }
}

/// Overwrites memory that is ours.
fn scribble(block: &Block) {
    // SAFETY: it was just cut, so nobody else writes it, and whoever reads it is wrong.
    unsafe { block.start().as_ptr().write_bytes(b'z', block.len()) };
}

/// Whether a turn of the quiet thread does anything.
fn stirs(link: &Link, node: &Node) -> bool {
    let socket = link.socket().as_fd();
    if link.is_dead() {
        return node.link(link.token()).is_some() && is_ended(socket);
    }
    let mut polled = [PollFd::new(&socket, PollFlags::IN)];
    let now = rustix::time::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&now)).unwrap() > 0
}

impl World {
    /// Takes the steps that `choices` say, and then always the first; says how many there were each time.
    fn run(&self, end: End, choices: &[usize]) -> (Vec<usize>, Vec<Step>) {
        let mut pair = self.connect();
        let (mut widths, mut steps) = (Vec::new(), Vec::new());
        loop {
            let next = pair.next(end);
            let choice = choices.get(widths.len()).copied().unwrap_or(0);
            let Some(step) = next.get(choice) else {
                break;
            };
            widths.push(next.len());
            steps.push(*step);
            pair.take_step(*step, end);
            pair.check(end);
        }
        self.finish(pair, end, &steps);
        (widths, steps)
    }

    /// What both sides owe each other when all has been done.
    fn finish(&self, pair: Pair<'_>, end: End, steps: &[Step]) {
        let position = |wanted| steps.iter().position(|step| *step == wanted);
        let came_first = |a, b| position(a).zip(position(b)).is_some_and(|(a, b)| a < b);
        let is_lost = matches!(
            end,
            End::Fault(_) | End::Killed(Side::Receiver) | End::Bye(_)
        );
        let came = !pair.refused && came_first(Step::Send, Step::Take);
        if came && (!is_lost || came_first(Step::Take, Step::End)) {
            assert_eq!(
                pair.taken,
                Some(true),
                "what was published before is received"
            );
        }
        let Pair {
            here,
            there,
            remains,
            ..
        } = pair;
        let sides = [(&here, &self.sending.0), (&there, &self.receiving.0)];
        for _ in 0..TURNS {
            sides.iter().for_each(|(link, _)| _ = link.tend());
        }
        for (side, (link, node)) in [Side::Sender, Side::Receiver].into_iter().zip(sides) {
            let ended = end != End::Never;
            assert_eq!(link.is_dead(), ended || end == End::Killed(side));
            if end != End::Killed(side) {
                let is_known = node.link(link.token()).is_some();
                assert_eq!(is_known, !ended, "a link that ended is forgotten");
            }
        }
        drop(remains);
        // Of the links that have not ended, or whose side was killed.
        here.free();
        there.free();
    }

    fn used(&self) -> [u64; 2] {
        [&self.sending, &self.receiving].map(|party| party.0.arena().usage().1)
    }
}

/// Every order, by depth: the last choice that can be another is made another.
fn go_through(end: End) -> usize {
    let world = World::new();
    let mut choices = Vec::new();
    let used = world.used();
    let mut orders = 0;
    loop {
        let (widths, steps) = world.run(end, &choices);
        orders += 1;
        assert_eq!(world.used(), used, "something is left behind {steps:?}");
        choices.resize(widths.len(), 0);
        while let Some(last) = choices.pop() {
            if last + 1 < widths[choices.len()] {
                choices.push(last + 1);
                break;
            }
        }
        if choices.is_empty() {
            return orders;
        }
    }
}

#[test]
fn a_lane_whose_link_does_not_end() {
    assert!(go_through(End::Never) > 20);
}

#[test]
fn a_link_that_one_side_ends() {
    for side in [Side::Sender, Side::Receiver] {
        assert!(go_through(End::Bye(side)) > 200);
    }
}

#[test]
fn a_link_that_a_fault_ends() {
    for side in [Side::Sender, Side::Receiver] {
        assert!(go_through(End::Fault(side)) > 200);
    }
}

#[test]
fn a_process_that_is_killed() {
    for side in [Side::Sender, Side::Receiver] {
        assert!(go_through(End::Killed(side)) > 100);
    }
}
