//! A whole node, still without I/O: the core of the protocol and the requests of its host.
//!
//! [`Replica`] turns [`Event`]s into [`Action`]s. The core decides about terms, entries and
//! commitment; this module adds what a host owes its clients: exactly one answer to each
//! request, tries again while it is certain that nothing was appended, deadlines, and the rule
//! that a read is served only from a state machine that has applied enough.
//!
//! Deterministic: no clock, no thread, no chance beside [`Config::seed`]. The simulator and the
//! tokio shell run the same `Replica`.

use std::sync::Arc;

use kontiki_raft::{
    Apply, Bytes, ChangeSet, Config, Effects, Index, Input, NodeId, Outbound, Proposal, ProposalId,
    ProposalOutcome, RaftCore, ReadId, ReadMode, ReadOutcome, Recovered, Rejection, RestoreError,
    Role, SnapshotEffect, SnapshotMeta, SoftState, Status, Timestamp, WriteBatch,
};

use crate::{
    Action, Answer, Event, RequestId,
    past::{Memberships, TermRuns},
    requests::{Answers, Requests, What},
};

/// A whole node, still without I/O: events in, actions out.
#[derive(Debug)]
pub struct Replica {
    core: RaftCore,
    requests: Requests,
    /// New proposals and those tried again: they go into the core as one batch.
    proposals: Vec<Proposal>,
    /// To be given out by the next poll.
    answers: Answers,
    /// The terms of the log, so that a waiter is told its own entry from another's.
    terms: TermRuns,
    /// The memberships of the log, so that a change is answered when its last step is committed.
    memberships: Memberships,
    /// The leader, as far as the core knows.
    leader: Option<NodeId>,
    /// Handed to the state machine up to here.
    handed_index: Index,
    /// Applied by the state machine up to here. At most `handed_index`.
    applied_index: Index,
    /// Waiting requests are tried again now: something that they waited for may be there.
    is_retry_due: bool,
    /// Waiting requests are tried again at this time, for nothing may tell that it would help.
    retry_at: Option<Timestamp>,
    retry_interval: std::time::Duration,
    command_bytes_max: usize,
    read_count_max: usize,
    effects: Effects,
}

impl Replica {
    /// Restores a node from what its disk holds. [`Config::seed`] must differ from one life of
    /// the process to the next.
    ///
    /// # Errors
    ///
    /// When the settings or what was recovered contradict themselves.
    pub fn new(config: Config, recovered: Recovered, now: Timestamp) -> Result<Self, RestoreError> {
        let terms = TermRuns::new(recovered.term_runs.clone());
        let memberships = Memberships::new(recovered.memberships.clone());
        let applied_index = recovered.applied;
        let first_attempt = scatter(config.seed) >> 1; // room for 2⁶³ attempts
        Ok(Self {
            requests: Requests::new(first_attempt),
            proposals: Vec::new(),
            answers: Vec::new(),
            terms,
            memberships,
            leader: None,
            handed_index: applied_index,
            applied_index,
            is_retry_due: false,
            retry_at: None,
            retry_interval: config.heartbeat_interval,
            command_bytes_max: config.uncommitted_bytes_max,
            read_count_max: config.pending_reads_max,
            effects: Effects::default(),
            core: RaftCore::new(config, recovered, now)?,
        })
    }

    /// Takes in one event. Cheap, cannot fail, asks for nothing: call it for all that waits,
    /// then [`poll`](Self::poll) once.
    pub fn handle(&mut self, now: Timestamp, event: Event) {
        match event {
            Event::Propose { id, command, is_session, deadline } => {
                self.on_propose(id, What::Proposal { command, is_session }, deadline);
            }
            Event::Read { id, mode, deadline } => self.on_read(now, id, mode, deadline),
            Event::ChangeMembership { id, change, deadline } => {
                self.on_change(now, id, change, deadline);
            }
            Event::Applied { upto, durable } => self.on_applied(now, upto, durable),
            Event::Purged { upto } => {
                self.terms.purge(upto.index);
                self.core.step(now, Input::Purged { upto });
            }
            Event::Timeout => self.on_timeout(now),
            Event::Message { from, message } => {
                self.core.step(now, Input::Message { from, message });
            }
            Event::Persisted(ticket) => self.core.step(now, Input::Persisted(ticket)),
            Event::WriteFailed(ticket) => self.core.step(now, Input::WriteFailed(ticket)),
            Event::EntriesUnavailable { to, session, why } => {
                self.core.step(now, Input::EntriesUnavailable { to, session, why });
            }
            Event::SnapshotReceived { from, meta } => {
                self.core.step(now, Input::SnapshotReceived { from, meta });
            }
            Event::SnapshotSent { to, session, sent } => {
                self.core.step(now, Input::SnapshotSent { to, session, sent });
            }
            Event::StorageSpace { is_full } => {
                self.core.step(now, Input::StorageSpace { is_full });
            }
            Event::PeerStore { id, store } => self.core.step(now, Input::PeerStore { id, store }),
            Event::PeerUnreachable { id } => self.core.step(now, Input::PeerUnreachable { id }),
            Event::NotSent(envelope) => self.core.step(now, Input::NotSent(envelope)),
            Event::Campaign => self.core.step(now, Input::Campaign),
            Event::TransferLeadership { to } => {
                self.core.step(now, Input::TransferLeadership { to });
            }
        }
    }

    /// Appends to `actions` everything that has to be done since the last call.
    pub fn poll(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        self.requests.expire(now, &mut self.answers);
        if self.retry_at.is_some_and(|at| at <= now) {
            self.is_retry_due = true;
        }
        self.poll_core(now, actions);
        if self.is_retry_due {
            // The poll has told of a leader. What is refused again waits for its time.
            self.poll_core(now, actions);
            self.is_retry_due = false;
        }
        if self.requests.has_waiting() {
            self.retry_at.get_or_insert(now + self.retry_interval);
        } else {
            self.retry_at = None;
        }
        let answers = self.answers.drain(..);
        actions.extend(answers.map(|(id, answer)| Action::Answer { id, answer }));
    }

    /// Handle [`Event::Timeout`] at or after this moment, then poll.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let retry_at = self.retry_at.filter(|_| self.leader.is_some());
        [self.core.next_deadline(), self.requests.next_deadline(), retry_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// What this node would say of itself.
    #[must_use]
    pub fn status(&self) -> Status<'_> {
        self.core.status()
    }

    fn on_propose(&mut self, id: RequestId, what: What, deadline: Timestamp) {
        let What::Proposal { command, is_session } = &what else { return };
        let proposal = (command.clone(), *is_session);
        if let Some(attempt) = self.admit(id, what, deadline) {
            self.proposals.push(proposal_of(attempt, proposal));
        }
    }

    fn on_change(&mut self, now: Timestamp, id: RequestId, change: ChangeSet, deadline: Timestamp) {
        if let Some(attempt) = self.admit(id, What::Change(change.clone()), deadline) {
            let id = ProposalId(attempt);
            self.core.step(now, Input::ChangeMembership { id, change });
        }
    }

    /// Takes in something to be appended, if there is room for it. Returns its first attempt.
    fn admit(&mut self, id: RequestId, what: What, deadline: Timestamp) -> Option<u64> {
        let bytes = self.requests.command_bytes().saturating_add(what.byte_len());
        if self.command_bytes_max < bytes {
            self.answers.push((id, Answer::Rejected(Rejection::Busy)));
            return None;
        }
        Some(self.requests.open(id, deadline, what))
    }

    fn on_read(&mut self, now: Timestamp, id: RequestId, mode: ReadMode, deadline: Timestamp) {
        if self.read_count_max <= self.requests.read_count() {
            self.answers.push((id, Answer::Rejected(Rejection::Busy)));
            return;
        }
        let attempt = self.requests.open(id, deadline, What::Read(mode));
        self.core.step(now, Input::Read { id: ReadId(attempt), mode });
    }

    fn on_applied(&mut self, now: Timestamp, upto: Index, durable: Index) {
        assert!(
            upto <= self.handed_index,
            "only what was handed out is applied: {upto} of {}",
            self.handed_index
        );
        self.applied_index = self.applied_index.max(upto);
        self.requests.on_applied(self.applied_index, &mut self.answers);
        self.core.step(now, Input::Applied { upto, durable });
    }

    fn on_timeout(&mut self, now: Timestamp) {
        // Our own deadlines are looked at by every poll.
        if self.core.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.core.step(now, Input::Timeout);
        }
    }

    /// Submits what is new or due, polls the core once, and translates what it asks for.
    fn poll_core(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if self.is_retry_due && self.leader.is_some() {
            self.retry_at = None;
            let (core, proposals) = (&mut self.core, &mut self.proposals);
            self.requests.retry(|attempt, what| match what {
                What::Proposal { command, is_session } => {
                    proposals.push(proposal_of(attempt, (command, is_session)));
                }
                What::Change(change) => {
                    let id = ProposalId(attempt);
                    core.step(now, Input::ChangeMembership { id, change });
                }
                What::Read(mode) => core.step(now, Input::Read { id: ReadId(attempt), mode }),
            });
        }
        self.is_retry_due = false;
        if !self.proposals.is_empty() {
            self.core.step(now, Input::Propose(std::mem::take(&mut self.proposals)));
        }

        let mut effects = std::mem::take(&mut self.effects);
        self.core.poll(now, &mut effects);
        for outbound in effects.messages.drain(..) {
            actions.push(match outbound {
                Outbound::Send(envelope) => Action::Send(envelope),
                Outbound::SendStored { envelope, range, bytes_max, session } => {
                    Action::SendStored { envelope, range, bytes_max, session }
                }
            });
        }
        if let Some(write) = effects.write.take() {
            self.on_write(&write.batch);
            actions.push(Action::Write(write));
        }
        // Proposals before applies: with one voter an entry can be applied in the poll that
        // tells where it was appended.
        for outcome in effects.proposals.drain(..) {
            self.on_proposal_outcome(outcome);
        }
        for outcome in effects.reads.drain(..) {
            self.on_read_outcome(outcome);
        }
        for what in effects.apply.drain(..) {
            self.on_apply(what, actions);
        }
        if let Some(upto) = effects.purge.take() {
            actions.push(Action::Purge { upto });
        }
        actions.extend(effects.snapshots.drain(..).map(|effect| match effect {
            SnapshotEffect::Send { to, session, at_least } => {
                Action::SendSnapshot { to, session, at_least }
            }
            SnapshotEffect::Cancel { to, session } => Action::CancelSnapshot { to, session },
        }));
        if let Some((at, membership)) = effects.membership.take() {
            actions.push(Action::Membership(at, membership));
        }
        if let Some(soft_state) = effects.soft_state.take() {
            self.on_soft_state(soft_state);
            actions.push(Action::SoftState(soft_state));
        }
        self.effects = effects;
    }

    fn on_write(&mut self, batch: &WriteBatch) {
        if let Some(SnapshotMeta { last, membership }) = &batch.reset_to {
            self.terms.reset(*last);
            self.memberships.reset(*last, Arc::clone(membership));
        }
        self.terms.append(&batch.entries);
        self.memberships.append(&batch.entries);
    }

    fn on_proposal_outcome(&mut self, outcome: ProposalOutcome) {
        match outcome {
            ProposalOutcome::Appended { id, at } if at.index <= self.handed_index => {
                // The leader's word was overtaken by the entry itself. What the state machine
                // made of it is gone; that another entry stands there would be certain.
                match self.terms.term_at(at.index) {
                    Some(term) if term != at.term => {
                        let answer = Answer::Superseded { at };
                        self.requests.close(id.get(), answer, &mut self.answers);
                    }
                    Some(_) => {
                        self.requests.on_overtaken(id.get(), at, &mut self.answers);
                        self.settle_changes();
                    }
                    None => {
                        let answer = Answer::Unknown { at: Some(at) };
                        self.requests.close(id.get(), answer, &mut self.answers);
                    }
                }
            }
            ProposalOutcome::Appended { id, at } => {
                self.requests.on_appended(id.get(), at, &mut self.answers);
            }
            ProposalOutcome::Rejected { id, why } => {
                self.requests.on_rejected(id.get(), why, &mut self.answers);
            }
            ProposalOutcome::Unknown { id } => {
                self.requests.close(id.get(), Answer::Unknown { at: None }, &mut self.answers);
            }
        }
    }

    fn on_read_outcome(&mut self, outcome: ReadOutcome) {
        match outcome {
            ReadOutcome::Ready { id, index } if index <= self.applied_index => {
                self.requests.close(id.get(), Answer::ReadReady { index }, &mut self.answers);
            }
            ReadOutcome::Ready { id, index } => self.requests.on_ready(id.get(), index),
            ReadOutcome::Rejected { id, why } => {
                self.requests.on_rejected(id.get(), why, &mut self.answers);
            }
        }
    }

    fn on_apply(&mut self, what: Apply, actions: &mut Vec<Action>) {
        let (first, last) = match &what {
            Apply::Entries(entries) => match (entries.first(), entries.last()) {
                (Some(first), Some(last)) => (first.id.index, last.id.index),
                _ => return,
            },
            Apply::Stored(range) => (*range.start(), *range.end()),
            Apply::Snapshot(meta) => {
                self.on_apply_snapshot(meta);
                actions.push(Action::Apply { what, waiters: Vec::new() });
                return;
            }
        };
        assert!(
            first == self.handed_index.next() && first <= last,
            "entries are applied once each and in order: {first} to {last} after {}",
            self.handed_index
        );
        self.handed_index = last;
        let terms = &self.terms;
        let waiters = self.requests.settle(last, |index| terms.term_at(index), &mut self.answers);
        self.settle_changes();
        // The first entry of a new leader may be among these: what was not ready may be now.
        self.is_retry_due |= self.requests.has_waiting();
        actions.push(Action::Apply { what, waiters });
    }

    /// The entries up to `meta.last` are skipped, and with them the answers of the state machine
    /// to those who wait for them (pitfall M19).
    fn on_apply_snapshot(&mut self, meta: &SnapshotMeta) {
        assert!(
            self.handed_index < meta.last.index,
            "a snapshot is newer than what was applied: {} after {}",
            meta.last,
            self.handed_index
        );
        self.handed_index = meta.last.index;
        self.requests.skip(meta.last, &mut self.answers);
        self.settle_changes();
        self.is_retry_due |= self.requests.has_waiting();
    }

    /// Answers the changes of the membership whose last step is committed.
    fn settle_changes(&mut self) {
        let (requests, answers) = (&mut self.requests, &mut self.answers);
        self.memberships.on_applied(self.handed_index, |at, membership| {
            requests.on_membership(at, membership, answers);
        });
    }

    fn on_soft_state(&mut self, soft_state: SoftState) {
        self.leader = soft_state.leader;
        self.is_retry_due |= soft_state.leader.is_some() && self.requests.has_waiting();
        if soft_state.role == Role::Stopped {
            self.requests.stop(&mut self.answers);
        }
    }
}

fn proposal_of(attempt: u64, (command, is_session): (Bytes, bool)) -> Proposal {
    Proposal { id: ProposalId(attempt), command, is_session }
}

/// A number that looks random for each seed (the finalizer of splitmix64).
fn scatter(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
