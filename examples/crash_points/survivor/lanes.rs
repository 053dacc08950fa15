//! One-way lanes: who takes what the child sends, asleep or awake, and who sends to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use shmbus::{Bus, Receiver, SendError, Sender, Wait};

use super::{Stage, Survivor, Tally, open};
use crate::messages::{INBOX, Note, OUTBOX, SMALL, check, note};
use crate::page::{Page, Phase, Word};
use crate::watcher::{Awaited, sleeps};

/// How long a child may take to answer.
pub const START: Duration = Duration::from_secs(10);

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what the child sends, and never sleeps.
pub struct Taking {
    receiver: Receiver<Note>,
    bus: Bus,
    tally: Tally,
    /// The bytes of the messages before the operation, and of the one in it.
    bytes: (usize, usize),
}

impl Taking {
    pub fn open(bytes: usize) -> Result<Self> {
        Taking::growing(bytes, bytes)
    }

    pub fn growing(before: usize, in_it: usize) -> Result<Self> {
        let bus = open()?;
        let mut receiver = bus.receiver(OUTBOX)?;
        receiver.set_wait(Wait::Spin);
        Ok(Taking {
            receiver,
            bus,
            tally: Tally::default(),
            bytes: (before, in_it),
        })
    }
}

impl Survivor for Taking {
    fn tend(&mut self, page: &Page, _: Stage) -> Result<()> {
        while let Some(note) = self.receiver.try_next()? {
            let id = note.id.to_native();
            let (before, in_it) = self.bytes;
            let bytes = if self.tally.taken < 2 { before } else { in_it };
            self.tally.take(page, id)?;
            check(id, &note.content, bytes)?;
        }
        Ok(())
    }

    fn missing(&mut self, page: &Page) -> Result<Option<String>> {
        // A child that only connects sends nothing.
        Ok(self
            .tally
            .missing(page)
            .filter(|_| page.get(Word::Done) > 1))
    }

    fn conclude(&mut self, page: &Page) -> Result<()> {
        match (self.tally.taken, page.get(Word::Begun)) {
            (0, 1) => Ok(()),
            _ => self.tally.conclude(page),
        }
    }

    fn buses(&self) -> Vec<&Bus> {
        vec![&self.bus]
    }
}

/// What was taken of a lane that is full until its sender sleeps.
struct Full {
    receiver: Receiver<Note>,
    tally: Tally,
}

impl Full {
    fn take(&mut self, page: &Page) -> Result<()> {
        while let Some(note) = self.receiver.try_next()? {
            let id = note.id.to_native();
            self.tally.take(page, id)?;
            check(id, &note.content, SMALL)?;
        }
        Ok(())
    }
}

/// Takes nothing until the child sleeps, or is dead.
pub struct Waiting {
    full: Arc<Mutex<Full>>,
    page: Arc<Page>,
    bus: Bus,
}

impl Waiting {
    pub fn open(page: Arc<Page>) -> Result<Self> {
        let bus = open()?;
        let mut receiver = bus.receiver(OUTBOX)?;
        receiver.set_wait(Wait::Spin);
        let tally = Tally::default();
        let full = Arc::new(Mutex::new(Full { receiver, tally }));
        Ok(Waiting { full, page, bus })
    }
}

impl Survivor for Waiting {
    fn tend(&mut self, page: &Page, stage: Stage) -> Result<()> {
        match stage {
            Stage::Meeting | Stage::Stopped => Ok(()),
            Stage::Dead => lock(&self.full).take(page),
        }
    }

    fn missing(&mut self, page: &Page) -> Result<Option<String>> {
        Ok(lock(&self.full).tally.missing(page))
    }

    fn conclude(&mut self, page: &Page) -> Result<()> {
        lock(&self.full).tally.conclude(page)
    }

    fn buses(&self) -> Vec<&Bus> {
        vec![&self.bus]
    }

    fn awaited(&self) -> Option<Awaited> {
        // The watcher keeps this longer than there is a survivor.
        let (full, page) = (Arc::downgrade(&self.full), self.page.clone());
        Some(Arc::new(move || {
            // Where it fails, the child sleeps on, which the watcher sees.
            let _ = full.upgrade().map(|full| lock(&full).take(&page));
        }))
    }
}

/// What one that sleeps has taken, of each child.
#[derive(Default)]
struct Taken {
    numbers: HashMap<u64, u64>,
    wrong: Option<String>,
    tid: Option<i32>,
}

/// Takes what the child sends on a thread that sleeps.
pub struct Sleeping {
    taken: Arc<Mutex<Taken>>,
    thread: Option<JoinHandle<()>>,
    bus: Bus,
    /// The child before: how much it had sent.
    before: Option<(u64, u64)>,
}

fn take_asleep(mut receiver: Receiver<Note>, taken: &Mutex<Taken>, bytes: usize) -> Result<()> {
    let tid = rustix::thread::gettid().as_raw_nonzero().get();
    lock(taken).tid = Some(tid);
    while let Some(note) = receiver.next()? {
        let id = note.id.to_native();
        check(id, &note.content, bytes)?;
        let (run, number) = (id >> 16, id & 0xffff);
        let mut taken = lock(taken);
        let last = taken.numbers.insert(run, number).unwrap_or(0);
        ensure!(number == last + 1, "message {number} came after {last}");
    }
    Ok(())
}

impl Sleeping {
    pub fn open(bytes: usize) -> Result<Self> {
        let bus = open()?;
        let receiver = bus.receiver(OUTBOX)?;
        let taken = Arc::new(Mutex::new(Taken::default()));
        let thread = thread::spawn({
            let taken = taken.clone();
            move || {
                if let Err(error) = take_asleep(receiver, &taken, bytes) {
                    lock(&taken).wrong = Some(format!("{error:#}"));
                }
            }
        });
        Ok(Sleeping {
            taken,
            thread: Some(thread),
            bus,
            before: None,
        })
    }
}

impl Survivor for Sleeping {
    fn tend(&mut self, _: &Page, _: Stage) -> Result<()> {
        let wrong = lock(&self.taken).wrong.clone();
        wrong.map_or(Ok(()), |wrong| Err(anyhow!(wrong)))
    }

    fn is_ready(&mut self) -> bool {
        let tid = lock(&self.taken).tid;
        tid.is_some_and(|tid| sleeps(std::process::id() as i32, tid))
    }

    fn missing(&mut self, page: &Page) -> Result<Option<String>> {
        let numbers = &lock(&self.taken).numbers;
        let taken = numbers.get(&page.get(Word::Run)).copied();
        Ok(Tally {
            taken: taken.unwrap_or(0),
        }
        .missing(page))
    }

    fn conclude(&mut self, page: &Page) -> Result<()> {
        let mut taken = lock(&self.taken);
        // What was not promised may come late: it is judged when the next child is dead.
        if let Some((run, begun)) = self
            .before
            .replace((page.get(Word::Run), page.get(Word::Begun)))
        {
            let number = taken.numbers.remove(&run).unwrap_or(0);
            ensure!(number <= begun, "{number} messages came, of {begun}");
        }
        Ok(())
    }

    fn buses(&self) -> Vec<&Bus> {
        vec![&self.bus]
    }
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        self.bus.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is sent to the child.
struct Lane {
    sender: Option<Sender<Note>>,
    sent: u64,
    bytes: usize,
}

impl Lane {
    fn send(&mut self, page: &Page) -> Result<()> {
        let sender = self.sender.as_mut().context("the child offers nothing")?;
        sender.try_send(&note(page.id(self.sent + 1), self.bytes))?;
        self.sent += 1;
        page.set(Word::Sent, self.sent);
        Ok(())
    }
}

/// Sends to the child what it wants.
pub struct Sending {
    lane: Arc<Mutex<Lane>>,
    page: Option<Awaited>,
    bus: Bus,
}

impl Sending {
    pub fn open(bytes: usize) -> Result<Self> {
        let bus = open()?;
        let lane = Lane {
            sender: None,
            sent: 0,
            bytes,
        };
        let lane = Arc::new(Mutex::new(lane));
        Ok(Sending {
            lane,
            page: None,
            bus,
        })
    }
}

/// True once a sender says that its receiver is gone.
pub fn is_closed(sender: &mut Sender<Note>) -> Result<bool> {
    match sender.try_send(&note(0, 24)) {
        Ok(()) | Err(SendError::Full) => Ok(false),
        Err(SendError::Closed { .. }) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

impl Survivor for Sending {
    fn tend(&mut self, page: &Page, stage: Stage) -> Result<()> {
        let mut lane = lock(&self.lane);
        match stage {
            Stage::Meeting if page.phase() >= Phase::Offered => {
                if lane.sender.is_none() {
                    lane.sender = Some(self.bus.sender_timeout(INBOX, START)?);
                }
                while lane.sent < page.get(Word::Wanted) {
                    lane.send(page)?;
                }
            }
            Stage::Dead => {
                if lane.sender.as_mut().map_or(Ok(false), is_closed)? {
                    lane.sender = None;
                }
            }
            Stage::Meeting | Stage::Stopped => {}
        }
        Ok(())
    }

    fn missing(&mut self, _: &Page) -> Result<Option<String>> {
        let is_there = lock(&self.lane).sender.is_some();
        Ok(is_there.then(|| "the sender does not learn of the death".to_owned()))
    }

    fn conclude(&mut self, _: &Page) -> Result<()> {
        lock(&self.lane).sent = 0;
        Ok(())
    }

    fn buses(&self) -> Vec<&Bus> {
        vec![&self.bus]
    }

    fn awaited(&self) -> Option<Awaited> {
        self.page.clone()
    }
}

impl Sending {
    /// Also sends when the child sleeps.
    pub fn when_asleep(mut self, page: Arc<Page>) -> Self {
        let lane = self.lane.clone();
        self.page = Some(Arc::new(move || {
            // Where it fails, the child sleeps on, which the watcher sees.
            let _ = lock(&lane).send(&page);
        }));
        self
    }
}
