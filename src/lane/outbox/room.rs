//! How a sender waits for room.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::{Outbox, To};
use crate::error::SendError;
use crate::sys::poll;
use crate::wait::{Patience, Step, Wait};

/// How many pauses lie between two looks for room.
const AWAY: usize = 8;

impl Outbox {
    /// Waits until the receiver hands something back.
    #[cold]
    pub(super) fn wait_for_room(
        &mut self,
        to: To,
        wait: Wait,
        deadline: Option<Instant>,
    ) -> Result<(), SendError> {
        if self.is_stuck {
            return self.wait_for_socket(deadline);
        }
        let mut patience = Patience::new(wait, deadline);
        loop {
            if self.collect()? {
                return Ok(());
            }
            if self.parts.line.is_closed() {
                return Err(self.closed());
            }
            if self.is_cancelled(to.tag) {
                return Err(SendError::Cancelled);
            }
            match patience.step() {
                Step::Again => {
                    // Each look takes the line from the receiver that is about to write it.
                    for _ in 0..AWAY {
                        std::hint::spin_loop();
                    }
                }
                Step::TimeUp => return Err(SendError::Full),
                Step::Sleep(timeout) => {
                    let (block, sleeper) = (self.parts.block.clone(), self.parts.sleeper.clone());
                    let mut found = Ok(false);
                    sleeper.sleep_for_room(&block, timeout, self, |outbox| {
                        found = outbox.collect();
                        let is_over = outbox.parts.line.is_closed() || outbox.is_cancelled(to.tag);
                        !matches!(found, Ok(false)) || is_over
                    });
                    if found? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Waits until the peer has read enough of its socket.
    fn wait_for_socket(&mut self, deadline: Option<Instant>) -> Result<(), SendError> {
        /// After so long, the end of the link is looked for, too.
        const SLICE: Duration = Duration::from_millis(100);
        let link = &self.parts.link;
        while !link.flush() {
            let left = deadline.map_or(SLICE, |d| d.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(SendError::Full);
            }
            poll::writable(link.socket().as_fd(), left.min(SLICE));
            if self.parts.line.is_closed() {
                return Err(self.closed());
            }
        }
        self.is_stuck = false;
        Ok(())
    }
}
