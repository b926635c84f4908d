//! What may be asked of the store: etcd's requests as plain values, with etcd's field names.
//!
//! The documentation of a field tells what it means here; the names and defaults are those of
//! etcd's protocol. Enumerations carry an `Unknown` where a client of the protocol can send a
//! number that nobody has defined, so that the conversion at the edge cannot fail and
//! [`validate`](crate::validate()) is the one place that refuses.

use bytes::Bytes;

/// A command of the state machine: what is replicated and applied.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a caller that overlooks a command must not compile")]
pub enum Request {
    /// Sets one key.
    Put(PutRequest),
    /// Deletes one key or a range of keys.
    DeleteRange(DeleteRangeRequest),
    /// Guards, and one of two lists of operations, as one step.
    Txn(TxnRequest),
    /// Forgets the history before a revision.
    Compact(CompactRequest),
}

/// Reads one key or a range of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeRequest {
    /// The first key. Never empty in a valid request.
    pub key: Bytes,
    /// Empty: only `key`. One zero byte: every key from `key` on. Otherwise the key after the
    /// last one; at or before `key` the range is empty.
    pub range_end: Bytes,
    /// At most this many keys in the answer; zero or less means all.
    pub limit: i64,
    /// The revision to read at; zero or less means the current one.
    pub revision: i64,
    /// The direction of sorting.
    pub sort_order: SortOrder,
    /// What is sorted by.
    pub sort_target: SortTarget,
    /// May be answered by any node from what it has. The store itself makes no difference.
    pub serializable: bool,
    /// Leaves the values out of the answer.
    pub keys_only: bool,
    /// Answers with the number of keys alone.
    pub count_only: bool,
    /// Only keys last changed at this revision or later; zero is off.
    pub min_mod_revision: i64,
    /// Only keys last changed at this revision or earlier; zero is off.
    pub max_mod_revision: i64,
    /// Only keys created at this revision or later; zero is off.
    pub min_create_revision: i64,
    /// Only keys created at this revision or earlier; zero is off.
    pub max_create_revision: i64,
}

/// The direction in which a range is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "etcd's protocol fixes the list")]
pub enum SortOrder {
    /// By key, or ascending when the target is another one than the key.
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Greatest first.
    Descend,
    /// A number that the protocol does not define; refused by `validate`.
    Unknown,
}

/// What a range is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "etcd's protocol fixes the list")]
pub enum SortTarget {
    /// The key, byte by byte.
    #[default]
    Key,
    /// How often the key was put since it was created.
    Version,
    /// The revision that created the key.
    Create,
    /// The revision that last changed the key.
    Mod,
    /// The value, byte by byte.
    Value,
    /// A number that the protocol does not define; refused by `validate`.
    Unknown,
}

/// Sets one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutRequest {
    /// The key. Never empty in a valid request.
    pub key: Bytes,
    /// The new value. Must be empty with `ignore_value`.
    pub value: Bytes,
    /// The lease that the key is attached to; zero detaches it.
    pub lease: i64,
    /// Answers with the key as it was before.
    pub prev_kv: bool,
    /// Keeps the value; the key must exist.
    pub ignore_value: bool,
    /// Keeps the lease; the key must exist.
    pub ignore_lease: bool,
}

/// Deletes one key or a range of keys, all in one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRangeRequest {
    /// The first key. Never empty in a valid request.
    pub key: Bytes,
    /// As in [`RangeRequest::range_end`].
    pub range_end: Bytes,
    /// Answers with the keys as they were before.
    pub prev_kv: bool,
}

/// If all of `compare` hold, then `success`, else `failure`; as one step, in one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnRequest {
    /// The guards; all must hold. None at all always holds.
    pub compare: Vec<Compare>,
    /// What is done when the guards hold, in order.
    pub success: Vec<RequestOp>,
    /// What is done when they do not, in order.
    pub failure: Vec<RequestOp>,
}

impl TxnRequest {
    /// Whether nothing in it can write: every operation of both branches is a range.
    ///
    /// A nested transaction counts as a write, whatever it holds, as in etcd.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.ops().all(|op| matches!(op, RequestOp::Range(_)))
    }

    /// Whether it is [read-only](Self::is_read_only) and every range may be answered locally.
    #[must_use]
    pub fn is_serializable(&self) -> bool {
        self.ops().all(|op| matches!(op, RequestOp::Range(range) if range.serializable))
    }

    fn ops(&self) -> impl Iterator<Item = &RequestOp> {
        self.success.iter().chain(&self.failure)
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "etcd's protocol fixes the list")]
pub enum RequestOp {
    /// A read, which sees what earlier operations of the transaction have written.
    Range(RangeRequest),
    /// A put.
    Put(PutRequest),
    /// A deletion.
    DeleteRange(DeleteRangeRequest),
    /// A transaction in the transaction. Its guards see the state before the outermost one.
    Txn(TxnRequest),
    /// An operation in which nothing is set; refused by `validate`.
    Empty,
}

/// One guard of a transaction: `target` of each key in the range against the operand.
///
/// A range without keys behaves like one missing key: all numbers are zero, and a comparison
/// of values is false whatever it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The relation that must hold, the key's property on the left.
    pub result: CompareResult,
    /// The property, and what it is compared with.
    pub target: CompareTarget,
    /// The first key. Never empty in a valid request.
    pub key: Bytes,
    /// As in [`RangeRequest::range_end`]; the relation must hold for every key.
    pub range_end: Bytes,
}

/// The relation of a [`Compare`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "etcd's protocol fixes the list")]
pub enum CompareResult {
    /// The two are equal.
    #[default]
    Equal,
    /// The key's is greater.
    Greater,
    /// The key's is less.
    Less,
    /// The two differ.
    NotEqual,
    /// A number that the protocol does not define: always holds, as in etcd.
    Unknown,
}

/// The property of a key that a [`Compare`] looks at, with the operand.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "etcd's protocol fixes the list")]
pub enum CompareTarget {
    /// How often the key was put since it was created.
    Version(i64),
    /// The revision that created the key.
    Create(i64),
    /// The revision that last changed the key.
    Mod(i64),
    /// The value, byte by byte.
    Value(Bytes),
    /// The lease that the key is attached to.
    Lease(i64),
    /// A number that the protocol does not define: equal to whatever it is compared with, as
    /// in etcd.
    Unknown,
}

/// Forgets the history before a revision; what is alive at it stays readable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactRequest {
    /// The first revision that stays readable.
    pub revision: i64,
    /// The client waits until the space is given back. The store answers at once all the
    /// same; see [`Store::wait_compacted`](crate::Store::wait_compacted).
    pub physical: bool,
}
