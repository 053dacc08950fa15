//! Making the two ends of a lane: what each side contributes, and how they are joined.
//!
//! Unsafe code is needed to lay the shared structures over places that were checked.
#![allow(unsafe_code)]

use std::sync::Arc;

use super::outbox::OutboxParts;
use super::reading::Newest;
use super::{Board, CALL_CELLS, Form, Inbox, Outbox, Reader, STREAM_CELLS};
use crate::error::{Fault, MemoryError};
use crate::link::node::Node;
use crate::link::wire::{End, SendingEnd};
use crate::link::{DoorBit, Estate, LaneId, Line, Link};
use crate::memory::layout::{
    Bell, BoardBlock, CELL, Cell, Doorbell, HoldBlock, ReceiverBlock, SegmentRef, SenderBlock,
    TopicBlock,
};
use crate::memory::ring::HandBack;
use crate::memory::shared::{Place, Shared};
use crate::sync::Ordering;
use crate::wait::{Ringer, Sleeper, Waiter};

/// How many bytes of words stand before a lane's first cells, and how many cells there are.
fn sending_size(form: Form) -> (usize, usize) {
    match form {
        Form::Call => (size_of::<SenderBlock>(), CALL_CELLS),
        Form::OneWay => (size_of::<SenderBlock>(), STREAM_CELLS),
        Form::Topic | Form::Latest => (size_of::<(SenderBlock, TopicBlock)>(), STREAM_CELLS),
    }
}

/// How many bytes of words a receiving end has.
fn receiving_size(form: Form) -> usize {
    match form {
        Form::Latest => size_of::<(ReceiverBlock, HoldBlock)>(),
        Form::Call | Form::OneWay | Form::Topic => size_of::<ReceiverBlock>(),
    }
}

/// The words and cells of a sending end.
struct Sending {
    block: Shared<SenderBlock>,
    topic: Option<Shared<TopicBlock>>,
    cells: Shared<[Cell]>,
}

/// Our side of a lane pair, before the other is known.
pub(crate) struct Near {
    form: Form,
    sends: Option<Sending>,
    receives: Option<Shared<ReceiverBlock>>,
    /// Of a lane of newest values: what is held on the receiving end; and on the sending end, who reads which.
    hold: Option<Shared<HoldBlock>>,
    board: Option<(Arc<Board>, Arc<Reader>)>,
    door: Option<DoorBit>,
    sleeper: Arc<Sleeper>,
}

/// What a side contributes, and how it says so.
pub(crate) struct Offered {
    pub(crate) near: Near,
    /// The memory of it, which stays as long as the peer may look at it.
    pub(crate) estate: Estate,
    pub(crate) end: End,
}

/// Makes our side of a lane pair: a sending end, a receiving end, or both. With a `door`, this
/// side's messages are announced at the doorbell of the peer's port of that name. With a `board`, they say
/// what has changed there.
pub(crate) fn offer_end(
    node: &Node,
    link: &Arc<Link>,
    sleeper: &Arc<Sleeper>,
    (form, sends, receives): (Form, bool, bool),
    door: Option<&str>,
    board: Option<&Arc<Board>>,
) -> Result<Offered, MemoryError> {
    let bell = sleeper.place();
    let mut blocks = vec![sleeper.block().clone()];
    let mut end = End {
        sends: None,
        receives: None,
        bell: (bell.into(), sleeper.id()),
        tasks: sleeper.waiter() == Waiter::Tasks,
        door: None,
    };
    let mut near = Near {
        form,
        sends: None,
        receives: None,
        hold: None,
        board: board.map(|board| (board.clone(), Arc::new(Reader::default()))),
        door: None,
        sleeper: sleeper.clone(),
    };
    if sends {
        let (words, cells) = sending_size(form);
        let size = words + cells * CELL;
        let block = Arc::new(node.arena().allocate(size as u64)?);
        let at = block.reference(0, size);
        end.sends = Some(SendingEnd {
            cells: at.into(),
            timed: node.config().timestamps,
            board: board.map(|board| board.place().into()),
        });
        blocks.push(block.clone());
        let row = Shared::own_slice(block.clone(), words, cells);
        let topic = matches!(form, Form::Topic | Form::Latest)
            .then(|| Shared::own_at(block.clone(), size_of::<SenderBlock>()));
        near.sends = Some(Sending {
            block: Shared::own(block),
            topic,
            cells: row,
        });
    }
    if receives {
        let size = receiving_size(form);
        let block = Arc::new(node.arena().allocate(size as u64)?);
        let at = block.reference(0, size);
        end.receives = Some(at.into());
        blocks.push(block.clone());
        near.hold = (form == Form::Latest)
            .then(|| Shared::own_at(block.clone(), size_of::<ReceiverBlock>()));
        near.receives = Some(Shared::own(block));
    }
    if let Some(name) = door {
        let door = link.take_bit(node, name)?;
        let (at, bit) = (door.at, door.bit);
        // Relaxed: nobody else flips this bit, and its last flip was in this process.
        let word = door.bell.ready[usize::from(bit) / 64].load(Ordering::Relaxed);
        end.door = Some((at.into(), bit, word >> (bit % 64) & 1 == 1));
        if let Some(segment) = node.arena().segment(at.segment) {
            let _ = link.announce(&segment);
        }
        near.door = Some(door);
    }
    blocks.extend(board.map(|board| board.block().clone()));
    for block in &blocks {
        // A link that cannot be told anything is given up; whoever waits on it learns that.
        let _ = link.announce(block.segment());
    }
    if end.tasks {
        let _ = link.announce_bell(node, sleeper);
    }
    let mut estate = Estate::new();
    for block in blocks {
        estate.push(block);
    }
    if let Some((board, reader)) = &near.board {
        estate.push(board.clone());
        estate.push(reader.clone());
    }
    Ok(Offered { near, estate, end })
}

/// Joins our side with the peer's, whose every reference is checked first.
///
/// `aligns` are those of what we send and of what we receive.
pub(crate) fn complete(
    node: &Arc<Node>,
    link: &Arc<Link>,
    (line, id): (&Arc<Line>, LaneId),
    near: Near,
    their: &End,
    (sent, received): (usize, usize),
    grows_when_full: bool,
) -> Result<(Option<Outbox>, Option<Inbox>), Fault> {
    let unpaired = Fault::Control {
        what: "a lane with one end",
    };
    if near.sends.is_some() != their.receives.is_some()
        || near.receives.is_some() != their.sends.is_some()
    {
        return Err(unpaired);
    }
    let ringer = || -> Result<Ringer, Fault> {
        let bell = lay::<Bell>(link, their.bell.0.into())?;
        let waiter = if their.tasks {
            Waiter::Tasks
        } else {
            Waiter::Thread
        };
        Ok(Ringer::new(bell, their.bell.1, waiter, link.clone()))
    };
    #[cfg(feature = "json")]
    let places = Places::of(&near, their);
    let mut requests = None;
    let inbox = match (near.receives, their.sends) {
        (Some(block), Some(sending)) => {
            let theirs = lay_their_sending(link, sending.cells.into(), near.form)?;
            let newest = match (near.hold, sending.board) {
                (Some(hold), Some(board)) => Some(Newest {
                    hold,
                    head: lay::<BoardBlock>(link, board.into())?,
                }),
                (None, None) => None,
                _ => return Err(unpaired),
            };
            requests = Some(theirs.block.clone());
            let end = Box::new(ReceivingEnd(link.clone(), id));
            let back = HandBack::new(block, theirs.block, ringer()?, node.origin(), end);
            Some(Inbox::new(
                theirs.cells,
                (received, sending.timed),
                theirs.topic,
                back,
                (link.clone(), line.clone()),
                newest,
            ))
        }
        _ => None,
    };
    let outbox = match (near.sends, their.receives) {
        (Some(sends), Some(receives)) => {
            let (receiver, hold) = lay_their_receiving(link, receives.into(), near.form)?;
            if let (Some((board, reader)), Some(hold)) = (near.board, hold) {
                board.join(&reader, hold, link);
            }
            let parts = OutboxParts {
                node: node.clone(),
                link: link.clone(),
                line: line.clone(),
                id,
                block: sends.block,
                topic: sends.topic,
                cells: sends.cells,
                receiver,
                ringer: ringer()?,
                door: near.door,
                sleeper: near.sleeper,
                requests,
                grows_when_full,
            };
            Some(Outbox::new(parts, sent))
        }
        _ => None,
    };
    #[cfg(feature = "json")]
    let (outbox, inbox) = if link.is_noted(id) {
        note((link, line, id), places, (outbox, inbox))
    } else {
        (outbox, inbox)
    };
    Ok((outbox, inbox))
}

/// Where the cells of both sides are, and the words in which the peer hands back.
#[cfg(feature = "json")]
struct Places {
    ours: Option<SegmentRef>,
    theirs: Option<SegmentRef>,
    back: Option<SegmentRef>,
}

#[cfg(feature = "json")]
impl Places {
    fn of(near: &Near, their: &End) -> Places {
        let (words, cells) = sending_size(near.form);
        let of_cells = |at| part(at, words, cells * CELL);
        let ours = near.sends.as_ref().and_then(|sends| sends.cells.block());
        Places {
            ours: ours.map(|block| block.reference(words, cells * CELL)),
            theirs: their.sends.map(|sends| of_cells(sends.cells.into())),
            back: (their.receives).map(|at| part(at.into(), 0, size_of::<ReceiverBlock>())),
        }
    }
}

/// Notes the two ends of a lane for the flight recorder.
#[cfg(feature = "json")]
fn note(
    (link, line, id): (&Arc<Link>, &Arc<Line>, LaneId),
    places: Places,
    (mut outbox, mut inbox): (Option<Outbox>, Option<Inbox>),
) -> (Option<Outbox>, Option<Inbox>) {
    use crate::link::flight::{Known, Side};
    let mut sides = Vec::new();
    if let (Some(outbox), Some(at), Some(back)) = (&mut outbox, places.ours, places.back) {
        let mark = Arc::default();
        sides.push(Side {
            rows: vec![at],
            starts: outbox.mark(&mark),
            known: Known::Sent(mark, back),
        });
    }
    if let (Some(inbox), Some(at)) = (&mut inbox, places.theirs) {
        let taken = Arc::default();
        sides.push(Side {
            rows: vec![at],
            starts: inbox.mark(&taken),
            known: Known::Received(taken),
        });
    }
    link.note_sides(id, line, sides);
    (outbox, inbox)
}

/// Held by all that looks at what came on a lane: says that nothing does any more.
struct ReceivingEnd(Arc<Link>, LaneId);

impl Drop for ReceivingEnd {
    fn drop(&mut self) {
        self.0.release_lane(self.1);
    }
}

/// Lays a structure over a place of the peer's.
pub(crate) fn lay<T: Place>(link: &Link, at: SegmentRef) -> Result<Shared<T>, Fault> {
    if at.len != size_of::<T>() as u64 {
        return Err(Fault::Control {
            what: "a structure of another size",
        });
    }
    let (segment, place) = link.resolve(at, align_of::<T>() as u64)?;
    // SAFETY: 1. the place was resolved for the size and the alignment of `T`.
    Ok(unsafe { Shared::peer(segment, place) })
}

/// Lays a doorbell over a place of the peer's.
pub(crate) fn lay_door(link: &Link, at: SegmentRef) -> Result<Shared<Doorbell>, Fault> {
    lay(link, at)
}

/// A part of a place, so many bytes behind its start.
fn part(at: SegmentRef, offset: usize, len: usize) -> SegmentRef {
    SegmentRef {
        offset: at.offset.saturating_add(offset as u64),
        len: len as u64,
        ..at
    }
}

fn lay_their_sending(link: &Link, at: SegmentRef, form: Form) -> Result<Sending, Fault> {
    let (words, count) = sending_size(form);
    if at.len != (words + count * CELL) as u64 {
        return Err(Fault::Control {
            what: "a lane of another size",
        });
    }
    let block = lay(link, part(at, 0, size_of::<SenderBlock>()))?;
    let topic = part(at, size_of::<SenderBlock>(), size_of::<TopicBlock>());
    let topic = match form {
        Form::Topic | Form::Latest => Some(lay(link, topic)?),
        Form::Call | Form::OneWay => None,
    };
    let (segment, place) = link.resolve(part(at, words, count * CELL), CELL as u64)?;
    // SAFETY: 1. the range was resolved for so many cells on their alignment.
    let cells = unsafe { Shared::<[Cell]>::peer_slice(segment, place, count) };
    Ok(Sending {
        block,
        topic,
        cells,
    })
}

type Receiving = (Shared<ReceiverBlock>, Option<Shared<HoldBlock>>);

fn lay_their_receiving(link: &Link, at: SegmentRef, form: Form) -> Result<Receiving, Fault> {
    if at.len != receiving_size(form) as u64 {
        return Err(Fault::Control {
            what: "a receiving end of another size",
        });
    }
    let block = lay(link, part(at, 0, size_of::<ReceiverBlock>()))?;
    let hold = part(at, size_of::<ReceiverBlock>(), size_of::<HoldBlock>());
    let hold = (form == Form::Latest).then(|| lay(link, hold));
    Ok((block, hold.transpose()?))
}
