//! Clients that many tasks share, on every executor.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use shmbus::{AsyncClient, Bus, CallError, Config, SendError, ShmMessage, Wait};

use crate::support::{name, together};

/// Asks for numbers from 0 on; to be answered with their sum.
#[derive(ShmMessage)]
#[shm(service = "sum", stream = Number, reply = Sum, error = Refused)]
struct Add {
    id: u64,
    count: u32,
    padding: Vec<u8>,
}

#[derive(ShmMessage)]
struct Number {
    number: u32,
}

#[derive(ShmMessage)]
struct Sum {
    id: u64,
    sum: u64,
    padding: Vec<u8>,
}

#[derive(ShmMessage, Debug)]
struct Refused {
    id: u64,
}

fn add(id: u64, count: u32) -> Add {
    // Some in one cell, some in many, some in the slab.
    let len = [0, 0, 0, 100, 3_000, 20_000][id as usize % 6];
    let padding = vec![id as u8; len];
    Add { id, count, padding }
}

const REFUSED: u32 = u32::MAX;
const DROPPED: u32 = u32::MAX - 1;
const ENDLESS: u32 = u32::MAX - 2;

fn serve(bus: &Bus) -> thread::JoinHandle<()> {
    let mut server = bus.server::<Add>().expect("nobody else serves");
    thread::spawn(move || {
        while let Some(call) = server.next().expect("not forked") {
            let (id, count) = (call.id.to_native(), call.count.to_native());
            let padding = call.padding.to_vec();
            match count {
                REFUSED => call.fail(&Refused { id }).expect("it fits"),
                DROPPED => {}
                _ => {
                    let sent = (0..count).try_for_each(|number| call.send(&Number { number }));
                    match sent {
                        Ok(()) => {
                            let sum = (0..u64::from(count)).sum();
                            let reply = Sum { id, sum, padding };
                            call.reply(&reply).expect("it fits");
                        }
                        Err(SendError::Cancelled) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
    })
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What runs tasks, all of them to their end.
struct Executor {
    name: &'static str,
    run: fn(Vec<Task>),
}

const EXECUTORS: [Executor; 4] = [
    Executor {
        name: "tokio",
        run: |tasks| on_tokio(&tokio::runtime::Builder::new_multi_thread().build(), tasks),
    },
    Executor {
        name: "tokio-current-thread",
        run: |tasks| {
            on_tokio(
                &tokio::runtime::Builder::new_current_thread().build(),
                tasks,
            )
        },
    },
    Executor {
        name: "smol",
        run: |tasks| {
            let running: Vec<_> = tasks.into_iter().map(smol::spawn).collect();
            smol::block_on(async {
                for task in running {
                    task.await;
                }
            });
        },
    },
    Executor {
        name: "pollster",
        run: |tasks| {
            thread::scope(|scope| {
                for task in tasks {
                    scope.spawn(|| pollster::block_on(task));
                }
            });
        },
    },
];

fn on_tokio(runtime: &std::io::Result<tokio::runtime::Runtime>, tasks: Vec<Task>) {
    let runtime = runtime.as_ref().expect("the runtime starts");
    runtime.block_on(async {
        let running: Vec<_> = tasks.into_iter().map(|task| runtime.spawn(task)).collect();
        for task in running {
            task.await.expect("the task does not panic");
        }
    });
}

/// Runs the same on each executor and with each way of waiting.
fn everywhere(test: &str, tasks: usize, task: fn(AsyncClient<Add>, u64) -> Task) {
    let _together = together();
    for Executor {
        name: executor,
        run,
    } in EXECUTORS
    {
        for wait in [Wait::Adaptive, Wait::Park, Wait::Spin] {
            eprintln!("{executor}, {wait:?}");
            let config = Config {
                wait,
                ..Config::default()
            };
            let name = name(&format!("{test}-{executor}-{wait:?}"));
            let serving = config.open(&name).expect("the bus opens");
            let calling = config.open(&name).expect("the bus opens");
            let thread = serve(&serving);
            let client = calling.async_client::<Add>().expect("a server is there");
            run((0..tasks as u64)
                .map(|number| task(client.clone(), number))
                .collect());
            drop(client);
            serving.close();
            thread.join().expect("the server does not panic");
        }
    }
}

#[test]
fn calls_of_many_tasks() {
    everywhere("calls", 20, |client, task| {
        Box::pin(async move {
            for turn in 0..20 {
                let id = task * 1_000 + turn;
                let request = add(id, 0);
                let reply = client.call(&request).await.expect("it answers");
                assert_eq!(reply.id, id);
                assert_eq!(reply.padding.as_slice(), request.padding.as_slice());
            }
        })
    });
}

#[test]
fn thousands_of_calls_at_once() {
    everywhere("thousands", 10, |client, task| {
        Box::pin(async move {
            let requests: Vec<_> = (0..100).map(|turn| add(task * 1_000 + turn, 0)).collect();
            let pending: Vec<_> = requests
                .iter()
                .map(|request| client.call(request))
                .collect();
            // Not in the order of their answers.
            for (request, pending) in requests.iter().zip(pending).rev() {
                let reply = pending.await.expect("it answers");
                assert_eq!(reply.id, request.id);
                assert_eq!(reply.padding.as_slice(), request.padding.as_slice());
            }
        })
    });
}

#[test]
fn streams_errors_and_cancelled_calls() {
    everywhere("streams", 5, |client, task| {
        Box::pin(async move {
            for turn in 0..10 {
                let id = task * 1_000 + turn;
                let count = 300;
                let mut items = client.stream(&add(id, count)).await.expect("there is room");
                for number in 0..count {
                    let item = items.next().await.expect("it goes on").expect("it goes on");
                    assert_eq!(item.number, number);
                }
                assert!(items.next().await.is_none());
                let reply = items.finish().await.expect("it ends with a reply");
                assert_eq!((reply.id.to_native(), reply.sum.to_native()), (id, 44_850));

                let mut endless = client
                    .stream(&add(id, ENDLESS))
                    .await
                    .expect("there is room");
                endless
                    .next()
                    .await
                    .expect("it goes on")
                    .expect("it goes on");
                drop(endless);

                let refused = client.call(&add(id, REFUSED)).await.err();
                match refused {
                    Some(CallError::Service(error)) => assert_eq!(error.id, id),
                    other => panic!("{other:?}"),
                }
                let dropped = client.call(&add(id, DROPPED)).await.err();
                assert!(
                    matches!(dropped, Some(CallError::Unanswered { .. })),
                    "{dropped:?}"
                );
                drop(client.call(&add(id, 0)));
            }
        })
    });
}

#[test]
fn a_deadline_wakes_its_task() {
    let _together = together();
    let bus = Config::default()
        .open(&name("late"))
        .expect("the bus opens");
    let server = bus.server::<Add>().expect("nobody else serves");
    let client = bus.async_client::<Add>().expect("a server is there");
    let request = add(1, 0);
    let pending = client.call_timeout(&request, Duration::from_millis(20));
    let late = pending.wait().err();
    assert!(matches!(late, Some(CallError::TimedOut)), "{late:?}");
    // One far away, and one whose task is gone.
    drop(client.call_timeout(&request, Duration::from_secs(3_600)));
    let late = client.call_timeout(&request, Duration::ZERO).wait().err();
    assert!(matches!(late, Some(CallError::TimedOut)), "{late:?}");
    drop(server);
}

#[test]
fn a_server_that_ends_wakes_every_task() {
    static LOST: AtomicU64 = AtomicU64::new(0);
    let _together = together();
    let name = name("gone");
    let serving = Config::default().open(&name).expect("the bus opens");
    let calling = Config::default().open(&name).expect("the bus opens");
    let mut server = serving.server::<Add>().expect("nobody else serves");
    let client = calling.async_client::<Add>().expect("a server is there");
    let waiting: Vec<_> = (0..50)
        .map(|id| {
            let client = Arc::new(client.clone());
            thread::spawn(move || {
                let error = client.call(&add(id, 0)).wait().err();
                assert!(matches!(error, Some(CallError::Lost { .. })), "{error:?}");
                LOST.fetch_add(1, Ordering::Relaxed);
            })
        })
        .collect();
    let first = server.next().expect("not forked").expect("it comes");
    std::mem::forget(first);
    drop((server, serving));
    for thread in waiting {
        thread.join().expect("the caller does not panic");
    }
    assert_eq!(LOST.load(Ordering::Relaxed), 50);
}
