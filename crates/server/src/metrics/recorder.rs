//! Keeps what is reported through the `metrics` facade, for `/metrics` to show.
//!
//! There is one recorder in a process, as the facade has it, so in a test with several servers
//! they share it. Histograms have buckets that double, from 10 µs to 10 s: wide enough for a
//! disk and for a network.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit};

use super::{head, sample};

/// Upper bounds of the buckets in seconds; the last bucket has none.
const BOUNDS: [f64; 21] = [
    0.00001, 0.00002, 0.00004, 0.00008, 0.00016, 0.00032, 0.00064, 0.001, 0.002, 0.004, 0.008,
    0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192,
];

/// etcd's names for what the library reports under its own.
const ALIASES: &[(&str, &str)] =
    &[("kontiki_log_sync_seconds", "etcd_disk_wal_fsync_duration_seconds")];

static INSTALLED: OnceLock<Recorder> = OnceLock::new();

/// Has this process keep what is reported through the `metrics` facade, for `/metrics` to show.
/// For a program that runs one server. Does nothing if there is a recorder already.
pub fn install() {
    let recorder = Recorder::default();
    if metrics::set_global_recorder(recorder.clone()).is_ok() {
        // Only whoever has set the recorder comes here.
        drop(INSTALLED.set(recorder));
    }
}

pub(super) fn installed() -> Option<&'static Recorder> {
    INSTALLED.get()
}

/// Keeps what is reported. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    help: BTreeMap<String, String>,
    /// By name, then by labels as they are shown.
    series: BTreeMap<String, BTreeMap<String, Series>>,
}

#[derive(Clone, Debug)]
enum Series {
    Counter(Arc<AtomicU64>),
    /// The bits of an `f64`.
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Buckets>),
}

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// In nanoseconds: seconds as integers would say nothing.
    sum: AtomicU64,
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let nanoseconds = std::time::Duration::try_from_secs_f64(value).unwrap_or_default();
        let nanoseconds = u64::try_from(nanoseconds.as_nanos()).unwrap_or(u64::MAX);
        self.sum.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

impl Recorder {
    fn series(&self, key: &Key, new: impl FnOnce() -> Series) -> Series {
        let mut labels = String::new();
        for label in key.labels() {
            let comma = if labels.is_empty() { "" } else { "," };
            let value = escaped(label.value());
            labels.push_str(&format!("{comma}{}=\"{value}\"", label.key()));
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let series = kept.series.entry(key.name().to_owned()).or_default();
        series.entry(labels).or_insert_with(new).clone()
    }

    fn describe(&self, name: &KeyName, help: &SharedString) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.help.insert(name.as_str().to_owned(), help.to_string());
    }

    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, series) in &kept.series {
            let help = kept.help.get(name).map_or("", String::as_str);
            write_series(out, name, help, series)?;
            if let Some((_, alias)) = ALIASES.iter().find(|(ours, _)| ours == name) {
                write_series(out, alias, help, series)?;
            }
        }
        Ok(())
    }
}

fn write_series(
    out: &mut String,
    name: &str,
    help: &str,
    series: &BTreeMap<String, Series>,
) -> fmt::Result {
    let kind = match series.values().next() {
        Some(Series::Counter(_)) => "counter",
        Some(Series::Gauge(_)) => "gauge",
        Some(Series::Histogram(_)) => "histogram",
        None => return Ok(()),
    };
    head(out, name, kind, help)?;
    for (labels, series) in series {
        match series {
            Series::Counter(count) => sample(out, name, labels, count.load(Ordering::Relaxed))?,
            Series::Gauge(bits) => {
                sample(out, name, labels, f64::from_bits(bits.load(Ordering::Relaxed)))?;
            }
            Series::Histogram(buckets) => write_histogram(out, name, labels, buckets)?,
        }
    }
    Ok(())
}

fn write_histogram(out: &mut String, name: &str, labels: &str, buckets: &Buckets) -> fmt::Result {
    let comma = if labels.is_empty() { "" } else { "," };
    let bounds = BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
    let mut total = 0;
    for (bound, count) in bounds.zip(&buckets.counts) {
        total += count.load(Ordering::Relaxed);
        sample(out, &format!("{name}_bucket"), &format!("{labels}{comma}le=\"{bound}\""), total)?;
    }
    let sum = std::time::Duration::from_nanos(buckets.sum.load(Ordering::Relaxed));
    sample(out, &format!("{name}_sum"), labels, sum.as_secs_f64())?;
    sample(out, &format!("{name}_count"), labels, total)
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, &help);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, &help);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, &help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.series(key, || Series::Counter(Arc::default())) {
            Series::Counter(count) => Counter::from_arc(count),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.series(key, || Series::Gauge(Arc::default())) {
            Series::Gauge(bits) => Gauge::from_arc(bits),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match self.series(key, || Series::Histogram(Arc::default())) {
            Series::Histogram(buckets) => Histogram::from_arc(buckets),
            _ => Histogram::noop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reported_is_shown_as_prometheus_reads_it() {
        let recorder = Recorder::default();
        metrics::with_local_recorder(&recorder, || {
            metrics::describe_histogram!("kontiki_log_sync_seconds", "Time of a sync.");
            metrics::counter!("writes", "to" => "a\"b").increment(3);
            metrics::gauge!("depth").set(1.5);
            metrics::histogram!("kontiki_log_sync_seconds").record(0.003);
            metrics::histogram!("kontiki_log_sync_seconds").record(99.0);
        });
        let mut out = String::new();
        recorder.write(&mut out).unwrap();
        let lines = [
            "# TYPE writes counter",
            "writes{to=\"a\\\"b\"} 3",
            "depth 1.5",
            "# HELP kontiki_log_sync_seconds Time of a sync.",
            "kontiki_log_sync_seconds_bucket{le=\"0.002\"} 0",
            "kontiki_log_sync_seconds_bucket{le=\"0.004\"} 1",
            "kontiki_log_sync_seconds_bucket{le=\"+Inf\"} 2",
            "kontiki_log_sync_seconds_sum 99.003",
            "etcd_disk_wal_fsync_duration_seconds_count 2",
        ];
        for line in lines {
            assert!(out.lines().any(|shown| shown == line), "{line} is not in\n{out}");
        }
    }
}
