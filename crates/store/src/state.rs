//! The state of the machine and the writes that change it. Everything here runs under the one
//! lock of the store, on the thread that applies.

use bytes::Bytes;

use crate::{
    error::{Fatal, StoreError},
    events::{Checkpoint, EventStore},
    index::KeyIndex,
    measure::Measure,
    pending::Pending,
    range_end::Span,
    read::{Selection, fetch_value, key_value, missing},
    record::{Event, Revision, Version},
    request::{CompactRequest, DeleteRangeRequest, PutRequest, RangeRequest, Request},
    response::{
        CompactResponse, DeleteRangeResponse, KeyValue, PutResponse, RangeResponse, Response,
    },
};

/// All that the lock guards.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) index: KeyIndex,
    pub(crate) pending: Pending,
    /// How far the commands in `index` go; the disk is behind by what is pending.
    pub(crate) checkpoint: Checkpoint,
    /// [`ANSWER_BYTES_MAX`](crate::measure::ANSWER_BYTES_MAX), but in tests.
    pub(crate) answer_bytes_max: usize,
}

impl State {
    /// Applies one command.
    ///
    /// A refusal has changed nothing. [`StoreError::Fatal`] may have changed anything: the
    /// caller must let nobody see this state again.
    pub(crate) fn apply(
        &mut self,
        events: &dyn EventStore,
        request: &Request,
    ) -> Result<Response, StoreError> {
        match request {
            Request::Put(put) => {
                check_lease(put)?;
                let is_alive = self.index.get(&put.key).is_some_and(|entry| entry.live().is_some());
                if (put.ignore_value || put.ignore_lease) && !is_alive {
                    return Err(StoreError::KeyNotFound);
                }
                self.write(events, |write| write.put(put)).map(Response::Put)
            }
            Request::DeleteRange(delete) => {
                let mut measure = Measure::new(self, events);
                measure.delete_range(delete)?;
                measure.finish()?;
                self.write(events, |write| write.delete_range(delete)).map(Response::DeleteRange)
            }
            Request::Txn(txn) => {
                let plan = self.plan(events, txn)?;
                self.check_answer(events, Self::path(txn, &plan))?;
                let mut response = self.write(events, |write| write.txn(txn, &plan))?;
                response.revision = self.checkpoint.revision;
                Ok(Response::Txn(response))
            }
            Request::Compact(compact) => self.compact(*compact).map(Response::Compact),
        }
    }

    /// Runs the writes of one command under one revision.
    fn write<T>(
        &mut self,
        events: &dyn EventStore,
        run: impl FnOnce(&mut Write<'_>) -> Result<T, Fatal>,
    ) -> Result<T, StoreError> {
        let mut write =
            Write { main: self.checkpoint.revision + 1, next_sub: 0, state: self, events };
        let result = run(&mut write)?;
        let revision = write.revision();
        self.checkpoint.revision = revision;
        Ok(result)
    }

    fn compact(&mut self, request: CompactRequest) -> Result<CompactResponse, StoreError> {
        let Checkpoint { revision, compact_revision, .. } = self.checkpoint;
        if request.revision <= compact_revision {
            return Err(StoreError::Compacted);
        }
        if revision < request.revision {
            return Err(StoreError::FutureRevision);
        }
        self.checkpoint.compact_revision = request.revision;
        Ok(CompactResponse { revision })
    }
}

/// No lease exists in this version of the store, so every lease is unknown.
pub(crate) fn check_lease(put: &PutRequest) -> Result<(), StoreError> {
    if put.lease == 0 { Ok(()) } else { Err(StoreError::LeaseNotFound) }
}

/// The writes of one command: they share a revision and count their sub revisions.
pub(crate) struct Write<'a> {
    state: &'a mut State,
    events: &'a dyn EventStore,
    /// The revision of the writes, if there are any.
    main: i64,
    next_sub: u32,
}

impl Write<'_> {
    /// The revision that a response shows: the new one after the first write, the current one
    /// before.
    fn revision(&self) -> i64 {
        if self.next_sub == 0 { self.main - 1 } else { self.main }
    }

    /// A read that sees the writes before it. Its revision has been checked.
    pub(crate) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Fatal> {
        let current = self.revision();
        let at = if request.revision <= 0 { current } else { request.revision };
        let mut selection = Selection::new(request, at, current);
        selection.advance(self.state, usize::MAX)?;
        let response = selection.finish(self.events, &mut Vec::new())?;
        // Compaction needs the lock that we hold before it removes anything.
        response.map_err(|gone| missing(gone.0))
    }

    /// A put that has been checked.
    pub(crate) fn put(&mut self, request: &PutRequest) -> Result<PutResponse, Fatal> {
        let prev = if request.prev_kv || request.ignore_value || request.ignore_lease {
            self.newest(&request.key)?
        } else {
            None
        };
        let value = match &prev {
            Some(prev) if request.ignore_value => prev.value.clone(),
            _ => request.value.clone(),
        };
        let lease = match &prev {
            Some(prev) if request.ignore_lease => prev.lease,
            _ => request.lease,
        };
        let at = self.next();
        let version = self.state.index.put(&request.key, at, lease, value.clone());
        self.state.pending.push(&Event { version, key: &request.key, value: &value });
        let prev_kv = prev.filter(|_| request.prev_kv);
        Ok(PutResponse { revision: self.revision(), prev_kv })
    }

    pub(crate) fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Fatal> {
        let mut response = DeleteRangeResponse::default();
        let mut freed = 0;
        let State { index, pending, .. } = &mut *self.state;
        for (key, entry) in index.span_mut(Span::new(&request.key, &request.range_end)) {
            if request.prev_kv
                && let Some(hit) = entry.at(i64::MAX)
            {
                let value = match hit.value {
                    Some(value) => value.clone(),
                    None => fetch_value(pending, self.events, hit.version.at)?,
                };
                response.prev_kvs.push(key_value(key, &hit.version, value));
            }
            if entry.live().is_some() {
                let at = Revision { main: self.main, sub: self.next_sub };
                self.next_sub = next_sub(self.next_sub);
                freed += entry.delete(at);
                let version = Version::tombstone(at);
                pending.push(&Event { version, key, value: &[] });
                response.deleted += 1;
            }
        }
        index.release(freed);
        response.revision = self.revision();
        Ok(response)
    }

    /// The newest version of a key, as this command has left it.
    fn newest(&self, key: &[u8]) -> Result<Option<KeyValue>, Fatal> {
        let Some(hit) = self.state.index.get(key).and_then(|entry| entry.at(i64::MAX)) else {
            return Ok(None);
        };
        let value: Bytes = match hit.value {
            Some(value) => value.clone(),
            None => fetch_value(&self.state.pending, self.events, hit.version.at)?,
        };
        Ok(Some(key_value(key, &hit.version, value)))
    }

    fn next(&mut self) -> Revision {
        let at = Revision { main: self.main, sub: self.next_sub };
        self.next_sub = next_sub(self.next_sub);
        at
    }
}

fn next_sub(sub: u32) -> u32 {
    sub.checked_add(1).expect("memory holds fewer keys than one command could write")
}
