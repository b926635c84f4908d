//! Snapshots on their way: one connection for each, so that nothing waits behind them and a
//! transfer that breaks leaves no half-read stream behind (pitfall M18).
//!
//! The sender says what it offers, the receiver which chunks it wants: so it is the receiver that
//! knows where a broken transfer goes on (pitfall M16), and what it cannot write yet is not sent.
//! Chunks are read and written on threads that may block (pitfall M17), one at a time; at most
//! [`WINDOW`] of them are in memory on the receiving side, and one on the sending side.

mod receive;
mod send;
mod words;

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::BytesMut;
use kontiki_raft::{NodeId, Term};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{OwnedMutexGuard, oneshot},
    task::JoinHandle,
    time::timeout,
};

use super::frame::{FrameError, take_frame};
use crate::{Bytes, codec::DecodeError, transport::CHUNK_BYTES_MAX};
pub(super) use receive::receive;
pub(super) use send::{Unsent, send};
use words::Refused;

/// Chunks that may be under way beyond those that are written.
const WINDOW: u64 = 4;
/// How often one chunk is fetched again because it was damaged.
const DAMAGED_MAX: u32 = 3;
/// No word of a transfer is larger than this: a chunk, or an offer with its membership.
const WORD_BYTES_MAX: usize = CHUNK_BYTES_MAX + 64;
/// A read asks for this much room.
const READ_BYTES: usize = 256 << 10;

/// Why a transfer has ended early.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("broken bytes")]
    Frame(#[from] FrameError),
    #[error("broken bytes")]
    Decode(#[from] DecodeError),
    #[error("cannot connect")]
    Handshake(#[from] super::HandshakeError),
    #[error("nothing was heard for {0:?}")]
    Silent(Duration),
    #[error("the other end does not keep to the protocol: {0}")]
    Protocol(&'static str),
    #[error("refused: {0}")]
    Refused(Refused),
    #[error("the snapshot cannot be read here")]
    Source(#[source] io::Error),
    #[error("the snapshot cannot be written here")]
    Sink(#[source] io::Error),
    #[error("a transfer from a newer leader, or a newer one from the same, takes its place")]
    Replaced,
}

/// Whose turn it is to receive a snapshot: there is one at a time.
#[derive(Debug, Default)]
pub(super) struct Desk {
    present: Mutex<Present>,
    /// Held for as long as anything of a transfer may still touch the disk.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Present {
    customer: Option<Customer>,
    next_serial: u64,
}

/// The transfer that is under way.
#[derive(Debug)]
struct Customer {
    serial: u64,
    from: NodeId,
    term: Term,
    /// Dropped to end it.
    _keep: oneshot::Sender<()>,
}

/// A transfer's place at the desk. Given up when this is dropped.
#[derive(Debug)]
struct Place<'a> {
    desk: &'a Desk,
    serial: u64,
    /// Resolves when another one takes the place.
    replaced: oneshot::Receiver<()>,
}

/// The right to touch the files of the snapshot that is received.
#[derive(Debug)]
struct Turn(#[expect(dead_code, reason = "held")] OwnedMutexGuard<()>);

impl Desk {
    /// Takes the place for a transfer from the leader of `term`. A newer leader takes it from an
    /// older one, and one that offers again from its own earlier transfer.
    fn enter(&self, from: NodeId, term: Term) -> Result<Place<'_>, Refused> {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        match &present.customer {
            Some(other) if term < other.term => return Err(Refused::Stale),
            Some(other) if term == other.term && from != other.from => return Err(Refused::Busy),
            _ => {}
        }
        let serial = present.next_serial;
        present.next_serial += 1;
        let (keep, replaced) = oneshot::channel();
        present.customer = Some(Customer { serial, from, term, _keep: keep });
        Ok(Place { desk: self, serial, replaced })
    }

    /// Waits until who was here before is done with the files.
    async fn turn(&self) -> Turn {
        Turn(Arc::clone(&self.turn).lock_owned().await)
    }

    /// Waits until nobody touches the files any more.
    pub(super) async fn close(&self) {
        drop(self.turn().await);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut present = self.desk.present.lock().unwrap_or_else(PoisonError::into_inner);
        if present.customer.as_ref().is_some_and(|customer| customer.serial == self.serial) {
            present.customer = None;
        }
    }
}

/// Runs something that may block beside the tasks.
fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::task::spawn_blocking(work)
}

/// Takes the next frame from a connection. Cancel safe: what was read stays in `received`.
async fn read_frame<R>(
    reader: &mut R,
    received: &mut BytesMut,
    idle: Duration,
) -> Result<Bytes, Broken>
where
    R: AsyncRead + Unpin,
{
    loop {
        if let Some(payload) = take_frame(received, WORD_BYTES_MAX)? {
            return Ok(payload);
        }
        received.reserve(READ_BYTES);
        let read = timeout(idle, reader.read_buf(received)).await;
        if read.map_err(|_| Broken::Silent(idle))?? == 0 {
            return Err(Broken::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

async fn write<W>(writer: &mut W, bytes: &[u8], idle: Duration) -> Result<(), Broken>
where
    W: AsyncWrite + Unpin,
{
    timeout(idle, writer.write_all(bytes)).await.map_err(|_| Broken::Silent(idle))??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_leader_takes_the_place_of_an_older_one_and_never_the_other_way() {
        let desk = Desk::default();
        let (n1, n2) = (NodeId(1), NodeId(2));
        let mut first = desk.enter(n1, Term(3)).unwrap();
        assert_eq!(desk.enter(n2, Term(2)).unwrap_err(), Refused::Stale);
        assert_eq!(desk.enter(n2, Term(3)).unwrap_err(), Refused::Busy);
        assert_eq!(first.replaced.try_recv(), Err(oneshot::error::TryRecvError::Empty));

        let again = desk.enter(n1, Term(3)).unwrap();
        assert_eq!(first.replaced.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        drop(first); // who was replaced does not give up another's place
        assert_eq!(desk.enter(n2, Term(3)).unwrap_err(), Refused::Busy);
        let newer = desk.enter(n2, Term(4)).unwrap();
        drop((again, newer));
        desk.enter(n1, Term(1)).unwrap();
    }
}
