//! Any operations on both halves of a ring, against a plain queue.
//!
//! Unsafe code is needed to write and to read payloads.
#![allow(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::super::arena::{Arena, Block, Limits};
use super::super::layout::{
    CELL, Cell, HEADER, Kind, MOST_CELLS, MOST_REASON, ReceiverBlock, Starts, cells_for,
};
use super::super::shared::Shared;
use super::streams::MOST_WIDE;
use super::tests::{back, cells};
use super::{Behind, Consumer, NoRoom, Polled, Producer, Record, Space};

#[derive(Clone, Debug)]
enum Step {
    Send {
        kind: Kind,
        len: usize,
        tag: u16,
    },
    Poll {
        hopes: Hope,
    },
    /// Which of those that are held, and whether it outlived its view.
    HandBack {
        which: prop::sample::Index,
        was_kept: bool,
    },
    Flush,
    Collect,
    Extend {
        words: usize,
    },
    /// All that was handed back is collected: what is free is known exactly.
    Settle,
}

/// Which record is looked for first.
#[derive(Clone, Copy, Debug)]
enum Hope {
    Inline,
    Item,
    Any,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        8 => Just(Kind::Inline),
        3 => Just(Kind::Item),
        1 => Just(Kind::Error),
        2 => Just(Kind::Call),
        2 => Just(Kind::Failed),
        1 => Just(Kind::Missed),
        2 => Just(Kind::Block),
        1 => Just(Kind::ItemBlock),
        1 => Just(Kind::ErrorBlock),
        1 => Just(Kind::CallBlock),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![3 => 0..60usize, 2 => 0..400usize, 1 => 0..5000usize];
    let send = (kind(), len, 0..4u16);
    let hopes = prop_oneof![Just(Hope::Inline), Just(Hope::Item), Just(Hope::Any)];
    let hand_back = (any::<prop::sample::Index>(), any::<bool>());
    prop_oneof![
        30 => send.prop_map(|(kind, len, tag)| Step::Send { kind, len, tag }),
        25 => hopes.prop_map(|hopes| Step::Poll { hopes }),
        25 => hand_back.prop_map(|(which, was_kept)| Step::HandBack { which, was_kept }),
        2 => Just(Step::Flush),
        10 => Just(Step::Collect),
        1 => (1..4usize).prop_map(|words| Step::Extend { words }),
        2 => Just(Step::Settle),
    ]
}

/// A record, as it was sent.
#[derive(Clone, Debug)]
struct Sent {
    kind: Kind,
    len: usize,
    tag: u16,
    /// What its payload consists of.
    byte: u8,
    /// Its number among the messages.
    number: u64,
    /// Its first cell, and how many there are.
    cells: (usize, usize),
    /// Whether a jump leads to it.
    jumps: bool,
    /// The size of its block, if it lends one.
    block: usize,
}

struct Test {
    ring: Producer,
    other: Consumer,
    receiver: Shared<ReceiverBlock>,
    starts: Starts,
    arena: Arc<Arena>,
    /// The cells of the lane, as both sides have them.
    rows: Vec<Shared<[Cell]>>,
    /// How many of those the receiver has.
    known: usize,
    /// Sent and not found; a record without cells is one that adds some.
    sent: VecDeque<Option<Sent>>,
    held: Vec<(Sent, Record)>,
    number: u64,
    bytes: u8,
}

impl Test {
    fn new(words: usize, align: usize, timed: bool, start: u64) -> Test {
        let (first, receiver) = (cells(64 * words), Shared::heap(ReceiverBlock::new()));
        let starts = Starts::new(align, timed);
        let mut ring = Producer::new(first.clone(), receiver.clone(), false);
        let mut other = Consumer::new(first.clone(), starts, Arc::new(back(&receiver)));
        ring.start_at(start);
        other.start_at(start);
        let memory = 64 << 20;
        Test {
            ring,
            other,
            receiver,
            starts,
            arena: Arena::new(Limits { memory }, Box::new(|_| {})),
            rows: vec![first],
            known: 1,
            sent: VecDeque::new(),
            held: Vec::new(),
            number: start,
            bytes: 0,
        }
    }

    fn count(&self) -> usize {
        self.rows.iter().map(|row| row.len()).sum()
    }

    /// The number of the cell that lies there.
    fn cell_at(&self, address: usize) -> usize {
        let mut first = 0;
        for row in &self.rows {
            let start = row.as_ptr().addr();
            if (start..start + size_of_val(&row[..])).contains(&address) {
                return first + (address - start) / CELL;
            }
            first += row.len();
        }
        panic!("it lies in no cell");
    }

    fn send(&mut self, kind: Kind, len: usize, tag: u16) -> TestCaseResult {
        let is_block = matches!(
            kind,
            Kind::Block | Kind::ItemBlock | Kind::ErrorBlock | Kind::CallBlock
        );
        let (start, len) = match kind {
            Kind::Failed => (HEADER, len.clamp(1, MOST_REASON)),
            Kind::Missed => (HEADER, 8),
            _ if is_block => (HEADER, kind.block_len(self.starts)),
            _ => (kind.start(self.starts), len),
        };
        let takes = cells_for(start, len);
        let block: Option<Arc<Block>> =
            is_block.then(|| Arc::new(self.arena.allocate(300 * u64::from(tag)).unwrap()));
        let size = block.as_ref().map_or(0, |block| block.len());
        self.bytes = self.bytes.wrapping_add(1);
        let byte = self.bytes;
        let one = self
            .ring
            .one()
            .filter(|_| takes == 1 && kind == Kind::Inline && tag % 2 == 0);
        let here = self.ring.here(takes);
        let (space, jumps) = match one {
            Some(one) => (one, false),
            None if here.bytes() >= takes * CELL => (here, false),
            None => match self.ring.elsewhere(takes) {
                Ok(space) => (space, true),
                Err(NoRoom) => return Ok(()),
            },
        };
        let first = self.cell_at(space.start().addr().get());
        let cells = (first, takes);
        // What the receiver may look at is not written.
        for of in self.out().map(|sent| sent.cells) {
            let is_apart = of.0 + of.1 <= first || first + takes <= of.0;
            prop_assert!(is_apart, "cells {:?} are those of a record {:?}", cells, of);
        }
        fill(&space, start, len, byte);
        if takes == 1 && kind == Kind::Inline && tag % 2 == 0 && !jumps && self.ring.one().is_some()
        {
            self.ring.publish_one(&space, (len as u16, tag));
        } else if self
            .ring
            .publish(&space, (kind, len as u16, tag), takes, block)
            .is_err()
        {
            return Ok(());
        }
        let number = self.number;
        if kind != Kind::Missed {
            self.number = number.wrapping_add(1);
        }
        self.sent.push_back(Some(Sent {
            kind,
            len,
            tag,
            byte,
            number,
            cells,
            jumps,
            block: size,
        }));
        Ok(())
    }

    fn extend(&mut self, words: usize) {
        if self.count() + 64 * words <= MOST_CELLS {
            let more = cells(64 * words);
            self.rows.push(more.clone());
            self.ring.extend(more, 24);
            self.sent.push_back(None);
        }
    }

    fn poll(&mut self, hopes: Hope) -> TestCaseResult {
        let expected = self.sent.pop_front();
        let ready = self.other.is_ready();
        prop_assert_eq!(ready, expected.is_some());
        let found = match hopes {
            Hope::Inline => self.other.poll_inline(),
            Hope::Item => self.other.poll_as(Kind::Item),
            Hope::Any => None,
        };
        let found = match found {
            Some(record) => Polled::Record(record),
            None => self.other.poll().expect("its sender is honest"),
        };
        match (found, expected) {
            (Polled::Empty, None) => {}
            (Polled::Extend(record), Some(None)) => {
                let more = self.rows[self.known].clone();
                self.known += 1;
                self.other
                    .extend(record, more)
                    .expect("its sender is honest");
            }
            (Polled::Record(record), Some(Some(sent))) => {
                let found = (
                    record.kind,
                    usize::from(record.len),
                    record.tag,
                    record.number,
                );
                prop_assert_eq!(found, (sent.kind, sent.len, sent.tag, sent.number));
                let cells = (usize::from(record.cell), usize::from(record.cells));
                prop_assert_eq!(cells, sent.cells);
                prop_assert!(holds(&record, sent.byte), "another payload");
                self.held.push((sent, record));
            }
            (found, expected) => prop_assert!(false, "{:?} where {:?} was sent", found, expected),
        }
        Ok(())
    }

    fn hand_back(&mut self, index: usize, was_kept: bool) -> TestCaseResult {
        let (sent, record) = self.held.swap_remove(index);
        prop_assert!(holds(&record, sent.byte), "a held record was written to");
        if was_kept {
            let back = self.other.back();
            back.keep(record.cells);
            back.release_kept(record.cell, record.cells);
            prop_assert_eq!(back.kept(), 0);
        } else {
            self.other.hand_back(record.cell);
        }
        Ok(())
    }

    /// All that the receiver has not handed back.
    fn out(&self) -> impl Iterator<Item = &Sent> {
        let held = self.held.iter().map(|(sent, _)| sent);
        self.sent.iter().flatten().chain(held)
    }

    fn settle(&mut self) -> TestCaseResult {
        self.other.flush();
        prop_assert!(self.ring.collect().is_ok());
        let out: Vec<_> = self.out().cloned().collect();
        let jumps = self.sent.iter().flatten().filter(|sent| sent.jumps).count();
        let extends = self.sent.iter().filter(|sent| sent.is_none()).count();
        let busy = out.iter().map(|sent| sent.cells.1).sum::<usize>() + jumps + extends;
        let free = self.count() - busy - 1;
        prop_assert!(self.ring.has_room(free), "free cells are lost");
        prop_assert!(
            !self.ring.has_room(free + 1),
            "there are too many free cells"
        );
        prop_assert_eq!(self.ring.has_lent(), busy > 0);
        let lent: usize = out.iter().map(|sent| sent.block).sum();
        prop_assert_eq!(self.ring.lent_bytes(), lent);
        prop_assert_eq!(self.arena.usage().1 as usize, lent);
        let is_item = |sent: &&Sent| matches!(sent.kind, Kind::Item | Kind::ItemBlock);
        let mut behind = HashMap::<u16, Behind>::new();
        for sent in out.iter().filter(is_item) {
            let of = behind.entry(sent.tag).or_default();
            of.items += 1;
            of.cells += sent.cells.1;
        }
        for tag in 0..5 {
            let of = behind.get(&tag).copied().unwrap_or_default();
            prop_assert_eq!(self.ring.streams().behind(tag), of);
        }
        let others = out.iter().filter(|sent| !is_item(sent) && sent.cells.1 > 1);
        let wide = others.map(|sent| sent.cells.1).sum::<usize>() + jumps;
        let left = MOST_WIDE.saturating_sub(wide + 1).max(1);
        prop_assert_eq!(self.ring.most_of_reply(false), left);
        let items: usize = behind.values().map(|of| of.cells).sum();
        let left = match MOST_WIDE.saturating_sub(wide + 1) {
            0 => 1,
            _ => (MOST_CELLS / 4).saturating_sub(items).max(1),
        };
        prop_assert_eq!(self.ring.most_of_reply(true), left);
        Ok(())
    }

    fn play(&mut self, step: Step) -> TestCaseResult {
        match step {
            Step::Send { kind, len, tag } => self.send(kind, len, tag)?,
            Step::Poll { hopes } => self.poll(hopes)?,
            Step::HandBack { which, was_kept } if !self.held.is_empty() => {
                self.hand_back(which.index(self.held.len()), was_kept)?;
            }
            Step::HandBack { .. } => {}
            Step::Flush => self.other.flush(),
            Step::Collect => drop(self.ring.collect()),
            Step::Extend { words } => self.extend(words),
            Step::Settle => self.settle()?,
        }
        Ok(())
    }
}

fn fill(space: &Space, start: usize, len: usize, byte: u8) {
    assert!(start + len <= space.bytes());
    // SAFETY: the payload lies in the space.
    let to = unsafe { space.start().as_ptr().add(start) };
    // SAFETY: as above.
    unsafe { to.write_bytes(byte, len) };
}

fn holds(record: &Record, byte: u8) -> bool {
    let bytes = std::ptr::NonNull::slice_from_raw_parts(record.payload, record.len.into());
    // SAFETY: the record is held.
    unsafe { bytes.as_ref() }.iter().all(|b| *b == byte)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_ring_is_a_queue(
        (words, align, timed) in (1..3usize, prop::sample::select(vec![8, 16, 64]), any::<bool>()),
        // Soon the sequence wraps around, or its stamp.
        start in prop_oneof![
            (0..200u64).prop_map(|before| u64::MAX - before),
            (0..200u64).prop_map(|before| 4096 - before),
        ],
        steps in prop::collection::vec(step(), 1..800),
    ) {
        let mut test = Test::new(words, align, timed, start);
        for step in steps {
            test.play(step)?;
        }
        test.settle()?;
        while !test.sent.is_empty() {
            test.poll(Hope::Any)?;
        }
        while !test.held.is_empty() {
            test.hand_back(0, false)?;
        }
        test.settle()?;
        // Nothing was flipped for cells that the lane does not have.
        let words = test.count() / 64;
        let beyond = &test.receiver.handed_back[words..];
        prop_assert!(beyond.iter().all(|word| crate::sync::load_acquire(word) == 0));
    }
}
