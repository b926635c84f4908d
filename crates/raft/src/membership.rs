//! Who belongs to the cluster, and which sets of them are a quorum (§6, thesis §4).
//!
//! A membership stands in the log and is in force from the moment it is appended. It is either
//! simple, or *joint*: then a quorum is a majority of the old voters and a majority of the new.
//! This module answers questions about one membership; when one follows another is decided
//! elsewhere.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;

use crate::{NodeId, StoreId, core::NUMBER_MAX};

/// The members of a cluster and their roles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Sorted by id, each id once.
    pub members: Vec<Member>,
    /// The voters of the membership that is being left, sorted. Empty unless joint.
    pub outgoing: Vec<NodeId>,
    /// The id that the next new member gets. Only grows, so that no id is given twice.
    pub next_id: NodeId,
}

/// One server of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id, for ever.
    pub id: NodeId,
    /// Whether it votes.
    pub role: MemberRole,
    /// Where its peers reach it.
    pub address: Arc<str>,
    /// The data directory that it had when it was first heard of. A server that comes back with
    /// another one has forgotten what it promised (pitfall M7).
    pub store: Option<StoreId>,
    /// What the application wants every member to know of this one. Opaque to the protocol.
    pub context: Bytes,
}

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemberRole {
    /// Counts in elections and commitment.
    Voter,
    /// Receives the log and counts for nothing (thesis §4.2.1).
    Learner {
        /// How it becomes a voter.
        promotion: Promotion,
    },
    /// Counts only among the outgoing voters of a joint membership, and goes with them. It is
    /// named so that its peers still find it.
    Leaving,
}

/// How a learner becomes a voter. Stands in the log, so a change of leader does not lose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a codec that overlooks one must not compile")]
pub enum Promotion {
    /// When somebody asks for it.
    ByHand,
    /// By the leader, once it has caught up.
    WhenCaughtUp,
    /// By the leader, once it has caught up, in one step with the removal of this member.
    Replacing(NodeId),
}

/// The largest cluster that is supported. More voters make a cluster slower and not safer.
pub(crate) const VOTERS_MAX: usize = 7;

impl Membership {
    /// A simple membership of voters. Ids and addresses as given, sorted by id.
    #[must_use]
    pub fn of_voters<A: Into<Arc<str>>>(voters: impl IntoIterator<Item = (NodeId, A)>) -> Self {
        let mut members: Vec<Member> = voters
            .into_iter()
            .map(|(id, address)| Member {
                id,
                role: MemberRole::Voter,
                address: address.into(),
                store: None,
                context: Bytes::new(),
            })
            .collect();
        members.sort_by_key(|member| member.id);
        let next_id = NodeId(members.last().map_or(1, |member| member.id.get() + 1));
        Self { members, outgoing: Vec::new(), next_id }
    }

    /// The member with this id.
    #[must_use]
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// Whether it is one that a change could have led to: what comes from a peer or a disk has
    /// to be. It has voters, not too many, each member once and in order, and ids left to give;
    /// and whoever leaves is known.
    pub(crate) fn is_sound(&self) -> bool {
        let is_in_order = self.members.is_sorted_by(|a, b| a.id < b.id)
            && self.outgoing.is_sorted_by(|a, b| a < b)
            && self.members.first().is_some_and(|member| 0 < member.id.get())
            && self.members.last().is_some_and(|member| member.id < self.next_id)
            && self.next_id.get() < NUMBER_MAX;
        let is_leaving = |member: &&Member| member.role == MemberRole::Leaving;
        let voters = self.voters().count();
        is_in_order
            && 0 < voters
            && voters.max(self.outgoing.len()) <= VOTERS_MAX
            && self.outgoing.iter().all(|&id| self.member(id).is_some())
            && self.members.iter().filter(is_leaving).all(|m| self.outgoing.contains(&m.id))
    }

    /// Whether two majorities are needed.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `id` counts in elections and commitment, in either half of a joint membership.
    #[must_use]
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters().any(|voter| voter == id) || self.outgoing.contains(&id)
    }

    /// Whether `id` was a member once and counts for nothing any more. Whoever leaves still
    /// counts while the membership is joint, and has to go on voting until the next one is
    /// committed.
    #[must_use]
    pub fn has_removed(&self, id: NodeId) -> bool {
        // Ids only grow: an older membership has not known a later one yet.
        let was_known = id.get() != 0 && id < self.next_id;
        was_known && self.member(id).is_none() && !self.outgoing.contains(&id)
    }

    /// Whether `id` decides everything alone: no other counts, in either half.
    #[must_use]
    pub fn is_lone_voter(&self, id: NodeId) -> bool {
        !self.is_joint() && self.voters().eq([id])
    }

    /// The voters of the membership that is in force or being entered, sorted.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().filter(|m| m.role == MemberRole::Voter).map(|m| m.id)
    }

    /// Everyone that the leader sends the log to: members and outgoing voters, sorted.
    #[must_use]
    pub fn replicas(&self) -> BTreeSet<NodeId> {
        self.members.iter().map(|m| m.id).chain(self.outgoing.iter().copied()).collect()
    }

    /// The voters of each half: one set, or two when joint.
    fn halves(&self) -> impl Iterator<Item = Vec<NodeId>> {
        let incoming: Vec<NodeId> = self.voters().collect();
        let outgoing = (!self.outgoing.is_empty()).then(|| self.outgoing.clone());
        std::iter::once(incoming).chain(outgoing)
    }

    /// Whether the voters for whom `holds` is true are a quorum (of each half, if joint).
    ///
    /// No voters, no quorum: an empty membership decides nothing.
    pub fn has_quorum(&self, mut holds: impl FnMut(NodeId) -> bool) -> bool {
        self.halves().all(|voters| {
            let count = voters.iter().filter(|&&voter| holds(voter)).count();
            voters.len() / 2 < count
        })
    }

    /// The largest value that a quorum has reached, given what each voter has reached.
    ///
    /// With a match index for each voter it is the index that may be committed (§5.3, §5.4);
    /// with acknowledged rounds it is the newest moment at which a quorum followed the leader.
    /// Of a joint membership it is the smaller of both halves.
    pub fn quorum_value<T: Ord + Default>(&self, mut value: impl FnMut(NodeId) -> T) -> T {
        self.halves()
            .map(|voters| {
                let mut values: Vec<T> = voters.iter().map(|&voter| value(voter)).collect();
                // Sorted anew each time: order kept from earlier steps has cost another
                // library its safety (pitfall B3).
                values.sort_unstable();
                // Of n values in ascending order, the one at (n - 1) / 2 and all after it
                // are a majority.
                let at = values.len().saturating_sub(1) / 2;
                values.into_iter().nth(at).unwrap_or_default()
            })
            .min()
            .unwrap_or_default()
    }
}
