//! The offender: rages in one way at a time, at a pace.

use std::collections::VecDeque;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rustix::time::{ClockId, clock_gettime};
use shmbus::{Nothing, ShmRequest, schema_of};

use crate::lane::{Cells, Form, SEGMENT, WORDS, at, kind, open, opener, ring};
use crate::memory::Memory;
use crate::pair::Query;
use crate::stranger::Stranger;
use crate::wire::{Control, Types};

/// A way to rage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rage {
    Busy,
    Forged,
    Silent,
    Flood,
    HandBack,
}

/// How long `busy` takes the processor with each blow.
const BUSY: Duration = Duration::from_micros(100);
/// How many silent connections are kept.
const SILENT: usize = 64;
/// How many control messages there are in one blow of a flood.
const FLOOD: usize = 32;

/// What came of a phase of raging.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Raged {
    pub(crate) blows: u64,
    pub(crate) seconds: f64,
    /// Of processor time.
    pub(crate) worked: f64,
}

impl Raged {
    pub(crate) fn parse(line: &str) -> Result<Raged> {
        let mut words = line.split(' ');
        let mut next = || words.next().with_context(|| format!("{line:?} is cut"));
        Ok(Raged {
            blows: next()?.parse()?,
            seconds: next()?.parse()?,
            worked: next()?.parse()?,
        })
    }
}

/// The part of the offender: rages as it is told, until it is told to stop.
pub(crate) fn offend(bus: &str, rate: u32) -> Result<()> {
    let (orders, told) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if orders.send(line).is_err() {
                return;
            }
        }
    });
    let mut offender = Offender {
        socket: socket(bus)?,
        silent: VecDeque::new(),
        link: None,
    };
    println!("ready");
    while let Ok(order) = told.recv() {
        let kind = Rage::from_str(&order, false);
        let Ok(kind) = kind else {
            bail!("no such order: {order}");
        };
        println!("raging");
        std::io::stdout().flush()?;
        let Raged {
            blows,
            seconds,
            worked,
        } = offender.rage(kind, rate, &told)?;
        println!("{blows} {seconds} {worked}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Where the server listens: its port's file says so.
fn socket(bus: &str) -> Result<PathBuf> {
    let root = match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("shmbus"),
        None => {
            let us = rustix::process::getuid().as_raw();
            std::env::temp_dir().join(format!("shmbus-{us}"))
        }
    };
    let dir = root.join(bus);
    let file = std::fs::read_to_string(dir.join("query.port")).context("nobody serves")?;
    Ok(dir.join(file.lines().nth(2).context("no socket is named")?))
}

struct Offender {
    socket: PathBuf,
    silent: VecDeque<Stranger>,
    link: Option<Stranger>,
}

/// A link over which a lane is open.
struct Open {
    stranger: Stranger,
    memory: Memory,
    words: Memory,
    bell: u32,
}

fn worked() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

impl Offender {
    fn rage(&mut self, kind: Rage, rate: u32, told: &Receiver<String>) -> Result<Raged> {
        let pause = Duration::from_secs(1) / rate.max(1);
        let (begin, before) = (Instant::now(), worked());
        let mut blows = 0;
        while let Err(TryRecvError::Empty) = told.try_recv() {
            self.strike(kind);
            blows += 1;
            // A blow that took longer is not made up for.
            let next = begin + pause * blows;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        self.silent.clear();
        self.link = None;
        Ok(Raged {
            blows: blows.into(),
            seconds: begin.elapsed().as_secs_f64(),
            worked: worked() - before,
        })
    }

    fn strike(&mut self, kind: Rage) {
        match kind {
            Rage::Busy => {
                let begin = Instant::now();
                while begin.elapsed() < BUSY {
                    std::hint::spin_loop();
                }
            }
            Rage::Forged => {
                let open = self.open();
                Cells::new(&open.memory, Form::Call).header((13, 0), 8, 1);
                open.ring();
                open.stranger.wait_for_bye();
            }
            Rage::Silent => {
                if self.silent.len() >= SILENT {
                    self.silent.pop_front();
                }
                self.silent.push_back(Stranger::connect(&self.socket));
            }
            Rage::Flood => {
                let link = self.link.get_or_insert_with(|| greet(&self.socket));
                for number in 0..FLOOD as u32 {
                    let name = "x".repeat(number as usize + 1);
                    link.say(&match number % 4 {
                        0 => Control::Ring { bell: number },
                        1 => Control::Serving { name },
                        2 => Control::Gone { name },
                        _ => Control::Closed {
                            lane: number,
                            mine: true,
                        },
                    });
                }
            }
            Rage::HandBack => {
                let open = self.open();
                open.words.set(at::HANDED_BACK, u64::MAX);
                let query = rkyv::to_bytes::<rkyv::rancor::Error>(&Query::new(0));
                let query = query.expect("it can be archived");
                let mut cells = Cells::new(&open.memory, Form::Call);
                // As many as there are cells: the server then looks for room, and finds the lie.
                for tag in 0..40 {
                    cells.publish((kind::INLINE, tag), &[], &query);
                    if tag % 8 == 7 {
                        open.ring();
                    }
                }
                open.stranger.say(&Control::Bye);
            }
        }
    }

    fn open(&self) -> Open {
        let stranger = greet(&self.socket);
        let (memory, words) = (Memory::new(at::LEN), Memory::new(at::WORDS_LEN));
        for (id, len, memory) in [(SEGMENT, at::LEN, &memory), (WORDS, at::WORDS_LEN, &words)] {
            let len = len as u64;
            stranger.give(&Control::Segment { id, len }, memory);
        }
        let nothing = schema_of::<Nothing>().fingerprint();
        let types = Types {
            request: schema_of::<Query>().fingerprint(),
            answers: vec![
                schema_of::<<Query as ShmRequest>::Reply>().fingerprint(),
                nothing,
                nothing,
            ],
        };
        stranger.say(&open(0, ("query", None), types, opener(Form::Call)));
        let bell = loop {
            match stranger.hear() {
                Some(Control::Opened { end, .. }) => break end.bell.1,
                Some(Control::Refused { why, .. }) => panic!("the lane is refused: {why:?}"),
                Some(_) => {}
                None => panic!("the server has ended the link"),
            }
        };
        Open {
            stranger,
            memory,
            words,
            bell,
        }
    }
}

impl Open {
    fn ring(&self) {
        ring(&self.words);
        self.stranger.say(&Control::Ring { bell: self.bell });
    }
}

fn greet(socket: &std::path::Path) -> Stranger {
    let stranger = Stranger::connect(socket);
    stranger.greet();
    stranger
}
