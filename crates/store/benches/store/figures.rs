//! Figures, and how they are printed.

use std::time::{Duration, Instant};

/// How long each of many calls took.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn time(&mut self, run: impl FnOnce()) {
        let before = Instant::now();
        run();
        self.0.push(before.elapsed());
    }

    pub(crate) fn total(&self) -> Duration {
        self.0.iter().sum()
    }

    /// Adds the rows of `what`; the target, if any, is for the 99.9th percentile.
    pub(crate) fn report(
        mut self,
        name: &'static str,
        what: &str,
        table: &mut Table,
        target: Option<f64>,
    ) {
        self.0.sort_unstable();
        let at = |share: f64| {
            let at = (share * (self.0.len() - 1) as f64) as usize;
            self.0[at].as_secs_f64() * 1e3
        };
        for (percentile, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
            let target = target.filter(|_| percentile == "p99.9");
            table.add(name, &format!("batch, {what}, {percentile}"), at(share), "ms", target);
        }
    }
}

/// One row for each figure, one column for each subject.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

#[derive(Debug)]
struct Row {
    what: String,
    unit: &'static str,
    /// At least this; negative: at most its amount.
    target: Option<f64>,
    figures: Vec<(&'static str, f64)>,
}

impl Table {
    pub(crate) fn add(
        &mut self,
        name: &'static str,
        what: &str,
        figure: f64,
        unit: &'static str,
        target: Option<f64>,
    ) {
        println!("  {name:8} {what:44} {figure:10.2} {unit}");
        match self.0.iter_mut().find(|row| row.what == what) {
            Some(row) => row.figures.push((name, figure)),
            None => self.0.push(Row {
                what: what.to_owned(),
                unit,
                target,
                figures: vec![(name, figure)],
            }),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a row has as many columns")]
    pub(crate) fn rate(
        &mut self,
        name: &'static str,
        what: &str,
        count: f64,
        since: Instant,
        unit: &'static str,
        scale: f64,
        target: Option<f64>,
    ) {
        let rate = count / since.elapsed().as_secs_f64() / scale;
        self.add(name, what, rate, unit, target);
    }

    pub(crate) fn print(&self) {
        println!("\n| | kontiki | redb | | target | |\n| --- | --- | --- | --- | --- | --- |");
        for row in &self.0 {
            let of = |name| row.figures.iter().find(|(of, _)| *of == name).map(|(_, it)| *it);
            let cell = |figure: Option<f64>| figure.map_or(String::new(), |it| format!("{it:.2}"));
            let ours = of("kontiki");
            let (target, verdict) = match (row.target, ours) {
                (Some(target), Some(it)) => {
                    let is_met = if target < 0.0 { it <= -target } else { target <= it };
                    let bound = if target < 0.0 { "at most" } else { "at least" };
                    let verdict = if is_met { "met" } else { "missed" };
                    (format!("{bound} {}", target.abs()), verdict)
                }
                _ => (String::new(), ""),
            };
            let (ours, redb) = (cell(ours), cell(of("redb")));
            println!("| {} | {ours} | {redb} | {} | {target} | {verdict} |", row.what, row.unit);
        }
    }
}

/// Resident memory of this process.
pub(crate) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
