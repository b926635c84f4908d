//! A node is what the membership in its log says, however it came to it.

use std::{sync::Arc, time::Duration};

use kontiki_raft::{
    Config, Effects, EntryId, HardState, Input, MemberRole, Membership, NodeId, Promotion,
    RaftCore, Recovered, Role, SnapshotMeta, Term, Timestamp,
};

/// Three members, of whom `learner` has no vote.
fn membership(learner: Option<u64>) -> Arc<Membership> {
    let mut membership = Membership::of_voters([1, 2, 3].map(|id| (NodeId(id), id.to_string())));
    for member in &mut membership.members {
        if Some(member.id.get()) == learner {
            member.role = MemberRole::Learner { promotion: Promotion::ByHand };
        }
    }
    Arc::new(membership)
}

fn node(membership: Arc<Membership>) -> RaftCore {
    let recovered = Recovered {
        hard_state: HardState { term: Term(1), ..HardState::default() },
        memberships: vec![(EntryId::ZERO, membership)],
        is_pristine: true,
        ..Recovered::default()
    };
    RaftCore::new(Config::new(NodeId(3), 1), recovered, Timestamp(1)).expect("it could be so")
}

/// Takes everything that the node wants written for written.
fn persist(node: &mut RaftCore, now: Timestamp) {
    let mut effects = Effects::default();
    node.poll(now, &mut effects);
    if let Some(write) = effects.write.take() {
        node.step(now, Input::Persisted(write.ticket));
    }
}

/// Whether it stands for election when it has heard nobody for very long.
fn stands(node: &mut RaftCore) -> bool {
    let late = Timestamp(Duration::from_secs(1_000).as_nanos().try_into().expect("small"));
    node.step(late, Input::Timeout);
    node.status().soft_state.role == Role::PreCandidate
}

/// Pitfall M20. Nobody keeps beside the membership whether he is a learner: what a snapshot
/// says about it holds from the moment that the log is reset to it.
#[test]
fn a_snapshot_makes_a_voter_of_a_learner_and_a_learner_of_a_voter() {
    for (before, after) in [(Some(3), None), (None, Some(3))] {
        assert_eq!(stands(&mut node(membership(before))), before.is_none());

        let mut node = node(membership(before));
        let last = EntryId::new(9, 1);
        let meta = SnapshotMeta { last, membership: membership(after) };
        node.step(Timestamp(2), Input::SnapshotReceived { from: NodeId(1), meta });
        persist(&mut node, Timestamp(2));
        assert_eq!(node.status().log_start, last);
        assert_eq!(stands(&mut node), after.is_none());
    }
}
