//! A victim, an innocent, and what must be true after every case.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::memory::NAME;
use crate::stranger::{HANGS, Stranger};
use crate::support::{Child, Watchdog, name};

/// What a case must have come to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect<'a> {
    /// The victim names us, and says this.
    Fault(&'a str),
    /// Nothing is wrong.
    Nothing,
    /// One or the other. Whoever is named is us.
    Either,
}

/// What the victim has of a peer's, and of its own for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Footprint {
    /// All but those of its own memory, some of which it keeps for later, and of processes.
    descriptors: usize,
    /// Those of processes: after its link has ended, one is watched for some time, and no more than so many.
    processes: usize,
    /// Mappings of a stranger's memory.
    mappings: usize,
    /// Bytes of its own that are in use.
    memory: u64,
}

/// The most processes that are watched whose links have ended, and of which the flight recorder tells.
const WATCHED: usize = 4 + if cfg!(feature = "json") { 16 } else { 0 };

fn is_memory(target: &str) -> bool {
    target.starts_with("/memfd:shmbus")
}

fn is_process(target: &str) -> bool {
    target.contains("pidfd")
}

/// See the module.
pub(crate) struct Bench {
    pub(crate) victim: Child,
    innocent: Child,
    pub(crate) dir: PathBuf,
    /// The victim's socket.
    pub(crate) socket: PathBuf,
    what: &'static str,
    before: Footprint,
    /// What may be in use beyond that, of what the victim keeps for itself.
    pub(crate) slack: u64,
    pub(crate) cases: u64,
    /// How often which fault was found, by the first words that say so.
    faults: BTreeMap<String, u64>,
    _watch: Watchdog,
}

impl Bench {
    pub(crate) fn start(what: &'static str) -> Bench {
        let _watch = Watchdog::start("a bench");
        let name = name(&format!("hostile-{what}"));
        let mut victim = Child::start("victim", &[&name]);
        assert_eq!(victim.hear(), "ready");
        let dir = directory(&name);
        let file = fs::read_to_string(dir.join("ask.port")).expect("it is served");
        let socket = dir.join(file.lines().nth(2).expect("its socket is named"));
        let mut innocent = Child::start("innocent", &[&name]);
        assert_eq!(innocent.hear(), "ready");
        let mut bench = Bench {
            victim,
            innocent,
            dir,
            socket,
            what,
            before: Footprint {
                descriptors: 0,
                processes: 0,
                mappings: 0,
                memory: 0,
            },
            slack: 0,
            cases: 0,
            faults: BTreeMap::new(),
            _watch,
        };
        bench.remember();
        bench
    }

    /// What the victim has now is what it has without a stranger.
    pub(crate) fn remember(&mut self) {
        for order in ["call", "connect", "call"] {
            self.is_served(order);
        }
        self.before = self.footprint();
    }

    /// A link to the victim.
    pub(crate) fn connect(&self) -> Stranger {
        Stranger::connect(&self.socket)
    }

    /// A link to the victim, over which both have said hello.
    pub(crate) fn greet(&self) -> Stranger {
        let stranger = self.connect();
        stranger.greet();
        stranger
    }

    /// Checks all that must be true when a case is over. The stranger has closed its end.
    pub(crate) fn check(&mut self, expect: Expect<'_>, case: impl Display) {
        let incidents = self.settle(&case);
        let is_as_expected = match expect {
            Expect::Fault(what) => incidents.len() == 1 && incidents[0].contains(what),
            Expect::Nothing => incidents.is_empty(),
            Expect::Either => true,
        };
        assert!(
            is_as_expected,
            "{}: {case}: {expect:?} is expected, and the victim says {incidents:?}",
            self.what
        );
    }

    /// As [`check`](Self::check), and returns what the victim says went wrong.
    pub(crate) fn settle(&mut self, case: impl Display) -> Vec<String> {
        self.settle_with(&[std::process::id()], case)
    }

    /// As [`settle`](Self::settle), where others may be named, too.
    pub(crate) fn settle_with(&mut self, named: &[u32], case: impl Display) -> Vec<String> {
        self.cases += 1;
        self.is_served("call");
        let deadline = Instant::now() + HANGS;
        loop {
            let now = self.footprint();
            let Footprint { memory, .. } = self.before;
            let is_back = now.descriptors <= self.before.descriptors
                && now.processes <= self.before.processes + WATCHED
                && now.mappings == 0
                && now.memory <= memory + self.slack;
            let before = &mut self.before;
            if is_back {
                // The last connection of the innocent may not have been closed when that was counted.
                before.descriptors = now.descriptors;
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{}: {case}: the victim does not let go: {before:?} before, now {now:?}",
                self.what
            );
            std::thread::sleep(Duration::from_micros(200));
        }
        let incidents = self.incidents();
        for incident in &incidents {
            let (pid, what) = incident.split_once(' ').expect("it begins with a number");
            let pid: u32 = pid.parse().expect("it begins with a number");
            assert!(
                named.contains(&pid),
                "{}: {case}: another is blamed: {incident}",
                self.what
            );
            let what = what[1..].split(|c: char| c.is_ascii_digit());
            let what = what.take(1).collect();
            *self.faults.entry(what).or_default() += 1;
        }
        incidents
    }

    /// The innocent is served.
    pub(crate) fn is_served(&mut self, order: &str) {
        self.innocent.say(order);
        if self.innocent.hear() != "ok" {
            let status = self.victim.end();
            panic!("{}: the innocent is not served: {status}", self.what);
        }
    }

    /// What the victim says went wrong.
    fn incidents(&mut self) -> Vec<String> {
        self.victim.say("incidents");
        let mut incidents = Vec::new();
        loop {
            match self.victim.hear() {
                line if line.is_empty() => return incidents,
                line => incidents.push(line),
            }
        }
    }

    fn footprint(&mut self) -> Footprint {
        self.victim.say("memory");
        let memory = self.victim.hear();
        let memory = memory.parse();
        let memory = memory.unwrap_or_else(|_| panic!("{}: the victim is gone", self.what));
        let maps = format!("/proc/{}/maps", self.victim.pid());
        let maps = fs::read_to_string(maps).expect("it is a child of ours");
        let mapped = maps.lines().filter(|line| line.contains(NAME));
        Footprint {
            descriptors: self.descriptors(|target| !is_memory(target) && !is_process(target)),
            processes: self.descriptors(is_process),
            mappings: mapped.count(),
            memory,
        }
    }

    /// How many descriptors of one kind the victim has.
    fn descriptors(&self, is_one: impl Fn(&str) -> bool) -> usize {
        let all = format!("/proc/{}/fd", self.victim.pid());
        let all = fs::read_dir(all).expect("it is a child of ours");
        let targets = all.flatten().flat_map(|fd| fs::read_link(fd.path()));
        targets
            .filter(|target| is_one(&target.to_string_lossy()))
            .count()
    }

    /// The victim may have no descriptor that is not below `limit` any more.
    pub(crate) fn limit_descriptors(&self, limit: u64) {
        let pid = Pid::from_raw(self.victim.pid() as i32);
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        prlimit(pid, Resource::Nofile, limit).expect("it is a child of ours");
    }

    /// How many of the descriptors below `limit` the victim has, of whatever kind.
    pub(crate) fn descriptors_below(&self, limit: u64) -> usize {
        let all = format!("/proc/{}/fd", self.victim.pid());
        let all = fs::read_dir(all).expect("it is a child of ours");
        let numbers = all.flatten().flat_map(|fd| fd.file_name().into_string());
        let numbers = numbers.flat_map(|number| number.parse::<u64>());
        numbers.filter(|number| *number < limit).count()
    }

    /// The victim ends as it should. Says how many cases there were.
    pub(crate) fn end(mut self) {
        self.is_served("connect");
        assert!(self.innocent.end().success(), "the innocent goes well");
        assert!(self.victim.end().success(), "the victim goes well");
        report(self.what, self.cases, &self.faults);
    }
}

/// Says how many cases there were, also where the output of tests is captured.
pub(crate) fn report(what: &str, cases: u64, faults: &BTreeMap<String, u64>) {
    let (seed, kinds) = (seed(), faults.len());
    let count = faults.values().sum::<u64>();
    let mut out = std::io::stderr().lock();
    let _ = writeln!(
        out,
        "hostile {what}: {cases} cases, 0 panics, 0 hangs; {count} links ended by a fault, of {kinds} kinds \
         (SHMBUS_SEED={seed})"
    );
    for (fault, count) in faults {
        println!("{count:6} {fault}");
    }
}

fn directory(name: &str) -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => Path::new(&dir).join("shmbus").join(name),
        None => {
            let us = fs::metadata("/proc/self").expect("there is /proc").uid();
            let root = std::env::temp_dir().join(format!("shmbus-{us}"));
            root.join(name)
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    let Ok(value) = std::env::var(variable) else {
        return default;
    };
    let value = value.parse();
    value.unwrap_or_else(|_| panic!("{variable} is a number"))
}

/// From which all that is random is made: `SHMBUS_SEED`.
pub(crate) fn seed() -> u64 {
    number("SHMBUS_SEED", 1)
}

/// Runs random cases, each from a seed of its own: `SHMBUS_CASES`, or so many.
pub(crate) fn random(default: u64, mut case: impl FnMut(u64)) {
    let cases = number("SHMBUS_CASES", default);
    let seed = seed();
    (seed..seed + cases).for_each(&mut case);
}
