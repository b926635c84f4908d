//! Servers in this process, and etcd's own clients as their clients.

mod harness;

use std::{collections::BTreeSet, time::Instant};

use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpResponse,
};
use harness::{Cluster, PATIENCE};
use kontiki_server::{Server, ServerConfig, StartError, proto::etcdserverpb as pb};
use tonic::Code;

/// Runs a story on the runtime that servers are made for.
fn run(story: impl Future<Output = ()>) {
    harness::runtime().block_on(story);
}

async fn etcd_client(endpoint: String) -> etcd_client::Client {
    etcd_client::Client::connect([endpoint], None).await.expect("the server listens")
}

/// Asks `question` until it is answered with something.
async fn eventually<T>(what: &str, mut question: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = question().await {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "still not so: {what}");
        tokio::task::yield_now().await;
    }
}

/// The code and message of a call that must fail.
fn refusal<T: std::fmt::Debug>(answer: Result<T, etcd_client::Error>) -> (Code, String) {
    match answer.expect_err("the call is refused") {
        etcd_client::Error::GRpcStatus(status) => {
            (Code::from(i32::from(status.code())), status.message().to_owned())
        }
        other => panic!("no status: {other}"),
    }
}

#[test]
fn an_unchanged_client_is_at_home() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let mut client = etcd_client(cluster.endpoint(0)).await;

        for (key, value) in [("k/1", "one"), ("k/2", "two"), ("k/3", "three"), ("m", "other")] {
            client.put(key, value, None).await.unwrap();
        }
        let answer = client.put("k/1", "uno", Some(PutOptions::new().with_prev_key())).await;
        assert_eq!(answer.unwrap().prev_key().unwrap().value_str().unwrap(), "one");

        let options = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Value, SortOrder::Descend)
            .with_limit(2);
        let answer = client.get("k/", Some(options)).await.unwrap();
        let values: Vec<_> = answer.kvs().iter().map(|kv| kv.value_str().unwrap()).collect();
        assert_eq!((values, answer.count(), answer.more()), (vec!["uno", "two"], 3, true));

        let txn = Txn::new()
            .when([Compare::value("k/1", CompareOp::Equal, "uno")])
            .and_then([TxnOp::put("k/1", "eins", None), TxnOp::get("k/1", None)]);
        let answer = client.txn(txn).await.unwrap();
        assert!(answer.succeeded());
        let responses = answer.op_responses();
        let TxnOpResponse::Get(got) = &responses[1] else { panic!("{responses:?}") };
        assert_eq!(got.kvs()[0].value_str().unwrap(), "eins");

        let deleted = client.delete("k/", Some(DeleteOptions::new().with_prefix())).await.unwrap();
        assert_eq!(deleted.deleted(), 3);
        let revision = deleted.header().unwrap().revision();
        client.compact(revision, None).await.unwrap();
        let old = client.get("k/1", Some(GetOptions::new().with_revision(revision - 1))).await;
        let (code, message) = refusal(old);
        assert_eq!(code, Code::OutOfRange);
        assert_eq!(message, "etcdserver: mvcc: required revision has been compacted");

        cluster.stop_all().await;
    });
}

#[test]
fn what_is_not_there_yet_says_so() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let mut client = etcd_client(cluster.endpoint(0)).await;

        let grant = refusal(client.lease_grant(10, None).await);
        assert_eq!(
            grant,
            (Code::Unimplemented, "etcdserver: Lease.LeaseGrant is not implemented yet".to_owned())
        );
        let (code, message) = refusal(client.watch("k", None).await);
        assert_eq!(code, Code::Unimplemented);
        assert_eq!(message, "etcdserver: Watch.Watch is not implemented yet");
        let (code, message) = refusal(client.auth_enable().await);
        assert_eq!(code, Code::Unimplemented);
        assert_eq!(message, "etcdserver: Auth.AuthEnable is not implemented yet");

        // The connection is none the worse for it.
        client.put("k", "v", None).await.unwrap();
        cluster.stop_all().await;
    });
}

#[test]
fn every_server_takes_writes_and_reads_what_any_other_acknowledged() {
    run(async {
        let mut cluster = Cluster::start(3).await;
        let mut clients = Vec::new();
        for at in 0..3 {
            clients.push(etcd_client(cluster.endpoint(at)).await);
        }
        for round in 0..10 {
            for writer in 0..3 {
                let value = format!("{round} by {writer}");
                let put = clients[writer].put("k", value.clone(), None).await.unwrap();
                for reader in &mut clients {
                    let got = reader.get("k", None).await.unwrap();
                    assert_eq!(got.kvs()[0].value_str().unwrap(), value);
                    assert_eq!(got.header().unwrap().revision(), put.header().unwrap().revision());
                }
            }
        }
        cluster.stop_all().await;
    });
}

#[test]
fn the_servers_agree_on_who_they_are() {
    run(async {
        let mut cluster = Cluster::start(3).await;
        let mut lists = Vec::new();
        for at in 0..3 {
            let mut client = cluster.client(at).await;
            // Each tells the others where its clients find it, soon after the start.
            let list = eventually("all members have said where clients find them", async || {
                let list = client.member_list().await.unwrap();
                list.members.iter().all(|m| !m.client_ur_ls.is_empty()).then_some(list)
            });
            lists.push(list.await);
        }
        let header = |at: usize| lists[at].header.unwrap();
        let names: Vec<_> = lists[0].members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["n1", "n2", "n3"]);
        assert_eq!(header(0).revision, 0, "as in etcd");
        for (at, list) in lists.iter().enumerate() {
            assert_eq!(list.members, lists[0].members);
            assert_eq!(header(at).cluster_id, header(0).cluster_id);
            let me = &list.members[at];
            assert_eq!(header(at).member_id, me.id);
            assert_eq!(me.client_ur_ls, [format!("http://{}", cluster.endpoint(at))]);
            assert!(me.peer_ur_ls[0].starts_with("http://127.0.0.1:") && !me.is_learner);
        }
        let ids: BTreeSet<u64> = lists[0].members.iter().map(|member| member.id).collect();
        assert_eq!(ids.len(), 3);

        let mut leaders = BTreeSet::new();
        for (at, list) in lists.iter().enumerate() {
            let status = cluster.client(at).await.status().await.unwrap();
            leaders.insert(status.leader);
            assert_eq!(status.version, "3.6.0");
            assert_eq!(status.header.unwrap().member_id, list.members[at].id);
            assert_eq!(status.header.unwrap().revision, 1);
            assert_eq!(status.raft_term, status.header.unwrap().raft_term);
            assert!(1 <= status.raft_applied_index);
            assert!(status.raft_applied_index <= status.raft_index);
            assert!(0 < status.db_size && !status.is_learner && status.errors.is_empty());
            assert_eq!(cluster.client(at).await.health("").await.unwrap(), 1);
        }
        assert_eq!(leaders.len(), 1);
        assert!(ids.contains(leaders.first().unwrap()));
        cluster.stop_all().await;
    });
}

#[test]
fn a_leader_that_is_stopped_hands_over_and_comes_back() {
    run(async {
        let mut cluster = Cluster::start(3).await;
        let leader = (0..3).find(|&at| cluster.server(at).is_leader()).unwrap();
        let other = (leader + 1) % 3;
        let mut client = etcd_client(cluster.endpoint(other)).await;
        client.put("before", "1", None).await.unwrap();

        cluster.stop(leader).await;
        client.put("without", "2", None).await.unwrap();

        cluster.launch(leader).await;
        cluster.ready(leader).await;
        let mut back = etcd_client(cluster.endpoint(leader)).await;
        let got = back.get("", Some(GetOptions::new().with_all_keys())).await.unwrap();
        let keys: Vec<_> = got.kvs().iter().map(|kv| kv.key_str().unwrap()).collect();
        assert_eq!(keys, ["before", "without"]);
        cluster.stop_all().await;
    });
}

#[test]
fn a_server_without_a_quorum_serves_what_is_asked_of_it_alone() {
    run(async {
        let mut cluster = Cluster::start(3).await;
        let mut client = cluster.client(0).await;
        let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
        client.put(put.clone()).await.unwrap();
        // So that the first server has applied it, whoever led.
        let range = pb::RangeRequest { key: "k".into(), ..Default::default() };
        client.range(range.clone()).await.unwrap();
        cluster.stop(2).await;
        cluster.stop(1).await;

        eventually("the first server has lost its leader", async || {
            let status = client.status().await.unwrap();
            (status.leader == 0).then(|| assert_eq!(status.errors, ["etcdserver: no leader"]))
        })
        .await;
        assert_eq!(client.health("").await.unwrap(), 2);

        let local = pb::RangeRequest { serializable: true, ..range.clone() };
        assert_eq!(client.range(local).await.unwrap().kvs[0].value, "v");

        let metadata = ("hasleader", "true");
        let path = "/etcdserverpb.KV/Range";
        let demanding = client.call_saying::<_, pb::RangeResponse>(metadata, path, range.clone());
        let status = demanding.await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));

        // Both wait for as long as a request may take.
        let mut second = cluster.client(0).await;
        let (wrote, read) = tokio::join!(client.put(put), second.range(range));
        for status in [wrote.unwrap_err(), read.unwrap_err()] {
            assert_eq!(
                (status.code(), status.message()),
                (Code::Unavailable, "etcdserver: request timed out")
            );
        }
        cluster.stop_all().await;
    });
}

#[test]
fn a_server_that_comes_back_has_what_it_had() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let mut client = cluster.client(0).await;
        for number in 0..50 {
            let key = format!("k{number:02}").into();
            let put = pb::PutRequest { key, value: "v".into(), ..Default::default() };
            client.put(put).await.unwrap();
        }
        let all =
            pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        let before = client.range(all.clone()).await.unwrap();
        cluster.stop(0).await;

        cluster.launch(0).await;
        cluster.ready(0).await;
        let after = cluster.client(0).await.range(all).await.unwrap();
        assert_eq!(after.kvs, before.kvs);
        assert_eq!(after.header.unwrap().revision, before.header.unwrap().revision);
        assert_eq!(after.header.unwrap().member_id, before.header.unwrap().member_id);
        cluster.stop_all().await;
    });
}

/// Pitfall D10. What a server lacks is not in the logs of the others any more: it gets a snapshot,
/// and with it all of history that was not compacted.
#[test]
fn a_server_that_was_away_for_too_long_gets_a_snapshot() {
    run(async {
        let mut cluster = Cluster::configured(3, |config| {
            config.log_segment_bytes = 64 << 10;
            config.log_keep_bytes = 64 << 10;
            config.log_bytes_max = 256 << 10;
        });
        for at in 0..3 {
            cluster.launch(at).await;
        }
        for at in 0..3 {
            cluster.ready(at).await;
        }
        let mut client = cluster.client(0).await;
        let put = |number: usize| pb::PutRequest {
            key: format!("k{:03}", number % 100).into(),
            value: vec![u8::try_from(number % 251).expect("a byte"); 2000].into(),
            ..Default::default()
        };
        client.put(put(0)).await.unwrap();
        cluster.stop(2).await;
        // Some of it while the log is being purged: a snapshot is of one moment.
        for number in 1..1000 {
            client.put(put(number)).await.unwrap();
        }
        let request = pb::CompactionRequest { revision: 500, ..Default::default() };
        client.compact(request).await.unwrap();

        cluster.launch(2).await;
        cluster.ready(2).await;
        let mut late = cluster.client(2).await;
        for revision in [0, 500, 777] {
            let all = pb::RangeRequest {
                key: "\0".into(),
                range_end: "\0".into(),
                revision,
                serializable: true,
                ..Default::default()
            };
            let there = late.range(all.clone()).await.unwrap();
            assert_eq!(there.kvs, client.range(all).await.unwrap().kvs, "revision {revision}");
            assert_eq!(there.count, 100);
        }
        let received = cluster.config(2).data_dir.join("member/raft/snapshot");
        let count = std::fs::read_dir(received).unwrap().count();
        assert!(0 < count, "it was a snapshot that it got, and not the log");

        // It takes part as before, and has all of it on its own disk.
        late.put(put(1000)).await.unwrap();
        let status = late.status().await.unwrap();
        cluster.stop(2).await;
        cluster.launch(2).await;
        cluster.ready(2).await;
        let again = cluster.client(2).await.status().await.unwrap();
        assert_eq!(again.header.unwrap().revision, status.header.unwrap().revision);
        cluster.stop_all().await;
    });
}

#[test]
fn a_server_that_cannot_start_says_why() {
    run(async {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let cluster = Cluster::configured(1, |config| {
            config.listen_client_urls = vec![format!("http://{address}")];
        });
        let error = Server::start(cluster.config(0)).await.unwrap_err();
        assert!(matches!(&error, StartError::Listen { .. }), "{error}");
        assert_eq!(error.to_string(), format!("--listen-client-urls: cannot listen on {address}"));

        let config = ServerConfig { name: String::new(), ..ServerConfig::default() };
        let error = Server::start(config).await.unwrap_err();
        assert_eq!(error.to_string(), "--name: must not be empty");
    });
}
