//! The receiving end of a lane.
//!
//! Unsafe code is needed to borrow a record's bytes.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use super::reading::{Newest, Reading};
use crate::error::Fault;
use crate::link::pins::{Hold, Known};
use crate::link::{Line, Link};
use crate::memory::layout::{
    CELL, Cell, Envelope, HEADER, Kind, MOST_CELLS, SegmentRef, Starts, TopicBlock,
};
use crate::memory::ring::{Consumer, HandBack, Polled, Record};
use crate::memory::segment::{PeerSegment, copy_once};
use crate::memory::shared::Shared;
use crate::message::{ShmMessage, check};
use crate::sync::load_acquire;
use crate::wait::attend::Attend;

/// A message as it lies in the peer's memory: its range is checked, its content is not yet.
pub(crate) struct Message {
    pub(crate) record: Received,
    /// The segment of the peer's slab in which the bytes lie, if they do; or, once it was validated, the copy of a
    /// peer's that is not trusted.
    pub(crate) segment: Option<Arc<PeerSegment>>,
}

/// What a message is to its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    /// A request, a reply, or a message of a one-way lane.
    Message,
    /// A request that says more of itself: see [`Inbox::take_envelope`].
    Call,
    /// An item of a stream that goes on.
    Item,
    /// An error of the service's own type.
    Error,
    /// None: text that says why, perhaps.
    Failed,
    /// None, for want of room: its number says how many.
    Missed,
}

/// What is known of a message. Apart from its segment, so that it travels in registers.
#[derive(Clone, Copy)]
pub(crate) struct Received {
    /// By which it is handed back.
    pub(crate) cell: u16,
    pub(crate) cells: u16,
    pub(crate) tag: u16,
    pub(crate) role: Role,
    /// Where no message came of it, this is why.
    pub(crate) failed: u8,
    /// How many messages came before it on its lane; or of a [`Role::Missed`], how many did not come.
    pub(crate) number: u64,
    /// In the cells of the lane, which the lane keeps mapped, or in a segment.
    pub(crate) bytes: NonNull<[u8]>,
}

// SAFETY: an address and a length of memory that is only read, which whoever has both the message and
// its inbox keeps mapped.
unsafe impl Send for Received {}

/// See the module.
pub(crate) struct Inbox {
    ring: Consumer,
    link: Arc<Link>,
    line: Arc<Line>,
    /// Segments that were referred to lately. Weak, so that a retired one is not held.
    near: Vec<(u64, Weak<PeerSegment>)>,
    align: usize,
    starts: Starts,
    /// A fault was found: there is nothing more to receive.
    is_broken: bool,
    attend: Attend,
    /// What the last request said of itself.
    envelope: Envelope,
    /// On a lane of a topic: what its publisher says of it, and how many messages it told of that were
    /// missed.
    topic: Option<Shared<TopicBlock>>,
    missed: u64,
    /// Where the peer is not trusted: messages are copied before they are validated, of so many bytes at most.
    copies: Option<usize>,
    /// On a lane of newest values: where they are, until somebody reads them.
    newest: Option<Newest>,
    /// Whether all is handed back at once: its messages may refer to pins, which are large.
    is_prompt: bool,
    /// Pins that were opened lately, and what keeps them for those who keep their messages.
    pub(super) pins: Known,
    hold: Option<Arc<Hold>>,
}

impl Inbox {
    /// An inbox for messages of this alignment; and whether its sender says when it publishes them.
    pub(crate) fn new(
        cells: Shared<[Cell]>,
        (align, timed): (usize, bool),
        topic: Option<Shared<TopicBlock>>,
        back: HandBack,
        (link, line): (Arc<Link>, Arc<Line>),
        newest: Option<Newest>,
    ) -> Inbox {
        let starts = Starts::new(align, timed);
        let ring = Consumer::new(cells, starts, Arc::new(back));
        let mut inbox = Inbox {
            ring,
            copies: link.copies(),
            link,
            line,
            near: Vec::new(),
            align,
            starts,
            is_broken: false,
            attend: Attend::default(),
            envelope: Envelope::default(),
            topic,
            missed: 0,
            newest,
            is_prompt: false,
            pins: Known::new(Known::OF_LANE),
            hold: None,
        };
        inbox.arm();
        inbox
    }

    /// Where it says from now on how far it is; and where its messages start.
    #[cfg(feature = "json")]
    pub(super) fn mark(&mut self, taken: &Arc<crate::memory::ring::mark::Taken>) -> Starts {
        self.ring.set_taken(taken.clone());
        self.starts
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The alignment of its messages, of all that is in them.
    pub(crate) fn align(&self) -> usize {
        self.align
    }

    pub(crate) fn line(&self) -> &Line {
        &self.line
    }

    pub(crate) fn back(&self) -> &Arc<HandBack> {
        self.ring.back()
    }

    /// Looks for the next message, if it lies in the cells as most do.
    #[inline(always)]
    pub(crate) fn poll_inline(&mut self) -> Option<Message> {
        let record = self.ring.poll_inline()?;
        Some(inline(&record))
    }

    /// As [`poll_inline`](Self::poll_inline), for an item of a stream.
    #[inline(always)]
    pub(crate) fn poll_item(&mut self) -> Option<Message> {
        let record = self.ring.poll_as(Kind::Item)?;
        let mut message = inline(&record);
        message.record.role = Role::Item;
        Some(message)
    }

    /// Looks for the next message. A fault ends the link, and with it this lane.
    #[inline]
    pub(crate) fn poll(&mut self) -> Option<Message> {
        self.poll_inline().or_else(|| {
            if self.is_ready() {
                self.poll_other()
            } else {
                None
            }
        })
    }

    #[cold]
    fn poll_other(&mut self) -> Option<Message> {
        self.try_poll().unwrap_or_else(|fault| {
            self.broken(fault);
            None
        })
    }

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
        !self.is_broken && self.ring.is_ready()
    }

    fn read(&mut self, record: &Record) -> Result<Message, Fault> {
        let mut message = inline(record);
        message.record.role = role_of(record.kind);
        match record.kind {
            Kind::Inline | Kind::Item | Kind::Error => {}
            Kind::Call => {
                let behind_header = Kind::Call.start(self.starts) - HEADER;
                let at = record.payload.as_ptr().wrapping_sub(behind_header);
                self.envelope = envelope(at.cast());
            }
            Kind::Failed => {
                // SAFETY: the record's first byte lies in the lane's cells, and is read once.
                let why = unsafe { record.payload.read_volatile() };
                message.record.failed = why;
                // SAFETY: the record has at least that byte.
                let text = unsafe { record.payload.add(1) };
                let len = usize::from(record.len) - 1;
                message.record.bytes = NonNull::slice_from_raw_parts(text, len);
            }
            Kind::Missed => {
                // SAFETY: the ring checked that the record has a word behind its header. Read once.
                let missed = unsafe { record.payload.cast::<u64>().read_volatile() };
                self.missed = self.missed.saturating_add(missed);
                message.record.number = missed;
            }
            _ => {
                if record.kind == Kind::CallBlock {
                    let at = record.payload.as_ptr().cast::<u64>().wrapping_add(3);
                    self.envelope = envelope(at);
                }
                let at = reference(record);
                let segment = self.segment(at.segment)?;
                let place = segment.resolve(at, self.align as u64)?;
                message.record.bytes = NonNull::slice_from_raw_parts(place, at.len as usize);
                message.segment = Some(segment);
            }
        }
        Ok(message)
    }

    /// Validates a message, once: where its archived value lies. `None` has ended the link.
    ///
    /// A message of a peer that is not trusted is copied first: it is the copy from then on.
    #[inline(always)]
    pub(crate) fn validate<T: ShmMessage>(
        &mut self,
        message: &mut Message,
    ) -> Option<NonNull<T::Archived>> {
        debug_assert_ne!(message.record.role, Role::Failed, "text has no alignment");
        if let Some(most) = self.copies {
            // By value, so that where nothing is copied a message travels in registers.
            let copy = self.copy(message.record.bytes, message.segment.take(), most)?;
            message.record.bytes = copy.bytes();
            message.segment = Some(copy);
        }
        // SAFETY: the range was checked to lie in a mapping that this inbox, or the message, keeps; or it is a copy
        // of our own. An honest sender does not write it before it is handed back; what a malicious one
        // that is trusted can do is said in the crate's documentation, under trust.
        let bytes = unsafe { message.record.bytes.as_ref() };
        match check::<T>(bytes) {
            Ok(archived) => Some(NonNull::from(archived)),
            Err(error) => {
                self.broken(Fault::Message {
                    message: T::NAME,
                    what: error.to_string(),
                });
                None
            }
        }
    }

    /// Copies a message that was not handed back. `None` has ended the link.
    #[cold]
    fn copy(
        &mut self,
        bytes: NonNull<[u8]>,
        segment: Option<Arc<PeerSegment>>,
        most: usize,
    ) -> Option<Arc<PeerSegment>> {
        if bytes.len() > most {
            let bytes = bytes.len();
            self.broken(Fault::TooLarge { bytes, most });
            return None;
        }
        let in_block = segment.is_some();
        // SAFETY: 1. the range was checked to lie in the cells of the lane, or in this segment.
        let copy = unsafe { PeerSegment::copy(bytes, 0, in_block, Box::new(())) };
        Some(Arc::new(copy))
    }

    /// Chooses whether all is handed back at once.
    pub(crate) fn set_prompt(&mut self, is_prompt: bool) {
        self.is_prompt = is_prompt;
    }

    /// What keeps the pins that messages of this lane refer to, beyond the lane and the link.
    pub(super) fn hold(&mut self) -> Arc<Hold> {
        let link = &self.link;
        let hold = self.hold.get_or_insert_with(|| Arc::new(link.hold()));
        hold.clone()
    }

    /// Ends the link, and looks at nothing more that comes on this lane.
    #[cold]
    fn broken(&mut self, fault: Fault) {
        self.is_broken = true;
        self.ring.stop();
        let is_late = matches!(fault, Fault::Segment { .. }) && self.link.is_dead();
        if !is_late {
            // Of one that is dead, what it had announced may just not have been read any more.
            self.link.die(Some(fault));
        }
    }

    fn segment(&mut self, id: u64) -> Result<Arc<PeerSegment>, Fault> {
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
        if at.len % CELL as u64 != 0 || cells > MOST_CELLS {
            return Err(Fault::Extension {
                cells,
                had: 0,
                most: MOST_CELLS,
            });
        }
        let segment = self.segment(at.segment)?;
        let place = segment.resolve(at, CELL as u64)?;
        // SAFETY: 1. the range was resolved on the alignment of a cell, for so many of them.
        let cells = unsafe { Shared::<[Cell]>::peer_slice(segment, place, cells) };
        #[cfg(feature = "json")]
        self.link.note_row(&self.line, false, at);
        self.ring.extend(record, cells)
    }

    /// Ends the link of a peer that sent what it should not.
    #[cold]
    pub(crate) fn refuse(&mut self, fault: Fault) {
        self.broken(fault);
    }

    /// How many messages of a topic are lost: those that were meant for this lane, and neither came nor
    /// were told of. Once its sender is gone, and nothing more comes.
    pub(crate) fn lost(&self) -> u64 {
        self.offered().saturating_sub(self.told())
    }

    /// How many messages were meant for this lane, where those are more than came and were told of: others are on
    /// their way, or wait for room.
    pub(crate) fn behind(&self) -> Option<u64> {
        let offered = self.offered();
        (offered > self.told()).then_some(offered)
    }

    fn offered(&self) -> u64 {
        self.topic.as_ref().map_or(0, |topic| {
            // SYNC(offered): Acquire; pairs with Release in `Outbox::offer`.
            load_acquire(&topic.offered)
        })
    }

    fn told(&self) -> u64 {
        self.ring.messages().saturating_add(self.missed)
    }

    /// The newest values of its sender, whose messages have this alignment; once, and to be asked for only when the
    /// first message has come, since the sender does not know before that somebody reads.
    pub(crate) fn take_reading(&mut self, align: usize) -> Option<Reading> {
        let (link, back) = (self.link.clone(), self.back().clone());
        let newest = self.newest.take()?;
        Some(Reading::new(newest, align, link, back))
    }

    /// The number that a message of such a lane is; `None` where it is none.
    pub(crate) fn number(&self, message: Received) -> Option<u64> {
        let is_number = message.role == Role::Message && message.bytes.len() == size_of::<u64>();
        let at = message.bytes.cast::<u64>();
        // SAFETY: the message has so many bytes, on the alignment of the lane's messages, which is that of a word;
        // read once.
        is_number.then(|| unsafe { at.read_volatile() })
    }

    /// What the request that was just found says of itself, if anything.
    pub(crate) fn take_envelope(&mut self) -> Envelope {
        std::mem::take(&mut self.envelope)
    }

    /// When a message was published, which was not handed back: zero where its sender does not say.
    /// (A [`Role::Call`] says so in its envelope.)
    pub(crate) fn published(&self, cell: u16, in_block: bool) -> u64 {
        let time = self.ring.time(cell, in_block);
        // SAFETY: it is a word of a cell of the lane, which is mapped as long as this; read once, and
        // every bit pattern is a time.
        time.map_or(0, |time| unsafe { time.read_volatile() })
    }

    /// The words of a record that says why there is no message.
    pub(crate) fn text(&self, record: Received) -> String {
        debug_assert_eq!(record.role, Role::Failed);
        // SAFETY: 1. the range lies in the lane's cells, which are mapped.
        let text = unsafe { copy_once(record.bytes) };
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Hands a message back.
    #[inline(always)]
    pub(crate) fn hand_back(&mut self, cell: u16, at_once: bool) {
        self.ring.hand_back(cell);
        if at_once || self.is_prompt {
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
        self.attend.arm(self.ring.back().attend());
    }

    /// Says that this side looks by itself.
    pub(crate) fn watch(&mut self) {
        self.attend.watch(self.ring.back().attend());
    }

    /// Asks to be rung after having been rung, and says whether a message came meanwhile.
    pub(crate) fn rearm(&mut self) -> bool {
        self.attend.rearm(self.ring.back().attend());
        self.is_ready()
    }

    /// Whether the other side uses the cheap half of a barrier.
    pub(crate) fn is_asymmetric(&self) -> bool {
        self.link.is_asymmetric()
    }
}

#[inline(always)]
fn inline(record: &Record) -> Message {
    let &Record {
        cell,
        cells,
        tag,
        payload,
        len,
        number,
        ..
    } = record;
    let bytes = NonNull::slice_from_raw_parts(payload, len.into());
    let record = Received {
        cell,
        cells,
        tag,
        role: Role::Message,
        failed: 0,
        number,
        bytes,
    };
    Message {
        record,
        segment: None,
    }
}

/// Reads the reference behind a record's header, once.
fn reference(record: &Record) -> SegmentRef {
    debug_assert!(usize::from(record.len) >= size_of::<SegmentRef>());
    let words = record.payload.as_ptr().cast::<u64>();
    let word = |at: usize| {
        // SAFETY: the ring checked that so many bytes lie in the record's cells, behind a header of
        // eight bytes. Read once each: what is checked must be what is then used.
        unsafe { words.wrapping_add(at).read_volatile() }
    };
    // Every bit pattern is a reference; what it says is checked by whoever uses it.
    SegmentRef {
        segment: word(0),
        offset: word(1),
        len: word(2),
    }
}

/// Reads what a request says of itself, once.
fn envelope(at: *const u64) -> Envelope {
    let word = |n: usize| {
        // SAFETY: the callers found the place in a record whose length the ring checked; it lies
        // behind a header of eight bytes. Every bit pattern is an envelope.
        unsafe { at.wrapping_add(n).read_volatile() }
    };
    Envelope {
        deadline: word(0),
        published: word(1),
        trace: word(2),
        span: word(3),
    }
}

fn role_of(kind: Kind) -> Role {
    match kind {
        Kind::Item | Kind::ItemBlock => Role::Item,
        Kind::Error | Kind::ErrorBlock => Role::Error,
        Kind::Failed => Role::Failed,
        Kind::Call | Kind::CallBlock => Role::Call,
        Kind::Missed => Role::Missed,
        _ => Role::Message,
    }
}
