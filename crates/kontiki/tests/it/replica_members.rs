//! What a replica owes those who change the membership, and those whose entries a snapshot
//! skips.

use std::time::Duration;

use kontiki::{
    Answer, Bytes, Change, ChangeError, ChangeSet, EntryId, Event, MemberRole, Membership, NodeId,
    Rejection, RequestId, SnapshotMeta,
};

use crate::world::{ELECTION_TIMEOUT, HEARTBEAT, Outcome, World};

const LONG: Duration = Duration::from_secs(60);

fn change(
    world: &mut World,
    id: u64,
    number: u64,
    change: Change,
    patience: Duration,
) -> RequestId {
    let request = RequestId(1_000_000 + number);
    let (change, deadline) = (ChangeSet::one(change), world.now + patience);
    world.handle(id, Event::ChangeMembership { id: request, change, deadline });
    world.poll(id);
    request
}

fn changed(outcome: Outcome) -> (EntryId, Membership) {
    match outcome {
        Outcome::Answer(Answer::MembershipChanged { at, membership }) => {
            (at, Membership::clone(&membership))
        }
        outcome => panic!("not changed: {outcome:?}"),
    }
}

fn learner(address: &str) -> Change {
    let (address, context) = (address.into(), Bytes::new());
    Change::AddLearner { address, context, auto_promote: false }
}

/// Pitfall M1: the answer comes with the last step of the change, on whichever node was asked.
#[test]
fn a_change_is_answered_when_its_last_step_is_committed() {
    let mut world = World::new(3);
    let leader = world.elect();
    let follower = leader % 3 + 1;
    for (number, id) in (0..).zip([leader, follower]) {
        let other = NodeId((follower % 3) + 1);
        let what = if number == 0 { Change::Demote(other) } else { Change::Promote(other) };
        let request = change(&mut world, id, number, what, LONG);
        assert_eq!(world.outcomes(id, request), [], "not before it is committed");
        world.run_for(5 * HEARTBEAT);
        let (at, membership) = changed(world.outcome(id, request));
        assert!(!membership.is_joint(), "the joint one is a step on the way");
        assert_ne!(at, EntryId::ZERO);
        let is_voter = membership.member(other).unwrap().role == MemberRole::Voter;
        assert_eq!(is_voter, number == 1);
    }
}

#[test]
fn changes_that_come_together_are_carried_out_one_after_the_other() {
    let mut world = World::new(3);
    let leader = world.elect();
    let requests: Vec<RequestId> = (0..4)
        .map(|number| change(&mut world, leader, number, learner(&format!("new{number}")), LONG))
        .collect();
    world.run_for(10 * HEARTBEAT);
    let mut ids: Vec<EntryId> =
        requests.iter().map(|request| changed(world.outcome(leader, *request)).0).collect();
    ids.sort_unstable_by_key(|id| id.index);
    ids.dedup();
    assert_eq!(ids.len(), 4, "each has an entry of its own");
    let members = world.host(leader).replica.status().membership.members.len();
    assert_eq!(members, 7);
}

#[test]
fn a_change_that_makes_no_sense_is_refused_at_once() {
    let mut world = World::new(3);
    let leader = world.elect();
    let nobody = NodeId(99);
    let request = change(&mut world, leader, 0, Change::Remove(nobody), LONG);
    world.settle();
    let why = Rejection::InvalidChange(ChangeError::NoSuchMember(nobody));
    assert_eq!(world.outcome(leader, request), Outcome::Answer(Answer::Rejected(why)));
}

#[test]
fn a_change_that_cannot_be_committed_in_time_may_take_place_yet() {
    let mut world = World::new(3);
    let leader = world.elect();
    world.cut.insert(NodeId(leader));
    let request = change(&mut world, leader, 0, learner("new"), ELECTION_TIMEOUT / 2);
    world.run_for(ELECTION_TIMEOUT);
    let outcome = world.outcome(leader, request);
    assert!(matches!(outcome, Outcome::Answer(Answer::Unknown { at: Some(_) })), "{outcome:?}");
}

/// Pitfall M19: who waits for an entry that a snapshot stands for is told what is certain.
#[test]
fn those_whose_entries_a_snapshot_skips_are_told_that_nobody_knows() {
    let mut world = World::new(3);
    let old = world.elect();
    world.cut.insert(NodeId(old));
    let lost = world.propose(old, "in the way", LONG);
    let superseded = world.propose(old, "at the end", LONG);
    world.settle();
    let appended = world.host(old).log.last().unwrap().id;
    let new = world.elect();
    assert_ne!(old, new);
    // Committed by the others, in the places of both.
    while world.host(new).log.last().unwrap().id.index < appended.index {
        world.propose(new, "instead", LONG);
        world.settle();
    }
    let at = usize::try_from(appended.index.get() - 1).unwrap();
    let last = world.host(new).log[at].id;
    let membership = world.host(new).replica.status().membership.clone().into();
    let meta = SnapshotMeta { last, membership };
    world.handle(old, Event::SnapshotReceived { from: NodeId(new), meta });
    world.poll(old);
    world.settle();
    let outcome = world.outcome(old, lost);
    assert!(matches!(outcome, Outcome::Answer(Answer::Unknown { at: Some(_) })), "{outcome:?}");
    // The last entry of the snapshot is known, and it is another one.
    let expected = Outcome::Answer(Answer::Superseded { at: appended });
    assert_eq!(world.outcome(old, superseded), expected);
    let status = world.host(old).replica.status();
    assert_eq!((status.applied_index, status.log_start), (last.index, last));

    // It goes on from there.
    world.cut.clear();
    world.run_for(5 * HEARTBEAT);
    let request = world.propose(old, "after", LONG);
    world.run_for(5 * HEARTBEAT);
    assert!(matches!(world.outcome(old, request), Outcome::Applied { .. }));
}

/// A full disk is told to the core, which takes no proposals then, and serves reads.
#[test]
fn a_leader_alone_with_a_full_disk_refuses_writes_and_serves_reads() {
    let mut world = World::new(1);
    let leader = world.elect();
    world.handle(leader, Event::StorageSpace { is_full: true });
    let refused = world.propose(leader, "no room", LONG);
    let read = world.read(leader, LONG);
    world.settle();
    let no_space = Outcome::Answer(Answer::Rejected(Rejection::NoSpace));
    assert_eq!(world.outcome(leader, refused), no_space);
    assert!(matches!(world.outcome(leader, read), Outcome::Answer(Answer::ReadReady { .. })));
    world.handle(leader, Event::StorageSpace { is_full: false });
    let taken = world.propose(leader, "room", LONG);
    world.settle();
    assert!(matches!(world.outcome(leader, taken), Outcome::Applied { .. }));
}
