//! Three nodes in one process, over real sockets and on real disks.

use crate::common::{Cluster, eventually, leader};

#[tokio::test]
async fn what_is_proposed_on_any_node_is_read_on_every_node() {
    let cluster = Cluster::new(3);
    let nodes = cluster.start_all().await;
    for (node, command) in nodes.iter().zip(["one", "two", "three"]) {
        let applied = node.propose(command).await.unwrap();
        assert!(0 < applied.response);
    }
    for node in &nodes {
        let list = node.read(|list| list.0.clone()).await.unwrap();
        assert_eq!(list, ["one", "two", "three"].map(|c| c.as_bytes().to_vec()));
    }
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_leader_that_is_killed_is_replaced_and_catches_up_when_it_is_back() {
    let cluster = Cluster::new(3);
    let mut nodes = cluster.start_all().await;
    nodes[0].propose("before").await.unwrap();

    let old = leader(&nodes).await;
    let killed = nodes.remove(old);
    let id = killed.identity().id.get();
    drop(killed);
    leader(&nodes).await; // what is forwarded to the dead one has no certain outcome
    nodes[0].propose("without it").await.unwrap();
    nodes[1].propose("still without it").await.unwrap();

    let back = cluster.start(id).await;
    let count = eventually("it has caught up", || async {
        let count = back.read(|list| list.0.len()).await.unwrap();
        (count == 3).then_some(count)
    })
    .await;
    assert_eq!(count, 3);
}
