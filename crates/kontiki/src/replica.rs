//! A whole node, still without I/O: the core of the protocol and the requests of its host.
//!
//! [`Replica`] turns [`Event`]s into [`Action`]s. The core decides about terms, entries and
//! commitment; this module adds what a host owes its clients: exactly one answer to each
//! request, tries again while it is certain that nothing was appended, deadlines, and the rule
//! that a read is served only from a state machine that has applied enough.
//!
//! Deterministic: no clock, no thread, no chance beside [`Config::seed`]. The simulator and the
//! tokio shell run the same `Replica`.

use std::ops::RangeInclusive;

use kontiki_raft::{
    Apply, Bytes, Config, Effects, Entry, EntryId, Envelope, Index, Input, LogWrite, Message,
    NodeId, Outbound, Proposal, ProposalId, ProposalOutcome, RaftCore, ReadId, ReadMode,
    ReadOutcome, Recovered, Rejection, RestoreError, Role, Session, SoftState, Status, Term,
    Timestamp, Unavailable, WriteTicket,
};

use crate::requests::{Answers, Requests, What};

/// A request, as its host calls it. Unique in the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Something that happened. There is no other way in.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a simulator that overlooks an event must not compile")]
pub enum Event {
    /// A message arrived.
    Message {
        /// Who sent it, as the transport knows.
        from: NodeId,
        /// What it says.
        message: Message,
    },
    /// A client wants this command applied. If this node applies it, the answer is a waiter of
    /// [`Action::Apply`]; otherwise an [`Action::Answer`].
    Propose {
        /// How the host calls it.
        id: RequestId,
        /// What the state machine will be given.
        command: Bytes,
        /// When to give up waiting.
        deadline: Timestamp,
    },
    /// A client wants to read what is committed now. Gets one [`Action::Answer`].
    Read {
        /// How the host calls it.
        id: RequestId,
        /// When to give up waiting.
        deadline: Timestamp,
    },
    /// The write with this ticket and all before it are durable.
    Persisted(WriteTicket),
    /// The write failed. The node takes part no more (pitfall D4).
    WriteFailed(WriteTicket),
    /// The state machine has applied everything up to `upto`.
    Applied {
        /// The last index that it has applied.
        upto: Index,
        /// Up to here it will still know after power loss.
        durable: Index,
    },
    /// The entries asked for by [`Action::SendStored`] could not be read.
    EntriesUnavailable {
        /// Whom they were for.
        to: NodeId,
        /// The session they were for.
        session: Session,
    },
    /// The log was purged: it starts after this entry.
    Purged {
        /// The last entry that is gone.
        upto: EntryId,
    },
    /// The connection to this peer is broken, or a message to it was dropped.
    PeerUnreachable {
        /// The peer.
        id: NodeId,
    },
    /// The operator wants this node to stand for election.
    Campaign,
    /// Hand the leadership over, to this node or to the best follower.
    TransferLeadership {
        /// The target.
        to: Option<NodeId>,
    },
    /// [`Replica::next_deadline`] has passed.
    Timeout,
}

/// Something that the host must do. Safe to carry out the moment it is seen; writes and
/// applies keep their order, and only messages may be dropped.
#[derive(Debug)]
#[must_use = "an action does nothing until the host carries it out"]
#[expect(clippy::exhaustive_enums, reason = "a host that overlooks an action must not compile")]
pub enum Action {
    /// Send this.
    Send(Envelope),
    /// Read entries of `range` from the log, as many as fit `bytes_max` but at least one, put
    /// them into the `AppendEntries` of `envelope`, and send it. If they cannot be read, say
    /// [`Event::EntriesUnavailable`].
    SendStored {
        /// The message, without its entries.
        envelope: Envelope,
        /// Which entries.
        range: RangeInclusive<Index>,
        /// At most this many bytes.
        bytes_max: usize,
        /// The session to name if they cannot be read.
        session: Session,
    },
    /// Make this durable, then hand its ticket back.
    Write(LogWrite),
    /// Apply these entries, then say [`Event::Applied`].
    Apply {
        /// Which entries.
        what: Apply,
        /// Which of them answer a request of this host, ascending by index. What the state
        /// machine returns for them is the answer; there is no other.
        waiters: Vec<(Index, RequestId)>,
    },
    /// The one answer to a request.
    Answer {
        /// Which request.
        id: RequestId,
        /// What became of it.
        answer: Answer,
    },
    /// The log may be purged up to here. If it is, say [`Event::Purged`].
    Purge {
        /// The last entry that nobody needs.
        upto: EntryId,
    },
    /// Role, term or known leader have changed to this.
    SoftState(SoftState),
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a host that overlooks an answer must not compile")]
pub enum Answer {
    /// The read may be served from the state machine as it is here and now.
    ReadReady {
        /// Up to here the state machine had to be, and is.
        index: Index,
    },
    /// The proposal is certainly not in any log; the read was not served. Safe to try again.
    Rejected(Rejection),
    /// The proposal was appended here and another entry has taken its place: certainly lost.
    Superseded {
        /// Where it stood.
        at: EntryId,
    },
    /// The proposal may or may not be applied, now or later.
    Unknown {
        /// Where it stands, if that much is known.
        at: Option<EntryId>,
    },
}

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
        let terms = TermRuns(recovered.term_runs.clone());
        let applied_index = recovered.applied;
        let first_attempt = scatter(config.seed) >> 1; // room for 2⁶³ attempts
        Ok(Self {
            requests: Requests::new(first_attempt),
            proposals: Vec::new(),
            answers: Vec::new(),
            terms,
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
            Event::Propose { id, command, deadline } => self.on_propose(id, command, deadline),
            Event::Read { id, deadline } => self.on_read(now, id, deadline),
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
            Event::EntriesUnavailable { to, session } => {
                self.core
                    .step(now, Input::EntriesUnavailable { to, session, why: Unavailable::Retry });
            }
            Event::PeerUnreachable { id } => self.core.step(now, Input::PeerUnreachable { id }),
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

    fn on_propose(&mut self, id: RequestId, command: Bytes, deadline: Timestamp) {
        let bytes = self.requests.command_bytes().saturating_add(command.len());
        if self.command_bytes_max < bytes {
            self.answers.push((id, Answer::Rejected(Rejection::Busy)));
            return;
        }
        let attempt = self.requests.open(id, deadline, What::Proposal(command.clone()));
        self.proposals.push(Proposal { id: ProposalId(attempt), command, is_session: false });
    }

    fn on_read(&mut self, now: Timestamp, id: RequestId, deadline: Timestamp) {
        if self.read_count_max <= self.requests.read_count() {
            self.answers.push((id, Answer::Rejected(Rejection::Busy)));
            return;
        }
        let attempt = self.requests.open(id, deadline, What::Read);
        self.core.step(now, Input::Read { id: ReadId(attempt), mode: ReadMode::ReadIndex });
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
                What::Proposal(command) => {
                    proposals.push(Proposal {
                        id: ProposalId(attempt),
                        command,
                        is_session: false,
                    });
                }
                What::Read => {
                    core.step(now, Input::Read { id: ReadId(attempt), mode: ReadMode::ReadIndex })
                }
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
            self.terms.append(&write.batch.entries);
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
        if let Some(soft_state) = effects.soft_state.take() {
            self.on_soft_state(soft_state);
            actions.push(Action::SoftState(soft_state));
        }
        self.effects = effects;
    }

    fn on_proposal_outcome(&mut self, outcome: ProposalOutcome) {
        match outcome {
            ProposalOutcome::Appended { id, at } if at.index <= self.handed_index => {
                // The leader's word was overtaken by the entry itself. What the state machine
                // made of it is gone; that another entry stands there would be certain.
                let answer = match self.terms.term_at(at.index) {
                    Some(term) if term != at.term => Answer::Superseded { at },
                    Some(_) | None => Answer::Unknown { at: Some(at) },
                };
                self.requests.close(id.get(), answer, &mut self.answers);
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
            Apply::Snapshot(_) => return,
        };
        assert!(
            first == self.handed_index.next() && first <= last,
            "entries are applied once each and in order: {first} to {last} after {}",
            self.handed_index
        );
        self.handed_index = last;
        let terms = &self.terms;
        let waiters = self.requests.settle(last, |index| terms.term_at(index), &mut self.answers);
        // The first entry of a new leader may be among these: what was not ready may be now.
        self.is_retry_due |= self.requests.has_waiting();
        actions.push(Action::Apply { what, waiters });
    }

    fn on_soft_state(&mut self, soft_state: SoftState) {
        self.leader = soft_state.leader;
        self.is_retry_due |= soft_state.leader.is_some() && self.requests.has_waiting();
        if soft_state.role == Role::Stopped {
            self.requests.stop(&mut self.answers);
        }
    }
}

/// The terms of a log: the first entry of each.
#[derive(Debug)]
struct TermRuns(Vec<EntryId>);

impl TermRuns {
    /// Entries were written. The first may replace what was there.
    fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.0.last().is_some_and(|run| first.id.index <= run.index) {
            self.0.pop();
        }
        for entry in entries {
            if self.0.last().is_none_or(|run| run.term != entry.id.term) {
                self.0.push(entry.id);
            }
        }
    }

    /// Forgets terms that have no entry after `upto`.
    fn purge(&mut self, upto: Index) {
        let gone = self.0.partition_point(|run| run.index <= upto.next()).saturating_sub(1);
        self.0.drain(..gone);
    }

    /// The term of the entry at `index`, if it is in the log.
    fn term_at(&self, index: Index) -> Option<Term> {
        let runs = self.0.partition_point(|run| run.index <= index);
        self.0.get(runs.checked_sub(1)?).map(|run| run.term)
    }
}

/// A number that looks random for each seed (the finalizer of splitmix64).
fn scatter(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
