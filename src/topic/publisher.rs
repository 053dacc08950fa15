//! The publishing end of a topic.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytemuck::Pod;

use super::core::Core;
use super::join;
use crate::bus::Shared as BusShared;
use crate::error::{ConnectError, MemoryError, SendError};
use crate::lane::{Bulk, Bytes, MOST_INLINE, Packer, Parcel};
use crate::link::offer::Offer;
use crate::message::ShmTopic;
use crate::service::contract::Contract;
use crate::wait::block::block_on;
use crate::wait::tasks::{Place, Timeout};
use crate::wait::{Patience, Step, Wait};

/// How many pauses lie between two looks for room.
const AWAY: usize = 8;
/// The most messages that those get who come later.
const MOST_HISTORY: usize = 256;

/// What a publisher does where a subscriber has no room for its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// It waits: the slowest subscriber holds it back, and none misses anything.
    #[default]
    Reliable,
    /// It goes on: the subscriber gets the newest message when it has room, and is told how many it has missed
    /// ([`ReceiveError::Lagged`](crate::ReceiveError)).
    Lossy,
}

/// How a publisher publishes.
///
/// # Examples
///
/// ```
/// use shmbus::{Bus, Delivery, Publishing, ShmMessage};
///
/// #[derive(ShmMessage)]
/// #[shm(topic = "progress")]
/// struct Progress { percent: u8 }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let bus = Bus::open("doc-publishing")?;
/// let how = Publishing { delivery: Delivery::Lossy, history: 1 };
/// let mut publisher = bus.publisher_as::<Progress>(how)?;
/// publisher.publish(&Progress { percent: 30 })?;
///
/// // Who comes later gets the last one.
/// let mut subscriber = bus.subscriber::<Progress>()?;
/// assert_eq!(subscriber.next()?.expect("the bus is open").percent, 30);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Publishing {
    /// What it does where a subscriber has no room.
    pub delivery: Delivery,
    /// How many of the last messages those get who subscribe later; at most 256.
    pub history: usize,
}

/// Publishes messages on a topic: each is archived once, and all subscribers borrow it where it lies.
///
/// There may be any number of publishers of a topic, in any processes and threads. Each subscriber gets all that
/// is published after it was made, in the order of each publisher.
pub struct Publisher<T: ShmTopic> {
    // Dropped first, so that nobody waits for one that ends.
    _presence: Offer,
    packer: Packer,
    /// Whether the last message was small: then the next one likely is, and is best archived in the lane of a
    /// single subscriber.
    was_small: bool,
    core: Arc<Core>,
    how: Publishing,
    wait: Wait,
    bus: Arc<BusShared>,
    _message: PhantomData<fn(T)>,
}

impl<T: ShmTopic> Publisher<T> {
    pub(crate) fn open(bus: &Arc<BusShared>, how: Publishing) -> Result<Self, ConnectError> {
        let node = bus.node();
        let keeps = (how.delivery, how.history.min(MOST_HISTORY));
        let (core, presence) = join::publish(node, T::TOPIC, Contract::topic::<T>(), keeps, None)?;
        Ok(Publisher {
            _presence: presence,
            packer: Packer::new::<T>(node),
            was_small: true,
            core,
            how,
            wait: node.config().wait,
            bus: bus.clone(),
            _message: PhantomData,
        })
    }

    /// Chooses how this publisher waits for room.
    pub fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
    }

    /// Makes another publisher of the same kind, for another thread.
    ///
    /// # Errors
    ///
    /// As [`Bus::publisher`](crate::Bus::publisher).
    pub fn try_clone(&self) -> Result<Self, ConnectError> {
        let mut clone = Publisher::open(&self.bus, self.how)?;
        clone.wait = self.wait;
        Ok(clone)
    }

    /// How many subscribers it reaches now.
    pub fn subscribers(&self) -> usize {
        self.core.subscribers()
    }

    /// Publishes a message to all subscribers; waits for room where it is [reliable](Delivery::Reliable).
    ///
    /// # Errors
    ///
    /// [`SendError::TooLarge`], [`SendError::Encode`], [`SendError::Memory`], [`SendError::Forked`]: nobody has
    /// got it.
    ///
    /// # Examples
    ///
    /// ```
    /// use shmbus::{Bus, ShmMessage};
    ///
    /// #[derive(ShmMessage)]
    /// #[shm(topic = "saved")]
    /// struct Saved { path: String }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-publish")?;
    /// let mut one = bus.subscriber::<Saved>()?;
    /// let mut other = bus.subscriber::<Saved>()?;
    /// let mut publisher = bus.publisher::<Saved>()?;
    /// publisher.publish(&Saved { path: "main.rs".into() })?;
    /// assert_eq!(one.next()?.expect("the bus is open").path, "main.rs");
    /// assert_eq!(other.next()?.expect("the bus is open").path, "main.rs");
    /// # Ok(()) }
    /// ```
    #[inline]
    pub fn publish(&mut self, message: &T) -> Result<(), SendError> {
        self.publish_until(message, None)
    }

    /// As [`publish`](Self::publish), but waits at most so long.
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish); [`SendError::Full`] when the time is up: nobody has got it, and what was
    /// lent for it stays in place.
    pub fn publish_timeout(&mut self, message: &T, timeout: Duration) -> Result<(), SendError> {
        self.publish_until(message, Some(Instant::now().checked_add(timeout)).flatten())
    }

    /// As [`publish`](Self::publish), but never waits.
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish); [`SendError::Full`] where a subscriber has no room: nobody has got it, and
    /// what was lent for it stays in place.
    #[inline]
    pub fn try_publish(&mut self, message: &T) -> Result<(), SendError> {
        let mut parcel = None;
        match self.attempt(message, &mut parcel)? {
            true => Ok(()),
            false => Err(full(parcel)),
        }
    }

    /// As [`publish`](Self::publish), for a task.
    pub fn publish_async<'a>(&'a mut self, message: &'a T) -> Publishes<'a, T> {
        Publishes {
            publisher: self,
            message,
            parcel: None,
            place: Place::default(),
            timer: None,
        }
    }

    /// Borrows memory of the slab to fill; see [`Client::loan_bytes`](crate::Client::loan_bytes).
    ///
    /// # Errors
    ///
    /// [`SendError::TooLarge`], [`SendError::Memory`].
    pub fn loan_bytes(&mut self, len: usize) -> Result<Bytes, SendError> {
        self.loan_slice(len)
    }

    /// Borrows memory of the slab to fill with numbers, which start on a cache line.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLarge`], [`SendError::Memory`].
    ///
    /// # Examples
    ///
    /// ```
    /// use shmbus::{Bulk, Bus, ShmMessage};
    ///
    /// #[derive(ShmMessage)]
    /// #[shm(topic = "embeddings")]
    /// struct Embedding { document: u64, values: Bulk<f32> }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-publisher-loan")?;
    /// let mut subscriber = bus.subscriber::<Embedding>()?;
    /// let mut publisher = bus.publisher::<Embedding>()?;
    /// let mut values = publisher.loan_slice::<f32>(1_536)?;
    /// values.fill(0.5);
    /// publisher.publish(&Embedding { document: 1, values })?;
    /// let embedding = subscriber.next()?.expect("the bus is open");
    /// assert_eq!(embedding.values.len(), 1_536);
    /// assert!(embedding.values.as_ptr().addr() % 64 == 0);
    /// # Ok(()) }
    /// ```
    pub fn loan_slice<E: Pod>(&mut self, len: usize) -> Result<Bulk<E>, SendError> {
        if self.bus.node().origin().is_forked() {
            return Err(SendError::Forked);
        }
        match self.packer.loan(len, || self.core.take_back()) {
            Err(SendError::Memory(MemoryError::Limit { .. })) => {
                self.core.take_back();
                self.packer.drop_returned();
                self.packer.loan(len, || {})
            }
            loan => loan,
        }
    }

    /// Archives the message, if that was not done, and publishes it if there is room: else it is left in
    /// `parcel`, and nobody was given it.
    #[inline]
    fn attempt(&mut self, message: &T, parcel: &mut Option<Parcel>) -> Result<bool, SendError> {
        if parcel.is_none() && self.was_small && !self.bus.node().origin().is_forked() {
            if let Some(was_small) = self.core.publish_to_one(message)? {
                self.was_small = was_small;
                return Ok(true);
            }
        }
        let packed = match parcel.take() {
            Some(packed) => packed,
            None => match self.pack(message)? {
                Some(packed) => packed,
                None => return Ok(false),
            },
        };
        let is_published = self.core.publish(&packed)?;
        if !is_published {
            *parcel = Some(packed);
        }
        Ok(is_published)
    }

    /// Archives the message; `None` where there will be memory when something comes back.
    #[inline]
    fn pack(&mut self, message: &T) -> Result<Option<Parcel>, SendError> {
        if self.bus.node().origin().is_forked() {
            return Err(SendError::Forked);
        }
        let core = &self.core;
        match self.packer.pack(message, || core.take_back()) {
            Err(SendError::Memory(MemoryError::Limit { .. })) => self.pack_again(message),
            Ok(packed) => {
                self.was_small = packed.block_len() <= MOST_INLINE;
                Ok(Some(packed))
            }
            Err(error) => Err(error),
        }
    }

    #[cold]
    fn pack_again(&mut self, message: &T) -> Result<Option<Parcel>, SendError> {
        let core = &self.core;
        core.take_back();
        self.packer.drop_returned();
        // What is kept for those who may come is given up before anybody waits, or fails.
        while core.forget_oldest() {
            self.packer.drop_returned();
            match self.packer.pack(message, || core.take_back()) {
                Err(SendError::Memory(MemoryError::Limit { .. })) => {}
                packed => return packed.map(Some),
            }
        }
        match self.packer.pack(message, || core.take_back()) {
            Err(SendError::Memory(MemoryError::Limit { .. }))
                if self.how.delivery == Delivery::Reliable && core.has_lent() =>
            {
                Ok(None)
            }
            packed => packed.map(Some),
        }
    }

    #[inline]
    fn publish_until(&mut self, message: &T, deadline: Option<Instant>) -> Result<(), SendError> {
        let mut parcel = None;
        if self.attempt(message, &mut parcel)? {
            return Ok(());
        }
        self.wait_for_room(message, parcel, deadline)
    }

    #[cold]
    fn wait_for_room(
        &mut self,
        message: &T,
        mut parcel: Option<Parcel>,
        deadline: Option<Instant>,
    ) -> Result<(), SendError> {
        let mut patience = Patience::new(self.wait, deadline);
        loop {
            match patience.step() {
                Step::Again => {
                    // Each look takes the line from the subscriber that is about to write it.
                    for _ in 0..AWAY {
                        std::hint::spin_loop();
                    }
                }
                Step::TimeUp => return Err(full(parcel)),
                Step::Sleep(_) => break,
            }
            if self.attempt(message, &mut parcel)? {
                return Ok(());
            }
        }
        let due = self.core.due().clone();
        let timer = Timeout::new(&due, deadline);
        let publishes = Publishes {
            publisher: self,
            message,
            parcel,
            place: Place::default(),
            timer: Some(timer),
        };
        block_on(&due, publishes)
    }
}

/// There is no room for a message, which nobody was given.
#[cold]
fn full(parcel: Option<Parcel>) -> SendError {
    parcel.into_iter().for_each(Parcel::give_up);
    SendError::Full
}

impl<T: ShmTopic> Drop for Publisher<T> {
    fn drop(&mut self) {
        self.core.end();
    }
}

/// A message that is published, as [`Publisher::publish_async`] waits for room.
#[must_use = "nothing is published before this is awaited"]
pub struct Publishes<'a, T: ShmTopic> {
    publisher: &'a mut Publisher<T>,
    message: &'a T,
    /// Once it was archived, and as long as nobody was given it.
    parcel: Option<Parcel>,
    place: Place,
    timer: Option<Timeout>,
}

// Nothing in it is ever pinned.
impl<T: ShmTopic> Unpin for Publishes<'_, T> {}

impl<T: ShmTopic> Publishes<'_, T> {
    fn attempt(&mut self, cx: &mut Context<'_>) -> Result<bool, SendError> {
        let Publishes {
            publisher,
            message,
            parcel,
            place,
            ..
        } = self;
        if publisher.attempt(message, parcel)? {
            return Ok(true);
        }
        if parcel.is_none() {
            publisher.core.wait_for_memory(place, cx.waker());
            // Once more, behind the asking. Where there is memory now, a lane may be full that was not asked.
            if publisher.attempt(message, parcel)? {
                return Ok(true);
            }
        }
        let Some(packed) = parcel.take() else {
            return Ok(false);
        };
        let is_published = publisher.core.publish_or_wait(&packed, place, cx.waker())?;
        if !is_published {
            *parcel = Some(packed);
        }
        Ok(is_published)
    }
}

impl<T: ShmTopic> Future for Publishes<'_, T> {
    type Output = Result<(), SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.attempt(cx) {
            Ok(true) => return Poll::Ready(Ok(())),
            Ok(false) => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
        let timer = self.timer.as_mut();
        match timer.is_some_and(|timer| timer.poll(cx).is_ready()) {
            true => Poll::Ready(Err(full(self.parcel.take()))),
            false => Poll::Pending,
        }
    }
}

impl<T: ShmTopic> Drop for Publishes<'_, T> {
    fn drop(&mut self) {
        self.publisher.core.leave(&mut self.place);
        self.parcel.take().into_iter().for_each(Parcel::give_up);
    }
}
