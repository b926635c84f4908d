//! The same seed gives the same run: every event, every action, every byte on every disk.

use std::collections::BTreeSet;

use kontiki_sim::{
    labs::{SCENARIOS, run_one},
    swarm,
};

#[test]
fn a_seed_is_a_run() {
    let mut digests = BTreeSet::new();
    for seed in 1..=30 {
        let first = swarm::run_with_digest(seed).expect("a world without violations");
        let second = swarm::run_with_digest(seed).expect("a world without violations");
        assert_eq!(first, second, "seed {seed}");
        digests.insert(first.1);
    }
    assert_eq!(digests.len(), 30, "different seeds are different runs");
}

#[test]
fn a_scenario_with_a_seed_is_a_run() {
    for scenario in &SCENARIOS {
        let digests: Vec<u64> = [5, 5, 6].map(|seed| run_one(scenario, seed).digest).into();
        assert_eq!(digests[0], digests[1], "{}", scenario.name);
        assert_ne!(digests[1], digests[2], "{}", scenario.name);
    }
}

/// Threads do not disturb each other: a world lives on one of them and shares nothing.
#[test]
fn a_run_is_the_same_on_any_thread() {
    let expected = swarm::run_with_digest(7).expect("a world without violations");
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| swarm::run_with_digest(7))).collect();
        for thread in threads {
            let run = thread.join().expect("no panic").expect("a world without violations");
            assert_eq!(run, expected);
        }
    });
}
