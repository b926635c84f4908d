//! What a benchmark has seen, and how it is told.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde_json::json;

use super::{BenchArgs, work::Done};

/// Latencies are recorded to a thousandth, in microseconds up to a minute.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Counts of one run.
#[derive(Clone)]
pub(super) struct Tally {
    measured_from: Instant,
    total: Option<u64>,
    /// All successes, those of the warm-up too.
    done: u64,
    conflicts: u64,
    errors: BTreeMap<String, u64>,
    latencies: Histogram<u64>,
    /// When the last operation succeeded.
    last_success: Instant,
    longest_gap: Duration,
    /// How long was measured.
    measured_for: Duration,
    cpu_at_start: Option<Duration>,
    cpu_used: Option<Duration>,
}

impl Tally {
    pub(super) fn new(measured_from: Instant, total: Option<u64>) -> Self {
        let latencies = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3);
        Self {
            measured_from,
            total,
            done: 0,
            conflicts: 0,
            errors: BTreeMap::new(),
            latencies: latencies.expect("the bounds are constants that fit"),
            last_success: measured_from,
            longest_gap: Duration::ZERO,
            measured_for: Duration::ZERO,
            cpu_at_start: None,
            cpu_used: None,
        }
    }

    /// The commonest error, if there were errors and nothing else.
    pub(super) fn why_nothing_succeeded(&self) -> Option<&str> {
        if self.done != 0 {
            return None;
        }
        self.errors.iter().max_by_key(|(_, count)| **count).map(|(error, _)| error.as_str())
    }

    /// Adds an operation; true when the wanted number has been measured.
    pub(super) fn add(
        &mut self,
        started: Instant,
        ended: Instant,
        outcome: Result<Done, String>,
    ) -> bool {
        if outcome.is_ok() {
            self.done += 1;
        }
        let is_complete = self.total.is_some_and(|total| total <= self.latencies.len());
        if ended < self.measured_from || is_complete {
            return false;
        }
        if self.cpu_at_start.is_none() {
            self.cpu_at_start = cpu_of_this_thread();
        }
        match outcome {
            Ok(done) => {
                let micros = u64::try_from((ended - started).as_micros()).unwrap_or(u64::MAX);
                self.latencies.saturating_record(micros.max(1));
                self.conflicts += u64::from(done == Done::AfterConflict);
                self.longest_gap = self.longest_gap.max(ended - self.last_success);
                self.last_success = ended;
            }
            Err(error) => *self.errors.entry(error).or_default() += 1,
        }
        self.total.is_some_and(|total| total <= self.latencies.len())
    }

    /// Ends the measurement.
    pub(super) fn finish(&mut self, now: Instant) {
        self.measured_for = now.saturating_duration_since(self.measured_from);
        self.longest_gap = self.longest_gap.max(now.saturating_duration_since(self.last_success));
        self.cpu_used = match (self.cpu_at_start, cpu_of_this_thread()) {
            (Some(start), Some(end)) => end.checked_sub(start),
            _ => None,
        };
    }

    pub(super) const fn done(&self) -> u64 {
        self.done
    }

    pub(super) fn measured(&self) -> u64 {
        self.latencies.len()
    }

    fn rate(&self) -> f64 {
        as_f64(self.latencies.len()) / self.measured_for.as_secs_f64().max(1e-9)
    }

    /// CPU of this program in microseconds an operation.
    fn cpu_us(&self) -> Option<f64> {
        let operations = as_f64(self.latencies.len().max(1));
        self.cpu_used.map(|used| used.as_secs_f64() * 1e6 / operations)
    }

    /// For people.
    pub(super) fn text(&self, args: &BenchArgs) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            writeln!(text, "{name:<12} {value}").expect("a string takes what is written");
        };
        line(
            args.work.name(),
            format!(
                "{} clients on {} connections, {}-byte keys, {}-byte values, {} keys",
                args.clients, args.conns, args.key_size, args.val_size, args.keys
            ),
        );
        let seconds = self.measured_for.as_secs_f64();
        line("operations", format!("{} in {seconds:.2} s", self.latencies.len()));
        line("rate", format!("{:.0} /s", self.rate()));
        let at = |quantile: f64| millis(self.latencies.value_at_quantile(quantile));
        line(
            "latency",
            format!(
                "mean {}  p50 {}  p90 {}  p99 {}  p99.9 {}  max {} ms",
                format_args!("{:.2}", self.latencies.mean() / 1000.0),
                at(0.5),
                at(0.9),
                at(0.99),
                at(0.999),
                millis(self.latencies.max())
            ),
        );
        line("longest gap", format!("{} ms without a success", self.longest_gap.as_millis()));
        if let Some(cpu) = self.cpu_us() {
            line("client CPU", format!("{cpu:.1} µs an operation"));
        }
        if 0 < self.conflicts {
            line("conflicts", format!("{} transactions lost to another", self.conflicts));
        }
        for (error, count) in &self.errors {
            line("failed", format!("{count} × {error}"));
        }
        text
    }

    /// For programs: one line.
    pub(super) fn json(&self, args: &BenchArgs) -> String {
        let at = |quantile: f64| self.latencies.value_at_quantile(quantile);
        let value = json!({
            "work": args.work.name(),
            "endpoints": args.endpoints,
            "clients": args.clients,
            "conns": args.conns,
            "key_bytes": args.key_size,
            "value_bytes": args.val_size,
            "keys": args.keys,
            "serializable": args.serializable,
            "seconds": self.measured_for.as_secs_f64(),
            "operations": self.latencies.len(),
            "rate": self.rate(),
            "latency_us": {
                "mean": self.latencies.mean(),
                "p50": at(0.5),
                "p90": at(0.9),
                "p99": at(0.99),
                "p999": at(0.999),
                "max": self.latencies.max(),
            },
            "longest_gap_ms": u64::try_from(self.longest_gap.as_millis()).unwrap_or(u64::MAX),
            "client_cpu_us": self.cpu_us(),
            "conflicts": self.conflicts,
            "errors": self.errors,
        });
        format!("{value}\n")
    }
}

fn millis(micros: u64) -> String {
    format!("{:.2}", as_f64(micros) / 1000.0)
}

/// Exact up to 2^32; counts and latencies here are smaller, or need no more digits.
fn as_f64(number: u64) -> f64 {
    u32::try_from(number).map_or_else(
        |_| f64::from(u32::try_from(number >> 32).unwrap_or(u32::MAX)) * 4_294_967_296.0,
        f64::from,
    )
}

/// The program has one thread, so its CPU time is that of the program. `None` where the system
/// does not tell (it is read from Linux's procfs).
fn cpu_of_this_thread() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ends_after_the_warm_up_is_measured() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut tally = Tally::new(at(100), Some(3));
        assert!(!tally.add(at(0), at(99), Ok(Done::Plainly)));
        assert!(!tally.add(at(99), at(101), Ok(Done::Plainly)));
        assert!(!tally.add(at(101), at(103), Ok(Done::AfterConflict)));
        assert!(!tally.add(at(103), at(110), Err("no".to_owned())));
        assert!(tally.add(at(150), at(160), Ok(Done::Plainly)));
        tally.finish(at(200));
        assert_eq!((tally.done(), tally.measured(), tally.conflicts), (4, 3, 1));
        assert_eq!(tally.errors.get("no"), Some(&1));
        assert_eq!(tally.longest_gap, Duration::from_millis(57));
        assert_eq!(tally.measured_for, Duration::from_millis(100));
        assert_eq!(tally.latencies.max() / 100, 100);
        assert!((tally.rate() - 30.0).abs() < 1e-6);
    }
}
