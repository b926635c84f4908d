//! All that a store answers, so that it can be compared with what another says, or the same one
//! after something has happened to it.

use std::ops::ControlFlow;

use kontiki_store::{
    Bytes, Fatal, HashKv, RangeRequest, RangeResponse, RestoreError, Store, StoreError,
};

use super::quiet;

/// An event of history.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    key: Bytes,
    value: Bytes,
    /// Main revision, create revision, version.
    numbers: (i64, i64, i64),
}

/// All that a store answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Truth {
    pub(crate) applied: (u64, u64),
    revision: i64,
    compact_revision: i64,
    /// All keys, at each revision that can be read.
    states: Vec<RangeResponse>,
    history: Vec<Seen>,
    hash: HashKv,
}

impl Truth {
    /// Asks a store everything.
    pub(crate) fn of(store: &Store) -> Result<Self, Fatal> {
        Ok(Self {
            applied: store.applied(),
            revision: store.revision(),
            compact_revision: store.compact_revision(),
            states: states(store)?,
            history: history(store)?,
            hash: store.hash_kv(0).map_err(fatal)?,
        })
    }

    /// All keys, as they are.
    pub(crate) fn newest(&self) -> &RangeResponse {
        self.states.last().expect("a store has a current revision")
    }

    /// Asks one kind of question, and compares the answers. The error is what the store says
    /// of damage; a wrong answer is the end of the test.
    pub(crate) fn check(&self, store: &Store, question: Question) -> Result<(), Fatal> {
        assert_eq!(store.applied(), self.applied);
        match question {
            Question::States => assert_eq!(states(store)?, self.states),
            Question::History => assert_eq!(history(store)?, self.history),
            Question::Hash => assert_eq!(store.hash_kv(0).map_err(fatal)?, self.hash),
            Question::Snapshot => {
                let other = Store::in_memory(quiet()).unwrap();
                copy(store, &other)?;
                assert!(Self::of(&other)? == *self, "what a follower gets is another state");
            }
        }
        Ok(())
    }
}

/// What a store can be asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question {
    States,
    History,
    Hash,
    Snapshot,
}

impl Question {
    pub(crate) const ALL: [Self; 4] = [Self::States, Self::History, Self::Hash, Self::Snapshot];
}

fn fatal(error: StoreError) -> Fatal {
    match error {
        StoreError::Fatal(fatal) => fatal,
        other => panic!("{other:?}"),
    }
}

fn states(store: &Store) -> Result<Vec<RangeResponse>, Fatal> {
    let revisions = store.compact_revision().max(1)..=store.revision();
    let all = |revision| RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        revision,
        ..RangeRequest::default()
    };
    revisions.map(|revision| store.range(&all(revision)).map_err(fatal)).collect()
}

fn history(store: &Store) -> Result<Vec<Seen>, Fatal> {
    let mut seen = Vec::new();
    let scanned = store.scan_events(store.compact_revision(), &mut |event| {
        seen.push(Seen {
            key: Bytes::copy_from_slice(event.key),
            value: Bytes::copy_from_slice(event.value),
            numbers: (event.mod_revision, event.create_revision, event.version),
        });
        ControlFlow::Continue(())
    });
    scanned.map_err(fatal).map(|()| seen)
}

/// Brings the state of one store into another. The error is what the first says of damage.
pub(crate) fn copy(from: &Store, to: &Store) -> Result<(), Fatal> {
    let mut bytes = Vec::new();
    if let Err(error) = from.snapshot()?.write_to(&mut bytes) {
        let inner = error.into_inner().expect("an error of the store");
        return Err(*inner.downcast::<Fatal>().expect("an error of the store"));
    }
    match to.restore(from.applied(), &mut &bytes[..]) {
        Ok(()) => Ok(()),
        Err(RestoreError::Fatal(fatal)) => Err(fatal),
        Err(other) => panic!("a snapshot that was written whole is refused: {other}"),
    }
}
