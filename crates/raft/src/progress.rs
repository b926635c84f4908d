//! What the leader knows about the log of one follower (§5.3).

use std::{collections::VecDeque, time::Duration};

use crate::{
    Index, NodeId, ProgressState, ProgressStatus, Readmission, Report, Round, Session, Timestamp,
    damage::Ailing, snapshot::Sending,
};

/// What the leader knows about the log of one follower.
///
/// ```text
///    1 ─────── match_index ─────── next_index ─────── last_index
///    │   surely there   │   sent, not yet heard of  │   not sent  │
/// ```
///
/// Knowledge is one-sided: the follower may well hold more than `match_index`, never less. A
/// new leader knows nothing and starts from zero; the commit index does not fall back with it.
///
/// # Invariants
///
/// - `match_index < next_index <= last_index + 1`.
/// - `match_index` never falls while this leader leads: only a disk that went back on its word
///   could make it, and a wiped disk comes under another store id.
/// - The bytes in flight are the sum of the window (pitfall D12).
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) session: Session,
    match_index: Index,
    next_index: Index,
    state: ProgressState,
    window: VecDeque<InFlight>,
    window_bytes: usize,
    /// A message is out whose answer decides how to go on; nothing more is sent until it comes
    /// or is taken for lost.
    awaits: Option<Round>,
    /// That message had no entries: any answer about the place will do.
    is_asking: bool,
    /// The newest round that the follower has answered.
    pub(crate) acked_round: Round,
    /// How long answers take, smoothed. Known from the first answer to this leader on.
    round_trip: Option<Duration>,
    /// The commit index that it was told last.
    pub(crate) told_commit: Index,
    /// What the follower last said of itself.
    pub(crate) report: Report,
    /// Since when everything that it misses has been on its way to it.
    pub(crate) caught_up_since: Option<Timestamp>,
    /// It was removed: until then it is still sent to, so that it learns of it.
    pub(crate) leaves_at: Option<Timestamp>,
    /// The snapshot on its way to it.
    pub(crate) sending: Sending,
    /// It says that its log is damaged.
    pub(crate) ailing: Option<Ailing>,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    last: Index,
    bytes: usize,
    round: Round,
}

impl Progress {
    /// A follower of whom nothing is known. `since` is when this leader began: until then a
    /// quorum followed it, for it was elected.
    pub(crate) fn new(session: Session, last_index: Index, since: Round) -> Self {
        Self {
            session,
            match_index: Index::ZERO,
            next_index: last_index.next(),
            state: ProgressState::Probe,
            window: VecDeque::new(),
            window_bytes: 0,
            awaits: None,
            is_asking: false,
            acked_round: since,
            round_trip: None,
            told_commit: Index::ZERO,
            report: Report::default(),
            caught_up_since: None,
            leaves_at: None,
            sending: Sending::default(),
            ailing: None,
        }
    }

    pub(crate) fn match_index(&self) -> Index {
        self.match_index
    }

    /// What counts towards a quorum: nothing of one that may have forgotten what it promised.
    pub(crate) fn counted(&self) -> (Index, Round) {
        if self.ailing.is_none_or(Ailing::is_proven) {
            (self.match_index, self.acked_round)
        } else {
            (Index::ZERO, Round::default())
        }
    }

    pub(crate) fn readmission(&self) -> Option<Readmission> {
        self.ailing.and_then(Ailing::readmission)
    }

    /// Forgets what it was known to hold, and returns what was on its way to it.
    pub(crate) fn start_anew(&mut self, session: Session, last_index: Index) -> Sending {
        let sending = std::mem::take(&mut self.sending);
        let Self { acked_round, round_trip, leaves_at, report, .. } = *self;
        let new = Self::new(session, last_index, acked_round);
        *self = Self { round_trip, leaves_at, report, ..new };
        sending
    }

    pub(crate) fn next_index(&self) -> Index {
        self.next_index
    }

    pub(crate) fn state(&self) -> ProgressState {
        self.state
    }

    /// Whether anything is known that would keep it from leading.
    pub(crate) fn could_lead(&self) -> bool {
        let Report { is_full, damaged, needs_snapshot, .. } = self.report;
        !is_full && damaged.is_none() && needs_snapshot.is_none()
    }

    /// Whether everything that was sent has been answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.window.is_empty() && self.awaits.is_none()
    }

    /// Whether another message with entries may be sent.
    pub(crate) fn has_room(&self, messages_max: usize, bytes_max: usize) -> bool {
        match self.state {
            ProgressState::Probe => self.awaits.is_none(),
            ProgressState::Replicate => {
                self.awaits.is_none()
                    && self.window.len() < messages_max
                    && (self.window_bytes < bytes_max || self.window.is_empty())
            }
            ProgressState::Snapshot => false,
        }
    }

    /// Entries up to `last` were sent.
    pub(crate) fn on_sent(&mut self, last: Index, bytes: usize, round: Round) {
        if self.state == ProgressState::Replicate {
            self.next_index = last.next();
            self.window.push_back(InFlight { last, bytes, round });
            self.window_bytes += bytes;
        } else {
            self.awaits = Some(round);
            self.is_asking = last < self.next_index;
        }
    }

    /// The host was asked to read entries from the log and send them. How many it will be is
    /// not known, so wait for the answer.
    pub(crate) fn on_stored_sent(&mut self, round: Round) {
        self.awaits = Some(round);
    }

    /// Whether it has to be asked where it stands though there are no entries to send: the log
    /// may be purged up to its very end (pitfall M12).
    pub(crate) fn must_ask(&self, last_index: Index) -> bool {
        self.state == ProgressState::Probe && self.match_index < last_index
    }

    /// Asks whether the logs agree at `index`.
    pub(crate) fn probe_after(&mut self, index: Index) {
        self.state = ProgressState::Probe;
        self.clear_window();
        self.next_index = index.max(self.match_index).next();
    }

    /// The follower needs what is purged.
    pub(crate) fn strand(&mut self) {
        self.state = ProgressState::Snapshot;
        self.clear_window();
    }

    /// Its log agrees up to `received`, durably up to `matched`. Neither is beyond the end of
    /// the leader's log, which starts after `log_start`.
    pub(crate) fn on_match(&mut self, matched: Index, received: Index, log_start: Index) {
        let received = received.max(matched);
        self.match_index = self.match_index.max(matched);
        while self.window.front().is_some_and(|sent| sent.last <= self.match_index) {
            if let Some(sent) = self.window.pop_front() {
                self.window_bytes -= sent.bytes;
            }
        }
        if self.next_index <= received {
            self.awaits = None; // what was awaited has arrived
        }
        // A heartbeat also matches, at what is known already. It proves nothing about the
        // place that is being probed.
        let is_found = self.next_index <= received.next();
        if is_found && self.is_asking {
            self.awaits = None;
            self.is_asking = false;
        }
        let is_within_reach = self.state != ProgressState::Snapshot || log_start <= received;
        if self.state != ProgressState::Replicate && is_found && is_within_reach {
            self.state = ProgressState::Replicate;
        }
        self.next_index = self.next_index.max(received.next());
    }

    /// It does not hold the entry at `refused`; the logs may agree at `hint`, as seen from the
    /// leader's log. Says whether that is news.
    pub(crate) fn on_conflict(&mut self, refused: Index, hint: Index) -> bool {
        let is_stale = refused <= self.match_index
            || self.state == ProgressState::Snapshot // it has been understood
            || (self.state == ProgressState::Probe && refused != self.next_index.prev());
        if is_stale {
            return false;
        }
        self.state = ProgressState::Probe;
        self.clear_window();
        self.next_index = hint.min(refused.prev()).max(self.match_index).next();
        true
    }

    /// An answer to `round` has come. A round is the moment when it was sent; an answer that is
    /// not the first to its round says nothing about how long one takes.
    pub(crate) fn on_answer(&mut self, now: Timestamp, round: Round) {
        /// What one answer changes, as in TCP (RFC 6298): an eighth.
        const SMOOTHING: u32 = 8;
        if round <= self.acked_round {
            return;
        }
        self.acked_round = round;
        let took = now - Timestamp(round.get());
        self.round_trip = Some(match self.round_trip {
            None => took,
            Some(before) => before - before / SMOOTHING + took / SMOOTHING,
        });
    }

    /// An answer to `round` has come, and by then everything sent `grace` before it should
    /// have been heard of. What was not received is taken for lost, and sent again.
    pub(crate) fn maybe_resend(
        &mut self,
        received: Index,
        round: Round,
        (grace, log_start): (Duration, Index),
    ) {
        let is_overdue = |sent: Round| {
            u64::try_from(grace.as_nanos())
                .is_ok_and(|grace| sent.get().saturating_add(grace) <= round.get())
        };
        if self.awaits.is_some_and(is_overdue) {
            self.awaits = None;
        }
        let lost = self.window.iter().find(|sent| received < sent.last);
        // A follower that had received something may lose it in a crash, before it was durable.
        // Then its newest answer falls back, while nothing is on the way to it.
        let has_fallen_back = self.state == ProgressState::Replicate
            && self.is_idle()
            && round == self.acked_round
            && received.next() < self.next_index;
        if has_fallen_back || lost.is_some_and(|sent| is_overdue(sent.round)) {
            self.clear_window();
            self.next_index = received.max(self.match_index).max(log_start).next();
        }
    }

    /// What is on its way may be lost. Starts again from what is known, once the follower is
    /// heard of: a peer that cannot be reached is not sent to in a loop. Not to know a match is
    /// no proof that the follower has nothing: it is not asked for what is purged.
    pub(crate) fn on_unreachable(&mut self, round: Round, log_start: Index) {
        if self.state == ProgressState::Snapshot {
            return; // the end of the transfer will be told
        }
        self.probe_after(self.match_index.max(log_start));
        self.awaits = Some(round);
    }

    fn clear_window(&mut self) {
        self.window.clear();
        self.window_bytes = 0;
        self.awaits = None;
        self.is_asking = false;
    }

    pub(crate) fn assert_invariants(&self, id: NodeId, last_index: Index) {
        assert!(
            self.match_index < self.next_index,
            "{id}: next {} is after match {}",
            self.next_index,
            self.match_index,
        );
        assert!(
            self.next_index <= last_index.next(),
            "{id}: next {} is in the log or right after its end {last_index}",
            self.next_index,
        );
        assert!(
            !self.window.is_empty() || self.window_bytes == 0,
            "{id}: an empty window holds {} bytes",
            self.window_bytes,
        );
    }

    pub(crate) fn status(&self, id: NodeId) -> ProgressStatus {
        ProgressStatus {
            id,
            match_index: self.match_index,
            next_index: self.next_index,
            state: self.state,
            acked_at: Timestamp(self.acked_round.get()),
            round_trip: self.round_trip,
            inflight_bytes: self.window_bytes,
            report: self.report,
        }
    }
}
