//! Control messages as they come: read a few at a time, checked, and handled one by one.

use std::io;
use std::sync::Arc;

use super::lacking::{Read, Reading};
use super::member::Member;
use super::node::{Node, Reach};
use super::offer::Asked;
use super::wire::{self, Control, Refusal};
use super::{LaneId, Link, lock, place};
use crate::error::Fault;
use crate::memory::layout::LAYOUT_VERSION;
use crate::sync::Ordering;
use crate::sys::socket::Descriptors;
use crate::sys::user_id;

/// The most names of ports, and of those who take part in topics, that are remembered of one peer.
const MOST_NAMES: usize = 65_536;
/// How many control messages are read before others get their turn.
const TURN: usize = 64;

impl Link {
    /// Reads and handles control messages that have come. Called by the quiet thread, and by
    /// whoever cannot wait for it.
    pub(super) fn pump(&self) -> Read {
        let node = self.node.upgrade();
        let mut reading = lock(&self.reading);
        let mut read = node.map_or(Read::All, |node| self.take_turn(&node, &mut reading));
        if self.is_dead() {
            read = self.take_late(&mut reading);
        }
        // Links are many, control messages few.
        reading.buffer = Vec::new();
        read
    }

    fn take_turn(&self, node: &Arc<Node>, reading: &mut Reading) -> Read {
        for _ in 0..TURN {
            if self.is_dead() {
                return Read::All;
            }
            match self.peek(node, &mut reading.buffer) {
                Ok(Some((n, fds))) => {
                    let control = wire::decode(&reading.buffer[..n]);
                    let is_segment = matches!(control, Ok(Control::Segment { .. }));
                    if is_segment && self.has_said_hello() && reading.holds(&fds) {
                        return Read::Held;
                    }
                    self.socket.take();
                    let handled = control.and_then(|c| self.handle(node, c, fds));
                    if let Err(fault) = handled {
                        self.die(Some(fault));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Read::All,
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    self.die(Some(Fault::Control { what: "too long" }));
                }
                Ok(None) => self.free(),
                // Only the end of the stream promises that nobody looks any more.
                Err(_) => self.die(None),
            }
        }
        Read::Some
    }

    /// The kernel says by which user the first message was sent: until then nothing is said of us, nor believed.
    pub(super) fn ask_who(&self) {
        // Relaxed: nobody reads from the socket yet.
        self.is_unknown.store(true, Ordering::Relaxed);
    }

    /// Looks at the next control message. The first one of a peer that is not known yet has to be that of a user who is
    /// let in, as everything waits for it; the kernel says who sent it.
    fn peek(&self, node: &Node, buffer: &mut Vec<u8>) -> io::Result<Option<(usize, Descriptors)>> {
        // Relaxed: it is changed by who reads, under the lock of `reading`.
        if !self.is_unknown.load(Ordering::Relaxed) {
            return self.socket.peek(buffer, wire::MOST_BYTES);
        }
        let Some((n, fds, theirs)) = self.socket.peek_from(buffer, wire::MOST_BYTES)? else {
            return Ok(None);
        };
        if !node.lets_in(theirs) {
            let ours = user_id();
            self.die(Some(Fault::User { theirs, ours }));
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.is_unknown.store(false, Ordering::Relaxed);
        self.socket.set_pass_credentials(false)?;
        Ok(Some((n, fds)))
    }

    /// Takes the segments that the peer had announced when the link died, of what was not read: messages refer to
    /// them that were there before, and pins. All else comes too late.
    fn take_late(&self, reading: &mut Reading) -> Read {
        /// More than an honest peer has announced and not seen read.
        const MOST_LATE: usize = 4096;
        // Relaxed: as in `peek`.
        if self.fault().is_some() || self.is_unknown.load(Ordering::Relaxed) {
            return Read::All;
        }
        for _ in 0..MOST_LATE {
            let Ok(Some((n, descriptors))) =
                self.socket.peek(&mut reading.buffer, wire::MOST_BYTES)
            else {
                return Read::All;
            };
            let control = wire::decode(&reading.buffer[..n]);
            if matches!(control, Ok(Control::Segment { .. })) && reading.holds(&descriptors) {
                return Read::Held;
            }
            self.socket.take();
            if let Ok(Control::Bye) = control {
                self.ending.say_bye();
            }
            let (Ok(Control::Segment { id, len }), Descriptors::Came(fds)) = (control, descriptors)
            else {
                continue;
            };
            if let [fd] = &fds[..] {
                // One that cannot be mapped is not found by whoever looks for it.
                let _ = self.mapped.add(id, len, fd);
            }
        }
        Read::All
    }

    fn handle(
        &self,
        node: &Arc<Node>,
        control: Control,
        descriptors: Descriptors,
    ) -> Result<(), Fault> {
        let mut fds = match (descriptors, &control) {
            (Descriptors::Came(fds), _) => fds,
            (Descriptors::Lacking, Control::Bell { bell }) if self.has_said_hello() => {
                // It is rung by control messages, then.
                self.rings.lack(*bell);
                return Ok(());
            }
            (Descriptors::Lacking, _) => {
                let what = "no descriptor is left for what it sent: raise the limit (`ulimit -n`)";
                node.report(self.pid(), what.to_owned());
                self.die(None);
                return Ok(());
            }
        };
        let carries = matches!(control, Control::Segment { .. } | Control::Bell { .. });
        if fds.len() != usize::from(carries) {
            let what = "without, or with too many, descriptors";
            return Err(Fault::Control { what });
        }
        if !self.has_said_hello() && !matches!(control, Control::Hello { .. } | Control::Bye) {
            return Err(Fault::Control {
                what: "not a hello",
            });
        }
        let id = |ours, number| LaneId { ours, number };
        match control {
            Control::Hello { layout, barrier } => self.greeted(layout, barrier)?,
            Control::Segment { id, len } => self.mapped.add(id, len, &fds[0])?,
            // Whoever means harm can have an eventfd block who writes to it: it is rung by control messages.
            Control::Bell { bell } if self.copies.is_some() => self.rings.lack(bell),
            Control::Bell { bell } => self.rings.take(bell, fds.swap_remove(0))?,
            Control::Retired { id } => self.mapped.remove(id)?,
            Control::Open {
                lane,
                name,
                from,
                types,
                end,
            } => {
                let asked = Asked { types, end, from };
                let answer = match node.link(self.token) {
                    Some(me) => node.accept(&me, id(false, lane), &name, asked)?,
                    None => Err(Refusal::NoServer),
                };
                let _ = self.say(&match answer {
                    Ok(end) => Control::Opened { lane, end },
                    Err(why) => Control::Refused { lane, why },
                });
            }
            Control::Opened { lane, end } => self.answered(lane, Ok(end))?,
            Control::Refused { lane, why } => self.answered(lane, Err(why))?,
            Control::Differs { name, schemas } => node.differs(self.pid(), &name, &schemas),
            Control::Closed { lane, mine } => self.closed(id(!mine, lane)),
            Control::Released { lane, mine } => self.released(id(!mine, lane)),
            Control::Ring { bell } => node.rouse(bell),
            Control::Serving { name } => {
                self.serves(name.clone())?;
                if matches!(node.reach(), Reach::Inherited) {
                    match Member::parse(&name) {
                        Some(member) => node.came(&member),
                        None => node.offered(Some(&name)),
                    }
                }
            }
            Control::Gone { name } => drop(self.state().serving.remove(&name)),
            Control::Joined { name, lane } => node.joined(&name, (self.token, lane)),
            Control::Bye => {
                self.ending.say_bye();
                self.die(None);
            }
        }
        Ok(())
    }

    fn greeted(&self, layout: u32, barrier: bool) -> Result<(), Fault> {
        if layout != LAYOUT_VERSION {
            return Err(Fault::Control {
                what: "of another layout of shared memory",
            });
        }
        let both = barrier && crate::sys::membarrier::register();
        self.ending.know(|| self.socket.process());
        let state = self.state();
        self.asymmetric.set(both).map_err(|_| Fault::Control {
            what: "a second hello",
        })?;
        self.tell(state);
        Ok(())
    }

    fn serves(&self, name: String) -> Result<(), Fault> {
        if Member::parse(&name).is_none() && place::check_name(&name).is_err() {
            let what = "a name that none can be";
            return Err(Fault::Control { what });
        }
        let mut state = self.state();
        if state.serving.len() >= MOST_NAMES && !state.serving.contains(&name) {
            return Err(Fault::Control {
                what: "one of too many names",
            });
        }
        state.serving.insert(name);
        drop(state);
        // No task waits for that here.
        self.changed.notify_all();
        Ok(())
    }

    fn closed(&self, id: LaneId) {
        let (line, freed) = self.state().lanes.closed(id);
        drop(freed);
        if let Some(line) = line {
            line.close();
        }
    }

    fn released(&self, id: LaneId) {
        let freed = self.state().lanes.released(id);
        drop(freed);
    }
}
