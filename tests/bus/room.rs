//! What becomes of tasks without room, and of answers that nobody takes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};
use std::thread;

use shmbus::{Bytes, CallError, SendError, ShmMessage};

use crate::ends::{Done, Step, Walk, walk};
use crate::support::{Answer, Ask, Counting, name, open, poll, together};

/// However often it is polled, a call that waits for room keeps one waker.
#[test]
fn a_call_without_room_keeps_one_waker() {
    let _together = together();
    let name = name("room");
    let (here, there) = (open(&name), open(&name));
    let mut server = here.server::<Ask>().expect("nobody else serves");
    let client = there.async_client::<Ask>().expect("a server is there");
    let requests: Vec<_> = (0..300).map(|id| Ask::new(id, 3_000)).collect();
    let mut pending: Vec<_> = requests.iter().map(|ask| client.call(ask)).collect();
    let counting = Arc::new(Counting::default());
    let waker = Waker::from(counting.clone());
    let before = Arc::strong_count(&counting);
    let last = pending.last_mut().expect("there are many");
    for _ in 0..10_000 {
        assert!(poll(last, &waker).is_pending());
    }
    let kept = Arc::strong_count(&counting) - before;
    assert!(kept <= 1, "{kept} wakers are kept");
    pending.pop();
    assert_eq!(
        Arc::strong_count(&counting),
        before,
        "it does not wait any more"
    );
    let answering = thread::spawn(move || {
        for _ in 0..requests_but_one() {
            let call = server.next().expect("not forked").expect("it comes");
            let answer = Answer {
                id: call.id.to_native(),
                ..Answer::default()
            };
            call.reply(&answer).expect("it fits");
        }
    });
    for (id, pending) in (0..).zip(pending) {
        assert_eq!(pending.wait().expect("it is answered").id, id);
    }
    answering.join().expect("no panic");
}

fn requests_but_one() -> usize {
    299
}

#[derive(ShmMessage)]
#[shm(service = "type-slowly", reply = Done, supersedes = "document")]
struct Type {
    document: u32,
    padding: Vec<u8>,
}

/// A call that was not sent yet learns at once that a newer one was made.
#[test]
fn a_call_without_room_is_superseded_at_once() {
    let _together = together();
    let name = name("superseded-without-room");
    let (here, there) = (open(&name), open(&name));
    let _server = here.server::<Type>().expect("nobody else serves");
    let client = there.async_client::<Type>().expect("a server is there");
    let of = |document, bytes| Type {
        document,
        padding: vec![0; bytes],
    };
    let others: Vec<_> = (0..300).map(|document| of(document, 3_000)).collect();
    let _pending: Vec<_> = others.iter().map(|other| client.call(other)).collect();
    let (first, second) = (of(1_000, 3_000), of(1_000, 3_000));
    let counting = Arc::new(Counting::default());
    let waker = Waker::from(counting.clone());
    let mut older = client.call(&first);
    assert!(poll(&mut older, &waker).is_pending());
    assert_eq!(counting.0.load(Ordering::Relaxed), 0);
    let _newer = client.call(&second);
    assert_eq!(counting.0.load(Ordering::Relaxed), 1, "it is told");
    assert!(matches!(
        poll(&mut older, &waker),
        Poll::Ready(Err(CallError::Superseded))
    ));
}

/// A hundred answers and more of each size, of words and of items, none of which is taken before all are
/// there: an honest client loses no link by that.
#[test]
fn answers_of_any_mix_find_room_while_nobody_takes_them() {
    const CALLS: usize = 440;
    let _together = together();
    let mixes: [fn(usize) -> usize; 6] = [
        |n| match n {
            0..12 => 4_000,
            12 => 8_000,
            _ => 16,
        },
        |n| match n {
            0..15 => 2_000,
            15 => 8_000,
            _ => 16,
        },
        |_| 300,
        |_| 16,
        |n| [16, 8_100, 60, 3_000, 70_000][n % 5],
        |_| 8_100,
    ];
    for (mix, size) in mixes.into_iter().enumerate() {
        for streams in [0, 8] {
            let name = name(&format!("mix-{mix}-{streams}"));
            let (here, there) = (open(&name), open(&name));
            let server = here.async_server::<Walk>().expect("nobody else serves");
            let client = there.async_client::<Walk>().expect("a server is there");
            let requests: Vec<_> = (0..streams)
                .map(|id| walk(id, 1, 0))
                .chain((0..CALLS).map(|n| walk(n as u64, 0, size(n) as u32)))
                .collect();
            // Each is taken, so that there is room for the next; none is answered before all were.
            let (mut pending, mut taken) = (Vec::new(), Vec::new());
            for request in &requests {
                pending.push(client.call(request));
                let call = server.next().wait().expect("not forked");
                taken.push(call.expect("it came"));
            }
            let mut held = Vec::new();
            for call in taken {
                if call.steps.to_native() > 0 {
                    for number in 0.. {
                        let padding = vec![0; number as usize % 50 * 10];
                        if call.try_send(&Step { number, padding }).is_err() {
                            break;
                        }
                    }
                    held.push(call);
                    continue;
                }
                let (id, len) = (call.id.to_native(), call.bytes.to_native() as usize);
                let padding = vec![1; len];
                call.reply(&Done { id, padding }).expect("it fits");
            }
            let pending = pending.split_off(streams as usize);
            assert_eq!(here.take_incidents(), [], "mix {mix}, {streams} streams");
            for (n, pending) in pending.into_iter().enumerate() {
                let done = pending.wait().expect("it was answered");
                assert_eq!(
                    (done.id.to_native(), done.padding.len()),
                    (n as u64, size(n))
                );
            }
            drop(held);
        }
    }
}

/// A server of one thread waits until its items are taken, and the client asks it for something else first.
#[test]
fn items_of_many_cells_are_handed_back_at_once() {
    const BYTES: u32 = 8_150;
    let _together = together();
    let name = name("at-once");
    let (here, there) = (open(&name), open(&name));
    let mut server = here.server::<Walk>().expect("nobody else serves");
    let serving = thread::spawn(move || {
        while let Some(call) = server.next().expect("not forked") {
            for number in 0..call.steps.to_native() {
                let padding = vec![0; call.bytes.to_native() as usize];
                call.send(&Step { number, padding }).expect("it is wanted");
            }
            let (id, padding) = (call.id.to_native(), Vec::new());
            call.reply(&Done { id, padding }).expect("it fits");
        }
    });
    let streaming = there.client::<Walk>().expect("a server is there");
    let other = there.client::<Walk>().expect("a server is there");
    let mut steps = streaming.stream(&walk(1, 2, BYTES)).expect("there is room");
    drop(steps.next().expect("one").expect("an item"));
    assert_eq!(other.call(&walk(2, 0, 0)).expect("it is answered").id, 2);
    drop(steps.next().expect("one").expect("an item"));
    assert_eq!(steps.finish().expect("it ends").id, 1);
    let shared = there.async_client::<Walk>().expect("a server is there");
    pollster::block_on(async {
        let request = walk(3, 2, BYTES);
        let mut steps = shared.stream(&request).await.expect("there is room");
        drop(steps.next().await.expect("one").expect("an item"));
        assert_eq!(other.call(&walk(4, 0, 0)).expect("it is answered").id, 4);
        drop(steps.next().await.expect("one").expect("an item"));
        assert_eq!(steps.finish().await.expect("it ends").id, 3);
    });
    drop((streaming, other, shared));
    here.close();
    serving.join().expect("it ends");
}

#[derive(ShmMessage)]
struct Chunk {
    content: Bytes,
}

/// Its block comes back once, and then serves for the next loan.
#[test]
fn a_loan_that_found_no_room_at_first_is_used_again() {
    let _together = together();
    let bus = open(&name("loan-without-room"));
    let mut receiver = bus.receiver::<Chunk>("chunks").expect("nobody else does");
    let mut sender = bus.sender::<Chunk>("chunks").expect("a receiver is there");
    let small = Chunk {
        content: Bytes::from(vec![0; 8]),
    };
    let mut sent = 0;
    while sender.try_send(&small).is_ok() {
        sent += 1;
    }
    let content = sender.loan_bytes(20_000).expect("there is memory");
    let chunk = Chunk { content };
    let error = sender.try_send(&chunk).expect_err("nobody takes anything");
    assert!(matches!(error, SendError::Full), "{error}");
    for _ in 0..sent {
        drop(receiver.next().expect("not forked").expect("it was sent"));
    }
    assert!(receiver.try_next().expect("not forked").is_none());
    sender.send(&chunk).expect("there is room");
    let place = chunk.content.as_ptr();
    {
        let got = receiver.next().expect("not forked").expect("it was sent");
        assert_eq!(got.content.len(), 20_000);
    }
    drop(chunk);
    let next = sender.loan_bytes(20_000).expect("there is memory");
    assert_eq!(next.as_ptr(), place);
}
