//! What a sender says beside its messages: that none comes; and the memory that it
//! lends to its user.

use std::sync::Arc;

use bytemuck::Pod;

use super::Outbox;
use crate::error::SendError;
use crate::lane::Bulk;
use crate::lane::stage::write_behind_header;
use crate::memory::layout::Kind;
use crate::memory::loan::loan_len;

impl Outbox {
    /// Says that no message comes for this tag.
    pub(crate) fn fail(&mut self, tag: u16, why: u8) -> Result<(), SendError> {
        loop {
            self.collect()?;
            let space = self.ring.here(1);
            write_behind_header(&space, &[why]);
            if self
                .ring
                .publish(&space, (Kind::Failed, 1, tag), 1, None)
                .is_ok()
            {
                break;
            }
            if !self.grow(self.ring.cells())? {
                return Err(SendError::Full);
            }
        }
        self.signal();
        Ok(())
    }

    /// Memory of our own to fill in place, with room for its message around it.
    pub(crate) fn loan<T: Pod>(&mut self, len: usize) -> Result<Bulk<T>, SendError> {
        if self.origin.is_forked() {
            return Err(SendError::Forked);
        }
        let bytes = len.saturating_mul(size_of::<T>());
        self.check_size(bytes)?;
        self.collect()?;
        let room = loan_len(bytes);
        let block = match self.ring.take_returned(room) {
            Some(block) => block,
            None => Arc::new(self.parts.node.arena().allocate(room as u64)?),
        };
        Ok(Bulk::lend(block, len))
    }
}
