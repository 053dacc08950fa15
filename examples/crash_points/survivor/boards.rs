//! Newest values and pins: who reads the child's, replaces those that it reads, and opens its pins.

use anyhow::{Context, Result, ensure};
use shmbus::{Bus, Kept, Latest, LatestPublisher, Receiver};

use super::{Stage, Survivor, Tally, open};
use crate::messages::{Edit, LARGE, OUTBOX, SMALL, State, check, state};
use crate::page::{Page, Phase, Word};

/// Reads the newest values of the child.
pub struct Reading {
    latest: Latest<State>,
    bus: Bus,
    /// The number that was found last.
    last: u64,
}

impl Reading {
    pub fn open() -> Result<Self> {
        let bus = open()?;
        let latest = bus.latest()?;
        Ok(Reading {
            latest,
            bus,
            last: 0,
        })
    }

    /// The number of the newest value of a key.
    fn read(&mut self, page: &Page, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.latest.get(key)? else {
            return Ok(None);
        };
        let id = value.id.to_native();
        ensure!(value.key == key, "the value is of another key");
        check(id, &value.content, SMALL)?;
        let number = id & 0xffff;
        ensure!(id == page.id(number), "{id:#x} is of another child");
        Ok(Some(number))
    }
}

impl Survivor for Reading {
    fn tend(&mut self, page: &Page, stage: Stage) -> Result<()> {
        while self.latest.try_next()?.is_some() {}
        let (before, other) = (page.get(Word::Done), self.read(page, "other")?);
        let found = self.read(page, "key")?;
        if let Some(number) = found {
            let (last, begun) = (self.last, page.get(Word::Begun));
            self.last = number;
            ensure!(number >= last, "value {number} came after {last}");
            ensure!(
                (before..=begun).contains(&number),
                "value {number} of {before} to {begun}"
            );
        }
        if stage == Stage::Stopped && page.phase() >= Phase::Running {
            ensure!(
                found.is_some() && other.is_some(),
                "a value is gone before its publisher"
            );
        }
        Ok(())
    }

    fn missing(&mut self, page: &Page) -> Result<Option<String>> {
        let is_there = self.read(page, "key")?.or(self.read(page, "other")?);
        Ok(is_there.map(|number| format!("value {number} of a dead publisher is there")))
    }

    fn conclude(&mut self, _: &Page) -> Result<()> {
        self.last = 0;
        Ok(())
    }

    fn buses(&self) -> Vec<&Bus> {
        vec![&self.bus]
    }
}

/// Replaces the newest values that the child reads.
pub struct Replacing {
    publisher: LatestPublisher<State>,
    bus: Bus,
    sent: u64,
}

impl Replacing {
    pub fn open() -> Result<Self> {
        let bus = open()?;
        let publisher = bus.latest_publisher()?;
        Ok(Replacing {
            publisher,
            bus,
            sent: 0,
        })
    }

    fn publish(&mut self, page: &Page) -> Result<()> {
        self.sent += 1;
        self.publisher
            .publish(&state("key", page.id(self.sent), LARGE))?;
        page.set(Word::Sent, self.sent);
        Ok(())
    }
}

/// As many values as the memory of those before is used again for at once.
const ROUND: u64 = 64;

impl Survivor for Replacing {
    fn tend(&mut self, page: &Page, stage: Stage) -> Result<()> {
        match stage {
            Stage::Meeting => {
                while self.sent < page.get(Word::Wanted) {
                    self.publish(page)?;
                }
                Ok(())
            }
            // Around the one that the child holds, or is about to.
            Stage::Stopped => (0..ROUND).try_for_each(|_| self.publish(page)),
            Stage::Dead => Ok(()),
        }
    }

    fn missing(&mut self, _: &Page) -> Result<Option<String>> {
        let readers = self.publisher.readers();
        Ok((readers > 0).then(|| "the publisher does not learn of the death".to_owned()))
    }

    /// The next child finds one value, in memory that was looked through since this one is dead.
    fn conclude(&mut self, page: &Page) -> Result<()> {
        (0..2 * ROUND).try_for_each(|_| self.publish(page))?;
        self.sent = 0;
        ensure!(self.publisher.remove("key")?, "the value was not there");
        Ok(())
    }

    fn buses(&self) -> Vec<&Bus> {
        vec![&self.bus]
    }
}

/// Takes messages that refer to pins, and opens those.
pub struct Opening {
    receiver: Receiver<Edit>,
    bus: Bus,
    tally: Tally,
    kept: Option<Kept<Edit>>,
}

impl Opening {
    pub fn open() -> Result<Self> {
        let bus = open()?;
        let receiver = bus.receiver(OUTBOX)?;
        Ok(Opening {
            receiver,
            bus,
            tally: Tally::default(),
            kept: None,
        })
    }
}

fn look_into(edit: &Kept<Edit>) -> Result<()> {
    let id = edit.id.to_native();
    let document = edit.document.open(edit).context("a pin cannot be opened")?;
    ensure!(document.id == id, "another document is pinned");
    check(id, &document.content, LARGE)
}

impl Survivor for Opening {
    fn tend(&mut self, page: &Page, _: Stage) -> Result<()> {
        if let Some(kept) = &self.kept {
            look_into(kept)?;
        }
        while let Some(edit) = self.receiver.try_next()? {
            self.tally.take(page, edit.id.to_native())?;
            let edit = edit.keep();
            look_into(&edit)?;
            self.kept = Some(edit);
        }
        Ok(())
    }

    fn missing(&mut self, page: &Page) -> Result<Option<String>> {
        let missing = self.tally.missing(page);
        if missing.is_none() {
            // It was opened once more since the child is dead; now its memory is to be gone.
            self.kept = None;
        }
        Ok(missing)
    }

    fn conclude(&mut self, page: &Page) -> Result<()> {
        self.kept = None;
        self.tally.conclude(page)
    }

    fn buses(&self) -> Vec<&Bus> {
        vec![&self.bus]
    }
}
