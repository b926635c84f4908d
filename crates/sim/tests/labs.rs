//! The scenarios of the labs, each under a few dozen seeds.

use kontiki_sim::labs::{self, scenario_named};

/// Runs one scenario under many seeds and shows the first failure.
fn check(name: &str, seeds: u64) {
    let scenario = scenario_named(name).expect("a scenario of this name");
    for seed in 1..=seeds {
        let run = labs::run_one(scenario, seed);
        if let Err(failure) = run.result {
            panic!(
                "{name} with seed {seed}:\n{failure}\n  to replay: kontiki labs --seed {seed} {name}"
            );
        }
    }
}

macro_rules! scenarios {
    ($($name:ident: $seeds:literal,)*) => {
        $(#[test] fn $name() { check(stringify!($name), $seeds); })*
    };
}

scenarios! {
    initial_election_2a: 40,
    reelection_2a: 40,
    many_election_2a: 24,
    basic_agree_2b: 40,
    rpc_bytes_2b: 40,
    follower_failure_2b: 40,
    leader_failure_2b: 40,
    fail_agree_2b: 40,
    fail_no_agree_2b: 40,
    concurrent_starts_2b: 40,
    rejoin_2b: 40,
    backup_2b: 24,
    count_2b: 40,
    persist1_2c: 40,
    persist2_2c: 24,
    persist3_2c: 40,
    figure_8_2c: 24,
    unreliable_agree_2c: 24,
    figure_8_unreliable_2c: 24,
    figure_8_long_reordering_2c: 24,
    reliable_churn_2c: 24,
    unreliable_churn_2c: 24,
}
