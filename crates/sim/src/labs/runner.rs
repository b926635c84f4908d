//! Runs scenarios: one under one seed, or all of them many times on all processors.

use std::{
    cell::RefCell,
    fmt,
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{Lab, Report, SCENARIOS, Scenario};
use crate::{
    node::Counts,
    stopwatch::Stopwatch,
    trace::{Failure, Recorder},
};

/// What is to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How often each scenario is run. By default once if a seed is given, a hundred times
    /// otherwise.
    pub runs: Option<u64>,
    /// How many threads run worlds. By default as many as there are processors.
    pub jobs: Option<usize>,
    /// The seed of the first run; each further run takes the next one. By default 1.
    pub seed: Option<u64>,
    /// Which scenarios, or parts of the course like `2A`, in either case; all if empty.
    pub names: Vec<String>,
}

/// How far the runs have come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Runs that have ended.
    pub done: u64,
    /// Runs in all.
    pub total: u64,
    /// Runs that have failed.
    pub failed: u64,
    /// The scenario of the run that has just ended.
    pub name: &'static str,
}

/// Neither a scenario nor a part has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownScenario(pub String);

impl fmt::Display for UnknownScenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        let mut parts: Vec<String> =
            SCENARIOS.iter().map(|scenario| scenario.part().to_uppercase()).collect();
        parts.dedup();
        let (parts, names) = (parts.join(", "), names.join(", "));
        write!(f, "there is no scenario {}; there are the parts {parts}, and {names}", self.0)
    }
}

impl std::error::Error for UnknownScenario {}

/// One run of one scenario.
#[derive(Clone, Debug)]
pub struct Run {
    /// Which scenario.
    pub name: &'static str,
    /// Under which seed.
    pub seed: u64,
    /// What it came to.
    pub result: Result<(), Failure>,
    /// How long it took in the world.
    pub virtual_time: Duration,
    /// How long it took here.
    pub real_time: Duration,
    /// What was put on the network.
    pub sent: Counts,
    /// Events and actions.
    pub events: u64,
    /// All that happened, as one number: the same for the same seed.
    pub digest: u64,
}

/// Runs one scenario under one seed.
#[must_use]
pub fn run_one(scenario: &Scenario, seed: u64) -> Run {
    run_recorded(scenario, seed, Recorder::default())
}

/// As [`run_one`], with a recorder of the caller's.
fn run_recorded(scenario: &Scenario, seed: u64, recorder: Recorder) -> Run {
    let stopwatch = Stopwatch::start();
    let recorder = Rc::new(RefCell::new(recorder));
    let sent = std::cell::Cell::new(Counts::default());
    set_current(Some(Current { name: scenario.name, seed, recorder: Rc::clone(&recorder) }));
    // A broken assertion of the product is a failed run like any other, where panics unwind.
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut lab = Lab::new(seed, scenario.nodes, scenario.keeps)?;
        lab.world.set_recorder(Rc::clone(&recorder));
        let result = (scenario.play)(&mut lab).and_then(|()| lab.final_power_failure());
        lab.world.digest_disks();
        sent.set(lab.world.total_counts());
        result
    }));
    set_current(None);
    let recorder = recorder.borrow();
    let result = played.unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without words".to_owned());
        Err(Failure { what, at: recorder.now(), events: recorder.lines() })
    });
    Run {
        name: scenario.name,
        seed,
        result,
        virtual_time: recorder.now(),
        real_time: stopwatch.elapsed(),
        sent: sent.get(),
        events: recorder.count(),
        digest: recorder.digest(),
    }
}

/// Runs scenarios many times on several threads, a whole world on each. `progress` is called
/// after each run, from any of the threads.
///
/// # Errors
///
/// When a name is not that of a scenario. Runs that fail are in the report.
pub fn run(
    options: &Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report, UnknownScenario> {
    let scenarios = chosen(&options.names)?;
    let plan = plan(&scenarios, options, if options.seed.is_some() { 1 } else { 100 });
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = options.jobs.unwrap_or(processors).clamp(1, plan.len().max(1));

    let stopwatch = Stopwatch::start();
    let _hook = PanicHook::install();
    let next = AtomicUsize::new(0);
    let ended: Mutex<Vec<Run>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(&(scenario, seed)) = plan.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let run = run_one(scenario, seed);
                    let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
                    ended.push(run);
                    progress(Progress {
                        done: count(ended.len()),
                        total: count(plan.len()),
                        failed: count(ended.iter().filter(|run| run.result.is_err()).count()),
                        name: scenario.name,
                    });
                }
            });
        }
    });
    let ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Report::new(&scenarios, ended, stopwatch.elapsed()))
}

/// Runs scenarios one after the other on this thread, once each unless the options say
/// otherwise, and tells `listener` every event of them in a line when it happens.
///
/// # Errors
///
/// As [`run`].
pub fn run_told(
    options: &Options,
    listener: impl Fn(&str) + Clone + 'static,
) -> Result<Report, UnknownScenario> {
    let scenarios = chosen(&options.names)?;
    let stopwatch = Stopwatch::start();
    let _hook = PanicHook::install();
    let ended = plan(&scenarios, options, 1).into_iter().map(|(scenario, seed)| {
        listener(&format!("{}, {} servers, seed {seed}", scenario.name, scenario.nodes));
        let run = run_recorded(scenario, seed, Recorder::telling(listener.clone()));
        listener(&match &run.result {
            Ok(()) => "passed\n".to_owned(),
            Err(failure) => format!("failed: {}\n", failure.what),
        });
        run
    });
    let ended = ended.collect();
    Ok(Report::new(&scenarios, ended, stopwatch.elapsed()))
}

/// Which runs there are. The longest scenarios first would be quicker by a little; runs of one
/// scenario in a row are easier to follow.
fn plan<'a>(
    scenarios: &[&'a Scenario],
    options: &Options,
    default_runs: u64,
) -> Vec<(&'a Scenario, u64)> {
    let runs = options.runs.unwrap_or(default_runs);
    let first_seed = options.seed.unwrap_or(1);
    scenarios
        .iter()
        .flat_map(|&scenario| (0..runs).map(move |run| (scenario, first_seed.wrapping_add(run))))
        .collect()
}

/// The scenarios that are called so, or belong to a part that is, in the order of the course.
fn chosen(names: &[String]) -> Result<Vec<&'static Scenario>, UnknownScenario> {
    let is_called = |scenario: &Scenario, name: &String| {
        scenario.name.eq_ignore_ascii_case(name) || scenario.part().eq_ignore_ascii_case(name)
    };
    if let Some(unknown) = names.iter().find(|name| !SCENARIOS.iter().any(|s| is_called(s, name))) {
        return Err(UnknownScenario(unknown.clone()));
    }
    let is_chosen = |scenario: &&Scenario| {
        names.is_empty() || names.iter().any(|name| is_called(scenario, name))
    };
    Ok(SCENARIOS.iter().filter(is_chosen).collect())
}

fn count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// The command that runs a scenario once more under the same seed.
pub(super) fn replay_command(name: &str, seed: u64) -> String {
    format!("kontiki labs --seed {seed} {name}")
}

/// What runs on this thread now: for the panic hook, which must speak before the process is
/// aborted (release builds do not unwind).
struct Current {
    name: &'static str,
    seed: u64,
    recorder: Rc<RefCell<Recorder>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

fn set_current(current: Option<Current>) {
    CURRENT.with_borrow_mut(|slot| *slot = current);
}

/// While it lives, a panic inside of a run says which run it was.
struct PanicHook;

impl PanicHook {
    fn install() -> Self {
        let former = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            former(panic);
            CURRENT.with(|slot| {
                let Ok(slot) = slot.try_borrow() else { return };
                let Some(current) = &*slot else { return };
                let lines =
                    current.recorder.try_borrow().map_or_else(|_| Vec::new(), |r| r.lines());
                let mut text = String::new();
                for line in lines {
                    text.push_str("  ");
                    text.push_str(&line);
                    text.push('\n');
                }
                let replay = replay_command(current.name, current.seed);
                text.push_str(&format!("{} failed; to replay: {replay}\n", current.name));
                // Nothing is left to be done if even this cannot be said.
                drop(std::io::stderr().write_all(text.as_bytes()));
            });
        }));
        Self
    }
}

impl Drop for PanicHook {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            drop(std::panic::take_hook());
        }
    }
}
