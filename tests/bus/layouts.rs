//! A peer that was built with other types is told what differs, and harms nobody.

use shmbus::{ConnectError, ShmMessage};

use crate::support::{Answer, Ask, answer, check_call, name, open, together};

mod elsewhere {
    use shmbus::ShmMessage;

    use super::Answer;

    #[derive(ShmMessage, Default)]
    #[shm(service = "ask", reply = Answer)]
    pub(super) struct Ask {
        pub(super) id: u64,
        pub(super) line: i64,
        pub(super) col: u32,
        pub(super) kind: u8,
        pub(super) text: String,
    }
}

#[derive(ShmMessage)]
struct Tick {
    at: u32,
}

#[derive(ShmMessage)]
struct Tock {
    at: f64,
}

#[test]
fn another_layout_is_named_field_by_field() {
    let _together = together();
    let name = name("layouts");
    let serving = open(&name);
    let server = serving.server::<Ask>().expect("nobody else serves");
    let thread = std::thread::spawn(move || answer(server));
    let bus = open(&name);
    let good = bus.client::<Ask>().expect("the same types");
    check_call(&good, 1, 24);

    let error = match bus.client::<elsewhere::Ask>() {
        Ok(_) => panic!("the types differ"),
        Err(error) => error,
    };
    let ConnectError::Layout { pid, service, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((*pid, service.as_str()), (std::process::id(), "ask"));
    let text = error.to_string();
    for part in ["line", "u32", "i64"] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    // A second call on the good lane goes behind the refusal's own messages.
    check_call(&good, 2, 24);
    check_call(&bus.client().expect("the same types"), 3, 24);
    let incidents = loop {
        let incidents = serving.take_incidents();
        if !incidents.is_empty() {
            break incidents;
        }
        std::thread::yield_now();
    };
    let text = format!("{incidents:?}");
    assert!(text.contains("line"), "{text}");
    serving.close();
    thread.join().expect("the server does not panic");
}

#[test]
fn another_layout_of_a_one_way_message() {
    let _together = together();
    let bus = open(&name("layouts-one-way"));
    let mut receiver = bus.receiver::<Tick>("ticks").expect("nobody else does");
    let Err(error) = bus.sender::<Tock>("ticks") else {
        panic!("the types differ");
    };
    let text = error.to_string();
    for part in ["at", "u32", "f64"] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    let mut sender = bus.sender::<Tick>("ticks").expect("the same types");
    sender.send(&Tick { at: 5 }).expect("there is room");
    let tick = receiver.next().expect("not forked").expect("it was sent");
    assert_eq!(tick.at, 5);
}
