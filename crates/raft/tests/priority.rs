//! How a priority bends the random wait before an election, over many seeds.

use std::{sync::Arc, time::Duration};

use kontiki_raft::{
    AppendEntries, Body, Config, EntryId, Index, Input, Membership, Message, NodeId, RaftCore,
    Recovered, Round, Session, Term, Timestamp,
};

const NOW: Timestamp = Timestamp(1_000_000_000);
const SEEDS: u32 = 2_000;

/// How long a follower that has just heard from its leader waits before it stands.
fn wait(seed: u32, priority: u8) -> Duration {
    let config = Config { priority, ..Config::new(NodeId(1), u64::from(seed)) };
    let genesis = Membership::of_voters([1, 2, 3].map(|id| (NodeId(id), "")));
    let recovered = Recovered {
        memberships: vec![(EntryId::ZERO, Arc::new(genesis))],
        is_pristine: true,
        ..Recovered::default()
    };
    let mut core = RaftCore::new(config, recovered, NOW).expect("a new node starts");
    let body = Body::AppendEntries(AppendEntries {
        session: Session(1),
        round: Round(1),
        prev: EntryId::ZERO,
        commit: Index::ZERO,
        held_by_all: Index::ZERO,
        readmission: None,
        entries: Vec::new(),
    });
    core.step(NOW, Input::Message { from: NodeId(2), message: Message { term: Term(1), body } });
    core.next_deadline().expect("a follower waits") - NOW
}

fn mean(priority: u8) -> Duration {
    (0..SEEDS).map(|seed| wait(seed, priority)).sum::<Duration>() / SEEDS
}

/// Pitfall B12. Whatever the priority, nobody stands while the voters still owe their loyalty.
#[test]
fn an_election_comes_after_the_loyalty_has_ended() {
    let timeout = Config::new(NodeId(1), 0).election_timeout;
    for priority in [0, 1, 7, 8, 255] {
        for seed in 0..SEEDS {
            let wait = wait(seed, priority);
            assert!(timeout < wait, "priority {priority} waits {wait:?} only");
            assert!(wait <= timeout * 2, "priority {priority} waits {wait:?}");
        }
    }
}

#[test]
fn a_higher_priority_stands_sooner() {
    let means = [0, 1, 3, 7].map(mean);
    assert!(means.is_sorted_by(|lower, higher| higher < lower), "{means:?}");
    let timeout = Config::new(NodeId(1), 0).election_timeout;
    let half = timeout + timeout / 2;
    let deviation = means[0].abs_diff(half);
    assert!(deviation < timeout / 20, "without one the wait is even: {:?}", means[0]);
}

/// Nodes with the same high priority would split the vote for ever if they all stood at once.
#[test]
fn the_highest_priority_still_waits_at_random() {
    let mut waits: Vec<Duration> = (0..SEEDS).map(|seed| wait(seed, 255)).collect();
    waits.sort_unstable();
    let spread = waits[waits.len() - 1] - waits[0];
    let heartbeat = Config::new(NodeId(1), 0).heartbeat_interval;
    assert!(heartbeat < spread, "all stand within {spread:?}");
}
