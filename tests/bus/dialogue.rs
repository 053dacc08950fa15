//! Streams, errors, cancelled calls and deadlines.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use shmbus::{Bus, Call, CallError, Items, SendError, ShmMessage};

use crate::support::{name, open, together};

/// Asks for numbers from 0 on, each with so many bytes; to be answered with their count.
#[derive(ShmMessage)]
#[shm(service = "numbers", stream = Number, reply = Count, error = Refused)]
struct Numbers {
    count: u64,
    bytes: u32,
}

#[derive(ShmMessage)]
struct Number {
    number: u64,
    content: Vec<u8>,
}

#[derive(ShmMessage)]
struct Count {
    count: u64,
}

#[derive(ShmMessage, Debug, PartialEq)]
struct Refused {
    reason: String,
}

fn number(number: u64, bytes: u32) -> Number {
    let content = vec![number as u8; bytes as usize];
    Number { number, content }
}

/// Sends all numbers, or as many as are wanted.
fn answer(call: Call<'_, Numbers>) {
    let (count, bytes) = (call.count.to_native(), call.bytes.to_native());
    for at in 0..count {
        match call.send(&number(at, bytes)) {
            Ok(()) => {}
            Err(SendError::Cancelled | SendError::Closed { .. }) => return,
            Err(error) => panic!("{error}"),
        }
    }
    call.reply(&Count { count }).expect("the reply fits");
}

/// A bus that serves on a thread of its own.
fn serve(bus: &Bus) -> thread::JoinHandle<()> {
    let mut server = bus.server::<Numbers>().expect("nobody else serves");
    thread::spawn(move || {
        while let Some(call) = server.next().expect("not forked") {
            answer(call);
        }
    })
}

/// Takes a stream to its end.
fn take(mut items: Items<'_, Numbers>, bytes: u32) -> u64 {
    let mut next = 0;
    for item in &mut items {
        let item = item.expect("the stream goes on");
        assert_eq!(item.number, next);
        assert_eq!(item.content.len(), bytes as usize);
        assert!(item.content.iter().all(|byte| *byte == next as u8));
        next += 1;
    }
    assert_eq!(items.finish().expect("it ends with a reply").count, next);
    next
}

#[test]
fn a_stream_is_whole_and_in_order_however_slow_its_reader() {
    const COUNT: u64 = 1_000_000;
    let _together = together();
    let name = name("stream");
    let (serving, calling) = (open(&name), open(&name));
    let thread = serve(&serving);
    let client = calling.client::<Numbers>().expect("a server is there");
    let mut items = client
        .stream(&Numbers {
            count: COUNT,
            bytes: 24,
        })
        .expect("there is room");
    let mut held = VecDeque::new();
    let mut random = 7u64;
    let mut most = 0;
    for (at, item) in (0..).zip(&mut items) {
        let item = item.expect("the stream goes on");
        assert_eq!(item.number, at);
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        match random >> 44 {
            0..=3 => thread::sleep(Duration::from_millis(random >> 60)),
            4..=200_000 => held.push_back(item),
            _ => {}
        }
        if held.len() > 20 {
            held.pop_front();
        }
        most = most.max(serving.memory().0);
    }
    drop(held);
    assert_eq!(items.finish().expect("it ends with a reply").count, COUNT);
    // A lane's cells, and no more: nothing piles up on either side.
    assert!(most <= 4 << 20, "{most} bytes");
    assert!(calling.memory().0 <= 4 << 20);
    drop(client);
    serving.close();
    thread.join().expect("the server does not panic");
}

#[test]
fn items_of_any_size_stream() {
    let _together = together();
    let name = name("sizes");
    let (serving, calling) = (open(&name), open(&name));
    let thread = serve(&serving);
    let client = calling.client::<Numbers>().expect("a server is there");
    for (count, bytes) in [
        (0, 0),
        (1, 0),
        (500, 3),
        (300, 3_000),
        (300, 20_000),
        (200, 600_000),
    ] {
        let items = client.stream(&Numbers { count, bytes });
        assert_eq!(take(items.expect("there is room"), bytes), count);
    }
    drop(client);
    serving.close();
    thread.join().expect("the server does not panic");
}

#[test]
fn streams_and_calls_of_one_client_do_not_hinder_each_other() {
    let _together = together();
    let name = name("mixed");
    let (serving, calling) = (open(&name), open(&name));
    let mut server = serving.server::<Numbers>().expect("nobody else serves");
    let thread = thread::spawn(move || {
        // Items of a stream that nobody takes: as many as there is room for, and no more.
        let call = server.next().expect("not forked").expect("it comes");
        let mut sent = 0;
        while call.try_send(&number(sent, 16)).is_ok() {
            sent += 1;
        }
        assert!(sent > 10, "{sent}");
        assert_eq!(call.behind() as u64, sent);
        call.reply(&Count { count: sent }).expect("the reply fits");
        while let Some(call) = server.next().expect("not forked") {
            answer(call);
        }
    });
    let client = calling.client::<Numbers>().expect("a server is there");
    let ask = |count| Numbers { count, bytes: 16 };
    let slow = client.stream(&ask(u64::MAX)).expect("there is room");
    for count in [0, 10, 5_000] {
        let items = client.stream(&ask(count)).expect("there is room");
        assert_eq!(take(items, 16), count);
        let reply = client.call(&ask(0)).expect("it answers");
        assert_eq!(reply.count, 0);
    }
    assert!(take(slow, 16) > 10);
    drop(client);
    serving.close();
    thread.join().expect("the server does not panic");
}

#[test]
fn a_dropped_stream_is_seen_by_its_server_and_leaves_nothing() {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    let _together = together();
    let name = name("dropped");
    let (serving, calling) = (open(&name), open(&name));
    let mut server = serving.server::<Numbers>().expect("nobody else serves");
    let thread = thread::spawn(move || {
        while let Some(call) = server.next().expect("not forked") {
            let endless = call.count == u64::MAX;
            if call.count == u64::MAX - 1 {
                // Generates, and sends nothing more: the caller's word is all there is to see.
                call.send(&number(0, 16)).expect("there is room");
                while !call.is_cancelled() {
                    thread::yield_now();
                }
                assert!(matches!(
                    call.send(&number(1, 16)),
                    Err(SendError::Cancelled)
                ));
                SEEN.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            answer(call);
            SEEN.fetch_add(u64::from(endless), Ordering::Relaxed);
        }
    });
    let client = calling.client::<Numbers>().expect("a server is there");
    let one = client
        .call(&Numbers { count: 0, bytes: 0 })
        .expect("it answers");
    drop(one);
    let before = (serving.memory().1, calling.memory().1);
    for turn in 0..300 {
        let count = u64::MAX - turn % 2;
        let bytes = if turn % 3 == 0 { 20_000 } else { 16 };
        let mut items = client
            .stream(&Numbers { count, bytes })
            .expect("there is room");
        let first = items.next().expect("it is endless").expect("it goes on");
        assert_eq!(first.number, 0);
        // Some with more of it taken, some with nothing, some with a view that outlives it.
        if turn % 5 == 0 && count == u64::MAX {
            for _ in 0..turn {
                items.next().expect("it is endless").expect("it goes on");
            }
        }
        drop(items);
        assert_eq!(first.number, 0);
    }
    let reply = client
        .call(&Numbers { count: 0, bytes: 0 })
        .expect("it answers");
    assert_eq!(SEEN.load(Ordering::Relaxed), 300);
    drop(reply);
    // Blocks that a lane keeps for its next message, and the cells that a lane grew by.
    let after = (serving.memory().1, calling.memory().1);
    assert!(
        after.0 <= before.0 + (64 << 10) + 5 * 32_000,
        "{before:?} {after:?}"
    );
    assert_eq!(after.1, before.1);
    drop(client);
    serving.close();
    thread.join().expect("the server does not panic");
}

#[test]
fn what_was_given_up_before_it_was_taken_is_never_delivered() {
    let _together = together();
    let name = name("untaken");
    let (serving, calling) = (open(&name), open(&name));
    let mut server = serving.server::<Numbers>().expect("nobody else serves");
    let client = calling.client::<Numbers>().expect("a server is there");
    for _ in 0..1_000 {
        // One without a deadline, dropped; one whose time is up.
        let ask = |count| Numbers { count, bytes: 0 };
        drop(client.stream(&ask(1)).expect("there is room"));
        let late = client.call_timeout(&ask(2), Duration::ZERO);
        assert!(matches!(late, Err(CallError::TimedOut)), "{:?}", late.err());
        let wanted = client.stream(&ask(3)).expect("there is room");
        let call = server.next().expect("not forked").expect("it comes");
        assert_eq!(call.count, 3);
        answer(call);
        assert_eq!(take(wanted, 0), 3);
    }
    assert!(server.try_next().expect("not forked").is_none());
}

#[test]
fn a_deadline_travels_and_ends_a_call_on_both_sides() {
    let _together = together();
    let name = name("deadline");
    let (serving, calling) = (open(&name), open(&name));
    let mut server = serving.server::<Numbers>().expect("nobody else serves");
    let thread = thread::spawn(move || {
        let call = server.next().expect("not forked").expect("it comes");
        assert!(call.deadline().is_none() && !call.is_cancelled());
        call.reply(&Count { count: 0 }).expect("the reply fits");
        let call = server.next().expect("not forked").expect("it comes");
        let left = call.deadline().expect("it has one") - std::time::Instant::now();
        assert!(left > Duration::from_secs(1_000), "{left:?}");
        call.reply(&Count { count: 1 }).expect("the reply fits");
        let call = server.next().expect("not forked").expect("it comes");
        while !call.is_cancelled() {
            thread::yield_now();
        }
    });
    let client = calling.client::<Numbers>().expect("a server is there");
    let ask = Numbers { count: 0, bytes: 0 };
    assert_eq!(client.call(&ask).expect("it answers").count, 0);
    let hour = Duration::from_secs(3_600);
    assert_eq!(
        client.call_timeout(&ask, hour).expect("it answers").count,
        1
    );
    let mut items = client
        .stream_timeout(&ask, Duration::from_millis(20))
        .expect("there is room");
    let end = items.next().expect("an error");
    assert!(matches!(end, Err(CallError::TimedOut)), "{:?}", end.err());
    assert!(items.next().is_none());
    thread.join().expect("the server does not panic");
}

#[test]
fn errors_and_panics_reach_their_caller_and_the_server_goes_on() {
    static PANICKED: AtomicBool = AtomicBool::new(false);
    let _together = together();
    let name = name("errors");
    let (serving, calling) = (open(&name), open(&name));
    let mut server = serving.server::<Numbers>().expect("nobody else serves");
    let thread = thread::spawn(move || {
        while let Some(call) = server.next().expect("not forked") {
            match call.count.to_native() {
                1 => {
                    let reason = "x".repeat(call.bytes.to_native() as usize);
                    call.send(&number(0, 1)).expect("there is room");
                    call.fail(&Refused { reason }).expect("it fits");
                }
                2 => {
                    let handler = std::panic::AssertUnwindSafe(|| {
                        let _call = call;
                        std::panic::resume_unwind(Box::new("gone"));
                    });
                    assert!(std::panic::catch_unwind(handler).is_err());
                    PANICKED.store(true, Ordering::Relaxed);
                }
                3 => drop(call),
                _ => answer(call),
            }
        }
    });
    let client = calling.client::<Numbers>().expect("a server is there");
    for bytes in [3, 5_000, 50_000] {
        let ask = Numbers { count: 1, bytes };
        let mut items = client.stream(&ask).expect("there is room");
        assert_eq!(items.next().expect("one").expect("it goes on").number, 0);
        let reason = "x".repeat(bytes as usize);
        match items.next().expect("an error") {
            Err(CallError::Service(error)) => assert_eq!(error, Refused { reason }),
            other => panic!("{:?}", other.err()),
        }
        assert!(items.next().is_none());
        let again = items.finish();
        assert!(matches!(again, Err(CallError::Unanswered { .. })));
    }
    let ask = |count| Numbers { count, bytes: 0 };
    let panicked = client.call(&ask(2)).err();
    assert!(
        matches!(panicked, Some(CallError::Panicked { .. })),
        "{panicked:?}"
    );
    let dropped = client.call(&ask(3)).err();
    assert!(
        matches!(dropped, Some(CallError::Unanswered { .. })),
        "{dropped:?}"
    );
    assert_eq!(client.call(&ask(0)).expect("it answers").count, 0);
    // The panic's caller may have heard of it before the server's thread had caught it.
    assert!(PANICKED.load(Ordering::Relaxed));
    drop(client);
    serving.close();
    thread.join().expect("the server does not panic");
}

#[test]
fn too_many_open_streams_are_refused_and_all_others_answered() {
    let _together = together();
    let name = name("many");
    let (serving, calling) = (open(&name), open(&name));
    let client_bus = calling.clone();
    let mut server = serving.server::<Numbers>().expect("nobody else serves");
    let client = client_bus.client::<Numbers>().expect("a server is there");
    let ask = Numbers {
        count: 3,
        bytes: 900,
    };
    let mut open_streams = Vec::new();
    let error = loop {
        match client.stream(&ask) {
            Ok(items) => open_streams.push(items),
            Err(error) => break error,
        }
        let call = server.next().expect("not forked").expect("it comes");
        // Replies of many cells, none of which is taken: each finds room.
        let _ = call.try_send(&number(0, 900));
        call.reply(&Count { count: 3 }).expect("the reply fits");
    };
    assert!(matches!(error, CallError::TooMany { open: 448 }), "{error}");
    assert_eq!(open_streams.len(), 448);
    for items in open_streams {
        assert_eq!(items.finish().expect("it was answered").count, 3);
    }
    assert!(client.stream(&ask).is_ok());
}

#[test]
fn replies_of_any_size_find_room_however_few_were_taken() {
    let _together = together();
    let bus = open(&name("sizes-untaken"));
    let mut server = bus.server::<Numbers>().expect("nobody else serves");
    let mut random = 7u64;
    for _ in 0..150 {
        let client = bus.client::<Numbers>().expect("a server is there");
        let mut waiting = VecDeque::new();
        for _ in 0..120 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let bytes = (random >> 33) as u32 % 2_500 + 1;
            let reason = "x".repeat(bytes as usize);
            let ask = Numbers { count: 0, bytes };
            waiting.push_back((client.stream(&ask).expect("there is room"), bytes));
            let call = server.next().expect("not forked").expect("it comes");
            call.fail(&Refused { reason }).expect("it fits");
            // Some are taken, in no order.
            if random >> 60 == 0 {
                let at = (random >> 40) as usize % waiting.len();
                check_refused(waiting.swap_remove_back(at).expect("it is there"));
            }
        }
        waiting.into_iter().for_each(check_refused);
        assert!(bus.take_incidents().is_empty());
    }
}

/// Takes an answer of so many bytes.
fn check_refused((mut items, bytes): (Items<'_, Numbers>, u32)) {
    match items.next().expect("an error") {
        Err(CallError::Service(error)) => assert_eq!(error.reason.len(), bytes as usize),
        other => panic!("{:?}", other.err()),
    }
}
