//! `kontiki sim`: random worlds with every fault there is, until one breaks a rule.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kontiki_sim::{
    Recorder,
    scenario::Scenario,
    swarm::{self, Options, Progress, Report},
};

use crate::{failure::Failure, labs::tell};

/// A bar that moves more often than this cannot be followed, and costs time.
const DRAWS_PER_SECOND: u8 = 10;

/// Without a terminal a line is written so often.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// How many scenarios are tried to make a failing one smaller.
const SHRINK_TRIES: u64 = 400;

/// So many worlds should meet every class of events: a run that has not, checks less than it
/// seems to.
const LARGE_RUN: u64 = 2_000;

#[derive(Args, Debug)]
#[command(
    after_help = "A failing world is made smaller and written to a file, which --replay plays."
)]
pub(crate) struct SimArgs {
    /// Worlds to run; by default 100, or as many as fit into --minutes
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,

    /// Stop after so many minutes
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: Option<u64>,

    /// Seed of the first world
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,

    /// Worlds that run at the same time; by default one a processor
    #[arg(long, value_name = "COUNT", value_parser = crate::labs::jobs)]
    jobs: Option<usize>,

    /// Where scenarios of failures are written
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,

    /// Play the scenario of a file, and nothing else
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "minutes"])]
    replay: Option<PathBuf>,

    /// Print every event of the replay, one a line, as `kontiki labs --trace` does
    #[arg(long, requires = "replay")]
    trace: bool,

    /// Make the failing scenario of a file smaller, in place
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "minutes", "replay"])]
    shrink: Option<PathBuf>,
}

/// Runs worlds and prints what they have seen. Fails if a world failed, or if many worlds never
/// met some class of events.
pub(crate) fn run(args: &SimArgs, stdout: &mut dyn io::Write) -> Result<(), Failure> {
    if let Some(path) = &args.replay {
        return replay(path, args.trace, stdout);
    }
    if let Some(path) = &args.shrink {
        return shrink_file(path, stdout);
    }
    speak_before_abort(args.out.clone());
    let options = Options {
        seed: Some(args.seed),
        seeds: args.seeds,
        time: args.minutes.map(|minutes| Duration::from_secs(60 * minutes)),
        jobs: args.jobs,
    };
    let report = run_with_bar(&options);
    write_report(&report, stdout)?;
    for failed in &report.failures {
        let path = scenario_path(&args.out, failed.seed);
        fs::write(&path, swarm::draw(failed.seed).to_string())?;
        writeln!(stdout, "\nseed {}:\n{}", failed.seed, failed.text)?;
        shrink_file(&path, stdout)?;
    }
    if !report.failures.is_empty() {
        return Err(Failure::new(format!("{} worlds failed", report.failures.len())));
    }
    let missing: Vec<&str> =
        report.seen.rows().into_iter().filter(|(_, count)| *count == 0).map(|(w, _)| w).collect();
    if LARGE_RUN <= report.seen.worlds && !missing.is_empty() {
        return Err(Failure::new(format!("no world has seen any {}", missing.join(", "))));
    }
    Ok(())
}

fn scenario_path(dir: &Path, seed: u64) -> PathBuf {
    dir.join(format!("failure-{seed}.scn"))
}

fn run_with_bar(options: &Options) -> Report {
    let bar = match (options.seeds, options.time) {
        (Some(seeds), _) => ProgressBar::new(seeds),
        (None, Some(time)) => ProgressBar::new(time.as_secs()),
        (None, None) => ProgressBar::new(100),
    };
    bar.set_draw_target(indicatif::ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
    let style = ProgressStyle::with_template("{wide_bar} {percent}% {eta:>4} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let is_shown = !bar.is_hidden();
    let lines = AtomicU64::new(1);
    let report = swarm::run_many(options, &|progress: Progress| {
        let message = format!("{} worlds, {} failed", progress.done, progress.failed);
        if is_shown {
            let by_time = options.seeds.is_none() && options.time.is_some();
            bar.set_position(if by_time { progress.real_time.as_secs() } else { progress.done });
            bar.set_message(message);
        } else {
            let next = lines.load(Ordering::Relaxed);
            let due = LINE_EVERY * u32::try_from(next).unwrap_or(u32::MAX);
            if due <= progress.real_time && lines.fetch_max(next + 1, Ordering::Relaxed) == next {
                let seconds = progress.real_time.as_secs();
                drop(writeln!(io::stderr(), "{seconds} s: {message}"));
            }
        }
    });
    bar.finish_and_clear();
    report
}

fn write_report(report: &Report, stdout: &mut dyn io::Write) -> io::Result<()> {
    let hours = Duration::from_millis(report.seen.virtual_millis).as_secs_f64() / 3_600.0;
    let failed = report.failures.len();
    writeln!(
        stdout,
        "{} worlds passed, {failed} failed; {hours:.1} virtual hours in {:.0} s",
        report.seen.worlds,
        report.real_time.as_secs_f64()
    )?;
    for (what, count) in report.seen.rows() {
        writeln!(stdout, "{count:>14}  {what}")?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Scenario, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    text.parse().map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

fn replay(path: &Path, is_traced: bool, stdout: &mut dyn io::Write) -> Result<(), Failure> {
    let scenario = read(path)?;
    let played = if is_traced {
        swarm::play_recorded(&scenario, Recorder::telling(tell))
    } else {
        swarm::play(&scenario)
    };
    match played {
        Ok(_) => {
            writeln!(stdout, "{}: nothing is wrong", path.display())?;
            Ok(())
        }
        Err(failure) => {
            if !is_traced {
                writeln!(stdout, "{failure}")?;
            }
            writeln!(stdout, "{FAILED_AT}{} {}", failure.at.as_micros(), failure.what)?;
            Err(Failure::new("the scenario fails"))
        }
    }
}

/// What stands before the time and the reason in the last line of a replay that fails.
const FAILED_AT: &str = "failed at ";

/// Makes a scenario smaller. Each candidate is played by a process of its own, for one that
/// breaks an assertion ends its process.
fn shrink_file(path: &Path, stdout: &mut dyn io::Write) -> Result<(), Failure> {
    let scenario = read(path)?;
    let candidate = path.with_extension("tmp");
    let mut fails = |scenario: &Scenario| play_apart(scenario, &candidate).unwrap_or_default();
    let shrunk = swarm::shrink(&scenario, SHRINK_TRIES, &mut fails);
    drop(fs::remove_file(&candidate)); // it may never have been written
    let Some(shrunk) = shrunk else {
        writeln!(stdout, "{} does not fail when it is played again", path.display())?;
        return Ok(());
    };
    fs::write(path, shrunk.scenario.to_string())?;
    let (before, after) = (scenario.steps.len(), shrunk.scenario.steps.len());
    writeln!(stdout, "{}", shrunk.what)?;
    writeln!(stdout, "{before} steps made {after} in {} tries", shrunk.tries)?;
    writeln!(stdout, "to replay: kontiki sim --replay {}", path.display())?;
    Ok(())
}

/// When and how a scenario fails, if it does.
fn play_apart(scenario: &Scenario, path: &Path) -> io::Result<Option<(Duration, String)>> {
    fs::write(path, scenario.to_string())?;
    let output = Command::new(std::env::current_exe()?)
        .args(["sim", "--replay"])
        .arg(path)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(None);
    }
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if let Some(line) = said.lines().rev().find_map(|line| line.strip_prefix(FAILED_AT)) {
        let (at, what) = line.split_once(' ').unwrap_or(("0", line));
        return Ok(Some((Duration::from_micros(at.parse().unwrap_or(0)), what.to_owned())));
    }
    // A panic says where it was, and in the next line why.
    let mut lines = complained.lines().skip_while(|line| !line.contains("panicked at"));
    let place = lines.next().unwrap_or("a panic").split("panicked at").last().unwrap_or_default();
    let why = lines.next().unwrap_or_default();
    Ok(Some((scenario.end, format!("panic at{place} {why}"))))
}

/// A broken assertion ends this process. Before it does, the scenario is written down and made
/// smaller by another one.
fn speak_before_abort(out: PathBuf) {
    let former = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        former(panic);
        let Some(scenario) = swarm::current() else { return };
        let path = scenario_path(&out, scenario.setup.seed);
        let seed = scenario.setup.seed;
        drop(writeln!(io::stderr(), "world {seed} has ended this process; see {}", path.display()));
        let Ok(program) = std::env::current_exe() else { return };
        if fs::write(&path, scenario.to_string()).is_ok() {
            drop(Command::new(program).args(["sim", "--shrink"]).arg(&path).status());
        }
    }));
}
