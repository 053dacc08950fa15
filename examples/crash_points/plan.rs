//! At which instructions to kill, and from where to step to them.

use std::collections::HashMap;

use crate::record::Trace;

/// So far before a point an anchor is looked for.
const WINDOW: usize = 4_000;
/// What a stop at a breakpoint costs, in steps.
const STOP: usize = 3;

/// Where to run to before stepping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The instruction, from the start of the program.
    pub at: u64,
    /// How often it is passed until then.
    pub times: usize,
    /// How many instructions are done by then.
    pub index: usize,
}

/// A point at which to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Point {
    /// After so many instructions.
    pub steps: usize,
    /// Rather than then: while the next one, a system call, sleeps.
    pub asleep: bool,
}

/// The anchors of a trace.
pub struct Anchors(Vec<Option<Anchor>>);

impl Anchors {
    /// What each instruction of a trace can be reached from.
    pub fn of(trace: &Trace) -> Anchors {
        let mut passed = HashMap::new();
        let mut last = None;
        let anchors = trace.at.iter().enumerate().map(|(index, &at)| {
            // An instruction that repeats itself is passed once, and stands many times in the trace.
            let is_again = std::mem::replace(&mut last, at) == at;
            let at = at.filter(|_| !is_again && index > 0)?;
            let times = passed.entry(at).or_insert(0);
            *times += 1;
            let times = *times;
            Some(Anchor { at, times, index })
        });
        Anchors(anchors.collect())
    }

    /// The best one for a point, where one is better than none.
    pub fn before(&self, point: usize) -> Option<&Anchor> {
        let end = (point + 1).min(self.0.len());
        let near = self.0[end.saturating_sub(WINDOW)..end].iter().flatten();
        let cost = |anchor: &Anchor| anchor.times * STOP + (point - anchor.index);
        let best = near.min_by_key(|anchor| cost(anchor))?;
        (cost(best) < point).then_some(best)
    }
}

/// All points of a trace, in order.
pub fn all(trace: &Trace) -> Vec<Point> {
    let asleep = trace.slept.iter().map(|&steps| Point {
        steps,
        asleep: true,
    });
    let awake = (0..=trace.at.len()).map(|steps| Point {
        steps,
        asleep: false,
    });
    asleep.chain(awake).collect()
}

/// The points of a trace in the order in which a sample takes them: first those around what is stored where others see it, and
/// asleep; then the rest, so that each beginning of them is spread over all of it.
pub fn sampled(trace: &Trace, seed: u64) -> Vec<Point> {
    let len = trace.at.len() + 1;
    let mut taken = vec![false; len];
    let mut points: Vec<_> = trace.slept.iter().map(|&steps| (steps, true)).collect();
    let mut take = |steps: usize, points: &mut Vec<_>| {
        if steps < len && !std::mem::replace(&mut taken[steps], true) {
            points.push((steps, false));
        }
    };
    for &store in &trace.edges() {
        for steps in [store, store + 1, store.saturating_sub(1)] {
            take(steps, &mut points);
        }
    }
    // Steps of a golden section of the whole: each next one lies in the largest gap.
    let start = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1u64 << 53) as f64;
    for number in 0..4 * len {
        let at = (start + number as f64 * 0.618_033_988_749_894_9).fract();
        take((at * len as f64) as usize, &mut points);
    }
    (0..len).for_each(|steps| take(steps, &mut points));
    let point = |(steps, asleep)| Point { steps, asleep };
    points.into_iter().map(point).collect()
}
