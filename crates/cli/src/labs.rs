//! `kontiki labs`: the lab scenarios of the Raft course, many times in simulated worlds.

use std::io;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kontiki_sim::labs::{self, Options, Progress, SCENARIOS};

use crate::failure::Failure;

/// A bar that moves more often than this cannot be followed, and costs time.
const DRAWS_PER_SECOND: u8 = 10;

#[derive(Args, Debug)]
#[command(
    after_help = "A failed run prints its seed, its last events and the command that replays it."
)]
pub(crate) struct LabsArgs {
    /// Scenarios to run; by default all
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Runs of each scenario, each with another seed; by default 100, or 1 if a seed is given
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    runs: Option<u64>,

    /// Worlds that run at the same time; by default one a processor
    #[arg(long, value_name = "COUNT", value_parser = jobs)]
    jobs: Option<usize>,

    /// Seed of the first run
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,

    /// List the scenarios and do nothing
    #[arg(long)]
    list: bool,
}

pub(crate) fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err("must be from 1 to 1024".to_owned()),
    }
}

/// Runs the scenarios and prints the table. Fails if a run failed.
pub(crate) fn run(args: LabsArgs, stdout: &mut dyn io::Write) -> Result<(), Failure> {
    if args.list {
        for scenario in SCENARIOS {
            writeln!(stdout, "{:<66} {} servers", scenario.name, scenario.nodes)?;
        }
        return Ok(());
    }
    let bar = ProgressBar::new(0);
    bar.set_draw_target(indicatif::ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta:>4} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let options = Options { runs: args.runs, jobs: args.jobs, seed: args.seed, names: args.names };
    let report = labs::run(&options, &|progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        bar.set_message(match progress.failed {
            0 => progress.name.to_owned(),
            failed => format!("{} ({failed} failed)", progress.name),
        });
    });
    bar.finish_and_clear();
    let report = report.map_err(Failure::usage)?;
    writeln!(stdout, "{report}")?;
    if report.has_passed() {
        Ok(())
    } else {
        Err(Failure::new(format!("{} runs failed", report.failures.len())))
    }
}
