//! What was deleted stays deleted. Compaction forgets a deletion before it has removed all that
//! was deleted: the deletion may lie in a segment that is worn, and the put in one that is not.
//! Whoever reads the segments then, after a crash or as a snapshot, must not find the put alone.

use std::{ops::ControlFlow, path::Path};

use kontiki_sim::disk::SimDisk;
use kontiki_store::{RangeRequest, Request, RequestOp, Store};

use crate::support::{
    apply_batch, apply_compact, apply_txn, compact_fully, delete, keys, put, quiet, range, read,
    small::{files, open},
    truth::{Truth, copy},
    txn,
};

fn some(letter: &str, from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| format!("{letter}{n}")).collect()
}

/// As many bytes as a tenth of a segment.
fn fill(key: &str) -> Request {
    Request::Put(put(key, &"v".repeat(70)))
}

fn delete_one(key: &str) -> Request {
    Request::DeleteRange(delete(key, ""))
}

/// A store of which the first segment is mostly alive and holds two keys that are deleted; the
/// deletions were in the second, which is worn, and which compaction has copied.
fn compacted(disk: &SimDisk) -> Store {
    let store = open(disk).unwrap();
    apply_batch(&store, &fill, &some("a", 0, 10));
    apply_batch(&store, &delete_one, &some("a", 0, 2));
    apply_batch(&store, &fill, &some("b", 0, 5));
    apply_batch(&store, &delete_one, &some("b", 0, 5));
    apply_batch(&store, &fill, &["a1".to_owned()]);
    apply_compact(&store, store.revision() - 1).unwrap();
    compact_fully(&store);
    store
}

fn is_copy(path: &Path) -> bool {
    !path.display().to_string().ends_with("-00000000.seg")
}

fn is_copied(disk: &SimDisk) -> bool {
    files(disk, "seg").iter().any(|path| is_copy(path))
}

#[test]
fn what_was_deleted_stays_so_after_a_restart() {
    let disk = SimDisk::new();
    let store = compacted(&disk);
    let truth = Truth::of(&store).unwrap();
    drop(store);
    assert!(is_copied(&disk), "{:?}", disk.files());
    let store = open(&disk).unwrap();
    assert_eq!(keys(&read(&store, &range("a0", "a2"))), ["a1"]);
    // Between the deletion and the put that came after it, too.
    let before = RangeRequest { revision: store.revision() - 1, ..range("a0", "a2") };
    assert_eq!(read(&store, &before).count, 0);
    assert!(Truth::of(&store).unwrap() == truth);
}

#[test]
fn what_was_deleted_stays_so_in_a_snapshot() {
    let disk = SimDisk::new();
    let store = compacted(&disk);
    let other = Store::in_memory(quiet()).unwrap();
    copy(&store, &other).unwrap();
    assert!(Truth::of(&other).unwrap() == Truth::of(&store).unwrap());
}

/// A checkpoint from before the deletion knows the key; the segments must know better.
#[test]
fn what_was_deleted_stays_so_beside_an_older_checkpoint() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    apply_batch(&store, &fill, &some("a", 0, 10));
    store.close().unwrap();
    let store = open(&disk).unwrap();
    apply_batch(&store, &delete_one, &some("a", 0, 2));
    apply_batch(&store, &fill, &some("b", 0, 5));
    apply_batch(&store, &delete_one, &some("b", 0, 5));
    apply_compact(&store, store.revision()).unwrap();
    compact_fully(&store);
    let truth = Truth::of(&store).unwrap();
    drop(store);
    assert!(is_copied(&disk) && files(&disk, "ck").len() == 1, "{:?}", disk.files());
    assert!(Truth::of(&open(&disk).unwrap()).unwrap() == truth);
}

/// Of the segments before that of the deletion one is clean, and another is not.
#[test]
fn a_deletion_is_kept_as_long_as_any_older_segment_may_need_it() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    apply_batch(&store, &fill, &some("a", 0, 10));
    apply_batch(&store, &fill, &some("b", 0, 5));
    apply_batch(&store, &fill, &some("c", 0, 5));
    apply_batch(&store, &delete_one, &some("a", 0, 2));
    apply_batch(&store, &fill, &some("d", 0, 5));
    apply_batch(&store, &delete_one, &[some("b", 0, 5), some("d", 0, 4)].concat());
    apply_compact(&store, store.revision()).unwrap();
    compact_fully(&store);
    let truth = Truth::of(&store).unwrap();
    drop(store);
    let copies = files(&disk, "seg").iter().filter(|path| is_copy(path)).count();
    assert_eq!(copies, 2, "that of b and that of the deletions: {:?}", disk.files());
    assert!(Truth::of(&open(&disk).unwrap()).unwrap() == truth);
}

/// A put and the deletion of the same key may share a revision. Of that revision watchers are
/// told what is left of it.
#[test]
fn of_the_compact_revision_watchers_are_told_what_is_kept() {
    let store = crate::support::store();
    let ops = vec![RequestOp::Put(put("k", "v")), RequestOp::DeleteRange(delete("a", "z"))];
    apply_txn(&store, &txn(ops)).unwrap();
    let versions = |revision| {
        let mut versions = Vec::new();
        let scanned = store.scan_events(revision, &mut |event| {
            versions.push(event.version);
            ControlFlow::Continue(())
        });
        scanned.unwrap();
        versions
    };
    assert_eq!(versions(2), [1, 0]);
    apply_compact(&store, 2).unwrap();
    assert_eq!(versions(2), [0]);
    compact_fully(&store);
    assert_eq!(versions(2), [0]);
}

/// Deletions are not kept for ever: when they take much of the space, what they were kept for
/// is removed, and then they are.
#[test]
fn deletions_are_given_back_in_the_end() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    apply_batch(&store, &fill, &some("static", 0, 10));
    apply_batch(&store, &delete_one, &some("static", 0, 2));
    let mut sizes = Vec::new();
    for round in 0..60 {
        let passing = some(&format!("{round:03}-"), 0, 5);
        apply_batch(&store, &fill, &passing);
        apply_batch(&store, &delete_one, &passing);
        apply_compact(&store, store.revision()).unwrap();
        compact_fully(&store);
        sizes.push(store.size_bytes());
        let truth = Truth::of(&store).unwrap();
        let disk = disk.fork();
        disk.kill();
        assert!(Truth::of(&open(&disk).unwrap()).unwrap() == truth, "round {round}");
    }
    // Eight keys of 130 bytes, and a few segments of 700.
    assert!(sizes.iter().all(|size| *size < 5000), "{sizes:?}");
}
