//! `/metrics`: what Prometheus is told, under etcd's names where the meaning is the same.
//!
//! Three sources: what a server counts itself (`Meters`), what it and the system can be asked
//! at the moment of the question, and what the library reports through the `metrics` facade
//! (`recorder`). A name of etcd stands here only for what etcd means by it; what is missing of
//! etcd's names is missing because there is nothing honest to say. Names are API: they are listed
//! in `docs/operations.md`.

mod meters;
mod process;
mod recorder;

use std::fmt::{self, Write};

use kontiki::Role;

pub(crate) use meters::Meters;
pub use recorder::{Recorder, install};

use crate::{maintenance::API_VERSION, proto::etcdserverpb::AlarmType, service::Service};

/// Writes all metrics of a server.
pub(crate) async fn write(service: &Service, out: &mut String) -> fmt::Result {
    write_server(service, out)?;
    write_raft(service, out).await?;
    write_store(service, out)?;
    service.meters.write(out)?;
    process::write(out)?;
    if let Some(recorder) = recorder::installed() {
        recorder.write(out)?;
    }
    Ok(())
}

fn write_server(service: &Service, out: &mut String) -> fmt::Result {
    let (soft_state, me) = (service.soft_state(), service.roster.me());
    let flag = |is_so: bool| u64::from(is_so);
    let has_leader = flag(soft_state.leader.is_some());
    gauge(out, "etcd_server_has_leader", "Whether or not a leader exists.", has_leader)?;
    let is_leader = flag(soft_state.role == Role::Leader);
    gauge(out, "etcd_server_is_leader", "Whether or not this member is a leader.", is_leader)?;
    let is_learner = flag(me.is_learner);
    gauge(out, "etcd_server_is_learner", "Whether or not this member is a learner.", is_learner)?;
    let what = "Members with this alarm, as far as this one knows.";
    head(out, "kontiki_alarms", "gauge", what)?;
    let alarms = service.roster.alarms();
    for kind in [AlarmType::Nospace, AlarmType::Corrupt] {
        let count = alarms.iter().filter(|alarm| alarm.alarm() == kind).count();
        sample(out, "kontiki_alarms", &format!("alarm=\"{}\"", kind.as_str_name()), count)?;
    }
    let id = format!("server_id=\"{:x}\"", me.id);
    head(out, "etcd_server_id", "gauge", "Server or member ID in hexadecimal format.")?;
    sample(out, "etcd_server_id", &id, 1)?;
    let version = format!("server_version=\"{API_VERSION}\"");
    head(out, "etcd_server_version", "gauge", "Which version of the API is running.")?;
    sample(out, "etcd_server_version", &version, 1)?;
    let version = format!("cluster_version=\"{API_VERSION}\"");
    head(out, "etcd_cluster_version", "gauge", "Which version of the API the cluster speaks.")?;
    sample(out, "etcd_cluster_version", &version, 1)?;
    head(out, "kontiki_build_info", "gauge", "Which version of this program is running.")?;
    sample(out, "kontiki_build_info", concat!("version=\"", env!("CARGO_PKG_VERSION"), "\""), 1)
}

async fn write_raft(service: &Service, out: &mut String) -> fmt::Result {
    let Ok(status) = service.raft.status().await else { return Ok(()) };
    let committed = status.commit_index.get();
    let what = "The total number of consensus proposals committed.";
    gauge(out, "etcd_server_proposals_committed_total", what, committed)?;
    let applied = status.applied_index.get();
    let what = "The total number of consensus proposals applied.";
    gauge(out, "etcd_server_proposals_applied_total", what, applied)?;
    let first = status.log_start.index.get() + 1;
    gauge(out, "kontiki_log_first_index", "First index that the log holds.", first)?;
    gauge(out, "kontiki_log_last_index", "Last index of the log.", status.last.index.get())?;
    let durable = status.durable_index.get();
    gauge(out, "kontiki_log_durable_index", "Last index that is on this disk.", durable)
}

fn write_store(service: &Service, out: &mut String) -> fmt::Result {
    let store = &service.store;
    let what = "Total size of the underlying database physically allocated in bytes.";
    gauge(out, "etcd_mvcc_db_total_size_in_bytes", what, store.size_bytes())?;
    let what = "Total size of the underlying database logically in use in bytes.";
    gauge(out, "etcd_mvcc_db_total_size_in_use_in_bytes", what, store.size_in_use_bytes())?;
    let revision = store.revision();
    let what = "The current revision of store.";
    gauge(out, "etcd_debugging_mvcc_current_revision", what, revision)?;
    let what = "The revision of the last compaction in store.";
    gauge(out, "etcd_debugging_mvcc_compact_revision", what, store.compact_revision())
}

/// The two lines before the samples of a metric.
fn head(out: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

/// One sample. `labels` is empty or `name="value",…`, with nothing in it to be escaped.
fn sample(out: &mut String, name: &str, labels: &str, value: impl fmt::Display) -> fmt::Result {
    if labels.is_empty() {
        writeln!(out, "{name} {value}")
    } else {
        writeln!(out, "{name}{{{labels}}} {value}")
    }
}

fn gauge(out: &mut String, name: &str, help: &str, value: impl fmt::Display) -> fmt::Result {
    head(out, name, "gauge", help)?;
    sample(out, name, "", value)
}

fn counter(out: &mut String, name: &str, help: &str, value: impl fmt::Display) -> fmt::Result {
    head(out, name, "counter", help)?;
    sample(out, name, "", value)
}

#[cfg(test)]
mod tests {
    /// Names are API.
    #[test]
    fn every_metric_is_documented() {
        let page = include_str!("../../../../docs/metrics.md");
        let sources =
            [include_str!("mod.rs"), include_str!("meters.rs"), include_str!("process.rs")];
        let prefixes = ["etcd_", "kontiki_", "grpc_server_", "process_"];
        let mut count = 0;
        for name in sources.iter().flat_map(|source| source.split('"')) {
            let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            if is_name && prefixes.iter().any(|prefix| name.starts_with(prefix) && name != *prefix)
            {
                assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
                count += 1;
            }
        }
        assert!(20 < count, "{count} names were looked for");
    }
}
