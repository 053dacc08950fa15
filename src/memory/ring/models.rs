//! The claims of the module, one a test: explored in every order of their steps.
//!
//! What is run is the code of this module. A cell's payload is a loom cell here, so loom reports
//! whoever reads or writes it while it is another's.

use std::sync::Arc;

use loom::thread::{spawn, yield_now};

use super::super::layout::{
    Bell, CELL, Cell, HEADER, Header, Kind, ReceiverBlock, SenderBlock, Starts, stamp_of,
};
use super::super::shared::Shared;
use super::{Consumer, HandBack, NoRoom, Polled, Producer, Record, Space};
use crate::sync::{Ordering, explore};
use crate::sys::fork::Origin;
use crate::wait::{Post, Ringer, Waiter};

/// The tag of a header that was never published.
const FORGED: u16 = 0xbad;

struct Silent;
impl Post for Silent {
    fn ring(&self, _: u32) {}
    fn ring_tasks(&self, _: u32) {}
}

/// A lane on the heap, with both its ends.
pub(crate) struct Lane {
    pub(crate) producer: Producer,
    pub(crate) consumer: Consumer,
    pub(crate) cells: Shared<[Cell]>,
    pub(crate) sender: Shared<SenderBlock>,
    pub(crate) receiver: Shared<ReceiverBlock>,
}

impl Lane {
    /// A lane of which only these cells are used, and whose receiver wakes its sender like this.
    pub(crate) fn new(usable: &[usize], ringer: Ringer) -> Lane {
        let (cells, sender, receiver) = (
            cells(),
            Shared::heap(SenderBlock::new()),
            Shared::heap(ReceiverBlock::new()),
        );
        let origin = Origin::here().expect("the mark is one page");
        let back = HandBack::new(
            receiver.clone(),
            sender.clone(),
            ringer,
            origin,
            Box::new(()),
        );
        let mut producer = Producer::new(cells.clone(), receiver.clone(), false);
        producer.narrow(usable);
        Lane {
            producer,
            consumer: Consumer::new(cells.clone(), Starts::new(8, false), Arc::new(back)),
            cells,
            sender,
            receiver,
        }
    }

    /// A lane whose sender never sleeps.
    pub(crate) fn awake(usable: &[usize]) -> Lane {
        let bell = Shared::heap(Bell::new());
        Lane::new(
            usable,
            Ringer::new(bell, 0, Waiter::Thread, Arc::new(Silent)),
        )
    }

    /// Has the next record be the one with this sequence number.
    fn start_at(&mut self, sequence: u64) {
        self.producer.start_at(sequence);
        self.consumer.start_at(sequence);
    }

    /// Sends a record, and has it handed back and collected.
    fn pass(&mut self, count: usize, behind: u64) {
        send(&mut self.producer, &self.cells, (count, 0), behind).expect("a cell is free");
        let record = receive(&mut self.consumer).expect("it was just sent");
        self.consumer.hand_back(record.cell);
        self.consumer.flush();
        assert_eq!(self.producer.collect(), Ok(true));
    }
}

fn cells() -> Shared<[Cell]> {
    Shared::heap_slice((0..64).map(|_| Cell::new()).collect())
}

/// A word that passes for the header of a record at this cell.
fn forged(sequence: u64, cell: u16) -> u64 {
    let header = Header {
        kind: Kind::Inline,
        len: 0,
        next: cell,
        tag: FORGED,
    };
    header.to_word(stamp_of(sequence))
}

/// Writes a payload of cells that hold a record's tag. Where a record goes on in another cell, what
/// would be the header there is payload, too.
pub(crate) fn write(cells: &[Cell], space: &Space, (count, tag): (usize, u16), behind: u64) {
    let base = cells.as_ptr().addr();
    let first = (space.start().addr().get() - base) / size_of::<Cell>();
    for (i, cell) in cells[first..first + count].iter().enumerate() {
        if i > 0 {
            // Relaxed: an ordinary store in truth. Nobody may look at it.
            cell.header.store(behind, Ordering::Relaxed);
        }
        cell.payload.with_mut(|payload| set(payload, tag.into()));
    }
}

#[allow(unsafe_code)]
fn set(payload: *mut u64, value: u64) {
    // SAFETY: loom gives out the pointer, and reports whoever else has it.
    unsafe { *payload = value }
}

#[allow(unsafe_code)]
fn get(payload: *const u64) -> u64 {
    // SAFETY: as in `set`.
    unsafe { *payload }
}

/// Writes and publishes a record of so many cells with this tag, in the steps of `Outbox`.
pub(crate) fn send(
    ring: &mut Producer,
    cells: &[Cell],
    (count, tag): (usize, u16),
    behind: u64,
) -> Result<(), NoRoom> {
    let len = (count * CELL - HEADER) as u16;
    if let Some(space) = ring.one().filter(|_| count == 1) {
        write(cells, &space, (count, tag), behind);
        ring.publish_one(&space, (len, tag));
        return Ok(());
    }
    let here = ring.here(count);
    let space = if here.bytes() >= count * CELL {
        here
    } else {
        ring.elsewhere(count)?
    };
    write(cells, &space, (count, tag), behind);
    ring.publish(&space, (Kind::Inline, len, tag), count, None)
}

/// Looks for the next record, in the steps of `Inbox`.
pub(crate) fn receive(ring: &mut Consumer) -> Option<Record> {
    if let Some(record) = ring.poll_inline() {
        return Some(record);
    }
    match ring.poll().expect("the sender is honest") {
        Polled::Empty => None,
        Polled::Record(record) => Some(record),
        Polled::Extend(_) => panic!("no extension was sent"),
    }
}

/// Reads the payload of a record.
pub(crate) fn read(cells: &[Cell], record: &Record) {
    let first = usize::from(record.cell);
    for cell in &cells[first..first + usize::from(record.cells)] {
        assert_eq!(cell.payload.with(get), u64::from(record.tag));
    }
}

/// A receiver that looks so many times, reads what it finds and hands it back.
fn take(consumer: &mut Consumer, cells: &[Cell], looks: usize, next: &mut u16) {
    for _ in 0..looks {
        if let Some(record) = receive(consumer) {
            assert_eq!(record.tag, *next, "not what was sent");
            read(cells, &record);
            *next += 1;
            consumer.hand_back(record.cell);
            consumer.flush();
        }
    }
}

/// SYNC(publish): who finds a header finds what is behind it.
#[test]
fn a_record_that_is_found_is_whole() {
    explore(None, || {
        let lane = Lane::awake(&[0, 1, 2, 3]);
        let (mut producer, mut consumer, cells) = (lane.producer, lane.consumer, lane.cells);
        let theirs = cells.clone();
        let receiver = spawn(move || {
            let mut next = 1;
            take(&mut consumer, &theirs, 2, &mut next);
            (consumer, next)
        });
        send(&mut producer, &cells, (2, 1), 0).unwrap();
        send(&mut producer, &cells, (1, 2), 0).unwrap();
        let (mut consumer, mut next) = receiver.join().unwrap();
        take(&mut consumer, &cells, 2, &mut next);
        assert_eq!(next, 3);
    });
}

/// *Why no cell is read while it is written*: with two cells, each of three records waits for
/// another to be handed back.
#[test]
fn no_cell_is_read_while_it_is_written() {
    explore(None, || {
        let lane = Lane::awake(&[0, 1]);
        let (mut producer, mut consumer, cells) = (lane.producer, lane.consumer, lane.cells);
        let theirs = cells.clone();
        let receiver = spawn(move || {
            let mut next = 1;
            take(&mut consumer, &theirs, 3, &mut next);
            (consumer, next)
        });
        let mut tag = 1;
        for _ in 0..3 {
            producer.collect().unwrap();
            tag += u16::from(send(&mut producer, &cells, (1, tag), 0).is_ok());
        }
        let (mut consumer, mut next) = receiver.join().unwrap();
        while next < 4 {
            take(&mut consumer, &cells, 1, &mut next);
            producer.collect().unwrap();
            tag += u16::from(send(&mut producer, &cells, (1, tag), 0).is_ok());
        }
    });
}

/// *Why a stale word is never taken for a header*: the payload of an earlier record lies where a
/// header will be, and looks just like it. The sequence number wraps around on the way.
#[test]
fn a_stale_word_is_no_header() {
    explore(None, || {
        let mut lane = Lane::awake(&[0, 1, 2]);
        let start = u64::MAX - 2;
        lane.start_at(start);
        lane.pass(2, forged(start.wrapping_add(3), 1));
        lane.pass(1, 0);
        let (mut producer, mut consumer, cells) = (lane.producer, lane.consumer, lane.cells);
        let theirs = cells.clone();
        let receiver = spawn(move || {
            let mut next = 1;
            take(&mut consumer, &theirs, 3, &mut next);
            (consumer, next)
        });
        send(&mut producer, &cells, (1, 1), 0).unwrap();
        send(&mut producer, &cells, (1, 2), 0).unwrap();
        let (mut consumer, mut next) = receiver.join().unwrap();
        take(&mut consumer, &cells, 2, &mut next);
        assert_eq!(next, 3);
    });
}

/// A jump leads to a record that stands: what lay there before is not overwritten.
#[test]
fn a_jump_leads_to_what_stands() {
    explore(None, || {
        let lane = Lane::awake(&[0, 2, 3, 4]);
        let (mut producer, mut consumer, cells) = (lane.producer, lane.consumer, lane.cells);
        cells[2].header.store(forged(1, 4), Ordering::Relaxed);
        let theirs = cells.clone();
        let receiver = spawn(move || {
            let mut next = 1;
            take(&mut consumer, &theirs, 2, &mut next);
            (consumer, next)
        });
        send(&mut producer, &cells, (2, 1), 0).unwrap();
        let (mut consumer, mut next) = receiver.join().unwrap();
        take(&mut consumer, &cells, 1, &mut next);
        assert_eq!(next, 2);
    });
}

/// New cells show no header before one is published there, not even where zero is its stamp.
#[test]
fn new_cells_are_empty() {
    explore(None, || {
        let mut lane = Lane::awake(&[0]);
        lane.start_at(4094);
        let (mut producer, mut consumer, more) = (lane.producer, lane.consumer, cells());
        let theirs = more.clone();
        let receiver = spawn(move || {
            look_into(&mut consumer, &theirs);
            look_into(&mut consumer, &theirs);
            consumer
        });
        producer.extend(more.clone(), 24);
        send(&mut producer, &more, (1, 1), 0).unwrap();
        let mut consumer = receiver.join().unwrap();
        look_into(&mut consumer, &more);
        look_into(&mut consumer, &more);
        let Ok(Polled::Empty) = consumer.poll() else {
            panic!("more than was sent")
        };
        consumer.flush();
        assert_eq!(producer.collect(), Ok(true));
        assert!(!producer.has_lent());
    });
}

/// Looks once; maps these cells, or takes the one record that is sent in them.
fn look_into(consumer: &mut Consumer, more: &Shared<[Cell]>) {
    match consumer.poll().expect("the sender is honest") {
        Polled::Empty => {}
        Polled::Extend(record) => consumer.extend(record, more.clone()).unwrap(),
        Polled::Record(record) => {
            assert_eq!((record.tag, record.cell), (1, 64));
            assert_eq!(more[0].payload.with(get), 1);
            consumer.hand_back(record.cell);
        }
    }
}

/// Two threads hand back, in any order: each record is collected once, and none too early.
#[test]
fn each_record_is_collected_once() {
    explore(None, || {
        let mut lane = Lane::awake(&[0, 1, 2, 3]);
        let mut records = Vec::new();
        for tag in 1..=3 {
            send(&mut lane.producer, &lane.cells, (1, tag), 0).unwrap();
            records.extend(receive(&mut lane.consumer).map(Held));
        }
        let Lane {
            mut producer,
            mut consumer,
            cells,
            ..
        } = lane;
        let back = consumer.back().clone();
        back.keep(1);
        let (kept, theirs) = (records.remove(1), cells.clone());
        let keeper = spawn(move || back.release_kept(kept.read(&theirs), 1));
        let theirs = cells.clone();
        let receiver = spawn(move || {
            for record in records.iter().rev() {
                consumer.hand_back(record.read(&theirs));
                consumer.flush();
            }
            consumer
        });
        producer.collect().unwrap();
        // Whatever is free now can be written.
        for count in (1..=3).rev() {
            if let Ok(space) = producer.elsewhere(count) {
                write(&cells, &space, (count, 9), 0);
            }
        }
        keeper.join().unwrap();
        let consumer = receiver.join().unwrap();
        assert_eq!(consumer.back().kept(), 0);
        producer.collect().unwrap();
        assert!(!producer.has_lent());
        assert!(producer.elsewhere(3).is_ok(), "a cell was lost");
    });
}

/// A record that goes to another thread.
struct Held(Record);
impl Held {
    /// Reads it, and returns the cell by which it is handed back.
    fn read(&self, cells: &[Cell]) -> u16 {
        read(cells, &self.0);
        self.0.cell
    }
}
#[allow(unsafe_code)]
// SAFETY: its cells stay while it is not handed back, on whatever thread.
unsafe impl Send for Held {}

/// *Why no cancel hits another request*: a tag that was cancelled before is used again.
#[test]
fn a_request_is_not_cancelled_by_the_one_before_it() {
    const TAG: u16 = 3;
    explore(None, || {
        let lane = Lane::awake(&[0, 1, 2]);
        let requests = Shared::heap(SenderBlock::new());
        requests.cancel(TAG);
        let (mut consumer, server) = (lane.consumer, requests.clone());
        let server = spawn(move || {
            while receive(&mut consumer).is_none() {
                yield_now();
            }
            assert!(!server.is_cancelled(TAG));
        });
        let mut producer = lane.producer;
        requests.uncancel(TAG);
        send(&mut producer, &lane.cells, (1, TAG), 0).expect("there is room");
        server.join().unwrap();
    });
}
