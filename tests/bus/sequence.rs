//! The number that each message has on its lane.

use shmbus::ShmMessage;

use crate::support::{Ask, answer, name, open, together};

#[derive(ShmMessage)]
struct Text {
    at: u64,
    text: String,
}

/// Messages of each size, so that records jump, and go around those that are held.
#[test]
fn messages_are_counted_and_nothing_else_is() {
    let _together = together();
    let name = name("sequence");
    let (here, there) = (open(&name), open(&name));
    let mut receiver = here.receiver::<Text>("texts").expect("it is free");
    let sending = std::thread::spawn(move || {
        let mut sender = there.sender::<Text>("texts").expect("it is received");
        for at in 0..10_000 {
            let text = "x".repeat(match at % 100 {
                99 => 20_000,
                part => part as usize * 40,
            });
            sender.send(&Text { at, text }).expect("it is received");
        }
    });
    let mut kept = Vec::new();
    for at in 0..10_000 {
        let text = receiver.next().expect("not forked").expect("it is open");
        assert_eq!((text.sequence(), text.at.to_native()), (at, at));
        if at % 7 == 0 {
            kept.push(text.keep());
        }
        if kept.len() == 50 {
            assert!(
                kept.iter()
                    .all(|text| text.sequence() == text.at.to_native())
            );
            kept.clear();
        }
    }
    sending.join().expect("it sends all");
}

/// A lane of replies grows where they are held.
#[test]
fn replies_are_counted_while_their_lane_grows() {
    let _together = together();
    let name = name("sequence-of-replies");
    let (here, there) = (open(&name), open(&name));
    let server = here.server::<Ask>().expect("nobody else serves");
    let serving = std::thread::spawn(move || answer(server));
    let client = there.client::<Ask>().expect("a server is there");
    let mut held = Vec::new();
    for at in 0..300 {
        let reply = client.call(&Ask::new(at, 20)).expect("it is answered");
        assert_eq!(reply.sequence(), at);
        held.push(reply);
    }
    drop(held);
    drop(client);
    here.close();
    serving.join().expect("it answers all");

    let server = open(&format!("{name}-2"));
    let client = server.clone();
    let serving = server.async_server::<Ask>().expect("nobody else serves");
    let client = client.async_client::<Ask>().expect("a server is there");
    let asks: Vec<_> = (0..20).map(|at| Ask::new(at, 20)).collect();
    let pending: Vec<_> = asks.iter().map(|ask| client.call(ask)).collect();
    for at in 0..20 {
        let call = serving.next().wait().expect("not forked").expect("open");
        assert_eq!((call.sequence(), call.id.to_native()), (at, at));
    }
    drop(pending);
}
