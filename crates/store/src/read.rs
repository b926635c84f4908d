//! Ranges: which keys a request selects, in which order, and how they get their values.
//!
//! A range is read at a fixed revision, so it need not be read at one go. A large one is
//! collected in steps, between which the lock is free; then the values that are not in memory
//! are fetched without any lock. What compaction removes in between is found missing, and the
//! caller starts again or reports that the revision is gone.

use std::{cmp::Ordering, ops::Bound};

use bytes::Bytes;

use crate::{
    error::{Fatal, StoreError},
    events::{Checkpoint, EventStore},
    index::{Hit, KeyEntry},
    key::Key,
    pending::Pending,
    range_end::Span,
    record::{Revision, Version},
    request::{RangeRequest, SortOrder, SortTarget},
    response::{KeyValue, RangeResponse},
    state::State,
};

/// A range that is being answered.
#[derive(Debug)]
pub(crate) struct Selection<'a> {
    request: &'a RangeRequest,
    /// The revision that is read.
    at: i64,
    /// The current revision when the reading began.
    current: i64,
    kvs: Vec<KeyValue>,
    /// Those of `kvs` whose value still has to be fetched.
    cold: Vec<Cold>,
    /// Keys in the range.
    count: i64,
    /// Of these, keys that pass the filters.
    matched: usize,
    /// The last key seen.
    cursor: Option<Key>,
}

/// A value that is on disk.
#[derive(Clone, Copy, Debug)]
struct Cold {
    at: Revision,
    is_newest: bool,
    /// In `kvs`, before that is sorted.
    position: usize,
}

/// A value that was fetched from disk and may be worth keeping.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) key: Bytes,
    pub(crate) at: Revision,
    pub(crate) value: Bytes,
}

/// An event that the index knew was not there: compaction has removed it meanwhile. Holds
/// the first revision that was looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Missing(pub(crate) Revision);

/// The revision that a range outside of transactions reads.
pub(crate) fn readable(asked: i64, state: &Checkpoint) -> Result<i64, StoreError> {
    if asked <= 0 {
        return Ok(state.revision);
    }
    check_revision(asked, state).map(|()| asked)
}

/// The revision that a range in a transaction reads. Only zero means the current one.
pub(crate) fn readable_in_txn(asked: i64, state: &Checkpoint) -> Result<i64, StoreError> {
    if asked != 0 {
        check_revision(asked, state)?;
    }
    // etcd refuses a negative revision as compacted, except -1 in a store that never was:
    // there it is its own mark for "nothing compacted", and reads the current revision.
    Ok(if asked <= 0 { state.revision } else { asked })
}

fn check_revision(asked: i64, state: &Checkpoint) -> Result<(), StoreError> {
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
            kvs: Vec::new(),
            cold: Vec::new(),
            count: 0,
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
            return entry
                .map_or(Ok(()), |entry| self.visit(key, entry, &state.pending))
                .map(|()| true);
        }
        let Some((first, end)) = span.bounds() else { return Ok(true) };
        let cursor = self.cursor.take();
        let cursor = cursor.as_deref().map(Bound::Excluded);
        let mut last = None;
        let mut keys_left = keys_max;
        // Two loops, as the two directions are two types.
        if self.is_descending() {
            for (key, entry) in state.index.between((first, cursor.unwrap_or(end))).rev() {
                if keys_left == 0 {
                    break;
                }
                keys_left -= 1;
                self.visit(key, entry, &state.pending)?;
                last = Some(key);
            }
        } else {
            for (key, entry) in state.index.between((cursor.unwrap_or(first), end)) {
                if keys_left == 0 {
                    break;
                }
                keys_left -= 1;
                self.visit(key, entry, &state.pending)?;
                last = Some(key);
            }
        }
        if keys_left == 0 {
            self.cursor = last.cloned();
        }
        Ok(self.cursor.is_none())
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

    fn visit(&mut self, key: &[u8], entry: &KeyEntry, pending: &Pending) -> Result<(), Fatal> {
        let Some(hit) = entry.at(self.at) else { return Ok(()) };
        self.count += 1;
        if self.request.count_only || !self.passes(&hit.version) {
            return Ok(());
        }
        self.matched += 1;
        if self.kvs.len() < self.picked_max() {
            self.pick(key, hit, pending)?;
        }
        Ok(())
    }

    /// What of a key may be returned.
    pub(crate) fn picks<'e>(&self, entry: &'e KeyEntry) -> Option<Hit<'e>> {
        entry.at(self.at).filter(|hit| !self.request.count_only && self.passes(&hit.version))
    }

    /// Whether values have to be collected, be it for sorting.
    pub(crate) fn needs_values(&self) -> bool {
        !self.request.keys_only || self.request.sort_target == SortTarget::Value
    }

    fn passes(&self, version: &Version) -> bool {
        let is_within = |revision: i64, min: i64, max: i64| {
            (min == 0 || min <= revision) && (max == 0 || revision <= max)
        };
        let request = self.request;
        is_within(version.at.main, request.min_mod_revision, request.max_mod_revision)
            && is_within(
                version.create_revision,
                request.min_create_revision,
                request.max_create_revision,
            )
    }

    fn pick(&mut self, key: &[u8], hit: Hit<'_>, pending: &Pending) -> Result<(), Fatal> {
        let at = hit.version.at;
        let value = match hit.value {
            _ if !self.needs_values() => Bytes::new(),
            Some(value) => value.clone(),
            None => match pending.find(at)? {
                Some(event) => Bytes::copy_from_slice(event.value),
                None => {
                    let position = self.kvs.len();
                    self.cold.push(Cold { at, is_newest: hit.is_newest, position });
                    Bytes::new()
                }
            },
        };
        self.kvs.push(key_value(key, &hit.version, value));
        Ok(())
    }

    /// Fetches what is not in memory, sorts and cuts. `fetched` gets the values that belong to
    /// newest versions.
    pub(crate) fn finish(
        mut self,
        events: &dyn EventStore,
        fetched: &mut Vec<Fetched>,
    ) -> Result<Result<RangeResponse, Missing>, Fatal> {
        if let Err(missing) = self.fetch(events, fetched)? {
            return Ok(Err(missing));
        }
        self.sort();
        self.kvs.truncate(self.limit());
        if self.request.keys_only {
            for kv in &mut self.kvs {
                kv.value = Bytes::new();
            }
        }
        Ok(Ok(RangeResponse {
            revision: self.current,
            more: self.limit() < self.matched,
            count: self.count,
            kvs: self.kvs,
        }))
    }

    fn sort(&mut self) {
        let compare: fn(&KeyValue, &KeyValue) -> Ordering = match self.request.sort_target {
            // In order already: that is how keys are visited.
            SortTarget::Key | SortTarget::Unknown => return,
            SortTarget::Version => |a, b| a.version.cmp(&b.version),
            SortTarget::Create => |a, b| a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => |a, b| a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => |a, b| a.value.cmp(&b.value),
        };
        // Stable: keys that are equal stay in the order of keys. etcd promises none.
        match self.request.sort_order {
            SortOrder::Descend => self.kvs.sort_by(|a, b| compare(b, a)),
            SortOrder::None | SortOrder::Ascend | SortOrder::Unknown => {
                self.kvs.sort_by(compare);
            }
        }
    }

    /// Fetches the values that are on disk, in the order in which they lie there.
    fn fetch(
        &mut self,
        events: &dyn EventStore,
        fetched: &mut Vec<Fetched>,
    ) -> Result<Result<(), Missing>, Fatal> {
        if self.cold.is_empty() {
            return Ok(Ok(()));
        }
        self.cold.sort_unstable_by_key(|cold| cold.at);
        let wanted: Vec<Revision> = self.cold.iter().map(|cold| cold.at).collect();
        let mut found = 0;
        events.read(&wanted, &mut |at, event| {
            let cold = self.cold[at];
            let kv = &mut self.kvs[cold.position];
            if event.key != kv.key {
                let (revision, what) = (event.version.at.main, "event is of another key");
                return Err(Fatal::Corrupt { revision, what });
            }
            kv.value = Bytes::copy_from_slice(event.value);
            if cold.is_newest {
                let (key, value) = (kv.key.clone(), kv.value.clone());
                fetched.push(Fetched { key, at: event.version.at, value });
            }
            found += 1;
            Ok(())
        })?;
        let is_complete = found == wanted.len();
        let first = wanted.first().copied().unwrap_or_default();
        Ok(if is_complete { Ok(()) } else { Err(Missing(first)) })
    }
}

/// The value of an event that is not in the index, under the lock: it must be somewhere.
pub(crate) fn fetch_value(
    pending: &Pending,
    events: &dyn EventStore,
    at: Revision,
) -> Result<Bytes, Fatal> {
    if let Some(event) = pending.find(at)? {
        return Ok(Bytes::copy_from_slice(event.value));
    }
    let mut value = None;
    events.read(&[at], &mut |_, event| {
        value = Some(Bytes::copy_from_slice(event.value));
        Ok(())
    })?;
    value.ok_or_else(|| missing(at))
}

/// The error for an event that must be there and is not.
pub(crate) fn missing(at: Revision) -> Fatal {
    Fatal::Corrupt { revision: at.main, what: "event is missing" }
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
