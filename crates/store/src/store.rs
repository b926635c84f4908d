//! The store: one lock, around it reads, applying, and a thread that brings events to disk.
//!
//! ```text
//!   apply thread ──write lock──► index + pending events ◄──read lock── readers, any thread
//!                                       │      ▲                          │
//!                            blocks     ▼      │ forget        values     ▼
//!                       writer thread ──────────── events on disk ◄───────┘
//! ```
//!
//! [`Store::restore`] exchanges all of it at once for what a snapshot holds: reads that are
//! under way end where they began.
//!
//! Applying touches memory alone. The writer thread takes what is pending every
//! `flush_interval` or `flush_bytes` and commits it in one durable transaction together with
//! the position in the log; until then the replicated log is what keeps it, and
//! [`Store::durable_applied`] says what may be purged there. Compaction runs on the same
//! thread in small steps.
//!
//! Lock order: the turn of the flush, compaction, state. No lock is held while waiting for a
//! client, and the state's never during a write to disk.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use kontiki_disk::{Disk, RealDisk};
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};

use crate::{
    compaction::Compaction,
    error::{Fatal, OpenError, StoreError},
    events::{Checkpoint, EventStore, MemoryEvents},
    index::KeyIndex,
    pending::Pending,
    read::{Fetched, Missing, Selection, missing, readable, readable_in_txn},
    redb_events::RedbEvents,
    request::{RangeRequest, Request, RequestOp, TxnRequest},
    response::{RangeResponse, Response, ResponseOp, TxnResponse},
    state::State,
    writer::{self, Signal},
};

/// How many keys a read looks at before it lets writers pass: about 0.2 ms.
const STEP_KEYS: usize = 1000;

/// How often a read starts again because compaction has overtaken it, before it keeps
/// compaction out. More than one compaction during a read is rare.
const ATTEMPTS: usize = 3;

/// How many fetched values wait to be put back into memory, at most.
const FETCHED_MAX: usize = 4096;

/// What can be set when a store is opened. The defaults suit a server.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Newest values kept in memory, in bytes.
    pub value_cache_bytes: usize,
    /// Pages of the file kept in memory, in bytes.
    pub page_cache_bytes: usize,
    /// Events are written out when they take this many bytes,
    pub flush_bytes: usize,
    /// or when the first of them has waited this long.
    pub flush_interval: Duration,
    /// `apply` waits for the disk when this many bytes are not written out.
    pub pending_bytes_max: usize,
    /// Whether a thread writes events out and compacts. Without it, as a simulator wants it,
    /// nothing happens but in [`Store::flush`] and [`Store::compact_step`].
    pub background: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            value_cache_bytes: 256 << 20,
            page_cache_bytes: 64 << 20,
            flush_bytes: 8 << 20,
            flush_interval: Duration::from_millis(100),
            pending_bytes_max: 64 << 20,
            background: true,
        }
    }
}

/// etcd's data model on disk.
///
/// Dropping it stops its thread and writes nothing: what is not durable is in the replicated
/// log. [`close`](Self::close) writes everything out first.
#[derive(Debug)]
pub struct Store {
    live: RwLock<Live>,
}

/// What a snapshot replaces: the state with its files, and the thread that serves it.
#[derive(Debug)]
struct Live {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the threads share.
pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    pub(crate) events: Box<dyn EventStore>,
    pub(crate) options: StoreOptions,
    /// Held by whoever flushes.
    pub(crate) flushed: Mutex<Checkpoint>,
    /// The last command that is on disk.
    pub(crate) durable_applied: AtomicU64,
    /// Bytes of records on disk and pending.
    pub(crate) record_bytes: AtomicU64,
    pub(crate) compaction: Mutex<Compaction>,
    pub(crate) compacted: Condvar,
    pub(crate) signal: Mutex<Signal>,
    pub(crate) wake: Condvar,
    /// Values that reads had to fetch, to be put back into memory.
    pub(crate) fetched: Mutex<Vec<Fetched>>,
    /// The error that closed the store.
    pub(crate) fatal: OnceLock<Fatal>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("events", &self.events).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in the directory `path`, or makes an empty one.
    ///
    /// What it holds is a consistent state at [`applied`](Self::applied): commands after that
    /// have to be applied again, from the log.
    ///
    /// # Errors
    ///
    /// [`OpenError`], when it is in use, of an unknown format, damaged or unreadable.
    pub fn open(path: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(RealDisk), path, options)
    }

    /// As [`open`](Self::open), on any disk.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        options: StoreOptions,
    ) -> Result<Self, OpenError> {
        let (events, checkpoint) = RedbEvents::open(disk, path, options.page_cache_bytes)?;
        let (shared, compaction) = crate::open::recover(Box::new(events), checkpoint, options)
            .map_err(|source| OpenError::Damaged { path: path.to_owned(), source })?;
        *shared.compaction.lock() = compaction;
        Self::start(shared)
            .map_err(|error| OpenError::Io { path: path.to_owned(), source: Arc::new(error) })
    }

    /// An empty store that lives and dies with the process. It still flushes, so that
    /// everything but the disk is as in a real one.
    ///
    /// # Errors
    ///
    /// When the operating system gives no thread.
    pub fn in_memory(options: StoreOptions) -> std::io::Result<Self> {
        let state = State {
            index: KeyIndex::new(options.value_cache_bytes),
            pending: Pending::default(),
            checkpoint: Checkpoint::default(),
            answer_bytes_max: crate::measure::ANSWER_BYTES_MAX,
        };
        Self::start(Shared::new(Box::new(MemoryEvents::default()), state, 0, options))
    }

    fn start(shared: Shared) -> std::io::Result<Self> {
        Ok(Self { live: RwLock::new(Live::start(shared)?) })
    }

    /// Puts `shared` in the place of all that was.
    pub(crate) fn replace(&self, shared: Shared) -> std::io::Result<()> {
        let new = Live::start(shared)?;
        let mut old = std::mem::replace(&mut *self.live.write(), new);
        old.stop();
        // Nobody compacts it any more, so nobody may wait for that.
        old.shared.compaction.lock().give_up();
        old.shared.compacted.notify_all();
        Ok(())
    }

    /// Applies commands that follow each other in the log. `upto` is the index and term of
    /// the last one, or of a later entry that holds no command.
    ///
    /// Waits for the disk only when too much is pending, and after a compaction, which has to
    /// be on disk before it is answered.
    ///
    /// # Errors
    ///
    /// [`Fatal`] when the disk has failed. Refusals are not errors but answers.
    ///
    /// # Panics
    ///
    /// If a command was applied before: the caller has lost its place in the log, and to go on
    /// would corrupt the data.
    pub fn apply(
        &self,
        batch: &[(u64, u64, Request)],
        upto: (u64, u64),
    ) -> Result<Vec<Result<Response, StoreError>>, Fatal> {
        let shared = self.shared();
        shared.check()?;
        if shared.options.pending_bytes_max < shared.state.read().pending.bytes() {
            shared.flush()?;
        }
        let mut responses = Vec::with_capacity(batch.len());
        let mut state = shared.state.write();
        shared.check()?;
        let (compacted_before, bytes_before) =
            (state.checkpoint.compact_revision, state.pending.bytes());
        for (index, term, request) in batch {
            state.assert_next(*index);
            match state.apply(&*shared.events, request) {
                Err(StoreError::Fatal(fatal)) => return Err(shared.fail(fatal)),
                response => responses.push(response),
            }
            // Not before: a position never stands for half a command.
            state.set_applied(*index, *term);
        }
        state.assert_upto(upto.0);
        state.set_applied(upto.0, upto.1);
        state.index.evict();
        let has_compacted = compacted_before < state.checkpoint.compact_revision;
        let bytes = state.pending.bytes();
        drop(state);
        shared.count_records(bytes - bytes_before);
        if has_compacted {
            shared.flush()?;
        }
        shared.wake_writer(bytes);
        Ok(responses)
    }

    /// Answers a range from the current state; the caller has seen to it that the state is as
    /// new as the client may ask.
    ///
    /// # Errors
    ///
    /// [`StoreError::Compacted`], [`StoreError::FutureRevision`], or that the disk failed.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, StoreError> {
        self.attempt(|shared, is_last| {
            let mut state = shared.read_state()?;
            let checkpoint = state.checkpoint;
            let at = readable(request.revision, &checkpoint)?;
            let mut selection = Selection::new(request, at, checkpoint.revision);
            let step = if is_last { usize::MAX } else { STEP_KEYS };
            while !selection.advance(&state, step)? {
                RwLockReadGuard::unlock_fair(state);
                state = shared.state.read();
                if at < state.checkpoint.compact_revision {
                    return Ok(None);
                }
            }
            let held = keep_if(is_last, state);
            shared.finish(selection, held.as_deref())
        })
    }

    /// Answers a transaction that is [read-only](TxnRequest::is_read_only), all of it at one
    /// revision.
    ///
    /// # Errors
    ///
    /// As [`range`](Self::range).
    ///
    /// # Panics
    ///
    /// If the transaction could write: that has to go through the log.
    pub fn txn_read(&self, txn: &TxnRequest) -> Result<TxnResponse, StoreError> {
        assert!(txn.is_read_only(), "a transaction that could write was sent to a read");
        self.attempt(|shared, is_last| {
            let state = shared.read_state()?;
            let plan = state.plan(&*shared.events, txn)?;
            let mut selections = Vec::new();
            for op in plan.branch(txn) {
                let RequestOp::Range(range) = op else { unreachable!("read-only: see above") };
                let at = readable_in_txn(range.revision, &state.checkpoint)?;
                let mut selection = Selection::new(range, at, state.checkpoint.revision);
                selection.advance(&state, usize::MAX)?;
                selections.push(selection);
            }
            let revision = state.checkpoint.revision;
            let held = keep_if(is_last, state);
            let mut responses = Vec::with_capacity(selections.len());
            for selection in selections {
                let Some(response) = shared.finish(selection, held.as_deref())? else {
                    return Ok(None);
                };
                responses.push(ResponseOp::Range(response));
            }
            Ok(Some(TxnResponse { revision, succeeded: plan.succeeded, responses }))
        })
    }

    /// Runs a read until compaction does not get in its way; the last time with the lock held
    /// throughout, so that it cannot.
    fn attempt<T>(
        &self,
        read: impl Fn(&Shared, bool) -> Result<Option<T>, StoreError>,
    ) -> Result<T, StoreError> {
        let shared = self.shared();
        for _ in 0..ATTEMPTS {
            if let Some(response) = read(&shared, false)? {
                return Ok(response);
            }
        }
        let response = read(&shared, true)?;
        response.ok_or_else(|| missing(crate::record::Revision::default()).into())
    }

    /// Index and term of the last entry of the log that is applied.
    #[must_use]
    pub fn applied(&self) -> (u64, u64) {
        let checkpoint = self.shared().state.read().checkpoint;
        (checkpoint.applied_index, checkpoint.applied_term)
    }

    /// The last entry whose effects survive a power failure. The log may be purged up to here
    /// and no further.
    #[must_use]
    pub fn durable_applied(&self) -> u64 {
        self.shared().durable_applied.load(Ordering::Acquire)
    }

    /// The current revision. An empty store has 1, as in etcd.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.shared().state.read().checkpoint.revision
    }

    /// The first revision that is readable, or -1 if nothing was ever compacted, as in etcd.
    #[must_use]
    pub fn compact_revision(&self) -> i64 {
        self.shared().state.read().checkpoint.compact_revision
    }

    /// Bytes taken on disk.
    ///
    /// # Errors
    ///
    /// When the file system does not tell.
    pub fn size_bytes(&self) -> Result<u64, Fatal> {
        self.shared().events.size_bytes()
    }

    /// Bytes of the events that are kept, on disk or on the way there.
    #[must_use]
    pub fn size_in_use_bytes(&self) -> u64 {
        self.shared().record_bytes.load(Ordering::Relaxed)
    }

    /// Whether the store still works: the error that closed it, if not. The writer thread
    /// meets errors of which no caller hears until it applies something.
    ///
    /// # Errors
    ///
    /// What went wrong, once and for all.
    pub fn check(&self) -> Result<(), Fatal> {
        self.shared().check()
    }

    /// Makes everything that is applied durable.
    ///
    /// # Errors
    ///
    /// [`Fatal`] when the disk has failed.
    pub fn flush(&self) -> Result<(), Fatal> {
        self.shared().flush()
    }

    /// Does a little of the compaction that is due. Returns whether there was anything to do.
    /// For stores without a thread of their own.
    ///
    /// # Errors
    ///
    /// [`Fatal`] when the disk has failed.
    pub fn compact_step(&self) -> Result<bool, Fatal> {
        self.shared().compact_step()
    }

    /// Waits until what the compaction at `revision` made superfluous is removed, for at most
    /// `timeout`. Returns whether it is. Blocks; not for an async task.
    #[must_use]
    pub fn wait_compacted(&self, revision: i64, timeout: Duration) -> bool {
        let shared = self.shared();
        let mut compaction = shared.compaction.lock();
        let waited = shared.compacted.wait_while_for(
            &mut compaction,
            |compaction| compaction.done() < revision,
            timeout,
        );
        !waited.timed_out()
    }

    /// Stops the thread, makes everything durable and closes the file.
    ///
    /// # Errors
    ///
    /// [`Fatal`] when the disk has failed.
    pub fn close(mut self) -> Result<(), Fatal> {
        self.live.get_mut().stop();
        self.shared().flush()
    }

    /// The state of the moment. Whoever keeps it reads on from it after a restore.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.live.read().shared)
    }
}

impl Live {
    fn start(shared: Shared) -> std::io::Result<Self> {
        let shared = Arc::new(shared);
        let background = shared.options.background;
        let thread = background.then(|| writer::spawn(Arc::clone(&shared))).transpose()?;
        Ok(Self { shared, thread })
    }

    fn stop(&mut self) {
        self.shared.signal.lock().is_stopping = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            assert!(outcome.is_ok(), "the writer thread has panicked");
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.live.get_mut().stop();
        }
    }
}

/// Keeps the lock, or gives it back at once: an `Option` that is none would not.
fn keep_if(is_kept: bool, state: RwLockReadGuard<'_, State>) -> Option<RwLockReadGuard<'_, State>> {
    is_kept.then_some(state)
}

impl Shared {
    pub(crate) fn new(
        events: Box<dyn EventStore>,
        state: State,
        record_bytes: u64,
        options: StoreOptions,
    ) -> Self {
        let checkpoint = state.checkpoint;
        Self {
            state: RwLock::new(state),
            events,
            options,
            flushed: Mutex::new(checkpoint),
            durable_applied: AtomicU64::new(checkpoint.applied_index),
            record_bytes: AtomicU64::new(record_bytes),
            compaction: Mutex::new(Compaction::idle(checkpoint.compact_revision)),
            compacted: Condvar::new(),
            signal: Mutex::new(Signal::default()),
            wake: Condvar::new(),
            fetched: Mutex::new(Vec::new()),
            fatal: OnceLock::new(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), Fatal> {
        self.fatal.get().map_or(Ok(()), |fatal| Err(fatal.clone()))
    }

    /// Takes the lock for reading, unless an error has left the state half changed.
    pub(crate) fn read_state(&self) -> Result<RwLockReadGuard<'_, State>, Fatal> {
        let state = self.state.read();
        // Asked under the lock: whoever fails, fails under it.
        self.check().map(|()| state)
    }

    /// Closes the store for good. Returns the error that did, the first one.
    pub(crate) fn fail(&self, fatal: Fatal) -> Fatal {
        self.fatal.get_or_init(|| fatal).clone()
    }

    fn count_records(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).expect("a length fits in 64 bits");
        self.record_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Completes a range, or none if compaction has taken part of it. `held` is the state if
    /// the caller keeps its lock: to ask for that again would wait for ever for a writer that
    /// waits for the caller.
    fn finish(
        &self,
        selection: Selection<'_>,
        held: Option<&State>,
    ) -> Result<Option<RangeResponse>, StoreError> {
        let at = selection.at();
        let mut fetched = Vec::new();
        let response = selection.finish(&*self.events, &mut fetched)?;
        self.keep_fetched(fetched);
        match response {
            Ok(response) => Ok(Some(response)),
            Err(Missing(event)) => {
                // Only compaction removes, and only what nobody may read any more.
                let compact_revision = match held {
                    Some(state) => state.checkpoint.compact_revision,
                    None => self.state.read().checkpoint.compact_revision,
                };
                if at < compact_revision { Ok(None) } else { Err(self.fail(missing(event)).into()) }
            }
        }
    }

    fn keep_fetched(&self, values: Vec<Fetched>) {
        if values.is_empty() {
            return;
        }
        let mut fetched = self.fetched.lock();
        let room = FETCHED_MAX - fetched.len();
        fetched.extend(values.into_iter().take(room));
        drop(fetched);
        self.wake_writer(0);
    }
}

impl State {
    fn assert_next(&self, index: u64) {
        let last = self.checkpoint.applied_index;
        assert!(last < index, "command {index} after {last} has been applied");
    }

    fn assert_upto(&self, index: u64) {
        let last = self.checkpoint.applied_index;
        assert!(last <= index, "a batch up to {index} holds command {last}");
    }

    fn set_applied(&mut self, index: u64, term: u64) {
        self.checkpoint.applied_index = index;
        self.checkpoint.applied_term = term;
    }
}

#[cfg(test)]
mod tests;
