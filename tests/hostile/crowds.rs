//! Strangers in numbers: they say nothing, never read, or talk without end.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::bench::{Bench, Expect};
use crate::lane::{Form, at, opener};
use crate::memory::{Memory, file};
use crate::session::{announce, port};
use crate::stranger::{HANGS, Stranger};
use crate::wire::Control;

/// As many connections as there may be, up to so many.
const CROWD: u64 = 10_000;

/// Raises the soft limit of descriptors of this process, which the victim inherits; how many that leaves.
fn raise_limit() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let wanted = CROWD + 500;
    let current = maximum.map_or(wanted, |most| most.min(wanted));
    let raised = Rlimit {
        current: Some(current),
        maximum,
    };
    setrlimit(Resource::Nofile, raised).expect("it is not above the hard limit");
    current
}

/// Strangers that connect and say nothing: the innocent is served while they are there, who came before them and who
/// comes now; and when their time is up nothing is left of them.
#[test]
fn a_silent_crowd_is_given_up() {
    let limit = raise_limit();
    let mut bench = Bench::start("crowd");
    let crowd = (limit - 500).min(CROWD);
    let mut strangers = Vec::new();
    for number in 0..crowd {
        strangers.push(bench.connect());
        if number % 500 == 0 {
            bench.is_served("call");
        }
    }
    bench.is_served("connect");
    bench.is_served("call");
    // Each is told that its time is up.
    strangers.iter().for_each(Stranger::wait_for_bye);
    drop(strangers);
    let us = format!("{} ", std::process::id());
    let incidents = bench.settle("a silent crowd");
    assert!(incidents.len() <= 256, "no more are kept");
    for incident in &incidents {
        assert!(
            incident.starts_with(&us) && incident.contains("no hello"),
            "{incident}"
        );
    }
    let last = incidents.last().expect("they are told of");
    assert_eq!(
        crowd > 256,
        last.contains("and others before that"),
        "{last}"
    );
    bench.cases += crowd;
    bench.end();
}

/// More strangers than the victim has descriptors: those whom it knows are served, and when the crowd has gone all
/// others are, too.
#[test]
fn a_crowd_that_takes_all_descriptors_stops_nobody_for_good() {
    const LIMIT: u64 = 64;
    let mut bench = Bench::start("exhausted");
    bench.limit_descriptors(LIMIT);
    for round in 0..3 {
        let known = bench.greet();
        let crowd: Vec<_> = (0..300).map(|_| bench.connect()).collect();
        bench.is_served("call");
        // No descriptor is left for what this one sends.
        wait_until(|| bench.descriptors_below(LIMIT) as u64 == LIMIT);
        known.give(&Control::Segment { id: 1, len: 4096 }, file(4096));
        known.wait_for_bye();
        bench.is_served("call");
        bench.cases += crowd.len() as u64;
        drop((known, crowd));
        bench.is_served("connect");
        let (us, victim) = (std::process::id(), bench.victim.pid());
        let incidents = bench.settle_with(&[us, victim], format!("round {round}"));
        let says = |pid: u32, what: &str| {
            let of = format!("{pid} ");
            let mut incidents = incidents.iter();
            incidents.any(|incident| incident.starts_with(&of) && incident.contains(what))
        };
        assert!(says(us, "no descriptor is left"), "{incidents:?}");
        assert!(says(victim, "cannot accept"), "{incidents:?}");
    }
    bench.end();
}

/// A segment for which the victim has no descriptor is not lost: the victim takes it as soon as it has one.
#[test]
fn a_segment_waits_for_a_descriptor() {
    const LIMIT: u64 = 64;
    // It does not wait for ever, and this process may be late.
    const TRIES: usize = 20;
    let mut bench = Bench::start("waits");
    bench.limit_descriptors(LIMIT);
    let goes_on = (0..TRIES).any(|_| {
        let known = bench.greet();
        let crowd: Vec<_> = (0..LIMIT).map(|_| bench.connect()).collect();
        wait_until(|| bench.descriptors_below(LIMIT) as u64 == LIMIT);
        known.give(&Control::Segment { id: 1, len: 4096 }, Memory::new(4096));
        bench.is_served("call");
        drop(crowd);
        // It is a fault to say so of a segment that is not there.
        known.say(&Control::Retired { id: 1 });
        let (types, end) = (port("flow").types(), opener(Form::Call));
        known.say(&crate::lane::open(0, ("nobody", None), types, end));
        let goes_on = loop {
            match known.hear() {
                Some(Control::Refused { .. }) => break true,
                Some(Control::Bye) | None => break false,
                Some(_) => {}
            }
        };
        drop(known);
        let all = [std::process::id(), bench.victim.pid()];
        bench.settle_with(&all, "a segment");
        goes_on
    });
    assert!(goes_on);
    bench.end();
}

fn wait_until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + HANGS;
    while !is_so() {
        assert!(Instant::now() < deadline, "it comes to that");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Strangers that come and go at once.
#[test]
fn who_comes_and_goes_leaves_nothing() {
    let mut bench = Bench::start("visitors");
    for round in 0..20 {
        for number in 0..100 {
            let stranger = bench.connect();
            if number % 2 == round % 2 {
                stranger.say(&Control::Hello {
                    layout: 1,
                    barrier: true,
                });
            }
            bench.cases += 1;
        }
        bench.check(Expect::Nothing, format!("round {round}"));
    }
    bench.end();
}

/// One that asks without end, and reads no answer.
#[test]
fn who_never_reads_is_given_up() {
    let mut bench = Bench::start("deaf");
    let stranger = bench.greet();
    let mut types = port("flow").types();
    types.answers.clear();
    // Each is refused, with all the schemas of the port.
    let open = crate::lane::open(0, ("flow", None), types, opener(Form::Call));
    let open = crate::wire::encode(&open);
    let mut asked = 0u32;
    while stranger.send(&open, &[]) {
        asked += 1;
        assert!(asked < 1 << 20, "it is given up at some time");
        if asked % 1_000 == 0 {
            bench.is_served("call");
        }
    }
    drop(stranger);
    bench.check(
        Expect::Fault("of control messages wait"),
        format!("{asked} asked"),
    );
    bench.end();
}

/// One that says more names than are remembered.
#[test]
fn who_serves_too_many_names_is_given_up() {
    let mut bench = Bench::start("names");
    let stranger = bench.greet();
    for number in 0..=65_536 {
        let name = number.to_string();
        if !stranger.say(&Control::Serving { name }) {
            break;
        }
        if number % 5_000 == 0 {
            bench.is_served("call");
        }
    }
    stranger.wait_for_bye();
    drop(stranger);
    bench.check(Expect::Fault("one of too many names"), "names");
    bench.end();
}

/// One that opens more lanes than a link may have.
#[test]
fn lanes_of_one_link_are_bounded() {
    let mut bench = Bench::start("lanes");
    let stranger = bench.greet();
    let doors = Memory::new(at::WORDS_LEN);
    let (id, len) = (1, at::WORDS_LEN as u64);
    let _announced = announce(&stranger);
    stranger.give(&Control::Segment { id, len }, &doors);
    let port = port("plain");
    let (mut opened, mut refused) = (0, 0);
    for lane in 0..16_500u32 {
        let mut end = opener(port.form);
        end.door.iter_mut().for_each(|door| {
            // A doorbell for each 4,096.
            (door.0.segment, door.0.offset) = (1, u64::from(lane / 4_096 % 4 * 1_024));
            door.1 = (lane % 4_096) as u16;
        });
        stranger.say(&port.open(lane, end));
        loop {
            match stranger.hear().expect("it is answered") {
                Control::Opened { .. } => opened += 1,
                Control::Refused { .. } => refused += 1,
                _ => continue,
            }
            break;
        }
        if lane % 1_000 == 0 {
            bench.is_served("call");
        }
    }
    assert_eq!((opened, refused), (16_384, 16_500 - 16_384));
    bench.is_served("connect");
    drop(stranger);
    bench.check(Expect::Nothing, "lanes");
    bench.end();
}
