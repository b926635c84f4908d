//! The receiving half: a task that accepts connections, and one for each of them that hands what
//! arrives to the node.
//!
//! Anyone can connect. Until the handshake is done nobody has said who they are, so it is
//! bounded in time, bytes and number; after it a broken frame ends the connection.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use kontiki_raft::NodeId;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Shared, bulk,
    frame::{FrameError, take_frame},
    handshake::{self, Channel, FirstWord, HandshakeError, Hello, Refusal, Reply},
    lane::tune,
};
use crate::{
    codec::{self, DecodeError},
    error::with_causes,
};

/// The connections over which peers send to us, at most one for each of their channels.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    connections: BTreeMap<(NodeId, Channel), Connection>,
    next_serial: u64,
}

#[derive(Debug)]
struct Connection {
    serial: u64,
    life: u64,
    /// When something arrived last, in milliseconds of [`Shared::uptime_ms`].
    heard_ms: Arc<AtomicU64>,
    /// Dropped to end the connection.
    _keep: oneshot::Sender<()>,
}

/// A connection's own view of its entry in [`Incoming`].
#[derive(Debug)]
struct Registration {
    serial: u64,
    heard_ms: Arc<AtomicU64>,
    /// Resolves when a newer connection takes over.
    replaced: oneshot::Receiver<()>,
}

/// Connections at a time: three for each of a handful of peers, and room for strangers.
const CONNECTIONS_MAX: usize = 256;
/// A handshake takes at most this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// A second process with the same id is refused while the first was heard of within this time.
/// A node that was cut off and came back as a new process may have to wait for it.
const HEARD_LATELY_MS: u64 = 1000;
/// A read asks for this much room, so that one system call brings many messages.
const READ_BYTES: usize = 64 << 10;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("closed by the peer")]
    Eof,
    #[error("replaced by a newer connection")]
    Replaced,
    #[error("the node has stopped")]
    Closed,
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("broken bytes")]
    Frame(#[from] FrameError),
    #[error("broken bytes")]
    Decode(#[from] DecodeError),
}

/// Accepts connections until it is cancelled.
pub(super) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {} // forget those that have ended
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, address)) => {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    serve(stream, address, &shared).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file handles, most likely. Others need time to give some back.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A peer that was let in. Off the table again when this is dropped.
#[derive(Debug)]
struct Guest {
    shared: Arc<Shared>,
    hello: Hello,
    serial: u64,
}

impl Guest {
    fn enter(
        shared: &Arc<Shared>,
        hello: Hello,
        address: SocketAddr,
    ) -> Result<(Self, Registration), Refusal> {
        let registration = shared.table().incoming.register(&hello, shared.uptime_ms())?;
        let guest = Self { shared: Arc::clone(shared), hello, serial: registration.serial };
        shared.meet(&guest.hello, address.ip())?;
        Ok((guest, registration))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.shared.part(&self.hello, self.serial);
    }
}

async fn serve(mut stream: TcpStream, address: SocketAddr, shared: &Arc<Shared>) {
    let mut received = BytesMut::new();
    let welcome = welcome(&mut stream, address, &mut received, shared);
    let (guest, registration) = match timeout(HANDSHAKE_TIMEOUT, welcome).await {
        Ok(Ok(Some(guest))) => guest,
        Ok(Ok(None)) => return, // it has been told who it is
        Ok(Err(error)) => return shared.report_refused(address.ip(), &error),
        Err(_) => {
            let error = std::io::Error::new(std::io::ErrorKind::TimedOut, "no handshake in time");
            return shared.report_refused(address.ip(), &error.into());
        }
    };
    let (from, channel) = (guest.hello.from, guest.hello.channel);
    tracing::debug!(peer = %from, %channel, %address, "accepted");
    shared.table().wake_lanes(from);
    let Registration { heard_ms, replaced, .. } = registration;
    let end = tokio::select! {
        biased;
        _ = replaced => End::Replaced,
        end = async {
            match channel {
                Channel::Messages(_) => receive(stream, received, from, &heard_ms, shared).await,
                Channel::Snapshot => {
                    bulk::receive(stream, received, from, shared).await;
                    End::Eof
                }
            }
        } => end,
    };
    drop(guest);
    match end {
        End::Frame(_) | End::Decode(_) => {
            let error = with_causes(&end);
            tracing::error!(peer = %from, %channel, %address, error, "connection ended");
        }
        End::Eof | End::Replaced | End::Closed | End::Io(_) => {
            let error = with_causes(&end);
            tracing::debug!(peer = %from, %channel, %address, error, "connection ended");
        }
    }
}

/// Does the handshake. Returns a peer that may talk to us, or nothing if all it wanted to know
/// was who it is.
async fn welcome(
    stream: &mut TcpStream,
    address: SocketAddr,
    received: &mut BytesMut,
    shared: &Arc<Shared>,
) -> Result<Option<(Guest, Registration)>, HandshakeError> {
    tune(stream)?;
    let hello = match handshake::listen(stream, received).await? {
        FirstWord::Hello(hello) => hello,
        FirstWord::WhoAmI { address } => {
            let introduction = shared.table().introduce(shared.local.cluster, &address);
            tracing::info!(%address, ?introduction, "a node asks who it is");
            handshake::introduce(stream, &introduction).await?;
            return Ok(None);
        }
    };
    let admitted = match shared.admit(&hello).await {
        Ok(()) => Guest::enter(shared, hello, address),
        Err(refusal) => Err(refusal),
    };
    match admitted {
        Ok(guest) => {
            let reply = Reply::Welcome { store: shared.local.store };
            handshake::answer(stream, &reply).await?;
            Ok(Some(guest))
        }
        Err(refusal) => {
            handshake::answer(stream, &Reply::Refused(refusal.clone())).await?;
            Err(HandshakeError::Refused(refusal))
        }
    }
}

/// Hands what arrives to the node, until there is nothing more to expect.
async fn receive(
    mut stream: TcpStream,
    mut received: BytesMut,
    from: NodeId,
    heard_ms: &AtomicU64,
    shared: &Shared,
) -> End {
    match receive_all(&mut stream, &mut received, from, heard_ms, shared).await {
        Ok(end) | Err(end) => end,
    }
}

async fn receive_all(
    stream: &mut TcpStream,
    received: &mut BytesMut,
    from: NodeId,
    heard_ms: &AtomicU64,
    shared: &Shared,
) -> Result<End, End> {
    loop {
        while let Some(payload) = take_frame(received, shared.local.message_bytes_max)? {
            let message = codec::decode(payload)?;
            shared.inbox.deliver(from, message).await.map_err(|_| End::Closed)?;
        }
        // Never the whole frame at once: a length costs a stranger nothing, memory costs us.
        received.reserve(READ_BYTES);
        if stream.read_buf(received).await? == 0 {
            return Ok(End::Eof);
        }
        heard_ms.store(shared.uptime_ms(), Ordering::Relaxed);
    }
}

impl Incoming {
    /// Enters a connection, in place of an older one of the same process.
    fn register(&mut self, hello: &Hello, now_ms: u64) -> Result<Registration, Refusal> {
        for other in self.of(hello.from) {
            if other.life != hello.life
                && now_ms.saturating_sub(other.heard_ms.load(Ordering::Relaxed)) < HEARD_LATELY_MS
            {
                return Err(Refusal::AlreadyConnected { id: hello.from });
            }
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        let heard_ms = Arc::new(AtomicU64::new(now_ms));
        let (keep, replaced) = oneshot::channel();
        let connection =
            Connection { serial, life: hello.life, heard_ms: Arc::clone(&heard_ms), _keep: keep };
        self.connections.insert((hello.from, hello.channel), connection);
        Ok(Registration { serial, heard_ms, replaced })
    }

    /// Whether this node is connected to us.
    pub(super) fn has(&self, id: NodeId) -> bool {
        self.of(id).next().is_some()
    }

    /// The connections of one node.
    fn of(&self, id: NodeId) -> impl Iterator<Item = &Connection> {
        self.connections.iter().filter(move |((from, _), _)| *from == id).map(|(_, it)| it)
    }

    /// Forgets a connection that has ended, unless another one has taken its place.
    pub(super) fn remove(&mut self, from: NodeId, channel: Channel, serial: u64) {
        if self.connections.get(&(from, channel)).is_some_and(|other| other.serial == serial) {
            self.connections.remove(&(from, channel));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lane;
    use kontiki_raft::StoreId;

    fn hello(life: u64, lane: Lane) -> Hello {
        Hello {
            cluster: 1,
            from: NodeId(2),
            to: NodeId(1),
            store: StoreId(3),
            life,
            channel: Channel::Messages(lane),
            listen: "".into(),
        }
    }

    #[test]
    fn a_reconnect_takes_the_place_of_the_old_connection() {
        let mut incoming = Incoming::default();
        let mut old = incoming.register(&hello(7, Lane::Control), 0).unwrap();
        let mut new = incoming.register(&hello(7, Lane::Control), 10).unwrap();
        assert_eq!(old.replaced.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(new.replaced.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        // The old one ends late and must not take the new one with it.
        incoming.remove(NodeId(2), Channel::Messages(Lane::Control), old.serial);
        assert_eq!(new.replaced.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    }

    #[test]
    fn a_second_process_is_refused_while_the_first_is_heard_of() {
        let mut incoming = Incoming::default();
        let first = incoming.register(&hello(7, Lane::Control), 0).unwrap();
        first.heard_ms.store(5_000, Ordering::Relaxed);
        let refusal = incoming.register(&hello(8, Lane::Append), 5_500).unwrap_err();
        assert_eq!(refusal, Refusal::AlreadyConnected { id: NodeId(2) });
        // It has fallen silent: a host that died takes no leave.
        incoming.register(&hello(8, Lane::Append), 6_000).unwrap();
    }
}
