//! What the core knows of its log: the term of every entry, and the recent entries (§5.3).
//!
//! ```text
//!   start.index ──────── cache_start ──────────── last.index
//!        │ terms only: the host │ entries in memory │
//!        │ reads them from disk │                   │
//! ```
//!
//! The terms of the whole log are a few bytes, one [`EntryId`] for the first entry of each
//! term, so every question about a term is answered without storage. Entries that are not yet
//! durable, or not yet committed, always stay in memory.

use std::{collections::VecDeque, ops::RangeInclusive};

use crate::{Entry, EntryId, Index, Term, size::Sizes};

/// The log as the core sees it.
#[derive(Clone, Debug)]
pub(crate) struct LogView {
    /// The entry before the first.
    start: EntryId,
    /// The first entry of each term in the log, ascending in both index and term. The first
    /// run may begin at or before `start`, when part of its term is purged.
    runs: VecDeque<EntryId>,
    /// The last entry, `start` if there is none.
    last: EntryId,
    /// The newest entries, consecutive, up to `last`.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    sizes: Sizes,
}

impl LogView {
    /// The log that the host recovered. Terms must ascend; the caller has checked.
    pub(crate) fn new(start: EntryId, runs: &[EntryId], last: EntryId, sizes: Sizes) -> Self {
        let runs = runs.iter().copied().collect();
        Self { start, runs, last, cache: VecDeque::new(), cache_bytes: 0, sizes }
    }

    /// How large it is.
    pub(crate) fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    pub(crate) fn start(&self) -> EntryId {
        self.start
    }

    pub(crate) fn last(&self) -> EntryId {
        self.last
    }

    /// The term of the entry at `index`, if the log has it or starts right after it.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.start.index {
            return Some(self.start.term);
        }
        if index < self.start.index || self.last.index < index {
            return None;
        }
        let run = self.runs.partition_point(|run| run.index <= index).checked_sub(1)?;
        Some(self.runs[run].term)
    }

    /// The id of the entry at `index`.
    pub(crate) fn id_at(&self, index: Index) -> Option<EntryId> {
        self.term_at(index).map(|term| EntryId { index, term })
    }

    /// The last entry that may agree with a log that holds `id`: the largest index not above
    /// `id.index` whose term is not above `id.term`. Both sides of a conflict use it, so that
    /// each round trip skips a whole term of either log (§5.3).
    pub(crate) fn last_not_after(&self, id: EntryId) -> EntryId {
        let mut index = self.last.index.min(id.index);
        while let Some(at) = self.id_at(index) {
            if at.term <= id.term || index == self.start.index {
                return at;
            }
            // Skip the whole run: it begins with the first entry of its term.
            let run = self.runs.partition_point(|run| run.index <= index);
            index = self.runs[run - 1].index.prev().max(self.start.index);
        }
        self.start
    }

    /// Adds an entry at the end.
    ///
    /// # Panics
    ///
    /// When it does not follow the last one: the callers checked what came from outside.
    pub(crate) fn append(&mut self, entry: Entry) {
        assert!(
            entry.id.index == self.last.index.next() && self.last.term <= entry.id.term,
            "an entry follows the last one: {} after {}",
            entry.id,
            self.last,
        );
        if self.last.term < entry.id.term || self.runs.is_empty() {
            self.runs.push_back(entry.id);
        }
        self.sizes.push(entry.id.index, entry.byte_len());
        self.last = entry.id;
        self.cache_bytes += entry.byte_len();
        self.cache.push_back(entry);
    }

    /// Removes `from` and everything after it.
    pub(crate) fn truncate(&mut self, from: Index) {
        assert!(self.start.index < from, "nothing that is purged is cut: {from}");
        if self.last.index < from {
            return;
        }
        while self.cache.back().is_some_and(|entry| from <= entry.id.index) {
            if let Some(entry) = self.cache.pop_back() {
                self.cache_bytes -= entry.byte_len();
            }
        }
        while self.runs.back().is_some_and(|run| from <= run.index) {
            self.runs.pop_back();
        }
        self.sizes.truncate(from, self.last.index);
        let index = from.prev();
        self.last = self.id_at(index).unwrap_or(self.start);
        assert!(self.last.index == index, "what is left of the log has terms: {index}");
    }

    /// The first index that is in memory, one past the end if none is.
    pub(crate) fn cache_start(&self) -> Index {
        self.cache.front().map_or(self.last.index.next(), |entry| entry.id.index)
    }

    /// The entries of `range` that are in memory from its start on, as many as fit
    /// `bytes_max` but at least one. Empty when the start is not in memory.
    pub(crate) fn cached(&self, range: RangeInclusive<Index>, bytes_max: usize) -> Vec<Entry> {
        let (first, last) = (*range.start(), *range.end());
        let Some(skip) = first.get().checked_sub(self.cache_start().get()) else {
            return Vec::new();
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let mut bytes = 0;
        self.cache
            .iter()
            .skip(skip)
            .take_while(|entry| {
                let is_first = bytes == 0;
                bytes += entry.byte_len();
                entry.id.index <= last && (is_first || bytes <= bytes_max)
            })
            .cloned()
            .collect()
    }

    /// Forgets the oldest entries beyond `bytes_max`, none after `keep_after`.
    pub(crate) fn evict(&mut self, bytes_max: usize, keep_after: Index) {
        while bytes_max < self.cache_bytes
            && self.cache.front().is_some_and(|entry| entry.id.index <= keep_after)
        {
            if let Some(entry) = self.cache.pop_front() {
                self.cache_bytes -= entry.byte_len();
            }
        }
    }

    /// Drops everything: the log starts again after `last`, which a snapshot stands for (§7).
    pub(crate) fn reset(&mut self, last: EntryId) {
        *self = Self::new(last, &[], last, self.sizes.emptied());
    }

    /// Notes that the host has purged the log up to `upto`.
    pub(crate) fn purge(&mut self, upto: EntryId) {
        if upto.index <= self.start.index {
            return;
        }
        self.start = upto;
        self.sizes.purge(upto.index, self.last.index);
        while self.runs.get(1).is_some_and(|run| run.index <= upto.index.next()) {
            self.runs.pop_front();
        }
        if self.last.index == upto.index {
            self.runs.clear();
        }
        while self.cache.front().is_some_and(|entry| entry.id.index <= upto.index) {
            if let Some(entry) = self.cache.pop_front() {
                self.cache_bytes -= entry.byte_len();
            }
        }
    }
}
