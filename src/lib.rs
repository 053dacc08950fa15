//! A zero-copy typed message bus.

extern crate self as shmbus;

pub mod message;

#[doc(hidden)]
pub use message::private as __private;
pub use message::{ShmMessage, ShmRequest, schema_of};
pub use rkyv;
/// Makes a struct or an enum a message that can be sent over the bus.
#[doc(inline)]
pub use shmbus_derive::ShmMessage;
pub use shmbus_schema as schema;
