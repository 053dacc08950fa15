//! The limit of a stream: a ring of 64-byte slots with the stamp in the slot.
//!
//! *Slot*: a stamp and three words of content in one cache line; the parent writes it. *Cursor*:
//! how many messages the child has read; the child writes it now and then, and the parent keeps a
//! copy that it renews only when the ring looks full.

use std::hint::spin_loop;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use anyhow::{Result, ensure};

use super::messages::Line;
use super::shared::{LINE, Shared};
use super::{Peer, Run, line};

/// The cursor.
const CURSOR: usize = 0;
/// The line with which the child reports.
const REPORT: usize = 256;
/// Where the slots start.
const SLOTS: usize = 4096;
/// Spins between two looks at whether the other process is still there.
const SPINS: u32 = 1 << 20;

/// Sends all messages; returns the seconds that those after the warm-up took.
pub fn parent(run: &Run, slots: u64) -> Result<f64> {
    let shared = Shared::create(SLOTS + slots as usize * LINE)?;
    let mut child = Peer(run.command(Some(shared.fd()))?.spawn()?);
    let mut sender = Ring::new(&shared, slots);
    sender.send(1..=run.warm_up(), &mut child)?;
    line::receive(&shared, REPORT, 1, &mut || child.check())?;

    let start = run.clock.now();
    sender.send(run.warm_up() + 1..=run.total(), &mut child)?;
    let sum = line::receive(&shared, REPORT, 2, &mut || child.check())?;
    let time = run.clock.since(start);
    let expected = (1..=run.total()).map(sum_of).fold(0, u64::wrapping_add);
    ensure!(sum == expected, "the child's sum is {sum}, not {expected}");
    child.finish()?;
    Ok(time as f64 / 1e9)
}

/// Checks each message, and reports the sum after the warm-up and at the end.
pub fn child(run: &Run, slots: u64) -> Result<()> {
    let shared = Shared::inherited(run.inherited()?)?;
    let ring = Ring::new(&shared, slots);
    let hand_back = (slots / 4).min(256);
    let mut sum = 0u64;
    for id in 1..=run.total() {
        sum = sum.wrapping_add(ring.receive(id)?);
        let last = id == run.warm_up() || id == run.total();
        if id % hand_back == 0 || last {
            // SYNC(cursor): Release; pairs with Acquire in `send`.
            shared.word(CURSOR).store(id, Release);
        }
        if last {
            line::post(&shared, REPORT, 1 + u64::from(id == run.total()), sum);
        }
    }
    Ok(())
}

struct Ring<'a> {
    shared: &'a Shared,
    slots: u64,
    /// What was last read of the cursor.
    handed_back: u64,
}

impl<'a> Ring<'a> {
    fn new(shared: &'a Shared, slots: u64) -> Self {
        Ring {
            shared,
            slots,
            handed_back: 0,
        }
    }

    fn slot(&self, id: u64) -> usize {
        SLOTS + (id % self.slots) as usize * LINE
    }

    fn send(&mut self, ids: std::ops::RangeInclusive<u64>, child: &mut Peer) -> Result<()> {
        let mut message = Line::new();
        for id in ids {
            let mut spins = 0;
            while id - self.handed_back > self.slots {
                // SYNC(cursor): Acquire; pairs with Release in `child`.
                self.handed_back = self.shared.word(CURSOR).load(Acquire);
                spin_loop();
                spins += 1;
                if spins == SPINS {
                    child.check()?;
                    spins = 0;
                }
            }
            message.number(id);
            let slot = self.slot(id);
            let place = u64::from(message.line) << 32 | u64::from(message.column);
            // Relaxed, all three: published by the stamp.
            self.shared.word(slot + 8).store(message.id, Relaxed);
            self.shared.word(slot + 16).store(place, Relaxed);
            self.shared
                .word(slot + 24)
                .store(message.kind.into(), Relaxed);
            // SYNC(slot): Release; pairs with Acquire in `receive`.
            self.shared.word(slot).store(id, Release);
        }
        Ok(())
    }

    fn receive(&self, id: u64) -> Result<u64> {
        let slot = self.slot(id);
        // SYNC(slot): Acquire; pairs with Release in `send`.
        while self.shared.word(slot).load(Acquire) != id {
            spin_loop();
        }
        // Relaxed, all three: the stamp was read with Acquire, and the slot is written again only
        // after the cursor has passed it.
        let seen = self.shared.word(slot + 8).load(Relaxed);
        let place = self.shared.word(slot + 16).load(Relaxed);
        let kind = self.shared.word(slot + 24).load(Relaxed);
        let (line, column) = ((place >> 32) as u32, place as u32);
        let right = seen == id && line == id as u32 && column == !id as u32 && kind == id & 0xff;
        ensure!(right, "message {id} came changed");
        Ok(seen.wrapping_add(place).wrapping_add(kind))
    }
}

fn sum_of(id: u64) -> u64 {
    let mut message = Line::new();
    message.number(id);
    let place = u64::from(message.line) << 32 | u64::from(message.column);
    id.wrapping_add(place).wrapping_add(message.kind.into())
}
