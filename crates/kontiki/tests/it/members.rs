//! Members come, go and are replaced, over real sockets and while the cluster is at work.

use std::time::Duration;

use kontiki::{
    Bytes, Change, ChangeError, ChangeSet, LogOptions, Member, MemberRole, Membership, NodeId,
    ProposeError, Raft, Rejection,
};

use crate::common::{Cluster, List, eventually, free_address, leader, quick, small_log};

async fn join(cluster: &Cluster, name: &str, address: &str, peers: &[String]) -> Raft<List> {
    Raft::joiner(List::default())
        .data_dir(cluster.dir.path().join(name))
        .listen(address)
        .join(peers.to_vec())
        .log_options(LogOptions { ..small_log() })
        .tune(quick)
        .start()
        .await
        .unwrap()
}

fn addresses(cluster: &Cluster) -> Vec<String> {
    cluster.members.iter().map(|(_, address)| address.clone()).collect()
}

fn learner(address: &str, auto_promote: bool) -> ChangeSet {
    let (address, context) = (address.into(), Bytes::new());
    ChangeSet::one(Change::AddLearner { address, context, auto_promote })
}

fn at<'a>(membership: &'a Membership, address: &str) -> &'a Member {
    let member = membership.members.iter().find(|member| &*member.address == address);
    member.unwrap_or_else(|| panic!("{address} is no member: {membership:?}"))
}

async fn holds(node: &Raft<List>, count: usize) {
    eventually("it has caught up", || async {
        let len = node.read_stale(|list| list.0.len()).await.unwrap();
        (len == count).then_some(())
    })
    .await;
}

async fn voters(node: &Raft<List>, count: usize) -> Membership {
    eventually("there are as many voters", || async {
        let membership = node.status().await.unwrap().membership;
        (!membership.is_joint() && membership.voters().count() == count).then_some(membership)
    })
    .await
}

/// Pitfalls M1 and M8.
#[tokio::test]
async fn a_server_is_added_catches_up_and_becomes_a_voter_by_itself() {
    let cluster = Cluster::new(1);
    let first = cluster.start(1).await;
    for count in 0..50u8 {
        first.propose(vec![count; 100]).await.unwrap();
    }
    let address = free_address();
    let membership = first.change_membership(learner(&address, true)).await.unwrap();
    let id = at(&membership, &address).id;
    assert_eq!(id, NodeId(2));
    assert!(matches!(at(&membership, &address).role, MemberRole::Learner { .. }));

    let second = join(&cluster, "second", &address, &addresses(&cluster)).await;
    assert_eq!(second.identity().id, id);
    assert_eq!(second.identity().cluster, first.identity().cluster);
    voters(&first, 2).await;
    holds(&second, 50).await;
    // It counts: without it nothing is acknowledged, with it everything is.
    second.propose("from the new one").await.unwrap();
    holds(&first, 51).await;

    // It knows who it is when it comes back, and needs to ask nobody.
    second.shutdown().await.unwrap();
    let second = join(&cluster, "second", &address, &[]).await;
    assert_eq!(second.identity().id, id);
    second.propose("and again").await.unwrap();
    holds(&first, 52).await;
}

#[tokio::test]
async fn a_learner_is_promoted_by_hand_demoted_and_removed() {
    let cluster = Cluster::new(1);
    let first = cluster.start(1).await;
    first.propose("x").await.unwrap();
    let address = free_address();
    let membership = first.change_membership(learner(&address, false)).await.unwrap();
    let id = at(&membership, &address).id;
    let error = first.change_membership(ChangeSet::one(Change::Promote(id))).await.unwrap_err();
    let expected = Rejection::InvalidChange(ChangeError::NotCaughtUp(id));
    assert!(matches!(&error, ProposeError::Rejected(why) if *why == expected), "{error:?}");

    let second = join(&cluster, "second", &address, &addresses(&cluster)).await;
    holds(&second, 1).await;
    // Asked on the learner: passed on to the leader.
    let promote = || second.change_membership(ChangeSet::one(Change::Promote(id)));
    let membership = eventually("it is promoted", || async { promote().await.ok() }).await;
    assert_eq!(membership.voters().count(), 2);
    assert!(!membership.is_joint());

    first.change_membership(ChangeSet::one(Change::Demote(id))).await.unwrap();
    assert!(!second.status().await.unwrap().is_removed());
    let membership = first.change_membership(ChangeSet::one(Change::Remove(id))).await.unwrap();
    assert_eq!(membership.members.len(), 1);
    second.removed().await.unwrap();
    assert!(!first.status().await.unwrap().is_removed());
    second.shutdown().await.unwrap();
    first.propose("alone again").await.unwrap();
}

/// Two quick changes are queued, not lost.
#[tokio::test]
async fn changes_wait_for_each_other_and_compare_with_what_was_expected() {
    let cluster = Cluster::new(3);
    let nodes = cluster.start_all().await;
    leader(&nodes).await;
    let (a, b) = (free_address(), free_address());
    let (first, second) = tokio::join!(
        nodes[0].change_membership(learner(&a, false)),
        nodes[1].change_membership(learner(&b, false)),
    );
    assert_ne!(at(&first.unwrap(), &a).id, at(&second.unwrap(), &b).id);
    let status = eventually("both are there", || async {
        let status = nodes[0].status().await.unwrap();
        (status.membership.members.len() == 5).then_some(status)
    })
    .await;

    let id = at(&status.membership, &a).id;
    let remove = ChangeSet { expect: Some(status.last), ..ChangeSet::one(Change::Remove(id)) };
    nodes[0].change_membership(remove.clone()).await.unwrap();
    let error = nodes[0].change_membership(remove).await.unwrap_err();
    let is_changed = matches!(error, ProposeError::Rejected(Rejection::MembershipChanged { .. }));
    assert!(is_changed, "{error:?}");
}

/// A server is replaced under load in one request: at no time does the cluster tolerate less.
#[tokio::test]
async fn a_server_is_replaced_under_load() {
    let cluster = Cluster::new(3);
    let mut nodes = cluster.start_all().await;
    let at_leader = leader(&nodes).await;
    let old = nodes.remove((at_leader + 1) % 3);
    let old_id = old.identity().id;
    let writer = nodes[0].clone();
    let writes = tokio::spawn(async move {
        let mut count = 0usize;
        for number in 0..300u32 {
            // What has no certain outcome during the change is not counted here.
            count += usize::from(writer.propose(number.to_string()).await.is_ok());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        count
    });
    let address = free_address();
    let replace =
        Change::Replace { old: old_id, address: (*address).into(), context: Bytes::new() };
    let membership = nodes[0].change_membership(ChangeSet::one(replace)).await.unwrap();
    let id = at(&membership, &address).id;
    let new = join(&cluster, "new", &address, &addresses(&cluster)).await;
    assert_eq!(new.identity().id, id);
    eventually("the old one is gone", || async {
        let membership = nodes[0].status().await.unwrap().membership;
        let is_replaced = membership.member(old_id).is_none() && !membership.is_joint();
        (is_replaced && membership.is_voter(id)).then_some(())
    })
    .await;
    let count = writes.await.unwrap();
    assert!(250 < count, "{count} of 300 writes");
    old.shutdown().await.unwrap();
    nodes.push(new);
    let lens = eventually("all have the same", || async {
        let mut lens = Vec::new();
        for node in &nodes {
            lens.push(node.read(|list| list.0.len()).await.ok()?);
        }
        lens.windows(2).all(|pair| pair[0] == pair[1]).then_some(lens)
    })
    .await;
    assert!(count <= lens[0]);
}

/// Pitfall M6: the leader goes by the rules, and the others choose a new one.
#[tokio::test]
async fn a_leader_that_is_removed_leaves_the_others_at_work() {
    let cluster = Cluster::new(3);
    let mut nodes = cluster.start_all().await;
    let at = leader(&nodes).await;
    let old = nodes.remove(at);
    let remove = ChangeSet::one(Change::Remove(old.identity().id));
    let membership = old.change_membership(remove).await.unwrap();
    assert_eq!(membership.voters().count(), 2);
    old.removed().await.unwrap();
    leader(&nodes).await;
    nodes[0].propose("without it").await.unwrap();
    holds(&nodes[1], 1).await;
}
