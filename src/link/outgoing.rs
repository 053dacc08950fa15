//! Control messages on their way out: nobody waits for a peer that does not read.
//!
//! What the socket does not take is kept, in order, and sent by the quiet thread once there is
//! room. A peer that lets more wait than any honest one would is given up.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::sys::socket::Socket;

/// The most bytes of control messages that wait for a peer.
const MOST: usize = 16 << 20;

/// Why a control message was not taken.
#[derive(Debug)]
pub(super) enum Unsent {
    /// The last message was said already.
    Ended,
    /// The peer lets so many bytes wait.
    Deaf(usize),
    /// What the system said.
    System(#[allow(dead_code)] io::Error),
}

/// See the module.
#[derive(Default)]
pub(super) struct Outgoing {
    waiting: VecDeque<Parcel>,
    bytes: usize,
    /// Something waited, and whoever waits for it was not told that it was sent.
    owes_look: bool,
    ended: bool,
}

/// What a control message carries.
pub(super) type Descriptor = Arc<dyn AsFd + Send + Sync>;

/// A control message, and the descriptor that goes with it.
struct Parcel {
    bytes: Vec<u8>,
    descriptor: Option<Descriptor>,
}

impl Parcel {
    fn send(&self, socket: &Socket) -> io::Result<()> {
        socket.send(&self.bytes, self.descriptor.as_ref().map(|d| d.as_fd()))
    }
}

impl Outgoing {
    /// Sends a message, now or as soon as the socket takes it.
    pub(super) fn send(
        &mut self,
        socket: &Socket,
        bytes: Vec<u8>,
        descriptor: Option<Descriptor>,
    ) -> Result<(), Unsent> {
        if self.ended {
            return Err(Unsent::Ended);
        }
        if self.bytes + bytes.len() > MOST {
            return Err(Unsent::Deaf(self.bytes));
        }
        self.bytes += bytes.len();
        self.waiting.push_back(Parcel { bytes, descriptor });
        let flushed = self.flush(socket).map_err(Unsent::System)?;
        self.owes_look |= !flushed;
        Ok(())
    }

    /// Sends the last message: what waits before it will not be sent any more.
    pub(super) fn end(&mut self, socket: &Socket, bytes: Vec<u8>) {
        self.waiting.clear();
        self.bytes = 0;
        // A peer that is gone does not need to be told.
        let _ = self.send(socket, bytes, None);
        self.ended = true;
    }

    /// Sends what waits, as far as the socket takes it; true where nothing waits any more.
    pub(super) fn flush(&mut self, socket: &Socket) -> io::Result<bool> {
        while let Some(first) = self.waiting.front() {
            match first.send(socket) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                sent => {
                    self.bytes -= first.bytes.len();
                    self.waiting.pop_front();
                    sent?;
                }
            }
        }
        Ok(true)
    }

    /// How many bytes wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits any more that others wait for: once each time.
    pub(super) fn take_look(&mut self) -> bool {
        !self.waits() && std::mem::take(&mut self.owes_look)
    }

    /// True while something is to be done as soon as the socket takes more.
    pub(super) fn is_due(&self) -> bool {
        self.waits() || self.owes_look
    }

    /// True while something waits.
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_socket_does_not_take_waits_in_order() {
        let (near, far) = Socket::pair().unwrap();
        let mut outgoing = Outgoing::default();
        let mut sent = 0u32;
        while !outgoing.waits() || sent % 100 != 0 {
            let bytes = sent.to_le_bytes().to_vec();
            outgoing.send(&near, bytes, None).unwrap();
            sent += 1;
        }
        let mut buffer = [0; 64];
        let mut next = 0u32;
        while next < sent {
            match far.receive(&mut buffer) {
                Ok(Some((4, _))) => {
                    assert_eq!(buffer[..4], next.to_le_bytes());
                    next += 1;
                }
                other => assert_eq!(other.unwrap_err().kind(), io::ErrorKind::WouldBlock),
            }
            outgoing.flush(&near).unwrap();
        }
        assert!(!outgoing.waits());
    }

    #[test]
    fn a_peer_that_never_reads_is_given_up_and_still_told() {
        let (near, far) = Socket::pair().unwrap();
        let mut outgoing = Outgoing::default();
        let refused = loop {
            if let Err(refused) = outgoing.send(&near, vec![7; 60_000], None) {
                break refused;
            }
        };
        assert!(matches!(refused, Unsent::Deaf(waiting) if waiting > MOST - 60_000));
        outgoing.end(&near, vec![9]);
        assert!(outgoing.waits(), "only the last message waits");
        let mut buffer = [0; 65_536];
        loop {
            outgoing.flush(&near).unwrap();
            match far.receive(&mut buffer).unwrap() {
                Some((1, _)) => break,
                other => assert_eq!(other.map(|(n, _)| n), Some(60_000)),
            }
        }
        assert!(matches!(
            outgoing.send(&near, vec![1], None),
            Err(Unsent::Ended)
        ));
    }
}
