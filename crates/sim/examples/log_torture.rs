//! The long run of the log's property test: random work, crashes and faults against a model.
//!
//! ```text
//! cargo run --release -p kontiki-sim --example log_torture -- --ops 1000000 [--seed 1]
//! ```
//!
//! It prints what it saw. A panic names the seed and the step at which the log and its model
//! part; the same command with that seed gets there again.

#[path = "../tests/log_disk/model.rs"]
mod model;
#[path = "../tests/log_disk/torture.rs"]
mod torture;

use std::{env, process::ExitCode};

use torture::{Seen, Torture};

/// A fresh log so often: a model that grows for ever makes every comparison slower.
const STEPS_PER_SEED: u64 = 1000;

fn main() -> ExitCode {
    let (mut ops, mut seed) = (1_000_000, 1);
    let mut arguments = env::args().skip(1);
    while let Some(name) = arguments.next() {
        match (name.as_str(), arguments.next().and_then(|value| value.parse::<u64>().ok())) {
            ("--ops", Some(value)) => ops = value,
            ("--seed", Some(value)) => seed = value,
            _ => return usage(),
        }
    }
    let mut seen = Seen::default();
    let mut done = 0;
    while done < ops {
        let mut torture = Torture::new(seed);
        for _ in 0..STEPS_PER_SEED.min(ops - done) {
            torture.step();
        }
        seen.add(torture.seen());
        done += STEPS_PER_SEED.min(ops - done);
        seed += 1;
    }
    report(done, &seen);
    ExitCode::SUCCESS
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn report(ops: u64, seen: &Seen) {
    println!("{ops} operations, no difference. {seen:#?}");
}

#[expect(clippy::print_stderr, reason = "this is what the program is for")]
fn usage() -> ExitCode {
    eprintln!("usage: log_torture [--ops N] [--seed N]");
    ExitCode::FAILURE
}
