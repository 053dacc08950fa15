//! A message that is archived once, for any number of lanes.
//!
//! One that fits a cell is archived on the stack, and copied into a cell of each lane: that is no more than
//! a reference to it would be, and spares the receiver a line. Any other is archived into a block of the
//! slab, which is in use until the last lane has it back.
//!
//! Unsafe code is needed to archive into shared memory.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use bytemuck::Pod;

use super::Bulk;
use super::outbox::{archive_around, unchanged};
use super::pin::FOREIGN;
use super::stage::Stage;
use crate::error::SendError;
use crate::link::node::Node;
use crate::memory::arena::Block;
use crate::memory::layout::{CELL, Kind, SegmentRef, Starts};
use crate::memory::loan::{LoanBlock, loan_len};
use crate::memory::pins::Pins;
use crate::message::{EncodeError, Loans, ShmMessage, SlotWriter, Wanted, encode, layout_of};

/// See the module.
#[derive(Clone)]
pub(crate) struct Parcel {
    pub(super) packed: Packed,
    /// What it was archived around.
    loan: Option<LoanBlock>,
    /// What it refers to.
    pub(super) pins: Pins,
}

#[derive(Clone)]
pub(super) enum Packed {
    /// With so many bytes of message.
    Cell(Stage, u16),
    Block(Arc<Block>, SegmentRef),
}

impl Parcel {
    /// Says that an entry of a board has changed; on lanes whose messages bear a time, or do not.
    pub(crate) fn note(number: u64, timed: bool) -> Parcel {
        let starts = Starts::new(align_of::<u64>(), timed);
        let mut stage = Stage::default();
        stage.put_word(number, Kind::Inline.start(starts));
        Parcel {
            packed: Packed::Cell(stage, size_of::<u64>() as u16),
            loan: None,
            pins: Pins::default(),
        }
    }

    /// A message that was archived in a block, and refers to these pins.
    pub(super) fn in_block(block: &Arc<Block>, reference: SegmentRef, pins: Pins) -> Parcel {
        Parcel {
            packed: Packed::Block(block.clone(), reference),
            loan: None,
            pins,
        }
    }

    /// How many bytes of the slab it takes.
    #[inline]
    pub(crate) fn block_len(&self) -> usize {
        match &self.packed {
            Packed::Cell(..) => 0,
            Packed::Block(block, _) => block.len(),
        }
    }

    /// Gives up a message that no lane was given, and that nobody keeps: a loan that it holds may be filled
    /// anew, and sent.
    #[cold]
    pub(crate) fn give_up(self) {
        if let Some(loan) = self.loan {
            loan.unclaim();
        }
    }
}

/// Archives messages for lanes of one type.
pub(crate) struct Packer {
    node: Arc<Node>,
    starts: Starts,
    most: usize,
    /// Blocks that were used, the last one last: the first is the one that comes back first.
    used: VecDeque<Arc<Block>>,
    /// How many bytes they have.
    bytes: usize,
}

/// As many blocks are used before all lanes look for what came back: that costs a cache line of each.
const FEW: usize = 48;
/// Unless they have so many bytes: larger ones are worth that look.
const FEW_BYTES: usize = 2 << 20;
/// How many of them are looked at for one message.
const LOOKS: usize = 8;
/// The most blocks that are remembered.
const MOST: usize = 1024;

impl Packer {
    /// For messages of type `T`.
    pub(crate) fn new<T: ShmMessage>(node: &Arc<Node>) -> Packer {
        let config = node.config();
        Packer {
            node: node.clone(),
            starts: Starts::new(layout_of::<T>().align, config.timestamps),
            most: config.max_message,
            used: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Archives a value. `collect` has all lanes look what came back.
    #[inline]
    pub(crate) fn pack<T: ShmMessage>(
        &mut self,
        value: &T,
        collect: impl FnOnce(),
    ) -> Result<Parcel, SendError> {
        let start = Kind::Inline.start(self.starts);
        let mut stage = Stage::default();
        let (mut loans, mut pins) = (Loans::None, Pins::default());
        let noted = stage.encode_and_note(value, start, (&mut loans, &mut pins));
        let len = noted.map_err(refused)?;
        if start + len <= CELL {
            return self.parcel(Packed::Cell(stage, len as u16), None, pins);
        }
        self.check_size(len)?;
        let wanted = loans
            .into_wanted()
            .map(|wanted| self.around(value, &wanted, &mut pins));
        if let Some((packed, loan)) = wanted.transpose()?.flatten() {
            return self.parcel(packed, Some(loan), pins);
        }
        let block = self.block(len, collect)?;
        // SAFETY: 1. and 2. the block is ours alone: it was just cut, or came back from its last receiver.
        let writer = unsafe { SlotWriter::new(block.start().as_ptr(), block.len()) };
        // SAFETY: 1. a local that nobody else uses.
        let writer = unsafe { writer.with_pins::<T>(&mut pins) };
        let written = encode(value, writer).map_err(refused)?;
        unchanged(written, len)?;
        let reference = block.reference(0, len);
        self.parcel(Packed::Block(block, reference), None, pins)
    }

    /// A message that was archived, around that, and refers to these pins.
    #[inline]
    fn parcel(
        &self,
        packed: Packed,
        loan: Option<LoanBlock>,
        pins: Pins,
    ) -> Result<Parcel, SendError> {
        let mut blocks = pins.iter().map(|pin| pin.block());
        let is_ours = blocks.all(|block| block.is_of(self.node.arena()));
        drop(blocks);
        match is_ours {
            true => Ok(Parcel { packed, loan, pins }),
            false => {
                // Nobody is given it.
                loan.iter().for_each(LoanBlock::unclaim);
                Err(SendError::Encode {
                    what: FOREIGN.to_owned(),
                })
            }
        }
    }

    fn check_size(&self, bytes: usize) -> Result<(), SendError> {
        let most = self.most;
        match bytes > most {
            true => Err(SendError::TooLarge { bytes, most }),
            false => Ok(()),
        }
    }

    /// Archives a value around a loan that it holds, if it can be done.
    fn around<T: ShmMessage>(
        &self,
        value: &T,
        wanted: &Wanted,
        pins: &mut Pins,
    ) -> Result<Option<(Packed, LoanBlock)>, SendError> {
        let Wanted { loan, .. } = wanted;
        // A loan of another bus is copied like any other elements: its memory is no peer's of ours.
        if !loan.block().is_of(self.node.arena()) || !loan.claim() {
            return Ok(None);
        }
        let around = archive_around(value, wanted, pins).map_err(refused);
        match around {
            Ok(Some(reference)) if (reference.len as usize) <= self.most => {
                let packed = Packed::Block(loan.block().clone(), reference);
                Ok(Some((packed, loan.clone())))
            }
            // No room around it, or too large with it: then its elements are copied, or refused as such.
            other => {
                loan.unclaim();
                other.map(|_| None)
            }
        }
    }

    /// A block of so many bytes that nobody else has.
    fn block(&mut self, len: usize, collect: impl FnOnce()) -> Result<Arc<Block>, SendError> {
        let is_few = self.used.len() < FEW && self.bytes < FEW_BYTES;
        let mut found = self.take(len);
        if found.is_none() && !is_few {
            collect();
            found = self.take(len);
        }
        let block = match found {
            Some(block) => block,
            None => Arc::new(self.node.arena().allocate(len as u64)?),
        };
        self.keep(block.clone());
        Ok(block)
    }

    /// One of the blocks that were used longest ago, if one came back and fits.
    fn take(&mut self, len: usize) -> Option<Arc<Block>> {
        for _ in 0..LOOKS {
            let mut block = self.used.pop_front()?;
            // `get_mut` orders what others did with a block before its next use.
            if Arc::get_mut(&mut block).is_none() {
                // Somebody holds it for long, perhaps: others may be back before it.
                self.used.push_back(block);
                continue;
            }
            self.bytes -= block.len();
            if block.len() >= len && block.len() / 4 <= len.max(4096) {
                return Some(block);
            }
        }
        None
    }

    /// Remembers a block, until it comes back or others were used since.
    fn keep(&mut self, block: Arc<Block>) {
        self.bytes += block.len();
        self.used.push_back(block);
        // Whoever is idle behind a burst holds little of the memory of all.
        let most = self.node.config().memory_limit / 64;
        while self.used.len() > MOST || (self.bytes > most && self.used.len() > 1) {
            let first = self.used.pop_front();
            self.bytes -= first.map_or(0, |first| first.len());
        }
    }

    /// Gives back what nobody else has, for want of memory.
    pub(crate) fn drop_returned(&mut self) {
        self.used.retain_mut(|block| Arc::get_mut(block).is_none());
        self.bytes = self.used.iter().map(|block| block.len()).sum();
    }

    /// Memory of our own to fill in place, with room for its message around it.
    pub(crate) fn loan<E: Pod>(
        &mut self,
        len: usize,
        collect: impl FnOnce(),
    ) -> Result<Bulk<E>, SendError> {
        let bytes = len.saturating_mul(size_of::<E>());
        self.check_size(bytes)?;
        let block = self.block(loan_len(bytes), collect)?;
        Ok(Bulk::lend(block, len))
    }
}

fn refused(error: EncodeError) -> SendError {
    let what = error.to_string();
    SendError::Encode { what }
}
