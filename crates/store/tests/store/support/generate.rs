//! Random requests that are valid, from a space so small that they meet often.

use kontiki_store::{
    Bytes, CompactRequest, Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest,
    RangeRequest, Request, RequestOp, SortOrder, SortTarget, TXN_OPS_MAX, TxnRequest, validate,
};

use super::rng::Rng;

const KEYS: [&[u8]; 12] = [
    b"\0",
    b"a",
    b"a\0",
    b"aa",
    b"ab",
    b"b",
    b"b\xff",
    b"c",
    b"long/key/with/parts",
    b"z",
    b"\xff",
    b"\xff\xff",
];

const ENDS: [&[u8]; 8] = [b"", b"", b"\0", b"ab", b"b", b"c", b"zz", b"\xff"];

fn bytes(from: &[u8]) -> Bytes {
    Bytes::copy_from_slice(from)
}

pub(crate) fn key(rng: &mut Rng) -> Bytes {
    bytes(rng.pick(&KEYS))
}

fn value(rng: &mut Rng) -> Bytes {
    let len = if rng.one_in(20) { 9000 + rng.below(9000) } else { rng.below(40) };
    let byte = rng.next().to_le_bytes()[0];
    let mut value = vec![byte; len];
    value.extend_from_slice(&rng.next().to_le_bytes()[..2]);
    value.into()
}

/// A revision about the current one, or none.
fn revision(rng: &mut Rng, current: i64) -> i64 {
    match rng.below(8) {
        0 => rng.within(current - 5, current + 1),
        1 => rng.within(1, current),
        2 => rng.within(-3, 3),
        _ => 0,
    }
}

pub(crate) fn range(rng: &mut Rng, current: i64) -> RangeRequest {
    let bound = |rng: &mut Rng| if rng.one_in(6) { rng.within(0, current + 1) } else { 0 };
    RangeRequest {
        key: key(rng),
        range_end: bytes(rng.pick(&ENDS)),
        limit: if rng.one_in(2) { rng.within(-2, 6) } else { 0 },
        revision: revision(rng, current),
        sort_order: [SortOrder::None, SortOrder::Ascend, SortOrder::Descend][rng.below(3)],
        sort_target: [
            SortTarget::Key,
            SortTarget::Key,
            SortTarget::Version,
            SortTarget::Create,
            SortTarget::Mod,
            SortTarget::Value,
        ][rng.below(6)],
        serializable: rng.one_in(2),
        keys_only: rng.one_in(5),
        count_only: rng.one_in(8),
        min_mod_revision: bound(rng),
        max_mod_revision: bound(rng),
        min_create_revision: bound(rng),
        max_create_revision: bound(rng),
    }
}

pub(crate) fn put(rng: &mut Rng) -> PutRequest {
    let ignore_value = rng.one_in(8);
    let ignore_lease = rng.one_in(8);
    PutRequest {
        key: key(rng),
        value: if ignore_value { Bytes::new() } else { value(rng) },
        lease: if !ignore_lease && rng.one_in(25) { 7 } else { 0 },
        prev_kv: rng.one_in(3),
        ignore_value,
        ignore_lease,
    }
}

pub(crate) fn delete(rng: &mut Rng) -> DeleteRangeRequest {
    let range_end = if rng.one_in(2) { rng.pick(&ENDS) } else { b"" };
    DeleteRangeRequest { key: key(rng), range_end: bytes(range_end), prev_kv: rng.one_in(2) }
}

fn guard(rng: &mut Rng, current: i64) -> Compare {
    let target = match rng.below(6) {
        0 => CompareTarget::Version(rng.within(0, 4)),
        1 => CompareTarget::Create(rng.within(0, current + 1)),
        2 => CompareTarget::Mod(rng.within(0, current + 1)),
        3 => CompareTarget::Value(value(rng)),
        4 => CompareTarget::Lease(rng.within(-1, 1)),
        _ => CompareTarget::Unknown,
    };
    let result = [
        CompareResult::Equal,
        CompareResult::Greater,
        CompareResult::Less,
        CompareResult::NotEqual,
        CompareResult::Unknown,
    ][rng.below(5)];
    let range_end = if rng.one_in(4) { rng.pick(&ENDS) } else { b"" };
    Compare { result, target, key: key(rng), range_end: bytes(range_end) }
}

fn ops(rng: &mut Rng, current: i64, depth: usize) -> Vec<RequestOp> {
    (0..rng.below(4))
        .map(|_| match rng.below(if depth == 0 { 6 } else { 8 }) {
            0 | 1 => RequestOp::Range(range(rng, current)),
            2..=4 => RequestOp::Put(put(rng)),
            5 => RequestOp::DeleteRange(delete(rng)),
            _ => RequestOp::Txn(any_txn(rng, current, depth - 1)),
        })
        .collect()
}

fn any_txn(rng: &mut Rng, current: i64, depth: usize) -> TxnRequest {
    TxnRequest {
        compare: (0..rng.below(3)).map(|_| guard(rng, current)).collect(),
        success: ops(rng, current, depth),
        failure: ops(rng, current, depth),
    }
}

/// A transaction that may be proposed.
pub(crate) fn txn(rng: &mut Rng, current: i64) -> TxnRequest {
    loop {
        let txn = any_txn(rng, current, 2);
        if txn.validate(TXN_OPS_MAX).is_ok() {
            return txn;
        }
    }
}

/// A transaction that only reads.
pub(crate) fn read_only_txn(rng: &mut Rng, current: i64) -> TxnRequest {
    let ranges =
        |rng: &mut Rng| (0..rng.below(4)).map(|_| RequestOp::Range(range(rng, current))).collect();
    TxnRequest {
        compare: (0..rng.below(3)).map(|_| guard(rng, current)).collect(),
        success: ranges(rng),
        failure: ranges(rng),
    }
}

/// A command that may be proposed.
pub(crate) fn command(rng: &mut Rng, current: i64) -> Request {
    let request = match rng.below(20) {
        0..=9 => Request::Put(put(rng)),
        10..=12 => Request::DeleteRange(delete(rng)),
        13..=18 => Request::Txn(txn(rng, current)),
        _ => {
            let revision = if rng.one_in(4) {
                rng.within(-2, current + 2)
            } else {
                rng.within((current - 12).max(0), current)
            };
            Request::Compact(CompactRequest { revision, physical: rng.one_in(2) })
        }
    };
    assert_eq!(validate(&request, TXN_OPS_MAX), Ok(()), "the generator makes valid commands");
    request
}
