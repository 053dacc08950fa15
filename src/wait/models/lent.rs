//! The claims of what is lent more than once, or later: one message on several lanes, a pin beside its message, and
//! the newest message that is kept for who is behind.

use std::sync::{Arc, OnceLock};

use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::thread::spawn;

use super::tasks::{Chimes, Driven};
use super::{get, set};
use crate::memory::arena::{Arena, Block, Limits};
use crate::memory::layout::{CELL, Cell, HEADER, Kind, SegmentRef, SenderBlock};
use crate::memory::pins::{Book, PinBlock, Pins};
use crate::memory::ring::models::{Lane, read, receive, send, write};
use crate::memory::ring::{Consumer, Producer};
use crate::memory::shared::Shared;
use crate::sync::explore;

/// A block of the slab, by which private books count who has it; what is in it, loom watches beside it.
fn block() -> Arc<Block> {
    static ARENA: OnceLock<Arc<Arena>> = OnceLock::new();
    let memory = 1 << 20;
    let arena = ARENA.get_or_init(|| Arena::new(Limits { memory }, Box::new(|_| {})));
    Arc::new(arena.allocate(64).expect("there is memory"))
}

/// Sends a reference to the block.
fn lend(lane: (&mut Producer, &[Cell]), tag: u16, block: &Arc<Block>) {
    let (producer, cells) = lane;
    let space = producer.here(1);
    write(cells, &space, (1, tag), 0);
    let len = size_of::<SegmentRef>() as u16;
    let sent = producer.publish(&space, (Kind::Block, len, tag), 1, Some(block.clone()));
    sent.expect("there is room");
}

/// A subscriber that looks so many times, and reads what was lent to it before it hands that back.
fn look(consumer: &mut Consumer, cells: &[Cell], content: &UnsafeCell<u64>, looks: usize) {
    for _ in 0..looks {
        if let Some(record) = receive(consumer) {
            read(cells, &record);
            assert_eq!(content.with(get), u64::from(record.tag));
            consumer.hand_back(record.cell);
            consumer.flush();
        }
    }
}

/// A message that is lent on two lanes is not written before both have it back.
#[test]
fn no_message_is_written_while_one_of_several_reads_it() {
    // Of the model checker's own world: whether any order led to that.
    static WRITTEN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    explore(Some(3), || {
        let content = Arc::new(UnsafeCell::new(0));
        let mut block = block();
        let mut sending = Vec::new();
        let mut reading = Vec::new();
        let lanes = [0; 2].map(|_| Lane::awake(&[0, 1, 2]));
        content.with_mut(|content| set(content, 1));
        for lane in lanes {
            let (mut producer, mut consumer, cells) = (lane.producer, lane.consumer, lane.cells);
            lend((&mut producer, &cells), 1, &block);
            sending.push((producer, cells.clone()));
            let content = content.clone();
            reading.push(spawn(move || look(&mut consumer, &cells, &content, 2)));
        }
        for _ in 0..2 {
            for (producer, _) in &mut sending {
                producer.collect().expect("the subscriber is honest");
            }
            if Arc::get_mut(&mut block).is_some() {
                content.with_mut(|content| set(content, 2));
                WRITTEN.store(true, std::sync::atomic::Ordering::Relaxed);
                for (producer, cells) in &mut sending {
                    lend((producer, cells), 2, &block);
                }
                break;
            }
        }
        reading
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
    assert!(WRITTEN.load(std::sync::atomic::Ordering::Relaxed));
}

/// *Why no pin is freed that a receiver may look at*: it is given up with its record, by whoever sweeps the book.
#[test]
fn no_pin_is_written_while_a_receiver_of_its_message_reads_it() {
    static WRITTEN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    explore(Some(3), || {
        let content = Arc::new(UnsafeCell::new(0));
        let pin = PinBlock::new(block());
        content.with_mut(|content| set(content, 1));
        let lane = Lane::awake(&[0, 1, 2]);
        let (mut producer, mut consumer, cells) = (lane.producer, lane.consumer, lane.cells);
        let theirs = (cells.clone(), content.clone());
        let reading = spawn(move || look(&mut consumer, &theirs.0, &theirs.1, 2));
        let book = Arc::new(Book::new(lane.receiver, Arc::default()));
        let mut pins = Pins::default();
        pins.note(&pin);
        let space = producer.here(1);
        write(&cells, &space, (1, 1), 0);
        let len = (CELL - HEADER) as u16;
        let sent = producer.publish(&space, (Kind::Inline, len, 1), 1, None);
        sent.expect("there is room");
        let ours = book.clone();
        producer.lend(&space, pins, |_| ours);
        for _ in 0..2 {
            book.sweep();
            if Arc::strong_count(&pin) == 1 {
                content.with_mut(|content| set(content, 2));
                WRITTEN.store(true, std::sync::atomic::Ordering::Relaxed);
                break;
            }
        }
        reading.join().unwrap();
    });
    assert!(WRITTEN.load(std::sync::atomic::Ordering::Relaxed));
}

/// A lossy publisher's lane to one subscriber, in the steps of `topic::core`.
struct Giving(Mutex<State>);

struct State {
    producer: Producer,
    cells: Shared<[Cell]>,
    sender: Shared<SenderBlock>,
    kept: Option<u16>,
    missed: usize,
}

impl Giving {
    fn publish(&self, tag: u16) {
        let mut state = self.0.lock().unwrap();
        if state.give_kept() && state.send(tag) {
            return;
        }
        state.missed += usize::from(state.kept.replace(tag).is_some());
        state.sender.ask_for_room();
        state.give_kept();
    }
}

impl State {
    fn send(&mut self, tag: u16) -> bool {
        let mut sent = || send(&mut self.producer, &self.cells, (1, tag), 0).is_ok();
        if sent() {
            return true;
        }
        self.producer.collect().expect("the subscriber is honest");
        send(&mut self.producer, &self.cells, (1, tag), 0).is_ok()
    }

    fn give_kept(&mut self) -> bool {
        let Some(kept) = self.kept else {
            return true;
        };
        if self.send(kept) {
            self.kept = None;
        }
        self.kept.is_none()
    }
}

impl Driven for Giving {
    fn drive(&self) {
        let mut state = self.0.lock().unwrap();
        if !state.give_kept() {
            state.sender.ask_for_room();
            state.give_kept();
        }
    }
}

/// What a subscriber takes in so many looks, in order.
fn take(consumer: &mut Consumer, cells: &[Cell], looks: usize) -> Vec<u16> {
    let mut came = Vec::new();
    for _ in 0..looks {
        if let Some(record) = receive(consumer) {
            read(cells, &record);
            came.push(record.tag);
            consumer.hand_back(record.cell);
            consumer.flush();
        }
    }
    came
}

/// *Why nothing is lost without being told*: who makes room gets the newest message, also where nobody publishes any
/// more; and each message came, or was counted.
#[test]
fn no_message_that_is_kept_is_forgotten() {
    const SENT: u16 = 3;
    explore(Some(3), || {
        let chimes = Chimes::new();
        // Room for one message at a time.
        let lane = Lane::new(&[0, 1], chimes.ringer());
        let (mut consumer, cells) = (lane.consumer, lane.cells.clone());
        let giving = chimes.stand(Giving(Mutex::new(State {
            producer: lane.producer,
            cells: lane.cells,
            sender: lane.sender,
            kept: None,
            missed: 0,
        })));
        let theirs = cells.clone();
        let subscribing = spawn(move || {
            let came = take(&mut consumer, &theirs, 2);
            (consumer, came)
        });
        (1..=SENT).for_each(|tag| giving.publish(tag));
        let (mut consumer, mut came) = subscribing.join().unwrap();
        // Nobody publishes any more. What was rung for is driven, and brings what is kept, one after the other.
        for _ in 0..SENT {
            chimes.end([]);
            came.extend(take(&mut consumer, &cells, 1));
        }
        chimes.end([]);
        let state = giving.0.lock().unwrap();
        assert_eq!(came.last(), Some(&SENT), "the newest is kept for good");
        assert!(came.is_sorted());
        assert_eq!(came.len() + state.missed, usize::from(SENT));
    });
}
