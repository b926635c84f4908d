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
//! | a disk keeps what it has acknowledged | [`Ledger::on_restart`] |

use std::collections::BTreeMap;

use kontiki_raft::{
    AppendResult, Body, Entry, EntryId, Envelope, Index, NodeId, Payload, Recovered, Role, Status,
    Term, VoteKind, WriteBatch,
};

use crate::{
    command::Command,
    view::{Delta, LogView},
    witness::{Life, Pending, Witness, assert_hard_state},
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
    /// Who was elected.
    leaders: BTreeMap<Term, NodeId>,
    witnesses: Vec<Witness>,
    /// Requests whose command was committed since the last look.
    newly_committed: Vec<(u64, EntryId)>,
    pub(crate) leader_changes: u64,
    pub(crate) truncations: u64,
    pub(crate) torn_records: u64,
}

/// One entry, as it was first written by anyone.
#[derive(Clone, Copy, Debug)]
struct Known {
    term: Term,
    /// The term of the entry before it. With it, an id stands for a whole prefix.
    prev_term: Term,
    payload: (u8, u32, usize),
    /// The request whose command this is.
    request: Option<u64>,
    /// How many commands there are up to here: the lab scenarios count without blank entries.
    commands: u64,
}

impl Ledger {
    pub(crate) fn new(nodes: u64) -> Self {
        Self {
            entries: Vec::new(),
            committed: Vec::new(),
            leaders: BTreeMap::new(),
            witnesses: (1..=nodes).map(|id| Witness::new(NodeId(id))).collect(),
            newly_committed: Vec::new(),
            leader_changes: 0,
            truncations: 0,
            torn_records: 0,
        }
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

    /// The request behind each entry that was committed since the last call.
    pub(crate) fn take_newly_committed(&mut self) -> Vec<(u64, EntryId)> {
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

    /// The last entry that this node has handed out to be written.
    pub(crate) fn last(&self, id: NodeId) -> EntryId {
        self.witness(id).view.last()
    }

    /// What this node's disk has acknowledged.
    pub(crate) fn durable_last(&self, id: NodeId) -> EntryId {
        self.witness(id).durable.last()
    }

    fn known(&self, id: EntryId) -> Option<&Known> {
        self.entries.get(position(id.index)?)?.iter().find(|known| known.term == id.term)
    }

    /// A node hands out a write. `leads` is the term that it leads, after the poll that made
    /// the write.
    pub(crate) fn on_write(
        &mut self,
        id: NodeId,
        batch: &WriteBatch,
        leads: Option<Term>,
    ) -> Result<(), Broken> {
        for entry in &batch.entries {
            self.learn(id, entry)?;
            // The next entry is learned on top of this one.
            let delta = Delta { first: entry.id.index, terms: vec![entry.id.term] };
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
            assert_hard_state(id, witness.newest, state)?;
            witness.newest = state;
        }
        let first = batch.entries.first().map_or(Index::ZERO, |entry| entry.id.index);
        let terms = batch.entries.iter().map(|entry| entry.id.term).collect();
        let delta = Delta { first, terms };
        witness.waiting.push_back(Pending { delta, hard_state: batch.hard_state });
        Ok(())
    }

    /// Log Matching: whoever writes an entry of this id writes this very entry after the same
    /// entry as everyone else.
    fn learn(&mut self, id: NodeId, entry: &Entry) -> Result<(), Broken> {
        let prev_index = entry.id.index.prev();
        let prev_term = self
            .witness(id)
            .view
            .term_at(prev_index)
            .ok_or_else(|| format!("{id} writes {} after a hole", entry.id))?;
        let prev = EntryId { index: prev_index, term: prev_term };
        let payload = payload_key(&entry.payload, entry.checksum);
        if let Some(known) = self.known(entry.id) {
            if known.prev_term != prev_term || known.payload != payload {
                return Err(format!(
                    "{id} writes another {} than was written before, after {prev}",
                    entry.id
                ));
            }
            return Ok(());
        }
        let request = match &entry.payload {
            Payload::Command(bytes) => Command::decode(bytes).map(|command| command.request),
            Payload::Blank | Payload::Session(_) | Payload::Membership(_) => None,
        };
        let is_command = matches!(entry.payload, Payload::Command(_));
        let before = self
            .commands_upto(prev)
            .ok_or_else(|| format!("{id} writes {} after {prev}, which nobody wrote", entry.id))?;
        let commands = before + u64::from(is_command);
        let at = position(entry.id.index).ok_or_else(|| format!("{id} writes index zero"))?;
        if self.entries.len() <= at {
            self.entries.resize(at + 1, Vec::new());
        }
        let known = Known { term: entry.id.term, prev_term, payload, request, commands };
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
        for pending in std::mem::take(&mut witness.record) {
            witness.acknowledge(&pending)?;
        }
        Ok(witness.durable.last())
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

    /// A new process has opened the log.
    pub(crate) fn on_restart(&mut self, id: NodeId, recovered: &Recovered) -> Result<(), Broken> {
        let is_torn = self.witness_mut(id).restart(recovered)?;
        self.torn_records += u64::from(is_torn);
        Ok(())
    }

    /// If all of these disks lost their power now and came back with this, nothing that was
    /// acknowledged may be missing, and what is committed must still be on a quorum.
    pub(crate) fn audit(&self, recovered: &[Recovered]) -> Result<(), Broken> {
        let mut holders = 0;
        for (witness, recovered) in self.witnesses.iter().zip(recovered) {
            witness.clone().restart(recovered)?;
            let log = LogView::of(recovered);
            let index = self.committed_index();
            let is_purged = index < log.start().index;
            let is_held =
                self.committed.last().is_none_or(|&term| log.term_at(index) == Some(term));
            holders += usize::from(is_purged || is_held);
        }
        if holders * 2 <= self.witnesses.len() {
            let index = self.committed_index();
            return Err(format!("{index} is committed, and only {holders} disks hold it"));
        }
        Ok(())
    }

    /// A node hands out committed entries to be applied.
    pub(crate) fn on_apply(&mut self, id: NodeId, first: Index, last: Index) -> Result<(), Broken> {
        let committed = self.committed_index();
        let witness = self.witness(id);
        if first != witness.life.handed.next() || last < first {
            let handed = witness.life.handed;
            return Err(format!("{id} applies {first} to {last} after {handed}"));
        }
        if committed < last {
            return Err(format!("{id} applies {last}, but only {committed} is committed"));
        }
        if witness.durable.last().index < last {
            let durable = witness.durable.last();
            return Err(format!("{id} applies {last}, but its disk holds only {durable}"));
        }
        self.witness_mut(id).life.handed = last;
        Ok(())
    }

    /// A state machine applies this entry.
    pub(crate) fn on_applied(&self, id: NodeId, entry: &Entry) -> Result<(), Broken> {
        let committed = position(entry.id.index).and_then(|at| self.committed.get(at));
        if committed != Some(&entry.id.term) {
            return Err(format!("{id} applies {}, but {committed:?} is committed", entry.id));
        }
        let payload = payload_key(&entry.payload, entry.checksum);
        if self.known(entry.id).is_none_or(|known| known.payload != payload) {
            return Err(format!("{id} applies another {} than was committed", entry.id));
        }
        Ok(())
    }

    /// A message leaves a node. Whatever it claims must be durable (thesis §3.8).
    pub(crate) fn on_send(&self, id: NodeId, envelope: &Envelope) -> Result<(), Broken> {
        let (term, witness) = (envelope.message.term, self.witness(id));
        if witness.life.is_stopped {
            return Err(format!("{id} speaks after its log has failed (pitfall D4)"));
        }
        if witness.hard_state.term < term {
            let durable = witness.hard_state.term;
            return Err(format!("{id} speaks in term {term}, but only {durable} is durable"));
        }
        match &envelope.message.body {
            Body::RequestVoteReply(reply) if reply.granted && reply.kind != VoteKind::PreVote => {
                witness.assert_voted(reply.for_term, envelope.to)
            }
            Body::RequestVote(request) if request.kind != VoteKind::PreVote => {
                witness.assert_voted(request.for_term, id)
            }
            Body::AppendEntriesReply(reply) => {
                let AppendResult::Match(index) = reply.result else { return Ok(()) };
                self.assert_match(id, term, envelope.to, index)
            }
            Body::AppendEntries(append) => self.assert_append(id, term, append),
            Body::RequestVoteReply(_)
            | Body::RequestVote(_)
            | Body::TimeoutNow { .. }
            | Body::Propose(_)
            | Body::ChangeMembership { .. }
            | Body::ProposeReply(_)
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. } => Ok(()),
        }
    }

    /// A follower claims that its durable log agrees with its leader's up to `index`.
    fn assert_match(&self, id: NodeId, term: Term, to: NodeId, index: Index) -> Result<(), Broken> {
        let durable = &self.witness(id).durable;
        let Some(durable_term) = durable.term_at(index) else {
            let last = durable.last();
            if index < durable.start().index {
                return Ok(()); // purged, so held by all
            }
            return Err(format!("{id} acknowledges {index}, but its disk holds only {last}"));
        };
        let leader = self.witness(to);
        // A leader's log of an older term is not known any more.
        if leader.life.leads == Some(term)
            && leader.view.term_at(index).is_some_and(|expected| expected != durable_term)
        {
            let expected = leader.view.term_at(index);
            return Err(format!(
                "{id} acknowledges {index}, but holds term {durable_term} there, and {to} \
                 holds {expected:?}"
            ));
        }
        Ok(())
    }

    /// A leader sends only what it has, and entries follow each other (pitfall M14).
    fn assert_append(
        &self,
        id: NodeId,
        term: Term,
        append: &kontiki_raft::AppendEntries,
    ) -> Result<(), Broken> {
        if self.leaders.get(&term) != Some(&id) {
            return Err(format!("{id} sends AppendEntries in term {term}, which it does not lead"));
        }
        let mut prev = append.prev;
        for entry in &append.entries {
            if entry.id.index != prev.index.next() || entry.id.term < prev.term {
                return Err(format!("{id} sends {} after {prev}", entry.id));
            }
            if term < entry.id.term {
                return Err(format!("{id} sends {} in the older term {term}", entry.id));
            }
            let is_other = self.known(entry.id).is_some_and(|known| {
                known.prev_term != prev.term
                    || known.payload != payload_key(&entry.payload, entry.checksum)
            });
            if is_other {
                return Err(format!("{id} sends another {} than was written", entry.id));
            }
            prev = entry.id;
        }
        Ok(())
    }

    /// Looks at a node after something has happened to it.
    pub(crate) fn observe(&mut self, status: &Status<'_>) -> Result<Option<Index>, Broken> {
        let id = status.id;
        let life = self.witness(id).life;
        let term = status.soft_state.term;
        if term < life.term {
            return Err(format!("{id} goes back from term {} to {term}", life.term));
        }
        if status.commit_index < life.commit || status.applied_index < life.applied {
            return Err(format!(
                "{id} goes back from commit {} and applied {} to {} and {}",
                life.commit, life.applied, status.commit_index, status.applied_index
            ));
        }
        if status.commit_index < status.applied_index
            || status.last.index < status.commit_index
            || status.applied_index < status.log_start.index
        {
            return Err(format!(
                "{id}: log start {} <= applied {} <= commit {} <= last {} does not hold",
                status.log_start, status.applied_index, status.commit_index, status.last
            ));
        }
        let leads = (status.soft_state.role == Role::Leader).then_some(term);
        if leads.is_some() && leads != life.leads {
            self.on_elected(id, term)?;
        }
        let is_ahead = life.commit < status.commit_index;
        if is_ahead {
            self.on_commit(id, life.commit, status)?;
        }
        self.witness_mut(id).life = Life {
            term,
            leads,
            commit: status.commit_index,
            applied: status.applied_index,
            handed: life.handed,
            is_stopped: status.soft_state.role == Role::Stopped,
        };
        Ok(is_ahead.then_some(status.commit_index))
    }

    /// Election Safety and Leader Completeness.
    fn on_elected(&mut self, id: NodeId, term: Term) -> Result<(), Broken> {
        if let Some(other) = self.leaders.insert(term, id) {
            return Err(format!("{id} is elected in term {term}, which {other} has led"));
        }
        self.leader_changes += 1;
        let votes = self.witnesses.iter().filter(|w| w.votes.get(&term) == Some(&id)).count();
        if votes * 2 <= self.witnesses.len() {
            return Err(format!("{id} is elected in term {term} with {votes} durable votes"));
        }
        // What the poll of the election itself appends is not in the view yet.
        let index = self.committed_index();
        let view = &self.witness(id).view;
        let holds = |committed: &Term| match view.term_at(index) {
            Some(found) => found == *committed,
            None => index < view.start().index,
        };
        if !self.committed.last().is_none_or(holds) {
            let (expected, found) = (self.committed.last(), view.term_at(index));
            return Err(format!(
                "{id} is elected in term {term} without the committed {index}: \
                 {expected:?} is committed, it holds {found:?}"
            ));
        }
        Ok(())
    }

    /// Everything that a node takes for committed must be what all others do; the first who
    /// does must be a leader that has a quorum of disks behind an entry of its own term.
    fn on_commit(&mut self, id: NodeId, from: Index, status: &Status<'_>) -> Result<(), Broken> {
        let upto = status.commit_index;
        let known_upto = self.committed_index();
        // By Log Matching the last one stands for all before it.
        let compared = upto.min(known_upto);
        let view = &self.witness(id).view;
        if from < compared && view.start().index <= compared {
            let (mine, theirs) = (view.term_at(compared), self.committed[place_of(compared)]);
            if mine.is_some_and(|mine| mine != theirs) {
                return Err(format!(
                    "{id} commits {compared} of term {mine:?}, but it is committed with \
                     term {theirs}"
                ));
            }
        }
        if upto <= known_upto {
            return Ok(());
        }
        let term = view.term_at(upto).unwrap_or_default();
        let top = EntryId { index: upto, term };
        // It may have committed first and then, before anyone looked, have stepped down.
        let leads = match status.soft_state.role {
            Role::Leader => Some(status.soft_state.term),
            _ => self.witness(id).life.leads,
        };
        let Some(leads) = leads else {
            return Err(format!("{id} does not lead, and is the first to commit {top}"));
        };
        if term != leads {
            return Err(format!(
                "{id} leads term {leads} and commits {top} of another term by counting (§5.4.2)"
            ));
        }
        let holders = self.witnesses.iter().filter(|witness| witness.durable.holds(top)).count();
        if holders * 2 <= self.witnesses.len() {
            return Err(format!("{id} commits {top}, which {holders} disks hold"));
        }
        let mut index = known_upto;
        while index < upto {
            index = index.next();
            let view = &self.witness(id).view;
            let term = view
                .term_at(index)
                .ok_or_else(|| format!("{id} commits {index}, which it does not hold"))?;
            self.committed.push(term);
            let entry = EntryId { index, term };
            if let Some(request) = self.known(entry).and_then(|known| known.request) {
                self.newly_committed.push((request, entry));
            }
        }
        Ok(())
    }
}

/// What tells one payload from another: kind, checksum, length.
fn payload_key(payload: &Payload, checksum: u32) -> (u8, u32, usize) {
    let kind = match payload {
        Payload::Blank => 0,
        Payload::Command(_) => 1,
        Payload::Membership(_) => 2,
        Payload::Session(_) => 3,
    };
    (kind, checksum, payload.byte_len())
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
