//! Deadlines that travel on, from call to call.

use std::time::{Duration, Instant};

use shmbus::{Bus, CallError, SendError, ShmMessage};

use crate::support::{Watchdog, name, open, together};

#[derive(ShmMessage)]
#[shm(service = "outer", reply = When, error = Failed)]
struct Outer {
    /// 0: asks further; 1: asks what is never answered.
    what: u8,
}

#[derive(ShmMessage)]
#[shm(service = "inner", reply = When)]
struct Inner {
    what: u8,
}

/// Milliseconds until the deadline of the innermost call, or nothing.
#[derive(ShmMessage)]
struct When {
    left: Option<u64>,
}

#[derive(ShmMessage, Debug)]
struct Failed {
    timed_out: bool,
}

const LONG: Duration = Duration::from_secs(1_000);

/// Answers the inner service: with what is left, or never.
fn serve_inner(bus: &Bus) -> std::thread::JoinHandle<()> {
    let mut server = bus.server::<Inner>().expect("nobody else serves");
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        while let Ok(Some(call)) = server.next() {
            let left = call.deadline().map(|at| at - Instant::now());
            let left = left.map(|left| left.as_millis() as u64);
            if call.what == 0 {
                call.reply(&When { left }).expect("there is room");
            } else {
                kept.push(call.deadline());
                while !call.is_cancelled() {
                    std::thread::yield_now();
                }
            }
        }
    })
}

fn ask_inner(bus: &Bus, what: u8, own: Option<Duration>) -> Result<When, Failed> {
    let client = bus.client::<Inner>().expect("a server is there");
    let reply = match own {
        None => client.call(&Inner { what }),
        Some(own) => client.call_timeout(&Inner { what }, own),
    };
    match reply {
        Ok(reply) => Ok(reply.to_value().expect("it is a value")),
        Err(CallError::TimedOut) => Err(Failed { timed_out: true }),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn what_a_handler_calls_has_the_deadline_of_its_caller() {
    let _together = together();
    let _watch = Watchdog::start("deadlines");
    let name = name("deadlines");
    let (here, there, engine) = (open(&name), open(&name), open(&name));
    let inner_serving = serve_inner(&engine);
    let bus = here.clone();
    let serving = here.serve::<Outer, _>(1, move |call| ask_inner(&bus, call.what, Some(LONG)));
    let serving = serving.expect("nobody else serves");
    let client = there.client::<Outer>().expect("a server is there");

    let left = client.call(&Outer { what: 0 }).expect("it is answered");
    let left = left.left.as_ref().expect("its own").to_native();
    assert!((500_000..=1_000_000).contains(&left), "{left}");
    let sooner = client.call_timeout(&Outer { what: 0 }, LONG / 10);
    let left = sooner
        .expect("it is answered")
        .left
        .as_ref()
        .expect("ours")
        .to_native();
    assert!(left <= 100_000, "{left}");
    // What is never answered ends with the caller's time, all the way down.
    let never = client.call_timeout(&Outer { what: 1 }, Duration::from_millis(20));
    match never.err() {
        Some(CallError::TimedOut) => {}
        Some(CallError::Service(failed)) => assert!(failed.timed_out),
        other => panic!("{other:?}"),
    }
    // The next call has nothing of it left.
    let left = client.call(&Outer { what: 0 }).expect("it is answered");
    assert!(left.left.as_ref().expect("its own").to_native() > 100_000);
    drop(serving);
    engine.close();
    inner_serving
        .join()
        .expect("the inner server does not panic");
}

#[test]
fn a_task_hands_its_deadline_on_wherever_it_is_polled() {
    let _together = together();
    let _watch = Watchdog::start("deadlines of tasks");
    let name = name("task-deadlines");
    let (here, there, engine) = (open(&name), open(&name), open(&name));
    let inner_serving = serve_inner(&engine);
    let server = here.async_server::<Outer>().expect("nobody else serves");
    let inner = here.async_client::<Inner>().expect("a server is there");
    let serving = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        runtime.block_on(async {
            while let Ok(Some(call)) = server.next().await {
                let asked = call.scope(async {
                    tokio::task::yield_now().await;
                    inner.call(&Inner { what: 0 }).await
                });
                let left = asked
                    .await
                    .expect("it is answered")
                    .to_value()
                    .expect("a value");
                assert!(call.deadline().is_some() == left.left.is_some());
                call.reply(&left).expect("there is room");
                let request = Inner { what: 0 };
                let outside = inner.call(&request).await.expect("it is answered");
                assert!(outside.left.is_none(), "the scope has ended");
            }
        });
    });
    let client = there.client::<Outer>().expect("a server is there");
    for _ in 0..100 {
        let none = client.call(&Outer { what: 0 }).expect("it is answered");
        assert!(none.left.is_none());
        drop(none);
        let some = client
            .call_timeout(&Outer { what: 0 }, LONG)
            .expect("it is answered");
        assert!(some.left.is_some());
    }
    here.close();
    serving.join().expect("the server does not panic");
    engine.close();
    inner_serving
        .join()
        .expect("the inner server does not panic");
}

#[derive(ShmMessage)]
#[shm(service = "bulky", stream = When, reply = When)]
struct Bulky {
    bytes: Vec<u8>,
}

#[test]
fn a_deadline_wakes_who_waits_for_room() {
    let _together = together();
    let _watch = Watchdog::start("deadlines without room");
    let name = name("no-room");
    let (here, there) = (open(&name), open(&name));
    // Takes nothing.
    let server = here.async_server::<Bulky>().expect("nobody else serves");
    let client = there.async_client::<Bulky>().expect("a server is there");
    let request = Bulky {
        bytes: vec![7; 6_000],
    };
    let waiting: Vec<_> = (0..100).map(|_| client.call(&request)).collect();
    let late = client
        .call_timeout(&request, Duration::from_millis(5))
        .wait();
    assert!(matches!(late.err(), Some(CallError::Send(SendError::Full))));
    drop(waiting);
    // The caller holds its stream and takes nothing; the server waits no longer than the call does.
    let streaming = std::thread::spawn(move || {
        pollster::block_on(async {
            let call = loop {
                let call = server.next().await.expect("no fork").expect("it goes on");
                if call.deadline().is_some() && call.bytes.is_empty() {
                    break call;
                }
            };
            loop {
                if let Err(error) = call.send(&When { left: None }).await {
                    return error;
                }
            }
        })
    });
    let other = there.client::<Bulky>().expect("a server is there");
    let request = Bulky { bytes: Vec::new() };
    let items = other.stream_timeout(&request, Duration::from_millis(50));
    let items = items.expect("there is room");
    let error = streaming.join().expect("the server does not panic");
    assert!(matches!(error, SendError::Cancelled), "{error}");
    drop(items);
}

#[test]
fn items_that_nobody_asked_for_are_passed_over() {
    let _together = together();
    let _watch = Watchdog::start("no stream");
    let name = name("no-stream");
    let (here, there) = (open(&name), open(&name));
    let serving = here.serve::<Bulky, _>(1, |call| {
        for _ in 0..5_000 {
            call.send(&When { left: None })
                .wait()
                .expect("it is wanted");
        }
        Ok(When { left: Some(5) })
    });
    let serving = serving.expect("nobody else serves");
    let request = Bulky { bytes: Vec::new() };
    let client = there.client::<Bulky>().expect("a server is there");
    let tasks = there.async_client::<Bulky>().expect("a server is there");
    for _ in 0..3 {
        let reply = client.call(&request).expect("it is answered");
        assert_eq!(reply.left.as_ref().expect("it is said").to_native(), 5);
        let reply = tasks.call(&request).wait().expect("it is answered");
        assert_eq!(reply.left.as_ref().expect("it is said").to_native(), 5);
    }
    drop(serving);
}

#[test]
fn a_stream_ends_with_its_time_also_where_all_of_it_has_come() {
    let _together = together();
    let _watch = Watchdog::start("late streams");
    let name = name("late");
    let (here, there) = (open(&name), open(&name));
    let serving = here.serve::<Bulky, _>(1, |call| {
        // Cancelled, where the machine is slow: the caller's time is up, too.
        let _ = (0..100).try_for_each(|_| call.try_send(&When { left: None }));
        Ok(When { left: None })
    });
    let serving = serving.expect("nobody else serves");
    let client = there.client::<Bulky>().expect("a server is there");
    let request = Bulky { bytes: Vec::new() };
    let soon = Duration::from_millis(20);
    let mut items = client
        .stream_timeout(&request, soon)
        .expect("there is room");
    std::thread::sleep(2 * soon);
    let taken = items.by_ref().take_while(Result::is_ok).count();
    assert!(taken < 100, "{taken} items after the deadline");
    assert!(items.next().is_none());
    drop(items);
    drop(serving);
}
