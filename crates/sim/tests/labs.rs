//! The scenarios of the labs, each under a few dozen seeds.

use std::{
    cell::Cell,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
};

use kontiki_sim::labs::{self, Options, scenario_named};

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
    snapshot_basic_2d: 8,
    snapshot_install_2d: 8,
    snapshot_install_unreliable_2d: 8,
    snapshot_install_crash_2d: 8,
    snapshot_install_unreliable_crash_2d: 8,
    snapshot_all_crash_2d: 8,
    snapshot_init_2d: 24,
    basic_3a: 6,
    concurrent_3a: 6,
    unreliable_3a: 6,
    speed_3a: 6,
    unreliable_one_key_3a: 24,
    one_partition_3a: 24,
    many_partitions_one_client_3a: 6,
    many_partitions_many_clients_3a: 6,
    persist_one_client_3a: 6,
    persist_concurrent_3a: 6,
    persist_concurrent_unreliable_3a: 6,
    persist_partition_3a: 6,
    persist_partition_unreliable_3a: 6,
    persist_partition_unreliable_linearizable_3a: 6,
    snapshot_rpc_3b: 24,
    snapshot_size_3b: 6,
    speed_3b: 6,
    snapshot_recover_3b: 6,
    snapshot_recover_many_clients_3b: 6,
    snapshot_unreliable_3b: 6,
    snapshot_unreliable_recover_3b: 6,
    snapshot_unreliable_recover_concurrent_partition_3b: 6,
    snapshot_unreliable_recover_concurrent_partition_linearizable_3b: 6,
}

#[test]
fn many_runs_become_a_table() {
    let options = Options {
        runs: Some(3),
        jobs: Some(2),
        names: vec!["reelection_2a".into(), "rejoin_2b".into()],
        ..Options::default()
    };
    let ended = AtomicU64::new(0);
    let report = labs::run(&options, &|progress| {
        assert!(progress.total == 6 && progress.failed == 0);
        ended.fetch_add(1, Ordering::Relaxed);
    })
    .expect("both are scenarios");
    assert!(report.has_passed() && ended.into_inner() == 6);
    assert!(report.rows.iter().all(|row| row.passed == 3 && 0 < row.rpcs && 0 < row.bytes));
    let table = report.to_string();
    for heading in ["scenario", "passed", "failed", "virtual time", "real time", "RPCs", "bytes"] {
        assert!(table.lines().next().is_some_and(|line| line.contains(heading)), "{table}");
    }
    assert!(table.contains("rejoin_2b") && table.contains("total"), "{table}");
}

#[test]
fn a_scenario_that_does_not_exist_is_refused() {
    let options = Options { names: vec!["rejoin_3z".into()], ..Options::default() };
    let error = labs::run(&options, &|_| ()).expect_err("no such scenario");
    let begins = "there is no scenario rejoin_3z; there are the parts 2A, 2B, 2C, 2D, 3A, 3B, and ";
    assert!(error.to_string().starts_with(begins), "{error}");
}

#[test]
fn what_is_named_twice_runs_once() {
    let names = ["2A", "2a", "Reelection_2A"].map(str::to_owned).to_vec();
    let options = Options { runs: Some(1), names, ..Options::default() };
    let report = labs::run(&options, &|_| ()).expect("a part and a scenario");
    assert_eq!(report.rows.len(), 3);
    assert!(report.rows.iter().all(|row| row.passed == 1 && row.name.ends_with("_2a")));
}

#[test]
fn a_listener_hears_all_events_and_changes_none() {
    let names = vec!["basic_agree_2b".to_owned()];
    let options = Options { seed: Some(3), names, ..Options::default() };
    let heard = Rc::new(Cell::new(0));
    let count = Rc::clone(&heard);
    let told = labs::run_told(&options, move |_| count.set(count.get() + 1)).expect("a scenario");
    let alone = labs::run(&options, &|_| ()).expect("a scenario");
    // The first line names the run, the last one says how it ended.
    assert_eq!(heard.get(), alone.total().events + 2);
    assert_eq!(told.total().events, alone.total().events);
    assert_eq!(told.total().bytes, alone.total().bytes);
}
