//! Memory that one process writes and others read.
//!
//! - [`segment`]: one sealed memory file and its mapping, ours or a peer's.
//! - [`arena`]: all segments of this process, and who of ours uses which part of them.
//! - [`loan`]: a block that is filled before its message exists.
//! - [`pins`]: what messages refer to beside their own bytes.
//! - [`shared`]: a typed place in a segment, that keeps the segment mapped.
//! - [`board`]: newest values, read where they lie while others replace them.
//! - [`layout`]: every structure that two processes read.
//! - [`ring`]: the one-way stream of records between two of them.

pub(crate) mod arena;
pub(crate) mod board;
pub(crate) mod layout;
pub(crate) mod loan;
pub(crate) mod pins;
pub(crate) mod ring;
pub(crate) mod segment;
pub(crate) mod shared;
