//! Runs random worlds: `cargo run --release -p kontiki-sim --example swarm -- [SEED] [RUNS]`.
#![expect(clippy::print_stdout, reason = "a program for people")]

use kontiki_sim::swarm::{self, Seen};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number =
        |default| arguments.next().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (first, runs): (u64, u64) = (number(1), number(1));
    let (mut seen, mut failed) = (Seen::default(), 0);
    for seed in first..first + runs {
        match swarm::run(seed) {
            Ok(run) => seen = seen.and(run),
            Err(failure) => {
                failed += 1;
                println!("seed {seed}:\n{failure}\n");
            }
        }
    }
    println!("{runs} worlds from seed {first} on, {failed} failed: {seen:#?}");
}
