//! What the tests of the store share.

pub(crate) mod disk;
pub(crate) mod generate;
pub(crate) mod model;
pub(crate) mod rng;

use std::time::Duration;

use kontiki_store::{Request, Response, Store, StoreError, StoreOptions};

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

/// Compacts until nothing is left to do.
pub(crate) fn compact_fully(store: &Store) {
    while store.compact_step().unwrap() {}
}

/// Long enough for anything that ends.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
