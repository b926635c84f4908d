//! The log entry (§5.3): an id, what it carries, and a checksum that travels with it.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::{EntryId, Membership};

/// One entry of the replicated log.
///
/// Cheap to clone: the command is shared by the log writer, the messages to every follower and
/// the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position and the term of the leader that wrote it.
    pub id: EntryId,
    /// What it carries.
    pub payload: Payload,
    /// CRC-32C of the command, made by the leader that took the proposal and checked when the
    /// entry is received, read back from disk and applied. Damage in memory or on the way is
    /// noticed before it becomes state. Zero for a payload without a command.
    pub checksum: u32,
}

impl Entry {
    /// Makes an entry and its checksum.
    #[must_use]
    pub fn new(id: EntryId, payload: Payload) -> Self {
        let checksum = payload.checksum();
        Self { id, payload, checksum }
    }

    /// Whether the command is still what the leader took.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.payload.checksum() == self.checksum
    }

    /// Bytes this entry counts for in every bound: the command plus what surrounds it.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        ENTRY_OVERHEAD_BYTES + self.payload.byte_len()
    }
}

/// What an entry costs beside its command, on the wire and on disk. About the size of the
/// record header; its exact value matters to nothing but the meaning of the byte bounds.
const ENTRY_OVERHEAD_BYTES: usize = 32;

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)
    }
}

/// What an entry carries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "whoever applies entries must decide about each kind")]
pub enum Payload {
    /// Nothing. A new leader appends one, so that its term has an entry to commit (§8).
    Blank,
    /// A command for the state machine.
    Command(Bytes),
    /// A command of a client session, or about one: the host's library keeps the sessions, so
    /// that a command that is proposed twice is applied once (§8, thesis §6.3).
    Session(Bytes),
    /// A new membership. In force from the moment it is appended (thesis §4.1).
    Membership(Arc<Membership>),
}

impl Payload {
    fn checksum(&self) -> u32 {
        match self {
            Self::Command(command) | Self::Session(command) => crc32c::crc32c(command),
            Self::Blank | Self::Membership(_) => 0,
        }
    }

    /// Bytes of the command or of the membership.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        match self {
            Self::Blank => 0,
            Self::Command(command) | Self::Session(command) => command.len(),
            Self::Membership(membership) => {
                membership.members.iter().map(|m| 32 + m.address.len() + m.context.len()).sum()
            }
        }
    }
}
