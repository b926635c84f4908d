//! The keys in memory: which versions each has, and the values of those in use.
//!
//! A key keeps its newest version in place and older ones, oldest first, beside it:
//!
//! ```text
//!   older: 4 put │ 7 put │ 9 delete      newest: 12 put        reading at 8 finds 7, at 9 nothing
//! ```
//!
//! A tombstone is a version like any other until compaction takes it. Values of newest
//! versions stay here as long as there is room (see [`KeyIndex::evict`]); all others are read
//! from the events. Memory per key without its value: about 90 bytes, the key, and the slack of
//! the tree.

use std::{
    collections::{
        BTreeMap,
        btree_map::{Entry, Range, RangeMut},
    },
    ops::Bound,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;

use crate::{
    key::Key,
    range_end::{Bounds, Span},
    record::{Revision, Version},
};

/// What a value in memory costs beyond its bytes: headers of the allocator and of `Bytes`.
const VALUE_OVERHEAD: usize = 64;

/// How many keys one call of [`KeyIndex::evict`] looks at: a bound on the time that the lock
/// is held, well above the number of puts in a batch. A guess.
const EVICT_KEYS_MAX: usize = 8192;

/// All keys, in order.
#[derive(Debug)]
pub(crate) struct KeyIndex {
    keys: BTreeMap<Key, KeyEntry>,
    /// What the values in memory cost.
    hot_bytes: usize,
    hot_bytes_max: usize,
    /// Where eviction goes on: after this key.
    hand: Option<Key>,
}

/// A key.
#[derive(Debug)]
pub(crate) struct KeyEntry {
    newest: Version,
    /// The value of `newest`, if it is in memory. Never of a tombstone.
    value: Option<Bytes>,
    /// Read since eviction came by.
    is_touched: AtomicBool,
    older: Option<Box<History>>,
}

/// Older versions, oldest first.
#[derive(Debug, Default)]
struct History(Vec<Version>);

/// A live version that a read found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hit<'a> {
    pub(crate) version: Version,
    /// Its value, if in memory.
    pub(crate) value: Option<&'a Bytes>,
    /// Whether it is the newest version of its key.
    pub(crate) is_newest: bool,
}

impl KeyEntry {
    fn new(newest: Version, value: Option<Bytes>) -> Self {
        Self { newest, value, is_touched: AtomicBool::new(false), older: None }
    }

    /// The version that is alive at `revision`.
    pub(crate) fn at(&self, revision: i64) -> Option<Hit<'_>> {
        if self.newest.at.main <= revision {
            if self.newest.is_tombstone() {
                return None;
            }
            if !self.is_touched.load(Ordering::Relaxed) {
                self.is_touched.store(true, Ordering::Relaxed);
            }
            let value = self.value.as_ref();
            return Some(Hit { version: self.newest, value, is_newest: true });
        }
        let older = &self.older.as_ref()?.0;
        let after = older.partition_point(|version| version.at.main <= revision);
        let version = *older.get(after.checked_sub(1)?)?;
        (!version.is_tombstone()).then_some(Hit { version, value: None, is_newest: false })
    }

    /// The newest version, unless it is a tombstone.
    pub(crate) fn live(&self) -> Option<&Version> {
        (!self.newest.is_tombstone()).then_some(&self.newest)
    }

    /// Makes `version` the newest one.
    fn push(&mut self, version: Version) {
        let replaced = std::mem::replace(&mut self.newest, version);
        let versions = &mut self.older.get_or_insert_default().0;
        if versions.len() == versions.capacity() {
            // Most keys have few versions: the growth of `Vec` would waste most of its first
            // four places.
            versions.reserve_exact(1 + versions.len() / 2);
        }
        versions.push(replaced);
    }

    /// Whether history from `compact_revision` on needs the version made at `at`.
    ///
    /// Everything after it does; up to it only the newest version, and if that is a tombstone
    /// then only one of exactly this revision, for a watch may start there (etcd #18089,
    /// #19179).
    pub(crate) fn retains(&self, at: Revision, compact_revision: i64) -> bool {
        if compact_revision < at.main {
            return true;
        }
        let older = self.older.iter().flat_map(|older| &older.0);
        let last = older
            .chain([&self.newest])
            .take_while(|version| version.at.main <= compact_revision)
            .last();
        last.is_some_and(|last| last.at == at && is_kept(last, compact_revision))
    }

    /// Forgets what [`retains`](Self::retains) denies. Returns whether anything is left.
    fn compact(&mut self, compact_revision: i64, dead: &mut Vec<Revision>) -> bool {
        if let Some(older) = &mut self.older {
            let versions = &mut older.0;
            let mut old = versions.partition_point(|version| version.at.main <= compact_revision);
            if compact_revision < self.newest.at.main {
                // The last of them may be needed; if `newest` is old too, it is not.
                let last = old.checked_sub(1).and_then(|last| versions.get(last));
                old -= usize::from(last.is_some_and(|last| is_kept(last, compact_revision)));
            }
            dead.extend(versions.drain(..old).map(|version| version.at));
            if versions.is_empty() {
                self.older = None;
            } else if versions.len() < versions.capacity() / 4 {
                versions.shrink_to_fit();
            }
        }
        let is_old = self.newest.at.main <= compact_revision;
        if is_old && !is_kept(&self.newest, compact_revision) {
            dead.push(self.newest.at);
            return false;
        }
        true
    }
}

/// Whether the newest version up to the compact revision stays.
fn is_kept(last: &Version, compact_revision: i64) -> bool {
    !last.is_tombstone() || last.at.main == compact_revision
}

impl KeyIndex {
    pub(crate) fn new(hot_bytes_max: usize) -> Self {
        Self { keys: BTreeMap::new(), hot_bytes: 0, hot_bytes_max, hand: None }
    }

    /// Builds the index from all versions, sorted by key and revision. What is dead by
    /// `compact_revision` is left out and its revisions are added to `dead`, in any order.
    pub(crate) fn build(
        sorted: Vec<(Key, Version, Option<Bytes>)>,
        compact_revision: i64,
        hot_bytes_max: usize,
        dead: &mut Vec<Revision>,
    ) -> Self {
        let mut keys: Vec<(Key, KeyEntry)> = Vec::new();
        for (key, version, value) in sorted {
            match keys.last_mut().filter(|(last, _)| *last == key) {
                Some((_, entry)) => {
                    entry.push(version);
                    entry.value = value;
                }
                None => keys.push((key, KeyEntry::new(version, value))),
            }
        }
        keys.retain_mut(|(_, entry)| entry.compact(compact_revision, dead));
        let hot_bytes = keys.iter().map(|(_, entry)| entry.hot_cost()).sum();
        // Sorted input is built from the leaves up, without a search per key.
        let mut index =
            Self { keys: keys.into_iter().collect(), hot_bytes, hot_bytes_max, hand: None };
        index.evict();
        index
    }

    /// Adds a version that comes after all others, as it was written once, without its value.
    pub(crate) fn replay(&mut self, key: &[u8], version: Version) {
        match self.keys.get_mut(key) {
            Some(entry) => {
                self.hot_bytes -= entry.hot_cost();
                entry.push(version);
                entry.value = None;
            }
            None => {
                self.keys.insert(key.into(), KeyEntry::new(version, None));
            }
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&KeyEntry> {
        self.keys.get(key)
    }

    /// The keys of a span, in order.
    pub(crate) fn span(&self, span: Span<'_>) -> Range<'_, Key, KeyEntry> {
        let nothing = (Bound::Unbounded, Bound::Excluded(&[][..]));
        self.keys.range::<[u8], _>(span.bounds().unwrap_or(nothing))
    }

    /// The keys between two bounds that do not cross, in order.
    pub(crate) fn between(&self, bounds: Bounds<'_>) -> Range<'_, Key, KeyEntry> {
        self.keys.range::<[u8], _>(bounds)
    }

    /// Adds a put and returns the version that it makes.
    pub(crate) fn put(&mut self, key: &[u8], at: Revision, lease: i64, value: Bytes) -> Version {
        let is_cacheable = value.len() <= self.hot_bytes_max / 8;
        let value = is_cacheable.then_some(value);
        let entry = match self.keys.get_mut(key) {
            Some(entry) => {
                let (create_revision, version) = match entry.live() {
                    Some(live) => (live.create_revision, live.version + 1),
                    None => (at.main, 1),
                };
                self.hot_bytes -= entry.hot_cost();
                entry.push(Version { at, create_revision, version, lease });
                entry.value = value;
                entry
            }
            None => {
                let version = Version { at, create_revision: at.main, version: 1, lease };
                match self.keys.entry(key.into()) {
                    Entry::Vacant(vacant) => vacant.insert(KeyEntry::new(version, value)),
                    Entry::Occupied(_) => unreachable!("it was looked for just before"),
                }
            }
        };
        self.hot_bytes += entry.hot_cost();
        entry.newest
    }

    /// The keys of a span, to be deleted with [`KeyEntry::delete`] one by one.
    pub(crate) fn span_mut(&mut self, span: Span<'_>) -> RangeMut<'_, Key, KeyEntry> {
        let nothing = (Bound::Unbounded, Bound::Excluded(&[][..]));
        self.keys.range_mut::<[u8], _>(span.bounds().unwrap_or(nothing))
    }

    /// Takes what deletions have freed off the account.
    pub(crate) fn release(&mut self, bytes: usize) {
        self.hot_bytes -= bytes;
    }

    /// Puts a value that a read had to fetch back into memory, if it is still the newest.
    pub(crate) fn warm(&mut self, key: &[u8], at: Revision, value: Bytes) {
        let Some(entry) = self.keys.get_mut(key) else { return };
        if entry.newest.at == at && entry.value.is_none() && value.len() <= self.hot_bytes_max / 8 {
            entry.value = Some(value);
            self.hot_bytes += entry.hot_cost();
        }
    }

    /// Drops values until the rest fits, those first that nobody has read since the last time
    /// (the CLOCK algorithm). Looks at a bounded number of keys, so a call may end above the
    /// limit; the next one goes on.
    pub(crate) fn evict(&mut self) {
        let mut keys_left = EVICT_KEYS_MAX;
        while self.hot_bytes_max < self.hot_bytes && 0 < keys_left {
            let start = match &self.hand {
                Some(hand) => Bound::Excluded(&**hand),
                None => Bound::Unbounded,
            };
            let mut stopped_at = None;
            for (key, entry) in self.keys.range_mut::<[u8], _>((start, Bound::Unbounded)) {
                keys_left -= 1;
                if !std::mem::take(entry.is_touched.get_mut()) {
                    self.hot_bytes -= entry.hot_cost();
                    entry.value = None;
                }
                if self.hot_bytes <= self.hot_bytes_max || keys_left == 0 {
                    stopped_at = Some(key.clone());
                    break;
                }
            }
            self.hand = stopped_at;
        }
    }

    /// Compacts up to `keys_max` keys after `cursor`. The revisions of what is dead are added
    /// to `dead`. Returns the cursor for the next call, or none when all keys were seen.
    pub(crate) fn compact(
        &mut self,
        cursor: Option<&[u8]>,
        keys_max: usize,
        compact_revision: i64,
        dead: &mut Vec<Revision>,
    ) -> Option<Key> {
        let start = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let keys = self.keys.range::<[u8], _>((start, Bound::Unbounded));
        let last = keys.map(|(key, _)| key).take(keys_max).last()?.clone();
        let start = cursor.map_or(Bound::Unbounded, |cursor| Bound::Excluded(cursor.into()));
        let chunk = (start, Bound::Included(last.clone()));
        let emptied =
            self.keys.extract_if(chunk, |_, entry| !entry.compact(compact_revision, dead));
        let freed: usize = emptied.map(|(_, entry)| entry.hot_cost()).sum();
        self.hot_bytes -= freed;
        Some(last)
    }
}

impl KeyEntry {
    /// What the value costs in memory.
    fn hot_cost(&self) -> usize {
        self.value.as_ref().map_or(0, |value| value.len() + VALUE_OVERHEAD)
    }

    /// Adds a tombstone. Returns what its value has cost in memory.
    pub(crate) fn delete(&mut self, at: Revision) -> usize {
        let freed = self.hot_cost();
        self.value = None;
        self.push(Version::tombstone(at));
        freed
    }
}
