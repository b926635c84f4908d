//! Handing the leadership over (thesis §3.10).
//!
//! The leader stops taking proposals, brings one follower up to its own end, and tells it to
//! stand at once. A transfer belongs to the leader state and dies with it, and it ends by itself
//! after one election timeout: no write is refused for longer (pitfall B17).

use crate::{Body, EntryId, Index, MemberRole, NodeId, RaftCore, Timestamp, VoteKind, core::State};

/// A transfer under way.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    pub(crate) to: NodeId,
    pub(crate) deadline: Timestamp,
    is_sent: bool,
}

impl RaftCore {
    /// Begins to hand over, to `to` or to the voter that holds most. Does nothing when there is
    /// nobody to hand over to: the caller sees it in the soft state.
    pub(crate) fn on_transfer_leadership(&mut self, to: Option<NodeId>) {
        let deadline = self.now + self.config.election_timeout;
        let State::Leader(leading) = &mut self.state else { return };
        let is_voter = |id: NodeId| {
            self.membership.member(id).is_some_and(|member| member.role == MemberRole::Voter)
        };
        let best = leading
            .progress
            .iter()
            .filter(|&(&id, _)| is_voter(id) && to.is_none_or(|to| to == id))
            .max_by_key(|(_, progress)| (progress.match_index(), progress.acked_round))
            .map(|(&id, _)| id);
        let Some(to) = best else { return };
        leading.transfer = Some(Transfer { to, deadline, is_sent: false });
        self.maybe_send_timeout_now();
    }

    /// Tells the target to stand, once it holds the whole log.
    pub(crate) fn maybe_send_timeout_now(&mut self) {
        let last = self.log.last();
        let State::Leader(leading) = &mut self.state else { return };
        let Some(transfer) = &mut leading.transfer else { return };
        let to = transfer.to;
        let matched = leading.progress.get(&to).map_or(Index::ZERO, |p| p.match_index());
        if transfer.is_sent || matched < last.index {
            return;
        }
        transfer.is_sent = true;
        self.send(to, Body::TimeoutNow { last });
    }

    /// Gives up when the target has not taken over in time.
    pub(crate) fn expire_transfer(&mut self) {
        let now = self.now;
        let State::Leader(leading) = &mut self.state else { return };
        if leading.transfer.as_ref().is_some_and(|transfer| transfer.deadline <= now) {
            leading.transfer = None;
        }
    }

    /// The leader wants this node to take over. An order that is late, or that speaks of a log
    /// that we do not hold, is none.
    pub(crate) fn on_timeout_now(&mut self, from: NodeId, last: EntryId) {
        let is_follower = matches!(self.state, State::Follower(_));
        let may_stand = self.membership.is_voter(self.config.id) && !self.is_storage_stalled();
        if is_follower
            && self.leader() == Some(from)
            && self.log.last().is_up_to_date_with(last)
            && may_stand
        {
            self.become_candidate(VoteKind::Transfer);
        }
    }
}
