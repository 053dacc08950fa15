//! How a receiver follows a message to what it refers to.
//!
//! Unsafe code is needed to borrow bytes of a peer's that were checked.
//!
//! # Why what was opened stays as it is
//!
//! 1. The handle lies in a message that its receiver has and that was not handed back: its place is compared.
//! 2. So an honest sender has the pin's block lent with that record, and writes nothing there (`memory::pins`).
//! 3. The record is not handed back while the message is borrowed, which [`Opened`] does.
//! 4. [`Opened`] holds the segment mapped.
//!
//! A pin of a peer that is not trusted is copied each time it is opened, unless it is open already: [`Opened`] holds
//! the copy in place of the segment, and what was validated is that.
#![allow(unsafe_code)]

use std::any::TypeId;
use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use rkyv::api::root_position;

use super::Inbox;
use super::pin::{ArchivedPinned, Words};
use crate::error::{Fault, PinError};
use crate::link::Link;
use crate::link::pins::{Hold, PinKey};
use crate::memory::segment::PeerSegment;
use crate::message::{CodecError, ShmMessage, check, layout_of, to_owned};

/// A message as its receiver has it: a [`View`](crate::View), a [`Kept`](crate::Kept) one, a
/// [`Call`](crate::Call) or an [`AsyncCall`](crate::AsyncCall).
///
/// With it, the pins are [opened](ArchivedPinned::open) that the message refers to.
pub trait Incoming: Sealed {}

/// What an [`Incoming`] message is to this module.
pub trait Sealed {
    fn within(&self) -> Within<'_>;
}

/// The bytes of a message, and by whom pins in it are found.
pub struct Within<'a> {
    bytes: NonNull<[u8]>,
    by: By<'a>,
}

enum By<'a> {
    Inbox(&'a RefCell<Inbox>),
    Hold(&'a Hold),
    Nobody,
}

impl<'a> Within<'a> {
    pub(crate) fn of_inbox(bytes: NonNull<[u8]>, inbox: &'a RefCell<Inbox>) -> Within<'a> {
        let by = By::Inbox(inbox);
        Within { bytes, by }
    }

    pub(crate) fn of_kept(bytes: NonNull<[u8]>, hold: &'a Hold) -> Within<'a> {
        let by = By::Hold(hold);
        Within { bytes, by }
    }

    /// A message whose type has no handles.
    pub(crate) fn nothing() -> Within<'a> {
        let (bytes, by) = (NonNull::from(&mut []), By::Nobody);
        Within { bytes, by }
    }

    fn contains<T>(&self, handle: &ArchivedPinned<T>) -> bool {
        let start = self.bytes.cast::<u8>().addr().get();
        let end = start + self.bytes.len();
        let at = NonNull::from(handle).addr().get();
        start <= at && at + size_of_val(handle) <= end
    }
}

/// A pinned message, borrowed where its sender archived it: dereferences to the archived type.
///
/// Borrows from the message that it was opened with.
pub struct Opened<'a, T: ShmMessage> {
    archived: NonNull<T::Archived>,
    _segment: Arc<PeerSegment>,
    _message: PhantomData<&'a T::Archived>,
}

// SAFETY: an `Opened` is a shared reference to the archived value and what keeps its memory, which is itself
// `Send` and `Sync`.
unsafe impl<T: ShmMessage<Archived: Sync>> Send for Opened<'_, T> {}
// SAFETY: as above.
unsafe impl<T: ShmMessage<Archived: Sync>> Sync for Opened<'_, T> {}

impl<T: ShmMessage> Opened<'_, T> {
    /// Makes the owned value, copying what it needs.
    ///
    /// # Errors
    ///
    /// As [`View::to_value`](crate::View::to_value).
    pub fn to_value(&self) -> Result<T, CodecError> {
        to_owned::<T>(self)
    }
}

impl<T: ShmMessage> Deref for Opened<'_, T> {
    type Target = T::Archived;

    #[inline]
    fn deref(&self) -> &T::Archived {
        // SAFETY: it was validated, by 1. to 4. of the module it stays so, and it is mapped.
        unsafe { self.archived.as_ref() }
    }
}

impl<T: ShmMessage<Archived: fmt::Debug>> fmt::Debug for Opened<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ShmMessage> ArchivedPinned<T> {
    /// Borrows the pinned message where its sender archived it. `message` is the one that this handle is a
    /// field of.
    ///
    /// Validated when it is first opened, by whichever message of whichever port, and known from then on: of
    /// each peer, some hundred pins are remembered, and of each lane a few that cost not even a lock. One of a peer
    /// that is not [trusted](crate::Trust) is copied, and validated, whenever it is opened and is not open yet.
    ///
    /// # Errors
    ///
    /// - [`PinError::NotOfMessage`]: the handle is part of another message.
    /// - [`PinError::Fault`]: what the peer wrote cannot be true. Its link has ended.
    /// - [`PinError::Lost`]: the link ended before the pin's memory was known here.
    /// - [`PinError::Forked`].
    ///
    /// # Examples
    ///
    /// ```
    /// use shmbus::{Bus, Pinned, ShmMessage};
    ///
    /// #[derive(ShmMessage)]
    /// struct Document { text: String }
    ///
    /// #[derive(ShmMessage)]
    /// struct Edited { document: Pinned<Document>, version: u64 }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-open-pin")?;
    /// let mut receiver = bus.receiver::<Edited>("edits")?;
    /// let mut sender = bus.sender::<Edited>("edits")?;
    /// let document = bus.pin(&Document { text: "fn main() {}".into() })?;
    /// sender.send(&Edited { document, version: 1 })?;
    ///
    /// let edited = receiver.next()?.expect("the bus is open");
    /// let document = edited.document.open(&edited)?;
    /// assert_eq!(document.text, "fn main() {}");
    /// # Ok(()) }
    /// ```
    pub fn open<'a>(&self, message: &'a impl Incoming) -> Result<Opened<'a, T>, PinError> {
        let within = message.within();
        if !within.contains(self) {
            return Err(PinError::NotOfMessage);
        }
        let Words { at, number } = self.words();
        let ty = TypeId::of::<T>();
        let key = PinKey { at, number, ty };
        let segment = match within.by {
            By::Inbox(inbox) => of_inbox::<T>(inbox, key)?,
            By::Hold(hold) => of_link::<T>(hold.link(), key)?,
            By::Nobody => return Err(PinError::NotOfMessage),
        };
        // What was validated lay in this very mapping, so this finds it there again; or this is its copy.
        let align = layout_of::<T>().align as u64;
        let place = segment.resolve(at, align);
        let place = place.expect("it was resolved there before");
        let root = root_position::<T::Archived>(at.len as usize);
        // SAFETY: the range lies in the segment, and the root in the range: both were checked.
        let archived = unsafe { place.add(root) }.cast();
        Ok(Opened {
            archived,
            _segment: segment,
            _message: PhantomData,
        })
    }
}

/// The segment of a pin that was validated, as one lane remembers it.
#[inline]
fn of_inbox<T: ShmMessage>(
    inbox: &RefCell<Inbox>,
    key: PinKey,
) -> Result<Arc<PeerSegment>, PinError> {
    let link = {
        let mut inbox = inbox.borrow_mut();
        if inbox.link().is_forked() {
            return Err(PinError::Forked);
        }
        if let Some(segment) = inbox.pins.find(&key) {
            return Ok(segment);
        }
        inbox.link().clone()
    };
    let found = of_link::<T>(&link, key);
    let mut inbox = inbox.borrow_mut();
    match &found {
        Ok(segment) => inbox.pins.add(key, segment),
        // What else came on this lane is not looked at, either.
        Err(PinError::Fault { fault, .. }) => inbox.refuse(fault.clone()),
        Err(_) => {}
    }
    found
}

/// The segment of a pin that was validated by any lane of the link, or is now.
#[inline(never)]
fn of_link<T: ShmMessage>(link: &Link, key: PinKey) -> Result<Arc<PeerSegment>, PinError> {
    if link.is_forked() {
        return Err(PinError::Forked);
    }
    if let Some(segment) = link.known_pin(&key) {
        return Ok(segment);
    }
    let pid = link.pid();
    let found = validate::<T>(link, key);
    let segment = found.map_err(|fault| {
        if matches!(fault, Fault::Segment { .. }) && link.is_dead() {
            // It was announced before the message came, and not read any more. Whoever opens a pin may serve others,
            // and waits for nobody's end.
            let (fault, ended) = (link.fault(), link.ended_by_now());
            return PinError::Lost { pid, fault, ended };
        }
        link.die(Some(fault.clone()));
        PinError::Fault { pid, fault }
    })?;
    link.learn_pin(key, &segment);
    Ok(segment)
}

fn validate<T: ShmMessage>(link: &Link, key: PinKey) -> Result<Arc<PeerSegment>, Fault> {
    let segment = link.segment(key.at.segment)?;
    let place = segment.resolve(key.at, layout_of::<T>().align as u64)?;
    let mut bytes = NonNull::slice_from_raw_parts(place, key.at.len as usize);
    let mut segment = segment;
    if let Some(most) = link.copies() {
        if bytes.len() > most {
            let bytes = bytes.len();
            return Err(Fault::TooLarge { bytes, most });
        }
        // SAFETY: 1. the range was resolved in the segment.
        let copy = unsafe { PeerSegment::copy(bytes, key.at.offset, true, Box::new(())) };
        bytes = copy.bytes();
        segment = Arc::new(copy);
    }
    // SAFETY: the range was resolved in the segment, which is held here, or is its copy. An honest sender does not
    // write it while it lends it with the message that is held; what a malicious one that is trusted can do is said
    // in the crate's documentation, under trust.
    let bytes = unsafe { bytes.as_ref() };
    match check::<T>(bytes) {
        Ok(_) => Ok(segment),
        Err(error) => Err(Fault::Message {
            message: T::NAME,
            what: error.to_string(),
        }),
    }
}
