//! What the derive writes into other crates. Not for use by hand, and not stable.
//!
//! Unsafe code: a test archives into bytes of its own.
#![allow(unsafe_code)]

use rkyv::bytecheck::CheckBytes;
use rkyv::{Archive, Deserialize, Serialize};

pub use super::codec::{Checker, Decoder, Encoder};
pub use super::describe::{Describe, describe};
pub use super::layout::Layouts;
pub use super::{ShmMessage, ShmRequest};
pub use crate::schema;
pub use rkyv;

use super::{EncodeError, InvalidMessage, SlotWriter, codec};

/// A type that can be a field of a message.
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

/// Named once for each field, so that a wrong type has one error that says so.
pub const fn assert_field<T: Field>() {}

/// Archives a message on the heap, aligned for any message. For tests.
///
/// # Errors
///
/// As `message::encode`.
pub fn to_bytes<T: ShmMessage>(value: &T) -> Result<rkyv::util::AlignedVec<64>, EncodeError> {
    let mut counter = SlotWriter::counting();
    codec::encode(value, &mut counter)?;
    let mut bytes = rkyv::util::AlignedVec::<64>::new();
    bytes.resize(counter.needed(), 0);
    // SAFETY: `bytes` has that many bytes, and is not touched until the writer was last used.
    let mut writer = unsafe { SlotWriter::new(bytes.as_mut_ptr(), bytes.len()) };
    codec::encode(value, &mut writer)?;
    assert_eq!(
        (writer.overflowed(), writer.needed()),
        (false, counter.needed())
    );
    Ok(bytes)
}

/// Checks bytes and borrows the message in them. For tests.
///
/// # Errors
///
/// As `message::check`.
pub fn access<T: ShmMessage>(bytes: &[u8]) -> Result<&T::Archived, InvalidMessage> {
    codec::check::<T>(bytes)
}

/// Copies a message out of its archived form. For tests.
///
/// # Errors
///
/// As `message::to_owned`.
pub fn to_owned<T: ShmMessage>(archived: &T::Archived) -> Result<T, super::CodecError> {
    codec::to_owned::<T>(archived)
}

/// Returns where the last of these fields lies in a variant of an archived enum.
///
/// A variant is a struct of a tag of one byte and the fields, in the order and with the padding of C.
/// A field is given by its size and alignment.
pub const fn variant_offset(fields: &[(usize, usize)]) -> usize {
    let (mut end, mut offset, mut index) = (1_usize, 0, 0);
    while index < fields.len() {
        let (size, align) = fields[index];
        offset = end.next_multiple_of(align);
        end = offset + size;
        index += 1;
    }
    offset
}
