//! The store: one lock, around it reads, applying, and a thread that brings frames to disk.
//!
//! ```text
//!   apply thread ──write lock──► index + tail ◄──read lock── readers, any thread
//!                                       │  ▲                     │
//!                            chunks     ▼  │ forget     records  ▼
//!                       writer thread ──────────► segments ◄─────┘
//! ```
//!
//! [`Store::restore`] exchanges all of it at once for what a snapshot holds: reads that are
//! under way end where they began.
//!
//! Applying touches memory alone: each batch becomes one frame at the end of history, the
//! position in the log with it. The writer thread takes what is there every `flush_interval` or
//! `flush_bytes`, writes it and syncs it; until then the replicated log is what keeps it, and
//! [`Store::durable_applied`] says what may be purged there. Checkpoints of the index and
//! compaction run on the same thread in small steps.
//!
//! Lock order: the turn of the flush, checkpoint, compaction, state. No lock is held while
//! waiting for a client, and the state's never during a write to disk.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use kontiki_disk::{Disk, RealDisk};
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{
    checkpoint::Checkpointing,
    compaction::Compaction,
    error::{Fatal, OpenError, StoreError},
    files::{Files, STATE_BYTES},
    memory::MemoryDisk,
    open::Opened,
    read::{Fetched, Selection, readable, readable_in_txn},
    request::{RangeRequest, Request, RequestOp, TxnRequest},
    response::{RangeResponse, Response, ResponseOp, TxnResponse},
    state::State,
    writer::{self, Flushed, Signal},
};

/// How many keys a read looks at before it lets writers pass: about 50 µs.
const STEP_KEYS: usize = 256;

/// How long `apply` waits for room before it looks again whether the store still works.
const ROOM_INTERVAL: Duration = Duration::from_millis(50);

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
    /// Events are written out when they take this many bytes,
    pub flush_bytes: usize,
    /// or when the first of them has waited this long.
    pub flush_interval: Duration,
    /// `apply` waits for the disk when this many bytes are not written out.
    pub pending_bytes_max: usize,
    /// A file of events is sealed when it has this many bytes. At most 1 GiB.
    pub segment_bytes: u64,
    /// The index is written to disk whenever so many bytes of events have been written: a
    /// start reads the last of these checkpoints, and the events after it.
    pub checkpoint_bytes: u64,
    /// Mixed into the checksums of a new store, so that nothing that a client stores can pass
    /// for a record of ours. By default it is left to chance.
    pub secret: u64,
    /// Whether a thread writes events out and compacts. Without it, as a simulator wants it,
    /// nothing happens but in [`Store::flush`] and [`Store::compact_step`].
    pub background: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            value_cache_bytes: 256 << 20,
            flush_bytes: 8 << 20,
            flush_interval: Duration::from_millis(100),
            pending_bytes_max: 64 << 20,
            segment_bytes: 64 << 20,
            checkpoint_bytes: 256 << 20,
            secret: chance(),
            background: true,
        }
    }
}

/// A number that nobody can guess.
fn chance() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(())
}

/// etcd's data model on disk.
///
/// Dropping it stops its thread and writes nothing: what is not durable is in the replicated
/// log. [`close`](Self::close) writes everything out first.
#[derive(Debug)]
pub struct Store {
    live: RwLock<Live>,
}

/// The end of a file that a crash had torn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Which file.
    pub path: PathBuf,
    /// Where it ends now.
    pub offset: u64,
    /// How many bytes were cut there.
    pub bytes: u64,
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
    pub(crate) files: Files,
    pub(crate) options: StoreOptions,
    /// Held by whoever flushes.
    pub(crate) flushed: Mutex<Flushed>,
    /// The last command that is on disk.
    pub(crate) durable_applied: AtomicU64,
    /// The disk was full when it was written to last.
    pub(crate) is_full: AtomicBool,
    /// Whether `apply` waits when too much is pending.
    is_patient: AtomicBool,
    torn: Option<Torn>,
    pub(crate) checkpointing: Mutex<Checkpointing>,
    pub(crate) compaction: Mutex<Compaction>,
    pub(crate) compacted: Condvar,
    pub(crate) signal: Mutex<Signal>,
    pub(crate) wake: Condvar,
    /// Something was written out.
    pub(crate) room: Condvar,
    /// Values that reads had to fetch, to be put back into memory.
    pub(crate) fetched: Mutex<Vec<Fetched>>,
    /// The error that closed the store.
    pub(crate) fatal: OnceLock<Fatal>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("files", &self.files).finish_non_exhaustive()
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
        let found = Files::open(disk, path, options.secret)?;
        let opened = crate::open::recover(found, options)?;
        Self::start(opened)
            .map_err(|error| OpenError::Io { path: path.to_owned(), source: Arc::new(error) })
    }

    /// An empty store that lives and dies with the process. It still writes its files, to
    /// memory, so that everything but the disk is as in a real one.
    ///
    /// # Errors
    ///
    /// When the operating system gives no thread.
    pub fn in_memory(options: StoreOptions) -> std::io::Result<Self> {
        let disk = Arc::new(MemoryDisk::default());
        Self::open_on(disk, Path::new("/"), options).map_err(|error| match error {
            OpenError::Io { source, .. } => std::io::Error::other(source),
            other => unreachable!("memory is what it is: {other}"),
        })
    }

    fn start(opened: Opened) -> std::io::Result<Self> {
        Ok(Self { live: RwLock::new(Live::start(opened)?) })
    }

    /// Puts what was opened in the place of all that was.
    pub(crate) fn replace(&self, opened: Opened) -> std::io::Result<()> {
        let new = Live::start(opened)?;
        let mut live = self.live.write();
        let is_patient = live.shared.is_patient.load(Ordering::Acquire);
        new.shared.is_patient.store(is_patient, Ordering::Release);
        let mut old = std::mem::replace(&mut *live, new);
        drop(live);
        old.stop();
        // Nobody compacts it any more, so nobody may wait for that.
        old.shared.compaction.lock().give_up();
        old.shared.compacted.notify_all();
        Ok(())
    }

    /// Applies commands that follow each other in the log. `upto` is the index and term of
    /// the last one, or of a later entry that holds no command.
    ///
    /// Waits for the disk only when too much is pending.
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
        shared.make_room()?;
        let mut responses = Vec::with_capacity(batch.len());
        let mut state = shared.write_state()?;
        state.tail.begin();
        for (index, term, request) in batch {
            state.assert_next(*index);
            match state.apply(request) {
                Err(StoreError::Fatal(fatal)) => return Err(shared.fail(fatal)),
                response => responses.push(response),
            }
            // Not before: a position never stands for half a command.
            state.set_applied(*index, *term);
        }
        state.assert_upto(upto.0);
        state.set_applied(upto.0, upto.1);
        state.end_frame();
        state.index.evict();
        let bytes = state.tail.bytes();
        drop(state);
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
            let position = state.position;
            let at = readable(request.revision, &position)?;
            let mut selection = Selection::new(request, at, position.revision);
            let step = if is_last { usize::MAX } else { STEP_KEYS };
            while !shared.note(selection.advance(&state, step).map_err(StoreError::from))? {
                RwLockReadGuard::unlock_fair(state);
                state = shared.state.read();
                if at < state.position.compact_revision {
                    return Ok(None);
                }
            }
            drop(state);
            shared.finish(selection).map(Some)
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
        let shared = self.shared();
        let (plan, selections, revision) = {
            let state = shared.read_state()?;
            let plan = shared.note(state.plan(txn))?;
            let mut selections = Vec::new();
            for op in plan.branch(txn) {
                let RequestOp::Range(range) = op else { unreachable!("read-only: see above") };
                let at = readable_in_txn(range.revision, &state.position)?;
                let mut selection = Selection::new(range, at, state.position.revision);
                let advanced = selection.advance(&state, usize::MAX);
                shared.note(advanced.map_err(StoreError::from))?;
                selections.push(selection);
            }
            (plan, selections, state.position.revision)
        };
        let ranges = selections.into_iter().map(|selection| shared.finish(selection));
        let responses =
            ranges.map(|range| range.map(ResponseOp::Range)).collect::<Result<_, _>>()?;
        Ok(TxnResponse { revision, succeeded: plan.succeeded, responses })
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
        Ok(read(&shared, true)?.expect("nothing is compacted while the lock is held"))
    }

    /// Index and term of the last entry of the log that is applied.
    #[must_use]
    pub fn applied(&self) -> (u64, u64) {
        let position = self.shared().state.read().position;
        (position.applied_index, position.applied_term)
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
        self.shared().state.read().position.revision
    }

    /// The first revision that is readable, or -1 if nothing was ever compacted, as in etcd.
    #[must_use]
    pub fn compact_revision(&self) -> i64 {
        self.shared().state.read().position.compact_revision
    }

    /// Bytes of the files, but for checkpoints of the index.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        STATE_BYTES + self.shared().state.read().segments.disk_bytes()
    }

    /// Bytes of the events that are kept, on disk or on the way there.
    #[must_use]
    pub fn size_in_use_bytes(&self) -> u64 {
        self.shared().state.read().segments.live_bytes()
    }

    /// Whether the disk was full when it was written to last. What was applied meanwhile waits
    /// in memory, and is tried again every `flush_interval`.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.shared().is_full()
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

    /// Makes everything that is applied durable. When the disk is full it returns without
    /// having done so, and [`is_full`](Self::is_full) says so.
    ///
    /// # Errors
    ///
    /// [`Fatal`] when the disk has failed.
    pub fn flush(&self) -> Result<(), Fatal> {
        self.shared().flush()
    }

    /// Does a little of the compaction or the checkpoint that is due. Returns whether there was
    /// anything to do. For stores without a thread of their own.
    ///
    /// # Errors
    ///
    /// [`Fatal`] when the disk has failed.
    pub fn compact_step(&self) -> Result<bool, Fatal> {
        self.shared().upkeep_step()
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

    /// [Finishes](Self::finish), and closes the files.
    ///
    /// # Errors
    ///
    /// [`Fatal`] when the disk has failed.
    pub fn close(self) -> Result<(), Fatal> {
        self.finish()
    }

    /// Stops the thread and makes everything durable, the index with it, and what tells damage
    /// from a torn end. When the disk is full it returns without having done so. Nothing may be
    /// applied after it.
    ///
    /// # Errors
    ///
    /// [`Fatal`] when the disk has failed.
    pub fn finish(&self) -> Result<(), Fatal> {
        self.live.write().stop();
        let shared = self.shared();
        shared.flush()?;
        shared.checkpoint_now()?;
        let mut flushed = shared.flushed.lock();
        shared.tell(&mut flushed).map_err(|fatal| shared.fail(fatal))
    }

    /// From now on [`apply`](Self::apply) waits for no disk, however much is pending. For a
    /// process that is about to end and must not wait for a full disk to be emptied.
    pub fn wait_no_more(&self) {
        // A restore that is under way takes it over.
        let live = self.live.read();
        live.shared.is_patient.store(false, Ordering::Release);
        live.shared.room.notify_all();
    }

    /// What a crash had torn and the opening has cut, if it has cut anything. It was not
    /// durable, so the log has it.
    #[must_use]
    pub fn torn(&self) -> Option<Torn> {
        self.shared().torn.clone()
    }

    /// The state of the moment. Whoever keeps it reads on from it after a restore.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.live.read().shared)
    }
}

impl Live {
    fn start(opened: Opened) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(opened));
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

impl Shared {
    fn new(opened: Opened) -> Self {
        let Opened { files, state, flushed, walked, options, torn } = opened;
        Self {
            files,
            options,
            durable_applied: AtomicU64::new(flushed.position.applied_index),
            flushed: Mutex::new(flushed),
            is_full: AtomicBool::new(false),
            is_patient: AtomicBool::new(true),
            torn,
            checkpointing: Mutex::new(Checkpointing::default()),
            compaction: Mutex::new(Compaction::new(walked)),
            compacted: Condvar::new(),
            signal: Mutex::new(Signal::default()),
            wake: Condvar::new(),
            room: Condvar::new(),
            fetched: Mutex::new(Vec::new()),
            fatal: OnceLock::new(),
            state: RwLock::new(state),
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

    /// Takes the lock for writing, unless an error has left the state half changed.
    pub(crate) fn write_state(&self) -> Result<RwLockWriteGuard<'_, State>, Fatal> {
        let state = self.state.write();
        self.check().map(|()| state)
    }

    /// Closes the store for good. Returns the error that did, the first one.
    pub(crate) fn fail(&self, fatal: Fatal) -> Fatal {
        self.fatal.get_or_init(|| fatal).clone()
    }

    /// Takes note of an error that a read has met: what it read is damaged.
    fn note<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.map_err(|error| match error {
            StoreError::Fatal(fatal) => self.fail(fatal).into(),
            refusal => refusal,
        })
    }

    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Acquire)
    }

    /// Waits until not too much is pending.
    fn make_room(&self) -> Result<(), Fatal> {
        let max = self.options.pending_bytes_max;
        self.check()?;
        if self.state.read().tail.bytes() <= max {
            return Ok(());
        }
        if !self.options.background {
            return self.flush();
        }
        let mut signal = self.signal.lock();
        while self.is_patient.load(Ordering::Acquire) && max < self.state.read().tail.bytes() {
            self.check()?;
            let _timed_out = self.room.wait_for(&mut signal, ROOM_INTERVAL);
        }
        self.check()
    }

    /// Completes a range, from disk where needed.
    fn finish(&self, selection: Selection<'_>) -> Result<RangeResponse, StoreError> {
        let mut fetched = Vec::new();
        let response = selection.finish(&mut fetched).map_err(|fatal| self.fail(fatal))?;
        self.keep_fetched(fetched);
        Ok(response)
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
        let last = self.position.applied_index;
        assert!(last < index, "command {index} after {last} has been applied");
    }

    fn assert_upto(&self, index: u64) {
        let last = self.position.applied_index;
        assert!(last <= index, "a batch up to {index} holds command {last}");
    }

    /// Ends the frame of a batch, and counts what it holds.
    fn end_frame(&mut self) {
        let (segment, header) = self.tail.segment();
        let records = self.tail.end(&self.position, self.durable_frame);
        if 0 < records {
            self.segments.grow(segment, header, records as u64);
        }
    }

    fn set_applied(&mut self, index: u64, term: u64) {
        self.position.applied_index = index;
        self.position.applied_term = term;
    }
}

#[cfg(test)]
mod tests;
