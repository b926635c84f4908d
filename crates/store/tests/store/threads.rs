//! The store as the server runs it: reads beside applying, flushing and compaction.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::Duration,
};

use kontiki_store::{
    CompactRequest, PutRequest, RangeRequest, Request, RequestOp, Response, ResponseOp, Store,
    StoreError, StoreOptions, TxnRequest,
};

use crate::support::{Ends, PATIENCE, bytes, delete, put, range, read};

/// A little of everything is in memory, so that reads meet disk, pending and index.
fn busy() -> StoreOptions {
    StoreOptions {
        value_cache_bytes: 20_000,
        flush_bytes: 100_000,
        flush_interval: Duration::from_millis(2),
        pending_bytes_max: 400_000,
        ..StoreOptions::default()
    }
}

/// Each transaction writes its number to two keys; nobody ever sees two numbers.
fn pair(n: u64) -> Request {
    let value = format!("{n:05}").repeat(20);
    let op = |key: &str| RequestOp::Put(put(key, &value));
    let key = n % 50;
    Request::Txn(TxnRequest {
        success: vec![op(&format!("left{key}")), op(&format!("right{key}"))],
        ..TxnRequest::default()
    })
}

#[test]
fn reads_see_whole_transactions_while_everything_moves() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), busy()).unwrap();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = Ends(&is_done);
        for reader in 0..3 {
            let (store, is_done) = (&store, &is_done);
            scope.spawn(move || {
                let mut reads = 0_u64;
                let mut last = 0;
                while !is_done.load(Ordering::Relaxed) || reads < 200 {
                    last = check_pairs(store, (reads + reader) % 50, last);
                    reads += 1;
                }
            });
        }
        for batch in 0..300_u64 {
            let requests = (1..=20).map(|n| (batch * 20 + n, 1, pair(batch * 20 + n)));
            let mut requests: Vec<_> = requests.collect();
            if batch % 20 == 19 {
                let revision = store.revision() - 30;
                let compact = Request::Compact(CompactRequest { revision, physical: false });
                requests[19].2 = compact;
            }
            let upto = (batch * 20 + 20, 1);
            for response in store.apply(&requests, upto).unwrap() {
                assert!(response.is_ok(), "{response:?}");
            }
        }
    });
    let (applied, hash) = (store.applied(), store.hash_kv(0).unwrap());
    store.close().unwrap();
    let store = Store::open(dir.path(), busy()).unwrap();
    assert_eq!((store.applied(), store.hash_kv(0).unwrap()), (applied, hash));
    assert!(store.wait_compacted(store.compact_revision(), PATIENCE));
    assert_eq!(store.hash_kv(0).unwrap(), hash);
}

/// Reads one pair in three ways. Returns the revision, which never falls.
fn check_pairs(store: &Store, key: u64, last: i64) -> i64 {
    let ops = ["left", "right"].map(|side| RequestOp::Range(range(&format!("{side}{key}"), "")));
    let txn = TxnRequest { success: ops.to_vec(), ..TxnRequest::default() };
    let response = store.txn_read(&txn).unwrap();
    let [ResponseOp::Range(left), ResponseOp::Range(right)] = &response.responses[..] else {
        panic!("{response:?}")
    };
    assert_eq!(
        left.kvs.first().map(|kv| &kv.value),
        right.kvs.first().map(|kv| &kv.value),
        "half of a transaction"
    );
    assert!(last <= response.revision, "the revision fell");

    let everything = read(store, &range("a", "z"));
    let (lefts, rights): (Vec<_>, Vec<_>) =
        everything.kvs.iter().partition(|kv| kv.key.starts_with(b"left"));
    assert_eq!(lefts.len(), rights.len());
    for (left, right) in lefts.iter().zip(&rights) {
        assert_eq!((&left.value, left.mod_revision), (&right.value, right.mod_revision));
    }

    let revision = (response.revision - 10).max(1);
    match store.range(&RangeRequest { revision, ..range("a", "z") }) {
        Ok(old) => assert!(old.kvs.iter().all(|kv| kv.mod_revision <= revision)),
        Err(error) => assert!(matches!(error, StoreError::Compacted), "{error}"),
    }
    response.revision
}

/// A range in steps whose revision is compacted half-way says so; it does not leave out what
/// compaction has taken.
#[test]
fn a_read_that_compaction_overtakes_starts_again_or_is_refused() {
    const KEYS: i64 = 20_000;
    let options = StoreOptions { flush_interval: Duration::ZERO, ..busy() };
    let store = Store::in_memory(options).unwrap();
    let request = |revision| RangeRequest { revision, count_only: true, ..range("k", "l") };
    let is_done = AtomicBool::new(false);
    let readable = AtomicI64::new(1);
    let mut index = 0;
    let mut apply = |request: Request| {
        index += 1;
        store.apply(&[(index, 1, request)], (index, 1)).unwrap().remove(0).unwrap()
    };
    std::thread::scope(|scope| {
        let _ends = Ends(&is_done);
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let revision = readable.load(Ordering::Relaxed);
                match store.range(&request(revision)) {
                    Ok(response) => assert!([0, KEYS].contains(&response.count), "{response:?}"),
                    Err(error) => assert!(matches!(error, StoreError::Compacted), "{error}"),
                }
            }
        });
        for _ in 0..8 {
            let ops = (0..KEYS).map(|key| RequestOp::Put(put(&format!("k{key:05}"), "v")));
            apply(Request::Txn(TxnRequest { success: ops.collect(), ..TxnRequest::default() }));
            readable.store(store.revision(), Ordering::Relaxed);
            apply(Request::DeleteRange(delete("k", "l")));
            let revision = store.revision();
            apply(Request::Compact(CompactRequest { revision, physical: false }));
            assert!(store.wait_compacted(revision, PATIENCE));
        }
    });
}

/// Events are hashed once, though they move from memory to disk meanwhile.
#[test]
fn the_hash_at_a_revision_does_not_depend_on_the_moment() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), busy()).unwrap();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ends = Ends(&is_done);
            for index in 1..20_000 {
                let put = put(&format!("k{}", index % 300), &"v".repeat(200));
                store.apply(&[(index, 1, Request::Put(put))], (index, 1)).unwrap();
            }
        });
        while !is_done.load(Ordering::Relaxed) {
            let first = store.hash_kv(0).unwrap();
            let second = store.hash_kv(first.hash_revision).unwrap();
            assert_eq!((first.hash, first.hash_revision), (second.hash, second.hash_revision));
        }
    });
}

#[test]
fn the_writer_makes_everything_durable_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), busy()).unwrap();
    let batch = [(1, 1, Request::Put(put("k", "v")))];
    assert!(matches!(store.apply(&batch, (5, 2)).unwrap()[0], Ok(Response::Put(_))));
    // A blank entry alone has to get there too, or the log could not be purged.
    store.apply(&[], (6, 2)).unwrap();
    let mut spins = 0_u32;
    while store.durable_applied() < 6 {
        std::thread::yield_now();
        spins += 1;
        assert!(spins < 100_000_000, "the writer sleeps");
    }
    drop(store);
    assert_eq!(Store::open(dir.path(), busy()).unwrap().applied(), (6, 2));
}

/// `apply` waits for the disk rather than fill the memory.
#[test]
fn what_is_pending_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { background: false, pending_bytes_max: 50_000, ..busy() };
    let store = Store::open(dir.path(), options).unwrap();
    let value = bytes(&"v".repeat(1000));
    for index in 1..=200 {
        let put = PutRequest { key: bytes("k"), value: value.clone(), ..PutRequest::default() };
        store.apply(&[(index, 1, Request::Put(put))], (index, 1)).unwrap();
        assert!(index - store.durable_applied() <= 50, "{index}, {}", store.durable_applied());
    }
    assert!(0 < store.durable_applied());
}
