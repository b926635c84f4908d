//! The state machine of simulated nodes: a small key-value store with client sessions.
//!
//! It keeps a digest of its own content, so that after each entry all nodes can be compared
//! (State Machine Safety, §5.4.3). The digest of a restored machine is made from what the
//! snapshot holds, not taken from it.

use std::collections::BTreeMap;

use kontiki_raft::{Bytes, Entry, Index, Payload};

use crate::{
    command::{Action, Command, Stamp, take_word},
    dice::splitmix,
};

/// Whether a state machine survives its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is no third way to start")]
pub enum MachineKind {
    /// In memory: rebuilt from the newest snapshot and the log at every start.
    Memory,
    /// Saved with its applied index from time to time: the log is purged behind it.
    Durable,
    /// The store of the server, on the same disk as the log.
    Store,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) applied: Index,
    /// How many commands were applied: blank entries are not counted.
    pub(crate) commands: u64,
    store: BTreeMap<u64, Bytes>,
    /// The newest operation of each session, and where it took effect.
    sessions: BTreeMap<u64, (u64, Index)>,
    /// Of `store` and `sessions`, whatever the order in which they were filled.
    digest: u64,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It was carried out.
    Done,
    /// The operation was carried out by an earlier try, at this index.
    Repeated(Index),
    /// The session has gone on to later operations: nobody waits for this one.
    Stale,
}

impl Machine {
    /// A machine that is at this entry and holds nothing yet.
    pub(crate) fn at(applied: Index, commands: u64) -> Self {
        Self { applied, commands, ..Self::default() }
    }

    /// A key has this value.
    pub(crate) fn restore_value(&mut self, key: u64, value: Bytes) {
        self.put(key, value);
    }

    /// The newest operation of a session, and where it took effect.
    pub(crate) fn restore_session(&mut self, session: u64, newest: (u64, Index)) {
        self.set_session(session, newest);
    }

    /// Applies the next entry. What became of its command, if it has one.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Option<Effect> {
        self.applied = entry.id.index;
        let (Payload::Command(bytes) | Payload::Session(bytes)) = &entry.payload else {
            return None;
        };
        self.commands += 1;
        let Command { stamp, action, .. } = Command::decode(bytes)?;
        if let Some(stamp) = stamp
            && let Some(effect) = self.on_stamp(stamp)
        {
            return Some(effect);
        }
        match action {
            Action::Note { .. } | Action::Compact { .. } => {}
            Action::Put { key, value } => self.put(key, value),
            Action::Delete { key } => {
                if let Some(old) = self.store.remove(&key) {
                    self.digest ^= value_digest(key, &old);
                }
            }
            Action::Append { key, value } => {
                let mut whole = self.store.get(&key).map_or_else(Vec::new, |old| old.to_vec());
                whole.extend_from_slice(&value);
                self.put(key, whole.into());
            }
        }
        Some(Effect::Done)
    }

    /// Whether the operation was seen before; remembers it otherwise.
    fn on_stamp(&mut self, stamp: Stamp) -> Option<Effect> {
        match self.sessions.get(&stamp.session) {
            Some(&(newest, at)) if newest == stamp.sequence => return Some(Effect::Repeated(at)),
            Some(&(newest, _)) if stamp.sequence < newest => return Some(Effect::Stale),
            _ => {}
        }
        self.set_session(stamp.session, (stamp.sequence, self.applied));
        None
    }

    fn set_session(&mut self, session: u64, newest: (u64, Index)) {
        if let Some(old) = self.sessions.insert(session, newest) {
            self.digest ^= session_digest(session, old);
        }
        self.digest ^= session_digest(session, newest);
    }

    fn put(&mut self, key: u64, value: Bytes) {
        self.digest ^= value_digest(key, &value);
        if let Some(old) = self.store.insert(key, value) {
            self.digest ^= value_digest(key, &old);
        }
    }

    pub(crate) fn value(&self, key: u64) -> Option<Bytes> {
        self.store.get(&key).cloned()
    }

    /// One number for the whole content.
    pub(crate) fn digest(&self) -> u64 {
        self.digest ^ splitmix(self.applied.get())
    }

    /// The content as bytes, to be read back by [`decode`](Self::decode).
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut word = |value: u64| bytes.extend_from_slice(&value.to_le_bytes());
        word(self.applied.get());
        word(self.commands);
        word(count(self.sessions.len()));
        for (&session, &(sequence, at)) in &self.sessions {
            word(session);
            word(sequence);
            word(at.get());
        }
        word(count(self.store.len()));
        for (key, value) in &self.store {
            bytes.extend_from_slice(&key.to_le_bytes());
            bytes.extend_from_slice(&count(value.len()).to_le_bytes());
            bytes.extend_from_slice(value);
        }
        bytes
    }

    /// The machine that was encoded. `None` if these are not its bytes.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let mut machine = Self {
            applied: Index(take_word(bytes)?),
            commands: take_word(bytes)?,
            ..Self::default()
        };
        for _ in 0..take_word(bytes)? {
            let session = take_word(bytes)?;
            machine.set_session(session, (take_word(bytes)?, Index(take_word(bytes)?)));
        }
        for _ in 0..take_word(bytes)? {
            let (key, len) = (take_word(bytes)?, usize::try_from(take_word(bytes)?).ok()?);
            let (value, rest) = bytes.split_at_checked(len)?;
            machine.put(key, Bytes::copy_from_slice(value));
            *bytes = rest;
        }
        bytes.is_empty().then_some(machine)
    }
}

fn count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn value_digest(key: u64, value: &[u8]) -> u64 {
    splitmix(splitmix(key) ^ bytes_digest(value))
}

fn session_digest(session: u64, (sequence, at): (u64, Index)) -> u64 {
    splitmix(splitmix(splitmix(!session) ^ sequence) ^ at.get())
}

/// One number for these bytes.
pub(crate) fn bytes_digest(bytes: &[u8]) -> u64 {
    let mut digest = count(bytes.len());
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        digest = splitmix(digest ^ u64::from_le_bytes(word));
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontiki_raft::EntryId;

    fn entry(index: u64, stamp: Option<(u64, u64)>, action: Action) -> Entry {
        let stamp = stamp.map(|(session, sequence)| Stamp { session, sequence });
        let command = Command { request: index, stamp, action };
        Entry::new(EntryId::new(index, 1), Payload::Command(command.encode()))
    }

    fn append(text: &'static str) -> Action {
        Action::Append { key: 1, value: Bytes::from_static(text.as_bytes()) }
    }

    #[test]
    fn an_operation_takes_effect_once() {
        let mut machine = Machine::default();
        assert_eq!(machine.apply(&entry(1, Some((7, 1)), append("a"))), Some(Effect::Done));
        let again = machine.apply(&entry(2, Some((7, 1)), append("a")));
        assert_eq!(again, Some(Effect::Repeated(Index(1))));
        assert_eq!(machine.apply(&entry(3, Some((7, 2)), append("b"))), Some(Effect::Done));
        assert_eq!(machine.apply(&entry(4, Some((7, 1)), append("a"))), Some(Effect::Stale));
        assert_eq!(machine.value(1).as_deref(), Some(&b"ab"[..]));
    }

    #[test]
    fn a_restored_machine_has_the_digest_of_the_one_it_was_made_from() {
        let mut machine = Machine::default();
        machine.apply(&entry(1, Some((7, 1)), append("a")));
        machine.apply(&entry(2, None, append("b")));
        let bytes = machine.encode();
        let restored = Machine::decode(&bytes).expect("its own bytes");
        assert_eq!(restored.digest(), machine.digest());
        assert_eq!((restored.applied, restored.commands), (Index(2), 2));
        let mut other = restored;
        other.apply(&entry(3, None, Action::Note { value: 1, padding: 0 }));
        assert_ne!(other.digest(), machine.digest(), "the index counts, too");
        assert!(Machine::decode(&bytes[..bytes.len() - 1]).is_none());
    }
}
