//! What HTTP/1.1 finds on the clients' port.

mod harness;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use harness::{Cluster, PATIENCE};
use kontiki_server::proto::etcdserverpb as pb;

fn run(story: impl Future<Output = ()>) {
    harness::runtime().block_on(story);
}

/// One request on a connection of its own: the status, the headers in lower case, the body.
async fn ask(to: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: kontiki\r\nConnection: close\r\n\r\n");
    let asked = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(to).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.write_all(request.as_bytes()).expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    });
    let answer = asked.await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), head.to_lowercase(), body.to_owned())
}

async fn get(to: SocketAddr, path: &str) -> (u16, String) {
    let (status, _, body) = ask(to, "GET", path).await;
    (status, body)
}

#[test]
fn a_server_that_can_serve_is_healthy() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let to = cluster.server(0).client_addresses()[0];
        let healthy = "{\"health\":\"true\",\"reason\":\"\"}".to_owned();
        for path in ["/health", "/health?serializable=true", "/health?exclude=NOSPACE"] {
            assert_eq!(get(to, path).await, (200, healthy.clone()), "{path}");
        }
        let (_, head, _) = ask(to, "GET", "/health").await;
        assert!(head.contains("content-type: text/plain; charset=utf-8"), "{head}");
        assert!(head.contains("access-control-allow-origin: *"), "{head}");
        let (status, head, body) = ask(to, "POST", "/health").await;
        assert_eq!((status, body.as_str()), (405, "Method Not Allowed\n"));
        assert!(head.contains("allow: get"), "{head}");

        let version = "{\"etcdserver\":\"3.6.0\",\"etcdcluster\":\"3.6.0\",\"storage\":\"3.6.0\"}";
        assert_eq!(get(to, "/version").await, (200, version.to_owned()));
        assert_eq!(get(to, "/nothing").await, (404, "404 page not found\n".to_owned()));
        assert_eq!(get(to, "/livez").await, (200, "ok\n".to_owned()));
        assert_eq!(get(to, "/readyz/linearizable_read").await, (200, "ok\n".to_owned()));
        let verbose = "[+]data_corruption ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
        let path = "/readyz?verbose&exclude=serializable_read";
        assert_eq!(get(to, path).await, (200, verbose.to_owned()));
        cluster.stop_all().await;
    });
}

#[test]
fn a_server_without_a_leader_is_alive_and_not_healthy() {
    run(async {
        let mut cluster = Cluster::start(3).await;
        let to = cluster.server(0).client_addresses()[0];
        cluster.stop(2).await;
        cluster.stop(1).await;
        let mut client = cluster.client(0).await;
        while client.status().await.unwrap().leader != 0 {
            tokio::task::yield_now().await;
        }
        let sick = "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n".to_owned();
        assert_eq!(get(to, "/health").await, (503, sick));
        assert_eq!(get(to, "/health?serializable=true").await.0, 200);
        assert_eq!(get(to, "/livez").await.0, 200);
        let (status, body) = get(to, "/readyz").await;
        assert_eq!(status, 503);
        let line = "[-]linearizable_read failed: etcdserver: request timed out\n";
        assert!(body.contains(line) && body.ends_with("readyz check failed\n"), "{body}");
        let (_, metrics) = get(to, "/metrics").await;
        assert!(metrics.contains("\netcd_server_has_leader 0\n"));
        assert!(metrics.contains("\netcd_server_health_failures 1\n"));
        cluster.stop_all().await;
    });
}

/// Each name of a page of metrics is explained above its samples.
fn assert_each_has_help(body: &str) {
    let mut count = 0;
    for name in body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        let help = body.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
        assert!(help.is_some_and(|help| !help.trim().is_empty()), "{name} has no HELP:\n{body}");
        count += 1;
    }
    assert!(40 < count, "{count} names were looked for");
}

/// The library tells of each peer, and the page shows it.
#[test]
fn what_waits_for_a_peer_and_how_long_it_takes_is_at_metrics() {
    kontiki_server::metrics::install();
    run(async {
        let mut cluster = Cluster::start(3).await;
        let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
        cluster.client(0).await.put(put).await.unwrap();
        let to = cluster.server(0).client_addresses()[0];
        // All servers of this process report to the same page. Gauges are set once a second.
        let began = std::time::Instant::now();
        loop {
            let (_, body) = get(to, "/metrics").await;
            let says = |name: &str, labels: &[&str]| {
                let lines = body.lines().filter(|line| line.starts_with(&format!("{name}{{")));
                lines
                    .filter(|line| !line.ends_with(" NaN"))
                    .any(|line| labels.iter().all(|label| line.contains(label)))
            };
            let lanes = ["control", "append", "snapshot"].map(|lane| format!("lane=\"{lane}\""));
            let is_told = lanes.iter().all(|lane| {
                let labels = ["node=\"1\"", "peer=\"2\"", lane.as_str()];
                says("kontiki_lane_length", &labels) && says("kontiki_lane_bytes", &labels)
            });
            if is_told && says("kontiki_round_trip_seconds", &["node=", "peer="]) {
                assert_each_has_help(&body);
                break;
            }
            assert!(began.elapsed() < PATIENCE, "not told:\n{body}");
        }
        cluster.stop_all().await;
    });
}

#[test]
fn metrics_are_told_under_etcds_names() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let mut client = cluster.client(0).await;
        let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
        client.put(put).await.unwrap();
        client.put(pb::PutRequest::default()).await.unwrap_err();
        let to = cluster.server(0).client_addresses()[0];
        let (_, head, body) = ask(to, "GET", "/metrics").await;
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        let put = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
        let lines = [
            "# TYPE etcd_server_has_leader gauge",
            "etcd_server_has_leader 1",
            "etcd_server_is_leader 1",
            "etcd_server_is_learner 0",
            "etcd_server_leader_changes_seen_total 1",
            "etcd_server_proposals_pending 0",
            "etcd_server_proposals_failed_total 0",
            "etcd_debugging_mvcc_current_revision 2",
            &format!("grpc_server_started_total{{{put}}} 2"),
            &format!("grpc_server_handled_total{{grpc_code=\"OK\",{put}}} 1"),
            &format!("grpc_server_handled_total{{grpc_code=\"InvalidArgument\",{put}}} 1"),
        ];
        for line in lines {
            assert!(body.lines().any(|shown| shown == line), "{line} is not in\n{body}");
        }
        let names = [
            "etcd_server_proposals_committed_total ",
            "etcd_server_proposals_applied_total ",
            "etcd_mvcc_db_total_size_in_bytes ",
            "etcd_mvcc_db_total_size_in_use_in_bytes ",
            "process_resident_memory_bytes ",
            "process_cpu_seconds_total ",
            "process_open_fds ",
        ];
        for name in names {
            assert!(body.lines().any(|shown| shown.starts_with(name)), "{name} is not in\n{body}");
        }
        let mut seen = std::collections::BTreeSet::new();
        for line in body.lines().filter(|line| line.starts_with("# TYPE")) {
            assert!(seen.insert(line), "twice: {line}");
        }
        cluster.stop_all().await;
    });
}
