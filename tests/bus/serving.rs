//! Services that a pool of threads answers.

use std::collections::HashSet;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use shmbus::{AsyncCall, CallError, ShmMessage};

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

#[test]
fn a_pool_answers_everybody_and_survives_panics() {
    let _together = together();
    let name = name("pool");
    let (here, there) = (open(&name), open(&name));
    let serving = here.serve::<Work, _>(3, work).expect("nobody else serves");
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
    drop(serving);
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
