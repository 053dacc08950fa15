//! The number that each message has on its lane, and when it was published.

use std::time::{Duration, Instant};

use shmbus::{CallError, Config, ShmMessage, Trust, Wait};

use crate::support::{Answer, Ask, answer, name, open, together};

#[derive(ShmMessage, Debug)]
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

const TIMED: Config = Config {
    max_message: 1 << 20,
    memory_limit: 64 << 20,
    wait: Wait::Adaptive,
    timestamps: true,
    trust: Trust::SameUser,
    flight_recorder: 0,
};

/// The clock is looked at around sending, a little less exactly than by the sender itself.
fn check(published: Option<Instant>, (before, after): (Instant, Instant)) {
    const LITTLE: Duration = Duration::from_millis(10);
    let published = published.expect("its sender says so");
    assert!(published + LITTLE >= before && published <= after + LITTLE);
}

/// In one cell, in some, in cells elsewhere, and in a block.
#[test]
fn messages_say_when_they_were_published() {
    let _together = together();
    let name = name("published");
    let (here, there) = (open(&name), TIMED.open(&name).expect("the bus opens"));
    let mut receiver = here.receiver::<Text>("texts").expect("it is free");
    let mut sender = there.sender::<Text>("texts").expect("it is received");
    for at in 0..2_000 {
        let long = [0, 10, 30, 31, 32, 200, 5_000, 20_000, 600_000][at % 9];
        let text = "x".repeat(long);
        let before = Instant::now();
        let at = at as u64;
        sender.send(&Text { at, text }).expect("it is received");
        let after = Instant::now();
        let text = receiver.next().expect("not forked").expect("it is open");
        assert_eq!((text.at.to_native(), text.text.len()), (at, long));
        check(text.published(), (before, after));
        check(text.keep().published(), (before, after));
    }
    let mut untimed = here.sender::<Text>("texts").expect("it is received");
    let text = String::new();
    untimed.send(&Text { at: 0, text }).expect("it is received");
    let text = receiver.next().expect("not forked").expect("it is open");
    assert_eq!(text.published(), None);
}

/// Each side says it of what it sends itself.
#[test]
fn requests_and_replies_say_when_they_were_published() {
    let _together = together();
    for (asks, answers) in [(true, false), (false, true), (true, true)] {
        let name = name(&format!("published-{asks}-{answers}"));
        let bus = |timestamps| {
            Config {
                timestamps,
                ..TIMED
            }
            .open(&name)
        };
        let (here, there) = (bus(answers), bus(asks));
        let (here, there) = (here.expect("it opens"), there.expect("it opens"));
        let start = Instant::now();
        let mut server = here.server::<Ask>().expect("nobody else serves");
        let serving = std::thread::spawn(move || {
            while let Some(call) = server.next().expect("not forked") {
                match asks || call.deadline().is_some() {
                    true => check(call.published(), (start, Instant::now())),
                    false => assert_eq!(call.published(), None),
                }
                let (id, text) = (call.id.to_native(), call.text.as_str().to_owned());
                call.reply(&Answer { id, pid: 0, text }).expect("it fits");
            }
        });
        let client = there.client::<Ask>().expect("a server is there");
        for id in 0..100 {
            let ask = Ask::new(id, [1, 70, 9_000][id as usize % 3]);
            let reply = match id % 2 {
                0 => client.call(&ask),
                _ => client.call_timeout(&ask, Duration::from_secs(60)),
            };
            let reply = reply.expect("it is answered");
            assert_eq!(
                (reply.id.to_native(), reply.text.len()),
                (id, ask.text.len())
            );
            match answers {
                true => check(reply.published(), (start, Instant::now())),
                false => assert_eq!(reply.published(), None),
            }
        }
        drop(client);
        here.close();
        serving.join().expect("it answers all");
    }
}

#[derive(ShmMessage)]
#[shm(service = "recite", stream = Text, reply = Text, error = Text)]
struct Recite {
    verses: u64,
}

/// Items and errors do, too.
#[test]
fn all_of_a_stream_says_when_it_was_published() {
    let _together = together();
    let bus = TIMED.open(&name("published-items")).expect("it opens");
    let mut server = bus.server::<Recite>().expect("nobody else serves");
    let serving = std::thread::spawn(move || {
        while let Some(call) = server.next().expect("not forked") {
            let text = |at: u64| Text {
                at,
                text: "y".repeat(at as usize * 1_000),
            };
            for at in 0..call.verses.to_native() {
                call.send(&text(at)).expect("it is wanted");
            }
            call.fail(&text(1)).expect("it is wanted");
        }
    });
    let client = bus.client::<Recite>().expect("a server is there");
    let start = Instant::now();
    let mut items = client
        .stream(&Recite { verses: 20 })
        .expect("there is room");
    for at in 0..20 {
        let item = items.next().expect("one more").expect("an item");
        assert_eq!(
            (item.at.to_native(), item.text.len() as u64),
            (at, at * 1_000)
        );
        check(item.published(), (start, Instant::now()));
    }
    match items.next() {
        Some(Err(CallError::Service(text))) => assert_eq!(text.text.len(), 1_000),
        other => panic!(
            "{:?}",
            other.map(|item| item.map(|item| item.at.to_native()))
        ),
    }
    drop(items);
    drop(client);
    bus.close();
    serving.join().expect("it answers all");
}
