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
//! Errors, streams, cancelling, deadlines, and how to port a service of tarpc, tonic or lsp-server, are
//! shown in [`conversation`]; publishing and subscribing in [`topics`]; what is known of a peer that died in
//! [`failures`].
//!
//! # Features
//!
//! None is on by default.
//!
//! | feature | what it adds |
//! |---|---|
//! | `futures` | [`AsyncItems`] is a `futures_core::Stream` |
//! | `json` | schemas as JSON, archived messages as `serde_json::Value`, and the flight recorder |
//! | `tokio` | `Driver::run_on_tokio` |
//! | `tracing` | a span on each side of a call, of one trace |
//!
//! # Trust
//!
//! Memory is written by its owner only: the kernel refuses a peer every write. What a peer wrote is
//! checked before it is used. A peer that is merely broken, or dies, harms nobody.
//!
//! By default it is not copied, so a peer that is *malicious* could change its own bytes after they were
//! checked; peers of another user are refused, and one of the same user could as well trace this process. Where
//! that is not so, say it with [`Config::trust`]: what comes from peers that are not [trusted](Trust) is copied, and the
//! copy checked and borrowed. `SECURITY.md` says what is promised then, and what is not.
//!
//! Linux 5.1 or newer is needed.

// Under loom, the protocol of the shared words is built alone, for its models: what moves messages
// and opens links is left out, and parts of what stays are used by nobody.
#![cfg_attr(loom, allow(dead_code, unused_imports))]

#[cfg(not(all(
    target_os = "linux",
    target_endian = "little",
    target_pointer_width = "64"
)))]
compile_error!("shmbus needs Linux on a little-endian machine of 64 bits");

extern crate self as shmbus;

#[cfg(fuzzing)]
#[doc(hidden)]
#[path = "fuzzing/mod.rs"]
pub mod __fuzz;
#[cfg(not(loom))]
mod bus;
#[cfg(not(loom))]
mod driver;
mod error;
#[cfg(not(loom))]
mod lane;
#[cfg(not(loom))]
mod link;
mod memory;
#[cfg(not(loom))]
pub mod message;
#[cfg(not(loom))]
mod service;
mod sync;
mod sys;
#[cfg(not(loom))]
mod topic;
mod wait;
#[cfg(not(loom))]
mod wait_set;

#[cfg(not(loom))]
pub use bus::{Bus, Config, Trust};
#[cfg(not(loom))]
pub use driver::Driver;
#[cfg(not(loom))]
pub use error::CallError;
pub use error::{
    ConnectError, Ended, Fault, MemoryError, OpenError, PinError, ReceiveError, SendError,
};
#[cfg(not(loom))]
pub use lane::{ArchivedPinned, Bulk, Bytes, Incoming, Kept, Opened, Pinned, View};
#[cfg(all(feature = "json", not(loom)))]
pub use link::flight::{FlightLane, FlightMessage, FlightRecord};
#[cfg(not(loom))]
pub use link::node::Incident;
#[cfg(not(loom))]
#[doc(hidden)]
pub use message::private as __private;
#[cfg(not(loom))]
pub use message::{
    CodecError, LatestKey, Nothing, ShmLatest, ShmMessage, ShmRequest, ShmTopic, schema_of,
};
pub use rkyv;
#[cfg(not(loom))]
pub use service::{
    AsyncCall, AsyncClient, AsyncItems, AsyncServer, Next, Pending, Sending, Services, Serving,
    Task,
};
#[cfg(not(loom))]
pub use service::{Call, Client, Items, Receiver, Sender, Server};
/// Makes a struct or an enum a message that can be sent over the bus.
#[doc(inline)]
pub use shmbus_derive::ShmMessage;
pub use shmbus_schema as schema;
#[cfg(not(loom))]
pub use topic::{
    AsyncSubscriber, Change, Changed, Current, Delivery, Latest, LatestPublisher, NextMessage,
    Publisher, Publishes, Publishing, Subscriber,
};
pub use wait::Wait;
#[cfg(not(loom))]
pub use wait_set::{Event, WaitPort, WaitSet};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDocTests;

#[cfg(doctest)]
#[doc = include_str!("../SECURITY.md")]
struct SecurityDocTests;

#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/conversation.md")]
pub mod conversation {}

#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/topics.md")]
pub mod topics {}

#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/failures.md")]
pub mod failures {}
