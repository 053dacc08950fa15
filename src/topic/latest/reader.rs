//! The reading end of newest values.
//!
//! Unsafe code is needed to borrow a value that was just held.
#![allow(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::current::Current;
use super::sources::{Sources, Told};
use super::waiting::Waiting;
use crate::bus::Shared as BusShared;
use crate::error::{ConnectError, Fault, ReceiveError};
use crate::lane::Role;
use crate::link::offer::Offer;
use crate::message::{LatestKey, ShmLatest, layout_of};
use crate::service::OfBus;
use crate::service::client::give_back;
use crate::service::contract::Contract;
use crate::service::hub::Hub;
use crate::topic::join;
use crate::wait::block::block_on;
use crate::wait::sources::Ready;
use crate::wait::tasks::{Drive, Place, Timeout};
use crate::wait::{Wait, Waiter};

/// How often a task looks for itself, before it leaves that to the quiet thread.
const LOOKS: usize = 500;
/// After so many looks that found something behind a barrier, and nothing when it was looked for.
const ROUNDS: usize = 4;
/// The most notes that are taken in one go.
const NOTES: usize = 1024;

/// Something that has changed.
pub enum Change<'a, T: ShmLatest> {
    /// There is a newer value.
    Value(Current<'a, T>),
    /// There is none of this key any more: it was removed, or its publisher has gone.
    Removed(T::Key),
}

impl<T: ShmLatest<Archived: fmt::Debug, Key: fmt::Debug>> fmt::Debug for Change<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Value(value) => f.debug_tuple("Value").field(value).finish(),
            Change::Removed(key) => f.debug_tuple("Removed").field(key).finish(),
        }
    }
}

/// Reads newest values, of all publishers, where they lie.
///
/// A read takes no lock, waits for nobody, and costs the same however many read and however often the value has
/// changed. It costs a system call only where a publisher has come or gone, or where a value lies in memory that was not
/// looked at before; and where that memory cannot be told of at the moment, as this process has not read its socket for
/// long, it waits for it, a second at most.
///
/// One thread or task has it; others make one of their own.
///
/// # Examples
///
/// ```
/// use shmbus::{Bus, Change, ShmMessage};
///
/// #[derive(ShmMessage)]
/// #[shm(latest = "progress", key = "task")]
/// struct Progress { task: u64, percent: u8 }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let bus = Bus::open("doc-latest")?;
/// let mut latest = bus.latest::<Progress>()?;
/// let mut publisher = bus.latest_publisher::<Progress>()?;
/// for percent in [10, 20, 30] {
///     publisher.publish(&Progress { task: 1, percent })?;
/// }
/// // The state …
/// assert_eq!(latest.get(&1)?.expect("it was published").percent, 30);
///
/// // … and what has changed: once, however often that was.
/// assert!(latest.changed().wait()?);
/// match latest.try_next()? {
///     Some(Change::Value(progress)) => assert_eq!(progress.percent, 30),
///     _ => panic!("it was published"),
/// }
/// assert!(latest.try_next()?.is_none());
/// # Ok(()) }
/// ```
pub struct Latest<T: ShmLatest> {
    // Before the hub, so that nobody is accepted who is not looked at.
    _presence: Offer,
    // Before the hub, too: what came on a lane is looked at only as long as the lane is.
    sources: Sources<T>,
    hub: Hub,
    waiting: OfBus<Waiting>,
}

impl<T: ShmLatest> Latest<T> {
    pub(crate) fn open(bus: &Arc<BusShared>) -> Result<Self, ConnectError> {
        let node = bus.node();
        let (port, presence) =
            join::subscribe(node, T::LATEST, Contract::latest::<T>(), Waiter::Tasks)?;
        let waiting = Waiting::new(&port, node.origin());
        port.sleeper
            .attach(Arc::downgrade(&waiting) as Weak<_>, node.due().clone());
        let mut latest = Latest {
            _presence: presence,
            sources: Sources::new(),
            hub: Hub::new(port, node.config().wait),
            waiting: OfBus::new(waiting, bus),
        };
        latest.take_notes();
        Ok(latest)
    }

    /// The newest value of a key, where there is one.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Forked`].
    #[inline]
    pub fn get(
        &mut self,
        key: &<T::Key as LatestKey>::Query,
    ) -> Result<Option<Current<'_, T>>, ReceiveError> {
        self.check_fork()?;
        if self.hub.is_rung() {
            self.take_notes();
        }
        let found = T::Key::with_bytes(key, |key| self.sources.find(key));
        Ok(found.and_then(|(spot, segment)| {
            // SAFETY: 1. it was just held.
            unsafe { self.sources.current(spot, segment) }
        }))
    }

    /// The next of what has changed since it was last told of here: the newest value of a key, once, or that there
    /// is none any more. In the beginning, all there is. `None` where nothing has changed; never waits.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Forked`].
    pub fn try_next(&mut self) -> Result<Option<Change<'_, T>>, ReceiveError> {
        self.check_fork()?;
        self.look_for_changes();
        Ok(match self.sources.next_change() {
            Some(Told::Value(spot, segment)) => {
                // SAFETY: 1. it was just held.
                let value = unsafe { self.sources.current(spot, segment) };
                value.map(Change::Value)
            }
            Some(Told::Removed(key)) => T::Key::from_bytes(&key).map(Change::Removed),
            None => {
                self.listen_for_set();
                None
            }
        })
    }

    /// The port, for one who looks at several.
    pub(crate) fn port(&self) -> Box<dyn Ready> {
        self.waiting.is_in_set();
        Box::new(self.waiting.downgrade())
    }

    /// Nothing was found: what comes next is to ring, where a set waits for it.
    fn listen_for_set(&mut self) {
        // In this order: what rings behind the look of `listen` is remembered.
        if self.waiting.has_nothing() && self.hub.listen() {
            // There is something after all; and a set on another thread may sleep by now.
            self.waiting.drive();
        }
    }

    /// Waits until something has changed that [`try_next`](Self::try_next) tells of. Now and then that tells of nothing, as
    /// where a value has come and gone meanwhile.
    pub fn changed(&mut self) -> Changed<'_, T> {
        Changed {
            latest: self,
            place: Place::default(),
            timer: None,
        }
    }

    fn check_fork(&self) -> Result<(), ReceiveError> {
        match self.waiting.origin.is_forked() {
            true => Err(ReceiveError::Forked),
            false => Ok(()),
        }
    }

    /// Learns what has changed, also where there was no room for the note of it. True where anything has.
    fn look_for_changes(&mut self) -> bool {
        self.take_notes();
        if self.sources.has_changed() {
            return true;
        }
        for lane in 0..self.sources.lanes() {
            if let Some(offered) = self.hub.behind(lane) {
                self.sources.note_behind(lane, offered);
            }
        }
        self.sources.has_changed()
    }

    /// Learns who has come and gone, and what they say has changed.
    fn take_notes(&mut self) {
        self.take_some_notes(NOTES);
    }

    fn take_some_notes(&mut self, most: usize) {
        for _ in 0..most {
            let next = self.hub.try_next();
            // First those that are gone: their numbers are used again.
            for lane in self.hub.take_gone() {
                self.sources.remove(lane);
            }
            let Some((lane, message)) = next else {
                return;
            };
            let inbox = self.hub.lane_mut(lane).inbox.get_mut();
            let number = inbox.number(message.record);
            let is_note = number.is_some() || message.record.role == Role::Missed;
            if !is_note {
                inbox.refuse(Fault::Control {
                    what: "no note, on a lane of newest values",
                });
                continue;
            }
            give_back(inbox, &message);
            if !self.sources.has(lane) {
                if let Some(reading) = inbox.take_reading(layout_of::<T>().align) {
                    self.sources.add(lane, reading);
                }
            }
            match number.map(usize::try_from) {
                Some(Ok(index)) => self.sources.note((lane, index)),
                Some(Err(_)) => {}
                None => self.sources.note_all(lane),
            }
        }
    }

    fn poll_changed(
        &mut self,
        place: &mut Place,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, ReceiveError>> {
        self.check_fork()?;
        let looks = if self.hub.wait == Wait::Park {
            1
        } else {
            LOOKS
        };
        for _ in 0..ROUNDS {
            for _ in 0..looks {
                // In this order: what came before the end is still told of.
                let ended = self.waiting.port.has_ended();
                if self.look_for_changes() {
                    return Poll::Ready(Ok(true));
                }
                if ended {
                    return Poll::Ready(Ok(false));
                }
                std::hint::spin_loop();
            }
            if self.hub.wait == Wait::Spin {
                break;
            }
            self.waiting.keep(place, cx.waker());
            if !self.hub.listen() {
                return Poll::Pending;
            }
        }
        // Others have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T: ShmLatest<Key = ()>> Latest<T> {
    /// The newest value, of one without a key.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    #[inline]
    pub fn value(&mut self) -> Result<Option<Current<'_, T>>, ReceiveError> {
        self.get(&())
    }
}

/// Waits for a change, as [`Latest::changed`] does: a future, or on a thread [`wait`](Self::wait).
///
/// True where something has changed; false where nothing will, since the bus was closed, or the parent of an inherited
/// link is gone.
#[must_use = "nothing waits before this is awaited"]
pub struct Changed<'a, T: ShmLatest> {
    latest: &'a mut Latest<T>,
    place: Place,
    timer: Option<Timeout>,
}

impl<T: ShmLatest> Changed<'_, T> {
    /// Waits for it on this thread.
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Forked`].
    pub fn wait(self) -> Result<bool, ReceiveError> {
        let due = self.latest.waiting.port.due().clone();
        block_on(&due, self)
    }

    /// As [`wait`](Self::wait), for at most so long: false also when the time is up.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(mut self, timeout: Duration) -> Result<bool, ReceiveError> {
        let due = self.latest.waiting.port.due().clone();
        self.timer = Some(Timeout::new(&due, Instant::now().checked_add(timeout)));
        block_on(&due, self)
    }
}

impl<T: ShmLatest> Future for Changed<'_, T> {
    type Output = Result<bool, ReceiveError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Poll::Ready(changed) = this.latest.poll_changed(&mut this.place, cx) {
            return Poll::Ready(changed);
        }
        let timer = this.timer.as_mut();
        match timer.is_some_and(|timer| timer.poll(cx).is_ready()) {
            true => Poll::Ready(Ok(false)),
            false => Poll::Pending,
        }
    }
}

impl<T: ShmLatest> Drop for Changed<'_, T> {
    fn drop(&mut self) {
        self.latest.waiting.leave(&mut self.place);
    }
}

/// What a reader of another make could do.
#[cfg(test)]
impl<T: ShmLatest> Latest<T> {
    pub(super) fn forge_hold(&self, word: u64) {
        self.sources.forge_hold(word);
    }

    /// Takes so many notes at most, and has lanes ring for the next.
    pub(super) fn take_some_and_listen(&mut self, most: usize) {
        self.take_some_notes(most);
        self.hub.listen();
    }

    /// As if all that is known to have changed had been told of.
    pub(super) fn forget_changes(&mut self) {
        while self.sources.next_change().is_some() {}
    }

    /// Whether it hears of a change, other than by counting what it has missed.
    pub(super) fn hears(&mut self) -> bool {
        self.take_notes();
        self.sources.has_changed()
    }
}
