//! Messages that go one way: any number of senders, one receiver.
//!
//! Unsafe code is needed to borrow a message that was just validated.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::Pod;

use super::connect::{Closer, Connected, Connecting, Joined, Wanted};
use super::contract::Contract;
use super::hub::Hub;
use super::port::HubPort;
use crate::bus::Shared as BusShared;
use crate::error::{ConnectError, Fault, ReceiveError, SendError};
use crate::lane::{Bulk, Bytes, Held, Message, Outbox, Role, To, View};
use crate::link::Until;
use crate::link::offer::Offer;
use crate::message::ShmMessage;
use crate::wait::{Wait, Waiter};

/// Receives what any number of senders send under one name, each sender's messages in order.
///
/// # Examples
///
/// ```
/// # use shmbus::{Bus, ShmMessage};
/// # #[derive(ShmMessage)]
/// # struct Moved { line: u32, column: u32 }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let bus = Bus::open("doc-receiver")?;
/// let mut receiver = bus.receiver::<Moved>("cursor")?;
/// let mut sender = bus.sender::<Moved>("cursor")?;
/// sender.send(&Moved { line: 3, column: 14 })?;
/// drop(sender);
/// let moved = receiver.next()?.expect("the bus is open");
/// assert_eq!((moved.line.to_native(), moved.column.to_native()), (3, 14));
/// # Ok(()) }
/// ```
pub struct Receiver<T: ShmMessage> {
    offer: Option<Offer>,
    hub: Hub,
    bus: Arc<BusShared>,
    _message: PhantomData<fn(T)>,
}

impl<T: ShmMessage> Receiver<T> {
    pub(crate) fn offer(bus: &Arc<BusShared>, name: &str) -> Result<Receiver<T>, ConnectError> {
        let node = bus.node();
        node.check_fork()?;
        let port = HubPort::new(node, name, Contract::one_way::<T>(), Waiter::Thread)?;
        let offer = node.offer(name, port.clone())?;
        let hub = Hub::new(port, node.config().wait);
        Ok(Receiver {
            offer: Some(offer),
            hub,
            bus: bus.clone(),
            _message: PhantomData,
        })
    }

    /// Chooses how this receiver waits.
    pub fn set_wait(&mut self, wait: Wait) {
        self.hub.wait = wait;
    }

    /// Waits for the next message of any sender.
    ///
    /// `None` once the bus was [closed](crate::Bus::close), or the parent of an inherited link is
    /// gone, and every message that came before was taken.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Forked`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # struct Moved { line: u32, column: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-receiver-next")?;
    /// let mut receiver = bus.receiver::<Moved>("cursor")?;
    /// let mut sender = bus.sender::<Moved>("cursor")?;
    /// sender.send(&Moved { line: 1, column: 2 })?;
    /// bus.close(); // what was sent is still received
    /// let mut lines = Vec::new();
    /// while let Some(moved) = receiver.next()? {
    ///     lines.push(moved.line.to_native());
    /// }
    /// assert_eq!(lines, [1]);
    /// # Ok(()) }
    /// ```
    #[inline]
    #[allow(clippy::should_implement_trait)] // it lends, and can fail
    pub fn next(&mut self) -> Result<Option<View<'_, T>>, ReceiveError> {
        self.take(|hub| hub.next(None).message())
    }

    /// As [`next`](Self::next), for at most so long: `None` also when the time is up.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Forked`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// use std::time::Duration;
    /// # #[derive(ShmMessage)]
    /// # struct Moved { line: u32, column: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-receiver-next-timeout")?;
    /// let mut receiver = bus.receiver::<Moved>("cursor")?;
    /// assert!(receiver.next_timeout(Duration::from_millis(1))?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<View<'_, T>>, ReceiveError> {
        let deadline = Instant::now().checked_add(timeout);
        self.take(|hub| hub.next(deadline).message())
    }

    /// Takes a message if one has come, at once.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Forked`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # struct Moved { line: u32, column: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-receiver-try-next")?;
    /// let mut receiver = bus.receiver::<Moved>("cursor")?;
    /// assert!(receiver.try_next()?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn try_next(&mut self) -> Result<Option<View<'_, T>>, ReceiveError> {
        self.take(|hub| hub.try_next())
    }

    #[inline(always)]
    fn take(
        &mut self,
        next: impl Fn(&mut Hub) -> Option<(usize, Message)>,
    ) -> Result<Option<View<'_, T>>, ReceiveError> {
        if self.bus.node().origin().is_forked() {
            return Err(ReceiveError::Forked);
        }
        let (number, message, archived) = loop {
            let Some((number, mut message)) = next(&mut self.hub) else {
                return Ok(None);
            };
            let mut inbox = self.hub.lane(number).inbox.borrow_mut();
            if message.record.role != Role::Message {
                inbox.refuse(Fault::Control {
                    what: "no message, on a lane of messages",
                });
                continue;
            }
            // An invalid message has ended its link; the next one may be fine.
            if let Some(archived) = inbox.validate::<T>(&mut message) {
                break (number, message, archived);
            }
        };
        let Message { record, segment } = message;
        let lane = self.hub.lane(number);
        let held = Held::new(&lane.inbox, &lane.held, record, segment);
        // SAFETY: 1. it is what validation of this very message returned.
        Ok(Some(unsafe { held.view::<T>(archived) }))
    }
}

impl<T: ShmMessage> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.offer = None;
    }
}

/// Sends messages one way, to the receiver of their name.
///
/// A sender is one lane. It goes to another thread, but is not shared by two:
/// [`try_clone`](Self::try_clone) makes a second one.
///
/// It outlives its receiver: one message fails with [`SendError::Closed`], which says that what the receiver had not
/// taken is lost. The next goes to whoever receives under this name then, if somebody does.
pub struct Sender<T: ShmMessage> {
    outbox: Outbox,
    name: String,
    wait: Wait,
    /// Whether its user knows that the receiver is gone, and with it what was under way.
    is_told: bool,
    closer: Closer,
    /// With the receiver's successor.
    connecting: Connecting,
    joined: Joined,
    bus: Arc<BusShared>,
    _message: PhantomData<fn(T)>,
}

impl<T: ShmMessage> Sender<T> {
    pub(crate) fn connect(
        bus: &Arc<BusShared>,
        name: &str,
        deadline: Option<Instant>,
    ) -> Result<Sender<T>, ConnectError> {
        let node = bus.node();
        let wanted = Wanted {
            node,
            name,
            contract: &Contract::one_way::<T>(),
            waiter: Waiter::Thread,
        };
        let Connected { outbox, closer, .. } = wanted.connect_first(deadline)?;
        Ok(Sender {
            outbox,
            name: name.to_owned(),
            wait: node.config().wait,
            is_told: false,
            closer,
            connecting: Connecting::default(),
            joined: None,
            bus: bus.clone(),
            _message: PhantomData,
        })
    }

    /// Chooses how this sender waits for room.
    pub fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
    }

    /// Makes another sender to the same receiver, with a lane of its own, for another thread.
    ///
    /// # Errors
    ///
    /// As [`Bus::sender`](crate::Bus::sender).
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # struct Moved { line: u32, column: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-sender-clone")?;
    /// let mut receiver = bus.receiver::<Moved>("cursor")?;
    /// let mut sender = bus.sender::<Moved>("cursor")?;
    /// let mut other = sender.try_clone()?;
    /// let thread = std::thread::spawn(move || other.send(&Moved { line: 1, column: 0 }));
    /// sender.send(&Moved { line: 2, column: 0 })?;
    /// thread.join().expect("the thread does not panic")?;
    /// let mut sum = 0;
    /// for _ in 0..2 {
    ///     sum += receiver.next()?.expect("the bus is open").line.to_native();
    /// }
    /// assert_eq!(sum, 3);
    /// # Ok(()) }
    /// ```
    pub fn try_clone(&self) -> Result<Sender<T>, ConnectError> {
        let mut clone = Sender::connect(&self.bus, &self.name, None)?;
        clone.wait = self.wait;
        Ok(clone)
    }

    /// Archives a message where the receiver will borrow it; waits while the lane is full.
    ///
    /// # Errors
    ///
    /// Each variant of [`SendError`] but `Full`. Nothing was published.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # struct Moved { line: u32, column: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-send")?;
    /// let mut receiver = bus.receiver::<Moved>("cursor")?;
    /// let mut sender = bus.sender::<Moved>("cursor")?;
    /// sender.send(&Moved { line: 3, column: 14 })?;
    /// assert_eq!(receiver.next()?.expect("the bus is open").line, 3);
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn send(&mut self, message: &T) -> Result<(), SendError> {
        let wait = self.wait;
        let until = || Until::Overdue;
        self.send_by(until, |outbox| outbox.send(message, To::tag(0), wait, None))
    }

    /// As [`send`](Self::send), but never waits.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] where the receiver holds everything that the lane has room for, or is the successor of one
    /// that is gone and is not connected yet.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// use shmbus::SendError;
    /// # #[derive(ShmMessage)]
    /// # struct Moved { line: u32, column: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-try-send")?;
    /// let receiver = bus.receiver::<Moved>("cursor")?; // which takes nothing
    /// let mut sender = bus.sender::<Moved>("cursor")?;
    /// let mut sent = 0;
    /// let error = loop {
    ///     match sender.try_send(&Moved { line: sent, column: 0 }) {
    ///         Ok(()) => sent += 1,
    ///         Err(error) => break error,
    ///     }
    /// };
    /// assert!(sent > 0 && matches!(error, SendError::Full));
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn try_send(&mut self, message: &T) -> Result<(), SendError> {
        let until = || Until::At(Instant::now());
        self.send_by(until, |outbox| outbox.try_send(message, To::tag(0)))
    }

    /// As [`send`](Self::send), but waits at most so long.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] when the time is up.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// use std::time::Duration;
    /// use shmbus::SendError;
    /// # #[derive(ShmMessage)]
    /// # struct Moved { line: u32, column: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-send-timeout")?;
    /// let receiver = bus.receiver::<Moved>("cursor")?; // which takes nothing
    /// let mut sender = bus.sender::<Moved>("cursor")?;
    /// let moved = Moved { line: 3, column: 14 };
    /// let error = loop {
    ///     if let Err(error) = sender.send_timeout(&moved, Duration::from_millis(1)) {
    ///         break error;
    ///     }
    /// };
    /// assert!(matches!(error, SendError::Full));
    /// # Ok(()) }
    /// ```
    pub fn send_timeout(&mut self, message: &T, timeout: Duration) -> Result<(), SendError> {
        let (wait, deadline) = (self.wait, Instant::now().checked_add(timeout));
        let until = || deadline.map_or(Until::Overdue, Until::At);
        self.send_by(until, |outbox| {
            outbox.send(message, To::tag(0), wait, deadline)
        })
    }

    #[inline(always)]
    fn send_by(
        &mut self,
        until: impl FnOnce() -> Until<'static>,
        send: impl Fn(&mut Outbox) -> Result<(), SendError>,
    ) -> Result<(), SendError> {
        match send(&mut self.outbox) {
            Err(error @ SendError::Closed { .. }) => self.send_on(error, until(), send),
            sent => sent,
        }
    }

    /// The receiver is gone: says so once, and then sends to its successor.
    #[cold]
    fn send_on(
        &mut self,
        closed: SendError,
        until: Until<'_>,
        send: impl Fn(&mut Outbox) -> Result<(), SendError>,
    ) -> Result<(), SendError> {
        if !std::mem::replace(&mut self.is_told, true) {
            return Err(closed);
        }
        let wanted = Wanted {
            node: self.bus.node(),
            name: &self.name,
            contract: &Contract::one_way::<T>(),
            waiter: Waiter::Thread,
        };
        let connected = wanted.connect(&mut self.connecting, &mut self.joined, until);
        let Ok(Connected { outbox, closer, .. }) = connected else {
            // It may come still: there is no room for the message yet.
            let is_coming = self.connecting.due().is_some();
            return Err(if is_coming { SendError::Full } else { closed });
        };
        (self.outbox, self.closer, self.joined) = (outbox, closer, None);
        self.is_told = false;
        send(&mut self.outbox)
    }

    /// Borrows memory of the slab to fill; see [`Client::loan_bytes`](crate::Client::loan_bytes).
    ///
    /// # Errors
    ///
    /// [`SendError::TooLarge`], [`SendError::Memory`].
    ///
    /// # Examples
    ///
    /// ```
    /// use shmbus::{Bus, Bytes, ShmMessage};
    ///
    /// #[derive(ShmMessage)]
    /// struct Chunk { number: u32, content: Bytes }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-sender-loan")?;
    /// let mut receiver = bus.receiver::<Chunk>("upload")?;
    /// let mut sender = bus.sender::<Chunk>("upload")?;
    /// let mut content = sender.loan_bytes(70_000)?;
    /// content.fill(7);
    /// sender.send(&Chunk { number: 0, content })?;
    /// assert_eq!(receiver.next()?.expect("the bus is open").content.len(), 70_000);
    /// # Ok(()) }
    /// ```
    pub fn loan_bytes(&mut self, len: usize) -> Result<Bytes, SendError> {
        self.loan_slice(len)
    }

    /// Borrows memory of the slab to fill with numbers.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLarge`], [`SendError::Memory`].
    pub fn loan_slice<E: Pod>(&mut self, len: usize) -> Result<Bulk<E>, SendError> {
        self.outbox.loan(len)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use crate::{Bus, SendError, ShmMessage};

    #[derive(ShmMessage)]
    struct Pair {
        left: u64,
        right: u64,
    }

    /// Each try goes on with what the one before began: of all the lanes that it asks for, it gets the first.
    #[test]
    fn who_never_waits_connects_in_turns() {
        let name = format!("test-turns-{}", std::process::id());
        let open = || Bus::open(&name).expect("it opens");
        let (sending, first, second) = (open(), open(), open());
        let pair = Pair { left: 1, right: 2 };
        let receiver = first.receiver::<Pair>("pairs").expect("it is free");
        let mut sender = sending.sender("pairs").expect("it is received");
        drop((receiver, first));
        while !matches!(sender.try_send(&pair), Err(SendError::Closed { .. })) {}
        let mut receiver = second.receiver::<Pair>("pairs").expect("it is free");
        while let Err(error) = sender.try_send(&pair) {
            assert!(matches!(error, SendError::Full), "{error}");
        }
        assert_eq!(sender.closer.number(), 0);
        let came = receiver.next().expect("not forked").expect("it was sent");
        assert_eq!(came.left, 1);
    }

    /// What came of an attempt that nobody waited for says nothing of who is there now.
    #[test]
    fn who_never_waits_reaches_who_is_there_now() {
        let pair = Pair { left: 1, right: 2 };
        let mut tried = 0;
        for round in 0..20 {
            let name = format!("test-now-{round}-{}", std::process::id());
            let open = || Bus::open(&name).expect("it opens");
            let (sending, first, second, third) = (open(), open(), open(), open());
            let receiver = first.receiver::<Pair>("pairs").expect("it is free");
            let mut sender = sending.sender("pairs").expect("it is received");
            drop((receiver, first));
            while !matches!(sender.try_send(&pair), Err(SendError::Closed { .. })) {}
            let receiver = second.receiver::<Pair>("pairs").expect("it is free");
            let mut sent = Err(SendError::Full);
            while !sender.connecting.has_asked() && sent.is_err() {
                sent = sender.try_send(&pair);
                assert!(matches!(sent, Ok(()) | Err(SendError::Full)), "{sent:?}");
            }
            if sent.is_ok() {
                // It was answered within one look.
                continue;
            }
            tried += 1;
            // Its bus stays, and answers.
            drop(receiver);
            while !sender.connecting.is_in_vain() {
                std::thread::yield_now();
            }
            let mut receiver = third.receiver::<Pair>("pairs").expect("it is free");
            let sent = loop {
                match sender.try_send(&pair) {
                    Err(SendError::Full) => {}
                    sent => break sent,
                }
            };
            assert!(sent.is_ok(), "{sent:?}");
            assert!(receiver.next().expect("not forked").is_some());
        }
        assert!(tried > 0);
    }

    /// A record of text has no alignment, and is no message.
    #[test]
    fn what_is_no_message_is_refused() {
        let name = format!("test-no-message-{}", std::process::id());
        let (here, there) = (Bus::open(&name), Bus::open(&name));
        let (here, there) = (here.expect("it opens"), there.expect("it opens"));
        let mut receiver = here.receiver::<Pair>("pairs").expect("it is free");
        let mut sender = there.sender::<Pair>("pairs").expect("it is received");
        sender
            .send(&Pair { left: 1, right: 2 })
            .expect("there is room");
        let pair = receiver.next().expect("not forked").expect("it was sent");
        assert_eq!((pair.left.to_native(), pair.right.to_native()), (1, 2));
        drop(pair);
        // As many bytes behind the reason as the message has.
        sender
            .outbox
            .fail(0, 1, "sixteen letters!")
            .expect("there is room");
        let none = receiver.next_timeout(Duration::from_secs(10));
        assert!(none.expect("not forked").is_none());
        let incidents = here.take_incidents();
        assert!(incidents[0].what.contains("no message"), "{incidents:?}");
    }
}
