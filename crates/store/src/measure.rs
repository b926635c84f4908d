//! How large the answer to one command may become.
//!
//! A command is applied by every replica, under the lock, and its answer is built in memory by
//! each. Without a bound one deletion of everything with `prev_kv`, or a transaction that reads
//! everything a hundred times, would take down all of them, and again at every restart.
//!
//! So what ranges would return is added up before the first write, and too much is refused. All
//! replicas must decide alike: only keys and the lengths of values count, never where a value
//! happens to be, and the bound is the same for all. Ranges are measured on the state before the
//! command. Operations on one key do not count: the limits of a request bound how many there are
//! and how large each value is.

use crate::{
    error::{Fatal, StoreError},
    events::EventStore,
    index::{Hit, KeyEntry},
    key::Key,
    range_end::Span,
    read::{Selection, missing},
    record::Revision,
    request::{DeleteRangeRequest, RangeRequest, RequestOp},
    state::State,
};

/// What the ranges of one command may return, in bytes: far more than a client reads at one go,
/// and little enough for any server. It is part of what a command means: replicas with another
/// number would come to another state, so it is no setting.
pub(crate) const ANSWER_BYTES_MAX: usize = 256 << 20;

/// What a key costs beyond its bytes and those of its value: about what it takes in memory. The
/// same number on every platform.
const KEY_OVERHEAD: usize = 128;

/// How many lengths are asked of the disk at once.
const BATCH: usize = 1024;

/// What is left for the answer to one command.
pub(crate) struct Measure<'a> {
    state: &'a State,
    events: &'a dyn EventStore,
    left: usize,
    /// Values whose length only the disk knows.
    cold: Vec<Revision>,
}

impl State {
    /// Refuses operations, which run one after the other, that would return too much.
    pub(crate) fn check_answer<'a>(
        &self,
        events: &dyn EventStore,
        ops: impl IntoIterator<Item = &'a RequestOp>,
    ) -> Result<(), StoreError> {
        let mut measure = Measure::new(self, events);
        for op in ops {
            match op {
                RequestOp::Range(range) => measure.range(range)?,
                RequestOp::DeleteRange(delete) => measure.delete_range(delete)?,
                RequestOp::Put(_) | RequestOp::Txn(_) | RequestOp::Empty => {}
            }
        }
        measure.finish()
    }
}

impl<'a> Measure<'a> {
    pub(crate) fn new(state: &'a State, events: &'a dyn EventStore) -> Self {
        Self { state, events, left: state.answer_bytes_max, cold: Vec::new() }
    }

    fn range(&mut self, request: &RangeRequest) -> Result<(), StoreError> {
        if request.count_only {
            return Ok(());
        }
        let current = self.state.checkpoint.revision;
        let at = if request.revision <= 0 { current } else { request.revision };
        let selection = Selection::new(request, at, current);
        let Some(span) = several(&request.key, &request.range_end) else { return Ok(()) };
        let keys = self.state.index.span(span);
        if selection.is_descending() {
            self.keys(keys.rev(), &selection)
        } else {
            self.keys(keys, &selection)
        }
    }

    fn keys<'k>(
        &mut self,
        keys: impl Iterator<Item = (&'k Key, &'k KeyEntry)>,
        selection: &Selection<'_>,
    ) -> Result<(), StoreError> {
        let hits = keys.filter_map(|(key, entry)| Some((key, selection.picks(entry)?)));
        for (key, hit) in hits.take(selection.picked_max()) {
            self.take(key.len())?;
            if selection.needs_values() {
                self.value(hit)?;
            }
        }
        Ok(())
    }

    pub(crate) fn delete_range(&mut self, request: &DeleteRangeRequest) -> Result<(), StoreError> {
        let Some(span) = several(&request.key, &request.range_end) else { return Ok(()) };
        if !request.prev_kv {
            return Ok(());
        }
        for (key, entry) in self.state.index.span(span) {
            if let Some(hit) = entry.at(i64::MAX) {
                self.take(key.len())?;
                self.value(hit)?;
            }
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<(), StoreError> {
        self.ask_disk()
    }

    fn value(&mut self, hit: Hit<'_>) -> Result<(), StoreError> {
        if let Some(value) = hit.value {
            return self.take_bytes(value.len());
        }
        if let Some(event) = self.state.pending.find(hit.version.at)? {
            return self.take_bytes(event.value.len());
        }
        self.cold.push(hit.version.at);
        if self.cold.len() < BATCH { Ok(()) } else { self.ask_disk() }
    }

    fn ask_disk(&mut self) -> Result<(), StoreError> {
        let mut cold = std::mem::take(&mut self.cold);
        cold.sort_unstable();
        let (mut bytes, mut found) = (0_usize, 0);
        self.events.read(&cold, &mut |_, event| {
            bytes = bytes.saturating_add(event.value.len());
            found += 1;
            Ok::<(), Fatal>(())
        })?;
        if found != cold.len() {
            return Err(missing(cold.first().copied().unwrap_or_default()).into());
        }
        self.take_bytes(bytes)
    }

    fn take(&mut self, key_len: usize) -> Result<(), StoreError> {
        self.take_bytes(KEY_OVERHEAD.saturating_add(key_len))
    }

    fn take_bytes(&mut self, bytes: usize) -> Result<(), StoreError> {
        self.left = self.left.checked_sub(bytes).ok_or(StoreError::TooLarge)?;
        Ok(())
    }
}

/// The span, unless it is of one key.
fn several<'a>(key: &'a [u8], range_end: &'a [u8]) -> Option<Span<'a>> {
    let span = Span::new(key, range_end);
    (!matches!(span, Span::One(_))).then_some(span)
}
