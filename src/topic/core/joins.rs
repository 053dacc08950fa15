//! How a publisher reaches those that subscribe, and what it does about those that it cannot reach.

use std::io::ErrorKind;
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};
use std::time::Instant;

use super::lanes::{Key, Lane, MOST_BEHIND, MOST_OPENING, Opening};
use super::{BUSY, Core};
use crate::error::{ConnectError, OpenError};
use crate::link::member::Member;
use crate::link::node::Node;
use crate::link::topics::Follow;
use crate::link::wire::Control;
use crate::link::{Line, lock};
use crate::service::connect::{Connected, open_lane_later};
use crate::wait::tasks::Drive;

impl Core {
    /// A lane was opened, or is not to be.
    pub(super) fn joined(&self, key: &Key, connected: Result<Connected, ConnectError>) {
        let is_lost = matches!(connected, Err(ConnectError::Lost { .. }));
        let failed = match &connected {
            // Nobody is there any more, or not over this link.
            Ok(_) | Err(ConnectError::NoServer { .. } | ConnectError::Lost { .. }) => None,
            Err(error) => Some((error.to_string(), is_lasting(error), pid_of(error))),
        };
        let joined = self.enter(|state| {
            let is_other = |opening: &Opening| opening.key != *key;
            let came = state.opening.iter().any(|o| !is_other(o) && o.came);
            state.opening.retain(is_other);
            let Ok(Connected { outbox, closer, .. }) = connected else {
                return Err(came || is_lost);
            };
            state.unreached.remove(&key.1);
            let joined = (outbox.link().clone(), closer.number());
            let mut lane = Lane {
                outbox,
                key: key.clone(),
                kept: None,
                missed: 0,
                _closer: closer,
            };
            if let Some(board) = &self.board {
                for segment in board.segments() {
                    // A link that cannot be told anything is given up.
                    let _ = lane.outbox.link().announce(&segment);
                }
            }
            for parcel in &state.history {
                if !lane.give(parcel, self.budget) {
                    self.ask(&mut state.tries, &mut lane.outbox);
                    lane.give_kept(self.budget);
                }
            }
            state.lanes.push(lane);
            Ok(joined)
        });
        match (joined, failed) {
            (Ok((link, lane)), _) => {
                let name = key.1.name();
                // A link that cannot be told anything is given up.
                let _ = link.say(&Control::Joined { name, lane });
            }
            (Err(came), Some((what, is_lasting, pid))) => {
                self.unreached(&key.1, came || !is_lasting, Some((pid, what)));
            }
            (Err(true), None) => self.unreached(&key.1, true, None),
            (Err(false), None) => self.gone(&key.1),
        }
        // Who waits for room looks again, and others are asked; not here, where the reader of the link holds its
        // lock.
        self.due.push(self.me.clone());
        self.settled.notify_all();
    }

    /// A subscriber could not be reached: says so once, and tries it again in a moment where that may help.
    pub(super) fn unreached(&self, member: &Member, is_tried: bool, told: Option<(u32, String)>) {
        let (is_new, is_timed) = self.enter(|state| {
            if state.unreached.len() >= MOST_BEHIND && !state.unreached.contains_key(member) {
                // As for those behind: no bus has so many.
                return (false, true);
            }
            let before = state.unreached.insert(member.clone(), is_tried);
            (before.is_none(), before == Some(true))
        });
        if let (true, Some((pid, what)), Some(node)) = (is_new, told, self.node.upgrade()) {
            node.report(pid, what);
        }
        // One timer for each, however often it comes.
        if is_tried && !is_timed {
            let again = Again(self.me.clone(), Some(member.clone()));
            let waker = Waker::from(Arc::new(again));
            self.due.set_timer(Instant::now() + BUSY, waker);
        }
    }

    /// A subscriber is not there any more.
    pub(super) fn gone(&self, member: &Member) {
        lock(&self.state).unreached.remove(member);
    }
}

/// Whether it will fail again for the same reason.
fn is_lasting(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Layout { .. })
}

/// The process at the other end, where that is known.
fn pid_of(error: &ConnectError) -> u32 {
    match error {
        ConnectError::Layout { pid, .. } | ConnectError::NoAnswer { pid, .. } => *pid,
        _ => std::process::id(),
    }
}

/// Has a publisher look around again, or for a subscriber that could not be reached.
pub(super) struct Again(pub(super) Weak<Core>, pub(super) Option<Member>);

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        let Some(core) = self.0.upgrade() else {
            return;
        };
        match (&self.1, core.node.upgrade()) {
            (Some(member), Some(node)) => {
                if let Some(is_tried) = lock(&core.state).unreached.get_mut(member) {
                    *is_tried = false;
                }
                core.clone().found(&node, member);
                core.settled.notify_all();
            }
            _ => {
                lock(&core.state).tries = false;
                core.drive();
            }
        }
    }
}

/// Whether a connection that failed so found nobody.
fn is_gone(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

/// Whether somebody was found who is too busy, or is leaving: it is looked for again, and is gone by then or is not.
fn is_passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::BrokenPipe)
}

impl Follow for Core {
    fn found(self: Arc<Self>, node: &Arc<Node>, member: &Member) {
        let link = match node.link_of(member) {
            Ok(Some(link)) => link,
            Ok(None) => return self.gone(member),
            Err(OpenError::System { source, .. }) if is_gone(source.kind()) => {
                return self.gone(member);
            }
            Err(OpenError::System { source, .. }) if is_passing(source.kind()) => {
                return self.unreached(member, true, None);
            }
            // For want of a descriptor, say.
            Err(error) => {
                let told = (std::process::id(), error.to_string());
                return self.unreached(member, true, Some(told));
            }
        };
        let key: Key = (link.token(), member.clone());
        let line = Line::new(self.sleeper.clone());
        let is_new = self.enter(|state| {
            let mut open = state
                .lanes
                .iter()
                .filter(|lane| !lane.outbox.line().is_closed());
            let known = open.any(|lane| lane.key == key)
                || state.opening.iter_mut().any(|opening| {
                    let is_it = opening.key == key && !opening.line.is_closed();
                    opening.came |= is_it;
                    is_it
                });
            if known {
                return false;
            }
            if state.opening_over(key.0) >= MOST_OPENING {
                // More than a link can have lanes come from a peer that only says so.
                if state.behind.len() < MOST_BEHIND {
                    state.behind.insert(key.clone());
                }
                return false;
            }
            let (key, line) = (key.clone(), line.clone());
            let came = false;
            state.opening.push(Opening { key, line, came });
            true
        });
        if !is_new {
            return;
        }
        let (core, joining) = (self.me.clone(), key.clone());
        let opened = open_lane_later(
            node,
            &link,
            (&member.name(), self.number),
            &self.contract,
            (self.sleeper.clone(), line),
            self.board.as_ref(),
            move |connected| {
                if let Some(core) = core.upgrade() {
                    core.joined(&joining, connected);
                }
            },
        );
        if let Err(error) = opened {
            self.joined(&key, Err(error));
        }
    }
}
