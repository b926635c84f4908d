//! What is true: the state that follows from the committed entries, in their order.
//!
//! The world sees every commit before any state machine applies it, so it knows what every
//! machine must hold after each entry, what every read must have found, and where each operation
//! took effect. That makes the check of histories complete and linear in time: nothing is
//! searched. The rules for each answer are in `requests.rs`; here is what they compare with.

use std::collections::BTreeMap;

use kontiki_raft::{Bytes, Entry, Index, NodeId};

use crate::{
    command::{Action, Command, Stamp},
    kv::{self, KvEvent},
    ledger::Broken,
    machine::{Effect, Machine, bytes_digest},
};

/// The one true state, and all states before it.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    machine: Machine,
    /// By index, from 1: the digest of the machine after that entry.
    digests: Vec<u64>,
    /// Every value that a key has had, or that it had none, and from which index on.
    versions: BTreeMap<u64, Vec<(Index, Option<u64>)>>,
    /// Where each operation of a session took effect.
    effects: BTreeMap<Stamp, Index>,
    repeats: u64,
    /// What a store holds.
    history: History,
}

/// The history of a store: etcd's revisions, and what was put in each.
#[derive(Debug, Default)]
struct History {
    /// Not kept where no machine is a store.
    is_kept: bool,
    /// By index, from 1: revision and compact revision after that entry.
    revisions: Vec<(i64, i64)>,
    /// In the order of revisions.
    events: Vec<KvEvent>,
}

/// The revisions of an empty store, as in etcd.
const EMPTY: (i64, i64) = (1, -1);

impl Truth {
    /// Keeps the history that a store would have.
    pub(crate) fn keep_history(&mut self) {
        self.history.is_kept = true;
    }

    /// A store that has applied the log up to `applied` is at these revisions, and this is what
    /// it knows from its compact revision on.
    pub(crate) fn assert_history(
        &self,
        id: NodeId,
        applied: Index,
        (compact, revision): (i64, i64),
        events: &[KvEvent],
    ) -> Result<(), Broken> {
        let at = usize::try_from(applied.get()).unwrap_or(usize::MAX);
        let truth = at.checked_sub(1).map_or(Some(&EMPTY), |at| self.history.revisions.get(at));
        if truth != Some(&(revision, compact)) {
            return Err(format!(
                "the store of {id} at {applied} is at revision {revision}, compacted to \
                 {compact}: {truth:?} is true"
            ));
        }
        let kept = self.history.between(compact, revision);
        if kept == events {
            return Ok(());
        }
        let differs = kept.iter().zip(events).find(|(truth, found)| truth != found);
        Err(format!(
            "the store of {id} at {applied} has {} events from {compact} on, and should have {}; \
             the first that differ: {differs:?}",
            events.len(),
            kept.len()
        ))
    }

    /// A store had these keys at a revision.
    pub(crate) fn assert_all_at(
        &self,
        id: NodeId,
        revision: i64,
        found: &[KvEvent],
    ) -> Result<(), Broken> {
        let before = self.history.between(i64::MIN, revision);
        let mut truth: BTreeMap<_, _> = before.iter().map(|event| (&event.key, event)).collect();
        truth.retain(|_, event| !event.is_deletion());
        if truth.values().copied().eq(found) {
            return Ok(());
        }
        Err(format!("the store of {id} at revision {revision} is read as {found:?}: {truth:?}"))
    }

    /// The next entry is committed.
    pub(crate) fn commit(&mut self, entry: &Entry) -> Result<(), Broken> {
        let index = entry.id.index;
        let effect = self.machine.apply(entry);
        self.digests.push(self.machine.digest());
        if self.history.is_kept {
            self.history.commit(entry, effect, &self.machine);
        }
        let (Some(effect), Some(command)) = (effect, command_of(entry)) else { return Ok(()) };
        if let Some(stamp) = command.stamp {
            self.on_stamped(stamp, effect, index)?;
        }
        if let (
            Effect::Done,
            Action::Put { key, .. } | Action::Append { key, .. } | Action::Delete { key },
        ) = (effect, &command.action)
        {
            let value = self.machine.value(*key).map(|value| bytes_digest(&value));
            self.versions.entry(*key).or_default().push((index, value));
        }
        Ok(())
    }

    /// Exactly once: whatever its tries, an operation has one effect.
    fn on_stamped(&mut self, stamp: Stamp, effect: Effect, at: Index) -> Result<(), Broken> {
        match (effect, self.effects.get(&stamp)) {
            (Effect::Done, None) => {
                self.effects.insert(stamp, at);
                Ok(())
            }
            (Effect::Done, Some(earlier)) => {
                Err(format!("{stamp:?} took effect at {earlier}, and once more at {at}"))
            }
            (Effect::Repeated(found), Some(&earlier)) if found == earlier => {
                self.repeats += 1;
                Ok(())
            }
            (Effect::Repeated(found), earlier) => {
                Err(format!("{stamp:?} is taken for done at {found}, and was at {earlier:?}"))
            }
            (Effect::Stale, _) => Ok(()),
        }
    }

    /// A machine has applied the log up to here, or was restored there.
    pub(crate) fn assert_machine(&self, id: NodeId, machine: &Machine) -> Result<(), Broken> {
        if machine.applied == Index::ZERO {
            return Ok(());
        }
        let at = usize::try_from(machine.applied.get() - 1).unwrap_or(usize::MAX);
        if self.digests.get(at) != Some(&machine.digest()) {
            return Err(format!("the state of {id} at {} is not that of the log", machine.applied));
        }
        Ok(())
    }

    /// A read was answered with this value by a machine that had applied the log up to `at`.
    pub(crate) fn assert_read(
        &self,
        at: Index,
        key: u64,
        value: Option<&[u8]>,
    ) -> Result<(), Broken> {
        let versions = self.versions.get(&key).map_or(&[][..], Vec::as_slice);
        let count = versions.partition_point(|(from, _)| *from <= at);
        let truth = count.checked_sub(1).and_then(|last| versions.get(last)).and_then(|(_, v)| *v);
        if truth != value.map(bytes_digest) {
            return Err(format!("key {key} was read as {value:?} at {at}, which it was not"));
        }
        Ok(())
    }

    /// How many tries of operations came after their effect.
    pub(crate) fn repeats(&self) -> u64 {
        self.repeats
    }
}

impl History {
    /// The next entry is committed.
    fn commit(&mut self, entry: &Entry, effect: Option<Effect>, machine: &Machine) {
        let (mut revision, mut compact) = self.revisions.last().copied().unwrap_or(EMPTY);
        if let (Some(Effect::Done), Some(command)) = (effect, command_of(entry)) {
            let session = command.stamp.map(|Stamp { session, sequence }| {
                (kv::session_key(session), kv::session_value(sequence, entry.id.index))
            });
            let value = match command.action {
                Action::Put { key, .. } | Action::Append { key, .. } => {
                    machine.value(key).map(|value| (kv::value_key(key), value))
                }
                Action::Compact { keep } => {
                    let to = revision.saturating_sub(i64::try_from(keep).unwrap_or(0));
                    compact = compact.max(to);
                    None
                }
                Action::Delete { key } => {
                    let key = kv::value_key(key);
                    let last = self.events.iter().rev().find(|event| event.key == key);
                    let is_there = last.is_some_and(|event| !event.is_deletion());
                    is_there.then_some((key, Bytes::new()))
                }
                Action::Note { .. } => None,
            };
            let puts: Vec<_> = session.into_iter().chain(value).collect();
            revision += i64::from(!puts.is_empty());
            let event = |(key, value)| KvEvent { revision, key, value };
            self.events.extend(puts.into_iter().map(event));
        }
        self.revisions.push((revision, compact));
    }

    fn between(&self, first: i64, last: i64) -> &[KvEvent] {
        let from = self.events.partition_point(|event| event.revision < first);
        let to = self.events.partition_point(|event| event.revision <= last);
        &self.events[from..to.max(from)]
    }
}

pub(crate) fn command_of(entry: &Entry) -> Option<Command> {
    use kontiki_raft::Payload;
    match &entry.payload {
        Payload::Command(bytes) | Payload::Session(bytes) => Command::decode(bytes),
        Payload::Blank | Payload::Membership(_) => None,
    }
}
