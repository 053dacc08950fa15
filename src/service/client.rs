//! The calling end of a service.
//!
//! Unsafe code is needed to borrow a reply that was just validated.
#![allow(unsafe_code)]

mod loans;
mod streaming;
mod superseding;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::MOST_HELD;
use super::calls::Calls;
use super::connect::{Closer, Connected, connect};
use super::contract::Contract;
use super::failure::{unanswered, unreadable};
use super::items::Items;
use super::newest::{Newest, Ticket};
use super::scope;
use super::trace::Calling;
use crate::bus::Shared as BusShared;
use crate::error::{CallError, ConnectError, Fault, SendError};
use crate::lane::{Held, Inbox, Message, Outbox, Received, Role, To, View, is_large};
use crate::memory::layout::Envelope;
use crate::message::{ShmMessage, ShmRequest};
use crate::sys::clock;
use crate::wait::{Patience, Sleeper, Step, Wait, Waiter};

pub(super) use superseding::Claim;

/// How often the lane is looked at before all else is: no longer than a cache line takes to come.
const GLANCES: usize = 16;

/// Why a call of this service has no reply.
pub(super) type Error<R> = CallError<<R as ShmRequest>::Error>;

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
    calls: RefCell<Calls>,
    newest: RefCell<Newest<R::Key, Ticket>>,
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
        let contract = Contract::service::<R>();
        let connected = connect(node, R::SERVICE, &contract, Waiter::Thread, deadline)?;
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
            calls: RefCell::default(),
            newest: RefCell::default(),
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
    pub fn call(&self, request: &R) -> Result<View<'_, R::Reply>, Error<R>> {
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
    ) -> Result<View<'_, R::Reply>, Error<R>> {
        self.call_until(request, Instant::now().checked_add(timeout))
    }

    /// Sends a request, and returns the stream of items that the server answers with.
    ///
    /// Dropping the stream cancels the call. Other calls of this client may be made meanwhile.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call), as far as they come from sending.
    ///
    /// # Examples
    ///
    /// ```
    /// use shmbus::{Bus, ShmMessage};
    ///
    /// #[derive(ShmMessage)]
    /// #[shm(service = "count", stream = Number, reply = Sum)]
    /// struct Count { to: u32 }
    ///
    /// #[derive(ShmMessage)]
    /// struct Number { value: u32 }
    ///
    /// #[derive(ShmMessage)]
    /// struct Sum { value: u32 }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-stream")?;
    /// let mut server = bus.server::<Count>()?;
    /// # let serving = std::thread::spawn(move || -> Result<(), shmbus::SendError> {
    /// # while let Ok(Some(call)) = server.next() {
    /// let mut sum = 0;
    /// for value in 1..=call.to.to_native() {
    ///     call.send(&Number { value })?;
    ///     sum += value;
    /// }
    /// call.reply(&Sum { value: sum })?;
    /// # }
    /// # Ok(()) });
    ///
    /// let client = bus.client::<Count>()?;
    /// let mut numbers = client.stream(&Count { to: 3 })?;
    /// let mut values = Vec::new();
    /// for number in &mut numbers {
    ///     values.push(number?.value.to_native());
    /// }
    /// assert_eq!(values, [1, 2, 3]);
    /// assert_eq!(numbers.finish()?.value, 6);
    /// # bus.close();
    /// # serving.join().expect("the server does not panic")?;
    /// # Ok(()) }
    /// ```
    pub fn stream(&self, request: &R) -> Result<Items<'_, R>, Error<R>> {
        self.stream_until(request, None)
    }

    /// As [`stream`](Self::stream), with at most so long until its end.
    ///
    /// # Errors
    ///
    /// As [`stream`](Self::stream).
    pub fn stream_timeout(&self, request: &R, timeout: Duration) -> Result<Items<'_, R>, Error<R>> {
        let deadline = Instant::now().checked_add(timeout);
        self.stream_until(request, deadline)
    }

    fn stream_until(
        &self,
        request: &R,
        deadline: Option<Instant>,
    ) -> Result<Items<'_, R>, Error<R>> {
        let deadline = scope::until(deadline);
        let claim = self.claim(request);
        let calling = Calling::begin(R::SERVICE, || self.server_pid());
        let begun = self.begin(request, deadline, &calling);
        if let Err(error) = &begun {
            calling.failed(error);
        }
        match (&claim, &begun) {
            (Some(claim), Ok(tag)) => self.claimed(claim, *tag),
            (Some(claim), Err(_)) => self.release(claim),
            (None, _) => {}
        }
        Ok(Items::new(self, begun?, deadline, (claim, calling)))
    }

    #[inline(always)]
    fn call_until(
        &self,
        request: &R,
        deadline: Option<Instant>,
    ) -> Result<View<'_, R::Reply>, Error<R>> {
        let deadline = scope::until(deadline);
        self.supersede(request);
        let calling = Calling::begin(R::SERVICE, || self.server_pid());
        let reply = self.call_as(request, deadline, &calling);
        if let Err(error) = &reply {
            calling.failed(error);
        }
        reply
    }

    #[inline(always)]
    fn call_as(
        &self,
        request: &R,
        deadline: Option<Instant>,
        calling: &Calling,
    ) -> Result<View<'_, R::Reply>, Error<R>> {
        let tag = self.begin(request, deadline, calling)?;
        loop {
            match self.wait_for(tag, deadline) {
                Ok(message) if message.record.role != Role::Item => {
                    return self.end(tag, message);
                }
                waited => {
                    if let Err(error) = self.pass_over(waited, deadline) {
                        self.abandon(tag);
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Sends a request, and returns its tag.
    #[inline(always)]
    pub(super) fn begin(
        &self,
        request: &R,
        deadline: Option<Instant>,
        calling: &Calling,
    ) -> Result<u16, Error<R>> {
        let mut calls = self.calls.borrow_mut();
        let held = self.held.get() + self.inbox.borrow().back().kept();
        // Each call that is not answered yet needs a cell for its answer.
        let open = calls.open();
        if held + open > MOST_HELD {
            return Err(CallError::ViewsHeld { held });
        }
        let tag = calls.next().ok_or(CallError::TooMany { open })?;
        let mut outbox = self.outbox.borrow_mut();
        outbox.uncancel(tag);
        match envelope(deadline, calling) {
            None => outbox.send(request, To::tag(tag), self.wait, None)?,
            Some(said) => {
                let to = To::envelope(tag, said);
                send_with(&mut outbox, request, to, Some((self.wait, deadline)))?;
            }
        }
        calls.sent(tag);
        Ok(tag)
    }

    #[inline(always)]
    fn wait_for(&self, tag: u16, deadline: Option<Instant>) -> Result<Message, Error<R>> {
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
            if message.record.tag == tag {
                return Ok(message);
            }
            self.put_aside(&mut inbox, message);
            // A server that sends nothing else gains no time by it.
            self.pause(&mut inbox, &mut patience)?;
        }
    }

    /// Keeps a message for another call, if somebody waits for that.
    #[cold]
    fn put_aside(&self, inbox: &mut Inbox, message: Message) {
        match self.calls.borrow_mut().keep(message) {
            Ok(None) => {}
            Ok(Some(nobodys)) => give_back(inbox, &nobodys),
            Err(fault) => inbox.refuse(fault),
        }
    }

    /// The last word on a call: its reply, or why there is none.
    #[inline(always)]
    pub(super) fn end(&self, tag: u16, message: Message) -> Result<View<'_, R::Reply>, Error<R>> {
        self.calls.borrow_mut().end(tag);
        if message.record.role == Role::Message {
            return self.view(message);
        }
        Err(self.failure(message))
    }

    /// Validates a message, and borrows it.
    #[inline(always)]
    pub(super) fn view<T: ShmMessage>(&self, message: Message) -> Result<View<'_, T>, Error<R>> {
        let mut message = message;
        let archived = self.inbox.borrow_mut().validate::<T>(&mut message);
        let Message { record, segment } = message;
        let held = Held::new(&self.inbox, &self.held, record, segment);
        match archived {
            // SAFETY: 1. it is what validation of this very message returned.
            Some(archived) => Ok(unsafe { held.view(archived) }),
            None => Err(self.lost()),
        }
    }

    #[cold]
    fn failure(&self, message: Message) -> Error<R> {
        let Received { role, failed, .. } = message.record;
        let mut inbox = self.inbox.borrow_mut();
        match role {
            Role::Error => {
                drop(inbox);
                match self.view::<R::Error>(message).map(|error| error.to_value()) {
                    Ok(Ok(error)) => CallError::Service(error),
                    Ok(Err(_)) => unreadable(self.server_pid()),
                    Err(error) => error,
                }
            }
            Role::Failed => {
                let text = inbox.text(message.record);
                give_back(&mut inbox, &message);
                unanswered(inbox.link().pid(), failed, text)
            }
            Role::Message | Role::Item | Role::Call | Role::Missed => {
                give_back(&mut inbox, &message);
                inbox.refuse(Fault::Control {
                    what: "an item of no stream",
                });
                lost(&inbox)
            }
        }
    }

    /// Cancels a call: nobody waits for its answer any more.
    #[cold]
    pub(super) fn abandon(&self, tag: u16) {
        let (came, ended) = self.calls.borrow_mut().drop(tag);
        self.cancel(tag, &came, ended);
    }

    /// What came for a call goes back, and what is still to come is cancelled.
    fn cancel(&self, tag: u16, came: &VecDeque<Message>, ended: bool) {
        let mut inbox = self.inbox.borrow_mut();
        for message in came {
            give_back(&mut inbox, message);
        }
        inbox.flush();
        if !ended {
            self.outbox.borrow_mut().cancel(tag);
            inbox.back().nudge();
        }
    }

    #[inline(never)]
    fn pause(&self, inbox: &mut Inbox, patience: &mut Patience) -> Result<(), Error<R>> {
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

    fn lost(&self) -> Error<R> {
        lost(&self.inbox.borrow())
    }
}

/// What a request says beside itself, if anything: when its caller waits no longer, and its trace.
#[inline(always)]
pub(super) fn envelope(deadline: Option<Instant>, calling: &Calling) -> Option<Envelope> {
    let mut said = Envelope::default();
    if !calling.sign(&mut said) && deadline.is_none() {
        return None;
    }
    said.deadline = deadline.map_or(0, clock::nanos_of);
    said.published = clock::now();
    Some(said)
}

/// Sends a request that says more than itself; without a `wait`, at once or not.
#[inline(never)]
pub(super) fn send_with<R: ShmRequest>(
    outbox: &mut Outbox,
    request: &R,
    to: To,
    wait: Option<(Wait, Option<Instant>)>,
) -> Result<(), SendError> {
    match wait {
        Some((wait, deadline)) => outbox.send(request, to, wait, deadline),
        None => outbox.try_send(request, to),
    }
}

pub(crate) fn give_back(inbox: &mut Inbox, message: &Message) {
    let Received { cell, cells, .. } = message.record;
    inbox.hand_back(cell, is_large(cells, message.segment.is_some()));
}

#[cold]
pub(super) fn lost<E>(inbox: &Inbox) -> CallError<E> {
    CallError::Lost {
        pid: inbox.link().pid(),
        fault: inbox.link().fault(),
    }
}
