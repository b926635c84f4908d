//! What of the locks is seen from inside only.

use std::sync::{
    Weak,
    atomic::{AtomicBool, AtomicUsize},
};

use super::*;
use crate::{
    events::{Each, EventView, Found, Removed},
    record::{Block, Revision},
    request::{DeleteRangeRequest, PutRequest},
};

/// Events that look, whenever they are read, at whether a writer could get in.
#[derive(Debug, Default)]
struct Watched {
    events: MemoryEvents,
    shared: Arc<OnceLock<Weak<Shared>>>,
    reads: Arc<AtomicUsize>,
    /// Reads during which the lock was taken.
    locked: Arc<AtomicUsize>,
    /// Whether nothing is found any more.
    is_lost: Arc<AtomicBool>,
}

impl EventStore for Watched {
    fn write(&self, blocks: &[Arc<Block>], checkpoint: &Checkpoint) -> Result<(), Fatal> {
        self.events.write(blocks, checkpoint)
    }

    fn read(&self, wanted: &[Revision], found: &mut Found<'_>) -> Result<(), Fatal> {
        let shared = self.shared.get().unwrap().upgrade().unwrap();
        self.reads.fetch_add(1, Ordering::Relaxed);
        if shared.state.try_write().is_none() {
            self.locked.fetch_add(1, Ordering::Relaxed);
        }
        if self.is_lost.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.events.read(wanted, found)
    }

    fn scan(
        &self,
        from: Revision,
        blocks_max: usize,
        each: &mut Each<'_>,
    ) -> Result<Option<Revision>, Fatal> {
        self.events.scan(from, blocks_max, each)
    }

    fn remove(&self, dead: &[Revision], blocks_max: usize) -> Result<Removed, Fatal> {
        self.events.remove(dead, blocks_max)
    }

    fn view(&self) -> Result<Box<dyn EventView>, Fatal> {
        self.events.view()
    }

    fn beside(&self) -> Result<Box<dyn EventStore>, Fatal> {
        self.events.beside()
    }

    fn take_over(&self) -> Result<(), Fatal> {
        self.events.take_over()
    }

    fn record_bytes(&self) -> Result<u64, Fatal> {
        self.events.record_bytes()
    }

    fn size_bytes(&self) -> Result<u64, Fatal> {
        self.events.size_bytes()
    }
}

struct Probe {
    store: Store,
    reads: Arc<AtomicUsize>,
    locked: Arc<AtomicUsize>,
    is_lost: Arc<AtomicBool>,
}

/// A store of one key, whose value is not in memory, and of answers up to 400 bytes.
fn cold_store() -> Probe {
    store_with(0)
}

fn store_with(value_cache_bytes: usize) -> Probe {
    let events = Watched::default();
    let (known, reads) = (Arc::clone(&events.shared), Arc::clone(&events.reads));
    let (locked, is_lost) = (Arc::clone(&events.locked), Arc::clone(&events.is_lost));
    let state = State {
        index: KeyIndex::new(value_cache_bytes),
        pending: Pending::default(),
        checkpoint: Checkpoint::default(),
        answer_bytes_max: 400,
    };
    let options = StoreOptions { background: false, ..StoreOptions::default() };
    let store = Store::start(Shared::new(Box::new(events), state, 0, options)).unwrap();
    known.set(Arc::downgrade(&store.shared())).unwrap();
    let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
    store.apply(&[(1, 1, Request::Put(put))], (1, 1)).unwrap();
    store.flush().unwrap();
    Probe { store, reads, locked, is_lost }
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
    assert_eq!(probe.reads.load(Ordering::Relaxed), 2);
    assert_eq!(probe.locked.load(Ordering::Relaxed), 0);
}

/// The last attempt keeps the lock. When it finds an event missing it must not ask for the
/// lock again: behind a writer that waits it would never get it.
#[test]
fn a_missing_event_is_reported_while_a_writer_waits_for_the_lock() {
    let probe = cold_store();
    probe.is_lost.store(true, Ordering::Relaxed);
    let shared = &*probe.store.shared();
    let request = of_the_key();
    std::thread::scope(|scope| {
        let state = shared.state.read();
        let mut selection = Selection::new(&request, 2, 2);
        assert!(selection.advance(&state, usize::MAX).unwrap());
        scope.spawn(|| drop(shared.state.write()));
        while shared.state.try_read().is_some() {
            std::thread::yield_now();
        }
        let outcome = shared.finish(selection, Some(&state));
        assert!(matches!(outcome, Err(StoreError::Fatal(Fatal::Corrupt { revision: 2, .. }))));
    });
}

/// Pitfall D9: a command that the disk stops halfway is not applied, and what it has done
/// until then gets to no disk.
#[test]
fn a_command_that_fails_halfway_is_neither_applied_nor_written() {
    let probe = cold_store();
    probe.is_lost.store(true, Ordering::Relaxed);
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
        shared.fail(missing(Revision::default()));
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
