//! The default transport: framed messages over TCP.
//!
//! Each node connects twice to each of its peers, once for each [`Lane`], and only sends on
//! these connections; what it receives comes over those that its peers have made. So no queue is
//! shared between what is urgent and what is large, and each side repairs its own sending.
//!
//! Nothing is encrypted, and whoever can reach the peer port can speak as a peer: it belongs on a
//! network of its own.

mod accept;
mod frame;
mod handshake;
mod lane;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use kontiki_raft::{Envelope, NodeId, StoreId};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{BoxFuture, Inbox, Lane, Links, Local, Transport, transport::StoreCheck};
use accept::Incoming;
use handshake::{Hello, Refusal};
use lane::{Gauge, LaneSender};

/// The default transport: framed messages over TCP.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TcpTransport;

impl TcpTransport {
    /// Listens where the builder says, and connects to the addresses of the membership.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Transport for TcpTransport {
    fn start(
        self: Box<Self>,
        local: Local,
        inbox: Inbox,
    ) -> BoxFuture<'static, io::Result<Box<dyn Links>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(&local.listen).await?;
            let life = getrandom::u64().map_err(io::Error::other)?;
            Ok(Box::new(TcpLinks::start(listener, local, inbox, life)) as Box<dyn Links>)
        })
    }
}

/// What all tasks of one transport share.
#[derive(Debug)]
struct Shared {
    local: Local,
    inbox: Inbox,
    /// Random: tells this process from another one with the same id.
    life: u64,
    started_at: Instant,
    incoming: Mutex<Incoming>,
    gauges: BTreeMap<(NodeId, Lane), Arc<Gauge>>,
    /// Who was refused last and why, so that it is said once.
    last_refused: Mutex<Option<(IpAddr, String)>>,
}

impl Shared {
    /// Whether the node that says `hello` may talk to us.
    async fn admit(&self, hello: &Hello) -> Result<(), Refusal> {
        let local = &self.local;
        if hello.cluster != local.cluster {
            let (dialer, acceptor) = (hello.cluster, local.cluster);
            return Err(Refusal::Cluster { dialer, acceptor });
        }
        if hello.to != local.id {
            return Err(Refusal::WrongNode { wanted: hello.to, found: local.id });
        }
        if hello.from == local.id {
            return Err(Refusal::SameId { id: local.id });
        }
        if !local.membership.replicas().contains(&hello.from) {
            return Err(Refusal::NotAMember { id: hello.from });
        }
        self.check_store(hello.from, hello.store).await
    }

    /// Whether `id` has the data directory that it always had. Remembers it if it is new: that
    /// is a write to the disk, so it is done beside the other tasks.
    async fn check_store(&self, id: NodeId, found: StoreId) -> Result<(), Refusal> {
        let known_stores = Arc::clone(&self.local.known_stores);
        let check = tokio::task::spawn_blocking(move || known_stores.check(id, found)).await;
        match check {
            Ok(StoreCheck::Same) => Ok(()),
            Ok(StoreCheck::Changed { known }) => Err(Refusal::StoreChanged { id, known, found }),
            Ok(StoreCheck::Unrecorded) | Err(_) => Err(Refusal::Unrecorded),
        }
    }

    /// A peer has just connected, so it is up: no need to wait with connecting to it.
    fn wake_lanes(&self, peer: NodeId) {
        for lane in Lane::ALL {
            if let Some(gauge) = self.gauges.get(&(peer, lane)) {
                gauge.peer_is_up.notify_one();
            }
        }
    }

    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn incoming(&self) -> MutexGuard<'_, Incoming> {
        // Every change of the map is one call, so a panic elsewhere has left nothing half done.
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says why a connection was refused, once for the same reason: who is refused tries again
    /// every second.
    fn report_refused(&self, address: IpAddr, error: &str) {
        let mut last = self.last_refused.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_some_and(|(to, what)| *to == address && what == error) {
            tracing::debug!(%address, error, "connection refused");
        } else {
            tracing::error!(%address, error, "connection refused");
            *last = Some((address, error.to_owned()));
        }
    }
}

/// The transport at work.
struct TcpLinks {
    shared: Arc<Shared>,
    lanes: BTreeMap<(NodeId, Lane), LaneSender>,
    tasks: JoinSet<()>,
}

impl fmt::Debug for TcpLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpLinks").field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

impl TcpLinks {
    fn start(listener: TcpListener, local: Local, inbox: Inbox, life: u64) -> Self {
        let peers: Vec<(NodeId, String)> = local
            .membership
            .members
            .iter()
            .filter(|member| member.id != local.id)
            .map(|member| (member.id, member.address.to_string()))
            .collect();
        let ends =
            || peers.iter().flat_map(|(id, address)| Lane::ALL.map(|lane| (*id, address, lane)));
        let shared = Arc::new(Shared {
            local,
            inbox,
            life,
            started_at: Instant::now(),
            incoming: Mutex::default(),
            gauges: ends().map(|(id, _, lane)| ((id, lane), Arc::default())).collect(),
            last_refused: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        let mut lanes = BTreeMap::new();
        for (id, address, lane) in ends() {
            let (sender, task) = LaneSender::new(&shared, id, address, lane);
            lanes.insert((id, lane), sender);
            tasks.spawn(task.run());
        }
        tasks.spawn(accept::run(listener, Arc::clone(&shared)));
        Self { shared, lanes, tasks }
    }
}

impl Links for TcpLinks {
    fn send(&mut self, envelope: Envelope) {
        let Envelope { to, message } = envelope;
        let Some(lane) = self.lanes.get(&(to, Lane::of(&message))) else {
            tracing::debug!(peer = %to, "a message for nobody is dropped");
            return;
        };
        if !lane.send(message) {
            self.shared.inbox.unreachable(to);
        }
    }

    fn set_members(&mut self, _membership: &Arc<kontiki_raft::Membership>) {}

    fn send_snapshot(&mut self, transfer: crate::SnapshotTransfer) {
        self.shared.inbox.snapshot_sent(transfer.to, transfer.session, None);
    }

    fn cancel_snapshot(&mut self, _to: NodeId, _session: kontiki_raft::Session) {}

    fn close(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.tasks.shutdown().await })
    }
}
