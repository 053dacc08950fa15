//! A sender and a receiver on the heap, against a plain queue.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::layout::{
    Bell, CELL, Cell, HEADER, Kind, ReceiverBlock, SenderBlock, Starts, cells_for,
};
use super::super::shared::Shared;
use super::{Consumer, HandBack, NoRoom, Polled, Producer, Record, Space};
use crate::error::Fault;
use crate::sync::Ordering;
use crate::sys::fork::Origin;
use crate::wait::{Post, Ringer, Waiter};

struct Silent;
impl Post for Silent {
    fn ring(&self, _: u32) {}
    fn ring_tasks(&self, _: u32) {}
}

pub(super) fn cells(count: usize) -> Shared<[Cell]> {
    Shared::heap_slice((0..count).map(|_| Cell::new()).collect())
}

pub(super) fn back(receiver: &Shared<ReceiverBlock>) -> HandBack {
    let bell = Shared::heap(Bell::new());
    let sender = Shared::heap(SenderBlock::new());
    let origin = Origin::here().unwrap();
    HandBack::new(
        receiver.clone(),
        sender,
        Ringer::new(bell, 0, Waiter::Thread, Arc::new(Silent)),
        origin,
        Box::new(()),
    )
}

fn pair(count: usize) -> (Producer, Consumer, Shared<ReceiverBlock>, Shared<[Cell]>) {
    let (cells, receiver) = (cells(count), Shared::heap(ReceiverBlock::new()));
    let producer = Producer::new(cells.clone(), receiver.clone(), true);
    let consumer = Consumer::new(
        cells.clone(),
        Starts::new(8, false),
        Arc::new(back(&receiver)),
    );
    (producer, consumer, receiver, cells)
}

#[allow(unsafe_code)]
fn fill(space: &Space, len: usize, byte: u8) {
    assert!(HEADER + len <= space.bytes());
    // SAFETY: the payload lies in the space.
    let to = unsafe { space.start().as_ptr().add(HEADER) };
    // SAFETY: as above.
    unsafe { to.write_bytes(byte, len) };
}

#[allow(unsafe_code)]
fn holds(record: &Record, byte: u8) -> bool {
    let bytes = std::ptr::NonNull::slice_from_raw_parts(record.payload, record.len.into());
    // SAFETY: the record is held.
    unsafe { bytes.as_ref() }.iter().all(|b| *b == byte)
}

fn send(ring: &mut Producer, len: usize, byte: u8, tag: u16) -> Result<(), NoRoom> {
    let cells = cells_for(HEADER, len);
    let here = ring.here(cells);
    let space = if here.bytes() >= cells * CELL {
        here
    } else {
        ring.elsewhere(cells)?
    };
    fill(&space, len, byte);
    ring.publish(&space, (Kind::Inline, len as u16, tag), cells, None)
}

fn receive(ring: &mut Consumer) -> Option<Record> {
    if let Some(record) = ring.poll_inline() {
        return Some(record);
    }
    match ring.poll().unwrap() {
        Polled::Empty => None,
        Polled::Record(record) => Some(record),
        Polled::Extend(_) => panic!("no extension was sent"),
    }
}

struct Random(u64);
impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Random sends, receives and hand-backs in any order: nothing is lost, nothing is torn, and in
/// the end every cell is free again. Starts right before the sequence number wraps around.
#[test]
fn behaves_like_a_queue_whatever_is_held() {
    for seed in 1..40 {
        let (mut ring, mut other, ..) = pair(64);
        let start = u64::MAX - seed * 7;
        ring.start_at(start);
        other.start_at(start);
        let mut random = Random(seed * 0x9e37_79b9);
        let (mut sent, mut held) = (VecDeque::new(), Vec::<(Record, u8)>::new());
        let mut count = 0u16;
        for _ in 0..20_000 {
            match random.below(3) {
                0 => {
                    let len = [5, 56, 57, 200, 900][random.below(5) as usize];
                    let byte = random.below(256) as u8;
                    ring.collect().unwrap();
                    if send(&mut ring, len, byte, count).is_ok() {
                        sent.push_back((len, byte, count));
                        count = count.wrapping_add(1);
                    }
                }
                1 => match (receive(&mut other), sent.pop_front()) {
                    (Some(record), Some((len, byte, tag))) => {
                        assert_eq!((usize::from(record.len), record.tag), (len, tag));
                        held.push((record, byte));
                    }
                    (None, None) => other.flush(),
                    (got, wanted) => panic!("got {got:?} where {wanted:?} was sent"),
                },
                _ if !held.is_empty() => {
                    let (record, byte) = held.swap_remove(random.below(held.len() as u64) as usize);
                    assert!(holds(&record, byte), "a held record was written to");
                    other.hand_back(record.cell);
                }
                _ => {}
            }
        }
        while let Some(record) = receive(&mut other) {
            other.hand_back(record.cell);
        }
        held.iter()
            .for_each(|(record, _)| other.hand_back(record.cell));
        other.flush();
        ring.collect().unwrap();
        assert!(!ring.has_lent());
        assert!(ring.elsewhere(31).is_ok(), "free cells were lost");
        assert!(count > 1000, "hardly anything was sent");
    }
}

#[test]
fn one_held_record_does_not_stall_the_others() {
    let (mut ring, mut other, ..) = pair(64);
    send(&mut ring, 8, 1, 0).unwrap();
    let held = receive(&mut other).unwrap();
    for i in 0..10_000u16 {
        ring.collect().unwrap();
        send(&mut ring, 8, 2, i).expect("only one record is held");
        let record = receive(&mut other).unwrap();
        assert_eq!(record.tag, i);
        other.hand_back(record.cell);
    }
    assert!(holds(&held, 1));
}

#[test]
fn a_stale_payload_is_never_a_header() {
    // Payloads that are full of plausible headers, in every cell, over many laps.
    let (mut ring, mut other, ..) = pair(64);
    for i in 0..30_000u64 {
        ring.collect().unwrap();
        let space = ring.here(4);
        if space.bytes() < 4 * CELL {
            send(&mut ring, 8, 0, 0).unwrap();
        } else {
            let word = (i + 1 + i % 9) & 0xfff | 1 << 12 | 8 << 16;
            write_words(&space, word);
            ring.publish(&space, (Kind::Inline, 240, 7), 4, None)
                .unwrap();
        }
        let record = receive(&mut other).expect("what was sent");
        assert!(
            receive(&mut other).is_none(),
            "a stale word was taken for a header"
        );
        other.hand_back(record.cell);
        other.flush();
    }
}

#[allow(unsafe_code)]
fn write_words(space: &Space, word: u64) {
    for i in 1..32 {
        // SAFETY: four cells have 32 words.
        let to = unsafe { space.start().as_ptr().cast::<u64>().add(i) };
        // SAFETY: as above, aligned.
        unsafe { to.write(word) };
    }
}

#[test]
fn grows_while_it_is_full() {
    let (mut ring, mut other, ..) = pair(64);
    let mut sent = 0;
    while send(&mut ring, 8, 3, sent).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, 63, "one cell stays reserved");
    let more = cells(128);
    ring.extend(more.clone(), 24);
    for tag in sent..sent + 100 {
        send(&mut ring, 8, 3, tag).unwrap();
    }
    for tag in 0..sent {
        assert_eq!(receive(&mut other).unwrap().tag, tag);
    }
    let Polled::Extend(record) = other.poll().unwrap() else {
        panic!("no extension")
    };
    other.extend(record, more).unwrap();
    for tag in sent..sent + 100 {
        assert_eq!(receive(&mut other).unwrap().tag, tag);
    }
    assert!(receive(&mut other).is_none());
}

#[test]
fn forged_headers_and_hand_backs_are_faults() {
    let mut random = Random(77);
    for _ in 0..50_000 {
        let (_, mut other, _, cells) = pair(64);
        let word = random.below(u64::MAX) & !0xfff | 1;
        cells[0].header.store(word, Ordering::Release);
        // Whatever it says: a fault, or a record within the cells.
        if let Ok(Polled::Record(record)) = other.poll() {
            let base = cells.as_ptr() as usize;
            let at = record.payload.addr().get();
            assert!(at >= base && at + usize::from(record.len) <= base + 64 * CELL);
        }
    }
    let (mut ring, _, receiver, _) = pair(64);
    receiver.handed_back[0].store(1 << 9, Ordering::Release);
    assert_eq!(ring.collect(), Err(Fault::HandBack { cell: 9 }));
}

#[test]
fn an_endless_chain_of_jumps_costs_one_poll_little() {
    let (_, mut other, _, cells) = pair(64);
    for (i, cell) in cells.iter().enumerate() {
        let word = (i as u64 + 1) | 3 << 12 | ((i as u64 + 1) % 64) << 32;
        cell.header.store(word, Ordering::Release);
    }
    assert!(matches!(other.poll(), Ok(Polled::Empty)));
}

#[test]
fn a_pin_is_lent_until_its_record_is_handed_back() {
    use super::super::arena::{Arena, Limits};
    use super::super::pins::{Book, PinBlock, Pins};

    const PIN: u64 = 4096;
    let arena = Arena::new(Limits { memory: 8 << 20 }, Box::new(|_| {}));
    let (mut producer, mut consumer, _receiver, _cells) = pair(64);
    let mut book: Option<Arc<Book>> = None;
    let mut held = Vec::new();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..20_000 {
        // Some records in one cell, some in several; some lend nothing, some two pins.
        let (cells, pins) = (1 + random(3) as usize, random(3));
        let space = producer.here(cells);
        let fits = held.len() < 30 && space.bytes() >= cells * CELL;
        let record = (Kind::Inline, (cells * CELL - HEADER) as u16, 0);
        if fits && producer.publish(&space, record, cells, None).is_ok() {
            let mut noted = Pins::default();
            for _ in 0..pins {
                let block = Arc::new(arena.allocate(PIN).unwrap());
                noted.note(&PinBlock::new(block));
            }
            if pins > 0 {
                producer.lend(&space, noted, |receiver| {
                    book.insert(Arc::new(Book::new(receiver, Arc::default())))
                        .clone()
                });
            }
            let Ok(Polled::Record(record)) = consumer.poll() else {
                panic!("it was published");
            };
            held.push((record.cell, pins));
        }
        if !held.is_empty() && (!fits || random(2) == 0) {
            let (cell, _) = held.swap_remove(random(held.len() as u64) as usize);
            consumer.hand_back(cell);
            consumer.flush();
        }
        if random(4) == 0 {
            producer.collect().unwrap();
        }
        let lent: u64 = held.iter().map(|(_, pins)| pins * PIN).sum();
        assert!(arena.usage().1 >= lent, "a pin was freed that is held");
        // Others look at other moments than the sender.
        if let Some(book) = book.as_ref().filter(|_| random(40) == 0) {
            book.sweep();
            assert_eq!(arena.usage().1, lent);
        }
    }
}
