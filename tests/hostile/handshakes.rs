//! Control messages that are wrong, come at the wrong time, or not at all.

use std::os::fd::AsFd;

use crate::bench::{Bench, Expect, random};
use crate::lane::{Form, SEGMENT, WORDS, at, opener, place, words};
use crate::lies;
use crate::memory::Memory;
use crate::session::{PORTS, Session, announce, nothing, port};
use crate::stranger::{Stranger, Trap};
use crate::wire::{self, Control, HEAD, Refusal, Schemas, Where};

const HELLO: Control = Control::Hello {
    layout: 1,
    barrier: false,
};

/// The mirror of the control messages is true: what an honest node says comes out of it as it went in.
#[test]
fn a_stranger_speaks_as_honest_nodes_do() {
    let mut bench = Bench::start("mirror");
    let trap = Trap::set(&bench.dir, "prey.port");
    bench.victim.say("call");
    let stranger = trap.accept();
    stranger.say(&HELLO);
    let mut kinds = Vec::new();
    loop {
        let (bytes, _) = stranger.hear_all().expect("it asks for a port");
        let control = wire::decode(&bytes);
        assert_eq!(wire::encode(&control), bytes, "{control:?}");
        match control {
            Control::Hello { layout, .. } => {
                assert!(kinds.is_empty(), "a hello is the first of all");
                assert_eq!(layout, 1);
                kinds.push("hello");
            }
            Control::Segment { len, .. } => {
                assert_eq!(len % 4096, 0);
                kinds.push("segment");
            }
            Control::Open {
                lane,
                name,
                end,
                types,
                ..
            } => {
                assert_eq!(name, "prey");
                assert_eq!(end.sends.map(|sends| sends.cells.len), Some(4160));
                assert_ne!(types.answers[2], nothing());
                let why = Refusal::NoServer;
                stranger.say(&Control::Refused { lane, why });
                kinds.push("open");
                break;
            }
            _ => {}
        }
    }
    assert!(
        kinds.contains(&"hello") && kinds.contains(&"segment"),
        "{kinds:?}"
    );
    assert_eq!(bench.victim.hear(), "refused");
    drop((stranger, trap));
    bench.check(Expect::Nothing, "a refusal");
    bench.end();
}

/// What is said instead of a hello.
fn instead_of_hello() -> Vec<(&'static str, Vec<u8>)> {
    let ask = port("ask");
    let (name, schemas) = (
        "ask".to_owned(),
        Schemas {
            request: vec![1],
            answers: vec![],
        },
    );
    let behind_hello = [
        Control::Retired { id: 0 },
        ask.open(0, opener(Form::Call)),
        Control::Opened {
            lane: 0,
            end: opener(Form::Call),
        },
        Control::Refused {
            lane: 0,
            why: Refusal::NoServer,
        },
        Control::Differs {
            name: name.clone(),
            schemas,
        },
        Control::Closed {
            lane: 0,
            mine: true,
        },
        Control::Released {
            lane: 0,
            mine: true,
        },
        Control::Ring { bell: 0 },
        Control::Serving { name: name.clone() },
        Control::Gone { name: name.clone() },
        Control::Joined { name, lane: 0 },
    ];
    let mut all: Vec<_> = behind_hello
        .iter()
        .map(|control| ("not a hello", wire::encode(control)))
        .collect();
    let another = |at: usize, byte: u8| {
        let mut bytes = wire::encode(&HELLO);
        bytes[at] = byte;
        bytes
    };
    let layout = |layout| {
        let barrier = true;
        wire::encode(&Control::Hello { layout, barrier })
    };
    let long = |len: usize| [&HEAD[..], &vec![0xff; len]].concat();
    all.extend([
        ("not of shmbus", another(0, b'x')),
        ("of another version of shmbus", another(4, 2)),
        ("of another version of shmbus", another(7, 1)),
        ("of another layout of shared memory", layout(0)),
        ("of another layout of shared memory", layout(2)),
        ("of another layout of shared memory", layout(u32::MAX)),
        ("too short", b"shm".to_vec()),
        ("too short", b"shmb\x01\0".to_vec()),
        ("garbled", HEAD.to_vec()),
        ("garbled", long(100_000)),
        ("too long", long(130 * 1024)),
    ]);
    all
}

#[test]
fn what_is_no_hello_ends_the_link() {
    let mut bench = Bench::start("hellos");
    for (fault, bytes) in instead_of_hello() {
        let stranger = bench.connect();
        assert!(stranger.send(&bytes, &[]));
        stranger.wait_for_bye();
        drop(stranger);
        bench.check(Expect::Fault(fault), fault);
    }
    // Nothing at all, and an end without a word.
    for say_bye in [false, true] {
        let stranger = bench.connect();
        if say_bye {
            stranger.say(&Control::Bye);
        }
        drop(stranger);
        bench.check(Expect::Nothing, "no word");
        let stranger = bench.connect();
        stranger.send(&[], &[]);
        stranger.wait_for_bye();
        drop(stranger);
        bench.check(Expect::Nothing, "an empty message");
    }
    bench.end();
}

/// An honest handshake, message for message.
fn honest(of: &str) -> Vec<Vec<u8>> {
    let port = port(of);
    let segment = |(id, len)| Control::Segment {
        id,
        len: len as u64,
    };
    let open = port.open(1, opener(port.form));
    [
        HELLO,
        segment((SEGMENT, at::LEN)),
        segment((WORDS, at::WORDS_LEN)),
        open,
    ]
    .iter()
    .map(wire::encode)
    .collect()
}

/// Says one message of a handshake, with what belongs to it.
fn say(stranger: &Stranger, step: usize, bytes: &[u8]) -> bool {
    let memory = match step {
        1 => Memory::new(at::LEN),
        2 => Memory::new(at::WORDS_LEN),
        _ => return stranger.send(bytes, &[]),
    };
    stranger.send(bytes, &[memory.as_fd()])
}

#[test]
fn a_handshake_that_is_cut_leaves_nothing() {
    let mut bench = Bench::start("cuts");
    for port in &PORTS {
        let messages = honest(port.name);
        // After each message.
        for said in 0..=messages.len() {
            let stranger = bench.connect();
            for (step, bytes) in messages[..said].iter().enumerate() {
                say(&stranger, step, bytes);
            }
            drop(stranger);
            bench.check(Expect::Nothing, format!("{} cut after {said}", port.name));
        }
    }
    // Within each.
    let messages = honest("flow");
    for (step, whole) in messages.iter().enumerate() {
        for cut in 1..whole.len() {
            let stranger = bench.connect();
            for (step, bytes) in messages[..step].iter().enumerate() {
                say(&stranger, step, bytes);
            }
            say(&stranger, step, &whole[..cut]);
            stranger.wait_for_bye();
            drop(stranger);
            let fault = if cut < 8 { "too short" } else { "garbled" };
            bench.check(Expect::Fault(fault), format!("message {step} cut at {cut}"));
        }
    }
    bench.end();
}

/// What is said behind an honest hello, in several messages, and what is wrong with it.
fn behind_hello() -> Vec<(&'static str, Vec<Control>)> {
    let name = || "x".to_owned();
    let serving = |name: &str| Control::Serving { name: name.into() };
    let refused = |lane| Control::Refused {
        lane,
        why: Refusal::NoMemory,
    };
    let opened = |lane| Control::Opened {
        lane,
        end: opener(Form::Call),
    };
    vec![
        ("a second hello", vec![HELLO]),
        (
            "never announced or announced twice",
            vec![Control::Retired { id: 3 }],
        ),
        ("an answer that nobody waits for", vec![opened(0)]),
        ("an answer that nobody waits for", vec![refused(u32::MAX)]),
        ("a name that none can be", vec![serving("")]),
        ("a name that none can be", vec![serving("..")]),
        ("a name that none can be", vec![serving("a/b")]),
        ("a name that none can be", vec![serving("a\0")]),
        ("a name that none can be", vec![serving("t/sub/01")]),
        ("a name that none can be", vec![serving(&"x".repeat(101))]),
        (
            "without, or with too many, descriptors",
            vec![Control::Segment { id: 1, len: 4096 }],
        ),
        (
            "without, or with too many, descriptors",
            vec![Control::Bell { bell: 1 }],
        ),
        // What means nothing, and does no harm.
        ("", vec![Control::Gone { name: name() }]),
        (
            "",
            vec![Control::Joined {
                name: name(),
                lane: 7,
            }],
        ),
        (
            "",
            vec![Control::Ring { bell: u32::MAX }, Control::Ring { bell: 0 }],
        ),
        (
            "",
            [true, false]
                .map(|mine| Control::Closed { lane: 0, mine })
                .to_vec(),
        ),
        (
            "",
            [true, false]
                .map(|mine| Control::Released { lane: 9, mine })
                .to_vec(),
        ),
        (
            "",
            vec![serving("x"), serving("x"), Control::Gone { name: name() }],
        ),
        // Nothing is read behind it.
        ("", vec![Control::Bye, HELLO, Control::Retired { id: 3 }]),
    ]
}

#[test]
fn what_makes_no_sense_behind_a_hello_ends_the_link() {
    let mut bench = Bench::start("control");
    for (fault, controls) in behind_hello() {
        let stranger = bench.greet();
        for control in &controls {
            stranger.say(control);
        }
        if !fault.is_empty() {
            stranger.wait_for_bye();
        }
        drop(stranger);
        let expect = match fault {
            "" => Expect::Nothing,
            fault => Expect::Fault(fault),
        };
        bench.check(expect, format!("{controls:?}"));
    }
    bench.end();
}

#[test]
fn what_differs_is_named_or_told_to_be_garbled() {
    let mut bench = Bench::start("differs");
    let mut schemas = Schemas {
        request: shmbus::schema_of::<crate::messages::News>().to_bytes(),
        answers: vec![vec![0xff; 60_000], Vec::new()],
    };
    for _ in 0..2 {
        let stranger = bench.greet();
        let name = "flow".to_owned();
        let schemas = std::mem::replace(
            &mut schemas,
            Schemas {
                request: vec![7; 100],
                answers: vec![vec![]; 10_000],
            },
        );
        stranger.say(&Control::Differs { name, schemas });
        // Read before what comes behind it.
        stranger.say(&Control::Retired { id: 1 });
        stranger.wait_for_bye();
        drop(stranger);
        let incidents = bench.settle("schemas");
        assert!(
            incidents[0].contains("\\\"flow\\\" was asked for"),
            "{incidents:?}"
        );
        assert_eq!(incidents.len(), 2, "{incidents:?}");
    }
    bench.end();
}

/// Requests for ports that are refused, or end the link.
#[test]
fn a_port_is_asked_for_with_places_that_are_none() {
    type Wrong = fn(&mut wire::End);
    let wrong: [(&str, Wrong); 17] = [
        ("never announced", |end| end.bell.0.segment = 8),
        ("of another size", |end| end.bell.0.len = 4),
        ("which has 4096", |end| end.bell.0.offset = 4_096),
        ("which has 4096", |end| end.bell.0.offset = u64::MAX - 63),
        ("which has 4096", |end| end.bell.0.offset += 4),
        ("a lane of another size", |end| sends(end).len = 4096),
        ("which has 131072", |end| sends(end).offset = 131_072 - 64),
        ("which has 131072", |end| {
            sends(end).offset = u64::MAX - 4095
        }),
        ("which has 131072", |end| sends(end).offset = 32),
        ("never announced", |end| sends(end).segment = u64::MAX),
        ("a receiving end of another size", |end| {
            end.receives = Some(place(0, 256))
        }),
        ("which has 4096", |end| {
            end.receives = Some(words(4_032, 192))
        }),
        ("a lane with one end", |end| end.receives = None),
        ("a lane with one end", |end| end.sends = None),
        ("a lane without a doorbell", |end| end.door = None),
        ("a bit outside of its doorbell", |end| door(end).1 = 4096),
        ("of another size", |end| door(end).0.len = 64),
    ];
    fn sends(end: &mut wire::End) -> &mut Where {
        &mut end.sends.as_mut().expect("it sends").cells
    }
    fn door(end: &mut wire::End) -> &mut (Where, u16, bool) {
        end.door.as_mut().expect("it rings")
    }
    let mut bench = Bench::start("places");
    for of in ["flow", "later"] {
        for (fault, wrong) in wrong {
            let stranger = bench.greet();
            let _announced = announce(&stranger);
            let mut end = opener(Form::Call);
            wrong(&mut end);
            stranger.say(&port(of).open(0, end));
            stranger.wait_for_bye();
            drop(stranger);
            bench.check(Expect::Fault(fault), format!("{of}: {end:?}"));
        }
    }
    // A lane that is open already.
    for port in &PORTS {
        let session = Session::open(&bench, port);
        session.stranger.say(&port.open(1, opener(port.form)));
        session.stranger.wait_for_bye();
        drop(session);
        bench.check(Expect::Fault("a lane whose number is in use"), port.name);
    }
    for (port, board) in [("state", None), ("news", Some(place(0, 192)))] {
        let port = self::port(port);
        let stranger = bench.greet();
        let _announced = announce(&stranger);
        let mut end = opener(port.form);
        end.sends.iter_mut().for_each(|sends| sends.board = board);
        stranger.say(&port.open(0, end));
        stranger.wait_for_bye();
        drop(stranger);
        bench.check(Expect::Fault("a lane with one end"), port.name);
    }
    bench.end();
}

#[test]
fn what_is_refused_is_no_fault() {
    let mut bench = Bench::start("refused");
    let ask = port("ask");
    let stranger = bench.greet();
    let mut types = ask.types();
    types.answers.clear();
    let another = crate::lane::open(0, ("ask", None), types, opener(Form::Call));
    stranger.say(&another);
    let nobody = crate::lane::open(1, ("nobody", Some(0)), ask.types(), opener(Form::Call));
    stranger.say(&nobody);
    let heard = [(); 40].iter().map_while(|()| stranger.hear());
    let refused: Vec<_> = heard
        .filter_map(|heard| match heard {
            Control::Refused { lane, why } => Some((lane, why)),
            _ => None,
        })
        .take(2)
        .collect();
    assert!(matches!(refused[0], (0, Refusal::Layout(_))), "{refused:?}");
    assert_eq!(refused[1], (1, Refusal::NoServer));
    drop(stranger);
    bench.check(Expect::Nothing, "refusals");
    bench.end();
}

/// Whatever is said in whatever order, with whatever descriptors.
#[test]
fn random_control_messages_do_no_harm() {
    let mut bench = Bench::start("random-control");
    random(1_500, |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let port = &PORTS[rng.usize(..PORTS.len())];
        let stranger = match rng.u8(..6) {
            0 => bench.connect(),
            1 => bench.greet(),
            _ => Session::open(&bench, port).stranger,
        };
        for _ in 0..rng.usize(1..30) {
            let (bytes, fds) = lies::message(&mut rng, port.form);
            let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
            if !stranger.send(&bytes, &fds) {
                break;
            }
        }
        if rng.bool() {
            // All of it is read before this, which ends the link.
            stranger.say(&HELLO);
            stranger.say(&HELLO);
            stranger.wait_for_bye();
        }
        drop(stranger);
        bench.check(Expect::Either, format!("seed {seed}"));
    });
    bench.end();
}
