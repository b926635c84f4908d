//! `kontiki labs`: the lab scenarios of the Raft course, many times in simulated worlds.

use std::io::{self, Write as _};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kontiki_sim::labs::{self, Options, Progress, Report, SCENARIOS, UnknownScenario};

use crate::failure::Failure;

/// A bar that moves more often than this cannot be followed, and costs time.
const DRAWS_PER_SECOND: u8 = 10;

const HELP: &str = "\
A failed run prints its seed, its last events and the command that replays it.

Examples:
  kontiki labs 2A                                all scenarios of a part
  kontiki labs reelection_2a --seed 7 --trace    what happens in one run, event by event

In a trace n2 is a server, n2/3 the same in term 3, and 5@3 the entry of index 5 from term 3.";

#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct LabsArgs {
    /// Scenarios to run, or parts: 2A, 2B, 2C, 2D, 3A, 3B; by default all
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

    /// Print every event, one a line; each scenario is run once then, unless --runs is given
    #[arg(long, conflicts_with = "jobs")]
    trace: bool,

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
    let options = Options { runs: args.runs, jobs: args.jobs, seed: args.seed, names: args.names };
    let report = if args.trace { labs::run_told(&options, tell) } else { run_with_bar(&options) };
    let report = report.map_err(Failure::usage)?;
    writeln!(stdout, "{report}")?;
    if report.has_passed() {
        Ok(())
    } else {
        Err(Failure::new(format!("{} runs failed", report.failures.len())))
    }
}

/// Prints a line of a trace.
pub(crate) fn tell(line: &str) {
    // A reader that has gone is found out at the end.
    drop(writeln!(io::stdout(), "{line}"));
}

fn run_with_bar(options: &Options) -> Result<Report, UnknownScenario> {
    let bar = ProgressBar::new(0);
    bar.set_draw_target(indicatif::ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta:>4} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let report = labs::run(options, &|progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        bar.set_message(match progress.failed {
            0 => progress.name.to_owned(),
            failed => format!("{} ({failed} failed)", progress.name),
        });
    });
    bar.finish_and_clear();
    report
}
