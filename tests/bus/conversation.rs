//! Calls: between threads, buses and processes, of all sizes, and with peers that die.

use std::sync::mpsc;
use std::time::Duration;

use shmbus::{Bus, CallError, Config, Kept, Server, ShmMessage, Wait};

use crate::support::{
    Answer, Ask, Child, alone, answer, check_call, name, open, tell, together, told,
};

/// Nothing at all, which is answered by nothing.
#[derive(ShmMessage)]
#[shm(service = "unit", reply = Unit)]
struct Unit;

/// A part: serves until it is told to end.
pub(crate) fn echo(name: &str) {
    let bus = open(name);
    let server = bus.server::<Ask>().expect("nobody else serves");
    let serving = std::thread::spawn(move || answer(server));
    tell("ready");
    while told().is_some() {}
    bus.close();
    serving.join().expect("the server does not panic");
}

/// A part: serves its parent.
pub(crate) fn inherits() {
    let bus = Bus::from_parent().expect("a bus started this");
    assert!(Bus::from_parent().is_err(), "it is taken once");
    answer(bus.server::<Ask>().expect("nobody else serves"));
}

#[derive(ShmMessage)]
#[shm(topic = "said")]
struct Said {
    text: String,
}

/// A part: many clients, from several threads.
pub(crate) fn many(name: &str) {
    let bus = open(name);
    call_from_many(&bus, 25);
    tell("good");
}

/// A part: calls, and says so; nobody answers it.
pub(crate) fn stuck(name: &str) {
    let client = open(name).client::<Ask>().expect("a server is there");
    tell("calls");
    let _ = client.call(&Ask::new(1, 24));
}

fn call_from_many(bus: &Bus, clients: u64) {
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(move || {
                let clients: Vec<_> = (0..clients)
                    .map(|_| bus.client::<Ask>().expect("a server is there"))
                    .collect();
                for round in 0..10 {
                    for (number, client) in clients.iter().enumerate() {
                        check_call(client, round * 1000 + number as u64, number);
                    }
                }
            });
        }
    });
}

/// Runs beside a server of that bus.
fn served(bus: &Bus, wait: Wait, run: impl FnOnce()) {
    let mut server = bus.server::<Ask>().expect("nobody else serves");
    server.set_wait(wait);
    let serving = std::thread::spawn(move || answer(server));
    run();
    bus.close();
    serving.join().expect("the server does not panic");
}

const SIZES: [usize; 8] = [0, 24, 60, 1000, 8000, 9000, 100_000, 900 << 10];

fn converse(bus: &Bus, callers: &Bus, wait: Wait) {
    served(bus, wait, || {
        let mut client = callers.client::<Ask>().expect("a server is there");
        client.set_wait(wait);
        for round in 0..20 {
            for len in SIZES {
                check_call(&client, round, len);
            }
        }
    });
}

#[test]
fn within_one_bus_and_between_two() {
    let _together = together();
    for wait in [Wait::Park, Wait::Adaptive] {
        let bus = open(&name("within"));
        converse(&bus, &bus, wait);
        let bus = open(&name("between"));
        converse(&bus, &open(&name("between")), wait);
    }
}

#[test]
fn spinning() {
    let _alone = alone();
    let bus = open(&name("spinning"));
    converse(&bus, &bus, Wait::Spin);
}

#[test]
fn between_processes() {
    let _together = together();
    let name = name("processes");
    let mut server = Child::start("echo", &[&name]);
    assert_eq!(server.hear(), "ready");
    let client = open(&name).client::<Ask>().expect("a server is there");
    assert_eq!(client.server_pid(), server.pid());
    for len in SIZES {
        check_call(&client, 5, len);
    }
    assert!(server.end().success());
    let error = client
        .call(&Ask::new(1, 24))
        .map(drop)
        .expect_err("it ended");
    let gone = matches!(error, CallError::Lost { .. } | CallError::Connect(_));
    assert!(gone, "{error}");
}

#[test]
fn between_parent_and_child() {
    let _together = together();
    let (bus, child) = Bus::spawn(Child::command("inherits", &[])).expect("it starts");
    let mut child = Child::adopt(child);
    let client = bus
        .client_timeout::<Ask>(Duration::from_secs(100))
        .expect("the child serves");
    for len in SIZES {
        check_call(&client, 6, len);
    }
    assert_eq!(client.server_pid(), child.pid());
    drop(client);
    drop(bus);
    assert!(child.end().success(), "it ends with its parent's link");
}

/// Whoever is killed may be so right before the other side makes a port, which would wait for it for ever.
#[test]
fn a_port_that_is_made_behind_the_end_of_its_link_ends() {
    let _together = together();
    let (bus, child) = Bus::spawn(Child::command("inherits", &[])).expect("it starts");
    let mut child = Child::adopt(child);
    let client = bus
        .client_timeout::<Ask>(Duration::from_secs(100))
        .expect("the child serves");
    child.kill();
    let lost = client.call(&Ask::new(1, 24)).map(drop);
    assert!(lost.is_err());
    let mut server = bus.server::<Ask>().expect("nobody else serves");
    assert!(server.next().expect("not forked").is_none());
    let shared = bus.async_server::<Unit>().expect("nobody else serves");
    assert!(shared.next().wait().expect("not forked").is_none());
    let mut subscriber = bus.subscriber::<Said>().expect("it joins");
    assert!(subscriber.next().expect("not forked").is_none());
}

#[test]
fn nothing_and_much() {
    let _together = together();
    let bus = open(&name("unit"));
    let mut server = bus.server::<Unit>().expect("nobody else serves");
    let serving = std::thread::spawn(move || {
        while let Some(call) = server.next().expect("not forked") {
            call.reply(&Unit).expect("there is room");
        }
    });
    let client = bus.client::<Unit>().expect("a server is there");
    for _ in 0..1000 {
        client.call(&Unit).expect("it answers");
    }
    bus.close();
    serving.join().expect("the server does not panic");

    let error = |len| {
        let bus = open(&name("large"));
        let mut text = String::new();
        served(&bus, Wait::Adaptive, || {
            let client = bus.client::<Ask>().expect("a server is there");
            let error = client
                .call(&Ask::new(1, len))
                .map(drop)
                .expect_err("too large");
            text = error.to_string();
            check_call(&client, 2, 24);
        });
        text
    };
    let text = error(2 << 20);
    assert!(text.contains(&(1 << 20).to_string()), "{text}");
    assert!(text.contains("2097"), "{text}");

    let large = Config {
        max_message: 65 << 20,
        memory_limit: 1 << 30,
        ..Config::default()
    };
    let bus = large.open(&name("large")).expect("the bus opens");
    served(&bus, Wait::Adaptive, || {
        let client = bus.client::<Ask>().expect("a server is there");
        check_call(&client, 3, 64 << 20);
    });
}

#[test]
fn two_hundred_clients() {
    let _together = together();
    let name = name("many");
    let bus = open(&name);
    served(&bus, Wait::Adaptive, || {
        let mut others: Vec<_> = (0..2).map(|_| Child::start("many", &[&name])).collect();
        call_from_many(&bus, 50);
        for other in &mut others {
            assert_eq!(other.hear(), "good");
            assert!(other.end().success());
        }
    });
}

#[test]
fn views_in_any_order() {
    let _together = together();
    let bus = open(&name("views"));
    served(&bus, Wait::Adaptive, || {
        let client = bus.client::<Ask>().expect("a server is there");
        for len in [24, 3000, 200_000] {
            let mut views: Vec<_> = (0..10)
                .map(|id| client.call(&Ask::new(id, len)).expect("it answers"))
                .collect();
            for at in [3, 0, 7, 2, 5, 0, 1, 0, 1, 0] {
                let view = views.remove(at);
                assert_eq!(view.text.len(), len);
                drop(view);
                assert!(views.iter().all(|v| v.text.as_str() == "x".repeat(len)));
            }
        }
        let mut views = Vec::new();
        let held = loop {
            match client.call(&Ask::new(1, 24)) {
                Ok(view) => views.push(view),
                Err(CallError::ViewsHeld { held }) => break held,
                Err(other) => panic!("{other}"),
            }
        };
        assert!(held >= views.len(), "{held} cells");
        views.clear();
        check_call(&client, 2, 24);
    });
}

#[test]
fn what_is_kept_outlives_its_makers() {
    let _together = together();
    let name = name("kept");
    let mut server = Child::start("echo", &[&name]);
    assert_eq!(server.hear(), "ready");
    let bus = open(&name);
    let client = bus.client::<Ask>().expect("a server is there");
    let kept: Vec<Kept<Answer>> = [0, 24, 8000, 500_000]
        .iter()
        .map(|len| client.call(&Ask::new(8, *len)).expect("it answers").keep())
        .collect();
    server.kill();
    drop(client);
    drop(bus);
    let reader = std::thread::spawn(move || {
        for (kept, len) in kept.into_iter().rev().zip([500_000, 8000, 24, 0]) {
            assert_eq!(kept.id, 8);
            assert_eq!(kept.text.as_str(), "x".repeat(len));
        }
    });
    reader.join().expect("it is all there");
}

#[test]
fn a_server_that_goes_during_a_call() {
    let _together = together();
    let bus = open(&name("dropped"));
    let mut server: Server<Ask> = bus.server().expect("nobody else serves");
    let client = bus.client::<Ask>().expect("a server is there");
    let (done, told) = mpsc::channel();
    let caller = std::thread::spawn(move || {
        for _ in 0..2 {
            let error = client.call(&Ask::new(1, 24)).map(drop);
            done.send(error.expect_err("no reply")).expect("heard");
        }
    });
    drop(server.next().expect("not forked"));
    let error = told.recv().expect("it comes");
    assert!(matches!(error, CallError::Unanswered { .. }), "{error}");
    // Taken, or still on its way: the server goes with the call.
    drop(server);
    let error = told.recv().expect("it comes");
    let gone = matches!(error, CallError::Lost { .. } | CallError::Connect(_));
    assert!(gone, "{error}");
    caller.join().expect("the caller does not panic");
}

#[test]
fn a_client_that_dies_during_its_call() {
    let _together = together();
    let name = name("killed");
    let bus = open(&name);
    let mut server = bus.server::<Ask>().expect("nobody else serves");
    let mut child = Child::start("stuck", &[&name]);
    assert_eq!(child.hear(), "calls");
    let call = server.next().expect("not forked").expect("it calls");
    assert_eq!(call.caller_pid(), child.pid());
    child.kill();
    call.reply(&Answer::default()).expect("nobody minds");
    let serving = std::thread::spawn(move || answer(server));
    check_call(&bus.client().expect("it goes on"), 4, 24);
    bus.close();
    serving.join().expect("the server does not panic");
}
