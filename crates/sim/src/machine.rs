//! The state machine of simulated nodes: registers, and a count of commands.

use std::collections::BTreeMap;

use kontiki_raft::{Entry, Index, Payload};

use crate::command::Command;

/// Whether a state machine survives its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is no third way to start")]
pub enum MachineKind {
    /// In memory: rebuilt from the log at every start, so the log is never purged.
    Memory,
    /// Saved with its applied index from time to time: the log is purged behind it.
    Durable,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) applied: Index,
    /// How many commands were applied: blank entries are not counted.
    pub(crate) commands: u64,
    registers: BTreeMap<u64, u64>,
}

impl Machine {
    pub(crate) fn apply(&mut self, entry: &Entry) {
        self.applied = entry.id.index;
        if let Payload::Command(bytes) = &entry.payload {
            self.commands += 1;
            if let Some(Command { key: Some(key), value, .. }) = Command::decode(bytes) {
                self.registers.insert(key, value);
            }
        }
    }

    pub(crate) fn register(&self, key: u64) -> Option<u64> {
        self.registers.get(&key).copied()
    }
}
