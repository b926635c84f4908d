//! Linearizable reads without the log (thesis §6.4).
//!
//! A read may be served at an index that was committed when it was asked for, once it is sure
//! that the node that named the index was still the leader *after* that. The proof is a round
//! of heartbeats that started later: all reads that wait share it. A round that was on its way
//! already proves nothing (pitfall R3), nor does any before the leader has committed in its own
//! term (pitfall R1).
//!
//! A follower collects its reads into a batch, asks the leader for an index under a number that
//! is never used twice (pitfalls R2, R5), and serves them from its own state.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    Body, Index, NodeId, RaftCore, ReadId, ReadMode, ReadOutcome, Rejection, Round, Timestamp,
    core::State, replicate::Leading,
};

/// Reads that wait for a round, at the leader.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reads {
    /// In the order of `after`.
    waiting: VecDeque<Waiting>,
    /// A round started for reads and not yet answered by a quorum: the newest before it.
    open: Option<Round>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// The newest round when the read arrived. Only a later one counts.
    after: Round,
    index: Index,
    origin: Origin,
}

#[derive(Clone, Copy, Debug)]
enum Origin {
    Here(ReadId),
    There { from: NodeId, batch: u64 },
}

impl Reads {
    /// Whether a round should be started for the reads that wait. One at a time: those that
    /// come while it is under way share the next.
    pub(crate) fn wants_round(&self, newest: Round) -> bool {
        self.open.is_none() && self.waiting.back().is_some_and(|read| read.after <= newest)
    }

    /// A round is about to start; `newest` is the last one before it.
    pub(crate) fn on_round(&mut self, newest: Round) {
        if !self.waiting.is_empty() && self.open.is_none() {
            self.open = Some(newest);
        }
    }
}

/// Reads of this node's clients, at a follower.
#[derive(Clone, Debug)]
pub(crate) struct ForwardedReads {
    /// Starts at random in each life, so that no number is used twice.
    next_batch: u64,
    collecting: Vec<ReadId>,
    open: BTreeMap<u64, Batch>,
}

#[derive(Clone, Debug)]
struct Batch {
    ids: Vec<ReadId>,
    /// When it was asked for first, and last.
    since: Timestamp,
    sent_at: Timestamp,
}

/// Batches on their way at once. While both are, reads gather for the next: under load that is
/// what makes batches.
const OPEN_BATCHES_MAX: usize = 2;

impl ForwardedReads {
    pub(crate) fn new(first_batch: u64) -> Self {
        Self { next_batch: first_batch / 2, collecting: Vec::new(), open: BTreeMap::new() }
    }

    fn open_batch(&mut self, ids: Vec<ReadId>, now: Timestamp) -> u64 {
        let batch = self.next_batch;
        self.next_batch += 1;
        self.open.insert(batch, Batch { ids, since: now, sent_at: now });
        batch
    }
}

impl RaftCore {
    pub(crate) fn on_read(&mut self, id: ReadId, mode: ReadMode) {
        if mode == ReadMode::Lease && self.lease_until().is_some_and(|until| self.now < until) {
            // Everything that was acknowledged is committed: in this term by us, and what came
            // before with our first entry (pitfall R1).
            self.read_outcomes.push(ReadOutcome::Ready { id, index: self.commit_index });
            return;
        }
        let waiting = self.forwarded_reads.collecting.len();
        let why = match &self.state {
            State::Leader(_) => {
                if self.enqueue_read(Origin::Here(id)) {
                    return;
                }
                Rejection::Busy
            }
            State::Follower(_) if self.reachable_leader().is_some() => {
                if waiting < self.config.pending_reads_max {
                    self.forwarded_reads.collecting.push(id);
                    return;
                }
                Rejection::Busy
            }
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) | State::Stopped => {
                Rejection::NotLeader { leader: None }
            }
        };
        self.read_outcomes.push(ReadOutcome::Rejected { id, why });
    }

    /// Until when this leader is sure of being the only one, without asking (thesis §6.4.1).
    ///
    /// A quorum has promised not to let anybody else lead for an election timeout, counted from
    /// later than the round that it answered was sent (pitfall R7). Their clocks may run fast
    /// and ours slow, each by the drift that is allowed for. Not while the leadership is handed
    /// over, for the promise does not hold against that, and after a transfer that failed only
    /// when an entry is committed that its target lacks (pitfall R8).
    pub(crate) fn lease_until(&self) -> Option<Timestamp> {
        const MILLION: u128 = 1_000_000;
        let State::Leader(leading) = &self.state else { return None };
        let drift = u128::from(self.config.clock_drift_ppm_max);
        let needed = leading.blank.max(leading.lease_blocked_until.unwrap_or_default());
        if drift == 0 || self.commit_index < needed || leading.transfer.is_some() {
            return None;
        }
        let promised =
            self.config.election_timeout.as_nanos() * (MILLION - drift) / (MILLION + drift);
        let promised = Duration::from_nanos(u64::try_from(promised).unwrap_or(u64::MAX));
        Some(Timestamp(self.quorum_round(leading).0) + promised)
    }

    /// Lets a read wait for a round. Says whether there was room.
    fn enqueue_read(&mut self, origin: Origin) -> bool {
        let State::Leader(leading) = &mut self.state else { return false };
        if self.config.pending_reads_max <= leading.reads.waiting.len() {
            return false;
        }
        // Until our first entry is committed, the commit index may be behind what an earlier
        // leader has acknowledged (pitfall R1).
        let index = self.commit_index.max(leading.blank);
        leading.reads.waiting.push_back(Waiting { after: leading.round, index, origin });
        self.confirm_reads();
        true
    }

    /// Answers the reads for which a quorum has followed a round that started after them.
    pub(crate) fn confirm_reads(&mut self) {
        let State::Leader(leading) = &self.state else { return };
        if self.commit_index < leading.blank {
            return;
        }
        let confirmed = self.quorum_round(leading);
        let State::Leader(leading) = &mut self.state else { return };
        let reads = &mut leading.reads;
        if reads.open.is_some_and(|before| before < confirmed) {
            reads.open = None;
        }
        let mut answers = Vec::new();
        while reads.waiting.front().is_some_and(|read| read.after < confirmed) {
            if let Some(Waiting { index, origin, .. }) = reads.waiting.pop_front() {
                match origin {
                    Origin::Here(id) => self.read_outcomes.push(ReadOutcome::Ready { id, index }),
                    Origin::There { from, batch } => answers.push((from, batch, index)),
                }
            }
        }
        for (from, batch, index) in answers {
            self.send(from, Body::ReadIndexReply { batch, result: Ok(index) });
        }
    }

    /// This node leads no more: whoever waits here has to ask again.
    pub(crate) fn reject_reads(&mut self, leading: Leading, leader: Option<NodeId>) {
        for read in leading.reads.waiting {
            // Followers notice by themselves that the leader is gone.
            if let Origin::Here(id) = read.origin {
                let why = Rejection::NotLeader { leader };
                self.read_outcomes.push(ReadOutcome::Rejected { id, why });
            }
        }
    }

    /// A follower asks for an index for a batch of reads.
    pub(crate) fn on_read_index(&mut self, from: NodeId, batch: u64) {
        let is_leader = matches!(self.state, State::Leader(_));
        if is_leader && !self.enqueue_read(Origin::There { from, batch }) {
            self.send(from, Body::ReadIndexReply { batch, result: Err(Rejection::Busy) });
        }
    }

    pub(crate) fn on_read_index_reply(
        &mut self,
        from: NodeId,
        batch: u64,
        result: &Result<Index, Rejection>,
    ) {
        if self.leader() != Some(from) {
            return;
        }
        let Some(batch) = self.forwarded_reads.open.remove(&batch) else { return };
        self.read_outcomes.extend(batch.ids.into_iter().map(|id| match result {
            &Ok(index) => ReadOutcome::Ready { id, index },
            Err(why) => ReadOutcome::Rejected { id, why: why.clone() },
        }));
    }

    pub(crate) fn flush_forwarded_reads(&mut self, leader: NodeId) {
        let reads = &mut self.forwarded_reads;
        if reads.collecting.is_empty() || OPEN_BATCHES_MAX <= reads.open.len() {
            return;
        }
        let ids = std::mem::take(&mut reads.collecting);
        let batch = reads.open_batch(ids, self.now);
        self.send(leader, Body::ReadIndex { batch });
    }

    pub(crate) fn abandon_forwarded_reads(&mut self) {
        let reads = &mut self.forwarded_reads;
        let open = std::mem::take(&mut reads.open).into_values().flat_map(|batch| batch.ids);
        let ids: Vec<ReadId> =
            std::mem::take(&mut reads.collecting).into_iter().chain(open).collect();
        self.read_outcomes.extend(
            ids.into_iter()
                .map(|id| ReadOutcome::Rejected { id, why: Rejection::NotLeader { leader: None } }),
        );
    }

    /// Asks again for what was not answered in time. A read changes nothing, so asking twice
    /// does no harm; and all reads of a batch came before it was first asked for, so the answer
    /// to either question is true for all of them. That is what must not change: nothing joins
    /// a batch that has been sent (pitfall R2).
    pub(crate) fn expire_forwarded_reads(&mut self) {
        let (now, retry) = (self.now, self.config.heartbeat_interval * 2);
        let leader = self.reachable_leader();
        let mut questions = Vec::new();
        let mut expired = Vec::new();
        for (&number, batch) in &mut self.forwarded_reads.open {
            if batch.since + self.config.election_timeout <= now {
                expired.push(number);
            } else if batch.sent_at + retry <= now {
                batch.sent_at = now;
                questions.push(number);
            }
        }
        for number in expired {
            let batch = self.forwarded_reads.open.remove(&number);
            let ids = batch.into_iter().flat_map(|batch| batch.ids);
            let why = Rejection::NoQuorum;
            self.read_outcomes.extend(ids.map(|id| ReadOutcome::Rejected { id, why: why.clone() }));
        }
        if let Some(leader) = leader {
            for batch in questions {
                self.send(leader, Body::ReadIndex { batch });
            }
        }
    }

    pub(crate) fn forwarded_reads_deadline(&self) -> Option<Timestamp> {
        let retry = self.config.heartbeat_interval * 2;
        let expiry = self.config.election_timeout;
        let due = |batch: &Batch| (batch.sent_at + retry).min(batch.since + expiry);
        self.forwarded_reads.open.values().map(due).min()
    }
}
