//! Snapshots stand in for the entries that are purged (§7).
//!
//! The core never sees a snapshot, only what it stands for. The leader notices that a follower
//! needs what is purged, asks its host to send the newest snapshot, and goes on with heartbeats.
//! Whatever the transfer reports, only the follower's own reply moves its match index
//! (pitfall M11).
//!
//! The follower's host brings a whole, verified, durable file. The log is then reset in one
//! write; until that is durable the old log and the old state count, afterwards the new ones
//! (pitfall M10). There is no moment at which a crash would leave half of each.

use crate::{
    EntryId, Index, NodeId, ProgressState, RaftCore, Session, SnapshotEffect, SnapshotMeta,
    Timestamp,
    core::{NUMBER_MAX, State},
    replicate::Leading,
};

/// How a follower is being given a snapshot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sending {
    /// The transfer that is under way. Each attempt has its own number, so that a late word of
    /// an earlier one is not taken for one of this.
    under_way: Option<Session>,
    /// No other transfer begins before this.
    again_at: Timestamp,
    /// Attempts since the follower was last within reach.
    attempts: u32,
}

/// The pause after an attempt doubles with each, from two heartbeats up to this many times as
/// much. A guess: long against a hiccup, short against the patience of an operator.
const PAUSE_DOUBLINGS_MAX: u32 = 5;

impl Sending {
    /// What to say when the follower does not need it any more.
    pub(crate) fn cancel(self, to: NodeId) -> Option<SnapshotEffect> {
        self.under_way.map(|session| SnapshotEffect::Cancel { to, session })
    }
}

impl RaftCore {
    // ---------------------------------------------------------------- leader

    /// The follower needs what is purged. One transfer at a time, and not again at once: one
    /// that has just arrived may not be installed yet, and one that has just failed would fail
    /// again (pitfall M16).
    pub(crate) fn strand(&mut self, to: NodeId) {
        let at_least = self.log.start().index;
        let State::Leader(leading) = &mut self.state else { return };
        let Some(progress) = leading.progress.get_mut(&to) else { return };
        progress.strand();
        self.begin_snapshot(to, at_least);
    }

    /// Asks the host to send a snapshot, unless it is too early for one.
    pub(crate) fn begin_snapshot(&mut self, to: NodeId, at_least: Index) {
        let State::Leader(leading) = &mut self.state else { return };
        let Some(progress) = leading.progress.get_mut(&to) else { return };
        let sending = progress.sending;
        // Who was removed is sent to for a while, but no snapshot.
        let is_leaving = progress.leaves_at.is_some();
        if is_leaving || sending.under_way.is_some() || self.now < sending.again_at {
            return;
        }
        let session = leading.next_session();
        let Some(progress) = leading.progress.get_mut(&to) else { return };
        progress.sending.under_way = Some(session);
        self.snapshot_effects.push(SnapshotEffect::Send { to, session, at_least });
    }

    /// A transfer has ended, well or not. It proves nothing: the follower is asked.
    pub(crate) fn on_snapshot_sent(&mut self, to: NodeId, session: Session, sent: Option<EntryId>) {
        let (now, last) = (self.now, self.log.last().index);
        let heartbeat = self.config.heartbeat_interval;
        let State::Leader(leading) = &mut self.state else { return };
        let Some(progress) = leading.progress.get_mut(&to) else { return };
        let sending = &mut progress.sending;
        if sending.under_way != Some(session) {
            return;
        }
        sending.under_way = None;
        sending.again_at = now + heartbeat * (2 << sending.attempts.min(PAUSE_DOUBLINGS_MAX));
        sending.attempts += 1;
        if let Some(sent) = sent {
            progress.probe_after(sent.index.min(last));
        }
    }

    /// When the pause after a transfer is over, the follower is asked again where it stands: it
    /// may have come within reach by itself, and one that does not answer gets no snapshot.
    pub(crate) fn retry_stranded(&mut self) {
        let (now, start) = (self.now, self.log.start().index);
        let State::Leader(leading) = &mut self.state else { return };
        for progress in leading.progress.values_mut() {
            let sending = progress.sending;
            let is_stranded = progress.state() == ProgressState::Snapshot;
            if is_stranded && sending.under_way.is_none() && sending.again_at <= now {
                progress.probe_after(start);
            }
        }
    }

    /// The follower has answered. If it is within reach, no snapshot is needed any more.
    pub(crate) fn maybe_cancel_snapshot(&mut self, to: NodeId) {
        let State::Leader(leading) = &mut self.state else { return };
        let Some(progress) = leading.progress.get_mut(&to) else { return };
        if progress.state() != ProgressState::Replicate || progress.report.needs_snapshot.is_some()
        {
            return;
        }
        let sending = std::mem::take(&mut progress.sending);
        self.snapshot_effects.extend(sending.cancel(to));
    }

    /// This node leads no more: the next leader will see who needs what.
    pub(crate) fn cancel_snapshots(&mut self, leading: &Leading) {
        let progress = leading.progress.iter();
        self.snapshot_effects.extend(progress.filter_map(|(&to, p)| p.sending.cancel(to)));
    }

    // ---------------------------------------------------------------- follower

    /// A snapshot lies on our disk, whole. It stands for committed entries, whoever sent it;
    /// what it says was checked by nobody but its sender (pitfall D15).
    pub(crate) fn on_snapshot_received(&mut self, from: NodeId, meta: SnapshotMeta) {
        let last = meta.last;
        if NUMBER_MAX <= last.index.get()
            || NUMBER_MAX <= last.term.get()
            || !meta.membership.is_sound()
        {
            return;
        }
        if self.term < last.term {
            self.become_follower(last.term, None); // that term has had a leader (§5.1)
        }
        // A leader has all that is committed, and says itself what is (§5.4.3). A stopped node
        // takes nothing in.
        if matches!(self.state, State::Leader(_) | State::Stopped) {
            return;
        }
        if self.log.id_at(last.index) == Some(last) {
            // The log holds all of it, so all after it may be right too (pitfall M9).
            self.commit_index = self.commit_index.max(last.index);
            if self.applying.is_bereft() {
                self.applying.install(&meta);
            }
        } else if self.commit_index < last.index {
            if self.applying.hold(from, &meta) {
                return; // the state machine is still reading from the log
            }
            self.reset_log(meta);
        }
        self.note_snapshot(from, last.index);
    }

    /// Drops the whole log, and starts it again after the snapshot. Whatever it held at or after
    /// the last entry of the snapshot contradicts what is committed, or is missing.
    fn reset_log(&mut self, meta: SnapshotMeta) {
        // Who stands for election has told the others how its log ends: that is over.
        if !matches!(self.state, State::Follower(_)) {
            self.become_follower(self.term, None);
        }
        let committed = self.commit_index;
        self.forget_received(committed.next());
        self.log.reset(meta.last);
        self.commit_index = meta.last.index;
        // No entry after it remains, so none can say otherwise (pitfall M4).
        self.memberships.reset_to(&meta);
        self.applying.install(&meta);
        self.writes.note_reset(committed, meta);
    }

    /// Our leader's own snapshot agrees with our leader's log. Of another one, it will find out.
    /// Either way it is waiting to hear of us.
    fn note_snapshot(&mut self, from: NodeId, upto: Index) {
        let commit_index = self.commit_index;
        let State::Follower(following) = &mut self.state else { return };
        if following.leader == Some(from) && upto <= commit_index {
            following.note_received(upto);
        }
        following.owe_reply();
    }
}
