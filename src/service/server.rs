//! The answering end of a service.
//!
//! Unsafe code is needed to borrow a request that was just validated.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hub::Hub;
use super::port::HubPort;
use super::{Failure, MOST_HELD};
use crate::bus::Shared as BusShared;
use crate::error::{ConnectError, Fault, ReceiveError, SendError};
use crate::lane::{Held, Message, Outbox, View};
use crate::link::node::Offer;
use crate::message::ShmRequest;
use crate::wait::Wait;

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
        let port = HubPort::new::<R, R::Reply>(node, R::SERVICE, true)?;
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
        self.take(|hub| hub.next(deadline).message())
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
        self.take(|hub| hub.try_next())
    }

    #[inline(always)]
    fn take(
        &mut self,
        next: impl Fn(&mut Hub) -> Option<(usize, Message)>,
    ) -> Result<Option<Call<'_, R>>, ReceiveError> {
        if self.bus.node().origin().is_forked() {
            return Err(ReceiveError::Forked);
        }
        let (number, record, segment, archived) = loop {
            let Some((number, message)) = next(&mut self.hub) else {
                return Ok(None);
            };
            let Message { record, segment } = message;
            let mut inbox = self.hub.lane(number).inbox.borrow_mut();
            // An invalid request has ended its link; the next one may be fine.
            if let Some(archived) = inbox.validate::<R>(record) {
                break (number, record, segment, archived);
            }
        };
        let lane = self.hub.lane(number);
        let outbox = lane.outbox.as_ref().expect("a server's lanes go both ways");
        let tag = record.tag;
        let held = Held::new(&lane.inbox, &lane.held, record, segment);
        // SAFETY: 1. it is what validation of this very message returned.
        let view = unsafe { held.view::<R>(archived) };
        Ok(Some(Call {
            view: Some(view),
            outbox,
            tag,
            answered: false,
        }))
    }
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
    answered: bool,
}

impl<R: ShmRequest> Call<'_, R> {
    /// Archives the reply where the caller will borrow it.
    ///
    /// A caller that is gone needs no reply: that is no error.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLarge`], [`SendError::Encode`], [`SendError::Memory`]: the caller is told
    /// that there is no reply, and why.
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
    pub fn reply(mut self, reply: &R::Reply) -> Result<(), SendError> {
        // The request is read; what it took goes back before its caller goes on.
        self.view = None;
        let mut outbox = self.outbox.borrow_mut();
        let sent = outbox.try_send(reply, self.tag);
        // Only now: a reply that panics while it is archived leaves the call to `drop`, which
        // tells the caller.
        self.answered = true;
        sent.or_else(|error| unsent(&mut outbox, self.tag, error))
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
fn unsent(outbox: &mut Outbox, tag: u16, error: SendError) -> Result<(), SendError> {
    let why = match &error {
        SendError::Closed { .. } => return Ok(()),
        SendError::Full => {
            hoards(outbox);
            return Ok(());
        }
        SendError::TooLarge { .. } => Failure::TooLarge,
        SendError::Memory(_) => Failure::Memory,
        SendError::Forked => return Err(error),
        SendError::Encode { .. } => Failure::Encode,
    };
    // A lane too full even for this ends with its link, as above.
    if outbox.fail(tag, why as u8).is_err() && !outbox.line().is_closed() {
        hoards(outbox);
    }
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
            let failed = outbox.fail(self.tag, Failure::Dropped as u8);
            if failed.is_err() && !outbox.line().is_closed() {
                // Its caller would wait for ever.
                outbox.link().die(None);
            }
        }
    }
}
