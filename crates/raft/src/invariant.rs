//! What must hold after every step, checked in release builds too (§5, Figure 3).
//!
//! A broken rule here is a bug of ours, and the node that has it might lie: it stops. Nothing
//! that a peer, a client or a disk says can break these (pitfall D15); what comes from outside
//! is checked where it comes in.

use crate::{Index, RaftCore, Term, core::State};

impl RaftCore {
    /// Terms and the commit index never go back (§5.1, §5.3).
    pub(crate) fn assert_progressed(&self, before: (Term, Index)) {
        let (term, commit_index) = before;
        assert!(term <= self.term, "the term does not go back: {term} to {}", self.term);
        assert!(
            commit_index <= self.commit_index,
            "what is committed stays committed: {commit_index} to {}",
            self.commit_index,
        );
    }

    pub(crate) fn assert_invariants(&self) {
        let (start, last) = (self.log.start().index, self.log.last().index);
        let durable = self.writes.durable_index();
        let handed_out = self.applying.handed_out();
        // A damaged log may end before what the state machine holds.
        let known = self.damage.as_ref().map_or(Index::ZERO, |damage| damage.applied);
        // Or a snapshot that is about to be installed stands for it, or is waited for.
        let is_covered = start <= handed_out
            || self.applying.installs().is_some_and(|last| start <= last.index)
            || self.applying.is_bereft();
        assert!(is_covered, "what is purged was applied: {start}, {handed_out}");
        assert!(
            handed_out <= self.commit_index.max(known),
            "only what is committed is applied: {handed_out} of {}",
            self.commit_index,
        );
        assert!(
            handed_out <= durable.max(known),
            "only what is durable is applied: {handed_out}, {durable}",
        );
        assert!(
            self.commit_index <= last,
            "what is committed is in the log: {} of {last}",
            self.commit_index,
        );
        assert!(durable <= last, "what is durable is in the log: {durable} of {last}");
        assert!(self.applying.applied() <= handed_out, "what is applied was handed out");
        assert!(self.log.last().term <= self.term, "no entry is of a future term");
        let membership_at = self.memberships.current_at().index;
        assert!(membership_at <= last, "the membership is of the log: {membership_at} of {last}");
        self.assert_role();
    }

    fn assert_role(&self) {
        let id = self.config.id;
        match &self.state {
            State::Leader(leading) => {
                let last = self.log.last().index;
                assert!(self.voted_for == Some(id), "a leader voted for itself");
                let replicas = self.memberships.current().replicas();
                assert!(
                    replicas.iter().all(|peer| *peer == id || leading.progress.contains_key(peer)),
                    "a leader sends to every replica",
                );
                assert!(leading.blank <= last, "a leader never cuts its log (leader append-only)");
                for (&peer, progress) in &leading.progress {
                    progress.assert_invariants(peer, last);
                }
            }
            State::Candidate(_) => {
                assert!(self.voted_for == Some(id), "a candidate votes for itself");
            }
            State::Follower(following) => {
                assert!(following.leader != Some(id), "nobody follows itself");
            }
            State::PreCandidate(_) | State::Stopped => {}
        }
    }
}
