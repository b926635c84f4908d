//! What is true: the state that follows from the committed entries, in their order.
//!
//! The world sees every commit before any state machine applies it, so it knows what every
//! machine must hold after each entry, what every read must have found, and where each operation
//! took effect. That makes the check of histories complete and linear in time: nothing is
//! searched. The rules for each answer are in `requests.rs`; here is what they compare with.

use std::collections::BTreeMap;

use kontiki_raft::{Entry, Index, NodeId};

use crate::{
    command::{Action, Command, Stamp},
    ledger::Broken,
    machine::{Effect, Machine, bytes_digest},
};

/// The one true state, and all states before it.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    machine: Machine,
    /// By index, from 1: the digest of the machine after that entry.
    digests: Vec<u64>,
    /// Every value that a key has had, and from which index on.
    versions: BTreeMap<u64, Vec<(Index, u64)>>,
    /// Where each operation of a session took effect.
    effects: BTreeMap<Stamp, Index>,
    repeats: u64,
}

impl Truth {
    /// The next entry is committed.
    pub(crate) fn commit(&mut self, entry: &Entry) -> Result<(), Broken> {
        let index = entry.id.index;
        let effect = self.machine.apply(entry);
        self.digests.push(self.machine.digest());
        let (Some(effect), Some(command)) = (effect, command_of(entry)) else { return Ok(()) };
        if let Some(stamp) = command.stamp {
            self.on_stamped(stamp, effect, index)?;
        }
        if let (Effect::Done, Action::Put { key, .. } | Action::Append { key, .. }) =
            (effect, &command.action)
        {
            let value = self.machine.value(*key).map_or(0, |value| bytes_digest(&value));
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
        let truth = count.checked_sub(1).and_then(|last| versions.get(last)).map(|(_, v)| *v);
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

pub(crate) fn command_of(entry: &Entry) -> Option<Command> {
    use kontiki_raft::Payload;
    match &entry.payload {
        Payload::Command(bytes) | Payload::Session(bytes) => Command::decode(bytes),
        Payload::Blank | Payload::Membership(_) => None,
    }
}
