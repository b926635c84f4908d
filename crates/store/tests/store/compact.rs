//! Compaction: what may be asked for, what is kept, and what is given back.

use std::{ops::ControlFlow, path::Path, sync::Arc};

use kontiki_store::{RangeRequest, RequestOp, Store, StoreOptions};

use crate::support::{
    PATIENCE, apply_compact, apply_delete, apply_put, apply_txn, compact_fully, delete,
    disk::MemoryDisk, keys, put, quiet, range, read, read_refusal, store, txn,
};

#[test]
fn revisions_must_rise_and_exist() {
    let store = store();
    apply_put(&store, "k", "1");
    for (revision, answer) in [
        (-2, Err("Compacted")),
        (-1, Err("Compacted")),
        (3, Err("FutureRevision")),
        (0, Ok(2)),
        (0, Err("Compacted")),
        (2, Ok(2)),
        (2, Err("Compacted")),
        (1, Err("Compacted")),
    ] {
        assert_eq!(apply_compact(&store, revision), answer, "{revision}");
    }
    assert_eq!((store.compact_revision(), store.revision()), (2, 2));
}

#[test]
fn what_is_alive_stays_and_the_rest_goes() {
    let store = store();
    apply_put(&store, "a", "1"); // 2
    apply_put(&store, "a", "2"); // 3
    apply_put(&store, "b", "1"); // 4
    apply_delete(&store, delete("b", "")); // 5
    apply_put(&store, "a", "3"); // 6
    let before = store.size_in_use_bytes();
    apply_compact(&store, 5).unwrap();
    assert_eq!(store.size_in_use_bytes(), before, "compaction waits for its turn");
    compact_fully(&store);
    // a@3, the tombstone b@5 and a@6 are left of five.
    assert_eq!(before - store.size_in_use_bytes(), 2 * (52 + 2));
    assert_eq!(read(&store, &RangeRequest { revision: 5, ..range("a", "z") }).kvs[0].value, "2");
    assert_eq!(read_refusal(&store, &RangeRequest { revision: 4, ..range("a", "") }), "Compacted");
    apply_compact(&store, 6).unwrap();
    compact_fully(&store);
    assert_eq!(store.size_in_use_bytes(), 52 + 2, "only a@6");
    assert_eq!(keys(&read(&store, &range("a", "z"))), ["a"]);
}

/// Whoever reads events at the compact revision itself is told when history was compacted
/// further meanwhile, and skips nothing in silence.
#[test]
fn a_scan_that_is_overtaken_says_so() {
    let scan = |is_overtaken: bool| {
        let store = store();
        let both = ["a", "b"].map(|key| RequestOp::Put(put(key, "1"))).to_vec();
        apply_txn(&store, &txn(both)).unwrap(); // 2
        apply_put(&store, "a", "2");
        apply_put(&store, "b", "2"); // 4
        apply_compact(&store, 2).unwrap();
        let mut seen = Vec::new();
        let scanned = store.scan_events(2, &mut |event| {
            if is_overtaken && seen.is_empty() {
                apply_compact(&store, 4).unwrap();
                compact_fully(&store);
            }
            seen.push((event.key[0], event.mod_revision));
            ControlFlow::Continue(())
        });
        (scanned.is_ok(), seen)
    };
    assert_eq!(scan(false), (true, vec![(b'a', 2), (b'b', 2), (b'a', 3), (b'b', 4)]));
    assert_eq!(scan(true), (false, vec![(b'a', 2)]));
}

/// etcd #18089, #19179: a watch that starts at the compact revision must see the deletion.
/// The hash covers every event that is kept, so it tells whether the tombstone is.
#[test]
fn a_tombstone_exactly_at_the_compact_revision_is_kept() {
    let sizes = [4, 5].map(|compact_revision| {
        let store = store();
        apply_put(&store, "k", "1"); // 2
        apply_put(&store, "k", "2"); // 3
        apply_delete(&store, delete("k", "")); // 4
        apply_put(&store, "other", "1"); // 5
        apply_compact(&store, compact_revision).unwrap();
        let hash = store.hash_kv(0).unwrap();
        compact_fully(&store);
        assert_eq!(store.hash_kv(0).unwrap(), hash, "what is removed was not counted");
        store.size_in_use_bytes()
    });
    let (tombstone, other) = (52 + 1, 52 + 5 + 1);
    assert_eq!(sizes, [tombstone + other, other]);
}

/// Compaction removes the newest event of all; the revision must not fall with it.
#[test]
fn the_revision_survives_the_events() {
    let disk = MemoryDisk::default();
    let open = || Store::open_on(Arc::new(disk.clone()), Path::new("/kv"), quiet()).unwrap();
    let store = open();
    apply_put(&store, "k", "1");
    apply_delete(&store, delete("k", ""));
    apply_put(&store, "k", "1");
    apply_delete(&store, delete("k", "")); // 5
    apply_put(&store, "x", "1"); // 6
    apply_delete(&store, delete("x", "")); // 7
    apply_compact(&store, 6).unwrap();
    compact_fully(&store);
    apply_compact(&store, 7).unwrap();
    compact_fully(&store);
    store.close().unwrap();
    let store = open();
    assert_eq!((store.revision(), store.compact_revision()), (7, 7));
    assert_eq!(apply_put(&store, "k", "new"), 8);
    assert_eq!(read(&store, &range("k", "")).kvs[0].version, 1);
}

/// etcd #17780: nothing is removed before the revision that allows it is on disk, or a crash
/// would bring back a store that promises history it has lost.
#[test]
fn nothing_is_removed_before_the_promise_is_durable() {
    let disk = MemoryDisk::default();
    let store = Store::open_on(Arc::new(disk.clone()), Path::new("/kv"), quiet()).unwrap();
    apply_put(&store, "k", "1");
    apply_put(&store, "k", "2");
    store.flush().unwrap();
    let before = store.size_in_use_bytes();
    apply_compact(&store, 3).unwrap();
    assert!(!store.compact_step().unwrap(), "it is not durable");
    assert_eq!(store.size_in_use_bytes(), before);
    store.flush().unwrap();
    assert!(store.compact_step().unwrap());
    assert_eq!(before - store.size_in_use_bytes(), 52 + 2);
}

/// Many segments, each with survivors, and the space of the dead is given back.
#[test]
fn segments_are_rewritten_and_space_is_given_back() {
    let disk = MemoryDisk::default();
    let options = StoreOptions { value_cache_bytes: 0, segment_bytes: 16 << 10, ..quiet() };
    let open =
        || Store::open_on(Arc::new(disk.clone()), Path::new("/kv"), options.clone()).unwrap();
    let mut store = open();
    let value = "x".repeat(500);
    let mut sizes = Vec::new();
    for round in 0..6 {
        for n in 0..600 {
            // Every seventh key is new, so that each segment keeps something.
            let key = if n % 7 == 0 { format!("{round}-{n}") } else { format!("k{n}") };
            apply_put(&store, &key, &value);
            if n % 100 == 0 {
                store.flush().unwrap();
            }
        }
        apply_compact(&store, store.revision()).unwrap();
        compact_fully(&store);
        store.flush().unwrap();
        sizes.push(store.size_bytes());
        let hash = store.hash_kv(0).unwrap();
        drop(store);
        store = open();
        assert_eq!(store.hash_kv(0).unwrap(), hash);
        let response = read(&store, &range("\0", "\0"));
        assert!(response.kvs.iter().all(|kv| kv.value.len() == 500));
        assert_eq!(response.count, 514 + (round + 1) * 86);
    }
    let needed = 1030 * (52 + 5 + 500);
    assert!(sizes[5] < needed * 10 / 7 + 3 * (16 << 10), "{sizes:?} bytes for {needed}");
}

/// A segment that is worn, and as short as it can be, is left alone: frames are padded, and
/// what padding takes is nothing that a copy would give back.
#[test]
fn compaction_comes_to_an_end_whatever_the_lengths() {
    for len in 0..8 {
        let options = StoreOptions { segment_bytes: 200, ..quiet() };
        let store = Store::in_memory(options).unwrap();
        // Of the first segment a few bytes are left, and the next is too long to take them.
        apply_put(&store, "k", &"v".repeat(len));
        for n in 0..6 {
            apply_put(&store, &format!("other-{}", n % 2), &"x".repeat(300));
        }
        apply_compact(&store, store.revision()).unwrap();
        store.flush().unwrap();
        let steps = (0..1000).take_while(|_| store.compact_step().unwrap()).count();
        assert!(steps < 1000, "values of {len} bytes are copied for ever");
    }
}

#[test]
fn waiting_for_compaction_ends_when_it_is_done() {
    let store = Store::in_memory(StoreOptions::default()).unwrap();
    for n in 0..5000 {
        apply_put(&store, &format!("k{}", n % 100), "v");
    }
    apply_compact(&store, store.revision()).unwrap();
    assert!(store.wait_compacted(store.revision(), PATIENCE));
    assert_eq!(
        store.size_in_use_bytes(),
        (0..100).map(|n| 53 + format!("k{n}").len() as u64).sum()
    );
    let quiet = crate::support::store();
    apply_put(&quiet, "k", "1");
    apply_compact(&quiet, 2).unwrap();
    assert!(!quiet.wait_compacted(2, std::time::Duration::from_millis(1)), "nobody does it");
}
