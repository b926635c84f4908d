//! The disk of a node in a random cluster: a log, snapshots, and what is on its way there.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeInclusive,
    sync::Arc,
};

use kontiki_raft::{
    Entry, EntryId, HardState, Index, LogWrite, Membership, Payload, Recovered, SnapshotMeta,
    WriteBatch,
};

/// What a node's disk holds, and what is on its way there.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    /// From the first entry on. What is purged, or what a snapshot stands for, is remembered
    /// for the sake of the checks; a node never gets it to see.
    pub(crate) log: Vec<Entry>,
    /// The entry before the first that a node gets to see.
    pub(crate) start: EntryId,
    /// Snapshots that were made here or received, with the entries that they stand for.
    pub(crate) snapshots: BTreeMap<Index, (SnapshotMeta, Vec<Entry>)>,
    pub(crate) damaged: Option<RangeInclusive<Index>>,
    /// What the log held each time before it was damaged.
    pub(crate) lost: Vec<Vec<Entry>>,
    pub(crate) queue: VecDeque<LogWrite>,
}

/// The place of an index in a log that begins with the first entry.
pub(crate) fn place(index: Index) -> usize {
    usize::try_from(index.get() - 1).expect("small")
}

impl Disk {
    /// Carries out a write. Says how many entries of other leaders it replaced.
    pub(crate) fn apply(&mut self, batch: &WriteBatch) -> usize {
        let mut overwritten = 0;
        if let Some(hard_state) = batch.hard_state {
            assert!(self.hard_state.term <= hard_state.term, "terms on disk do not go back");
            if self.hard_state.term == hard_state.term {
                assert!(
                    self.hard_state.voted_for.is_none()
                        || self.hard_state.voted_for == hard_state.voted_for,
                    "one vote a term, over all lives"
                );
            }
            self.hard_state = hard_state;
        }
        if batch.is_repaired {
            self.damaged = None;
            self.lost.clear();
        }
        if let Some(meta) = &batch.reset_to {
            self.start = meta.last;
        }
        if let Some(first) = batch.entries.first() {
            assert!(self.start.index < first.id.index, "nothing before the start is written");
            let reset_to = batch.reset_to.as_ref();
            let end = reset_to.map_or(self.log.len(), |meta| place(meta.last.index) + 1);
            assert!(place(first.id.index) <= end, "no hole in the log");
            overwritten = end.saturating_sub(place(first.id.index));
        }
        self.log = self.with(self.log.clone(), batch);
        overwritten
    }

    /// The log after a write.
    fn with(&self, mut log: Vec<Entry>, batch: &WriteBatch) -> Vec<Entry> {
        if let Some(meta) = &batch.reset_to {
            let (_, entries) = &self.snapshots[&meta.last.index];
            log.clone_from(entries);
        }
        if let Some(first) = batch.entries.first() {
            log.truncate(place(first.id.index));
            log.extend(batch.entries.iter().cloned());
        }
        log
    }

    /// The log with all that is on its way to the disk.
    pub(crate) fn written(&self) -> Vec<Entry> {
        self.queue.iter().fold(self.log.clone(), |log, write| self.with(log, &write.batch))
    }

    /// Whether the disk has ever taken this entry in the present place.
    pub(crate) fn has_held(&self, entry: &Entry) -> bool {
        let at = place(entry.id.index);
        std::iter::once(&self.log).chain(&self.lost).any(|log| log.get(at) == Some(entry))
    }

    /// Keeps what the state machine has applied.
    pub(crate) fn snapshot(&mut self, genesis: &Arc<Membership>, applied: Index) -> Option<Index> {
        let entries = self.log.get(..usize::try_from(applied.get()).ok()?)?.to_vec();
        let last = entries.last()?.id;
        let (_, membership) = memberships(genesis, &entries).last()?;
        self.snapshots.insert(last.index, (SnapshotMeta { last, membership }, entries));
        Some(last.index)
    }

    /// The entries from `from` on are damaged; `is_ballot_lost`: the votes of later terms, too.
    pub(crate) fn damage(&mut self, from: Index, is_ballot_lost: bool) {
        let end = Index(self.log.len() as u64);
        self.lost.push(self.log.clone());
        let (first, last) = self.damaged.clone().unwrap_or(from..=end).into_inner();
        self.damaged = Some(first.min(from)..=last.max(end));
        self.log.truncate(place(from));
        if is_ballot_lost {
            let term = self.log.last().map_or(self.start, |entry| entry.id).term;
            self.hard_state = HardState { term, ..HardState::default() };
        }
    }

    /// The state is gone, and what is purged with it.
    pub(crate) fn lose_state(&mut self) {
        self.snapshots.clear();
    }

    pub(crate) fn recovered(&self, genesis: &Arc<Membership>) -> Recovered {
        let mut term_runs: Vec<EntryId> = Vec::new();
        for entry in self.log.iter().filter(|entry| self.start.index < entry.id.index) {
            if term_runs.last().is_none_or(|run| run.term < entry.id.term) {
                term_runs.push(entry.id);
            }
        }
        // A snapshot that the log does not go on from was received, and the log never reset to
        // it. If the log is damaged it may end before one that is as good as any.
        let is_covered = |last: EntryId| {
            let mut logs = std::iter::once(&self.log).chain(&self.lost);
            let is_held =
                logs.any(|log| log.get(place(last.index)).is_some_and(|entry| entry.id == last));
            self.start.index <= last.index && is_held
        };
        let snapshots = self.snapshots.values().map(|(meta, _)| meta.last);
        let applied = snapshots.filter(|&last| is_covered(last)).map(|last| last.index).max();
        Recovered {
            hard_state: self.hard_state,
            log_start: self.start,
            term_runs,
            last: self.log.last().map_or(EntryId::ZERO, |entry| entry.id),
            memberships: memberships(genesis, &self.log).collect(),
            applied: applied.unwrap_or_default(),
            damaged: self.damaged.clone(),
            is_pristine: self.hard_state == HardState::default() && self.log.is_empty(),
            ..Recovered::default()
        }
    }
}

/// The memberships that a log has seen, the first of all included.
pub(crate) fn memberships<'a>(
    genesis: &Arc<Membership>,
    log: &'a [Entry],
) -> impl Iterator<Item = (EntryId, Arc<Membership>)> + use<'a> {
    let first = (EntryId::ZERO, Arc::clone(genesis));
    std::iter::once(first).chain(log.iter().filter_map(|entry| match &entry.payload {
        Payload::Membership(membership) => Some((entry.id, Arc::clone(membership))),
        Payload::Blank | Payload::Command(_) | Payload::Session(_) => None,
    }))
}
