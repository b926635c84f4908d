//! Snapshots: frozen when taken, whole when restored, and nothing in between.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use kontiki_store::{Request, RestoreError, Store, StoreOptions};

use crate::support::{
    self, Ends, apply_compact, apply_put, compact_fully, delete, disk::MemoryDisk, generate,
    model::Model, put, quiet, range, read, rng::Rng,
};

const DIR: &str = "/kv";

fn open(disk: &MemoryDisk) -> Store {
    let options = StoreOptions { value_cache_bytes: 500, segment_bytes: 4000, ..quiet() };
    Store::open_on(Arc::new(disk.clone()), Path::new(DIR), options).unwrap()
}

/// A store after some random commands.
fn filled(disk: &MemoryDisk, seed: u64, commands: usize) -> Store {
    let store = open(disk);
    let mut rng = Rng::new(seed);
    let mut model = Model::new();
    for _ in 0..commands {
        let command = generate::command(&mut rng, model.revision);
        assert_eq!(support::apply(&store, &command), model.apply(&command));
        match rng.below(8) {
            0 => store.flush().unwrap(),
            1 => drop(store.compact_step().unwrap()),
            _ => {}
        }
    }
    store
}

fn written(store: &Store) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.snapshot().unwrap().write_to(&mut bytes).unwrap();
    bytes
}

/// What comes after the snapshot was taken is not in it, be it written, flushed or
/// compacted away.
#[test]
fn a_snapshot_is_frozen_when_it_is_taken() {
    let store = filled(&MemoryDisk::default(), 1, 200);
    let before = written(&store);
    let snapshot = store.snapshot().unwrap();
    let (applied, hash) = (store.applied(), store.hash_kv(0).unwrap());
    for n in 0..50 {
        apply_put(&store, &format!("later-{n}"), "value");
    }
    support::apply(&store, &Request::DeleteRange(delete("\0", "\0"))).unwrap();
    apply_compact(&store, store.revision()).unwrap();
    store.flush().unwrap();
    compact_fully(&store);
    store.flush().unwrap();

    assert_eq!((snapshot.applied(), snapshot.revision()), (applied, hash.revision));
    let mut after = Vec::new();
    snapshot.write_to(&mut after).unwrap();
    assert!(before == after, "the bytes are those of the moment");
    let other = open(&MemoryDisk::default());
    other.restore(applied, &mut &after[..]).unwrap();
    assert_eq!(other.hash_kv(0).unwrap(), hash);
}

/// The store is written to by all means while snapshots of it are.
#[test]
fn snapshots_are_written_beside_writes() {
    let options = StoreOptions {
        flush_interval: std::time::Duration::from_millis(1),
        flush_bytes: 4096,
        ..StoreOptions::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Ends(&is_over);
        scope.spawn(|| {
            for n in 1.. {
                apply_put(&store, &format!("key-{}", n % 97), &format!("value-{n}"));
                if n % 500 == 0 {
                    apply_compact(&store, store.revision() - 100).unwrap();
                }
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..20 {
            let snapshot = store.snapshot().unwrap();
            let mut bytes = Vec::new();
            snapshot.write_to(&mut bytes).unwrap();
            let other = Store::in_memory(quiet()).unwrap();
            other.restore(snapshot.applied(), &mut &bytes[..]).unwrap();
            assert_eq!(other.revision(), snapshot.revision());
            let all = read(&other, &range("\0", "\0"));
            let newest = all.kvs.iter().map(|kv| kv.mod_revision).max();
            assert!(newest.is_none() || newest == Some(snapshot.revision()));
        }
    });
}

/// Pitfall D9: power fails after every single write and sync of a restore. The old state is
/// there or the new one, and `applied` says which.
#[test]
fn a_crash_leaves_the_old_state_or_the_new() {
    let source = filled(&MemoryDisk::default(), 2, 120);
    let (bytes, at, new) = (written(&source), source.applied(), source.hash_kv(0).unwrap());
    let prepare = || {
        let disk = MemoryDisk::default();
        let store = filled(&disk, 3, 40);
        store.flush().unwrap();
        (disk, store)
    };
    let (disk, store) = prepare();
    let (old_at, old) = (store.applied(), store.hash_kv(0).unwrap());
    let calls_before = disk.calls();
    store.restore(at, &mut &bytes[..]).unwrap();
    let calls = disk.calls() - calls_before;
    assert!(10 < calls, "a restore must touch the disk: {calls}");

    let mut rng = Rng::new(5);
    let (mut olds, mut news) = (0, 0);
    for call in 0..=calls {
        let (disk, store) = prepare();
        disk.fail_after(call);
        let restored = store.restore(at, &mut &bytes[..]);
        assert!(restored.is_ok() || call < calls, "{restored:?}");
        if restored.is_err() && store.check().is_ok() {
            assert_eq!(store.hash_kv(0).unwrap(), old, "the old state is still served");
        }
        let after = open(&disk.crash(&mut rng));
        let hash = after.hash_kv(0).unwrap();
        match after.applied() {
            applied if applied == old_at => {
                assert_eq!(hash, old);
                assert!(restored.is_err(), "what was restored is durable");
                olds += 1;
            }
            applied => {
                assert_eq!((applied, hash), (at, new));
                news += 1;
            }
        }
    }
    assert!(0 < olds && 0 < news, "both were seen: {olds} old, {news} new");
}

/// Whatever byte is missing or wrong: an error, and the old state.
#[test]
fn what_is_not_whole_is_refused() {
    let source = filled(&MemoryDisk::default(), 4, 30);
    let (bytes, at) = (written(&source), source.applied());
    let store = Store::in_memory(quiet()).unwrap();
    apply_put(&store, "old", "state");
    let old = store.hash_kv(0).unwrap();
    for end in 0..bytes.len() {
        let refused = store.restore(at, &mut &bytes[..end]);
        assert!(matches!(refused, Err(RestoreError::Truncated)), "{end}: {refused:?}");
    }
    for place in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1 << (place % 8);
        assert!(store.restore(at, &mut &damaged[..]).is_err(), "byte {place}");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(store.restore(at, &mut &longer[..]), Err(RestoreError::Damaged(_))));
    let earlier = (at.0 - 1, at.1);
    assert!(matches!(store.restore(earlier, &mut &bytes[..]), Err(RestoreError::Damaged(_))));
    assert_eq!(store.hash_kv(0).unwrap(), old);
    assert_eq!(store.applied().0, 1);
    store.restore(at, &mut &bytes[..]).unwrap();
}

/// A version or a frame of the future is told from damage.
#[test]
fn a_later_format_is_named() {
    let store = Store::in_memory(quiet()).unwrap();
    apply_put(&store, "k", "v");
    let mut later = written(&store);
    later[8] = 3;
    let refused = store.restore((9, 9), &mut &later[..]);
    assert!(matches!(refused, Err(RestoreError::Version { found: 3 })), "{refused:?}");
    let mut unknown = written(&store);
    unknown[52] = 7;
    let refused = store.restore((9, 9), &mut &unknown[..]).unwrap_err();
    assert_eq!(refused.to_string(), "the snapshot is damaged: a part of it is of an unknown kind");
}

/// Numbers that nothing could be counted on from are refused, whatever their checksum says.
#[test]
fn the_end_of_the_numbers_is_not_believed() {
    const SEGMENT: usize = 53;
    let source = Store::in_memory(quiet()).unwrap();
    apply_put(&source, "k", "v");
    let store = Store::in_memory(quiet()).unwrap();
    for (offset, len) in [(32, 8), (40, 4)] {
        let mut bytes = written(&source);
        let header = &mut bytes[SEGMENT..SEGMENT + 64];
        header[offset..offset + len].fill(0xff);
        let crc = crc32c::crc32c(&header[..60]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
        let refused = store.restore(source.applied(), &mut &bytes[..]).unwrap_err();
        let what = "the snapshot is damaged: the numbers of a segment make no sense";
        assert_eq!(refused.to_string(), what, "at {offset}");
    }
}

/// The error of the one who is written to comes back as it is.
#[test]
fn a_full_disk_under_the_snapshot_is_named() {
    struct Full(usize);
    impl io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let store = filled(&MemoryDisk::default(), 6, 100);
    let len = written(&store).len();
    for room in [0, 60, len - 10] {
        let failed = store.snapshot().unwrap().write_to(&mut Full(room)).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
    }
    store.snapshot().unwrap().write_to(&mut Full(len)).unwrap();
    store.check().unwrap();
}

/// Clients read on while the state is exchanged under them, each in one state or the other.
#[test]
fn reads_run_through_a_restore() {
    let source = open(&MemoryDisk::default());
    for n in 0..300 {
        apply_put(&source, &format!("key-{n:03}"), "new");
    }
    let (bytes, at) = (written(&source), source.applied());
    let store = open(&MemoryDisk::default());
    for n in 0..200 {
        apply_put(&store, &format!("key-{n:03}"), "old");
    }
    store.flush().unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Ends(&is_over);
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let answer = read(&store, &range("\0", "\0"));
                    let expected = if answer.count == 200 { "old" } else { "new" };
                    assert!(answer.count == 200 || answer.count == 300, "{}", answer.count);
                    assert!(answer.kvs.iter().all(|kv| kv.value == expected));
                    store.hash_kv(0).unwrap();
                }
            });
        }
        for _ in 0..5 {
            store.restore(at, &mut &bytes[..]).unwrap();
        }
    });
    // And it is written to as before.
    apply_put(&store, "after", "all");
    assert_eq!(store.applied().0, at.0 + 1);
    support::apply(&source, &Request::Put(put("after", "all"))).unwrap();
    assert_eq!(store.hash_kv(0).unwrap(), source.hash_kv(0).unwrap());
}
