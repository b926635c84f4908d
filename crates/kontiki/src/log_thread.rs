//! The log thread, and the threads that help it: reading old entries, and upkeep.
//!
//! The log thread takes everything that waits, writes it at once and makes it durable with one
//! sync (group commit): however many writes came while the last sync was under way, the next one
//! pays for all of them. It never holds up the protocol; a disk that stalls delays
//! acknowledgements and nothing else.

use std::{
    error::Error,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError},
    },
    time::{Duration, Instant},
};

use kontiki_log::LogError;
use kontiki_raft::{
    Body, Entry, EntryId, Envelope, Index, LogWrite, NodeId, Session, Unavailable, WriteBatch,
    WriteTicket,
};
use metrics::Histogram;
use tokio::sync::mpsc::UnboundedSender;

use crate::{LogFailure, LogReader, LogWriter, Upkeep, error::with_causes};

/// What the log thread is asked to do. The bounds of the protocol on entries in flight bound
/// the queue as well.
#[derive(Debug)]
pub(crate) enum LogJob {
    Write(LogWrite),
    Purge(EntryId),
}

/// What it tells the node.
#[derive(Debug)]
pub(crate) enum LogEvent {
    /// `last` is the last entry that was written, if there was one.
    Persisted {
        ticket: WriteTicket,
        last: Option<Index>,
    },
    /// The log takes no more. `ticket` is of the write that failed, if it was one.
    Failed {
        ticket: Option<WriteTicket>,
        error: LogFailure,
    },
    Purged {
        upto: EntryId,
    },
    /// The disk has become full, or has space again.
    Space {
        is_full: bool,
    },
}

/// Entries that are written at once, in bytes: more waits for the next write, so that no sync
/// takes longer than a few milliseconds on a disk that is worth the name.
const WRITE_BYTES_MAX: usize = 8 << 20;

/// Upkeep is asked for after this much was written. A fraction of a segment.
const UPKEEP_BYTES: usize = 4 << 20;

/// A full disk is tried again after this time. Somebody has to free space, which takes longer.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// Whether a disk is full, as the log thread, upkeep and the state machine see it: it is when any of
/// them says so.
#[derive(Debug)]
pub(crate) struct Space<E> {
    events: UnboundedSender<E>,
    is_full: Mutex<[bool; 3]>,
}

/// Who says that the disk is full.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Witness {
    /// Nothing can be written.
    Log,
    /// No segment can be made ahead of its use: soon nothing can be written.
    Upkeep,
    /// The state machine cannot write what it has applied: soon nothing can be applied.
    Machine,
}

impl<E: From<LogEvent>> Space<E> {
    pub(crate) fn new(events: UnboundedSender<E>) -> Self {
        Self { events, is_full: Mutex::default() }
    }

    /// Tells the node, if it makes a difference.
    pub(crate) fn set(&self, witness: Witness, is_full: bool) {
        // Nobody panics while holding it.
        let mut said = self.is_full.lock().unwrap_or_else(PoisonError::into_inner);
        let before = said.contains(&true);
        match witness {
            Witness::Log => said[0] = is_full,
            Witness::Upkeep => said[1] = is_full,
            Witness::Machine => said[2] = is_full,
        }
        let is_full = said.contains(&true);
        if is_full != before {
            // A node that has stopped does not mind.
            drop(self.events.send(E::from(LogEvent::Space { is_full })));
        }
    }
}

/// The log thread.
#[derive(Debug)]
pub(crate) struct LogLoop<E> {
    pub(crate) log: Box<dyn LogWriter>,
    pub(crate) jobs: Receiver<LogJob>,
    pub(crate) events: UnboundedSender<E>,
    pub(crate) space: Arc<Space<E>>,
    pub(crate) upkeep: Option<SyncSender<()>>,
    /// How long each sync takes, in seconds.
    pub(crate) syncs: Histogram,
}

/// Not one write more: the log has failed, or nobody is left to ask for any.
struct Stop;

impl<E: From<LogEvent>> LogLoop<E> {
    /// Runs until there is nobody left to ask, or the log has failed.
    pub(crate) fn run(mut self) {
        let mut unkept_bytes = 0;
        while let Ok(job) = self.jobs.recv() {
            let mut work = Work::default();
            work.add(job);
            while work.bytes < WRITE_BYTES_MAX
                && let Ok(job) = self.jobs.try_recv()
            {
                work.add(job);
            }
            let Ok(bytes) = self.carry_out(work) else { return };
            unkept_bytes += bytes;
            if UPKEEP_BYTES <= unkept_bytes {
                unkept_bytes = 0;
                self.wake_upkeep();
            }
        }
    }

    /// Returns how many bytes were written.
    fn carry_out(&mut self, mut work: Work) -> Result<usize, Stop> {
        if work.ticket.is_some() {
            let written = self.write(&mut work).and_then(|()| self.sync());
            let Some(ticket) = work.ticket else { return Err(Stop) };
            if let Err(error) = written {
                self.tell(LogEvent::Failed { ticket: Some(ticket), error });
                return Err(Stop);
            }
            let last = work.batches.iter().rev().find_map(|batch| batch.entries.last());
            let last = last.map(|entry| entry.id.index);
            self.tell(LogEvent::Persisted { ticket, last });
        }
        if let Some(upto) = work.purge {
            self.purge(upto)?;
        }
        Ok(work.bytes)
    }

    fn sync(&mut self) -> Result<(), LogFailure> {
        let began = Instant::now();
        let synced = self.log.sync();
        self.syncs.record(began.elapsed().as_secs_f64());
        synced
    }

    /// Writes all of `work`. While the disk is full it waits, takes in more, and tries again.
    fn write(&mut self, work: &mut Work) -> Result<(), LogFailure> {
        loop {
            match self.log.write(&work.batches) {
                Err(error) if is_full(&*error) => {
                    self.space.set(Witness::Log, true);
                    match self.jobs.recv_timeout(FULL_RETRY) {
                        Ok(job) => work.add(job),
                        Err(RecvTimeoutError::Timeout) => {}
                        // The node stops, and these writes were never acknowledged.
                        Err(RecvTimeoutError::Disconnected) => return Err(error),
                    }
                    // A purge makes space.
                    if let Some(upto) = work.purge.take()
                        && self.purge(upto).is_err()
                    {
                        return Err("the log cannot be purged".into());
                    }
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    self.space.set(Witness::Log, false);
                    return Ok(());
                }
            }
        }
    }

    fn purge(&mut self, upto: EntryId) -> Result<(), Stop> {
        match self.log.purge(upto) {
            Ok(upto) => self.tell(LogEvent::Purged { upto }),
            // There will be another purge, further on.
            Err(error) if is_full(&*error) => {
                tracing::warn!(error = with_causes(&*error), "the log cannot be purged now");
            }
            Err(error) => {
                self.tell(LogEvent::Failed { ticket: None, error });
                return Err(Stop);
            }
        }
        Ok(())
    }

    fn wake_upkeep(&self) {
        let wake = self.upkeep.as_ref().map(|upkeep| upkeep.try_send(()));
        if let Some(Err(TrySendError::Disconnected(()))) = wake {
            tracing::debug!("upkeep has ended before the log");
        }
    }

    fn tell(&self, event: LogEvent) {
        // Nobody to tell: the node has stopped, and all that waits is still written.
        drop(self.events.send(E::from(event)));
    }
}

/// Whether there was no space, so that it may go well another time.
fn is_full(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(LogError::NoSpace { .. }))
}

/// What one round of the log thread does.
#[derive(Debug, Default)]
struct Work {
    batches: Vec<WriteBatch>,
    bytes: usize,
    /// The latest ticket stands for all.
    ticket: Option<WriteTicket>,
    purge: Option<EntryId>,
}

impl Work {
    fn add(&mut self, job: LogJob) {
        match job {
            LogJob::Write(LogWrite { batch, ticket }) => {
                self.bytes += batch.entries.iter().map(Entry::byte_len).sum::<usize>();
                self.batches.push(batch);
                self.ticket = Some(match self.ticket.take() {
                    Some(earlier) => earlier.merge(ticket),
                    None => ticket,
                });
            }
            LogJob::Purge(upto) => self.purge = Some(upto),
        }
    }
}

/// Entries to be read for a follower that is far behind.
#[derive(Debug)]
pub(crate) struct StoredRead {
    pub(crate) envelope: Envelope,
    pub(crate) range: RangeInclusive<Index>,
    pub(crate) bytes_max: usize,
    pub(crate) session: Session,
}

/// What became of it.
#[derive(Debug)]
pub(crate) enum StoredEvent {
    Send(Envelope),
    Unavailable { to: NodeId, session: Session, why: Unavailable },
}

/// Reads old entries until there is nobody left to ask.
pub(crate) fn run_stored_reads<E>(
    log: &Arc<dyn LogReader>,
    jobs: &Receiver<StoredRead>,
    events: &UnboundedSender<E>,
) where
    E: From<StoredEvent>,
{
    while let Ok(mut job) = jobs.recv() {
        let event = match load(&**log, &mut job) {
            Ok(()) => StoredEvent::Send(job.envelope),
            Err(error) => {
                let StoredRead { envelope, range, session, .. } = job;
                let (to, why) = (envelope.to, unavailable(&*error));
                let error = with_causes(&*error);
                tracing::warn!(%to, ?range, ?why, error, "entries for a follower cannot be read");
                StoredEvent::Unavailable { to, session, why }
            }
        };
        if events.send(E::from(event)).is_err() {
            return;
        }
    }
}

/// Whether to ask again may help.
fn unavailable(error: &(dyn Error + Send + Sync + 'static)) -> Unavailable {
    match error.downcast_ref() {
        Some(LogError::Damaged { .. } | LogError::Io { .. }) => Unavailable::Damaged,
        _ => Unavailable::Retry,
    }
}

/// Puts the entries into the message.
fn load(log: &dyn LogReader, job: &mut StoredRead) -> Result<(), LogFailure> {
    let entries = log.read(job.range.clone(), job.bytes_max)?;
    let Body::AppendEntries(append) = &mut job.envelope.message.body else {
        return Err("only an AppendEntries carries entries".into());
    };
    // A hole in the log is never sent (pitfall M14). The log is somebody else's code.
    let follow = (*job.range.start()).get()..;
    if entries.is_empty() || !entries.iter().zip(follow).all(|(e, index)| e.id.index.0 == index) {
        return Err("the log returned other entries than it was asked for".into());
    }
    append.entries = entries;
    Ok(())
}

/// Runs upkeep at the start and whenever it is asked for. While the disk is full it tries again
/// by itself.
pub(crate) fn run_upkeep<E: From<LogEvent>>(
    mut upkeep: Box<dyn Upkeep>,
    wakes: &Receiver<()>,
    space: &Space<E>,
) {
    loop {
        let mut is_space_short = false;
        loop {
            match upkeep.run() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    is_space_short = is_full(&*error);
                    let error = with_causes(&*error);
                    tracing::warn!(error, "no segment could be made ahead of its use");
                    break;
                }
            }
            // Between two pieces of work: the node may have stopped.
            if let Err(TryRecvError::Disconnected) = wakes.try_recv() {
                return;
            }
        }
        space.set(Witness::Upkeep, is_space_short);
        let woken = if is_space_short {
            wakes.recv_timeout(UPKEEP_RETRY)
        } else {
            wakes.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        if woken == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// Upkeep of a full disk is tried again after this time. To make a segment takes longer than to
/// find out that there is no room for it.
const UPKEEP_RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use kontiki_raft::{
        AppendEntries, Bytes, Config, Membership, Message, NodeId, Payload, Recovered, Round, Term,
        Timestamp,
    };
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::{Action, Event, Replica, RequestId};

    /// A log that only counts, and fails at the sync of this number. It has room for a write
    /// after as many purges.
    #[derive(Clone, Debug, Default)]
    struct Counts {
        counts: Arc<Mutex<(usize, usize)>>,
        fails_at: Option<usize>,
        purges_needed: usize,
    }

    impl Counts {
        fn get(&self) -> (usize, usize) {
            *self.counts.lock().unwrap()
        }
    }

    impl LogWriter for Counts {
        fn write(&mut self, batches: &[WriteBatch]) -> Result<(), LogFailure> {
            if 0 < self.purges_needed {
                let (path, source) = ("wal".into(), std::io::Error::other("no space"));
                return Err(LogError::NoSpace { path, source }.into());
            }
            self.counts.lock().unwrap().0 += batches.len();
            Ok(())
        }

        fn sync(&mut self) -> Result<(), LogFailure> {
            let mut counts = self.counts.lock().unwrap();
            counts.1 += 1;
            if Some(counts.1) == self.fails_at { Err("input/output error".into()) } else { Ok(()) }
        }

        fn purge(&mut self, upto: EntryId) -> Result<EntryId, LogFailure> {
            self.purges_needed = self.purges_needed.saturating_sub(1);
            Ok(upto)
        }
    }

    /// A leader without peers, and the writes it asks for: its term and vote, its first entry
    /// and one command after the other, none of them durable yet.
    fn writes(count: u64) -> (Replica, Vec<LogWrite>) {
        let genesis = Membership::of_voters([(NodeId(1), "n1")]);
        let recovered = Recovered {
            memberships: vec![(EntryId::ZERO, genesis.into())],
            is_pristine: true,
            ..Recovered::default()
        };
        let mut replica = Replica::new(Config::new(NodeId(1), 1), recovered, Timestamp(0)).unwrap();
        let mut writes = Vec::new();
        let (mut now, mut actions) = (Timestamp(0), Vec::new());
        let mut is_leader = false;
        for id in 0.. {
            if writes.len() == usize::try_from(count).unwrap() {
                break;
            }
            assert!(id < 100, "it does not write");
            now = replica.next_deadline().unwrap_or(now).max(now);
            replica.handle(now, Event::Timeout);
            if is_leader {
                let (id, command) = (RequestId(id), Bytes::from_static(b"x"));
                let deadline = Timestamp(u64::MAX);
                let is_session = false;
                replica.handle(now, Event::Propose { id, command, is_session, deadline });
            }
            replica.poll(now, &mut actions);
            for action in actions.drain(..) {
                match action {
                    // Term and vote have to be durable before it leads.
                    Action::Write(write) if write.batch.entries.is_empty() => {
                        replica.handle(now, Event::Persisted(write.ticket));
                    }
                    Action::Write(write) => {
                        is_leader = true;
                        writes.push(write);
                    }
                    _ => {}
                }
            }
        }
        (replica, writes)
    }

    fn log_loop(
        log: &Counts,
        jobs: Receiver<LogJob>,
        events: UnboundedSender<LogEvent>,
    ) -> LogLoop<LogEvent> {
        let space = Arc::new(Space::new(events.clone()));
        LogLoop {
            log: Box::new(log.clone()),
            jobs,
            events,
            space,
            upkeep: None,
            syncs: Histogram::noop(),
        }
    }

    /// Runs the log thread over `jobs` and returns what it said.
    fn run(log: &Counts, jobs: impl IntoIterator<Item = LogJob>) -> Vec<LogEvent> {
        let (sender, jobs_of_log) = mpsc::channel();
        jobs.into_iter().for_each(|job| sender.send(job).unwrap());
        drop(sender);
        let (events, mut said) = unbounded_channel();
        log_loop(log, jobs_of_log, events).run();
        std::iter::from_fn(|| said.try_recv().ok()).collect()
    }

    #[test]
    fn one_sync_pays_for_all_that_waits() {
        let (mut replica, writes) = writes(10);
        let log = Counts::default();
        let mut events = run(&log, writes.into_iter().map(LogJob::Write));
        assert_eq!(log.get(), (10, 1));
        assert_eq!(events.len(), 1);
        let Some(LogEvent::Persisted { ticket, last: Some(Index(10)) }) = events.pop() else {
            panic!("it did not fail")
        };
        replica.handle(Timestamp(0), Event::Persisted(ticket));
        assert_eq!(replica.status().durable_index, Index(10), "the ticket stands for all");
    }

    /// Pitfall D4.
    #[test]
    fn after_a_failed_sync_nothing_is_written_any_more() {
        let (_, mut writes) = writes(3);
        let log = Counts { fails_at: Some(1), ..Counts::default() };
        let (sender, receiver) = mpsc::channel();
        let (events, mut said) = unbounded_channel();
        sender.send(LogJob::Write(writes.remove(0))).unwrap();
        log_loop(&log, receiver, events).run();
        // It has ended by itself, and nobody can ask it for more.
        assert!(matches!(said.try_recv(), Ok(LogEvent::Failed { ticket: Some(_), .. })));
        assert!(sender.send(LogJob::Write(writes.remove(0))).is_err());
        assert_eq!(log.get(), (1, 1));
    }

    /// Pitfall D14: a full disk is told of, and nothing of what waits for it is lost.
    #[test]
    fn a_write_that_finds_no_space_is_tried_again_until_there_is_some() {
        let (_, mut writes) = writes(3);
        let log = Counts { purges_needed: 1, ..Counts::default() };
        let upto = EntryId::new(1, 1);
        let (first, rest) = (writes.remove(0), writes);
        let (sender, jobs) = mpsc::channel();
        let (events, mut said) = unbounded_channel();
        sender.send(LogJob::Write(first)).unwrap();
        let log_loop = log_loop(&log, jobs, events);
        let thread = std::thread::spawn(move || log_loop.run());
        let full = said.blocking_recv().unwrap();
        assert!(matches!(full, LogEvent::Space { is_full: true }), "{full:?}");
        assert_eq!(log.get(), (0, 0), "nothing was written or synced");
        rest.into_iter().for_each(|write| sender.send(LogJob::Write(write)).unwrap());
        sender.send(LogJob::Purge(upto)).unwrap();
        drop(sender);
        thread.join().unwrap();
        let events: Vec<_> = std::iter::from_fn(|| said.try_recv().ok()).collect();
        assert!(
            matches!(
                events[..],
                [
                    LogEvent::Purged { .. },
                    LogEvent::Space { is_full: false },
                    LogEvent::Persisted { .. }
                ]
            ),
            "{events:?}"
        );
        assert_eq!(log.get(), (3, 1), "one sync pays for all");
    }

    #[test]
    fn a_purge_is_told_after_the_write_that_came_with_it() {
        let (_, mut writes) = writes(1);
        let log = Counts::default();
        let upto = EntryId::new(1, 1);
        let events = run(&log, [LogJob::Purge(upto), LogJob::Write(writes.remove(0))]);
        assert!(
            matches!(events[..], [LogEvent::Persisted { .. }, LogEvent::Purged { upto: u }] if u == upto),
            "{events:?}"
        );
    }

    /// A log that answers any question with the same entries, or with none at all.
    #[derive(Debug)]
    struct Answers(Option<Vec<u64>>);

    impl LogReader for Answers {
        fn read(&self, _: RangeInclusive<Index>, _: usize) -> Result<Vec<Entry>, LogFailure> {
            let indexes = self.0.as_ref().ok_or("it was purged")?;
            let entry = |&index| Entry::new(EntryId::new(index, 1), Payload::Blank);
            Ok(indexes.iter().map(entry).collect())
        }
    }

    fn read_stored(answers: Option<Vec<u64>>) -> StoredEvent {
        read_stored_of(Answers(answers))
    }

    fn read_stored_of(log: impl LogReader) -> StoredEvent {
        let append = AppendEntries {
            session: Session(1),
            round: Round(1),
            prev: EntryId::new(4, 1),
            commit: Index(9),
            held_by_all: Index(0),
            readmission: None,
            entries: Vec::new(),
        };
        let message = Message { term: Term(1), body: Body::AppendEntries(append) };
        let envelope = Envelope { to: NodeId(2), message };
        let range = Index(5)..=Index(9);
        let (sender, receiver) = mpsc::channel();
        sender.send(StoredRead { envelope, range, bytes_max: 99, session: Session(1) }).unwrap();
        drop(sender);
        let (events, mut said) = unbounded_channel();
        let log: Arc<dyn LogReader> = Arc::new(log);
        run_stored_reads::<StoredEvent>(&log, &receiver, &events);
        said.try_recv().unwrap()
    }

    #[test]
    fn entries_are_put_into_the_message_that_asked_for_them() {
        let StoredEvent::Send(envelope) = read_stored(Some(vec![5, 6, 7])) else {
            panic!("they can be read")
        };
        let Body::AppendEntries(append) = envelope.message.body else { panic!("another message") };
        assert_eq!(append.entries.len(), 3);
    }

    /// Pitfalls M13 and M14: what was purged in the meantime, and what is not what was asked
    /// for, never becomes a message.
    #[test]
    fn what_cannot_be_read_is_not_sent() {
        for answers in [None, Some(vec![]), Some(vec![6]), Some(vec![5, 7])] {
            let event = read_stored(answers.clone());
            let is_retry =
                matches!(event, StoredEvent::Unavailable { why: Unavailable::Retry, .. });
            assert!(is_retry, "{answers:?}: {event:?}");
        }
    }

    /// A log with a damaged entry.
    #[derive(Debug)]
    struct Damaged;

    impl LogReader for Damaged {
        fn read(&self, _: RangeInclusive<Index>, _: usize) -> Result<Vec<Entry>, LogFailure> {
            let (path, what) = ("wal".into(), "a flipped bit".into());
            Err(LogError::Damaged { path, offset: 7, index: None, what }.into())
        }
    }

    #[test]
    fn what_the_disk_does_not_give_back_is_not_asked_for_again() {
        let event = read_stored_of(Damaged);
        let is_damaged =
            matches!(event, StoredEvent::Unavailable { why: Unavailable::Damaged, .. });
        assert!(is_damaged, "{event:?}");
    }
}
