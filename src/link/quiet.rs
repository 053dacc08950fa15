//! The quiet thread of a bus: it sleeps until a link has something to say, somebody connects, or the bus is dropped.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answers::HANDSHAKE;
use super::lacking::SHORT;
use super::lock;
use super::node::{EVENT, LISTENER, MEMBERS, Node, RINGS};
use crate::error::OpenError;
use crate::sync::Ordering;
use crate::wait::tasks::Drive;

/// How often rings are looked at before others have their turn.
const RING_TURNS: usize = 16;

impl Node {
    /// See the module.
    pub(super) fn run(self: Arc<Self>) {
        super::ending::wait_never();
        let mut ready = Vec::new();
        let mut strangers: Vec<(u64, Instant)> = Vec::new();
        let mut is_crowd = false;
        let mut sees_all = true;
        // SYNC(quits): Acquire; pairs with Release in `stop`.
        while !self.quits.load(Ordering::Acquire) {
            let timer = self.due().next_timer();
            let timer = timer.map(|at| at.saturating_duration_since(Instant::now()));
            let patience = (!strangers.is_empty()).then_some(Duration::from_millis(100));
            let timeout = timer
                .into_iter()
                .chain(patience)
                .chain(self.late_ends())
                .chain((!sees_all).then_some(SHORT))
                .min();
            if self.epoll.wait(&mut ready, timeout).is_err() {
                break;
            }
            let mut is_short = false;
            for &token in &ready {
                match token {
                    EVENT => self.due().event.clear(),
                    LISTENER => {
                        let welcomed = self.welcome(&mut strangers);
                        is_short |= welcomed.is_err();
                        self.tell_of_crowd(welcomed, &mut is_crowd);
                    }
                    RINGS => drop(self.take_rings()),
                    MEMBERS => sees_all &= self.look_for_members(),
                    token => match self.link(token) {
                        Some(link) => is_short |= link.tend(),
                        None => self.bury(token),
                    },
                }
            }
            if !sees_all {
                sees_all = self.look_for_all_members();
            }
            self.due().run();
            if is_short {
                // No descriptor is left: who waits for one waits on, and so do we.
                std::thread::sleep(SHORT);
            }
            strangers.retain(|&(token, deadline)| match self.link(token) {
                Some(link) if link.has_said_hello() => false,
                Some(link) if Instant::now() >= deadline => {
                    // It may be stopped, or be killed and not cleared up yet: that is no lie.
                    let what = format!("it has connected, and said no hello within {HANDSHAKE:?}");
                    self.report(link.pid(), what);
                    link.die(None);
                    false
                }
                other => other.is_some(),
            });
        }
    }

    /// Adopts who has connected, as long as descriptors are left.
    fn welcome(self: &Arc<Self>, strangers: &mut Vec<(u64, Instant)>) -> io::Result<()> {
        let Some(listener) = lock(&self.listener).clone() else {
            return Ok(());
        };
        loop {
            let Some(socket) = listener.accept()? else {
                return Ok(());
            };
            match self.adopt(socket) {
                Ok(link) => strangers.push((link.token(), Instant::now() + HANDSHAKE)),
                Err(OpenError::Peer { pid, problem }) => self.report(pid, problem),
                Err(_) => {}
            }
        }
    }

    /// Reports that connections wait: once, until none does any more.
    fn tell_of_crowd(&self, welcomed: io::Result<()>, is_crowd: &mut bool) {
        let was_crowd = std::mem::replace(is_crowd, welcomed.is_err());
        if let (Err(error), false) = (welcomed, was_crowd) {
            let what = format!("cannot accept a connection: {error}");
            self.report(std::process::id(), what);
        }
    }
}

impl Drive for Node {
    /// Drives the ports whose tasks peers rang for.
    fn drive(&self) -> bool {
        let mut bells = Vec::new();
        for _ in 0..RING_TURNS {
            let Ok(more) = self.due().rings.ready(&mut bells) else {
                return false;
            };
            for &bell in &bells {
                let sleeper = u32::try_from(bell).ok().and_then(|bell| self.sleeper(bell));
                sleeper.into_iter().for_each(|sleeper| sleeper.drive());
            }
            if !more {
                return false;
            }
        }
        true
    }
}
