//! What one side drops while the other still looks at it.

use std::time::Duration;

use shmbus::{Bus, ShmMessage, Wait};

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
