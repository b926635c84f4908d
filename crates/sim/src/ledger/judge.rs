//! The judgement of the ledger: what a node may apply, say, lead and commit.

use kontiki_raft::{
    AppendResult, Body, Entry, EntryId, Envelope, Index, Membership, NodeId, Recovered, Role,
    Status, Term, VoteKind,
};

use super::{Broken, Ledger, index_of, place_of, position};
use crate::{view::LogView, witness::Life};

impl Ledger {
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

    /// A node hands out a snapshot to be applied: of what is committed, and what its log begins
    /// after.
    pub(crate) fn on_apply_snapshot(&mut self, id: NodeId, last: EntryId) -> Result<(), Broken> {
        let is_committed = position(last.index).and_then(|at| self.committed.get(at));
        let witness = self.witness(id);
        let (handed, start) = (witness.life.handed, witness.durable.start());
        // Who has lost its state alone goes on with the log that it has.
        let goes_on = witness.life.is_bereft && start.index <= last.index;
        let is_held = start == last || (goes_on && witness.durable.holds(last));
        if is_committed != Some(&last.term) || last.index <= handed || !is_held {
            return Err(format!(
                "{id} applies a snapshot of {last} after {handed}, with a log after {start}"
            ));
        }
        self.witness_mut(id).life.handed = last.index;
        Ok(())
    }

    /// A state machine applies this entry.
    pub(crate) fn on_applied(&self, id: NodeId, entry: &Entry) -> Result<(), Broken> {
        let committed = position(entry.id.index).and_then(|at| self.committed.get(at));
        if committed != Some(&entry.id.term) {
            return Err(format!("{id} applies {}, but {committed:?} is committed", entry.id));
        }
        if self.known(entry.id).is_none_or(|known| known.entry != *entry) {
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
            let is_other = self
                .known(entry.id)
                .is_some_and(|known| known.prev_term != prev.term || known.entry != *entry);
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
        // A log that was damaged may end before what was applied, until it is refilled.
        let is_damaged = self.witness(id).is_damaged;
        if (status.commit_index < status.applied_index && !is_damaged)
            || status.last.index < status.commit_index
            || (status.applied_index < status.log_start.index
                && life.installs.is_none()
                && !life.is_bereft)
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
            installs: life.installs.filter(|last| status.applied_index < last.index),
            is_stopped: status.soft_state.role == Role::Stopped,
            is_bereft: life.is_bereft && status.applied_index < status.log_start.index,
        };
        for (by, at) in std::mem::take(&mut self.changes) {
            self.on_change(by, at)?;
        }
        Ok(is_ahead.then_some(status.commit_index))
    }

    /// A leader has appended a membership: the one before it must be committed, and so must an
    /// entry of its own term (§6; the bug of single-server changes).
    fn on_change(&mut self, by: NodeId, at: usize) -> Result<(), Broken> {
        let (id, next) = &self.memberships[at];
        let prev = self.witness(by).view.term_at(id.index.prev()).unwrap_or_default();
        let prev = EntryId { index: id.index.prev(), term: prev };
        let (before, former) = &self.memberships[self.membership_at(prev)];
        if self.committed_index() < before.index {
            return Err(format!("{by} appends {next:?} while {before} is not committed"));
        }
        // It may have been deposed without knowing it: then later terms have commits, too.
        if self.committed.binary_search(&id.term).is_err() {
            return Err(format!("{by} appends {next:?} before it has committed in {}", id.term));
        }
        assert_successor(former, next).map_err(|why| {
            format!("{by} appends the membership {next:?} after {former:?}: {why}")
        })?;
        let is_joint = next.is_joint();
        self.membership_changes += 1;
        self.joint_changes += u64::from(is_joint);
        Ok(())
    }

    /// Election Safety and Leader Completeness.
    fn on_elected(&mut self, id: NodeId, term: Term) -> Result<(), Broken> {
        if let Some(other) = self.leaders.insert(term, id) {
            return Err(format!("{id} is elected in term {term}, which {other} has led"));
        }
        if self.witness(id).is_damaged {
            return Err(format!("{id} is elected in term {term} with a damaged log"));
        }
        self.leader_changes += 1;
        let (at, membership) = &self.memberships[self.membership_at(self.witness(id).view.last())];
        let votes = |voter| self.witness(voter).votes.get(&term) == Some(&id);
        if !membership.has_quorum(votes) {
            let votes = self.witnesses.iter().filter(|w| w.votes.get(&term) == Some(&id)).count();
            return Err(format!(
                "{id} is elected in term {term} with {votes} durable votes, no quorum of {at}"
            ));
        }
        // What the poll of the election itself appends is not in the view yet. Votes that come
        // late may elect a leader of a term that is over, who can commit nothing any more: of
        // what later terms have committed it need not know.
        let index = index_of(self.committed_in.partition_point(|&by| by < term));
        let committed = position(index).and_then(|at| self.committed.get(at));
        let view = &self.witness(id).view;
        let holds = |committed: &Term| match view.term_at(index) {
            Some(found) => found == *committed,
            None => index < view.start().index,
        };
        if !committed.is_none_or(holds) {
            let (expected, found) = (committed, view.term_at(index));
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
        // The leader goes by the newest membership of its log; one that it has appended in this
        // very step came after the count.
        let memberships = [self.membership_at(view.last()), self.membership_at(top)];
        let holds = |id| self.witness(id).holds(top);
        if !memberships.iter().any(|&at| self.memberships[at].1.has_quorum(holds)) {
            let holders: Vec<NodeId> =
                self.witnesses.iter().filter(|w| w.holds(top)).map(|w| w.id).collect();
            return Err(format!("{id} commits {top}, which only {holders:?} hold"));
        }
        let mut index = known_upto;
        while index < upto {
            index = index.next();
            let view = &self.witness(id).view;
            let term = view
                .term_at(index)
                .ok_or_else(|| format!("{id} commits {index}, which it does not hold"))?;
            self.committed.push(term);
            self.committed_in.push(leads);
            if let Some(known) = self.known(EntryId { index, term }) {
                let entry = known.entry.clone();
                self.newly_committed.push(entry);
            }
        }
        Ok(())
    }

    /// If all of these disks lost their power now and came back with this, nothing that was
    /// acknowledged may be missing, and what is committed must still be on a quorum.
    pub(crate) fn audit(&self, recovered: &[(NodeId, Recovered)]) -> Result<(), Broken> {
        let Some(&term) = self.committed.last() else { return Ok(()) };
        let top = EntryId { index: self.committed_index(), term };
        let mut holders = Vec::new();
        for (id, recovered) in recovered {
            self.witness(*id).clone().restart(recovered)?;
            if LogView::of(recovered).covers(top) {
                holders.push(*id);
            }
        }
        // A change that is not committed may be in force already, and then it is what counts.
        let memberships = &self.memberships[self.membership_at(top)..];
        if memberships.iter().any(|(_, m)| m.has_quorum(|id| holders.contains(&id))) {
            return Ok(());
        }
        Err(format!("{top} is committed, and only {holders:?} hold it"))
    }
}

/// Whether one membership may follow another in a log (§6, thesis §4.3).
fn assert_successor(former: &Membership, next: &Membership) -> Result<(), &'static str> {
    let voters = |membership: &Membership| membership.voters().collect::<Vec<NodeId>>();
    let (before, after) = (voters(former), voters(next));
    if after.is_empty() {
        return Err("nobody would vote");
    }
    if former.is_joint() && (next.is_joint() || before != after) {
        return Err("a joint membership is followed by the one that it enters");
    }
    if !former.is_joint() && before == after && next.is_joint() {
        return Err("it is joint although no voter changes");
    }
    if !former.is_joint() && before != after && next.outgoing != before {
        return Err("a change of voters has to be joint with those before");
    }
    let is_new = |id: NodeId| former.member(id).is_none() && !former.outgoing.contains(&id);
    let is_given = |id: NodeId| former.next_id <= id && id < next.next_id;
    if !next.members.iter().all(|member| !is_new(member.id) || is_given(member.id)) {
        return Err("an id is given twice");
    }
    Ok(())
}
