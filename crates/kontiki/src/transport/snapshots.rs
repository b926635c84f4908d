//! Snapshots as a transport sees them: chunks with numbers, read here and written there.
//!
//! What a chunk holds is the business of the store; a transport carries it and never has more
//! than a few of them in memory.

use std::{fmt, io};

use kontiki_raft::{Bytes, EntryId, NodeId, Session, SnapshotMeta, Term};

/// The snapshot files of a node. Every call may block.
pub trait SnapshotStore: fmt::Debug + Send + Sync + 'static {
    /// Opens the snapshot that ends at `last`, to be sent. It stays readable while the source
    /// lives, whatever becomes of its file.
    ///
    /// # Errors
    ///
    /// When there is none, or it is not intact.
    fn source(&self, last: EntryId) -> io::Result<Box<dyn SnapshotSource>>;

    /// Gets ready to receive what `offer` says, or to go on where an earlier attempt to receive
    /// this very snapshot has stopped. What was received of another one is thrown away.
    ///
    /// There is one [`SnapshotSink`] at a time: the transport sees to it.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    fn receive(&self, offer: &SnapshotOffer) -> io::Result<Reception>;
}

/// What is said of a snapshot before it is sent. Two offers that are equal offer the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotOffer {
    /// What it stands for.
    pub meta: SnapshotMeta,
    /// The length of all chunks.
    pub bytes: u64,
    /// How many chunks there are. Their numbers start at 0.
    pub chunk_count: u64,
    /// The checksum of the whole (crc32c).
    pub checksum: u32,
}

/// What becomes of an offer.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a transport that overlooks one must not compile")]
pub enum Reception {
    /// It is here already, verified and durable.
    Here,
    /// To be written here.
    Wanted(Box<dyn SnapshotSink>),
}

/// A snapshot that is being sent. Every call may block.
pub trait SnapshotSource: fmt::Debug + Send + 'static {
    /// What it is.
    fn offer(&self) -> &SnapshotOffer;

    /// Reads one chunk, and only that: at most [`CHUNK_BYTES_MAX`] bytes.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is not what was written.
    fn chunk(&mut self, number: u64) -> io::Result<Bytes>;
}

/// A snapshot that is being received. Every call may block. When it is dropped before it is
/// finished, what was put stays for the next attempt.
pub trait SnapshotSink: fmt::Debug + Send + 'static {
    /// The first chunk that is not here.
    fn next_chunk(&self) -> u64;

    /// Writes the next chunk.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the chunk is not what its sender wrote: then it can be put once more.
    /// All other errors are of the disk.
    fn put(&mut self, number: u64, chunk: &[u8]) -> io::Result<()>;

    /// Verifies the whole and makes it durable under its name. Nothing of it counts before.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the whole is not what was offered: then it is thrown away. All other
    /// errors are of the disk.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// No chunk is larger. A chunk is 1 MiB of the snapshot and what its store puts around it.
pub const CHUNK_BYTES_MAX: usize = (1 << 20) + 1024;

/// A snapshot to be sent: see [`Links::send_snapshot`](crate::Links::send_snapshot).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotTransfer {
    /// To whom.
    pub to: NodeId,
    /// To be named when it has ended.
    pub session: Session,
    /// The term of the leader that sends it: a receiver prefers the newest leader.
    pub term: Term,
    /// The last entry that the snapshot stands for.
    pub last: EntryId,
}
