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
mod tests;
