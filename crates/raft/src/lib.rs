//! The Raft protocol as a pure value.
#![warn(clippy::wildcard_enum_match_arm)]

mod config;
mod core;
mod effect;
mod entry;
mod id;
mod input;
mod membership;
mod message;
mod recovered;
mod status;

pub use bytes::Bytes;
pub use config::{Config, ConfigError};
pub use core::RaftCore;
pub use effect::{
    Apply, Effects, LogWrite, Outbound, ProposalOutcome, ReadOutcome, Rejection, SoftState,
    WriteBatch, WriteTicket,
};
pub use entry::{Entry, Payload};
pub use id::{
    EntryId, Index, NodeId, ProposalId, ReadId, Round, Session, StoreId, Term, Timestamp,
};
pub use input::Input;
pub use membership::{Member, MemberRole, Membership};
pub use message::{
    AppendEntries, AppendEntriesReply, AppendResult, Body, Envelope, Message, Proposal,
    RequestVote, RequestVoteReply, VoteKind,
};
pub use recovered::{HardState, Recovered, RestoreError, SnapshotMeta};
pub use status::{ProgressState, ProgressStatus, Role, Status};
