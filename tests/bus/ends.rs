//! What becomes of tasks whose server, call or bus is gone.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use shmbus::{CallError, ConnectError, SendError, ShmMessage};

use crate::support::{Ask, Child, Counting, name, open, poll, tell, together, told};

#[derive(ShmMessage)]
#[shm(service = "steps", stream = Step, reply = Done)]
pub(crate) struct Walk {
    pub(crate) id: u64,
    pub(crate) steps: u32,
    /// Bytes of each step, and of the reply.
    pub(crate) bytes: u32,
}

#[derive(ShmMessage)]
pub(crate) struct Step {
    pub(crate) number: u32,
    pub(crate) padding: Vec<u8>,
}

#[derive(ShmMessage)]
pub(crate) struct Done {
    pub(crate) id: u64,
    pub(crate) padding: Vec<u8>,
}

pub(crate) fn walk(id: u64, steps: u32, bytes: u32) -> Walk {
    Walk { id, steps, bytes }
}

/// As many calls as a lane pair has tags for, none of which will ever have a last word.
#[test]
fn a_call_after_the_end_of_a_server_that_owes_many_answers() {
    let _together = together();
    for calls in [448, 1_000] {
        let name = name(&format!("owes-{calls}"));
        let (here, there) = (open(&name), open(&name));
        let server = here.server::<Ask>().expect("nobody else serves");
        let client = there.async_client::<Ask>().expect("a server is there");
        let requests: Vec<_> = (0..calls).map(|id| Ask::new(id, 0)).collect();
        let mut pending: Vec<_> = requests.iter().map(|ask| client.call(ask)).collect();
        drop((server, here));
        // Some are dropped before they learn of it.
        pending.truncate(pending.len() / 2);
        for pending in pending {
            let error = pending.wait().err();
            let ended = matches!(error, Some(CallError::Lost { .. } | CallError::Connect(_)));
            assert!(ended, "{error:?}");
        }
        let ask = Ask::new(0, 0);
        let error = client.call(&ask).wait().err();
        let nobody = matches!(
            error,
            Some(CallError::Connect(ConnectError::NoServer { .. }))
        );
        assert!(nobody, "{error:?}");
    }
}

/// A handler gives its call to others, who go on with it behind its answer.
#[test]
fn a_call_that_is_answered_sends_no_more() {
    let _together = together();
    let name = name("clones");
    let (here, there) = (open(&name), open(&name));
    let server = Arc::new(here.async_server::<Walk>().expect("nobody else serves"));
    let (given, clones) = channel();
    let running = thread::spawn({
        let (server, given) = (server.clone(), Mutex::new(given));
        move || {
            pollster::block_on(server.run(
                |task| drop(thread::spawn(|| pollster::block_on(task))),
                move |call| {
                    let given = given.lock().expect("nobody panics").clone();
                    async move {
                        given.send(call.clone()).expect("the test listens");
                        let (id, padding) = (call.id.to_native(), Vec::new());
                        Ok(Done { id, padding })
                    }
                },
            ))
        }
    });
    let client = there.async_client::<Walk>().expect("a server is there");
    let mut clones_of_it = Vec::new();
    for id in 0..200 {
        let request = walk(id, 0, 0);
        let reply = client.call(&request).wait().expect("it is answered");
        assert_eq!(reply.id, id);
        // The next call has the same tag. What is sent for this one does not reach it.
        let clone = clones.recv().expect("the handler gives it");
        let next = walk(id + 1_000, 0, 0);
        let next = client.call(&next).wait().expect("it is answered");
        assert_eq!(next.id, id + 1_000);
        let step = || Step {
            number: 0,
            padding: Vec::new(),
        };
        assert!(matches!(clone.try_send(&step()), Err(SendError::Cancelled)));
        assert!(matches!(
            clone.send(&step()).wait(),
            Err(SendError::Cancelled)
        ));
        pollster::block_on(clone.cancelled());
        clones_of_it.push(clones.recv().expect("the handler gives it"));
    }
    for clone in clones_of_it {
        pollster::block_on(clone.cancelled());
    }
    assert_eq!(here.take_incidents(), []);
    assert_eq!(there.take_incidents(), []);
    server.stop();
    running.join().expect("no panic").expect("not forked");
}

/// Who waits for a cancel is woken when the call is answered.
#[test]
fn who_watches_a_call_learns_of_its_answer() {
    let _together = together();
    let bus = open(&name("watched"));
    let server = Arc::new(bus.async_server::<Walk>().expect("nobody else serves"));
    let (watched, watching) = channel();
    let running = thread::spawn({
        let (server, watched) = (server.clone(), Mutex::new(watched));
        move || {
            pollster::block_on(server.run(
                |task| drop(thread::spawn(|| pollster::block_on(task))),
                move |call| {
                    let watched = watched.lock().expect("nobody panics").clone();
                    async move {
                        let (clone, (waits, waiting)) = (call.clone(), channel());
                        let watcher = thread::spawn(move || {
                            let mut cancelled = std::pin::pin!(clone.cancelled());
                            let waker = Waker::from(Arc::new(Counting::default()));
                            let mut cx = Context::from_waker(&waker);
                            assert!(cancelled.as_mut().poll(&mut cx).is_pending());
                            waits.send(()).expect("the handler waits");
                            pollster::block_on(cancelled);
                        });
                        waiting.recv().expect("it looks");
                        watched.send(watcher).expect("the test listens");
                        let (id, padding) = (call.id.to_native(), Vec::new());
                        Ok(Done { id, padding })
                    }
                },
            ))
        }
    });
    let client = bus.async_client::<Walk>().expect("a server is there");
    for id in 0..50 {
        let request = walk(id, 0, 0);
        assert_eq!(client.call(&request).wait().expect("an answer").id, id);
        let watcher = watching.recv().expect("the handler gives it");
        watcher.join().expect("it ends");
    }
    server.stop();
    running.join().expect("no panic").expect("not forked");
}

/// Nothing but what waits is left of its bus.
#[test]
fn what_waits_has_its_bus_stay() {
    let _together = together();
    let name = name("stays");
    let here = open(&name);
    let server = here.async_server::<Walk>().expect("nobody else serves");
    let mut items = {
        let there = open(&name);
        let client = there.async_client::<Walk>().expect("a server is there");
        let request = walk(1, 0, 0);
        pollster::block_on(client.stream(&request)).expect("there is room")
    };
    let call = server.next().wait().expect("not forked").expect("it came");
    let (woken, waking) = channel();
    let waiting = thread::spawn(move || {
        let first = pollster::block_on(items.next()).expect("an item");
        woken
            .send(first.expect("an item").number.to_native())
            .expect("the test listens");
        pollster::block_on(items.next()).is_none()
    });
    let cancelled = {
        // The same on the other side: neither the server nor the bus is there any more.
        drop((server, here));
        let padding = Vec::new();
        call.try_send(&Step { number: 7, padding })
            .expect("there is room");
        assert_eq!(waking.recv(), Ok(7));
        call
    };
    let watching = thread::spawn(move || {
        let (id, padding) = (cancelled.id.to_native(), Vec::new());
        cancelled.reply(&Done { id, padding }).expect("it fits");
    });
    watching.join().expect("no panic");
    assert!(waiting.join().expect("no panic"));
}

/// A call is held for long: others are told that nobody takes theirs.
#[test]
fn what_comes_after_the_end_of_a_server_is_refused_while_calls_are_held() {
    let _together = together();
    let name = name("held");
    let (here, there) = (open(&name), open(&name));
    let server = here.async_server::<Walk>().expect("nobody else serves");
    let client = there.async_client::<Walk>().expect("a server is there");
    let request = walk(1, 0, 0);
    let pending = client.call(&request);
    let held = server.next().wait().expect("not forked").expect("it came");
    server.stop();
    assert!(server.next().wait().expect("not forked").is_none());
    let refused = |id| {
        let request = walk(id, 0, 0);
        let error = client.call(&request).wait().err();
        assert!(
            matches!(error, Some(CallError::Stopping { .. })),
            "{error:?}"
        );
    };
    (2..1_000).for_each(refused);
    drop(server);
    (1_000..2_000).for_each(refused);
    let padding = Vec::new();
    held.reply(&Done { id: 1, padding }).expect("it fits");
    assert_eq!(pending.wait().expect("it was taken").id, 1);
}

/// A bus that is closed takes what came before, and refuses the rest.
#[test]
fn what_comes_after_the_end_of_a_bus_is_refused() {
    let _together = together();
    let name = name("closed");
    let (here, there) = (open(&name), open(&name));
    let server = here.async_server::<Walk>().expect("nobody else serves");
    let client = there.async_client::<Walk>().expect("a server is there");
    here.close();
    while server.next().wait().expect("not forked").is_some() {}
    let request = walk(1, 0, 0);
    let error = client.call(&request).wait().err();
    assert!(
        matches!(error, Some(CallError::Stopping { .. })),
        "{error:?}"
    );
}

/// A reply that is made when the time is over is none, however late its caller looks.
#[test]
fn an_answer_behind_its_deadline_is_none() {
    let _together = together();
    let bus = open(&name("behind"));
    let serving = bus.serve::<Walk, _>(2, |call| {
        pollster::block_on(call.cancelled());
        let (id, padding) = (call.id.to_native(), Vec::new());
        Ok(Done { id, padding })
    });
    let serving = serving.expect("nobody else serves");
    let soon = Duration::from_millis(3);
    let client = bus.client::<Walk>().expect("a server is there");
    let shared = bus.async_client::<Walk>().expect("a server is there");
    for id in 0..20 {
        let request = walk(id, 0, 0);
        let late = client.call_timeout(&request, soon).err();
        assert!(matches!(late, Some(CallError::TimedOut)), "{late:?}");
        let pending = shared.call_timeout(&request, soon);
        thread::sleep(2 * soon);
        let late = pending.wait().err();
        assert!(matches!(late, Some(CallError::TimedOut)), "{late:?}");
        pollster::block_on(async {
            let steps = shared.stream_timeout(&request, soon).await;
            let late = steps.expect("there is room").next().await;
            assert!(matches!(late, Some(Err(CallError::TimedOut))));
        });
    }
    drop(serving);
}

fn wait_for(counting: &Counting, wakes: usize) {
    while counting.0.load(Ordering::Relaxed) < wakes {
        thread::yield_now();
    }
}

/// One watcher of a lane is not taken for another, whichever comes first, and ends first.
#[test]
fn each_watcher_is_woken_for_its_own_call() {
    let _together = together();
    let name = name("watchers");
    let (here, there) = (open(&name), open(&name));
    let server = here.async_server::<Walk>().expect("nobody else serves");
    let client = there.async_client::<Walk>().expect("a server is there");
    let requests = [walk(1, 0, 0), walk(2, 0, 0)];
    let take = || server.next().wait().expect("not forked").expect("it came");
    for newer_ends in [true, false] {
        let older = client.call(&requests[0]);
        let first = take();
        let [one, two] = [(); 2].map(|()| Arc::new(Counting::default()));
        let (waker, other) = (Waker::from(one.clone()), Waker::from(two.clone()));
        let mut watching = Box::pin(first.cancelled());
        assert!(poll(&mut watching, &waker).is_pending());
        // Its ring has the watcher look again.
        let newer = client.call(&requests[1]);
        let second = take();
        wait_for(&one, 1);
        let mut others = Box::pin(second.cancelled());
        assert!(poll(&mut others, &other).is_pending());
        assert!(poll(&mut watching, &waker).is_pending());
        if newer_ends {
            drop((watching, newer));
            wait_for(&two, 1);
            assert!(poll(&mut others, &other).is_ready());
            drop(older);
        } else {
            drop((others, older));
            wait_for(&one, 2);
            assert!(poll(&mut watching, &waker).is_ready());
            drop(newer);
        }
    }
}

/// A part: calls, and is killed.
pub(crate) fn calls_and_dies(name: &str) {
    let bus = open(name);
    let client = bus.client::<Walk>().expect("a server is there");
    let steps = client.stream(&walk(1, 0, 0)).expect("there is room");
    tell("called");
    while told().is_some() {}
    drop(steps);
}

#[test]
fn who_watches_a_call_learns_of_its_callers_death() {
    let _together = together();
    for takes in [false, true] {
        let name = name(&format!("caller-dies-{takes}"));
        let bus = open(&name);
        let server = Arc::new(bus.async_server::<Walk>().expect("nobody else serves"));
        let mut child = Child::start("calls-and-dies", &[&name]);
        assert_eq!(child.hear(), "called");
        let call = server.next().wait().expect("not forked").expect("it came");
        let taking = takes.then(|| {
            let server = server.clone();
            thread::spawn(move || server.next().wait().map(|call| call.is_none()))
        });
        let counting = Arc::new(Counting::default());
        let waker = Waker::from(counting.clone());
        let mut watching = Box::pin(call.cancelled());
        assert!(poll(&mut watching, &waker).is_pending());
        child.kill();
        wait_for(&counting, 1);
        while poll(&mut watching, &waker).is_pending() {
            thread::yield_now();
        }
        server.stop();
        if let Some(taking) = taking {
            assert_eq!(taking.join().expect("no panic"), Ok(true));
        }
    }
}

/// The last handle on a call that was answered is one that its handler gave away.
#[test]
fn a_call_is_answered_once() {
    let _together = together();
    let name = name("once");
    let (here, there) = (open(&name), open(&name));
    let server = Arc::new(here.async_server::<Walk>().expect("nobody else serves"));
    let (given, clones) = channel();
    let (go_on, gone_on) = channel();
    let running = thread::spawn({
        let (server, both) = (server.clone(), Mutex::new((given, Some(gone_on))));
        move || {
            pollster::block_on(server.run(
                |task| drop(thread::spawn(|| pollster::block_on(task))),
                move |call| {
                    let mut both = both.lock().expect("nobody panics");
                    let given = both.0.clone();
                    let waits = (call.id == 2).then(|| both.1.take()).flatten();
                    async move {
                        let (id, padding) = (call.id.to_native(), Vec::new());
                        match waits {
                            None => given.send(call).expect("the test listens"),
                            Some(waits) => waits.recv().expect("the test goes on"),
                        }
                        Ok(Done { id, padding })
                    }
                },
            ))
        }
    });
    let client = there.async_client::<Walk>().expect("a server is there");
    let requests = [walk(1, 0, 0), walk(2, 0, 0)];
    assert_eq!(client.call(&requests[0]).wait().expect("an answer").id, 1);
    let mut clone = clones.recv().expect("the handler gives it");
    // Of the same tag.
    let second = client.call(&requests[1]);
    let call = loop {
        match Arc::try_unwrap(clone) {
            Ok(call) => break call,
            Err(shared) => clone = shared,
        }
        thread::yield_now();
    };
    let padding = Vec::new();
    let late = call.reply(&Done { id: 77, padding });
    assert!(matches!(late, Err(SendError::Cancelled)), "{late:?}");
    go_on.send(()).expect("the handler waits");
    assert_eq!(second.wait().expect("an answer").id, 2);
    assert_eq!(there.take_incidents(), []);
    server.stop();
    running.join().expect("no panic").expect("not forked");
}

/// Threads of this process that keep links.
fn quiet_threads(of: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("there is /proc");
    let names = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim() == of).count()
}

/// A part: makes and drops many buses whose answers are on their way.
pub(crate) fn drops_buses(name: &str) {
    let waker = Waker::from(Arc::new(Counting::default()));
    for turn in 0..600 {
        {
            let bus = open(name);
            let client = bus.async_client::<Walk>().expect("a server is there");
            let requests: Vec<_> = (0..20).map(|id| walk(id, 0, 0)).collect();
            let mut pending: Vec<_> = requests.iter().map(|walk| client.call(walk)).collect();
            for pending in &mut pending {
                let _ = poll(pending, &waker);
            }
            for _ in 0..turn % 40 * 100 {
                std::hint::spin_loop();
            }
        }
        assert_eq!(quiet_threads("shmbus"), 0, "turn {turn}");
    }
    tell("good");
}

/// Who drops the last handle of a bus ends it, whatever is under way.
#[test]
fn a_bus_has_ended_when_its_last_handle_is_dropped() {
    let _together = together();
    let name = name("last-handle");
    let bus = open(&name);
    let serving = bus.serve::<Walk, _>(2, |call| {
        let (id, padding) = (call.id.to_native(), Vec::new());
        Ok(Done { id, padding })
    });
    let _serving = serving.expect("nobody else serves");
    let mut child = Child::start("drops-buses", &[&name]);
    assert_eq!(child.hear(), "good");
    assert!(child.end().success());
}
