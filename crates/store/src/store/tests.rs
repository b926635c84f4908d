//! What of the locks is seen from inside only.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Weak,
        atomic::{AtomicBool, AtomicUsize},
    },
};

use kontiki_disk::{DiskFile, DiskLock};

use super::*;
use crate::request::{DeleteRangeRequest, PutRequest};

/// A disk that looks, whenever it is read, at whether a writer could get in.
#[derive(Clone, Debug, Default)]
struct Watched {
    disk: Arc<MemoryDisk>,
    watch: Arc<Watch>,
}

#[derive(Debug, Default)]
struct Watch {
    shared: OnceLock<Weak<Shared>>,
    reads: AtomicUsize,
    /// Reads during which the lock was taken.
    locked: AtomicUsize,
    /// Whether zeros are all that is found any more.
    is_lost: AtomicBool,
    /// Whether the next read under the lock is to find that compaction waits for it.
    is_overtaken: AtomicBool,
}

#[derive(Debug)]
struct WatchedFile {
    file: Arc<dyn DiskFile>,
    watch: Arc<Watch>,
}

impl Watched {
    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(WatchedFile { file, watch: Arc::clone(&self.watch) })
    }
}

impl Disk for Watched {
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
        self.disk.create(path).map(|file| self.file(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        self.disk.lock(path)
    }
}

impl DiskFile for WatchedFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if let Some(shared) = self.watch.shared.get().and_then(Weak::upgrade) {
            self.watch.reads.fetch_add(1, Ordering::Relaxed);
            if shared.state.try_write().is_none() {
                self.watch.locked.fetch_add(1, Ordering::Relaxed);
            }
        }
        if self.watch.is_overtaken.swap(false, Ordering::Relaxed) {
            overtake(&self.watch);
        }
        if self.watch.is_lost.load(Ordering::Relaxed) {
            buf.fill(0);
            return Ok(());
        }
        self.file.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
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

/// Compacts at the current revision, as soon as the lock is free, and before anybody else.
fn overtake(watch: &Watch) {
    let shared = watch.shared.get().and_then(Weak::upgrade).unwrap();
    let compacted = Arc::clone(&shared);
    let compact = move || {
        let mut state = compacted.state.write();
        state.position.compact_revision = state.position.revision;
    };
    drop(std::thread::Builder::new().spawn(compact).unwrap());
    while shared.state.try_read().is_some() {
        std::thread::yield_now(); // nobody waits yet
    }
}

struct Probe {
    store: Store,
    watch: Arc<Watch>,
}

/// A store of one key, whose value is not in memory, and of answers up to 400 bytes.
fn cold_store() -> Probe {
    store_with(0)
}

fn store_with(value_cache_bytes: usize) -> Probe {
    let disk = Watched::default();
    let watch = Arc::clone(&disk.watch);
    let options = StoreOptions { background: false, value_cache_bytes, ..StoreOptions::default() };
    let store = Store::open_on(Arc::new(disk), Path::new("/kv"), options).unwrap();
    watch.shared.set(Arc::downgrade(&store.shared())).unwrap();
    store.shared().state.write().answer_bytes_max = 400;
    let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
    store.apply(&[(1, 1, Request::Put(put))], (1, 1)).unwrap();
    store.flush().unwrap();
    Probe { store, watch }
}

fn of_the_key() -> RangeRequest {
    RangeRequest { key: "k".into(), ..RangeRequest::default() }
}

/// A writer that had to wait for the disk of a reader would hold up all others.
#[test]
fn no_lock_is_held_while_values_are_fetched() {
    let probe = cold_store();
    assert_eq!(probe.store.range(&of_the_key()).unwrap().kvs[0].value, "v");
    let txn = TxnRequest { success: vec![RequestOp::Range(of_the_key())], ..TxnRequest::default() };
    assert_eq!(probe.store.txn_read(&txn).unwrap().responses.len(), 1);
    assert_eq!(probe.watch.reads.load(Ordering::Relaxed), 2);
    assert_eq!(probe.watch.locked.load(Ordering::Relaxed), 0);
}

/// A range in steps lets compaction pass. If that takes the revision away, it does not go on
/// with what is left.
#[test]
fn a_read_in_steps_that_compaction_overtakes_is_refused() {
    let probe = cold_store();
    for index in 2..4 {
        let put =
            |key: usize| PutRequest { key: format!("k{key:03}").into(), ..PutRequest::default() };
        let success = (0..STEP_KEYS + 50).map(|key| RequestOp::Put(put(key))).collect();
        let txn = TxnRequest { success, ..TxnRequest::default() };
        probe.store.apply(&[(index, 1, Request::Txn(txn))], (index, 1)).unwrap();
    }
    probe.store.flush().unwrap();
    // Older versions are read under the lock when they are filtered.
    let request = RangeRequest {
        key: "k0".into(),
        range_end: "l".into(),
        revision: 3,
        min_create_revision: 1,
        ..RangeRequest::default()
    };
    assert_eq!(probe.store.range(&request).unwrap().count, 306);
    probe.watch.is_overtaken.store(true, Ordering::Relaxed);
    let refused = probe.store.range(&request);
    assert!(matches!(refused, Err(StoreError::Compacted)), "{refused:?}");
}

/// Pitfall D9: a command that the disk stops halfway is not applied, and what it has done
/// until then gets to no disk.
#[test]
fn a_command_that_fails_halfway_is_neither_applied_nor_written() {
    let probe = cold_store();
    probe.watch.is_lost.store(true, Ordering::Relaxed);
    let put = |key: &'static str, prev_kv| {
        let put = PutRequest { key: key.into(), value: "w".into(), prev_kv, ..Default::default() };
        RequestOp::Put(put)
    };
    let success = vec![put("a", false), put("k", true)];
    let txn = TxnRequest { success, ..TxnRequest::default() };
    assert!(probe.store.apply(&[(2, 1, Request::Txn(txn))], (2, 1)).is_err());
    assert_eq!(probe.store.applied(), (1, 1));
    assert!(probe.store.flush().is_err());
    assert_eq!(probe.store.durable_applied(), 1);
}

/// Pitfall D4: a flush that was on its way when the store failed writes nothing any more.
#[test]
fn a_flush_that_waits_while_the_store_fails_writes_nothing() {
    let probe = cold_store();
    let put = PutRequest { key: "b".into(), value: "v".into(), ..PutRequest::default() };
    probe.store.apply(&[(2, 1, Request::Put(put))], (2, 1)).unwrap();
    let shared = &*probe.store.shared();
    std::thread::scope(|scope| {
        let state = shared.state.write();
        let flushing = scope.spawn(|| shared.flush());
        while shared.flushed.try_lock().is_some() {
            std::thread::yield_now();
        }
        shared.fail(Fatal::unsound(1, "as a test says"));
        drop(state);
        assert!(flushing.join().unwrap().is_err());
    });
    assert_eq!(probe.store.durable_applied(), 1);
}

/// What would take all replicas down is refused by all: wherever the values are, to the byte,
/// and before anything is written.
#[test]
fn an_answer_that_is_too_large_is_refused_before_the_first_write() {
    let all = || DeleteRangeRequest { key: "a".into(), range_end: "z".into(), prev_kv: true };
    let range = || RangeRequest { key: "a".into(), range_end: "z".into(), ..Default::default() };
    let put = |key: &'static str, len: usize| PutRequest {
        key: key.into(),
        value: vec![7; len].into(),
        ..PutRequest::default()
    };
    let txn = |ops: Vec<RequestOp>| {
        let success = [vec![RequestOp::Put(put("c", 1))], ops].concat();
        Request::Txn(TxnRequest { success, ..TxnRequest::default() })
    };
    // Each key counts 129 bytes, the value of "k" one more: 141 are left for that of "b".
    for (len, fits) in [(141, true), (142, false)] {
        for (cache, flushes) in [(0, true), (0, false), (1 << 20, true)] {
            let limited = RangeRequest { limit: 1, ..range() };
            let nested = TxnRequest {
                success: vec![RequestOp::DeleteRange(all())],
                ..TxnRequest::default()
            };
            for request in [
                Request::DeleteRange(all()),
                txn(vec![RequestOp::Range(range())]),
                txn(vec![RequestOp::DeleteRange(all())]),
                txn(vec![RequestOp::Txn(nested)]),
            ] {
                let probe = store_with(cache);
                probe.store.apply(&[(2, 1, Request::Put(put("b", len)))], (2, 1)).unwrap();
                if flushes {
                    probe.store.flush().unwrap();
                }
                let outcome = probe.store.apply(&[(3, 1, request)], (3, 1)).unwrap().remove(0);
                assert_eq!(outcome.is_ok(), fits, "{outcome:?}");
                assert_eq!(probe.store.revision(), if fits { 4 } else { 3 });
                assert!(fits || matches!(outcome, Err(StoreError::TooLarge)));
                assert_eq!(probe.store.applied(), (3, 1));
                // A count, or a few keys of many, are no matter.
                let counted = RangeRequest { count_only: true, ..range() };
                let small = [counted, limited.clone()].map(RequestOp::Range).to_vec();
                assert!(probe.store.apply(&[(4, 1, txn(small))], (4, 1)).unwrap()[0].is_ok());
            }
        }
    }
}

/// What each operation may return is no matter if all of them together return too much.
#[test]
fn the_answers_of_one_transaction_count_together() {
    let probe = cold_store();
    let range = RangeRequest { key: "a".into(), range_end: "z".into(), ..Default::default() };
    for (count, fits) in [(3, true), (4, false)] {
        let mut success = vec![RequestOp::Range(range.clone()); count];
        success.push(RequestOp::Put(PutRequest { key: "~".into(), ..Default::default() }));
        let txn = Request::Txn(TxnRequest { success, ..TxnRequest::default() });
        let index = probe.store.applied().0 + 1;
        let outcome = probe.store.apply(&[(index, 1, txn)], (index, 1)).unwrap().remove(0);
        assert_eq!(outcome.is_ok(), fits);
    }
}

/// The writer of the old state may be at work while a snapshot takes its place. What it writes
/// down then must not bring the old state back at the next start.
#[test]
fn a_state_that_was_replaced_does_not_say_that_it_counts() {
    let source = store_with(0);
    let mut bytes = Vec::new();
    source.store.snapshot().unwrap().write_to(&mut bytes).unwrap();

    let disk = Arc::new(MemoryDisk::default());
    let open = || {
        let options = StoreOptions { background: false, ..StoreOptions::default() };
        Store::open_on(Arc::clone(&disk) as Arc<dyn Disk>, Path::new("/kv"), options).unwrap()
    };
    let store = open();
    let put = PutRequest { key: "old".into(), ..PutRequest::default() };
    store.apply(&[(1, 1, Request::Put(put))], (1, 1)).unwrap();
    let old = store.shared();
    store.restore((9, 2), &mut &bytes[..]).unwrap();
    old.flush().unwrap();
    old.tell(&mut old.flushed.lock()).unwrap();
    drop((old, store));
    assert_eq!(open().applied(), (9, 2));
}
