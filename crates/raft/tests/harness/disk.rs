//! The disk of a node in a script: what is written and what is durable, kept apart.

use std::collections::VecDeque;

use kontiki_raft::{
    Entry, EntryId, HardState, Index, LogWrite, Membership, Payload, Recovered, SnapshotMeta, Term,
    WriteBatch, WriteTicket,
};
use std::{ops::RangeInclusive, sync::Arc};

/// What a disk holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) hard_state: HardState,
    /// The entry before the first.
    pub(crate) start: EntryId,
    /// The newest membership of what is purged or replaced by a snapshot; of the birth if none.
    pub(crate) membership: Option<(EntryId, Arc<Membership>)>,
    pub(crate) entries: Vec<Entry>,
    /// Entries that were here once and are not whole any more.
    pub(crate) damaged: Option<RangeInclusive<Index>>,
}

impl Image {
    fn write(&mut self, batch: &WriteBatch) {
        if let Some(hard_state) = batch.hard_state {
            self.hard_state = hard_state;
        }
        if batch.is_repaired {
            self.damaged = None;
        }
        if let Some(meta) = &batch.reset_to {
            self.entries.clear();
            self.start = meta.last;
            self.membership = Some((meta.last, Arc::clone(&meta.membership)));
        }
        if let Some(first) = batch.entries.first() {
            assert!(
                first.id.index <= self.last().index.next(),
                "{} is written to a log that ends at {}",
                first.id,
                self.last(),
            );
            self.entries.retain(|entry| entry.id.index < first.id.index);
            self.entries.extend(batch.entries.iter().cloned());
        }
    }

    pub(crate) fn last(&self) -> EntryId {
        self.entries.last().map_or(self.start, |entry| entry.id)
    }

    /// The entries of `range` that are here.
    pub(crate) fn read(&self, range: &RangeInclusive<Index>) -> Vec<Entry> {
        self.entries.iter().filter(|entry| range.contains(&entry.id.index)).cloned().collect()
    }

    /// The memberships that stand in the log.
    fn memberships(&self) -> impl Iterator<Item = (EntryId, Arc<Membership>)> {
        self.entries.iter().filter_map(|entry| match &entry.payload {
            Payload::Membership(membership) => Some((entry.id, Arc::clone(membership))),
            Payload::Blank | Payload::Command(_) | Payload::Session(_) => None,
        })
    }

    /// The membership in force at `index`, unless it is that of the birth.
    pub(crate) fn membership_at(&self, index: Index) -> Option<(EntryId, Arc<Membership>)> {
        let in_log = self.memberships().take_while(|(at, _)| at.index <= index).last();
        in_log.or_else(|| self.membership.clone())
    }

    /// Removes everything up to and including `upto`.
    fn purge(&mut self, upto: EntryId) {
        self.membership = self.membership_at(upto.index);
        self.entries.retain(|entry| upto.index < entry.id.index);
        self.start = upto;
    }
}

/// A disk that keeps apart what a crash would leave and what it would take.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// What a crash leaves.
    pub(crate) durable: Image,
    /// With all writes that were handed out.
    pub(crate) written: Image,
    /// Handed out and not durable.
    pending: VecDeque<(WriteBatch, WriteTicket)>,
    /// The snapshot files, whole and durable, oldest first.
    pub(crate) snapshots: Vec<SnapshotMeta>,
}

impl Disk {
    pub(crate) fn new(image: Image) -> Self {
        Self { durable: image.clone(), written: image, ..Self::default() }
    }

    pub(crate) fn submit(&mut self, write: LogWrite) {
        self.written.write(&write.batch);
        self.pending.push_back((write.batch, write.ticket));
    }

    /// Makes the oldest write durable.
    pub(crate) fn persist(&mut self) -> Option<(WriteBatch, WriteTicket)> {
        let (batch, ticket) = self.pending.pop_front()?;
        self.durable.write(&batch);
        Some((batch, ticket))
    }

    /// The oldest write fails; nothing of it is on the disk.
    pub(crate) fn fail(&mut self) -> Option<WriteTicket> {
        self.pending.pop_front().map(|(_, ticket)| ticket)
    }

    pub(crate) fn crash(&mut self) {
        self.pending.clear();
        self.written = self.durable.clone();
    }

    pub(crate) fn purge(&mut self, upto: EntryId) {
        self.durable.purge(upto);
        self.written.purge(upto);
    }

    /// The disk does not give back the entries from `from` on; with `term`, neither what it held
    /// of votes after that term.
    pub(crate) fn damage(&mut self, from: Index, term: Option<Term>) {
        let log = &mut self.durable;
        let first = log.damaged.as_ref().map_or(from, |damaged| from.min(*damaged.start()));
        let last = log.damaged.as_ref().map_or(log.last().index, |damaged| *damaged.end());
        log.damaged = Some(first..=last.max(log.last().index));
        log.entries.retain(|entry| entry.id.index < from);
        if let Some(term) = term {
            log.hard_state = HardState { term, ..HardState::default() };
        }
        self.written = self.durable.clone();
    }

    /// The snapshot that a restart may begin with: one that the log goes on from, for what a
    /// crash left of a reset that never happened stands for nothing.
    pub(crate) fn covered_snapshot(&self) -> Option<&SnapshotMeta> {
        let log = &self.durable;
        self.snapshots.iter().rfind(|meta| {
            meta.last == log.start || log.entries.iter().any(|entry| entry.id == meta.last)
        })
    }

    /// What a node starts from.
    pub(crate) fn recover(&self, genesis: &Arc<Membership>, applied: Index) -> Recovered {
        let mut term_runs: Vec<EntryId> = Vec::new();
        for entry in &self.durable.entries {
            if term_runs.last().is_none_or(|run| run.term != entry.id.term) {
                term_runs.push(entry.id);
            }
        }
        let first = self.durable.membership.clone();
        let first = first.unwrap_or_else(|| (EntryId::ZERO, Arc::clone(genesis)));
        Recovered {
            hard_state: self.durable.hard_state,
            log_start: self.durable.start,
            term_runs,
            last: self.durable.last(),
            memberships: [first].into_iter().chain(self.durable.memberships()).collect(),
            applied,
            damaged: self.durable.damaged.clone(),
            is_pristine: self.durable.last() == EntryId::ZERO
                && self.durable.hard_state == HardState::default(),
            ..Recovered::default()
        }
    }
}
