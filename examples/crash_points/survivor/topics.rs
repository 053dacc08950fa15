//! Topics: two subscribers of the child, one that is behind, and a publisher to the child.

use anyhow::{Result, ensure};
use shmbus::{Bus, Publisher, ReceiveError, Subscriber};

use super::{Stage, Survivor, Tally, open};
use crate::messages::{Note, SMALL, check, note};
use crate::page::{Page, Word};

/// Two subscribers, of a bus each.
pub struct Subscribing {
    subscribers: Vec<(Subscriber<Note>, Tally)>,
    buses: Vec<Bus>,
    bytes: usize,
}

impl Subscribing {
    pub fn open(bytes: usize) -> Result<Self> {
        let buses = vec![open()?, open()?];
        let mut subscribers = Vec::new();
        for bus in &buses {
            subscribers.push((bus.subscriber()?, Tally::default()));
        }
        Ok(Subscribing {
            subscribers,
            buses,
            bytes,
        })
    }
}

impl Survivor for Subscribing {
    fn tend(&mut self, page: &Page, stage: Stage) -> Result<()> {
        for (subscriber, tally) in &mut self.subscribers {
            loop {
                match subscriber.try_next() {
                    Ok(None) => break,
                    Ok(Some(note)) => {
                        let id = note.id.to_native();
                        tally.take(page, id)?;
                        check(id, &note.content, self.bytes)?;
                    }
                    // The message that was about to be published, and was promised to nobody.
                    Err(ReceiveError::Lagged { missed, .. }) => {
                        let left = page.get(Word::Begun) - tally.taken;
                        let is_dead = stage == Stage::Dead;
                        ensure!(is_dead && missed <= left, "{missed} messages were missed");
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn missing(&mut self, page: &Page) -> Result<Option<String>> {
        let mut tallies = self.subscribers.iter().map(|(_, tally)| tally);
        Ok(tallies.find_map(|tally| tally.missing(page)))
    }

    fn conclude(&mut self, page: &Page) -> Result<()> {
        let mut tallies = self.subscribers.iter_mut().map(|(_, tally)| tally);
        tallies.try_for_each(|tally| tally.conclude(page))
    }

    fn buses(&self) -> Vec<&Bus> {
        self.buses.iter().collect()
    }
}

/// A subscriber that takes nothing as long as the child lives.
pub struct Behind {
    subscriber: Subscriber<Note>,
    bus: Bus,
    taken: u64,
    missed: u64,
}

impl Behind {
    pub fn open() -> Result<Self> {
        let bus = open()?;
        let subscriber = bus.subscriber()?;
        Ok(Behind {
            subscriber,
            bus,
            taken: 0,
            missed: 0,
        })
    }
}

impl Survivor for Behind {
    fn tend(&mut self, page: &Page, stage: Stage) -> Result<()> {
        if stage != Stage::Dead {
            return Ok(());
        }
        loop {
            match self.subscriber.try_next() {
                Ok(None) => return Ok(()),
                Ok(Some(note)) => {
                    let id = note.id.to_native();
                    self.taken += 1;
                    let expected = page.id(self.taken + self.missed);
                    ensure!(
                        id == expected,
                        "message {id:#x} came where {expected:#x} was next"
                    );
                    check(id, &note.content, SMALL)?;
                }
                Err(ReceiveError::Lagged { missed, .. }) => self.missed += missed,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn missing(&mut self, page: &Page) -> Result<Option<String>> {
        let (done, known) = (page.get(Word::Done), self.taken + self.missed);
        Ok((known < done)
            .then(|| format!("{done} were published, and {known} came or were missed")))
    }

    fn conclude(&mut self, page: &Page) -> Result<()> {
        let (taken, missed) = (
            std::mem::take(&mut self.taken),
            std::mem::take(&mut self.missed),
        );
        ensure!(
            page.get(Word::Begun) == 0 || missed > 0,
            "the subscriber was never behind"
        );
        ensure!(
            page.allows(taken + missed),
            "{taken} came and {missed} were missed, of {} to {}",
            page.get(Word::Done),
            page.get(Word::Begun)
        );
        Ok(())
    }

    fn buses(&self) -> Vec<&Bus> {
        vec![&self.bus]
    }
}

/// Publishes to the child.
pub struct Publishing {
    publisher: Publisher<Note>,
    bus: Bus,
}

impl Publishing {
    pub fn open() -> Result<Self> {
        let bus = open()?;
        let publisher = bus.publisher()?;
        Ok(Publishing { publisher, bus })
    }
}

impl Survivor for Publishing {
    fn tend(&mut self, page: &Page, stage: Stage) -> Result<()> {
        // Who has just begun to subscribe is published to.
        if stage == Stage::Stopped {
            self.publisher.try_publish(&note(page.id(1), SMALL))?;
        }
        Ok(())
    }

    fn missing(&mut self, _: &Page) -> Result<Option<String>> {
        let subscribers = self.publisher.subscribers();
        Ok((subscribers > 0).then(|| "the publisher does not learn of the death".to_owned()))
    }

    fn conclude(&mut self, page: &Page) -> Result<()> {
        Ok(self.publisher.try_publish(&note(page.id(2), SMALL))?)
    }

    fn buses(&self) -> Vec<&Bus> {
        vec![&self.bus]
    }
}
