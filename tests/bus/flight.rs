//! What is known of a process that died: the last messages of its lanes.
//!
//! Unsafe code is needed to write garbage where no honest process does.
#![allow(unsafe_code)]

use std::fs;
use std::thread;
use std::time::Duration;

use shmbus::rkyv::Place;
use shmbus::rkyv::rancor::Fallible;
use shmbus::rkyv::with::{ArchiveWith, DeserializeWith, SerializeWith};
use shmbus::{
    Bus, Config, Ended, Fault, FlightLane, FlightMessage, FlightRecord, Publishing, Receiver,
    ShmMessage,
};

use crate::ends::{Step, Walk, walk};
use crate::support::{Answer, Ask, Child, name, open, tell, together, told};

/// What a one-way lane and a topic carry here.
#[derive(ShmMessage)]
#[shm(topic = "flight-line")]
struct Line {
    number: u32,
    text: String,
}

/// A service that nobody calls.
#[derive(ShmMessage)]
#[shm(service = "silent", reply = Answer)]
struct Silent {
    id: u64,
}

fn recorded(name: &str, messages: usize) -> Bus {
    let config = Config {
        flight_recorder: messages,
        ..Config::default()
    };
    config.open(name).expect("the bus opens")
}

fn die() -> ! {
    // SAFETY: ends this process where it stands.
    unsafe { libc::raise(libc::SIGKILL) };
    unreachable!("nobody survives that")
}

/// In a child: answers questions, and streams as many steps as it is asked for; in the middle of its last stream it
/// is killed.
pub(crate) fn dies_in_a_stream(name: &str) {
    let bus = open(name);
    let mut asks = bus.server::<Ask>().expect("nobody else serves");
    let mut walks = bus.server::<Walk>().expect("nobody else serves");
    let _silent = bus.server::<Silent>().expect("nobody else serves");
    tell("serving");
    while told().as_deref() == Some("ask") {
        let call = asks.next().expect("not forked").expect("it was asked");
        let (id, pid, text) = (call.id.to_native(), std::process::id(), "here".to_owned());
        call.reply(&Answer { id, pid, text }).expect("it fits");
        tell("answered");
    }
    let call = walks.next().expect("not forked").expect("it was asked");
    for number in 0..call.steps.to_native() {
        let padding = vec![7; call.bytes.to_native() as usize];
        call.send(&Step { number, padding }).expect("there is room");
    }
    tell("streamed");
    told();
    die();
}

/// The record of the process that dies next.
fn record_of(bus: &Bus, pid: u32) -> FlightRecord {
    loop {
        let mut records = bus.take_flight_records();
        if let Some(record) = records.pop() {
            assert_eq!((records.len(), record.pid), (0, pid));
            return record;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn lane<'a>(record: &'a FlightRecord, port: &str, is_sent: bool) -> &'a FlightLane {
    let mut lanes = record.lanes.iter();
    let found = lanes.find(|lane| lane.port == port && lane.is_sent == is_sent);
    found.expect("it was open")
}

fn value(message: &FlightMessage) -> &serde_json::Value {
    message.content.as_ref().expect("it can be read")
}

#[test]
fn a_server_that_is_killed_in_a_stream() {
    let _together = together();
    let name = name("dies-in-a-stream");
    let mut child = Child::start("dies-in-a-stream", &[&name]);
    assert_eq!(child.hear(), "serving");
    let bus = recorded(&name, 8);
    let asks = bus.client::<Ask>().expect("a server is there");
    let walks = bus.client::<Walk>().expect("a server is there");
    let _silent = bus.client::<Silent>().expect("a server is there");
    // More than the lane has cells, and some of them in the slab: the last is too long to be read.
    for id in 0..300u64 {
        let len = match id {
            297 => 20_000,
            299 => 100_000,
            _ => 3,
        };
        child.say("ask");
        let reply = asks.call(&Ask::new(id, len)).expect("it answers");
        assert_eq!(
            (reply.id.to_native(), child.hear().as_str()),
            (id, "answered")
        );
    }
    child.say("walk");
    let request = walk(7, 20, 20_000);
    let mut items = walks.stream(&request).expect("there is room");
    assert_eq!(child.hear(), "streamed");
    for number in 0..15 {
        let item = items.next().expect("it was sent").expect("no error");
        assert_eq!(item.number, number);
    }
    assert!(bus.take_flight_records().is_empty());
    child.say("die");
    let record = record_of(&bus, child.pid());
    assert_eq!(record.ended, Some(Ended::Killed(9)));
    assert_eq!(record.fault, None);
    assert_eq!((record.lanes_left_out, record.lost_before), (0, 0));
    assert_eq!(record.lanes.len(), 6);

    let asked = lane(&record, "ask", true);
    assert_eq!(asked.schemas[0].name(), "Ask");
    assert_eq!(asked.messages.len(), 8);
    for (message, id) in asked.messages.iter().zip((0..300).rev()) {
        assert_eq!(
            (message.kind, message.taken),
            ("message", Some(true)),
            "{id}"
        );
        match id {
            299 => {
                let why = message.content.as_ref().expect_err("it is too long");
                assert!(why.contains("64 KiB"), "{why}");
            }
            // It was taken, and its memory used again.
            297 => assert!(message.content.is_err()),
            _ => assert_eq!(value(message)["text"], "xxx"),
        }
        if id != 299 && id != 297 {
            assert_eq!(value(message)["id"], id);
        }
    }
    let answered = lane(&record, "ask", false);
    for (message, id) in answered.messages.iter().zip((0..300).rev()) {
        assert_eq!(value(message)["id"], id);
        assert_eq!(value(message)["pid"], child.pid());
    }
    assert_eq!(answered.messages.len(), 8);

    let walked = lane(&record, "steps", true);
    assert_eq!(walked.messages.len(), 1);
    assert_eq!(value(&walked.messages[0])["steps"], 20);
    // It never answered, and had not handed the request back.
    assert_eq!(walked.messages[0].taken, Some(false));
    let steps = lane(&record, "steps", false);
    let numbers = steps.messages.iter().map(|message| {
        assert_eq!(
            (message.kind, message.tag),
            ("item", walked.messages[0].tag)
        );
        assert!(message.bytes > 20_000, "it lies in the slab");
        assert_eq!(
            value(message)["padding"].as_array().map(Vec::len),
            Some(20_000)
        );
        value(message)["number"].as_u64()
    });
    assert_eq!(
        numbers.collect::<Vec<_>>(),
        (12..20).rev().map(Some).collect::<Vec<_>>()
    );
    // Some were taken for sure, and none of those that were not.
    for message in &steps.messages {
        let was_read = value(message)["number"].as_u64() < Some(15);
        assert!(was_read || message.taken.is_none());
    }

    for is_sent in [true, false] {
        assert!(lane(&record, "silent", is_sent).messages.is_empty());
    }
    // What was recorded is there once.
    assert!(bus.take_flight_records().is_empty());

    let json = record.to_json();
    assert_eq!(json["ended"], "it was killed by signal 9 (SIGKILL)");
    let lanes = json["lanes"].as_array().expect("a list");
    let asked = lanes
        .iter()
        .find(|lane| lane["port"] == "ask" && lane["sent"] == true);
    let asked = asked.expect("it was open");
    assert_eq!(asked["types"][0], "Ask");
    assert_eq!(asked["messages"][1]["value"]["id"], 298);
    assert!(asked["messages"][0]["unreadable"].is_string());
}

/// In a child: sends and publishes what nobody takes, and is killed.
pub(crate) fn dies_as_a_sender(name: &str) {
    let bus = open(name);
    let mut sender = bus.sender::<Line>("lines").expect("a receiver is there");
    let mut publisher = bus
        .publisher_as::<Line>(Publishing::default())
        .expect("it joins");
    tell("joined");
    let mut number = 0;
    while told().as_deref() == Some("send") {
        let text = "s".repeat(number as usize % 3_000);
        sender
            .send(&Line {
                number,
                text: text.clone(),
            })
            .expect("there is room");
        publisher
            .publish(&Line { number, text })
            .expect("there is room");
        number += 1;
        tell("sent");
    }
    die();
}

#[test]
fn one_way_messages_and_those_of_a_topic() {
    let _together = together();
    let name = name("dies-as-a-sender");
    let bus = recorded(&name, 4);
    let mut receiver: Receiver<Line> = bus.receiver("lines").expect("nobody else receives");
    let mut subscriber = bus.subscriber::<Line>().expect("it joins");
    let mut child = Child::start("dies-as-a-sender", &[&name]);
    assert_eq!(child.hear(), "joined");
    // The first is waited for, so that the subscriber has joined; the last three are left.
    for number in 0..700 {
        child.say("send");
        assert_eq!(child.hear(), "sent");
        if number < 697 {
            let line = receiver.next().expect("not forked").expect("it was sent");
            assert_eq!(line.number, number);
            let line = subscriber
                .next()
                .expect("none is missed")
                .expect("it was sent");
            assert_eq!(line.number, number);
        }
    }
    child.say("die");
    let record = record_of(&bus, child.pid());
    assert_eq!(record.lanes.len(), 2);
    for lane in &record.lanes {
        assert!(!lane.is_sent);
        assert_eq!(lane.messages.len(), 4);
        for (message, number) in lane.messages.iter().zip((0..700).rev()) {
            if number == 696 && message.content.is_err() {
                // It was taken, and its memory used again.
                continue;
            }
            assert_eq!(value(message)["number"], number, "{}", lane.port);
            let len = number as usize % 3_000;
            assert_eq!(value(message)["text"].as_str().map(str::len), Some(len));
            assert!(number < 697 || message.taken.is_none());
        }
    }
    // They can still be received, too.
    for number in 697..700 {
        let line = receiver.next().expect("not forked").expect("it was sent");
        assert_eq!(line.number, number);
    }
}

/// In a child: calls, keeps what it gets, and is killed.
pub(crate) fn dies_as_a_client(name: &str) {
    let bus = open(name);
    let client = bus.client::<Ask>().expect("a server is there");
    let mut kept = Vec::new();
    for id in 0..300 {
        let reply = client.call(&Ask::new(id, 2)).expect("it answers");
        if id >= 100 {
            kept.push(reply);
        }
    }
    tell("called");
    told();
    die();
}

/// The lane of replies grew, since they were held.
#[test]
fn a_server_sees_what_its_client_asked_last() {
    let _together = together();
    let name = name("dies-as-a-client");
    let bus = recorded(&name, 256);
    let server = bus.server::<Ask>().expect("nobody else serves");
    let serving = thread::spawn(move || crate::support::answer(server));
    let mut child = Child::start("dies-as-a-client", &[&name]);
    assert_eq!(child.hear(), "called");
    child.say("die");
    let record = record_of(&bus, child.pid());
    let asked = lane(&record, "ask", false);
    assert!(asked.messages.len() > 30);
    for (message, id) in asked.messages.iter().zip((0..300).rev()) {
        assert_eq!(value(message)["id"], id);
    }
    let answered = lane(&record, "ask", true);
    let held = answered
        .messages
        .iter()
        .take_while(|message| message.taken == Some(false));
    // All that are held, or those since the lane grew.
    let held = held.count();
    assert!((100..=200).contains(&held), "{held} are held");
    assert!(held == 200 || held == answered.messages.len());
    for (message, id) in answered.messages.iter().zip((0..300).rev()) {
        assert_eq!(value(message)["id"], id);
        assert!(
            id >= 100 || message.taken == Some(true),
            "{id}: {:?}",
            message.taken
        );
    }
    bus.close();
    serving.join().expect("no panic");
}

/// In a child: has a lane, and then garbage in all memory that it shows to others, and is killed.
pub(crate) fn dies_mad(name: &str, seed: &str) {
    let mut random: u64 = seed.parse().expect("a number");
    let bus = open(name);
    let mut server = bus.server::<Ask>().expect("nobody else serves");
    tell("serving");
    for _ in 0..3 {
        let call = server.next().expect("not forked").expect("it was asked");
        let (id, pid, text) = (call.id.to_native(), 0, String::new());
        call.reply(&Answer { id, pid, text }).expect("it fits");
    }
    told();
    let maps = fs::read_to_string("/proc/self/maps").expect("there is one");
    for line in maps
        .lines()
        .filter(|line| line.contains("memfd:shmbus") && line.contains(" rw"))
    {
        let (from, to) = line
            .split_once(' ')
            .and_then(|(range, _)| range.split_once('-'))
            .expect("a range");
        let number = |text| usize::from_str_radix(text, 16).expect("a number");
        let (from, to) = (number(from), number(to));
        for at in (from..to).step_by(8) {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // Half of them look like the headers of messages and of references, and lead on.
            let (cell, kind) = (at as u64 / 64, (random >> 40) % 12 + 1);
            let header = (cell % 4_096) | kind << 12 | 24 << 16 | ((cell + 1) % 64) << 32;
            let word = if random >> 63 == 0 { header } else { random };
            // SAFETY: a word of a mapping that is writable. Nothing of this process reads it any more.
            unsafe { (at as *mut u64).write_volatile(word) };
        }
    }
    die();
}

#[test]
fn garbage_is_told_as_such() {
    let _together = together();
    for seed in 0..8 {
        let name = name(&format!("dies-mad-{seed}"));
        let mut child = Child::start("dies-mad", &[&name, &seed.to_string()]);
        assert_eq!(child.hear(), "serving");
        let bus = recorded(&name, 256);
        let client = bus.client::<Ask>().expect("a server is there");
        for id in 0..3 {
            client.call(&Ask::new(id, 2)).expect("it answers");
        }
        child.say("rage");
        let record = record_of(&bus, child.pid());
        // What was sent is ours, and stands.
        let asked = lane(&record, "ask", true);
        let ids = asked
            .messages
            .iter()
            .map(|message| value(message)["id"].as_u64());
        assert_eq!(ids.collect::<Vec<_>>(), [Some(2), Some(1), Some(0)]);
        for message in &lane(&record, "ask", false).messages {
            let shown = message.content.as_ref().err();
            assert!(shown.is_none_or(|what| what.len() < 1_000));
        }
        assert!(record.to_json().is_object());
    }
}

#[test]
fn who_ends_its_bus_or_lives_leaves_no_record() {
    let _together = together();
    let name = name("no-death");
    let bus = recorded(&name, 8);
    let there = open(&name);
    let mut receiver: Receiver<Line> = there.receiver("lines").expect("nobody else receives");
    let mut sender = bus.sender::<Line>("lines").expect("a receiver is there");
    let line = || Line {
        number: 1,
        text: String::new(),
    };
    sender.send(&line()).expect("there is room");
    assert!(receiver.next().expect("not forked").is_some());
    assert!(bus.take_flight_records().is_empty());
    drop(receiver);
    there.close();
    drop(there);
    while sender.send(&line()).is_ok() {
        thread::sleep(Duration::from_millis(1));
    }
    // It is told of the end of the link before anything of it would be.
    drop(sender);
    assert!(bus.take_flight_records().is_empty());
    // One that has it off has none, whoever dies.
    let mut child = Child::start("dies-mad", &[&name, "1"]);
    assert_eq!(child.hear(), "serving");
    let off = open(&name);
    let _client = off.client::<Ask>().expect("a server is there");
    child.kill();
    while off.take_incidents().is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(off.take_flight_records().is_empty());
}

#[derive(ShmMessage)]
struct Flag {
    number: u32,
    is_set: bool,
}

/// The same, as a liar sends it.
#[derive(ShmMessage)]
#[shm(name = "Flag")]
struct ForgedFlag {
    number: u32,
    #[rkyv(with = Lie)]
    is_set: u8,
}

/// Archives any byte as what is true or false.
struct Lie;

impl ArchiveWith<u8> for Lie {
    type Archived = bool;
    type Resolver = ();

    fn resolve_with(byte: &u8, (): (), out: Place<bool>) {
        // SAFETY: the place is only written to.
        let to = unsafe { out.ptr() }.cast::<u8>();
        // SAFETY: a place of one byte.
        unsafe { to.write(*byte) };
    }
}

impl<S: Fallible + ?Sized> SerializeWith<u8, S> for Lie {
    fn serialize_with(_: &u8, _: &mut S) -> Result<(), S::Error> {
        Ok(())
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<bool, u8, D> for Lie {
    fn deserialize_with(set: &bool, _: &mut D) -> Result<u8, D::Error> {
        Ok(u8::from(*set))
    }
}

#[test]
fn a_fault_leaves_a_record() {
    let _together = together();
    let name = name("fault");
    let (bus, there) = (recorded(&name, 8), open(&name));
    let mut receiver: Receiver<Flag> = bus.receiver("flags").expect("nobody else receives");
    let mut sender = there
        .sender::<ForgedFlag>("flags")
        .expect("a receiver is there");
    for (number, is_set) in [(1, 1), (2, 0), (3, 7)] {
        sender
            .send(&ForgedFlag { number, is_set })
            .expect("there is room");
    }
    for number in 1..3 {
        let flag = receiver.next().expect("not forked").expect("it was sent");
        assert_eq!(
            (flag.number.to_native(), flag.is_set),
            (number, number == 1)
        );
    }
    assert!(receiver.try_next().expect("not forked").is_none());
    let record = record_of(&bus, std::process::id());
    assert!(
        matches!(record.fault, Some(Fault::Message { .. })),
        "{:?}",
        record.fault
    );
    assert_eq!(record.ended, None);
    let flags = lane(&record, "flags", false);
    let [third, second, first] = &flags.messages[..] else {
        panic!("{flags:?}");
    };
    assert_eq!(
        value(first),
        &serde_json::json!({ "number": 1, "is_set": true })
    );
    assert_eq!(
        value(second),
        &serde_json::json!({ "number": 2, "is_set": false })
    );
    let what = third.content.as_ref().expect_err("7 is neither");
    assert!(
        what.contains("bool") && what.contains("0300000007"),
        "{what}"
    );
    assert!(record.to_json()["fault"].is_string());
}
