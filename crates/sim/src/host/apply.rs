//! The apply thread: committed entries become state, in order, and answers.

use kontiki::Event;
use kontiki_raft::{Apply, Entry, EntryId, Index, NodeId};

use crate::{
    dice::Stream,
    machine::{Effect, MachineKind},
    network::nanos,
    node::Happening,
    trace::Note,
    world::{Checked, World},
};

impl World {
    pub(super) fn submit_apply(
        &mut self,
        id: NodeId,
        what: Apply,
        waiters: Vec<(Index, kontiki::RequestId)>,
    ) -> Checked {
        let (first, last) = match &what {
            Apply::Entries(entries) => match (entries.first(), entries.last()) {
                (Some(first), Some(last)) => (first.id.index, last.id.index),
                _ => return Err(format!("{id} applies nothing")),
            },
            Apply::Stored(range) => (*range.start(), *range.end()),
            Apply::Snapshot(meta) => {
                self.ledger.on_apply_snapshot(id, meta.last)?;
                return self.enqueue_apply(id, what, waiters);
            }
        };
        self.ledger.on_apply(id, first, last)?;
        for (_, request) in &waiters {
            self.requests.on_handed(id, request.0)?;
        }
        self.enqueue_apply(id, what, waiters)
    }

    fn enqueue_apply(
        &mut self,
        id: NodeId,
        what: Apply,
        waiters: Vec<(Index, kontiki::RequestId)>,
    ) -> Checked {
        let process = self.process(id)?;
        process.to_apply.push_back((what, waiters));
        if process.to_apply.len() == 1 {
            self.schedule_apply(id);
        }
        Ok(())
    }

    fn schedule_apply(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        node.apply_count += 1;
        let count = node.apply_count;
        let range = nanos(self.setup.apply.0)..=nanos(self.setup.apply.1);
        let delay = self.dice.within(&range, Stream::Apply, id.get(), count);
        let life = self.life(id);
        self.schedule(self.now + delay, id, Happening::Applied { life });
    }

    pub(super) fn on_applied(&mut self, id: NodeId) -> Checked {
        let process = self.process(id)?;
        let Some((what, waiters)) = process.to_apply.pop_front() else {
            return Err(format!("{id} has applied nothing"));
        };
        let is_more = !process.to_apply.is_empty();
        if process.kv.as_ref().is_some_and(|kv| kv.has_failed) {
            return Ok(()); // the process is about to exit
        }
        match what {
            Apply::Entries(entries) => self.apply(id, &entries, &waiters)?,
            Apply::Snapshot(meta) => self.restore(id, meta.last)?,
            Apply::Stored(range) => {
                let mut next = *range.start();
                while next <= *range.end() {
                    let reader = &self.process(id)?.reader;
                    let entries = reader
                        .read(next..=*range.end(), APPLY_BYTES)
                        .map_err(|error| format!("{id} cannot read {next} to apply it: {error}"))?;
                    let last = entries.last().map_or(Index::ZERO, |entry| entry.id.index);
                    if last < next {
                        return Err(format!("{id} reads nothing from {next} on"));
                    }
                    self.apply(id, &entries, &waiters)?;
                    next = last.next();
                }
            }
        }
        let process = self.process(id)?;
        if process.kv.as_ref().is_some_and(|kv| kv.has_failed) {
            return Ok(());
        }
        let upto = process.machine.applied;
        self.note(Note::Applied { node: id, upto });
        self.maybe_save(id)?;
        self.maybe_flush(id)?;
        let durable = self.durable_applied(id)?;
        self.handle(id, Event::Applied { upto, durable })?;
        self.maybe_snapshot(id)?;
        if is_more {
            self.schedule_apply(id);
        }
        Ok(())
    }

    fn apply(
        &mut self,
        id: NodeId,
        entries: &[Entry],
        waiters: &[(Index, kontiki::RequestId)],
    ) -> Checked {
        let now = self.now();
        let process = self.process(id)?;
        let stored = match process.kv.as_ref().map(|kv| kv.apply(entries)).transpose() {
            Ok(stored) => stored.unwrap_or_default(),
            Err(fatal) => return self.fail_kv(id, &fatal),
        };
        for entry in entries {
            self.ledger.on_applied(id, entry)?;
            let process = self.process(id)?;
            let machine = &mut process.machine;
            if entry.id.index != machine.applied.next() {
                return Err(format!("{id} applies {} after {}", entry.id, machine.applied));
            }
            let effect = machine.apply(entry);
            let said = stored.get(&entry.id.index).copied();
            if said.is_some() && said != effect {
                return Err(format!("the store of {id} says {said:?} to {}: {effect:?}", entry.id));
            }
            process.shipping.bytes_since += u64::try_from(entry.byte_len()).unwrap_or_default();
            let machine =
                &self.node(id).process.as_ref().ok_or_else(|| format!("{id} is down"))?.machine;
            self.truth.assert_machine(id, machine)?;
            let effect = match effect {
                Some(Effect::Repeated(at)) => at,
                Some(Effect::Done | Effect::Stale) | None => entry.id.index,
            };
            for &(_, request) in waiters.iter().filter(|(index, _)| *index == entry.id.index) {
                let how = self.requests.on_applied(id, now, request.0, (entry.id, effect))?;
                self.note(Note::Answered { node: id, request: request.0, how });
            }
        }
        Ok(())
    }

    /// The whole state is replaced by that of a snapshot.
    fn restore(&mut self, id: NodeId, last: EntryId) -> Checked {
        let machine = if self.setup.machine == MachineKind::Store {
            let Some(machine) = self.restore_kv(id, last)? else { return Ok(()) };
            machine
        } else {
            self.read_snapshot(id, last)
                .ok_or_else(|| format!("{id} cannot read the snapshot of {last} it was sent"))?
        };
        self.truth.assert_machine(id, &machine)?;
        if self.setup.machine == MachineKind::Durable {
            self.node_mut(id).saved = machine.clone();
        }
        let process = self.process(id)?;
        process.machine = machine;
        process.shipping.bytes_since = 0;
        self.snapshots.installed += 1;
        self.note(Note::Restored { node: id, last });
        Ok(())
    }

    /// A durable state machine saves itself now and then; up to there it will be known after a
    /// crash.
    fn maybe_save(&mut self, id: NodeId) -> Checked {
        if self.setup.machine == MachineKind::Durable {
            let count = self.count(id);
            if self.dice.chance(200_000, Stream::Checkpoint, id.get(), count) {
                let machine = self.process(id)?.machine.clone();
                self.node_mut(id).saved = machine;
            }
        }
        Ok(())
    }
}

/// How much of the log is read at once to be applied.
const APPLY_BYTES: usize = 64 * 1024;
