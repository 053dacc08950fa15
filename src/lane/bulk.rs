//! Payloads that are filled in place: bytes and numbers that are written once.
//!
//! A [`Bulk`] is a field of a message like a `Vec`, and archives like one. Borrowed from a port
//! (`loan_bytes`, `loan_slice`), its elements lie in the slab already; when its message is sent,
//! the rest of the message is archived around them, and nothing is copied.
//!
//! Unsafe code is needed to fill memory that a message will refer to.
//!
//! # Why nobody writes what a receiver reads
//!
//! 1. A loan's block is cut for it alone.
//! 2. Sending it sets `sent`; from then on the elements are only read, and a change of them is
//!    made in a copy on the heap.
//! 3. The block is used again only when neither the loan nor a record in flight holds it.
#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::Pod;
use rkyv::rancor::Fallible;
use rkyv::ser::{Allocator, Writer};
use rkyv::traits::CopyOptimization;
use rkyv::vec::{ArchivedVec, VecResolver};
use rkyv::{Archive, Deserialize, Place, Serialize};

use crate::memory::arena::Block;
use crate::memory::loan::LoanBlock;
use crate::message::InPlace;

/// Bytes that may lie in the slab already: a field of a message.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut bytes = shmbus::Bytes::from(vec![1u8, 2, 3]);
/// bytes[0] = 9;
/// assert_eq!(&bytes[..], [9, 2, 3]);
/// # Ok(()) }
/// ```
pub type Bytes = Bulk<u8>;

/// Numbers that may lie in the slab already: a field of a message. Archives like a `Vec<T>`.
///
/// # Examples
///
/// ```
/// use shmbus::{Bulk, ShmMessage};
///
/// #[derive(ShmMessage)]
/// struct Samples { values: Bulk<u32> }
///
/// let samples = Samples { values: vec![1, 2, 3].into() };
/// assert_eq!(samples.values.iter().sum::<u32>(), 6);
/// ```
pub struct Bulk<T>(Store<T>);

enum Store<T> {
    Owned(Vec<T>),
    Loan(LoanBlock, PhantomData<T>),
}

impl<T: Pod> Bulk<T> {
    /// A block starts on a cache line, and its length is counted in elements.
    const FITS: () = assert!(
        align_of::<T>() <= 64 && size_of::<T>() > 0,
        "the elements of a loan have at least a byte, and an alignment of at most 64"
    );

    /// Lends a block for `len` elements, which hold whatever was there before.
    ///
    /// ```compile_fail
    /// # #[derive(shmbus::ShmMessage)]
    /// # struct Chunk { content: shmbus::Bytes }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = shmbus::Bus::open("doc-lend")?;
    /// # let receiver = bus.receiver::<Chunk>("chunks")?;
    /// let mut sender = bus.sender::<Chunk>("chunks")?;
    /// let nothing = sender.loan_slice::<()>(1)?; // an element has at least a byte
    /// # Ok(()) }
    /// ```
    pub(crate) fn lend(block: Arc<Block>, len: usize) -> Bulk<T> {
        let () = Self::FITS;
        let bytes = len * size_of::<T>();
        Bulk(Store::Loan(LoanBlock::new(block, bytes), PhantomData))
    }

    /// True while the elements lie in the slab and were not sent: then sending copies nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, Bytes, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # struct Chunk { content: Bytes }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-in-place")?;
    /// # let receiver = bus.receiver::<Chunk>("upload")?;
    /// let mut sender = bus.sender::<Chunk>("upload")?;
    /// let chunk = Chunk { content: sender.loan_bytes(70_000)? };
    /// assert!(chunk.content.is_in_place());
    /// sender.send(&chunk)?;
    /// assert!(!chunk.content.is_in_place());
    /// assert!(!Bytes::from(vec![1]).is_in_place());
    /// # Ok(()) }
    /// ```
    pub fn is_in_place(&self) -> bool {
        matches!(&self.0, Store::Loan(loan, _) if !loan.was_sent())
    }
}

impl<T: Pod> Deref for Bulk<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        match &self.0 {
            Store::Owned(elements) => elements,
            Store::Loan(loan, _) => {
                let len = loan.bytes() / size_of::<T>();
                // SAFETY: so many elements lie in the block, on its alignment of 64 bytes (`FITS`); every
                // bit pattern is a `T`; and by 1. and 2. nobody writes them while this borrow lives.
                unsafe { NonNull::slice_from_raw_parts(loan.start().cast(), len).as_ref() }
            }
        }
    }
}

impl<T: Pod> DerefMut for Bulk<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        if matches!(&self.0, Store::Loan(loan, _) if loan.was_sent()) {
            self.0 = Store::Owned(self.to_vec());
        }
        match &mut self.0 {
            Store::Owned(elements) => elements,
            Store::Loan(loan, _) => {
                let len = loan.bytes() / size_of::<T>();
                // SAFETY: as in `deref`; it was not sent, and this handle is borrowed mutably.
                unsafe { NonNull::slice_from_raw_parts(loan.start().cast(), len).as_mut() }
            }
        }
    }
}

impl<T> From<Vec<T>> for Bulk<T> {
    fn from(elements: Vec<T>) -> Self {
        Bulk(Store::Owned(elements))
    }
}

impl<T: Pod> Clone for Bulk<T> {
    fn clone(&self) -> Self {
        self.to_vec().into()
    }
}

impl<T> Default for Bulk<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Bulk<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Pod + PartialEq> PartialEq for Bulk<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Pod + Archive> Bulk<T> {
    /// Elements are written as they lie in memory, so that must be how they are archived.
    const SAME_BYTES: () = assert!(
        T::COPY_OPTIMIZATION.is_enabled()
            && size_of::<T>() == size_of::<T::Archived>()
            && align_of::<T>() <= 64
            && size_of::<T>() > 0,
        "the elements of a `Bulk` must be archived exactly as they lie in memory"
    );
}

impl<T: Pod + Archive> Archive for Bulk<T> {
    type Archived = ArchivedVec<T::Archived>;
    type Resolver = VecResolver;
    // Its own bytes are a pointer and a length, as for `Vec`.
    const COPY_OPTIMIZATION: CopyOptimization<Self> = CopyOptimization::disable();

    fn resolve(&self, resolver: VecResolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_len(self.len(), resolver, out);
    }
}

impl<T, S> Serialize<S> for Bulk<T>
where
    T: Pod + Serialize<S>,
    S: Fallible + Allocator + Writer + InPlace + ?Sized,
{
    fn serialize(&self, serializer: &mut S) -> Result<VecResolver, S::Error> {
        let () = Self::SAME_BYTES;
        if let Store::Loan(loan, _) = &self.0 {
            if let Some(pos) = serializer.in_place(loan) {
                return Ok(VecResolver::from_pos(pos));
            }
        }
        ArchivedVec::serialize_from_slice(self, serializer)
    }
}

impl<T, D> Deserialize<Bulk<T>, D> for ArchivedVec<T::Archived>
where
    T: Archive,
    D: Fallible + ?Sized,
    ArchivedVec<T::Archived>: Deserialize<Vec<T>, D>,
{
    fn deserialize(&self, deserializer: &mut D) -> Result<Bulk<T>, D::Error> {
        let elements: Vec<T> = self.deserialize(deserializer)?;
        Ok(elements.into())
    }
}
