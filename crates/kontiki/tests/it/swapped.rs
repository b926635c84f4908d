//! What a node rests on can be swapped: here the network and the clock.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use kontiki::{
    BoxFuture, Clock, Envelope, Inbox, Links, Local, Membership, MonotonicClock, NodeId, Session,
    SnapshotTransfer, Timestamp, Transport,
};

use crate::common::{Cluster, leader};

/// A network of channels: who has started can be reached.
#[derive(Clone, Debug, Default)]
struct Channels(Arc<Mutex<BTreeMap<NodeId, Inbox>>>);

#[derive(Debug)]
struct Ends {
    id: NodeId,
    network: Channels,
}

impl Transport for Channels {
    fn start(
        self: Box<Self>,
        local: Local,
        inbox: Inbox,
    ) -> BoxFuture<'static, io::Result<Box<dyn Links>>> {
        self.0.lock().unwrap().insert(local.id, inbox);
        let links = Ends { id: local.id, network: *self };
        Box::pin(async move { Ok(Box::new(links) as Box<dyn Links>) })
    }
}

impl Links for Ends {
    fn send(&mut self, envelope: Envelope) {
        let inbox = self.network.0.lock().unwrap().get(&envelope.to).cloned();
        if let Some(inbox) = inbox {
            let from = self.id;
            // In no particular order: the protocol does not mind.
            tokio::spawn(async move { inbox.deliver(from, envelope.message).await });
        }
    }

    // Whoever has started can be reached, member or not.
    fn set_members(&mut self, _: &Arc<Membership>) {}

    /// This network carries no snapshots.
    fn send_snapshot(&mut self, SnapshotTransfer { to, session, .. }: SnapshotTransfer) {
        if let Some(own) = self.network.0.lock().unwrap().get(&self.id) {
            own.snapshot_sent(to, session, None);
        }
    }

    fn cancel_snapshot(&mut self, _: NodeId, _: Session) {}

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.network.0.lock().unwrap().remove(&self.id);
        Box::pin(async {})
    }
}

/// A clock that is an hour ahead of the others.
#[derive(Debug)]
struct Ahead(MonotonicClock);

const AHEAD: Duration = Duration::from_secs(3600);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        self.0.now() + AHEAD
    }

    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        self.0.sleep_until(Timestamp(0) + (at - (Timestamp(0) + AHEAD)))
    }
}

#[tokio::test]
async fn a_cluster_runs_on_another_network_and_other_clocks() {
    let cluster = Cluster::new(3);
    let network = Channels::default();
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let mut builder = cluster.builder(id).transport(network.clone()).listen("nowhere");
        if id == 2 {
            builder = builder.clock(Ahead(MonotonicClock::new()));
        }
        nodes.push(builder.start().await.unwrap());
    }
    leader(&nodes).await;
    for node in &nodes {
        node.propose("x").await.unwrap();
    }
    for node in &nodes {
        assert_eq!(node.read(|list| list.0.len()).await.unwrap(), 3);
    }
}
