//! What the log thread does with the writes that it is given.

use std::sync::mpsc;

use kontiki_raft::{
    AppendEntries, Bytes, Config, Membership, Message, NodeId, Payload, Recovered, RequestVote,
    Round, Term, Timestamp, VoteKind,
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
    log: &(impl LogWriter + Clone),
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
        let is_retry = matches!(event, StoredEvent::Unavailable { why: Unavailable::Retry, .. });
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
    let is_damaged = matches!(event, StoredEvent::Unavailable { why: Unavailable::Damaged, .. });
    assert!(is_damaged, "{event:?}");
}

/// Keeps what it is given, in order. Has no room for the first `refusals` writes.
#[derive(Clone, Debug, Default)]
struct Keeps {
    kept: Arc<Mutex<Vec<WriteBatch>>>,
    refusals: usize,
}

impl LogWriter for Keeps {
    fn write(&mut self, batches: &[WriteBatch]) -> Result<(), LogFailure> {
        if 0 < self.refusals {
            self.refusals -= 1;
            let (path, source) = ("wal".into(), std::io::Error::other("no space"));
            return Err(LogError::NoSpace { path, source }.into());
        }
        self.kept.lock().unwrap().extend_from_slice(batches);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogFailure> {
        Ok(())
    }

    fn purge(&mut self, upto: EntryId) -> Result<EntryId, LogFailure> {
        Ok(upto)
    }
}

/// A follower votes in term 1, gets an entry of it, and votes in term 2: three writes.
fn votes_and_entries() -> Vec<LogWrite> {
    let voters = [(NodeId(1), "a"), (NodeId(2), "b"), (NodeId(3), "c")];
    let recovered = Recovered {
        memberships: vec![(EntryId::ZERO, Membership::of_voters(voters).into())],
        is_pristine: true,
        ..Recovered::default()
    };
    let mut replica = Replica::new(Config::new(NodeId(1), 1), recovered, Timestamp(0)).unwrap();
    let first = EntryId::new(1, 1);
    let vote = |term, last| {
        Body::RequestVote(RequestVote { kind: VoteKind::Vote, for_term: Term(term), last })
    };
    let append = Body::AppendEntries(AppendEntries {
        session: Session(1),
        round: Round(1),
        prev: EntryId::ZERO,
        commit: Index(0),
        held_by_all: Index(0),
        readmission: None,
        entries: vec![Entry::new(first, Payload::Blank)],
    });
    let mut writes = Vec::new();
    // The last one comes when the loyalty to n2 is over.
    let late = Timestamp(10_000_000_000);
    for (now, from, term, body) in [
        (Timestamp(0), 2, 1, vote(1, EntryId::ZERO)),
        (Timestamp(0), 2, 1, append),
        (late, 3, 2, vote(2, first)),
    ] {
        let mut actions = Vec::new();
        let message = Message { term: Term(term), body };
        replica.handle(now, Event::Message { from: NodeId(from), message });
        replica.poll(now, &mut actions);
        writes.extend(actions.into_iter().filter_map(|action| match action {
            Action::Write(write) => Some(write),
            _ => None,
        }));
    }
    writes
}

/// Pitfall B8. However writes are gathered, and however often a full disk holds them up.
#[test]
fn votes_and_entries_reach_the_log_in_the_order_in_which_they_were_asked_for() {
    for refusals in 0..3 {
        let writes = votes_and_entries();
        let asked: Vec<WriteBatch> = writes.iter().map(|write| write.batch.clone()).collect();
        assert_eq!(asked.len(), 3);
        assert!(asked.iter().all(|batch| batch.hard_state.is_some()), "an entry brings its term");
        let log = Keeps { refusals, ..Keeps::default() };
        let (sender, jobs) = mpsc::channel();
        let (events, mut said) = unbounded_channel();
        writes.into_iter().for_each(|write| sender.send(LogJob::Write(write)).unwrap());
        let log_loop = log_loop(&log, jobs, events);
        let thread = std::thread::spawn(move || log_loop.run());
        while !matches!(said.blocking_recv().unwrap(), LogEvent::Persisted { .. }) {}
        assert_eq!(*log.kept.lock().unwrap(), asked, "{refusals} refusals");
        drop(sender);
        thread.join().unwrap();
    }
}
