//! The receiving ends of a topic: of one thread, and of tasks.
//!
//! Unsafe code is needed to borrow a message that was just validated.
#![allow(unsafe_code)]

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::join;
use crate::bus::Shared as BusShared;
use crate::error::{ConnectError, Fault, ReceiveError};
use crate::lane::{Held, Kept, Message, Received, Role, View};
use crate::link::lock;
use crate::link::offer::Offer;
use crate::message::ShmTopic;
use crate::service::OfBus;
use crate::service::client::give_back;
use crate::service::contract::Contract;
use crate::service::hub::{Hub, Next};
use crate::service::port::HubPort;
use crate::sys::fork::Origin;
use crate::wait::block::block_on;
use crate::wait::sources::{Readiness, Ready};
use crate::wait::tasks::{Drive, Later, Place, Wakers, enter, forget, keep, wake};
use crate::wait::{Wait, Waiter};

/// How often a task looks for itself, before it leaves that to the quiet thread.
const LOOKS: usize = 500;
/// After so many looks that found something behind a barrier, and nothing when it was looked for.
const ROUNDS: usize = 4;

/// Takes what is published on a topic, by any number of publishers, on one thread.
///
/// It gets all that is published after it was made, also by publishers that come later. A publisher that ends,
/// or breaks the protocol, is dropped without a word here; see
/// [`Bus::take_incidents`](crate::Bus::take_incidents) for what happened.
pub struct Subscriber<T: ShmTopic> {
    // Before the hub, so that nobody is accepted who is not looked at.
    _presence: Offer,
    hub: Hub,
    bus: Arc<BusShared>,
    _message: PhantomData<fn(T)>,
}

/// What was found on a topic.
enum Found<T: ShmTopic> {
    /// A message that was validated, of the lane with this number.
    Message(usize, Message, NonNull<T::Archived>),
    Lagged(ReceiveError),
    /// What is no message, and ended its link; or what was said of the lane is done with.
    Nothing,
}

/// Looks what a record is.
#[inline(always)]
fn judge<T: ShmTopic>(hub: &mut Hub, (number, mut message): (usize, Message)) -> Found<T> {
    let lane = hub.lane_mut(number);
    let inbox = lane.inbox.get_mut();
    if message.record.role != Role::Message {
        return judge_other(hub, (number, message));
    }
    match inbox.validate::<T>(&mut message) {
        Some(archived) => Found::Message(number, message, archived),
        None => Found::Nothing,
    }
}

#[cold]
fn judge_other<T: ShmTopic>(hub: &mut Hub, (number, message): (usize, Message)) -> Found<T> {
    let inbox = hub.lane_mut(number).inbox.get_mut();
    let Received { role, number, .. } = message.record;
    if role != Role::Missed {
        inbox.refuse(Fault::Control {
            what: "no message, on a topic",
        });
        return Found::Nothing;
    }
    give_back(inbox, &message);
    let pid = inbox.link().pid();
    Found::Lagged(ReceiveError::Lagged {
        pid,
        missed: number,
    })
}

/// What publishers that are gone did not get told of any more.
fn lost(hub: &mut Hub) -> Option<ReceiveError> {
    let (pid, missed) = hub.take_lost()?;
    Some(ReceiveError::Lagged { pid, missed })
}

impl<T: ShmTopic> Subscriber<T> {
    pub(crate) fn open(bus: &Arc<BusShared>) -> Result<Self, ConnectError> {
        let (port, presence) =
            join::subscribe(bus.node(), T::TOPIC, Contract::topic::<T>(), Waiter::Thread)?;
        Ok(Subscriber {
            _presence: presence,
            hub: Hub::new(port, bus.node().config().wait),
            bus: bus.clone(),
            _message: PhantomData,
        })
    }

    /// Chooses how this subscriber waits for messages.
    pub fn set_wait(&mut self, wait: Wait) {
        self.hub.wait = wait;
    }

    /// Waits for the next message of any publisher.
    ///
    /// `None` once the bus was [closed](crate::Bus::close), or the parent of an inherited link is gone, and all
    /// that came before was taken.
    ///
    /// # Errors
    ///
    /// - [`ReceiveError::Lagged`]: messages of one publisher were missed here. The next call goes on with the
    ///   newest.
    /// - [`ReceiveError::Forked`].
    #[inline]
    #[allow(clippy::should_implement_trait)] // it lends, and can fail
    pub fn next(&mut self) -> Result<Option<View<'_, T>>, ReceiveError> {
        self.take(|hub| hub.next(None))
    }

    /// As [`next`](Self::next), for at most so long: `None` also when the time is up.
    ///
    /// # Errors
    ///
    /// As [`next`](Self::next).
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<View<'_, T>>, ReceiveError> {
        let deadline = Instant::now().checked_add(timeout);
        self.take(|hub| hub.next(deadline))
    }

    /// Takes a message if one has come, at once.
    ///
    /// # Errors
    ///
    /// As [`next`](Self::next).
    pub fn try_next(&mut self) -> Result<Option<View<'_, T>>, ReceiveError> {
        self.take(|hub| match hub.try_next() {
            Some((number, message)) => Next::Message(number, message),
            None => Next::TimeUp,
        })
    }

    #[inline(always)]
    fn take(
        &mut self,
        next: impl Fn(&mut Hub) -> Next,
    ) -> Result<Option<View<'_, T>>, ReceiveError> {
        if self.bus.node().origin().is_forked() {
            return Err(ReceiveError::Forked);
        }
        let (number, message, archived) = loop {
            // All of it that came was taken before; told at once, however many others publish.
            lost(&mut self.hub).map_or(Ok(()), Err)?;
            let found = match next(&mut self.hub) {
                Next::Message(number, message) => judge::<T>(&mut self.hub, (number, message)),
                Next::Lost => Found::Nothing,
                Next::TimeUp | Next::Ended => return lost(&mut self.hub).map_or(Ok(None), Err),
            };
            match found {
                Found::Message(number, message, archived) => break (number, message, archived),
                Found::Lagged(lagged) => return Err(lagged),
                Found::Nothing => {}
            }
        };
        let lane = self.hub.lane(number);
        let Message { record, segment } = message;
        let held = Held::new(&lane.inbox, &lane.held, record, segment);
        // SAFETY: 1. it is what validation of this very message returned.
        Ok(Some(unsafe { held.view::<T>(archived) }))
    }
}

/// Takes what is published on a topic, from any number of tasks and threads: each message goes to one of them.
///
/// Small messages are copied once, as [`View::keep`] does.
///
/// # Examples
///
/// ```
/// use shmbus::{Bus, ShmMessage};
///
/// #[derive(ShmMessage)]
/// #[shm(topic = "diagnostics")]
/// struct Diagnostics { path: String, warnings: u32 }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let bus = Bus::open("doc-async-subscriber")?;
/// # pollster::block_on(async {
/// let subscriber = bus.async_subscriber::<Diagnostics>()?;
/// let mut publisher = bus.publisher::<Diagnostics>()?;
/// publisher.publish_async(&Diagnostics { path: "main.rs".into(), warnings: 3 }).await?;
/// let diagnostics = subscriber.next().await?.expect("the bus is open");
/// assert_eq!(diagnostics.warnings, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok(()) }
/// ```
pub struct AsyncSubscriber<T: ShmTopic> {
    // Before the core, so that nobody is accepted who is not looked at.
    _presence: Offer,
    core: OfBus<Core>,
    _message: PhantomData<fn(T)>,
}

/// What the tasks of a subscriber share.
struct Core {
    state: Mutex<State>,
    port: Arc<HubPort>,
    wait: Wait,
    origin: Origin,
}

struct State {
    hub: Hub,
    /// Who waits for a message.
    next: Wakers,
    /// Those who wait for one of many ports.
    sets: Vec<Waker>,
    later: Later,
}

impl Core {
    /// Does something under the lock, and then wakes whom that concerns.
    fn enter<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        enter(lock(&self.state), |state| &mut state.later, work)
    }

    /// Who waited for a message does no more.
    fn leave(&self, place: &mut Place) {
        if place.is_taken() && !self.origin.is_forked() {
            self.enter(|state| {
                state.later.discard(state.next.forget(place));
            });
        }
    }
}

impl Drive for Core {
    /// As for a server of tasks: whoever waits looks, and asks anew.
    fn drive(&self) -> bool {
        self.enter(|state| {
            state.later.wake(state.next.take());
            state.later.wake(std::mem::take(&mut state.sets));
        });
        false
    }
}

impl Ready for Core {
    fn poll_ready(&self, waker: Option<&Waker>) -> Readiness {
        self.enter(|state| {
            for _ in 0..ROUNDS {
                // In this order: what came before the end is still taken.
                let ended = self.port.has_ended();
                match state.hub.is_ready() {
                    true => return Readiness::Ready,
                    false if ended => return Readiness::Ended,
                    false => {}
                }
                let Some(waker) = waker else {
                    return Readiness::Nothing;
                };
                keep(&mut state.sets, waker);
                if !state.hub.listen() {
                    return Readiness::Nothing;
                }
            }
            Readiness::Ready
        })
    }

    fn forget(&self, waker: &Waker) {
        let forgotten = self.enter(|state| forget(&mut state.sets, waker));
        drop(forgotten);
    }

    fn is_forked(&self) -> bool {
        self.origin.is_forked()
    }
}

impl Drop for Core {
    /// Those who wait for one of many ports learn that this is gone; nobody else is left.
    fn drop(&mut self) {
        if !self.origin.is_forked() {
            let state = self.state.get_mut();
            let state = state.unwrap_or_else(PoisonError::into_inner);
            wake(std::mem::take(&mut state.sets));
        }
    }
}

impl<T: ShmTopic> AsyncSubscriber<T> {
    pub(crate) fn open(bus: &Arc<BusShared>) -> Result<Self, ConnectError> {
        let node = bus.node();
        let (port, presence) =
            join::subscribe(node, T::TOPIC, Contract::topic::<T>(), Waiter::Tasks)?;
        let wait = node.config().wait;
        let state = State {
            hub: Hub::new(port.clone(), wait),
            next: Wakers::default(),
            sets: Vec::new(),
            later: Later::default(),
        };
        let core = Arc::new(Core {
            state: Mutex::new(state),
            port: port.clone(),
            wait,
            origin: node.origin(),
        });
        port.sleeper
            .attach(Arc::downgrade(&core) as Weak<_>, node.due().clone());
        Ok(AsyncSubscriber {
            _presence: presence,
            core: OfBus::new(core, bus),
            _message: PhantomData,
        })
    }

    /// Waits for the next message of any publisher, as [`Subscriber::next`] does.
    ///
    /// # Errors
    ///
    /// As [`Subscriber::next`].
    pub fn next(&self) -> NextMessage<'_, T> {
        NextMessage {
            subscriber: self,
            place: Place::default(),
        }
    }

    /// Takes a message if one has come, at once.
    ///
    /// # Errors
    ///
    /// As [`Subscriber::next`].
    pub fn try_next(&self) -> Result<Option<Kept<T>>, ReceiveError> {
        self.check_fork()?;
        self.core.enter(|state| {
            // Behind what is no message, there may be some; but nobody keeps us at that for ever.
            for _ in 0..LOOKS {
                match look::<T>(state) {
                    Look::Found(kept) => return Ok(Some(kept)),
                    Look::Lagged(lagged) => return Err(lagged),
                    Look::Other => {}
                    Look::Nothing => break,
                }
            }
            Ok(None)
        })
    }

    /// The port, for one who looks at several.
    pub(crate) fn port(&self) -> Box<dyn Ready> {
        Box::new(self.core.downgrade())
    }

    fn check_fork(&self) -> Result<(), ReceiveError> {
        match self.core.origin.is_forked() {
            true => Err(ReceiveError::Forked),
            false => Ok(()),
        }
    }

    fn poll_next(
        &self,
        place: &mut Place,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Kept<T>>, ReceiveError>> {
        self.check_fork()?;
        let Core { port, wait, .. } = &*self.core;
        let looks = if *wait == Wait::Park { 1 } else { LOOKS };
        self.core.enter(|state| {
            'round: for _ in 0..ROUNDS {
                for _ in 0..looks {
                    // In this order: what came before the end is still taken.
                    let ended = port.has_ended();
                    match look::<T>(state) {
                        Look::Found(kept) => return Poll::Ready(Ok(Some(kept))),
                        Look::Lagged(lagged) => return Poll::Ready(Err(lagged)),
                        Look::Nothing if ended => return Poll::Ready(Ok(None)),
                        // Asking for rings is for when the last look found nothing at all.
                        Look::Other => continue 'round,
                        Look::Nothing => std::hint::spin_loop(),
                    }
                }
                if *wait == Wait::Spin {
                    break;
                }
                state.later.discard(state.next.keep(place, cx.waker()));
                if !state.hub.listen() {
                    return Poll::Pending;
                }
            }
            // Others have their turn.
            state.later.wake([cx.waker().clone()]);
            Poll::Pending
        })
    }
}

/// What a look came to.
enum Look<T: ShmTopic> {
    Found(Kept<T>),
    Lagged(ReceiveError),
    /// Something that is no message; there may be more.
    Other,
    Nothing,
}

fn look<T: ShmTopic>(state: &mut State) -> Look<T> {
    let hub = &mut state.hub;
    if let Some(lagged) = lost(hub) {
        return Look::Lagged(lagged);
    }
    if let Some((number, message)) = hub.try_next() {
        if message.record.role == Role::Message {
            let inbox = hub.lane_mut(number).inbox.get_mut();
            // An invalid message has ended its link; the next one may be fine.
            if let Some(kept) = Kept::of(inbox, message) {
                return Look::Found(kept);
            }
        } else if let Found::Lagged(lagged) = judge_other::<T>(hub, (number, message)) {
            return Look::Lagged(lagged);
        }
        return Look::Other;
    }
    lost(hub).map_or(Look::Nothing, Look::Lagged)
}

/// The next message, as [`AsyncSubscriber::next`] waits for it: a future, or on a thread
/// [`wait`](Self::wait).
#[must_use = "nothing is taken before this is awaited"]
pub struct NextMessage<'a, T: ShmTopic> {
    subscriber: &'a AsyncSubscriber<T>,
    place: Place,
}

impl<T: ShmTopic> NextMessage<'_, T> {
    /// Waits for it on this thread.
    ///
    /// # Errors
    ///
    /// As [`Subscriber::next`].
    pub fn wait(self) -> Result<Option<Kept<T>>, ReceiveError> {
        block_on(self.subscriber.core.port.due(), self)
    }
}

impl<T: ShmTopic> Future for NextMessage<'_, T> {
    type Output = Result<Option<Kept<T>>, ReceiveError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let NextMessage { subscriber, place } = &mut *self;
        subscriber.poll_next(place, cx)
    }
}

impl<T: ShmTopic> Drop for NextMessage<'_, T> {
    fn drop(&mut self) {
        self.subscriber.core.leave(&mut self.place);
    }
}
