//! The durable Raft log on segment files.
//!
//! One [`Log`] writes: all that waits becomes one record, one write and one `fdatasync`, and
//! hard state and entries are in it together. Any number of [`LogReader`]s read old entries
//! beside it. [`Log::open`] recovers: a torn tail is cut, damage is refused and never cut.
//!
//! Every byte on disk is described in `docs/log-format.md`. What a record means to Raft is
//! known here; how bytes are kept and judged is known by `kontiki-disk`; what is to be written
//! is decided by `kontiki-raft`.

mod codec;
mod entries;
mod error;
mod identity;
mod log;
mod peers;
mod reader;
mod record;
mod recover;
mod segment;

pub use codec::{decode_membership, encode_membership};
pub use error::LogError;
pub use identity::{Identity, IdentityRequest};
pub use log::{Log, LogOptions, Opened, SpareMaker};
pub use peers::{KnownPeers, PeerError, StoreChanged};
pub use reader::LogReader;
pub use recover::{RecoveryReport, TornTail};
