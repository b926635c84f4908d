//! The apply thread: the one place where the state machine lives.
//!
//! It takes all that waits, hands the state machine as few batches as it can, and sends back the
//! responses of a whole batch at once: one wake-up for all of them. Reads by closure run here,
//! between two batches.

use std::{
    fmt,
    ops::RangeInclusive,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
};

use kontiki_raft::{Apply, Entry, EntryId, Index, Payload};
use tokio::sync::{OwnedSemaphorePermit, mpsc::UnboundedSender};

use crate::{Batch, Command, Fault, LogFailure, LogReader, ReadError, RequestId, StateMachine};

/// A read by closure. Called with the machine, or with the reason why not.
pub(crate) type ReadFn<S> = Box<dyn FnOnce(Result<&S, ReadError>) + Send>;

/// What the apply thread is asked to do. The bound of the protocol on entries that are not
/// applied yet bounds the queue as well; a read takes its room along.
pub(crate) enum ApplyJob<S> {
    Apply { what: Apply, waiters: Vec<(Index, RequestId)> },
    Read { serve: ReadFn<S>, room: OwnedSemaphorePermit },
}

impl<S> fmt::Debug for ApplyJob<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apply { what, .. } => f.debug_tuple("Apply").field(what).finish(),
            Self::Read { .. } => f.write_str("Read"),
        }
    }
}

/// What it tells the node.
pub(crate) enum ApplyEvent<R> {
    Applied { upto: Index, durable: Index, responses: Vec<(RequestId, EntryId, R)> },
    Failed(Fault),
}

/// A batch ends when its entries pass this many bytes, so that responses do not wait for long.
const BATCH_BYTES: usize = 1 << 20;

/// The state machine, and what is needed to feed it.
pub(crate) struct Applier<S: StateMachine, E> {
    machine: S,
    log: Arc<dyn LogReader>,
    events: UnboundedSender<E>,
    /// Collected, not yet applied.
    entries: Vec<Entry>,
    bytes: usize,
    /// Which of them answer a request of this host, ascending.
    waiters: Vec<(Index, RequestId)>,
}

/// The thread has nothing more to do: the node has stopped, or must.
struct Stop;

impl<S, E> Applier<S, E>
where
    S: StateMachine,
    E: From<ApplyEvent<S::Response>>,
{
    pub(crate) fn new(machine: S, log: Arc<dyn LogReader>, events: UnboundedSender<E>) -> Self {
        Self { machine, log, events, entries: Vec::new(), bytes: 0, waiters: Vec::new() }
    }

    /// Runs until there is nobody left to ask, or the state machine has failed.
    pub(crate) fn run(mut self, jobs: &Receiver<ApplyJob<S>>) {
        while let Ok(mut job) = jobs.recv() {
            loop {
                if self.carry_out(job).is_err() {
                    return;
                }
                match jobs.try_recv() {
                    Ok(next) => job = next,
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            if self.flush().is_err() {
                return;
            }
        }
    }

    fn carry_out(&mut self, job: ApplyJob<S>) -> Result<(), Stop> {
        match job {
            ApplyJob::Apply { what, waiters } => {
                self.waiters.extend(waiters);
                match what {
                    Apply::Entries(entries) => self.collect(entries),
                    Apply::Stored(range) => self.collect_stored(range),
                    Apply::Snapshot(_) => Ok(()),
                }
            }
            ApplyJob::Read { serve, room } => {
                self.flush()?;
                serve(Ok(&self.machine));
                drop(room);
                Ok(())
            }
        }
    }

    fn collect_stored(&mut self, range: RangeInclusive<Index>) -> Result<(), Stop> {
        let (mut next, last) = range.into_inner();
        while next <= last {
            let entries = match self.log.read(next..=last, BATCH_BYTES) {
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
        self.bytes = 0;
        let Some(last) = entries.last() else { return Ok(()) };
        let upto = last.id;
        if let Some(damaged) = entries.iter().find(|entry| !entry.is_intact()) {
            return self.fail(Fault::DamagedEntry { at: damaged.id });
        }
        let commands: Vec<Command<'_>> = entries
            .iter()
            .filter_map(|entry| match &entry.payload {
                Payload::Command(data) => Some(Command { id: entry.id, data }),
                Payload::Blank | Payload::Session(_) | Payload::Membership(_) => None,
            })
            .collect();

        let waited = self.waiters.partition_point(|(index, _)| *index <= upto.index);
        let mut waiters = self.waiters.drain(..waited).peekable();
        let mut responses = Vec::with_capacity(waited);
        let mut count = 0;
        let applied = self.machine.apply_batch(Batch { commands: &commands, upto }, &mut |r| {
            if let Some(command) = commands.get(count)
                && let Some((_, id)) = waiters.next_if(|(index, _)| *index == command.id.index)
            {
                responses.push((id, command.id, r));
            }
            count += 1;
        });
        drop(waiters);
        if let Err(source) = applied {
            return self.fail(Fault::Machine { upto, source: Arc::new(source) });
        }
        if count != commands.len() {
            let commands = commands.len();
            return self.fail(Fault::ResponseCount { commands, responses: count });
        }
        let durable = self.machine.durable_applied().unwrap_or(Index::ZERO);
        self.tell(ApplyEvent::Applied { upto: upto.index, durable, responses })
    }

    fn fail(&self, fault: Fault) -> Result<(), Stop> {
        self.tell(ApplyEvent::Failed(fault))?;
        Err(Stop)
    }

    fn tell(&self, event: ApplyEvent<S::Response>) -> Result<(), Stop> {
        self.events.send(E::from(event)).map_err(|_| Stop)
    }
}
