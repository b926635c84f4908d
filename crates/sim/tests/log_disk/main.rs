//! The real log on the simulated disk: crashes everywhere, faults everywhere, damage everywhere.

mod bit_flips;
mod crash_points;
mod damage;
mod force;
mod model;
mod set_aside;
mod snapshots;
mod torture;
mod writes;

use std::{path::Path, sync::Arc};

use kontiki_log::{Log, LogError, Opened};
use kontiki_sim::disk::SimDisk;

use model::{DIR, options, request};
use torture::Torture;

/// Opens a log that damage is refused in.
fn open(disk: &SimDisk) -> Result<(Log, Opened), LogError> {
    Log::open(Arc::new(disk.clone()), Path::new(DIR), &request(), options())
}

/// Random writes, truncations, syncs, purges, crashes, faults and restarts against the model.
/// The long run: `cargo run --release -p kontiki-sim --example log_torture -- --ops 1000000`.
#[test]
fn the_log_is_what_the_model_says_whatever_happens() {
    let mut seen = torture::Seen::default();
    for seed in 0..8 {
        let mut torture = Torture::new(seed);
        for _ in 0..600 {
            torture.step();
        }
        seen.add(torture.seen());
    }
    // A test that never saw a fault proves nothing.
    assert!(
        0 < seen.torn_tails
            && 0 < seen.completed_rolls
            && 0 < seen.lost_writes
            && 0 < seen.kept_writes
            && 0 < seen.purged_segments
            && 0 < seen.truncations
            && 0 < seen.resets
            && 0 < seen.damaged
            && 0 < seen.repaired
            && 0 < seen.poisoned
            && 0 < seen.full_disks
            && 0 < seen.crashes_while_opening,
        "{seen:?}"
    );
}
