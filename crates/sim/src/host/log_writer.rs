//! The log thread: one record at a time with one `sync` for all that waits, and what else is
//! done with a log.

use std::time::Duration;

use kontiki::Event;
use kontiki_log::LogError;
use kontiki_raft::{Body, EntryId, NodeId, Unavailable, WriteBatch, WriteTicket};

use crate::{
    dice::Stream,
    network::nanos,
    node::{Happening, StoredRead},
    trace::Note,
    world::{Checked, World},
};

/// How long it takes the core to hear that the log was purged.
const PURGE_DELAY: Duration = Duration::from_millis(1);

/// How soon a write is tried again that a full disk has refused.
pub(super) const FULL_RETRY: Duration = Duration::from_millis(100);

impl World {
    /// Takes all that waits, writes it as one record, and lets the disk take its time.
    pub(super) fn maybe_write(&mut self, id: NodeId) -> Checked {
        let process = self.process(id)?;
        if process.syncing.is_some() || process.waiting.is_empty() || process.has_failed {
            return Ok(());
        }
        let batches: Vec<WriteBatch> =
            process.waiting.iter().map(|(batch, _)| batch.clone()).collect();
        let count = batches.len();
        let written = process.log.write(batches);
        if matches!(written, Err(LogError::NoSpace { .. })) {
            return self.on_full(id);
        }
        let waiting = std::mem::take(&mut process.waiting);
        let mut newest: Option<WriteTicket> = None;
        for (_, ticket) in waiting {
            newest = Some(match newest {
                Some(earlier) => earlier.merge(ticket),
                None => ticket,
            });
        }
        let Some(ticket) = newest else { return Ok(()) };
        process.has_failed = written.is_err();
        let was_full = std::mem::replace(&mut process.is_full, false);
        let life = process.life;
        self.ledger.on_record(id, count);
        if written.is_err() {
            self.note(Note::WriteFailed { node: id });
            let event = Event::WriteFailed(ticket);
            self.schedule(self.now, id, Happening::Event { life, event });
            return Ok(());
        }
        if was_full {
            self.tell_space(id)?;
        }
        self.process(id)?.syncing = Some(ticket);
        let at = (self.now + self.sync_delay(id)).max(self.node(id).stalled_until);
        self.schedule(at, id, Happening::Synced { life });
        self.maybe_fill_spare(id)
    }

    /// There is no room for what waits: it stays, and is tried again.
    fn on_full(&mut self, id: NodeId) -> Checked {
        let process = self.process(id)?;
        let life = process.life;
        process.is_full = true;
        self.tell_space(id)?;
        let at = self.now + nanos(FULL_RETRY);
        self.schedule(at, id, Happening::RetryWrite { life });
        Ok(())
    }

    fn sync_delay(&mut self, id: NodeId) -> u64 {
        let node = self.node_mut(id);
        node.sync_count += 1;
        let count = node.sync_count;
        let range = nanos(self.setup.sync.0)..=nanos(self.setup.sync.1);
        let delay = self.dice.within(&range, Stream::Sync, id.get(), count);
        if self.dice.chance(self.setup.stalls, Stream::Sync, !id.get(), count) {
            return delay * self.dice.within(&(2..=100), Stream::Sync, !id.get(), !count);
        }
        delay
    }

    pub(super) fn on_synced(&mut self, id: NodeId) -> Checked {
        let process = self.process(id)?;
        let Some(ticket) = process.syncing.take() else {
            return Err(format!("{id} has synced nothing"));
        };
        if process.log.sync().is_err() {
            process.has_failed = true;
            self.note(Note::WriteFailed { node: id });
            return self.handle(id, Event::WriteFailed(ticket));
        }
        let last = self.ledger.on_durable(id)?;
        self.note(Note::Durable { node: id, last });
        self.process(id)?.snapshots.settle(last.index);
        self.handle(id, Event::Persisted(ticket))?;
        self.maybe_purge(id)?;
        self.maybe_write(id)
    }

    pub(super) fn maybe_purge(&mut self, id: NodeId) -> Checked {
        let process = self.process(id)?;
        if process.syncing.is_some() || process.has_failed {
            return Ok(());
        }
        let Some(upto) = process.purge.take() else { return Ok(()) };
        self.ledger.on_purge(id, upto)?;
        if self.durable_applied(id)? < upto.index {
            return Err(format!("{id} purges up to {upto}, which its state would not survive"));
        }
        let process = self.process(id)?;
        let life = process.life;
        // A purge that fails is tried again with the next one; a log that is broken says so
        // when it is written to.
        let Ok(start) = process.log.purge(upto) else { return Ok(()) };
        if EntryId::ZERO == start {
            return Ok(());
        }
        if self.ledger.on_purged(id, start)? {
            self.purges += 1;
        }
        self.note(Note::Purged { node: id, upto: start });
        let event = Event::Purged { upto: start };
        self.schedule(self.now + nanos(PURGE_DELAY), id, Happening::Event { life, event });
        Ok(())
    }

    pub(super) fn maybe_fill_spare(&mut self, id: NodeId) -> Checked {
        let process = self.process(id)?;
        if process.is_filling {
            return Ok(());
        }
        process.is_filling = true;
        let life = process.life;
        let delay = self.small_delay(id, Stream::Housekeeping);
        self.schedule(self.now + delay, id, Happening::FillSpare { life });
        Ok(())
    }

    pub(super) fn on_fill_spare(&mut self, id: NodeId) -> Checked {
        let process = self.process(id)?;
        process.is_filling = false;
        let filled = process.spares.fill();
        // A spare that cannot be made is no harm: the log makes one when it needs it.
        if filled.is_ok_and(|is_made| is_made) {
            return self.maybe_fill_spare(id);
        }
        Ok(())
    }

    pub(super) fn on_stored_read(&mut self, id: NodeId, read: StoredRead) -> Checked {
        let StoredRead { mut envelope, range, bytes_max, session } = read;
        let to = envelope.to;
        let process = self.process(id)?;
        if process.has_failed {
            return Ok(());
        }
        let entries = match process.reader.read(range, bytes_max) {
            Ok(entries) => entries,
            Err(error) => {
                let why = match error {
                    LogError::NotInLog { .. } => Unavailable::Retry,
                    _ => Unavailable::Damaged,
                };
                return self.handle(id, Event::EntriesUnavailable { to, session, why });
            }
        };
        let Body::AppendEntries(append) = &mut envelope.message.body else {
            return Err(format!("{id} wants entries in a message that takes none"));
        };
        append.entries = entries;
        self.stored_reads += 1;
        self.send(id, &envelope)
    }
}
