//! The operator of a swarm: members come, go and are replaced, and servers that join are set up.

use std::time::Duration;

use kontiki_raft::{Bytes, Change, ChangeSet, EntryId, MemberRole, NodeId};

use super::{clients::leader, play::Play};
use crate::{
    scenario::{LEADER, What},
    trace::Failure,
};

/// More servers than this are not set up in one world.
const NODES_MAX: usize = 24;

impl Play {
    /// Sets up the servers that the committed membership names and that are not there yet.
    pub(super) fn set_up(&mut self) -> Result<(), Failure> {
        let (at, _) = self.world.committed_membership();
        if at == self.membership_at {
            return Ok(());
        }
        self.membership_at = at;
        for id in self.world.set_up_members() {
            self.seen.members_joined += 1;
            self.world.start(id)?;
        }
        Ok(())
    }

    /// Asks some node for a change.
    pub(super) fn change_members(&mut self, what: What, arg: u64) -> Result<(), Failure> {
        let up: Vec<NodeId> = self.world.node_ids().filter(|&id| self.world.is_up(id)).collect();
        // Most operators find the leader.
        let any = usize::try_from(arg % 7).ok().and_then(|at| up.get(at % up.len().max(1)));
        let asked = leader(&self.world).filter(|_| !arg.is_multiple_of(3)).or(any.copied());
        let (Some(asked), Some(member)) = (asked, self.member(what, arg)) else { return Ok(()) };
        let nodes = self.world.node_ids().count();
        if NODES_MAX <= nodes && matches!(what, What::AddLearner | What::Replace) {
            return Ok(());
        }
        let takes_away = matches!(what, What::Remove | What::Demote | What::Replace);
        if !self.world.are_all_whole()
            && (self.is_changing() || (takes_away && !self.world.can_remove(member)))
        {
            return Ok(()); // the operator has looked first
        }
        self.last_change = self.world.now();
        self.addresses += 1;
        let address = format!("a{}", self.addresses).into();
        let context = Bytes::new();
        let change = match what {
            What::AddLearner => Change::AddLearner { address, context, auto_promote: arg == 1 },
            What::Promote => Change::Promote(member),
            What::Demote => Change::Demote(member),
            What::Remove => Change::Remove(member),
            What::Replace => Change::Replace { old: member, address, context },
            What::Update => Change::Update { id: member, address, context },
            _ => return Ok(()),
        };
        self.world.change_membership(asked, ChangeSet::one(change)).map(|_| ())
    }

    /// Whether a change that was asked for may still come to something.
    pub(super) fn is_changing(&self) -> bool {
        let patience = self.world.setup.request_timeout + Duration::from_secs(3);
        self.world.now() < self.last_change + patience && self.addresses != 0
    }

    /// The member that an argument means: one that the change makes sense for, if there is one.
    fn member(&self, what: What, arg: u64) -> Option<NodeId> {
        if arg == LEADER && what != What::Promote {
            return leader(&self.world);
        }
        let (_, membership) = self.world.committed_membership();
        let is_learner = |role: MemberRole| matches!(role, MemberRole::Learner { .. });
        let mut fitting: Vec<NodeId> = membership
            .members
            .iter()
            .filter(|member| match what {
                What::Promote => is_learner(member.role),
                What::Demote => member.role == MemberRole::Voter,
                _ => true,
            })
            .map(|member| member.id)
            .collect();
        // Whoever has lost its disk is replaced first.
        if matches!(what, What::Replace | What::Remove) {
            let is_lost = |id: &NodeId| self.world.is_dead(*id);
            if fitting.iter().any(is_lost) {
                fitting.retain(is_lost);
            }
        }
        let at = usize::try_from(arg).unwrap_or_default() % fitting.len().max(1);
        fitting.get(at).copied()
    }
}

/// Before the first change.
pub(super) const NO_MEMBERSHIP: EntryId = EntryId::ZERO;
