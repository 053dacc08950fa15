//! One pair of lanes of a client, to one server.
//!
//! Unsafe code is needed to borrow a reply that was just validated.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Error, envelope, give_back, lost, send_with};
use crate::bus::Shared as BusShared;
use crate::error::{CallError, ConnectError, Fault};
use crate::lane::{Held, Inbox, Message, Outbox, Parcel, Received, Role, To, View};
use crate::message::{ShmMessage, ShmRequest};
use crate::service::MOST_HELD;
use crate::service::calls::Calls;
use crate::service::connect::{Closer, Connected, Wanted};
use crate::service::contract::Contract;
use crate::service::failure::{unanswered, unreadable};
use crate::service::newest::{Newest, Ticket};
use crate::service::trace::Calling;
use crate::wait::{Patience, Sleeper, Step, Wait, Waiter};

/// How often the lane is looked at before all else is: no longer than a cache line takes to come.
const GLANCES: usize = 16;

/// See the module.
pub(in crate::service) struct Session<R: ShmRequest> {
    pub(super) outbox: RefCell<Outbox>,
    pub(super) inbox: RefCell<Inbox>,
    /// How many cells of replies are held as views.
    pub(super) held: Cell<usize>,
    pub(super) calls: RefCell<Calls>,
    pub(super) newest: RefCell<Newest<R::Key, Ticket>>,
    pub(super) wait: Cell<Wait>,
    sleeper: Arc<Sleeper>,
    _closer: Closer,
}

impl<R: ShmRequest> Session<R> {
    /// With whoever offers the service.
    pub(super) fn open(
        bus: &Arc<BusShared>,
        connect: impl FnOnce(&Wanted<'_>) -> Result<Connected, ConnectError>,
    ) -> Result<Self, ConnectError> {
        let node = bus.node();
        let connected = connect(&Wanted {
            node,
            name: R::SERVICE,
            contract: &Contract::service::<R>(),
            waiter: Waiter::Thread,
        })?;
        let (mut outbox, mut inbox, closer, sleeper) = connected.both()?;
        inbox.watch();
        outbox.set_keeping(R::IDEMPOTENT);
        Ok(Session {
            outbox: RefCell::new(outbox),
            inbox: RefCell::new(inbox),
            held: Cell::new(0),
            calls: RefCell::default(),
            newest: RefCell::default(),
            wait: Cell::new(node.config().wait),
            sleeper,
            _closer: closer,
        })
    }

    /// The process that serves.
    pub(in crate::service) fn pid(&self) -> u32 {
        self.outbox.borrow().link().pid()
    }

    /// Sends a request and waits for its reply. One that went through the slab is left in `large`, where it may be
    /// sent again.
    #[inline(always)]
    pub(super) fn call(
        &self,
        request: &R,
        large: &mut Option<Parcel>,
        (deadline, calling): (Option<Instant>, &Calling),
    ) -> Result<View<'_, R::Reply>, Error<R>> {
        let tag = self.begin(request, large, (deadline, calling))?;
        self.reply(tag, deadline)
    }

    /// As [`call`](Self::call), for a request that was sent before, from where it lies.
    #[cold]
    pub(super) fn call_again(
        &self,
        request: &Parcel,
        (deadline, calling): (Option<Instant>, &Calling),
    ) -> Result<View<'_, R::Reply>, Error<R>> {
        let mut calls = self.calls.borrow_mut();
        let tag = self.next_tag(&mut calls)?;
        let said = envelope(deadline, calling);
        let to = said.map_or(To::tag(tag), |said| To::envelope(tag, said));
        let mut outbox = self.outbox.borrow_mut();
        outbox.uncancel(tag);
        outbox.send_again(request, to, self.wait.get(), deadline)?;
        calls.sent(tag);
        drop((calls, outbox));
        self.reply(tag, deadline)
    }

    /// Waits for the last word on a call.
    #[inline(always)]
    fn reply(&self, tag: u16, deadline: Option<Instant>) -> Result<View<'_, R::Reply>, Error<R>> {
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

    /// A tag for one more call.
    #[inline(always)]
    fn next_tag(&self, calls: &mut Calls) -> Result<u16, Error<R>> {
        let held = self.held.get() + self.inbox.borrow().back().kept();
        // Each call that is not answered yet needs a cell for its answer.
        let open = calls.open();
        if held + open > MOST_HELD {
            return Err(CallError::ViewsHeld { held });
        }
        calls.next().ok_or(CallError::TooMany { open })
    }

    /// Sends a request, and returns its tag.
    #[inline(always)]
    pub(in crate::service) fn begin(
        &self,
        request: &R,
        large: &mut Option<Parcel>,
        (deadline, calling): (Option<Instant>, &Calling),
    ) -> Result<u16, Error<R>> {
        let mut calls = self.calls.borrow_mut();
        let tag = self.next_tag(&mut calls)?;
        let mut outbox = self.outbox.borrow_mut();
        outbox.uncancel(tag);
        match envelope(deadline, calling) {
            None => outbox.send(request, To::tag(tag), self.wait.get(), None)?,
            Some(said) => {
                let to = To::envelope(tag, said);
                send_with(&mut outbox, request, to, Some((self.wait.get(), deadline)))?;
            }
        }
        if R::IDEMPOTENT {
            *large = outbox.take_kept();
        }
        calls.sent(tag);
        Ok(tag)
    }

    #[inline(always)]
    fn wait_for(&self, tag: u16, deadline: Option<Instant>) -> Result<Message, Error<R>> {
        let mut patience = Patience::new(self.wait.get(), deadline);
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
    pub(super) fn put_aside(&self, inbox: &mut Inbox, message: Message) {
        match self.calls.borrow_mut().keep(message) {
            Ok(None) => {}
            Ok(Some(nobodys)) => give_back(inbox, &nobodys),
            Err(fault) => inbox.refuse(fault),
        }
    }

    /// The last word on a call: its reply, or why there is none.
    #[inline(always)]
    pub(in crate::service) fn end(
        &self,
        tag: u16,
        message: Message,
    ) -> Result<View<'_, R::Reply>, Error<R>> {
        self.calls.borrow_mut().end(tag);
        if message.record.role == Role::Message {
            return self.view(message);
        }
        Err(self.failure(message))
    }

    /// Validates a message, and borrows it.
    #[inline(always)]
    pub(in crate::service) fn view<T: ShmMessage>(
        &self,
        message: Message,
    ) -> Result<View<'_, T>, Error<R>> {
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
                    Ok(Err(_)) => unreadable(self.pid()),
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
    pub(in crate::service) fn abandon(&self, tag: u16) {
        let (came, ended) = self.calls.borrow_mut().drop(tag);
        self.cancel(tag, &came, ended);
    }

    /// What came for a call goes back, and what is still to come is cancelled.
    pub(super) fn cancel(&self, tag: u16, came: &VecDeque<Message>, ended: bool) {
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
    pub(super) fn pause(&self, inbox: &mut Inbox, patience: &mut Patience) -> Result<(), Error<R>> {
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
