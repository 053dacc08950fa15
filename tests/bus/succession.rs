//! Servers that die, and others that come in their place.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use shmbus::rkyv::Place;
use shmbus::rkyv::rancor::Fallible;
use shmbus::rkyv::ser::{Allocator, Writer};
use shmbus::rkyv::vec::{ArchivedVec, VecResolver};
use shmbus::rkyv::with::{ArchiveWith, DeserializeWith, SerializeWith};
use shmbus::{Bus, Bytes, CallError, ConnectError, SendError, ShmMessage};

use crate::ends::{Walk, walk};
use crate::faults::Unchecked;
use crate::support::{
    Ask, Child, Counting, alone, answer, check_call, name, open, poll, tell, together, told,
};

/// What may be handled twice.
#[derive(ShmMessage)]
#[shm(service = "look up", reply = Found, idempotent)]
struct LookUp {
    id: u64,
    text: Bytes,
    #[rkyv(with = Counted)]
    more: Vec<u8>,
}

#[derive(ShmMessage)]
struct Found {
    pid: u32,
    bytes: u64,
    /// How often this server has got this very request.
    times: u32,
}

/// Archives bytes, and counts how often.
struct Counted;

static ARCHIVED: AtomicUsize = AtomicUsize::new(0);

impl ArchiveWith<Vec<u8>> for Counted {
    type Archived = ArchivedVec<u8>;
    type Resolver = VecResolver;

    fn resolve_with(bytes: &Vec<u8>, resolver: VecResolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_len(bytes.len(), resolver, out);
    }
}

impl<S: Fallible + Writer + Allocator + ?Sized> SerializeWith<Vec<u8>, S> for Counted {
    fn serialize_with(bytes: &Vec<u8>, serializer: &mut S) -> Result<VecResolver, S::Error> {
        ARCHIVED.fetch_add(1, Ordering::Relaxed);
        ArchivedVec::serialize_from_slice(bytes, serializer)
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<ArchivedVec<u8>, Vec<u8>, D> for Counted {
    fn deserialize_with(bytes: &ArchivedVec<u8>, _: &mut D) -> Result<Vec<u8>, D::Error> {
        Ok(bytes.to_vec())
    }
}

fn look_up(id: u64, text: Bytes, more: usize) -> LookUp {
    let more = vec![id as u8; more];
    LookUp { id, text, more }
}

/// Answers requests, but the first of them, for which it waits to be killed.
pub(crate) fn looks_up(bus: &str, unanswered: &str) {
    let unanswered: usize = unanswered.parse().expect("it is a number");
    let bus = open(bus);
    let mut server = bus.server::<LookUp>().expect("nobody else serves");
    tell("serves");
    let mut taken = Vec::new();
    while let Some(call) = server.next().expect("not forked") {
        let id = call.id.to_native();
        let mut bytes = call.text.iter().chain(call.more.iter());
        assert!(bytes.all(|byte| *byte == id as u8));
        taken.push(id);
        if taken.len() <= unanswered {
            std::mem::forget(call);
            if taken.len() == unanswered {
                tell("taken");
            }
            continue;
        }
        let found = Found {
            pid: std::process::id(),
            bytes: (call.text.len() + call.more.len()) as u64,
            times: taken.iter().filter(|other| **other == id).count() as u32,
        };
        call.reply(&found).expect("its caller lives");
    }
}

fn start(bus: &str, unanswered: usize) -> Child {
    let mut child = Child::start("looks-up", &[bus, &unanswered.to_string()]);
    assert_eq!(child.hear(), "serves");
    child
}

/// Kills a server once it has taken what it never answers, and starts another when the first is gone. Says how often
/// requests had been archived by then.
fn replace(mut server: Child, bus: &str, unanswered: usize) -> (Child, usize) {
    assert_eq!(server.hear(), "taken");
    let archived = ARCHIVED.load(Ordering::Relaxed);
    server.kill();
    thread::sleep(Duration::from_millis(10));
    (start(bus, unanswered), archived)
}

#[test]
fn what_may_be_handled_twice_is_sent_to_the_successor_once() {
    // The only one that archives such requests: they are counted.
    let _alone = alone();
    let name = name("successor");
    let bus = open(&name);
    let mut server = start(&name, 1);
    let client = bus.client::<LookUp>().expect("it serves");
    // Bytes in place, others, and whether a request of that size is archived anew.
    let sizes = [
        (0, 0, true),
        (0, 3_000, true),
        (0, 30_000, false),
        (600_000, 100, false),
    ];
    for (id, (in_place, more, anew)) in (1..).zip(sizes) {
        let mut text = client.loan_bytes(in_place).expect("there is memory");
        text.fill(id as u8);
        let request = look_up(id, text, more);
        let (reply, (mut next, archived)) = thread::scope(|scope| {
            let replacing = scope.spawn(|| replace(server, &name, 0));
            let reply = client.call(&request).expect("the successor answers");
            let reply = reply.to_value().expect("it is plain");
            (reply, replacing.join().expect("it starts"))
        });
        assert_eq!(reply.bytes as usize, in_place + more);
        assert_eq!((reply.pid, reply.times), (next.pid(), 1));
        assert_eq!(client.server_pid(), next.pid());
        assert_eq!(ARCHIVED.load(Ordering::Relaxed) > archived, anew);
        next.kill();
        server = start(&name, 1);
    }
    drop((client, server));
    for incident in bus.take_incidents() {
        assert!(incident.what.contains("SIGKILL"), "{incident}");
    }
    assert_eq!(settled(&bus), 0);
}

/// The bytes of a bus that are in use once what was lent to the dead is back.
fn settled(bus: &Bus) -> u64 {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let (_, used) = bus.memory();
        if used == 0 || Instant::now() > end {
            return used;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Each of them takes it, and dies of it.
#[test]
fn a_successor_that_dies_has_a_successor() {
    const ASKED: u64 = 30;
    let _alone = alone();
    let name = name("poison");
    let bus = open(&name);
    let server = start(&name, ASKED as usize);
    let client = bus.async_client::<LookUp>().expect("it serves");
    // Of all kinds: some of them in the slab.
    let size = |id: u64| if id % 10 == 0 { 20_000 } else { id as usize };
    let requests: Vec<_> = (0..ASKED)
        .map(|id| look_up(id, Bytes::default(), size(id)))
        .collect();
    let pending: Vec<_> = requests
        .iter()
        .map(|request| client.call(request))
        .collect();
    let (last, answers) = thread::scope(|scope| {
        let replacing = scope.spawn(|| {
            let (second, _) = replace(server, &name, ASKED as usize);
            let (third, _) = replace(second, &name, ASKED as usize);
            replace(third, &name, 0).0
        });
        let answers = pollster::block_on(join_all(pending));
        (replacing.join().expect("it starts"), answers)
    });
    for (id, answer) in answers.into_iter().enumerate() {
        let answer = answer.expect("the last one answers");
        let (bytes, times) = (answer.bytes.to_native(), answer.times.to_native());
        assert_eq!((bytes as usize, times), (size(id as u64), 1));
        assert_eq!(answer.pid, last.pid());
    }
    assert_eq!(client.server_pid(), last.pid());
    drop((client, last));
    assert_eq!(settled(&bus), 0);
}

/// Nobody comes: the time that was given is what ends it.
#[test]
fn without_a_successor_a_call_is_lost_when_its_time_is_up() {
    const PATIENCE: Duration = Duration::from_millis(300);
    let _together = together();
    let name = name("alone");
    let bus = open(&name);
    let mut server = start(&name, 2);
    let client = bus.client::<LookUp>().expect("it serves");
    let tasks = bus.async_client::<LookUp>().expect("it serves");
    let request = look_up(1, Bytes::default(), 10);
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(server.hear(), "taken");
            server.kill();
        });
        let pending = tasks.call_timeout(&request, PATIENCE);
        let lost = client.call_timeout(&request, PATIENCE).err();
        assert!(matches!(lost, Some(CallError::Lost { .. })), "{lost:?}");
        let lost = pending.wait().err();
        assert!(matches!(lost, Some(CallError::Lost { .. })), "{lost:?}");
    });
    assert!(begun.elapsed() >= PATIENCE);
    // And later ones, which no server has got.
    let nobody = client.call_timeout(&request, PATIENCE / 10).err();
    assert!(matches!(
        nobody,
        Some(CallError::Connect(ConnectError::NoServer { .. }))
    ));
    let nobody = tasks.call_timeout(&request, PATIENCE / 10).wait().err();
    assert!(matches!(
        nobody,
        Some(CallError::Connect(ConnectError::NoServer { .. }))
    ));
}

/// Whoever asked a parent, or a child, can ask nobody else.
#[test]
fn an_inherited_link_has_no_successor() {
    let _together = together();
    let (bus, child) =
        Bus::spawn(Child::command("looks-up-for-its-parent", &[])).expect("it starts");
    let mut child = Child::adopt(child);
    assert_eq!(child.hear(), "serves");
    let client = bus.client::<LookUp>().expect("it serves");
    let tasks = bus.async_client::<LookUp>().expect("it serves");
    let request = look_up(1, Bytes::default(), 10);
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(child.hear(), "taken");
            child.kill();
        });
        let pending = tasks.call(&request);
        let lost = client.call(&request).err();
        assert!(matches!(lost, Some(CallError::Lost { .. })), "{lost:?}");
        let lost = pending.wait().err();
        assert!(matches!(lost, Some(CallError::Lost { .. })), "{lost:?}");
    });
    let nobody = client.call(&request).err();
    assert!(matches!(nobody, Some(CallError::Connect(_))), "{nobody:?}");
}

/// Calls until it is known that nobody serves.
fn wait_for_nobody(call: impl Fn() -> Result<(), CallError>) {
    loop {
        match call().expect_err("nobody serves") {
            CallError::Connect(ConnectError::NoServer { .. }) => return,
            CallError::Lost { .. } => {}
            error => panic!("{error}"),
        }
    }
}

/// What is held of a server that is gone can be read until it is dropped, and goes then.
#[test]
fn a_client_has_one_server_after_the_other() {
    let _together = together();
    let name = name("one-after-the-other");
    let calling = open(&name);
    let serve = || {
        let bus = open(&name);
        let server = bus.server::<Ask>().expect("nobody else serves");
        (thread::spawn(|| answer(server)), bus)
    };
    let mut serving = serve();
    let client = calling.client::<Ask>().expect("it is served");
    let tasks = calling.async_client::<Ask>().expect("it is served");
    for round in 0..20 {
        let mut held = Vec::new();
        for (id, len) in (0..).zip([0, 40, 9_000]) {
            let reply = client.call(&Ask::new(id, len)).expect("it is answered");
            held.push((reply, len));
            check_call(&client, 100 * round + id, len);
            let reply = tasks.call(&Ask::new(id, len)).wait();
            assert_eq!(reply.expect("it is answered").id, id);
        }
        let (thread, bus) = serving;
        bus.close();
        thread.join().expect("it does not panic");
        drop(bus);
        // Until it has noticed, what it sends is lost; and then, nothing is sent.
        wait_for_nobody(|| client.call(&Ask::new(1, 10)).map(drop));
        wait_for_nobody(|| tasks.call(&Ask::new(1, 10)).wait().map(drop));
        serving = serve();
        check_call(&client, round, 50);
        let reply = tasks.call(&Ask::new(round, 10)).wait();
        assert_eq!(reply.expect("it is answered").id, round);
        for (reply, len) in held {
            assert_eq!(reply.text.as_str(), Ask::new(0, len).text);
        }
    }
    let before = calling.memory().1;
    check_call(&client, 1, 1);
    assert!(calling.memory().1 <= before);
    serving.1.close();
    serving.0.join().expect("it does not panic");
    drop((client, tasks, serving.1));
    assert_eq!(settled(&calling), 0);
}

/// How many tasks wait for one that is gone.
const TASKS: usize = 300;

/// In a child: has ports for its parent, drops them when it is told to, and has them again.
pub(crate) fn drops_its_ports() {
    let bus = Bus::from_parent().expect("a parent is there");
    let offer = || {
        let server = bus.server::<Ask>().expect("nobody else serves");
        let looks_up = bus.server::<LookUp>().expect("nobody else serves");
        let receiver = bus.receiver::<Ask>("asks").expect("nobody else does");
        tell("ready");
        (server, looks_up, receiver)
    };
    let ports = offer();
    told();
    drop(ports);
    tell("dropped");
    told();
    let (_server, mut looks_up, _receiver) = offer();
    for _ in 0..TASKS {
        let call = looks_up.next().expect("not forked").expect("it waits");
        let found = Found {
            pid: std::process::id(),
            bytes: 0,
            times: 1,
        };
        call.reply(&found).expect("its caller lives");
    }
    told();
}

/// It says so, and is believed; what may wait for another server does.
#[test]
fn a_peer_that_refuses_and_lives_on_is_not_asked_without_end() {
    let _together = together();
    let (bus, child) = Bus::spawn(Child::command("drops-its-ports", &[])).expect("it starts");
    let mut child = Child::adopt(child);
    assert_eq!(child.hear(), "ready");
    let client = bus.client::<Ask>().expect("it is served");
    let tasks = bus.async_client::<Ask>().expect("it is served");
    let looks_up = bus.async_client::<LookUp>().expect("it is served");
    let mut sender = bus.sender::<Ask>("asks").expect("it is received");
    child.say("drop them");
    assert_eq!(child.hear(), "dropped");
    let request = look_up(1, Bytes::default(), 10);
    let mut wait: Vec<_> = (0..TASKS).map(|_| looks_up.call(&request)).collect();
    let counting = Arc::new(Counting::default());
    for one in &mut wait {
        assert!(poll(one, &counting.clone().into()).is_pending());
    }
    wait_for_nobody(|| client.call(&Ask::new(1, 10)).map(drop));
    wait_for_nobody(|| tasks.call(&Ask::new(1, 10)).wait().map(drop));
    let closed = |error: SendError| matches!(error, SendError::Closed { .. });
    // Its end is told once, and then that nobody is there: in between, it is asked.
    for _ in 0..2 {
        while sender.try_send(&Ask::new(1, 10)).map_err(closed) != Err(true) {}
    }
    // Now and then it is asked again: a slow machine does less of that in a while, not more.
    let (begun, mut wakes) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_millis(300) {
        let woken = counting.0.swap(0, Ordering::Relaxed);
        for one in wait.iter_mut().filter(|_| woken > 0) {
            assert!(poll(one, &counting.clone().into()).is_pending());
        }
        wakes += woken;
        thread::sleep(Duration::from_millis(1));
    }
    assert!(wakes < 60 * TASKS, "{wakes}");
    child.say("have them again");
    assert_eq!(child.hear(), "ready");
    for one in wait {
        assert_eq!(pollster::block_on(one).expect("it is answered").times, 1);
    }
    sender.send(&Ask::new(1, 10)).expect("somebody is there");
}

/// In a child: offers all that these tests ask for.
pub(crate) fn receives_and_serves(name: &str) {
    let bus = open(name);
    let server = bus.server::<Ask>().expect("nobody else serves");
    let receiver = bus.receiver::<Ask>("asks").expect("nobody else does");
    tell("ready");
    answer(server);
    drop(receiver);
}

/// It has the time that its caller has, and no other: a thread, a task, and who does not wait at all.
#[test]
fn a_successor_that_is_stopped_holds_nobody_up() {
    let _together = together();
    let name = name("stopped");
    let calling = open(&name);
    let mut server = Child::start("receives-and-serves", &[&name]);
    assert_eq!(server.hear(), "ready");
    let client = calling.client::<Ask>().expect("it is served");
    let tasks = calling.async_client::<Ask>().expect("it is served");
    let mut sender = calling.sender::<Ask>("asks").expect("it is received");
    server.kill();
    wait_for_nobody(|| client.call(&Ask::new(1, 10)).map(drop));
    wait_for_nobody(|| tasks.call(&Ask::new(1, 10)).wait().map(drop));
    while !matches!(
        sender.try_send(&Ask::new(1, 10)),
        Err(SendError::Closed { .. })
    ) {}
    let mut server = Child::start("receives-and-serves", &[&name]);
    assert_eq!(server.hear(), "ready");
    server.stop();
    let short = Duration::from_millis(1);
    let ask = Ask::new(7, 10);
    let counting = Arc::new(Counting::default());
    let mut pending = pin!(tasks.call(&ask));
    for _ in 0..3 {
        let error = client.call_timeout(&ask, short).err();
        assert!(matches!(error, Some(CallError::TimedOut)), "{error:?}");
        let error = client.stream_timeout(&ask, short).err();
        assert!(matches!(error, Some(CallError::TimedOut)), "{error:?}");
        let error = tasks.call_timeout(&ask, short).wait().err();
        assert!(matches!(error, Some(CallError::TimedOut)), "{error:?}");
        let error = sender.send_timeout(&ask, short).err();
        assert!(matches!(error, Some(SendError::Full)), "{error:?}");
        assert!(matches!(sender.try_send(&ask), Err(SendError::Full)));
        assert!(poll(&mut pending, &counting.clone().into()).is_pending());
    }
    server.go_on();
    assert_eq!(pollster::block_on(pending).expect("it is answered").id, 7);
    check_call(&client, 1, 10);
    sender.send(&ask).expect("there is room");
}

/// What was under way may be lost, which is said once.
#[test]
fn a_sender_has_one_receiver_after_the_other() {
    let _together = together();
    let name = name("receivers");
    let sending = open(&name);
    let receive = || {
        let bus = open(&name);
        let receiver = bus.receiver::<Ask>("asks").expect("nobody else does");
        (bus, receiver)
    };
    let (mut bus, mut receiver) = receive();
    let mut sender = sending.sender::<Ask>("asks").expect("it is received");
    for round in 0..20 {
        for len in [0, 5_000, 50_000] {
            sender.send(&Ask::new(round, len)).expect("there is room");
            let ask = receiver.next().expect("not forked").expect("it was sent");
            assert_eq!((ask.id.to_native(), ask.text.len()), (round, len));
        }
        drop((receiver, bus));
        let mut sent = 0;
        let closed = |error: SendError| matches!(error, SendError::Closed { .. });
        while sender.try_send(&Ask::new(99, 0)).map_err(closed) != Err(true) {
            sent += 1;
            assert!(sent < 1_000_000, "it must learn of that");
        }
        assert!(
            sender.send(&Ask::new(99, 0)).is_err_and(closed),
            "nobody is there"
        );
        (bus, receiver) = receive();
    }
    sender.send(&Ask::new(7, 0)).expect("somebody is there");
    assert_eq!(
        receiver
            .next()
            .expect("not forked")
            .expect("it was sent")
            .id,
        7
    );
    drop((sender, receiver, bus));
    assert_eq!(settled(&sending), 0);
}

/// Items may have been taken.
#[test]
fn a_stream_is_lost_with_its_server_and_the_next_one_is_not() {
    let _together = together();
    let name = name("streams-on");
    let calling = open(&name);
    let serve = || {
        let bus = open(&name);
        let server = bus.server::<Walk>().expect("nobody else serves");
        (bus, server)
    };
    let (bus, mut server) = serve();
    let client = calling.client::<Walk>().expect("it is served");
    let mut items = client.stream(&walk(1, 3, 10)).expect("it is sent");
    let call = server.next().expect("not forked").expect("it was sent");
    let step = |number| crate::ends::Step {
        number,
        padding: vec![1; 10],
    };
    call.send(&step(0)).expect("there is room");
    let first = items.next().expect("it was sent").expect("it lives");
    std::mem::forget(call);
    drop((server, bus));
    let lost = items.next().and_then(Result::err);
    assert!(matches!(lost, Some(CallError::Lost { .. })), "{lost:?}");
    assert!(items.next().is_none());
    let (bus, mut server) = serve();
    let mut more = client.stream(&walk(2, 3, 10)).expect("it is sent");
    let call = server.next().expect("not forked").expect("it was sent");
    assert_eq!(call.id, 2);
    call.send(&step(1)).expect("there is room");
    assert_eq!(
        more.next().expect("it was sent").expect("it lives").number,
        1
    );
    assert_eq!(first.number, 0);
    drop((items, first, more));
    drop(call);
    drop((client, server, bus));
    assert_eq!(settled(&calling), 0);
}

/// Whose answers are never valid.
#[derive(ShmMessage)]
#[shm(service = "lie", reply = Lie, idempotent)]
struct Doubt {
    number: u32,
}

#[derive(ShmMessage)]
struct Lie {
    #[rkyv(with = Unchecked)]
    flag: u8,
}

/// The next answer would be no better.
#[test]
fn a_call_whose_answer_broke_the_protocol_is_not_made_again() {
    let _together = together();
    let name = name("lies");
    let (serving, calling) = (open(&name), open(&name));
    let mut server = serving.server::<Doubt>().expect("nobody else serves");
    let client = calling.client::<Doubt>().expect("it is served");
    let tasks = calling.async_client::<Doubt>().expect("it is served");
    let lying = thread::spawn(move || {
        let mut asked = Vec::new();
        while let Some(call) = server.next().expect("not forked") {
            asked.push(call.number.to_native());
            let _ = call.reply(&Lie { flag: 7 });
        }
        asked
    });
    let lost = client.call(&Doubt { number: 1 }).err();
    let broken = |lost| matches!(lost, Some(CallError::Lost { fault: Some(_), .. }));
    assert!(broken(lost));
    assert!(broken(tasks.call(&Doubt { number: 2 }).wait().err()));
    serving.close();
    assert_eq!(lying.join().expect("it does not panic"), [1, 2]);
}

/// As `looks_up`, of an inherited link.
pub(crate) fn looks_up_for_its_parent() {
    let bus = Bus::from_parent().expect("a parent is there");
    let mut server = bus.server::<LookUp>().expect("nobody else serves");
    tell("serves");
    let mut taken = Vec::new();
    while let Ok(Some(call)) = server.next() {
        std::mem::forget(call);
        taken.push(());
        if taken.len() == 2 {
            tell("taken");
        }
    }
}
