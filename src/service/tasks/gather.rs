//! How a stream gathers small items, so that its reader is woken once for many.
//!
//! Items are published as ever, in order. What is put off is the ring for a caller that sleeps: the
//! first item rings, and the next ring comes when the window is over, or when anything else is sent on
//! the lane, such as the last word on a call. A caller that is awake finds all of them at once.

use std::sync::{Arc, Mutex, Weak};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use super::call::Answers;
use crate::error::SendError;
use crate::lane::Outbox;
use crate::link::lock;
use crate::wait::tasks::Due;

/// How a call gathers.
pub(super) struct Gather {
    window: Duration,
    state: Mutex<State>,
}

/// Where it stands with that.
#[derive(Default)]
struct State {
    /// Until when rings are put off.
    until: Option<Instant>,
    /// Whether somebody was asked to ring then.
    is_timed: bool,
}

/// Puts off the rings of an outbox until this is dropped, also by an item that panics.
struct Quiet<'a>(&'a mut Outbox);

impl<'a> Quiet<'a> {
    fn begin(outbox: &'a mut Outbox, is_quiet: bool) -> Quiet<'a> {
        outbox.set_quiet(is_quiet);
        Quiet(outbox)
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.0.set_quiet(false);
    }
}

/// Rings at the end of a window.
struct Flush(Weak<Answers>, Weak<Gather>);

impl Gather {
    /// Begins with the next item, which goes at once.
    pub(super) fn new(window: Duration) -> Arc<Gather> {
        Arc::new(Gather {
            window,
            state: Mutex::default(),
        })
    }

    /// Sends an item, to where these answers go.
    pub(super) fn send(
        self: &Arc<Self>,
        (answers, outbox): (&Arc<Answers>, &mut Outbox),
        due: &Due,
        send: impl FnOnce(&mut Outbox) -> Result<(), SendError>,
    ) -> Result<(), SendError> {
        let now = Instant::now();
        let mut gather = lock(&self.state);
        let until = gather.until.filter(|until| now < *until);
        let sent = {
            let quiet = Quiet::begin(outbox, until.is_some());
            send(quiet.0)
        };
        match until {
            None if sent.is_ok() => gather.until = now.checked_add(self.window),
            None => {}
            // There is no room for more before what came was taken.
            Some(_) if matches!(sent, Err(SendError::Full)) => outbox.ring_owed(),
            Some(at) if outbox.owes_ring() && !gather.is_timed => {
                gather.is_timed = true;
                let flush = Flush(Arc::downgrade(answers), Arc::downgrade(self));
                // Never cleared: a ring that is not owed by then is not given.
                due.set_timer(at, Waker::from(Arc::new(flush)));
            }
            Some(_) => {}
        }
        sent
    }
}

impl Wake for Flush {
    fn wake(self: Arc<Self>) {
        let Some(answers) = self.0.upgrade() else {
            return;
        };
        let mut outbox = lock(&answers.outbox);
        // Also where the call gathers no more, or in another way: what was put off is still owed.
        outbox.ring_owed();
        if let Some(gather) = self.1.upgrade() {
            let mut state = lock(&gather.state);
            state.is_timed = false;
            // What comes next is of the next window.
            state.until = Instant::now().checked_add(gather.window);
        }
    }
}
