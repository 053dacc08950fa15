//! What a message is, and how it becomes bytes and is read from them.
//!
//! A message is a Rust type with [`#[derive(ShmMessage)]`](derive@crate::ShmMessage). The derive
//! gives it an *archived* form, whose bytes mean the same in every process: no pointers but relative
//! ones, one byte order, no padding that depends on the compiler. A sender writes this form straight
//! into its own memory; a receiver checks it once and then borrows it as `&T::Archived`.
//!
//! # What a check proves
//!
//! That the bytes are *a* value of the archived type: every pointer stays inside, text is UTF-8, tags
//! and bools are valid, nothing is nested deeper than [`MAX_DEPTH`]. It does not prove that the
//! sender meant this type: `{u64, String}` may well be a valid `{u64, u64}`. That is what the
//! [fingerprint](crate::schema::Schema::fingerprint) of the schema is compared for.

mod codec;
mod describe;
mod field;
#[doc(hidden)]
mod latest;
mod layout;
pub mod private;
mod scratch;
mod writer;

use std::fmt;
use std::hash::Hash;

use rkyv::bytecheck::CheckBytes;
use rkyv::{Archive, Deserialize, Serialize};

use codec::{Checker, Decoder, Encoder};
pub use codec::{CodecError, EncodeError, InvalidMessage, MAX_DEPTH};
#[allow(
    unused_imports,
    reason = "the floors above send and receive with these"
)]
pub(crate) use codec::{check, check_at, encode, to_owned};
pub use describe::{Describe, MAX_ALIGN};
pub use latest::{LatestKey, ShmLatest};
use layout::Layouts;
#[allow(
    unused_imports,
    reason = "the floors above send and receive with these"
)]
pub(crate) use layout::{Layout, layout_of};
pub use writer::{InPlace, MAX_MESSAGE, SlotWriter};
pub(crate) use writer::{Loans, Wanted, may_refer};

use crate::schema::Schema;

/// A type that can be sent over the bus.
///
/// Implemented by [`#[derive(ShmMessage)]`](derive@crate::ShmMessage), and by nothing else. What the
/// trait asks for is what the bus does with a message: write it, check it, borrow it, copy it out,
/// and describe it. So generic code needs no bound but `T: ShmMessage`.
///
/// # Examples
///
/// ```
/// use shmbus::{ShmMessage, schema_of};
///
/// #[derive(ShmMessage)]
/// struct Moved { line: u32, column: u32 }
///
/// fn name<T: ShmMessage>() -> &'static str {
///     schema_of::<T>().name()
/// }
/// assert_eq!(name::<Moved>(), "Moved");
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a message",
    label = "not a message",
    note = "add `#[derive(shmbus::ShmMessage)]` to `{Self}`, or put it in a struct that has it"
)]
pub trait ShmMessage:
    Archive<
        Archived: Describe + for<'a> CheckBytes<Checker<'a>> + Deserialize<Self, Decoder> + 'static,
    > + Serialize<Encoder>
    + Sized
    + 'static
{
    /// The name under which the schema of the message is known.
    #[doc(hidden)]
    const NAME: &'static str;

    /// Where the layouts of this type, and of those that differ in generic arguments, are kept.
    #[doc(hidden)]
    fn layouts() -> &'static Layouts;
}

/// What cannot be sent: the items of a service without a stream, and the errors of one without errors.
#[derive(Debug, shmbus_derive::ShmMessage)]
#[shm(name = "(none)")]
pub struct Nothing {
    _private: (),
}

/// A message that is answered: a request of a service.
///
/// Implemented by the derive for a type with `#[shm(service = "…", reply = …)]`.
///
/// # Examples
///
/// ```
/// use shmbus::{ShmMessage, ShmRequest};
///
/// #[derive(ShmMessage)]
/// #[shm(service = "add", reply = Sum)]
/// struct Add { left: u64, right: u64 }
///
/// #[derive(ShmMessage)]
/// struct Sum { value: u64 }
///
/// assert_eq!(Add::SERVICE, "add");
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a request",
    label = "not a request",
    note = "say which service it asks and what is answered: `#[shm(service = \"name\", reply = Type)]`"
)]
pub trait ShmRequest: ShmMessage {
    /// What the service answers.
    type Reply: ShmMessage;
    /// What it sends before that, where the answer is a stream: `stream = Type`.
    type Item: ShmMessage;
    /// What it answers where it has no reply: `error = Type`.
    type Error: ShmMessage + fmt::Debug;
    /// By what a newer request supersedes an older one: `supersedes = "field"`.
    type Key: Eq + Hash + Clone + Send + 'static;
    /// The name of the service: 1 to 100 bytes, without `/` and NUL.
    const SERVICE: &'static str;
    /// Whether it does no harm that a request is handled twice: `idempotent`. One whose server dies before it
    /// answered is then sent again, to that server's successor.
    const IDEMPOTENT: bool = false;

    /// What this request supersedes: older ones of its client that have the same key, and are not
    /// answered yet, are cancelled as soon as it is made.
    #[inline]
    fn supersedes(&self) -> Option<&Self::Key> {
        None
    }
}

/// A message that is published on a topic, for any number of subscribers.
///
/// Implemented by the derive for a type with `#[shm(topic = "…")]`.
///
/// # Examples
///
/// ```
/// use shmbus::{ShmMessage, ShmTopic};
///
/// #[derive(ShmMessage)]
/// #[shm(topic = "progress")]
/// struct Progress { percent: u8 }
///
/// assert_eq!(Progress::TOPIC, "progress");
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not published on a topic",
    label = "not on a topic",
    note = "say on which: `#[shm(topic = \"name\")]`"
)]
pub trait ShmTopic: ShmMessage {
    /// The name of the topic: 1 to 100 bytes, without `/` and NUL.
    const TOPIC: &'static str;
}

/// Returns the schema of a message type: where each of its fields lies when it is archived.
///
/// Made when it is first asked for; from then on a call costs a few loads, and neither allocates
/// nor locks.
///
/// # Examples
///
/// ```
/// use shmbus::{ShmMessage, schema_of};
///
/// #[derive(ShmMessage)]
/// struct Moved { line: u32, column: u32 }
///
/// let schema = schema_of::<Moved>();
/// assert_eq!(schema.root().size, 8);
/// assert_eq!(schema.fingerprint(), schema_of::<Moved>().fingerprint());
/// ```
pub fn schema_of<T: ShmMessage>() -> &'static Schema {
    &layout_of::<T>().schema
}
