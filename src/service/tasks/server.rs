//! A server that many tasks and threads share.
//!
//! # Why no task waits for ever
//!
//! A task that waits for a request leaves every lane armed (`Hub::listen`), and one that waits for its call to
//! be cancelled leaves the call's lane armed (`Hub::attend_to`). A lane that is armed stays so until it
//! was rung for, whoever looks at it meanwhile (`Hub::watch` asks whether it was), and each ring has
//! the port driven, which wakes all who wait: they look, and ask anew. So whoever takes a request need
//! not wake others. Room is asked for as in `wait`. Each asking is followed by one more look.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::task::{Context, Poll, Waker};

use super::block::block_on;
use super::call::{AsyncCall, Found, answers_of};
use crate::bus::Shared as BusShared;
use crate::error::{ConnectError, ReceiveError};
use crate::lane::{Kept, Message};
use crate::link::lock;
use crate::link::node::Offer;
use crate::memory::layout::{Envelope, MOST_OPEN};
use crate::message::ShmRequest;
use crate::service::contract::Contract;
use crate::service::failure::Failure;
use crate::service::hub::Hub;
use crate::service::port::HubPort;
use crate::service::server::{admit, is_plain};
use crate::sys::fork::Origin;
use crate::wait::tasks::Drive;
use crate::wait::{Wait, Waiter};

/// How often a task looks for itself, before it leaves that to the quiet thread.
pub(super) const LOOKS: usize = 500;
/// After so many requests that are not delivered, others have their turn.
const TURN: usize = 1024;

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
    // Dropped before the core, so that nobody is accepted who is not served.
    _offer: Offer,
    core: Arc<Core>,
    _bus: Arc<BusShared>,
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
}

pub(super) struct State {
    pub(super) hub: Hub,
    /// Who waits for a request, for room, and for a cancel.
    next: Vec<Waker>,
    pub(super) room: Vec<Waker>,
    pub(super) cancelled: Vec<Waker>,
    /// How many requests were refused since this stops.
    refused: usize,
    /// To be woken without the lock.
    woken: Vec<Waker>,
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
            room: Vec::new(),
            cancelled: Vec::new(),
            refused: 0,
            woken: Vec::new(),
        };
        let core = Arc::new(Core {
            state: Mutex::new(state),
            port: port.clone(),
            wait,
            origin: node.origin(),
            stops: AtomicBool::new(false),
        });
        let driven = Arc::downgrade(&core) as Weak<_>;
        port.sleeper.attach(driven, node.due().clone());
        let offer = node.offer(R::SERVICE, port)?;
        Ok(AsyncServer {
            _offer: offer,
            core,
            _bus: bus.clone(),
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

    /// Has every request that was not taken yet refused, and then [`next`](Self::next) end.
    ///
    /// Calls that were taken are answered as ever.
    pub fn stop(&self) {
        // Relaxed: looked at under the lock that is taken next.
        self.core.stops.store(true, Ordering::Relaxed);
        self.core.drive();
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
            loop {
                for _ in 0..looks {
                    match self.look(state) {
                        Look::Found(call) => return Poll::Ready(Ok(Some(call))),
                        Look::Ended => return Poll::Ready(Ok(None)),
                        Look::More => {
                            state.woken.push(cx.waker().clone());
                            return Poll::Pending;
                        }
                        Look::Nothing => std::hint::spin_loop(),
                    }
                }
                if self.core.wait == Wait::Spin {
                    state.woken.push(cx.waker().clone());
                    return Poll::Pending;
                }
                add(&mut state.next, cx.waker());
                if !state.hub.listen() {
                    return Poll::Pending;
                }
            }
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
                add(&mut state.next, waker);
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
        let stops = self.core.stops.load(Ordering::Relaxed);
        match state.take::<R>() {
            Take::Found(found) => {
                let call = AsyncCall::new(found, self.core.clone());
                if !stops {
                    return Look::Found(call);
                }
                call.refuse(Failure::Stopping, "");
                state.refused += 1;
                match state.refused < state.hub.lanes() * MOST_OPEN {
                    true => Look::More,
                    // As many as can have waited: whoever asks on is told by the end.
                    false => Look::Ended,
                }
            }
            Take::Refused => Look::More,
            Take::Empty if ended || stops => Look::Ended,
            Take::Empty => Look::Nothing,
        }
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
        Self::enter_locked(self.lock(), work)
    }

    /// As [`enter`](Self::enter), where nobody else has the lock.
    fn try_enter<R: ShmRequest>(&self, look: impl FnOnce(&mut State) -> Look<R>) -> Look<R> {
        match self.state.try_lock() {
            Ok(state) => Self::enter_locked(state, look),
            Err(TryLockError::Poisoned(state)) => Self::enter_locked(state.into_inner(), look),
            Err(TryLockError::WouldBlock) => Look::Nothing,
        }
    }

    fn enter_locked<T>(mut state: MutexGuard<'_, State>, work: impl FnOnce(&mut State) -> T) -> T {
        let done = work(&mut state);
        let woken = std::mem::take(&mut state.woken);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        done
    }
}

impl Drive for Core {
    fn drive(&self) -> bool {
        self.enter(|state| {
            let State {
                next,
                room,
                cancelled,
                woken,
                ..
            } = state;
            [next, room, cancelled]
                .into_iter()
                .for_each(|wakers| woken.append(wakers));
        });
        false
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

/// Keeps a waker, once.
pub(super) fn add(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|other| other.will_wake(waker)) {
        wakers.push(waker.clone());
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
