//! A server that many tasks and threads share.
//!
//! # Why no task waits for ever
//!
//! A task that waits for a request leaves every lane armed (`Hub::listen`), and one that waits for its call to
//! be cancelled leaves the call's lane armed (`Hub::attend_to`). A lane that is armed stays so until it
//! was rung for, whoever looks at it meanwhile (`Hub::watch` asks whether it was), and each ring has
//! the port driven, which wakes all who wait for requests or room, and those for a cancel whose lane has rung
//! since they asked: they look, and ask anew. So whoever takes a request need not wake others. Room is asked
//! for as in `wait`. Each asking is followed by one more look.
//!
//! A peer that rings without end has a look end after some rounds, and others have their turn.
//!
//! # How a server ends
//!
//! From [`AsyncServer::stop`] on, or once it is dropped, or all that came before the end of its port was taken,
//! requests are refused as they come, by whoever drives the port. That goes on until the last call that was
//! taken is gone, too.

use std::collections::HashMap;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::task::{Context, Poll, Waker};

use super::OfBus;
use super::call::{AsyncCall, Found, answers_of};
use crate::bus::Shared as BusShared;
use crate::error::{ConnectError, Fault, ReceiveError};
use crate::lane::{Kept, Message};
use crate::link::lock;
use crate::link::offer::Offer;
use crate::memory::layout::Envelope;
use crate::message::ShmRequest;
use crate::service::client::give_back;
use crate::service::contract::Contract;
use crate::service::failure::Failure;
use crate::service::hub::Hub;
use crate::service::port::HubPort;
use crate::service::server::{admit, give_up, is_plain};
use crate::sys::fork::Origin;
use crate::wait::block::block_on;
use crate::wait::sources::{Readiness, Ready};
use crate::wait::tasks::{Drive, Later, Place, Wakers, enter, forget, keep};
use crate::wait::{Wait, Waiter};

/// How often a task looks for itself, before it leaves that to the quiet thread.
pub(super) const LOOKS: usize = 500;
/// After so many requests that are not delivered, others have their turn.
const TURN: usize = 1024;
/// After so many looks that found something behind a barrier, and nothing when it was looked for.
const ROUNDS: usize = 4;

/// Answers a service from any number of tasks and threads.
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
/// # let bus = Bus::open("doc-async-server")?;
/// let server = bus.async_server::<Double>()?;
/// # let client = bus.async_client::<Double>()?;
/// # let closing = bus.clone();
/// # let calling = std::thread::spawn(move || {
/// #     let reply = client.call(&Double { number: 4 }).wait().map(|reply| reply.number.to_native());
/// #     closing.close();
/// #     reply
/// # });
/// # pollster::block_on(async {
/// while let Some(call) = server.next().await? {
///     // Here, or in a task of its own: calls may be answered in any order.
///     let number = call.number.to_native() * 2;
///     call.reply(&Doubled { number })?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # assert_eq!(calling.join().expect("the client does not panic")?, 8);
/// # Ok(()) }
/// ```
pub struct AsyncServer<R: ShmRequest> {
    core: OfBus<Core>,
    _request: PhantomData<fn(R)>,
}

/// What the tasks of a server share.
pub(super) struct Core {
    state: Mutex<State>,
    pub(super) port: Arc<HubPort>,
    wait: Wait,
    pub(super) origin: Origin,
    /// Requests that were not taken are refused.
    stops: AtomicBool,
    /// Until it stops, so that nobody is accepted who is not served.
    offer: Mutex<Option<Offer>>,
}

pub(super) struct State {
    pub(super) hub: Hub,
    /// Who waits for a request, and for room.
    next: Vec<Waker>,
    pub(super) room: Wakers,
    /// Who waits for a cancel, by lane.
    cancelled: HashMap<usize, Watchers>,
    pub(super) later: Later,
}

/// Who waits for calls of one lane to be cancelled.
struct Watchers {
    /// How many rings of the lane were seen when the first of them asked for one.
    rings: u64,
    wakers: Wakers,
}

impl<R: ShmRequest> AsyncServer<R> {
    pub(crate) fn offer(bus: &Arc<BusShared>) -> Result<Self, ConnectError> {
        let node = bus.node();
        node.check_fork()?;
        let port = HubPort::new(node, R::SERVICE, Contract::service::<R>(), Waiter::Tasks)?;
        let wait = node.config().wait;
        let state = State {
            hub: Hub::new(port.clone(), wait),
            next: Vec::new(),
            room: Wakers::default(),
            cancelled: HashMap::new(),
            later: Later::default(),
        };
        let core = Arc::new(Core {
            state: Mutex::new(state),
            port: port.clone(),
            wait,
            origin: node.origin(),
            stops: AtomicBool::new(false),
            offer: Mutex::default(),
        });
        let driven = Arc::downgrade(&core) as Weak<_>;
        port.sleeper.attach(driven, node.due().clone());
        *lock(&core.offer) = Some(node.offer(R::SERVICE, port)?);
        Ok(AsyncServer {
            core: OfBus::new(core, bus),
            _request: PhantomData,
        })
    }

    /// Waits for the next request of any client.
    ///
    /// `None` once the bus was [closed](crate::Bus::close), or the parent of an inherited link is
    /// gone, and every request that came before was taken.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Forked`].
    pub fn next(&self) -> Next<'_, R> {
        Next(self)
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
    /// # let bus = Bus::open("doc-async-server-try-next")?;
    /// let server = bus.async_server::<Double>()?;
    /// assert!(server.try_next()?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn try_next(&self) -> Result<Option<AsyncCall<R>>, ReceiveError> {
        if self.is_forked() {
            return Err(ReceiveError::Forked);
        }
        self.core.enter(|state| {
            // Behind those that are refused, there may be others; but nobody keeps us at that for ever.
            for _ in 0..ROUNDS {
                match self.look(state) {
                    Look::Found(call) => return Ok(Some(call)),
                    Look::More => {}
                    Look::Nothing | Look::Ended => break,
                }
            }
            Ok(None)
        })
    }

    /// The port, for one who looks at several.
    pub(crate) fn port(&self) -> Box<dyn Ready> {
        Box::new(self.core.downgrade())
    }

    pub(super) fn is_forked(&self) -> bool {
        self.core.origin.is_forked()
    }

    /// Offers the service no more, has every request that was not taken refused, also those that still come,
    /// and [`next`](Self::next) end.
    ///
    /// Calls that were taken are answered as ever.
    pub fn stop(&self) {
        self.core.stop();
    }

    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Result<Option<AsyncCall<R>>, ReceiveError>> {
        if self.core.origin.is_forked() {
            return Poll::Ready(Err(ReceiveError::Forked));
        }
        let looks = if self.core.wait == Wait::Park {
            1
        } else {
            LOOKS
        };
        self.core.enter(|state| {
            for _ in 0..ROUNDS {
                for _ in 0..looks {
                    match self.look(state) {
                        Look::Found(call) => return Poll::Ready(Ok(Some(call))),
                        Look::Ended => return Poll::Ready(Ok(None)),
                        Look::More => {
                            state.later.wake([cx.waker().clone()]);
                            return Poll::Pending;
                        }
                        Look::Nothing => std::hint::spin_loop(),
                    }
                }
                if self.core.wait == Wait::Spin {
                    break;
                }
                keep(&mut state.next, cx.waker());
                if !state.hub.listen() {
                    return Poll::Pending;
                }
            }
            state.later.wake([cx.waker().clone()]);
            Poll::Pending
        })
    }

    /// Looks for a request once, for one who looks at other servers, too. With a waker, it is woken when
    /// there is something where there was nothing.
    pub(super) fn look_once(&self, waker: Option<&Waker>) -> Look<R> {
        if self.core.origin.is_forked() {
            return Look::Ended;
        }
        let Some(waker) = waker else {
            // Where another thread has the lock, it looks.
            return self.core.try_enter(|state| self.look(state));
        };
        self.core.enter(|state| match self.look(state) {
            Look::Nothing => {
                keep(&mut state.next, waker);
                match state.hub.listen() {
                    true => Look::More,
                    false => Look::Nothing,
                }
            }
            found => found,
        })
    }

    fn look(&self, state: &mut State) -> Look<R> {
        // In this order: what came before the end is still taken.
        let ended = self.core.port.has_ended();
        // Relaxed: it is set before the lock is taken.
        if self.core.stops.load(Ordering::Relaxed) {
            return Look::Ended;
        }
        match state.take::<R>() {
            Take::Found(found) => Look::Found(AsyncCall::new(found, self.core.clone())),
            Take::Refused => Look::More,
            Take::Empty if ended => {
                self.core.end();
                Look::Ended
            }
            Take::Empty => Look::Nothing,
        }
    }
}

impl<R: ShmRequest> Drop for AsyncServer<R> {
    fn drop(&mut self) {
        self.core.stop();
    }
}

/// What a look for a request came to.
pub(super) enum Look<R: ShmRequest> {
    Found(AsyncCall<R>),
    Nothing,
    /// Nothing to be delivered; there may be more.
    More,
    /// There will be no more.
    Ended,
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something under the lock, and then wakes whom that concerns.
    pub(super) fn enter<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        enter(self.lock(), State::later, work)
    }

    /// As [`enter`](Self::enter), where nobody else has the lock.
    fn try_enter<R: ShmRequest>(&self, look: impl FnOnce(&mut State) -> Look<R>) -> Look<R> {
        match self.state.try_lock() {
            Ok(state) => enter(state, State::later, look),
            Err(TryLockError::Poisoned(state)) => enter(state.into_inner(), State::later, look),
            Err(TryLockError::WouldBlock) => Look::Nothing,
        }
    }

    fn stop(&self) {
        if self.origin.is_forked() {
            return;
        }
        let offer = lock(&self.offer).take();
        drop(offer);
        // Relaxed: looked at under the lock that is taken next.
        self.stops.store(true, Ordering::Relaxed);
        if self.drive() {
            self.port.sleeper.rouse();
        }
    }

    /// All that came before the end was taken. Nobody takes what comes behind that: it is refused.
    fn end(&self) {
        // Relaxed: as in `look`.
        self.stops.store(true, Ordering::Relaxed);
        self.port.sleeper.rouse();
    }

    /// Has a task woken when a call of this lane may have been cancelled. The caller looks once more.
    pub(super) fn watch(&self, number: usize, place: &mut Place, waker: &Waker) {
        self.enter(|state| {
            state.hub.look_at_doors();
            // A lane that has ended has cancelled all its calls already.
            let Some(rings) = state.hub.rings(number) else {
                return;
            };
            // Counted before it is asked for the next one; and what another counted before this is older.
            let watchers = state.cancelled.entry(number);
            let watchers = watchers.or_insert_with(|| Watchers {
                rings,
                wakers: Wakers::default(),
            });
            state.later.discard(watchers.wakers.keep(place, waker));
            state.hub.attend_to(number);
        });
    }

    /// Wakes all who wait for calls of a lane to be cancelled: one of them was answered.
    pub(super) fn wake_watchers(&self, number: usize) {
        if !self.origin.is_forked() {
            self.enter(|state| {
                let watchers = state.cancelled.remove(&number);
                let wakers = watchers.map(|mut watchers| watchers.wakers.take());
                state.later.wake(wakers.into_iter().flatten());
            });
        }
    }

    /// Who waited for a call of this lane to be cancelled does no more.
    pub(super) fn unwatch(&self, number: usize, place: &mut Place) {
        if !self.origin.is_forked() {
            self.enter(|state| {
                let watchers = state.cancelled.get_mut(&number);
                let waker = watchers.and_then(|watchers| watchers.wakers.forget(place));
                state.later.discard(waker);
            });
        }
    }
}

impl Drive for Core {
    fn drive(&self) -> bool {
        self.enter(|state| {
            state.later.wake(state.room.take());
            state.later.wake(state.next.drain(..));
            state.wake_watchers();
            // Relaxed: as in `look`.
            self.stops.load(Ordering::Relaxed) && state.refuse()
        })
    }
}

impl Ready for Core {
    fn poll_ready(&self, waker: Option<&Waker>) -> Readiness {
        self.enter(|state| {
            for _ in 0..ROUNDS {
                // In this order: what came before the end is still taken.
                let ended = self.port.has_ended();
                // Relaxed: as in `look`.
                if self.stops.load(Ordering::Relaxed) {
                    return Readiness::Ended;
                }
                if state.hub.is_ready() {
                    return Readiness::Ready;
                }
                if ended {
                    self.end();
                    return Readiness::Ended;
                }
                let Some(waker) = waker else {
                    return Readiness::Nothing;
                };
                keep(&mut state.next, waker);
                if !state.hub.listen() {
                    return Readiness::Nothing;
                }
            }
            Readiness::Ready
        })
    }

    fn forget(&self, waker: &Waker) {
        let forgotten = self.enter(|state| forget(&mut state.next, waker));
        drop(forgotten);
    }

    fn is_forked(&self) -> bool {
        self.origin.is_forked()
    }
}

/// What was found of requests.
enum Take<R: ShmRequest> {
    Found(Found<R>),
    Empty,
    /// As many as one turn is for that are not to be delivered; there may be more.
    Refused,
}

impl State {
    fn later(&mut self) -> &mut Later {
        &mut self.later
    }

    /// Wakes those who wait for a cancel and whose lane has rung since it was asked to, or has ended.
    fn wake_watchers(&mut self) {
        let State {
            hub,
            cancelled,
            later,
            ..
        } = self;
        hub.look_at_doors();
        cancelled.retain(|number, watchers| {
            let stays = hub.rings(*number) == Some(watchers.rings);
            if !stays {
                later.wake(watchers.wakers.take());
            }
            stays && !watchers.wakers.is_empty()
        });
    }

    /// Refuses what has come, and has the lanes ring for more. True where that is to go on with the next turn.
    fn refuse(&mut self) -> bool {
        for _ in 0..TURN {
            let Some((number, message)) = self.hub.try_next() else {
                return self.hub.listen();
            };
            let lane = self.hub.lane_mut(number);
            let answers = answers_of(lane);
            let inbox = lane.inbox.get_mut();
            let mut outbox = lock(&answers.outbox);
            if admit(inbox, &mut outbox, &message).is_some() {
                give_back(inbox, &message);
                give_up(&mut outbox, message.record.tag, Failure::Stopping);
            }
        }
        true
    }

    /// Takes a request that is to be delivered, if there is one.
    fn take<R: ShmRequest>(&mut self) -> Take<R> {
        for _ in 0..TURN {
            let Some((number, message)) = self.hub.try_next() else {
                return Take::Empty;
            };
            let lane = self.hub.lane_mut(number);
            let answers = answers_of(lane);
            let said = if is_plain(&message, |tag| answers.is_cancelled(tag)) {
                Envelope::default()
            } else {
                let mut outbox = lock(&answers.outbox);
                match admit(lane.inbox.get_mut(), &mut outbox, &message) {
                    Some(said) => said,
                    None => continue,
                }
            };
            let Message { record, .. } = message;
            if !answers.begin(record.tag) {
                lane.inbox.get_mut().refuse(Fault::Control {
                    what: "a request whose tag is in use",
                });
                continue;
            }
            // An invalid request has ended its link; the next one may be fine.
            if let Some(request) = Kept::of(lane.inbox.get_mut(), message) {
                return Take::Found(Found {
                    request,
                    answers,
                    number,
                    tag: record.tag,
                    said,
                });
            }
        }
        Take::Refused
    }
}

/// The next request, as [`AsyncServer::next`] waits for it: a future, or on a thread
/// [`wait`](Self::wait).
#[must_use = "nothing is taken before this is awaited"]
pub struct Next<'a, R: ShmRequest>(&'a AsyncServer<R>);

impl<R: ShmRequest> Next<'_, R> {
    /// Waits for it on this thread.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Forked`].
    pub fn wait(self) -> Result<Option<AsyncCall<R>>, ReceiveError> {
        block_on(self.0.core.port.due(), self)
    }
}

impl<R: ShmRequest> Future for Next<'_, R> {
    type Output = Result<Option<AsyncCall<R>>, ReceiveError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_next(cx)
    }
}
