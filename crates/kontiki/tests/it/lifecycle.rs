//! How a node comes, leads, hands over, and goes.

use std::{fs, net::TcpListener};

use kontiki::{Fault, ProposeError, Role, TransferError};
use tokio::{runtime::Handle, time::Instant};

use crate::common::{Cluster, PATIENCE, eventually, leader};

/// The threads of this process that belong to the node.
fn threads_of(id: u64) -> Vec<String> {
    let prefix = format!("kontiki-n{id}-");
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    // A thread that ends while we look is gone, which is what we want to know.
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

#[tokio::test]
async fn a_shutdown_leaves_nothing_behind() {
    let mut cluster = Cluster::new(3);
    for (member, id) in cluster.members.iter_mut().zip([971, 972, 973]) {
        member.0 = id; // no other test has these, so their threads are known by name
    }
    let tasks_before = Handle::current().metrics().num_alive_tasks();
    let nodes = cluster.start_all().await;
    nodes[0].propose("x").await.unwrap();
    for &(id, _) in &cluster.members {
        assert!(!threads_of(id).is_empty());
    }
    for node in nodes {
        node.shutdown().await.unwrap();
    }
    for (id, address) in &cluster.members {
        // Joined, so they are gone already.
        assert_eq!(threads_of(*id), Vec::<String>::new());
        TcpListener::bind(address).unwrap();
        fs::File::open(cluster.data_dir(*id).join("LOCK")).unwrap().try_lock().unwrap();
    }
    eventually("no task is left", || async {
        (Handle::current().metrics().num_alive_tasks() <= tasks_before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_stops_when_its_last_handle_is_dropped() {
    let cluster = Cluster::new(1);
    let node = cluster.start(1).await;
    let other = node.clone();
    drop(node);
    other.propose("one handle is enough").await.unwrap();
    drop(other);
    cluster.start(1).await.propose("its directory is free").await.unwrap();
}

#[tokio::test]
async fn after_a_shutdown_every_handle_says_so() {
    let cluster = Cluster::new(1);
    let node = cluster.start(1).await;
    let other = node.clone();
    node.shutdown().await.unwrap();
    let error = other.propose("too late").await.unwrap_err();
    assert!(matches!(error, ProposeError::Stopped(Fault::Shutdown)), "{error:?}");
    assert!(other.status().await.is_err());
    assert!(matches!(other.stopped().await, Fault::Shutdown));
    other.shutdown().await.unwrap();
}

/// With an election timeout of minutes nobody would lead in time, were it not handed over.
#[tokio::test]
async fn a_leader_that_is_shut_down_hands_its_leadership_over() {
    let cluster = Cluster::new(3);
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let patient = |config: &mut kontiki::Config| config.election_timeout = 20 * PATIENCE;
        nodes.push(cluster.builder(id).tune(patient).start().await.unwrap());
    }
    nodes[1].campaign().unwrap();
    let first = eventually("the campaign is won", || async {
        if nodes[1].watch().borrow().role != Role::Leader {
            nodes[1].campaign().unwrap();
            return None;
        }
        Some(1)
    })
    .await;
    nodes[first].propose("x").await.unwrap();
    let old = nodes.remove(first);
    let start = Instant::now();
    old.shutdown().await.unwrap();
    leader(&nodes).await;
    assert!(start.elapsed() < PATIENCE);
}

#[tokio::test]
async fn leadership_can_be_watched_and_handed_over() {
    let cluster = Cluster::new(3);
    let nodes = cluster.start_all().await;
    let old = leader(&nodes).await;
    nodes[old].propose("x").await.unwrap();
    let target = (old + 1) % 3;
    let id = nodes[target].identity().id;
    let mut watch = nodes[target].watch();

    let follower = nodes[target].transfer_leadership(None).await;
    assert!(matches!(follower, Err(TransferError::NotLeader { .. })), "{follower:?}");
    assert_eq!(nodes[old].transfer_leadership(Some(id)).await.unwrap(), id);
    let leads = watch.wait_for(|state| state.role == Role::Leader);
    let state = *tokio::time::timeout(PATIENCE, leads).await.unwrap().unwrap();
    assert_eq!(state.leader, Some(id));
    nodes[old].propose("forwarded now").await.unwrap();
}

#[tokio::test]
async fn a_node_tells_about_itself() {
    let cluster = Cluster::new(3);
    let nodes = cluster.start_all().await;
    let at = leader(&nodes).await;
    let applied = nodes[at].propose("x").await.unwrap();
    let status = nodes[at].status().await.unwrap();
    assert_eq!(status.soft_state.role, Role::Leader);
    assert!(applied.at.index <= status.applied_index);
    assert!(status.applied_index <= status.commit_index);
    assert_eq!(status.membership.members.len(), 3);
    assert_eq!(status.progress.len(), 2);
    assert_eq!(status.identity, nodes[at].identity());
}

/// A follower that was away gets what the leader does not hold in memory any more: from the log.
#[tokio::test]
async fn a_follower_that_is_far_behind_is_fed_from_the_log() {
    let cluster = Cluster::new(3);
    let forgetful = |config: &mut kontiki::Config| {
        config.log_cache_bytes_max = 1000;
        config.append_bytes_max = 5000;
    };
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(cluster.builder(id).tune(forgetful).start().await.unwrap());
    }
    let at = (leader(&nodes).await + 1) % 3;
    let away = nodes.remove(at);
    let id = away.identity().id.get();
    away.shutdown().await.unwrap();
    leader(&nodes).await;
    for count in 0..200u8 {
        nodes[0].propose(vec![count; 1000]).await.unwrap();
    }
    let back = cluster.start(id).await;
    let list = eventually("it has caught up", || async {
        let list = back.read_stale(|list| list.0.clone()).await.unwrap();
        (list.len() == 200).then_some(list)
    })
    .await;
    assert!(list.iter().zip(0..).all(|(command, count)| *command == vec![count; 1000]));
}

#[tokio::test]
async fn many_proposals_at_once_are_all_answered_and_in_order() {
    let cluster = Cluster::new(3);
    let nodes = cluster.start_all().await;
    leader(&nodes).await;
    nodes[0].propose("warm").await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..64usize {
        let node = nodes[client % 3].clone();
        tasks.spawn(async move {
            let mut last = 0;
            for _ in 0..20 {
                let applied = node.propose(client.to_string()).await.unwrap();
                assert!(last < applied.response, "what comes later is applied later");
                last = applied.response;
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    for node in &nodes {
        assert_eq!(node.read(|list| list.0.len()).await.unwrap(), 64 * 20 + 1);
    }
}

/// Reads by barrier: the caller looks at its own structure, and must see what was acknowledged.
#[tokio::test]
async fn a_read_barrier_covers_what_was_acknowledged_elsewhere() {
    let cluster = Cluster::new(3);
    let nodes = cluster.start_all().await;
    leader(&nodes).await;
    for round in 1..=30usize {
        let applied = nodes[round % 3].propose("x").await.unwrap();
        let reader = &nodes[(round + 1) % 3];
        let index = reader.read_barrier().await.unwrap();
        assert!(applied.at.index <= index);
        let count = reader.read_stale(|list| list.0.len()).await.unwrap();
        assert!(round <= count, "{round} were acknowledged, {count} are seen");
    }
}
