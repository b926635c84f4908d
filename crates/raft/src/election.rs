//! Elections (§5.2, §5.4.1), asked for before they are held (thesis §9.6).
//!
//! A node that hears from no leader for a random time first asks whether it would win. Only if
//! a quorum says so does it enter a new term, vote for itself and ask for real. So a node that
//! was cut off cannot depose a leader when it returns, and terms grow only when they must.
//!
//! A vote is durable before it is sent, the candidate's own included (thesis §3.8): it counts
//! for itself only once its ballot is on disk.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    Body, NodeId, RaftCore, Recovered, RequestVote, RequestVoteReply, Term, Timestamp, VoteKind,
    core::State,
};

/// An election that this node stands in, or asks about.
#[derive(Clone, Debug)]
pub(crate) struct Election {
    kind: VoteKind,
    /// The term it is about.
    for_term: Term,
    /// The answers so far. An answer that comes twice counts once.
    votes: BTreeMap<NodeId, bool>,
}

/// Whether no leader can count on a promise that an earlier life of this node gave (pitfall R9).
///
/// To be the only voter is not enough. A leader that has removed itself leads until its last
/// change is known (pitfall B18), and rests on the promises of the one voter that it has left
/// behind. But if we were the only voter before the present term began, nobody leads in it
/// without our vote, for whoever had a newer membership still needed us to leave the old one. We
/// gave the vote to ourselves, so there is no other leader in this term; and before we did, what
/// we had promised in earlier terms had ended. Of later terms we have said nothing: what is said
/// in a term is said when the term is durable.
///
/// A damaged log may have lost a membership, a term or a vote, so it proves none of this.
pub(crate) fn owes_nobody(id: NodeId, recovered: &Recovered) -> bool {
    let Recovered { hard_state, memberships, damaged, is_pristine, .. } = recovered;
    let is_alone = memberships.last().is_some_and(|(_, newest)| newest.is_lone_voter(id));
    let before = memberships.iter().rev().find(|(at, _)| at.term < hard_state.term);
    let was_alone = before.is_some_and(|(_, membership)| membership.is_lone_voter(id));
    let is_vote_ours = hard_state.voted_for == Some(id);
    *is_pristine || (is_alone && was_alone && is_vote_ours && damaged.is_none())
}

impl RaftCore {
    /// A new random time until an election, in `(t, 2t]`: strictly longer than the loyalty that
    /// voters owe, so that an election is not refused for a leader that is gone (pitfall B12),
    /// and different for each node, so that votes are rarely split (§5.2).
    pub(crate) fn arm_election(&mut self) {
        let timeout = self.config.election_timeout;
        self.election_deadline =
            self.now + timeout + self.deference() + self.random_delay(self.patience(timeout));
    }

    /// The time until the first election after a start. In a new cluster there is no leader to
    /// be loyal to and nothing to wait out; after a restart the loyalty of the former life ends
    /// after one election timeout, and a leader that still lives is heard of well before. A lone
    /// voter collides with nobody, so it does not wait any longer than it has to.
    ///
    /// Deviation: in Figure 2 a node that restarts may vote at once (pitfall R9).
    pub(crate) fn arm_first_election(&mut self) {
        let earliest = self.loyal_until.max(self.now) + self.deference();
        let is_alone = self.memberships.current().is_lone_voter(self.config.id);
        let half = self.patience(self.config.election_timeout / 2);
        let spread = if is_alone { Duration::ZERO } else { self.random_delay(half) };
        self.election_deadline = earliest + spread;
    }

    /// The leader's process seems to be gone. No vote can be had before the loyalty to it ends,
    /// but there is no need to wait long after that. If it lives, its next heartbeat restarts
    /// the clock.
    ///
    /// Deviation: §5.2 waits for the timeout, whatever else is known of the leader.
    pub(crate) fn hurry_election(&mut self) {
        let soon = self.config.election_timeout / 8;
        let deadline = self.loyal_until.max(self.now) + self.deference() + self.random_delay(soon);
        self.election_deadline = self.election_deadline.min(deadline);
    }

    /// A refusal often means that the voter is loyal for some milliseconds more, or stood at
    /// the same moment. Asking again changes nothing until it is won, so there is no reason to
    /// wait for a whole timeout; it is random, so that two who collided do not again.
    ///
    /// Deviation: §5.2 waits for a whole timeout after an election that nobody won.
    fn retry_election_soon(&mut self) {
        let timeout = self.config.election_timeout;
        // A real election is not cut short while the votes of far away may be on their way.
        let is_pre_vote = matches!(self.state, State::PreCandidate(_));
        // To ask costs nothing; to stand again gives up the votes that are still on their way.
        let (at_least, at_random) =
            if is_pre_vote { (timeout / 16, timeout / 4) } else { (timeout / 2, timeout / 2) };
        let deadline = self.now + at_least + self.random_delay(at_random);
        self.election_deadline = self.election_deadline.min(deadline);
    }

    /// How much longer a node waits that could lead, but not take a proposal: because its disk
    /// is full, or its state machine waits for a snapshot.
    fn deference(&self) -> Duration {
        if self.could_serve() { Duration::ZERO } else { self.config.election_timeout }
    }

    fn random_delay(&mut self, max: Duration) -> Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.rng.up_to(nanos))
    }

    pub(crate) fn on_election_timeout(&mut self) {
        // The clock is restarted before anything else: whatever becomes of this election, there
        // will be another.
        self.arm_election();
        if self.can_campaign() {
            self.become_pre_candidate();
        }
    }

    /// The operator wants an election. It is held as any other.
    pub(crate) fn on_campaign(&mut self) {
        let is_leader = matches!(self.state, State::Leader(_));
        if !is_leader && self.loyal_until <= self.now {
            self.on_election_timeout();
        }
    }

    /// A node whose disk is stuck could not lead.
    pub(crate) fn can_campaign(&self) -> bool {
        self.is_electable() && !self.is_storage_stalled() && self.damage.is_none()
    }

    fn become_pre_candidate(&mut self) {
        self.become_follower(self.term, None);
        self.stand(VoteKind::PreVote, self.term.next());
    }

    /// Enters a new term and votes for itself (§5.2).
    pub(crate) fn become_candidate(&mut self, kind: VoteKind) {
        self.become_follower(self.term.next(), None);
        self.voted_for = Some(self.config.id);
        self.writes.note_hard_state();
        self.arm_election();
        self.stand(kind, self.term);
    }

    fn stand(&mut self, kind: VoteKind, for_term: Term) {
        let election = Election { kind, for_term, votes: BTreeMap::new() };
        self.state = match kind {
            VoteKind::PreVote => State::PreCandidate(election),
            VoteKind::Vote | VoteKind::Transfer => State::Candidate(election),
        };
        let request = RequestVote { kind, for_term, last: self.log.last() };
        for voter in self.other_voters() {
            self.send(voter, Body::RequestVote(request));
        }
        self.maybe_win();
    }

    /// Gives the vote, at most one a term, and only to a log that is up to date (§5.2, §5.4.1).
    /// Whether this node believes that it may vote does not matter: the candidate may know a
    /// newer membership (pitfall B16).
    pub(crate) fn on_request_vote(&mut self, from: NodeId, request: RequestVote) {
        let is_up_to_date = request.last.is_up_to_date_with(self.log.last());
        // Who has lost part of its log may have lost a vote, too.
        let is_up_to_date = is_up_to_date && self.damage.is_none();
        let granted = match request.kind {
            VoteKind::PreVote => self.term < request.for_term && is_up_to_date,
            VoteKind::Vote | VoteKind::Transfer => {
                let is_vote_free = self.voted_for.is_none_or(|voted_for| voted_for == from);
                request.for_term == self.term && is_vote_free && is_up_to_date
            }
        };
        if granted && request.kind != VoteKind::PreVote {
            if matches!(self.state, State::PreCandidate(_)) {
                self.become_follower(self.term, None); // to vote is to let the other stand
            }
            if self.voted_for.is_none() {
                self.voted_for = Some(from);
                self.writes.note_hard_state();
            }
            self.arm_election(); // give the candidate time to win
        }
        self.reply_vote(from, request, granted);
    }

    /// Refuses without a look at the log.
    pub(crate) fn reject_vote(&mut self, from: NodeId, request: RequestVote) {
        self.reply_vote(from, request, false);
    }

    fn reply_vote(&mut self, to: NodeId, request: RequestVote, granted: bool) {
        let RequestVote { kind, for_term, .. } = request;
        self.send(to, Body::RequestVoteReply(RequestVoteReply { kind, for_term, granted }));
    }

    /// Counts an answer, if it is one to the question that is open. Answers of an earlier
    /// election say which they are of (pitfall B11).
    pub(crate) fn on_request_vote_reply(&mut self, from: NodeId, reply: RequestVoteReply) {
        if !self.memberships.current().is_voter(from) {
            return; // it has no vote to give
        }
        let (State::PreCandidate(election) | State::Candidate(election)) = &mut self.state else {
            return;
        };
        if election.kind != reply.kind || election.for_term != reply.for_term {
            return;
        }
        // A vote that was given stays given, whatever comes late.
        *election.votes.entry(from).or_insert(reply.granted) |= reply.granted;
        if !reply.granted {
            self.retry_election_soon();
        }
        self.maybe_win();
    }

    /// Goes on the moment a quorum has agreed, without waiting for the rest. A quorum that has
    /// refused ends it: the next try comes with the next timeout.
    pub(crate) fn maybe_win(&mut self) {
        let id = self.config.id;
        let (is_pre_vote, election) = match &self.state {
            State::PreCandidate(election) => (true, election),
            State::Candidate(election) => (false, election),
            State::Follower(_) | State::Leader(_) | State::Stopped => return,
        };
        // Our own ballot counts like any other: once it is durable. Without it nobody wins, not
        // even who has no vote to give itself any more.
        let is_ours_cast = is_pre_vote || self.writes.is_hard_state_durable();
        let membership = self.memberships.current();
        let has_won = is_ours_cast
            && membership
                .has_quorum(|voter| voter == id || election.votes.get(&voter) == Some(&true));
        let has_lost = membership.has_quorum(|voter| election.votes.get(&voter) == Some(&false));
        if has_won && is_pre_vote {
            self.become_candidate(VoteKind::Vote);
        } else if has_won {
            self.become_leader();
        } else if has_lost {
            self.become_follower(self.term, None);
        }
    }

    /// Owes the leader loyalty for one election timeout from `at` on, and waits for longer than
    /// that before it stands itself.
    pub(crate) fn pledge_loyalty(&mut self, at: Timestamp) {
        self.loyal_until = self.loyal_until.max(at + self.config.election_timeout);
        self.arm_election();
    }
}
