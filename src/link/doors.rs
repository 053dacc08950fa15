//! The doorbells of ours at the ports of one peer, and which of their bits are in use.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use super::Link;
use super::node::Node;
use crate::error::MemoryError;
use crate::memory::arena::Arena;
use crate::memory::layout::{DOORBELL_LANES, Doorbell, SegmentRef};
use crate::memory::shared::Shared;

/// The most doorbells that one peer has at our ports.
const MOST_DOORS: usize = 1024;

impl Link {
    /// A free bit in a doorbell of ours at the peer's port of this name.
    pub(crate) fn take_bit(
        self: &Arc<Self>,
        node: &Node,
        name: &str,
    ) -> Result<DoorBit, MemoryError> {
        self.state().doors.take(node.arena(), name, self)
    }

    fn free_bit(&self, at: SegmentRef, bit: u16) {
        if self.origin.is_forked() {
            return;
        }
        self.state().doors.free(at, bit);
    }

    /// Notes a doorbell of the peer's at a port of ours; false where there are too many.
    pub(crate) fn knows_door(&self, at: SegmentRef) -> bool {
        let doors = &mut self.state().their_doors;
        doors.contains(&at) || (doors.len() < MOST_DOORS && doors.insert(at))
    }
}

/// A doorbell at a port of the peer's, and a lane's bit in it, which is free again when dropped.
pub(crate) struct DoorBit {
    pub(crate) bell: Shared<Doorbell>,
    pub(crate) at: SegmentRef,
    pub(crate) bit: u16,
    link: Weak<Link>,
}

impl Drop for DoorBit {
    fn drop(&mut self) {
        if let Some(link) = self.link.upgrade() {
            link.free_bit(self.at, self.bit);
        }
    }
}

/// The doorbells, by the name of the port that they are at.
#[derive(Default)]
pub(super) struct Doors(HashMap<String, Vec<Door>>);

struct Door {
    bell: Shared<Doorbell>,
    at: SegmentRef,
    used: HashSet<u16>,
}

impl Doors {
    /// Takes a free bit of a doorbell at the port of this name.
    pub(super) fn take(
        &mut self,
        arena: &Arc<Arena>,
        name: &str,
        link: &Arc<Link>,
    ) -> Result<DoorBit, MemoryError> {
        const LANES: u16 = DOORBELL_LANES as u16;
        let doors = self.0.entry(name.to_owned()).or_default();
        let has_room = |door: &Door| door.used.len() < usize::from(LANES);
        let door = match doors.iter().position(has_room) {
            Some(known) => &mut doors[known],
            None => {
                let block = Arc::new(arena.allocate(size_of::<Doorbell>() as u64)?);
                doors.push(Door {
                    at: block.reference(0, size_of::<Doorbell>()),
                    bell: Shared::<Doorbell>::own(block),
                    used: HashSet::new(),
                });
                doors.last_mut().expect("it was just added")
            }
        };
        let bit = (0..LANES).find(|b| !door.used.contains(b)).unwrap_or(0);
        door.used.insert(bit);
        Ok(DoorBit {
            bell: door.bell.clone(),
            at: door.at,
            bit,
            link: Arc::downgrade(link),
        })
    }

    /// Takes a bit back.
    pub(super) fn free(&mut self, at: SegmentRef, bit: u16) {
        for door in self.0.values_mut().flatten().filter(|d| d.at == at) {
            door.used.remove(&bit);
        }
    }
}
