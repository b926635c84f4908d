//! Random worlds under random faults, with clients whose history is checked.

use kontiki_sim::swarm::{self, Seen};

const SEEDS: u64 = 160;
const THREADS: u64 = 2;

/// Runs every `THREADS`th world from `first` on.
fn run(first: u64) -> Seen {
    let mut seen = Seen::default();
    for seed in (0..SEEDS / THREADS).map(|round| first + round * THREADS) {
        match swarm::run(seed) {
            Ok(run) => seen = seen.and(run),
            Err(failure) => panic!(
                "swarm with seed {seed}:\n{failure}\n  to replay: cargo run -p kontiki-sim \
                 --example swarm -- {seed}"
            ),
        }
    }
    seen
}

#[test]
fn random_worlds_are_safe_and_come_round() {
    let mut seen = Seen::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=THREADS).map(|first| scope.spawn(move || run(first))).collect();
        for thread in threads {
            match thread.join() {
                Ok(run) => seen = seen.and(run),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    // A run that has not met what it is for proves nothing.
    let must_see = [
        ("leader changes", seen.leader_changes),
        ("truncations", seen.truncations),
        ("torn records", seen.torn_records),
        ("lost writes", seen.lost_writes),
        ("acknowledged writes", seen.acknowledged),
        ("reads", seen.reads),
        ("rejected requests", seen.rejected),
        ("superseded proposals", seen.superseded),
        ("unknown outcomes", seen.unknown),
        ("crashes", seen.crashes),
        ("kills", seen.kills),
        ("pauses", seen.pauses),
        ("one-way cuts", seen.one_way_cuts),
        ("transfers", seen.transfers),
        ("disk failures", seen.disk_failures),
        ("stored reads", seen.stored_reads),
        ("purges", seen.purges),
    ];
    for (what, count) in must_see {
        assert!(0 < count, "{SEEDS} seeds have seen no {what}: {seen:?}");
    }
}
