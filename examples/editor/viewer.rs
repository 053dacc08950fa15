//! A second window: shows what the engine publishes, as the first one does, on the same memory.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use shmbus::{Bus, ReceiveError};

use crate::messages::{Diagnostics, Progress};

/// The most characters of a line without a warning.
const WIDTH: usize = 110;
/// Warnings that are shown of one document.
const SHOWN: usize = 2;

/// What is wrong in a text: lines that nobody reads to their end, and white space there.
pub fn diagnose(text: &str) -> Vec<(u32, String)> {
    let lines = text.lines().zip(1..);
    let wrong = lines.filter_map(|(line, number)| {
        let width = line.chars().count();
        if width > WIDTH {
            Some((number, format!("{width} characters wide")))
        } else if line.ends_with(char::is_whitespace) {
            Some((number, "white space at the end".to_owned()))
        } else {
            None
        }
    });
    wrong.collect()
}

/// Shows what is published on the bus of this name, until the input ends.
pub fn run(name: &str) -> Result<()> {
    let bus = Bus::open(name)?;
    let mut diagnostics = bus.subscriber::<Diagnostics>()?;
    let mut progress = bus.subscriber::<Progress>()?;
    println!("watching {name}");
    let closing = bus.clone();
    thread::spawn(move || {
        // Until Ctrl-D, or until the first window ends. What came before is still shown.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        closing.close();
    });
    let shown = Mutex::new((0u32, 0u32, 0u64));
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                match progress.next() {
                    Ok(Some(_)) => shown.lock().expect("nobody panics").1 += 1,
                    Ok(None) => return,
                    Err(ReceiveError::Lagged { missed, .. }) => {
                        shown.lock().expect("nobody panics").2 += missed;
                    }
                    Err(_) => return,
                }
            }
        });
        while let Some(found) = diagnostics.next()? {
            shown.lock().expect("nobody panics").0 += 1;
            for warning in found.warnings.iter().take(SHOWN) {
                println!("{}:{}  {}", found.path, warning.line, warning.text);
            }
        }
        anyhow::Ok(())
    })?;
    let (documents, steps, missed) = *shown.lock().expect("nobody panics");
    println!(
        "{documents} documents were looked at; {} steps of progress, {missed} of them missed",
        steps as u64 + missed
    );
    Ok(())
}

/// A second window that the first one opened.
pub struct Viewer(Child, BufReader<std::process::ChildStdout>);

impl Viewer {
    /// Opens it, and waits until it sees what is published from now on.
    pub fn open(name: &str) -> Result<Viewer> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--viewer", name]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the second window")?;
        let output = child.stdout.take().context("it has an output")?;
        let mut viewer = Viewer(child, BufReader::new(output));
        let mut line = String::new();
        viewer.1.read_line(&mut line)?;
        ensure!(
            line.starts_with("watching"),
            "the second window did not open"
        );
        Ok(viewer)
    }

    /// Closes it, and says what it showed.
    pub fn close(mut self) -> Result<String> {
        drop(self.0.stdin.take());
        let mut shown = String::new();
        self.1.read_to_string(&mut shown)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "the second window failed: {status}");
        let last = shown.lines().last();
        last.map(str::to_owned)
            .ok_or_else(|| anyhow!("the second window showed nothing"))
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
