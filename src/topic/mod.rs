//! Publish and subscribe: one message, many readers.
//!
//! - [`Publisher`]: archives a message once, and gives each subscriber a record of it, on a lane of its own;
//!   [`core`]: its lanes, and who is behind on them.
//! - [`Subscriber`], [`AsyncSubscriber`]: take messages of all publishers of a topic, as a port with many lanes.
//! - [`join`]: how they begin.
//! - [`latest`]: newest values, which take the place of those before them.
//!
//! # Who finds whom
//!
//! Both say in the bus's directory, or to the peer of an inherited link, that they take part. A publisher opens a
//! lane to each subscriber: to those that are there when it begins, and to those of which it learns later
//! (`link::topics`). One that begins waits until each of the other part that is there has joined it, for a second
//! at most: so a subscriber gets all that is published after it was made, and a publisher that was made later
//! leaves out nobody who was there before.

mod core;
mod join;
mod latest;
mod publisher;
mod subscriber;

pub use latest::{Change, Changed, Current, Latest, LatestPublisher};
pub use publisher::{Delivery, Publisher, Publishes, Publishing};
pub use subscriber::{AsyncSubscriber, NextMessage, Subscriber};
