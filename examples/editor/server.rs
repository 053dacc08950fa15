//! The engine's process: the index behind four services, until the editor is gone, and what it tells all
//! windows.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use anyhow::{Result, anyhow};
use shmbus::{Bus, Delivery, Publisher, Publishing, Wait};

use crate::answers;
use crate::engine::{Candidate, Engine, Place};
use crate::messages::{
    ArchivedComplete, ArchivedOpen, Complete, Completions, Diagnostics, Item, Open, Opened,
    Progress, Warning, checksum,
};
use crate::viewer::diagnose;

/// The most items that a reply holds, whatever was asked for.
const MOST: u32 = 100;

/// Serves the process that started this one. Returns once that one is gone.
pub fn run(wait: Wait, windows: &str) -> Result<()> {
    let bus = Bus::from_parent()?;
    let windows = Windows::open(&Bus::open(windows)?)?;
    let mut opens = bus.server::<Open>()?;
    let mut completes = bus.server::<Complete>()?;
    completes.set_wait(wait);
    // Documents come seldom: their thread must not take a processor from the one that answers.
    opens.set_wait(Wait::Park);

    let engine = Arc::new(RwLock::new(Engine::default()));
    // These think for long: each has a thread of its own, which ends with this function.
    let _suggesting = answers::serve_suggestions(&bus, engine.clone())?;
    let _chatting = answers::serve_chat(&bus, engine.clone())?;
    std::thread::scope(|scope| {
        let documents = scope.spawn(|| -> Result<()> {
            let mut windows = windows;
            while let Some(call) = opens.next()? {
                let reply = open(&engine, &call);
                windows.show(&call, reply.identifiers)?;
                call.reply(&reply)?;
            }
            Ok(())
        });
        while let Some(call) = completes.next()? {
            let reply = complete(&engine, &call);
            call.reply(&reply)?;
        }
        let ended = documents.join();
        ended.unwrap_or_else(|_| Err(anyhow!("the thread of documents panicked")))
    })
}

/// What all windows see.
struct Windows {
    /// Each of them sees all of these.
    diagnostics: Publisher<Diagnostics>,
    /// One that is behind sees the newest.
    progress: Publisher<Progress>,
    documents: u32,
}

impl Windows {
    fn open(bus: &Bus) -> Result<Windows> {
        let newest = Publishing {
            delivery: Delivery::Lossy,
            history: 1,
        };
        Ok(Windows {
            diagnostics: bus.publisher()?,
            progress: bus.publisher_as(newest)?,
            documents: 0,
        })
    }

    fn show(&mut self, request: &ArchivedOpen, identifiers: u32) -> Result<()> {
        let text = String::from_utf8_lossy(request.content.as_slice());
        let warning = |(line, text)| Warning { line, text };
        self.diagnostics.publish(&Diagnostics {
            path: request.path.as_str().to_owned(),
            revision: request.revision.to_native(),
            warnings: diagnose(&text).into_iter().map(warning).collect(),
        })?;
        self.documents += 1;
        Ok(self.progress.publish(&Progress {
            documents: self.documents,
            identifiers,
        })?)
    }
}

/// Indexes the text where the editor wrote it.
fn open(engine: &RwLock<Engine>, request: &ArchivedOpen) -> Opened {
    let start = Instant::now();
    let content = request.content.as_slice();
    let checksum = checksum(content);
    let text = String::from_utf8_lossy(content);
    let mut engine = engine.write().unwrap_or_else(PoisonError::into_inner);
    let identifiers = engine.open(request.path.as_str(), &text);
    Opened {
        revision: request.revision.to_native(),
        bytes: content.len() as u64,
        checksum,
        identifiers: identifiers as u32,
        engine_ns: start.elapsed().as_nanos() as u64,
    }
}

fn complete(engine: &RwLock<Engine>, request: &ArchivedComplete) -> Completions {
    let start = Instant::now();
    let engine = engine.read().unwrap_or_else(PoisonError::into_inner);
    let prefix = request.prefix.as_str();
    let place = Place {
        path: request.path.as_str(),
        line: request.line.to_native(),
        prefix,
    };
    let limit = request.limit.to_native().min(MOST);
    let (found, matched) = engine.complete(place, limit as usize);
    let typed = prefix.chars().count() as u32;
    Completions {
        from: request.column.to_native().saturating_sub(typed),
        matched: matched as u32,
        items: found.iter().map(item).collect(),
        engine_ns: start.elapsed().as_nanos() as u64,
    }
}

fn item(candidate: &Candidate<'_>) -> Item {
    Item {
        label: candidate.label.to_owned(),
        kind: candidate.kind.name().to_owned(),
        score: candidate.score,
        uses: candidate.uses,
        path: candidate.path.to_owned(),
        line: candidate.line,
    }
}
