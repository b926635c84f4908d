//! Servers that come and go, as an operator sees it.

use kontiki::Event;
use kontiki_raft::{ChangeSet, EntryId, MemberRole, Membership, NodeId, Promotion, Role};

use super::{World, place};
use crate::{node::Node, requests::Ask, trace::Failure};

impl World {
    /// An operator asks a node to change the membership. Returns the number of the request.
    ///
    /// # Errors
    ///
    /// When an invariant breaks.
    pub fn change_membership(&mut self, id: NodeId, change: ChangeSet) -> Result<u64, Failure> {
        self.ask(id, Ask::Change, |request, deadline| Event::ChangeMembership {
            id: request,
            change,
            deadline,
        })
    }

    /// The newest membership that is committed, and where.
    #[must_use]
    pub fn committed_membership(&self) -> (EntryId, &Membership) {
        let (at, membership) = self.ledger.committed_membership();
        (*at, membership)
    }

    /// Sets up the machines of members that have none, as servers that join: they take the
    /// committed membership for the one they begin with.
    pub(crate) fn set_up_members(&mut self) -> Vec<NodeId> {
        let (_, membership) = self.ledger.committed_membership();
        let membership = Membership::clone(membership);
        let mut joined = Vec::new();
        for member in &membership.members {
            while self.nodes.len() <= place(member.id) {
                self.add_node();
            }
            let node = &mut self.nodes[place(member.id)];
            if node.genesis.is_none() && !node.is_dead {
                node.genesis = Some(membership.clone());
                joined.push(member.id);
            }
        }
        joined
    }

    /// A disk is gone for ever, with all that was on it.
    pub(crate) fn destroy(&mut self, id: NodeId) {
        self.crash(id);
        self.nodes[place(id)].is_dead = true;
    }

    /// Whether it can run: it has joined, and its disk is there.
    #[must_use]
    pub fn is_set_up(&self, id: NodeId) -> bool {
        self.nodes.get(place(id)).is_some_and(|node| node.genesis.is_some() && !node.is_dead)
    }

    /// Whether its disk is gone for ever.
    #[must_use]
    pub fn is_dead(&self, id: NodeId) -> bool {
        self.nodes.get(place(id)).is_some_and(|node| node.is_dead)
    }

    /// Whether its log has lost acknowledged entries, or its store has lost its state, or may
    /// have.
    #[must_use]
    pub fn is_damaged(&self, id: NodeId) -> bool {
        let has_lost = |node: &Node| node.kv_is_rotten || node.kv_is_lost;
        self.ledger.is_damaged(id) || self.nodes.get(place(id)).is_some_and(has_lost)
    }

    /// Whether its process is about to exit, for its disk has failed.
    pub(crate) fn has_failed(&self, id: NodeId) -> bool {
        let Some(process) = &self.nodes[place(id)].process else { return false };
        process.replica.status().soft_state.role == Role::Stopped
            || process.kv.as_ref().is_some_and(|kv| kv.has_failed)
    }

    /// Whether the others can do without what this node holds: of every membership that may
    /// count, a quorum has whole disks without it.
    pub(crate) fn can_lose(&self, id: NodeId) -> bool {
        let mut memberships = self.possible_memberships().into_iter();
        memberships.all(|m| m.has_quorum(|other| other != id && self.is_whole(other)))
    }

    /// Whether it can run, and holds all that it has acknowledged.
    fn is_whole(&self, id: NodeId) -> bool {
        self.is_set_up(id) && !self.is_damaged(id)
    }

    /// Whether every member is whole.
    pub(crate) fn are_all_whole(&self) -> bool {
        let memberships = self.possible_memberships();
        memberships.iter().all(|m| m.replicas().into_iter().all(|id| self.is_whole(id)))
    }

    /// Whether the members would still decide something without the vote of this one, as an
    /// operator asks before taking it away.
    pub(crate) fn can_remove(&self, id: NodeId) -> bool {
        self.possible_memberships().into_iter().all(|mut membership| {
            membership.members.retain(|member| member.id != id);
            membership.has_quorum(|other| self.is_whole(other))
        })
    }

    /// What counts now or may count by itself soon: a learner that has just caught up may yet
    /// become a voter, whatever happens to it.
    fn possible_memberships(&self) -> Vec<Membership> {
        let live = self.live_memberships();
        let promoted: Vec<Membership> = live.iter().flat_map(|m| promotions(m)).collect();
        live.iter().map(|m| Membership::clone(m)).chain(promoted).collect()
    }

    fn live_memberships(&self) -> Vec<std::sync::Arc<Membership>> {
        self.ledger.memberships_of(self.node_ids().filter(|&id| self.is_set_up(id)))
    }

    /// Nodes that are a quorum, of whatever membership may count, beginning the choice with
    /// `first`; all that can run if `is_all`. A server that waits for its first entry is chosen,
    /// too, now and then.
    pub(crate) fn choose_core(&self, first: u64, is_all: bool) -> Vec<NodeId> {
        let memberships = self.possible_memberships();
        let mut nodes: Vec<NodeId> = self.node_ids().filter(|&id| self.is_set_up(id)).collect();
        let shift = usize::try_from(first).unwrap_or_default() % nodes.len().max(1);
        nodes.rotate_left(shift);
        // Who has lost something can neither vote nor be counted before it is whole again.
        nodes.sort_by_key(|&id| self.is_damaged(id));
        let mut core: Vec<NodeId> = Vec::new();
        let has_quorum = |core: &[NodeId]| {
            let counts = |id| core.contains(&id) && !self.is_damaged(id);
            memberships.iter().all(|m| m.has_quorum(counts))
        };
        for id in nodes {
            if is_all || !has_quorum(&core) {
                core.push(id);
            }
        }
        core.sort_unstable();
        core
    }

    /// Whether these nodes, those of them that are whole, are a quorum of whatever membership
    /// stands in their logs.
    pub(crate) fn is_quorum(&self, core: &[NodeId]) -> bool {
        let memberships = self.ledger.memberships_of(core.iter().copied());
        let counts = |id| core.contains(&id) && !self.is_damaged(id) && !self.is_dead(id);
        memberships.iter().all(|membership| membership.has_quorum(counts))
    }

    /// One of these nodes that runs and belongs to the cluster.
    pub(crate) fn any_member(&self, nodes: &[NodeId]) -> Option<NodeId> {
        let (_, membership) = self.committed_membership();
        let fits = |id: &&NodeId| membership.member(**id).is_some() && self.is_up(**id);
        nodes.iter().find(fits).copied()
    }

    /// What these nodes would say of themselves.
    pub(crate) fn describe(&self, nodes: &[NodeId]) -> String {
        let (at, membership) = self.committed_membership();
        let voters: Vec<NodeId> = membership.voters().collect();
        let states: Vec<_> = nodes.iter().map(|&id| (id, self.status(id))).collect();
        let live: Vec<String> = self
            .live_memberships()
            .iter()
            .map(|m| format!("{:?} from {:?}", m.voters().collect::<Vec<_>>(), m.outgoing))
            .collect();
        format!("committed membership {at} with voters {voters:?} of {live:?}; {states:?}")
    }
}

/// What a membership becomes when learners are promoted by themselves: each alone, or all.
fn promotions(membership: &Membership) -> Vec<Membership> {
    let promote = |chosen: &dyn Fn(NodeId) -> bool| {
        let mut next = membership.clone();
        for member in &membership.members {
            let MemberRole::Learner { promotion } = member.role else { continue };
            let old = match promotion {
                Promotion::ByHand => continue,
                Promotion::WhenCaughtUp => None,
                Promotion::Replacing(old) => Some(old),
            };
            if chosen(member.id) {
                next.members.retain(|other| Some(other.id) != old);
                for other in next.members.iter_mut().filter(|other| other.id == member.id) {
                    other.role = MemberRole::Voter;
                }
            }
        }
        next
    };
    let mut found: Vec<Membership> =
        membership.members.iter().map(|member| promote(&|id| id == member.id)).collect();
    found.push(promote(&|_| true));
    found
}
