//! The answering end of a service.
//!
//! Unsafe code is needed to borrow a request that was just validated.
#![allow(unsafe_code)]

use std::cell::{RefCell, RefMut};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::MOST_HELD;
use super::contract::Contract;
use super::failure::Failure;
use super::hub::Hub;
use super::port::{HubPort, Lane};
use super::scope;
use super::trace::Answering;
use crate::bus::Shared as BusShared;
use crate::error::{ConnectError, Fault, ReceiveError, SendError};
use crate::lane::{
    Held, Inbox, Incoming, Message, Outbox, Received, Role, Sealed, To, View, Within,
};
use crate::link::offer::Offer;
use crate::memory::layout::{Envelope, MOST_OPEN};
use crate::message::{ShmMessage, ShmRequest};
use crate::sys::clock;
use crate::wait::{Wait, Waiter};

/// After so many requests that are not delivered, the clock is looked at.
const TURN: usize = 1024;

/// Answers a service: takes requests of any number of clients, one at a time, and replies.
///
/// A client that ends, or breaks the protocol, is dropped without a word here; see
/// [`Bus::take_incidents`](crate::Bus::take_incidents) for what happened.
pub struct Server<R: ShmRequest> {
    // Before the offer, so that nobody is accepted who is not served.
    offer: Option<Offer>,
    hub: Hub,
    bus: Arc<BusShared>,
    _request: PhantomData<fn(R)>,
}

impl<R: ShmRequest> Server<R> {
    pub(crate) fn offer(bus: &Arc<BusShared>) -> Result<Server<R>, ConnectError> {
        let node = bus.node();
        node.check_fork()?;
        let port = HubPort::new(node, R::SERVICE, Contract::service::<R>(), Waiter::Thread)?;
        let offer = node.offer(R::SERVICE, port.clone())?;
        let hub = Hub::new(port, node.config().wait);
        Ok(Server {
            offer: Some(offer),
            hub,
            bus: bus.clone(),
            _request: PhantomData,
        })
    }

    /// Chooses how this server waits for requests.
    pub fn set_wait(&mut self, wait: Wait) {
        self.hub.wait = wait;
    }

    /// Waits for the next request of any client.
    ///
    /// `None` once the bus was [closed](crate::Bus::close), or the parent of an inherited link is
    /// gone, and every request that came before was taken.
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
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-server-next")?;
    /// let mut server = bus.server::<Double>()?;
    /// # let client = bus.client::<Double>()?;
    /// # let calling = std::thread::spawn(move || {
    /// #     client.call(&Double { number: 3 }).map(|reply| reply.number.to_native())
    /// # });
    /// # let closing = bus.clone();
    /// while let Some(call) = server.next()? {
    ///     let number = call.number.to_native() * 2;
    ///     call.reply(&Doubled { number })?;
    /// #   closing.close();
    /// }
    /// # assert_eq!(calling.join().expect("the client does not panic")?, 6);
    /// # Ok(()) }
    /// ```
    #[inline]
    #[allow(clippy::should_implement_trait)] // it lends, and can fail
    pub fn next(&mut self) -> Result<Option<Call<'_, R>>, ReceiveError> {
        self.take(None, |hub| hub.next(None).message())
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
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-server-next-timeout")?;
    /// let mut server = bus.server::<Double>()?;
    /// assert!(server.next_timeout(Duration::from_millis(1))?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Call<'_, R>>, ReceiveError> {
        let deadline = Instant::now().checked_add(timeout);
        self.take(deadline, |hub| hub.next(deadline).message())
    }

    /// Takes a request if one has come, at once.
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
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-server-try-next")?;
    /// let mut server = bus.server::<Double>()?;
    /// assert!(server.try_next()?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn try_next(&mut self) -> Result<Option<Call<'_, R>>, ReceiveError> {
        // At once: also where there are only requests that are not to be delivered.
        self.take(Some(Instant::now()), |hub| hub.try_next())
    }

    #[inline(always)]
    fn take(
        &mut self,
        deadline: Option<Instant>,
        next: impl Fn(&mut Hub) -> Option<(usize, Message)>,
    ) -> Result<Option<Call<'_, R>>, ReceiveError> {
        if self.bus.node().origin().is_forked() {
            return Err(ReceiveError::Forked);
        }
        let mut refused = 0;
        let (number, message, archived, said) = loop {
            let Some((number, mut message)) = next(&mut self.hub) else {
                return Ok(None);
            };
            let lane = self.hub.lane(number);
            let mut inbox = lane.inbox.borrow_mut();
            let mut outbox = outbox_of(lane).borrow_mut();
            let said = match is_plain(&message, |tag| outbox.is_cancelled(tag)) {
                true => Some(Envelope::default()),
                false => admit(&mut inbox, &mut outbox, &message),
            };
            if let Some(said) = said {
                // An invalid request has ended its link; the next one may be fine.
                if let Some(archived) = inbox.validate::<R>(&mut message) {
                    break (number, message, archived, said);
                }
            }
            refused += 1;
            // A client that cancels all it asks for holds up nobody for longer than was said.
            if refused % TURN == 0 && deadline.is_some_and(|at| Instant::now() >= at) {
                return Ok(None);
            }
        };
        let wait = self.hub.wait;
        let lane = self.hub.lane(number);
        let Message { record, segment } = message;
        let held = Held::new(&lane.inbox, &lane.held, record, segment);
        // SAFETY: 1. it is what validation of this very message returned.
        let view = unsafe { held.view::<R>(archived) };
        let outbox = outbox_of(lane);
        let caller = || outbox.borrow().link().pid();
        Ok(Some(Call {
            view: Some(view),
            outbox,
            tag: record.tag,
            answering: Answering::begin(R::SERVICE, caller, &said),
            said,
            wait,
            answered: false,
        }))
    }
}

fn outbox_of(lane: &Lane) -> &RefCell<Outbox> {
    lane.outbox.as_ref().expect("a server's lanes go both ways")
}

/// Whether a request is to be delivered and says nothing of itself, as most do; else it is to be
/// [admitted](admit).
#[inline(always)]
pub(super) fn is_plain(message: &Message, is_cancelled: impl FnOnce(u16) -> bool) -> bool {
    let Received { role, tag, .. } = message.record;
    role == Role::Message && usize::from(tag) < MOST_OPEN && !is_cancelled(tag)
}

/// Looks whether a request is to be delivered, and what it says of itself.
#[cold]
pub(super) fn admit(inbox: &mut Inbox, outbox: &mut Outbox, message: &Message) -> Option<Envelope> {
    let Received {
        role, tag, cell, ..
    } = message.record;
    let is_request = matches!(role, Role::Message | Role::Call);
    if !is_request || usize::from(tag) >= MOST_OPEN {
        inbox.refuse(Fault::Control {
            what: "no request, or one of too high a tag",
        });
        return None;
    }
    let said = if role == Role::Call {
        inbox.take_envelope()
    } else {
        Envelope::default()
    };
    let why = if outbox.is_cancelled(tag) {
        Failure::Cancelled
    } else if has_passed(said.deadline) {
        Failure::Expired
    } else {
        return Some(said);
    };
    inbox.hand_back(cell, message.segment.is_some());
    give_up(outbox, tag, why);
    None
}

/// Tells a caller that there is no reply, and why.
#[cold]
pub(super) fn give_up(outbox: &mut Outbox, tag: u16, why: Failure) {
    give_up_with(outbox, tag, why, "");
}

/// As [`give_up`], in words.
#[cold]
pub(super) fn give_up_with(outbox: &mut Outbox, tag: u16, why: Failure, text: &str) {
    match outbox.fail(tag, why as u8, text) {
        // A lane too full even for this is that of a client that no honest one is.
        Err(SendError::Full) => hoards(outbox),
        Err(SendError::Memory(error)) => {
            outbox.give_up(format!("nothing can be answered any more: {error}"));
        }
        // Answered; or there is nobody, or it is not ours to answer.
        _ => {}
    }
}

/// Whether this moment of the shared clock is over; zero is none.
#[inline]
pub(super) fn has_passed(deadline: u64) -> bool {
    deadline != 0 && clock::now() >= deadline
}

impl<R: ShmRequest> Drop for Server<R> {
    fn drop(&mut self) {
        self.offer = None;
    }
}

/// A request that was taken: dereferences to the archived request, and takes the reply.
///
/// Dropped without a reply, it tells its caller so.
pub struct Call<'a, R: ShmRequest> {
    view: Option<View<'a, R>>,
    outbox: &'a RefCell<Outbox>,
    tag: u16,
    said: Envelope,
    answering: Answering,
    wait: Wait,
    answered: bool,
}

impl<R: ShmRequest> Call<'_, R> {
    /// Archives the reply where the caller will borrow it.
    ///
    /// A caller that is gone, or whose time is up, needs no reply: that is no error.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLarge`], [`SendError::Encode`], [`SendError::Memory`], or [`SendError::Full`] where
    /// the caller's process does not even read its socket: the caller is told that there is no reply, and why.
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
    /// # let bus = Bus::open("doc-reply")?;
    /// # let mut server = bus.server::<Double>()?;
    /// # let client = bus.client::<Double>()?;
    /// # let calling = std::thread::spawn(move || {
    /// #     client.call(&Double { number: 5 }).map(|reply| reply.number.to_native())
    /// # });
    /// if let Some(call) = server.next()? {
    ///     let number = call.number.to_native() * 2;
    ///     call.reply(&Doubled { number })?;
    /// }
    /// # assert_eq!(calling.join().expect("the client does not panic")?, 10);
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn reply(self, reply: &R::Reply) -> Result<(), SendError> {
        let to = To::tag(self.tag);
        self.answer(reply, to)
    }

    /// Answers with an error of the service's own.
    ///
    /// # Errors
    ///
    /// As [`reply`](Self::reply).
    ///
    /// # Examples
    ///
    /// ```
    /// use shmbus::{Bus, CallError, ShmMessage};
    ///
    /// #[derive(ShmMessage)]
    /// #[shm(service = "half", reply = Half, error = Odd)]
    /// struct Number { value: u32 }
    ///
    /// #[derive(ShmMessage)]
    /// struct Half { value: u32 }
    ///
    /// #[derive(ShmMessage, Debug, PartialEq)]
    /// struct Odd { value: u32 }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-fail")?;
    /// # let mut server = bus.server::<Number>()?;
    /// # let client = bus.client::<Number>()?;
    /// # let calling = std::thread::spawn(move || {
    /// let error = client.call(&Number { value: 3 }).err().expect("three is odd");
    /// assert!(matches!(error, CallError::Service(Odd { value: 3 })));
    /// # });
    ///
    /// if let Some(call) = server.next()? {
    ///     match call.value.to_native() {
    ///         value if value % 2 == 1 => call.fail(&Odd { value })?,
    ///         value => call.reply(&Half { value: value / 2 })?,
    ///     }
    /// }
    /// # calling.join().expect("the client does not panic");
    /// # Ok(()) }
    /// ```
    pub fn fail(self, error: &R::Error) -> Result<(), SendError> {
        let to = To::error(self.tag);
        self.answer(error, to)
    }

    #[inline(always)]
    fn answer<T: ShmMessage>(mut self, answer: &T, to: To) -> Result<(), SendError> {
        if has_passed(self.said.deadline) {
            // Its caller was told that its time is up, or is about to be: `drop` says so.
            return Ok(());
        }
        if to.is_error() {
            self.answering.failed("of the service");
        }
        // The request is read; what it took goes back before its caller goes on.
        self.view = None;
        let mut outbox = self.outbox.borrow_mut();
        let sent = outbox.try_send(answer, to);
        // Only now: an answer that panics while it is archived leaves the call to `drop`, which
        // tells the caller.
        self.answered = true;
        sent.or_else(|error| unsent(&mut outbox, self.tag, error))
    }

    /// Sends an item of the stream that the caller takes, which a reply ends.
    ///
    /// A caller that does not take what was sent makes this wait, as long as the lane has no room for
    /// more: [`behind`](Self::behind) tells beforehand.
    ///
    /// # Errors
    ///
    /// - [`SendError::Cancelled`], [`SendError::Closed`]: nobody wants more items.
    /// - [`SendError::TooLarge`], [`SendError::Encode`], [`SendError::Memory`]: this item was not
    ///   sent. The stream is still open.
    pub fn send(&self, item: &R::Item) -> Result<(), SendError> {
        let deadline = clock::moment_of(self.said.deadline);
        let to = To::stream(self.tag);
        match self.check()?.send(item, to, self.wait, deadline) {
            // Only the caller's own deadline ends the waiting.
            Err(SendError::Full) => Err(SendError::Cancelled),
            sent => sent,
        }
    }

    /// As [`send`](Self::send), without waiting.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send); [`SendError::Full`] where it would have to wait.
    pub fn try_send(&self, item: &R::Item) -> Result<(), SendError> {
        self.check()?.try_send(item, To::stream(self.tag))
    }

    #[inline]
    fn check(&self) -> Result<RefMut<'_, Outbox>, SendError> {
        if self.is_cancelled() {
            return Err(SendError::Cancelled);
        }
        Ok(self.outbox.borrow_mut())
    }

    /// How many items the caller has not taken and dropped yet, as far as is known.
    pub fn behind(&self) -> usize {
        // A caller that is gone takes nothing.
        self.outbox
            .borrow_mut()
            .behind(self.tag)
            .map_or(0, |behind| behind.items)
    }

    /// Whether the caller waits no longer: it has cancelled the call, or its time is up.
    ///
    /// Costs a load, and where the call has a deadline a look at the clock. The caller's word
    /// overtakes all messages.
    #[inline]
    pub fn is_cancelled(&self) -> bool {
        let outbox = self.outbox.borrow();
        outbox.is_cancelled(self.tag) || has_passed(self.said.deadline) || outbox.line().is_closed()
    }

    /// Does work for this call: calls that are made in it have this call's deadline, or an earlier one
    /// of their own, and belong to its trace.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # #[shm(service = "quadruple", reply = Doubled)]
    /// # struct Quadruple { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-scope")?;
    /// # let doubling = bus.serve::<Double, _>(1, |call| {
    /// #     Ok(Doubled { number: call.number.to_native() * 2 })
    /// # })?;
    /// # let mut server = bus.server::<Quadruple>()?;
    /// # let client = bus.client::<Quadruple>()?;
    /// # let calling = std::thread::spawn(move || {
    /// #     let hour = std::time::Duration::from_secs(3600);
    /// #     client.call_timeout(&Quadruple { number: 3 }, hour).map(|reply| reply.number.to_native())
    /// # });
    /// let double = bus.client::<Double>()?;
    /// if let Some(call) = server.next()? {
    ///     let number = call.number.to_native() * 2;
    ///     let doubled = call.scope(|| double.call(&Double { number }))?;
    ///     call.reply(&Doubled { number: doubled.number.to_native() })?;
    /// }
    /// # assert_eq!(calling.join().expect("the client does not panic")?, 12);
    /// # Ok(()) }
    /// ```
    pub fn scope<T>(&self, work: impl FnOnce() -> T) -> T {
        let _entered = scope::enter(self.deadline(), self.answering.enter());
        work()
    }

    /// When the caller waits no longer.
    pub fn deadline(&self) -> Option<Instant> {
        clock::moment_of(self.said.deadline)
    }

    /// When the request was sent, where it says so: it does if it has a deadline or a
    /// [trace](crate#features), and with [`Config::timestamps`](crate::Config).
    pub fn published(&self) -> Option<Instant> {
        clock::moment_of(self.said.published).or_else(|| self.view().published())
    }

    /// How many requests came before it on its lane; see [`View::sequence`](crate::View::sequence).
    pub fn sequence(&self) -> u64 {
        self.view().sequence()
    }

    /// The process that called.
    pub fn caller_pid(&self) -> u32 {
        self.outbox.borrow().link().pid()
    }

    /// Makes the owned request, copying what it needs.
    ///
    /// # Errors
    ///
    /// As [`View::to_value`].
    pub fn to_value(&self) -> Result<R, crate::CodecError> {
        self.view().to_value()
    }

    fn view(&self) -> &View<'_, R> {
        self.view
            .as_ref()
            .expect("only a reply takes the view, and with it the call")
    }
}

#[cold]
pub(super) fn unsent(outbox: &mut Outbox, tag: u16, error: SendError) -> Result<(), SendError> {
    let why = match &error {
        SendError::Closed { .. } => return Ok(()),
        SendError::Full if outbox.is_stuck() => Failure::Unannounced,
        SendError::Full => {
            hoards(outbox);
            return Ok(());
        }
        SendError::TooLarge { .. } => Failure::TooLarge,
        SendError::Memory(_) => Failure::Memory,
        SendError::Forked => return Err(error),
        SendError::Cancelled => Failure::Cancelled,
        SendError::Encode { .. } | SendError::Keys { .. } => Failure::Encode,
    };
    give_up(outbox, tag, why);
    Err(error)
}

/// Ends the link of a client that leaves no room for its reply, which cannot wait for it.
#[cold]
fn hoards(outbox: &Outbox) {
    // No client of ours holds so much, or reads so little: it does not keep to the protocol.
    let link = outbox.link();
    let hoarding = Fault::Hoarding { cells: MOST_HELD };
    link.die(Some(link.deafness().unwrap_or(hoarding)));
}

impl<R: ShmRequest> Incoming for Call<'_, R> {}

impl<R: ShmRequest> Sealed for Call<'_, R> {
    fn within(&self) -> Within<'_> {
        self.view().within()
    }
}

impl<R: ShmRequest> Deref for Call<'_, R> {
    type Target = R::Archived;

    #[inline]
    fn deref(&self) -> &R::Archived {
        self.view()
    }
}

impl<R: ShmRequest> Drop for Call<'_, R> {
    fn drop(&mut self) {
        if !self.answered {
            self.view = None;
            let mut outbox = self.outbox.borrow_mut();
            let why = Failure::of_drop(
                outbox.is_cancelled(self.tag),
                has_passed(self.said.deadline),
            );
            self.answering.failed(why.name());
            give_up(&mut outbox, self.tag, why);
        }
    }
}
