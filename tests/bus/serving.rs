//! Services that a pool of threads answers.

use std::collections::HashSet;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use shmbus::{AsyncCall, Bus, CallError, ShmMessage, Task};

use crate::support::{name, open, together};

#[derive(ShmMessage)]
#[shm(service = "work", stream = Step, reply = Done, error = Refused)]
struct Work {
    id: u64,
    what: u8,
}

#[derive(ShmMessage)]
struct Step {
    number: u32,
}

#[derive(ShmMessage)]
struct Done {
    id: u64,
}

#[derive(ShmMessage, Debug)]
struct Refused {
    id: u64,
}

const STEPS: u32 = 2_000;

fn work(call: &AsyncCall<Work>) -> Result<Done, Refused> {
    let id = call.id.to_native();
    match call.what {
        1 => {
            for number in 0..STEPS {
                call.send(&Step { number }).wait().expect("it is wanted");
            }
        }
        2 => return Err(Refused { id }),
        3 => panic!("number {id} is one too many"),
        4 => std::panic::panic_any(id),
        _ => {}
    }
    Ok(Done { id })
}

/// Replies, streams, errors and panics, from several threads.
fn ask_for_all(there: &Bus) {
    let callers: Vec<_> = (0..4u64)
        .map(|caller| {
            let client = there.client::<Work>().expect("a server is there");
            thread::spawn(move || {
                for turn in 0..20 {
                    let id = caller * 100 + turn;
                    let ask = |what| Work { id, what };
                    assert_eq!(client.call(&ask(0)).expect("it answers").id, id);
                    let mut steps = client.stream(&ask(1)).expect("there is room");
                    for number in 0..STEPS {
                        let step = steps.next().expect("it goes on").expect("it goes on");
                        assert_eq!(step.number, number);
                    }
                    assert_eq!(steps.finish().expect("it ends with a reply").id, id);
                    match client.call(&ask(2)).err() {
                        Some(CallError::Service(error)) => assert_eq!(error.id, id),
                        other => panic!("{other:?}"),
                    }
                    for (what, said) in [
                        (3, format!("number {id} is one too many")),
                        (4, "it said nothing".into()),
                    ] {
                        match client.call(&ask(what)).err() {
                            Some(CallError::Panicked { what, .. }) => assert_eq!(what, said),
                            other => panic!("{other:?}"),
                        }
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.join().expect("the caller does not panic");
    }
}

#[test]
fn a_pool_answers_everybody_and_survives_panics() {
    let _together = together();
    let name = name("pool");
    let (here, there) = (open(&name), open(&name));
    let serving = here.serve::<Work, _>(3, work).expect("nobody else serves");
    ask_for_all(&there);
    drop(serving);
}

#[test]
fn tasks_answer_everybody_and_survive_panics() {
    let _together = together();
    let name = name("run");
    let (here, there) = (open(&name), open(&name));
    let server = Arc::new(here.async_server::<Work>().expect("nobody else serves"));
    let serving = thread::spawn({
        let server = server.clone();
        move || {
            let runtime = tokio::runtime::Runtime::new().expect("threads");
            let spawn = |task: Task| drop(tokio::spawn(task));
            runtime.block_on(server.run(spawn, |call| async move {
                for number in (0..STEPS).filter(|_| call.what == 1) {
                    call.send(&Step { number }).await.expect("it is wanted");
                }
                tokio::task::yield_now().await;
                // The rest without waiting, panics among it.
                if call.what == 1 {
                    let id = call.id.to_native();
                    return Ok(Done { id });
                }
                work(&call)
            }))
        }
    });
    ask_for_all(&there);
    server.stop();
    let ended = serving.join().expect("the server does not panic");
    ended.expect("it was not forked");
}

#[test]
fn tasks_that_go_on_are_waited_for() {
    let _together = together();
    let name = name("run-stops");
    let (here, there) = (open(&name), open(&name));
    let server = here.async_server::<Work>().expect("nobody else serves");
    let client = there.async_client::<Work>().expect("a server is there");
    let requests: Vec<_> = (0..10).map(|id| Work { id, what: 0 }).collect();
    let pending: Vec<_> = requests.iter().map(|r| client.call(r)).collect();
    let barrier = Arc::new(tokio::sync::Barrier::new(11));
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(async {
        let spawn = |task: Task| drop(tokio::spawn(task));
        let serving = server.run(spawn, {
            let barrier = barrier.clone();
            move |call| {
                let barrier = barrier.clone();
                async move {
                    barrier.wait().await;
                    barrier.wait().await;
                    let id = call.id.to_native();
                    Ok(Done { id })
                }
            }
        });
        let stopping = async {
            barrier.wait().await;
            server.stop();
            barrier.wait().await;
        };
        tokio::join!(serving, stopping)
            .0
            .expect("it was not forked");
    });
    // All were taken before the server was stopped, and all are answered.
    for (id, pending) in (0..).zip(pending) {
        assert_eq!(pending.wait().expect("it is answered").id, id);
    }
}

#[test]
fn what_was_taken_is_answered_and_what_waits_is_refused() {
    const THREADS: usize = 2;
    let _together = together();
    let name = name("stopping");
    let (here, there) = (open(&name), open(&name));
    // All threads of the pool meet the test here, and once more when they may go on.
    let barrier = Arc::new(Barrier::new(THREADS + 1));
    let taken = Arc::new(Mutex::new(HashSet::new()));
    let serving = here.serve::<Work, _>(THREADS, {
        let (barrier, taken) = (barrier.clone(), taken.clone());
        move |call| {
            let id = call.id.to_native();
            taken.lock().expect("nobody panics").insert(id);
            barrier.wait();
            barrier.wait();
            Ok(Done { id })
        }
    });
    let serving = serving.expect("nobody else serves");
    let client = there.async_client::<Work>().expect("a server is there");
    let requests: Vec<_> = (0..10).map(|id| Work { id, what: 0 }).collect();
    let pending: Vec<_> = requests
        .iter()
        .map(|request| client.call(request))
        .collect();
    barrier.wait();
    serving.stop();
    barrier.wait();
    drop(serving);
    let taken = taken.lock().expect("nobody panics");
    assert_eq!(taken.len(), THREADS);
    for (id, pending) in (0..).zip(pending) {
        match pending.wait() {
            Ok(done) => assert!(taken.contains(&done.id.to_native())),
            Err(CallError::Stopping { .. }) => assert!(!taken.contains(&id)),
            Err(error) => panic!("{error}"),
        }
    }
}

#[derive(ShmMessage)]
#[shm(service = "urgent", reply = Done)]
struct Urgent {
    id: u64,
}

/// One thread for two services: what must not wait is taken first, however long the other one's queue is.
#[test]
fn a_pool_takes_requests_of_earlier_services_first() {
    const WAITING: u64 = 100;
    let _together = together();
    let name = name("priorities");
    let (here, there) = (open(&name), open(&name));
    let barrier = Arc::new(Barrier::new(2));
    let order = Arc::new(Mutex::new(Vec::new()));
    let done = |id: u64, order: &Mutex<Vec<u64>>| {
        order.lock().expect("nobody panics").push(id);
        Done { id }
    };
    let serving = here
        .services()
        .on::<Urgent, _>({
            let order = order.clone();
            move |call| Ok(done(call.id.to_native(), &order))
        })
        .expect("nobody else serves")
        .on::<Work, _>({
            let (order, barrier) = (order.clone(), barrier.clone());
            move |call| {
                if call.id == 0 {
                    barrier.wait();
                    barrier.wait();
                }
                Ok(done(call.id.to_native(), &order))
            }
        })
        .expect("nobody else serves")
        .start(1)
        .expect("a thread starts");
    let work = there.async_client::<Work>().expect("a server is there");
    let urgent = there.async_client::<Urgent>().expect("a server is there");
    let requests: Vec<_> = (0..=WAITING).map(|id| Work { id, what: 0 }).collect();
    let pending: Vec<_> = requests.iter().map(|request| work.call(request)).collect();
    barrier.wait();
    // All of the others wait now, and the urgent ones behind them.
    let requests = [WAITING + 1, WAITING + 2].map(|id| Urgent { id });
    let hurried = requests.each_ref().map(|request| urgent.call(request));
    barrier.wait();
    for (id, pending) in (WAITING + 1..).zip(hurried) {
        assert_eq!(pending.wait().expect("it is answered").id, id);
    }
    for (id, pending) in (0..).zip(pending) {
        assert_eq!(pending.wait().expect("it is answered").id, id);
    }
    drop(serving);
    let expected: Vec<_> = [0, WAITING + 1, WAITING + 2]
        .into_iter()
        .chain(1..=WAITING)
        .collect();
    assert_eq!(*order.lock().expect("nobody panics"), expected);
}
