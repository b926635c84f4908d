//! What is refused before it is proposed, in etcd's order.

use kontiki_store::{
    Compare, CompareResult, CompareTarget, PutRequest, RangeRequest, Request, RequestError,
    RequestOp, SortOrder, SortTarget, TXN_OPS_MAX, TxnRequest, validate,
};

use crate::support::{bytes, delete, put, range, txn};

fn check(request: TxnRequest) -> Result<(), RequestError> {
    validate(&Request::Txn(request), TXN_OPS_MAX)
}

fn puts(keys: &[&str]) -> Vec<RequestOp> {
    keys.iter().map(|key| RequestOp::Put(put(key, "v"))).collect()
}

fn deletion(key: &str, end: &str) -> RequestOp {
    RequestOp::DeleteRange(delete(key, end))
}

fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
    RequestOp::Txn(TxnRequest { success, failure, compare: Vec::new() })
}

fn guard(key: &str) -> Compare {
    Compare {
        key: bytes(key),
        range_end: bytes(""),
        result: CompareResult::Equal,
        target: CompareTarget::Version(0),
    }
}

#[test]
fn keys_must_not_be_empty() {
    let empty = Err(RequestError::EmptyKey);
    assert_eq!(validate(&Request::Put(put("", "v")), TXN_OPS_MAX), empty);
    assert_eq!(validate(&Request::DeleteRange(delete("", "a")), TXN_OPS_MAX), empty);
    assert_eq!(range("", "a").validate(), empty);
    assert_eq!(check(txn(puts(&["a", ""]))), empty);
    assert_eq!(check(TxnRequest { failure: puts(&[""]), ..txn(vec![]) }), empty);
    assert_eq!(check(TxnRequest { compare: vec![guard("")], ..txn(vec![]) }), empty);
    assert_eq!(check(txn(vec![nested(vec![], puts(&[""]))])), empty);
}

#[test]
fn what_is_ignored_must_not_be_given() {
    let value = PutRequest { ignore_value: true, ..put("k", "v") };
    let lease = PutRequest { ignore_lease: true, lease: 1, ..put("k", "v") };
    let cases = [(value, RequestError::ValueProvided), (lease, RequestError::LeaseProvided)];
    for (put, error) in cases {
        assert_eq!(validate(&Request::Put(put.clone()), TXN_OPS_MAX), Err(error));
        assert_eq!(check(txn(vec![RequestOp::Put(put)])), Err(error));
    }
}

#[test]
fn sort_options_must_be_defined() {
    let error = Err(RequestError::InvalidSortOption);
    let order = RangeRequest { sort_order: SortOrder::Unknown, ..range("a", "") };
    let target = RangeRequest { sort_target: SortTarget::Unknown, ..range("a", "") };
    assert_eq!((order.validate(), target.validate()), (error, error));
    assert_eq!(check(txn(vec![RequestOp::Range(target)])), error);
    let empty = RangeRequest { sort_order: SortOrder::Unknown, ..range("", "") };
    assert_eq!(empty.validate(), Err(RequestError::EmptyKey), "the key comes first");
}

#[test]
fn an_operation_must_be_something() {
    assert_eq!(check(txn(vec![RequestOp::Empty])), Err(RequestError::EmptyOperation));
}

#[test]
fn each_list_holds_128_and_nested_ones_what_the_parent_leaves() {
    let too_many = Err(RequestError::TooManyOperations);
    let ranges = |count: usize| vec![RequestOp::Range(range("a", "")); count];
    assert_eq!(check(txn(ranges(128))), Ok(()));
    assert_eq!(check(txn(ranges(129))), too_many);
    assert_eq!(check(TxnRequest { failure: ranges(129), ..txn(vec![]) }), too_many);
    let guards = TxnRequest { compare: vec![guard("a"); 129], ..txn(vec![]) };
    assert_eq!(check(guards), too_many);
    assert_eq!(check(txn(vec![nested(ranges(127), vec![])])), Ok(()));
    assert_eq!(check(txn(vec![nested(ranges(128), vec![])])), too_many);
    // The longest list of the parent counts, not the one that the child is in.
    let parent = TxnRequest { failure: ranges(100), ..txn(vec![nested(ranges(29), vec![])]) };
    assert_eq!(check(parent), too_many);
    assert_eq!(check(txn(vec![nested(vec![], puts(&["a"])); 64])), Ok(()).and(duplicate()));
}

fn duplicate() -> Result<(), RequestError> {
    Err(RequestError::DuplicateKey)
}

#[test]
fn the_deepest_transaction_that_is_valid_can_be_encoded() {
    let mut request = txn(vec![]);
    for _ in 0..TXN_OPS_MAX {
        request = txn(vec![RequestOp::Txn(request)]);
    }
    assert_eq!(check(request.clone()), Ok(()));
    let encoded = Request::Txn(request.clone()).encode();
    assert_eq!(Request::decode(&encoded), Ok(Request::Txn(request.clone())));
    assert_eq!(check(txn(vec![RequestOp::Txn(request)])), Err(RequestError::TooManyOperations));
}

#[test]
fn a_branch_writes_a_key_once() {
    assert_eq!(check(txn(puts(&["a", "b", "a"]))), duplicate());
    let branches = TxnRequest { failure: puts(&["a"]), ..txn(puts(&["a"])) };
    assert_eq!(check(branches), Ok(()), "only one branch is taken");
    for (key, end) in [("a", ""), ("a", "c"), ("0", "b")] {
        assert_eq!(check(txn(vec![deletion(key, end), puts(&["a"]).remove(0)])), duplicate());
        assert_eq!(check(txn(vec![puts(&["a"]).remove(0), deletion(key, end)])), duplicate());
    }
    for (key, end) in [("b", ""), ("b", "c"), ("0", "a"), ("c", "a"), ("a", "a"), ("a", "\0")] {
        let ops = vec![deletion(key, end), puts(&["a"]).remove(0)];
        assert_eq!(check(txn(ops)), Ok(()), "{key}..{end}");
    }
    let deletions = vec![deletion("a", "c"), deletion("b", "d"), deletion("b", "")];
    assert_eq!(check(txn(deletions)), Ok(()), "deleting twice is fine");
}

#[test]
fn overlapping_deletions_are_one() {
    let spans = [("c", "e"), ("a", "b"), ("d", "g"), ("b", "c"), ("x", ""), ("x", "y"), ("p", "")];
    for (key, is_deleted) in [
        ("a", true),
        ("b", true),
        ("cc", true),
        ("f", true),
        ("g", false),
        ("p", true),
        ("p0", false),
        ("x5", true),
        ("y", false),
    ] {
        let mut ops: Vec<_> = spans.iter().map(|(key, end)| deletion(key, end)).collect();
        ops.push(puts(&[key]).remove(0));
        assert_eq!(check(txn(ops)).is_err(), is_deleted, "{key}");
    }
}

#[test]
fn nested_writes_count_with_their_parents_and_siblings() {
    let put_a = || puts(&["a"]);
    let a = || put_a().remove(0);
    assert_eq!(check(txn(vec![nested(put_a(), put_a())])), Ok(()), "then or else");
    assert_eq!(check(txn(vec![nested(put_a(), vec![]), a()])), duplicate(), "parent's put");
    assert_eq!(check(txn(vec![nested(vec![], put_a()), a()])), duplicate());
    let siblings = vec![nested(put_a(), vec![]), nested(vec![], put_a())];
    assert_eq!(check(txn(siblings)), duplicate(), "siblings' puts");
    let parent_deletes = vec![nested(put_a(), vec![]), deletion("a", "")];
    assert_eq!(check(txn(parent_deletes)), duplicate(), "parent's deletion");
    let child_deletes = vec![nested(vec![deletion("a", "")], vec![]), a()];
    assert_eq!(check(txn(child_deletes)), duplicate(), "child's deletion");
    let deleted_then_put = vec![nested(vec![deletion("a", "")], vec![]), nested(put_a(), vec![])];
    assert_eq!(check(txn(deleted_then_put)), duplicate());
    let put_then_deleted = vec![nested(put_a(), vec![]), nested(vec![deletion("a", "")], vec![])];
    assert_eq!(check(txn(put_then_deleted)), Ok(()), "etcd lets this pass");
}
