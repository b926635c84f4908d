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
    picked: Vec<Picked>,
    /// Keys in the range.
    count: i64,
    /// Of these, keys that pass the filters.
    matched: usize,
    /// The last key seen.
    cursor: Option<Box<[u8]>>,
}

/// A key of the answer.
#[derive(Debug)]
struct Picked {
    kv: KeyValue,
    /// Where the value still has to be fetched from.
    cold: Option<Cold>,
}

#[derive(Clone, Copy, Debug)]
struct Cold {
    at: Revision,
    is_newest: bool,
}

/// A value that was fetched from disk and may be worth keeping.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) key: Bytes,
    pub(crate) at: Revision,
    pub(crate) value: Bytes,
}

/// An event that the index knew was not there: compaction has removed it meanwhile.
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
        Self { request, at, current, picked: Vec::new(), count: 0, matched: 0, cursor: None }
    }

    /// The revision that is read.
    pub(crate) fn at(&self) -> i64 {
        self.at
    }

    /// Looks at up to `keys_max` more keys. Returns whether that was all.
    pub(crate) fn advance(&mut self, state: &State, keys_max: usize) -> Result<bool, Fatal> {
        let Some((first, end)) = Span::new(&self.request.key, &self.request.range_end).bounds()
        else {
            return Ok(true);
        };
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
    fn is_descending(&self) -> bool {
        self.request.sort_target == SortTarget::Key && self.request.sort_order == SortOrder::Descend
    }

    /// How many keys have to be collected before they are sorted.
    fn picked_max(&self) -> usize {
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
        if self.picked.len() < self.picked_max() {
            let picked = self.pick(key, hit, pending)?;
            self.picked.push(picked);
        }
        Ok(())
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

    fn pick(&self, key: &[u8], hit: Hit<'_>, pending: &Pending) -> Result<Picked, Fatal> {
        let sorts_by_value = self.request.sort_target == SortTarget::Value;
        let at = hit.version.at;
        let (value, cold) = match hit.value {
            _ if self.request.keys_only && !sorts_by_value => (Bytes::new(), None),
            Some(value) => (value.clone(), None),
            None => match pending.find(at)? {
                Some(event) => (Bytes::copy_from_slice(event.value), None),
                None => (Bytes::new(), Some(Cold { at, is_newest: hit.is_newest })),
            },
        };
        Ok(Picked { kv: key_value(key, &hit.version, value), cold })
    }

    /// Sorts, cuts, and fetches what is not in memory. `fetched` gets the values that belong
    /// to newest versions.
    pub(crate) fn finish(
        mut self,
        events: &dyn EventStore,
        fetched: &mut Vec<Fetched>,
    ) -> Result<Result<RangeResponse, Missing>, Fatal> {
        let request = self.request;
        if request.sort_target == SortTarget::Value
            && let Err(missing) = self.fetch(events, fetched)?
        {
            return Ok(Err(missing));
        }
        self.sort();
        self.picked.truncate(self.limit());
        if request.keys_only {
            for picked in &mut self.picked {
                picked.kv.value = Bytes::new();
            }
        }
        if let Err(missing) = self.fetch(events, fetched)? {
            return Ok(Err(missing));
        }
        Ok(Ok(RangeResponse {
            revision: self.current,
            more: self.limit() < self.matched,
            count: self.count,
            kvs: self.picked.into_iter().map(|picked| picked.kv).collect(),
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
            SortOrder::Descend => self.picked.sort_by(|a, b| compare(&b.kv, &a.kv)),
            SortOrder::None | SortOrder::Ascend | SortOrder::Unknown => {
                self.picked.sort_by(|a, b| compare(&a.kv, &b.kv));
            }
        }
    }

    /// Fetches the values that are on disk, in the order in which they lie there.
    fn fetch(
        &mut self,
        events: &dyn EventStore,
        fetched: &mut Vec<Fetched>,
    ) -> Result<Result<(), Missing>, Fatal> {
        let mut cold: Vec<&mut Picked> =
            self.picked.iter_mut().filter(|picked| picked.cold.is_some()).collect();
        if cold.is_empty() {
            return Ok(Ok(()));
        }
        let at = |picked: &&mut Picked| picked.cold.map_or(Revision::default(), |cold| cold.at);
        cold.sort_by_key(at);
        let wanted: Vec<Revision> = cold.iter().map(at).collect();
        events.read(&wanted, &mut |position, event| {
            let Picked { kv, cold } = &mut *cold[position];
            if event.key != kv.key {
                let (revision, what) = (event.version.at.main, "event is of another key");
                return Err(Fatal::Corrupt { revision, what });
            }
            kv.value = Bytes::copy_from_slice(event.value);
            if cold.take().is_some_and(|cold| cold.is_newest) {
                let (key, value) = (kv.key.clone(), kv.value.clone());
                fetched.push(Fetched { key, at: event.version.at, value });
            }
            Ok(())
        })?;
        let missing = cold.iter().find_map(|picked| picked.cold);
        Ok(missing.map_or(Ok(()), |cold| Err(Missing(cold.at))))
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
