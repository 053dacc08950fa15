//! Messages of which the newest is kept, of each key.

use rkyv::Archive;
use rkyv::string::ArchivedString;

use super::ShmMessage;

/// A message of which only the newest counts: the newest of all, or of each key.
///
/// Implemented by the derive for a type with `#[shm(latest = "…")]` or `#[shm(latest = "…", key = "field")]`.
///
/// # Examples
///
/// ```
/// use shmbus::{ShmLatest, ShmMessage};
///
/// #[derive(ShmMessage)]
/// #[shm(latest = "diagnostics", key = "path")]
/// struct Diagnostics { path: String, warnings: u32 }
///
/// assert_eq!(Diagnostics::LATEST, "diagnostics");
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not published as newest values",
    label = "not a message of which the newest is kept",
    note = "say under which name: `#[shm(latest = \"name\")]`, and of which key, if of each: `key = \"field\"`"
)]
pub trait ShmLatest: ShmMessage {
    /// Of what there is one value each: the type of a field, or `()` where there is only one.
    type Key: LatestKey;
    /// The name: 1 to 100 bytes, without `/` and NUL.
    const LATEST: &'static str;

    /// What this is the newest value of.
    fn key(&self) -> &Self::Key;

    /// As [`key`](Self::key), of the archived message.
    fn archived_key(archived: &Self::Archived) -> &<Self::Key as Archive>::Archived;
}

/// What there can be a newest value of: text, a number, or `()`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no key of newest values",
    label = "neither text nor a number",
    note = "a key is a `String` or an integer; of several fields, make one text"
)]
pub trait LatestKey: Archive<Archived: Sized> + Clone + Send + 'static {
    /// As what it is asked for: `str` for text.
    type Query: ?Sized;

    /// As what it is asked for.
    fn as_query(&self) -> &Self::Query;

    /// Does something with the bytes by which keys are told apart.
    fn with_bytes<R>(query: &Self::Query, then: impl FnOnce(&[u8]) -> R) -> R;

    /// As [`with_bytes`](Self::with_bytes), of an archived key.
    fn with_archived<R>(archived: &Self::Archived, then: impl FnOnce(&[u8]) -> R) -> R;

    /// The key of these bytes; `None` where it is none.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl LatestKey for () {
    type Query = ();

    fn as_query(&self) -> &() {
        self
    }

    fn with_bytes<R>((): &(), then: impl FnOnce(&[u8]) -> R) -> R {
        then(&[])
    }

    fn with_archived<R>((): &(), then: impl FnOnce(&[u8]) -> R) -> R {
        then(&[])
    }

    fn from_bytes(bytes: &[u8]) -> Option<()> {
        bytes.is_empty().then_some(())
    }
}

impl LatestKey for String {
    type Query = str;

    fn as_query(&self) -> &str {
        self
    }

    fn with_bytes<R>(query: &str, then: impl FnOnce(&[u8]) -> R) -> R {
        then(query.as_bytes())
    }

    fn with_archived<R>(archived: &ArchivedString, then: impl FnOnce(&[u8]) -> R) -> R {
        then(archived.as_bytes())
    }

    fn from_bytes(bytes: &[u8]) -> Option<String> {
        std::str::from_utf8(bytes).ok().map(str::to_owned)
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl LatestKey for $number {
            type Query = $number;

            fn as_query(&self) -> &$number {
                self
            }

            fn with_bytes<R>(query: &$number, then: impl FnOnce(&[u8]) -> R) -> R {
                then(&query.to_le_bytes())
            }

            fn with_archived<R>(
                archived: &<$number as Archive>::Archived,
                then: impl FnOnce(&[u8]) -> R,
            ) -> R {
                then(&<$number>::from(*archived).to_le_bytes())
            }

            fn from_bytes(bytes: &[u8]) -> Option<$number> {
                bytes.try_into().ok().map(<$number>::from_le_bytes)
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, u128, i8, i16, i32, i64, i128);
