//! Raft to embed: a replicated, durable, fault-tolerant state.

mod apply_thread;
mod builder;
mod clock;
pub mod codec;
mod error;
mod handle;
mod log_store;
mod log_thread;
mod machine;
mod node;
mod replica;
mod requests;
mod tcp;
mod transport;

pub use builder::Builder;
pub use clock::{BoxFuture, Clock, MonotonicClock};
pub use error::{Fault, LogFailure, ProposeError, ReadError, StartError, TransferError};
pub use handle::{Applied, NodeIdentity, Raft, Status};
pub use kontiki_disk::{Disk, DiskFile, DiskLock, RealDisk};
pub use kontiki_log::{Identity, IdentityRequest, LogError, LogOptions};
pub use kontiki_raft::{
    Bytes, Config, Entry, EntryId, Envelope, Index, Member, MemberRole, Membership, Message,
    NodeId, Payload, Recovered, Rejection, RestoreError, Role, SoftState, StoreId, Term, Timestamp,
    WriteBatch,
};
pub use log_store::{FileLog, LogReader, LogStore, LogWriter, OpenedLog, Upkeep};
pub use machine::{Batch, Command, StateMachine};
pub use replica::{Action, Answer, Event, Replica, RequestId};
pub use tcp::TcpTransport;
pub use transport::{
    Closed, Inbox, KnownStores, Lane, Links, Local, StoreCheck, Transport, message_bytes,
};
