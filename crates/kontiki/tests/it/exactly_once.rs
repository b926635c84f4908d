//! Client sessions over real sockets: what is tried twice is applied once.

use std::time::Duration;

use kontiki::{Builder, Compaction, Rejection, SessionError, StartError};

use crate::{
    common::{Cluster, List, eventually, leader},
    faults::Durable,
};

fn with_sessions(cluster: &Cluster, id: u64) -> Builder<List> {
    cluster
        .builder(id)
        .sessions()
        .compaction(Compaction { snapshot_after_bytes: 50_000, ..Compaction::default() })
}

/// The leader is killed again and again under a client that tries until it has an answer.
#[tokio::test]
async fn a_command_of_a_session_is_applied_once_whoever_leads() {
    let cluster = Cluster::new(3);
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(with_sessions(&cluster, id).start().await.unwrap());
    }
    leader(&nodes).await;
    let session = nodes[0].session().await.unwrap().with_patience(Duration::from_secs(60));
    let client = {
        // It talks to whichever node is there.
        let through = nodes.iter().map(|node| session.through(node.clone())).collect::<Vec<_>>();
        drop(session);
        tokio::spawn(async move {
            let mut at = 0;
            for count in 0..300u32 {
                let command = format!("{count:06} {}", "x".repeat(1000));
                // The command has one number, so it is tried through one node only.
                loop {
                    match through[at % 3].propose(command.clone()).await {
                        Ok(_) => break,
                        Err(SessionError::Stopped(_)) => at += 1,
                        Err(error) => panic!("{count}: {error:?}"),
                    }
                }
            }
            through
        })
    };
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let old = leader(&nodes).await;
        nodes[old].transfer_leadership(None).await.ok();
    }
    let through = client.await.unwrap();
    drop(through);
    for node in &nodes {
        let list = node.read(|list| list.0.clone()).await.unwrap();
        let numbers: Vec<u32> =
            list.iter().map(|c| std::str::from_utf8(&c[..6]).unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (0..300).collect::<Vec<_>>());
    }
}

/// What was answered before the restart is known after it: the table is a part of the snapshot.
#[tokio::test]
async fn the_table_of_sessions_survives_in_the_snapshot() {
    let cluster = Cluster::new(1);
    let node = with_sessions(&cluster, 1).start().await.unwrap();
    let session = node.session().await.unwrap();
    let first = session.propose("first").await.unwrap();
    node.snapshot_now().await.unwrap();
    node.shutdown().await.unwrap();

    let node = with_sessions(&cluster, 1).start().await.unwrap();
    let session = session.through(node.clone());
    let second = session.propose("second").await.unwrap();
    assert_eq!((first.response, second.response), (1, 2));
    session.close().await.unwrap();
    assert_eq!(node.read(|list| list.0.len()).await.unwrap(), 2);
}

#[tokio::test]
async fn sessions_are_refused_where_they_cannot_be_kept() {
    let cluster = Cluster::new(1);
    let node = cluster.start(1).await;
    let error = node.session().await.unwrap_err();
    assert!(matches!(error, SessionError::Off), "{error:?}");
    node.shutdown().await.unwrap();

    let durable = kontiki::Raft::builder(1, Durable::default())
        .data_dir(cluster.data_dir(1))
        .bootstrap(cluster.members.clone())
        .sessions();
    let error = durable.start().await.unwrap_err();
    assert!(matches!(error, StartError::Setting { .. }), "{error:?}");
    assert!(error.to_string().contains("in memory"), "{error}");
}

/// Many commands at once, each with its own number.
#[tokio::test]
async fn commands_of_one_session_may_overtake_each_other() {
    let cluster = Cluster::new(3);
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(with_sessions(&cluster, id).start().await.unwrap());
    }
    leader(&nodes).await;
    let session = nodes[1].session().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for count in 0..100u32 {
        let session = session.clone();
        tasks.spawn(async move { session.propose(count.to_string()).await.unwrap() });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    eventually("all have them", || async {
        let len = nodes[2].read(|list| list.0.len()).await.ok()?;
        (len == 100).then_some(())
    })
    .await;
}

/// A node that was started otherwise than the rest is told so, and stops nobody.
#[tokio::test]
async fn a_leader_that_keeps_no_sessions_takes_none_from_others() {
    let cluster = Cluster::new(3);
    let mut nodes = Vec::new();
    for id in 1..=2 {
        nodes.push(cluster.start(id).await);
    }
    leader(&nodes).await;
    let odd = with_sessions(&cluster, 3).start().await.unwrap();
    let refused = odd.session().await.unwrap_err();
    let is_it = matches!(refused, SessionError::Rejected(Rejection::NoSessions));
    assert!(is_it, "{refused:?}");
    nodes[0].propose("and on").await.unwrap();
    assert_eq!(nodes[1].read(|list| list.0.len()).await.unwrap(), 1);
}
