//! What a [`Replica`](crate::Replica) remembers of its log: the terms, and the memberships that
//! are not applied yet. Both are told by the writes of the core, so they are exact.

use std::sync::Arc;

use kontiki_raft::{Entry, EntryId, Index, Membership, Payload, Term};

/// The terms of a log: the first entry of each.
#[derive(Debug)]
pub(crate) struct TermRuns(Vec<EntryId>);

impl TermRuns {
    pub(crate) fn new(runs: Vec<EntryId>) -> Self {
        Self(runs)
    }

    /// The whole log was dropped, and starts after this entry.
    pub(crate) fn reset(&mut self, last: EntryId) {
        self.0.clear();
        self.0.push(last);
    }

    /// Entries were written. The first may replace what was there.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.0.last().is_some_and(|run| first.id.index <= run.index) {
            self.0.pop();
        }
        for entry in entries {
            if self.0.last().is_none_or(|run| run.term != entry.id.term) {
                self.0.push(entry.id);
            }
        }
    }

    /// Forgets terms that have no entry after `upto`.
    pub(crate) fn purge(&mut self, upto: Index) {
        let gone = self.0.partition_point(|run| run.index <= upto.next()).saturating_sub(1);
        self.0.drain(..gone);
    }

    /// The term of the entry at `index`, if it is in the log.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        let runs = self.0.partition_point(|run| run.index <= index);
        self.0.get(runs.checked_sub(1)?).map(|run| run.term)
    }
}

/// The memberships of the log from the newest applied one on, ascending.
#[derive(Debug)]
pub(crate) struct Memberships(Vec<(EntryId, Arc<Membership>)>);

impl Memberships {
    pub(crate) fn new(memberships: Vec<(EntryId, Arc<Membership>)>) -> Self {
        Self(memberships)
    }

    /// Entries were written. The first may replace what was there.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.0.last().is_some_and(|(at, _)| first.id.index <= at.index) {
            self.0.pop();
        }
        for entry in entries {
            if let Payload::Membership(membership) = &entry.payload {
                self.0.push((entry.id, Arc::clone(membership)));
            }
        }
    }

    /// The whole log was dropped, and starts after this entry with this membership.
    pub(crate) fn reset(&mut self, last: EntryId, membership: Arc<Membership>) {
        self.0.clear();
        self.0.push((last, membership));
    }

    /// Entries up to `last` are applied. Tells of each membership among them, and of the one
    /// before, and forgets all but the newest.
    pub(crate) fn on_applied(
        &mut self,
        last: Index,
        mut tell: impl FnMut(EntryId, &Arc<Membership>),
    ) {
        let applied = self.0.partition_point(|(at, _)| at.index <= last);
        self.0.iter().take(applied).for_each(|(at, membership)| tell(*at, membership));
        self.0.drain(..applied.saturating_sub(1));
    }
}
