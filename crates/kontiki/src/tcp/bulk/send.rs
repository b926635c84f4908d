//! The sending side of a transfer: offers, sends what is wanted, connects again and goes on where
//! the receiver says.

use std::{
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::BytesMut;
use kontiki_raft::EntryId;
use tokio::{net::TcpStream, sync::oneshot, task::JoinHandle, time::sleep};

use super::{
    Broken, blocking, read_frame,
    words::{ReceiverWord, SenderWord, chunk_frame},
    write,
};
use crate::{
    Backlog, SnapshotTransfer,
    error::with_causes,
    tcp::{
        Shared,
        handshake::Channel,
        lane::{Backoff, dial},
    },
    transport::{SnapshotOffer, SnapshotSource},
};

/// Attempts in a row that bring no chunk across, after which the transfer is given up: half a
/// minute. The protocol then decides whether to begin another one.
const FUTILE_MAX: u32 = 30;

/// What the receiver has not written yet.
#[derive(Debug, Default)]
pub(in crate::tcp) struct Unsent {
    chunks: AtomicU64,
    bytes: AtomicU64,
}

impl Unsent {
    pub(in crate::tcp) fn backlog(&self) -> Backlog {
        let [count, bytes] =
            [&self.chunks, &self.bytes].map(|number| number.load(Ordering::Relaxed));
        Backlog { count, bytes }
    }

    /// The receiver has the first `written` chunks of `offer`.
    fn set(&self, offer: &SnapshotOffer, written: u64) {
        let chunks = offer.chunk_count.saturating_sub(written);
        let chunk_bytes = offer.bytes.div_ceil(offer.chunk_count.max(1));
        self.chunks.store(chunks, Ordering::Relaxed);
        self.bytes.store(chunk_bytes.saturating_mul(chunks).min(offer.bytes), Ordering::Relaxed);
    }

    fn clear(&self) {
        self.chunks.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }
}

/// Sends one snapshot, and tells how it ended. `cancelled` resolves when it is pointless.
pub(in crate::tcp) async fn send(
    shared: Arc<Shared>,
    transfer: SnapshotTransfer,
    unsent: Arc<Unsent>,
    cancelled: oneshot::Receiver<()>,
) {
    let sent = tokio::select! {
        biased;
        _ = cancelled => None,
        sent = send_with_patience(&shared, transfer, &unsent) => sent,
    };
    unsent.clear();
    let SnapshotTransfer { to, session, last, .. } = transfer;
    tracing::info!(peer = %to, %last, is_sent = sent.is_some(), "snapshot transfer ended");
    shared.inbox.snapshot_sent(to, session, sent);
}

async fn send_with_patience(
    shared: &Shared,
    transfer: SnapshotTransfer,
    unsent: &Unsent,
) -> Option<EntryId> {
    let SnapshotTransfer { to, last, .. } = transfer;
    let store = Arc::clone(shared.local.snapshots.as_ref()?);
    let source = match blocking(move || store.source(last)).await {
        Ok(Ok(source)) => source,
        Ok(Err(error)) => {
            tracing::error!(peer = %to, %last, %error, "a snapshot cannot be sent");
            return None;
        }
        Err(_) => return None, // it panicked, and said so
    };
    let offer = source.offer().clone();
    tracing::info!(peer = %to, %last, bytes = offer.bytes, "sending a snapshot");
    unsent.set(&offer, 0);
    let mut sender = Sender { shared, transfer, offer, unsent, source: Some(source), written: 0 };
    let mut backoff = Backoff::new(shared.life ^ to.get());
    let mut futile_count = 0;
    loop {
        let written_before = sender.written;
        let error = match sender.attempt().await {
            Ok(()) => return Some(last),
            Err(error) => error,
        };
        if written_before < sender.written {
            futile_count = 0;
            backoff.reset();
        }
        futile_count += 1;
        let error_text = with_causes(&error);
        if is_final(&error) || futile_count == FUTILE_MAX {
            tracing::warn!(peer = %to, %last, error = error_text, "a snapshot was not sent");
            return None;
        }
        tracing::debug!(peer = %to, %last, error = error_text, "a snapshot transfer broke");
        sleep(backoff.next()).await;
    }
}

/// Whether another attempt cannot end otherwise.
fn is_final(error: &Broken) -> bool {
    match error {
        Broken::Refused(why) => !why.is_passing(),
        Broken::Source(_) | Broken::Protocol(_) => true,
        _ => false,
    }
}

struct Sender<'a> {
    shared: &'a Shared,
    transfer: SnapshotTransfer,
    offer: SnapshotOffer,
    unsent: &'a Unsent,
    /// Away while a chunk is being read.
    source: Option<Box<dyn SnapshotSource>>,
    /// The most chunks that the receiver had ever written.
    written: u64,
}

/// A chunk that is being read, and its number.
struct Reading {
    number: u64,
    task: JoinHandle<ReadDone>,
}

/// The source, back again, and the frame to send.
type ReadDone = (Box<dyn SnapshotSource>, io::Result<Vec<u8>>);

/// What the receiver has asked for on this connection.
#[derive(Debug, Default)]
struct Wanted {
    /// The next chunk to be sent.
    cursor: u64,
    /// All before this is written there.
    next: u64,
    /// Not to be sent yet.
    upto: u64,
    is_known: bool,
}

impl Sender<'_> {
    /// Sends on one connection, from where the receiver wants it, to the end.
    async fn attempt(&mut self) -> Result<(), Broken> {
        let to = self.transfer.to;
        // Looked up each time: it may have moved.
        let address = self.shared.table().address(to);
        let address = address.ok_or(Broken::Protocol("it is not a member any more"))?;
        let (stream, received) = dial(self.shared, to, &address, Channel::Snapshot).await?;
        let mut reading = None;
        let end = self.converse(stream, received, &mut reading).await;
        if let Some(Reading { task, .. }) = reading
            && let Ok((source, _)) = task.await
        {
            self.source = Some(source); // for the next attempt
        }
        end
    }

    async fn converse(
        &mut self,
        mut stream: TcpStream,
        mut received: BytesMut,
        reading: &mut Option<Reading>,
    ) -> Result<(), Broken> {
        let SnapshotTransfer { session, term, .. } = self.transfer;
        let idle = self.shared.times.idle;
        let (mut reader, mut writer) = stream.split();
        write(&mut writer, &SenderWord::offer_frame(session, term, &self.offer), idle).await?;
        let mut wanted = Wanted::default();
        loop {
            if reading.is_none() && wanted.cursor < wanted.upto {
                *reading = Some(self.start_reading(wanted.cursor)?);
            }
            tokio::select! {
                biased;
                payload = read_frame(&mut reader, &mut received, idle) => {
                    match ReceiverWord::decode(payload?)? {
                        ReceiverWord::Done => return Ok(()),
                        ReceiverWord::Refused(why) => return Err(Broken::Refused(why)),
                        ReceiverWord::Want { next, upto } => {
                            wanted.on_want(next, upto, self.offer.chunk_count)?;
                            self.written = self.written.max(next);
                            self.unsent.set(&self.offer, self.written);
                        }
                        ReceiverWord::Again { number } => wanted.on_again(number)?,
                    }
                }
                chunk = finish(reading) => {
                    let (number, (source, frame)) = chunk?;
                    self.source = Some(source);
                    let frame = frame.map_err(Broken::Source)?;
                    // Unless the receiver has asked for an earlier one meanwhile.
                    if number == wanted.cursor {
                        wanted.cursor += 1;
                        write(&mut writer, &frame, idle).await?;
                    }
                }
            }
        }
    }

    fn start_reading(&mut self, number: u64) -> Result<Reading, Broken> {
        let panicked = || Broken::Source(io::Error::other("an earlier read has panicked"));
        let mut source = self.source.take().ok_or_else(panicked)?;
        let task = blocking(move || {
            // The frame and its checksum are made here too: it is a long piece of work.
            let frame = source.chunk(number).map(|chunk| chunk_frame(number, &chunk));
            (source, frame)
        });
        Ok(Reading { number, task })
    }
}

/// Waits for the chunk that is being read, if there is one.
async fn finish(reading: &mut Option<Reading>) -> Result<(u64, ReadDone), Broken> {
    let Some(Reading { number, task }) = reading else { return pending().await };
    let number = *number;
    let done = task.await;
    *reading = None;
    let done = done.map_err(|panic| Broken::Source(io::Error::other(panic)))?;
    Ok((number, done))
}

impl Wanted {
    fn on_want(&mut self, next: u64, upto: u64, count: u64) -> Result<(), Broken> {
        let is_possible = self.next <= next && next <= upto && upto <= count;
        if !is_possible || (self.is_known && self.cursor < next) {
            return Err(Broken::Protocol("it wants chunks that are not there"));
        }
        if !self.is_known {
            self.cursor = next;
            self.is_known = true;
        }
        self.next = next;
        self.upto = self.upto.max(upto);
        Ok(())
    }

    fn on_again(&mut self, number: u64) -> Result<(), Broken> {
        if !self.is_known || number < self.next || self.cursor <= number {
            return Err(Broken::Protocol("it wants a chunk again that was not sent"));
        }
        self.cursor = number;
        Ok(())
    }
}
