//! What is asked of the types in a message, with an error that says what to do.
//!
//! The derive names `assert_part` and its like once for each type in a message, before anything that
//! asks more. They ask only what the compiler can answer without looking into the other type, where
//! it may meet the first one again.

use std::hash::Hash;

use rkyv::bytecheck::CheckBytes;
use rkyv::{Archive, Deserialize, Serialize};

use super::codec::{Checker, Decoder, Encoder};
use super::describe::Describe;

/// `T`, if `PROOF` can be had.
///
/// Where it cannot, the compiler has said why, and says no more of what `T` is used for.
pub type Checked<T, const PROOF: bool> = <T as Known<PROOF>>::Itself;

/// How a type depends on a constant.
pub trait Known<const PROOF: bool> {
    /// The type.
    type Itself;
}

impl<T, const PROOF: bool> Known<PROOF> for T {
    type Itself = T;
}

/// A type that can be part of a message.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a message: add `#[derive(shmbus::ShmMessage)]` to it",
    label = "cannot be part of a message",
    note = "a type of another crate is archived as something else: `#[rkyv(with = …)]` on the field"
)]
pub trait Part {}

#[diagnostic::do_not_recommend]
impl<T: Archive<Archived: Describe>> Part for T {}

/// A type with arguments that can be part of a message.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a message: add `#[derive(shmbus::ShmMessage)]` to it, and to its \
               arguments",
    label = "cannot be part of a message",
    note = "a type of another crate is archived as something else: `#[rkyv(with = …)]` on the field"
)]
pub trait Generic {}

#[diagnostic::do_not_recommend]
impl<T: Archive> Generic for T {}

/// A type that can be the key of a hash map in a message.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the key of a hash map in a message",
    label = "not a key",
    note = "add `#[derive(shmbus::ShmMessage, PartialEq, Eq, Hash)]` and \
            `#[rkyv(derive(PartialEq, Eq, Hash))]` to `{Self}`"
)]
pub trait HashKey {}

#[diagnostic::do_not_recommend]
impl<T: Archive<Archived: Describe + Hash + Eq> + Hash + Eq> HashKey for T {}

/// A type that can be the key of a B-tree map in a message.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the key of a B-tree map in a message",
    label = "not a key",
    note = "add `#[derive(shmbus::ShmMessage, PartialEq, Eq, PartialOrd, Ord)]` and \
            `#[rkyv(derive(PartialEq, Eq, PartialOrd, Ord))]` to `{Self}`"
)]
pub trait TreeKey {}

#[diagnostic::do_not_recommend]
impl<T: Archive<Archived: Describe + Ord> + Ord> TreeKey for T {}

/// A type that can be a field of a message: everything that is asked of it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a field of a message",
    label = "this type cannot be archived",
    note = "derive `ShmMessage` for `{Self}`, or choose a wrapper with `#[rkyv(with = …)]`"
)]
pub trait Field:
    Archive<Archived: Describe + for<'a> CheckBytes<Checker<'a>> + Deserialize<Self, Decoder>>
    + Serialize<Encoder>
    + Sized
{
}

#[diagnostic::do_not_recommend]
impl<T> Field for T where
    T: Archive<Archived: Describe + for<'a> CheckBytes<Checker<'a>> + Deserialize<T, Decoder>>
        + Serialize<Encoder>
{
}

/// Only compiles for part of a message.
pub const fn assert_part<T: Part>() {}

/// Only compiles for part of a message.
pub const fn assert_generic<T: Generic>() {}

/// Only compiles for the key of a hash map.
pub const fn assert_hash_key<T: HashKey>() {}

/// Only compiles for the key of a B-tree map.
pub const fn assert_tree_key<T: TreeKey>() {}

/// Named once for each field, so that a type which lacks what the others do not ask has one error
/// that says so.
pub const fn assert_field<T: Field>() {}
