//! Makes a failing scenario smaller, as long as it fails in the same way.
//!
//! First everything after the failure goes, then faults by halves, quarters and so on (delta
//! debugging), then clients, then whole classes of weather. What remains is what a person has to
//! understand.

use std::time::Duration;

use super::{Scenario, play};
use crate::{network::NetworkSettings, trace::Failure};

/// A scenario that was made smaller.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// What is left.
    pub scenario: Scenario,
    /// How it fails.
    pub what: String,
    /// How many were tried.
    pub tries: u64,
}

/// What kind of failure this is: its sentence without the numbers.
#[must_use]
pub fn kind_of(what: &str) -> String {
    let mut kind = String::new();
    for letter in what.lines().next().unwrap_or_default().chars().take(120) {
        match letter {
            '0'..='9' if kind.ends_with('#') => {}
            '0'..='9' => kind.push('#'),
            other => kind.push(other),
        }
    }
    kind
}

/// Looks for a smaller scenario that fails in the same way as this one, in at most so many tries.
///
/// `fails` plays one and tells when and how it failed. It may be this process or another one.
#[must_use]
pub fn shrink(
    scenario: &Scenario,
    tries_max: u64,
    fails: &mut dyn FnMut(&Scenario) -> Option<(Duration, String)>,
) -> Option<Shrunk> {
    let (at, what) = fails(scenario)?;
    let mut search = Search {
        best: Shrunk { scenario: scenario.clone(), what: what.clone(), tries: 1 },
        kind: kind_of(&what),
        at,
        tries_max,
        fails,
    };
    search.cut_time();
    search.cut_steps();
    search.calm_weather();
    search.cut_steps();
    Some(search.best)
}

/// Plays a scenario here, for [`shrink`]. A panic is a failure as well, where panics unwind.
#[must_use]
pub fn fails_here(scenario: &Scenario) -> Option<(Duration, String)> {
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(scenario)));
    match played {
        Ok(Ok(_)) => None,
        Ok(Err(Failure { what, at, .. })) => Some((at, what)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some((scenario.end, text.unwrap_or_else(|| "a panic".to_owned())))
        }
    }
}

struct Search<'a> {
    best: Shrunk,
    kind: String,
    at: Duration,
    tries_max: u64,
    fails: &'a mut dyn FnMut(&Scenario) -> Option<(Duration, String)>,
}

impl Search<'_> {
    /// Keeps the candidate if it fails in the same way.
    fn attempt(&mut self, candidate: Scenario) -> bool {
        if self.tries_max <= self.best.tries {
            return false;
        }
        self.best.tries += 1;
        match (self.fails)(&candidate) {
            Some((at, what)) if kind_of(&what) == self.kind => {
                self.at = at;
                self.best.what = what;
                self.best.scenario = candidate;
                true
            }
            _ => false,
        }
    }

    /// What comes after the failure has no part in it.
    fn cut_time(&mut self) {
        let mut candidate = self.best.scenario.clone();
        let at = self.at;
        candidate.steps.retain(|step| step.at <= at);
        if at < candidate.end {
            candidate.end = at + Duration::from_millis(1);
        }
        self.attempt(candidate);
    }

    fn cut_steps(&mut self) {
        let mut size = self.best.scenario.steps.len().div_ceil(2);
        while 0 < size {
            let mut from = 0;
            while from < self.best.scenario.steps.len() {
                let mut candidate = self.best.scenario.clone();
                let to = (from + size).min(candidate.steps.len());
                candidate.steps.drain(from..to);
                if !self.attempt(candidate) {
                    from += size;
                }
                if self.tries_max <= self.best.tries {
                    return;
                }
            }
            size /= 2;
        }
    }

    fn calm_weather(&mut self) {
        while 1 < self.best.scenario.clients {
            let mut candidate = self.best.scenario.clone();
            candidate.clients -= 1;
            if !self.attempt(candidate) {
                break;
            }
        }
        let changes: [fn(&mut Scenario); 9] = [
            |s| s.setup.network = NetworkSettings::reliable(),
            |s| s.setup.network.loss = 0,
            |s| s.setup.network.duplicates = 0,
            |s| s.setup.network.stragglers = 0,
            |s| s.setup.network.has_long_reordering = false,
            |s| s.setup.stalls = 0,
            |s| s.setup.clock_drift = 0,
            |s| s.setup.timer_lateness = Duration::ZERO,
            |s| s.setup.has_stores = false,
        ];
        for change in changes {
            let mut candidate = self.best.scenario.clone();
            change(&mut candidate);
            self.attempt(candidate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        scenario::{Step, What},
        swarm::draw,
    };

    #[test]
    fn what_has_no_part_in_a_failure_is_left_out() {
        let mut scenario = draw(3);
        let step = |at, what| Step { at: Duration::from_millis(at), what, args: [2, 0] };
        scenario.steps = (1..60).map(|at| step(at, What::Heal)).collect();
        scenario.steps.insert(20, step(20, What::Destroy));
        scenario.steps.insert(40, step(40, What::Rot));
        let mut fails = |scenario: &Scenario| {
            let has = |what| scenario.steps.iter().any(|step| step.what == what);
            let at = Duration::from_millis(50 + scenario.clients);
            (has(What::Destroy) && has(What::Rot))
                .then(|| (at, format!("n{} fails", scenario.clients)))
        };
        let shrunk = shrink(&scenario, 500, &mut fails).expect("it fails");
        assert_eq!(shrunk.scenario.steps.len(), 2, "{}", shrunk.scenario);
        assert_eq!(shrunk.scenario.clients, 1);
        assert_eq!(shrunk.what, "n1 fails");
        assert!(shrink(&scenario, 500, &mut |_| None).is_none());
    }

    #[test]
    fn failures_that_differ_in_numbers_are_of_one_kind() {
        assert_eq!(kind_of("n1 commits 12@3\nmore"), kind_of("n4 commits 7@11"));
        assert_ne!(kind_of("n1 commits 12@3"), kind_of("n1 applies 12@3"));
    }
}
