//! Proposals: into the log of the leader, or on to it (§8, thesis §6.2).
//!
//! Each has exactly one outcome, and *certainly not appended* is never mixed up with *unknown*:
//! a client may try again after the first and not, blindly, after the second. That is why a
//! node that is not the leader does not answer what was forwarded to it: it may have been the
//! leader a moment ago and have appended an earlier copy of the very message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    Body, ChangeSet, EntryId, NodeId, Payload, Proposal, ProposalId, ProposalOutcome, RaftCore,
    Rejection, Timestamp, core::State,
};

/// Proposals of this node's clients that are with another leader.
#[derive(Clone, Debug)]
pub(crate) struct Forwarded {
    /// The number under which the next one is sent. Starts at random in each life, so that an
    /// answer to an earlier life is not taken for one to this.
    next_number: u64,
    /// To be sent with the next poll.
    unsent: Vec<Proposal>,
    unsent_changes: Vec<(ProposalId, ChangeSet)>,
    /// Number on the wire to what it stands for.
    open: BTreeMap<u64, Open>,
    open_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    id: ProposalId,
    bytes: usize,
    since: Timestamp,
}

impl Forwarded {
    pub(crate) fn new(first_number: u64) -> Self {
        // Halved, so that counting up does not overflow.
        Self {
            next_number: first_number / 2,
            unsent: Vec::new(),
            unsent_changes: Vec::new(),
            open: BTreeMap::new(),
            open_bytes: 0,
        }
    }

    fn push(&mut self, proposal: Proposal, now: Timestamp) {
        let number = self.open(proposal.id, proposal.command.len(), now);
        self.unsent.push(Proposal { id: number, ..proposal });
    }

    /// Changes are few and short: nobody floods a cluster with them.
    pub(crate) fn push_change(&mut self, id: ProposalId, change: ChangeSet, now: Timestamp) {
        let number = self.open(id, 0, now);
        self.unsent_changes.push((number, change));
    }

    /// Gives the number under which it is sent.
    fn open(&mut self, id: ProposalId, bytes: usize, now: Timestamp) -> ProposalId {
        let number = self.next_number;
        self.next_number += 1;
        self.open.insert(number, Open { id, bytes, since: now });
        self.open_bytes += bytes;
        ProposalId(number)
    }

    fn close(&mut self, number: u64) -> Option<ProposalId> {
        let open = self.open.remove(&number)?;
        self.open_bytes -= open.bytes;
        Some(open.id)
    }
}

/// The forwarded proposals that a leader has taken from one follower, so that a message that
/// the network repeats is not carried out twice. Bounded: a copy that comes after thousands of
/// others has not been seen on any network.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    numbers: BTreeSet<ProposalId>,
    order: VecDeque<ProposalId>,
}

const SEEN_MAX: usize = 16_384;

impl Seen {
    /// Whether it is seen for the first time.
    pub(crate) fn insert(&mut self, number: ProposalId) -> bool {
        if !self.numbers.insert(number) {
            return false;
        }
        self.order.push_back(number);
        if SEEN_MAX < self.order.len()
            && let Some(oldest) = self.order.pop_front()
        {
            self.numbers.remove(&oldest);
        }
        true
    }
}

impl RaftCore {
    /// Deviation: §8 redirects clients to the leader. Here any node takes a command, passes it
    /// on, and reports where the leader put it.
    pub(crate) fn on_propose(&mut self, proposals: Vec<Proposal>) {
        let leader = self.reachable_leader();
        for proposal in proposals {
            let id = proposal.id;
            let outcome = match leader {
                Some(leader) if leader == self.config.id => match self.try_append(proposal) {
                    Ok(at) => ProposalOutcome::Appended { id, at },
                    Err(why) => ProposalOutcome::Rejected { id, why },
                },
                Some(_) => match self.try_forward(proposal) {
                    Ok(()) => continue, // its outcome comes from the leader
                    Err(why) => ProposalOutcome::Rejected { id, why },
                },
                None => {
                    ProposalOutcome::Rejected { id, why: Rejection::NotLeader { leader: None } }
                }
            };
            self.proposal_outcomes.push(outcome);
        }
    }

    /// Who leads, as far as this node knows; perhaps itself.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        match &self.state {
            State::Leader(_) => Some(self.config.id),
            State::Follower(following) => following.leader,
            State::PreCandidate(_) | State::Candidate(_) | State::Stopped => None,
        }
    }

    /// The leader, if what is passed on to it has a chance to arrive. While it has none, a
    /// refusal is worth more to a client than an outcome that nobody knows.
    pub(crate) fn reachable_leader(&self) -> Option<NodeId> {
        match &self.state {
            State::Follower(following) if following.is_leader_unreachable => None,
            State::Leader(_)
            | State::Follower(_)
            | State::PreCandidate(_)
            | State::Candidate(_)
            | State::Stopped => self.leader(),
        }
    }

    fn try_append(&mut self, proposal: Proposal) -> Result<EntryId, Rejection> {
        let State::Leader(leading) = &self.state else {
            return Err(Rejection::NotLeader { leader: None });
        };
        if let Some(transfer) = &leading.transfer {
            return Err(Rejection::Transferring { to: transfer.to });
        }
        if self.storage.is_full {
            return Err(Rejection::NoSpace);
        }
        if self.applying.is_bereft() {
            return Err(Rejection::NoState);
        }
        if proposal.is_session && !self.config.keeps_sessions {
            return Err(Rejection::NoSessions);
        }
        let bytes = proposal.command.len();
        self.check_size(bytes)?;
        if self.config.uncommitted_bytes_max < leading.uncommitted_bytes + bytes {
            return Err(Rejection::Busy);
        }
        Ok(self.append(if proposal.is_session {
            Payload::Session(proposal.command)
        } else {
            Payload::Command(proposal.command)
        }))
    }

    fn try_forward(&mut self, proposal: Proposal) -> Result<(), Rejection> {
        let bytes = proposal.command.len();
        self.check_size(bytes)?;
        if self.config.uncommitted_bytes_max < self.forwarded.open_bytes + bytes {
            return Err(Rejection::Busy);
        }
        self.forwarded.push(proposal, self.now);
        Ok(())
    }

    pub(crate) fn check_size(&self, bytes: usize) -> Result<(), Rejection> {
        let bytes_max = self.config.entry_bytes_max;
        if bytes_max < bytes { Err(Rejection::TooLarge { bytes_max }) } else { Ok(()) }
    }

    /// A follower passes on what its clients proposed.
    pub(crate) fn on_forwarded_proposals(&mut self, from: NodeId, proposals: Vec<Proposal>) {
        let mut results = Vec::with_capacity(proposals.len());
        for proposal in proposals {
            let State::Leader(leading) = &mut self.state else { return };
            let number = proposal.id;
            if leading.seen.entry(from).or_default().insert(number) {
                results.push((number, self.try_append(proposal)));
            }
        }
        if !results.is_empty() {
            self.send(from, Body::ProposeReply(results));
        }
    }

    pub(crate) fn on_propose_reply(
        &mut self,
        from: NodeId,
        results: Vec<(ProposalId, Result<EntryId, Rejection>)>,
    ) {
        if self.leader() != Some(from) {
            return;
        }
        for (number, result) in results {
            if let Some(id) = self.forwarded.close(number.get()) {
                self.proposal_outcomes.push(match result {
                    Ok(at) => ProposalOutcome::Appended { id, at },
                    Err(why) => ProposalOutcome::Rejected { id, why },
                });
            }
        }
    }

    /// Sends proposals and reads on to the leader, all that wait in one message each.
    pub(crate) fn flush_forwarded(&mut self) {
        let Some(leader) = self.reachable_leader() else { return };
        if !self.forwarded.unsent.is_empty() {
            let proposals = std::mem::take(&mut self.forwarded.unsent);
            self.send(leader, Body::Propose(proposals));
        }
        for (id, change) in std::mem::take(&mut self.forwarded.unsent_changes) {
            self.send(leader, Body::ChangeMembership { id, change });
        }
        self.flush_forwarded_reads(leader);
    }

    /// The leader that was asked is not the leader any more, as far as this node knows. What
    /// was not sent was certainly not appended; of the rest nothing is known.
    pub(crate) fn abandon_forwarded(&mut self) {
        let changes = std::mem::take(&mut self.forwarded.unsent_changes).into_iter();
        let proposals = std::mem::take(&mut self.forwarded.unsent).into_iter();
        let unsent = proposals.map(|proposal| proposal.id).chain(changes.map(|(id, _)| id));
        for number in unsent.collect::<Vec<_>>() {
            if let Some(id) = self.forwarded.close(number.get()) {
                let why = Rejection::NotLeader { leader: None };
                self.proposal_outcomes.push(ProposalOutcome::Rejected { id, why });
            }
        }
        self.forwarded.open_bytes = 0;
        for (_, open) in std::mem::take(&mut self.forwarded.open) {
            self.proposal_outcomes.push(ProposalOutcome::Unknown { id: open.id });
        }
        self.abandon_forwarded_reads();
    }

    /// What was passed on has not left this node, so it was certainly not appended, and may be
    /// tried again.
    pub(crate) fn on_not_sent(&mut self, body: &Body) {
        let numbers: Vec<ProposalId> = match body {
            Body::Propose(proposals) => proposals.iter().map(|proposal| proposal.id).collect(),
            Body::ChangeMembership { id, .. } => vec![*id],
            Body::RequestVote(_)
            | Body::RequestVoteReply(_)
            | Body::AppendEntries(_)
            | Body::AppendEntriesReply(_)
            | Body::TimeoutNow { .. }
            | Body::ProposeReply(_)
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. } => return, // repeated by themselves
        };
        for number in numbers {
            if let Some(id) = self.forwarded.close(number.get()) {
                let why = Rejection::NotLeader { leader: None };
                self.proposal_outcomes.push(ProposalOutcome::Rejected { id, why });
            }
        }
    }

    /// An answer that takes longer than an election is not waited for.
    pub(crate) fn expire_forwarded(&mut self) {
        let now = self.now;
        let timeout = self.config.election_timeout;
        // Numbers ascend with time, so the oldest come first.
        while let Some((&number, open)) = self.forwarded.open.first_key_value()
            && open.since + timeout <= now
        {
            if let Some(id) = self.forwarded.close(number) {
                self.proposal_outcomes.push(ProposalOutcome::Unknown { id });
            }
        }
        self.expire_forwarded_reads();
    }

    pub(crate) fn forwarded_deadline(&self) -> Option<Timestamp> {
        let proposals = self
            .forwarded
            .open
            .first_key_value()
            .map(|(_, open)| open.since + self.config.election_timeout);
        proposals.into_iter().chain(self.forwarded_reads_deadline()).min()
    }
}
