//! What a replica owes those who ask: one answer to each request, and a true one.

use std::time::Duration;

use kontiki::{Answer, Bytes, Envelope, Event, Index, NodeId, Rejection, Role};
use kontiki_raft::{Body, LogWrite};
use proptest::prelude::*;

use crate::world::{ELECTION_TIMEOUT, Flight, HEARTBEAT, Outcome, World};

const LONG: Duration = Duration::from_secs(60);

fn assert_applied(outcome: Outcome, expected: &'static str) {
    match outcome {
        Outcome::Applied { command, .. } => {
            assert_eq!(command, Bytes::from_static(expected.as_bytes()));
        }
        Outcome::Answer(answer) => panic!("{expected} was not applied: {answer:?}"),
    }
}

#[test]
fn a_proposal_is_answered_by_the_entry_that_it_became_on_any_node() {
    let mut world = World::new(3);
    world.elect();
    for (id, command) in [(1, "one"), (2, "two"), (3, "three")] {
        let request = world.propose(id, command, LONG);
        world.run_for(HEARTBEAT);
        assert_applied(world.outcome(id, request), command);
    }
}

/// Pitfall D1.
#[test]
fn a_single_voter_answers_only_what_its_disk_holds() {
    let mut world = World::new(1);
    world.elect();
    world.host(1).is_disk_stalled = true;
    let request = world.propose(1, "x", LONG);
    world.settle();
    assert_eq!(world.outcomes(1, request), []);
    world.host(1).is_disk_stalled = false;
    world.settle();
    assert_applied(world.outcome(1, request), "x");
}

#[test]
fn a_proposal_waits_for_a_leader() {
    let mut world = World::new(3);
    let request = world.propose(1, "early", LONG);
    world.settle();
    assert_eq!(world.outcomes(1, request), []);
    world.elect();
    assert_applied(world.outcome(1, request), "early");
}

#[test]
fn a_proposal_that_no_leader_took_in_time_was_certainly_not_appended() {
    let mut world = World::new(3);
    world.cut.extend([NodeId(2), NodeId(3)]);
    let request = world.propose(1, "alone", 5 * ELECTION_TIMEOUT);
    world.run_for(4 * ELECTION_TIMEOUT);
    assert_eq!(world.outcomes(1, request), []);
    world.run_for(2 * ELECTION_TIMEOUT);
    let rejected = Answer::Rejected(Rejection::NotLeader { leader: None });
    assert_eq!(world.outcome(1, request), Outcome::Answer(rejected));
}

#[test]
fn a_read_that_no_quorum_confirmed_in_time_is_not_served() {
    let mut world = World::new(3);
    let leader = world.elect();
    world.cut.insert(NodeId(leader));
    let request = world.read(leader, ELECTION_TIMEOUT / 2);
    world.run_for(ELECTION_TIMEOUT);
    let rejected = Answer::Rejected(Rejection::NoQuorum);
    assert_eq!(world.outcome(leader, request), Outcome::Answer(rejected));
}

#[test]
fn a_proposal_that_another_leader_replaced_is_certainly_lost() {
    let mut world = World::new(3);
    let old = world.elect();
    world.cut.insert(NodeId(old));
    let request = world.propose(old, "lost", LONG);
    world.settle();
    let new = world.elect();
    let winner = world.propose(new, "kept", LONG);
    world.run_for(HEARTBEAT);
    assert_applied(world.outcome(new, winner), "kept");
    assert_eq!(world.outcomes(old, request), [], "nothing is certain while it is cut off");

    world.cut.clear();
    world.run_for(3 * ELECTION_TIMEOUT);
    let outcome = world.outcome(old, request);
    assert!(matches!(outcome, Outcome::Answer(Answer::Superseded { .. })), "{outcome:?}");
}

#[test]
fn what_becomes_of_an_appended_proposal_is_unknown_when_its_time_is_up() {
    let mut world = World::new(3);
    let leader = world.elect();
    world.cut.insert(NodeId(leader));
    let request = world.propose(leader, "perhaps", ELECTION_TIMEOUT / 2);
    world.run_for(ELECTION_TIMEOUT);
    let outcome = world.outcome(leader, request);
    assert!(matches!(outcome, Outcome::Answer(Answer::Unknown { at: Some(_) })), "{outcome:?}");
}

/// Its transport says so: there was no connection to the leader yet. The client does not hear of
/// it, and does not have to wait as long as for an answer that was lost.
#[test]
fn what_was_certainly_not_passed_on_is_tried_again() {
    let mut world = World::new(3);
    let leader = world.elect();
    let follower = leader % 3 + 1;
    let request = world.propose(follower, "once", LONG);
    world.poll(follower);
    let is_forward = |flight: &Flight| matches!(flight.message.body, Body::Propose(_));
    let at = world.flights.iter().position(is_forward).unwrap();
    let Flight { to, message, .. } = world.flights.remove(at).unwrap();
    world.handle(follower, Event::NotSent(Envelope { to, message }));
    world.run_for(ELECTION_TIMEOUT / 2);
    assert_applied(world.outcome(follower, request), "once");
    assert_eq!(world.times_in_log(leader, &Bytes::from_static(b"once")), 1);
}

/// The leader's word that it has appended a proposal is late: its entry came first, and what
/// the state machine made of it is gone. To say anything but "unknown" would be a lie.
#[test]
fn a_reply_that_was_overtaken_by_its_entry_does_not_wait_for_ever() {
    let mut world = World::new(3);
    let leader = world.elect();
    let follower = leader % 3 + 1;
    let request = world.propose(follower, "overtaken", LONG);
    // Everything but the reply is delivered.
    let mut held = None;
    for _ in 0..100 {
        for id in 1..=3 {
            world.work(id);
        }
        let Some(flight) = world.flights.pop_front() else { break };
        if matches!(flight.message.body, Body::ProposeReply(_)) {
            held = Some(flight);
        } else {
            world.deliver(flight);
        }
    }
    world.run_for(2 * HEARTBEAT);
    assert_eq!(world.outcomes(follower, request), []);
    world.deliver(held.expect("the leader has replied"));
    let outcome = world.outcome(follower, request);
    assert!(matches!(outcome, Outcome::Answer(Answer::Unknown { at: Some(_) })), "{outcome:?}");
}

/// Pitfall R11.
#[test]
fn a_read_is_served_only_when_enough_is_applied() {
    let mut world = World::new(3);
    let leader = world.elect();
    world.host(leader).is_machine_stalled = true;
    let written = world.propose(leader, "seen", LONG);
    world.run_for(HEARTBEAT);
    let read = world.read(leader, LONG);
    world.run_for(HEARTBEAT);
    assert_eq!(world.outcomes(leader, read), [], "committed, confirmed, and not applied");

    world.host(leader).is_machine_stalled = false;
    world.run_for(HEARTBEAT);
    assert_applied(world.outcome(leader, written), "seen");
    let outcome = world.outcome(leader, read);
    assert!(matches!(outcome, Outcome::Answer(Answer::ReadReady { .. })), "{outcome:?}");
}

/// Pitfall R11. As after a restart: entry by entry, and no read before all of them.
#[test]
fn a_follower_that_replays_its_log_serves_no_read_before_it_has() {
    let mut world = World::tuned(3, |config| config.unapplied_bytes_max = 1); // in small steps
    let leader = world.elect();
    let follower = leader % 3 + 1;
    for command in ["a", "b", "c"] {
        let request = world.propose(leader, command, LONG);
        world.run_for(HEARTBEAT);
        assert_applied(world.outcome(leader, request), command);
    }
    let committed = world.host(leader).replica.status().commit_index;
    world.restart(follower);
    world.host(follower).is_machine_stalled = true;
    let early = world.read(follower, LONG); // it knows of no leader yet
    world.run_for(3 * HEARTBEAT);
    let late = world.read(follower, LONG); // it knows what is committed
    world.run_for(3 * HEARTBEAT);
    world.host(follower).is_machine_stalled = false;
    let mut steps = 0;
    loop {
        let applied = world.host(follower).replica.status().applied_index;
        for read in [early, late] {
            let is_served = !world.outcomes(follower, read).is_empty();
            assert_eq!(is_served, committed <= applied, "{read:?} at {applied}");
        }
        if committed <= applied {
            break;
        }
        let upto = world.host(follower).apply().expect("there is more to replay");
        world.handle(follower, Event::Applied { upto, durable: Index::ZERO });
        world.poll(follower);
        steps += 1;
    }
    assert!(1 < steps, "it was all or nothing");
}

#[test]
fn reads_are_served_on_every_node() {
    let mut world = World::new(3);
    world.elect();
    for id in 1..=3 {
        let read = world.read(id, LONG);
        world.run_for(2 * HEARTBEAT);
        let outcome = world.outcome(id, read);
        assert!(matches!(outcome, Outcome::Answer(Answer::ReadReady { .. })), "{id}: {outcome:?}");
    }
}

/// Pitfall D14.
#[test]
fn what_waits_is_bounded_in_bytes_and_number() {
    let mut world = World::tuned(3, |config| {
        config.entry_bytes_max = 10;
        config.uncommitted_bytes_max = 10;
        config.pending_reads_max = 1;
    });
    let busy = Outcome::Answer(Answer::Rejected(Rejection::Busy));
    let first = world.propose(1, "12345678", LONG);
    let second = world.propose(1, "123", LONG);
    assert_eq!(world.outcomes(1, first), []);
    assert_eq!(world.outcome(1, second), busy);

    let first = world.read(1, LONG);
    let second = world.read(1, LONG);
    assert_eq!(world.outcomes(1, first), []);
    assert_eq!(world.outcome(1, second), busy);
}

/// Pitfall D4.
#[test]
fn a_node_whose_write_failed_answers_nobody_with_success() {
    let mut world = World::new(1);
    world.elect();
    world.host(1).is_disk_stalled = true;
    let proposal = world.propose(1, "x", LONG);
    let LogWrite { ticket, .. } = world.host(1).writes.pop_front().expect("it writes");
    world.handle(1, Event::WriteFailed(ticket));
    world.poll(1);
    let outcome = world.outcome(1, proposal);
    assert!(matches!(outcome, Outcome::Answer(Answer::Unknown { .. })), "{outcome:?}");

    assert_eq!(world.host(1).replica.status().soft_state.role, Role::Stopped);
    let late = world.propose(1, "y", LONG);
    let stopped = Answer::Rejected(Rejection::Stopped);
    assert_eq!(world.outcome(1, late), Outcome::Answer(stopped));
    assert!(world.host(1).applies.is_empty());
}

/// What the network and the disks do while requests come in.
#[derive(Clone, Copy, Debug)]
enum Mischief {
    Deliver,
    Drop,
    Repeat,
    Delay,
    Work(u64),
    Wait(u16),
    Cut(u64),
    Heal,
    Propose(u64),
    Read(u64),
}

fn mischief() -> impl Strategy<Value = Mischief> {
    let id = || 1..=3u64;
    prop_oneof![
        12 => Just(Mischief::Deliver),
        1 => Just(Mischief::Drop),
        1 => Just(Mischief::Repeat),
        1 => Just(Mischief::Delay),
        6 => id().prop_map(Mischief::Work),
        4 => (1..400u16).prop_map(Mischief::Wait),
        1 => id().prop_map(Mischief::Cut),
        1 => Just(Mischief::Heal),
        4 => id().prop_map(Mischief::Propose),
        2 => id().prop_map(Mischief::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens on the way, each request gets one answer, and the log bears it out: what
    /// was applied is there once, what was certainly not taken or lost is not there.
    #[test]
    fn every_request_gets_exactly_one_answer_and_a_true_one(script in prop::collection::vec(mischief(), 100..600)) {
        let mut world = World::new(3);
        let mut requests = Vec::new();
        world.elect();
        for step in script {
            match step {
                Mischief::Deliver => {
                    if let Some(flight) = world.flights.pop_front() {
                        world.deliver(flight);
                    }
                }
                Mischief::Drop => drop(world.flights.pop_front()),
                Mischief::Repeat => world.flights.extend(world.flights.front().cloned()),
                Mischief::Delay => {
                    let front = world.flights.pop_front();
                    world.flights.extend(front);
                }
                Mischief::Work(id) => drop(world.work(id)),
                Mischief::Wait(ms) => {
                    world.now = world.now + Duration::from_millis(ms.into());
                    for id in 1..=3 {
                        world.handle(id, Event::Timeout);
                        world.poll(id);
                    }
                }
                Mischief::Cut(id) => drop(world.cut.insert(NodeId(id))),
                Mischief::Heal => world.cut.clear(),
                Mischief::Propose(id) => {
                    let command = Bytes::from(requests.len().to_string());
                    let request = world.propose(id, command.clone(), 2 * ELECTION_TIMEOUT);
                    requests.push((id, request, Some(command)));
                }
                Mischief::Read(id) => {
                    requests.push((id, world.read(id, 2 * ELECTION_TIMEOUT), None));
                }
            }
        }
        world.cut.clear();
        world.run_for(20 * ELECTION_TIMEOUT);
        for (id, request, command) in requests {
            let outcome = world.outcome(id, request);
            let Some(command) = command else { continue };
            let times = world.times_in_log(1, &command);
            let is_true = match &outcome {
                Outcome::Applied { command: applied, .. } => times == 1 && *applied == command,
                Outcome::Answer(Answer::Unknown { .. }) => times <= 1,
                Outcome::Answer(Answer::Rejected(_) | Answer::Superseded { .. }) => times == 0,
                Outcome::Answer(
                    Answer::ReadReady { .. } | Answer::MembershipChanged { .. },
                ) => false,
            };
            prop_assert!(is_true, "{request:?} of n{id}: {outcome:?}, in the log {times} times");
        }
        let log = world.host(1).log.clone();
        for node in &world.nodes {
            prop_assert_eq!(&node.log, &log);
        }
    }
}
