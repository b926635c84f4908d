//! Changes of the membership, as they come into the log and as a leader sees them through (§6,
//! thesis §4).
//!
//! One change is under way at a time, and none before the leader has committed in its own term
//! (pitfall B1). Whatever else it takes, the leader does by itself, and any leader does it, so
//! that a change of leader loses nothing (pitfall M1): it leaves a joint membership once that is
//! committed, promotes learners that have caught up, writes down the data directories of its
//! peers, and goes when it is not a voter any more.

use std::sync::Arc;

use crate::{
    Body, ChangeSet, Entry, EntryId, Index, MemberRole, Membership, NodeId, Payload, Promotion,
    ProposalId, ProposalOutcome, RaftCore, Rejection, Round, StoreId, Timestamp, core::State,
    progress::Progress, reconfigure, replicate::Leading,
};

/// Data directories that are known and not written down yet: a few more than there are members.
const PEER_STORES_MAX: usize = 64;

impl RaftCore {
    /// Adds an entry to the log. A membership is in force from here on, committed or not
    /// (thesis §4.1).
    pub(crate) fn take_entry(&mut self, entry: Entry) {
        let id = entry.id;
        let membership = match &entry.payload {
            Payload::Membership(membership) => Some(Arc::clone(membership)),
            Payload::Blank | Payload::Command(_) | Payload::Session(_) => None,
        };
        self.writes.note_entries(id.index);
        self.log.append(entry);
        if let Some(membership) = membership {
            self.memberships.push(id, membership);
            self.sync_progress();
        }
    }

    /// Removes `from` and everything after it from the log. The membership that was in force
    /// before is in force again.
    pub(crate) fn cut_log(&mut self, from: Index) {
        self.log.truncate(from);
        self.memberships.truncate(from);
    }

    /// Lets the leader's view follow the membership: who is new begins a session of its own, so
    /// that no answer to an earlier one counts (pitfall M5). Who was removed is still sent to
    /// for a while, to learn of it.
    fn sync_progress(&mut self) {
        // The entry that adds a server is the first that it is sent.
        let before = self.log.last().index.prev();
        let (id, now) = (self.config.id, self.now);
        let replicas = self.memberships.current().replicas();
        let leaves_at = now + self.config.election_timeout;
        let State::Leader(leading) = &mut self.state else { return };
        leading.retiring_since = None;
        for (peer, progress) in &mut leading.progress {
            progress.leaves_at = (!replicas.contains(peer)).then_some(leaves_at);
        }
        for peer in replicas {
            if peer != id && !leading.progress.contains_key(&peer) {
                let session = leading.next_session();
                leading.progress.insert(peer, Progress::new(session, before, Round::default()));
            }
        }
        // Who counts has changed, so what waits for a quorum may have one (pitfall R4).
        self.confirm_reads();
    }

    /// Whether this node may have to lead: it is a voter, or the change that removes it is not
    /// known to be committed. That one may stand in its log alone, and then nobody else can win
    /// (thesis §4.2.2).
    pub(crate) fn is_electable(&self) -> bool {
        let (id, at) = (self.config.id, self.memberships.current_at());
        let was_voter = self.memberships.previous().is_some_and(|former| former.is_voter(id));
        self.memberships.current().is_voter(id) || (self.commit_index < at.index && was_voter)
    }

    /// Somebody wants another membership, here or at the leader.
    pub(crate) fn on_change_membership(&mut self, id: ProposalId, change: ChangeSet) {
        let outcome = match self.reachable_leader() {
            Some(leader) if leader == self.config.id => match self.try_change(&change) {
                Ok(at) => ProposalOutcome::Appended { id, at },
                Err(why) => ProposalOutcome::Rejected { id, why },
            },
            Some(_) => {
                self.forwarded.push_change(id, change, self.now);
                return; // its outcome comes from the leader
            }
            None => ProposalOutcome::Rejected { id, why: Rejection::NotLeader { leader: None } },
        };
        self.proposal_outcomes.push(outcome);
    }

    /// A follower passes on a change.
    pub(crate) fn on_forwarded_change(
        &mut self,
        from: NodeId,
        number: ProposalId,
        change: &ChangeSet,
    ) {
        let State::Leader(leading) = &mut self.state else { return };
        if leading.seen.entry(from).or_default().insert(number) {
            let result = self.try_change(change);
            self.send(from, Body::ProposeReply(vec![(number, result)]));
        }
    }

    fn try_change(&mut self, change: &ChangeSet) -> Result<EntryId, Rejection> {
        let State::Leader(leading) = &self.state else {
            return Err(Rejection::NotLeader { leader: None });
        };
        if let Some(transfer) = &leading.transfer {
            return Err(Rejection::Transferring { to: transfer.to });
        }
        // Before that, another leader may have a change that we know nothing of, and both could
        // be decided without each other (pitfall B1).
        if self.commit_index < leading.blank {
            return Err(Rejection::NotReady);
        }
        let (at, current) = (self.memberships.current_at(), self.memberships.current());
        if self.commit_index < at.index || current.is_joint() {
            return Err(Rejection::MembershipInProgress { at });
        }
        if change.expect.is_some_and(|expected| !self.is_in_force_since(expected)) {
            return Err(Rejection::MembershipChanged { now: at });
        }
        let next = reconfigure::change(current, change, |id| leading.is_caught_up(id))
            .map_err(Rejection::InvalidChange)?;
        if next.is_joint() && !self.would_decide(leading, &reconfigure::leave(&next)) {
            return Err(Rejection::NoQuorum);
        }
        let payload = Payload::Membership(Arc::new(next));
        self.check_size(payload.byte_len())?;
        Ok(self.append(payload))
    }

    /// Whether the membership has not changed since this entry, which this log holds. Whoever was
    /// born from a snapshot knows an entry that its membership was in force at, and not the one
    /// that it is from.
    fn is_in_force_since(&self, entry: EntryId) -> bool {
        let at = self.memberships.current_at();
        entry == at || (at.index < entry.index && self.log.id_at(entry.index) == Some(entry))
    }

    /// Whether enough voters of `next` were heard of lately for it to decide anything. If not, the
    /// change would begin and not end, and nothing could be decided meanwhile: a server that is
    /// alive must not be removed while another one is dead.
    fn would_decide(&self, leading: &Leading, next: &Membership) -> bool {
        next.has_quorum(|voter| {
            let heard_at = leading.progress.get(&voter).map(|to| Timestamp(to.acked_round.0));
            let is_alive = |at: Timestamp| self.now < at + self.config.election_timeout;
            voter == self.config.id || heard_at.is_some_and(is_alive)
        })
    }

    /// What a leader does about the membership by itself.
    pub(crate) fn maybe_reconfigure(&mut self) {
        self.forget_removed();
        if let Some(next) = self.next_membership() {
            self.append(Payload::Membership(Arc::new(next)));
            self.maybe_commit(); // it may need fewer now
        } else {
            self.maybe_retire();
        }
    }

    /// The membership to be appended next, if it is time for one.
    fn next_membership(&self) -> Option<Membership> {
        let State::Leader(leading) = &self.state else { return None };
        let current = self.memberships.current();
        if !self.is_membership_settled(leading) || leading.transfer.is_some() {
            return None;
        }
        if current.is_joint() {
            return Some(reconfigure::leave(current));
        }
        if !current.is_voter(self.config.id) {
            return None; // whoever leads next will see to it
        }
        self.due_promotion(leading).or_else(|| self.with_peer_stores())
    }

    /// Whether the membership in force is committed, and known to be by an entry of this term:
    /// what was only recovered may still be replaced, and what one half alone holds is not
    /// decided (pitfall M2).
    fn is_membership_settled(&self, leading: &Leading) -> bool {
        leading.blank.max(self.memberships.current_at().index) <= self.commit_index
    }

    /// The membership with the first learner that is due as a voter. It has kept up for an
    /// election timeout, so the cluster does not wait for it once it counts (thesis §4.2.1).
    fn due_promotion(&self, leading: &Leading) -> Option<Membership> {
        let current = self.memberships.current();
        current.members.iter().find_map(|member| {
            match member.role {
                MemberRole::Learner {
                    promotion: Promotion::WhenCaughtUp | Promotion::Replacing(_),
                } => {}
                MemberRole::Learner { promotion: Promotion::ByHand }
                | MemberRole::Voter
                | MemberRole::Leaving => return None,
            }
            let since = leading.progress.get(&member.id)?.caught_up_since?;
            if self.now < since + self.config.election_timeout {
                return None;
            }
            let promote = ChangeSet::one(crate::Change::Promote(member.id));
            // One that there is no room for stays a learner.
            reconfigure::change(current, &promote, |_| true).ok()
        })
    }

    /// The membership with the data directories that were met and are not written down.
    fn with_peer_stores(&self) -> Option<Membership> {
        let current = self.memberships.current();
        let is_new = |id| self.peer_stores.contains_key(&id);
        if !current.members.iter().any(|member| member.store.is_none() && is_new(member.id)) {
            return None;
        }
        let mut next = Membership::clone(current);
        for member in next.members.iter_mut().filter(|member| member.store.is_none()) {
            member.store = self.peer_stores.get(&member.id).copied();
        }
        Some(next)
    }

    /// The transport has met a peer. What it was first met with is written down, so that one
    /// that comes back with an empty disk is known for it (pitfall M7).
    pub(crate) fn on_peer_store(&mut self, id: NodeId, store: StoreId) {
        let member = self.memberships.current().member(id);
        let is_known = member.is_some_and(|member| member.store.is_some());
        if !is_known && self.peer_stores.len() < PEER_STORES_MAX {
            self.peer_stores.entry(id).or_insert(store);
        }
    }

    /// A server that was removed has heard of it, or is not waited for any longer.
    fn forget_removed(&mut self) {
        let (at, now) = (self.memberships.current_at().index, self.now);
        let State::Leader(leading) = &mut self.state else { return };
        let is_to_go = |progress: &Progress| {
            let has_heard = at <= progress.match_index() && at <= progress.told_commit;
            progress.leaves_at.is_some_and(|leaves_at| leaves_at <= now || has_heard)
        };
        let progress = leading.progress.iter();
        let gone: Vec<NodeId> =
            progress.filter(|(_, progress)| is_to_go(progress)).map(|(&id, _)| id).collect();
        for id in gone {
            leading.seen.remove(&id);
            if let Some(progress) = leading.progress.remove(&id) {
                self.snapshot_effects.extend(progress.sending.cancel(id));
            }
        }
    }

    /// A leader that is not a voter any more leads on, without counting itself, until the change
    /// is committed and a quorum has heard so. Then it hands over: if it just went, the others
    /// would have to find out by a timeout (thesis §4.2.2, pitfall B18).
    fn maybe_retire(&mut self) {
        let is_voter = self.memberships.current().is_voter(self.config.id);
        let State::Leader(leading) = &self.state else { return };
        if is_voter || !self.is_membership_settled(leading) || leading.transfer.is_some() {
            return;
        }
        let (newest, heard) = (leading.round, self.quorum_round(leading));
        match leading.retiring_since {
            None => {
                self.broadcast_heartbeat();
                if let State::Leader(leading) = &mut self.state {
                    leading.retiring_since = Some(newest);
                }
            }
            Some(since) if since < heard => {
                self.on_transfer_leadership(None);
                if matches!(&self.state, State::Leader(leading) if leading.transfer.is_none()) {
                    self.become_follower(self.term, None); // there is nobody to hand over to
                }
            }
            Some(_) => {}
        }
    }
}
