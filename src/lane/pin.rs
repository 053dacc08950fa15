//! Messages that are archived once, for any number of others to refer to.
//!
//! Unsafe code is needed to archive into shared memory, and to say of the archived handle that it is plain
//! words.
#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rkyv::bytecheck::CheckBytes;
use rkyv::primitive::ArchivedU64;
use rkyv::rancor::{Fallible, Source};
use rkyv::traits::NoUndef;
use rkyv::{Archive, Deserialize, Place, Portable, Serialize};

use super::outbox::{archive_around, unchanged};
use crate::error::SendError;
use crate::link::node::Node;
use crate::link::pins::Shelf;
use crate::memory::arena::Block;
use crate::memory::layout::SegmentRef;
use crate::memory::pins::{PinBlock, Pins};
use crate::message::{Describe, InPlace, Loans, ShmMessage, SlotWriter, Wanted, encode, layout_of};
use crate::schema::Shape;

/// Why a handle is refused by whoever did not pin it.
pub(super) const FOREIGN: &str = "it refers to a message that another bus pinned, whose memory is not this \
     one's to lend: pin a copy";

/// A message that was archived once, for any number of others to refer to: a field of a message.
///
/// Made by [`Bus::pin`](crate::Bus::pin). A handle is as cheap as an `Arc`, and clones name the same message.
/// Whoever receives a message with one follows it with [`ArchivedPinned::open`], which validates the pinned
/// message the first time, and costs next to nothing after that.
///
/// # Who keeps what alive
///
/// - A **handle** keeps the pinned message in the memory of the process that made it: until the last clone is
///   dropped.
/// - A **message** that refers to it keeps it, too, from being sent until its receiver has handed it back: by
///   dropping the view, the call or the [`Kept`](crate::Kept) one. Each receiver of a topic counts, and what
///   a publisher keeps for those who come later.
/// - So it is freed when both are over: its sender holds no handle any more, and nobody holds a message that
///   refers to it. A receiver counts nothing; that it dies, or its link ends, hands all back.
/// - When the **sender** dies, what receivers have stays readable, pins that were not opened yet included, for
///   as long as they hold a message that refers to them. The last of them frees the memory.
/// - What was **opened** borrows from the message that it was opened with. Who wants it for longer
///   [keeps](crate::View::keep) that message, whose record is then in use as long: a lane has 512 cells or
///   more, so keep one message a pin, not each that refers to it.
/// - A handle that came in a message, made a value with `to_value`, keeps nothing. It can be compared, and not
///   be sent.
///
/// It is sent by ports of the bus that pinned it, and of its clones: opening the same name once more makes another
/// bus, with memory of its own. Neither a pinned message nor a newest value ([`Bus::latest_publisher`](crate::Bus::latest_publisher)) can
/// refer to pins.
///
/// # Examples
///
/// ```
/// use shmbus::{Bus, Pinned, ShmMessage};
///
/// #[derive(ShmMessage)]
/// struct Document { path: String, text: String }
///
/// #[derive(ShmMessage)]
/// #[shm(service = "find", reply = Found)]
/// struct Find { document: Pinned<Document>, version: u64, word: String }
///
/// #[derive(ShmMessage)]
/// struct Found { at: Option<u64> }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let bus = Bus::open("doc-pinned")?;
/// # let mut server = bus.server::<Find>()?;
/// # let serving = std::thread::spawn(move || -> Result<(), shmbus::PinError> {
/// // The engine: many requests, one validation.
/// while let Ok(Some(call)) = server.next() {
///     // What was opened borrows the call, which `reply` takes: it is let go before.
///     let at = {
///         let document = call.document.open(&call)?;
///         document.text.find(call.word.as_str()).map(|at| at as u64)
///     };
///     let _ = call.reply(&Found { at });
/// }
/// # Ok(()) });
///
/// // The editor: archived once, however often it is asked about.
/// let client = bus.client::<Find>()?;
/// let text = "so much to say, so little time".repeat(1000);
/// let document = bus.pin(&Document { path: "a.txt".into(), text })?;
/// for (word, at) in [("much", Some(3)), ("little", Some(19)), ("nothing", None)] {
///     let find = Find { document: document.clone(), version: 1, word: word.into() };
///     assert_eq!(client.call(&find)?.at.as_ref().map(|at| at.to_native()), at);
/// }
/// # bus.close();
/// # serving.join().expect("the server does not panic")?;
/// # Ok(()) }
/// ```
pub struct Pinned<T> {
    words: Words,
    /// None for one that came in a message.
    handle: Option<Arc<Handle>>,
    _message: PhantomData<fn() -> T>,
}

/// All clones of one handle.
struct Handle {
    pin: Arc<PinBlock>,
    shelf: Arc<Shelf>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // In a forked child nothing of this is there.
        if !self.pin.block().segment().is_forked() {
            self.pin.orphan();
            self.shelf.dropped();
        }
    }
}

/// Where a pinned message lies, and its number. Every bit pattern is one; nothing of it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) at: SegmentRef,
    /// Never used twice in the process that pinned it.
    pub(super) number: u64,
}

impl<T: ShmMessage> Pinned<T> {
    /// Archives a message into a block of the slab.
    pub(crate) fn pin(node: &Arc<Node>, value: &T) -> Result<Pinned<T>, SendError> {
        // Relaxed: only that none comes twice matters.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if node.origin().is_forked() {
            return Err(SendError::Forked);
        }
        if layout_of::<T>().holds_pins {
            let what = "a pinned message cannot refer to pins itself".to_owned();
            return Err(SendError::Encode { what });
        }
        // What came back makes room.
        node.pins().sweep();
        let (block, at) = archive(node, value)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let handle = Handle {
            pin: PinBlock::new(block),
            shelf: node.pins().clone(),
        };
        Ok(Pinned {
            words: Words { at, number },
            handle: Some(Arc::new(handle)),
            _message: PhantomData,
        })
    }
}

/// Archives a message into a block of its own, or around the elements of a loan.
fn archive<T: ShmMessage>(node: &Node, value: &T) -> Result<(Arc<Block>, SegmentRef), SendError> {
    let mut loans = Loans::None;
    // SAFETY: 1. `loans` is a local that nobody else uses.
    let writer = unsafe { SlotWriter::counting().with_loans(&mut loans) };
    let needed = encode(value, writer).map_err(refused)?;
    let most = node.config().max_message;
    if needed > most {
        let bytes = needed;
        return Err(SendError::TooLarge { bytes, most });
    }
    if let Some(Wanted { loan, before }) = loans.into_wanted() {
        // A loan of another bus is copied like any other elements: its memory is no peer's of ours.
        if loan.block().is_of(node.arena()) && loan.claim() {
            let wanted = Wanted { loan, before };
            match archive_around(value, &wanted, &mut Pins::default()) {
                Ok(Some(at)) => return Ok((wanted.loan.block().clone(), at)),
                // No room around it: then its elements are copied.
                Ok(None) => wanted.loan.unclaim(),
                Err(error) => {
                    wanted.loan.unclaim();
                    return Err(refused(error));
                }
            }
        }
    }
    let block = Arc::new(node.arena().allocate(needed as u64)?);
    // SAFETY: 1. and 2. the block is ours alone: it was just cut.
    let writer = unsafe { SlotWriter::new(block.start().as_ptr(), block.len()) };
    let written = encode(value, writer).map_err(refused)?;
    unchanged(written, needed)?;
    let at = block.reference(0, needed);
    Ok((block, at))
}

fn refused(error: crate::message::EncodeError) -> SendError {
    let what = error.to_string();
    SendError::Encode { what }
}

impl<T> Clone for Pinned<T> {
    fn clone(&self) -> Self {
        Pinned {
            words: self.words,
            handle: self.handle.clone(),
            _message: PhantomData,
        }
    }
}

/// Handles are equal where they name the same pin: what is pinned a second time is another one.
///
/// Of two processes, they may look equal and be of different messages.
impl<T> PartialEq for Pinned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.words == other.words
    }
}

impl<T> Eq for Pinned<T> {}

impl<T> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Words { at, number } = self.words;
        write!(f, "Pinned(number {number}, {} bytes)", at.len)
    }
}

/// A handle as it lies in a message: followed with [`open`](Self::open).
#[derive(Portable)]
#[rkyv(crate = rkyv)]
#[repr(C)]
pub struct ArchivedPinned<T> {
    segment: ArchivedU64,
    offset: ArchivedU64,
    len: ArchivedU64,
    number: ArchivedU64,
    _message: PhantomData<fn() -> T>,
}

// SAFETY: four words in the order of C, without padding.
unsafe impl<T> NoUndef for ArchivedPinned<T> {}

// SAFETY: every bit pattern of four words is one; that they are true is not what is checked here.
unsafe impl<T, C: Fallible + ?Sized> CheckBytes<C> for ArchivedPinned<T> {
    unsafe fn check_bytes(_: *const Self, _: &mut C) -> Result<(), C::Error> {
        Ok(())
    }
}

impl<T> ArchivedPinned<T> {
    /// The number of the pin: where two that came from one process are equal, they are the same message, with
    /// the same content.
    pub fn number(&self) -> u64 {
        self.number.to_native()
    }

    /// Reads what it says, once.
    pub(super) fn words(&self) -> Words {
        let word = |word: &ArchivedU64| {
            // SAFETY: a reference may be read. Once: what is checked must be what is then used.
            unsafe { std::ptr::from_ref(word).read_volatile() }.to_native()
        };
        Words {
            at: SegmentRef {
                segment: word(&self.segment),
                offset: word(&self.offset),
                len: word(&self.len),
            },
            number: word(&self.number),
        }
    }
}

impl<T> fmt::Debug for ArchivedPinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Words { at, number } = self.words();
        write!(f, "Pinned(number {number}, {} bytes)", at.len)
    }
}

impl<T: ShmMessage> Describe for ArchivedPinned<T> {
    const SHAPE: Shape = {
        assert!(size_of::<Self>() == 32 && align_of::<Self>() == 8);
        Shape::Pinned {
            item: || T::Archived::DESCRIPTION,
        }
    };
}

impl<T: ShmMessage> Archive for Pinned<T> {
    type Archived = ArchivedPinned<T>;
    // Not empty: by that, types without pins are known.
    type Resolver = PinnedResolver;

    fn resolve(&self, resolver: PinnedResolver, out: Place<Self::Archived>) {
        let Words { at, number } = resolver.0;
        out.write(ArchivedPinned {
            segment: ArchivedU64::from_native(at.segment),
            offset: ArchivedU64::from_native(at.offset),
            len: ArchivedU64::from_native(at.len),
            number: ArchivedU64::from_native(number),
            _message: PhantomData,
        });
    }
}

/// What a handle is archived as, once its pin is noted.
#[doc(hidden)]
pub struct PinnedResolver(Words);

impl<T, S> Serialize<S> for Pinned<T>
where
    T: ShmMessage,
    S: Fallible<Error: Source> + InPlace + ?Sized,
{
    fn serialize(&self, serializer: &mut S) -> Result<PinnedResolver, S::Error> {
        match &self.handle {
            Some(handle) if serializer.lend(&handle.pin) => Ok(PinnedResolver(self.words)),
            _ => Err(S::Error::new(Foreign)),
        }
    }
}

/// See [`FOREIGN`].
#[derive(Debug, thiserror::Error)]
#[error("{FOREIGN}")]
struct Foreign;

impl<T: ShmMessage, D: Fallible + ?Sized> Deserialize<Pinned<T>, D> for ArchivedPinned<T> {
    /// The handle can be compared, and not be sent: what it names is its sender's.
    fn deserialize(&self, _: &mut D) -> Result<Pinned<T>, D::Error> {
        Ok(Pinned {
            words: self.words(),
            handle: None,
            _message: PhantomData,
        })
    }
}
