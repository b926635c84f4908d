//! The state of the machine and the writes that change it. Everything here runs under the one
//! lock of the store, on the thread that applies.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;

use crate::{
    error::{Fatal, StoreError},
    frame::Position,
    index::{Hit, KeyIndex},
    measure::Measure,
    range_end::Span,
    read::{Selection, key_value},
    record::{Event, Revision, Version},
    request::{CompactRequest, DeleteRangeRequest, PutRequest, RangeRequest, Request},
    response::{
        CompactResponse, DeleteRangeResponse, KeyValue, PutResponse, RangeResponse, Response,
    },
    segment::{Place, Segment},
    segments::Segments,
    tail::Tail,
};

/// All that the lock guards.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) index: KeyIndex,
    /// What is not on disk yet.
    pub(crate) tail: Tail,
    /// What is, and how much of it is needed.
    pub(crate) segments: Segments,
    /// How far the commands in `index` go; the disk is behind by what is in `tail`.
    pub(crate) position: Position,
    /// The last frame that is known to be durable.
    pub(crate) durable_frame: u64,
    /// [`ANSWER_BYTES_MAX`](crate::measure::ANSWER_BYTES_MAX), but in tests.
    pub(crate) answer_bytes_max: usize,
}

impl State {
    /// Applies one command.
    ///
    /// A refusal has changed nothing. [`StoreError::Fatal`] may have changed anything: the
    /// caller must let nobody see this state again.
    pub(crate) fn apply(&mut self, request: &Request) -> Result<Response, StoreError> {
        match request {
            Request::Put(put) => {
                check_lease(put)?;
                let is_alive = self.index.get(&put.key).is_some_and(|entry| entry.live().is_some());
                if (put.ignore_value || put.ignore_lease) && !is_alive {
                    return Err(StoreError::KeyNotFound);
                }
                self.write(|write| write.put(put)).map(Response::Put)
            }
            Request::DeleteRange(delete) => {
                let mut measure = Measure::new(self);
                measure.delete_range(delete)?;
                self.write(|write| write.delete_range(delete)).map(Response::DeleteRange)
            }
            Request::Txn(txn) => {
                let plan = self.plan(txn)?;
                self.check_answer(Self::path(txn, &plan))?;
                let mut response = self.write(|write| write.txn(txn, &plan))?;
                response.revision = self.position.revision;
                Ok(Response::Txn(response))
            }
            Request::Compact(compact) => self.compact(*compact).map(Response::Compact),
        }
    }

    /// Runs the writes of one command under one revision.
    fn write<T>(
        &mut self,
        run: impl FnOnce(&mut Write<'_>) -> Result<T, Fatal>,
    ) -> Result<T, StoreError> {
        let mut write = Write { main: self.position.revision + 1, next_sub: 0, state: self };
        let result = run(&mut write)?;
        let revision = write.revision();
        self.position.revision = revision;
        Ok(result)
    }

    fn compact(&mut self, request: CompactRequest) -> Result<CompactResponse, StoreError> {
        let Position { revision, compact_revision, .. } = self.position;
        if request.revision <= compact_revision {
            return Err(StoreError::Compacted);
        }
        if revision < request.revision {
            return Err(StoreError::FutureRevision);
        }
        self.position.compact_revision = request.revision;
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
        selection.finish(&mut Vec::new())
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
        let State { index, tail, .. } = &mut *self.state;
        index.put(&request.key, at, lease, &value, |version| {
            tail.push(&Event { version: *version, key: &request.key, value: &value })
        });
        let prev_kv = prev.filter(|_| request.prev_kv);
        Ok(PutResponse { revision: self.revision(), prev_kv })
    }

    pub(crate) fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Fatal> {
        let mut response = DeleteRangeResponse::default();
        let (mut deleted, mut freed) = (0, 0);
        let State { index, tail, segments, .. } = &mut *self.state;
        for (key, entry) in index.span_mut(Span::new(&request.key, &request.range_end)) {
            if request.prev_kv
                && let Some(hit) = entry.at(i64::MAX)
            {
                response.prev_kvs.push(complete(tail, segments, key, hit)?);
            }
            if entry.live().is_some() {
                let at = Revision { main: self.main, sub: self.next_sub };
                self.next_sub = next_sub(self.next_sub);
                let version = Version::tombstone(at);
                freed += entry.delete(at, tail.push(&Event { version, key, value: &[] }));
                response.deleted += 1;
                deleted += 1;
            }
        }
        index.release(deleted, freed);
        response.revision = self.revision();
        Ok(response)
    }

    /// The newest version of a key, as this command has left it.
    fn newest(&self, key: &[u8]) -> Result<Option<KeyValue>, Fatal> {
        let Some(hit) = self.state.index.get(key).and_then(|entry| entry.at(i64::MAX)) else {
            return Ok(None);
        };
        complete(&self.state.tail, &self.state.segments, key, hit).map(Some)
    }

    fn next(&mut self) -> Revision {
        let at = Revision { main: self.main, sub: self.next_sub };
        self.next_sub = next_sub(self.next_sub);
        at
    }
}

/// What clients see of a version that was found, read from where it is. Under the lock: a record
/// is where the index says.
pub(crate) fn complete(
    tail: &Tail,
    segments: &Segments,
    key: &[u8],
    hit: Hit<'_>,
) -> Result<KeyValue, Fatal> {
    if let (Some(version), Some(value)) = (&hit.newest, hit.value) {
        return Ok(key_value(key, version, Bytes::copy_from_slice(value)));
    }
    let mut buf = Vec::new();
    let event = match tail.find(hit.place)? {
        Some(event) => event,
        None => file_of(segments, hit.place)?.read(hit.place, &mut buf)?,
    };
    Ok(key_value(key, &event.version, Bytes::copy_from_slice(event.value)))
}

/// The file that holds a record.
pub(crate) fn file_of(segments: &Segments, place: Place) -> Result<&Arc<Segment>, Fatal> {
    segments.file(place).ok_or_else(|| Fatal::Corrupt {
        file: PathBuf::new(),
        offset: u64::from(place.offset),
        what: format!("the index points to segment {}, which is not there", place.segment),
    })
}

fn next_sub(sub: u32) -> u32 {
    sub.checked_add(1).expect("memory holds fewer keys than one command could write")
}
