//! A message, borrowed where its sender wrote it.
//!
//! Unsafe code is needed to hold a borrow beside what keeps its memory.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

use rkyv::util::AlignedVec;

use super::Inbox;
use super::inbox::{Message, Received};
use super::opened::{Incoming, Sealed, Within};
use crate::link::pins::Hold;
use crate::memory::layout::CELL;
use crate::memory::ring::HandBack;
use crate::memory::segment::PeerSegment;
use crate::message::{CodecError, ShmMessage, layout_of, may_refer, to_owned};
use crate::sys::clock;

/// Whether a record is worth handing back at once: a block is large, and warm in the caches; and what takes
/// many cells may be all that its sender waits for.
#[inline(always)]
pub(crate) fn is_large(cells: u16, in_block: bool) -> bool {
    in_block || cells >= 8
}

/// Whether a message, or what it is a copy of, lies in a block, and not in the cells of its lane.
fn is_block(segment: Option<&Arc<PeerSegment>>) -> bool {
    segment.is_some_and(|segment| segment.is_block())
}

/// A record that is held: handed back when dropped.
pub(crate) struct Held<'a> {
    inbox: &'a RefCell<Inbox>,
    /// How many cells of that inbox are held.
    count: &'a Cell<usize>,
    cell: u16,
    cells: u16,
    number: u64,
    bytes: NonNull<[u8]>,
    segment: Option<Arc<PeerSegment>>,
}

impl<'a> Held<'a> {
    #[inline(always)]
    pub(crate) fn new(
        inbox: &'a RefCell<Inbox>,
        count: &'a Cell<usize>,
        record: Received,
        segment: Option<Arc<PeerSegment>>,
    ) -> Self {
        let Received {
            cell,
            cells,
            number,
            bytes,
            ..
        } = record;
        count.set(count.get() + usize::from(cells));
        Held {
            inbox,
            count,
            cell,
            cells,
            number,
            bytes,
            segment,
        }
    }

    /// The archived value, which was validated.
    ///
    /// # Safety
    ///
    /// 1. `archived` is what [`Inbox::validate`] returned for this message.
    #[inline(always)]
    pub(crate) unsafe fn view<T: ShmMessage>(self, archived: NonNull<T::Archived>) -> View<'a, T> {
        // SAFETY: it was validated, 1. `self` goes into the view beside the borrow, and hands the
        // record back when the view is dropped; its body keeps a block's segment mapped, or a copy, and
        // the inbox, borrowed for `'a`, that of the lane.
        let archived = unsafe { archived.as_ref() };
        View {
            archived,
            held: self,
        }
    }
}

impl Drop for Held<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.count.set(self.count.get() - usize::from(self.cells));
        let at_once = is_large(self.cells, self.segment.is_some());
        self.inbox.borrow_mut().hand_back(self.cell, at_once);
    }
}

/// A received message, borrowed where its sender archived it.
///
/// Dereferences to the archived type. It was validated once, when it was received. Dropping it
/// hands its memory back to the sender; views may be dropped in any order. A view borrows from the
/// port that received it, which costs nothing: [`keep`](Self::keep) one that must live longer or
/// go to another thread.
///
/// Of a peer that is not [trusted](crate::Trust), it borrows a copy that was made when it was received. It holds the
/// message's place on its lane all the same.
pub struct View<'a, T: ShmMessage> {
    archived: &'a T::Archived,
    held: Held<'a>,
}

impl<T: ShmMessage> View<'_, T> {
    /// Makes the owned value, copying what it needs.
    ///
    /// # Errors
    ///
    /// Where a custom `rkyv(with)` wrapper of one of its fields refuses the archived value.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # struct Moved { line: u32, column: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-to-value")?;
    /// # let mut receiver = bus.receiver::<Moved>("cursor")?;
    /// # let mut sender = bus.sender::<Moved>("cursor")?;
    /// # sender.send(&Moved { line: 3, column: 14 })?;
    /// let moved = receiver.next()?.expect("the bus is open").to_value()?;
    /// assert_eq!((moved.line, moved.column), (3, 14));
    /// # Ok(()) }
    /// ```
    pub fn to_value(&self) -> Result<T, CodecError> {
        to_owned::<T>(self.archived)
    }

    /// Keeps the message beyond its port, its link and its peer, on any thread.
    ///
    /// A message in the sender's slab stays where it is, and keeps that memory of the sender's. A
    /// small one lies in the lane itself, which must go on: it is copied out, 8 KiB at most. What is a copy
    /// already, of a peer that is not [trusted](crate::Trust), is kept as that, and handed back.
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # struct Moved { line: u32, column: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-keep")?;
    /// let mut receiver = bus.receiver::<Moved>("cursor")?;
    /// let mut sender = bus.sender::<Moved>("cursor")?;
    /// sender.send(&Moved { line: 3, column: 14 })?;
    /// let kept = receiver.next()?.expect("the bus is open").keep();
    /// drop((receiver, sender));
    /// let thread = std::thread::spawn(move || kept.line.to_native());
    /// assert_eq!(thread.join().expect("the thread does not panic"), 3);
    /// # Ok(()) }
    /// ```
    /// A small one that may refer to a [`Pinned`](crate::Pinned) one is copied, too, and handed back only with
    /// the copy: until then, it is what keeps the pin.
    pub fn keep(self) -> Kept<T> {
        let archived = NonNull::from(self.archived);
        let held = ManuallyDrop::new(self.held);
        held.count.set(held.count.get() - usize::from(held.cells));
        // SAFETY: `held` is never used or dropped again, so the segment has one owner.
        let segment = unsafe { std::ptr::read(&held.segment) };
        let mut inbox = held.inbox.borrow_mut();
        // SAFETY: 1. it was validated, 2. the record is held, and given up with `held`.
        unsafe {
            Kept::new(
                &mut inbox,
                archived,
                (held.cell, held.cells, held.number, held.bytes),
                segment,
            )
        }
    }

    /// When it was published, where its sender says so: with [`Config::timestamps`](crate::Config).
    pub fn published(&self) -> Option<Instant> {
        let Held {
            inbox,
            cell,
            segment,
            ..
        } = &self.held;
        clock::moment_of(inbox.borrow().published(*cell, is_block(segment.as_ref())))
    }

    /// How many messages came before it on its lane: from the same sender, or as requests of the same
    /// client, or as what the same server answered this client. Counted here, so that no sender can
    /// say another.
    pub fn sequence(&self) -> u64 {
        self.held.number
    }
}

impl<T: ShmMessage> Incoming for View<'_, T> {}

impl<T: ShmMessage> Sealed for View<'_, T> {
    fn within(&self) -> Within<'_> {
        Within::of_inbox(self.held.bytes, self.held.inbox)
    }
}

impl<T: ShmMessage> Deref for View<'_, T> {
    type Target = T::Archived;

    #[inline]
    fn deref(&self) -> &T::Archived {
        self.archived
    }
}

impl<T: ShmMessage<Archived: fmt::Debug>> fmt::Debug for View<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.archived.fmt(f)
    }
}

/// A record that is kept beyond its port: handed back when dropped.
struct Record {
    back: Arc<HandBack>,
    cell: u16,
    cells: u16,
}

impl Drop for Record {
    fn drop(&mut self) {
        self.back.release_kept(self.cell, self.cells);
    }
}

#[allow(dead_code)] // held for their drop
enum Store {
    // In this order: the memory is the sender's again when the record is handed back.
    InPlace(Record, Arc<PeerSegment>),
    // Of a peer that is not trusted.
    CopiedBefore(Arc<PeerSegment>),
    Copied(AlignedVec<NARROW>),
    CopiedWide(AlignedVec<CELL>),
}

/// The alignment that an allocator gives without being asked, which is much quicker.
const NARROW: usize = 16;

/// Copies bytes to this alignment, and says where they are then.
fn copy<const ALIGN: usize>(bytes: &[u8]) -> (AlignedVec<ALIGN>, NonNull<u8>) {
    let mut copy = AlignedVec::with_capacity(bytes.len().max(ALIGN));
    copy.extend_from_slice(bytes);
    let start = NonNull::from(copy.as_mut_slice()).cast();
    (copy, start)
}

/// A message that was kept: outlives its port, its link and its peer, and goes to any thread.
///
/// Dereferences to the archived type, like the [`View`] it came from. What it keeps of the
/// sender's slab is the sender's to use again once it is dropped.
pub struct Kept<T: ShmMessage> {
    archived: NonNull<T::Archived>,
    number: u64,
    published: u64,
    _store: Store,
    /// Where the message may refer to pins. Others are not to be larger for it.
    pins: Option<Box<Following>>,
}

/// What is needed to follow a kept message to its pins.
struct Following {
    /// All bytes of the message, in its store.
    bytes: NonNull<[u8]>,
    hold: Arc<Hold>,
    /// Of a message that was copied: until it is handed back, its sender keeps the pins.
    _record: Option<Record>,
}

// SAFETY: a `Kept` is a shared reference to the archived value and what keeps its memory, which is
// itself `Send` and `Sync`.
unsafe impl<T: ShmMessage<Archived: Sync>> Send for Kept<T> {}
// SAFETY: as above.
unsafe impl<T: ShmMessage<Archived: Sync>> Sync for Kept<T> {}

impl<T: ShmMessage> Kept<T> {
    /// Validates a message and keeps it. `None` has ended the link.
    pub(crate) fn of(inbox: &mut Inbox, mut message: Message) -> Option<Kept<T>> {
        let archived = inbox.validate::<T>(&mut message)?;
        let Message { record, segment } = message;
        // SAFETY: 1. it was just validated, 2. the message is given up.
        Some(unsafe {
            Kept::new(
                inbox,
                archived,
                (record.cell, record.cells, record.number, record.bytes),
                segment,
            )
        })
    }

    /// Keeps a record beyond its inbox: in place where it lies in a segment, else as a copy, which it may be already.
    ///
    /// # Safety
    ///
    /// 1. `archived` is what [`Inbox::validate`] returned for the message of these bytes.
    /// 2. The record was not handed back, and nobody else will.
    unsafe fn new(
        inbox: &mut Inbox,
        archived: NonNull<T::Archived>,
        (cell, cells, number, bytes): (u16, u16, u64, NonNull<[u8]>),
        segment: Option<Arc<PeerSegment>>,
    ) -> Kept<T> {
        let in_block = is_block(segment.as_ref());
        let published = inbox.published(cell, in_block);
        let holds_pins = may_refer::<T>() && layout_of::<T>().holds_pins;
        let hold = holds_pins.then(|| inbox.hold());
        let record = |inbox: &Inbox| {
            let back = inbox.back().clone();
            back.keep(cells);
            Record { back, cell, cells }
        };
        let (store, start) = match segment {
            Some(copy) if copy.is_copy() => (Store::CopiedBefore(copy), bytes.cast()),
            Some(segment) => {
                let follow = |hold| Following {
                    bytes,
                    hold,
                    _record: None,
                };
                return Kept {
                    archived,
                    number,
                    published,
                    _store: Store::InPlace(record(inbox), segment),
                    pins: hold.map(follow).map(Box::new),
                };
            }
            None => {
                // SAFETY: by 2. the record is still held, and its range was checked.
                let original = unsafe { bytes.as_ref() };
                if inbox.align() <= NARROW {
                    let (copy, start) = copy(original);
                    (Store::Copied(copy), start)
                } else {
                    let (copy, start) = copy(original);
                    (Store::CopiedWide(copy), start)
                }
            }
        };
        let follow = |hold| Following {
            bytes: NonNull::slice_from_raw_parts(start, bytes.len()),
            hold,
            _record: Some(record(inbox)),
        };
        let pins = hold.map(follow).map(Box::new);
        if pins.is_none() {
            inbox.hand_back(cell, is_large(cells, in_block));
        }
        let offset = archived.addr().get() - bytes.cast::<u8>().addr().get();
        // SAFETY: by 1. the root lies so many bytes behind the start, in the copy as in the original;
        // relative pointers are the same in both, and so is alignment, up to that of the lane's
        // messages.
        let archived = unsafe { start.add(offset) }.cast();
        Kept {
            archived,
            number,
            published,
            _store: store,
            pins,
        }
    }

    /// Makes the owned value, copying what it needs.
    ///
    /// # Errors
    ///
    /// As [`View::to_value`].
    pub fn to_value(&self) -> Result<T, CodecError> {
        to_owned::<T>(self)
    }

    /// When it was published, where its sender says so; see [`View::published`].
    pub fn published(&self) -> Option<Instant> {
        clock::moment_of(self.published)
    }

    /// How many messages came before it on its lane; see [`View::sequence`].
    pub fn sequence(&self) -> u64 {
        self.number
    }
}

impl<T: ShmMessage> Incoming for Kept<T> {}

impl<T: ShmMessage> Sealed for Kept<T> {
    fn within(&self) -> Within<'_> {
        match &self.pins {
            Some(pins) => Within::of_kept(pins.bytes, &pins.hold),
            None => Within::nothing(),
        }
    }
}

impl<T: ShmMessage> Deref for Kept<T> {
    type Target = T::Archived;

    #[inline]
    fn deref(&self) -> &T::Archived {
        // SAFETY: the store keeps the memory, and the record is not handed back before it.
        unsafe { self.archived.as_ref() }
    }
}

impl<T: ShmMessage<Archived: fmt::Debug>> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
