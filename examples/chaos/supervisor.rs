//! Starts the processes, does to them what a bad day would, and looks that every promise is kept.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::audit::audit;
use crate::crowd::Crowd;
use crate::ledger::{Ledger, order};
use crate::report::Report;
use crate::worker::{complaints_path, ledger_path};
use crate::{Options, ending, plan};

/// How often something is done, in the middle.
const KILL: Duration = Duration::from_millis(70);
const STOP: Duration = Duration::from_millis(60);
const FORK: Duration = Duration::from_millis(120);
const STARVE: Duration = Duration::from_millis(500);
const SQUEEZE: Duration = Duration::from_millis(500);
const TOUCH: Duration = Duration::from_millis(200);
/// How often everything is compared while it runs.
const AUDIT: Duration = Duration::from_secs(2);
/// The most that is said of what went wrong.
const LINES: usize = 200;

/// A private directory, removed when all went well.
struct Directory(PathBuf);

impl Directory {
    fn new(seed: u64) -> Result<Directory> {
        let name = format!("chaos-{}-{seed:x}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Something that is done now and then.
struct Deed {
    mean: Duration,
    next: Instant,
}

impl Deed {
    fn new(mean: Duration) -> Deed {
        Deed {
            mean,
            next: Instant::now() + mean,
        }
    }

    /// Whether it is time, once for each time.
    fn is_due(&mut self, rng: &mut fastrand::Rng) -> bool {
        let is_due = Instant::now() >= self.next;
        if is_due {
            self.next = Instant::now() + self.mean.mul_f64(2.0 * rng.f64());
        }
        is_due
    }
}

/// Runs it all; returns whether every promise was kept.
pub fn run(options: &Options) -> Result<bool> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!(
        "chaos: {} processes for {:?}, --seed {seed}",
        options.processes,
        options.time()
    );
    let directory = Directory::new(seed)?;
    let ledger = Ledger::open(&ledger_path(&directory.0))?;
    fs::write(complaints_path(&directory.0), "")?;
    ledger.seed.set(seed);
    ledger.slots_used.set(options.processes as u64);
    let start = Instant::now();
    let mut crowd = Crowd::start(ledger, &directory.0, options.processes)?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut broken = torment(&mut crowd, options, &mut rng)?;
    let audited = ending::end(&mut crowd, &mut rng, &mut broken)?;
    broken.extend(read_lines(&complaints_path(&directory.0)));
    let report = Report::new(seed, start.elapsed(), &crowd, &audited, &broken);
    report.print();
    if let Some(path) = &options.json {
        report.write(path)?;
    }
    if !broken.is_empty() {
        broken.extend(read_lines(&directory.0.join("log")));
        broken
            .iter()
            .take(LINES)
            .for_each(|line| eprintln!("{line}"));
        eprintln!("chaos: a promise was broken; --seed {seed}");
    }
    Ok(broken.is_empty())
}

fn read_lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn bar(time: Duration) -> Result<ProgressBar> {
    let style = "{bar:40} {eta} left, {msg}";
    Ok(ProgressBar::new(time.as_millis() as u64).with_style(ProgressStyle::with_template(style)?))
}

/// Does to the processes what a bad day would, until the time is over or a promise is broken.
fn torment(crowd: &mut Crowd, options: &Options, rng: &mut fastrand::Rng) -> Result<Vec<String>> {
    let (time, start) = (options.time(), Instant::now());
    let bar = bar(time)?;
    let mut audits = Deed::new(AUDIT);
    let mut deeds = [KILL, STOP, FORK, STARVE, SQUEEZE, TOUCH].map(Deed::new);
    while start.elapsed() < time {
        std::thread::sleep(Duration::from_millis(1));
        crowd.go_on(false)?;
        crowd.bury()?;
        for (which, deed) in deeds.iter_mut().enumerate() {
            if deed.is_due(rng) {
                act(crowd, which, rng)?;
            }
        }
        let mut broken = crowd.fallen()?;
        if audits.is_due(rng) {
            broken.extend(audit(crowd.ledger).broken);
            broken.extend(crowd.hanging());
            let kills: u64 = crowd.done.iter().map(|done| done.kills).sum();
            bar.set_message(format!("{kills} kills"));
        }
        bar.set_position(start.elapsed().as_millis() as u64);
        if !broken.is_empty() || crowd.ledger.complaints.get() > 0 {
            bar.abandon();
            return Ok(broken);
        }
    }
    bar.finish_and_clear();
    Ok(Vec::new())
}

fn act(crowd: &mut Crowd, which: usize, rng: &mut fastrand::Rng) -> Result<()> {
    let slot = rng.usize(..crowd.len());
    let want = |what| crowd.ledger.slots[slot].order.set(what);
    match which {
        0 if !plan::is_spared(slot) => crowd.kill(slot)?,
        1 => {
            // Mostly short, and now and then long enough for every patience to end.
            let most = if rng.u32(..8) == 0 { 400_000 } else { 30_000 };
            crowd.stop(slot, Duration::from_micros(rng.u64(1..most)))?;
        }
        2 => want(order::FORK),
        3 if plan::is_starved(slot) => want(order::STARVE),
        4 => want(order::SQUEEZE),
        5 => crowd.touch(rng),
        _ => {}
    }
    Ok(())
}
