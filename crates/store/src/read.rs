//! Ranges: which keys a request selects, in which order, and how they get their values.
//!
//! A range is read at a fixed revision, so it need not be read at one go. A large one is
//! collected in steps, between which the lock is free; then the values that are not in memory
//! are fetched without any lock, from files that stay readable for as long as somebody holds
//! them, whatever compaction does to their names.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, btree_map::Entry},
    ops::{Bound, Range},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    error::{Fatal, StoreError},
    frame::Position,
    index::{Hit, KeyEntry},
    key::Key,
    range_end::Span,
    record::{Revision, Version},
    request::{RangeRequest, SortOrder, SortTarget},
    response::{KeyValue, RangeResponse},
    segment::{Place, Segment},
    state::{State, complete, file_of},
};

/// For how many rows, and how many bytes, room is made ahead: what an ordinary answer has.
const EXPECTED_MAX: usize = 1024;
const EXPECTED_BYTES_MAX: usize = 512 << 10;

/// How many keys are looked at ahead, so that their values come from memory side by side and
/// not one after the other: about as many cache lines as a processor waits for at once.
const BLOCK_KEYS: usize = 16;

/// A range that is being answered.
#[derive(Debug)]
pub(crate) struct Selection<'a> {
    request: &'a RangeRequest,
    /// The revision that is read.
    at: i64,
    /// The current revision when the reading began.
    current: i64,
    rows: Vec<Row>,
    /// The bytes of keys and values, one after the other: one allocation for all of them.
    bytes: Vec<u8>,
    /// How many rows there will be, about.
    expected: usize,
    /// Those of `rows` that still have to be fetched.
    cold: Vec<Cold>,
    /// The files that hold them.
    sources: BTreeMap<u32, Arc<Segment>>,
    /// Keys in the range,
    count: i64,
    /// all of them, be they visited or not.
    is_counted: bool,
    /// Of these, keys that pass the filters.
    matched: usize,
    /// The last key seen.
    cursor: Option<Key>,
}

/// A key that will be answered, and where its bytes and those of its value are.
#[derive(Clone, Debug)]
struct Row {
    version: Version,
    key: Range<usize>,
    value: Range<usize>,
}

/// A record that is on disk.
#[derive(Clone, Copy, Debug)]
struct Cold {
    place: Place,
    at: Revision,
    is_newest: bool,
    /// In `rows`, before those are sorted.
    position: usize,
}

/// A value that was fetched from disk and may be worth keeping.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) key: Box<[u8]>,
    pub(crate) at: Revision,
    pub(crate) value: Box<[u8]>,
}

/// The revision that a range outside of transactions reads.
pub(crate) fn readable(asked: i64, state: &Position) -> Result<i64, StoreError> {
    if asked <= 0 {
        return Ok(state.revision);
    }
    check_revision(asked, state).map(|()| asked)
}

/// The revision that a range in a transaction reads. Only zero means the current one.
pub(crate) fn readable_in_txn(asked: i64, state: &Position) -> Result<i64, StoreError> {
    if asked != 0 {
        check_revision(asked, state)?;
    }
    // etcd refuses a negative revision as compacted, except -1 in a store that never was:
    // there it is its own mark for "nothing compacted", and reads the current revision.
    Ok(if asked <= 0 { state.revision } else { asked })
}

fn check_revision(asked: i64, state: &Position) -> Result<(), StoreError> {
    if state.revision < asked {
        return Err(StoreError::FutureRevision);
    }
    if asked < state.compact_revision {
        return Err(StoreError::Compacted);
    }
    Ok(())
}

impl<'a> Selection<'a> {
    pub(crate) fn new(request: &'a RangeRequest, at: i64, current: i64) -> Self {
        Self {
            request,
            at,
            current,
            rows: Vec::new(),
            bytes: Vec::new(),
            expected: 1,
            cold: Vec::new(),
            sources: BTreeMap::new(),
            count: 0,
            is_counted: false,
            matched: 0,
            cursor: None,
        }
    }

    /// The revision that is read.
    pub(crate) fn at(&self) -> i64 {
        self.at
    }

    /// Looks at up to `keys_max` more keys. Returns whether that was all.
    pub(crate) fn advance(&mut self, state: &State, keys_max: usize) -> Result<bool, Fatal> {
        let span = Span::new(&self.request.key, &self.request.range_end);
        if let Span::One(key) = span {
            // Most reads. A search for a range takes twice the time.
            let entry = state.index.get(key);
            return entry.map_or(Ok(()), |entry| self.visit(key, entry, state)).map(|()| true);
        }
        let Some((first, end)) = span.bounds() else { return Ok(true) };
        let is_first_step = self.cursor.is_none() && self.rows.is_empty();
        if is_first_step && let Some(count) = state.index.count_live((first, end)) {
            if self.is_plain() {
                self.count = i64::try_from(count).expect("memory holds fewer keys");
                self.is_counted = true;
                if self.request.count_only {
                    return Ok(true);
                }
                self.matched = count;
            }
            self.expected = count.min(self.picked_max()).min(EXPECTED_MAX);
            self.rows.reserve(self.expected);
        }
        let cursor = self.cursor.take();
        let cursor = cursor.as_deref().map(Bound::Excluded);
        // Two calls, as the two directions are two types.
        self.cursor = if self.is_descending() {
            let keys = state.index.between((first, cursor.unwrap_or(end))).rev();
            self.walk(keys, keys_max, state)?
        } else {
            self.walk(state.index.between((cursor.unwrap_or(first), end)), keys_max, state)?
        };
        Ok(self.cursor.is_none())
    }

    /// Visits up to `keys_max` keys. Returns the last one, unless no other can count.
    fn walk<'k>(
        &mut self,
        mut keys: impl Iterator<Item = (&'k Key, &'k KeyEntry)>,
        keys_max: usize,
        state: &State,
    ) -> Result<Option<Key>, Fatal> {
        let reads_values = self.needs_values() && !self.request.count_only;
        let mut block = Vec::with_capacity(BLOCK_KEYS);
        let mut keys_left = keys_max;
        while 0 < keys_left {
            let rows_left = self.picked_max().saturating_sub(self.rows.len()).max(1);
            let wanted = if self.is_counted { rows_left } else { usize::MAX };
            let len = BLOCK_KEYS.min(keys_left).min(wanted);
            block.clear();
            block.extend(keys.by_ref().take(len));
            if reads_values {
                block.iter().for_each(|(_, entry)| entry.draw_near());
            }
            for (key, entry) in &block {
                self.visit(key, entry, state)?;
            }
            if block.len() < len || self.is_complete() {
                return Ok(None);
            }
            keys_left -= len;
        }
        Ok(block.last().map(|&(key, _)| key.clone()))
    }

    /// Whether this is a limited range of the current revision, of which every key that has a
    /// value counts.
    fn is_plain(&self) -> bool {
        let RangeRequest {
            min_mod_revision,
            max_mod_revision,
            min_create_revision,
            max_create_revision,
            ..
        } = *self.request;
        self.at == self.current
            && (self.request.count_only || self.picked_max() != usize::MAX)
            && [min_mod_revision, max_mod_revision, min_create_revision, max_create_revision]
                == [0; 4]
    }

    /// Whether the rest of the keys makes no difference.
    fn is_complete(&self) -> bool {
        self.is_counted && self.picked_max() <= self.rows.len()
    }

    /// Whether keys are visited from the last to the first, so that the limit can be kept
    /// while collecting.
    pub(crate) fn is_descending(&self) -> bool {
        self.request.sort_target == SortTarget::Key && self.request.sort_order == SortOrder::Descend
    }

    /// How many keys have to be collected before they are sorted.
    pub(crate) fn picked_max(&self) -> usize {
        if self.request.sort_target == SortTarget::Key { self.limit() } else { usize::MAX }
    }

    fn limit(&self) -> usize {
        match usize::try_from(self.request.limit) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(limit) => limit,
        }
    }

    fn visit(&mut self, key: &[u8], entry: &KeyEntry, state: &State) -> Result<(), Fatal> {
        let Some(hit) = entry.at(self.at) else { return Ok(()) };
        self.count += i64::from(!self.is_counted);
        if self.request.count_only || !self.passes(key, hit, state)? {
            return Ok(());
        }
        self.matched += usize::from(!self.is_counted);
        if self.rows.len() < self.picked_max() {
            self.pick(key, hit, state)?;
        }
        Ok(())
    }

    /// Whether values have to be collected, be it for sorting.
    pub(crate) fn needs_values(&self) -> bool {
        !self.request.keys_only || self.request.sort_target == SortTarget::Value
    }

    /// Whether the filters let a version pass.
    pub(crate) fn passes(&self, key: &[u8], hit: Hit<'_>, state: &State) -> Result<bool, Fatal> {
        let is_within = |revision: i64, min: i64, max: i64| {
            (min == 0 || min <= revision) && (max == 0 || revision <= max)
        };
        let request = self.request;
        let (min, max) = (request.min_create_revision, request.max_create_revision);
        if !is_within(hit.at.main, request.min_mod_revision, request.max_mod_revision) {
            return Ok(false);
        }
        if min == 0 && max == 0 {
            return Ok(true);
        }
        let create_revision = match hit.newest {
            Some(version) => version.create_revision,
            // Few ask this of history: then it is read, here and now.
            None => complete(&state.tail, &state.segments, key, hit)?.create_revision,
        };
        Ok(is_within(create_revision, min, max))
    }

    fn pick(&mut self, key: &[u8], hit: Hit<'_>, state: &State) -> Result<(), Fatal> {
        let needs_values = self.needs_values();
        match (hit.newest, hit.value) {
            (Some(version), Some(value)) if needs_values => self.push(key, version, value),
            (Some(version), _) if !needs_values => self.push(key, version, &[]),
            (newest, _) => match state.tail.find(hit.place)? {
                Some(event) => self.push(key, event.version, event.value),
                None => {
                    self.fetch_later(hit, state)?;
                    self.push(key, newest.unwrap_or_default(), &[]);
                }
            },
        }
        Ok(())
    }

    fn push(&mut self, key: &[u8], version: Version, value: &[u8]) {
        if self.rows.is_empty() {
            // The others may be as long, or not.
            let bytes = self.expected.saturating_mul(key.len() + value.len());
            self.bytes.reserve(bytes.min(EXPECTED_BYTES_MAX));
        }
        let key = add(&mut self.bytes, key);
        let value = add(&mut self.bytes, value);
        self.rows.push(Row { version, key, value });
    }

    /// Notes that the next of `rows` is on disk, and where.
    fn fetch_later(&mut self, hit: Hit<'_>, state: &State) -> Result<(), Fatal> {
        let Hit { at, place, .. } = hit;
        let is_newest = hit.newest.is_some();
        self.cold.push(Cold { place, at, is_newest, position: self.rows.len() });
        if let Entry::Vacant(vacant) = self.sources.entry(place.segment) {
            vacant.insert(Arc::clone(file_of(&state.segments, place)?));
        }
        Ok(())
    }

    /// Fetches what is not in memory, sorts and cuts. `fetched` gets the values that belong to
    /// newest versions.
    pub(crate) fn finish(mut self, fetched: &mut Vec<Fetched>) -> Result<RangeResponse, Fatal> {
        self.fetch(fetched)?;
        self.sort();
        let limit = self.limit();
        self.rows.truncate(limit);
        let bytes = Bytes::from(self.bytes);
        let keys_only = self.request.keys_only;
        let kvs = self.rows.into_iter().map(|Row { version, key, value }| KeyValue {
            key: bytes.slice(key),
            create_revision: version.create_revision,
            mod_revision: version.at.main,
            version: version.version,
            value: if keys_only { Bytes::new() } else { bytes.slice(value) },
            lease: version.lease,
        });
        Ok(RangeResponse {
            revision: self.current,
            kvs: kvs.collect(),
            more: limit < self.matched,
            count: self.count,
        })
    }

    fn sort(&mut self) {
        let Self { rows, bytes, request, .. } = self;
        let compare = |a: &Row, b: &Row| match request.sort_target {
            // In order already: that is how keys are visited.
            SortTarget::Key | SortTarget::Unknown => Ordering::Equal,
            SortTarget::Version => a.version.version.cmp(&b.version.version),
            SortTarget::Create => a.version.create_revision.cmp(&b.version.create_revision),
            SortTarget::Mod => a.version.at.main.cmp(&b.version.at.main),
            SortTarget::Value => bytes[a.value.clone()].cmp(&bytes[b.value.clone()]),
        };
        if matches!(request.sort_target, SortTarget::Key | SortTarget::Unknown) {
            return;
        }
        // Stable: keys that are equal stay in the order of keys. etcd promises none.
        match request.sort_order {
            SortOrder::Descend => rows.sort_by(|a, b| compare(b, a)),
            SortOrder::None | SortOrder::Ascend | SortOrder::Unknown => rows.sort_by(compare),
        }
    }

    /// Fetches the records that are on disk, in the order in which they lie there.
    fn fetch(&mut self, fetched: &mut Vec<Fetched>) -> Result<(), Fatal> {
        self.cold.sort_unstable_by_key(|cold| cold.place);
        let mut buf = Vec::new();
        for cold in &self.cold {
            let segment = self.sources.get(&cold.place.segment).expect("noted with the record");
            let event = segment.read(cold.place, &mut buf)?;
            let row = &mut self.rows[cold.position];
            if *event.key != self.bytes[row.key.clone()] || event.version.at != cold.at {
                let what = "a record is of another key or revision";
                return Err(segment.damaged(cold.place.offset.into(), what));
            }
            row.version = event.version;
            row.value = add(&mut self.bytes, event.value);
            if cold.is_newest && !self.request.keys_only {
                let (key, value) = (event.key.into(), event.value.into());
                fetched.push(Fetched { key, at: cold.at, value });
            }
        }
        Ok(())
    }
}

/// Appends bytes, and says where they are.
fn add(bytes: &mut Vec<u8>, new: &[u8]) -> Range<usize> {
    let start = bytes.len();
    bytes.extend_from_slice(new);
    start..bytes.len()
}

/// What clients see of a version.
pub(crate) fn key_value(key: &[u8], version: &Version, value: Bytes) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(key),
        create_revision: version.create_revision,
        mod_revision: version.at.main,
        version: version.version,
        value,
        lease: version.lease,
    }
}
