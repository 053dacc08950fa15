//! Message to bytes, bytes to borrowed message, borrowed message to message.
//!
//! Unsafe code: what was checked is borrowed as its archived type, and a sender looks again at what
//! it has just written.
#![allow(unsafe_code)]

use std::error::Error;
use std::fmt;
use std::num::NonZeroUsize;

use rkyv::Deserialize;
use rkyv::api::{access_pos_with_context, root_position, serialize_using};
use rkyv::rancor::{Source, Strategy, Trace};
use rkyv::ser::Serializer;
use rkyv::validation::archive::ArchiveValidator;
use thiserror::Error;

use super::ShmMessage;
use super::layout::layout_of;
use super::scratch::Scratch;
use super::writer::{MAX_MESSAGE, SlotWriter};

/// How deep what is behind pointers may be nested in a message: text in a box in a vector is 3.
///
/// A receiver follows pointers by calling itself, so that without a limit a few hundred kilobytes of
/// boxes in boxes would use up its stack.
pub const MAX_DEPTH: usize = 128;

/// Archives into a destination.
pub type Encoder = Strategy<Serializer<SlotWriter, Scratch, ()>, CodecError>;
/// Checks bytes.
pub type Checker<'a> = Strategy<ArchiveValidator<'a>, CodecError>;
/// Copies a message out.
pub type Decoder = Strategy<(), CodecError>;

/// Archives `value` after what `writer` holds.
///
/// After `Ok`, either the message stands in the destination with its root last, or the writer has
/// [overflowed](SlotWriter::overflowed) and knows the exact size; then nothing may be published.
///
/// # Errors
///
/// The message is larger than 1 GiB, or nested deeper than a receiver accepts, or one of its fields
/// refuses to be archived. The destination then holds no message.
#[inline]
pub(crate) fn encode<T: ShmMessage>(value: &T, writer: &mut SlotWriter) -> Result<(), EncodeError> {
    let taken = std::mem::replace(writer, SlotWriter::counting());
    let mut serializer = Serializer::new(taken, Scratch::default(), ());
    let result = serialize_using::<_, CodecError>(value, &mut serializer);
    std::mem::swap(writer, &mut serializer.writer);
    result?;
    // A type without pointers has nothing to resolve, and is known here without a load.
    if size_of::<T::Resolver>() != 0 && layout_of::<T>().recursive {
        check_written::<T>(writer)?;
    }
    Ok(())
}

/// Refuses what a receiver would refuse for its depth.
///
/// Only values of recursive types can be too deep, and only they are looked at twice.
fn check_written<T: ShmMessage>(writer: &SlotWriter) -> Result<(), EncodeError> {
    if let Some(bytes) = writer.written() {
        // SAFETY: these bytes were just written by this thread, in memory that nobody else writes
        // to while the writer is in use.
        let bytes = unsafe { &*bytes };
        check::<T>(bytes).map_err(|error| EncodeError(error.0))?;
    }
    Ok(())
}

/// Checks that `bytes` are a message with its root at the end, and borrows it.
///
/// # Errors
///
/// Says what in the bytes is not of the type.
#[inline]
pub(crate) fn check<T: ShmMessage>(bytes: &[u8]) -> Result<&T::Archived, InvalidMessage> {
    check_at::<T>(bytes, root_position::<T::Archived>(bytes.len()))
}

/// Checks that `bytes` are a message with its root at `pos`, and borrows it.
///
/// # Errors
///
/// Says what in the bytes is not of the type.
#[inline]
pub(crate) fn check_at<T: ShmMessage>(
    bytes: &[u8],
    pos: usize,
) -> Result<&T::Archived, InvalidMessage> {
    // One more than may be entered, since the validator ends when it comes to zero.
    let depth = NonZeroUsize::new(MAX_DEPTH + 1);
    let mut validator = ArchiveValidator::with_max_depth(bytes, depth);
    access_pos_with_context::<T::Archived, _, CodecError>(bytes, pos, &mut validator)
        .map_err(InvalidMessage)
}

/// Copies a message out of its archived form.
///
/// # Errors
///
/// One of the fields refuses to be copied, which those of the standard library do not.
pub(crate) fn to_owned<T: ShmMessage>(archived: &T::Archived) -> Result<T, CodecError> {
    archived.deserialize(Decoder::wrap(&mut ()))
}

/// Why a message could not be archived.
#[derive(Debug, Error)]
#[error("the message cannot be archived: {0}")]
pub struct EncodeError(#[source] CodecError);

impl From<CodecError> for EncodeError {
    fn from(error: CodecError) -> Self {
        Self(error)
    }
}

/// Why bytes are not the message that they should be.
#[derive(Debug, Error)]
#[error("the bytes are not a valid message: {0}")]
pub struct InvalidMessage(#[source] CodecError);

/// What went wrong with the bytes of a message, in words.
///
/// Made only in the case of an error, and as large as a pointer.
#[derive(Debug)]
pub struct CodecError(Box<str>);

impl CodecError {
    #[cold]
    pub(super) fn too_large() -> Self {
        let limit = MAX_MESSAGE >> 30;
        Self(format!("it is larger than {limit} GiB; send it in parts").into())
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for CodecError {}

impl Source for CodecError {
    #[cold]
    fn new<T: Error + Send + Sync + 'static>(source: T) -> Self {
        Self(source.to_string().into())
    }
}

impl Trace for CodecError {
    #[cold]
    fn trace<R: fmt::Debug + fmt::Display + Send + Sync + 'static>(self, trace: R) -> Self {
        let trace = trace.to_string();
        // The validator says no more than this when the limit that it was given is reached.
        if trace.contains("exceeded the maximum subtree depth") {
            let text = format!("it is nested deeper than {MAX_DEPTH} pointers; make it flatter");
            return Self(text.into());
        }
        Self(format!("{} (in: {trace})", self.0).into())
    }
}
