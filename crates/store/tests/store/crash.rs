//! Power failures, failing disks and damaged files.

use std::{path::Path, sync::Arc};

use crate::support::{
    self, apply_put, disk::MemoryDisk, generate, model::Model, put, quiet, range, read, rng::Rng,
};
use kontiki_disk::{Disk, RealDisk};
use kontiki_store::{
    Fatal, OpenError, RangeRequest, Request, Response, Store, StoreError, StoreOptions,
};

const DIR: &str = "/kv";
const FILE: &str = "/kv/00000001-0000000000000001-00000000.seg";

fn open(disk: &MemoryDisk) -> Result<Store, OpenError> {
    let options = StoreOptions {
        value_cache_bytes: 500,
        segment_bytes: 4000,
        checkpoint_bytes: 9000,
        ..quiet()
    };
    Store::open_on(Arc::new(disk.clone()), Path::new(DIR), options)
}

/// Runs commands with flushes and compaction in between, until the disk fails or the end.
/// Returns the last position that was promised to be durable.
fn run(store: &Store, commands: &[Request]) -> u64 {
    let mut rng = Rng::new(9);
    for (position, command) in commands.iter().enumerate() {
        let index = u64::try_from(position).unwrap() + 1;
        let outcome = store.apply(&[(index, 1, command.clone())], (index, 1));
        let outcome = outcome.and_then(|_| match rng.below(5) {
            0 => store.flush(),
            1 => store.compact_step().map(|_| ()),
            _ => Ok(()),
        });
        if outcome.is_err() {
            break;
        }
    }
    store.durable_applied()
}

/// Pitfall D9, etcd #13766: the position in the log and the data are one. Power fails after
/// every single write and sync of a workload; whatever comes back is exactly the state after
/// the command that it claims to be at.
#[test]
fn apply_atomicity_whenever_the_power_fails() {
    let mut rng = Rng::new(3);
    let mut model = Model::new();
    let commands: Vec<Request> = (0..150)
        .map(|_| {
            let command = generate::command(&mut rng, model.revision);
            assert!(model.apply(&command).is_ok() || model.revision > 0);
            command
        })
        .collect();
    let reference = Store::in_memory(quiet()).unwrap();
    let mut hashes = vec![reference.hash_kv(0).unwrap()];
    for command in &commands {
        drop(support::apply(&reference, command));
        hashes.push(reference.hash_kv(0).unwrap());
    }

    let disk = MemoryDisk::default();
    run(&open(&disk).unwrap(), &commands);
    let calls = disk.calls();
    assert!(100 < calls, "the workload must touch the disk: {calls}");
    for call in 0..calls {
        let disk = MemoryDisk::default();
        disk.fail_after(call);
        let durable = open(&disk).map_or(0, |store| run(&store, &commands));
        let store = open(&disk.crash(&mut rng)).unwrap();
        let (applied, _) = store.applied();
        assert!(durable <= applied, "{durable} was promised, {applied} is there");
        let expected = hashes[usize::try_from(applied).unwrap()];
        assert_eq!(store.hash_kv(0).unwrap(), expected, "call {call}, applied {applied}");
    }
}

/// Pitfall D4: after a failed sync nothing is promised and nothing is tried again, even if the
/// disk says that it is well.
#[test]
fn a_failed_sync_closes_the_store_for_good() {
    let disk = MemoryDisk::default();
    let store = open(&disk).unwrap();
    apply_put(&store, "a", "1");
    store.flush().unwrap();
    apply_put(&store, "b", "1");
    disk.fail_after(0);
    assert!(store.flush().is_err());
    disk.mend();
    assert!(store.flush().is_err() && store.check().is_err());
    assert!(store.apply(&[(3, 1, Request::Put(put("c", "1")))], (3, 1)).is_err());
    assert!(matches!(store.range(&range("a", "")), Err(StoreError::Fatal(_))));
    assert_eq!(store.durable_applied(), 1);
    assert!(store.close().is_err());
    let store = open(&disk.crash(&mut Rng::new(1))).unwrap();
    assert_eq!(read(&store, &range("a", "")).count, 1);
}

/// The writer thread meets the error; whoever applies next hears of it.
#[test]
fn an_error_of_the_background_reaches_the_next_apply() {
    let disk = MemoryDisk::default();
    let options =
        StoreOptions { flush_interval: std::time::Duration::from_millis(1), ..Default::default() };
    let store = Store::open_on(Arc::new(disk.clone()), Path::new(DIR), options).unwrap();
    disk.fail_after(0);
    let outcome = (1..100_000).find_map(|index| {
        let batch = [(index, 1, Request::Put(put("k", "v")))];
        store.apply(&batch, (index, 1)).err()
    });
    assert!(outcome.is_some());
    assert_eq!(store.durable_applied(), 0);
}

/// Every bit of a record is covered: damage is found when the store opens, or when the record
/// is read, and said to be in which file and where.
#[test]
fn a_flipped_bit_in_an_event_is_never_served() {
    let disk = MemoryDisk::default();
    let store = open(&disk).unwrap();
    apply_put(&store, "key-of-the-record", "value-of-the-record");
    store.close().unwrap();
    let file = disk.bytes(Path::new(FILE));
    let needle = b"key-of-the-record";
    let places: Vec<usize> =
        (0..file.len() - needle.len()).filter(|at| file[*at..].starts_with(needle)).collect();
    let is_refused_with = |byte: usize, bit: usize| {
        disk.flip(Path::new(FILE), byte, bit);
        let is_refused = match open(&disk) {
            Err(OpenError::Damaged { .. }) => true,
            Err(other) => panic!("{other:?}"),
            // A start reads what a checkpoint does not have; this is found when it is read.
            Ok(store) => match store.range(&range("key-of-the-record", "")) {
                Err(StoreError::Fatal(Fatal::Corrupt { file, offset, .. })) => {
                    assert_eq!(file, Path::new(FILE));
                    assert!(0 < offset && store.check().is_err());
                    true
                }
                other => panic!("bit {bit} of byte {byte} was served: {other:?}"),
            },
        };
        disk.flip(Path::new(FILE), byte, bit);
        is_refused
    };
    let len = 52 + needle.len() + "value-of-the-record".len();
    let mut in_use = 0;
    for place in places {
        let start = place - 52;
        // There may be copies of the page that are not in use any more.
        if is_refused_with(place, 0) {
            in_use += 1;
            for bit in 0..len * 8 {
                assert!(is_refused_with(start + bit / 8, bit % 8), "bit {bit} of the record");
            }
        }
    }
    assert_eq!(in_use, 1);
}

/// A whole file is lost, and what is left looks sound.
#[test]
fn lost_files_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { segment_bytes: 300, ..quiet() };
    let fill = || {
        let store = Store::open(dir.path(), options.clone()).unwrap();
        for n in 0..12 {
            apply_put(&store, &format!("k{n}"), "v");
            store.flush().unwrap();
        }
        store.close().unwrap();
    };
    fill();
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    let segments: Vec<_> =
        names.iter().filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
    assert!(3 < segments.len(), "{names:?}");
    for path in segments {
        let aside = path.with_extension("aside");
        std::fs::rename(path, &aside).unwrap();
        let opened = Store::open(dir.path(), options.clone());
        assert!(matches!(opened, Err(OpenError::Damaged { .. })), "{path:?}");
        std::fs::copy(&aside, path).unwrap();
        let file = RealDisk.open(path).unwrap();
        file.set_len(file.len().unwrap() - 8).unwrap();
        let opened = Store::open(dir.path(), options.clone());
        assert!(matches!(opened, Err(OpenError::Damaged { .. })), "{path:?} cut");
        std::fs::rename(&aside, path).unwrap();
    }
    Store::open(dir.path(), options).unwrap();
}

#[test]
fn a_store_is_open_once() {
    let disk = MemoryDisk::default();
    let store = open(&disk).unwrap();
    assert!(matches!(open(&disk), Err(OpenError::Locked { .. })));
    drop(store);
    assert!(open(&disk).is_ok());
}

/// Pitfall D5: the name of the file is durable before anything in it is promised.
#[test]
fn a_new_store_survives_the_first_crash() {
    let disk = MemoryDisk::default();
    let store = open(&disk).unwrap();
    apply_put(&store, "k", "v");
    store.flush().unwrap();
    for seed in 0..20 {
        let store = open(&disk.crash(&mut Rng::new(seed))).unwrap();
        assert_eq!(store.applied(), (1, 1));
        assert_eq!(read(&store, &range("k", "")).count, 1);
    }
}

/// A crash while the store is being made leaves nothing that would be taken for one.
#[test]
fn a_store_that_was_never_finished_is_made_again() {
    let reference = MemoryDisk::default();
    drop(open(&reference).unwrap());
    for call in 0..reference.calls() {
        let disk = MemoryDisk::default();
        disk.fail_after(call);
        drop(open(&disk));
        for seed in 0..4 {
            let after = disk.crash(&mut Rng::new(seed));
            let store = open(&after).unwrap();
            assert_eq!((store.applied(), store.revision()), ((0, 0), 1), "call {call}");
            assert_eq!(apply_put(&store, "k", "v"), 2);
        }
    }
}

/// Dropping without closing is the same as a crash of the process: on a real file.
#[test]
fn a_dropped_store_opens_at_what_was_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Store::open(dir.path(), quiet()).unwrap();
    let store = open();
    for n in 0..500 {
        apply_put(&store, &format!("k{n}"), &"v".repeat(100));
        if n == 300 {
            store.flush().unwrap();
        }
    }
    drop(store);
    let store = open();
    assert_eq!((store.applied(), store.durable_applied()), ((301, 1), 301));
    assert_eq!(read(&store, &range("k", "l")).count, 301);
    let again = Request::Put(put("k301", "v"));
    let responses = store.apply(&[(302, 1, again)], (400, 2)).unwrap();
    assert!(matches!(&responses[0], Ok(Response::Put(put)) if put.revision == 303));
    store.close().unwrap();
    let store = open();
    assert_eq!(store.applied(), (400, 2));
    let old = RangeRequest { revision: 100, ..range("k", "l") };
    assert_eq!(read(&store, &old).count, 99);
}
