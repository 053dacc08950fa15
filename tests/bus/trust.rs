//! Peers that are not trusted: what they sent is copied, and nothing that they do to it afterwards is seen.

pub(crate) mod scribbled;
pub(crate) mod users;

use std::fs;
use std::thread;
use std::time::Duration;

use shmbus::{Bus, Config, Pinned, Publishing, ShmMessage, Trust, View};

use crate::support::{name, together};

const NOT_TRUSTED: [Trust; 2] = [Trust::Untrusted, Trust::AnyUser];

/// What a message is archived into: from one cell to a block of the slab.
const SIZES: [usize; 4] = [0, 24, 3_000, 300_000];

pub(crate) fn config(trust: Trust) -> Config {
    Config {
        trust,
        ..Config::default()
    }
}

fn open(name: &str, trust: Trust) -> Bus {
    config(trust).open(name).expect("the bus opens")
}

/// Whether this lies in memory that a process shares with others.
pub(crate) fn is_shared<T: ?Sized>(value: &T) -> bool {
    let at = std::ptr::from_ref(value).cast::<u8>().addr();
    let maps = fs::read_to_string("/proc/self/maps").expect("it can be read");
    let line = maps.lines().find(|line| {
        let range = line.split(' ').next().unwrap_or_default();
        let bound = |bound| usize::from_str_radix(bound, 16).expect("an address");
        let (start, end) = range.split_once('-').expect("a range");
        (bound(start)..bound(end)).contains(&at)
    });
    line.expect("it is mapped").contains("memfd:shmbus")
}

/// Aligned as little as can be, or as much.
#[derive(ShmMessage, Clone, Debug, PartialEq)]
#[shm(service = "part", reply = Part, stream = Part, error = Part, topic = "parts")]
struct Part {
    number: u64,
    text: String,
}

/// One of these for each text.
#[derive(ShmMessage, Clone, Debug, PartialEq)]
#[shm(latest = "newest", key = "number")]
struct Newest {
    number: u64,
    text: String,
}

#[derive(ShmMessage)]
struct Referring {
    part: Pinned<Part>,
    text: String,
}

fn part(len: usize) -> Part {
    Part {
        number: len as u64,
        text: "x".repeat(len),
    }
}

/// Checks a part, and where all of it lies.
fn check(part: &ArchivedPart, len: usize, is_in_place: bool) {
    assert_eq!(part.number, len as u64);
    assert_eq!(part.text.len(), len);
    assert!(part.text == "x".repeat(len));
    assert_eq!(is_shared(part), is_in_place, "{len}");
    assert_eq!(is_shared(part.text.as_str()), is_in_place, "{len}");
}

/// Takes messages of all sizes on each kind of port.
fn take_on_every_port(bus: &str, trust: Trust) {
    let is_in_place = trust == Trust::SameUser;
    let (near, far) = (open(bus, trust), open(bus, Trust::SameUser));
    // Kept messages that came in cells are copies in any case.
    let check_kept = |part: &ArchivedPart, len| check(part, len, is_in_place && len > 10_000);

    let mut receiver = near.receiver::<Part>("one-way").expect("nobody else does");
    let mut sender = far.sender::<Part>("one-way").expect("somebody receives");
    for len in SIZES {
        for _ in 0..3 {
            sender.send(&part(len)).expect("there is room");
        }
        let one = receiver.next().expect("not forked").expect("it came");
        check(&one, len, is_in_place);
        drop(one);
        let kept = receiver.next().expect("not forked").map(View::keep);
        check_kept(&kept.expect("it came"), len);
        let owned = receiver.next().expect("not forked").map(|v| v.to_value());
        assert_eq!(owned.expect("it came").expect("it is whole"), part(len));
    }

    let mut server = near.server::<Part>().expect("nobody else serves");
    let serving = thread::spawn(move || {
        while let Some(call) = server.next().expect("not forked") {
            let len = call.text.len();
            check(&call, len, is_in_place);
            call.send(&part(len)).expect("there is room");
            match len {
                24 => call.fail(&part(len)),
                _ => call.reply(&part(len)),
            }
            .expect("there is room");
        }
    });
    let client = far.client::<Part>().expect("somebody serves");
    for len in SIZES {
        let request = part(len);
        let mut items = client.stream(&request).expect("it is sent");
        let item = items.next().expect("there is one").expect("it came");
        check(&item, len, true);
        let end = items.finish();
        assert_eq!(end.is_err(), len == 24);
    }
    drop(client);
    near.close();
    serving.join().expect("what came is as it should be");
}

/// Of those that ask.
fn ask_on_every_port(bus: &str, trust: Trust) {
    let is_in_place = trust == Trust::SameUser;
    let (near, far) = (open(bus, trust), open(bus, Trust::SameUser));
    let mut server = far.server::<Part>().expect("nobody else serves");
    let serving = thread::spawn(move || {
        while let Some(call) = server.next().expect("not forked") {
            let len = call.text.len();
            call.send(&part(len)).expect("there is room");
            call.reply(&part(len)).expect("there is room");
        }
    });
    let client = near.client::<Part>().expect("somebody serves");
    for len in SIZES {
        let request = part(len);
        let mut items = client.stream(&request).expect("it is sent");
        let item = items.next().expect("there is one").expect("it came");
        check(&item, len, is_in_place);
        drop(item);
        let reply = items.finish().expect("it is answered");
        check(&reply, len, is_in_place);
    }
    drop(client);
    let tasks = near.async_client::<Part>().expect("somebody serves");
    for len in SIZES {
        let reply = tasks.call(&part(len)).wait().expect("it is answered");
        check(&reply, len, is_in_place && len > 10_000);
    }
    far.close();
    serving.join().expect("the server does not panic");
}

/// Of those that answer tasks, subscribe and read.
fn read_on_every_port(bus: &str, trust: Trust) {
    let is_in_place = trust == Trust::SameUser;
    let (near, far) = (open(bus, trust), open(bus, Trust::SameUser));
    let mut one = near.subscriber::<Part>().expect("it joins");
    let many = near.async_subscriber::<Part>().expect("it joins");
    let mut latest = near.latest::<Newest>().expect("it joins");
    let mut publisher = far.publisher_as::<Part>(Publishing::default());
    let publisher = publisher.as_mut().expect("it joins");
    let mut replaces = far.latest_publisher::<Newest>().expect("it joins");
    for len in SIZES {
        publisher.publish(&part(len)).expect("there is room");
        let came = one.next().expect("not forked").expect("it came");
        check(&came, len, is_in_place);
        let came = many.next().wait().expect("not forked").expect("it came");
        check(&came, len, is_in_place && len > 64);

        let (number, text) = (len as u64, "x".repeat(len));
        replaces.publish(&Newest { number, text }).expect("memory");
        for _ in 0..2 {
            let newest = latest.get(&number).expect("not forked").expect("it came");
            assert_eq!(newest.text.len(), len);
            assert!(newest.text == "x".repeat(len));
            assert_eq!(is_shared(&*newest), is_in_place, "{len}");
            assert_eq!(is_shared(newest.text.as_str()), is_in_place, "{len}");
        }
    }

    let server = near.async_server::<Part>().expect("nobody else serves");
    let serving = thread::spawn(move || {
        while let Some(call) = server.next().wait().expect("not forked") {
            let len = call.text.len();
            check(&call, len, is_in_place && len > 10_000);
            call.reply(&part(len)).expect("there is room");
        }
    });
    let client = far.client::<Part>().expect("somebody serves");
    for len in SIZES {
        let reply = client.call(&part(len)).expect("it is answered");
        check(&reply, len, true);
    }
    drop(client);
    near.close();
    serving.join().expect("what came is as it should be");
}

fn open_pins(bus: &str, trust: Trust) {
    let is_in_place = trust == Trust::SameUser;
    let (near, far) = (open(bus, trust), open(bus, Trust::SameUser));
    let mut receiver = near.receiver::<Referring>("pins").expect("nobody does");
    let mut sender = far.sender::<Referring>("pins").expect("somebody receives");
    for pinned in SIZES {
        // Not at the beginning of its segment.
        let _before = far.pin(&part(pinned)).expect("there is memory");
        for len in SIZES {
            let referring = Referring {
                part: far.pin(&part(pinned)).expect("there is memory"),
                text: "x".repeat(len),
            };
            sender.send(&referring).expect("there is room");
            drop(referring);
            let view = receiver.next().expect("not forked").expect("it came");
            let opened = view.part.open(&view).expect("it is there");
            let again = view.part.open(&view).expect("it is there");
            check(&opened, pinned, is_in_place);
            check(&again, pinned, is_in_place);
            assert!(std::ptr::eq(&raw const *opened, &raw const *again));
            drop((opened, again));
            let kept = view.keep();
            assert_eq!(is_shared(&*kept), is_in_place && len > 10_000, "{len}");
            check(&kept.part.open(&kept).expect("there"), pinned, is_in_place);
        }
    }
}

fn on_every_port(trust: Trust) {
    let name = |of: &str| name(&format!("{of}-{trust:?}"));
    take_on_every_port(&name("takes"), trust);
    ask_on_every_port(&name("asks"), trust);
    read_on_every_port(&name("reads"), trust);
    open_pins(&name("opens"), trust);
}

#[test]
fn what_comes_from_who_is_not_trusted_is_copied_on_every_port() {
    let _together = together();
    NOT_TRUSTED.into_iter().for_each(on_every_port);
}

#[test]
fn what_comes_from_who_is_trusted_is_read_in_place_on_every_port() {
    let _together = together();
    on_every_port(Trust::SameUser);
}

/// As if it lay in the ring: a lane is not used up by what is kept.
#[test]
fn what_is_kept_as_a_copy_is_handed_back() {
    let _together = together();
    let name = name("kept-copies");
    let bus = open(&name, Trust::Untrusted);
    let mut receiver = bus.receiver::<Part>("one-way").expect("nobody else does");
    let far = Config {
        memory_limit: 8 << 20,
        ..Config::default()
    };
    let far = far.open(&name).expect("the bus opens");
    let mut sender = far.sender::<Part>("one-way").expect("somebody receives");
    let mut kept = Vec::new();
    for turn in 0..1_000 {
        let len = SIZES[turn % 4];
        sender.send(&part(len)).expect("there is room");
        let view = receiver.next().expect("not forked").expect("it came");
        assert_eq!(view.sequence(), turn as u64);
        kept.push((len, view.keep()));
    }
    for (len, kept) in kept {
        check(&kept, len, false);
    }
}

#[test]
fn a_copy_says_when_it_was_published() {
    let _together = together();
    let name = name("times-of-copies");
    let bus = open(&name, Trust::Untrusted);
    let mut receiver = bus.receiver::<Part>("one-way").expect("nobody else does");
    let far = Config {
        timestamps: true,
        ..Config::default()
    };
    let far = far.open(&name).expect("the bus opens");
    let mut sender = far.sender::<Part>("one-way").expect("somebody receives");
    for len in SIZES {
        let before = std::time::Instant::now();
        sender.send(&part(len)).expect("there is room");
        let view = receiver.next().expect("not forked").expect("it came");
        let published = view.published().expect("its sender says so");
        assert!(before <= published + Duration::from_millis(10), "{len}");
        assert!(published <= std::time::Instant::now(), "{len}");
        assert_eq!(view.keep().published(), Some(published));
    }
}

#[test]
fn what_is_too_large_to_be_copied_ends_the_link() {
    let _together = together();
    for what in ["message", "pin", "newest"] {
        let name = name(&format!("too-large-{what}"));
        let near = Config {
            max_message: 100_000,
            ..config(Trust::Untrusted)
        };
        let near = near.open(&name).expect("the bus opens");
        let far = open(&name, Trust::SameUser);
        let (small, large) = (part(90_000), part(110_000));
        match what {
            "message" => {
                let mut receiver = near.receiver::<Part>("one-way").expect("nobody does");
                let mut sender = far.sender::<Part>("one-way").expect("somebody does");
                sender.send(&small).expect("there is room");
                assert!(receiver.try_next().expect("not forked").is_some());
                sender.send(&large).expect("there is room");
                assert!(receiver.try_next().expect("not forked").is_none());
            }
            "pin" => {
                let mut receiver = near.receiver::<Referring>("pins").expect("nobody");
                let mut sender = far.sender::<Referring>("pins").expect("somebody");
                for (part, fits) in [(&small, true), (&large, false)] {
                    let referring = Referring {
                        part: far.pin(part).expect("there is memory"),
                        text: String::new(),
                    };
                    sender.send(&referring).expect("there is room");
                    let view = receiver.next().expect("not forked").expect("it came");
                    assert_eq!(view.part.open(&view).is_ok(), fits);
                }
            }
            _ => {
                let mut latest = near.latest::<Newest>().expect("it joins");
                let mut publisher = far.latest_publisher::<Newest>().expect("it joins");
                for (part, fits) in [(&small, true), (&large, false)] {
                    let Part { number, text } = part.clone();
                    publisher.publish(&Newest { number, text }).expect("memory");
                    let newest = latest.get(&number).expect("not forked");
                    assert_eq!(newest.is_some(), fits);
                }
            }
        }
        let incidents = near.take_incidents();
        let told = incidents.iter().any(|incident| {
            let what = &incident.what;
            what.contains("takes 100000") && what.contains("Config::max_message")
        });
        assert!(told, "{what}: {incidents:?}");
    }
}
