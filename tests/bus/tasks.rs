//! Clients that many tasks share, on every executor.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use shmbus::{
    AsyncCall, AsyncClient, AsyncServer, Bus, CallError, Config, Driver, Kept, Pending, SendError,
    ShmMessage, Wait,
};

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
    /// Whether it also wakes what waits for messages; else a thread of the bus does.
    drives: bool,
}

impl Executor {
    fn drive(&self, buses: [&Bus; 2]) {
        if self.drives {
            for bus in buses {
                smol::spawn(drive(bus.driver())).detach();
            }
        }
    }
}

/// Wakes the tasks of a bus until it is gone.
async fn drive(driver: Driver) {
    let driver = smol::Async::new(driver).expect("it can be polled");
    while driver.get_ref().dispatch() {
        driver.readable().await.expect("it can be polled");
    }
}

const EXECUTORS: [Executor; 5] = [
    Executor {
        name: "tokio",
        run: |tasks| on_tokio(&tokio::runtime::Builder::new_multi_thread().build(), tasks),
        drives: false,
    },
    Executor {
        name: "tokio-current-thread",
        run: |tasks| {
            on_tokio(
                &tokio::runtime::Builder::new_current_thread().build(),
                tasks,
            )
        },
        drives: false,
    },
    Executor {
        name: "smol",
        run: on_smol,
        drives: false,
    },
    Executor {
        name: "smol-driven",
        run: on_smol,
        drives: true,
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
        drives: false,
    },
];

fn on_smol(tasks: Vec<Task>) {
    let running: Vec<_> = tasks.into_iter().map(smol::spawn).collect();
    smol::block_on(async {
        for task in running {
            task.await;
        }
    });
}

fn on_tokio(runtime: &std::io::Result<tokio::runtime::Runtime>, tasks: Vec<Task>) {
    let runtime = runtime.as_ref().expect("the runtime starts");
    runtime.block_on(async {
        let running: Vec<_> = tasks.into_iter().map(|task| runtime.spawn(task)).collect();
        for task in running {
            task.await.expect("the task does not panic");
        }
    });
}

/// Says what went wrong between two buses, where a test fails.
struct Said([Bus; 2]);

impl Drop for Said {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0
                .iter()
                .for_each(|bus| eprintln!("{:?}", bus.take_incidents()));
        }
    }
}

/// Runs the same on each executor and with each way of waiting.
fn everywhere(test: &str, tasks: usize, task: fn(AsyncClient<Add>, u64) -> Task) {
    let _together = together();
    for executor in EXECUTORS {
        let Executor {
            name: shown, run, ..
        } = executor;
        for wait in [Wait::Adaptive, Wait::Park, Wait::Spin] {
            eprintln!("{shown}, {wait:?}");
            let config = Config {
                wait,
                ..Config::default()
            };
            let name = name(&format!("{test}-{shown}-{wait:?}"));
            let serving = config.open(&name).expect("the bus opens");
            let calling = config.open(&name).expect("the bus opens");
            let thread = serve(&serving);
            let _said = Said([serving.clone(), calling.clone()]);
            let client = calling.async_client::<Add>().expect("a server is there");
            executor.drive([&serving, &calling]);
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
                let ended = match error {
                    Some(CallError::Lost { .. }) => true,
                    // It had not sent its request before.
                    Some(CallError::Connect(_)) => true,
                    _ => false,
                };
                assert!(ended, "{error:?}");
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

/// As [`everywhere`], with a server among the tasks: `serve` makes as many of them as it likes.
fn everywhere_served(
    test: &str,
    waits: &[Wait],
    serve: fn(Arc<AsyncServer<Add>>) -> Vec<Task>,
    call: fn(AsyncClient<Add>, Bus) -> Vec<Task>,
) {
    let _together = together();
    for executor in EXECUTORS {
        let Executor {
            name: shown, run, ..
        } = executor;
        for &wait in waits {
            eprintln!("{shown}, {wait:?}");
            let config = Config {
                wait,
                ..Config::default()
            };
            let name = name(&format!("{test}-{shown}-{wait:?}"));
            let serving = config.open(&name).expect("the bus opens");
            let calling = config.open(&name).expect("the bus opens");
            let server = serving.async_server::<Add>().expect("nobody else serves");
            let client = calling.async_client::<Add>().expect("a server is there");
            let mut tasks = serve(Arc::new(server));
            executor.drive([&serving, &calling]);
            tasks.extend(call(client, serving));
            run(tasks);
        }
    }
}

/// Waits for all of them at once: each is sent as soon as there is room for it.
async fn all(pending: Vec<Pending<'_, Add>>) -> Vec<Kept<Sum>> {
    let mut replies: Vec<_> = pending.iter().map(|_| None).collect();
    let mut pending: Vec<_> = pending.into_iter().map(Some).collect();
    poll_fn(|cx| {
        for (pending, reply) in pending.iter_mut().zip(&mut replies) {
            let polled = pending.as_mut().map(|call| Pin::new(call).poll(cx));
            if let Some(Poll::Ready(answer)) = polled {
                (*pending, *reply) = (None, Some(answer.expect("it answers")));
            }
        }
        if pending.iter().any(Option::is_some) {
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
    replies.into_iter().flatten().collect()
}

fn sum_of(call: &AsyncCall<Add>) -> Sum {
    Sum {
        id: call.id.to_native(),
        sum: 0,
        padding: call.padding.to_vec(),
    }
}

#[test]
fn ten_thousand_calls_that_no_one_has_answered() {
    const TASKS: u64 = 100;
    const EACH: u64 = 100;
    everywhere_served(
        "ten-thousand",
        &[Wait::Adaptive],
        |server| {
            vec![Box::pin(async move {
                let mut taken = Vec::new();
                while taken.len() < (TASKS * EACH) as usize {
                    let call = server.next().await.expect("not forked");
                    taken.push(call.expect("the bus is open"));
                }
                // In some other order than they came in.
                let mut random = 7usize;
                while !taken.is_empty() {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let call = taken.swap_remove((random >> 33) % taken.len());
                    let reply = sum_of(&call);
                    call.reply(&reply).expect("it fits");
                }
            })]
        },
        |client, _| {
            let task = |task: u64| -> Task {
                let client = client.clone();
                Box::pin(async move {
                    let id = |turn: u64| (task * EACH + turn) * 6;
                    let requests: Vec<_> = (0..EACH).map(|turn| add(id(turn), 0)).collect();
                    let pending: Vec<_> = requests.iter().map(|r| client.call(r)).collect();
                    for (request, reply) in requests.iter().zip(all(pending).await) {
                        assert_eq!(reply.id, request.id);
                    }
                })
            };
            (0..TASKS).map(task).collect()
        },
    );
}

#[test]
fn many_tasks_serve_and_send_streams_to_many() {
    const TASKS: u64 = 8;
    static ENDED: AtomicU64 = AtomicU64::new(0);
    everywhere_served(
        "serving",
        &[Wait::Adaptive, Wait::Park],
        |server| {
            let task = |_| -> Task {
                let server = server.clone();
                Box::pin(async move {
                    while let Some(call) = server.next().await.expect("not forked") {
                        let count = call.count.to_native();
                        let mut sent = Ok(());
                        for number in 0..count {
                            sent = call.send(&Number { number }).await;
                            if sent.is_err() {
                                break;
                            }
                        }
                        match sent {
                            Ok(()) => {
                                let reply = sum_of(&call);
                                match call.reply(&reply) {
                                    Ok(()) | Err(SendError::Cancelled) => {}
                                    Err(error) => panic!("{error}"),
                                }
                            }
                            Err(SendError::Cancelled) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            };
            (0..3).map(task).collect()
        },
        |client, serving| {
            ENDED.store(0, Ordering::Relaxed);
            let task = |task: u64| -> Task {
                let (client, serving) = (client.clone(), serving.clone());
                Box::pin(async move {
                    for turn in 0..10 {
                        let id = task * 1_000 + turn;
                        let request = add(id, 700);
                        let mut items = client.stream(&request).await.expect("there is room");
                        for number in 0..700 {
                            let item = items.next().await.expect("it goes on");
                            assert_eq!(item.expect("it goes on").number, number);
                        }
                        let reply = items.finish().await.expect("it ends with a reply");
                        assert_eq!(reply.id, id);
                        let endless = add(id, ENDLESS);
                        let mut endless = client.stream(&endless).await.expect("there is room");
                        endless
                            .next()
                            .await
                            .expect("it goes on")
                            .expect("it goes on");
                    }
                    if ENDED.fetch_add(1, Ordering::Relaxed) + 1 == TASKS {
                        serving.close();
                    }
                })
            };
            (0..TASKS).map(task).collect()
        },
    );
}

#[test]
fn a_task_learns_that_its_call_is_cancelled() {
    everywhere_served(
        "cancelled",
        &[Wait::Adaptive, Wait::Park],
        |server| {
            vec![Box::pin(async move {
                for turn in 0..50 {
                    let call = server.next().await.expect("not forked");
                    let call = call.expect("the bus is open");
                    // It has something of the call, and waits for nothing else; at times with
                    // another request that nobody takes meanwhile.
                    call.try_send(&Number { number: turn })
                        .expect("there is room");
                    call.cancelled().await;
                    assert!(call.is_cancelled());
                    drop(call);
                    if turn % 2 == 1 {
                        let other = server.next().await.expect("not forked");
                        let other = other.expect("the bus is open");
                        let reply = sum_of(&other);
                        other.reply(&reply).expect("it fits");
                    }
                }
            })]
        },
        |client, _| {
            vec![Box::pin(async move {
                for turn in 0..50 {
                    let request = add(turn, 1);
                    let mut items = client.stream(&request).await.expect("there is room");
                    let item = items.next().await.expect("it goes on");
                    assert_eq!(item.expect("it goes on").number, turn as u32);
                    let other = add(turn, 0);
                    let other = (turn % 2 == 1).then(|| client.call(&other));
                    if turn % 3 == 0 {
                        thread::sleep(Duration::from_millis(1));
                    }
                    drop(items);
                    if let Some(other) = other {
                        assert_eq!(other.await.expect("it answers").id, turn);
                    }
                }
            })]
        },
    );
}
