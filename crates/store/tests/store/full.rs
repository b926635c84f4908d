//! A full disk holds up what is written, and nothing else; a failing one is the end.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use kontiki_disk::{Disk, DiskFile, DiskLock};
use kontiki_store::{Store, StoreOptions};
use parking_lot::Mutex;

use crate::support::{
    apply_compact, apply_put, compact_fully, disk::MemoryDisk, quiet, range, read,
};

const DIR: &str = "/kv";

/// A disk on which no file can be made or written while it is full.
#[derive(Clone, Debug, Default)]
struct Filling {
    disk: MemoryDisk,
    is_full: Arc<AtomicBool>,
    /// What was done to names: removed, or made durable.
    of_names: Arc<Mutex<Vec<&'static str>>>,
}

#[derive(Debug)]
struct FillingFile {
    file: Arc<dyn DiskFile>,
    is_full: Arc<AtomicBool>,
}

fn check(is_full: &AtomicBool) -> io::Result<()> {
    if is_full.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
}

impl Filling {
    fn set_full(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Relaxed);
    }

    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FillingFile { file, is_full: Arc::clone(&self.is_full) })
    }

    fn store(&self) -> Store {
        self.store_with(6000)
    }

    fn store_with(&self, checkpoint_bytes: u64) -> Store {
        let options =
            StoreOptions { value_cache_bytes: 0, segment_bytes: 2000, checkpoint_bytes, ..quiet() };
        Store::open_on(Arc::new(self.clone()), Path::new(DIR), options).unwrap()
    }
}

impl Disk for Filling {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(path).map(|file| self.file(file))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        check(&self.is_full)?;
        self.disk.create(path).map(|file| self.file(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.of_names.lock().push("remove");
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.of_names.lock().push("sync");
        self.disk.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        self.disk.lock(path)
    }
}

impl DiskFile for FillingFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if check(&self.is_full).is_err() {
            // As much as there was room for, which is some.
            self.file.write_at(offset, &bytes[..bytes.len() / 2])?;
        }
        check(&self.is_full)?;
        self.file.write_at(offset, bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

fn put_some(store: &Store, from: usize) {
    for n in from..from + 10 {
        apply_put(store, &format!("key-{n:03}"), &"v".repeat(100));
    }
}

/// Nothing is promised while the disk is full, nothing is refused, and nothing is lost.
#[test]
fn what_waits_for_space_is_written_when_there_is_some() {
    let disk = Filling::default();
    let store = disk.store();
    put_some(&store, 0);
    store.flush().unwrap();
    assert_eq!((store.durable_applied(), store.is_full()), (10, false));

    disk.set_full(true);
    for round in 1..4 {
        // More than a segment takes: one has to be made, too.
        put_some(&store, round * 10);
        store.flush().unwrap();
        assert_eq!((store.durable_applied(), store.is_full()), (10, true));
        assert!(store.check().is_ok());
        let all = read(&store, &range("a", "z"));
        assert_eq!(all.count, i64::try_from(round * 10 + 10).unwrap());
        assert!(all.kvs.iter().all(|kv| kv.value.len() == 100));
    }

    disk.set_full(false);
    store.flush().unwrap();
    assert_eq!((store.durable_applied(), store.is_full()), (40, false));
    let hash = store.hash_kv(0).unwrap();
    drop(store);
    let store = disk.store();
    assert_eq!((store.applied().0, store.hash_kv(0).unwrap()), (40, hash));
}

/// Compaction and checkpoints give up for the time being, and leave nothing behind.
#[test]
fn upkeep_waits_for_space() {
    let disk = Filling::default();
    let store = disk.store();
    for _ in 0..4 {
        put_some(&store, 0);
    }
    apply_compact(&store, store.revision()).unwrap();
    store.flush().unwrap();
    let (size, hash) = (store.size_bytes(), store.hash_kv(0).unwrap());

    disk.set_full(true);
    for _ in 0..100 {
        store.compact_step().unwrap();
    }
    assert_eq!(store.hash_kv(0).unwrap(), hash);
    let names = disk.list(Path::new(DIR)).unwrap();
    let is_left = |name: &PathBuf| name.extension().is_some_and(|kind| kind == "tmp");
    assert!(!names.iter().any(is_left), "{names:?}");

    disk.set_full(false);
    put_some(&store, 0);
    apply_compact(&store, store.revision()).unwrap();
    compact_fully(&store);
    assert!(store.size_bytes() < size, "{} after {size}", store.size_bytes());
}

/// What a full disk has stopped goes on when writes have found room for a while, and nobody is
/// told before that it was done.
#[test]
fn compaction_goes_on_when_there_is_space() {
    let disk = Filling::default();
    let store = disk.store_with(u64::MAX);
    for _ in 0..4 {
        put_some(&store, 0);
    }
    let revision = apply_compact(&store, store.revision()).map(|_| store.revision()).unwrap();
    store.flush().unwrap();
    assert!(store.compact_step().unwrap(), "what is dead is forgotten");
    disk.set_full(true);
    while store.compact_step().unwrap() {}
    assert!(!store.wait_compacted(revision, Duration::ZERO), "the space was not given back");

    disk.set_full(false);
    for _ in 0..10 {
        put_some(&store, 0);
    }
    store.flush().unwrap();
    let size = store.size_bytes();
    while store.compact_step().unwrap() {}
    assert!(store.wait_compacted(revision, Duration::ZERO));
    assert!(store.size_bytes() < size, "{} after {size}", store.size_bytes());
}

/// A process that ends does not wait for a full disk, whoever is waiting.
#[test]
fn nobody_waits_for_space_at_the_end() {
    let disk = Filling::default();
    let options = StoreOptions { pending_bytes_max: 1000, ..StoreOptions::default() };
    let store = Store::open_on(Arc::new(disk.clone()), Path::new(DIR), options).unwrap();
    disk.set_full(true);
    thread::scope(|scope| {
        let writer = scope.spawn(|| put_some(&store, 0));
        while !store.is_full() {
            thread::yield_now();
        }
        assert!(!writer.is_finished(), "it waits for room");
        store.wait_no_more();
        writer.join().unwrap();
    });
    store.finish().unwrap();
    assert_eq!((store.applied().0, store.durable_applied()), (10, 0));
}

/// What an earlier process has renamed may be lost with the power, and what it stands for must
/// be there then.
#[test]
fn names_are_durable_before_others_are_removed_for_them() {
    let disk = Filling::default();
    drop(disk.store());
    let left = Path::new(DIR).join("00000000-0000000000000001-00000000.seg");
    disk.create(&left).unwrap();
    disk.of_names.lock().clear();
    drop(disk.store());
    assert!(disk.open(&left).is_err(), "it is of an epoch that is over");
    assert_eq!(disk.of_names.lock()[..2], ["sync", "remove"]);
}
