//! Plays the worlds of many seeds on several threads.

use std::{
    cell::RefCell,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Scenario, Seen, draw, play::Play, shrink::fails_here};
use crate::stopwatch::Stopwatch;

/// What is to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The seed of the first world; each further one takes the next. By default 1.
    pub seed: Option<u64>,
    /// So many worlds, if this ends first.
    pub seeds: Option<u64>,
    /// So long, if this ends first.
    pub time: Option<Duration>,
    /// How many threads run worlds. By default as many as there are processors.
    pub jobs: Option<usize>,
}

/// How far the runs have come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Worlds that have ended.
    pub done: u64,
    /// Worlds that have failed.
    pub failed: u64,
    /// For how long they have run here.
    pub real_time: Duration,
}

/// A world that has failed.
#[derive(Clone, Debug)]
pub struct FailedWorld {
    /// Its seed.
    pub seed: u64,
    /// What is wrong.
    pub what: String,
    /// The last events and what is wrong.
    pub text: String,
}

/// What many worlds came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// What they have seen.
    pub seen: Seen,
    /// Those that have failed, by seed.
    pub failures: Vec<FailedWorld>,
    /// How long it took.
    pub real_time: Duration,
}

thread_local! {
    static CURRENT: RefCell<Option<Scenario>> = const { RefCell::new(None) };
}

/// The scenario that is being played on this thread: for a panic hook, which must speak before
/// the process is aborted.
#[must_use]
pub fn current() -> Option<Scenario> {
    CURRENT.with(|current| current.try_borrow().ok()?.clone())
}

/// Runs worlds until there have been enough. `progress` is called after each, from any thread.
#[must_use]
pub fn run_many(options: &Options, progress: &(dyn Fn(Progress) + Sync)) -> Report {
    let first = options.seed.unwrap_or(1);
    let seeds = options.seeds.unwrap_or(if options.time.is_some() { u64::MAX } else { 100 });
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = options.jobs.unwrap_or(processors).max(1);
    let stopwatch = Stopwatch::start();
    let next = AtomicU64::new(0);
    let report = Mutex::new(Report {
        seen: Seen::default(),
        failures: Vec::new(),
        real_time: Duration::ZERO,
    });
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let is_late = options.time.is_some_and(|time| time <= stopwatch.elapsed());
                    if seeds <= number || is_late {
                        return;
                    }
                    let result = run_one(first.wrapping_add(number));
                    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(seen) => report.seen = report.seen.and(seen),
                        Err(failed) => report.failures.push(failed),
                    }
                    let failed = u64::try_from(report.failures.len()).unwrap_or(u64::MAX);
                    let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                    progress(Progress { done, failed, real_time: stopwatch.elapsed() });
                }
            });
        }
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.failures.sort_by_key(|failed| failed.seed);
    report.real_time = stopwatch.elapsed();
    report
}

fn run_one(seed: u64) -> Result<Seen, FailedWorld> {
    let scenario = draw(seed);
    CURRENT.set(Some(scenario.clone()));
    let played = std::panic::catch_unwind(|| Play::new(&scenario).run());
    CURRENT.set(None);
    match played {
        Ok(Ok((seen, _))) => Ok(seen),
        Ok(Err(failure)) => {
            Err(FailedWorld { seed, what: failure.what.clone(), text: failure.to_string() })
        }
        Err(_) => {
            let (_, what) = fails_here(&scenario).unwrap_or_default();
            Err(FailedWorld { seed, text: what.clone(), what })
        }
    }
}
