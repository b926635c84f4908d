//! What many runs came to, as a table.

use std::{fmt, time::Duration};

use super::{Run, Scenario, runner::replay_command};

/// What many runs came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// One row for each scenario.
    pub rows: Vec<Row>,
    /// The runs that failed, by scenario and seed.
    pub failures: Vec<FailedRun>,
    /// How long all of it took.
    pub real_time: Duration,
}

/// What the runs of one scenario came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The scenario.
    pub name: &'static str,
    /// Runs that passed.
    pub passed: u64,
    /// Runs that failed.
    pub failed: u64,
    /// Time in the worlds, in all.
    pub virtual_time: Duration,
    /// Time here, in all.
    pub real_time: Duration,
    /// Messages, two to a call, in all.
    pub rpcs: u64,
    /// Bytes on the network, in all.
    pub bytes: u64,
    /// Events and actions, in all.
    pub events: u64,
}

/// A run that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRun {
    /// The scenario.
    pub name: &'static str,
    /// The seed.
    pub seed: u64,
    /// The command that runs it once more.
    pub replay: String,
    /// The last events, one line each, and what went wrong.
    pub text: String,
}

impl Report {
    pub(super) fn new(scenarios: &[&Scenario], mut runs: Vec<Run>, real_time: Duration) -> Self {
        runs.sort_by_key(|run| (run.name, run.seed));
        let rows = scenarios
            .iter()
            .map(|scenario| Row::of(scenario.name, runs.iter().filter(|r| r.name == scenario.name)))
            .collect();
        let failures = runs
            .iter()
            .filter_map(|run| {
                let failure = run.result.as_ref().err()?;
                Some(FailedRun {
                    name: run.name,
                    seed: run.seed,
                    replay: replay_command(run.name, run.seed),
                    text: failure.to_string(),
                })
            })
            .collect();
        Self { rows, failures, real_time }
    }

    /// Whether nothing failed.
    #[must_use]
    pub fn has_passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// All rows in one.
    #[must_use]
    pub fn total(&self) -> Row {
        self.rows.iter().fold(Row { name: "total", ..Row::default() }, |sum, row| Row {
            name: sum.name,
            passed: sum.passed + row.passed,
            failed: sum.failed + row.failed,
            virtual_time: sum.virtual_time + row.virtual_time,
            real_time: sum.real_time + row.real_time,
            rpcs: sum.rpcs + row.rpcs,
            bytes: sum.bytes + row.bytes,
            events: sum.events + row.events,
        })
    }
}

impl Row {
    fn of<'a>(name: &'static str, runs: impl Iterator<Item = &'a Run>) -> Self {
        let mut row = Self { name, ..Self::default() };
        for run in runs {
            if run.result.is_ok() {
                row.passed += 1;
            } else {
                row.failed += 1;
            }
            row.virtual_time += run.virtual_time;
            row.real_time += run.real_time;
            row.rpcs += run.sent.messages / 2;
            row.bytes += run.sent.bytes;
            row.events += run.events;
        }
        row
    }

    fn line(&self) -> [String; 7] {
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        [
            self.name.to_owned(),
            self.passed.to_string(),
            self.failed.to_string(),
            seconds(self.virtual_time),
            seconds(self.real_time),
            self.rpcs.to_string(),
            self.bytes.to_string(),
        ]
    }
}

const HEADINGS: [&str; 7] =
    ["scenario", "passed", "failed", "virtual time", "real time", "RPCs", "bytes"];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![HEADINGS.map(str::to_owned)];
        lines.extend(self.rows.iter().map(Row::line));
        lines.push(self.total().line());
        let mut widths = [0; HEADINGS.len()];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.len());
            }
        }
        for line in &lines {
            for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                match column {
                    0 => write!(f, "{cell:<width$}")?,
                    _ => write!(f, "  {cell:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        for failure in &self.failures {
            writeln!(f, "\n{} failed with seed {}", failure.name, failure.seed)?;
            writeln!(f, "{}", failure.text)?;
            writeln!(f, "  to replay: {}", failure.replay)?;
        }
        write!(f, "{:.1} s in all", self.real_time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        labs::scenario_named,
        node::Counts,
        trace::{Failure, Fault, Note, Recorder},
    };

    #[test]
    fn a_failure_shows_its_seed_its_replay_and_the_last_events() {
        let mut recorder = Recorder::default();
        recorder.at(Duration::from_millis(1_500));
        recorder.note(Note::Fault(Fault::Crash(kontiki_raft::NodeId(2))));
        let failure = Failure {
            what: "n1 has lost 7@3".into(),
            at: recorder.now(),
            events: recorder.lines(),
        };
        let run = Run {
            name: "rejoin_2b",
            seed: 41,
            result: Err(failure),
            virtual_time: recorder.now(),
            real_time: Duration::ZERO,
            sent: Counts::default(),
            events: recorder.count(),
            digest: recorder.digest(),
        };
        let scenario = scenario_named("rejoin_2b").unwrap();
        let report = Report::new(&[scenario], vec![run], Duration::ZERO);
        assert!(!report.has_passed() && report.total().failed == 1);
        let text = report.to_string();
        for part in [
            "rejoin_2b failed with seed 41\n",
            "     1.500000 s  --- n2 loses power\n",
            "at 1.500000 s: n1 has lost 7@3\n",
            "  to replay: kontiki labs --seed 41 rejoin_2b\n",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
