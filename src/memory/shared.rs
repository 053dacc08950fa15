//! A typed place in shared memory that keeps its mapping alive.
//!
//! Unsafe code is needed to turn a checked range of a mapping into a reference. It is sound since
//! a [`Shared`] can only be made
//!
//! 1. over a range that was checked to lie in the mapping, and is aligned for the type;
//! 2. for the types of [`layout`](super::layout), which consist of atomics and of bytes behind an
//!    `UnsafeCell`: every bit pattern is a value, and a write by the peer is no data race;
//! 3. with the owner of the mapping kept beside the pointer.
#![allow(unsafe_code)]

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use super::arena::Block;
#[cfg(not(loom))]
use super::layout::{
    Bell, BoardBlock, Cell, Doorbell, Entry, HoldBlock, ReceiverBlock, SenderBlock, TopicBlock,
};
use super::segment::PeerSegment;

/// What keeps the memory mapped.
#[allow(dead_code)] // held for its drop
enum Keep {
    Own(Arc<Block>),
    Peer(Arc<PeerSegment>),
    #[cfg(any(test, loom))]
    Heap(Arc<dyn std::any::Any + Send + Sync>),
}

/// A `T` in shared memory.
pub(crate) struct Shared<T: ?Sized> {
    place: NonNull<T>,
    keep: Keep,
}

// SAFETY: a `Shared` is a `&T` and an owner that is itself `Send` and `Sync`; the types it is made
// for are atomics.
unsafe impl<T: ?Sized + Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Sync> Sync for Shared<T> {}

// SAFETY: the payload behind a cell's header is only touched through raw pointers, by the side
// that owns the record at that moment (see `ring`).
unsafe impl Sync for super::layout::Cell {}

impl<T: ?Sized> Deref for Shared<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: 1., 2. and 3. of the module.
        unsafe { self.place.as_ref() }
    }
}

impl<T: ?Sized> Shared<T> {
    /// The block of our own in which it lies, if it lies in one.
    pub(crate) fn block(&self) -> Option<&Arc<Block>> {
        match &self.keep {
            Keep::Own(block) => Some(block),
            _ => None,
        }
    }
}

impl<T: ?Sized> Clone for Shared<T> {
    fn clone(&self) -> Self {
        let keep = match &self.keep {
            Keep::Own(block) => Keep::Own(block.clone()),
            Keep::Peer(segment) => Keep::Peer(segment.clone()),
            #[cfg(any(test, loom))]
            Keep::Heap(heap) => Keep::Heap(heap.clone()),
        };
        Shared {
            place: self.place,
            keep,
        }
    }
}

/// The types that may be laid over shared memory: atomics, and bytes behind an `UnsafeCell`.
///
/// # Safety
///
/// Every bit pattern is a value of the type, and all of its bytes may change at any moment.
pub(crate) unsafe trait Place {}
#[cfg(not(loom))]
const _: () = {
    // SAFETY: as those below, it consists of integer atomics, plain padding that is never read,
    // and bytes behind an `UnsafeCell`.
    unsafe impl Place for Cell {}
    // SAFETY: as above.
    unsafe impl Place for SenderBlock {}
    // SAFETY: as above.
    unsafe impl Place for TopicBlock {}
    // SAFETY: as above.
    unsafe impl Place for ReceiverBlock {}
    // SAFETY: as above.
    unsafe impl Place for BoardBlock {}
    // SAFETY: as above.
    unsafe impl Place for Entry {}
    // SAFETY: as above.
    unsafe impl Place for HoldBlock {}
    // SAFETY: as above.
    unsafe impl Place for Bell {}
    // SAFETY: as above.
    unsafe impl Place for Doorbell {}
};

impl<T: Place> Shared<T> {
    /// Zeroes a block of our own that is large enough, and lays a `T` over its start.
    pub(crate) fn own(block: Arc<Block>) -> Shared<T> {
        Shared::own_at(block, 0)
    }

    /// As [`own`](Self::own), behind the first `offset` bytes of the block.
    pub(crate) fn own_at(block: Arc<Block>, offset: usize) -> Shared<T> {
        let cells = Shared::<[T]>::own_slice(block, offset, 1);
        Shared {
            place: cells.place.cast(),
            keep: cells.keep,
        }
    }

    /// Lays a `T` over a checked place of a peer's segment.
    ///
    /// # Safety
    ///
    /// 1. `place` was resolved in `segment` for `size_of::<T>()` bytes on the alignment of `T`.
    pub(crate) unsafe fn peer(segment: Arc<PeerSegment>, place: NonNull<u8>) -> Shared<T> {
        Shared {
            place: place.cast(),
            keep: Keep::Peer(segment),
        }
    }
}

impl<T: Place> Shared<[T]> {
    /// Zeroes `count` places behind the first `offset` bytes of a block of our own.
    pub(crate) fn own_slice(block: Arc<Block>, offset: usize, count: usize) -> Shared<[T]> {
        let bytes = count * size_of::<T>();
        assert!(offset % align_of::<T>() == 0 && offset + bytes <= block.len());
        // SAFETY: the offset lies in the block.
        let place = unsafe { block.start().add(offset) };
        // SAFETY: the range lies in the block, which is ours alone to write.
        unsafe { place.write_bytes(0, bytes) };
        Shared {
            place: NonNull::slice_from_raw_parts(place.cast(), count),
            keep: Keep::Own(block),
        }
    }

    /// Lays `count` places over a checked range of a peer's segment.
    ///
    /// # Safety
    ///
    /// 1. `place` was resolved in `segment` for `count * size_of::<T>()` bytes on the alignment.
    pub(crate) unsafe fn peer_slice(
        segment: Arc<PeerSegment>,
        place: NonNull<u8>,
        count: usize,
    ) -> Shared<[T]> {
        let place = NonNull::slice_from_raw_parts(place.cast(), count);
        Shared {
            place,
            keep: Keep::Peer(segment),
        }
    }
}

#[cfg(any(test, loom))]
impl<T: Sync + Send + 'static> Shared<T> {
    /// A value on the heap, for tests and models: clones stand for the other side's mapping.
    pub(crate) fn heap(value: T) -> Shared<T> {
        let heap = Arc::new(value);
        Shared {
            place: NonNull::from(&*heap),
            keep: Keep::Heap(heap),
        }
    }
}

#[cfg(any(test, loom))]
impl<T: Sync + Send + 'static> Shared<[T]> {
    /// Values on the heap, as [`Shared::heap`].
    pub(crate) fn heap_slice(values: Vec<T>) -> Shared<[T]> {
        let heap = Arc::new(values);
        Shared {
            place: NonNull::from(&heap[..]),
            keep: Keep::Heap(heap),
        }
    }
}
