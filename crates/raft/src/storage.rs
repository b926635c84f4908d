//! What a leader does about a disk that is full, or that does not give back what it holds (§5.3).
//!
//! Neither is a reason to stop: a node with a full disk answers reads and counts in elections,
//! and one that cannot read an old entry has all the others. But another could lead better, so
//! the leadership is handed over if it can be, and not again and again if it cannot.

use crate::{MemberRole, NodeId, RaftCore, Timestamp, Unavailable, core::State};

/// What this node knows of the disk under its log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Storage {
    pub(crate) is_full: bool,
    /// Writes that wait were held up by the full disk until then, not by a stall.
    pub(crate) space_since: Timestamp,
    /// When this node last handed over because of its disk.
    handed_over: Option<Timestamp>,
}

/// A leader hands over because of its disk at most once in so many election timeouts: if the
/// others cannot lead either, a cluster that changes its leader all the time serves nobody.
const HAND_OVER_TIMEOUTS: u32 = 10;

impl RaftCore {
    pub(crate) fn on_storage_space(&mut self, is_full: bool) {
        if self.storage.is_full && !is_full {
            self.storage.space_since = self.now;
        }
        self.storage.is_full = is_full;
        self.maybe_relieve();
    }

    /// Whether this node could take proposals if it led.
    pub(crate) fn could_serve(&self) -> bool {
        !self.storage.is_full && !self.applying.is_bereft()
    }

    /// A leader with a full disk takes no proposals, nor does one without its state. Somebody
    /// else might.
    pub(crate) fn maybe_relieve(&mut self) {
        if !self.could_serve() {
            self.hand_over();
        }
    }

    /// Entries that a follower needs could not be read. If they were purged meanwhile, or too
    /// much else was being read, they count as lost on the way: a later heartbeat's answer shows
    /// that they are missing, and they are asked for again. At once would be a loop.
    pub(crate) fn on_entries_unavailable(&mut self, why: Unavailable) {
        match why {
            Unavailable::Retry => {}
            Unavailable::Damaged => self.hand_over(),
        }
    }

    /// Hands over to the follower that holds most, of those that could lead better.
    fn hand_over(&mut self) {
        let pause = self.config.election_timeout * HAND_OVER_TIMEOUTS;
        let is_early = self.storage.handed_over.is_some_and(|last| self.now < last + pause);
        if is_early {
            return;
        }
        if let Some(to) = self.best_successor() {
            self.storage.handed_over = Some(self.now);
            self.on_transfer_leadership(Some(to));
        }
    }

    /// A voter that is heard of, has kept up, and has nothing that would keep it from leading.
    fn best_successor(&self) -> Option<NodeId> {
        let membership = self.memberships.current();
        let State::Leader(leading) = &self.state else { return None };
        if leading.transfer.is_some() {
            return None;
        }
        leading
            .progress
            .iter()
            .filter(|&(&id, progress)| {
                membership.member(id).is_some_and(|member| member.role == MemberRole::Voter)
                    && progress.caught_up_since.is_some()
                    && progress.could_lead()
            })
            .max_by_key(|(_, progress)| (progress.match_index(), progress.report.priority))
            .map(|(&id, _)| id)
    }
}
