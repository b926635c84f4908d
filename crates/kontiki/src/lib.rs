//! Raft to embed: a replicated, durable, fault-tolerant state.
//!
//! Write a [`StateMachine`]; every node of the cluster then holds the same state, as long as a
//! majority of them is alive, and what was acknowledged survives the loss of power on all of
//! them at once. [`Raft::propose`] changes the state, [`Raft::read`] reads it; both can be called
//! on any node.
//!
//! ```
//! use std::io;
//!
//! use kontiki::{Command, EntryId, LogOptions, Raft, StateMachine};
//!
//! #[derive(Default)]
//! struct Counter(u64);
//!
//! impl StateMachine for Counter {
//!     type Response = u64;
//!     type Snapshot = Vec<u8>;
//!
//!     fn apply(&mut self, command: Command<'_>) -> u64 {
//!         self.0 += command.data.len() as u64;
//!         self.0
//!     }
//!
//!     fn snapshot(&mut self) -> io::Result<Vec<u8>> {
//!         Ok(self.0.to_string().into_bytes())
//!     }
//!
//!     fn restore(&mut self, _: EntryId, from: &mut dyn io::Read) -> io::Result<()> {
//!         self.0 = io::read_to_string(from)?.parse().map_err(io::Error::other)?;
//!         Ok(())
//!     }
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let dir = tempfile::tempdir()?;
//!     let raft = Raft::builder(1, Counter::default())
//!         .data_dir(dir.path())
//!         .bootstrap([(1, "127.0.0.1:0")]) // one line for each node of the cluster
//!         .log_options(LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() })
//!         .start()
//!         .await?;
//!
//!     let applied = raft.propose("four").await?;
//!     assert_eq!(applied.response, 4);
//!     assert_eq!(raft.read(|counter| counter.0).await?, 4);
//!
//!     raft.shutdown().await?;
//!     Ok(())
//! }
//! ```
//!
//! # Inside
//!
//! A node is a [`Replica`]: the protocol and the bookkeeping of requests, as a value without
//! I/O. [`Raft`] is the shell around it: one tokio task that owns the replica, one thread for
//! the log, one for the state machine, and tasks that move bytes. The simulator runs the same
//! `Replica` under its own loop. What the shell rests on can be swapped: the log
//! ([`LogStore`]), the network ([`Transport`]), the clock ([`Clock`]), the file system
//! ([`Disk`]).
//!
//! # More
//!
//! Snapshots, changes of members, leases, sessions, damaged logs, full disks: `docs/library.md`
//! says of each what it guarantees, what it costs and when it fails. What a node measures of
//! itself is in `docs/metrics.md`.
//!
//! # Limits
//!
//! One group of nodes for each [`Raft`]. Peers are not authenticated, and nothing is encrypted:
//! the network between them belongs to you alone.

mod apply_thread;
mod builder;
mod client_session;
mod clock;
pub mod codec;
mod compaction;
mod error;
mod event;
mod handle;
mod log_store;
mod log_thread;
mod machine;
mod metrics;
mod node;
mod past;
mod replica;
mod requests;
mod sessions;
mod snapshot_files;
mod snapshots;
mod start;
mod tcp;
mod transport;

pub use builder::Builder;
pub use client_session::{ClientSession, NumberedCommand};
pub use clock::{BoxFuture, Clock, MonotonicClock};
pub use compaction::Compaction;
pub use error::{
    Fault, LogFailure, ProposeError, ReadError, SessionError, SnapshotError, StartError,
    TransferError, with_causes,
};
pub use event::{Action, Answer, Event, RequestId};
pub use handle::{Applied, NodeIdentity, Raft, Status};
pub use kontiki_disk::{Disk, DiskFile, DiskLock, RealDisk};
pub use kontiki_log::{
    ForceReport, ForceRequest, Identity, IdentityRequest, LogError, LogOptions, OnDamage,
    force_single_member,
};
pub use kontiki_raft::{
    Bytes, Change, ChangeError, ChangeSet, Config, Entry, EntryId, Envelope, Index, Member,
    MemberRole, Membership, Message, NodeId, Payload, ProgressState, ProgressStatus, Promotion,
    ReadMode, Recovered, Rejection, Report, RestoreError, Role, Session, SnapshotMeta, SoftState,
    StoreId, Term, Timestamp, WriteBatch,
};
pub use log_store::{FileLog, LogReader, LogStore, LogWriter, OpenedLog, Upkeep};
pub use machine::{Batch, Command, SnapshotWriter, StateMachine};
pub use replica::Replica;
pub use sessions::{
    SessionCommand, SessionId, SessionLimits, SessionRefusal, SessionResponse, SessionStep,
    SessionTable,
};
pub use tcp::{DiscoverError, Discovered, TcpTransport, discover};
pub use transport::{
    Backlog, CHUNK_BYTES_MAX, Closed, Inbox, KnownStores, Lane, Links, Local, PeerBacklog,
    Reception, SnapshotOffer, SnapshotSink, SnapshotSource, SnapshotStore, SnapshotTransfer,
    StoreCheck, Transport, message_bytes,
};

/// The snippets of the page are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/library.md")]
struct Page;
