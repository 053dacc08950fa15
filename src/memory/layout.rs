//! Every structure that two processes read, and the header of a record.
//!
//! | structure | lies in the arena of | written by | read by |
//! |---|---|---|---|
//! | [`Cell`] | the sender of a lane | the sender | the receiver |
//! | [`SenderBlock`] | the sender of a lane | the sender | the receiver |
//! | [`TopicBlock`] | a publisher, for one subscriber | the publisher | the subscriber |
//! | [`ReceiverBlock`] | the receiver of a lane | the receiver | the sender |
//! | [`BoardBlock`], [`Entry`] | a publisher of newest values | the publisher | all who read them |
//! | [`HoldBlock`] | one who reads newest values | the reader | the publisher |
//! | [`Bell`] | whoever sleeps on it | threads of that process | its peers, which may wake it |
//! | [`Doorbell`] | a process with many lanes to one port | threads of that process | the port |
//!
//! So each has one writing process; none is ever written by a peer.
//!
//! In shared memory they are laid over zeroed bytes. Only tests and models construct them, since the
//! atomics of a model checker are more than their bytes.

use bytemuck::{Pod, Zeroable};
use static_assertions::{const_assert, const_assert_eq};

use crate::sync::{AtomicU32, AtomicU64};

/// The number of this shared format: both sides of a link must say the same.
pub(crate) const LAYOUT_VERSION: u32 = 1;

/// The size of a cell in bytes: one cache line.
pub(crate) const CELL: usize = 64;

/// The bytes of a record's header; its payload follows at once, or on its own alignment.
pub(crate) const HEADER: usize = 8;

/// The most cells a lane can have, over all its extents.
pub(crate) const MOST_CELLS: usize = 1024;

/// The most requests of one lane that are not answered yet: each has a bit in [`SenderBlock`]. A
/// model has few: each word is one more to follow.
pub(crate) const MOST_OPEN: usize = if cfg!(loom) { 64 } else { 448 };

/// The bytes of a time, which may stand behind a header: nanoseconds of the monotonic clock.
pub(crate) const TIME: usize = 8;

/// The most bytes of a record that says why there is no message.
pub(crate) const MOST_REASON: usize = 256;

/// The most lanes that one doorbell tells apart. A model has few: each word is one more to follow.
pub(crate) const DOORBELL_LANES: usize = if cfg!(loom) { 64 } else { 4096 };

/// One cache line of a lane. A record starts with a cell and goes on into those behind it.
#[repr(C, align(64))]
pub(crate) struct Cell {
    pub(crate) header: AtomicU64,
    #[cfg(not(loom))]
    payload: std::cell::UnsafeCell<[u8; CELL - HEADER]>,
    /// Stands for the payload: whoever touches it while it is another's is reported.
    #[cfg(loom)]
    pub(crate) payload: loom::cell::UnsafeCell<u64>,
}

/// The sender's side of a lane.
#[repr(C, align(64))]
pub(crate) struct SenderBlock {
    /// Odd while the sender waits for room; a new number each time it starts to. 64 bits, so that
    /// no number ever comes again.
    pub(crate) starving: AtomicU64,
    /// One bit a tag: set while the request that bears it is cancelled.
    pub(crate) cancelled: [AtomicU64; MOST_OPEN / 64],
}

/// What a publisher says of a subscriber's lane. In a line of its own: each message changes it, and its
/// reader looks at it once, at the end.
#[repr(C, align(64))]
pub(crate) struct TopicBlock {
    /// How many messages were meant for the subscriber since it joined, whether it got them or not.
    pub(crate) offered: AtomicU64,
    _alone: [AtomicU64; 7],
}

/// The receiver's side of a lane.
#[repr(C, align(64))]
pub(crate) struct ReceiverBlock {
    /// Even while the receiver polls the lane by itself; odd, and a new number each time, when it
    /// wants to be rung for the next record.
    pub(crate) attend: AtomicU64,
    _alone: [AtomicU64; 7],
    /// One bit a cell, flipped when the record that starts there is handed back.
    pub(crate) handed_back: [AtomicU64; MOST_CELLS / 64],
}

/// The newest values of a publisher: where their entries lie. Row `n` has `64 << n` entries, behind those of the
/// rows before it.
#[repr(C, align(64))]
pub(crate) struct BoardBlock {
    /// How many entries there are. Those behind them were never used.
    pub(crate) count: AtomicU64,
    /// How often an entry was given to a key.
    pub(crate) bindings: AtomicU64,
    _alone: [AtomicU64; 6],
    /// The location of each row; zero where there is none yet.
    pub(crate) rows: [AtomicU64; BOARD_ROWS],
}

/// How many rows a board can have: 65,472 entries.
pub(crate) const BOARD_ROWS: usize = 10;

/// The entries of a board's first row; each further row has twice as many as the one before.
pub(crate) const FIRST_ROW: usize = 64;

/// The newest value of one key.
#[repr(C, align(16))]
pub(crate) struct Entry {
    /// Where the value lies; zero where there is none.
    pub(crate) location: AtomicU64,
    /// The number of its last change, of all changes of the board. Written behind the location.
    pub(crate) version: AtomicU64,
}

/// What one who reads newest values looks at, so that it is not written meanwhile.
#[repr(C, align(64))]
pub(crate) struct HoldBlock {
    pub(crate) hold: AtomicU64,
    _alone: [AtomicU64; 7],
}

/// What stands before the value of an entry, in its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ValueHeader {
    /// The number of the change that it was.
    pub(crate) version: u64,
    /// How many bytes of message follow, on their own alignment.
    pub(crate) len: u64,
    /// When it was published, in nanoseconds of the monotonic clock.
    pub(crate) published: u64,
}
const_assert_eq!(size_of::<ValueHeader>(), 24);

/// Where a thread sleeps: odd while it does.
#[repr(C, align(64))]
pub(crate) struct Bell {
    pub(crate) word: AtomicU32,
}

/// Which of many lanes to one port have something new.
#[repr(C, align(64))]
pub(crate) struct Doorbell {
    /// Counts the rings, so that a port looks at one word when nothing happened.
    pub(crate) rings: AtomicU32,
    _alone: [AtomicU32; 15],
    /// One bit a lane, flipped when it rings.
    pub(crate) ready: [AtomicU64; DOORBELL_LANES / 64],
}

#[cfg(any(test, loom))]
mod heap {
    use super::*;

    fn zeros<const N: usize>() -> [AtomicU64; N] {
        std::array::from_fn(|_| AtomicU64::new(0))
    }

    impl Cell {
        /// As zeroed memory.
        pub(crate) fn new() -> Cell {
            Cell {
                header: AtomicU64::new(0),
                #[cfg(not(loom))]
                payload: std::cell::UnsafeCell::new([0; CELL - HEADER]),
                #[cfg(loom)]
                payload: loom::cell::UnsafeCell::new(0),
            }
        }
    }

    impl SenderBlock {
        /// As zeroed memory.
        pub(crate) fn new() -> SenderBlock {
            SenderBlock {
                starving: AtomicU64::new(0),
                cancelled: zeros(),
            }
        }
    }

    impl ReceiverBlock {
        /// As zeroed memory.
        pub(crate) fn new() -> ReceiverBlock {
            ReceiverBlock {
                attend: AtomicU64::new(0),
                _alone: zeros(),
                handed_back: zeros(),
            }
        }
    }

    impl Bell {
        /// As zeroed memory.
        pub(crate) fn new() -> Bell {
            Bell {
                word: AtomicU32::new(0),
            }
        }
    }

    #[cfg(loom)]
    impl Entry {
        /// As zeroed memory.
        pub(crate) fn new() -> Entry {
            Entry {
                location: AtomicU64::new(0),
                version: AtomicU64::new(0),
            }
        }
    }

    #[cfg(loom)]
    impl Doorbell {
        /// As zeroed memory.
        pub(crate) fn new() -> Doorbell {
            Doorbell {
                rings: AtomicU32::new(0),
                _alone: std::array::from_fn(|_| AtomicU32::new(0)),
                ready: zeros(),
            }
        }
    }
}

#[cfg(not(loom))]
mod sizes {
    use super::*;
    const_assert_eq!(size_of::<Cell>(), CELL);
    const_assert_eq!(size_of::<SenderBlock>(), 64);
    const_assert_eq!(std::mem::offset_of!(SenderBlock, cancelled), 8);
    const_assert_eq!(size_of::<TopicBlock>(), 64);
    const_assert_eq!(std::mem::offset_of!(TopicBlock, offered), 0);
    const_assert_eq!(size_of::<BoardBlock>(), 192);
    const_assert_eq!(std::mem::offset_of!(BoardBlock, count), 0);
    const_assert_eq!(std::mem::offset_of!(BoardBlock, bindings), 8);
    const_assert_eq!(std::mem::offset_of!(BoardBlock, rows), 64);
    const_assert_eq!(size_of::<Entry>(), 16);
    const_assert_eq!(std::mem::offset_of!(Entry, location), 0);
    const_assert_eq!(std::mem::offset_of!(Entry, version), 8);
    const_assert_eq!(size_of::<HoldBlock>(), 64);
    const_assert_eq!(std::mem::offset_of!(HoldBlock, hold), 0);
    const_assert_eq!(size_of::<Bell>(), 64);
    const_assert_eq!(size_of::<ReceiverBlock>(), 64 + 128);
    const_assert_eq!(std::mem::offset_of!(ReceiverBlock, attend), 0);
    const_assert_eq!(std::mem::offset_of!(ReceiverBlock, handed_back), 64);
    const_assert_eq!(size_of::<Doorbell>(), 64 + 512);
    const_assert_eq!(std::mem::offset_of!(Doorbell, rings), 0);
    const_assert_eq!(std::mem::offset_of!(Doorbell, ready), 64);
    const_assert_eq!(std::mem::offset_of!(Cell, header), 0);
}

/// Where something lies in an arena: as a peer says it, to be checked by whoever uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SegmentRef {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}
const_assert_eq!(size_of::<SegmentRef>(), 24);
const_assert_eq!(std::mem::offset_of!(SegmentRef, offset), 8);
const_assert_eq!(std::mem::offset_of!(SegmentRef, len), 16);

/// What a request says of itself beside its message: zero stands for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Envelope {
    /// When its caller waits no longer, in nanoseconds of the monotonic clock.
    pub(crate) deadline: u64,
    /// When it was published, on the same clock.
    pub(crate) published: u64,
    /// The trace that it belongs to.
    pub(crate) trace: u64,
    /// The span of the caller's in that trace.
    pub(crate) span: u64,
}
const_assert_eq!(size_of::<Envelope>(), 32);
const_assert_eq!(std::mem::offset_of!(Envelope, published), 8);
const_assert_eq!(std::mem::offset_of!(Envelope, trace), 16);
const_assert_eq!(std::mem::offset_of!(Envelope, span), 24);
// A header, a reference and an envelope fit one cell.
const_assert!(HEADER + size_of::<SegmentRef>() + size_of::<Envelope>() <= CELL);

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The archived message lies behind the header.
    Inline = 1,
    /// A [`SegmentRef`] behind the header says where the archived message lies.
    Block = 2,
    /// No message: the next record is elsewhere.
    Jump = 3,
    /// A [`SegmentRef`] to new cells of this lane, numbered on from those it had.
    Extend = 4,
    /// No message came of it: one byte says why, and text may follow.
    Failed = 5,
    /// As [`Inline`](Self::Inline): an item of a stream, which goes on.
    Item = 6,
    /// As [`Block`](Self::Block): an item of a stream.
    ItemBlock = 7,
    /// As [`Inline`](Self::Inline): an error of the service's own type.
    Error = 8,
    /// As [`Block`](Self::Block): an error of the service's own type.
    ErrorBlock = 9,
    /// An [`Envelope`] behind the header, and then the archived message.
    Call = 10,
    /// A [`SegmentRef`] to the archived message, and then its [`Envelope`].
    CallBlock = 11,
    /// No message: how many there were here for which there was no room, as a `u64`.
    Missed = 12,
}

impl Kind {
    /// The same, with its message in the slab.
    pub(crate) fn in_block(self) -> Kind {
        match self {
            Kind::Item => Kind::ItemBlock,
            Kind::Error => Kind::ErrorBlock,
            Kind::Call => Kind::CallBlock,
            _ => Kind::Block,
        }
    }

    /// Where a message in the cells starts behind its record's start.
    #[inline(always)]
    pub(crate) fn start(self, starts: Starts) -> usize {
        match self {
            Kind::Call => starts.call.into(),
            _ => starts.message.into(),
        }
    }

    /// What stands behind the header of a record that refers to a block: a reference, and what its
    /// lane or its kind adds.
    pub(crate) fn block_len(self, starts: Starts) -> usize {
        let more = match self {
            Kind::CallBlock => size_of::<Envelope>(),
            Kind::Extend => 0,
            _ if starts.timed => TIME,
            _ => 0,
        };
        size_of::<SegmentRef>() + more
    }

    fn from_bits(bits: u64) -> Option<Kind> {
        Some(match bits {
            1 => Kind::Inline,
            2 => Kind::Block,
            3 => Kind::Jump,
            4 => Kind::Extend,
            5 => Kind::Failed,
            6 => Kind::Item,
            7 => Kind::ItemBlock,
            8 => Kind::Error,
            9 => Kind::ErrorBlock,
            10 => Kind::Call,
            11 => Kind::CallBlock,
            12 => Kind::Missed,
            _ => return None,
        })
    }
}

/// Where the messages of a lane start in their records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Starts {
    /// Behind the header, on the alignment of the lane's messages; a time may stand in between.
    message: u16,
    /// Of a message with an [`Envelope`], which has a time.
    call: u16,
    /// Whether each message bears the time when it was published.
    timed: bool,
}

impl Starts {
    /// Of a lane for messages of this alignment.
    pub(crate) fn new(align: usize, timed: bool) -> Starts {
        let behind = |bytes: usize| (HEADER + bytes).next_multiple_of(align) as u16;
        Starts {
            message: behind(if timed { TIME } else { 0 }),
            call: behind(size_of::<Envelope>()),
            timed,
        }
    }

    /// Whether each message bears a time.
    #[inline(always)]
    pub(crate) fn is_timed(self) -> bool {
        self.timed
    }
}

/// The first eight bytes of a record, written in one store when all else of it is there.
///
/// | bits | what |
/// |---|---|
/// | 0–11 | stamp: the record's sequence number and one, cut to 12 bits |
/// | 12–15 | kind |
/// | 16–31 | the length of the payload in bytes |
/// | 32–47 | the cell in which the next record will start |
/// | 48–63 | tag: which call this belongs to |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) len: u16,
    pub(crate) next: u16,
    pub(crate) tag: u16,
}

const STAMP: u64 = 0xfff;

/// The stamp of the record with this sequence number.
#[inline(always)]
pub(crate) fn stamp_of(sequence: u64) -> u64 {
    sequence.wrapping_add(1) & STAMP
}

/// The stamp that this word carries.
#[cfg(feature = "json")]
pub(crate) fn stamp_in(word: u64) -> u64 {
    word & STAMP
}

/// Whether this word carries that stamp.
#[inline(always)]
pub(crate) fn is_stamped(word: u64, stamp: u64) -> bool {
    word & STAMP == stamp
}

/// Whether this word carries that stamp and is the header of a record of this kind.
#[inline(always)]
pub(crate) fn is_stamped_as(word: u64, stamp: u64, kind: Kind) -> bool {
    word & 0xffff == stamp | (kind as u64) << 12
}

/// The length of the payload that a header speaks of, in bytes.
#[inline(always)]
pub(crate) fn len_of(word: u64) -> u16 {
    (word >> 16) as u16
}

/// The cell of the next record that a header speaks of.
#[inline(always)]
pub(crate) fn next_of(word: u64) -> usize {
    usize::from((word >> 32) as u16)
}

/// The tag of a header.
#[inline(always)]
pub(crate) fn tag_of(word: u64) -> u16 {
    (word >> 48) as u16
}

/// A word that does not carry that stamp, and is no header.
#[inline(always)]
pub(crate) fn unstamped(stamp: u64) -> u64 {
    !stamp & STAMP
}

impl Header {
    /// The word for a record with this stamp.
    #[inline(always)]
    pub(crate) fn to_word(self, stamp: u64) -> u64 {
        stamp
            | (self.kind as u64) << 12
            | u64::from(self.len) << 16
            | u64::from(self.next) << 32
            | u64::from(self.tag) << 48
    }

    /// Reads a word; `None` where its kind is none of ours.
    #[inline(always)]
    pub(crate) fn from_word(word: u64) -> Option<Header> {
        Some(Header {
            kind: Kind::from_bits(word >> 12 & 0xf)?,
            len: len_of(word),
            next: next_of(word) as u16,
            tag: tag_of(word),
        })
    }
}

/// How many cells a record takes whose payload starts at `start` and has `len` bytes.
#[inline(always)]
pub(crate) fn cells_for(start: usize, len: usize) -> usize {
    // A payload starts behind a header, so this is never zero.
    (start + len).div_ceil(CELL)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn header_survives_its_word() {
        let header = Header {
            kind: Kind::Block,
            len: 65_535,
            next: 1023,
            tag: 0xabcd,
        };
        let word = header.to_word(stamp_of(4094));
        assert!(is_stamped(word, 4095));
        assert_eq!(Header::from_word(word), Some(header));
        assert_eq!(
            word, 0xabcd_03ff_ffff_2fff,
            "golden: a change here is a change of the format"
        );
    }

    #[test]
    fn unstamped_never_matches() {
        for sequence in [0, 1, 4094, 4095, 4096, u64::MAX] {
            let stamp = stamp_of(sequence);
            assert!(!is_stamped(unstamped(stamp), stamp));
            assert_eq!(Header::from_word(unstamped(stamp)), None);
        }
    }
}
