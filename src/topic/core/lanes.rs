//! What a publisher has of each subscriber: its lane, and what is kept for it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::lane::{Outbox, Parcel};
use crate::link::Line;
use crate::link::member::Member;
use crate::service::connect::Closer;
use crate::wait::tasks::{Later, Wakers};

/// The most lanes that are being opened over one link: each takes memory, and a peer may never answer.
pub(super) const MOST_OPENING: usize = 64;
/// The most who are to be asked later, or tried again.
pub(super) const MOST_BEHIND: usize = 1 << 16;
/// After so many messages in blocks, each lane has looked what came back.
const ROUND: usize = 16;

pub(super) struct State {
    pub(super) lanes: Vec<Lane>,
    pub(super) opening: Vec<Opening>,
    /// Who is asked once others of the same link have answered.
    pub(super) behind: HashSet<Key>,
    /// Subscribers that could not be reached; and whether that is tried again in a moment.
    pub(super) unreached: HashMap<Member, bool>,
    /// What those get who come later; how many messages that are at most, and how many bytes of blocks it is.
    pub(super) history: VecDeque<Parcel>,
    pub(super) depth: usize,
    pub(super) history_bytes: usize,
    /// The lane that has looked last what came back, and how many looks are due, in `ROUND`ths.
    pub(super) turn: usize,
    pub(super) looks: usize,
    /// Whether a timer has lanes tried again for which no ring will come.
    pub(super) tries: bool,
    pub(super) room: Wakers,
    pub(super) later: Later,
}

/// Names a subscriber: its link, and its name there.
pub(super) type Key = (u64, Member);

/// A lane that a subscriber was asked for.
pub(super) struct Opening {
    pub(super) key: Key,
    pub(super) line: Arc<Line>,
    /// Whether somebody came under this name since: another one, perhaps, than who was asked.
    pub(super) came: bool,
}

/// The lane to one subscriber.
pub(super) struct Lane {
    pub(super) outbox: Outbox,
    pub(super) key: Key,
    /// The newest message, for which there was no room, and how many before it there was none for.
    pub(super) kept: Option<Parcel>,
    pub(super) missed: u64,
    /// Behind the outbox: once it is dropped, nothing more may be sent.
    pub(super) _closer: Closer,
}

impl State {
    /// Whether somebody is about to be reached.
    pub(super) fn is_joining(&self) -> bool {
        let mut unreached = self.unreached.values();
        !self.opening.is_empty() || !self.behind.is_empty() || unreached.any(|&is_tried| is_tried)
    }

    /// How many lanes are being opened over a link.
    pub(super) fn opening_over(&self, link: u64) -> usize {
        let over = |opening: &&Opening| opening.key.0 == link && !opening.line.is_closed();
        self.opening.iter().filter(over).count()
    }

    /// Takes those that are to be asked now; and whether others may be the next time.
    pub(super) fn take_behind(&mut self) -> (Vec<Member>, bool) {
        let mut counts = HashMap::new();
        let mut next = Vec::new();
        let mut behind = std::mem::take(&mut self.behind);
        behind.retain(|(link, member)| {
            let count = counts
                .entry(*link)
                .or_insert_with(|| self.opening_over(*link));
            let is_next = *count < MOST_OPENING;
            if is_next {
                *count += 1;
                next.push(member.clone());
            }
            !is_next
        });
        self.behind = behind;
        let are_more = !next.is_empty() && !self.behind.is_empty();
        (next, are_more)
    }

    /// Has some lanes look what came back, others the next time: so that blocks return before they are missed,
    /// and no message costs the look at all lanes.
    pub(super) fn take_some_back(&mut self) {
        let count = self.lanes.len();
        self.looks += count;
        while self.looks >= ROUND {
            self.looks -= ROUND;
            self.turn = (self.turn + 1) % count;
            // A lane that ends is found closed by whoever sends on it next.
            let _ = self.lanes[self.turn].outbox.take_back();
        }
    }

    /// Keeps a message for those who come later: of the newest as many as they get, and as fit in so many bytes.
    pub(super) fn remember(&mut self, parcel: &Parcel, most: usize) {
        self.history_bytes += parcel.block_len();
        self.history.push_back(parcel.clone());
        while self.history.len() > self.depth || self.history_bytes > most {
            self.forget_oldest();
        }
    }

    pub(super) fn forget_oldest(&mut self) -> bool {
        let oldest = self.history.pop_front();
        self.history_bytes -= oldest.as_ref().map_or(0, Parcel::block_len);
        oldest.is_some()
    }
}

impl Lane {
    /// Whether there is room for a message, and nothing older is kept.
    pub(super) fn is_free(&mut self, parcel: &Parcel, budget: usize) -> bool {
        // One that ended is passed over.
        self.give_kept(budget) && self.outbox.has_room(parcel, 0, budget).unwrap_or(true)
    }

    /// Sends a message; or keeps it as the newest, and returns false.
    #[inline]
    pub(super) fn give(&mut self, parcel: &Parcel, budget: usize) -> bool {
        self.outbox.offer();
        if self.give_kept(budget) {
            match self.outbox.has_room(parcel, 0, budget) {
                Ok(true) => match self.outbox.send_parcel(parcel) {
                    Ok(true) | Err(_) => return true,
                    Ok(false) => {}
                },
                // It has ended: nobody is there to get it.
                Err(_) => return true,
                Ok(false) => {}
            }
        }
        self.keep(parcel);
        false
    }

    /// As [`give`](Self::give), where it was just found to be [free](Self::is_free).
    #[inline]
    pub(super) fn give_free(&mut self, parcel: &Parcel) -> bool {
        self.outbox.offer();
        // One that has ended is passed over.
        if let Ok(false) = self.outbox.send_parcel(parcel) {
            self.keep(parcel);
            return false;
        }
        true
    }

    #[cold]
    fn keep(&mut self, parcel: &Parcel) {
        let before = self.kept.replace(parcel.clone());
        self.missed += u64::from(before.is_some());
    }

    /// Sends what is kept, and before it how many were missed; true where nothing is kept any more.
    pub(super) fn give_kept(&mut self, budget: usize) -> bool {
        let Some(kept) = &self.kept else {
            return true;
        };
        let notes = usize::from(self.missed > 0);
        match self.outbox.has_room(kept, notes, budget) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(_) => return true,
        }
        if self.missed > 0 && matches!(self.outbox.say_missed(self.missed), Ok(true)) {
            self.missed = 0;
        }
        if self.missed == 0 && matches!(self.outbox.send_parcel(kept), Ok(true)) {
            self.kept = None;
        }
        self.kept.is_none()
    }
}
