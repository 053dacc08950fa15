//! When pins are freed: on lanes that say nothing more, and at the end of either side.

use std::thread;

use shmbus::{Bus, CallError, Config, Pinned, Receiver, SendError, Sender, ShmMessage};

use super::{
    Complete, Document, Edit, LINES, SIZE, check, document, edit, hand_back, used, wait_until_freed,
};
use crate::faults::Unchecked;
use crate::support::{Child, name, open, tell, together, told};

#[test]
fn a_view_that_is_dropped_holds_nothing() {
    let _together = together();
    let bus = open(&name("pinned-dropped"));
    let mut receiver = bus.receiver::<Edit>("edits").expect("nobody else does");
    let mut sender = bus.sender::<Edit>("edits").expect("a receiver is there");
    let pin = bus.pin(&document(1)).expect("there is memory");
    sender.send(&edit(&[&pin], 0)).expect("there is room");
    drop(receiver.next().expect("not forked").expect("it was sent"));
    drop(pin);
    // Also where its receiver does nothing else any more.
    assert!(used(&bus) < SIZE, "{}", used(&bus));
}

/// A bus of little memory, and pins that use up all of it.
fn full(of: &str) -> (Bus, Vec<Pinned<Document>>) {
    let config = Config {
        memory_limit: 8 << 20,
        ..Config::default()
    };
    let bus = config.open(&name(of)).expect("the bus opens");
    let mut pins = Vec::new();
    for len in [900_000, 20_000] {
        let lines = vec!["x".repeat(len)];
        let document = Document { version: 0, lines };
        let error = loop {
            match bus.pin(&document) {
                Ok(pin) => pins.push(pin),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, SendError::Memory(_)), "{error}");
    }
    (bus, pins)
}

/// Two lanes, one of which is to lend all pins, and one that needs their memory.
struct Two {
    bus: Bus,
    pins: Vec<Pinned<Document>>,
    receiver: Receiver<Edit>,
    sender: Sender<Edit>,
    other: Sender<Edit>,
    _other: Receiver<Edit>,
}

impl Two {
    fn new(of: &str) -> Two {
        let (bus, mut pins) = full(of);
        // So much is left for the lanes.
        let small = pins.split_off(pins.len() - 8);
        drop(small);
        let receiver = bus.receiver("edits").expect("nobody else does");
        let sender = bus.sender("edits").expect("a receiver is there");
        let _other = bus.receiver("other").expect("nobody else does");
        let other = bus.sender("other").expect("a receiver is there");
        Two {
            bus,
            pins,
            receiver,
            sender,
            other,
            _other,
        }
    }

    fn lend_all(&mut self) {
        let all: Vec<_> = self.pins.iter().collect();
        self.sender.send(&edit(&all, 0)).expect("there is room");
    }

    fn needs(other: &mut Sender<Edit>) -> Result<(), SendError> {
        other.try_send(&edit(&[], 800_000))
    }
}

#[test]
fn the_last_handle_frees_what_was_handed_back_on_an_idle_lane() {
    let _together = together();
    let mut two = Two::new("pinned-idle");
    // Each of one cell: such records are handed back some at a time, but for these.
    for pin in &two.pins {
        two.sender.send(&edit(&[pin], 0)).expect("there is room");
        drop(
            two.receiver
                .next()
                .expect("not forked")
                .expect("it was sent"),
        );
    }
    let error = Two::needs(&mut two.other).expect_err("no memory is left");
    assert!(matches!(error, SendError::Memory(_)), "{error}");
    // The lane on which they were lent says nothing more.
    two.pins.clear();
    Two::needs(&mut two.other).expect("there is memory");
    assert!(two.bus.take_incidents().is_empty());
}

#[test]
fn what_comes_back_later_to_an_idle_lane_is_freed() {
    let _together = together();
    let mut two = Two::new("pinned-later");
    two.lend_all();
    let view = two
        .receiver
        .next()
        .expect("not forked")
        .expect("it was sent");
    two.pins.clear();
    let error = Two::needs(&mut two.other).expect_err("no memory is left");
    assert!(matches!(error, SendError::Memory(_)), "{error}");
    drop(view);
    // Nobody does anything but the quiet thread.
    while Two::needs(&mut two.other).is_err() {
        thread::yield_now();
    }
}

/// A part: an editor that sends what its user then kills it with.
pub(crate) fn edits(name: &str) {
    let bus = open(name);
    let mut sender = bus.sender::<Edit>("edits").expect("a receiver is there");
    let mut pins = Vec::new();
    for version in 0..4 {
        let pin = bus.pin(&document(version)).expect("there is memory");
        sender.send(&edit(&[&pin], 100)).expect("there is room");
        pins.push(pin);
    }
    tell("sent");
    while told().is_some() {}
}

#[test]
fn what_the_dead_pinned_stays_readable_while_it_is_held() {
    let _together = together();
    let name = name("pinned-death");
    let bus = open(&name);
    let mut receiver = bus.receiver::<Edit>("edits").expect("nobody else does");
    let mut child = Child::start("edits", &[&name]);
    let mut next = || {
        receiver
            .next()
            .expect("not forked")
            .expect("it was sent")
            .keep()
    };
    let (opened, unopened) = (next(), next());
    check(&opened.documents[0], &opened, 0);
    let view = receiver.next().expect("not forked").expect("it was sent");
    let document = view.documents[0].open(&view).expect("it is kept");
    assert_eq!(child.hear(), "sent");
    child.kill();
    assert_eq!(document.lines.len(), LINES);
    drop(document);
    check(&view.documents[0], &view, 2);
    drop(view);
    // What was published before its end is there, and opens.
    {
        let last = receiver.next().expect("not forked").expect("it was sent");
        check(&last.documents[0], &last, 3);
    }
    hand_back(&mut receiver);
    drop(receiver);
    check(&opened.documents[0], &opened, 0);
    // Also what is looked at for the first time when all else of its process is gone.
    check(&unopened.documents[0], &unopened, 1);
}

/// A part: an engine that holds all that it is asked.
pub(crate) fn holds_requests(name: &str) {
    let bus = open(name);
    let server = bus.async_server::<Complete>().expect("nobody else serves");
    let mut receiver = bus.receiver::<Edit>("edits").expect("nobody else does");
    tell("serves");
    let call = server.next();
    let call = pollster::block_on(call).expect("not forked").expect("open");
    let edit = receiver.next().expect("not forked").expect("it was sent");
    check(&call.document, &call, 1);
    check(&edit.documents[0], &edit, 2);
    tell("holds");
    while told().is_some() {}
}

#[test]
fn what_the_dead_held_comes_back() {
    let _together = together();
    let name = name("pinned-holder");
    let bus = open(&name);
    let mut child = Child::start("holds-requests", &[&name]);
    assert_eq!(child.hear(), "serves");
    let client = bus.async_client::<Complete>().expect("it is served");
    let mut sender = bus.sender::<Edit>("edits").expect("a receiver is there");
    let (first, second) = (bus.pin(&document(1)), bus.pin(&document(2)));
    let (first, second) = (first.expect("memory"), second.expect("memory"));
    let request = Complete {
        document: first,
        line: 0,
    };
    let calling = thread::spawn(move || client.call(&request).wait().err());
    sender
        .send(&edit(&[&second], 3_000))
        .expect("there is room");
    drop(second);
    assert_eq!(child.hear(), "holds");
    assert!(used(&bus) > 2 * SIZE);
    child.kill();
    let error = calling.join().expect("it does not panic");
    assert!(matches!(error, Some(CallError::Lost { .. })), "{error:?}");
    wait_until_freed(&bus, || {});
}

#[test]
fn a_bus_that_ends_leaves_what_is_held() {
    let _together = together();
    let name = name("pinned-end");
    let (there, here) = (open(&name), open(&name));
    let mut receiver = here.receiver::<Edit>("edits").expect("nobody else does");
    let mut sender = there.sender::<Edit>("edits").expect("a receiver is there");
    let pin = there.pin(&document(5)).expect("there is memory");
    sender.send(&edit(&[&pin], 0)).expect("there is room");
    let kept = receiver
        .next()
        .expect("not forked")
        .expect("it was sent")
        .keep();
    drop((sender, there));
    check(&kept.documents[0], &kept, 5);
    drop((receiver, here));
    check(&kept.documents[0], &kept, 5);
    drop(pin);
    check(&kept.documents[0], &kept, 5);
}

#[derive(ShmMessage)]
#[shm(service = "pinned-flags", reply = Flagged)]
struct Flag {
    document: Pinned<Document>,
    padding: Vec<u8>,
}

#[derive(ShmMessage)]
struct Flagged {
    document: Pinned<Document>,
    padding: Vec<u8>,
    #[rkyv(with = Unchecked)]
    flag: u8,
}

/// Each side has lent what the other never handed back, and each lives on, with its bus.
#[test]
fn a_link_with_lanes_both_ways_that_ends_by_a_fault_keeps_nothing() {
    let _together = together();
    let name = name("pinned-fault");
    let (there, here) = (open(&name), open(&name));
    let mut server = there.server::<Flag>().expect("nobody else serves");
    let client = here.async_client::<Flag>().expect("it is served");
    let requests: Vec<_> = (0..3)
        .map(|version| Flag {
            document: here.pin(&document(version)).expect("there is memory"),
            padding: vec![0; 600_000],
        })
        .collect();
    let mut pending: Vec<_> = requests.iter().map(|flag| client.call(flag)).collect();
    let call = server.next().expect("not forked").expect("it was sent");
    let no_bool = Flagged {
        document: there.pin(&document(4)).expect("there is memory"),
        padding: vec![0; 600_000],
        flag: 2,
    };
    call.reply(&no_bool).expect("it fits");
    let unanswered = server.next().expect("not forked").expect("it was sent");
    let error = pending.remove(0).wait().err();
    assert!(matches!(error, Some(CallError::Lost { .. })), "{error:?}");
    drop((unanswered, no_bool));
    drop(pending);
    drop(requests);
    assert!(used(&here) > 3 * SIZE && used(&there) > SIZE);
    drop(client);
    drop(server);
    wait_until_freed(&here, || {});
    wait_until_freed(&there, || {});
}
