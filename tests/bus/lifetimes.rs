//! What one side drops while the other still looks at it.

use std::time::Duration;

use shmbus::{Bus, CallError, SendError, ShmMessage, Wait};

#[derive(ShmMessage)]
struct Note {
    id: u64,
    text: String,
}

fn note(id: u64, len: usize) -> Note {
    let letter = char::from(b'a' + (id % 26) as u8);
    Note {
        id,
        text: letter.to_string().repeat(len),
    }
}

/// A sender that is dropped leaves its memory alone while the receiver holds what it sent, however
/// much is sent by others meanwhile.
#[test]
fn what_a_dropped_sender_sent_stays_as_it_was() {
    let name = format!("test-dropped-sender-{}", std::process::id());
    let bus = Bus::open(&name).unwrap();
    let other = Bus::open(&name).unwrap();
    let mut first = bus.receiver::<Note>("first").unwrap();
    let mut second = bus.receiver::<Note>("second").unwrap();
    for round in 0..20 {
        for len in [10, 1_000, 100_000] {
            let mut sender = other.sender::<Note>("first").unwrap();
            sender.send(&note(round, len)).unwrap();
            let view = first.next().unwrap().unwrap();
            drop(sender);
            // Lanes and blocks of the same sizes: they would be cut from the freed memory.
            for id in 100..110 {
                let mut sender = other.sender::<Note>("second").unwrap();
                sender.send(&note(id, len)).unwrap();
                let view = second
                    .next_timeout(Duration::from_secs(60))
                    .unwrap()
                    .unwrap();
                assert_eq!((view.id.to_native(), view.text.len()), (id, len));
            }
            assert_eq!(view.text, note(round, len).text);
        }
    }
    assert_eq!(bus.take_incidents(), []);
    assert_eq!(other.take_incidents(), []);
}

/// Thousands of lanes over one link, one after the other: nothing of them stays.
#[test]
fn lanes_come_and_go() {
    let name = format!("test-lanes-{}", std::process::id());
    let bus = Bus::open(&name).unwrap();
    let other = Bus::open(&name).unwrap();
    let mut receiver = bus.receiver::<Note>("notes").unwrap();
    receiver.set_wait(Wait::Park);
    let mut used = Vec::new();
    for round in 0..2_000 {
        let mut sender = other.sender::<Note>("notes").unwrap();
        sender.send(&note(round, 40)).unwrap();
        drop(sender);
        let view = receiver
            .next_timeout(Duration::from_secs(60))
            .unwrap()
            .unwrap();
        assert_eq!(view.id, round);
        drop(view);
        // Has the hub look once more, so that it sees the end of the lane.
        assert!(receiver.try_next().unwrap().is_none());
        used.push(other.memory().0);
    }
    assert_eq!(used[1_000], used[1_999], "the senders' side grows");
    assert_eq!(bus.take_incidents(), []);
}

#[derive(ShmMessage)]
#[shm(service = "maybe", reply = Note)]
struct Maybe {
    answers: bool,
}

/// A client that holds as many replies as the lane first has room for is told when there is none.
#[test]
fn no_reply_is_told_although_replies_are_held() {
    let name = format!("test-no-reply-{}", std::process::id());
    let bus = Bus::open(&name).unwrap();
    let mut server = bus.server::<Maybe>().unwrap();
    let serving = std::thread::spawn(move || {
        while let Some(call) = server.next().unwrap() {
            if call.answers {
                call.reply(&note(1, 10)).unwrap();
            }
        }
    });
    let client = bus.client::<Maybe>().unwrap();
    let held: Vec<_> = (0..63)
        .map(|_| client.call(&Maybe { answers: true }).unwrap())
        .collect();
    let error = client.call(&Maybe { answers: false }).err().unwrap();
    assert!(matches!(error, CallError::Unanswered { .. }), "{error}");
    drop(held);
    bus.close();
    serving.join().unwrap();
}

/// A kept message outlives the bus of its receiver; the sender, which lives on, does not use its
/// memory again before it is dropped.
#[test]
fn a_kept_message_outlives_its_bus_and_not_its_bytes() {
    let name = format!("test-kept-outlives-{}", std::process::id());
    let other = Bus::open(&name).unwrap();
    let third = Bus::open(&name).unwrap();
    let mut elsewhere = third.receiver::<Note>("elsewhere").unwrap();
    let mut busy = other.sender::<Note>("elsewhere").unwrap();
    let mut exchange = |len| {
        for id in 100..120 {
            busy.send(&note(id, len)).unwrap();
            let view = elsewhere.next().unwrap().unwrap();
            assert_eq!((view.id.to_native(), view.text.len()), (id, len));
        }
    };
    exchange(10);
    for len in [20_000, 100_000] {
        let bus = Bus::open(&name).unwrap();
        let mut receiver = bus.receiver::<Note>("first").unwrap();
        let mut sender = other.sender::<Note>("first").unwrap();
        let kept: Vec<_> = (0..3)
            .map(|id| {
                sender.send(&note(id, len)).unwrap();
                receiver.next().unwrap().unwrap().keep()
            })
            .collect();
        drop((receiver, bus));
        // The link has ended for this side when the sender is told so.
        while !matches!(sender.send(&note(9, 10)), Err(SendError::Closed { .. })) {
            std::thread::yield_now();
        }
        drop(sender);
        exchange(len);
        for (id, kept) in (0..).zip(&kept) {
            assert_eq!(kept.text, note(id, len).text, "its memory was used again");
        }
        let with_kept = other.memory().1;
        drop(kept);
        // The last of them is dropped: now it is the sender's again, in a moment.
        while other.memory().1 + 3 * len as u64 > with_kept {
            std::thread::yield_now();
        }
        exchange(len);
    }
    assert_eq!(other.take_incidents(), []);
}

/// What was published before the bus was dropped is still received, from cells and slab alike.
#[test]
fn what_was_sent_before_the_end_arrives() {
    let name = format!("test-before-the-end-{}", std::process::id());
    let bus = Bus::open(&name).unwrap();
    let mut receiver = bus.receiver::<Note>("notes").unwrap();
    let other = Bus::open(&name).unwrap();
    let mut sender = other.sender::<Note>("notes").unwrap();
    let sizes = [10, 3_000, 100_000, 10, 600_000];
    for (id, len) in (0..).zip(sizes) {
        sender.send(&note(id, len)).unwrap();
    }
    drop((sender, other));
    for (id, len) in (0..).zip(sizes) {
        let view = receiver
            .next_timeout(Duration::from_secs(60))
            .unwrap()
            .unwrap();
        assert_eq!(view.id, id);
        assert_eq!(view.text, note(id, len).text);
    }
    assert_eq!(bus.take_incidents(), []);
}
