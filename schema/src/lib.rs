//! The archived layout of a message as data.
//!
//! A [`Schema`] says where each field of an archived message lies: the kind, size and alignment of
//! every type that can be reached from the message, the offsets of the fields, and the tags of the
//! variants. It is enough to
//!
//! - tell whether two processes mean the same bytes ([`Schema::fingerprint`]),
//! - say in words where they do not ([`diff`]),
//! - and read a message without its Rust type (`decode`, with the feature `json`).
//!
//! The format described is rkyv's with little-endian numbers, natural alignment and 32-bit relative
//! pointers. The crate does no I/O and needs neither rkyv nor shmbus.
//!
//! # Where a schema comes from
//!
//! The derive macro of shmbus emits a [`Description`] for each archived type as a constant. A
//! description names its children through functions, so that a type may contain itself.
//! [`Schema::flatten`] follows them once and keeps a table in which types are numbers.
//!
//! Two types of the same form are one row of the table, whatever their Rust paths: a schema
//! depends on what the bytes mean, and not on the modules, the crate or the build that wrote them.
#![forbid(unsafe_code)]

mod bytes;
#[cfg(feature = "json")]
mod decode;
mod description;
mod diff;
mod flatten;
#[cfg(feature = "json")]
mod json;
mod model;

pub use bytes::{MAX_BYTES, MAX_NAME, MAX_TYPES, SchemaError};
#[cfg(feature = "json")]
pub use decode::{DecodeError, Limits, decode, decode_at};
pub use description::{Child, Description, FieldDescription, Shape, VariantDescription};
pub use diff::{Difference, MAX_DIFFERENCES, diff, type_name};
pub use model::{Field, Form, Kind, Primitive, Schema, TypeDef, TypeId, Variant};
