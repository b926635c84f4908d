//! A state machine that has lost its state, while the log of its node is whole (§7).
//!
//! A disk may give back a log that begins after what the state machine holds: its files were
//! damaged and set aside, and the entries that made them are purged. Nothing that this node has
//! promised is forgotten. Its term, its vote and its log are what they were, so it votes, takes
//! entries and acknowledges them as before, and counts in every quorum. It only cannot apply. So
//! it says with each reply from where on it needs a snapshot, and its leader sends one although
//! the logs agree. When the snapshot has come the state machine takes it over, at or after the
//! start of the log, and what the log holds after it is applied on top.
//!
//! It does not lead if anybody else can: others stand first, and it hands over to the first who
//! could do better. But it must be able to stand, for its log may be the only one with all that
//! is committed among the servers that are up. As long as it leads it takes no proposals.

use crate::{Index, NodeId, RaftCore, Recovered, RestoreError, core::State};

/// Checks that somebody can help.
pub(crate) fn check_state(id: NodeId, recovered: &Recovered) -> Result<(), RestoreError> {
    let &Recovered { applied, log_start, ref memberships, .. } = recovered;
    let is_alone = memberships
        .last()
        .is_some_and(|(_, membership)| membership.is_voter(id) && membership.replicas().len() == 1);
    if applied < log_start.index && is_alone {
        return Err(RestoreError::LogStartsAfterApplied { applied, log_start });
    }
    Ok(())
}

impl RaftCore {
    /// Where a snapshot must end at least, if the state machine cannot go on without one.
    pub(crate) fn needs_snapshot(&self) -> Option<Index> {
        self.applying.is_bereft().then(|| self.log.start().index)
    }

    /// A follower has said with its reply that it cannot apply. It gets a snapshot beside the
    /// entries, which it goes on to acknowledge.
    pub(crate) fn supply(&mut self, to: NodeId) {
        let start = self.log.start().index;
        let State::Leader(leading) = &self.state else { return };
        let progress = leading.progress.get(&to);
        if let Some(needed) = progress.and_then(|progress| progress.report.needs_snapshot) {
            self.begin_snapshot(to, needed.max(start));
        }
    }
}
