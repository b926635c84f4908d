//! A state machine in memory is saved, its log is purged, and it comes back from both.

use std::{fs, sync::atomic::Ordering, time::Duration};

use kontiki::{Builder, Compaction, Index, ProposeError, Raft, ReadError, Rejection, StartError};

use crate::{
    common::{Cluster, List, eventually, leader, quick, small_log},
    faults::Durable,
};

/// Saves often and keeps little: a segment holds 64 of the commands of these tests.
fn often(builder: Builder<List>) -> Builder<List> {
    builder
        .compaction(Compaction {
            snapshot_after_bytes: 100_000,
            keep_bytes: 0,
            ..Compaction::default()
        })
        .tune(|config| config.purge_entries_min = 10)
}

async fn fill(node: &Raft<List>, count: usize) {
    for _ in 0..count {
        node.propose(vec![7; 4000]).await.unwrap();
    }
}

async fn purged(node: &Raft<List>) -> Index {
    eventually("the log is purged", || async {
        let start = node.status().await.unwrap().log_start.index;
        (Index(100) < start).then_some(start)
    })
    .await
}

/// Pitfall M10.
#[tokio::test]
async fn a_machine_in_memory_comes_back_from_its_snapshot_and_what_is_left_of_the_log() {
    let cluster = Cluster::new(1);
    for round in 1..=3 {
        let node = often(cluster.builder(1)).start().await.unwrap();
        assert_eq!(node.read(|list| list.0.len()).await.unwrap(), (round - 1) * 200);
        fill(&node, 200).await;
        if round == 1 {
            purged(&node).await;
        }
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_snapshot_by_hand_holds_all_that_was_applied() {
    let cluster = Cluster::new(1);
    let node = cluster.start(1).await;
    let applied = node.propose("x").await.unwrap();
    let meta = node.snapshot_now().await.unwrap();
    assert!(applied.at.index <= meta.last.index);
    assert_eq!(meta.membership.members.len(), 1);
    assert_eq!(node.snapshot_now().await.unwrap(), meta, "nothing is new");
    node.shutdown().await.unwrap();
    // Without the log all of it is in there.
    let node = cluster.start(1).await;
    assert_eq!(node.read(|list| list.0.clone()).await.unwrap(), [b"x".to_vec()]);
}

/// The newest snapshot is damaged: the one before it will do, while the log reaches it.
#[tokio::test]
async fn a_damaged_snapshot_is_passed_over_for_an_older_one() {
    let cluster = Cluster::new(1);
    let node = cluster.start(1).await;
    node.propose("one").await.unwrap();
    node.snapshot_now().await.unwrap();
    node.propose("two").await.unwrap();
    let newest = node.snapshot_now().await.unwrap().last;
    node.shutdown().await.unwrap();

    let name = format!("{:016x}-{:016x}.snap", newest.index.get(), newest.term.get());
    let path = cluster.data_dir(1).join("snapshot").join(name);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();

    let node = cluster.start(1).await;
    let list = node.read(|list| list.0.clone()).await.unwrap();
    assert_eq!(list, [b"one".to_vec(), b"two".to_vec()]);
}

/// Pitfall D9: without the snapshot there is a gap that nothing fills, and that is said.
#[tokio::test]
async fn a_log_that_starts_after_what_the_machine_holds_is_refused() {
    let cluster = Cluster::new(1);
    let node = often(cluster.builder(1)).start().await.unwrap();
    fill(&node, 200).await;
    purged(&node).await;
    node.shutdown().await.unwrap();
    fs::remove_dir_all(cluster.data_dir(1).join("snapshot")).unwrap();
    let error = cluster.builder(1).start().await.unwrap_err();
    assert!(matches!(error, StartError::NoSnapshot { .. }), "{error:?}");
}

/// The log of one node is whole and begins after what its state machine has lost. It takes part,
/// and gets a snapshot although its log agrees with the leader's.
#[tokio::test]
async fn a_node_that_lost_its_state_and_not_its_log_gets_a_snapshot() {
    let cluster = Cluster::new(3);
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(often(cluster.builder(id)).start().await.unwrap());
    }
    let at = leader(&nodes).await;
    fill(&nodes[at], 200).await;
    for node in &nodes {
        purged(node).await;
    }
    let lost = (at + 1) % 3;
    let id = u64::try_from(lost).unwrap() + 1;
    let before = nodes[lost].status().await.unwrap();
    nodes.remove(lost).shutdown().await.unwrap();
    fs::remove_dir_all(cluster.data_dir(id).join("snapshot")).unwrap();

    let node = often(cluster.builder(id)).start().await.unwrap();
    assert_eq!(node.read(|list| list.0.len()).await.unwrap(), 200);
    let after = node.status().await.unwrap();
    assert_eq!(after.needs_snapshot, None);
    assert!(after.log_start.index <= before.last.index, "the log was not reset: {after:?}");
    node.propose("x").await.unwrap();
    nodes.push(node);
    for node in &nodes {
        assert_eq!(node.read(|list| list.0.len()).await.unwrap(), 201);
    }
    // The snapshot is on its disk now.
    let node = nodes.pop().unwrap();
    node.shutdown().await.unwrap();
    let node = often(cluster.builder(id)).start().await.unwrap();
    assert_eq!(node.status().await.unwrap().needs_snapshot, None);
}

/// What is in an empty state machine was never there.
#[tokio::test]
async fn a_node_without_its_state_serves_nothing() {
    let cluster = Cluster::new(3);
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(often(cluster.builder(id)).start().await.unwrap());
    }
    let at = leader(&nodes).await;
    fill(&nodes[at], 200).await;
    for node in &nodes {
        purged(node).await;
    }
    for node in nodes {
        node.shutdown().await.unwrap();
    }
    fs::remove_dir_all(cluster.data_dir(1).join("snapshot")).unwrap();
    let node = often(cluster.builder(1)).start().await.unwrap();
    assert!(node.status().await.unwrap().needs_snapshot.is_some());
    let refused = node.read_stale(|list| list.0.len()).await.unwrap_err();
    assert!(matches!(refused, ReadError::Rejected(Rejection::NoState)), "{refused}");
}

#[tokio::test]
async fn writes_go_on_while_a_snapshot_is_made() {
    let cluster = Cluster::new(3);
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(often(cluster.builder(id)).start().await.unwrap());
    }
    let at = leader(&nodes).await;
    nodes[at].read_barrier().await.unwrap(); // before the first entry there is nothing to save
    let writer = nodes[at].clone();
    let writes = tokio::spawn(async move { fill(&writer, 300).await });
    for _ in 0..5 {
        nodes[at].snapshot_now().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    writes.await.unwrap();
    for node in &nodes {
        assert_eq!(node.read(|list| list.0.len()).await.unwrap(), 300);
    }
}

/// Pitfalls M11 and M16: who was away for too long gets the snapshot, over a connection of its
/// own, and then the log.
#[tokio::test]
async fn a_follower_that_needs_what_is_purged_is_caught_up_by_a_snapshot() {
    let cluster = Cluster::new(3);
    let short = |id| {
        let compaction = Compaction {
            snapshot_after_bytes: 100_000,
            keep_bytes: 0,
            slow_follower_bytes_max: 300_000,
        };
        cluster.builder(id).compaction(compaction).tune(|config| config.purge_entries_min = 10)
    };
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(short(id).start().await.unwrap());
    }
    let away = nodes.remove((leader(&nodes).await + 1) % 3);
    let id = away.identity().id.get();
    away.shutdown().await.unwrap();
    let at = leader(&nodes).await;
    fill(&nodes[at], 400).await;
    let start = purged(&nodes[leader(&nodes).await]).await;

    let back = eventually("it starts", || async { short(id).start().await.ok() }).await;
    eventually("it has caught up", || async {
        let len = back.read_stale(|list| list.0.len()).await.unwrap();
        (len == 400).then_some(())
    })
    .await;
    let status = back.status().await.unwrap();
    assert!(start <= status.log_start.index, "{} after {start}", status.log_start);

    // What came by snapshot survives the next start as anything else does.
    back.shutdown().await.unwrap();
    let back = eventually("it starts", || async { short(id).start().await.ok() }).await;
    assert_eq!(back.read(|list| list.0.len()).await.unwrap(), 400);
    nodes[0].propose("and on").await.unwrap();
    eventually("it follows", || async {
        let len = back.read_stale(|list| list.0.len()).await.unwrap();
        (len == 401).then_some(())
    })
    .await;
}

/// A full disk puts the snapshot off: the node keeps the state that it has, serves stale reads
/// from it, and takes the snapshot over when there is space.
#[tokio::test]
async fn a_snapshot_waits_for_space() {
    let cluster = Cluster::new(3);
    let start = async |id: u64, machine: &Durable| {
        let compaction =
            Compaction { snapshot_after_bytes: 100_000, keep_bytes: 0, slow_follower_bytes_max: 1 };
        let builder = Raft::builder(id, machine.clone())
            .data_dir(cluster.data_dir(id))
            .bootstrap(cluster.members.clone())
            .log_options(small_log())
            .compaction(compaction)
            .request_timeout(Duration::from_secs(2))
            .tune(quick)
            .tune(|config| (config.purge_entries_min, config.log_keep_bytes) = (10, 0));
        builder.start().await.ok()
    };
    let machines = [Durable::default(), Durable::default(), Durable::default()];
    let mut nodes = Vec::new();
    for (id, machine) in (1..).zip(&machines) {
        nodes.push(start(id, machine).await.unwrap());
    }
    let away = nodes.remove((leader(&nodes).await + 1) % 3);
    let id = away.identity().id.get();
    let machine = &machines[usize::try_from(id).unwrap() - 1];
    away.shutdown().await.unwrap();
    let at = leader(&nodes).await;
    for _ in 0..400 {
        nodes[at].propose(vec![7; 4000]).await.unwrap();
    }
    eventually("the log is purged", || async {
        (Index(100) < nodes[at].status().await.unwrap().log_start.index).then_some(())
    })
    .await;

    machine.1.store(true, Ordering::Relaxed);
    let back = eventually("it starts", || start(id, machine)).await;
    eventually("the snapshot has come", || async {
        (Index(100) < back.status().await.unwrap().log_start.index).then_some(())
    })
    .await;
    let len = |machine: &Durable| machine.0.lock().unwrap().1.len();
    assert!(back.read_stale(len).await.unwrap() < 400, "it serves what it has");
    assert!(back.status().await.unwrap().is_storage_full);
    // What is decided elsewhere and cannot be applied here keeps nobody waiting.
    let unknown = back.propose("x").await.unwrap_err();
    assert!(matches!(unknown, ProposeError::Unknown { .. }), "{unknown:?}");

    // A restart finds a log after what the machine holds, and still no space.
    back.shutdown().await.unwrap();
    let back = eventually("it starts", || start(id, machine)).await;
    assert!(back.status().await.unwrap().needs_snapshot.is_some());
    let refused = back.read_stale(len).await.unwrap_err();
    assert!(matches!(refused, ReadError::Rejected(Rejection::NoState)), "{refused}");
    eventually("the snapshot has come again", || async {
        back.status().await.unwrap().is_storage_full.then_some(())
    })
    .await;
    let refused = back.read_stale(len).await.unwrap_err();
    assert!(matches!(refused, ReadError::Rejected(Rejection::NoState)), "{refused}");
    machine.1.store(false, Ordering::Relaxed);
    eventually("it has caught up", || async {
        (back.read_stale(len).await.ok() == Some(401)).then_some(())
    })
    .await;
    back.shutdown().await.unwrap();
}
