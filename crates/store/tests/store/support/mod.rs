//! What the tests of the store share.

pub(crate) mod disk;
pub(crate) mod generate;
pub(crate) mod model;
pub(crate) mod oracle;
pub(crate) mod rng;
pub(crate) mod small;
pub(crate) mod truth;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use kontiki_store::{
    Bytes, CompactRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest, RangeRequest,
    RangeResponse, Request, RequestOp, Response, Store, StoreError, StoreOptions, TxnRequest,
    TxnResponse,
};

/// A store in which nothing happens by itself.
pub(crate) fn quiet() -> StoreOptions {
    StoreOptions { background: false, ..StoreOptions::default() }
}

/// The name of the variant.
pub(crate) fn refusal(error: &StoreError) -> &'static str {
    match error {
        StoreError::Compacted => "Compacted",
        StoreError::FutureRevision => "FutureRevision",
        StoreError::KeyNotFound => "KeyNotFound",
        StoreError::LeaseNotFound => "LeaseNotFound",
        other => panic!("{other:?}"),
    }
}

/// Applies one command after all others.
pub(crate) fn apply(store: &Store, request: &Request) -> Result<Response, &'static str> {
    let index = store.applied().0 + 1;
    let batch = [(index, 1, request.clone())];
    let mut responses = store.apply(&batch, (index, 1)).unwrap();
    assert_eq!(responses.len(), 1);
    responses.remove(0).map_err(|error| refusal(&error))
}

/// Applies a command for each key, all in one batch, and makes it durable.
pub(crate) fn apply_batch(store: &Store, command: &dyn Fn(&str) -> Request, keys: &[String]) {
    let first = store.applied().0 + 1;
    let commands = (first..).zip(keys).map(|(index, key)| (index, 1, command(key)));
    let batch: Vec<_> = commands.collect();
    store.apply(&batch, (batch.last().unwrap().0, 1)).unwrap();
    store.flush().unwrap();
}

/// Compacts until nothing is left to do.
pub(crate) fn compact_fully(store: &Store) {
    store.flush().unwrap(); // what allows it has to be durable
    while store.compact_step().unwrap() {}
}

/// Tells other threads that a test is over when it goes out of scope: when a test fails, too,
/// which would wait for them for ever otherwise.
pub(crate) struct Ends<'a>(pub(crate) &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Long enough for anything that ends.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A put of `key`.
pub(crate) fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() }
}

/// A deletion of `key`, or of a range.
pub(crate) fn delete(key: &str, range_end: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: bytes(key), range_end: bytes(range_end), prev_kv: false }
}

/// A range over `key`, or from it.
pub(crate) fn range(key: &str, range_end: &str) -> RangeRequest {
    RangeRequest { key: bytes(key), range_end: bytes(range_end), ..RangeRequest::default() }
}

/// A transaction without guards.
pub(crate) fn txn(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

/// The bytes of a text.
pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// An empty store in memory, in which nothing happens by itself.
pub(crate) fn store() -> Store {
    Store::in_memory(quiet()).unwrap()
}

/// Applies a put that succeeds, and returns its revision.
pub(crate) fn apply_put(store: &Store, key: &str, value: &str) -> i64 {
    match apply(store, &Request::Put(put(key, value))) {
        Ok(Response::Put(response)) => response.revision,
        other => panic!("{other:?}"),
    }
}

/// Applies a deletion, and returns its answer.
pub(crate) fn apply_delete(store: &Store, request: DeleteRangeRequest) -> DeleteRangeResponse {
    match apply(store, &Request::DeleteRange(request)) {
        Ok(Response::DeleteRange(response)) => response,
        other => panic!("{other:?}"),
    }
}

/// Applies a transaction.
pub(crate) fn apply_txn(store: &Store, request: &TxnRequest) -> Result<TxnResponse, &'static str> {
    apply(store, &Request::Txn(request.clone())).map(|response| match response {
        Response::Txn(response) => response,
        other => panic!("{other:?}"),
    })
}

/// Compacts at `revision`.
pub(crate) fn apply_compact(store: &Store, revision: i64) -> Result<i64, &'static str> {
    let request = CompactRequest { revision, physical: false };
    apply(store, &Request::Compact(request)).map(|response| match response {
        Response::Compact(response) => response.revision,
        other => panic!("{other:?}"),
    })
}

/// Reads a range that can be read.
pub(crate) fn read(store: &Store, request: &RangeRequest) -> RangeResponse {
    store.range(request).unwrap()
}

/// Why a range cannot be read.
pub(crate) fn read_refusal(store: &Store, request: &RangeRequest) -> &'static str {
    refusal(&store.range(request).unwrap_err())
}

/// The keys of an answer, as text.
pub(crate) fn keys(response: &RangeResponse) -> Vec<String> {
    response.kvs.iter().map(|kv| kv.key.escape_ascii().to_string()).collect()
}
