//! Who should lead if all else is equal.
//!
//! A priority shortens the random part of the wait before an election, and lets a leader hand
//! over to a follower that has a higher one and keeps up. It has no part in who may be voted
//! for: a priority that could refuse a vote could leave a cluster without a leader.

use std::time::Duration;

use crate::{MemberRole, NodeId, RaftCore, Timestamp, core::State};

/// The random part of the election timeout is divided by one more than the priority, at most by
/// this. Lower and nodes with the same high priority would stand at the same moment.
const PATIENCE_DIVISOR_MAX: u32 = 8;

/// A leader hands over because of a priority at most once in so many election timeouts: one
/// whose disk or network fails again and again must not take the cluster along each time.
const YIELD_TIMEOUTS: u32 = 10;

impl RaftCore {
    /// The longest random wait on top of what loyalty asks for. With the default priority it is
    /// the whole `timeout`; it is never nothing, so that an election always comes after the
    /// loyalty that voters owe (pitfall B12).
    pub(crate) fn patience(&self, timeout: Duration) -> Duration {
        timeout / (1 + u32::from(self.config.priority)).min(PATIENCE_DIVISOR_MAX)
    }

    /// Hands over to the voter with the highest priority above our own, if one has kept up for
    /// an election timeout and nothing keeps it from leading.
    pub(crate) fn maybe_yield(&mut self) {
        let timeout = self.config.election_timeout;
        let is_early =
            self.last_yield.is_some_and(|last| self.now < last + timeout * YIELD_TIMEOUTS);
        if is_early {
            return;
        }
        if let Some(to) = self.preferred_leader() {
            self.last_yield = Some(self.now);
            self.on_transfer_leadership(Some(to));
        }
    }

    fn preferred_leader(&self) -> Option<NodeId> {
        let membership = self.memberships.current();
        let State::Leader(leading) = &self.state else { return None };
        if leading.transfer.is_some() || self.commit_index < leading.blank {
            return None;
        }
        let has_kept_up = |since: Option<Timestamp>| {
            since.is_some_and(|since| since + self.config.election_timeout <= self.now)
        };
        leading
            .progress
            .iter()
            .filter(|&(&id, progress)| {
                membership.member(id).is_some_and(|member| member.role == MemberRole::Voter)
                    && self.config.priority < progress.report.priority
                    && has_kept_up(progress.caught_up_since)
                    && progress.could_lead()
            })
            .max_by_key(|(_, progress)| (progress.report.priority, progress.match_index()))
            .map(|(&id, _)| id)
    }
}
