//! Calls and connecting: who serves the child, calls it, connects to it, or has nothing to do with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail, ensure};
use shmbus::{AsyncCall, AsyncServer, Bus, CallError, ConnectError, SendError, Sender};

use super::lanes::{START, is_closed, lock};
use super::{Stage, Survivor, open};
use crate::messages::{Ask, INBOX, LARGE, Note, SMALL, check, note};
use crate::page::{Page, Phase, Word};
use crate::watcher::Awaited;

/// Has a bus, and nothing to do with the child but that it lives beside it.
pub struct Nobody {
    bus: Bus,
}

impl Nobody {
    pub fn open() -> Result<Self> {
        Ok(Nobody { bus: open()? })
    }
}

impl Survivor for Nobody {
    fn tend(&mut self, _: &Page, _: Stage) -> Result<()> {
        Ok(())
    }

    fn missing(&mut self, _: &Page) -> Result<Option<String>> {
        Ok(None)
    }

    /// What a dead one offered is free.
    fn conclude(&mut self, _: &Page) -> Result<()> {
        match self.bus.sender::<Note>(INBOX) {
            Err(ConnectError::NoServer { .. }) => {}
            Err(error) => return Err(error).context("the port of the dead"),
            Ok(_) => bail!("a dead process received"),
        }
        self.bus
            .receiver::<Note>(INBOX)
            .context("the name of the dead is not free")?;
        Ok(())
    }

    fn buses(&self) -> Vec<&Bus> {
        vec![&self.bus]
    }
}

type Connected = Result<Sender<Note>>;

/// Connects to the child while its quiet thread is stepped.
pub struct Connecting {
    bus: Bus,
    over: Arc<AtomicBool>,
    connecting: Arc<Mutex<Option<JoinHandle<Connected>>>>,
    sender: Option<Sender<Note>>,
}

impl Connecting {
    pub fn open() -> Result<Self> {
        Ok(Connecting {
            bus: open()?,
            over: Arc::default(),
            connecting: Arc::default(),
            sender: None,
        })
    }
}

fn connect(bus: &Bus) -> Connected {
    let mut sender = bus.sender::<Note>(INBOX)?;
    sender.send(&note(1, SMALL))?;
    Ok(sender)
}

/// Whether an error says no more than that the other side is gone.
fn is_death(error: &anyhow::Error) -> bool {
    let connecting = error.downcast_ref::<ConnectError>().map(|error| {
        matches!(
            error,
            ConnectError::Lost { fault: None, .. } | ConnectError::NoServer { .. }
        )
    });
    let sending = error
        .downcast_ref()
        .map(|error| matches!(error, SendError::Closed { .. }));
    connecting.or(sending).unwrap_or(false)
}

impl Survivor for Connecting {
    fn tend(&mut self, _: &Page, stage: Stage) -> Result<()> {
        if stage != Stage::Dead {
            return Ok(());
        }
        let mut connecting = lock(&self.connecting);
        if connecting.as_ref().is_some_and(JoinHandle::is_finished) {
            let connected = connecting.take().map(JoinHandle::join);
            match connected
                .context("nobody connects")?
                .map_err(|_| anyhow!("a panic"))?
            {
                Ok(sender) => self.sender = Some(sender),
                Err(error) if is_death(&error) => {}
                Err(error) => return Err(error).context("connecting to one who was killed"),
            }
        }
        if self.sender.as_mut().map_or(Ok(false), is_closed)? {
            self.sender = None;
        }
        Ok(())
    }

    fn missing(&mut self, _: &Page) -> Result<Option<String>> {
        let connects = lock(&self.connecting).is_some();
        let is_waiting = connects || self.sender.is_some();
        Ok(is_waiting.then(|| format!("does not learn of the death (still connects: {connects})")))
    }

    fn conclude(&mut self, _: &Page) -> Result<()> {
        // Relaxed: nobody connects now.
        self.over.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn buses(&self) -> Vec<&Bus> {
        vec![&self.bus]
    }

    fn started(&self) -> Option<Awaited> {
        let (bus, over, connecting) =
            (self.bus.clone(), self.over.clone(), self.connecting.clone());
        Some(Arc::new(move || {
            let (bus, over) = (bus.clone(), over.clone());
            let thread = thread::spawn(move || {
                let connected = connect(&bus);
                // Relaxed: only that the child is not stepped further hangs on it.
                over.store(true, Ordering::Relaxed);
                connected
            });
            *lock(&connecting) = Some(thread);
        }))
    }

    fn over(&self) -> Option<Arc<AtomicBool>> {
        Some(self.over.clone())
    }
}

/// Serves the child.
pub struct Serving {
    server: AsyncServer<Ask>,
    call: Option<AsyncCall<Ask>>,
    bus: Bus,
}

impl Serving {
    pub fn open() -> Result<Self> {
        let bus = open()?;
        let server = bus.async_server()?;
        Ok(Serving {
            server,
            call: None,
            bus,
        })
    }
}

impl Survivor for Serving {
    fn tend(&mut self, page: &Page, stage: Stage) -> Result<()> {
        if let Some(call) = self.server.try_next()? {
            ensure!(
                stage == Stage::Meeting && self.call.is_none(),
                "a call too many"
            );
            ensure!(call.id == page.id(1), "call {} came", call.id);
            self.call = Some(call);
            page.set(Word::Sent, 1);
        }
        let is_cancelled = self.call.as_ref().is_some_and(AsyncCall::is_cancelled);
        let is_given_up = page.get(Word::Begun) > 0 || stage == Stage::Dead;
        ensure!(
            !is_cancelled || is_given_up,
            "a call is cancelled by itself"
        );
        if stage == Stage::Stopped && page.get(Word::Done) == 1 {
            ensure!(is_cancelled, "a call that was given up is not cancelled");
        }
        Ok(())
    }

    fn missing(&mut self, page: &Page) -> Result<Option<String>> {
        match self.call.take_if(|call| call.is_cancelled()) {
            // What it has of the child goes with it.
            Some(call) => match call.reply(&note(page.id(1), LARGE)) {
                Ok(()) | Err(SendError::Cancelled) => {}
                Err(error) => return Err(error).context("the reply to one who was killed"),
            },
            None if self.call.is_some() => {
                return Ok(Some("the server does not learn of the death".to_owned()));
            }
            None => {}
        }
        Ok(None)
    }

    fn conclude(&mut self, _: &Page) -> Result<()> {
        Ok(())
    }

    fn buses(&self) -> Vec<&Bus> {
        vec![&self.bus]
    }
}

/// Calls the child, again and again until it is dead.
pub struct Calling {
    bus: Bus,
    thread: Option<JoinHandle<Result<()>>>,
    answered: Arc<Mutex<u64>>,
}

impl Calling {
    pub fn open() -> Result<Self> {
        Ok(Calling {
            bus: open()?,
            thread: None,
            answered: Arc::default(),
        })
    }
}

fn call(bus: &Bus, run: u64, (first, answered): (mpsc::Sender<()>, &Mutex<u64>)) -> Result<()> {
    let client = bus.client_timeout::<Ask>(START)?;
    drop(first);
    for number in 1.. {
        let id = run << 16 | number;
        match client.call(&Ask { id }) {
            Ok(note) => {
                ensure!(note.id == id, "the reply is to call {:#x}", note.id);
                check(id, &note.content, LARGE)?;
                *lock(answered) = number;
            }
            Err(CallError::Lost { .. } | CallError::Connect(_)) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl Survivor for Calling {
    fn tend(&mut self, page: &Page, stage: Stage) -> Result<()> {
        if stage == Stage::Meeting && page.phase() == Phase::Offered && self.thread.is_none() {
            let (bus, run) = (self.bus.clone(), page.get(Word::Run));
            *lock(&self.answered) = 0;
            let answered = self.answered.clone();
            let (first, connected) = mpsc::channel();
            self.thread = Some(thread::spawn(move || call(&bus, run, (first, &answered))));
            // Until it has connected, or failed to.
            let _ = connected.recv();
        }
        Ok(())
    }

    fn missing(&mut self, _: &Page) -> Result<Option<String>> {
        let waits = self
            .thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished());
        Ok(waits.then(|| "the client does not learn of the death".to_owned()))
    }

    fn conclude(&mut self, page: &Page) -> Result<()> {
        let called = self.thread.take().map(JoinHandle::join);
        called
            .context("nobody called")?
            .map_err(|_| anyhow!("a panic"))??;
        let answered = *lock(&self.answered);
        ensure!(
            page.allows(answered),
            "{answered} replies came, of {} to {}",
            page.get(Word::Done),
            page.get(Word::Begun)
        );
        Ok(())
    }

    fn buses(&self) -> Vec<&Bus> {
        vec![&self.bus]
    }
}
