//! The sending half: one task for each peer and lane, which connects, sends what is queued in as
//! few writes as possible, and connects again when the connection breaks.
//!
//! While there is no connection nothing is queued: messages that wait for a peer to come back
//! are stale when it does, and the protocol sends better ones.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use kontiki_raft::{Message, NodeId};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};

use super::{
    Shared, frame,
    handshake::{self, Channel, HandshakeError, Refusal},
};
use crate::{Backlog, Fault, Lane, codec, message_bytes};

/// The queue of one lane, as the node loop sees it.
#[derive(Debug)]
pub(super) struct LaneSender {
    queue: mpsc::Sender<Message>,
    gauge: Arc<Gauge>,
    queue_bytes_max: usize,
}

/// What both ends of a queue know.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    is_connected: AtomicBool,
    queued_bytes: AtomicUsize,
    /// Wakes the task when the peer has been heard of: it need not wait any longer.
    peer_is_up: Notify,
}

/// Why a message was not queued. It was not sent.
#[derive(Debug)]
pub(super) enum NotQueued {
    /// There is no connection. The node was told when it broke: to tell it again for each message
    /// would make it send again, for nothing.
    Unconnected(Message),
    /// There is no room.
    Full(Message),
}

/// The sending task of one lane.
#[derive(Debug)]
pub(super) struct LaneTask {
    shared: Arc<Shared>,
    peer: NodeId,
    address: String,
    lane: Lane,
    queue: mpsc::Receiver<Message>,
    gauge: Arc<Gauge>,
    /// Encoded frames on their way into one write.
    out: Vec<u8>,
    /// The last reason for having no connection, so that it is said once and not every second.
    last_error: String,
    backoff: Backoff,
}

/// Messages that wait in one lane. Above the window of the protocol.
const QUEUE_MAX: usize = 1024;
/// Bytes that wait in one lane, beside a single larger message: two windows of the protocol.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// One write takes as much as has been encoded when this is passed. A socket buffer's worth.
const WRITE_BYTES: usize = 256 << 10;
/// A connection attempt, handshake included, may take this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after the first failed attempt; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Data that the peer has not acknowledged for this long ends the connection. Without it the
/// kernel would go on for a quarter of an hour, at ever longer intervals.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(5);

impl LaneSender {
    pub(super) fn new(
        shared: &Arc<Shared>,
        peer: NodeId,
        address: &str,
        lane: Lane,
    ) -> (Self, LaneTask) {
        let gauge = Arc::new(Gauge::default());
        let (queue, outlet) = mpsc::channel(QUEUE_MAX);
        let task = LaneTask {
            shared: Arc::clone(shared),
            peer,
            address: address.to_owned(),
            lane,
            queue: outlet,
            gauge: Arc::clone(&gauge),
            out: Vec::new(),
            last_error: String::new(),
            backoff: Backoff::new(shared.life ^ peer.get()),
        };
        let queue_bytes_max = QUEUE_BYTES_MAX.min(2 * shared.local.message_bytes_max);
        (Self { queue, gauge, queue_bytes_max }, task)
    }

    /// Connects at once, if the task waits before it tries again.
    pub(super) fn wake(&self) {
        self.gauge.peer_is_up.notify_one();
    }

    /// What waits for the task.
    pub(super) fn backlog(&self) -> Backlog {
        let count = self.queue.max_capacity() - self.queue.capacity();
        let bytes = self.gauge.queued_bytes.load(Ordering::Relaxed);
        let [count, bytes] = [count, bytes].map(|size| u64::try_from(size).unwrap_or(u64::MAX));
        Backlog { count, bytes }
    }

    /// Queues a message, or gives it back.
    pub(super) fn send(&self, message: Message) -> Result<(), NotQueued> {
        if !self.gauge.is_connected.load(Ordering::Relaxed) {
            return Err(NotQueued::Unconnected(message));
        }
        let bytes = message_bytes(&message);
        let queued_bytes = self.gauge.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let has_room = queued_bytes == 0 || queued_bytes + bytes <= self.queue_bytes_max;
        let refused = if has_room {
            self.queue.try_send(message).map_err(mpsc::error::TrySendError::into_inner)
        } else {
            Err(message)
        };
        refused.map_err(|message| {
            self.gauge.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            NotQueued::Full(message)
        })
    }
}

impl LaneTask {
    /// Keeps the lane connected until the sender is dropped.
    pub(super) async fn run(mut self) {
        loop {
            match self.connect().await {
                Ok((reader, writer)) => {
                    self.backoff.reset();
                    let (peer, lane) = (self.peer, self.lane);
                    tracing::debug!(%peer, %lane, "connected");
                    self.last_error.clear();
                    self.gauge.is_connected.store(true, Ordering::Relaxed);
                    let end = self.pump(reader, writer).await;
                    self.gauge.is_connected.store(false, Ordering::Relaxed);
                    self.discard();
                    match end {
                        Ok(()) => return, // the node is gone
                        Err(error) => tracing::debug!(%peer, %lane, %error, "connection lost"),
                    }
                    self.shared.inbox.unreachable(self.peer);
                }
                Err(error) => self.report(&error),
            }
            if self.queue.is_closed() {
                return;
            }
            let pause = self.backoff.next();
            tokio::select! {
                () = sleep(pause) => {}
                () = self.gauge.peer_is_up.notified() => {}
            }
        }
    }

    async fn connect(&self) -> Result<(OwnedReadHalf, OwnedWriteHalf), HandshakeError> {
        let channel = Channel::Messages(self.lane);
        let (stream, _) = dial(&self.shared, self.peer, &self.address, channel).await?;
        Ok(stream.into_split())
    }

    /// Sends what is queued until the connection breaks. `Ok` when there is no sender any more.
    async fn pump(
        &mut self,
        mut reader: OwnedReadHalf,
        mut writer: OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut messages = Vec::new();
        let mut nothing = [0];
        loop {
            tokio::select! {
                biased;
                count = self.queue.recv_many(&mut messages, QUEUE_MAX) => if count == 0 {
                    return Ok(());
                },
                // Nothing is ever said on this side of a connection but good-bye.
                read = reader.read(&mut nothing) => {
                    read?;
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
            }
            let bytes = messages.iter().map(message_bytes).sum();
            self.gauge.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            for message in messages.drain(..) {
                self.encode(&message);
                if WRITE_BYTES <= self.out.len() {
                    writer.write_all(&self.out).await?;
                    self.out.clear();
                }
            }
            writer.write_all(&self.out).await?;
            self.out.clear();
            self.out.shrink_to(2 * WRITE_BYTES);
        }
    }

    fn encode(&mut self, message: &Message) {
        let start = self.out.len();
        frame::put_frame(&mut self.out, |out| codec::encode(message, out));
        let bytes = self.out.len() - start - frame::HEADER_BYTES;
        if self.shared.local.message_bytes_max < bytes {
            let peer = self.peer;
            tracing::error!(%peer, bytes, "a message is larger than any may be, and is dropped");
            self.out.truncate(start);
        }
    }

    /// Drops what the broken connection has left behind.
    fn discard(&mut self) {
        self.out.clear();
        // Taken off one by one: the node may be adding at this very moment.
        while let Ok(message) = self.queue.try_recv() {
            self.gauge.queued_bytes.fetch_sub(message_bytes(&message), Ordering::Relaxed);
            self.shared.inbox.not_sent(self.peer, message);
        }
    }

    /// Says once why there is no connection. If we are the reason, the node stops.
    fn report(&mut self, error: &HandshakeError) {
        let (peer, local) = (self.peer, &self.shared.local);
        if let HandshakeError::Refused(Refusal::StoreChanged { id, known, found }) = error
            && *id == local.id
        {
            let (known, ours) = (*known, *found);
            self.shared.inbox.refused(Fault::StoreChanged { peer, known, ours });
        }
        let text = crate::error::with_causes(error);
        let (address, lane) = (&self.address, self.lane);
        if text == self.last_error {
            tracing::debug!(%peer, %address, %lane, error = text, "cannot connect");
        } else if let HandshakeError::Io(_) = error {
            tracing::info!(%peer, %address, %lane, error = text, "cannot connect, trying on");
        } else if error.is_passing() {
            tracing::warn!(%peer, %address, %lane, error = text, "cannot talk to a peer yet");
        } else {
            tracing::error!(%peer, %address, %lane, error = text, "cannot talk to a peer");
        }
        self.last_error = text;
    }
}

/// Pauses between attempts: longer and longer, and never quite the same, so that nodes that lost
/// each other at the same moment do not meet again and again at the same moment.
#[derive(Debug)]
pub(super) struct Backoff {
    pause: Duration,
    random: u64,
}

impl Backoff {
    pub(super) fn new(seed: u64) -> Self {
        Self { pause: BACKOFF_MIN, random: seed }
    }

    /// An attempt has succeeded.
    pub(super) fn reset(&mut self) {
        self.pause = BACKOFF_MIN;
    }

    /// How long to wait: between half of the pause and all of it.
    pub(super) fn next(&mut self) -> Duration {
        // xorshift64: what is asked of it is only to be different.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = u32::from(self.random.to_le_bytes()[0]);
        let pause = self.pause;
        self.pause = (2 * pause).min(BACKOFF_MAX);
        pause / 2 + pause * share / (2 * 255)
    }
}

/// Connects to a peer and makes sure that it is the right one. Returns what it has said already,
/// beside its welcome.
pub(super) async fn dial(
    shared: &Shared,
    peer: NodeId,
    address: &str,
    channel: Channel,
) -> Result<(TcpStream, BytesMut), HandshakeError> {
    let hello = shared.hello(peer, channel);
    let mut received = BytesMut::new();
    let (stream, store) = timeout(CONNECT_TIMEOUT, async {
        let mut stream = TcpStream::connect(address).await?;
        tune(&stream)?;
        let store = handshake::greet(&mut stream, &hello, &mut received).await?;
        Ok::<_, HandshakeError>((stream, store))
    })
    .await
    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    shared.check_store(peer, store).await.map_err(HandshakeError::Refused)?;
    Ok((stream, received))
}

/// Small messages leave at once, and a peer that is silently gone is noticed.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(())
}
