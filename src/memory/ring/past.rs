//! The last records of a ring, as they lie in a copy of its cells: for whoever has neither of its halves.
//!
//! Each header names the cell of the record behind it, and its stamp counts. So records that follow each other are
//! a *chain*, also where cells were used in any order. The halves say now and then how many records there were, for
//! whoever asks (`Mark`): those that came since then are all there, since none of their cells was used again. The
//! last record is the end of the longest chain of these.
//!
//! Payload can look like a header, so the ring of a hostile peer can look like anything. Nothing but that follows:
//! all that is read lies in the copy.

use std::ops::Range;

use super::super::layout::{
    CELL, HEADER, Header, Kind, MOST_CELLS, MOST_REASON, Starts, cells_for, stamp_in,
};

/// A record that was published.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) cell: usize,
    /// How many records came before it on its lane.
    pub(crate) sequence: u64,
    pub(crate) kind: Kind,
    pub(crate) tag: u16,
    /// Its payload, in the copy.
    pub(crate) payload: Range<usize>,
}

/// A word that may be a header.
#[derive(Clone, Copy)]
struct Candidate {
    header: Header,
    stamp: u64,
    start: usize,
}

const MASK: u64 = (1 << 12) - 1;

struct Chains {
    candidates: Vec<Option<Candidate>>,
    /// For each: how many are in its chain up to it, and the one before it.
    depth: Vec<usize>,
    before: Vec<Option<usize>>,
}

/// The last `most` messages in a copy of all cells, those of each row behind those of the one before; `rows` says how
/// many each has. The newest comes first. There were at least `count` records.
pub(crate) fn last(
    copy: &[u8],
    rows: &[usize],
    starts: Starts,
    count: u64,
    most: usize,
) -> Vec<Past> {
    let chains = Chains::of(copy, rows, starts);
    let mut messages = Vec::new();
    let Some((last, since)) = chains.last(count) else {
        return messages;
    };
    let (mut at, mut sequence) = (Some(last), count.wrapping_add(since as u64).wrapping_sub(1));
    // Where the next record is written, if any was: over what was there.
    let next = chains.candidates[last].map(|found| usize::from(found.header.next));
    while let Some(cell) = at {
        let Some(found) = chains.candidates[cell].filter(|_| messages.len() < most) else {
            break;
        };
        let is_message = !matches!(found.header.kind, Kind::Jump | Kind::Extend);
        if is_message && Some(cell) != next {
            let start = cell * CELL + found.start;
            messages.push(Past {
                cell,
                sequence,
                kind: found.header.kind,
                tag: found.header.tag,
                payload: start..start + usize::from(found.header.len),
            });
        }
        (at, sequence) = (chains.before[cell], sequence.wrapping_sub(1));
    }
    messages
}

fn word(copy: &[u8], cell: usize) -> u64 {
    let bytes = copy[cell * CELL..].first_chunk();
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Chains {
    fn of(copy: &[u8], rows: &[usize], starts: Starts) -> Chains {
        let mut candidates = Vec::new();
        for &row in rows {
            let first = candidates.len();
            let end = first
                .saturating_add(row)
                .min(MOST_CELLS)
                .min(copy.len() / CELL);
            for cell in first..end {
                candidates.push(candidate(word(copy, cell), starts, end - cell));
            }
        }
        let count = candidates.len();
        let mut chains = Chains {
            candidates,
            depth: vec![0; count],
            before: vec![None; count],
        };
        chains.join();
        chains
    }

    fn stamp(&self, cell: usize) -> Option<u64> {
        self.candidates.get(cell)?.map(|found| found.stamp)
    }

    /// The record behind another.
    fn behind(&self, cell: usize) -> Option<usize> {
        let found = self.candidates[cell]?;
        let next = usize::from(found.header.next);
        let follows = self.stamp(next)? == (found.stamp + 1) & MASK;
        follows.then_some(next)
    }

    /// Finds for each the longest chain that ends with it. The stamps count, so none is a circle.
    fn join(&mut self) {
        let count = self.candidates.len();
        let mut waits = vec![0usize; count];
        for next in (0..count).filter_map(|cell| self.behind(cell)) {
            waits[next] += 1;
        }
        let mut ready: Vec<_> = (0..count)
            .filter(|cell| waits[*cell] == 0 && self.candidates[*cell].is_some())
            .collect();
        while let Some(cell) = ready.pop() {
            self.depth[cell] = self.depth[cell].max(1);
            let Some(next) = self.behind(cell) else {
                continue;
            };
            if self.depth[next] <= self.depth[cell] {
                self.depth[next] = self.depth[cell] + 1;
                self.before[next] = Some(cell);
            }
            waits[next] -= 1;
            if waits[next] == 0 {
                ready.push(next);
            }
        }
    }

    /// The record that was published last, and how many were since there were `count`.
    fn last(&self, count: u64) -> Option<(usize, usize)> {
        let ends = (0..self.candidates.len()).filter(|cell| self.behind(*cell).is_none());
        let mut best = None;
        for end in ends {
            let Some(stamp) = self.stamp(end) else {
                continue;
            };
            let since = (stamp.wrapping_sub(count) & MASK) as usize;
            // Of several that look like it, the longest chain is no accident.
            let key = (since, self.depth[end]);
            if self.depth[end] >= since && best.is_none_or(|(best, _)| key > best) {
                best = Some((key, end));
            }
        }
        best.map(|((since, _), end)| (end, since))
    }
}

/// Reads a word as the header of a record in a row of which so many cells are left.
fn candidate(word: u64, starts: Starts, left: usize) -> Option<Candidate> {
    let header = Header::from_word(word)?;
    let len = usize::from(header.len);
    let (start, fixed) = match header.kind {
        Kind::Inline | Kind::Item | Kind::Error | Kind::Call => (header.kind.start(starts), len),
        Kind::Block | Kind::Extend | Kind::ItemBlock | Kind::ErrorBlock | Kind::CallBlock => {
            (HEADER, header.kind.block_len(starts))
        }
        Kind::Jump => (HEADER, 0),
        Kind::Missed => (HEADER, size_of::<u64>()),
        Kind::Failed => (HEADER, len.clamp(1, MOST_REASON)),
    };
    let cells = cells_for(start, len);
    (len == fixed && cells <= left && usize::from(header.next) < MOST_CELLS).then_some(Candidate {
        header,
        stamp: stamp_in(word),
        start,
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::super::layout::{Cell, ReceiverBlock};
    use super::super::super::shared::Shared;
    use super::super::Producer;
    use super::*;
    use crate::sync::Ordering;

    struct Bench {
        producer: Producer,
        receiver: Shared<ReceiverBlock>,
        cells: Shared<[Cell]>,
        starts: Starts,
    }

    fn bench(cells: usize) -> Bench {
        let receiver = Shared::heap(ReceiverBlock::new());
        let cells = Shared::heap_slice((0..cells).map(|_| Cell::new()).collect());
        Bench {
            producer: Producer::new(cells.clone(), receiver.clone(), true),
            receiver,
            cells,
            starts: Starts::new(8, false),
        }
    }

    impl Bench {
        /// Publishes a message of so many cells with this tag, whose payload is of one byte; its cell.
        fn send(&mut self, tag: u16, cells: usize, byte: u8) -> Option<usize> {
            self.producer.collect().unwrap();
            let here = self.producer.here(cells);
            let reserved = self.cell(here.start().addr().get());
            let space = match here.bytes() >= cells * CELL {
                true => here,
                false => self.producer.elsewhere(cells).ok()?,
            };
            let len = cells * CELL - HEADER;
            let first = NonNullBytes(space.start().as_ptr());
            first.fill(HEADER, len, byte);
            let record = (Kind::Inline, len as u16, tag);
            self.producer.publish(&space, record, cells, None).ok()?;
            let cell = self.cell(space.start().addr().get());
            if cell != reserved {
                // A jump, which whoever follows it hands back at once.
                self.hand_back(reserved);
            }
            Some(cell)
        }

        fn cell(&self, address: usize) -> usize {
            (address - self.cells.as_ptr().addr()) / CELL
        }

        fn hand_back(&self, cell: usize) {
            // SYNC(hand-back): Release; pairs with Acquire in `Producer::collect`.
            self.receiver.handed_back[cell / 64].fetch_xor(1 << (cell % 64), Ordering::Release);
        }

        fn copy(&self) -> Vec<u8> {
            let first = NonNullBytes(self.cells.as_ptr().cast_mut().cast());
            first.copy(self.cells.len() * CELL)
        }

        fn last(&self, count: u64, most: usize) -> Vec<Past> {
            last(&self.copy(), &[self.cells.len()], self.starts, count, most)
        }
    }

    #[derive(Clone, Copy)]
    struct NonNullBytes(*mut u8);

    #[allow(unsafe_code)]
    impl NonNullBytes {
        fn fill(self, offset: usize, len: usize, byte: u8) {
            // SAFETY: the space that the producer gave has so many bytes, and is ours to write.
            let at = unsafe { self.0.add(offset) };
            // SAFETY: as above.
            unsafe { at.write_bytes(byte, len) };
        }

        fn copy(self, len: usize) -> Vec<u8> {
            // SAFETY: the cells have so many bytes, which nobody writes meanwhile.
            unsafe { std::slice::from_raw_parts(self.0, len) }.to_vec()
        }
    }

    #[test]
    fn nothing_is_found_where_nothing_was_sent() {
        assert_eq!(bench(64).last(0, 8), []);
    }

    /// Views are held or not, messages are short or long: the last ones are found in their order, whenever it was
    /// said how many there were.
    #[test]
    fn the_last_messages_are_those_that_were_sent_last() {
        for seed in 1..6u64 {
            let (mut bench, mut random) = (bench(64), seed);
            let mut next = move |below: u64| {
                random = random.wrapping_mul(6_364_136_223_846_793_005);
                random = random.wrapping_add(seed);
                (random >> 33) % below
            };
            let (mut held, mut sent) = (Vec::<usize>::new(), Vec::new());
            let mut count = 0;
            for tag in 0..9_000u16 {
                let cells = [1, 1, 1, 2, 5, 20][next(6) as usize];
                let byte = next(256) as u8;
                let cell = loop {
                    if bench.producer.collect().unwrap() {
                        count = bench.producer.position().0;
                    }
                    match bench.send(tag, cells, byte) {
                        Some(cell) => break cell,
                        None => bench.hand_back(held.remove(next(held.len() as u64) as usize)),
                    }
                };
                sent.push((tag, cell));
                held.push(cell);
                if next(3) > 0 && held.len() > 3 {
                    bench.hand_back(held.remove(next(held.len() as u64) as usize));
                }
                let found = bench.last(count, 4);
                // What lies where the next one is written may be half gone.
                let next = bench.producer.position().1;
                let stands = |(_, cell): &&(u16, usize)| *cell != next;
                let newest = sent.iter().rev().filter(stands);
                let newest = newest.take(found.len()).copied();
                let found: Vec<_> = found.iter().map(|past| (past.tag, past.cell)).collect();
                assert_eq!(found, newest.collect::<Vec<_>>(), "seed {seed}");
                assert!(!found.is_empty(), "seed {seed}, message {tag}");
            }
        }
    }

    #[test]
    fn all_that_was_not_written_over_is_found() {
        let mut bench = bench(64);
        for tag in 0..10_000 {
            let before = bench.producer.position().0;
            let cell = bench.send(tag, 1, 1).unwrap();
            bench.hand_back(cell);
            let found = bench.last(before, 1024);
            assert_eq!(found.len(), usize::from(tag + 1).min(63));
            for (back, past) in (0..).zip(&found) {
                assert_eq!(
                    (past.tag, past.sequence),
                    (tag - back, u64::from(tag - back))
                );
            }
        }
    }

    #[test]
    fn garbage_is_read_to_the_end() {
        let mut random = 7u64;
        for turn in 0..300 {
            let mut copy = vec![0u8; 64 * CELL * (turn % 3 + 1)];
            for word in copy.chunks_mut(8) {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                // Headers that lead somewhere, and whatever.
                let header = Header {
                    kind: Kind::Inline,
                    len: (random >> 40) as u16 % 100,
                    next: (random >> 33) as u16 % 80,
                    tag: 0,
                };
                let bytes = match turn % 2 {
                    0 => header.to_word((random >> 50) % 3),
                    _ => random,
                };
                word.copy_from_slice(&bytes.to_le_bytes());
            }
            for rows in [&[64][..], &[64, 64], &[1_024], &[], &[usize::MAX / 2]] {
                for starts in [Starts::new(8, false), Starts::new(64, true)] {
                    for past in last(&copy, rows, starts, random, 256) {
                        assert!(copy.get(past.payload).is_some());
                    }
                }
            }
        }
    }
}
