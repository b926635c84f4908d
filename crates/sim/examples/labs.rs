//! Runs the labs: `cargo run --release -p kontiki-sim --example labs -- [SEED] [RUNS] [NAME…]`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use kontiki_sim::labs::{Options, run};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().and_then(|text| text.parse().ok());
    let (seed, runs) = (number(), number());
    let options = Options { runs, seed, names: arguments.collect(), ..Options::default() };
    let report = run(&options, &|progress| {
        if progress.done % 50 == 0 {
            eprintln!("{} of {}, {} failed", progress.done, progress.total, progress.failed);
        }
    });
    match report {
        Ok(report) => println!("{report}"),
        Err(unknown) => eprintln!("{unknown}"),
    }
}
