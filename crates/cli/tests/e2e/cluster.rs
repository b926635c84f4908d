//! What a cluster does for clients and for whoever runs it, when nothing dies.

use std::{fs, fs::File};

use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp, TxnOpResponse};
use rustix::process::Signal;

use crate::servers::{Servers, alone, end_of, run, spawn};

#[test]
fn every_server_puts_gets_ranges_transacts_and_compacts() {
    let _alone = alone();
    run(async {
        let servers = Servers::three().await;
        for index in 0..3 {
            let mut here = servers.client(index).await;
            let mut there = servers.client((index + 1) % 3).await;
            let key = |name: &str| format!("{index}/{name}");

            let put = here.put(key("a"), "1", None).await.unwrap();
            let revision = put.header().unwrap().revision();
            let got = there.get(key("a"), None).await.unwrap();
            assert_eq!(got.kvs()[0].value(), b"1");
            assert_eq!(got.kvs()[0].mod_revision(), revision);

            there.put(key("b"), "2", None).await.unwrap();
            let prefix = Some(GetOptions::new().with_prefix());
            let range = here.get(key(""), prefix).await.unwrap();
            let pairs: Vec<&[u8]> = range.kvs().iter().map(|pair| pair.value()).collect();
            assert_eq!(pairs, [b"1", b"2"]);

            let txn = Txn::new()
                .when([Compare::value(key("a"), CompareOp::Equal, "1")])
                .and_then([TxnOp::put(key("a"), "3", None), TxnOp::get(key("a"), None)])
                .or_else([TxnOp::delete(key("a"), None)]);
            let answer = here.txn(txn).await.unwrap();
            assert!(answer.succeeded());
            match &answer.op_responses()[..] {
                [TxnOpResponse::Put(_), TxnOpResponse::Get(got)] => {
                    assert_eq!(got.kvs()[0].value(), b"3");
                }
                other => panic!("{other:?}"),
            }

            let now = there.get(key("a"), None).await.unwrap().header().unwrap().revision();
            here.compact(now, None).await.unwrap();
            let old = Some(GetOptions::new().with_revision(revision));
            let error = there.get(key("a"), old).await.unwrap_err();
            assert!(error.to_string().contains("required revision has been compacted"), "{error}");

            let deleted = there.delete(key("a"), None).await.unwrap();
            assert_eq!(deleted.deleted(), 1);
            assert!(here.get(key("a"), None).await.unwrap().kvs().is_empty());
        }
    });
}

#[test]
fn sigterm_hands_the_leadership_over_and_exits_with_0() {
    let _alone = alone();
    run(async {
        let mut servers = Servers::three().await;
        let leader = servers.leader().await;
        servers.client(leader).await.put("k", "v", None).await.unwrap();
        servers.signal(leader, Signal::TERM);
        let status = end_of(servers.child(leader), "the server stops").await;
        assert_eq!(status.code(), Some(0));
        // It has heard of its successor before it went.
        let log = servers.log(leader);
        let (_, goodbye) = log.split_once("\"stopping\"").unwrap();
        let is_new_leader =
            |line: &str| line.contains("\"leader\":\"n") && line.contains("\"role\":\"follower\"");
        assert!(goodbye.lines().any(is_new_leader), "{goodbye}");
        let next = servers.leader().await;
        assert_ne!(next, leader);
        let mut client = servers.client(next).await;
        assert_eq!(client.get("k", None).await.unwrap().kvs()[0].value(), b"v");
        servers.start(leader);
        servers.until_ready(leader).await;
    });
}

/// Pitfall M7: a server that lost its disk has forgotten its votes and its log.
#[test]
fn a_server_whose_disk_was_wiped_is_refused_and_told_what_to_do() {
    let _alone = alone();
    run(async {
        let mut servers = Servers::three().await;
        servers.client(0).await.put("k", "v", None).await.unwrap();
        let follower = (servers.leader().await + 1) % 3;
        servers.kill(follower);
        fs::remove_dir_all(servers.data_dir(follower)).unwrap();
        servers.start(follower);
        let status = end_of(servers.child(follower), "the server gives up").await;
        assert_eq!(status.code(), Some(1));
        let log = servers.log(follower);
        let last = log.lines().last().unwrap();
        assert!(last.contains("wiped") && last.contains("its own data directory"), "{last}");
        // The others go on.
        let mut client = servers.client((follower + 1) % 3).await;
        assert_eq!(client.get("k", None).await.unwrap().kvs()[0].value(), b"v");
    });
}

#[test]
fn a_second_process_on_a_data_directory_is_refused() {
    let _alone = alone();
    run(async {
        let servers = Servers::three().await;
        let ports = crate::servers::free_ports(2);
        let mut flags = servers.flags(0);
        for flag in &mut flags {
            if flag.starts_with("--listen-client-urls") {
                *flag = format!("--listen-client-urls=http://127.0.0.1:{}", ports[0]);
            }
        }
        let log = servers.dir.path().join("second.log");
        let mut second = spawn(&flags, File::create(&log).unwrap());
        let status = end_of(&mut second, "the second process gives up").await;
        assert_eq!(status.code(), Some(1));
        let log = fs::read_to_string(log).unwrap();
        let last = log.lines().last().unwrap();
        let dir = servers.data_dir(0);
        assert!(last.contains("another process"), "{last}");
        assert!(last.contains(dir.to_str().unwrap()), "{last}");
        // The first has not noticed.
        servers.until_ready(0).await;
    });
}
