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
    error::StoreError,
    index::{Hit, KeyEntry},
    key::Key,
    range_end::Span,
    read::Selection,
    record::HEADER_BYTES,
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

/// What is left for the answer to one command.
pub(crate) struct Measure<'a> {
    state: &'a State,
    left: usize,
}

impl State {
    /// Refuses operations, which run one after the other, that would return too much.
    pub(crate) fn check_answer<'a>(
        &self,
        ops: impl IntoIterator<Item = &'a RequestOp>,
    ) -> Result<(), StoreError> {
        let mut measure = Measure::new(self);
        for op in ops {
            match op {
                RequestOp::Range(range) => measure.range(range)?,
                RequestOp::DeleteRange(delete) => measure.delete_range(delete)?,
                RequestOp::Put(_) | RequestOp::Txn(_) | RequestOp::Empty => {}
            }
        }
        Ok(())
    }
}

impl<'a> Measure<'a> {
    pub(crate) fn new(state: &'a State) -> Self {
        Self { state, left: state.answer_bytes_max }
    }

    fn range(&mut self, request: &RangeRequest) -> Result<(), StoreError> {
        if request.count_only {
            return Ok(());
        }
        let current = self.state.position.revision;
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
        let mut left = selection.picked_max();
        for (key, entry) in keys {
            if left == 0 {
                break;
            }
            let Some(hit) = entry.at(selection.at()) else { continue };
            if !selection.passes(key, hit, self.state)? {
                continue;
            }
            left -= 1;
            self.take(key.len())?;
            if selection.needs_values() {
                self.value(key, hit)?;
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
                self.value(key, hit)?;
            }
        }
        Ok(())
    }

    /// The length of a value follows from that of its record, wherever it is.
    fn value(&mut self, key: &[u8], hit: Hit<'_>) -> Result<(), StoreError> {
        self.take_bytes(hit.place.record_len().saturating_sub(HEADER_BYTES + key.len()))
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
