//! The publishing end of newest values.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::bus::Shared as BusShared;
use crate::error::{ConnectError, SendError};
use crate::lane::{Board, PackedValue};
use crate::link::offer::Offer;
use crate::memory::board::{MOST_KEY, MOST_KEY_BYTES};
use crate::message::{LatestKey, ShmLatest};
use crate::service::contract::Contract;
use crate::topic::core::{Change, Core};
use crate::topic::join;
use crate::topic::publisher::Delivery;

/// Publishes newest values: each takes the place of the one before it, of the same key.
///
/// It never waits for anybody who reads. There may be any number of publishers under a name, in any processes and
/// threads; where several publish a value of the same key, the one that was published last is the newest. The values of a
/// publisher are gone once it is dropped, or its process has died.
///
/// It keeps the newest value of each key, and those that readers look at. What else was replaced is used again for
/// further values.
///
/// # Examples
///
/// ```
/// use shmbus::{Bus, ShmMessage};
///
/// #[derive(ShmMessage)]
/// #[shm(latest = "diagnostics", key = "path")]
/// struct Diagnostics { path: String, warnings: u32 }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let bus = Bus::open("doc-latest-publisher")?;
/// let mut publisher = bus.latest_publisher::<Diagnostics>()?;
/// publisher.publish(&Diagnostics { path: "main.rs".into(), warnings: 3 })?;
/// publisher.publish(&Diagnostics { path: "main.rs".into(), warnings: 1 })?;
///
/// let mut latest = bus.latest::<Diagnostics>()?;
/// assert_eq!(latest.get("main.rs")?.expect("it was published").warnings, 1);
/// assert!(publisher.remove("main.rs")?);
/// assert!(latest.get("main.rs")?.is_none());
/// # Ok(()) }
/// ```
pub struct LatestPublisher<T: ShmLatest> {
    // Dropped first, so that nobody waits for one that ends.
    _presence: Offer,
    core: Arc<Core>,
    board: Arc<Board>,
    /// The entry of each key, and those of no key.
    entries: HashMap<Box<[u8]>, usize>,
    free: Vec<usize>,
    /// How many bytes the keys have.
    key_bytes: usize,
    timed: bool,
    bus: Arc<BusShared>,
    _message: PhantomData<fn(T)>,
}

impl<T: ShmLatest> LatestPublisher<T> {
    pub(crate) fn open(bus: &Arc<BusShared>) -> Result<Self, ConnectError> {
        let node = bus.node();
        node.check_fork()?;
        let board = Board::new(node)?;
        // Notes are lost where there is no room for them: who reads looks at the whole board then.
        let keeps = (Delivery::Lossy, 0);
        let (contract, shown) = (Contract::latest::<T>(), Some(board.clone()));
        let (core, presence) = join::publish(node, T::LATEST, contract, keeps, shown)?;
        Ok(LatestPublisher {
            _presence: presence,
            core,
            board,
            entries: HashMap::new(),
            free: Vec::new(),
            key_bytes: 0,
            timed: node.config().timestamps,
            bus: bus.clone(),
            _message: PhantomData,
        })
    }

    /// How many read its values now.
    pub fn readers(&self) -> usize {
        self.core.subscribers()
    }

    /// Makes this the newest value of its key.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLarge`], [`SendError::Encode`], [`SendError::Memory`], [`SendError::Keys`],
    /// [`SendError::Forked`]: the value before it is still the newest.
    pub fn publish(&mut self, value: &T) -> Result<(), SendError> {
        self.check_fork()?;
        let packed = self.board.pack(value)?;
        T::Key::with_bytes(value.key().as_query(), |key| match self.entries.get(key) {
            Some(&index) => {
                self.change(index, Some(packed), false);
                Ok(())
            }
            None => self.publish_first(key, packed),
        })
    }

    /// The first value of a key.
    #[cold]
    fn publish_first(&mut self, key: &[u8], packed: PackedValue) -> Result<(), SendError> {
        if key.len() > MOST_KEY {
            return Err(SendError::Encode {
                what: format!("a key has {MOST_KEY} bytes at most, and not {}", key.len()),
            });
        }
        if self.key_bytes + key.len() > MOST_KEY_BYTES {
            return Err(self.board.has_too_many());
        }
        let (index, is_new, row) = match self.free.pop() {
            Some(index) => (index, false, None),
            None => {
                let (index, row) = self.board.add_entry()?;
                (index, true, row)
            }
        };
        self.key_bytes += key.len();
        self.entries.insert(key.into(), index);
        let change = Change {
            index,
            value: Some(packed),
            is_new,
            row,
            binds: true,
        };
        self.core.change(&self.board, change, self.timed);
        Ok(())
    }

    /// Removes the value of a key; false where there is none.
    ///
    /// # Errors
    ///
    /// [`SendError::Forked`].
    pub fn remove(&mut self, key: &<T::Key as LatestKey>::Query) -> Result<bool, SendError> {
        self.check_fork()?;
        let index = T::Key::with_bytes(key, |key| {
            let index = self.entries.remove(key)?;
            self.key_bytes -= key.len();
            Some(index)
        });
        if let Some(index) = index {
            self.change(index, None, true);
            self.free.push(index);
        }
        Ok(index.is_some())
    }

    fn change(&self, index: usize, value: Option<PackedValue>, binds: bool) {
        let change = Change {
            index,
            value,
            is_new: false,
            row: None,
            binds,
        };
        self.core.change(&self.board, change, self.timed);
    }

    fn check_fork(&self) -> Result<(), SendError> {
        match self.bus.node().origin().is_forked() {
            true => Err(SendError::Forked),
            false => Ok(()),
        }
    }
}

impl<T: ShmLatest> Drop for LatestPublisher<T> {
    fn drop(&mut self) {
        self.core.end();
    }
}

/// What a publisher of another make could do.
#[cfg(test)]
impl<T: ShmLatest> LatestPublisher<T> {
    pub(super) fn board(&self) -> &Board {
        &self.board
    }

    pub(super) fn note(&self, number: u64) {
        self.core.note(number, self.timed);
    }
}
