//! A stranger that others come to: it serves, receives, subscribes and reads.

use crate::bench::{Bench, Expect, random};
use crate::lane::{Cells, Form, SEGMENT, answerer, at, kind, words};
use crate::lies::{Liar, Says};
use crate::messages::{Sum, archive};
use crate::session::Session;
use crate::stranger::Trap;
use crate::wire::{Control, End, Refusal};

/// What the victim does, and by what name it finds the stranger.
pub(crate) struct Bait {
    pub(crate) order: &'static str,
    pub(crate) file: &'static str,
    pub(crate) form: Form,
}

pub(crate) const BAITS: [Bait; 3] = [
    Bait {
        order: "call",
        file: "prey.port",
        form: Form::Call,
    },
    Bait {
        order: "call-later",
        file: "prey-later.port",
        form: Form::Call,
    },
    Bait {
        order: "send",
        file: "drain.port",
        form: Form::OneWay,
    },
];

/// Whom the victim's publishers find.
const READERS: [Bait; 2] = [
    Bait {
        order: "publish",
        file: "feed~0.sub",
        form: Form::Topic,
    },
    Bait {
        order: "publish",
        file: "board~0.get",
        form: Form::Latest,
    },
];

/// An answer of this number.
fn sum(number: u64) -> Vec<u8> {
    let padding = vec![number as u8; [0, 20, 300, 2_000][number as usize % 4]];
    archive!(Sum {
        id: number,
        sum: number,
        padding
    })
}

/// Answers that no honest server gives, and what the victim says of them.
#[test]
fn a_server_that_answers_what_cannot_be_true_is_dropped() {
    type Write = fn(&Session, &mut Cells<'_>);
    let wrong: [(&str, Write); 12] = [
        ("which means nothing", |_, cells| {
            cells.header((14, 0), 8, 1)
        }),
        ("pointed to cell", |_, cells| {
            cells.header((kind::JUMP, 0), 0, 64)
        }),
        ("bytes where", |_, cells| {
            cells.header((kind::INLINE, 0), 9_000, 1)
        }),
        ("no valid", |_, cells| {
            cells.publish((kind::INLINE, 0), &[], &[1, 2, 3])
        }),
        ("no valid", |_, cells| {
            cells.publish((kind::ERROR, 0), &[], &[1, 2, 3])
        }),
        ("never announced", |_, cells| {
            cells.refer((kind::BLOCK, 0), [3, 0, 64], &[]);
        }),
        ("which has 131072", |_, cells| {
            cells.refer((kind::BLOCK, 0), [SEGMENT, at::LEN as u64, 8], &[]);
        }),
        ("an answer to no call", |_, cells| {
            cells.publish((kind::INLINE, 447), &[], &sum(0));
        }),
        ("an answer to no call", |_, cells| {
            cells.publish((kind::FAILED, 65_535), &[], &[1]);
        }),
        ("cells to a lane", |_, cells| {
            cells.refer((kind::EXTEND, 0), [SEGMENT, 0, 64 * 1024], &[]);
        }),
        ("handed back a record", |session, _| {
            for word in 0..16 {
                session.words.set(at::HANDED_BACK + 8 * word, u64::MAX);
            }
        }),
        ("handed back a record", |session, _| {
            session.words.set(at::HANDED_BACK, 1 << 63);
        }),
    ];
    let mut bench = Bench::start("servers");
    for bait in &BAITS[..2] {
        for (fault, write) in wrong {
            let trap = Trap::set(&bench.dir, bait.file);
            bench.victim.say(bait.order);
            let session = Session::trap(&trap, bait.form);
            write(&session, &mut session.cells());
            session.stranger.say(&Control::Ring { bell: session.bell });
            session.stranger.wait_for_bye();
            drop((session, trap));
            assert_eq!(bench.victim.hear(), "lost", "{}: {fault}", bait.order);
            bench.check(Expect::Fault(fault), format!("{}: {fault}", bait.order));
        }
    }
    bench.end();
}

/// Ends of lanes that are none.
#[test]
fn a_lane_that_is_answered_with_places_that_are_none_is_not_opened() {
    type Wrong = fn(&mut End);
    let wrong: [(&str, Wrong); 6] = [
        ("never announced", |end| end.bell.0.segment = 9),
        ("of another size", |end| end.bell.0.len = 8),
        ("which has 4096", |end| end.bell.0.offset = u64::MAX - 63),
        ("a lane with one end", |end| end.receives = None),
        ("a receiving end of another size", |end| {
            end.receives = Some(words(at::RECEIVER, 64));
        }),
        ("which has 4096", |end| {
            let offset = at::WORDS_LEN as u64 - 64;
            end.receives.iter_mut().for_each(|at| at.offset = offset);
        }),
    ];
    let mut bench = Bench::start("answers");
    for bait in &BAITS {
        for (fault, wrong) in wrong {
            let trap = Trap::set(&bench.dir, bait.file);
            bench.victim.say(bait.order);
            let mut end = answerer(bait.form);
            wrong(&mut end);
            let session = Session::answer(trap.accept(), bait.form, end);
            session.stranger.wait_for_bye();
            drop((session, trap));
            assert_eq!(bench.victim.hear(), "refused");
            bench.check(Expect::Fault(fault), format!("{}: {fault}", bait.order));
        }
    }
    bench.end();
}

/// A server that ends its part at every step, or refuses with schemas that are none.
#[test]
fn a_server_that_leaves_or_refuses_leaves_nothing() {
    let mut bench = Bench::start("leaves");
    for bait in &BAITS {
        for step in 0..6 {
            let trap = Trap::set(&bench.dir, bait.file);
            bench.victim.say(bait.order);
            let stranger = trap.accept();
            if step > 0 {
                stranger.greet();
            }
            if step > 1 {
                let lane = loop {
                    if let Some(Control::Open { lane, .. }) = stranger.hear() {
                        break lane;
                    }
                };
                let why = match step {
                    2 => Some(Refusal::NoServer),
                    3 => Some(Refusal::NoMemory),
                    4 => Some(Refusal::Layout(crate::wire::Schemas {
                        request: vec![0xff; 300],
                        answers: vec![vec![]; 3],
                    })),
                    _ => None,
                };
                if let Some(why) = why {
                    stranger.say(&Control::Refused { lane, why });
                }
            }
            if step == 5 {
                stranger.say(&Control::Bye);
            }
            drop((stranger, trap));
            assert_eq!(bench.victim.hear(), "refused", "{} {step}", bait.order);
            bench.check(Expect::Nothing, format!("{} {step}", bait.order));
        }
    }
    bench.end();
}

/// Whatever a server or a receiver writes and says, its caller goes on.
#[test]
fn random_servers_do_no_harm() {
    let mut bench = Bench::start("random-servers");
    random(400, |seed| {
        let bait = &BAITS[seed as usize % BAITS.len()];
        let trap = Trap::set(&bench.dir, bait.file);
        bench.victim.say(bait.order);
        let session = Session::trap(&trap, bait.form);
        let mut liar = Liar::new(&session, Says::text(sum), seed);
        for _ in 0..liar.rng.usize(1..40) {
            liar.step();
        }
        drop((session, trap));
        let heard = bench.victim.hear();
        assert!(
            ["lost", "done", "full", "refused"].contains(&heard.as_str()),
            "{heard}"
        );
        bench.check(Expect::Either, format!("seed {seed}: {}", bait.order));
    });
    bench.end();
}

/// Subscribers that are found, and leave at once: nothing is wrong with anybody.
#[test]
fn subscribers_that_leave_at_once_are_no_incident() {
    let mut bench = Bench::start("flighty");
    bench.slack = 2 << 20;
    for round in 0..400 {
        let trap = Trap::set(&bench.dir, READERS[round % 2].file);
        drop(trap.accept());
        drop(trap);
        bench.check(Expect::Nothing, format!("round {round}"));
    }
    bench.end();
}

/// Subscribers and readers that hand back, hold and want what they like.
#[test]
fn random_subscribers_and_readers_do_no_harm() {
    let mut bench = Bench::start("random-readers");
    // Publishers keep what they published last, and use memory of what was replaced for the next.
    bench.slack = 2 << 20;
    bench.victim.say("publish");
    assert_eq!(bench.victim.hear(), "done");
    bench.remember();
    random(300, |seed| {
        let bait = &READERS[seed as usize % READERS.len()];
        let trap = Trap::set(&bench.dir, bait.file);
        // There are two publishers of the topic, of one process: one link, and a lane of each.
        let session = Session::trap(&trap, bait.form);
        let mut liar = Liar::new(&session, Says::text(sum), seed);
        bench.victim.say(bait.order);
        for _ in 0..liar.rng.usize(1..30) {
            liar.step();
        }
        assert_eq!(bench.victim.hear(), "done");
        drop((session, trap));
        bench.check(Expect::Either, format!("seed {seed}: {}", bait.file));
    });
    bench.end();
}
