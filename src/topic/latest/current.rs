//! A newest value that is borrowed.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use crate::lane::Holding;
use crate::memory::segment::PeerSegment;
use crate::message::{CodecError, ShmLatest, to_owned};
use crate::sys::clock;

/// A newest value, borrowed where its publisher wrote it.
///
/// Dereferences to the archived type. It was validated once, when it was first read. It stays as it is while it is
/// borrowed, also where a newer one takes its place meanwhile: ask again for that. Copy out what is to be kept,
/// with [`to_value`](Self::to_value).
///
/// Of a publisher that is not [trusted](crate::Trust), it is copied, and validated, each time it is read.
pub struct Current<'a, T: ShmLatest> {
    archived: &'a T::Archived,
    _hold: Holding<'a>,
    published: u64,
    // Behind the hold: what is held is mapped.
    _segment: Arc<PeerSegment>,
}

impl<'a, T: ShmLatest> Current<'a, T> {
    /// A value that was validated, what holds it, and its segment.
    #[inline]
    pub(super) fn new(
        archived: &'a T::Archived,
        hold: Holding<'a>,
        published: u64,
        segment: Arc<PeerSegment>,
    ) -> Self {
        Current {
            archived,
            _hold: hold,
            published,
            _segment: segment,
        }
    }

    /// Makes the owned value, copying what it needs.
    ///
    /// # Errors
    ///
    /// As [`View::to_value`](crate::View::to_value).
    pub fn to_value(&self) -> Result<T, CodecError> {
        to_owned::<T>(self.archived)
    }

    /// When it was published.
    pub fn published(&self) -> Option<Instant> {
        clock::moment_of(self.published)
    }
}

impl<T: ShmLatest> Deref for Current<'_, T> {
    type Target = T::Archived;

    #[inline]
    fn deref(&self) -> &T::Archived {
        self.archived
    }
}

impl<T: ShmLatest<Archived: fmt::Debug>> fmt::Debug for Current<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.archived.fmt(f)
    }
}
