//! Transactions, as etcd 3.5.1 answers them. Each test is one rule; all were asked of it.

use kontiki_store::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp,
    ResponseOp, Store, TXN_OPS_MAX, TxnRequest, TxnResponse,
};

use crate::support::{
    apply_compact, apply_delete, apply_put, apply_txn, bytes, delete, keys, put, range, read,
    refusal, store, txn,
};

fn put_op(key: &str, value: &str) -> RequestOp {
    RequestOp::Put(put(key, value))
}

fn delete_op(key: &str, end: &str) -> RequestOp {
    RequestOp::DeleteRange(delete(key, end))
}

fn range_op(key: &str) -> RequestOp {
    RequestOp::Range(range(key, ""))
}

fn at(key: &str, revision: i64) -> RequestOp {
    RequestOp::Range(RangeRequest { revision, ..range(key, "") })
}

fn nested(success: Vec<RequestOp>) -> RequestOp {
    RequestOp::Txn(txn(success))
}

fn guard(key: &str, result: CompareResult, target: CompareTarget) -> Compare {
    Compare { key: bytes(key), range_end: bytes(""), result, target }
}

/// Whether the guards hold in `store`, by a transaction that does nothing.
fn holds(store: &Store, compare: Vec<Compare>) -> bool {
    let request = TxnRequest { compare, ..TxnRequest::default() };
    let read = store.txn_read(&request).unwrap();
    assert_eq!(apply_txn(store, &request), Ok(read.clone()), "either way");
    read.succeeded
}

/// The revisions in the headers of an answer, nested ones in place.
fn headers(response: &TxnResponse) -> Vec<i64> {
    let mut revisions = vec![response.revision];
    for op in &response.responses {
        match op {
            ResponseOp::Range(range) => revisions.push(range.revision),
            ResponseOp::Put(put) => revisions.push(put.revision),
            ResponseOp::DeleteRange(delete) => revisions.push(delete.revision),
            ResponseOp::Txn(txn) => revisions.extend(headers(txn)),
        }
    }
    revisions
}

use CompareResult::{Equal, Greater, Less, NotEqual, Unknown};
use CompareTarget::{Create, Lease, Mod, Value, Version};

#[test]
fn a_missing_key_compares_as_zero() {
    let store = store();
    for target in [Version(0), Create(0), Mod(0), Lease(0)] {
        assert!(holds(&store, vec![guard("k", Equal, target.clone())]), "{target:?}");
        assert!(!holds(&store, vec![guard("k", Greater, target)]));
    }
    assert!(holds(&store, vec![guard("k", Less, Version(1))]));
}

#[test]
fn the_value_of_a_missing_key_compares_with_nothing() {
    let store = store();
    for result in [Equal, NotEqual, Greater, Less, Unknown] {
        assert!(!holds(&store, vec![guard("k", result, Value(bytes("")))]), "{result:?}");
    }
}

#[test]
fn guards_compare_each_property() {
    let store = store();
    apply_put(&store, "k", "b");
    apply_put(&store, "k", "b");
    let cases = [(Version(2), Version(1)), (Create(2), Create(1)), (Mod(3), Mod(2))];
    for (equal, less) in cases {
        assert!(holds(&store, vec![guard("k", Equal, equal.clone())]));
        assert!(!holds(&store, vec![guard("k", NotEqual, equal)]));
        assert!(holds(&store, vec![guard("k", Greater, less)]), "the key's is on the left");
    }
    assert!(holds(&store, vec![guard("k", Greater, Value(bytes("a")))]));
    assert!(holds(&store, vec![guard("k", Less, Value(bytes("bb")))]));
    assert!(holds(&store, vec![guard("k", Equal, Lease(0))]));
}

#[test]
fn what_the_protocol_does_not_define_compares_as_in_etcd() {
    let store = store();
    let unknown = |result| vec![guard("k", result, CompareTarget::Unknown)];
    assert!(holds(&store, unknown(Equal)), "an unknown target is equal to anything");
    assert!(!holds(&store, unknown(NotEqual)) && !holds(&store, unknown(Greater)));
    assert!(holds(&store, vec![guard("k", Unknown, Version(9))]), "an unknown relation holds");
}

#[test]
fn all_guards_must_hold_and_none_always_does() {
    let store = store();
    assert!(holds(&store, vec![]));
    let (yes, no) = (guard("k", Equal, Version(0)), guard("k", Equal, Version(1)));
    assert!(holds(&store, vec![yes.clone(), yes.clone()]));
    assert!(!holds(&store, vec![yes, no]));
}

#[test]
fn a_guard_over_a_range_must_hold_for_every_key() {
    let store = store();
    let over = |result, target| Compare { range_end: bytes("z"), ..guard("a", result, target) };
    assert!(holds(&store, vec![over(Equal, Version(0))]), "no key is as one missing key");
    assert!(!holds(&store, vec![over(Greater, Version(0))]));
    apply_put(&store, "a", "1");
    apply_put(&store, "b", "1");
    assert!(holds(&store, vec![over(Equal, Value(bytes("1")))]));
    apply_put(&store, "b", "2");
    assert!(!holds(&store, vec![over(Equal, Value(bytes("1")))]));
    apply_delete(&store, delete("b", ""));
    assert!(holds(&store, vec![over(Equal, Value(bytes("1")))]), "a tombstone is no key");
}

#[test]
fn all_writes_share_one_revision_and_ranges_see_those_before() {
    let store = store();
    let request = txn(vec![range_op("k"), put_op("k", "1"), range_op("k"), delete_op("x", "")]);
    let response = apply_txn(&store, &request).unwrap();
    assert_eq!(headers(&response), [2, 1, 2, 2, 2], "old before the first write, new after");
    let [ResponseOp::Range(before), _, ResponseOp::Range(after), _] = &response.responses[..]
    else {
        panic!("{response:?}")
    };
    assert_eq!((before.count, after.count), (0, 1));
    assert_eq!(after.kvs[0].mod_revision, 2);
}

#[test]
fn without_a_write_the_revision_stays() {
    let store = store();
    apply_put(&store, "k", "1");
    let response = apply_txn(&store, &txn(vec![delete_op("x", ""), range_op("k")])).unwrap();
    assert_eq!(headers(&response), [2, 2, 2]);
    assert_eq!(apply_txn(&store, &TxnRequest::default()).unwrap().revision, 2);
    assert_eq!(store.revision(), 2);
}

#[test]
fn a_nested_transaction_has_no_revision_of_its_own() {
    let store = store();
    let response = apply_txn(&store, &txn(vec![nested(vec![put_op("n", "1")])])).unwrap();
    assert_eq!(headers(&response), [2, 0, 2]);
}

#[test]
fn nested_guards_see_the_state_before_everything() {
    let store = store();
    let inner = TxnRequest {
        compare: vec![guard("k", Equal, Version(0))],
        success: vec![put_op("then", "1")],
        failure: vec![put_op("else", "1")],
    };
    let request = txn(vec![put_op("k", "1"), RequestOp::Txn(inner)]);
    apply_txn(&store, &request).unwrap();
    assert_eq!(keys(&read(&store, &range("a", "z"))), ["k", "then"]);
}

#[test]
fn a_put_of_one_nested_transaction_may_be_deleted_by_a_later_one() {
    let store = store();
    let request = txn(vec![
        nested(vec![put_op("n", "1")]),
        range_op("n"),
        nested(vec![RequestOp::DeleteRange(DeleteRangeRequest {
            prev_kv: true,
            ..delete("a", "z")
        })]),
        range_op("n"),
    ]);
    assert_eq!(request.validate(TXN_OPS_MAX), Ok(()));
    let response = apply_txn(&store, &request).unwrap();
    assert_eq!(headers(&response), [2, 0, 2, 2, 0, 2, 2]);
    let [_, ResponseOp::Range(before), ResponseOp::Txn(deleted), ResponseOp::Range(after)] =
        &response.responses[..]
    else {
        panic!("{response:?}")
    };
    assert_eq!((before.count, after.count), (1, 0));
    let ResponseOp::DeleteRange(deleted) = &deleted.responses[0] else { panic!() };
    assert_eq!((deleted.deleted, deleted.prev_kvs[0].mod_revision), (1, 2));
    assert_eq!(store.revision(), 2);
    assert_eq!(read(&store, &RangeRequest { revision: 2, ..range("n", "") }).count, 0);
}

#[test]
fn a_deletion_of_the_rest_may_stand_beside_any_put() {
    let store = store();
    apply_put(&store, "m", "1");
    let request = txn(vec![delete_op("a", "\0"), put_op("m", "2")]);
    assert_eq!(request.validate(TXN_OPS_MAX), Ok(()));
    assert_eq!(headers(&apply_txn(&store, &request).unwrap()), [3, 3, 3]);
    let kv = read(&store, &range("m", "")).kvs.remove(0);
    assert_eq!((kv.create_revision, kv.version), (3, 1), "deleted and created at once");

    let request = txn(vec![put_op("m", "3"), delete_op("a", "\0")]);
    apply_txn(&store, &request).unwrap();
    assert_eq!(read(&store, &range("m", "")).count, 0);
}

/// etcd panics here, on every member.
#[test]
fn a_key_that_the_transaction_has_deleted_cannot_keep_its_value() {
    let store = store();
    apply_put(&store, "m", "1");
    let keep = RequestOp::Put(PutRequest { ignore_value: true, ..put("m", "") });
    let request = txn(vec![delete_op("a", "\0"), keep.clone()]);
    assert_eq!(request.validate(TXN_OPS_MAX), Ok(()));
    assert_eq!(apply_txn(&store, &request), Err("KeyNotFound"));
    assert_eq!(read(&store, &range("m", "")).count, 1, "nothing has happened");
    assert!(apply_txn(&store, &txn(vec![keep])).is_ok());
}

#[test]
fn one_failing_operation_undoes_the_whole_transaction() {
    let store = store();
    apply_put(&store, "k", "1");
    let lease = RequestOp::Put(PutRequest { lease: 7, ..put("b", "1") });
    let keep = RequestOp::Put(PutRequest { ignore_value: true, ..put("b", "") });
    for (failing, refusal) in [
        (lease, "LeaseNotFound"),
        (keep, "KeyNotFound"),
        (at("k", 99), "FutureRevision"),
        (at("k", -2), "Compacted"),
    ] {
        for op in [failing.clone(), nested(vec![failing])] {
            let request = txn(vec![put_op("a", "1"), delete_op("k", ""), op]);
            assert_eq!(apply_txn(&store, &request), Err(refusal));
        }
        assert_eq!(keys(&read(&store, &range("a", "z"))), ["k"]);
        assert_eq!(store.revision(), 2);
    }
}

#[test]
fn only_the_branch_that_is_taken_can_fail() {
    let store = store();
    let request = TxnRequest { failure: vec![at("k", 99)], ..txn(vec![put_op("k", "1")]) };
    assert!(apply_txn(&store, &request).is_ok());
}

#[test]
fn puts_are_checked_before_ranges() {
    let store = store();
    let lease = RequestOp::Put(PutRequest { lease: 7, ..put("b", "1") });
    let request = txn(vec![at("k", 99), lease]);
    assert_eq!(apply_txn(&store, &request), Err("LeaseNotFound"));
    let keep = RequestOp::Put(PutRequest { lease: 7, ignore_value: true, ..put("b", "") });
    assert_eq!(apply_txn(&store, &txn(vec![keep])), Err("KeyNotFound"), "the key first, here");
}

#[test]
fn a_negative_revision_is_compacted_but_for_one() {
    let store = store();
    assert!(apply_txn(&store, &txn(vec![at("k", -1)])).is_ok(), "nothing was ever compacted");
    assert_eq!(apply_txn(&store, &txn(vec![at("k", -2)])), Err("Compacted"));
    apply_compact(&store, 0).unwrap();
    assert_eq!(apply_txn(&store, &txn(vec![at("k", -1)])), Err("Compacted"));
    assert_eq!(refusal(&store.txn_read(&txn(vec![at("k", -1)])).unwrap_err()), "Compacted");
}

#[test]
fn ranges_in_a_transaction_read_old_revisions_too() {
    let store = store();
    apply_put(&store, "k", "1");
    apply_put(&store, "k", "2");
    let request = txn(vec![put_op("k", "3"), at("k", 2), at("k", 3), range_op("k")]);
    let response = apply_txn(&store, &request).unwrap();
    let values: Vec<_> = response
        .responses
        .iter()
        .filter_map(|op| match op {
            ResponseOp::Range(range) => Some(range.kvs[0].value.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(values, ["1", "2", "3"]);
    assert_eq!(apply_txn(&store, &txn(vec![put_op("k", "4"), at("k", 5)])), Err("FutureRevision"));
}

#[test]
fn only_ranges_make_a_transaction_read_only() {
    let read_only = TxnRequest { failure: vec![range_op("b")], ..txn(vec![range_op("a")]) };
    assert!(read_only.is_read_only() && !read_only.is_serializable());
    assert!(!txn(vec![nested(vec![range_op("a")])]).is_read_only());
    let other_branch = TxnRequest { failure: vec![put_op("b", "1")], ..txn(vec![]) };
    assert!(!other_branch.is_read_only());
    let local = RequestOp::Range(RangeRequest { serializable: true, ..range("a", "") });
    assert!(txn(vec![local]).is_serializable());
}
