//! Handing the leadership over (thesis §3.10).
//!
//! The leader stops taking proposals, brings one follower up to its own end, and tells it to
//! stand at once. A transfer belongs to the leader state and dies with it, and it ends by itself
//! after one election timeout: no write is refused for longer (pitfall B17).

use crate::{
    Body, EntryId, Index, MemberRole, NodeId, Payload, RaftCore, Timestamp, VoteKind, core::State,
};

/// A transfer under way.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    pub(crate) to: NodeId,
    pub(crate) deadline: Timestamp,
    is_sent: bool,
}

impl RaftCore {
    /// Begins to hand over, to `to` or to the voter that holds most and could lead. Does
    /// nothing when there is nobody to hand over to, or while another transfer is under way: it
    /// would make clients wait for longer than an election timeout. The caller sees what comes
    /// of it in the status.
    pub(crate) fn on_transfer_leadership(&mut self, to: Option<NodeId>) {
        let deadline = self.now + self.config.election_timeout;
        let membership = self.memberships.current();
        let State::Leader(leading) = &mut self.state else { return };
        if leading.transfer.is_some() {
            return;
        }
        let is_voter = |id: NodeId| {
            membership.member(id).is_some_and(|member| member.role == MemberRole::Voter)
        };
        let best = leading
            .progress
            .iter()
            .filter(|&(&id, _)| is_voter(id) && to.is_none_or(|to| to == id))
            .filter(|(_, progress)| progress.could_lead())
            .max_by_key(|(_, progress)| {
                (progress.match_index(), progress.report.priority, progress.acked_round)
            })
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

    /// To whom the leadership is being handed.
    pub(crate) fn transfer_to(&self) -> Option<NodeId> {
        match &self.state {
            State::Leader(leading) => leading.transfer.as_ref().map(|transfer| transfer.to),
            State::Follower(_) | State::PreCandidate(_) | State::Candidate(_) | State::Stopped => {
                None
            }
        }
    }

    /// Gives up when the target has not taken over in time. The order to stand may still be on
    /// its way, and the voters' promises do not bind them against it: a blank entry does, once
    /// it is committed. A target that does not hold it cannot win (§5.4.1), and to one that does
    /// the order is of a log that it has no more.
    pub(crate) fn expire_transfer(&mut self) {
        let now = self.now;
        let is_voter = self.memberships.current().is_voter(self.config.id);
        let State::Leader(leading) = &mut self.state else { return };
        if leading.transfer.as_ref().is_none_or(|transfer| now < transfer.deadline) {
            return;
        }
        leading.transfer = None;
        if !is_voter {
            self.become_follower(self.term, None); // it was going anyway
            return;
        }
        let blank = self.append(Payload::Blank);
        if let State::Leader(leading) = &mut self.state {
            leading.lease_blocked_until = Some(blank.index);
        }
    }

    /// The leader wants this node to take over. An order that is late, or that speaks of another
    /// log than ours, is none: a leader appends nothing while it hands over, so an entry behind
    /// the one it speaks of says that it has given up.
    pub(crate) fn on_timeout_now(&mut self, from: NodeId, last: EntryId) {
        let is_follower = matches!(self.state, State::Follower(_));
        let may_stand = self.can_campaign();
        if is_follower && self.leader() == Some(from) && self.log.last() == last && may_stand {
            self.become_candidate(VoteKind::Transfer);
        }
    }
}
