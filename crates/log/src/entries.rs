//! Where every entry of the log stands, in memory: 24 bytes an entry.
//!
//! Also the terms of the log as runs, and the memberships in it, since the protocol wants both
//! without reading entries (`Recovered`).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use kontiki_raft::{EntryId, Index, Membership};

use crate::{
    record::{Location, Start},
    segment::Segment,
};

/// What an entry counts for beside its data.
pub(crate) const ENTRY_OVERHEAD_BYTES: u64 = 32;

/// The entries of the log and the segments that hold them. Shared by the writer and the
/// readers; never locked during I/O.
#[derive(Debug)]
pub(crate) struct Entries {
    /// The entry before the first.
    start: EntryId,
    /// The first is at `start.index + 1`.
    locations: VecDeque<Location>,
    /// The first entry of each term, ascending.
    term_runs: VecDeque<EntryId>,
    /// The membership in force at `start`, then those of the log, ascending.
    memberships: Vec<(EntryId, Arc<Membership>)>,
    /// By number. Entries with higher indexes are in the same or in later segments.
    pub(crate) segments: BTreeMap<u32, Arc<Segment>>,
}

impl Entries {
    pub(crate) fn new(start: EntryId, membership: (EntryId, Arc<Membership>)) -> Self {
        Self {
            start,
            locations: VecDeque::new(),
            term_runs: VecDeque::new(),
            memberships: vec![membership],
            segments: BTreeMap::new(),
        }
    }

    pub(crate) const fn start(&self) -> EntryId {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.locations.len()
    }

    pub(crate) fn last(&self) -> EntryId {
        let Some(last) = self.locations.back() else { return self.start };
        let index = Index(self.start.index.get() + self.locations.len() as u64);
        EntryId { index, term: last.term }
    }

    pub(crate) fn get(&self, index: Index) -> Option<&Location> {
        let after_start = index.get().checked_sub(self.start.index.get())?.checked_sub(1)?;
        self.locations.get(usize::try_from(after_start).ok()?)
    }

    /// The id of the entry at `index`, which may be the start.
    pub(crate) fn id(&self, index: Index) -> Option<EntryId> {
        if index == self.start.index {
            return Some(self.start);
        }
        self.get(index).map(|location| EntryId { index, term: location.term })
    }

    pub(crate) fn term_runs(&self) -> Vec<EntryId> {
        self.term_runs.iter().copied().collect()
    }

    pub(crate) fn memberships(&self) -> &[(EntryId, Arc<Membership>)] {
        &self.memberships
    }

    /// The membership in force at `index`.
    pub(crate) fn membership_at(&self, index: Index) -> (EntryId, Arc<Membership>) {
        let after = self.memberships.partition_point(|(id, _)| id.index <= index);
        self.memberships[after.saturating_sub(1)].clone()
    }

    /// Forgets every entry from `index` on.
    pub(crate) fn truncate(&mut self, index: Index) {
        let kept = index.get().saturating_sub(self.start.index.next().get());
        self.locations.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
        while self.term_runs.back().is_some_and(|run| index <= run.index) {
            self.term_runs.pop_back();
        }
        // The first is in force at the start, which nothing truncates.
        while 1 < self.memberships.len()
            && self.memberships.last().is_some_and(|(id, _)| index <= id.index)
        {
            self.memberships.pop();
        }
    }

    /// Adds the entry after the last.
    pub(crate) fn push(&mut self, location: Location, membership: Option<Arc<Membership>>) {
        let id = EntryId { index: self.last().index.next(), term: location.term };
        let is_new_term = self.locations.back().is_none_or(|last| last.term != location.term);
        if is_new_term {
            self.term_runs.push_back(id);
        }
        if let Some(membership) = membership {
            self.memberships.push((id, membership));
        }
        self.locations.push_back(location);
    }

    /// Forgets every entry up to `start`, all of them if the log ends before.
    pub(crate) fn start_at(&mut self, start: EntryId, membership: (EntryId, Arc<Membership>)) {
        let gone = start.index.get().saturating_sub(self.start.index.get());
        let gone = usize::try_from(gone).unwrap_or(usize::MAX).min(self.locations.len());
        self.locations.drain(..gone);
        self.start = start;
        let first = start.index.next();
        self.term_runs.retain(|run| first < run.index);
        if let Some(location) = self.locations.front() {
            self.term_runs.push_front(EntryId { index: first, term: location.term });
            // A run that began at `first` was dropped above and is back; the next is of
            // another term in either case.
        }
        self.memberships.retain(|(id, _)| start.index < id.index);
        self.memberships.insert(0, membership);
    }

    /// Forgets everything and starts anew.
    pub(crate) fn reset(&mut self, start: EntryId, membership: (EntryId, Arc<Membership>)) {
        self.locations.clear();
        self.term_runs.clear();
        self.memberships = vec![membership];
        self.start = start;
    }

    /// The first entry in each segment and about how many bytes of entries follow up to the
    /// next, counted as [`Entry::byte_len`](kontiki_raft::Entry::byte_len) does.
    pub(crate) fn sizes(&self) -> Vec<(Index, u64)> {
        let mut sizes: Vec<(Index, u64)> = Vec::new();
        let mut segment = None;
        for (index, location) in (self.start.index.get() + 1..).map(Index).zip(&self.locations) {
            if segment != Some(location.segment) {
                segment = Some(location.segment);
                sizes.push((index, 0));
            }
            if let Some((_, bytes)) = sizes.last_mut() {
                *bytes += ENTRY_OVERHEAD_BYTES + u64::from(location.len);
            }
        }
        sizes
    }

    /// Forgets everything and goes on at `first`, whose predecessor is not known. Only while
    /// the segments before the first one that is left are not known to be purged.
    pub(crate) fn restart_at(&mut self, first: Index) {
        self.truncate(Index::ZERO);
        self.start = EntryId { index: first.prev(), term: Default::default() };
    }

    /// The first segment that holds something after `upto`, `current` if none does.
    pub(crate) fn first_segment_after(&self, upto: Index, current: u32) -> u32 {
        self.get(upto.max(self.start.index).next()).map_or(current, |location| location.segment)
    }

    /// Where the log starts when the segments before `segment` are gone.
    pub(crate) fn start_without(&self, segment: u32) -> Start {
        let gone = self.locations.partition_point(|location| location.segment < segment);
        let index = Index(self.start.index.get() + gone as u64);
        let at = self.id(index).expect("an entry of this log, or its start");
        Start { at, membership: self.membership_at(index) }
    }
}
