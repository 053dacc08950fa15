//! How a sender waits for room.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::Outbox;
use crate::error::SendError;
use crate::sync::{Ordering, heavy_barrier};
use crate::sys::poll;
use crate::wait::{Patience, Step, Wait};

/// How many pauses lie between two looks for room.
const AWAY: usize = 8;

impl Outbox {
    /// Waits until the receiver hands something back.
    #[cold]
    pub(super) fn wait_for_room(
        &mut self,
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
            match patience.step() {
                Step::Again => {
                    // Each look takes the line from the receiver that is about to write it.
                    for _ in 0..AWAY {
                        std::hint::spin_loop();
                    }
                }
                Step::TimeUp => return Err(SendError::Full),
                Step::Sleep(timeout) => {
                    let block = self.parts.block.clone();
                    let starving = &block.starving;
                    // Relaxed: our own word; the barrier below orders it before our look.
                    let number = starving.load(Ordering::Relaxed) | 1;
                    starving.store(number, Ordering::Relaxed);
                    let odd = self.parts.sleeper.prepare();
                    // SYNC(starving): pairs with the fence in `HandBack::flip`.
                    heavy_barrier(false);
                    if !self.collect()? && !self.parts.line.is_closed() {
                        self.parts.sleeper.sleep(odd, timeout);
                        self.parts.sleeper.awake(odd);
                        starving.store(number.wrapping_add(1), Ordering::Relaxed);
                        continue;
                    }
                    self.parts.sleeper.awake(odd);
                    starving.store(number.wrapping_add(1), Ordering::Relaxed);
                    return Ok(());
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
