//! The Raft protocol as a pure value: inputs in, effects out.
//!
//! [`RaftCore`] is one node's share of Raft ([the paper](https://raft.github.io/raft.pdf), with
//! the improvements of Ongaro's thesis): election with pre-vote, check-quorum and leader
//! stickiness, pipelined replication, linearizable reads without the log, leadership transfer.
//! It does no I/O, reads no clock, starts no thread, and cannot fail. What must wait for the
//! disk stays inside it until the disk has answered, so that no host, however it batches,
//! reorders or drops, can break safety:
//!
//! > The core decides, the host acts, and an effect is safe to carry out the moment it is seen.
//!
//! A cluster of one, driven by hand:
//!
//! ```
//! use kontiki_raft::{
//!     Bytes, Config, Effects, EntryId, Input, Membership, NodeId, Proposal, ProposalId, RaftCore,
//!     Recovered, Timestamp,
//! };
//! use std::sync::Arc;
//!
//! let members = Arc::new(Membership::of_voters([(NodeId(1), "127.0.0.1:7001")]));
//! let recovered = Recovered {
//!     memberships: vec![(EntryId::ZERO, members)],
//!     is_pristine: true,
//!     ..Recovered::default()
//! };
//! let mut core = RaftCore::new(Config::new(NodeId(1), 42), recovered, Timestamp(0))?;
//! let mut effects = Effects::default();
//! let mut applied = Vec::new();
//!
//! // Time passes; it stands for election, and every write is durable at once.
//! let mut now = core.next_deadline().expect("there will be an election");
//! core.step(now, Input::Timeout);
//! for round in 0..4 {
//!     if round == 2 {
//!         let command = Bytes::from_static(b"hello");
//!         core.step(now, Input::Propose(vec![Proposal { id: ProposalId(1), command, is_session: false }]));
//!     }
//!     core.poll(now, &mut effects);
//!     applied.extend(effects.apply.drain(..));
//!     if let Some(write) = effects.write.take() {
//!         core.step(now, Input::Persisted(write.ticket));
//!     }
//!     now.0 += 1;
//! }
//! assert_eq!(applied.len(), 2, "its own blank entry, and the command");
//! # Ok::<(), kontiki_raft::RestoreError>(())
//! ```
#![warn(clippy::wildcard_enum_match_arm)]

mod append;
mod apply;
mod bereft;
mod change;
mod change_membership;
mod config;
mod core;
mod damage;
mod effect;
mod election;
mod entry;
mod id;
mod input;
mod invariant;
mod log;
mod membership;
mod memberships;
mod message;
mod priority;
mod progress;
mod propose;
mod read;
mod reconfigure;
mod recovered;
mod replicate;
mod rng;
mod size;
mod snapshot;
mod status;
mod storage;
mod transfer;
mod write;

pub use bytes::Bytes;
pub use change::{Change, ChangeError, ChangeSet};
pub use config::{Config, ConfigError};
pub use core::RaftCore;
pub use effect::{
    Apply, Effects, LogWrite, Outbound, ProposalOutcome, ReadOutcome, Rejection, SnapshotEffect,
    SoftState, WriteBatch, WriteTicket,
};
pub use entry::{Entry, Payload};
pub use id::{
    EntryId, Index, NodeId, ProposalId, ReadId, Round, Session, StoreId, Term, Timestamp,
};
pub use input::{Input, ReadMode, Unavailable};
pub use membership::{Member, MemberRole, Membership, Promotion};
pub use message::{
    AppendEntries, AppendEntriesReply, AppendResult, Body, Envelope, Message, Proposal,
    Readmission, Report, RequestVote, RequestVoteReply, VoteKind,
};
pub use recovered::{HardState, Recovered, RestoreError, SnapshotMeta};
pub use status::{ProgressState, ProgressStatus, Role, Status};
