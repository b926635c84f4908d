//! The keys in memory: which versions each has and where they lie, and the values of those in
//! use.
//!
//! A key keeps its newest version in place and older ones, oldest first, beside it:
//!
//! ```text
//!   older: 4 put │ 7 put │ 9 delete      newest: 12 put        reading at 8 finds 7, at 9 nothing
//! ```
//!
//! A tombstone is a version like any other until compaction takes it. Of an older version only
//! the place is here, 24 bytes; its record knows the rest. Values of newest versions stay here
//! as long as there is room (see [`KeyIndex::evict`]); all others are read from the segments.

use std::{
    hint::black_box,
    ops::Bound,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{
    key::Key,
    range_end::{Bounds, Span},
    record::{Revision, Version},
    segment::Place,
    sorted::{Entry, SortedMap},
};

/// What a value in memory costs beyond its bytes: the header of the allocator, and rounding.
const VALUE_OVERHEAD: usize = 16;

/// How many keys one call of [`KeyIndex::evict`] looks at: a bound on the time that the lock
/// is held, well above the number of puts in a batch. A guess.
const EVICT_KEYS_MAX: usize = 8192;

const CACHE_LINE_BYTES: usize = 64;

/// How much of a value is brought near: the processor guesses the rest of a long one itself.
const DRAWN_LINES_MAX: usize = 8;

/// Bounds between which no key is.
const NOTHING: Bounds<'static> = (Bound::Unbounded, Bound::Excluded(&[]));

/// All keys, in order.
#[derive(Debug)]
pub(crate) struct KeyIndex {
    keys: SortedMap<KeyEntry>,
    /// Keys whose newest version is a tombstone.
    deleted: usize,
    /// What the values in memory cost.
    hot_bytes: usize,
    hot_bytes_max: usize,
    /// Where eviction goes on: after this key.
    hand: Option<Key>,
}

/// A key.
#[derive(Debug)]
pub(crate) struct KeyEntry {
    newest: Newest,
    /// The value of `newest`, if it is in memory. Never of a tombstone. A copy of its own: what
    /// came with a command may be a part of something much larger.
    hot: Option<Box<[u8]>>,
    /// What few keys have.
    more: Option<Box<More>>,
}

const _: () = assert!(size_of::<KeyEntry>() == 64, "memory per key is a promise");

/// The newest version, and where it lies. Its lease is in [`More`].
#[derive(Debug)]
struct Newest {
    main: i64,
    create_revision: i64,
    /// Zero in a tombstone.
    version: i64,
    /// The highest bit says that the value was read since eviction came by: no command writes
    /// as many keys.
    sub: AtomicU32,
    place: Place,
}

const TOUCHED: u32 = 1 << 31;

#[derive(Debug, Default)]
struct More {
    /// Of the newest version, or zero.
    lease: i64,
    /// Oldest first.
    older: Vec<Older>,
}

/// An older version: its place, and whether it is a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Older {
    main: i64,
    sub: u32,
    segment: u32,
    offset: u32,
    /// The highest bit marks a tombstone: no record is as long as 2 GiB.
    len: u32,
}

const _: () = assert!(size_of::<Older>() == 24, "memory per version is a promise");

const TOMBSTONE: u32 = 1 << 31;

impl Older {
    pub(crate) fn new(at: Revision, place: Place, is_tombstone: bool) -> Self {
        let Place { segment, offset, len } = place;
        let len = if is_tombstone { len | TOMBSTONE } else { len };
        Self { main: at.main, sub: at.sub, segment, offset, len }
    }

    pub(crate) fn at(&self) -> Revision {
        Revision { main: self.main, sub: self.sub }
    }

    pub(crate) fn place(&self) -> Place {
        let Self { segment, offset, len, .. } = *self;
        Place { segment, offset, len: len & !TOMBSTONE }
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.len & TOMBSTONE != 0
    }
}

/// A live version that a read found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hit<'a> {
    pub(crate) at: Revision,
    pub(crate) place: Place,
    /// All of it but the value, if it is the newest version of its key.
    pub(crate) newest: Option<Version>,
    /// Its value, if in memory.
    pub(crate) value: Option<&'a [u8]>,
}

impl Newest {
    fn new(version: &Version, place: Place) -> Self {
        let Version { at, create_revision, version, .. } = *version;
        Self { main: at.main, create_revision, version, sub: at.sub.into(), place }
    }

    fn at(&self) -> Revision {
        Revision { main: self.main, sub: self.sub.load(Ordering::Relaxed) & !TOUCHED }
    }

    /// Notes that the value is read.
    fn touch(&self) {
        if self.sub.load(Ordering::Relaxed) & TOUCHED == 0 {
            self.sub.fetch_or(TOUCHED, Ordering::Relaxed);
        }
    }

    /// Whether the value was read since the last time.
    fn take_touch(&mut self) -> bool {
        let sub = self.sub.get_mut();
        let was_touched = *sub & TOUCHED != 0;
        *sub &= !TOUCHED;
        was_touched
    }

    fn is_tombstone(&self) -> bool {
        self.version == 0
    }
}

impl KeyEntry {
    fn new(version: &Version, place: Place, hot: Option<Box<[u8]>>) -> Self {
        let more = (version.lease != 0)
            .then(|| Box::new(More { lease: version.lease, older: Vec::new() }));
        Self { newest: Newest::new(version, place), hot, more }
    }

    /// An entry that a checkpoint holds.
    pub(crate) fn restored(version: &Version, place: Place, older: Vec<Older>) -> Self {
        let mut entry = Self::new(version, place, None);
        if !older.is_empty() {
            entry.more.get_or_insert_default().older = older;
        }
        entry
    }

    /// The newest version, be it a tombstone, and its place.
    pub(crate) fn newest(&self) -> (Version, Place) {
        let Newest { create_revision, version, place, .. } = &self.newest;
        let (create_revision, version, place) = (*create_revision, *version, *place);
        let lease = self.more.as_ref().map_or(0, |more| more.lease);
        (Version { at: self.newest.at(), create_revision, version, lease }, place)
    }

    /// The older versions, oldest first.
    pub(crate) fn older(&self) -> &[Older] {
        self.more.as_ref().map_or(&[], |more| &more.older)
    }

    /// The version that is alive at `revision`.
    pub(crate) fn at(&self, revision: i64) -> Option<Hit<'_>> {
        if self.newest.main <= revision {
            if self.newest.is_tombstone() {
                return None;
            }
            let value = self.hot.as_deref().inspect(|_| self.newest.touch());
            let (version, place) = self.newest();
            return Some(Hit { at: version.at, place, newest: Some(version), value });
        }
        let older = self.older();
        let after = older.partition_point(|version| version.main <= revision);
        let version = older.get(after.checked_sub(1)?)?;
        let (at, place) = (version.at(), version.place());
        (!version.is_tombstone()).then_some(Hit { at, place, newest: None, value: None })
    }

    /// Has the value brought into the cache of the processor, if it is in memory, and what else
    /// is needed for an answer. Does not wait.
    pub(crate) fn draw_near(&self) {
        black_box(self.more.as_ref().map_or(0, |more| more.lease));
        let value = self.hot.as_deref().unwrap_or_default();
        for byte in value.iter().step_by(CACHE_LINE_BYTES).take(DRAWN_LINES_MAX) {
            black_box(*byte);
        }
    }

    /// The newest version, unless it is a tombstone.
    pub(crate) fn live(&self) -> Option<Version> {
        (!self.newest.is_tombstone()).then(|| self.newest().0)
    }

    /// Makes `version` the newest one.
    fn push(&mut self, version: &Version, place: Place) {
        let Self { newest, .. } = &*self;
        let replaced = Older::new(newest.at(), newest.place, newest.is_tombstone());
        self.newest = Newest::new(version, place);
        let more = self.more.get_or_insert_default();
        more.lease = version.lease;
        if more.older.len() == more.older.capacity() {
            // Most keys have few versions: the growth of `Vec` would waste most of its first
            // four places.
            more.older.reserve_exact(1 + more.older.len() / 2);
        }
        more.older.push(replaced);
    }

    /// Where the version that was made at `at` lies, if it is known.
    pub(crate) fn place_of(&self, at: Revision) -> Option<Place> {
        if self.newest.at() == at {
            return Some(self.newest.place);
        }
        let older = self.older();
        older.binary_search_by_key(&at, Older::at).ok().map(|found| older[found].place())
    }

    /// Notes that the record of `at` lies elsewhere: at `to`, if it was at `from`. Returns
    /// whether it was.
    pub(crate) fn move_record(&mut self, at: Revision, from: Place, to: Place) -> bool {
        if self.newest.at() == at {
            let is_there = self.newest.place == from;
            if is_there {
                self.newest.place = to;
            }
            return is_there;
        }
        let Some(more) = &mut self.more else { return false };
        let found = more.older.binary_search_by_key(&at, Older::at).ok();
        match found.and_then(|found| more.older.get_mut(found)) {
            Some(older) if older.place() == from => {
                *older = Older::new(at, to, older.is_tombstone());
                true
            }
            _ => false,
        }
    }

    /// Whether a version that is newer than `at` and not after `compact_revision` is kept: then
    /// nobody sees what was before it.
    pub(crate) fn covers(&self, at: Revision, compact_revision: i64) -> bool {
        let older = self.older().iter().map(Older::at);
        let mut versions = older.chain([self.newest.at()]);
        versions.any(|version| at < version && version.main <= compact_revision)
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
        let newest = (self.newest.at(), self.newest.is_tombstone());
        let older = self.older().iter().map(|older| (older.at(), older.is_tombstone()));
        let last = older.chain([newest]).take_while(|(at, _)| at.main <= compact_revision).last();
        last.is_some_and(|(last, is_tombstone)| {
            last == at && is_kept(last, is_tombstone, compact_revision)
        })
    }

    /// Forgets what [`retains`](Self::retains) denies. Returns whether anything is left.
    fn compact(&mut self, compact_revision: i64, dead: &mut Vec<Place>) -> bool {
        if let Some(more) = &mut self.more {
            let versions = &mut more.older;
            let mut old = versions.partition_point(|version| version.main <= compact_revision);
            if compact_revision < self.newest.main {
                // The last of them may be needed; if `newest` is old too, it is not.
                let last = old.checked_sub(1).and_then(|last| versions.get(last));
                old -=
                    usize::from(last.is_some_and(|last| {
                        is_kept(last.at(), last.is_tombstone(), compact_revision)
                    }));
            }
            dead.extend(versions.drain(..old).map(|version| version.place()));
            if versions.is_empty() && more.lease == 0 {
                self.more = None;
            } else if versions.len() < versions.capacity() / 4 {
                versions.shrink_to_fit();
            }
        }
        let newest = &self.newest;
        let is_old = newest.main <= compact_revision;
        if is_old && !is_kept(newest.at(), newest.is_tombstone(), compact_revision) {
            dead.push(newest.place);
            return false;
        }
        true
    }

    /// What the value costs in memory.
    fn hot_cost(&self) -> usize {
        self.hot.as_ref().map_or(0, |hot| hot.len() + VALUE_OVERHEAD)
    }

    /// Adds a tombstone. Returns what its value has cost in memory.
    pub(crate) fn delete(&mut self, at: Revision, place: Place) -> usize {
        let freed = self.hot_cost();
        self.hot = None;
        self.push(&Version::tombstone(at), place);
        freed
    }
}

/// Whether the newest version up to the compact revision stays.
fn is_kept(last: Revision, is_tombstone: bool, compact_revision: i64) -> bool {
    !is_tombstone || last.main == compact_revision
}

impl KeyIndex {
    pub(crate) fn new(hot_bytes_max: usize) -> Self {
        Self { keys: SortedMap::new(), deleted: 0, hot_bytes: 0, hot_bytes_max, hand: None }
    }

    /// Builds the index from the entries of all keys, in order, none of them with a value.
    pub(crate) fn from_sorted(
        entries: impl IntoIterator<Item = (Key, KeyEntry)>,
        hot_bytes_max: usize,
    ) -> Self {
        let keys = SortedMap::from_sorted(entries);
        let deleted = keys.iter().filter(|(_, entry)| entry.newest.is_tombstone()).count();
        Self { keys, deleted, hot_bytes: 0, hot_bytes_max, hand: None }
    }

    /// Adds a version as it was written once, without its value. Versions of a key come in
    /// order. Of one that is known already the place is noted, which may be another; an older
    /// one that is not known is dead.
    pub(crate) fn replay(&mut self, key: &[u8], version: &Version, place: Place) {
        match self.keys.entry(key) {
            Entry::Occupied(entry) if entry.newest.at() < version.at => {
                self.hot_bytes -= entry.hot_cost();
                self.deleted -= usize::from(entry.newest.is_tombstone());
                self.deleted += usize::from(version.is_tombstone());
                entry.push(version, place);
                entry.hot = None;
            }
            Entry::Occupied(entry) => {
                if let Some(known) = entry.place_of(version.at) {
                    entry.move_record(version.at, known, place);
                }
            }
            Entry::Vacant(vacant) => {
                self.deleted += usize::from(version.is_tombstone());
                vacant.insert(KeyEntry::new(version, place, None));
            }
        }
    }

    /// The keys after `cursor`, in order.
    pub(crate) fn after<'a>(
        &'a self,
        cursor: Option<&[u8]>,
    ) -> impl Iterator<Item = (&'a Key, &'a KeyEntry)> + use<'a> {
        let start = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        self.keys.range((start, Bound::Unbounded))
    }

    /// Forgets all that is dead by `compact_revision`, without counting it.
    pub(crate) fn compact_all(&mut self, compact_revision: i64) {
        let (mut cursor, dead) = (None, &mut Vec::new());
        loop {
            cursor = self.compact(cursor.as_deref(), usize::MAX, compact_revision, dead);
            if cursor.is_none() {
                return;
            }
            dead.clear();
        }
    }

    /// Hands the place of every version to `each`.
    pub(crate) fn places(&self, each: &mut dyn FnMut(Place)) {
        for (_, entry) in self.keys.iter() {
            entry.older().iter().for_each(|older| each(older.place()));
            each(entry.newest.place);
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&KeyEntry> {
        self.keys.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &[u8]) -> Option<&mut KeyEntry> {
        self.keys.get_mut(key)
    }

    /// The keys of a span, in order.
    pub(crate) fn span<'a>(
        &'a self,
        span: Span<'_>,
    ) -> impl DoubleEndedIterator<Item = (&'a Key, &'a KeyEntry)> + use<'a> {
        self.between(span.bounds().unwrap_or(NOTHING))
    }

    /// The keys between two bounds, in order.
    pub(crate) fn between<'a>(
        &'a self,
        bounds: Bounds<'_>,
    ) -> impl DoubleEndedIterator<Item = (&'a Key, &'a KeyEntry)> + use<'a> {
        self.keys.range(bounds)
    }

    /// Adds a put: `write` gets the version that it makes, and says where that will lie.
    pub(crate) fn put(
        &mut self,
        key: &[u8],
        at: Revision,
        lease: i64,
        value: &[u8],
        write: impl FnOnce(&Version) -> Place,
    ) {
        let is_cacheable = value.len() <= self.hot_bytes_max / 8;
        let value: Option<Box<[u8]>> = is_cacheable.then(|| value.into());
        let entry = match self.keys.entry(key) {
            Entry::Occupied(entry) => {
                let (create_revision, version) = match entry.live() {
                    Some(live) => (live.create_revision, live.version + 1),
                    None => (at.main, 1),
                };
                let version = Version { at, create_revision, version, lease };
                self.deleted -= usize::from(entry.newest.is_tombstone());
                self.hot_bytes -= entry.hot_cost();
                entry.push(&version, write(&version));
                entry.hot = value;
                entry
            }
            Entry::Vacant(vacant) => {
                let version = Version { at, create_revision: at.main, version: 1, lease };
                vacant.insert(KeyEntry::new(&version, write(&version), value))
            }
        };
        self.hot_bytes += entry.hot_cost();
    }

    /// The keys of a span, to be deleted with [`KeyEntry::delete`] one by one.
    pub(crate) fn span_mut<'a>(
        &'a mut self,
        span: Span<'_>,
    ) -> impl Iterator<Item = (&'a Key, &'a mut KeyEntry)> + use<'a> {
        self.keys.range_mut(span.bounds().unwrap_or(NOTHING))
    }

    /// Accounts for keys that were deleted, and what their values have cost.
    pub(crate) fn release(&mut self, keys: usize, bytes: usize) {
        self.deleted += keys;
        self.hot_bytes -= bytes;
    }

    /// How many keys between two bounds have a value now, if that is known without a look at
    /// each of them.
    pub(crate) fn count_live(&self, bounds: Bounds<'_>) -> Option<usize> {
        (self.deleted == 0).then(|| self.keys.count(bounds))
    }

    /// Puts a value that a read had to fetch back into memory, if it is still the newest.
    pub(crate) fn warm(&mut self, key: &[u8], at: Revision, value: Box<[u8]>) {
        let Some(entry) = self.keys.get_mut(key) else { return };
        let is_newest = entry.newest.at() == at;
        if is_newest && entry.hot.is_none() && value.len() <= self.hot_bytes_max / 8 {
            entry.hot = Some(value);
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
            for (key, entry) in self.keys.range_mut((start, Bound::Unbounded)) {
                keys_left -= 1;
                if !entry.newest.take_touch() {
                    self.hot_bytes -= entry.hot_cost();
                    entry.hot = None;
                }
                if self.hot_bytes <= self.hot_bytes_max || keys_left == 0 {
                    stopped_at = Some(key.clone());
                    break;
                }
            }
            self.hand = stopped_at;
        }
    }

    /// Compacts up to `keys_max` keys after `cursor`. The places of what is dead are added to
    /// `dead`. Returns the cursor for the next call, or none when all keys were seen.
    pub(crate) fn compact(
        &mut self,
        cursor: Option<&[u8]>,
        keys_max: usize,
        compact_revision: i64,
        dead: &mut Vec<Place>,
    ) -> Option<Key> {
        let start = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let mut deleted = 0;
        let last = self.keys.retain_range((start, Bound::Unbounded), keys_max, |_, entry| {
            // Only tombstones go, and they have no value.
            let is_left = entry.compact(compact_revision, dead);
            deleted += usize::from(!is_left);
            is_left
        })?;
        self.deleted -= deleted;
        Some(last)
    }
}
