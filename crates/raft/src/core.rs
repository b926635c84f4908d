//! The core: one node's share of the protocol, and the control flow of it (Figure 2).
//!
//! [`RaftCore::step`] takes in one thing that happened, [`RaftCore::poll`] says what to do about
//! all of them. What a role does is in the module of its section: `election` (§5.2, §5.4.1),
//! `append` and `replicate` (§5.3, §5.4.2), `read` (thesis §6.4), `propose`, `transfer` (thesis
//! §3.10). Here is only who is asked.
//!
//! Nothing here reads a clock or a disk, draws chance from elsewhere than its seed, or fails.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    Body, Config, Effects, EntryId, Envelope, HardState, Index, Input, LogWrite, Message, NodeId,
    Outbound, ProposalOutcome, ReadOutcome, Recovered, Rejection, Report, RestoreError, Role,
    SnapshotEffect, SoftState, Status, StoreId, Term, Timestamp, VoteKind, WriteBatch, WriteTicket,
    append::Following,
    apply::Applying,
    bereft::check_state,
    damage::{Damage, check_damage},
    election::{Election, owes_nobody},
    log::LogView,
    membership::VOTERS_MAX,
    memberships::Memberships,
    propose::Forwarded,
    read::ForwardedReads,
    replicate::Leading,
    rng::Rng,
    size::Sizes,
    storage::Storage,
    write::Writes,
};

/// One node's share of the protocol, as a value: inputs in, effects out.
///
/// The contract with the host, in four lines:
///
/// 1. Messages may be sent whenever you like: what has to wait for the disk is not among them.
/// 2. Writes are carried out in order, then their ticket is handed back with
///    [`Input::Persisted`].
/// 3. Entries are applied in order: they are committed *and* durable here.
/// 4. [`Input::Timeout`] is due at [`next_deadline`](Self::next_deadline). Being late costs
///    liveness, never safety.
#[derive(Clone, Debug)]
pub struct RaftCore {
    pub(crate) config: Config,
    pub(crate) rng: Rng,
    pub(crate) now: Timestamp,
    pub(crate) term: Term,
    pub(crate) voted_for: Option<NodeId>,
    /// Committed up to here. Never falls, not even over a restart below what was applied.
    pub(crate) commit_index: Index,
    pub(crate) log: LogView,
    pub(crate) memberships: Memberships,
    /// Data directories of peers as they were first met, to be written down by a leader.
    pub(crate) peer_stores: BTreeMap<NodeId, StoreId>,
    pub(crate) state: State,
    pub(crate) writes: Writes,
    pub(crate) applying: Applying,
    pub(crate) forwarded: Forwarded,
    pub(crate) forwarded_reads: ForwardedReads,
    /// Until then this node owes loyalty to a leader that it has heard from: no vote and no
    /// campaign (thesis §4.2.3, §6.4.1).
    pub(crate) loyal_until: Timestamp,
    /// When to stand for election, unless a leader is heard from.
    pub(crate) election_deadline: Timestamp,
    /// Every voter holds the log durably up to here, as far as this node knows.
    pub(crate) held_by_all: Index,
    /// Messages that may leave.
    pub(crate) ready: Vec<Outbound>,
    /// Messages that speak for a term or vote that is not durable yet, each with the number of
    /// the write that it waits for (thesis §3.8).
    waiting: Vec<(u64, Envelope)>,
    pub(crate) proposal_outcomes: Vec<ProposalOutcome>,
    pub(crate) read_outcomes: Vec<ReadOutcome>,
    pub(crate) snapshot_effects: Vec<SnapshotEffect>,
    /// The log lost what it had, and is not whole yet.
    pub(crate) damage: Option<Damage>,
    pub(crate) storage: Storage,
    told: Option<SoftState>,
    /// The entry of the membership that the host was told last.
    told_membership: Option<EntryId>,
    /// When this node last handed over because of a priority.
    pub(crate) last_yield: Option<Timestamp>,
}

/// What this node is, with what only that role needs. A role that ends takes all of its
/// bookkeeping with it: no flag survives a step-down (pitfall B17).
#[derive(Clone, Debug)]
pub(crate) enum State {
    Follower(Following),
    PreCandidate(Election),
    Candidate(Election),
    Leader(Box<Leading>),
    Stopped,
}

impl RaftCore {
    /// Restores a node from what its disk holds. It always starts as a follower (pitfall R10).
    ///
    /// # Errors
    ///
    /// When the settings or what was recovered contradict themselves.
    pub fn new(config: Config, recovered: Recovered, now: Timestamp) -> Result<Self, RestoreError> {
        config.validate().map_err(RestoreError::Config)?;
        check(&recovered)?;
        check_damage(config.id, &recovered)?;
        check_state(config.id, &recovered)?;
        let owes_nobody = owes_nobody(config.id, &recovered);
        let Recovered { hard_state, log_start, term_runs, last, applied, .. } = recovered;
        let memberships = Memberships::new(recovered.memberships).ok_or(RestoreError::NoVoters)?;
        let ends = (log_start.index, last.index);
        let sizes = Sizes::new(config.log_bytes_max, &recovered.log_sizes, ends);
        let mut rng = Rng::new(config.seed);
        // What was applied or purged had been committed, whatever the hint says (pitfall D8).
        // Of a damaged log only what is left of it is.
        let commit_index = hard_state.commit.max(applied).min(last.index).max(log_start.index);
        // An earlier life of this node may have promised its loyalty a moment ago (pitfall R9).
        let loyal_until = if owes_nobody { now } else { now + config.election_timeout };
        let mut core = Self {
            now,
            term: hard_state.term,
            voted_for: hard_state.voted_for,
            commit_index,
            log: LogView::new(log_start, &term_runs, last, sizes),
            memberships,
            peer_stores: BTreeMap::new(),
            state: State::Follower(Following::default()),
            writes: Writes::new(last.index),
            applying: Applying::new(applied, log_start.index),
            forwarded: Forwarded::new(rng.next_u64()),
            forwarded_reads: ForwardedReads::new(rng.next_u64()),
            loyal_until,
            election_deadline: now,
            held_by_all: log_start.index,
            ready: Vec::new(),
            waiting: Vec::new(),
            proposal_outcomes: Vec::new(),
            read_outcomes: Vec::new(),
            snapshot_effects: Vec::new(),
            damage: recovered
                .damaged
                .map(|range| Damage::new(range, rng.next_u64() ^ now.0, applied)),
            storage: Storage::default(),
            told: None,
            told_membership: None,
            last_yield: None,
            rng,
            config,
        };
        core.arm_first_election();
        core.assert_invariants();
        Ok(core)
    }

    /// Takes in one thing that happened. Cheap, cannot fail, asks for nothing: call it for all
    /// that waits, then [`poll`](Self::poll) once.
    ///
    /// `now` must not be earlier than in the call before; if it is, time stands still.
    pub fn step(&mut self, now: Timestamp, input: Input) {
        self.now = self.now.max(now);
        if matches!(self.state, State::Stopped) {
            self.refuse(input);
            return;
        }
        let before = (self.term, self.commit_index);
        match input {
            Input::Message { from, message } => self.on_message(from, message),
            Input::Propose(proposals) => self.on_propose(proposals),
            Input::Read { id, mode } => self.on_read(id, mode),
            Input::Persisted(ticket) => self.on_persisted(&ticket),
            Input::WriteFailed(ticket) => self.on_write_failed(&ticket),
            Input::Applied { upto, durable } => self.on_applied(upto, durable),
            Input::EntriesUnavailable { why, .. } => self.on_entries_unavailable(why),
            Input::Purged { upto } => self.on_purged(upto),
            Input::PeerUnreachable { id } => self.on_unreachable(id),
            Input::NotSent(envelope) => self.on_not_sent(&envelope.message.body),
            Input::ChangeMembership { id, change } => self.on_change_membership(id, change),
            Input::PeerStore { id, store } => self.on_peer_store(id, store),
            Input::SnapshotReceived { from, meta } => self.on_snapshot_received(from, meta),
            Input::SnapshotSent { to, session, sent } => self.on_snapshot_sent(to, session, sent),
            Input::StorageSpace { is_full } => self.on_storage_space(is_full),
            Input::Campaign => self.on_campaign(),
            Input::TransferLeadership { to } => self.on_transfer_leadership(to),
            Input::Timeout => self.on_timeout(),
        }
        self.maybe_commit();
        self.maybe_recover();
        self.maybe_reconfigure();
        self.assert_progressed(before);
        self.assert_invariants();
    }

    /// Puts everything that has to be done since the last call into `effects`, coalesced: one
    /// write, one reply to the leader, as few messages to each follower as their bounds allow.
    pub fn poll(&mut self, now: Timestamp, effects: &mut Effects) {
        effects.clear();
        self.now = self.now.max(now);
        self.replicate();
        self.note_caught_up();
        self.flush_forwarded();
        self.maybe_reply_to_leader();
        effects.write = self.hand_out_write();
        self.release_waiting();
        effects.messages.append(&mut self.ready);
        self.hand_out_apply(&mut effects.apply);
        effects.proposals.append(&mut self.proposal_outcomes);
        effects.reads.append(&mut self.read_outcomes);
        effects.purge = self.maybe_purge();
        effects.snapshots.append(&mut self.snapshot_effects);
        let soft_state = self.soft_state();
        if self.told != Some(soft_state) {
            self.told = Some(soft_state);
            effects.soft_state = Some(soft_state);
        }
        let membership_at = self.memberships.current_at();
        if self.told_membership != Some(membership_at) {
            self.told_membership = Some(membership_at);
            effects.membership = Some((membership_at, Arc::clone(self.memberships.current())));
        }
        self.evict_cache();
        self.assert_invariants();
    }

    /// Step [`Input::Timeout`] at or after this moment. Being late costs liveness, never
    /// safety. `None`: there is nothing to wait for.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let role = match &self.state {
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => {
                Some(self.election_deadline)
            }
            State::Leader(leading) => Some(self.leader_deadline(leading)),
            State::Stopped => None,
        };
        let forwarded = self.forwarded_deadline();
        role.into_iter().chain(forwarded).min()
    }

    /// What this node would say of itself.
    pub fn status(&self) -> Status<'_> {
        let progress = match &self.state {
            State::Leader(leading) => leading.progress_status(),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) | State::Stopped => {
                Vec::new()
            }
        };
        Status {
            id: self.config.id,
            soft_state: self.soft_state(),
            voted_for: self.voted_for,
            commit_index: self.commit_index,
            applied_index: self.applying.applied(),
            log_start: self.log.start(),
            last: self.log.last(),
            durable_index: self.writes.durable_index(),
            membership: self.memberships.current(),
            membership_at: self.memberships.current_at(),
            lease_until: self.lease_until().filter(|&until| self.now < until),
            transfer_to: self.transfer_to(),
            damaged: self.damage.as_ref().map(Damage::range),
            needs_snapshot: self.needs_snapshot(),
            log_bytes: self.log.sizes().total(),
            is_storage_full: self.storage.is_full,
            oldest_write: self.writes.oldest(),
            progress,
        }
    }

    /// Settles which term counts, then hands the message to its section (§5.1).
    fn on_message(&mut self, from: NodeId, message: Message) {
        if from == self.config.id || from.get() == 0 || !self.may_say(from, &message.body) {
            return; // an echo of ourselves, nobody, or somebody who asks for too much
        }
        let Message { term, body } = message;
        if NUMBER_MAX <= term.get() {
            return; // no cluster gets there, and counting on must not overflow (pitfall D15)
        }
        if let Body::RequestVote(request) = &body
            && request.kind != VoteKind::Transfer
            && self.is_loyal()
        {
            // While a leader is alive, whoever cannot hear it must not depose it, neither with
            // a vote nor with a higher term (thesis §4.2.3).
            // Deviation: §5.1 lets every higher term depose a leader.
            self.reject_vote(from, *request);
            return;
        }
        if self.term < term {
            self.become_follower(term, None);
        }
        if term < self.term {
            self.answer_the_past(from, &body);
            return;
        }
        match body {
            Body::RequestVote(request) => self.on_request_vote(from, request),
            Body::RequestVoteReply(reply) => self.on_request_vote_reply(from, reply),
            Body::AppendEntries(append) => self.on_append_entries(from, append),
            Body::AppendEntriesReply(reply) => self.on_append_entries_reply(from, reply),
            Body::TimeoutNow { last } => self.on_timeout_now(from, last),
            Body::Propose(proposals) => self.on_forwarded_proposals(from, proposals),
            Body::ChangeMembership { id, change } => self.on_forwarded_change(from, id, &change),
            Body::ProposeReply(results) => self.on_propose_reply(from, results),
            Body::ReadIndex { batch } => self.on_read_index(from, batch),
            Body::ReadIndexReply { batch, result } => {
                self.on_read_index_reply(from, batch, &result);
            }
        }
    }

    /// Whether to listen to this. A new member follows a leader and votes for a candidate that
    /// its log does not name yet, and a server that was removed may still lead (thesis §4.1,
    /// pitfall B18). To ask something of a leader is for members.
    fn may_say(&self, from: NodeId, body: &Body) -> bool {
        match body {
            Body::RequestVote(_)
            | Body::RequestVoteReply(_)
            | Body::AppendEntries(_)
            | Body::AppendEntriesReply(_)
            | Body::TimeoutNow { .. }
            | Body::ProposeReply(_)
            | Body::ReadIndexReply { .. } => true,
            Body::Propose(_) | Body::ChangeMembership { .. } | Body::ReadIndex { .. } => {
                self.memberships.current().member(from).is_some()
            }
        }
    }

    /// What this node tells its leader of itself.
    pub(crate) fn report(&self) -> Report {
        Report {
            priority: self.config.priority,
            is_full: self.storage.is_full,
            damaged: self.damage.as_ref().map(|damage| damage.life),
            needs_snapshot: self.needs_snapshot(),
        }
    }

    /// The sender lives in an earlier term. To hear ours makes a deposed leader or a late
    /// candidate step down instead of trying for ever (pitfall B9). Replies are not answered.
    fn answer_the_past(&mut self, from: NodeId, body: &Body) {
        match body {
            Body::RequestVote(request) => self.reject_vote(from, *request),
            Body::AppendEntries(append) => self.reject_append(from, append),
            Body::RequestVoteReply(_)
            | Body::AppendEntriesReply(_)
            | Body::TimeoutNow { .. }
            | Body::Propose(_)
            | Body::ChangeMembership { .. }
            | Body::ProposeReply(_)
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. } => {}
        }
    }

    /// Whether this node must not help to depose the present leader: it has heard from one
    /// within an election timeout, or is one that a quorum has followed within it.
    fn is_loyal(&self) -> bool {
        match &self.state {
            State::Leader(leading) => self.now < self.quorum_expires(leading),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) | State::Stopped => {
                self.now < self.loyal_until
            }
        }
    }

    /// Follows `leader`, or nobody yet, in `term`. All that the former role was about is gone;
    /// what clients still wait for is answered (pitfall M19).
    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<NodeId>) {
        assert!(self.term <= term, "terms do not go back: {} to {term}", self.term);
        if self.term < term {
            self.term = term;
            self.voted_for = None;
            self.writes.note_hard_state();
            self.waiting.clear(); // they speak for a term that is over
        }
        let former = std::mem::replace(&mut self.state, State::Follower(Following::of(leader)));
        if let State::Leader(leading) = former {
            self.cancel_snapshots(&leading);
            self.reject_reads(*leading, leader);
            self.arm_election();
        }
        self.abandon_forwarded();
    }

    fn on_timeout(&mut self) {
        self.expire_forwarded();
        match &self.state {
            State::Leader(_) => self.on_leader_timeout(),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) => {
                if self.election_deadline <= self.now {
                    self.on_election_timeout();
                }
            }
            State::Stopped => {}
        }
    }

    fn on_persisted(&mut self, ticket: &WriteTicket) {
        assert!(ticket.node == self.config.id, "the ticket of {} is not ours", ticket.node);
        self.writes.persisted(ticket.sequence);
        self.maybe_win();
    }

    /// What is on the disk is not known any more, so nothing may be promised or claimed from
    /// here on. To write again would prove nothing (pitfall D4).
    fn on_write_failed(&mut self, _ticket: &WriteTicket) {
        self.become_follower(self.term, None);
        self.state = State::Stopped;
        self.waiting.clear();
        self.ready.clear();
    }

    fn on_purged(&mut self, upto: EntryId) {
        if upto.index <= self.log.start().index {
            return;
        }
        assert!(
            upto.index <= self.applying.handed_out() && self.log.id_at(upto.index) == Some(upto),
            "only what is handed out to be applied is purged: {upto}",
        );
        self.log.purge(upto);
        self.memberships.purge(upto.index);
    }

    /// A stopped node takes nothing in, and says so to whoever waits for an answer.
    fn refuse(&mut self, input: Input) {
        match input {
            Input::Propose(proposals) => {
                self.proposal_outcomes.extend(proposals.into_iter().map(|proposal| {
                    ProposalOutcome::Rejected { id: proposal.id, why: Rejection::Stopped }
                }));
            }
            Input::Read { id, .. } => {
                self.read_outcomes.push(ReadOutcome::Rejected { id, why: Rejection::Stopped });
            }
            Input::Applied { upto, durable } => self.applying.on_applied(upto, durable),
            Input::ChangeMembership { id, .. } => {
                let why = Rejection::Stopped;
                self.proposal_outcomes.push(ProposalOutcome::Rejected { id, why });
            }
            Input::SnapshotReceived { .. }
            | Input::SnapshotSent { .. }
            | Input::StorageSpace { .. }
            | Input::PeerStore { .. }
            | Input::Message { .. }
            | Input::Persisted(_)
            | Input::WriteFailed(_)
            | Input::EntriesUnavailable { .. }
            | Input::Purged { .. }
            | Input::PeerUnreachable { .. }
            | Input::NotSent(_)
            | Input::Campaign
            | Input::TransferLeadership { .. }
            | Input::Timeout => {}
        }
    }

    /// Sends a message as soon as the present term and vote are durable: whatever it says, it
    /// says in this term (thesis §3.8).
    pub(crate) fn send(&mut self, to: NodeId, body: Body) {
        let envelope = Envelope { to, message: Message { term: self.term, body } };
        if self.writes.is_hard_state_durable() {
            self.ready.push(Outbound::Send(envelope));
        } else {
            self.waiting.push((self.writes.hard_state_sequence(), envelope));
        }
    }

    /// Everyone else that takes part in elections.
    pub(crate) fn other_voters(&self) -> Vec<NodeId> {
        let id = self.config.id;
        let membership = self.memberships.current();
        let mut others: Vec<NodeId> = membership.replicas().into_iter().collect();
        others.retain(|&other| other != id && membership.is_voter(other));
        others
    }

    fn release_waiting(&mut self) {
        let Self { waiting, ready, writes, .. } = self;
        waiting.retain(|(sequence, envelope)| {
            let is_durable = writes.is_durable(*sequence);
            if is_durable {
                ready.push(Outbound::Send(envelope.clone()));
            }
            !is_durable
        });
    }

    /// Everything that is new since the last write, in one: entries, and the term and vote that
    /// they came under (pitfall B5).
    fn hand_out_write(&mut self) -> Option<LogWrite> {
        if matches!(self.state, State::Stopped) {
            return None;
        }
        let last = self.log.last().index;
        let first = self.writes.unwritten_from();
        let is_idle = !self.writes.is_hard_state_pending() && !self.writes.is_reset_pending();
        if is_idle && last < first {
            return None;
        }
        let entries = self.log.cached(first..=last, usize::MAX);
        let expected = last.get() + 1 - first.get();
        assert!(
            u64::try_from(entries.len()) == Ok(expected),
            "what is not written is in memory: {first} to {last}, found {}",
            entries.len(),
        );
        let hard_state =
            HardState { term: self.term, voted_for: self.voted_for, commit: self.commit_index };
        let (sequence, reset_to, is_repaired) = self.writes.hand_out(last, self.now);
        let batch = WriteBatch { hard_state: Some(hard_state), entries, reset_to, is_repaired };
        Some(LogWrite { batch, ticket: WriteTicket { node: self.config.id, sequence } })
    }

    fn soft_state(&self) -> SoftState {
        let (role, leader) = match &self.state {
            State::Follower(following) => (Role::Follower, following.leader),
            State::PreCandidate(_) => (Role::PreCandidate, None),
            State::Candidate(_) => (Role::Candidate, None),
            State::Leader(_) => (Role::Leader, Some(self.config.id)),
            State::Stopped => (Role::Stopped, None),
        };
        SoftState { role, term: self.term, leader }
    }
}

/// No cluster counts this far. Terms and indexes from outside that do are not believed, so that
/// our own never overflow.
pub(crate) const NUMBER_MAX: u64 = u64::MAX / 2;

/// Checks that what was recovered can be what a node left behind. Never panics on disk content
/// (pitfall D8).
fn check(recovered: &Recovered) -> Result<(), RestoreError> {
    check_memberships(recovered)?;
    let Recovered { hard_state, log_start, term_runs, last, applied, .. } = recovered;
    let terms = [hard_state.term, log_start.term, last.term].map(Term::get);
    let indexes = [hard_state.commit, log_start.index, last.index].map(Index::get);
    if terms.iter().chain(&indexes).any(|&number| NUMBER_MAX <= number) {
        return Err(RestoreError::TermsOutOfOrder { at: *last });
    }
    let mut before = EntryId::ZERO;
    for &run in term_runs {
        if run.term <= before.term || run.index <= before.index || last.index < run.index {
            return Err(RestoreError::TermsOutOfOrder { at: run });
        }
        before = run;
    }
    let is_last_in_last_run =
        term_runs.last().map_or(*last == *log_start, |run| run.term == last.term);
    let has_first_run = log_start.index == last.index
        || term_runs.first().is_some_and(|run| run.index <= log_start.index.next());
    let is_in_order = log_start.index <= last.index && last.term <= hard_state.term;
    if !is_last_in_last_run || !has_first_run || !is_in_order {
        return Err(RestoreError::TermsOutOfOrder { at: *last });
    }
    if last.index < hard_state.commit && recovered.damaged.is_none() {
        return Err(RestoreError::CommitBeyondLog { commit: hard_state.commit, last: *last });
    }
    if last.index < *applied && recovered.damaged.is_none() {
        return Err(RestoreError::AppliedBeyondLog { applied: *applied, last: *last });
    }
    Ok(())
}

/// Checks what will have to hold when the log is cut: every membership could decide something,
/// they ascend, and the first is from before what may still be taken back.
fn check_memberships(recovered: &Recovered) -> Result<(), RestoreError> {
    let Recovered { hard_state, log_start, last, memberships, .. } = recovered;
    let settled = hard_state.commit.max(recovered.applied).max(log_start.index);
    let mut before = None;
    for (at, membership) in memberships {
        match membership.voters().count() {
            0 => return Err(RestoreError::NoVoters),
            count if VOTERS_MAX < count => return Err(RestoreError::TooManyVoters { count }),
            _ => {}
        }
        let is_first_settled = before.is_some() || at.index <= settled;
        let is_in_order = before < Some(at.index) && at.index <= last.index;
        if !membership.is_sound() || !is_first_settled || !is_in_order {
            return Err(RestoreError::MembershipImpossible { at: *at });
        }
        before = Some(at.index);
    }
    Ok(())
}
