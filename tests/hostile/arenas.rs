//! What a stranger writes into memory that the victim looks at, on lanes that the stranger opened.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::bench::{Bench, Expect, random};
use crate::lane::{Cells, Form, SEGMENT, at, kind, opener};
use crate::lies::{Liar, Says};
use crate::session::{PORTS, Port, Session, announce, port};
use crate::stranger::HANGS;
use crate::wire::Control;

/// Writes something wrong to a port.
struct Wrong {
    port: &'static str,
    fault: &'static str,
    write: fn(&Session, &mut Cells<'_>, &[u8]),
}

const FREE: u64 = at::FREE as u64;

/// The word that says where a value or a row lies.
fn location(at: usize) -> u64 {
    (SEGMENT + 1) << 26 | (at / 64) as u64
}

/// Puts an honest value on a board, in entry 0.
fn value(session: &Session, bytes: &[u8]) {
    let memory = &session.memory;
    for (offset, word) in [(0, 1), (8, bytes.len() as u64), (16, 0)] {
        memory.set(at::FREE + offset, word);
    }
    memory.put(at::FREE + 24, bytes);
    memory.set(at::ROWS, location(at::ENTRIES));
    memory.set(at::ENTRIES, location(at::FREE));
    memory.set(at::ENTRIES + 8, 1);
    memory.set(at::BOARD, 1);
}

/// Notes entry 0.
fn note(cells: &mut Cells<'_>) {
    cells.publish((kind::INLINE, 0), &[], &0u64.to_le_bytes());
}

const ONE_WAY: [&str; 5] = ["flow", "later", "plain", "refer", "news"];

fn on_all() -> impl Iterator<Item = Wrong> {
    type Write = fn(&Session, &mut Cells<'_>, &[u8]);
    let all: [(&'static str, Write); 18] = [
        ("which means nothing", |_, cells, _| {
            cells.header((0, 0), 8, 1)
        }),
        ("which means nothing", |_, cells, _| {
            cells.header((13, 0), 8, 1)
        }),
        ("which means nothing", |_, cells, _| {
            cells.header((15, 9), 0, 1)
        }),
        ("pointed to cell", |_, cells, _| {
            let count = cells.count();
            cells.header((kind::JUMP, 0), 0, count);
        }),
        ("pointed to cell", |_, cells, _| {
            cells.jump(1);
            cells.header((kind::JUMP, 0), 0, 65_535);
        }),
        ("bytes where", |_, cells, _| {
            cells.header((kind::INLINE, 0), 65_535, 1)
        }),
        ("bytes where", |_, cells, _| {
            let last = cells.count() - 1;
            cells.jump(last);
            cells.header((kind::INLINE, 0), 57, 1);
        }),
        ("bytes where", |_, cells, _| {
            cells.header((kind::JUMP, 0), 1, 1)
        }),
        ("bytes where", |_, cells, _| {
            cells.header((kind::FAILED, 0), 0, 1)
        }),
        ("bytes where", |_, cells, _| {
            cells.header((kind::FAILED, 0), 257, 9)
        }),
        ("bytes where", |_, cells, _| {
            cells.header((kind::BLOCK, 0), 23, 1)
        }),
        ("bytes where", |_, cells, _| {
            cells.header((kind::EXTEND, 0), 56, 1)
        }),
        ("bytes where", |_, cells, _| {
            cells.header((kind::MISSED, 0), 16, 1)
        }),
        ("never announced", |_, cells, bytes| {
            cells.refer(
                (kind::BLOCK, 0),
                [SEGMENT + 1, FREE, bytes.len() as u64],
                &[],
            );
        }),
        ("which has 131072", |_, cells, bytes| {
            let end = at::LEN as u64 - bytes.len() as u64 / 8 * 8;
            cells.refer(
                (kind::BLOCK, 0),
                [SEGMENT, end, bytes.len() as u64 + 8],
                &[],
            );
        }),
        ("which has 131072", |_, cells, _| {
            cells.refer((kind::BLOCK, 0), [SEGMENT, u64::MAX - 63, 128], &[]);
        }),
        ("which has 131072", |_, cells, bytes| {
            cells.refer(
                (kind::BLOCK, 0),
                [SEGMENT, FREE + 4, bytes.len() as u64],
                &[],
            );
        }),
        ("cells to a lane", |_, cells, _| {
            cells.refer((kind::EXTEND, 0), [SEGMENT, 0, 64 * 65], &[]);
        }),
    ];
    let ports = ONE_WAY.into_iter().chain(["state"]);
    ports.flat_map(move |port| {
        let wrong = all.into_iter();
        wrong.map(move |(fault, write)| Wrong { port, fault, write })
    })
}

fn on_some() -> Vec<Wrong> {
    let mut all = Vec::new();
    for port in ONE_WAY {
        all.push(Wrong {
            port,
            fault: "no valid",
            write: |_, cells, _| cells.publish((kind::INLINE, 0), &[], &[0xff; 4]),
        });
        all.push(Wrong {
            port,
            fault: "no valid",
            write: |session, cells, _| {
                session.memory.put(at::FREE, &[0x55; 64]);
                cells.refer((kind::BLOCK, 0), [SEGMENT, FREE, 0], &[]);
            },
        });
    }
    for port in ["flow", "later"] {
        all.push(Wrong {
            port,
            fault: "no valid",
            write: |_, cells, bytes| {
                let mut bytes = bytes.to_vec();
                let len = bytes.len();
                // The relative pointer of a vector, and its length.
                bytes[len - 8..].copy_from_slice(&[0xff; 8]);
                cells.publish((kind::CALL, 0), &[0; 32], &bytes);
            },
        });
    }
    type Write = fn(&Session, &mut Cells<'_>, &[u8]);
    let boards: [(&'static str, Write); 10] = [
        ("a board of too many entries", |session, cells, _| {
            session.memory.set(at::BOARD, 65_473);
            note(cells);
        }),
        ("a board of too many entries", |session, cells, _| {
            session.memory.set(at::BOARD, u64::MAX);
            note(cells);
        }),
        ("a board without one of its rows", |session, cells, _| {
            session.memory.set(at::BOARD, 65);
            session.memory.set(at::ROWS, location(at::ENTRIES));
            note(cells);
        }),
        ("which has 131072", |session, cells, _| {
            session.memory.set(at::BOARD, 1);
            session.memory.set(at::ROWS, location(at::LEN - 64));
            note(cells);
        }),
        ("never announced", |session, cells, _| {
            session.memory.set(at::BOARD, 1);
            session.memory.set(at::ROWS, 1 << 62);
            note(cells);
        }),
        ("which has 131072", |session, cells, bytes| {
            value(session, bytes);
            session.memory.set(at::ENTRIES, location(at::LEN));
            note(cells);
        }),
        ("which has 131072", |session, cells, bytes| {
            value(session, bytes);
            session.memory.set(at::FREE + 8, 1 << 20);
            note(cells);
        }),
        (
            "a board that refers to no place",
            |session, cells, bytes| {
                value(session, bytes);
                session.memory.set(at::FREE + 8, u64::MAX);
                note(cells);
            },
        ),
        ("no valid", |session, cells, bytes| {
            value(session, bytes);
            session.memory.set(at::FREE + 8, 3);
            note(cells);
        }),
        ("no valid", |session, cells, bytes| {
            value(session, bytes);
            session.memory.put(at::FREE + 24, &[0x80; 400]);
            note(cells);
        }),
    ];
    all.extend(boards.map(|(fault, write)| Wrong {
        port: "state",
        fault,
        write,
    }));
    all
}

#[test]
fn what_cannot_be_true_ends_the_link() {
    let mut bench = Bench::start("forged");
    for (number, wrong) in on_all().chain(on_some()).enumerate() {
        let port = port(wrong.port);
        let case = format!("{number}: {} to {}", wrong.fault, port.name);
        println!("{case}");
        let session = Session::open(&bench, port);
        let mut cells = session.cells();
        (wrong.write)(&session, &mut cells, &(port.message)(1));
        session.ring();
        session.stranger.wait_for_bye();
        drop(session);
        bench.check(Expect::Fault(wrong.fault), case);
    }
    bench.end();
}

/// Calls so often, each time when the one before was taken; false where the link has ended.
fn call_often(session: &Session, cells: &mut Cells<'_>, bytes: &[u8], tags: u64) -> bool {
    for sent in 0..3_000 {
        let (at, before) = (cells.at, session.returned());
        // Requests may be handed back some at a time; those that fit a cell are taken when they are copied.
        cells.publish((kind::INLINE, sent % tags), &[], bytes);
        session.ring();
        let deadline = Instant::now() + HANGS;
        while (session.returned() ^ before) >> (at % 64) & 1 == 0 {
            if session.stranger.is_over() {
                return false;
            }
            assert!(Instant::now() < deadline, "request {sent} is not taken");
            std::thread::yield_now();
        }
    }
    true
}

/// A server whose answers are handed back before they were sent, or never.
#[test]
fn a_client_that_hands_back_what_it_never_had_loses_its_link() {
    let mut bench = Bench::start("hand-back");
    for (of, bits, tags, fault) in [
        ("ask", u64::MAX, 448, "handed back a record"),
        ("flow", u64::MAX, 448, "handed back a record"),
        ("later", u64::MAX, 448, "handed back a record"),
        ("ask", 1 << 63, 448, "handed back a record"),
        // Never.
        ("ask", 0, 448, "and went on calling"),
        ("flow", 0, 448, "and went on calling"),
        // Tags that no request has.
        ("ask", 0, 449, "no request, or one of too high a tag"),
        ("later", 0, 449, "no request, or one of too high a tag"),
    ] {
        let port = port(of);
        println!("{of}: {bits:#x}");
        let session = Session::open(&bench, port);
        let mut cells = session.cells();
        session.words.set(at::HANDED_BACK, bits);
        let goes_on = call_often(&session, &mut cells, &(port.message)(0), tags);
        assert!(!goes_on, "{of}: it is dropped");
        drop(session);
        bench.check(
            Expect::Fault(fault),
            format!("{of}: {bits:#x}, {tags} tags"),
        );
    }
    bench.end();
}

/// Lies of all kinds, mixed with what is true, at every port.
#[test]
fn random_arenas_do_no_harm() {
    let mut bench = Bench::start("random-arenas");
    random(3_000, |seed| {
        let port = &PORTS[seed as usize % PORTS.len()];
        let stranger = bench.greet();
        let announced = announce(&stranger);
        let mut end = opener(port.form);
        let sends = end.sends.as_mut();
        sends.expect("it sends").timed = seed % 3 == 0;
        let session = Session::opened(stranger, announced, port, end);
        let mut liar = Liar::new(&session, Says::of(port), seed);
        for _ in 0..liar.rng.usize(1..24) {
            liar.step();
        }
        finish(&session, liar.rng.u8(..4));
        drop(session);
        bench.check(Expect::Either, format!("seed {seed} at {}", port.name));
    });
    bench.end();
}

/// Ends in one way or another.
fn finish(session: &Session, how: u8) {
    session.ring();
    match how {
        0 => drop(session.stranger.say(&Control::Bye)),
        1 => {
            let (lane, mine) = (session.lane, session.opened);
            session.stranger.say(&Control::Closed { lane, mine });
            session
                .stranger
                .say(&Control::Released { lane, mine: !mine });
        }
        2 => {
            // Some of what was written is looked at before the link ends; how much, is left to chance.
            let before = session.returned();
            let is_over = || session.returned() != before || session.stranger.is_over();
            (0..1_000)
                .take_while(|_| !is_over())
                .for_each(|_| std::thread::yield_now());
            session.stranger.say(&Control::Retired { id: u64::MAX });
            session.stranger.wait_for_bye();
        }
        _ => {}
    }
}

/// Bytes that change after they were sent, while the victim reads them.
///
/// What is promised: of a message of plain numbers, the victim may read any numbers, and different ones each time;
/// it reads nothing but the message's own bytes, and nothing else comes of it. What is not promised, and so is not
/// done here: that a message with pointers or with values that can be invalid (text, vectors, enums) is still one
/// when its sender changes it after it was validated.
#[test]
fn numbers_that_change_while_they_are_read_are_numbers() {
    let mut bench = Bench::start("flips");
    let port = port("plain");
    random(100, |seed| {
        let session = Session::open(&bench, port);
        let is_over = AtomicBool::new(false);
        let bytes = (port.message)(seed);
        session.memory.put(at::FREE, &bytes);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rng = fastrand::Rng::with_seed(seed);
                // Relaxed: only how long it changes them.
                while !is_over.load(Ordering::Relaxed) {
                    let word = rng.usize(..bytes.len() / 8);
                    session.memory.set(at::FREE + 8 * word, rng.u64(..));
                    // In the cells, too: what stands behind the header of the first message.
                    let word = rng.usize(1..bytes.len() / 8);
                    session.memory.set(64 + 8 * word, rng.u64(..));
                }
            });
            let mut cells = session.cells();
            for turn in 0..100 {
                match turn % 2 {
                    0 => cells.publish((kind::INLINE, 0), &[], &bytes),
                    _ => {
                        let words = [SEGMENT, FREE, bytes.len() as u64];
                        cells.refer((kind::BLOCK, 0), words, &[]);
                    }
                }
                session.ring();
            }
            is_over.store(true, Ordering::Relaxed);
        });
        drop(session);
        bench.check(Expect::Nothing, format!("seed {seed}"));
    });
    bench.end();
}

/// Handles on pins that lead anywhere. As of all that has pointers, what they lead to stays as it is.
#[test]
fn pins_that_are_none_do_no_harm() {
    const ROOM: usize = 128;
    let mut bench = Bench::start("pins");
    let port = port("refer");
    random(300, |seed| {
        let session = Session::open(&bench, port);
        let mut cells = session.cells();
        let mut rng = fastrand::Rng::with_seed(seed);
        let document = crate::messages::archive!(crate::messages::Document {
            number: seed,
            text: "x".repeat(40),
        });
        let len = document.len() as u64;
        for place in 0..8 {
            let mut document = document.clone();
            if rng.u8(..3) == 0 {
                crate::lies::spoil(&mut rng, &mut document);
            }
            session.memory.put(at::FREE + ROOM * place, &document);
        }
        for number in 0..rng.u64(1..9) {
            let place = FREE + ROOM as u64 * rng.u64(..8);
            let mut words = [number, SEGMENT, place, len, number];
            if rng.bool() {
                words[rng.usize(1..5)] = crate::lies::word(&mut rng);
                if words[1] == SEGMENT && words[2] < FREE {
                    words[2] += FREE;
                }
            }
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            cells.publish((kind::INLINE, 0), &[], &bytes);
            session.ring();
        }
        finish(&session, rng.u8(..4));
        drop(session);
        bench.check(Expect::Either, format!("seed {seed}"));
    });
    bench.end();
}

/// Two links of one stranger to one port: what ends one does not end the other.
#[test]
fn an_innocent_link_of_the_offender_goes_on() {
    let mut bench = Bench::start("two-links");
    // A message with a handle is never honest here.
    for port in PORTS.iter().filter(|port| port.name != "refer") {
        let honest = Session::open(&bench, port);
        let mut cells = honest.cells();
        let liar = Session::open(&bench, port);
        liar.cells().header((13, 0), 8, 1);
        liar.ring();
        liar.stranger.wait_for_bye();
        drop(liar);
        let answers = answer_to(&honest, &mut cells, port);
        assert!(answers, "{}: it is not answered", port.name);
        drop(honest);
        bench.check(Expect::Fault("which means nothing"), port.name);
    }
    bench.end();
}

/// Whether what is sent is handed back, or asked for: the link is alive.
fn answer_to(session: &Session, cells: &mut Cells<'_>, port: &Port) -> bool {
    if session.form == Form::Latest {
        value(session, &(port.message)(0));
    }
    cells.publish(
        (kind::INLINE, 0),
        &[],
        &match session.form {
            Form::Latest => 0u64.to_le_bytes().to_vec(),
            _ => (port.message)(0),
        },
    );
    session.ring();
    let nobody = crate::lane::open(9, ("nobody", None), port.types(), opener(Form::Call));
    session.stranger.say(&nobody);
    loop {
        match session.stranger.hear() {
            Some(Control::Refused { lane: 9, .. }) => return true,
            Some(Control::Bye) | None => return false,
            _ => {}
        }
    }
}
