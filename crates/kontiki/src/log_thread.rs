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
