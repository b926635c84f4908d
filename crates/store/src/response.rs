//! What the store answers, with etcd's field names.
//!
//! `revision` is that of the response's header. Cluster, member and term are the server's to
//! add: the store does not know that it is replicated.

use bytes::Bytes;

/// The answer to a [`Request`](crate::Request).
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "one for each request, and no other")]
pub enum Response {
    /// To a put.
    Put(PutResponse),
    /// To a deletion.
    DeleteRange(DeleteRangeResponse),
    /// To a transaction.
    Txn(TxnResponse),
    /// To a compaction.
    Compact(CompactResponse),
}

/// A key as it is at some revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The revision that created the key, after its last deletion.
    pub create_revision: i64,
    /// The revision that last changed the key.
    pub mod_revision: i64,
    /// How often the key was put since it was created; 1 for a new key.
    pub version: i64,
    /// The value; empty when only keys were asked for.
    pub value: Bytes,
    /// The lease that the key is attached to, or zero.
    pub lease: i64,
}

/// The answer to a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResponse {
    /// The current revision, also when an old one was read.
    pub revision: i64,
    /// The keys, sorted and cut as asked.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit left out keys that pass the filters.
    pub more: bool,
    /// Keys in the range at the revision read, before limit and filters.
    pub count: i64,
}

/// The answer to a put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutResponse {
    /// The revision of the put.
    pub revision: i64,
    /// The key as it was before, if asked for and there was one.
    pub prev_kv: Option<KeyValue>,
}

/// The answer to a deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRangeResponse {
    /// The revision of the deletion, or the current one when nothing was deleted.
    pub revision: i64,
    /// How many keys were deleted.
    pub deleted: i64,
    /// The keys as they were before, in their order, if asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// The answer to a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnResponse {
    /// The revision after the transaction. Zero in a nested one, where etcd leaves the header
    /// empty.
    pub revision: i64,
    /// Whether all guards held.
    pub succeeded: bool,
    /// One for each operation of the branch that was taken.
    pub responses: Vec<ResponseOp>,
}

/// The answer to one operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "one for each operation, and no other")]
pub enum ResponseOp {
    /// To a range.
    Range(RangeResponse),
    /// To a put.
    Put(PutResponse),
    /// To a deletion.
    DeleteRange(DeleteRangeResponse),
    /// To a nested transaction.
    Txn(TxnResponse),
}

/// The answer to a compaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactResponse {
    /// The current revision.
    pub revision: i64,
}

/// What members of a cluster compare to find that they differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32C of every event that is kept up to `hash_revision`, in revision order.
    pub hash: u32,
    /// The compact revision, -1 if nothing was ever compacted. Hashes taken under different
    /// ones cannot be compared.
    pub compact_revision: i64,
    /// The revision up to which was hashed.
    pub hash_revision: i64,
    /// The current revision.
    pub revision: i64,
}
