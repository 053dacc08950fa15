//! How a set finds who is ready, and sleeps.
//!
//! What costs something is a source that has something; one that has nothing is not looked at. A port is
//! *awake* when it is to be looked at: it was added, woken, or had something when it was last looked
//! at. It falls asleep when it leaves a waker behind, after a last look that found nothing. A descriptor is
//! for the kernel to look at.
//!
//! The thread tells of sources in *rounds*: of each that is ready once, in their order, and then looks anew. So
//! whoever is always ready shuts out nobody.
//!
//! # Why no source is missed
//!
//! The thread sleeps in the kernel's set only when no port is awake and none is in the list of the
//! woken, which is looked at under the lock by which it says that it sleeps (`wait::sources`). Each port that
//! is asleep has kept a waker, and has looked once more behind a barrier, with all its lanes armed
//! (`Hub::listen`): what comes behind that rings, whoever takes a ring drives the port, and that wakes
//! the waker. An end of the bus drives the port, too, and so does the end of the port. The waker is kept until
//! it is woken.
//!
//! Rings come to the set itself while it sleeps: the chimes of the bus are in it, and the thread says that
//! it drives. Before it stops that, it has taken what the kernel told of, and from then on the
//! quiet thread looks (`wait::rings`). What either of them drives comes by the list.

use std::hash::Hash;
use std::time::{Duration, Instant};

use super::slots::{Key, Kind};
use super::{Event, RINGS, WOKEN, WaitSet};
use crate::error::OpenError;
use crate::wait::Wait;
use crate::wait::sources::Readiness;

/// How often the ports that are awake are looked at, all of them together, before they fall asleep.
const LOOKS: usize = 500;
/// After so many of those looks, the list of the woken is looked at.
const GLANCE: usize = 32;
/// How many ports a thread that never sleeps goes on looking at.
const MOST_SPUN: usize = 4;
/// After so many rounds in which some port was ready, rings are looked for, too.
const TURN: u32 = 32;

impl<T: Copy + Eq + Hash> WaitSet<T> {
    /// Waits for an event until a deadline, if there is one.
    pub(super) fn wait_until(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<Event<T>>, OpenError> {
        self.bus.node().check_fork()?;
        loop {
            if let Some(event) = self.tell() {
                return Ok(Some(event));
            }
            if self.slots.is_empty() {
                return Ok(None);
            }
            self.look()?;
            if !self.round.is_empty() {
                continue;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.ask(Some(Duration::ZERO))?;
                self.look_at_ports();
                return Ok(self.tell());
            }
            if self.wait == Wait::Park || !self.poll() {
                self.sleep(deadline)?;
            }
        }
    }

    /// The next source of this round.
    fn tell(&mut self) -> Option<Event<T>> {
        loop {
            let (key, has_ended) = self.round.pop_front()?;
            // It may have been removed meanwhile.
            let Some(source) = self.slots.get_mut(key) else {
                continue;
            };
            let token = source.token;
            if !has_ended {
                return Some(Event::Ready(token));
            }
            self.remove(token);
            return Some(Event::Ended(token));
        }
    }

    /// Begins a round: looks at who may be ready, once.
    fn look(&mut self) -> Result<(), OpenError> {
        self.look_at_ports();
        self.turn += 1;
        // Where nobody is ready they are asked for soon. Rings come by the quiet thread as well, unless somebody
        // has a driver and does not dispatch it.
        let has_turn = self.turn >= TURN || self.descriptors > 0 && self.turn > 1;
        if has_turn && !self.round.is_empty() {
            self.ask(Some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// Looks at the ports that are awake, and at those that were woken.
    fn look_at_ports(&mut self) {
        // As many as there are now: who is woken without end shuts out nobody.
        for _ in 0..self.woken.len() {
            let Some(key) = self.woken.take().map(Key::of) else {
                break;
            };
            match self.slots.get_mut(key).map(|source| &mut source.kind) {
                Some(Kind::Port { is_awake, .. }) if !*is_awake => {
                    *is_awake = true;
                    self.awake.push(key);
                }
                Some(Kind::Waker) => self.round.push_back((key, false)),
                // Of one that was removed, or is awake.
                _ => {}
            }
        }
        let mut awake = std::mem::take(&mut self.awake);
        awake.retain(|&key| {
            let readiness = self.look_at(key, false);
            readiness == Some(Readiness::Nothing)
        });
        awake.append(&mut self.busy);
        self.awake = awake;
    }

    /// Looks at one port, if it is still there. If it is to fall asleep, it does where there is nothing.
    fn look_at(&mut self, key: Key, sleeps: bool) -> Option<Readiness> {
        let source = self.slots.get_mut(key)?;
        let Kind::Port {
            port,
            waker,
            is_awake,
        } = &mut source.kind
        else {
            return None;
        };
        let readiness = port.poll_ready(sleeps.then_some(waker));
        match readiness {
            Readiness::Ready => {
                self.round.push_back((key, false));
                self.busy.push(key);
            }
            Readiness::Nothing => *is_awake = !sleeps,
            Readiness::Ended => self.round.push_back((key, true)),
        }
        Some(readiness)
    }

    /// Looks for some microseconds at the ports that are awake, as messages often follow each other. True where
    /// it found something.
    fn poll(&mut self) -> bool {
        let ports = self.awake.len();
        for look in 0..if ports > 0 { LOOKS } else { 0 } {
            let key = self.awake[look % ports];
            if !matches!(self.look_at(key, false), Some(Readiness::Nothing)) {
                self.awake.swap_remove(look % ports);
                self.awake.append(&mut self.busy);
                return true;
            }
            if look % GLANCE == 0 && self.woken.len() > 0 {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Lets the ports fall asleep that have nothing, but for a few of a thread that never sleeps.
    fn let_sleep(&mut self) {
        let stay = if self.wait == Wait::Spin {
            MOST_SPUN
        } else {
            0
        };
        let mut awake = std::mem::take(&mut self.awake);
        let fall_asleep = awake.len().saturating_sub(stay);
        for key in awake.drain(..fall_asleep) {
            self.look_at(key, true);
        }
        awake.append(&mut self.busy);
        self.awake = awake;
    }

    /// Lets the ports fall asleep, and sleeps until a source is ready, or something is to be looked at.
    fn sleep(&mut self, deadline: Option<Instant>) -> Result<(), OpenError> {
        const NOW: Option<Duration> = Some(Duration::ZERO);
        if self.wait == Wait::Spin {
            self.let_sleep();
            return self.ask(NOW);
        }
        let bus = self.bus.clone();
        // Before the ports ask to be rung, so that the rings come here.
        let driving = bus.node().due().rings.drive();
        self.let_sleep();
        let timeout = match self.round.is_empty() && self.woken.fall_asleep() {
            true => deadline.map(|at| at.saturating_duration_since(Instant::now())),
            false => NOW,
        };
        let asked = self.ask(timeout);
        // Only now, so that the quiet thread need not wake for what was just taken.
        drop(driving);
        self.woken.wake_up();
        asked
    }

    /// Asks the kernel for descriptors that are ready, and takes the rings of the bus.
    fn ask(&mut self, timeout: Option<Duration>) -> Result<(), OpenError> {
        self.turn = 0;
        self.set
            .wait(&mut self.said, timeout)
            .map_err(OpenError::system("wait for descriptors"))?;
        for &number in &self.said {
            match number {
                WOKEN => self.woken.clear(),
                RINGS => drop(self.bus.node().take_rings()),
                number => self.round.push_back((Key::of(number), false)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
