//! The calling end of a service.
//!
//! Unsafe code is needed to borrow a reply that was just validated.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::Pod;

use super::connect::{Closer, Connected, connect};
use super::{Failure, MOST_HELD};
use crate::bus::Shared as BusShared;
use crate::error::{CallError, ConnectError, SendError};
use crate::lane::{Bulk, Bytes, Held, Inbox, Message, Outbox, Received, View};
use crate::message::ShmRequest;
use crate::wait::{Patience, Sleeper, Step, Wait};

/// How often the lane is looked at before all else is: no longer than a cache line takes to come.
const GLANCES: usize = 16;

/// Calls a service: sends requests, and borrows the replies.
///
/// A client is one lane to its server and one back. It goes to another thread, but is not shared
/// by two: [`try_clone`](Self::try_clone) makes a second one, with lanes of its own, so that no
/// lock stands on the way of either.
pub struct Client<R: ShmRequest> {
    outbox: RefCell<Outbox>,
    inbox: RefCell<Inbox>,
    /// How many cells of replies are held as views.
    held: Cell<usize>,
    tag: Cell<u16>,
    wait: Wait,
    sleeper: Arc<Sleeper>,
    _closer: Closer,
    bus: Arc<BusShared>,
    _request: PhantomData<fn(R)>,
}

impl<R: ShmRequest> Client<R> {
    pub(crate) fn connect(
        bus: &Arc<BusShared>,
        deadline: Option<Instant>,
    ) -> Result<Client<R>, ConnectError> {
        let node = bus.node();
        let connected = connect::<R, R::Reply>(node, R::SERVICE, true, deadline)?;
        let Connected {
            outbox,
            inbox,
            closer,
            sleeper,
        } = connected;
        let lost = ConnectError::Lost {
            pid: outbox.link().pid(),
            fault: None,
        };
        let mut inbox = inbox.ok_or(lost)?;
        inbox.watch();
        Ok(Client {
            outbox: RefCell::new(outbox),
            inbox: RefCell::new(inbox),
            held: Cell::new(0),
            tag: Cell::new(0),
            wait: node.config().wait,
            sleeper,
            _closer: closer,
            bus: bus.clone(),
            _request: PhantomData,
        })
    }

    /// Chooses how this client waits for replies and for room.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-set-wait")?;
    /// # let mut server = bus.server::<Double>()?;
    /// # let serving = std::thread::spawn(move || {
    /// #     while let Ok(Some(call)) = server.next() {
    /// #         let number = call.number.to_native() * 2;
    /// #         let _ = call.reply(&Doubled { number });
    /// #     }
    /// # });
    /// let mut client = bus.client::<Double>()?;
    /// client.set_wait(shmbus::Wait::Spin);
    /// assert_eq!(client.call(&Double { number: 4 })?.number, 8);
    /// # bus.close();
    /// # serving.join().expect("the server does not panic");
    /// # Ok(()) }
    /// ```
    pub fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
    }

    /// Makes another client of the same service, with lanes of its own, for another thread.
    ///
    /// # Errors
    ///
    /// As [`Bus::client`](crate::Bus::client).
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-client-clone")?;
    /// # let mut server = bus.server::<Double>()?;
    /// # let serving = std::thread::spawn(move || {
    /// #     while let Ok(Some(call)) = server.next() {
    /// #         let number = call.number.to_native() * 2;
    /// #         let _ = call.reply(&Doubled { number });
    /// #     }
    /// # });
    /// let client = bus.client::<Double>()?;
    /// let other = client.try_clone()?;
    /// let thread = std::thread::spawn(move || {
    ///     other.call(&Double { number: 1 }).map(|reply| reply.number.to_native())
    /// });
    /// assert_eq!(client.call(&Double { number: 2 })?.number, 4);
    /// assert_eq!(thread.join().expect("the thread does not panic")?, 2);
    /// # bus.close();
    /// # serving.join().expect("the server does not panic");
    /// # Ok(()) }
    /// ```
    pub fn try_clone(&self) -> Result<Client<R>, ConnectError> {
        let mut clone = Client::connect(&self.bus, None)?;
        clone.wait = self.wait;
        Ok(clone)
    }

    /// The process that serves.
    pub fn server_pid(&self) -> u32 {
        self.outbox.borrow().link().pid()
    }

    /// Sends a request and waits for its reply, which is borrowed where the server archived it.
    ///
    /// The request is archived into memory of this process that the server reads in place. The
    /// view hands the reply's memory back when it is dropped; several may be held, in any order.
    ///
    /// # Errors
    ///
    /// - [`CallError::Send`]: the request was not sent.
    /// - [`CallError::Lost`], [`CallError::Unanswered`], [`CallError::Failed`]: there will be no
    ///   reply to it.
    /// - [`CallError::ViewsHeld`]: too many replies are held. Nothing was sent.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-call")?;
    /// # let mut server = bus.server::<Double>()?;
    /// # let serving = std::thread::spawn(move || {
    /// #     while let Ok(Some(call)) = server.next() {
    /// #         let number = call.number.to_native() * 2;
    /// #         let _ = call.reply(&Doubled { number });
    /// #     }
    /// # });
    /// let client = bus.client::<Double>()?;
    /// let four = client.call(&Double { number: 2 })?;
    /// let six = client.call(&Double { number: 3 })?;
    /// assert_eq!((four.number.to_native(), six.number.to_native()), (4, 6));
    /// # bus.close();
    /// # serving.join().expect("the server does not panic");
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn call(&self, request: &R) -> Result<View<'_, R::Reply>, CallError> {
        self.call_until(request, None)
    }

    /// As [`call`](Self::call), for at most so long.
    ///
    /// # Errors
    ///
    /// [`CallError::TimedOut`] when the time is up while waiting for the reply, which is then
    /// dropped when it comes; [`SendError::Full`] when it is up before the request was sent.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// use std::time::Duration;
    /// use shmbus::CallError;
    /// # #[derive(ShmMessage)]
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-call-timeout")?;
    /// let server = bus.server::<Double>()?; // which never answers
    /// let client = bus.client::<Double>()?;
    /// let result = client.call_timeout(&Double { number: 2 }, Duration::from_millis(5));
    /// assert!(matches!(result, Err(CallError::TimedOut)));
    /// # Ok(()) }
    /// ```
    pub fn call_timeout(
        &self,
        request: &R,
        timeout: Duration,
    ) -> Result<View<'_, R::Reply>, CallError> {
        self.call_until(request, Instant::now().checked_add(timeout))
    }

    #[inline(always)]
    fn call_until(
        &self,
        request: &R,
        deadline: Option<Instant>,
    ) -> Result<View<'_, R::Reply>, CallError> {
        let held = self.held.get() + self.inbox.borrow().back().kept();
        if held > MOST_HELD {
            return Err(CallError::ViewsHeld { held });
        }
        let tag = self.tag.get().wrapping_add(1);
        self.tag.set(tag);
        self.outbox
            .borrow_mut()
            .send(request, tag, self.wait, deadline)?;
        let Message { record, segment } = self.wait_for(tag, deadline)?;
        let archived = self.inbox.borrow_mut().validate::<R::Reply>(record);
        let held = Held::new(&self.inbox, &self.held, record, segment);
        match archived {
            // SAFETY: 1. it is what validation of this very message returned.
            Some(archived) => Ok(unsafe { held.view(archived) }),
            None => Err(self.lost()),
        }
    }

    /// Waits for the reply with this tag. Replies to calls that were given up come before it.
    #[inline(always)]
    fn wait_for(&self, tag: u16, deadline: Option<Instant>) -> Result<Message, CallError> {
        let mut patience = Patience::new(self.wait, deadline);
        let mut inbox = self.inbox.borrow_mut();
        loop {
            let glance = (0..GLANCES).find_map(|_| {
                inbox.poll_inline().or_else(|| {
                    // Each look takes the line from the sender that is about to write it.
                    std::hint::spin_loop();
                    None
                })
            });
            let Some(message) = glance.or_else(|| inbox.poll()) else {
                self.pause(&mut inbox, &mut patience)?;
                continue;
            };
            let Received {
                cell,
                tag: of,
                failed,
                ..
            } = message.record;
            if of != tag {
                // Of a call that was given up. A server that sends nothing else gains no time.
                inbox.hand_back(cell, false);
                self.pause(&mut inbox, &mut patience)?;
            } else if failed != 0 {
                inbox.hand_back(cell, false);
                return Err(failure(&inbox, failed));
            } else {
                return Ok(message);
            }
        }
    }

    /// Nothing has come: waits a little, or sleeps.
    #[inline(never)]
    fn pause(&self, inbox: &mut Inbox, patience: &mut Patience) -> Result<(), CallError> {
        // In this order: what came before the end is still taken.
        if inbox.line().is_closed() && !inbox.is_ready() {
            return Err(lost(inbox));
        }
        match patience.step() {
            Step::Again if patience.has_settled() => inbox.flush(),
            Step::Again => {}
            Step::TimeUp => return Err(CallError::TimedOut),
            Step::Sleep(timeout) => {
                inbox.flush();
                self.sleep(inbox, timeout);
            }
        }
        Ok(())
    }

    #[cold]
    fn sleep(&self, inbox: &mut Inbox, timeout: Option<Duration>) {
        let ask = |inbox: &mut Inbox| {
            inbox.arm();
            inbox.is_asymmetric()
        };
        let look = |inbox: &mut Inbox| inbox.is_ready() || inbox.line().is_closed();
        // SYNC(attend): its barrier pairs with the light barrier in `Rung::is_asked`.
        self.sleeper.sleep(timeout, inbox, ask, look);
        inbox.watch();
    }

    fn lost(&self) -> CallError {
        lost(&self.inbox.borrow())
    }

    /// Borrows memory of the slab to fill: bytes that the next request then carries uncopied.
    ///
    /// It holds whatever was there before. Put it into a field of type [`Bytes`]; where that field
    /// is sent by another client or sender, or for the second time, its bytes are copied.
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
    /// #[shm(service = "save", reply = Saved)]
    /// struct Save { path: String, content: Bytes }
    ///
    /// #[derive(ShmMessage)]
    /// struct Saved { bytes: u64 }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-loan-bytes")?;
    /// # let mut server = bus.server::<Save>()?;
    /// # let serving = std::thread::spawn(move || {
    /// #     while let Ok(Some(call)) = server.next() {
    /// #         let bytes = call.content.iter().filter(|byte| **byte == 7).count() as u64;
    /// #         let _ = call.reply(&Saved { bytes });
    /// #     }
    /// # });
    /// let client = bus.client::<Save>()?;
    /// let mut content = client.loan_bytes(100_000)?;
    /// content.fill(7); // or read a file into it
    /// let reply = client.call(&Save { path: "a.txt".into(), content })?;
    /// assert_eq!(reply.bytes, 100_000);
    /// # bus.close();
    /// # serving.join().expect("the server does not panic");
    /// # Ok(()) }
    /// ```
    pub fn loan_bytes(&self, len: usize) -> Result<Bytes, SendError> {
        self.loan_slice(len)
    }

    /// As [`loan_bytes`](Self::loan_bytes), for numbers and other plain elements.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLarge`], [`SendError::Memory`].
    ///
    /// # Examples
    ///
    /// ```
    /// use shmbus::{Bulk, Bus, ShmMessage};
    ///
    /// #[derive(ShmMessage)]
    /// #[shm(service = "mean", reply = Mean)]
    /// struct Samples { values: Bulk<u64> }
    ///
    /// #[derive(ShmMessage)]
    /// struct Mean { value: u64 }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-loan-slice")?;
    /// # let mut server = bus.server::<Samples>()?;
    /// # let serving = std::thread::spawn(move || {
    /// #     while let Ok(Some(call)) = server.next() {
    /// #         let sum: u64 = call.values.iter().map(|value| value.to_native()).sum();
    /// #         let value = sum / call.values.len() as u64;
    /// #         let _ = call.reply(&Mean { value });
    /// #     }
    /// # });
    /// let client = bus.client::<Samples>()?;
    /// let mut values = client.loan_slice::<u64>(3)?;
    /// values.copy_from_slice(&[1, 2, 6]);
    /// assert_eq!(client.call(&Samples { values })?.value, 3);
    /// # bus.close();
    /// # serving.join().expect("the server does not panic");
    /// # Ok(()) }
    /// ```
    pub fn loan_slice<T: Pod>(&self, len: usize) -> Result<Bulk<T>, SendError> {
        self.outbox.borrow_mut().loan(len)
    }
}

#[cold]
fn failure(inbox: &Inbox, why: u8) -> CallError {
    let pid = inbox.link().pid();
    match Failure::text(why) {
        Some(what) => CallError::Failed { pid, what },
        None => CallError::Unanswered { pid },
    }
}

#[cold]
fn lost(inbox: &Inbox) -> CallError {
    CallError::Lost {
        pid: inbox.link().pid(),
        fault: inbox.link().fault(),
    }
}
