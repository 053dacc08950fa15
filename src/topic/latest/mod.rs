//! Newest values: what counts is the state, not how it came about.
//!
//! - [`LatestPublisher`]: archives a value, and puts it on its board (`lane::board`) in place of the one before.
//! - [`Latest`]: reads the newest value of a key where it lies, and learns what has changed; [`sources`], [`source`]: what
//!   it knows of the boards of all publishers, and of one; [`Current`]: a value that it looks at;
//!   [`waiting`]: who waits for a change.
//!
//! Publishers and readers find each other as those of a topic do. A publisher opens a lane to each reader, on which it
//! says which entries of its board have changed. The reader begins with the first note, since its hold is known to the
//! publisher by then. It reads values without the lane: a read is three loads and a store, however many
//! changes there were.

mod current;
mod publisher;
mod reader;
mod source;
mod sources;
#[cfg(test)]
mod tests;
mod waiting;

pub use current::Current;
pub use publisher::LatestPublisher;
pub use reader::{Change, Changed, Latest};
