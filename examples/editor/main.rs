//! An editor and its engine: two processes that share documents and completions over one link.
//!
//! The editor (this process) starts the engine (the same program), reads each file straight into
//! memory that the engine can see, and asks for completions at real places of those files. It
//! prints some of them, and how long the calls took. Then somebody types, and each keystroke's
//! suggestion supersedes the last one. A second window, another process, sees what the engine publishes
//! meanwhile: what is wrong in the documents, and how far it is. In a terminal, a chat with the engine follows; elsewhere, three
//! questions of its own.
//!
//! `cargo run --release --example editor -- --help`

mod answers;
mod chat;
mod corpus;
mod engine;
mod messages;
mod report;
mod server;
mod typing;
mod viewer;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use corpus::{Place, Source};
use indicatif::{ProgressBar, ProgressStyle};
use messages::{ArchivedCompletions, Complete, Open, checksum};
use report::Times;
use shmbus::{Bus, Wait};
use viewer::Viewer;

/// How long the engine may take to offer its services.
const START: Duration = Duration::from_secs(10);
/// Items that are asked for.
const LIMIT: usize = 20;
/// Replies that are shown.
const SHOWN: usize = 5;
/// Completions between two moves of the progress bar.
const MOVE: usize = 512;

/// Sends documents to an engine in another process, and asks it for completions.
#[derive(Parser)]
struct Options {
    /// Files or folders; without any, this repository's sources and a generated text of 512 KiB.
    paths: Vec<PathBuf>,
    /// How many completions to ask for.
    #[arg(long, default_value_t = 20_000)]
    completions: usize,
    /// How many identifiers to type, with a suggestion at each keystroke.
    #[arg(long, default_value_t = 60)]
    words: usize,
    /// How both sides wait for each other.
    #[arg(long, value_enum, default_value = "adaptive")]
    wait: Waiting,
    /// Be a second window: show what the engine of another editor publishes on this bus.
    #[arg(long, value_name = "BUS")]
    viewer: Option<String>,
    /// Be the engine of the process that started this one, and publish on this bus.
    #[arg(long, hide = true)]
    engine: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Waiting {
    /// Look again and again.
    Spin,
    /// Look for a little while, then sleep.
    Adaptive,
    /// Sleep at once.
    Park,
}

impl From<Waiting> for Wait {
    fn from(waiting: Waiting) -> Self {
        match waiting {
            Waiting::Spin => Wait::Spin,
            Waiting::Adaptive => Wait::Adaptive,
            Waiting::Park => Wait::Park,
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(name) = &options.engine {
        return status(server::run(options.wait.into(), name).context("engine"), 1);
    }
    if let Some(name) = &options.viewer {
        return status(viewer::run(name).context("second window"), 1);
    }
    match corpus::collect(&options.paths) {
        Ok(sources) => status(edit(&options, &sources), 1),
        Err(error) => status(Err(error), 2),
    }
}

fn status(done: Result<()>, failure: u8) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("editor: {error:#}");
            ExitCode::from(failure)
        }
    }
}

fn edit(options: &Options, sources: &[Source]) -> Result<()> {
    let windows = format!("editor-{}", std::process::id());
    let viewer = Viewer::open(&windows)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--engine", &windows, "--wait"]);
    command.arg(match options.wait {
        Waiting::Spin => "spin",
        Waiting::Adaptive => "adaptive",
        Waiting::Park => "park",
    });
    // Of its own group: Ctrl-C is for the editor alone.
    command.process_group(0);
    let (bus, mut child) = Bus::spawn(command).context("cannot start the engine")?;
    let mut opened = Times::new()?;
    let places = open_all(&bus, options, sources, &mut opened)?;
    println!("{} documents, {} places\n", sources.len(), places.len());
    let shown = viewer.close()?;
    let all = format!("{} documents were looked at", sources.len());
    ensure!(shown.starts_with(&all), "the second window saw: {shown}");
    println!("In a second window: {shown}. (Another one: editor --viewer {windows})\n");
    let mut completed = Times::new()?;
    if !places.is_empty() {
        complete_all(&bus, options, &places, &mut completed)?;
    }
    let kinds = [("open", &opened), ("complete", &completed)];
    println!("\n{}", report::table(&kinds));
    let typed = typing::simulate(&bus, &places, options.words)?;
    println!("\n{}", report::typed(&typed));
    chat::run(&bus, &places)?;
    drop(bus);
    let status = child.wait()?;
    ensure!(status.success(), "the engine failed: {status}");
    Ok(())
}

/// Sends every document, and returns the places in them.
fn open_all(
    bus: &Bus,
    options: &Options,
    sources: &[Source],
    times: &mut Times,
) -> Result<Vec<Place>> {
    let mut client = bus.client_timeout::<Open>(START)?;
    client.set_wait(options.wait.into());
    let bar = progress(sources.len(), "documents")?;
    let mut places = Vec::new();
    for source in sources {
        let name = &source.name;
        let mut content = client
            .loan_bytes(source.bytes)
            .with_context(|| format!("no memory for the {} bytes of {name}", source.bytes))?;
        source.read(&mut content)?;
        places.extend(corpus::places(name, &String::from_utf8_lossy(&content)));
        let sum = checksum(&content);
        let request = Open {
            path: name.clone(),
            revision: 1,
            content,
        };
        let start = Instant::now();
        let reply = client.call(&request)?;
        let time = start.elapsed();
        let whole = reply.bytes.to_native() == source.bytes as u64;
        ensure!(
            whole && reply.checksum.to_native() == sum,
            "{name} came changed"
        );
        ensure!(
            reply.revision.to_native() == 1,
            "another revision of {name}"
        );
        times.record(source.bytes, time, reply.engine_ns.to_native())?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(places)
}

/// Asks for completions at places all over the documents, checks each reply, and shows some.
fn complete_all(bus: &Bus, options: &Options, places: &[Place], times: &mut Times) -> Result<()> {
    let mut client = bus.client_timeout::<Complete>(START)?;
    client.set_wait(options.wait.into());
    let bar = progress(options.completions, "completions")?;
    let mut shown = 0;
    // A stride that shares no factor with most lengths: neighbours come from different documents.
    let stride = 7919;
    for index in 0..options.completions {
        let place = &places[index.wrapping_mul(stride) % places.len()];
        let request = Complete {
            path: place.path.clone(),
            line: place.line,
            column: place.column,
            prefix: place.prefix.clone(),
            limit: LIMIT as u32,
        };
        let start = Instant::now();
        let reply = client.call(&request)?;
        let time = start.elapsed();
        let bytes = check(place, &reply)?;
        times.record(bytes, time, reply.engine_ns.to_native())?;
        // Spread over the run, and only where enough was typed to be of interest.
        if shown < SHOWN && index * SHOWN >= shown * options.completions && place.prefix.len() > 2 {
            bar.suspend(|| report::show(place, &reply));
            shown += 1;
        }
        if index % MOVE == 0 {
            bar.set_position(index as u64);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Checks what can be known of a reply; returns the bytes of text in it.
fn check(place: &Place, reply: &ArchivedCompletions) -> Result<usize> {
    let at = || format!("{}:{}:{}", place.path, place.line, place.column);
    let typed = place.prefix.chars().count() as u32;
    ensure!(
        reply.from.to_native() + typed == place.column,
        "wrong column at {}",
        at()
    );
    let matched = reply.matched.to_native() as usize;
    ensure!(
        reply.items.len() == matched.min(LIMIT),
        "items are missing at {}",
        at()
    );
    let (mut bytes, mut found, mut last) = (0, false, f32::INFINITY);
    for item in reply.items.iter() {
        let score = item.score.to_native();
        ensure!(score <= last, "items are out of order at {}", at());
        last = score;
        found |= item.label.as_str() == place.label;
        bytes += item.label.len() + item.kind.len() + item.path.len();
    }
    ensure!(
        found || matched > LIMIT,
        "{} was not found at {}",
        place.label,
        at()
    );
    Ok(bytes)
}

fn progress(len: usize, what: &'static str) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?;
    let bar = ProgressBar::new(len as u64).with_style(style);
    Ok(bar.with_message(what))
}
