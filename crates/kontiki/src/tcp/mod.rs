//! The default transport: framed messages over TCP.
//!
//! Each node connects twice to each of its peers, once for each [`Lane`], and only sends on
//! these connections; what it receives comes over those that its peers have made. So no queue is
//! shared between what is urgent and what is large, and each side repairs its own sending. A
//! snapshot has a connection of its own, made for it and closed after it. What is said on each of
//! them: `docs/peer-protocol.md`.
//!
//! Nothing is encrypted, and whoever can reach the peer port can speak as a peer: it belongs on a
//! network of its own.

mod accept;
mod bulk;
mod discover;
mod frame;
mod handshake;
mod lane;
mod peers;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kontiki_raft::{Body, Envelope, Membership, NodeId, Session, StoreId};
use tokio::{net::TcpListener, sync::oneshot, task::JoinSet};

use crate::{
    BoxFuture, Inbox, Lane, Links, Local, PeerBacklog, SnapshotTransfer, Transport,
    error::with_causes, transport::StoreCheck,
};
use handshake::{Channel, HandshakeError, Hello, Refusal};
use lane::NotQueued;
use peers::Table;

pub use discover::{DiscoverError, Discovered, discover};

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
            let links = TcpLinks::start(listener, local, inbox, life, TIMES)?;
            Ok(Box::new(links) as Box<dyn Links>)
        })
    }
}

/// What all tasks of one transport share.
#[derive(Debug)]
struct Shared {
    local: Local,
    inbox: Inbox,
    /// Where the listener is, for those whose membership does not name this node.
    bound: String,
    /// Random: tells this process from another one with the same id.
    life: u64,
    started_at: Instant,
    times: Times,
    table: Mutex<Table>,
    desk: bulk::Desk,
    /// All tasks but those of incoming connections. `None` when the transport is closed.
    tasks: Mutex<Option<JoinSet<()>>>,
    /// Who was refused and why, so that it is said once.
    refused: Mutex<BTreeSet<(IpAddr, String)>>,
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// The lanes to a former member are kept for this long: it may have to be told that it is
    /// one, and to be sent what it lacks until then. A guess; a few round trips would do.
    grace: Duration,
    /// A snapshot transfer on which nothing happens for this long is broken off.
    idle: Duration,
    /// While a receiver of a snapshot is busy it says so this often. Well below `idle`.
    alive: Duration,
}

const TIMES: Times = Times {
    grace: Duration::from_secs(5),
    idle: Duration::from_secs(30),
    alive: Duration::from_secs(5),
};

impl Shared {
    /// What this node says first to `to`.
    fn hello(&self, to: NodeId, channel: Channel) -> Hello {
        let Local { id, cluster, store, .. } = self.local;
        let table = self.table();
        let listen = match table.membership.member(id) {
            Some(member) => Arc::clone(&member.address),
            None => self.bound.as_str().into(),
        };
        Hello { cluster, from: id, to, store, life: self.life, channel, listen }
    }

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
        self.check_store(hello.from, hello.store).await
    }

    /// Whether `id` has the data directory that it always had. The membership knows best. Of a
    /// member that it does not know of we remember what we see: that is a write to the disk, so
    /// it is done beside the other tasks. What a stranger says is only compared.
    async fn check_store(&self, id: NodeId, found: StoreId) -> Result<(), Refusal> {
        let (is_replica, bound) = {
            let table = self.table();
            let bound = table.membership.member(id).and_then(|member| member.store);
            (table.membership.replicas().contains(&id), bound)
        };
        match bound {
            Some(known) if known == found => return Ok(()),
            Some(known) => return Err(Refusal::StoreChanged { id, known, found }),
            None if is_replica => self.check_known_store(id, found).await?,
            None => match self.local.known_stores.known(id) {
                Some(known) if known != found => {
                    return Err(Refusal::StoreChanged { id, known, found });
                }
                _ => {}
            },
        }
        self.inbox.peer_store(id, found);
        Ok(())
    }

    async fn check_known_store(&self, id: NodeId, found: StoreId) -> Result<(), Refusal> {
        let known_stores = Arc::clone(&self.local.known_stores);
        let check = tokio::task::spawn_blocking(move || known_stores.check(id, found)).await;
        match check {
            Ok(StoreCheck::Same) => Ok(()),
            Ok(StoreCheck::Changed { known }) => Err(Refusal::StoreChanged { id, known, found }),
            Ok(StoreCheck::Unrecorded) | Err(_) => Err(Refusal::Unrecorded),
        }
    }

    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is one call, so a panic elsewhere has left nothing half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a task that ends with the transport.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tasks) = &mut *tasks {
            while tasks.try_join_next().is_some() {} // forget those that have ended
            tasks.spawn(task);
        }
    }

    /// Says why a connection was refused, once for the same reason: who is refused tries again
    /// every second.
    fn report_refused(&self, address: IpAddr, error: &HandshakeError) {
        /// Reasons that are remembered. When there are more they are all said again.
        const REFUSED_MAX: usize = 64;
        let text = with_causes(error);
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if REFUSED_MAX <= refused.len() {
            refused.clear();
        }
        if !refused.insert((address, text.clone())) {
            tracing::debug!(%address, error = text, "connection refused");
        } else if error.is_passing() {
            tracing::warn!(%address, error = text, "connection refused for now");
        } else {
            tracing::error!(%address, error = text, "connection refused");
        }
    }
}

/// The transport at work.
struct TcpLinks {
    shared: Arc<Shared>,
    /// The snapshots that are being sent, or were.
    transfers: BTreeMap<NodeId, Transfer>,
}

/// A snapshot on its way.
struct Transfer {
    session: Session,
    unsent: Arc<bulk::Unsent>,
    /// Dropped to cancel.
    _keep: oneshot::Sender<()>,
}

impl fmt::Debug for TcpLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpLinks").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl TcpLinks {
    fn start(
        listener: TcpListener,
        local: Local,
        inbox: Inbox,
        life: u64,
        times: Times,
    ) -> io::Result<Self> {
        let membership = Arc::clone(&local.membership);
        let shared = Arc::new(Shared {
            local,
            inbox,
            bound: listener.local_addr()?.to_string(),
            life,
            started_at: Instant::now(),
            times,
            table: Mutex::new(Table::new(Arc::clone(&membership))),
            desk: bulk::Desk::default(),
            tasks: Mutex::new(Some(JoinSet::new())),
            refused: Mutex::default(),
        });
        shared.set_members(&membership);
        shared.spawn(accept::run(listener, Arc::clone(&shared)));
        Ok(Self { shared, transfers: BTreeMap::new() })
    }

    fn take_tasks(&self) -> Option<JoinSet<()>> {
        self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Links for TcpLinks {
    fn send(&mut self, envelope: Envelope) {
        let Envelope { to, message } = envelope;
        let table = self.shared.table();
        let Some(lane) = table.lane(to, Lane::of(&message)) else {
            tracing::debug!(peer = %to, "a message for nobody is dropped");
            self.shared.inbox.not_sent(to, message);
            return;
        };
        if let (Body::ProposeReply(_), Some(append)) = (&message.body, table.lane(to, Lane::Append))
        {
            // A copy goes ahead of what commits the entry in either lane: who applies an entry
            // and does not know yet that it is his cannot say what came of it. If it has no way
            // there, the other copy has.
            drop(append.send(message.clone()));
        }
        let mut sent = lane.send(message);
        if let Err(NotQueued::Unconnected(message)) = sent {
            sent = match (Lane::of(&message), table.lane(to, Lane::Append)) {
                // Better behind what is large than lost: each lane is connected by itself, and a
                // peer that hears us over one of them may be waiting for this.
                (Lane::Control, Some(other)) => other.send(message),
                _ => Err(NotQueued::Unconnected(message)),
            };
        }
        match sent {
            Ok(()) => {}
            Err(NotQueued::Unconnected(message)) => self.shared.inbox.not_sent(to, message),
            Err(NotQueued::Full(message)) => {
                self.shared.inbox.unreachable(to);
                self.shared.inbox.not_sent(to, message);
            }
        }
    }

    fn set_members(&mut self, membership: &Arc<Membership>) {
        self.shared.set_members(membership);
    }

    fn send_snapshot(&mut self, transfer: SnapshotTransfer) {
        let (keep, cancelled) = oneshot::channel();
        let SnapshotTransfer { to, session, .. } = transfer;
        let unsent = Arc::new(bulk::Unsent::default());
        let task = bulk::send(Arc::clone(&self.shared), transfer, Arc::clone(&unsent), cancelled);
        self.transfers.insert(to, Transfer { session, unsent, _keep: keep });
        self.shared.spawn(task);
    }

    fn cancel_snapshot(&mut self, to: NodeId, session: Session) {
        if self.transfers.get(&to).is_some_and(|transfer| transfer.session == session) {
            self.transfers.remove(&to);
        }
    }

    fn backlogs(&self) -> Vec<PeerBacklog> {
        let table = self.shared.table();
        let backlogs = table.backlogs().map(|(peer, [control, append])| {
            let transfer = self.transfers.get(&peer);
            let snapshot = transfer.map(|transfer| transfer.unsent.backlog()).unwrap_or_default();
            PeerBacklog { peer, control, append, snapshot }
        });
        backlogs.collect()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Some(mut tasks) = self.take_tasks() {
                tasks.shutdown().await;
            }
            self.shared.desk.close().await;
        })
    }
}

impl Drop for TcpLinks {
    fn drop(&mut self) {
        // The tasks hold what holds them: without this they would live for ever.
        drop(self.take_tasks());
    }
}
