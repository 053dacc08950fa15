//! A server that many tasks and threads share.
//!
//! # Why no task waits for ever
//!
//! A task that waits for a request leaves every lane armed (`Hub::listen`), and whoever finds a request
//! while others wait wakes one of them, who then does the same. A task that waits for its call to be
//! cancelled leaves the call's lane armed with a number that was not rung for, and is woken whenever
//! that may have changed. Room is asked for as in `wait`. Each asking is followed by one more look.

use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::block::block_on;
use crate::bus::Shared as BusShared;
use crate::error::{ConnectError, ReceiveError, SendError};
use crate::lane::{Kept, Message, Outbox, To};
use crate::link::node::Offer;
use crate::link::{Line, lock};
use crate::memory::layout::{MOST_OPEN, SenderBlock};
use crate::memory::shared::Shared;
use crate::message::{ShmMessage, ShmRequest};
use crate::service::connect::Closer;
use crate::service::contract::Contract;
use crate::service::failure::Failure;
use crate::service::hub::Hub;
use crate::service::port::{HubPort, Lane};
use crate::service::scope;
use crate::service::server::{admit, give_up, give_up_with, has_passed, unsent};
use crate::sys::clock;
use crate::sys::fork::Origin;
use crate::wait::Wait;
use crate::wait::tasks::Drive;

/// How often a task looks for itself, before it leaves that to the quiet thread.
const LOOKS: usize = 500;
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
struct Core {
    state: Mutex<State>,
    port: Arc<HubPort>,
    wait: Wait,
    origin: Origin,
    /// Requests that were not taken are refused.
    stops: AtomicBool,
}

struct State {
    hub: Hub,
    /// Who waits for a request, for room, and for a cancel.
    next: Vec<Waker>,
    room: Vec<Waker>,
    cancelled: Vec<Waker>,
    /// How many requests were refused since this stops.
    refused: usize,
    /// To be woken without the lock.
    woken: Vec<Waker>,
}

/// The way back to a caller: shared by its calls that are not answered yet.
pub(in crate::service) struct Answers {
    outbox: Mutex<Outbox>,
    requests: Option<Shared<SenderBlock>>,
    line: Arc<Line>,
    pid: u32,
    /// Behind the outbox: once it is dropped, nothing more may be sent.
    _closer: Option<Closer>,
}

impl<R: ShmRequest> AsyncServer<R> {
    pub(crate) fn offer(bus: &Arc<BusShared>) -> Result<Self, ConnectError> {
        let node = bus.node();
        node.check_fork()?;
        let port = HubPort::new(node, R::SERVICE, Contract::service::<R>())?;
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
                    // In this order: what came before the end is still taken.
                    let ended = self.core.port.has_ended();
                    let stops = self.core.stops.load(Ordering::Relaxed);
                    match state.take::<R>() {
                        Take::Found(found) => {
                            let call = AsyncCall::new(found, self.core.clone());
                            if stops {
                                call.refuse(Failure::Stopping, "");
                                state.refused += 1;
                                if state.refused < state.hub.lanes() * MOST_OPEN {
                                    state.woken.push(cx.waker().clone());
                                    return Poll::Pending;
                                }
                                // As many as can have waited: whoever asks on is told by the end.
                                state.pass_on();
                                return Poll::Ready(Ok(None));
                            }
                            state.pass_on();
                            return Poll::Ready(Ok(Some(call)));
                        }
                        Take::Refused => {
                            state.woken.push(cx.waker().clone());
                            return Poll::Pending;
                        }
                        Take::Empty => {}
                    }
                    if ended || stops {
                        state.pass_on();
                        return Poll::Ready(Ok(None));
                    }
                    std::hint::spin_loop();
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
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something under the lock, and then wakes whom that concerns.
    fn enter<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
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

/// A request that was found, and what is needed to answer it.
struct Found<R: ShmRequest> {
    request: Kept<R>,
    answers: Arc<Answers>,
    number: usize,
    tag: u16,
    deadline: u64,
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
            let deadline = {
                let mut outbox = lock(&answers.outbox);
                admit(&mut lane.inbox.borrow_mut(), &mut outbox, &message)
            };
            let Some(deadline) = deadline else {
                continue;
            };
            let Message { record, .. } = message;
            // An invalid request has ended its link; the next one may be fine.
            if let Some(request) = Kept::of(lane.inbox.get_mut(), message) {
                return Take::Found(Found {
                    request,
                    answers,
                    number,
                    tag: record.tag,
                    deadline,
                });
            }
        }
        Take::Refused
    }

    /// Whoever took something leaves the rest to the others that wait.
    fn pass_on(&mut self) {
        self.woken.extend(self.next.pop());
        self.woken.append(&mut self.cancelled);
    }
}

/// Keeps a waker, once.
fn add(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|other| other.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}

fn answers_of(lane: &mut Lane) -> Arc<Answers> {
    let (outbox, closer) = (&mut lane.outbox, &mut lane.closer);
    let answers = lane.answers.get_or_insert_with(|| {
        let outbox = outbox.take().expect("a server's lanes go both ways");
        let outbox = outbox.into_inner();
        Arc::new(Answers {
            requests: outbox.requests(),
            line: outbox.line().clone(),
            pid: outbox.link().pid(),
            outbox: Mutex::new(outbox),
            _closer: closer.take(),
        })
    });
    answers.clone()
}

/// A request that was taken, to be answered by any task or thread: dereferences to the archived
/// request, and takes the reply.
///
/// Dropped without a reply, it tells its caller so.
pub struct AsyncCall<R: ShmRequest> {
    request: Kept<R>,
    answers: Arc<Answers>,
    core: Arc<Core>,
    number: usize,
    tag: u16,
    deadline: u64,
    answered: AtomicBool,
}

impl<R: ShmRequest> AsyncCall<R> {
    fn new(found: Found<R>, core: Arc<Core>) -> Self {
        let Found {
            request,
            answers,
            number,
            tag,
            deadline,
        } = found;
        AsyncCall {
            request,
            answers,
            core,
            number,
            tag,
            deadline,
            answered: AtomicBool::new(false),
        }
    }

    /// Archives the reply for the caller; see [`Call::reply`](crate::Call::reply).
    ///
    /// # Errors
    ///
    /// As [`Call::reply`](crate::Call::reply).
    pub fn reply(self, reply: &R::Reply) -> Result<(), SendError> {
        let to = To::tag(self.tag);
        self.answer(reply, to)
    }

    /// Answers with an error of the service's own.
    ///
    /// # Errors
    ///
    /// As [`reply`](Self::reply).
    pub fn fail(self, error: &R::Error) -> Result<(), SendError> {
        let to = To::error(self.tag);
        self.answer(error, to)
    }

    /// As [`reply`](Self::reply), for a call that its handler may still hold.
    pub(super) fn reply_shared(&self, reply: &R::Reply) -> Result<(), SendError> {
        self.answer(reply, To::tag(self.tag))
    }

    /// As [`fail`](Self::fail), for a call that its handler may still hold.
    pub(super) fn fail_shared(&self, error: &R::Error) -> Result<(), SendError> {
        self.answer(error, To::error(self.tag))
    }

    fn answer<T: ShmMessage>(&self, answer: &T, to: To) -> Result<(), SendError> {
        let mut outbox = self.outbox(&self.answers)?;
        let sent = outbox.try_send(answer, to);
        // Only now: an answer that panics while it is archived leaves the call to `drop`. Relaxed:
        // nobody else answers, and whoever drops the last handle comes behind that.
        self.answered.store(true, Ordering::Relaxed);
        sent.or_else(|error| unsent(&mut outbox, self.tag, error))
    }

    fn outbox<'a>(&self, answers: &'a Answers) -> Result<MutexGuard<'a, Outbox>, SendError> {
        if self.core.origin.is_forked() {
            return Err(SendError::Forked);
        }
        Ok(lock(&answers.outbox))
    }

    /// Sends an item of the stream that the caller takes, which a reply ends. Waits while the caller
    /// has not taken as many as the lane has room for.
    ///
    /// # Errors
    ///
    /// As [`Call::send`](crate::Call::send).
    pub fn send<'a>(&'a self, item: &'a R::Item) -> Sending<'a, R> {
        Sending { call: self, item }
    }

    /// As [`send`](Self::send), without waiting.
    ///
    /// # Errors
    ///
    /// As [`Call::try_send`](crate::Call::try_send).
    pub fn try_send(&self, item: &R::Item) -> Result<(), SendError> {
        if self.is_cancelled() {
            return Err(SendError::Cancelled);
        }
        self.outbox(&self.answers)?
            .try_send(item, To::stream(self.tag))
    }

    fn poll_send(&self, item: &R::Item, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        match self.try_send(item) {
            Err(SendError::Full) => {}
            sent => return Poll::Ready(sent),
        }
        self.core.enter(|state| add(&mut state.room, cx.waker()));
        self.outbox(&self.answers)?.ask_for_room();
        match self.try_send(item) {
            Err(SendError::Full) => Poll::Pending,
            sent => {
                let waker = cx.waker();
                self.core
                    .enter(|state| state.room.retain(|other| !other.will_wake(waker)));
                Poll::Ready(sent)
            }
        }
    }

    /// Answers that there is no reply, and why.
    pub(super) fn refuse(&self, why: Failure, text: &str) {
        self.answered.store(true, Ordering::Relaxed);
        if !self.core.origin.is_forked() {
            give_up_with(&mut lock(&self.answers.outbox), self.tag, why, text);
        }
    }

    /// How many items the caller has not taken and dropped yet, as far as is known.
    pub fn behind(&self) -> usize {
        let outbox = self.outbox(&self.answers);
        let behind = outbox.and_then(|mut outbox| outbox.behind(self.tag));
        // A caller that is gone takes nothing.
        behind.map_or(0, |behind| behind.items)
    }

    /// Whether the caller waits no longer; see [`Call::is_cancelled`](crate::Call::is_cancelled).
    #[inline]
    pub fn is_cancelled(&self) -> bool {
        let requests = self.answers.requests.as_ref();
        requests.is_some_and(|requests| requests.is_cancelled(self.tag))
            || has_passed(self.deadline)
            || self.answers.line.is_closed()
    }

    /// Waits until the caller waits no longer.
    pub async fn cancelled(&self) {
        let due = self.core.port.due();
        let mut timer = None;
        poll_fn(|cx| {
            if let Some(timer) = timer.take() {
                due.clear_timer(timer);
            }
            if self.poll_cancelled(cx).is_ready() {
                return Poll::Ready(());
            }
            timer = self
                .deadline()
                .map(|at| due.set_timer(at, cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    fn poll_cancelled(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_cancelled() || self.core.origin.is_forked() {
            return Poll::Ready(());
        }
        self.core.enter(|state| {
            add(&mut state.cancelled, cx.waker());
            state.hub.attend_to(self.number);
        });
        if self.is_cancelled() {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Does work for this call: calls that are made in it have this call's deadline, or an earlier one
    /// of their own.
    pub async fn scope<F: Future>(&self, work: F) -> F::Output {
        let deadline = self.deadline();
        let mut work = std::pin::pin!(work);
        poll_fn(|cx| {
            let _entered = scope::enter(deadline);
            work.as_mut().poll(cx)
        })
        .await
    }

    /// When the caller waits no longer.
    pub fn deadline(&self) -> Option<Instant> {
        clock::moment_of(self.deadline)
    }

    /// The process that called.
    pub fn caller_pid(&self) -> u32 {
        self.answers.pid
    }

    /// Makes the owned request, copying what it needs.
    ///
    /// # Errors
    ///
    /// As [`View::to_value`](crate::View::to_value).
    pub fn to_value(&self) -> Result<R, crate::CodecError> {
        self.request.to_value()
    }
}

impl<R: ShmRequest> Deref for AsyncCall<R> {
    type Target = R::Archived;

    fn deref(&self) -> &R::Archived {
        &self.request
    }
}

impl<R: ShmRequest> Drop for AsyncCall<R> {
    fn drop(&mut self) {
        if !*self.answered.get_mut() && !self.core.origin.is_forked() {
            let mut outbox = lock(&self.answers.outbox);
            let why = Failure::of_drop(outbox.is_cancelled(self.tag), has_passed(self.deadline));
            give_up(&mut outbox, self.tag, why);
        }
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
        block_on(self)
    }
}

impl<R: ShmRequest> Future for Next<'_, R> {
    type Output = Result<Option<AsyncCall<R>>, ReceiveError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_next(cx)
    }
}

/// An item that is sent, as [`AsyncCall::send`] waits for room: a future, or on a thread
/// [`wait`](Self::wait).
#[must_use = "nothing is sent before this is awaited"]
pub struct Sending<'a, R: ShmRequest> {
    call: &'a AsyncCall<R>,
    item: &'a R::Item,
}

impl<R: ShmRequest> Sending<'_, R> {
    /// Waits for room on this thread.
    ///
    /// # Errors
    ///
    /// As [`AsyncCall::send`].
    pub fn wait(self) -> Result<(), SendError> {
        block_on(self)
    }
}

impl<R: ShmRequest> Future for Sending<'_, R> {
    type Output = Result<(), SendError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.call.poll_send(self.item, cx)
    }
}
