//! The durable Raft log on segment files.
//!
//! One [`Log`] writes: all that waits becomes one record, one write and one `fdatasync`, and
//! hard state and entries are in it together. Any number of [`LogReader`]s read old entries
//! beside it. [`Log::open`] recovers: a torn tail is cut; damage in what was acknowledged never
//! is, it is set aside and told of, or refused.
//!
//! Every byte on disk is described in `docs/log-format.md`. What a record means to Raft is
//! known here; how bytes are kept and judged is known by `kontiki-disk`; what is to be written
//! is decided by `kontiki-raft`.
//!
//! ```
//! use std::sync::Arc;
//!
//! use kontiki_disk::RealDisk;
//! use kontiki_log::{IdentityRequest, Log, LogError, LogOptions};
//! use kontiki_raft::{
//!     Bytes, Entry, EntryId, Index, Membership, NodeId, Payload, StoreId, WriteBatch,
//! };
//!
//! # fn main() -> Result<(), LogError> {
//! let dir = tempfile::tempdir().expect("a directory for this example");
//! let me = IdentityRequest {
//!     cluster: 0xC1,
//!     node: NodeId(1),
//!     genesis: Membership::of_voters([(NodeId(1), "localhost:2380")]),
//!     new_store: StoreId(0x5701), // random, in earnest
//! };
//! let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
//!
//! let (mut log, _) = Log::open(Arc::new(RealDisk), dir.path(), &me, options.clone())?;
//! let payload = Payload::Command(Bytes::from_static(b"put hello world"));
//! let entry = Entry::new(EntryId::new(1, 1), payload);
//! log.write(vec![WriteBatch { hard_state: None, entries: vec![entry.clone()], ..WriteBatch::default() }])?;
//! log.sync()?; // from here on it survives a power failure
//! drop(log);
//!
//! let (log, opened) = Log::open(Arc::new(RealDisk), dir.path(), &me, options)?;
//! assert_eq!(opened.recovered.last, EntryId::new(1, 1));
//! assert_eq!(log.reader().read(Index(1)..=Index(1), 1024)?, [entry]);
//! # Ok(())
//! # }
//! ```

mod codec;
mod damage;
mod entries;
mod error;
mod force;
mod identity;
mod log;
mod peers;
mod reader;
mod record;
mod recover;
mod replay;
mod segment;
mod snapshot;
mod survey;

pub use codec::{decode_membership, encode_membership};
pub use error::LogError;
pub use force::{ForceReport, ForceRequest, force_single_member};
pub use identity::{Identity, IdentityRequest};
pub use log::{Log, LogOptions, OnDamage, Opened, SpareMaker};
pub use peers::{KnownPeers, PeerError, StoreChanged};
pub use reader::LogReader;
pub use recover::{DamageReport, RecoveryReport, TornTail};
pub use snapshot::{
    DamagedSnapshot, Receiving, SnapshotFileWriter, SnapshotInfo, SnapshotReader, SnapshotReceiver,
    SnapshotSource, Snapshots,
};
