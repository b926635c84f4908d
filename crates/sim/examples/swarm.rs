//! Runs random worlds: `cargo run --release -p kontiki-sim --example swarm -- [SEED] [RUNS]`.
//! `kontiki sim` does the same with more comfort.
#![expect(clippy::print_stdout, reason = "a program for people")]

use kontiki_sim::swarm::{Options, draw, fails_here, run_many, shrink};

/// How many scenarios are tried to make a failing one smaller.
const TRIES: u64 = 600;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number =
        |default| arguments.next().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (first, runs): (u64, u64) = (number(1), number(1));
    let options = Options { seed: Some(first), seeds: Some(runs), ..Options::default() };
    let report = run_many(&options, &|_| ());
    for failed in &report.failures {
        println!("seed {}:\n{}\n", failed.seed, failed.text);
        if let Some(shrunk) = shrink(&draw(failed.seed), TRIES, &mut fails_here) {
            println!("{}\nafter {} tries:\n{}", shrunk.what, shrunk.tries, shrunk.scenario);
        }
    }
    println!("{runs} worlds from seed {first} on, {} failed:", report.failures.len());
    for (what, count) in report.seen.rows() {
        println!("  {count:>12} {what}");
    }
}
