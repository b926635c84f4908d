//! A leader brings its log to the others and commits (§5.3, §5.4.2).
//!
//! Entries go out the moment they are proposed, beside the leader's own disk write (thesis
//! §10.2.1), pipelined within a window of messages and bytes. Every message carries a round,
//! which the answer echoes; the newest round that a quorum has answered is the moment up to
//! which this node was surely the leader, and everything time-like hangs on it: stepping down
//! (thesis §6.2), reads (thesis §6.4).

use std::collections::{BTreeMap, VecDeque};

use crate::{
    AppendEntries, AppendEntriesReply, AppendResult, Body, Entry, EntryId, Envelope, Index,
    Message, NodeId, Outbound, Payload, ProgressState, ProgressStatus, RaftCore, Round, Session,
    Timestamp, core::State, progress::Progress, propose::Seen, read::Reads, transfer::Transfer,
};

/// What a leader knows, for as long as it leads.
#[derive(Clone, Debug)]
pub(crate) struct Leading {
    /// Every other replica, and for a while those that were removed.
    pub(crate) progress: BTreeMap<NodeId, Progress>,
    /// The number of the next session: with a follower, or of a snapshot sent to one.
    next_session: Session,
    /// The first entry of this term. Until it is committed nothing is known to be (§8).
    pub(crate) blank: Index,
    /// The newest round given out.
    pub(crate) round: Round,
    heartbeat_due: Timestamp,
    pub(crate) reads: Reads,
    pub(crate) transfer: Option<Transfer>,
    /// Appended in this term and not committed: index and bytes.
    uncommitted: VecDeque<(Index, usize)>,
    pub(crate) uncommitted_bytes: usize,
    /// Forwarded proposals that were taken.
    pub(crate) seen: BTreeMap<NodeId, Seen>,
    /// The first entry that only this leader can have committed since its last transfer failed.
    /// Until it is committed the target of that transfer might still take over without notice,
    /// whatever the voters have promised.
    pub(crate) lease_blocked_until: Option<Index>,
    /// The newest round when this leader first knew that it was committed that it is not a voter
    /// any more.
    pub(crate) retiring_since: Option<Round>,
}

impl Leading {
    /// A round that is newer than all others, and not earlier than `now`.
    fn next_round(&mut self, now: Timestamp) -> Round {
        self.round = Round(now.0.max(self.round.0 + 1));
        self.round
    }

    /// A session that this leader has had with nobody.
    pub(crate) fn next_session(&mut self) -> Session {
        let session = self.next_session;
        self.next_session = Session(session.get() + 1);
        session
    }

    /// Whether the log of `id` was within one window of ours when we last looked.
    pub(crate) fn is_caught_up(&self, id: NodeId) -> bool {
        self.progress.get(&id).is_some_and(|progress| progress.caught_up_since.is_some())
    }

    pub(crate) fn progress_status(&self) -> Vec<ProgressStatus> {
        self.progress.iter().map(|(&id, progress)| progress.status(id)).collect()
    }
}

impl RaftCore {
    /// Leads the present term. The first entry is blank: with it everything that earlier
    /// leaders left commits (§5.4.2, §8).
    pub(crate) fn become_leader(&mut self) {
        assert!(
            matches!(self.state, State::Candidate(_)) && self.voted_for == Some(self.config.id),
            "a leader was a candidate that voted for itself",
        );
        let last = self.log.last().index;
        let since = Round(self.now.0);
        let mut others = self.memberships.current().replicas();
        others.remove(&self.config.id);
        let sessions = (1..).map(Session);
        let next_session = Session(1 + u64::try_from(others.len()).unwrap_or(u64::MAX));
        let progress = others
            .into_iter()
            .zip(sessions)
            .map(|(id, session)| (id, Progress::new(session, last, since)))
            .collect();
        self.state = State::Leader(Box::new(Leading {
            progress,
            next_session,
            blank: last.next(),
            round: since,
            heartbeat_due: self.now + self.config.heartbeat_interval,
            reads: Reads::default(),
            transfer: None,
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            seen: BTreeMap::new(),
            lease_blocked_until: None,
            retiring_since: None,
        }));
        self.append(Payload::Blank);
    }

    /// Writes an entry of this term. The caller leads.
    pub(crate) fn append(&mut self, payload: Payload) -> EntryId {
        let id = EntryId { index: self.log.last().index.next(), term: self.term };
        let entry = Entry::new(id, payload);
        if let State::Leader(leading) = &mut self.state {
            leading.uncommitted.push_back((id.index, entry.byte_len()));
            leading.uncommitted_bytes += entry.byte_len();
        }
        self.take_entry(entry);
        id
    }

    /// Sends what each follower can take: entries, or word of the commit index at once when
    /// there is nothing else to carry it.
    pub(crate) fn replicate(&mut self) {
        let State::Leader(leading) = &mut self.state else { return };
        let ids: Vec<NodeId> = leading.progress.keys().copied().collect();
        for &id in &ids {
            while self.send_entries(id) {}
            self.maybe_tell_commit(id);
        }
        let State::Leader(leading) = &mut self.state else { return };
        if leading.reads.wants_round(leading.round) {
            self.broadcast_heartbeat();
        }
    }

    /// Sends one message with entries, if there are any and there is room. Says whether another
    /// might follow.
    fn send_entries(&mut self, to: NodeId) -> bool {
        let State::Leader(leading) = &mut self.state else { return false };
        let Some(progress) = leading.progress.get_mut(&to) else { return false };
        let (first, last) = (progress.next_index(), self.log.last().index);
        let config = &self.config;
        let is_nothing_to_send = last < first && !progress.must_ask(last);
        if is_nothing_to_send
            || !progress.has_room(config.inflight_messages_max, config.inflight_bytes_max)
        {
            return false;
        }
        let Some(prev) = self.log.id_at(first.prev()) else {
            // What would be next is purged. It may have it: it is asked (pitfall M12).
            progress.probe_after(self.log.start().index);
            return true;
        };
        let session = progress.session;
        let round = leading.next_round(self.now);
        let Some(progress) = leading.progress.get_mut(&to) else { return false };
        let entries = self.log.cached(first..=last, config.append_bytes_max);
        // Without entries at all it asks whether the logs agree at their end.
        let at_end = (last < first).then_some(last);
        let cached = entries.last().map(|entry| entry.id.index).or(at_end);
        match cached {
            Some(upto) => {
                progress.on_sent(upto, entries.iter().map(Entry::byte_len).sum(), round);
            }
            None => progress.on_stored_sent(round),
        }
        progress.told_commit = self.commit_index;
        let envelope = self.append_envelope(to, session, round, prev, entries);
        if cached.is_some() {
            self.ready.push(Outbound::Send(envelope));
        } else {
            let range = first..=self.log.cache_start().prev();
            let bytes_max = self.config.append_bytes_max;
            self.ready.push(Outbound::SendStored { envelope, range, bytes_max, session });
        }
        cached.is_some()
    }

    /// A follower that has everything and knows less than we do about what is committed hears
    /// of it at once: clients and readers there wait for it. One that still has entries coming
    /// will hear with the next of them.
    fn maybe_tell_commit(&mut self, to: NodeId) {
        let State::Leader(leading) = &self.state else { return };
        let is_due = leading.progress.get(&to).is_some_and(|progress| {
            progress.state() == ProgressState::Replicate
                && progress.is_idle()
                && progress.told_commit < self.commit_index
        });
        if is_due {
            self.send_heartbeat(to);
        }
    }

    /// An append without entries at the place where the follower surely agrees: it cannot be
    /// refused, and it shows the leader at once if a follower has lost its log (pitfall M6).
    ///
    /// Deviation: in Figure 2 it names the entry before `nextIndex`, as any other append.
    fn send_heartbeat(&mut self, to: NodeId) {
        let State::Leader(leading) = &mut self.state else { return };
        let round = leading.next_round(self.now);
        let Some(progress) = leading.progress.get_mut(&to) else { return };
        let prev = self.log.id_at(progress.match_index()).unwrap_or(EntryId::ZERO);
        progress.told_commit = self.commit_index;
        let session = progress.session;
        let envelope = self.append_envelope(to, session, round, prev, Vec::new());
        self.ready.push(Outbound::Send(envelope));
    }

    pub(crate) fn broadcast_heartbeat(&mut self) {
        let State::Leader(leading) = &mut self.state else { return };
        leading.reads.on_round(leading.round);
        let ids: Vec<NodeId> = leading.progress.keys().copied().collect();
        for id in ids {
            self.send_heartbeat(id);
        }
    }

    fn append_envelope(
        &self,
        to: NodeId,
        session: Session,
        round: Round,
        prev: EntryId,
        entries: Vec<Entry>,
    ) -> Envelope {
        assert!(self.writes.is_hard_state_durable(), "a leader's ballot was durable when it won");
        assert!(
            entries.first().is_none_or(|first| first.id.index == prev.index.next()),
            "entries follow {prev} without a hole",
        );
        let (commit, held_by_all) = (self.commit_index, self.held_by_all);
        let readmission = match &self.state {
            State::Leader(leading) => leading.progress.get(&to).and_then(Progress::readmission),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) | State::Stopped => {
                None
            }
        };
        let append =
            AppendEntries { session, round, prev, commit, held_by_all, readmission, entries };
        Envelope { to, message: Message { term: self.term, body: Body::AppendEntries(append) } }
    }

    pub(crate) fn on_append_entries_reply(&mut self, from: NodeId, reply: AppendEntriesReply) {
        let (start, last) = (self.log.start().index, self.log.last().index);
        let State::Leader(leading) = &mut self.state else { return };
        let Some(progress) = leading.progress.get_mut(&from) else { return };
        let AppendEntriesReply { session, round, received, result, report } = reply;
        // Of an earlier session, or nothing that we could have caused (pitfalls M5, D15).
        if session != progress.session || leading.round < round || last < received {
            return;
        }
        if !self.note_report(from, report) {
            return; // it has lost what it would speak of
        }
        let State::Leader(leading) = &mut self.state else { return };
        let Some(progress) = leading.progress.get_mut(&from) else { return };
        let mut is_stranded = false;
        match result {
            AppendResult::Match(matched) if last < matched => return,
            AppendResult::Match(matched) => progress.on_match(matched, received, start),
            AppendResult::Conflict { prev, hint } => {
                let hint = self.log.last_not_after(hint).index;
                is_stranded = progress.on_conflict(prev.index, hint.min(last))
                    && progress.next_index() <= start;
            }
        }
        progress.on_answer(self.now, round);
        // Less than a whole interval, so that the first heartbeat after the loss shows it.
        let grace = self.config.heartbeat_interval * 3 / 4;
        progress.maybe_resend(received, round, (grace, start));
        if is_stranded {
            self.strand(from); // what it needs is purged (pitfall M12)
        }
        self.supply(from);
        self.maybe_cancel_snapshot(from);
        self.prove_ailing();
        self.confirm_reads();
        self.maybe_send_timeout_now();
    }

    /// What is on its way to this peer may be lost. If it is our leader, an election may be
    /// near.
    pub(crate) fn on_unreachable(&mut self, id: NodeId) {
        match &mut self.state {
            State::Leader(leading) => {
                let (round, start) = (leading.round, self.log.start().index);
                if let Some(progress) = leading.progress.get_mut(&id) {
                    progress.on_unreachable(round, start);
                }
            }
            State::Follower(following) if following.leader == Some(id) => {
                following.is_leader_unreachable = true;
                self.hurry_election();
            }
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) | State::Stopped => {}
        }
    }

    /// Commits the newest entry that a quorum holds durably, this node counted like any other.
    ///
    /// Only an entry of our own term may be counted (§5.4.2). One of an earlier term can be on
    /// a majority and still be overwritten by a leader that never saw it; it commits for
    /// certain along with the first of ours (Figure 8).
    pub(crate) fn maybe_commit(&mut self) {
        let durable = self.writes.durable_index();
        let State::Leader(leading) = &mut self.state else { return };
        let id = self.config.id;
        let quorum =
            self.memberships.current().quorum_value(|voter| match leading.progress.get(&voter) {
                Some(progress) => progress.counted().0,
                None if voter == id => durable,
                None => Index::ZERO,
            });
        let is_ours = self.log.term_at(quorum) == Some(self.term);
        if quorum <= self.commit_index || !is_ours {
            return;
        }
        self.commit_index = quorum;
        while leading.uncommitted.front().is_some_and(|&(index, _)| index <= quorum) {
            if let Some((_, bytes)) = leading.uncommitted.pop_front() {
                leading.uncommitted_bytes -= bytes;
            }
        }
        self.confirm_reads();
    }

    /// The newest round that a quorum has answered. This node is always among them: a leader
    /// follows itself.
    pub(crate) fn quorum_round(&self, leading: &Leading) -> Round {
        let id = self.config.id;
        self.memberships.current().quorum_value(|voter| match leading.progress.get(&voter) {
            Some(progress) => progress.counted().1,
            None if voter == id => Round(u64::MAX),
            None => Round::default(),
        })
    }

    /// When this node stops being the leader, unless a quorum answers before (thesis §6.2).
    pub(crate) fn quorum_expires(&self, leading: &Leading) -> Timestamp {
        Timestamp(self.quorum_round(leading).0) + self.config.election_timeout
    }

    /// Whether a write has been under way for longer than a healthy disk takes.
    pub(crate) fn is_storage_stalled(&self) -> bool {
        self.stall_deadline().is_some_and(|deadline| deadline <= self.now)
    }

    fn stall_deadline(&self) -> Option<Timestamp> {
        // A full disk is another trouble, which everybody knows of.
        let oldest = self.writes.oldest().filter(|_| !self.storage.is_full)?;
        Some(oldest.max(self.storage.space_since) + self.config.storage_stall_timeout)
    }

    pub(crate) fn leader_deadline(&self, leading: &Leading) -> Timestamp {
        let transfer = leading.transfer.as_ref().map(|transfer| transfer.deadline);
        [leading.heartbeat_due, self.quorum_expires(leading)]
            .into_iter()
            .chain(self.stall_deadline())
            .chain(transfer)
            .fold(leading.heartbeat_due, Timestamp::min)
    }

    /// Steps down if it cannot lead any more, or shows that it leads.
    pub(crate) fn on_leader_timeout(&mut self) {
        let State::Leader(leading) = &self.state else { return };
        let is_deposed = self.quorum_expires(leading) <= self.now;
        if is_deposed || self.is_storage_stalled() {
            self.become_follower(self.term, None);
            return;
        }
        self.expire_transfer();
        let State::Leader(leading) = &mut self.state else { return };
        if leading.heartbeat_due <= self.now {
            leading.heartbeat_due = self.now + self.config.heartbeat_interval;
            self.retry_stranded();
            self.broadcast_heartbeat();
            self.maybe_relieve();
            self.maybe_yield();
        }
    }

    /// Notes whose log is within one window of ours: everything that it misses is on its way.
    pub(crate) fn note_caught_up(&mut self) {
        let (now, last) = (self.now, self.log.last().index);
        let patience = self.config.election_timeout;
        let State::Leader(leading) = &mut self.state else { return };
        for progress in leading.progress.values_mut() {
            let is_alive = now < Timestamp(progress.acked_round.0) + patience;
            let is_caught_up = is_alive
                && progress.state() == ProgressState::Replicate
                && progress.next_index() == last.next()
                && progress.report.damaged.is_none();
            let since = progress.caught_up_since.unwrap_or(now);
            progress.caught_up_since = is_caught_up.then_some(since);
        }
    }

    /// Every voter holds the log durably up to here, and it is committed.
    pub(crate) fn update_held_by_all(&mut self) {
        let durable = self.writes.durable_index();
        let State::Leader(leading) = &self.state else { return };
        let held = self
            .memberships
            .current()
            .replicas()
            .into_iter()
            .map(|id| leading.progress.get(&id).map_or(durable, Progress::match_index))
            .fold(self.commit_index, Index::min);
        self.held_by_all = self.held_by_all.max(held);
    }
}
