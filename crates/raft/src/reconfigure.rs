//! Which membership follows another: a change as a pure function (§6, thesis §4.3).
//!
//! A change that leaves the voters as they are is in force at once. Any other goes through a
//! joint membership, in which the old voters and the new must both agree, so that there is no
//! moment at which two sets of servers could decide without each other.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    Change, ChangeError, ChangeSet, Member, MemberRole, Membership, NodeId, Promotion,
    membership::VOTERS_MAX,
};

/// What `change` makes of the simple membership `current`: the first membership to be appended,
/// joint when voters change.
pub(crate) fn change(
    current: &Membership,
    change: &ChangeSet,
    is_caught_up: impl Fn(NodeId) -> bool,
) -> Result<Membership, ChangeError> {
    let mut target = current.clone();
    for change in &change.changes {
        target.change(change, &is_caught_up)?;
    }
    target.members.sort_by_key(|member| member.id);
    if target == *current {
        return Err(ChangeError::Empty);
    }
    match target.voters().count() {
        0 => Err(ChangeError::NoVoters),
        count if VOTERS_MAX < count => Err(ChangeError::TooManyVoters { count }),
        _ => Ok(enter(current, target)),
    }
}

/// The way from one simple membership to another: at once, or by both.
fn enter(current: &Membership, mut target: Membership) -> Membership {
    let outgoing: Vec<NodeId> = current.voters().collect();
    if target.voters().eq(outgoing.iter().copied()) {
        return target;
    }
    // Who is about to go decides along until it has: it must be reached, and so be named.
    let gone: Vec<Member> = current
        .members
        .iter()
        .filter(|member| member.role == MemberRole::Voter && target.member(member.id).is_none())
        .map(|member| Member { role: MemberRole::Leaving, ..member.clone() })
        .collect();
    target.members.extend(gone);
    target.members.sort_by_key(|member| member.id);
    target.outgoing = outgoing;
    target
}

/// The simple membership that a joint one leads to.
pub(crate) fn leave(joint: &Membership) -> Membership {
    let mut members = joint.members.clone();
    members.retain(|member| member.role != MemberRole::Leaving);
    Membership { members, outgoing: Vec::new(), next_id: joint.next_id }
}

impl Membership {
    /// Carries out one step. The members need not be sorted afterwards.
    fn change(
        &mut self,
        change: &Change,
        is_caught_up: impl Fn(NodeId) -> bool,
    ) -> Result<(), ChangeError> {
        match change {
            Change::AddLearner { address, context, auto_promote } => {
                let promotion =
                    if *auto_promote { Promotion::WhenCaughtUp } else { Promotion::ByHand };
                self.add_learner(promotion, address, context)
            }
            Change::Replace { old, address, context } => {
                self.member(*old).ok_or(ChangeError::NoSuchMember(*old))?;
                self.add_learner(Promotion::Replacing(*old), address, context)
            }
            &Change::Promote(id) => self.promote(id, is_caught_up(id)),
            &Change::Demote(id) => {
                let member = self.member_mut(id)?;
                if member.role != MemberRole::Voter {
                    return Err(ChangeError::NotAVoter(id));
                }
                member.role = MemberRole::Learner { promotion: Promotion::ByHand };
                Ok(())
            }
            &Change::Remove(id) => self.remove(id),
            Change::Update { id, address, context } => {
                self.check_address(address, Some(*id))?;
                let member = self.member_mut(*id)?;
                member.address = Arc::clone(address);
                member.context = context.clone();
                Ok(())
            }
        }
    }

    fn add_learner(
        &mut self,
        promotion: Promotion,
        address: &Arc<str>,
        context: &Bytes,
    ) -> Result<(), ChangeError> {
        // A server that was wiped comes back at its old address, under a new id.
        let replaced = match promotion {
            Promotion::Replacing(old) => Some(old),
            Promotion::ByHand | Promotion::WhenCaughtUp => None,
        };
        self.check_address(address, replaced)?;
        let id = self.next_id;
        self.next_id = NodeId(id.get() + 1);
        self.members.push(Member {
            id,
            role: MemberRole::Learner { promotion },
            address: Arc::clone(address),
            store: None,
            context: context.clone(),
        });
        Ok(())
    }

    /// Makes a learner a voter, in the place of whom it replaces.
    fn promote(&mut self, id: NodeId, is_caught_up: bool) -> Result<(), ChangeError> {
        let member = self.member_mut(id)?;
        let MemberRole::Learner { promotion } = member.role else {
            return Err(ChangeError::NotALearner(id));
        };
        if !is_caught_up {
            return Err(ChangeError::NotCaughtUp(id));
        }
        member.role = MemberRole::Voter;
        if let Promotion::Replacing(old) = promotion {
            let old_role = self.member(old).map(|old| old.role);
            self.remove(old)?;
            if old_role != Some(MemberRole::Voter) {
                // It takes the place of a learner, which had no vote to give.
                self.member_mut(id)?.role = MemberRole::Learner { promotion: Promotion::ByHand };
            }
        }
        Ok(())
    }

    fn remove(&mut self, id: NodeId) -> Result<(), ChangeError> {
        self.member_mut(id)?;
        self.members.retain(|member| member.id != id);
        // Whoever was to replace it has nobody to replace any more: what becomes of it is for
        // a person to say.
        for member in &mut self.members {
            if member.role == (MemberRole::Learner { promotion: Promotion::Replacing(id) }) {
                member.role = MemberRole::Learner { promotion: Promotion::ByHand };
            }
        }
        Ok(())
    }

    fn member_mut(&mut self, id: NodeId) -> Result<&mut Member, ChangeError> {
        let member = self.members.iter_mut().find(|member| member.id == id);
        member.ok_or(ChangeError::NoSuchMember(id))
    }

    fn check_address(&self, address: &str, except: Option<NodeId>) -> Result<(), ChangeError> {
        let taken = self
            .members
            .iter()
            .find(|member| &*member.address == address && Some(member.id) != except);
        taken.map_or(Ok(()), |member| Err(ChangeError::AddressInUse(member.id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replace(old: u64, address: &str) -> ChangeSet {
        let (address, context) = (address.into(), Bytes::new());
        ChangeSet::one(Change::Replace { old: NodeId(old), address, context })
    }

    /// A server that lost its disk comes back where it was, and nobody else may.
    #[test]
    fn a_replacement_may_have_the_address_of_whom_it_replaces() {
        let members = Membership::of_voters([(NodeId(1), "a:1"), (NodeId(2), "b:1")]);
        let next = change(&members, &replace(2, "b:1"), |_| false).expect("it is its own address");
        assert_eq!(next.members.last().map(|member| &*member.address), Some("b:1"));
        assert!(!next.is_joint(), "no voter has changed yet");

        let refused = change(&members, &replace(2, "a:1"), |_| false);
        assert_eq!(refused, Err(ChangeError::AddressInUse(NodeId(1))));
    }
}
