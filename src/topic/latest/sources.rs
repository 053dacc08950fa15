//! What a reader of newest values knows of all publishers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::current::Current;
use super::source::{Hold, Source};
use crate::lane::Reading;
use crate::memory::segment::PeerSegment;
use crate::message::ShmLatest;

/// Where a value is: the lane of its publisher, and its entry there.
pub(super) type Spot = (usize, usize);

/// The most entries that are known, of all publishers.
const MOST_ENTRIES: usize = 1 << 20;

/// How often a key is looked for whose publisher removes it at the same time.
const TURNS: usize = 2;

/// What has changed.
pub(super) enum Told {
    /// There is a value, which is held.
    Value(Spot, Arc<PeerSegment>),
    Removed(Box<[u8]>),
}

/// See the module.
pub(super) struct Sources<T: ShmLatest> {
    /// By lane; and how many there are.
    sources: Vec<Option<Source<T>>>,
    count: usize,
    /// Where there are values of a key.
    by_key: HashMap<Box<[u8]>, Vec<Spot>>,
    /// Where the key was found that was last asked for, if in one place only, and nothing was bound since.
    last: Option<Spot>,
    /// Entries that may have changed, and keys whose publisher is gone, since their last value was told of.
    changed: VecDeque<Spot>,
    lost: VecDeque<Box<[u8]>>,
}

impl<T: ShmLatest> Sources<T> {
    pub(super) fn new() -> Sources<T> {
        Sources {
            sources: Vec::new(),
            count: 0,
            by_key: HashMap::new(),
            last: None,
            changed: VecDeque::new(),
            lost: VecDeque::new(),
        }
    }

    fn source(&mut self, lane: usize) -> Option<&mut Source<T>> {
        self.sources.get_mut(lane)?.as_mut()
    }

    /// Whether the board of a lane is known.
    pub(super) fn has(&self, lane: usize) -> bool {
        self.sources.get(lane).is_some_and(Option::is_some)
    }

    /// A publisher has come.
    pub(super) fn add(&mut self, lane: usize, reading: Reading) {
        if self.sources.len() <= lane {
            self.sources.resize_with(lane + 1, || None);
        }
        self.sources[lane] = Some(Source::new(reading));
        self.count += 1;
        self.note_all(lane);
    }

    /// A publisher is gone, and with it its values.
    pub(super) fn remove(&mut self, lane: usize) {
        let Some(source) = self.sources.get_mut(lane).and_then(Option::take) else {
            return;
        };
        self.count -= 1;
        self.last = None;
        self.changed.retain(|&(of, _)| of != lane);
        for (index, known) in source.entries.into_iter().enumerate() {
            if let Some(key) = known.key {
                unbind(&mut self.by_key, &key, (lane, index));
            }
            self.lost.extend(known.told_key);
        }
    }

    /// An entry may have changed. As its publisher says: nothing comes of an entry that there is not.
    pub(super) fn note(&mut self, (lane, index): Spot) {
        let Some(source) = self.source(lane) else {
            return;
        };
        if index >= source.entries.len() {
            let most = self.most_entries(lane);
            let count = self.source(lane).map_or(0, |source| source.count(most));
            if index >= count {
                return;
            }
        }
        let Some(source) = self.source(lane) else {
            return;
        };
        let known = &mut source.entries[index];
        if !std::mem::replace(&mut known.is_queued, true) {
            self.changed.push_back((lane, index));
        }
    }

    /// Any entry of a lane may have changed.
    pub(super) fn note_all(&mut self, lane: usize) {
        let most = self.most_entries(lane);
        let count = self.source(lane).map_or(0, |source| source.count(most));
        (0..count).for_each(|index| self.note((lane, index)));
    }

    /// So many notes were meant for us by a publisher, and not all have come: any entry may have changed.
    pub(super) fn note_behind(&mut self, lane: usize, offered: u64) {
        let source = self.source(lane);
        if source.is_some_and(|s| std::mem::replace(&mut s.offered, offered) != offered) {
            self.note_all(lane);
        }
    }

    /// One more than the last lane of a publisher.
    pub(super) fn lanes(&self) -> usize {
        self.sources.len()
    }

    /// Holds the newest value of an entry; true where it is still of the key that it was of.
    #[inline]
    fn hold(&mut self, (lane, index): Spot) -> (Option<Arc<PeerSegment>>, bool) {
        let Some(source) = self.sources.get_mut(lane).and_then(Option::as_mut) else {
            return (None, false);
        };
        match source.hold(index) {
            Hold::Known(segment) => (Some(segment), true),
            other => self.held((lane, index), other),
        }
    }

    /// An entry has another value than before, or none: has it found by the key of that.
    #[cold]
    fn held(&mut self, (lane, index): Spot, hold: Hold) -> (Option<Arc<PeerSegment>>, bool) {
        let (segment, key) = match hold {
            Hold::Read(segment, key) => (Some(segment), Some(key)),
            Hold::Nothing | Hold::Known(_) => (None, None),
        };
        let Some(source) = self.sources.get_mut(lane).and_then(Option::as_mut) else {
            return (segment, false);
        };
        let Some(known) = source.entries.get(index) else {
            return (segment, false);
        };
        if known.key == key {
            return (segment, true);
        }
        self.last = None;
        if let Some(before) = source.unbind(index) {
            unbind(&mut self.by_key, &before, (lane, index));
        }
        let Some(key) = key else {
            return (segment, false);
        };
        // Where another entry of this board had the key, it has it no more.
        let spots = self.by_key.get(&key).into_iter().flatten();
        let twin = spots.copied().find(|(of, _)| *of == lane);
        if let Some((_, twin)) = twin {
            if source.is_as_read(twin) {
                source.refuse("a board with two values of one key");
                return (None, false);
            }
            source.unbind(twin);
            unbind(&mut self.by_key, &key, (lane, twin));
        }
        if !source.bind(index, key.clone()) {
            return (None, false);
        }
        self.by_key.entry(key).or_default().push((lane, index));
        (segment, false)
    }

    fn let_go(&mut self, (lane, _): Spot) {
        if let Some(source) = self.source(lane) {
            source.let_go();
        }
    }

    /// Holds the newest value of a key.
    #[inline]
    pub(super) fn find(&mut self, key: &[u8]) -> Option<(Spot, Arc<PeerSegment>)> {
        let spot = match self.last {
            Some(last) if self.key(last) == Some(key) => last,
            _ => match self.by_key.get(key).map(Vec::as_slice) {
                Some(&[spot]) => spot,
                _ => return self.find_anew(key),
            },
        };
        // Another publisher may have a value of this key by now.
        if self.count > 1 && self.has_bindings() {
            return self.find_anew(key);
        }
        match self.hold(spot) {
            (Some(segment), true) => {
                self.last = Some(spot);
                Some((spot, segment))
            }
            _ => {
                self.let_go(spot);
                self.find_anew(key)
            }
        }
    }

    /// Whether entries may have been given to other keys since all were looked at.
    fn has_bindings(&self) -> bool {
        let mut sources = self.sources.iter().flatten();
        sources.any(|source| source.bindings_now() != source.bindings)
    }

    /// The key by which an entry is found.
    #[inline]
    fn key(&self, (lane, index): Spot) -> Option<&[u8]> {
        let source = self.sources.get(lane)?.as_ref()?;
        source.entries.get(index)?.key.as_deref()
    }

    /// The same, where several have a value of that key, or it is not known who has.
    #[cold]
    fn find_anew(&mut self, key: &[u8]) -> Option<(Spot, Arc<PeerSegment>)> {
        // Where a publisher removes the newest meanwhile, another may have one.
        (0..TURNS).find_map(|_| self.find_newest(key))
    }

    fn find_newest(&mut self, key: &[u8]) -> Option<(Spot, Arc<PeerSegment>)> {
        self.look_for_bindings();
        let mut newest: Option<(u64, Spot)> = None;
        for spot in self.by_key.get(key).cloned().unwrap_or_default() {
            let (held, _) = self.hold(spot);
            self.let_go(spot);
            let is_it = held.is_some() && self.key(spot) == Some(key);
            let known = &self.sources[spot.0].as_ref()?.entries[spot.1];
            if is_it && newest.is_none_or(|(published, _)| published < known.published) {
                newest = Some((known.published, spot));
            }
        }
        let (_, spot) = newest?;
        let (segment, is_same) = self.hold(spot);
        if !is_same {
            self.let_go(spot);
            return None;
        }
        Some((spot, segment?))
    }

    /// Learns which entries were given to other keys.
    fn look_for_bindings(&mut self) {
        for lane in 0..self.sources.len() {
            let Some(source) = self.source(lane) else {
                continue;
            };
            // Before the look: what comes behind it is found the next time.
            let bindings = source.bindings_now();
            if std::mem::replace(&mut source.bindings, bindings) == bindings {
                continue;
            }
            self.look_at_all(lane);
        }
    }

    /// Reads all entries of a board that have changed.
    fn look_at_all(&mut self, lane: usize) {
        let most = self.most_entries(lane);
        let Some(source) = self.source(lane) else {
            return;
        };
        let (count, before, most) = (source.count(most), source.validated, source.most_bytes());
        for index in 0..count {
            let source = self.source(lane);
            let source = source.filter(|source| index < source.entries.len());
            let Some(source) = source else {
                return;
            };
            if source.validated - before > most {
                return source.refuse("a board with more in it than its publisher has");
            }
            if source.version(index) != source.entries[index].version {
                self.hold((lane, index));
                self.let_go((lane, index));
            }
        }
    }

    /// How many entries of a board may be known: all boards together have what takes some 100 MiB.
    fn most_entries(&self, lane: usize) -> usize {
        let others = self.sources.iter().enumerate();
        let others = others.filter(|(of, _)| *of != lane);
        let known = others.filter_map(|(_, source)| Some(source.as_ref()?.entries.len()));
        MOST_ENTRIES.saturating_sub(known.sum())
    }

    /// Whether something may have changed that was not told of.
    pub(super) fn has_changed(&mut self) -> bool {
        while let Some(&(lane, index)) = self.changed.front() {
            let Some(source) = self.source(lane) else {
                self.changed.pop_front();
                continue;
            };
            let version = source.version(index);
            let known = &mut source.entries[index];
            if version != known.told {
                return true;
            }
            known.is_queued = false;
            self.changed.pop_front();
        }
        !self.lost.is_empty()
    }

    /// What has changed since it was last told of, once each: the newest.
    pub(super) fn next_change(&mut self) -> Option<Told> {
        while let Some(key) = self.lost.pop_front() {
            if let Some(removed) = self.removed(key) {
                return Some(removed);
            }
        }
        while self.has_changed() {
            let spot = self.changed.pop_front()?;
            if let Some(told) = self.tell(spot) {
                return Some(told);
            }
        }
        None
    }

    /// What there is to be told of an entry.
    fn tell(&mut self, spot: Spot) -> Option<Told> {
        let (lane, index) = spot;
        let source = self.source(lane)?;
        let version = source.version(index);
        let known = &mut source.entries[index];
        known.is_queued = false;
        if version == known.told {
            return None;
        }
        let (held, _) = self.hold(spot);
        let known = &mut self.source(lane)?.entries[index];
        let told = match held {
            Some(_) => known.version,
            None => version,
        };
        if std::mem::replace(&mut known.told, told) == told {
            // Its number was written behind it, and is known by now.
            self.let_go(spot);
            return None;
        }
        let before = std::mem::replace(&mut known.told_key, known.key.clone());
        let before = before.filter(|key| known.told_key.as_ref() != Some(key));
        if let Some(key) = before {
            if held.is_some() {
                // First that, and then the value of another key.
                (known.told, known.told_key) = (0, None);
                self.let_go(spot);
                self.note(spot);
            }
            return self.removed(key);
        }
        if held.is_some() && !self.is_newest(spot) {
            self.let_go(spot);
            return None;
        }
        held.map(|segment| Told::Value(spot, segment))
    }

    /// Whether no other publisher has a value of the same key that was published later, as far as is known: what
    /// is not, will be told of.
    fn is_newest(&self, spot: Spot) -> bool {
        let published = |(lane, index): Spot| {
            let source = self.sources.get(lane).and_then(Option::as_ref);
            source.map_or(0, |source| source.entries[index].published)
        };
        let spots = self.key(spot).and_then(|key| self.by_key.get(key));
        let mut others = spots.into_iter().flatten();
        others.all(|other| published(*other) <= published(spot))
    }

    /// A key has no value any more, unless another publisher has one: then that is told of.
    fn removed(&mut self, key: Box<[u8]>) -> Option<Told> {
        let others = self.by_key.get(&key).cloned().unwrap_or_default();
        let is_gone = others.is_empty();
        for (lane, index) in others {
            if let Some(source) = self.source(lane) {
                source.entries[index].told = 0;
            }
            self.note((lane, index));
        }
        is_gone.then_some(Told::Removed(key))
    }

    /// Borrows a value that is held.
    ///
    /// # Safety
    ///
    /// 1. To hold it, which returned this segment, was the last thing that was asked.
    #[inline]
    #[allow(unsafe_code)]
    pub(super) unsafe fn current(
        &self,
        (lane, index): Spot,
        segment: Arc<PeerSegment>,
    ) -> Option<Current<'_, T>> {
        let source = self.sources.get(lane)?.as_ref()?;
        // SAFETY: 1.
        Some(unsafe { source.current(index, segment) })
    }
}

fn unbind(by_key: &mut HashMap<Box<[u8]>, Vec<Spot>>, key: &[u8], spot: Spot) {
    if let Some(spots) = by_key.get_mut(key) {
        spots.retain(|other| *other != spot);
        if spots.is_empty() {
            by_key.remove(key);
        }
    }
}

#[cfg(test)]
impl<T: ShmLatest> Sources<T> {
    pub(super) fn forge_hold(&self, word: u64) {
        let sources = self.sources.iter().flatten();
        sources.for_each(|source| source.forge_hold(word));
    }
}
