//! In a forked child every handle refuses, and its end harms nothing in the parent.
//!
//! Unsafe code is needed to fork.
#![allow(unsafe_code)]

use std::time::Duration;

use shmbus::{
    AsyncClient, Bus, CallError, Client, PinError, Pinned, ReceiveError, Receiver, SendError,
    Sender, Server, ShmMessage, View,
};

use crate::support::{Answer, Ask, Child, Dir, answer, check_call, name, open, tell, together};

struct Handles {
    bus: Bus,
    client: Client<Ask>,
    shared: AsyncClient<Ask>,
    server: Server<Ask>,
    sender: Sender<Ask>,
    receiver: Receiver<Ask>,
}

#[derive(ShmMessage)]
#[shm(latest = "counted")]
struct Counted {
    number: u64,
}

/// What a forked child finds: 0, or the number of what went wrong.
fn look(handles: &mut Handles) -> i32 {
    let ask = Ask::new(1, 24);
    let checks = [
        matches!(
            handles.client.call(&ask),
            Err(CallError::Send(SendError::Forked))
        ),
        matches!(
            handles.client.stream(&ask).err(),
            Some(CallError::Send(SendError::Forked))
        ),
        matches!(handles.sender.send(&ask), Err(SendError::Forked)),
        matches!(handles.sender.try_send(&ask), Err(SendError::Forked)),
        matches!(handles.server.try_next(), Err(ReceiveError::Forked)),
        matches!(handles.receiver.try_next(), Err(ReceiveError::Forked)),
        matches!(
            handles.shared.call(&ask).wait().err(),
            Some(CallError::Send(SendError::Forked))
        ),
        handles.client.loan_bytes(100).is_err(),
        handles.sender.loan_bytes(100_000).is_err(),
        handles.client.try_clone().is_err(),
        handles.sender.try_clone().is_err(),
        handles.bus.client::<Ask>().is_err(),
        handles.bus.sender::<Ask>("asks").is_err(),
        handles.bus.receiver::<Ask>("others").is_err(),
    ];
    checks.iter().position(|c| !c).map_or(0, |n| n as i32 + 1)
}

/// Runs something in a forked child, and returns the exit code, or the signal, negated.
pub(crate) fn in_fork(run: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs on from here alone, and ends without returning.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(code.unwrap_or(99)) };
    }
    let mut status = 0;
    // SAFETY: the status is ours to write.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    if libc::WIFSIGNALED(status) {
        return -libc::WTERMSIG(status);
    }
    libc::WEXITSTATUS(status)
}

/// A part: forks with every kind of handle.
pub(crate) fn forks() {
    let name = "fork";
    let serving = open(name);
    let server = serving.server::<Ask>().expect("nobody else serves");
    let thread = std::thread::spawn(move || answer(server));
    let client = open(name).client::<Ask>().expect("a server is there");
    let shared = open(name).async_client::<Ask>().expect("a server is there");
    let bus = open("fork-other");
    let mut handles = Some(Handles {
        server: bus.server::<Ask>().expect("nobody else serves"),
        receiver: bus.receiver::<Ask>("asks").expect("nobody else does"),
        sender: bus.sender::<Ask>("asks").expect("a receiver is there"),
        client,
        shared,
        bus,
    });
    check_call(&handles.as_ref().expect("made").client, 1, 24);
    assert_eq!(in_fork(|| look(handles.as_mut().expect("made"))), 0, "look");
    let end = in_fork(|| {
        drop(handles.take());
        drop(serving.clone());
        0
    });
    assert_eq!(end, 0, "dropping handles");
    assert_eq!(in_fork(on_its_own), 0, "a bus of its own");
    // All of it stays the parent's, and works.
    let mut handles = handles.expect("only the child dropped them");
    for id in 0..100 {
        check_call(&handles.client, id, 5000);
    }
    handles
        .sender
        .send(&Ask::new(7, 24))
        .expect("there is room");
    let got = handles.receiver.next().expect("not forked");
    assert_eq!(got.expect("it was sent").id, 7);
    check_call(&open(name).client().expect("the port stays"), 9, 24);
    drop(handles);
    serving.close();
    thread.join().expect("the server does not panic");
    tell("good");
}

/// A part: drops views, in place and kept, in a forked child.
pub(crate) fn forks_with_views() {
    let serving = open("views");
    let server = serving.server::<Ask>().expect("nobody else serves");
    let thread = std::thread::spawn(move || answer(server));
    let client = open("views").client::<Ask>().expect("a server is there");
    let (ask, shared) = (Ask::new(5, 24), open("views").async_client::<Ask>());
    let shared = shared.expect("a server is there");
    let mut pending = Some(shared.call(&ask));
    let end = in_fork(|| {
        let waited = pending.take().expect("it is there").wait();
        i32::from(!matches!(
            waited.err(),
            Some(CallError::Send(SendError::Forked))
        ))
    });
    assert_eq!(end, 0, "waiting for a call");
    let pending = pending.expect("only the child took it");
    assert_eq!(pending.wait().expect("it answers").id, 5);
    let items = client.stream(&Ask::new(4, 24)).expect("there is room");
    let mut items = Some(items);
    let end = in_fork(|| {
        drop(items.take());
        0
    });
    assert_eq!(end, 0, "dropping a stream");
    let items = items.expect("only the child dropped it");
    assert_eq!(items.finish().expect("it answers").id, 4);
    for len in [24, 500_000] {
        let mut view = Some(client.call(&Ask::new(1, len)).expect("it answers"));
        let end = in_fork(|| {
            drop(view.take());
            0
        });
        assert_eq!(end, 0, "dropping a view of {len} bytes");
        drop(view);
        let kept = client.call(&Ask::new(2, len)).expect("it answers").keep();
        let mut kept = Some(kept);
        let end = in_fork(|| {
            drop(kept.take());
            0
        });
        assert_eq!(end, 0, "dropping what was kept of {len} bytes");
        assert_eq!(kept.as_ref().expect("ours").text.len(), len);
    }
    check_call(&client, 3, 24);
    drop(client);
    serving.close();
    thread.join().expect("the server does not panic");
    tell("good");
}

#[derive(ShmMessage)]
#[shm(service = "pooled", reply = Answer)]
struct Pooled {
    id: u64,
}

#[derive(ShmMessage)]
#[shm(service = "shared", reply = Answer)]
struct Shared {
    id: u64,
}

/// A part: forks again and again while threads of the parent take the locks of ports that tasks share.
pub(crate) fn forks_with_newest_values() {
    let bus = open("newest");
    let mut publisher = Some(bus.latest_publisher::<Counted>().expect("it joins"));
    let mut latest = Some(bus.latest::<Counted>().expect("it joins"));
    let refused = (publisher.as_mut())
        .expect("made")
        .publish(&Counted { number: 1 });
    refused.expect("there is memory");
    for turn in 0..20 {
        let end = in_fork(|| {
            let (mut one, mut other) = (
                publisher.take().expect("made"),
                latest.take().expect("made"),
            );
            let checks = [
                matches!(one.publish(&Counted { number: 2 }), Err(SendError::Forked)),
                matches!(one.remove(&()), Err(SendError::Forked)),
                one.readers() == 0,
                matches!(other.value().err(), Some(ReceiveError::Forked)),
                matches!(other.try_next().err(), Some(ReceiveError::Forked)),
                matches!(other.changed().wait(), Err(ReceiveError::Forked)),
                bus.latest::<Counted>().is_err(),
                bus.latest_publisher::<Counted>().is_err(),
            ];
            if turn % 2 == 0 {
                drop(one);
                drop(other);
            } else {
                drop(other);
                drop(one);
            }
            checks.iter().position(|c| !c).map_or(0, |n| n as i32 + 1)
        });
        assert_eq!(end, 0, "turn {turn}");
    }
    let mut latest = latest.expect("only children dropped it");
    let mut held = Some(
        latest
            .value()
            .expect("not forked")
            .expect("it was published"),
    );
    let end = in_fork(|| {
        drop(held.take());
        0
    });
    assert_eq!(end, 0);
    assert_eq!(held.expect("only the child dropped it").number, 1);
    let mut publisher = publisher.expect("only children dropped it");
    publisher
        .publish(&Counted { number: 3 })
        .expect("there is memory");
    assert_eq!(
        latest
            .value()
            .expect("not forked")
            .expect("it was published")
            .number,
        3
    );
    tell("good");
}

pub(crate) fn forks_with_tasks() {
    const FORKS: usize = 60;
    const HOUR: Duration = Duration::from_secs(3_600);
    let bus = open("tasks");
    let pool = bus.serve::<Pooled, _>(2, |call| {
        Ok(Answer {
            id: call.id.to_native(),
            ..Answer::default()
        })
    });
    let mut pool = Some(pool.expect("nobody else serves"));
    let mut server = Some(bus.async_server::<Shared>().expect("nobody else serves"));
    let pooled = bus.async_client::<Pooled>().expect("a server is there");
    let shared = bus.async_client::<Shared>().expect("a server is there");
    let request = Shared { id: 1 };
    let mut pending = Some(shared.call_timeout(&request, HOUR));
    let call = server.as_ref().expect("made").next().wait();
    let mut call = Some(call.expect("not forked").expect("it came"));
    let stops = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut id = 0;
                while !stops.load(std::sync::atomic::Ordering::Relaxed) {
                    id += 1;
                    let request = Pooled { id };
                    let answer = pooled.call_timeout(&request, HOUR).wait();
                    assert_eq!(answer.expect("it answers").id, id);
                }
            });
        }
        for turn in 0..FORKS {
            let end = in_fork(|| {
                // In each order, since each might wait for what another one holds.
                let mut drops: [&mut dyn FnMut(); 4] = [
                    &mut || drop(pending.take()),
                    &mut || drop(call.take()),
                    &mut || drop(server.take()),
                    &mut || drop(pool.take()),
                ];
                drops.rotate_left(turn % 4);
                drops.iter_mut().for_each(|then| then());
                0
            });
            assert_eq!(end, 0, "turn {turn}");
        }
        stops.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let answer = Answer {
        id: 1,
        ..Answer::default()
    };
    call.expect("only children dropped it")
        .reply(&answer)
        .expect("it fits");
    let pending = pending.expect("only children dropped it");
    assert_eq!(pending.wait().expect("it answers").id, 1);
    drop(pool);
    tell("good");
}

#[derive(ShmMessage)]
struct Refer {
    document: Pinned<Answer>,
}

/// A part: opens, pins and drops in a forked child, which harms nothing in the parent.
pub(crate) fn forks_with_pins() {
    let (there, here) = (open("pins"), open("pins"));
    let mut receiver = here.receiver::<Refer>("all").expect("nobody else does");
    let mut sender = there.sender::<Refer>("all").expect("a receiver is there");
    let answer = Answer {
        text: "x".repeat(500_000),
        ..Answer::default()
    };
    let mut pin = Some(there.pin(&answer).expect("there is memory"));
    let refer = Refer {
        document: pin.clone().expect("it is there"),
    };
    for _ in 0..2 {
        sender.send(&refer).expect("there is room");
    }
    drop(refer);
    let first = receiver.next().expect("not forked").expect("it was sent");
    let mut kept = Some(first.keep());
    let mut view = receiver.next().expect("not forked");
    // Known, and not to be looked at there all the same.
    let len = |view: &View<'_, Refer>| view.document.open(view).expect("it is kept").text.len();
    assert_eq!(view.as_ref().map(len), Some(answer.text.len()));
    let end = in_fork(|| {
        let is_forked = |error: Option<PinError>| error == Some(PinError::Forked);
        let taken = kept.take().expect("it is there");
        let checks = [
            is_forked(
                view.as_ref()
                    .and_then(|view| view.document.open(view).err()),
            ),
            is_forked(taken.document.open(&taken).err()),
            matches!(there.pin(&answer), Err(SendError::Forked)),
        ];
        drop((taken, pin.take()));
        drop(view.take().expect("it is there").keep());
        checks.iter().position(|c| !c).map_or(0, |n| n as i32 + 1)
    });
    assert_eq!(end, 0, "pins");
    let kept = kept.expect("only the child dropped it");
    assert_eq!(view.as_ref().map(len), Some(answer.text.len()));
    let opened = kept.document.open(&kept).expect("it is kept");
    assert_eq!(opened.text.len(), answer.text.len());
    drop(opened);
    drop((view, kept, pin));
    assert!(there.memory().1 < 500_000);
    tell("good");
}

/// A part: a forked child has nothing of a loan, and dropping it there takes nothing from others.
pub(crate) fn forks_with_a_loan() {
    const LEN: usize = 8 << 20;
    let config = shmbus::Config {
        max_message: 2 * LEN,
        ..Default::default()
    };
    let bus = config.open("loan").expect("the bus opens");
    let receiver = bus.receiver::<Ask>("asks").expect("nobody else does");
    let sender = bus.sender::<Ask>("asks").expect("a receiver is there");
    let mut loan = { sender }.loan_bytes(LEN).expect("there is memory");
    loan.fill(1);
    drop((receiver, bus));
    let address = loan.as_ptr().addr().next_multiple_of(4096);
    let mut loan = Some(loan);
    let end = in_fork(|| {
        let loan = loan.take().expect("it is there");
        // The addresses of the arena, as far as they are known here, become something else's.
        // SAFETY: a mapping that replaces none.
        let page = unsafe {
            libc::mmap(
                std::ptr::without_provenance_mut(address),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return 2;
        }
        // It is meant to panic: nobody needs to read of that.
        std::panic::set_hook(Box::new(|_| {}));
        let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| loan[0]));
        if read.is_ok() {
            return 1;
        }
        drop(loan);
        // SAFETY: the page that was just mapped.
        unsafe { page.cast::<u8>().write_volatile(5) };
        0
    });
    assert_eq!(end, 0, "a loan");
    assert_eq!(loan.as_deref().map(|bytes| bytes[LEN - 1]), Some(1));
    tell("good");
}

/// A part: serves, with a forked child that lives on.
pub(crate) fn serves_and_forks(name: &str) {
    let server = open(name).server::<Ask>().expect("nobody else serves");
    // SAFETY: the child makes system calls only, and ends without returning.
    if unsafe { libc::fork() } == 0 {
        let mut byte = 0u8;
        // Until the test closes the input that both inherited.
        // SAFETY: one byte of a local.
        while unsafe { libc::read(0, (&raw mut byte).cast(), 1) } > 0 {}
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(0) };
    }
    tell("ready");
    answer(server);
}

/// What a forked child finds on a bus that it opened itself.
fn on_its_own() -> i32 {
    let bus = open("fork-own");
    let mut receiver = bus.receiver::<Ask>("own").expect("nobody else does");
    let mut sender = bus.sender::<Ask>("own").expect("a receiver is there");
    sender.send(&Ask::new(7, 24)).expect("there is room");
    let got = receiver.next().expect("not forked").expect("it was sent");
    i32::from(got.id != 7)
}

fn run(role: &str) {
    let dir = Dir::new();
    let mut child = Child::start_in(dir.path(), role, &[]);
    assert_eq!(child.hear(), "good");
    assert!(child.end().success());
}

#[test]
fn a_forked_child_is_refused() {
    let _together = together();
    run("forks");
}

#[test]
fn a_forked_child_drops_views() {
    let _together = together();
    run("forks-with-views");
}

#[test]
fn a_forked_child_takes_no_lock_of_its_parents() {
    let _together = together();
    run("forks-with-tasks");
}

#[test]
fn a_forked_child_has_no_newest_values() {
    let _together = together();
    run("forks-with-newest-values");
}

#[test]
fn a_forked_child_has_nothing_of_a_pin() {
    let _together = together();
    run("forks-with-pins");
}

#[test]
fn a_forked_child_has_nothing_of_a_loan() {
    let _together = together();
    run("forks-with-a-loan");
}

/// A killed server is gone for its clients and its name is free, whatever it forked.
#[test]
fn a_forked_child_keeps_nothing_alive() {
    let _together = together();
    let name = name("alive");
    let bus = open(&name);
    let mut server = Child::start("serves-and-forks", &[&name]);
    assert_eq!(server.hear(), "ready");
    let client = bus.client::<Ask>().expect("a server is there");
    check_call(&client, 1, 24);
    server.kill();
    let lost = client.call(&Ask::new(2, 24)).err();
    assert!(
        matches!(lost, Some(CallError::Lost { .. } | CallError::Connect(_))),
        "{lost:?}"
    );
    bus.server::<Ask>().expect("the name is free");
}
