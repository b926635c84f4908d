//! The log thread, and the threads that help it: reading old entries, and upkeep.
//!
//! The log thread takes everything that waits, writes it at once and makes it durable with one
//! sync (group commit): however many writes came while the last sync was under way, the next one
//! pays for all of them. It never holds up the protocol; a disk that stalls delays
//! acknowledgements and nothing else.

use std::{
    ops::RangeInclusive,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TryRecvError, TrySendError},
    },
};

use kontiki_raft::{
    Body, Entry, EntryId, Envelope, Index, LogWrite, Session, WriteBatch, WriteTicket,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::{LogFailure, LogReader, LogWriter, Upkeep, error::chain};

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
    Persisted(WriteTicket),
    /// The log takes no more. `ticket` is of the write that failed, if it was one.
    Failed {
        ticket: Option<WriteTicket>,
        error: LogFailure,
    },
    Purged {
        upto: EntryId,
    },
}

/// Entries that are written at once, in bytes: more waits for the next write, so that no sync
/// takes longer than a few milliseconds on a disk that is worth the name.
const WRITE_BYTES_MAX: usize = 8 << 20;

/// Upkeep is asked for after this much was written. A fraction of a segment.
const UPKEEP_BYTES: usize = 4 << 20;

/// Runs until there is nobody left to ask, or the log has failed.
pub(crate) fn run_log<E>(
    mut log: Box<dyn LogWriter>,
    jobs: &Receiver<LogJob>,
    events: &UnboundedSender<E>,
    upkeep: Option<&SyncSender<()>>,
) where
    E: From<LogEvent>,
{
    let mut unkept_bytes = 0;
    while let Ok(job) = jobs.recv() {
        let mut work = Work::default();
        work.add(job);
        while work.bytes < WRITE_BYTES_MAX
            && let Ok(job) = jobs.try_recv()
        {
            work.add(job);
        }
        let Work { batches, bytes, ticket, purge } = work;
        if let Some(ticket) = ticket {
            let event = match log.write(batches).and_then(|()| log.sync()) {
                Ok(()) => LogEvent::Persisted(ticket),
                Err(error) => LogEvent::Failed { ticket: Some(ticket), error },
            };
            let has_failed = matches!(event, LogEvent::Failed { .. });
            // Nobody to tell: the node has stopped, and all that waits is still written.
            let is_told = events.send(E::from(event)).is_ok();
            if has_failed {
                return; // not one write more
            }
            if !is_told {
                continue;
            }
        }
        if let Some(upto) = purge {
            let event = match log.purge(upto) {
                Ok(upto) => LogEvent::Purged { upto },
                Err(error) => LogEvent::Failed { ticket: None, error },
            };
            let has_failed = matches!(event, LogEvent::Failed { .. });
            drop(events.send(E::from(event)));
            if has_failed {
                return;
            }
        }
        unkept_bytes += bytes;
        if UPKEEP_BYTES <= unkept_bytes {
            unkept_bytes = 0;
            if let Some(Err(TrySendError::Disconnected(()))) = upkeep.map(|wake| wake.try_send(()))
            {
                tracing::debug!("upkeep has ended before the log");
            }
        }
    }
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
    Unavailable(StoredRead),
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
                let (to, range) = (job.envelope.to, &job.range);
                tracing::warn!(%to, ?range, %error, "entries for a follower cannot be read");
                StoredEvent::Unavailable(job)
            }
        };
        if events.send(E::from(event)).is_err() {
            return;
        }
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

/// Runs upkeep at the start and whenever it is asked for.
pub(crate) fn run_upkeep(mut upkeep: Box<dyn Upkeep>, wakes: &Receiver<()>) {
    loop {
        loop {
            match upkeep.run() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    let error = chain(&*error);
                    tracing::warn!(error, "no segment could be made ahead of its use");
                    break;
                }
            }
            // Between two pieces of work: the node may have stopped.
            if let Err(TryRecvError::Disconnected) = wakes.try_recv() {
                return;
            }
        }
        if wakes.recv().is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use kontiki_raft::{
        AppendEntries, Bytes, Config, Membership, Message, NodeId, Payload, Recovered, Round, Term,
        Timestamp,
    };
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::{Action, Event, Replica, RequestId};

    /// A log that only counts, and fails at the sync of this number.
    #[derive(Clone, Debug, Default)]
    struct Counts(Arc<Mutex<(usize, usize)>>, Option<usize>);

    impl Counts {
        fn get(&self) -> (usize, usize) {
            *self.0.lock().unwrap()
        }
    }

    impl LogWriter for Counts {
        fn write(&mut self, batches: Vec<WriteBatch>) -> Result<(), LogFailure> {
            self.0.lock().unwrap().0 += batches.len();
            Ok(())
        }

        fn sync(&mut self) -> Result<(), LogFailure> {
            let mut counts = self.0.lock().unwrap();
            counts.1 += 1;
            if Some(counts.1) == self.1 { Err("input/output error".into()) } else { Ok(()) }
        }

        fn purge(&mut self, upto: EntryId) -> Result<EntryId, LogFailure> {
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

    /// Runs the log thread over `jobs` and returns what it said.
    fn run(log: &Counts, jobs: impl IntoIterator<Item = LogJob>) -> Vec<LogEvent> {
        let (sender, receiver) = mpsc::channel();
        jobs.into_iter().for_each(|job| sender.send(job).unwrap());
        drop(sender);
        let (events, mut said) = unbounded_channel();
        run_log::<LogEvent>(Box::new(log.clone()), &receiver, &events, None);
        drop(events);
        std::iter::from_fn(|| said.try_recv().ok()).collect()
    }

    #[test]
    fn one_sync_pays_for_all_that_waits() {
        let (mut replica, writes) = writes(10);
        let log = Counts::default();
        let mut events = run(&log, writes.into_iter().map(LogJob::Write));
        assert_eq!(log.get(), (10, 1));
        assert_eq!(events.len(), 1);
        let Some(LogEvent::Persisted(ticket)) = events.pop() else { panic!("it did not fail") };
        replica.handle(Timestamp(0), Event::Persisted(ticket));
        assert_eq!(replica.status().durable_index, Index(10), "the ticket stands for all");
    }

    /// Pitfall D4.
    #[test]
    fn after_a_failed_sync_nothing_is_written_any_more() {
        let (_, mut writes) = writes(3);
        let log = Counts(Arc::default(), Some(1));
        let (sender, receiver) = mpsc::channel();
        let (events, mut said) = unbounded_channel();
        sender.send(LogJob::Write(writes.remove(0))).unwrap();
        run_log::<LogEvent>(Box::new(log.clone()), &receiver, &events, None);
        // It has ended by itself, and nobody can ask it for more.
        assert!(matches!(said.try_recv(), Ok(LogEvent::Failed { ticket: Some(_), .. })));
        drop(receiver);
        assert!(sender.send(LogJob::Write(writes.remove(0))).is_err());
        assert_eq!(log.get(), (1, 1));
    }

    #[test]
    fn a_purge_is_told_after_the_write_that_came_with_it() {
        let (_, mut writes) = writes(1);
        let log = Counts::default();
        let upto = EntryId::new(1, 1);
        let events = run(&log, [LogJob::Purge(upto), LogJob::Write(writes.remove(0))]);
        assert!(
            matches!(events[..], [LogEvent::Persisted(_), LogEvent::Purged { upto: u }] if u == upto),
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
        let log: Arc<dyn LogReader> = Arc::new(Answers(answers));
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
            assert!(matches!(event, StoredEvent::Unavailable(_)), "{answers:?}: {event:?}");
        }
    }
}
