//! The encoding of commands: faithful, canonical, and safe against any bytes.

use kontiki_store::{
    CompactRequest, Compare, CompareResult, CompareTarget, DecodeError, DeleteRangeRequest,
    PutRequest, RangeRequest, Request, RequestOp, SortOrder, SortTarget, TxnRequest,
};

use crate::support::{bytes, delete, generate, put, range, rng::Rng};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// These bytes are in logs: they must never change.
#[test]
fn the_encoding_is_as_it_was() {
    let put = PutRequest { lease: -2, prev_kv: true, ignore_lease: true, ..put("key", "v") };
    let delete = DeleteRangeRequest { prev_kv: true, ..delete("a", "\0") };
    let range = RangeRequest {
        limit: 300,
        revision: -1,
        sort_order: SortOrder::Descend,
        sort_target: SortTarget::Value,
        keys_only: true,
        max_create_revision: 1,
        ..range("a", "b")
    };
    let compare =
        |result, target| Compare { result, target, key: bytes("k"), range_end: bytes("l") };
    let txn = TxnRequest {
        compare: vec![
            compare(CompareResult::NotEqual, CompareTarget::Value(bytes("xy"))),
            compare(CompareResult::Less, CompareTarget::Lease(i64::MIN)),
            compare(CompareResult::Unknown, CompareTarget::Unknown),
        ],
        success: vec![RequestOp::Put(put.clone()), RequestOp::Range(range)],
        failure: vec![
            RequestOp::DeleteRange(delete.clone()),
            RequestOp::Txn(TxnRequest::default()),
            RequestOp::Empty,
        ],
    };
    for (request, golden) in [
        (Request::Put(put), "010105036b6579017603"),
        (Request::DeleteRange(delete), "01020101610100"),
        (Request::Compact(CompactRequest { revision: 77, physical: true }), "0104019a01"),
        (
            Request::Txn(txn),
            "0103030303027879016b016c0204ffffffffffffffffff01016b016c040500016b016c\
             020105036b657901760305020161016202 04d80401000000020302010161010003000000 06",
        ),
    ] {
        let golden = golden.replace(' ', "");
        assert_eq!(hex(&request.encode()), golden, "{request:?}");
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
}

#[test]
fn what_is_decoded_is_what_was_encoded() {
    let mut rng = Rng::new(5);
    for current in 1..3000 {
        let request = generate::command(&mut rng, current);
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
}

#[test]
fn every_cut_is_an_error() {
    let mut rng = Rng::new(6);
    for current in 1..300 {
        let encoded = generate::command(&mut rng, current).encode();
        for len in 0..encoded.len().min(400) {
            assert_eq!(Request::decode(&encoded[..len]), Err(DecodeError::Truncated));
        }
    }
}

/// Pitfall D15, for commands: no bytes make the decoder panic, and what it accepts it writes
/// the same way again.
#[test]
fn arbitrary_bytes_are_refused_or_canonical() {
    let mut rng = Rng::new(7);
    let mut accepted = 0;
    for round in 0..60_000 {
        let mut input = if round % 2 == 0 {
            (0..rng.below(60)).map(|_| rng.next().to_le_bytes()[0]).collect()
        } else {
            generate::command(&mut rng, 9).encode()
        };
        for _ in 0..rng.below(4) {
            if !input.is_empty() {
                let at = rng.below(input.len());
                input[at] = rng.next().to_le_bytes()[0];
            }
        }
        if let Ok(request) = Request::decode(&input) {
            assert_eq!(request.encode(), input);
            accepted += 1;
        }
    }
    assert!(1000 < accepted, "the test must reach the inside of the decoder: {accepted}");
}

#[test]
fn claims_of_size_cost_nothing() {
    // A transaction that claims 2^60 guards, and a key of 2^60 bytes.
    let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    for head in [&[1, 3][..], &[1, 1, 0]] {
        assert_eq!(Request::decode(&[head, &huge].concat()), Err(DecodeError::Truncated));
    }
    // One that nests deeper than the stack could bear.
    let mut deep = vec![1];
    deep.extend([3, 0, 1].repeat(1_000_000));
    assert_eq!(Request::decode(&deep), Err(DecodeError::Malformed("nested too deep")));
}

#[test]
fn another_version_is_told_from_nonsense() {
    assert_eq!(Request::decode(&[2, 1]), Err(DecodeError::Version(2)));
    assert_eq!(Request::decode(&[1, 5]), Err(DecodeError::Malformed("tag of a request")));
    let mut trailing = Request::Put(put("k", "v")).encode();
    trailing.push(0);
    assert_eq!(Request::decode(&trailing), Err(DecodeError::Malformed("trailing bytes")));
}
