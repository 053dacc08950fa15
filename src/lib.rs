//! A zero-copy typed message bus: processes on one machine exchange Rust messages through memory
//! that each of them alone may write, and a receiver borrows the archived message where its sender
//! wrote it.
//!
//! ```
//! use shmbus::{Bus, ShmMessage};
//!
//! #[derive(ShmMessage)]
//! #[shm(service = "greet", reply = Greeting)]
//! struct Name { name: String }
//!
//! #[derive(ShmMessage)]
//! struct Greeting { text: String }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // One process, or one thread, serves …
//! let bus = Bus::open("doc-lib")?;
//! let mut server = bus.server::<Name>()?;
//! let serving = std::thread::spawn(move || {
//!     while let Ok(Some(call)) = server.next() {
//!         let text = format!("Hello, {}!", call.name);
//!         call.reply(&Greeting { text }).expect("the reply fits");
//!     }
//! });
//!
//! // … another calls.
//! let client = Bus::open("doc-lib")?.client::<Name>()?;
//! let reply = client.call(&Name { name: "Ada".into() })?;
//! assert_eq!(reply.text, "Hello, Ada!");
//!
//! // The server ends with its bus.
//! bus.close();
//! serving.join().expect("the server does not panic");
//! # Ok(()) }
//! ```
//!
//! # Trust
//!
//! Memory is written by its owner only: the kernel refuses a peer every write. What a peer wrote is
//! checked before it is used. It is not copied, so a peer that is *malicious* could change its own
//! bytes after they were checked; peers of another user are refused, and one of the same user
//! could as well trace this process. A peer that is merely broken, or dies, harms nobody.
//!
//! Linux 5.1 or newer is needed.

#[cfg(not(all(
    target_os = "linux",
    target_endian = "little",
    target_pointer_width = "64"
)))]
compile_error!("shmbus needs Linux on a little-endian machine of 64 bits");

extern crate self as shmbus;

mod bus;
mod error;
mod lane;
mod link;
mod memory;
pub mod message;
mod service;
mod sync;
mod sys;
mod wait;

pub use bus::{Bus, Config};
pub use error::{CallError, ConnectError, Fault, MemoryError, OpenError, ReceiveError, SendError};
pub use lane::{Bulk, Bytes, Kept, View};
pub use link::node::Incident;
#[doc(hidden)]
pub use message::private as __private;
pub use message::{CodecError, ShmMessage, ShmRequest, schema_of};
pub use rkyv;
pub use service::{Call, Client, Receiver, Sender, Server};
/// Makes a struct or an enum a message that can be sent over the bus.
#[doc(inline)]
pub use shmbus_derive::ShmMessage;
pub use shmbus_schema as schema;
pub use wait::Wait;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDocTests;
