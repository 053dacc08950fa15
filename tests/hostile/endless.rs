//! Strangers that never stop: what comes without end has others wait for their turn, and no longer.
//!
//! Each message stands in cells of its own, which are written with the same bytes each time: what the victim looks at
//! does not change (`lies::Liar`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use crate::bench::{Bench, Expect};
use crate::lane::{CELL, Cells, Form, answerer, at, kind, opener};
use crate::messages::{Number, archive};
use crate::session::{PORTS, Port, Session, port};
use crate::stranger::{HANGS, Trap};
use crate::traps::BAITS;
use crate::wire::Control;

/// The cells of which one word says what was handed back.
const ROUND: usize = 64;

/// Publishes one record after the other until it is told to stop, in the first cells, and as fast as the victim looks: it
/// goes round when all was handed back. Counts how often.
fn flood(
    session: &Session,
    (is_over, round): (&AtomicBool, &AtomicU64),
    mut publish: impl FnMut(&mut Cells<'_>, u64),
) {
    let mut cells = session.cells();
    let (mut laps, mut turn, mut rung, mut sent) = (0, 0, 0, 0);
    // Relaxed: only how long it goes on.
    while !is_over.load(Ordering::Relaxed) {
        if cells.at > 0 || session.returned() == sent {
            laps += u64::from(cells.at == 0);
            round.store(laps, Ordering::Relaxed);
            sent ^= 1 << cells.at;
            publish(&mut cells, turn);
            turn += 1;
        } else {
            std::thread::yield_now();
        }
        // As an honest sender does: once for each asking.
        let attend = session.attend();
        if attend % 2 == 1 && attend != rung {
            session.ring();
            rung = attend;
        }
        if cells.at == 0 && session.stranger.is_over() {
            round.store(u64::MAX, Ordering::Relaxed);
            return;
        }
    }
}

/// Stops a flood when it is dropped, also where a test has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Has the innocent served while a stranger floods a port.
fn flood_port(
    bench: &mut Bench,
    port: &Port,
    publish: impl FnMut(&mut Cells<'_>, u64) + Send,
    expect: Expect<'_>,
) {
    let session = Session::open(bench, port);
    let (is_over, round) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let stop = Stop(&is_over);
        scope.spawn(|| flood(&session, (&is_over, &round), publish));
        let deadline = Instant::now() + HANGS;
        // It is looked at, or its link has ended.
        while round.load(Ordering::Relaxed) < 10 {
            bench.is_served("call");
            assert!(Instant::now() < deadline, "{} looks at nothing", port.name);
        }
        for _ in 0..20 {
            bench.is_served("call");
        }
        bench.is_served("connect");
        drop(stop);
    });
    drop(session);
    bench.check(expect, format!("a flood at {}", port.name));
}

/// Records that lead from cell to cell, and nowhere.
#[test]
fn jumps_without_end_stop_nobody() {
    let mut bench = Bench::start("jumps");
    for port in &PORTS {
        let jump = |cells: &mut Cells<'_>, _| {
            let next = (cells.at + 1) % ROUND;
            cells.jump(next);
        };
        flood_port(&mut bench, port, jump, Expect::Nothing);
    }
    bench.end();
}

#[test]
fn messages_without_end_stop_nobody() {
    let mut bench = Bench::start("messages");
    for of in ["plain", "news", "state", "ask", "later"] {
        let port = port(of);
        let content = match port.form {
            Form::Latest => 0u64.to_le_bytes().to_vec(),
            _ => (port.message)(0),
        };
        let width = (8 + content.len()).div_ceil(CELL);
        let publish = |cells: &mut Cells<'_>, turn: u64| {
            if cells.at + width + 1 > ROUND {
                return cells.jump(0);
            }
            cells.publish((kind::INLINE, turn % 448), &[], &content);
        };
        let expect = match port.form {
            // It hands no answer back, and is given up for that sooner or later.
            Form::Call => Expect::Either,
            _ => Expect::Nothing,
        };
        flood_port(&mut bench, port, publish, expect);
    }
    bench.end();
}

/// Subscribers are told of messages that were missed, each time.
#[test]
fn losses_without_end_stop_nobody() {
    let mut bench = Bench::start("losses");
    let missed = |cells: &mut Cells<'_>, turn: u64| {
        let count = if turn % 2 == 0 { u64::MAX } else { 1 };
        if cells.at + 2 > ROUND {
            return cells.jump(0);
        }
        cells.publish((kind::MISSED, 0), &[], &count.to_le_bytes());
    };
    flood_port(&mut bench, port("news"), missed, Expect::Nothing);
    bench.end();
}

/// Items, or replies, to a caller that has said how long it waits.
#[test]
fn answers_without_end_are_waited_for_no_longer_than_was_said() {
    let mut bench = Bench::start("answers-without-end");
    for bait in &BAITS[..2] {
        for kind in [kind::ITEM, kind::INLINE, kind::JUMP, kind::FAILED] {
            let trap = Trap::set(&bench.dir, bait.file);
            bench.victim.say(bait.order);
            let session = Session::trap(&trap, bait.form);
            session.stranger.say(&Control::Ring { bell: session.bell });
            let (is_over, round) = (AtomicBool::new(false), AtomicU64::new(0));
            let content = archive!(Number { number: 1 });
            std::thread::scope(|scope| {
                let stop = Stop(&is_over);
                scope.spawn(|| {
                    flood(&session, (&is_over, &round), |cells, _| {
                        let next = (cells.at + 1) % ROUND;
                        match kind {
                            kind::JUMP => cells.jump(next),
                            _ if next == 0 => cells.jump(0),
                            _ => cells.publish((kind, 0), &[], &content),
                        }
                    });
                });
                bench.is_served("call");
                let heard = bench.victim.hear();
                assert!(["lost", "done"].contains(&heard.as_str()), "{heard}");
                drop(stop);
            });
            drop((session, trap));
            bench.check(Expect::Either, format!("{}: kind {kind}", bait.order));
        }
    }
    bench.end();
}

/// One that is rung by an eventfd whose every writer waits, or by none at all, and says that tasks wait there.
#[test]
fn who_cannot_be_rung_stops_nobody() {
    let mut bench = Bench::start("unrung");
    for has_bell in [true, false] {
        for port in &PORTS {
            let stranger = bench.greet();
            let announced = crate::session::announce(&stranger);
            if has_bell {
                let full = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
                let most = (u64::MAX - 1).to_ne_bytes();
                rustix::io::write(&full, &most).expect("there is room");
                stranger.give(&Control::Bell { bell: 1 }, full);
            }
            let mut end = opener(port.form);
            end.tasks = true;
            let session = Session::opened(stranger, announced, port, end);
            // It asks to be rung for each answer.
            session.words.set(at::RECEIVER, 1);
            let mut cells = session.cells();
            let content = match port.form {
                Form::Latest => 0u64.to_le_bytes().to_vec(),
                _ => (port.message)(0),
            };
            // It waits for room, too.
            for turn in 0..20 {
                session.memory.set(at::SENDER, 2 * turn + 1);
                session.words.set(at::RECEIVER, 2 * turn + 1);
                cells.publish((kind::INLINE, turn), &[], &content);
                session.ring();
            }
            bench.is_served("call");
            drop(session);
            let expect = match port.name {
                // What it refers to is nowhere.
                "refer" => Expect::Either,
                _ => Expect::Nothing,
            };
            bench.check(expect, format!("{}: {has_bell}", port.name));
        }
    }
    // A server of which the same is true.
    for bait in &BAITS {
        let trap = Trap::set(&bench.dir, bait.file);
        bench.victim.say(bait.order);
        let mut end = answerer(bait.form);
        end.tasks = true;
        let session = Session::answer(trap.accept(), bait.form, end);
        session.words.set(at::RECEIVER, 1);
        assert_ne!(bench.victim.hear(), "");
        drop((session, trap));
        bench.check(Expect::Nothing, bait.order);
    }
    bench.end();
}
