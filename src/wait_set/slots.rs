//! The sources of a set, by number and by token.

use std::collections::HashMap;
use std::hash::Hash;
use std::os::fd::OwnedFd;
use std::task::Waker;

use crate::sys::fork::Mine;
use crate::wait::sources::Ready;

/// Which source of a set: its place, and how many had that before. So what is said late of one that is gone is not
/// taken for another, unless four thousand million had the place meanwhile: then a look finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    place: u32,
    turn: u32,
}

impl Key {
    pub(super) fn number(self) -> u64 {
        u64::from(self.turn) << 32 | u64::from(self.place)
    }

    pub(super) fn of(number: u64) -> Key {
        Key {
            place: number as u32,
            turn: (number >> 32) as u32,
        }
    }
}

/// A source.
pub(super) struct Source<T> {
    pub(super) token: T,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    Port {
        port: Box<dyn Ready>,
        waker: Waker,
        /// Whether it is to be looked at before the thread sleeps.
        is_awake: bool,
    },
    /// A copy of the user's, so that it is in the kernel's set for as long as it is here.
    Descriptor(Mine<OwnedFd>),
    /// What the user wakes.
    Waker,
}

pub(super) struct Slots<T> {
    all: Vec<(u32, Option<Source<T>>)>,
    free: Vec<u32>,
    tokens: HashMap<T, Key>,
}

impl<T: Copy + Eq + Hash> Slots<T> {
    pub(super) fn new() -> Slots<T> {
        Slots {
            all: Vec::new(),
            free: Vec::new(),
            tokens: HashMap::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// A key for one more source, to be [put](Self::put) or [given back](Self::give_back).
    pub(super) fn reserve(&mut self) -> Key {
        let place = self.free.pop().unwrap_or_else(|| {
            self.all.push((0, None));
            self.all.len() as u32 - 1
        });
        let turn = self.all[place as usize].0;
        Key { place, turn }
    }

    pub(super) fn give_back(&mut self, key: Key) {
        self.free.push(key.place);
    }

    /// Adds a source, whose token is of no other, under a key that was reserved.
    pub(super) fn put(&mut self, key: Key, source: Source<T>) {
        let before = self.tokens.insert(source.token, key);
        debug_assert!(before.is_none());
        self.all[key.place as usize].1 = Some(source);
    }

    pub(super) fn key(&self, token: T) -> Option<Key> {
        self.tokens.get(&token).copied()
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Source<T>> {
        let (turn, source) = self.all.get_mut(key.place as usize)?;
        source.as_mut().filter(|_| *turn == key.turn)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Source<T>> {
        self.get_mut(key)?;
        let (turn, source) = &mut self.all[key.place as usize];
        *turn = turn.wrapping_add(1);
        self.free.push(key.place);
        let source = source.take()?;
        self.tokens.remove(&source.token);
        Some(source)
    }

    /// Takes all of them out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Source<T>> + '_ {
        self.tokens.clear();
        self.free.clear();
        self.all.drain(..).filter_map(|(_, source)| source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(slots: &mut Slots<u8>, token: u8) -> Key {
        let key = slots.reserve();
        let kind = Kind::Waker;
        slots.put(key, Source { token, kind });
        key
    }

    #[test]
    fn a_place_that_is_used_again_has_another_key() {
        let mut slots = Slots::new();
        let (one, two) = (add(&mut slots, 1), add(&mut slots, 2));
        assert_eq!(slots.remove(one).map(|s| s.token), Some(1));
        assert!(slots.remove(one).is_none());
        let three = add(&mut slots, 3);
        assert_eq!(one.place, three.place);
        assert!(slots.get_mut(one).is_none());
        assert_eq!(slots.get_mut(three).map(|s| s.token), Some(3));
        assert_eq!(slots.get_mut(two).map(|s| s.token), Some(2));
        assert_eq!(slots.key(1), None);
        assert_eq!(slots.key(3), Some(three));
        for key in [one, two, three] {
            assert_eq!(Key::of(key.number()), key);
        }
    }
}
