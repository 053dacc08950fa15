//! How a publisher of newest values tells its readers what has changed.
//!
//! A note goes to each, as a message of a topic that is lossy: one who reads seldom, or never, holds up nobody. What a
//! note says is which entry to look at. The value itself is read from the board, also by those who have not
//! taken their notes.

use std::sync::Arc;

use super::{Core, State};
use crate::lane::{Board, PackedValue, Parcel};
use crate::memory::arena::Block;

/// A change of a board.
pub(crate) struct Change {
    pub(crate) index: usize,
    /// Nothing, where it is removed.
    pub(crate) value: Option<PackedValue>,
    /// The entry was made for it: and the row in which it lies, if that begins with it.
    pub(crate) is_new: bool,
    pub(crate) row: Option<Arc<Block>>,
    /// The entry goes to another key with it, or to none.
    pub(crate) binds: bool,
}

impl Core {
    /// Changes the board, and tells of it.
    pub(crate) fn change(&self, board: &Board, change: Change, timed: bool) {
        let Change {
            index,
            value,
            is_new,
            row,
            binds,
        } = change;
        self.enter(|state| {
            // Under the lock, as the joining of a reader is: it learns of each segment before anything says that
            // something lies there.
            for lane in &mut state.lanes {
                let row = row.as_deref().into_iter();
                for block in row.chain(value.as_ref().map(PackedValue::block)) {
                    lane.outbox.tell_of(block);
                }
            }
            board.put(index, value);
            if is_new {
                board.show_entry(index);
            }
            if binds {
                board.bind();
            }
            self.give_note(state, index as u64, timed);
        });
    }

    fn give_note(&self, state: &mut State, number: u64, timed: bool) {
        let note = Parcel::note(number, timed);
        for lane in &mut state.lanes {
            if !lane.give(&note, self.budget) {
                self.ask(&mut state.tries, &mut lane.outbox);
                lane.give_kept(self.budget);
            }
        }
    }

    /// Says that an entry has changed, whatever is true.
    #[cfg(test)]
    pub(crate) fn note(&self, number: u64, timed: bool) {
        self.enter(|state| self.give_note(state, number, timed));
    }
}
