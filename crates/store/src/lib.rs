//! etcd's data model as a deterministic state machine: revisions, ranges, transactions.
//!
//! The same commands in the same order give the same answers and the same [`HashKv`] on every
//! replica, whatever the batches, restarts and compactions in between. The crate knows nothing
//! of replication and nothing of protobuf; texts and codes of errors are the server's.
//!
//! After a failed sync the store is closed for good and the process has to stop (see [`Fatal`]):
//! what is on the disk is known only after the file was opened anew.
//!
//! ```
//! use kontiki_store::{PutRequest, RangeRequest, Request, Response, Store, StoreOptions};
//!
//! let store = Store::in_memory(StoreOptions::default())?;
//!
//! // Commands come from a log: position, term, command.
//! let put = PutRequest { key: "hello".into(), value: "world".into(), ..Default::default() };
//! let answers = store.apply(&[(1, 1, Request::Put(put))], (1, 1))?;
//! assert!(matches!(&answers[0], Ok(Response::Put(put)) if put.revision == 2));
//!
//! // Reads run beside, on any thread.
//! let range = RangeRequest { key: "hello".into(), ..Default::default() };
//! assert_eq!(store.range(&range)?.kvs[0].value, "world");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | `request`, `response`, `error`, `codec`, `validate` | what goes in and out |
//! | `state`, `txn`, `read` | etcd's semantics |
//! | `measure` | how large an answer may become |
//! | `index`, `sorted`, `key`, `range_end` | the keys in memory |
//! | `record`, `frame`, `segment` | bytes on disk: an event, a batch of them, a file of those |
//! | `tail`, `segments`, `history` | where events are: in memory, in files, all of them |
//! | `files`, `open`, `checkpoint` | the directory, and what a start makes of it |
//! | `store`, `writer`, `compaction`, `rewrite`, `hash` | the lock, the thread, what it does |
//! | `snapshot`, `restore` | the whole state as a stream of bytes, and back |
//! | `memory` | a disk for stores that need none |

mod checkpoint;
mod codec;
mod compaction;
mod error;
mod files;
mod frame;
mod hash;
mod history;
mod index;
mod key;
mod measure;
mod memory;
mod open;
mod range_end;
mod read;
mod record;
mod request;
mod response;
mod restore;
mod rewrite;
mod segment;
mod segments;
mod snapshot;
mod sorted;
mod state;
mod store;
mod tail;
mod txn;
mod validate;
mod varint;
mod writer;

pub use bytes::Bytes;
pub use error::{DecodeError, Fatal, OpenError, RequestError, StoreError};
pub use history::StoredEvent;
pub use request::{
    CompactRequest, Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest,
    RangeRequest, Request, RequestOp, SortOrder, SortTarget, TxnRequest,
};
pub use response::{
    CompactResponse, DeleteRangeResponse, HashKv, KeyValue, PutResponse, RangeResponse, Response,
    ResponseOp, TxnResponse,
};
pub use restore::RestoreError;
pub use snapshot::StoreSnapshot;
pub use store::{Store, StoreOptions, Torn};
pub use validate::{TXN_OPS_MAX, validate};
