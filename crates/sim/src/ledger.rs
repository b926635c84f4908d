//! The invariants (Figure 3 and more), checked after every event.
//!
//! The ledger stands outside of all nodes. It hears of every write that a node hands out, of
//! every completed `fdatasync`, of every message that leaves, and looks at the status of a
//! node after everything that happens to it. It trusts no bookkeeping of the nodes: whether
//! something is committed is counted on what the *disks* have acknowledged, disks of crashed
//! nodes included, and after each restart what a disk really held is compared with what it had
//! acknowledged.
//!
//! All checks are incremental: an event costs as much as it changed.
//!
//! | invariant | where |
//! | --- | --- |
//! | at most one leader in a term (§5.2) | [`Ledger::observe`] |
//! | one durable vote a term over all lives (§5.2) | [`Ledger::on_durable`] |
//! | a leader has a quorum of durable votes (§5.2) | [`Ledger::observe`] |
//! | same index and term, same entry and same prefix (§5.3) | [`Ledger::on_write`] |
//! | a leader does not truncate its log (§5.3) | [`Ledger::on_write`] |
//! | an elected leader holds all that is committed (§5.4) | [`Ledger::observe`] |
//! | committed on a quorum of disks, in the leader's term (§5.4.2) | [`Ledger::observe`] |
//! | committed entries never change; indexes never fall | [`Ledger::observe`] |
//! | applied is committed and durable here, in order (§5.4.3) | [`Ledger::on_apply`] |
//! | nothing is claimed that is not durable (thesis §3.8) | [`Ledger::on_send`] |
//! | a disk keeps what it has acknowledged, unless it was damaged on purpose | [`Ledger::on_restart`] |
//! | memberships follow each other by the rules, one at a time (§6) | [`Ledger::observe`] |
//! | a log is dropped only for a snapshot that it does not hold (§7) | [`Ledger::on_write`] |

mod judge;

use std::{collections::BTreeMap, sync::Arc};

use kontiki_raft::{
    Entry, EntryId, Index, Membership, NodeId, Payload, Recovered, SnapshotMeta, Term, WriteBatch,
};

use crate::{
    truth::command_of,
    view::Delta,
    witness::{Life, Pending, Witness},
};

/// A sentence that says which rule was broken, and how.
pub(crate) type Broken = String;

/// What all nodes of a cluster have done, as seen from outside.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// By index, from 1: every entry that was ever written there, one for each term.
    entries: Vec<Vec<Known>>,
    /// By index, from 1: the terms of the committed entries. Only grows.
    committed: Vec<Term>,
    /// Beside each the term of the leader that has committed it, which may be a later one.
    committed_in: Vec<Term>,
    /// Who was elected.
    leaders: BTreeMap<Term, NodeId>,
    witnesses: Vec<Witness>,
    /// Every membership that stands in some log, and where. The first is the one of birth.
    memberships: Vec<(EntryId, Arc<Membership>)>,
    /// Memberships that were written and not judged yet: by whom, and their place above.
    changes: Vec<(NodeId, usize)>,
    /// Committed since the last look.
    newly_committed: Vec<Entry>,
    pub(crate) leader_changes: u64,
    pub(crate) truncations: u64,
    pub(crate) torn_records: u64,
    pub(crate) membership_changes: u64,
    pub(crate) joint_changes: u64,
    /// Restarts with a log that had lost acknowledged entries.
    pub(crate) damaged_restarts: u64,
    /// Logs that are whole again.
    pub(crate) repairs: u64,
}

/// One entry, as it was first written by anyone.
#[derive(Clone, Debug)]
struct Known {
    entry: Entry,
    /// The term of the entry before it. With it, an id stands for a whole prefix.
    prev_term: Term,
    /// The request whose command this is.
    request: Option<u64>,
    /// How many commands there are up to here: the lab scenarios count without blank entries.
    commands: u64,
    /// The membership in force from here on.
    membership: usize,
}

impl Ledger {
    pub(crate) fn new(genesis: Arc<Membership>) -> Self {
        Self {
            memberships: vec![(EntryId::ZERO, genesis)],
            changes: Vec::new(),
            membership_changes: 0,
            joint_changes: 0,
            damaged_restarts: 0,
            repairs: 0,
            entries: Vec::new(),
            committed: Vec::new(),
            committed_in: Vec::new(),
            leaders: BTreeMap::new(),
            witnesses: Vec::new(),
            newly_committed: Vec::new(),
            leader_changes: 0,
            truncations: 0,
            torn_records: 0,
        }
    }

    /// A node that has never run.
    pub(crate) fn add(&mut self, id: NodeId) {
        self.witnesses.push(Witness::new(id));
    }

    fn witness(&self, id: NodeId) -> &Witness {
        &self.witnesses[place(id)]
    }

    fn witness_mut(&mut self, id: NodeId) -> &mut Witness {
        &mut self.witnesses[place(id)]
    }

    /// The last committed index.
    pub(crate) fn committed_index(&self) -> Index {
        index_of(self.committed.len())
    }

    /// What was committed since the last call, in order.
    pub(crate) fn take_newly_committed(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.newly_committed)
    }

    /// How many commands a log holds up to this entry, itself included.
    pub(crate) fn commands_upto(&self, id: EntryId) -> Option<u64> {
        if id == EntryId::ZERO {
            return Some(0);
        }
        self.known(id).map(|known| known.commands)
    }

    /// The request whose command this entry carries.
    pub(crate) fn request_at(&self, id: EntryId) -> Option<u64> {
        self.known(id)?.request
    }

    /// The newest membership that is committed, and its entry.
    pub(crate) fn committed_membership(&self) -> &(EntryId, Arc<Membership>) {
        let last =
            self.committed.last().map(|&term| EntryId { index: self.committed_index(), term });
        &self.memberships[self.membership_at(last.unwrap_or(EntryId::ZERO))]
    }

    /// A node takes this for the membership in force: it must stand in its log, unless it is the
    /// one that it was born with.
    pub(crate) fn assert_membership(
        &self,
        id: NodeId,
        at: EntryId,
        membership: &Membership,
    ) -> Result<(), Broken> {
        let is_known = self.memberships.iter().any(|(known, m)| *known == at && **m == *membership);
        // What came with a snapshot counts from the last entry of that.
        let is_of_snapshot = || {
            self.snapshot_meta(at.index)
                .is_some_and(|m| m.last == at && *m.membership == *membership)
        };
        if is_known || at == EntryId::ZERO || is_of_snapshot() {
            return Ok(());
        }
        Err(format!("{id} goes by a membership of {at} that nobody has written: {membership:?}"))
    }

    /// A client is told that this membership is committed.
    pub(crate) fn assert_committed_membership(
        &self,
        id: NodeId,
        at: EntryId,
        membership: &Membership,
    ) -> Result<(), Broken> {
        self.assert_membership(id, at, membership)?;
        let committed = position(at.index).and_then(|at| self.committed.get(at));
        if membership.is_joint() || committed != Some(&at.term) {
            return Err(format!("{id} says that the membership of {at} is in force for good"));
        }
        Ok(())
    }

    /// The membership in force after this entry.
    fn membership_at(&self, id: EntryId) -> usize {
        self.known(id).map_or(0, |known| known.membership)
    }

    /// What a snapshot up to this committed entry stands for.
    pub(crate) fn snapshot_meta(&self, index: Index) -> Option<SnapshotMeta> {
        let term = *self.committed.get(position(index)?)?;
        let last = EntryId { index, term };
        let (_, membership) = &self.memberships[self.membership_at(last)];
        Some(SnapshotMeta { last, membership: Arc::clone(membership) })
    }

    /// Every membership that a quorum may have to be found for: the committed one, and those that
    /// stand behind it in the logs of these nodes.
    pub(crate) fn memberships_of(
        &self,
        nodes: impl Iterator<Item = NodeId>,
    ) -> Vec<Arc<Membership>> {
        let mut found = vec![Arc::clone(&self.committed_membership().1)];
        for id in nodes {
            let witness = self.witness(id);
            for last in [witness.view.last(), witness.durable.last()] {
                let (_, membership) = &self.memberships[self.membership_at(last)];
                if !found.contains(membership) {
                    found.push(Arc::clone(membership));
                }
            }
        }
        found
    }

    /// The bytes of the entries of a node's log after this index.
    pub(crate) fn bytes_after(&self, id: NodeId, index: Index) -> usize {
        let view = &self.witness(id).view;
        let from = index.max(view.start().index).get() + 1;
        (from..=view.last().index.get())
            .filter_map(|index| {
                let index = Index(index);
                let id = EntryId { index, term: view.term_at(index)? };
                Some(self.known(id)?.entry.byte_len())
            })
            .sum()
    }

    /// The last entry that this node has handed out to be written.
    pub(crate) fn last(&self, id: NodeId) -> EntryId {
        self.witness(id).view.last()
    }

    /// What this node's disk has acknowledged.
    pub(crate) fn durable_last(&self, id: NodeId) -> EntryId {
        self.witness(id).durable.last()
    }

    fn known(&self, id: EntryId) -> Option<&Known> {
        self.entries.get(position(id.index)?)?.iter().find(|known| known.entry.id.term == id.term)
    }

    /// A node hands out a write. `leads` is the term that it leads, after the poll that made
    /// the write.
    pub(crate) fn on_write(
        &mut self,
        id: NodeId,
        batch: &WriteBatch,
        leads: Option<Term>,
    ) -> Result<(), Broken> {
        if let Some(meta) = &batch.reset_to {
            self.on_reset(id, meta)?;
        }
        for entry in &batch.entries {
            self.learn(id, entry, leads)?;
            // The next entry is learned on top of this one.
            let terms = vec![entry.id.term];
            let delta = Delta { reset_to: None, first: entry.id.index, terms };
            let witness = self.witness_mut(id);
            if entry.id.index <= witness.view.last().index {
                let cut = witness.view.last();
                if leads.is_some() && leads == witness.life.leads {
                    return Err(format!("{id} leads and cuts its log from {} on", entry.id));
                }
                if !witness.view.holds(entry.id) || cut.index != entry.id.index {
                    self.truncations += 1;
                }
            }
            self.witness_mut(id).view.write(&delta)?;
        }
        let witness = self.witness_mut(id);
        if let Some(state) = batch.hard_state {
            witness.assert_hard_state(witness.newest, state)?;
            witness.newest = state;
        }
        let first = batch.entries.first().map_or(Index::ZERO, |entry| entry.id.index);
        let terms = batch.entries.iter().map(|entry| entry.id.term).collect();
        let reset_to = batch.reset_to.as_ref().map(|meta| meta.last);
        let delta = Delta { reset_to, first, terms };
        let hard_state = batch.hard_state;
        witness.waiting.push_back(Pending { delta, hard_state, is_repaired: batch.is_repaired });
        Ok(())
    }

    /// A log is dropped for a snapshot (§7): of what is committed, and what it does not hold. If
    /// it held the last entry of the snapshot, it would hold others after it, acknowledged ones.
    fn on_reset(&mut self, id: NodeId, meta: &SnapshotMeta) -> Result<(), Broken> {
        if self.snapshot_meta(meta.last.index).as_ref() != Some(meta) {
            return Err(format!("{id} takes over {meta:?}, which nothing committed stands for"));
        }
        let witness = self.witness_mut(id);
        if witness.view.covers(meta.last) {
            return Err(format!("{id} drops its log for {}, which it holds", meta.last));
        }
        witness.view.reset(meta.last);
        witness.purged = witness.purged.max(meta.last.index);
        witness.life.installs = Some(meta.last);
        Ok(())
    }

    /// Log Matching: whoever writes an entry of this id writes this very entry after the same
    /// entry as everyone else.
    fn learn(&mut self, id: NodeId, entry: &Entry, leads: Option<Term>) -> Result<(), Broken> {
        let prev_index = entry.id.index.prev();
        let prev_term = self
            .witness(id)
            .view
            .term_at(prev_index)
            .ok_or_else(|| format!("{id} writes {} after a hole", entry.id))?;
        let prev = EntryId { index: prev_index, term: prev_term };
        if let Some(known) = self.known(entry.id) {
            if known.prev_term != prev_term || known.entry != *entry {
                return Err(format!(
                    "{id} writes another {} than was written before, after {prev}",
                    entry.id
                ));
            }
            return Ok(());
        }
        let request = command_of(entry).map(|command| command.request);
        let is_command = matches!(entry.payload, Payload::Command(_) | Payload::Session(_));
        let before = self
            .commands_upto(prev)
            .ok_or_else(|| format!("{id} writes {} after {prev}, which nobody wrote", entry.id))?;
        let commands = before + u64::from(is_command);
        let at = position(entry.id.index).ok_or_else(|| format!("{id} writes index zero"))?;
        if self.entries.len() <= at {
            self.entries.resize(at + 1, Vec::new());
        }
        let mut membership = self.membership_at(prev);
        if let Payload::Membership(next) = &entry.payload {
            membership = self.memberships.len();
            self.memberships.push((entry.id, Arc::clone(next)));
            if leads == Some(entry.id.term) {
                self.changes.push((id, membership));
            }
        }
        let entry = entry.clone();
        let known = Known { entry, prev_term, request, commands, membership };
        self.entries[at].push(known);
        Ok(())
    }

    /// The first `count` of the writes that wait go to the disk as one record.
    pub(crate) fn on_record(&mut self, id: NodeId, count: usize) {
        let witness = self.witness_mut(id);
        let count = count.min(witness.waiting.len());
        let waiting = witness.waiting.drain(..count);
        witness.record.extend(waiting);
    }

    /// The record is durable.
    pub(crate) fn on_durable(&mut self, id: NodeId) -> Result<EntryId, Broken> {
        let witness = self.witness_mut(id);
        let mut repairs = 0;
        for pending in std::mem::take(&mut witness.record) {
            repairs += u64::from(pending.is_repaired);
            witness.acknowledge(&pending)?;
        }
        let last = witness.durable.last();
        self.repairs += repairs;
        Ok(last)
    }

    /// The log is about to be purged. If that fails half way, it may start anywhere before.
    pub(crate) fn on_purge(&mut self, id: NodeId, upto: EntryId) -> Result<(), Broken> {
        if self.committed.get(position(upto.index).unwrap_or(usize::MAX)) != Some(&upto.term) {
            return Err(format!("{id} purges up to {upto}, which is not committed"));
        }
        let witness = self.witness_mut(id);
        witness.purged = witness.purged.max(upto.index);
        Ok(())
    }

    /// The log was purged. True if it starts later than before.
    pub(crate) fn on_purged(&mut self, id: NodeId, upto: EntryId) -> Result<bool, Broken> {
        let witness = self.witness_mut(id);
        if witness.purged < upto.index {
            return Err(format!("{id} was to purge up to {}, and purged {upto}", witness.purged));
        }
        let is_later = witness.durable.start().index < upto.index;
        witness.view.purge(upto);
        witness.durable.purge(upto);
        Ok(is_later)
    }

    /// The process is gone, and with it all that was not written.
    pub(crate) fn on_down(&mut self, id: NodeId) {
        let witness = self.witness_mut(id);
        witness.waiting.clear();
        witness.life = Life::default();
    }

    /// The disk of this node is damaged on purpose: it may lose what it has acknowledged.
    pub(crate) fn on_damage(&mut self, id: NodeId) {
        self.witness_mut(id).may_be_damaged = true;
    }

    /// Whether the node has lost acknowledged entries and not got them back.
    pub(crate) fn is_damaged(&self, id: NodeId) -> bool {
        self.witness(id).is_damaged || self.witness(id).may_be_damaged
    }

    /// A new process has opened the log.
    pub(crate) fn on_restart(&mut self, id: NodeId, recovered: &Recovered) -> Result<(), Broken> {
        let is_torn = self.witness_mut(id).restart(recovered)?;
        self.torn_records += u64::from(is_torn);
        self.damaged_restarts += u64::from(recovered.damaged.is_some());
        Ok(())
    }
}

fn place(id: NodeId) -> usize {
    usize::try_from(id.get().saturating_sub(1)).unwrap_or(usize::MAX)
}

fn place_of(index: Index) -> usize {
    position(index).unwrap_or(usize::MAX)
}

/// Where an index stands in a vector that begins with index 1.
fn position(index: Index) -> Option<usize> {
    usize::try_from(index.get().checked_sub(1)?).ok()
}

fn index_of(count: usize) -> Index {
    Index(u64::try_from(count).unwrap_or(u64::MAX))
}
