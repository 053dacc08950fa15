//! Which call of a key is the newest: an older one is waited for no longer.
//!
//! A request may say by a field what it supersedes. From the moment that a call of it is made, older
//! ones of the same key are cancelled, whether they were sent or still wait for room.

use std::collections::HashMap;
use std::hash::Hash;

/// Names a call for as long as it goes on; later calls of its tag are not meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) tag: u16,
    pub(crate) serial: u64,
}

/// By key, the newest call: its number, and where it waits once it was sent.
pub(crate) struct Newest<K, P> {
    calls: HashMap<K, (u64, Option<P>)>,
    number: u64,
}

impl<K, P> Default for Newest<K, P> {
    fn default() -> Self {
        Newest {
            calls: HashMap::new(),
            number: 0,
        }
    }
}

impl<K: Eq + Hash, P> Newest<K, P> {
    /// A call of this key is made: its number, and where the one waits that it supersedes.
    pub(crate) fn claim(&mut self, key: K) -> (u64, Option<P>) {
        self.number += 1;
        let older = self.calls.insert(key, (self.number, None));
        (self.number, older.and_then(|(_, place)| place))
    }

    /// As [`claim`](Self::claim), for a call that nothing will supersede: it is answered before the next
    /// one can be made.
    #[inline]
    pub(crate) fn pass(&mut self, key: &K) -> Option<P> {
        if self.calls.is_empty() {
            return None;
        }
        self.calls.remove(key).and_then(|(_, place)| place)
    }

    /// Whether no newer call of its key was made.
    pub(crate) fn is_newest(&self, key: &K, number: u64) -> bool {
        self.calls
            .get(key)
            .is_some_and(|(newest, _)| *newest == number)
    }

    /// The call waits there: where it did before is returned, or the place itself where a newer one was
    /// made meanwhile.
    pub(crate) fn put(&mut self, key: &K, number: u64, place: P) -> Result<Option<P>, P> {
        match self.calls.get_mut(key) {
            Some((newest, at)) if *newest == number => Ok(at.replace(place)),
            _ => Err(place),
        }
    }

    /// The call is over: where it waited last.
    pub(crate) fn release(&mut self, key: &K, number: u64) -> Option<P> {
        let is_newest = self.is_newest(key, number);
        let at = is_newest.then(|| self.calls.remove(key));
        at.flatten().and_then(|(_, place)| place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_call_of_a_key_is_known_until_it_is_over() {
        let mut newest = Newest::default();
        let (first, none) = newest.claim("a");
        assert_eq!(none, None);
        assert_eq!(newest.put(&"a", first, 'w'), Ok(None));
        assert_eq!(newest.put(&"a", first, 'x'), Ok(Some('w')));
        let (other, none) = newest.claim("b");
        assert_eq!(none, None);
        let (second, older) = newest.claim("a");
        assert_eq!(older, Some('x'));
        assert_eq!(newest.put(&"a", first, 'x'), Err('x'));
        assert_eq!(newest.release(&"a", first), None);
        assert!(newest.is_newest(&"a", second) && newest.is_newest(&"b", other));
        assert_eq!(newest.pass(&"c"), None);
        assert_eq!(newest.put(&"b", other, 'y'), Ok(None));
        assert_eq!(newest.pass(&"b"), Some('y'));
        assert_eq!(newest.put(&"a", second, 'z'), Ok(None));
        assert_eq!(newest.release(&"a", second), Some('z'));
        assert_eq!(newest.release(&"b", other), None);
        assert!(newest.calls.is_empty());
    }
}
