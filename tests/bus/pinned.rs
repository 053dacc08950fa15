//! Messages that others refer to: who keeps them alive, on every port.

pub(crate) mod ends;
mod forged;

use std::thread;
use std::time::Duration;

use shmbus::{
    ArchivedPinned, Bus, Bytes, CallError, Incoming, PinError, Pinned, Publishing, Receiver,
    SendError, ShmMessage,
};

use crate::support::{name, open, together};

/// What is pinned: larger than all else that these tests have in the slab.
#[derive(ShmMessage, Clone, Debug, PartialEq)]
pub(crate) struct Document {
    pub(crate) version: u64,
    pub(crate) lines: Vec<String>,
}

/// A request that refers to it, in one cell.
#[derive(ShmMessage, Clone)]
#[shm(service = "complete", reply = Completed, stream = Found, error = Refused)]
pub(crate) struct Complete {
    document: Pinned<Document>,
    line: u32,
}

#[derive(ShmMessage)]
pub(crate) struct Completed {
    text: String,
    /// A document of the server's own.
    document: Option<Pinned<Document>>,
}

#[derive(ShmMessage)]
pub(crate) struct Found {
    line: u32,
    document: Pinned<Document>,
}

#[derive(ShmMessage, Debug, PartialEq)]
pub(crate) struct Refused {
    document: Pinned<Document>,
}

/// A message that refers to documents, of any size, on a lane or a topic.
#[derive(ShmMessage, Clone)]
#[shm(topic = "edits")]
pub(crate) struct Edit {
    pub(crate) documents: Vec<Pinned<Document>>,
    pub(crate) padding: Vec<u8>,
}

const LINES: usize = 16_384;
pub(crate) const SIZE: u64 = 500_000;

pub(crate) fn document(version: u64) -> Document {
    let line = |number| format!("this is line {number} of version {version}");
    let lines = (0..LINES).map(line).collect();
    Document { version, lines }
}

pub(crate) fn edit(documents: &[&Pinned<Document>], padding: usize) -> Edit {
    Edit {
        documents: documents
            .iter()
            .map(|document| (*document).clone())
            .collect(),
        padding: vec![7; padding],
    }
}

/// Opens a pin, and looks at its beginning and its end.
fn check(handle: &ArchivedPinned<Document>, message: &impl Incoming, version: u64) {
    let document = handle.open(message).expect("it is kept");
    assert_eq!(document.version, version);
    assert_eq!(document.lines.len(), LINES);
    let last = format!("this is line {} of version {version}", LINES - 1);
    assert_eq!(document.lines[LINES - 1].as_str(), last);
}

fn used(bus: &Bus) -> u64 {
    bus.memory().1
}

/// Waits until no document is in the memory of this bus; where it stays, the watchdog ends the test.
fn wait_until_freed(bus: &Bus, mut meanwhile: impl FnMut()) {
    while used(bus) > SIZE {
        meanwhile();
        thread::sleep(Duration::from_millis(1));
    }
}

/// Has a receiver hand back what it gathered.
fn hand_back<T: ShmMessage>(receiver: &mut Receiver<T>) {
    let next = receiver.next_timeout(Duration::from_millis(1));
    assert!(next.expect("not forked").is_none(), "nothing more was sent");
}

#[test]
fn many_requests_refer_to_one_document() {
    let _together = together();
    let bus = open(&name("pinned-requests"));
    let mut server = bus.server::<Complete>().expect("nobody else serves");
    let serving = thread::spawn(move || {
        while let Some(call) = server.next().expect("not forked") {
            let text = {
                let document = call.document.open(&call).expect("it is kept");
                let line = &document.lines[call.line.to_native() as usize];
                line.as_str().to_owned()
            };
            let document = None;
            call.reply(&Completed { text, document }).expect("it fits");
        }
    });
    let client = bus.client::<Complete>().expect("it is served");
    for version in 0..20 {
        let document = bus.pin(&document(version)).expect("there is memory");
        assert!(used(&bus) > SIZE);
        assert!(
            used(&bus) < 3 * SIZE,
            "older versions are gone: {}",
            used(&bus)
        );
        for line in 0..100 {
            let document = document.clone();
            let reply = client.call(&Complete { document, line });
            let wanted = format!("this is line {line} of version {version}");
            assert_eq!(reply.expect("it is answered").text.as_str(), wanted);
        }
    }
    // The lane says nothing more, and the server hands back before it sleeps.
    wait_until_freed(&bus, || {});
    bus.close();
    serving.join().expect("it does not panic");
}

#[test]
fn a_message_keeps_what_it_refers_to() {
    let _together = together();
    let (there, here) = (open(&name("pinned-message")), open(&name("pinned-message")));
    let mut receiver = here.receiver::<Edit>("edits").expect("nobody else does");
    let mut sender = there.sender::<Edit>("edits").expect("a receiver is there");
    // In one cell, in many, and in the slab.
    for padding in [0, 1_000, 20_000] {
        let pins: Vec<_> = (0..3)
            .map(|version| there.pin(&document(version)).expect("there is memory"))
            .collect();
        for pin in &pins {
            sender.send(&edit(&[pin], padding)).expect("there is room");
        }
        let all: Vec<_> = pins.iter().collect();
        sender.send(&edit(&all, padding)).expect("there is room");
        drop(pins);
        for version in 0..3 {
            let edit = receiver.next().expect("not forked").expect("it was sent");
            check(&edit.documents[0], &edit, version);
        }
        // Other messages of the lane say nothing of this one.
        {
            let edit = receiver.next().expect("not forked").expect("it was sent");
            for (pin, version) in edit.documents.iter().zip(0..) {
                check(pin, &edit, version);
            }
            assert!(used(&there) > 3 * SIZE, "{}", used(&there));
        }
        wait_until_freed(&there, || hand_back(&mut receiver));
    }
    // What the sending end leaves behind is kept like that, too.
    let pin = there.pin(&document(9)).expect("there is memory");
    sender.send(&edit(&[&pin], 0)).expect("there is room");
    drop((pin, sender));
    {
        let edit = receiver.next().expect("not forked").expect("it was sent");
        assert!(used(&there) > SIZE);
        check(&edit.documents[0], &edit, 9);
    }
    wait_until_freed(&there, || hand_back(&mut receiver));
}

#[test]
fn a_handle_keeps_the_document_that_no_message_refers_to() {
    let _together = together();
    let bus = open(&name("pinned-handle"));
    let mut receiver = bus.receiver::<Edit>("edits").expect("nobody else does");
    let mut sender = bus.sender::<Edit>("edits").expect("a receiver is there");
    let pin = bus.pin(&document(1)).expect("there is memory");
    let clone = pin.clone();
    drop(pin);
    // As many messages as use each cell of the ring some times.
    for _ in 0..2_000 {
        sender.send(&edit(&[&clone], 0)).expect("there is room");
        let edit = receiver.next().expect("not forked").expect("it was sent");
        check(&edit.documents[0], &edit, 1);
    }
    assert!(used(&bus) > SIZE);
    drop(clone);
    wait_until_freed(&bus, || hand_back(&mut receiver));
}

#[test]
fn answers_items_and_errors_refer_to_documents() {
    let _together = together();
    let (there, here) = (open(&name("pinned-answers")), open(&name("pinned-answers")));
    let mut server = there.server::<Complete>().expect("nobody else serves");
    let serving = {
        let bus = there.clone();
        thread::spawn(move || {
            while let Some(call) = server.next().expect("not forked") {
                let version = call.document.open(&call).expect("it is kept").version;
                let own = bus.pin(&document(version.to_native() + 1));
                let own = own.expect("there is memory");
                match call.line.to_native() {
                    0 => call.fail(&Refused { document: own }).expect("it fits"),
                    lines => {
                        for line in 0..lines {
                            let document = own.clone();
                            call.send(&Found { line, document }).expect("it fits");
                        }
                        let (text, document) = (String::new(), Some(own));
                        call.reply(&Completed { text, document }).expect("it fits");
                    }
                }
            }
        })
    };
    let client = here.client::<Complete>().expect("it is served");
    let pin = here.pin(&document(1)).expect("there is memory");
    let complete = |line| Complete {
        document: pin.clone(),
        line,
    };
    let mut items = client.stream(&complete(50)).expect("it is sent");
    for (line, found) in (0..50).zip(&mut items) {
        let found = found.expect("it is answered");
        assert_eq!(found.line, line);
        check(&found.document, &found, 2);
    }
    let reply = items.finish().expect("it is answered");
    let document = reply.document.as_ref().expect("it has one");
    check(document, &reply, 2);
    assert!(used(&there) > SIZE);
    // It outlives the port.
    let kept = reply.keep();
    let other = client.try_clone().expect("it is served");
    drop(client);
    check(kept.document.as_ref().expect("it has one"), &kept, 2);
    drop(kept);
    wait_until_freed(&there, || {});

    let error = other.call(&complete(0)).err().expect("it is refused");
    let CallError::Service(refused) = error else {
        panic!("{error}");
    };
    assert_ne!(refused.document, pin);
    wait_until_freed(&there, || {});
    // What came in a message is its sender's to send.
    let document = refused.document.clone();
    let error = other.call(&Complete { document, line: 1 }).err();
    let error = error.expect("it is another's");
    assert!(
        matches!(error, CallError::Send(SendError::Encode { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("another bus"), "{error}");
    drop(pin);
    wait_until_freed(&here, || {});
    there.close();
    serving.join().expect("it does not panic");
}

#[test]
fn tasks_refer_to_documents() {
    let _together = together();
    let (there, here) = (open(&name("pinned-tasks")), open(&name("pinned-tasks")));
    let bus = there.clone();
    let serving = there.serve::<Complete, _>(2, move |call| {
        check(&call.document, call, 1);
        let document = Some(bus.pin(&document(2)).expect("there is memory"));
        let text = String::new();
        Ok(Completed { text, document })
    });
    let serving = serving.expect("nobody else serves");
    let client = here.async_client::<Complete>().expect("it is served");
    let document = here.pin(&document(1)).expect("there is memory");
    let complete = Complete { document, line: 1 };
    let mut kept = Vec::new();
    for _ in 0..20 {
        let reply = client.call(&complete).wait().expect("it is answered");
        check(reply.document.as_ref().expect("it has one"), &reply, 2);
        kept.push(reply);
    }
    assert!(used(&there) > 20 * SIZE, "{}", used(&there));
    for reply in &kept {
        check(reply.document.as_ref().expect("it has one"), reply, 2);
    }
    kept.truncate(1);
    while used(&there) > 2 * SIZE {
        thread::yield_now();
    }
    check(kept[0].document.as_ref().expect("it has one"), &kept[0], 2);
    drop((kept, complete));
    wait_until_freed(&there, || {});
    wait_until_freed(&here, || {});
    drop(serving);
}

/// Far more than the cells that the lane of requests starts with.
#[test]
fn a_server_of_tasks_holds_many_requests() {
    const MANY: u32 = 400;
    let _together = together();
    let (there, here) = (open(&name("pinned-many")), open(&name("pinned-many")));
    let server = there
        .async_server::<Complete>()
        .expect("nobody else serves");
    let serving = thread::spawn(move || {
        let next = || pollster::block_on(server.next()).expect("not forked");
        let calls: Vec<_> = (0..MANY).map(|_| next().expect("open")).collect();
        for call in calls {
            check(&call.document, &call, 1);
            let (text, document) = (call.line.to_native().to_string(), None);
            call.reply(&Completed { text, document }).expect("it fits");
        }
    });
    let client = here.client::<Complete>().expect("it is served");
    let document = here.pin(&document(1)).expect("there is memory");
    let streams: Vec<_> = (0..MANY)
        .map(|line| {
            let document = document.clone();
            client
                .stream(&Complete { document, line })
                .expect("it is sent")
        })
        .collect();
    drop(document);
    for (stream, line) in streams.into_iter().zip(0..MANY) {
        let reply = stream.finish().expect("it is answered");
        assert_eq!(reply.text.as_str(), line.to_string());
    }
    serving.join().expect("it does not panic");
    wait_until_freed(&here, || {});
}

#[test]
fn subscribers_share_documents() {
    let _together = together();
    let (there, here) = (open(&name("pinned-topic")), open(&name("pinned-topic")));
    let mut publisher = there.publisher::<Edit>().expect("it joins");
    let mut first = here.subscriber::<Edit>().expect("it joins");
    let second = here.async_subscriber::<Edit>().expect("it joins");
    for padding in [0, 300, 20_000] {
        for version in 0..10 {
            let pin = there.pin(&document(version)).expect("there is memory");
            publisher
                .publish(&edit(&[&pin], padding))
                .expect("there is room");
            drop(pin);
            let edit = first.next().expect("nothing is missed");
            let edit = edit.expect("the bus is open");
            check(&edit.documents[0], &edit, version);
            drop(edit);
            let kept = second.next().wait().expect("nothing is missed");
            let kept = kept.expect("the bus is open");
            assert!(used(&there) > SIZE, "the second one has it");
            check(&kept.documents[0], &kept, version);
        }
        wait_until_freed(&there, || {
            let next = first.next_timeout(Duration::from_millis(1));
            assert!(next.expect("nothing is missed").is_none());
            assert!(second.try_next().expect("nothing is missed").is_none());
        });
    }
}

#[test]
fn who_comes_late_finds_what_the_history_refers_to() {
    let _together = together();
    let bus = open(&name("pinned-history"));
    let how = Publishing {
        history: 1,
        ..Publishing::default()
    };
    let mut publisher = bus.publisher_as::<Edit>(how).expect("it joins");
    for version in 0..3 {
        let pin = bus.pin(&document(version)).expect("there is memory");
        publisher.publish(&edit(&[&pin], 0)).expect("there is room");
    }
    assert!(used(&bus) > SIZE && used(&bus) < 2 * SIZE, "{}", used(&bus));
    let mut late = bus.subscriber::<Edit>().expect("it joins");
    let edit = late.next().expect("nothing is missed").expect("open");
    // From here on, nothing but this message keeps it.
    drop(publisher);
    assert!(used(&bus) > SIZE, "{}", used(&bus));
    check(&edit.documents[0], &edit, 2);
    drop(edit);
    wait_until_freed(&bus, || {
        let next = late.next_timeout(Duration::from_millis(1));
        assert!(next.expect("nothing is missed").is_none());
    });
}

#[test]
fn a_small_message_that_is_kept_keeps_its_document() {
    let _together = together();
    let (there, here) = (open(&name("pinned-kept")), open(&name("pinned-kept")));
    let mut receiver = here.receiver::<Edit>("edits").expect("nobody else does");
    let mut sender = there.sender::<Edit>("edits").expect("a receiver is there");
    let pin = there.pin(&document(1)).expect("there is memory");
    for padding in [0, 500] {
        sender.send(&edit(&[&pin], padding)).expect("there is room");
    }
    drop(pin);
    let small = receiver
        .next()
        .expect("not forked")
        .expect("it was sent")
        .keep();
    let wide = receiver
        .next()
        .expect("not forked")
        .expect("it was sent")
        .keep();
    // The records of both are gone around.
    for _ in 0..1_000 {
        sender.send(&edit(&[], 0)).expect("there is room");
        drop(receiver.next().expect("not forked").expect("it was sent"));
    }
    check(&small.documents[0], &small, 1);
    drop(small);
    drop((receiver, sender));
    assert!(used(&there) > SIZE, "the other one has it");
    let thread = thread::spawn(move || check(&wide.documents[0], &wide, 1));
    thread.join().expect("it does not panic");
    wait_until_freed(&there, || {});
}

#[test]
fn a_document_is_pinned_around_a_loan() {
    #[derive(ShmMessage)]
    struct Picture {
        name: String,
        pixels: Bytes,
    }
    #[derive(ShmMessage)]
    struct Show {
        picture: Pinned<Picture>,
        thumbnail: Bytes,
    }
    const LEN: usize = SIZE as usize;
    let _together = together();
    let bus = open(&name("pinned-loan"));
    let mut receiver = bus.receiver::<Show>("all").expect("nobody else does");
    let mut sender = bus.sender::<Show>("all").expect("a receiver is there");
    let mut pixels = sender.loan_bytes(LEN).expect("there is memory");
    pixels.fill(3);
    let name = "sunset".to_owned();
    let picture = Picture { name, pixels };
    let before = used(&bus);
    let pin = bus.pin(&picture).expect("there is memory");
    assert_eq!(used(&bus), before, "nothing was copied");
    assert!(!picture.pixels.is_in_place());
    drop(picture);
    // A message may have both.
    let mut thumbnail = sender.loan_bytes(30_000).expect("there is memory");
    thumbnail.fill(4);
    let show = Show {
        picture: pin,
        thumbnail,
    };
    sender.send(&show).expect("there is room");
    assert!(!show.thumbnail.is_in_place());
    drop(show);
    {
        let show = receiver.next().expect("not forked").expect("it was sent");
        assert!(show.thumbnail.iter().all(|byte| *byte == 4));
        let picture = show.picture.open(&show).expect("it is kept");
        assert_eq!(picture.name, "sunset");
        assert_eq!(picture.pixels.len(), LEN);
        assert!(picture.pixels.iter().all(|byte| *byte == 3));
    }
    wait_until_freed(&bus, || hand_back(&mut receiver));
}

#[test]
fn pins_of_another_bus_and_pins_of_pins_are_refused() {
    let _together = together();
    let (here, there) = (open(&name("pins-here")), open(&name("pins-there")));
    let mut receiver = here.receiver::<Edit>("edits").expect("nobody else does");
    let mut sender = here.sender::<Edit>("edits").expect("a receiver is there");
    let mut publisher = here.publisher::<Edit>().expect("it joins");
    let (ours, theirs) = (here.pin(&document(1)), there.pin(&document(2)));
    let (ours, theirs) = (ours.expect("memory"), theirs.expect("memory"));
    let error = publisher.publish(&edit(&[&theirs], 0));
    assert!(error.is_err(), "also where nobody has subscribed");
    let mut subscriber = here.subscriber::<Edit>().expect("it joins");
    for padding in [0, 1_000, 20_000] {
        let mixed = edit(&[&ours, &theirs], padding);
        let error = sender.send(&mixed).expect_err("one is not ours");
        assert!(error.to_string().contains("another bus"), "{error}");
        let error = publisher.publish(&mixed).expect_err("one is not ours");
        assert!(error.to_string().contains("another bus"), "{error}");
    }
    let pins = edit(&[&ours], 0);
    let error = here.pin(&pins).expect_err("it refers to one");
    assert!(matches!(error, SendError::Encode { .. }), "{error}");
    assert!(
        error.to_string().contains("cannot refer to pins"),
        "{error}"
    );
    // Nothing of them was sent, and nothing is kept for them.
    sender.send(&pins).expect("there is room");
    let got = receiver.next().expect("not forked").expect("it was sent");
    assert_eq!(got.documents.len(), 1);
    drop(got);
    assert!(subscriber.try_next().expect("nothing is missed").is_none());
    drop((pins, ours, theirs));
    wait_until_freed(&there, || {});
    wait_until_freed(&here, || hand_back(&mut receiver));
}

#[test]
fn a_message_that_was_not_sent_keeps_nothing() {
    let _together = together();
    let bus = open(&name("pinned-unsent"));
    let _receiver = bus.receiver::<Edit>("edits").expect("nobody else does");
    let mut sender = bus.sender::<Edit>("edits").expect("a receiver is there");
    for turn in 0..4 {
        let pin = bus.pin(&document(turn)).expect("there is memory");
        let error = match turn {
            0 => sender.send(&edit(&[&pin], 2_000_000)),
            1 => sender.try_send(&edit(&[&pin], 2_000_000)),
            _ => {
                while sender.try_send(&edit(&[], 0)).is_ok() {}
                match turn {
                    2 => sender.try_send(&edit(&[&pin], 0)),
                    _ => sender.send_timeout(&edit(&[&pin], 0), Duration::from_millis(1)),
                }
            }
        };
        let error = error.expect_err("it is too large, or there is no room");
        let is_right = match turn {
            0 | 1 => matches!(error, SendError::TooLarge { .. }),
            _ => matches!(error, SendError::Full),
        };
        assert!(is_right, "{error}");
        drop(pin);
        assert!(used(&bus) < SIZE, "{}", used(&bus));
    }
}

#[test]
fn a_handle_is_opened_with_its_own_message() {
    let _together = together();
    let bus = open(&name("pinned-other"));
    let mut receiver = bus.receiver::<Edit>("edits").expect("nobody else does");
    let mut sender = bus.sender::<Edit>("edits").expect("a receiver is there");
    let pin = bus.pin(&document(1)).expect("there is memory");
    for _ in 0..3 {
        sender.send(&edit(&[&pin], 100)).expect("there is room");
    }
    let first = receiver
        .next()
        .expect("not forked")
        .expect("it was sent")
        .keep();
    let second = receiver
        .next()
        .expect("not forked")
        .expect("it was sent")
        .keep();
    let third = receiver.next().expect("not forked").expect("it was sent");
    assert_eq!(first.documents[0].number(), second.documents[0].number());
    for error in [
        first.documents[0].open(&second).err(),
        second.documents[0].open(&third).err(),
        third.documents[0].open(&first).err(),
    ] {
        assert_eq!(error, Some(PinError::NotOfMessage));
    }
    // That was our own mistake: the link is as before.
    check(&first.documents[0], &first, 1);
    check(&third.documents[0], &third, 1);
    assert!(bus.take_incidents().is_empty());
}
