//! One lane pair whose answers many tasks wait for.
//!
//! # Why no task waits for ever
//!
//! Whenever a waker is kept here, the lane is *armed*: its sender was asked for a ring, and has not
//! given it yet, or has given it, and the strand is about to be driven, which asks anew. Asking is
//! followed by a barrier and one more look (`wait::attend`). A task that finds an answer itself while
//! others wait changes nothing of that.
//!
//! A server that sends without end, or writes what leads nowhere, has a look end after some rounds: then
//! whoever looked comes back, and others have their turn.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use bytemuck::Pod;

use crate::error::{CallError, SendError};
use crate::lane::{Bulk, Inbox, Message, Outbox, Parcel, To};
use crate::message::ShmRequest;
use crate::service::MOST_HELD;
use crate::service::calls::Calls;
use crate::service::client::{Error, envelope, give_back, lost, send_with};
use crate::service::connect::Closer;
use crate::service::newest::Ticket;
use crate::service::trace::Calling;
use crate::sync::heavy_barrier;
use crate::sys::fork::Origin;
use crate::wait::Wait;
use crate::wait::tasks::{Drive, Later, Place, Wakers, enter};

/// How often the one task that waits looks for itself, before it leaves that to the quiet thread.
const LOOKS: usize = 500;
/// After so many messages, others have their turn.
const TURN: usize = 1024;
/// After so many looks that found something behind a barrier, and nothing when it was looked for.
const ROUNDS: usize = 4;

/// See the module.
pub(super) struct Strand {
    state: Mutex<State>,
    origin: Origin,
    /// The process at the other end.
    pid: u32,
}

struct State {
    outbox: Outbox,
    inbox: Inbox,
    calls: Calls,
    /// By tag: who waits for an answer.
    wakers: Vec<Option<Waker>>,
    /// How many do.
    waiting: usize,
    /// Who waits for room for a request.
    room: Wakers,
    armed: bool,
    later: Later,
    _closer: Closer,
}

impl Strand {
    pub(super) fn new(outbox: Outbox, mut inbox: Inbox, closer: Closer, origin: Origin) -> Strand {
        inbox.watch();
        let pid = outbox.link().pid();
        let state = State {
            outbox,
            inbox,
            calls: Calls::default(),
            wakers: Vec::new(),
            waiting: 0,
            room: Wakers::default(),
            armed: false,
            later: Later::default(),
            _closer: closer,
        };
        Strand {
            state: Mutex::new(state),
            origin,
            pid,
        }
    }

    /// In a forked child the lock may be held for ever, and what is armed is not there.
    pub(super) fn is_forked(&self) -> bool {
        self.origin.is_forked()
    }

    fn check_fork<E>(&self) -> Result<(), CallError<E>> {
        match self.is_forked() {
            true => Err(SendError::Forked.into()),
            false => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something under the lock, and then wakes whom that concerns.
    fn enter<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        enter(self.lock(), |state| &mut state.later, work)
    }

    /// Whether nothing more is sent here.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().outbox.line().is_closed()
    }

    /// Whether another call has a place here.
    pub(super) fn has_place(&self) -> bool {
        let state = self.lock();
        !state.is_full() && state.calls.has_next()
    }

    /// Memory of our own to fill in place.
    pub(super) fn loan<T: Pod>(&self, len: usize) -> Result<Bulk<T>, SendError> {
        if self.is_forked() {
            return Err(SendError::Forked);
        }
        self.lock().outbox.loan(len)
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a request, or waits for room with this waker. `TooMany` where it has no place here. One that went through
    /// the slab is left in `large` if it may be sent again, and sent from there.
    pub(super) fn poll_send<R: ShmRequest>(
        &self,
        (request, large): (&R, &mut Option<Parcel>),
        deadline: Option<Instant>,
        calling: &Calling,
        waits: Option<(&mut Place, &Waker)>,
    ) -> Poll<Result<u16, Error<R>>> {
        self.check_fork()?;
        self.enter(|state| {
            match state.send((request, large), deadline, calling) {
                Err(CallError::Send(SendError::Full)) => {}
                sent => return Poll::Ready(sent),
            }
            let Some((place, waker)) = waits else {
                return Poll::Pending;
            };
            state.later.discard(state.room.keep(place, waker));
            state.outbox.ask_for_room();
            match state.send((request, large), deadline, calling) {
                Err(CallError::Send(SendError::Full)) => Poll::Pending,
                sent => {
                    state.later.discard(state.room.forget(place));
                    Poll::Ready(sent)
                }
            }
        })
    }

    /// Who waited for room does no more.
    pub(super) fn leave(&self, place: &mut Place) {
        if place.is_taken() && !self.is_forked() {
            self.enter(|state| {
                state.later.discard(state.room.forget(place));
            });
        }
    }

    /// The next message of a call, or its waker is kept.
    pub(super) fn poll_next<R: ShmRequest>(
        &self,
        tag: u16,
        wait: Wait,
        waker: &Waker,
    ) -> Poll<Result<Message, Error<R>>> {
        self.check_fork()?;
        self.enter(|state| {
            state.forget(tag);
            for _ in 0..ROUNDS {
                let mut is_drained = true;
                for _ in 0..state.looks(wait) {
                    if state.calls.is_superseded(tag) {
                        return Poll::Ready(Err(CallError::Superseded));
                    }
                    match state.find(tag) {
                        Found::Message(message) => return Poll::Ready(Ok(message)),
                        found => is_drained = matches!(found, Found::Nothing),
                    }
                    if state.is_over() {
                        return Poll::Ready(Err(lost(&state.inbox)));
                    }
                    if !is_drained {
                        break;
                    }
                    std::hint::spin_loop();
                }
                if !is_drained || wait == Wait::Spin && state.waiting == 0 {
                    break;
                }
                state.keep(tag, waker);
                if !state.arm() {
                    return Poll::Pending;
                }
                state.forget(tag);
            }
            // Other tasks have their turn, and then it looks again.
            state.later.wake([waker.clone()]);
            Poll::Pending
        })
    }

    /// The last word on a call was taken.
    pub(super) fn end<T>(&self, tag: u16, then: impl FnOnce(&mut Inbox) -> T) -> T {
        self.enter(|state| {
            state.calls.end(tag);
            // What is handed back is written down by the next look at the latest (`find`): with a block
            // it is at once.
            then(&mut state.inbox)
        })
    }

    /// Looks at a message that is not the last word.
    pub(super) fn with_inbox<T>(&self, then: impl FnOnce(&mut Inbox) -> T) -> T {
        self.enter(|state| then(&mut state.inbox))
    }

    /// By which a call that was sent is named also later.
    pub(super) fn ticket(&self, tag: u16) -> Ticket {
        self.lock().calls.ticket(tag)
    }

    /// A newer call is made: whoever waits for this one learns that.
    pub(super) fn supersede(&self, ticket: Ticket) {
        self.enter(|state| {
            if let Some((came, ended)) = state.calls.supersede(ticket) {
                state.cancel(ticket.tag, &came, ended);
                state.wake(ticket.tag);
            }
        });
    }

    /// Nobody waits for a call any more.
    pub(super) fn abandon(&self, tag: u16) {
        if self.is_forked() {
            return;
        }
        self.enter(|state| {
            state.forget(tag);
            let (came, ended) = state.calls.drop(tag);
            state.cancel(tag, &came, ended);
        });
    }
}

/// What a look for the next message of a call found.
enum Found {
    Message(Message),
    /// Nothing more has come.
    Nothing,
    /// So many of others as one turn is for.
    Others,
}

impl State {
    fn send<R: ShmRequest>(
        &mut self,
        (request, large): (&R, &mut Option<Parcel>),
        deadline: Option<Instant>,
        calling: &Calling,
    ) -> Result<u16, Error<R>> {
        let open = self.calls.open();
        if self.outbox.line().is_closed() {
            return Err(self.outbox.closed().into());
        }
        if self.is_full() {
            return Err(CallError::TooMany { open });
        }
        let tag = self.calls.next().ok_or(CallError::TooMany { open })?;
        self.outbox.uncancel(tag);
        match (envelope(deadline, calling), &*large) {
            (None, None) => self.outbox.try_send(request, To::tag(tag))?,
            (Some(said), None) => {
                send_with(&mut self.outbox, request, To::envelope(tag, said), None)?;
            }
            (said, Some(large)) => {
                let to = said.map_or(To::tag(tag), |said| To::envelope(tag, said));
                self.outbox.try_send_again(large, to)?;
            }
        }
        if R::IDEMPOTENT {
            let kept = self.outbox.take_kept();
            *large = kept.or(large.take());
        }
        self.calls.sent(tag);
        Ok(tag)
    }

    /// What came for a call goes back, and what is still to come is cancelled.
    fn cancel(&mut self, tag: u16, came: &VecDeque<Message>, ended: bool) {
        for message in came {
            give_back(&mut self.inbox, message);
        }
        self.inbox.flush();
        if !ended {
            self.outbox.cancel(tag);
            self.inbox.back().nudge();
        }
    }

    /// How often a task looks for itself: where others wait, too, that is left to the quiet thread.
    fn looks(&mut self, wait: Wait) -> usize {
        if self.waiting > 0 || self.calls.open() > 1 || wait == Wait::Park {
            return 1;
        }
        if self.armed {
            self.armed = false;
            self.inbox.watch();
        }
        LOOKS
    }

    /// Whether as much is held and awaited as one lane has cells for.
    fn is_full(&self) -> bool {
        self.inbox.back().kept() + self.calls.open() > MOST_HELD
    }

    /// Looks for the next message of a call, and takes what has come before it for others.
    #[inline]
    fn find(&mut self, tag: u16) -> Found {
        if let Some(message) = self.calls.take(tag) {
            return Found::Message(message);
        }
        for _ in 0..TURN {
            let Some(message) = self.inbox.poll() else {
                self.inbox.flush();
                // What is there and leads to no message is followed with the next turn.
                return match self.inbox.is_ready() {
                    true => Found::Others,
                    false => Found::Nothing,
                };
            };
            if message.record.tag == tag && self.calls.is_next(tag) {
                self.calls.found(&message);
                return Found::Message(message);
            }
            self.take(message);
        }
        self.inbox.flush();
        Found::Others
    }

    /// Takes what has come, and marks those to be woken that wait for it. False where more has come
    /// than one turn is for.
    fn drain(&mut self) -> bool {
        for _ in 0..TURN {
            let Some(message) = self.inbox.poll() else {
                self.inbox.flush();
                return !self.inbox.is_ready();
            };
            self.take(message);
        }
        self.inbox.flush();
        false
    }

    /// Keeps a message for the call that it belongs to.
    fn take(&mut self, message: Message) {
        let tag = message.record.tag;
        match self.calls.keep(message) {
            Ok(None) => self.wake(tag),
            Ok(Some(nobodys)) => give_back(&mut self.inbox, &nobodys),
            Err(fault) => self.inbox.refuse(fault),
        }
    }

    /// Has the strand driven when something comes. True where something has come, or will never.
    fn arm(&mut self) -> bool {
        if !self.armed {
            self.armed = true;
            self.inbox.arm();
            // SYNC(attend): pairs with the light barrier in `Rung::is_asked`.
            heavy_barrier(self.inbox.is_asymmetric());
        }
        self.inbox.is_ready() || self.inbox.line().is_closed()
    }

    /// True once nothing more will come.
    fn is_over(&self) -> bool {
        // In this order: what came before the end is still taken.
        self.inbox.line().is_closed() && !self.inbox.is_ready()
    }

    fn keep(&mut self, tag: u16, waker: &Waker) {
        let tag = usize::from(tag);
        if self.wakers.len() <= tag {
            self.wakers.resize_with(tag + 1, || None);
        }
        let before = self.wakers[tag].replace(waker.clone());
        self.waiting += usize::from(before.is_none());
        self.later.discard(before);
    }

    fn forget(&mut self, tag: u16) {
        let waker = self.wakers.get_mut(usize::from(tag)).and_then(Option::take);
        self.waiting -= usize::from(waker.is_some());
        self.later.discard(waker);
    }

    fn wake(&mut self, tag: u16) {
        let waker = self.wakers.get_mut(usize::from(tag)).and_then(Option::take);
        self.waiting -= usize::from(waker.is_some());
        self.later.wake(waker);
    }

    /// Takes what has come, and has the lane ring for more. True where that is to go on with the next turn.
    fn drive(&mut self) -> bool {
        for _ in 0..ROUNDS {
            let is_drained = self.drain();
            if self.is_over() {
                let all = self.wakers.iter_mut().filter_map(Option::take);
                self.later.wake(all);
                self.waiting = 0;
            }
            if self.waiting == 0 {
                if self.armed {
                    self.armed = false;
                    self.inbox.watch();
                }
                return false;
            }
            if !is_drained {
                return true;
            }
            // The ring that was asked for was given, most likely.
            self.armed = true;
            if !self.inbox.rearm() && !self.inbox.line().is_closed() {
                return false;
            }
        }
        true
    }
}

impl Drive for Strand {
    fn drive(&self) -> bool {
        self.enter(|state| {
            let more = state.drive();
            state.later.wake(state.room.take());
            more
        })
    }
}
