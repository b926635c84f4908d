//! etcd's messages as requests of the store.
//!
//! Nothing is refused here: what the protocol does not define becomes `Unknown`, and the store's
//! `validate` judges it. Keys and values stay slices of the buffer they came in.

use kontiki_store::{
    CompactRequest, Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest,
    RangeRequest, RequestOp, SortOrder, SortTarget, TxnRequest,
};

use crate::proto::etcdserverpb as pb;
use pb::{
    compare::{CompareResult as WireResult, CompareTarget as WireTarget, TargetUnion},
    range_request::{SortOrder as WireOrder, SortTarget as WireSortTarget},
    request_op::Request,
};

pub(crate) fn range(wire: pb::RangeRequest) -> RangeRequest {
    RangeRequest {
        sort_order: match WireOrder::try_from(wire.sort_order) {
            Ok(WireOrder::None) => SortOrder::None,
            Ok(WireOrder::Ascend) => SortOrder::Ascend,
            Ok(WireOrder::Descend) => SortOrder::Descend,
            Err(_) => SortOrder::Unknown,
        },
        sort_target: match WireSortTarget::try_from(wire.sort_target) {
            Ok(WireSortTarget::Key) => SortTarget::Key,
            Ok(WireSortTarget::Version) => SortTarget::Version,
            Ok(WireSortTarget::Create) => SortTarget::Create,
            Ok(WireSortTarget::Mod) => SortTarget::Mod,
            Ok(WireSortTarget::Value) => SortTarget::Value,
            Err(_) => SortTarget::Unknown,
        },
        key: wire.key,
        range_end: wire.range_end,
        limit: wire.limit,
        revision: wire.revision,
        serializable: wire.serializable,
        keys_only: wire.keys_only,
        count_only: wire.count_only,
        min_mod_revision: wire.min_mod_revision,
        max_mod_revision: wire.max_mod_revision,
        min_create_revision: wire.min_create_revision,
        max_create_revision: wire.max_create_revision,
    }
}

pub(crate) fn put(wire: pb::PutRequest) -> PutRequest {
    PutRequest {
        key: wire.key,
        value: wire.value,
        lease: wire.lease,
        prev_kv: wire.prev_kv,
        ignore_value: wire.ignore_value,
        ignore_lease: wire.ignore_lease,
    }
}

pub(crate) fn delete_range(wire: pb::DeleteRangeRequest) -> DeleteRangeRequest {
    DeleteRangeRequest { key: wire.key, range_end: wire.range_end, prev_kv: wire.prev_kv }
}

/// Recursive, and as deep as the decoder of the wire lets a message nest: 50 transactions.
pub(crate) fn txn(wire: pb::TxnRequest) -> TxnRequest {
    TxnRequest {
        compare: wire.compare.into_iter().map(compare).collect(),
        success: wire.success.into_iter().map(op).collect(),
        failure: wire.failure.into_iter().map(op).collect(),
    }
}

pub(crate) fn compact(wire: pb::CompactionRequest) -> CompactRequest {
    CompactRequest { revision: wire.revision, physical: wire.physical }
}

fn op(wire: pb::RequestOp) -> RequestOp {
    match wire.request {
        Some(Request::RequestRange(wire)) => RequestOp::Range(range(wire)),
        Some(Request::RequestPut(wire)) => RequestOp::Put(put(wire)),
        Some(Request::RequestDeleteRange(wire)) => RequestOp::DeleteRange(delete_range(wire)),
        Some(Request::RequestTxn(wire)) => RequestOp::Txn(txn(wire)),
        None => RequestOp::Empty,
    }
}

fn compare(wire: pb::Compare) -> Compare {
    Compare {
        result: match WireResult::try_from(wire.result) {
            Ok(WireResult::Equal) => CompareResult::Equal,
            Ok(WireResult::Greater) => CompareResult::Greater,
            Ok(WireResult::Less) => CompareResult::Less,
            Ok(WireResult::NotEqual) => CompareResult::NotEqual,
            Err(_) => CompareResult::Unknown,
        },
        target: target(wire.target, wire.target_union),
        key: wire.key,
        range_end: wire.range_end,
    }
}

/// The target decides. An operand of another kind, or none, counts as zero or empty, as in etcd.
fn target(target: i32, operand: Option<TargetUnion>) -> CompareTarget {
    match (WireTarget::try_from(target), operand) {
        (Ok(WireTarget::Version), Some(TargetUnion::Version(n))) => CompareTarget::Version(n),
        (Ok(WireTarget::Version), _) => CompareTarget::Version(0),
        (Ok(WireTarget::Create), Some(TargetUnion::CreateRevision(n))) => CompareTarget::Create(n),
        (Ok(WireTarget::Create), _) => CompareTarget::Create(0),
        (Ok(WireTarget::Mod), Some(TargetUnion::ModRevision(n))) => CompareTarget::Mod(n),
        (Ok(WireTarget::Mod), _) => CompareTarget::Mod(0),
        (Ok(WireTarget::Lease), Some(TargetUnion::Lease(n))) => CompareTarget::Lease(n),
        (Ok(WireTarget::Lease), _) => CompareTarget::Lease(0),
        (Ok(WireTarget::Value), Some(TargetUnion::Value(value))) => CompareTarget::Value(value),
        (Ok(WireTarget::Value), _) => CompareTarget::Value(bytes::Bytes::new()),
        (Err(_), _) => CompareTarget::Unknown,
    }
}
