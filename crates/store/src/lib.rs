//! etcd's data model as a deterministic state machine: revisions, ranges, transactions.
//!
//! The same commands in the same order give the same answers and the same [`HashKv`] on every
//! replica, whatever the batches, restarts and compactions in between. The crate knows nothing
//! of replication and nothing of protobuf.

mod codec;
mod compaction;
mod error;
mod events;
mod hash;
mod index;
mod key;
mod open;
mod pending;
mod range_end;
mod read;
mod record;
mod redb_events;
mod request;
mod response;
mod state;
mod store;
mod txn;
mod validate;
mod writer;

pub use bytes::Bytes;
pub use error::{DecodeError, Fatal, OpenError, RequestError, StoreError};
pub use request::{
    CompactRequest, Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest,
    RangeRequest, Request, RequestOp, SortOrder, SortTarget, TxnRequest,
};
pub use response::{
    CompactResponse, DeleteRangeResponse, HashKv, KeyValue, PutResponse, RangeResponse, Response,
    ResponseOp, TxnResponse,
};
pub use store::{Store, StoreOptions};
pub use validate::{TXN_OPS_MAX, validate};
