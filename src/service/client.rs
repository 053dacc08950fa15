//! The calling end of a service.
//!
//! - [`session`]: a pair of lanes to one server; [`sessions`]: those of a client, one server after the other.
//!
//! Unsafe code is needed to borrow a reply for as long as the client.
#![allow(unsafe_code)]

mod loans;
mod session;
mod sessions;
mod streaming;
mod superseding;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connect::Connecting;
use super::items::Items;
use super::scope;
use super::trace::Calling;
use crate::bus::Shared as BusShared;
use crate::error::{CallError, ConnectError, SendError};
use crate::lane::{Inbox, Message, Outbox, Parcel, Received, To, View, is_large};
use crate::link::Until;
use crate::memory::layout::Envelope;
use crate::message::ShmRequest;
use crate::sys::clock;
use crate::wait::Wait;

pub(super) use session::Session;
pub(super) use sessions::Lease;
use sessions::Sessions;
pub(super) use superseding::Claim;

/// How long somebody waits who says no time.
pub(super) const NEVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Why a call of this service has no reply.
pub(super) type Error<R> = CallError<<R as ShmRequest>::Error>;

/// Calls a service: sends requests, and borrows the replies.
///
/// A client is one lane to its server and one back. It goes to another thread, but is not shared
/// by two: [`try_clone`](Self::try_clone) makes a second one, with lanes of its own, so that no
/// lock stands on the way of either.
///
/// It outlives its server. What was open when that went is [lost](CallError::Lost), and the next call goes to whoever
/// offers the service then. A call of an [idempotent](ShmRequest::IDEMPOTENT) request waits for a successor instead,
/// and is made again.
pub struct Client<R: ShmRequest> {
    sessions: Sessions<R>,
    /// With the successor of a server that is gone.
    connecting: RefCell<Connecting>,
    bus: Arc<BusShared>,
}

impl<R: ShmRequest> Client<R> {
    pub(crate) fn connect(
        bus: &Arc<BusShared>,
        deadline: Option<Instant>,
    ) -> Result<Client<R>, ConnectError> {
        let session = Session::open(bus, |wanted| wanted.connect_first(deadline))?;
        Ok(Client {
            sessions: Sessions::new(session),
            connecting: RefCell::default(),
            bus: bus.clone(),
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
        self.sessions.lease().wait.set(wait);
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
        let clone = Client::connect(&self.bus, None)?;
        clone
            .sessions
            .lease()
            .wait
            .set(self.sessions.lease().wait.get());
        Ok(clone)
    }

    /// The process that serves.
    pub fn server_pid(&self) -> u32 {
        self.sessions.lease().pid()
    }

    /// Sends a request and waits for its reply, which is borrowed where the server archived it.
    ///
    /// The request is archived into memory of this process that the server reads in place. The
    /// view hands the reply's memory back when it is dropped; several may be held, in any order.
    ///
    /// # Errors
    ///
    /// - [`CallError::Send`], [`CallError::Connect`]: the request was not sent.
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
    /// dropped when it comes, or for an answer of who is in place of a server that is gone; [`SendError::Full`] when it is up
    /// before there was room for the request.
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
        let begun = Items::begin(self.sessions.lease(), request, deadline);
        let Err(CallError::Send(SendError::Closed { .. })) = &begun else {
            return begun;
        };
        match self.succeed(false, deadline) {
            Ok(lease) => Items::begin(lease, request, deadline),
            Err(ConnectError::NoAnswer { .. }) if is_late(deadline) => Err(CallError::TimedOut),
            Err(none) => Err(none.into()),
        }
    }

    #[inline(always)]
    fn call_until(
        &self,
        request: &R,
        deadline: Option<Instant>,
    ) -> Result<View<'_, R::Reply>, Error<R>> {
        let deadline = scope::until(deadline);
        let lease = self.sessions.lease();
        lease.supersede(request);
        let calling = Calling::begin(R::SERVICE, || lease.pid());
        let mut large = None;
        // SAFETY: 1. what is borrowed for longer than the lease is the view.
        let session = unsafe { lease.session() };
        match session.call(request, &mut large, (deadline, &calling)) {
            Ok(reply) => Ok(reply),
            Err(error) => self.again((request, large), lease, (deadline, &calling), error),
        }
    }

    /// Calls the successor of a server that is gone, if it has not got the request, or may get it twice.
    #[cold]
    fn again<'a>(
        &'a self,
        (request, mut large): (&R, Option<Parcel>),
        mut lease: Lease<'a, R>,
        (deadline, calling): (Option<Instant>, &Calling),
        mut error: Error<R>,
    ) -> Result<View<'a, R::Reply>, Error<R>> {
        let mut is_first = true;
        while may_go_on::<R>(&error, is_first) && !is_late(deadline) {
            is_first = false;
            drop(lease);
            // For a request that may be sent twice, somebody is to come; any other is its caller's to keep.
            lease = match self.succeed(R::IDEMPOTENT, deadline) {
                Ok(lease) => lease,
                Err(ConnectError::NoAnswer { .. }) if is_late(deadline) => {
                    error = match error {
                        lost @ CallError::Lost { .. } => lost,
                        _ => CallError::TimedOut,
                    };
                    break;
                }
                Err(none) => {
                    error = said_of(error, none);
                    break;
                }
            };
            // SAFETY: 1. what is borrowed for longer than the lease is the view.
            let session = unsafe { lease.session() };
            let reply = match &large {
                Some(large) => session.call_again(large, (deadline, calling)),
                None => session.call(request, &mut large, (deadline, calling)),
            };
            match reply {
                Ok(reply) => return Ok(reply),
                Err(again) => error = again,
            }
        }
        calling.failed(&error);
        Err(error)
    }

    /// Connects to the server that offers the service now, or waits for one.
    #[cold]
    fn succeed(
        &self,
        waits: bool,
        deadline: Option<Instant>,
    ) -> Result<Lease<'_, R>, ConnectError> {
        let session = Session::open(&self.bus, |wanted| {
            let connecting = &mut *self.connecting.borrow_mut();
            let until = deadline.map_or(Until::Overdue, Until::At);
            let comes = || deadline.unwrap_or_else(|| Instant::now() + NEVER);
            wanted.connect_by(waits.then(comes), connecting, until)
        })?;
        session.wait.set(self.sessions.lease().wait.get());
        Ok(self.sessions.succeed(session))
    }
}

fn is_late(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|at| Instant::now() >= at)
}

/// Whether a call that failed so is made again: as nobody has got it, for once; or as its server is gone and it
/// may be handled twice. Never where its answer was what ended the link: the next one may be no better.
pub(super) fn may_go_on<R: ShmRequest>(error: &Error<R>, is_first: bool) -> bool {
    match error {
        CallError::Send(SendError::Closed { .. }) => is_first || R::IDEMPOTENT,
        CallError::Lost { fault, .. } => R::IDEMPOTENT && fault.is_none(),
        _ => false,
    }
}

/// What is said of a call that failed so, and whose server has no successor.
pub(super) fn said_of<E>(error: CallError<E>, none: ConnectError) -> CallError<E> {
    match error {
        // That it was lost says more than that nobody is there.
        CallError::Lost { .. } if !matches!(none, ConnectError::Layout { .. }) => error,
        _ => none.into(),
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
        ended: inbox.link().ended(),
    }
}
