//! What a bus has for one that writes and many that read.

use super::Bus;
use crate::error::{ConnectError, SendError};
use crate::lane::Pinned;
use crate::message::{ShmLatest, ShmMessage, ShmTopic};
use crate::topic::{AsyncSubscriber, Latest, LatestPublisher, Publisher, Publishing, Subscriber};

impl Bus {
    /// Publishes on the topic of `T`, waiting for the slowest subscriber. There may be any number of publishers.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Open`], [`ConnectError::Memory`].
    ///
    /// # Examples
    ///
    /// ```
    /// use shmbus::{Bus, ShmMessage};
    ///
    /// #[derive(ShmMessage)]
    /// #[shm(topic = "cursor")]
    /// struct Moved { line: u32, column: u32 }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-bus-publisher")?;
    /// let mut publisher = bus.publisher::<Moved>()?;
    /// let mut subscriber = bus.subscriber::<Moved>()?;
    /// publisher.publish(&Moved { line: 3, column: 14 })?;
    /// assert_eq!(subscriber.next()?.expect("the bus is open").column, 14);
    /// # Ok(()) }
    /// ```
    pub fn publisher<T: ShmTopic>(&self) -> Result<Publisher<T>, ConnectError> {
        self.publisher_as(Publishing::default())
    }

    /// As [`publisher`](Self::publisher), in another way: without waiting, or with a history.
    ///
    /// # Errors
    ///
    /// As [`publisher`](Self::publisher).
    pub fn publisher_as<T: ShmTopic>(&self, how: Publishing) -> Result<Publisher<T>, ConnectError> {
        Publisher::open(&self.shared, how)
    }

    /// Subscribes to the topic of `T`: to all publishers that are there, and to those that come.
    ///
    /// # Errors
    ///
    /// As [`publisher`](Self::publisher).
    pub fn subscriber<T: ShmTopic>(&self) -> Result<Subscriber<T>, ConnectError> {
        Subscriber::open(&self.shared)
    }

    /// As [`subscriber`](Self::subscriber), for any number of tasks and threads.
    ///
    /// # Errors
    ///
    /// As [`publisher`](Self::publisher).
    pub fn async_subscriber<T: ShmTopic>(&self) -> Result<AsyncSubscriber<T>, ConnectError> {
        AsyncSubscriber::open(&self.shared)
    }

    /// Publishes newest values: each takes the place of the one before it, of the same key.
    ///
    /// # Errors
    ///
    /// As [`publisher`](Self::publisher).
    pub fn latest_publisher<T: ShmLatest>(&self) -> Result<LatestPublisher<T>, ConnectError> {
        LatestPublisher::open(&self.shared)
    }

    /// Reads the newest values of all publishers, also of those that come later.
    ///
    /// # Errors
    ///
    /// As [`subscriber`](Self::subscriber).
    pub fn latest<T: ShmLatest>(&self) -> Result<Latest<T>, ConnectError> {
        Latest::open(&self.shared)
    }

    /// Archives a message once, for any number of later ones to refer to: see [`Pinned`] for who keeps it alive.
    ///
    /// Elements that were filled in place stay where they are, if the loan is of a port of this bus.
    ///
    /// # Errors
    ///
    /// - [`SendError::TooLarge`], [`SendError::Memory`], [`SendError::Forked`].
    /// - [`SendError::Encode`]: it cannot be archived, or refers to pins itself.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # struct Document { text: String }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-pin")?;
    /// let document = bus.pin(&Document { text: "fn main() {}".into() })?;
    /// # Ok(()) }
    /// ```
    pub fn pin<T: ShmMessage>(&self, message: &T) -> Result<Pinned<T>, SendError> {
        Pinned::pin(self.shared.node(), message)
    }
}
