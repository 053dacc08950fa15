//! Any allocations and frees, against a plain list of the ranges in use.
//!
//! Unsafe code is needed to mark the blocks.
#![allow(unsafe_code)]

use std::sync::mpsc::{Receiver, channel};

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Allocate(u64),
    /// Which of those that are held, as a part of them all.
    Free(prop::sample::Index),
    FreeAll,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![
        4 => 0..300u64,
        4 => 0..70_000u64,
        2 => 0..(2u64 << 20),
        1 => (4u64 << 20)..(20 << 20),
    ];
    prop_oneof![
        12 => size.prop_map(Step::Allocate),
        10 => any::<prop::sample::Index>().prop_map(Step::Free),
        1 => Just(Step::FreeAll),
    ]
}

/// What an arena is, without any cleverness.
struct Model {
    limit: u64,
    /// The size of each segment that there is.
    segments: BTreeMap<u64, u64>,
    next_id: u64,
    /// Segment, offset and length of each block.
    used: Vec<(u64, u64, u64)>,
}

impl Model {
    fn total(&self) -> u64 {
        self.segments.values().sum()
    }

    /// What is free of a segment: as long as it can be, in order.
    fn gaps(&self, id: u64) -> BTreeMap<u64, u64> {
        let mut used: Vec<_> = self.used.iter().filter(|range| range.0 == id).collect();
        used.sort();
        let (mut gaps, mut from) = (BTreeMap::new(), 0);
        for (_, offset, len) in used {
            assert!(*offset >= from, "two blocks overlap");
            if *offset > from {
                gaps.insert(from, offset - from);
            }
            from = offset + len;
        }
        let end = self.segments[&id];
        assert!(from <= end, "a block lies outside of its segment");
        if from < end {
            gaps.insert(from, end - from);
        }
        gaps
    }

    /// The size of the smallest gap that a block fits.
    fn best(&self, len: u64) -> Option<u64> {
        let gaps = self.segments.keys().flat_map(|id| self.gaps(*id));
        gaps.map(|(_, gap)| gap).filter(|gap| *gap >= len).min()
    }

    /// How large a segment is made for a block, if there may be one.
    fn grown(&self, len: u64) -> Option<u64> {
        let (total, left) = (self.total(), self.limit - self.total());
        let wish = match self.segments.len() {
            0 => FIRST,
            _ => (total / 2).clamp(LATER, MOST_LATER),
        };
        let size = len.max(wish.min(left / PAGE * PAGE));
        let size = size.next_multiple_of(PAGE);
        (size <= left).then_some(size)
    }

    /// Whether a segment goes when its last block has.
    fn goes(&self, id: u64) -> bool {
        let is_spare = |id: &u64| *id != 0 && self.used.iter().all(|range| range.0 != *id);
        let spares = self.segments.iter().filter(|(id, _)| is_spare(id));
        let spare: u64 = spares.map(|(_, len)| len).sum();
        is_spare(&id) && spare > self.limit / 8 + MOST_LATER
    }
}

struct Test {
    arena: Arc<Arena>,
    retired: Receiver<u64>,
    model: Model,
    held: Vec<(Block, u64)>,
    marks: u64,
}

impl Test {
    fn new(limit: u64) -> Test {
        let (gone, retired) = channel();
        let gone = Mutex::new(gone);
        let on_retire = move |id| gone.lock().unwrap().send(id).unwrap_or_default();
        let model = Model {
            limit,
            segments: BTreeMap::new(),
            next_id: 0,
            used: Vec::new(),
        };
        Test {
            arena: Arena::new(Limits { memory: limit }, Box::new(on_retire)),
            retired,
            model,
            held: Vec::new(),
            marks: 0,
        }
    }

    fn allocate(&mut self, asked: u64) -> TestCaseResult {
        let len = asked.max(1).next_multiple_of(GRANULE);
        let (best, used) = (self.model.best(len), self.model.total());
        let grown = self.model.grown(len).filter(|_| best.is_none());
        let block = match self.arena.allocate(asked) {
            Ok(block) => block,
            Err(error) => {
                prop_assert!(best.or(grown).is_none(), "{} though there is room", error);
                let limit = self.model.limit;
                let is = matches!(error, MemoryError::Limit { bytes, used: u, limit: l }
                    if (bytes, u, l) == (len, used, limit));
                prop_assert!(is, "{}", error);
                return Ok(());
            }
        };
        prop_assert!(best.or(grown).is_some(), "more than the limit");
        if let Some(size) = grown {
            self.model.segments.insert(self.model.next_id, size);
            self.model.next_id += 1;
        }
        let (id, offset) = (block.segment.id(), block.offset);
        prop_assert!(self.model.segments.contains_key(&id), "of no segment");
        // Best fit, from its start.
        let gap = self.model.gaps(id).get(&offset).copied();
        prop_assert_eq!(gap, best.or(grown));
        prop_assert_eq!(block.len, len);
        prop_assert_eq!(block.start().addr().get() % GRANULE as usize, 0);
        self.model.used.push((id, offset, len));
        self.marks += 1;
        mark(&block, self.marks);
        self.held.push((block, self.marks));
        self.check()
    }

    fn free(&mut self, index: usize) -> TestCaseResult {
        let (block, number) = self.held.swap_remove(index);
        let (id, offset) = (block.segment.id(), block.offset);
        prop_assert!(bears(&block, number), "another block was written there");
        let at = self
            .model
            .used
            .iter()
            .position(|r| (r.0, r.1) == (id, offset));
        self.model.used.swap_remove(at.expect("it is in use"));
        let goes = self.model.goes(id);
        drop(block);
        prop_assert_eq!(self.retired.try_recv().ok(), goes.then_some(id));
        if goes {
            self.model.segments.remove(&id);
        }
        self.check()
    }

    /// The arena's own book says the same.
    fn check(&self) -> TestCaseResult {
        let used = self.model.used.iter().map(|range| range.2).sum::<u64>();
        prop_assert_eq!(self.arena.usage(), (self.model.total(), used));
        prop_assert!(self.model.total() <= self.model.limit);
        let book = self.arena.book();
        prop_assert!(book.segments.keys().eq(self.model.segments.keys()));
        for (id, ranges) in &book.segments {
            prop_assert_eq!(ranges.segment.len(), self.model.segments[id]);
            prop_assert_eq!(&ranges.free, &self.model.gaps(*id));
        }
        Ok(())
    }
}

/// Its first and its last word.
fn ends(block: &Block) -> [*mut u64; 2] {
    let start = block.start().as_ptr();
    // SAFETY: a block has a granule at least, of eight words.
    let last = unsafe { start.add(block.len() - 8) };
    [start.cast(), last.cast()]
}

fn mark(block: &Block, number: u64) {
    for word in ends(block) {
        // SAFETY: the block is ours.
        unsafe { word.write(number) };
    }
}

fn bears(block: &Block, number: u64) -> bool {
    // SAFETY: the block is ours.
    ends(block)
        .iter()
        .all(|word| unsafe { word.read() } == number)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn an_arena_is_what_its_list_of_ranges_is(
        limit in (1u64 << 20)..(40 << 20),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut test = Test::new(limit);
        for step in steps {
            match step {
                Step::Allocate(len) => test.allocate(len)?,
                Step::Free(index) if !test.held.is_empty() => {
                    test.free(index.index(test.held.len()))?;
                }
                Step::Free(_) => {}
                Step::FreeAll => {
                    while !test.held.is_empty() {
                        test.free(0)?;
                    }
                }
            }
        }
        while !test.held.is_empty() {
            test.free(0)?;
        }
    }
}
