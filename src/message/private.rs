//! What the derive writes into other crates. Not for use by hand, and not stable.
//!
//! Unsafe code: a test archives into bytes of its own.
#![allow(unsafe_code)]

pub use super::codec::{Checker, Decoder, Encoder, check as access, encode, to_owned};
pub use super::describe::{Describe, describe};
pub use super::field::{
    Checked, Field, Generic, HashKey, Known, Part, TreeKey, assert_field, assert_generic,
    assert_hash_key, assert_part, assert_tree_key,
};
pub use super::layout::Layouts;
pub use super::{Nothing, ShmLatest, ShmMessage, ShmRequest, ShmTopic};
pub use crate::schema;
pub use rkyv;

use super::{EncodeError, SlotWriter};

/// Archives a message on the heap, aligned for any message. For tests.
///
/// # Errors
///
/// As `message::encode`.
pub fn to_bytes<T: ShmMessage>(value: &T) -> Result<rkyv::util::AlignedVec<64>, EncodeError> {
    let needed = encode(value, SlotWriter::counting())?;
    let mut bytes = rkyv::util::AlignedVec::<64>::new();
    bytes.resize(needed, 0);
    // SAFETY: `bytes` has that many bytes, and is not touched until the writer was last used.
    let writer = unsafe { SlotWriter::new(bytes.as_mut_ptr(), bytes.len()) };
    assert_eq!(encode(value, writer)?, needed);
    Ok(bytes)
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
