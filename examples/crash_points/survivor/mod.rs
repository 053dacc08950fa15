//! Those who live on: what they do for a child, and what they check when it is dead.

mod boards;
mod calls;
mod lanes;
mod topics;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use shmbus::{Bus, Config, Wait};

use crate::messages::{LARGE, LARGER, SMALL, WIDE};
use crate::operation::{BUS, Operation};
use crate::page::{Page, Word};
use crate::watcher::Awaited;

/// How far a child's life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It sets itself up.
    Meeting,
    /// It stands where it will be killed.
    Stopped,
    /// It is dead.
    Dead,
}

/// Whoever lives on, for one operation and many children, one after the other.
pub trait Survivor {
    /// Does what there is to do, and checks what there is to check; called again and again.
    fn tend(&mut self, page: &Page, stage: Stage) -> Result<()>;

    /// Whether the child may begin its operation.
    fn is_ready(&mut self) -> bool {
        true
    }

    /// What is still to come of a dead child; `None` where it is over.
    fn missing(&mut self, page: &Page) -> Result<Option<String>>;

    /// All has come: judges it, and is there for the next child.
    fn conclude(&mut self, page: &Page) -> Result<()>;

    /// The buses that live on.
    fn buses(&self) -> Vec<&Bus>;

    /// What is done when the child sleeps.
    fn awaited(&self) -> Option<Awaited> {
        None
    }

    /// What is done as soon as the child's thread is stepped.
    fn started(&self) -> Option<Awaited> {
        None
    }

    /// Says that the child's thread has nothing more to do.
    fn over(&self) -> Option<Arc<AtomicBool>> {
        None
    }
}

/// A bus of a survivor.
fn open() -> Result<Bus> {
    let wait = Wait::Park;
    let config = Config {
        wait,
        ..Config::default()
    };
    config.open(BUS).context("the survivor's bus does not open")
}

/// The survivor of an operation.
pub fn of(operation: Operation, page: &Arc<Page>) -> Result<Box<dyn Survivor>> {
    Ok(match operation {
        Operation::Slot => Box::new(lanes::Taking::open(SMALL)?),
        Operation::Slab | Operation::Leave | Operation::Connect => {
            Box::new(lanes::Taking::open(LARGE)?)
        }
        Operation::Grow => Box::new(lanes::Taking::growing(LARGE, LARGER)?),
        Operation::Extend => Box::new(lanes::Taking::growing(SMALL, WIDE)?),
        Operation::Room => Box::new(lanes::Waiting::open(page.clone())?),
        Operation::Wake => Box::new(lanes::Sleeping::open(SMALL)?),
        Operation::Receive => Box::new(lanes::Sending::open(SMALL)?),
        Operation::Sleep => Box::new(lanes::Sending::open(SMALL)?.when_asleep(page.clone())),
        Operation::ReceiveSlab | Operation::HandBack => Box::new(lanes::Sending::open(LARGE)?),
        Operation::Accept => Box::new(calls::Connecting::open()?),
        Operation::Offer => Box::new(calls::Nobody::open()?),
        Operation::Publish => Box::new(topics::Subscribing::open(SMALL)?),
        Operation::PublishSlab => Box::new(topics::Subscribing::open(LARGE)?),
        Operation::Lossy => Box::new(topics::Behind::open()?),
        Operation::Subscribe => Box::new(topics::Publishing::open()?),
        Operation::Cancel => Box::new(calls::Serving::open()?),
        Operation::Reply => Box::new(calls::Calling::open()?),
        Operation::Put => Box::new(boards::Reading::open()?),
        Operation::Look => Box::new(boards::Replacing::open()?),
        Operation::Pin => Box::new(boards::Opening::open()?),
    })
}

/// Nobody, for the time between two survivors.
pub struct Gone;

impl Survivor for Gone {
    fn tend(&mut self, _: &Page, _: Stage) -> Result<()> {
        Ok(())
    }

    fn missing(&mut self, _: &Page) -> Result<Option<String>> {
        Ok(None)
    }

    fn conclude(&mut self, _: &Page) -> Result<()> {
        Ok(())
    }

    fn buses(&self) -> Vec<&Bus> {
        Vec::new()
    }
}

/// How many of a child's messages have come: each once, and in order.
#[derive(Debug, Default)]
pub struct Tally {
    taken: u64,
}

impl Tally {
    /// The child's next message has come; returns its number.
    fn take(&mut self, page: &Page, id: u64) -> Result<u64> {
        let number = self.taken + 1;
        let expected = page.id(number);
        ensure!(
            id == expected,
            "message {id:#x} came where {expected:#x} was next"
        );
        self.taken = number;
        Ok(number)
    }

    /// What was promised, and has not come.
    fn missing(&self, page: &Page) -> Option<String> {
        let done = page.get(Word::Done);
        let taken = self.taken;
        (taken < done).then(|| format!("{done} messages were sent, and {taken} came"))
    }

    /// Judges what has come, and begins anew.
    fn conclude(&mut self, page: &Page) -> Result<()> {
        let Tally { taken } = std::mem::take(self);
        let (begun, done) = (page.get(Word::Begun), page.get(Word::Done));
        ensure!(
            page.allows(taken),
            "{taken} messages came, of {done} to {begun}"
        );
        Ok(())
    }
}
