//! The receiving end of a lane.
//!
//! Unsafe code is needed to borrow a record's bytes.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use crate::error::Fault;
use crate::link::{Line, Link};
use crate::memory::layout::{CELL, Cell, Kind, MOST_CELLS, SegmentRef};
use crate::memory::ring::{Consumer, HandBack, Polled, Record};
use crate::memory::segment::PeerSegment;
use crate::memory::shared::Shared;
use crate::message::{ShmMessage, check, layout_of};
use crate::sync::{Ordering, fence};

/// A message as it lies in the peer's memory: its range is checked, its content is not yet.
pub(crate) struct Message {
    /// By which it is handed back.
    pub(crate) cell: usize,
    pub(crate) cells: usize,
    pub(crate) tag: u16,
    pub(crate) body: Body,
}

pub(crate) enum Body {
    /// In the cells of the lane, which the lane keeps mapped.
    Inline(NonNull<[u8]>),
    /// In a block of the peer's slab.
    Block(NonNull<[u8]>, Arc<PeerSegment>),
    /// No message came of it.
    Failed(u8),
}

/// See the module.
pub(crate) struct Inbox {
    ring: Consumer,
    link: Arc<Link>,
    line: Arc<Line>,
    /// Segments that were referred to lately. Weak, so that a retired one is not held.
    near: Vec<(u32, Weak<PeerSegment>)>,
    align: usize,
    /// What the word says by which this side asks to be rung.
    attend: u64,
}

impl Inbox {
    pub(crate) fn new<T: ShmMessage>(
        cells: Shared<[Cell]>,
        back: HandBack,
        link: Arc<Link>,
        line: Arc<Line>,
    ) -> Inbox {
        let align = layout_of::<T>().align;
        let ring = Consumer::new(cells, align, Arc::new(back));
        let mut inbox = Inbox {
            ring,
            link,
            line,
            near: Vec::new(),
            align,
            attend: 0,
        };
        inbox.arm();
        inbox
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    pub(crate) fn line(&self) -> &Line {
        &self.line
    }

    pub(crate) fn back(&self) -> &Arc<HandBack> {
        self.ring.back()
    }

    /// Looks for the next message. A fault has ended the link.
    #[inline]
    pub(crate) fn poll(&mut self) -> Result<Option<Message>, Fault> {
        self.try_poll()
            .inspect_err(|fault| self.link.die(Some(fault.clone())))
    }

    #[inline]
    fn try_poll(&mut self) -> Result<Option<Message>, Fault> {
        loop {
            match self.ring.poll()? {
                Polled::Empty => return Ok(None),
                Polled::Record(record) => return self.read(&record).map(Some),
                Polled::Extend(record) => self.extend(record)?,
            }
        }
    }

    /// True where a message has come.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.ring.is_ready()
    }

    #[inline]
    fn read(&mut self, record: &Record) -> Result<Message, Fault> {
        let body = match record.kind {
            Kind::Inline => Body::Inline(NonNull::slice_from_raw_parts(record.payload, record.len)),
            Kind::Failed => {
                // SAFETY: the record's one byte lies in the lane's cells, and is read once.
                Body::Failed(unsafe { record.payload.read_volatile() })
            }
            _ => {
                let at = reference(record);
                let segment = self.segment(at.segment)?;
                let place = segment.resolve(at, self.align as u64)?;
                Body::Block(
                    NonNull::slice_from_raw_parts(place, at.len as usize),
                    segment,
                )
            }
        };
        Ok(Message {
            cell: record.cell,
            cells: record.cells,
            tag: record.tag,
            body,
        })
    }

    /// Validates a message, once: where its archived value lies. A fault has ended the link.
    #[inline]
    pub(crate) fn validate<T: ShmMessage>(
        &self,
        message: &Message,
    ) -> Result<NonNull<T::Archived>, Fault> {
        let bytes = match &message.body {
            Body::Inline(bytes) | Body::Block(bytes, _) => *bytes,
            Body::Failed(_) => {
                return Err(self.broken(Fault::Control {
                    what: "a failed request",
                }));
            }
        };
        // SAFETY: the range was checked to lie in a mapping that this inbox, or the message, keeps.
        // An honest sender does not write it before it is handed back; what a malicious one can do
        // is said in the crate's documentation, under trust.
        let bytes = unsafe { bytes.as_ref() };
        match check::<T>(bytes) {
            Ok(archived) => Ok(NonNull::from(archived)),
            Err(error) => Err(self.broken(Fault::Message {
                message: T::NAME,
                what: error.to_string(),
            })),
        }
    }

    #[cold]
    fn broken(&self, fault: Fault) -> Fault {
        self.link.die(Some(fault.clone()));
        fault
    }

    fn segment(&mut self, id: u32) -> Result<Arc<PeerSegment>, Fault> {
        let near = self.near.iter().find(|(near, _)| *near == id);
        if let Some(segment) = near.and_then(|(_, weak)| weak.upgrade()) {
            return Ok(segment);
        }
        let segment = self.link.segment(id)?;
        self.near
            .retain(|(near, weak)| *near != id && weak.strong_count() > 0);
        if self.near.len() == 8 {
            self.near.remove(0);
        }
        self.near.push((id, Arc::downgrade(&segment)));
        Ok(segment)
    }

    #[cold]
    fn extend(&mut self, record: Record) -> Result<(), Fault> {
        let at = reference(&record);
        let cells = at.len as usize / CELL;
        if !at.len.is_multiple_of(CELL as u64) || cells > MOST_CELLS {
            return Err(Fault::Extension {
                cells,
                had: 0,
                most: MOST_CELLS,
            });
        }
        let (segment, place) = self.link.resolve(at, CELL as u64)?;
        // SAFETY: 1. the range was resolved on the alignment of a cell, for so many of them.
        let cells = unsafe { Shared::<[Cell]>::peer_slice(segment, place, cells) };
        self.ring.extend(record, cells)
    }

    /// Hands a message back.
    #[inline]
    pub(crate) fn hand_back(&mut self, cell: usize, at_once: bool) {
        self.ring.hand_back(cell);
        if at_once {
            self.ring.flush();
        }
    }

    /// Writes down what was handed back: before waiting, since the sender may wait for it.
    #[inline]
    pub(crate) fn flush(&mut self) {
        self.ring.flush();
    }

    /// Asks to be rung for the next message, with a number that was not used before.
    ///
    /// The caller passes a barrier and looks again: a heavy one after [`watch`](Self::watch), a
    /// fence after an earlier `arm`.
    pub(crate) fn arm(&mut self) {
        self.attend = (self.attend | 1) + if self.attend % 2 == 1 { 2 } else { 0 };
        // SYNC(attend): Relaxed; the caller's barrier orders it before the caller's look.
        self.ring
            .back()
            .attend()
            .store(self.attend, Ordering::Relaxed);
    }

    /// Says that this side looks by itself.
    pub(crate) fn watch(&mut self) {
        if self.attend % 2 == 1 {
            self.attend += 1;
            // SYNC(attend): Relaxed; a sender that still sees the old number rings once too often.
            self.ring
                .back()
                .attend()
                .store(self.attend, Ordering::Relaxed);
        }
    }

    /// Asks to be rung after having been rung, and says whether a message came meanwhile.
    pub(crate) fn rearm(&mut self) -> bool {
        self.arm();
        // SYNC(attend): pairs with the fence in `Outbox::ring`.
        fence(Ordering::SeqCst);
        self.is_ready()
    }

    /// Whether the other side uses the cheap half of a barrier.
    pub(crate) fn is_asymmetric(&self) -> bool {
        self.link.is_asymmetric()
    }
}

/// Reads the reference behind a record's header, once.
fn reference(record: &Record) -> SegmentRef {
    debug_assert_eq!(record.len, size_of::<SegmentRef>());
    // SAFETY: the ring checked that so many bytes lie in the record's cells. Every bit pattern is
    // a reference; what it says is checked by whoever uses it.
    unsafe { record.payload.cast::<SegmentRef>().read_unaligned() }
}
