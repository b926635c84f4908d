//! The apply thread: the one place where the state machine lives.
//!
//! It takes all that waits, hands the state machine as few batches as it can, and sends back the
//! responses of a whole batch at once: one wake-up for all of them. Reads by closure run here,
//! between two batches; so does the freezing of the state for a snapshot.

use std::{
    collections::VecDeque,
    fmt, io,
    ops::RangeInclusive,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError},
    },
    time::{Duration, Instant},
};

use kontiki_raft::{
    Apply, Bytes, Entry, EntryId, Index, Membership, Payload, Rejection, SnapshotMeta, Term,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc::UnboundedSender};

use crate::{
    Batch, Command, Fault, LogFailure, LogReader, ReadError, RequestId, SessionId, SessionRefusal,
    SessionStep, StateMachine,
    log_thread::{LogEvent, Space, Witness},
    snapshots::{Frozen, Sessions, SnapshotFiles, is_no_space, restore},
};

/// A read by closure. Called with the machine, or with the reason why not.
pub(crate) type ReadFn<S> = Box<dyn FnOnce(Result<&S, ReadError>) + Send>;

/// What the apply thread is asked to do. The bound of the protocol on entries that are not
/// applied yet bounds the queue as well; a read takes its room along.
pub(crate) enum ApplyJob<S> {
    Apply {
        what: Apply,
        waiters: Vec<(Index, RequestId)>,
    },
    Read {
        serve: ReadFn<S>,
        room: OwnedSemaphorePermit,
    },
    /// Freeze the state and have it written to a file.
    Snapshot,
}

impl<S> fmt::Debug for ApplyJob<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apply { what, .. } => f.debug_tuple("Apply").field(what).finish(),
            Self::Read { .. } => f.write_str("Read"),
            Self::Snapshot => f.write_str("Snapshot"),
        }
    }
}

/// What it tells the node.
pub(crate) enum ApplyEvent<R> {
    Applied {
        upto: Index,
        /// What the state machine itself will still know after power loss.
        durable: Index,
        /// What the entries take in the log.
        bytes: u64,
        /// When that was done.
        done: Instant,
        responses: Vec<(RequestId, EntryId, Reply<R>)>,
    },
    /// The state is that of a snapshot that was received.
    Restored {
        meta: SnapshotMeta,
        durable: Index,
    },
    /// The state cannot be frozen.
    NotFrozen(io::Error),
    Failed(Fault),
}

/// What applying an entry says to the one who proposed it.
pub(crate) enum Reply<R> {
    /// The state machine has answered, now or when the command came first.
    Response(R),
    /// There is a new session.
    Opened(SessionId),
    /// There is no such session any more.
    Closed,
    /// The command was not applied.
    Refused(SessionRefusal),
}

/// A batch ends when its entries pass this many bytes, so that responses do not wait for long.
const BATCH_BYTES: usize = 1 << 20;

/// What the apply thread is made of.
pub(crate) struct ApplyParts<S: StateMachine> {
    pub(crate) machine: S,
    pub(crate) log: Arc<dyn LogReader>,
    /// The last entry that the machine has applied, and the membership in force there.
    pub(crate) applied: EntryId,
    pub(crate) membership: Arc<Membership>,
    /// The machine lacks what the log no longer has, until a snapshot is restored.
    pub(crate) is_bereft: bool,
    pub(crate) sessions: Option<Sessions<S::Response>>,
    pub(crate) snapshots: Option<SnapshotEnd<S::Snapshot>>,
}

/// A machine on disk is asked whether it is full at least this often.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);

/// For how long a snapshot that finds the disk full is put off at most.
const SPACE_INTERVAL_MAX: Duration = Duration::from_secs(30);

/// Where snapshots come from, and where they are written.
pub(crate) struct SnapshotEnd<W> {
    pub(crate) files: Arc<dyn SnapshotFiles>,
    pub(crate) writer: Sender<Frozen<W>>,
}

/// The state machine, and what is needed to feed it.
pub(crate) struct Applier<S: StateMachine, E> {
    parts: ApplyParts<S>,
    jobs: Receiver<ApplyJob<S>>,
    /// Taken from `jobs` while a snapshot waited for space.
    put_off: VecDeque<ApplyJob<S>>,
    events: UnboundedSender<E>,
    space: Arc<Space<E>>,
    /// Collected, not yet applied.
    entries: Vec<Entry>,
    bytes: usize,
    /// Which of them answer a request of this host, ascending.
    waiters: Vec<(Index, RequestId)>,
    /// What they are told.
    responses: Vec<(RequestId, EntryId, Reply<S::Response>)>,
}

/// The thread has nothing more to do: the node has stopped, or must.
struct Stop;

impl<S, E> Applier<S, E>
where
    S: StateMachine,
    E: From<ApplyEvent<S::Response>> + From<LogEvent>,
{
    pub(crate) fn new(
        parts: ApplyParts<S>,
        jobs: Receiver<ApplyJob<S>>,
        events: UnboundedSender<E>,
        space: Arc<Space<E>>,
    ) -> Self {
        Self {
            parts,
            jobs,
            put_off: VecDeque::new(),
            events,
            space,
            entries: Vec::new(),
            bytes: 0,
            waiters: Vec::new(),
            responses: Vec::new(),
        }
    }

    /// Runs until there is nobody left to ask, or the state machine has failed.
    pub(crate) fn run(mut self) {
        while let Ok(mut job) = self.next() {
            loop {
                if self.carry_out(job).is_err() {
                    return;
                }
                match self.put_off.pop_front().map_or_else(|| self.jobs.try_recv(), Ok) {
                    Ok(next) => job = next,
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            if self.flush().is_err() {
                return;
            }
            self.look_at_space();
        }
    }

    /// Waits for a job, and has an eye on the disk of the machine meanwhile.
    fn next(&self) -> Result<ApplyJob<S>, Stop> {
        if self.parts.machine.durable_applied().is_none() {
            return self.jobs.recv().map_err(|_| Stop); // it has no disk
        }
        loop {
            match self.jobs.recv_timeout(SPACE_INTERVAL) {
                Ok(job) => return Ok(job),
                Err(RecvTimeoutError::Timeout) => self.look_at_space(),
                Err(RecvTimeoutError::Disconnected) => return Err(Stop),
            }
        }
    }

    fn look_at_space(&self) {
        self.space.set(Witness::Machine, self.parts.machine.is_storage_full());
    }

    fn carry_out(&mut self, job: ApplyJob<S>) -> Result<(), Stop> {
        match job {
            ApplyJob::Apply { what, waiters } => {
                self.waiters.extend(waiters);
                match what {
                    Apply::Entries(entries) => self.collect(entries),
                    Apply::Stored(range) => self.collect_stored(range),
                    Apply::Snapshot(meta) => self.restore(meta),
                }
            }
            ApplyJob::Read { serve, room } => {
                self.flush()?;
                self.serve(serve, room);
                Ok(())
            }
            ApplyJob::Snapshot => self.freeze(),
        }
    }

    fn serve(&self, read: ReadFn<S>, room: OwnedSemaphorePermit) {
        read(Ok(&self.parts.machine));
        drop(room);
    }

    fn collect_stored(&mut self, range: RangeInclusive<Index>) -> Result<(), Stop> {
        let (mut next, last) = range.into_inner();
        while next <= last {
            let entries = match self.parts.log.read(next..=last, BATCH_BYTES) {
                Ok(entries) => entries,
                Err(error) => return self.fail(Fault::Log(error.into())),
            };
            let Some(read) = entries.last().map(|entry| entry.id.index) else {
                return self.fail(Fault::Log(
                    LogFailure::from("the log has lost committed entries").into(),
                ));
            };
            next = read.next();
            self.collect(entries)?;
        }
        Ok(())
    }

    fn collect(&mut self, entries: Vec<Entry>) -> Result<(), Stop> {
        self.bytes += entries.iter().map(Entry::byte_len).sum::<usize>();
        if self.entries.is_empty() {
            self.entries = entries;
        } else {
            self.entries.extend(entries);
        }
        if BATCH_BYTES <= self.bytes { self.flush() } else { Ok(()) }
    }

    /// Applies what was collected and tells the node.
    fn flush(&mut self) -> Result<(), Stop> {
        let entries = std::mem::take(&mut self.entries);
        let bytes = u64::try_from(std::mem::take(&mut self.bytes)).unwrap_or(u64::MAX);
        let Some(last) = entries.last() else { return Ok(()) };
        let upto = last.id.index;
        if let Some(damaged) = entries.iter().find(|entry| !entry.is_intact()) {
            return self.fail(Fault::DamagedEntry { at: damaged.id });
        }
        // Commands go to the machine in one batch, up to an entry that is more than that.
        let mut rest = &entries[..];
        while let Some(at) = rest
            .iter()
            .position(|entry| matches!(entry.payload, Payload::Session(_) | Payload::Membership(_)))
        {
            let (before, special) = rest.split_at(at);
            let Some((entry, after)) = special.split_first() else { break };
            self.apply(before)?;
            match &entry.payload {
                Payload::Session(content) => self.apply_session(entry.id, content)?,
                Payload::Membership(membership) => {
                    self.apply(std::slice::from_ref(entry))?;
                    self.parts.machine.membership_changed(entry.id, membership);
                    self.parts.membership = Arc::clone(membership);
                }
                Payload::Blank | Payload::Command(_) => {}
            }
            rest = after;
        }
        self.apply(rest)?;
        let durable = self.durable();
        let responses = std::mem::take(&mut self.responses);
        let done = Instant::now();
        self.tell(ApplyEvent::Applied { upto, durable, bytes, done, responses })
    }

    /// Has the machine carry out the commands of these entries as one batch.
    fn apply(&mut self, entries: &[Entry]) -> Result<(), Stop> {
        let Some(last) = entries.last() else { return Ok(()) };
        let commands: Vec<Command<'_>> = entries
            .iter()
            .filter_map(|entry| match &entry.payload {
                Payload::Command(data) => Some(Command { id: entry.id, data }),
                Payload::Blank | Payload::Session(_) | Payload::Membership(_) => None,
            })
            .collect();
        let (mut all, mut responses) =
            (std::mem::take(&mut self.waiters), std::mem::take(&mut self.responses));
        let waited = all.partition_point(|(index, _)| *index <= last.id.index);
        let mut waiters = all.drain(..waited).peekable();
        responses.reserve(waited);
        let applied = self.apply_batch(&commands, last.id, |command, response| {
            if let Some((_, id)) = waiters.next_if(|(index, _)| *index == command.index) {
                responses.push((id, command, Reply::Response(response)));
            }
        });
        drop(waiters);
        (self.waiters, self.responses) = (all, responses);
        applied
    }

    /// The machine carries out one batch, and `answer` hears what it says to each command.
    fn apply_batch(
        &mut self,
        commands: &[Command<'_>],
        upto: EntryId,
        mut answer: impl FnMut(EntryId, S::Response),
    ) -> Result<(), Stop> {
        let mut count = 0;
        let batch = Batch { commands, upto };
        let applied = self.parts.machine.apply_batch(batch, &mut |response| {
            if let Some(command) = commands.get(count) {
                answer(command.id, response);
            }
            count += 1;
        });
        if let Err(source) = applied {
            return self.fail(Fault::Machine { upto, source: Arc::new(source) });
        }
        if count != commands.len() {
            let commands = commands.len();
            return self.fail(Fault::ResponseCount { commands, responses: count });
        }
        self.parts.applied = upto;
        Ok(())
    }

    /// A command of a session is a batch of its own: what the table holds after it must not
    /// depend on how entries are batched, which differs from node to node.
    fn apply_session(&mut self, at: EntryId, content: &Bytes) -> Result<(), Stop> {
        let Some(sessions) = &mut self.parts.sessions else {
            return self.fail(Fault::SessionsOff { at });
        };
        let reply = match sessions.step(at, content) {
            SessionStep::Fresh { session, sequence, command } => {
                let mut response = None;
                let command = Command { id: at, data: &command };
                self.apply_batch(&[command], at, |_, said| response = Some(said))?;
                let (Some(sessions), Some(response)) = (&mut self.parts.sessions, response) else {
                    return Ok(());
                };
                sessions.record(session, sequence, &response);
                Reply::Response(response)
            }
            step => {
                let reply = match step {
                    SessionStep::Repeated(bytes) => match sessions.response(&bytes) {
                        Some(response) => Reply::Response(response),
                        None => return self.fail(Fault::ResponseUnreadable { at }),
                    },
                    SessionStep::Opened(session) => Reply::Opened(session),
                    SessionStep::Closed => Reply::Closed,
                    SessionStep::Refused(why) => Reply::Refused(why),
                    SessionStep::Fresh { .. } => unreachable!("it is applied above"),
                };
                self.apply_batch(&[], at, |_, _| {})?;
                reply
            }
        };
        let waited = self.waiters.partition_point(|(index, _)| *index < at.index);
        self.waiters.drain(..waited);
        if self.waiters.first().is_some_and(|(index, _)| *index == at.index) {
            let (_, id) = self.waiters.remove(0);
            self.responses.push((id, at, reply));
        }
        Ok(())
    }

    /// Replaces the whole state by that of a snapshot which the leader has sent. Whoever has no
    /// space for it keeps the state that it has until there is some.
    fn restore(&mut self, meta: SnapshotMeta) -> Result<(), Stop> {
        self.flush()?;
        let at = meta.last;
        let failed = |source| Fault::Restore { at, source: Arc::new(source) };
        let kept = match &self.parts.snapshots {
            None => Err(io::Error::other("there is no place for snapshots here")),
            // Newer ones may come while it waits, and take its name.
            Some(SnapshotEnd { files, .. }) => files.open(at),
        };
        let kept = match kept {
            Ok(kept) => kept,
            Err(source) => return self.fail(failed(source)),
        };
        let mut pause = SPACE_INTERVAL;
        loop {
            let parts = &mut self.parts;
            match restore(&mut parts.machine, parts.sessions.as_mut(), &kept, &meta) {
                Ok(()) => break,
                Err(error) if is_no_space(&error) => {
                    tracing::warn!(%at, ?pause, %error, "no space to restore a snapshot: it waits");
                }
                Err(source) => return self.fail(failed(source)),
            }
            self.space.set(Witness::Machine, true);
            self.wait_for_space(pause)?;
            pause = SPACE_INTERVAL_MAX.min(pause * 2);
        }
        self.look_at_space();
        self.parts.is_bereft = false;
        self.parts.applied = at;
        self.parts.membership = Arc::clone(&meta.membership);
        let durable = self.durable();
        self.tell(ApplyEvent::Restored { meta, durable })
    }

    /// Lets time pass. Reads are of the state that is there; all else comes after the snapshot.
    fn wait_for_space(&mut self, pause: Duration) -> Result<(), Stop> {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            match self.jobs.recv_timeout(left) {
                // There is a state here that never was.
                Ok(ApplyJob::Read { serve, .. }) if self.parts.is_bereft => {
                    serve(Err(ReadError::Rejected(Rejection::NoState)));
                }
                Ok(ApplyJob::Read { serve, room }) => self.serve(serve, room),
                Ok(job) => self.put_off.push_back(job),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Stop),
            }
        }
    }

    /// Freezes the state as it is between two batches, and has it written on another thread.
    fn freeze(&mut self) -> Result<(), Stop> {
        self.flush()?;
        let parts = &mut self.parts;
        let Some(SnapshotEnd { writer, .. }) = &parts.snapshots else {
            return self.tell(ApplyEvent::NotFrozen(io::ErrorKind::Unsupported.into()));
        };
        if parts.applied.term == Term(0) {
            let error = io::Error::other("it is not known which entry was applied last");
            return self.tell(ApplyEvent::NotFrozen(error));
        }
        let state = match parts.machine.snapshot() {
            Ok(state) => state,
            Err(error) => return self.tell(ApplyEvent::NotFrozen(error)),
        };
        let membership = Arc::clone(&parts.membership);
        let sessions = parts.sessions.as_ref().map(|sessions| sessions.table.encode());
        let frozen = Frozen {
            meta: SnapshotMeta { last: parts.applied, membership },
            sessions: sessions.unwrap_or_default(),
            state,
        };
        // A writer that is gone has panicked, and has told.
        drop(writer.send(frozen));
        Ok(())
    }

    fn durable(&self) -> Index {
        self.parts.machine.durable_applied().unwrap_or(Index::ZERO)
    }

    fn fail(&self, fault: Fault) -> Result<(), Stop> {
        self.tell(ApplyEvent::Failed(fault))?;
        Err(Stop)
    }

    fn tell(&self, event: ApplyEvent<S::Response>) -> Result<(), Stop> {
        self.events.send(E::from(event)).map_err(|_| Stop)
    }
}
