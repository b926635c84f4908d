//! What a server counts.

use std::{
    array,
    collections::BTreeMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use tonic::Code;

use super::{counter, gauge, head, sample};

/// The status codes of gRPC, 0 to 16, as etcd's metrics spell them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Counters of one server.
#[derive(Debug)]
pub(crate) struct Meters {
    /// By path. Only methods of the API: a client must not make new series.
    calls: BTreeMap<String, Calls>,
    leader_changes: AtomicU64,
    proposals_pending: AtomicU64,
    proposals_failed: AtomicU64,
    reads_failed: AtomicU64,
    healthy: AtomicU64,
    unhealthy: AtomicU64,
}

/// Calls of one method.
#[derive(Debug)]
struct Calls {
    service: &'static str,
    method: &'static str,
    started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

/// A proposal on its way. It is counted out when it is dropped, however it ends.
#[derive(Debug)]
pub(crate) struct Pending<'a>(&'a AtomicU64);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Meters {
    /// Meters for the methods of `api`: `(service, [method, …])`.
    pub(crate) fn new(api: &[(&'static str, &[&'static str])]) -> Self {
        let methods = api.iter().flat_map(|&(service, methods)| {
            methods.iter().map(move |&method| {
                let path = format!("/{service}/{method}");
                let handled = array::from_fn(|_| AtomicU64::new(0));
                (path, Calls { service, method, started: AtomicU64::new(0), handled })
            })
        });
        Self {
            calls: methods.collect(),
            leader_changes: AtomicU64::new(0),
            proposals_pending: AtomicU64::new(0),
            proposals_failed: AtomicU64::new(0),
            reads_failed: AtomicU64::new(0),
            healthy: AtomicU64::new(0),
            unhealthy: AtomicU64::new(0),
        }
    }

    pub(crate) fn call_started(&self, path: &str) {
        if let Some(calls) = self.calls.get(path) {
            calls.started.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn call_handled(&self, path: &str, code: Code) {
        let calls = self.calls.get(path);
        let place = usize::try_from(i32::from(code)).unwrap_or_default();
        if let Some(count) = calls.and_then(|calls| calls.handled.get(place)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn leader_seen(&self) {
        self.leader_changes.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn proposal(&self) -> Pending<'_> {
        self.proposals_pending.fetch_add(1, Ordering::Relaxed);
        Pending(&self.proposals_pending)
    }

    pub(crate) fn proposal_failed(&self) {
        self.proposals_failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read_failed(&self) {
        self.reads_failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn health(&self, is_healthy: bool) {
        let meter = if is_healthy { &self.healthy } else { &self.unhealthy };
        meter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn write(&self, out: &mut String) -> fmt::Result {
        let read = |meter: &AtomicU64| meter.load(Ordering::Relaxed);
        let what = "The number of leader changes seen.";
        counter(out, "etcd_server_leader_changes_seen_total", what, read(&self.leader_changes))?;
        let what = "The current number of pending proposals to commit.";
        gauge(out, "etcd_server_proposals_pending", what, read(&self.proposals_pending))?;
        let what = "The total number of failed proposals seen.";
        counter(out, "etcd_server_proposals_failed_total", what, read(&self.proposals_failed))?;
        let what = "The total number of failed read indexes seen.";
        counter(out, "etcd_server_read_indexes_failed_total", what, read(&self.reads_failed))?;
        let what = "The total number of successful health checks";
        counter(out, "etcd_server_health_success", what, read(&self.healthy))?;
        let what = "The total number of failed health checks";
        counter(out, "etcd_server_health_failures", what, read(&self.unhealthy))?;
        self.write_calls(out)
    }

    fn write_calls(&self, out: &mut String) -> fmt::Result {
        let read = |meter: &AtomicU64| meter.load(Ordering::Relaxed);
        let labels = |calls: &Calls| {
            let (service, method) = (calls.service, calls.method);
            format!("grpc_method=\"{method}\",grpc_service=\"{service}\",grpc_type=\"unary\"")
        };
        let name = "grpc_server_started_total";
        head(out, name, "counter", "Total number of RPCs started on the server.")?;
        let used = || self.calls.values().filter(|calls| 0 < read(&calls.started));
        for calls in used() {
            sample(out, name, &labels(calls), read(&calls.started))?;
        }
        let name = "grpc_server_handled_total";
        let what =
            "Total number of RPCs completed on the server, regardless of success or failure.";
        head(out, name, "counter", what)?;
        for calls in used() {
            for (code, count) in CODES.iter().zip(&calls.handled) {
                let count = read(count);
                if 0 < count {
                    let labels = format!("grpc_code=\"{code}\",{}", labels(calls));
                    sample(out, name, &labels, count)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_method_and_code() {
        let meters = Meters::new(&[("etcdserverpb.KV", &["Put", "Range"])]);
        for path in ["/etcdserverpb.KV/Put", "/etcdserverpb.KV/Put", "/made/up"] {
            meters.call_started(path);
            meters.call_handled(path, Code::Unavailable);
        }
        let mut out = String::new();
        meters.write(&mut out).unwrap();
        let method = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
        assert!(out.contains(&format!("grpc_server_started_total{{{method}}} 2\n")), "{out}");
        let line = format!("grpc_server_handled_total{{grpc_code=\"Unavailable\",{method}}} 2\n");
        assert!(out.contains(&line), "{out}");
        assert!(!out.contains("made") && !out.contains("Range"), "{out}");
    }

    #[test]
    fn a_proposal_is_pending_until_it_is_dropped() {
        let meters = Meters::new(&[]);
        let shown = || {
            let mut out = String::new();
            meters.write(&mut out).unwrap();
            out.contains("\netcd_server_proposals_pending 1\n")
        };
        let pending = meters.proposal();
        assert!(shown());
        drop(pending);
        assert!(!shown());
    }
}
