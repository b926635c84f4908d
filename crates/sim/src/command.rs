//! The commands of simulated clients: each is unique, so that the checker can follow it.

use kontiki_raft::Bytes;

/// What a simulated client wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    /// The request that it belongs to. No two commands share one.
    pub(crate) request: u64,
    /// The operation that the request is a try of, if the client uses a session.
    pub(crate) stamp: Option<Stamp>,
    /// What it does.
    pub(crate) action: Action,
}

/// Names an operation of a client over all of its tries (thesis §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Which session.
    pub session: u64,
    /// Which operation of the session, ascending from 1.
    pub sequence: u64,
}

/// What a command does to the state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a machine that overlooks an action must not compile")]
pub enum Action {
    /// Nothing: a value for the log, with bytes to make it larger.
    Note {
        /// The value.
        value: u64,
        /// More bytes.
        padding: usize,
    },
    /// Gives a key a value.
    Put {
        /// The key.
        key: u64,
        /// The value.
        value: Bytes,
    },
    /// Adds to the end of the value of a key.
    Append {
        /// The key.
        key: u64,
        /// What is added.
        value: Bytes,
    },
    /// Takes a key away.
    Delete {
        /// The key.
        key: u64,
    },
    /// Forgets history, where the state machine has one.
    Compact {
        /// So many of the newest revisions are kept.
        keep: u64,
    },
}

const STAMPED: u8 = 0x10;
const NOTE: u8 = 0;
const PUT: u8 = 1;
const APPEND: u8 = 2;
const COMPACT: u8 = 3;
const DELETE: u8 = 4;

impl Command {
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(48);
        bytes.extend_from_slice(&self.request.to_le_bytes());
        let (tag, word) = match &self.action {
            Action::Note { value, .. } => (NOTE, *value),
            Action::Put { key, .. } => (PUT, *key),
            Action::Append { key, .. } => (APPEND, *key),
            Action::Compact { keep } => (COMPACT, *keep),
            Action::Delete { key } => (DELETE, *key),
        };
        bytes.push(tag | if self.stamp.is_some() { STAMPED } else { 0 });
        if let Some(stamp) = self.stamp {
            bytes.extend_from_slice(&stamp.session.to_le_bytes());
            bytes.extend_from_slice(&stamp.sequence.to_le_bytes());
        }
        bytes.extend_from_slice(&word.to_le_bytes());
        match &self.action {
            Action::Note { padding, .. } => bytes.resize(bytes.len() + padding, 0x5a),
            Action::Put { value, .. } | Action::Append { value, .. } => {
                bytes.extend_from_slice(value);
            }
            Action::Compact { .. } | Action::Delete { .. } => {}
        }
        bytes.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let request = take_word(&mut rest)?;
        let (&tag, after) = rest.split_first()?;
        rest = after;
        let stamp = if tag & STAMPED == 0 {
            None
        } else {
            Some(Stamp { session: take_word(&mut rest)?, sequence: take_word(&mut rest)? })
        };
        let word = take_word(&mut rest)?;
        let value = || Bytes::copy_from_slice(rest);
        let action = match tag & !STAMPED {
            NOTE => Action::Note { value: word, padding: rest.len() },
            PUT => Action::Put { key: word, value: value() },
            APPEND => Action::Append { key: word, value: value() },
            COMPACT => Action::Compact { keep: word },
            DELETE => Action::Delete { key: word },
            _ => return None,
        };
        Some(Self { request, stamp, action })
    }
}

/// The bytes of a value that is a number.
#[must_use]
pub fn number(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_le_bytes())
}

pub(crate) fn take_word(bytes: &mut &[u8]) -> Option<u64> {
    let (word, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_read_back_as_it_was() {
        let value = Bytes::from_static(b"x");
        let actions = [
            Action::Note { value: 7, padding: 3 },
            Action::Put { key: 1, value: value.clone() },
            Action::Append { key: 2, value },
            Action::Compact { keep: 9 },
            Action::Delete { key: 3 },
        ];
        for action in actions {
            for stamp in [None, Some(Stamp { session: 3, sequence: 9 })] {
                let command = Command { request: 5, stamp, action: action.clone() };
                assert_eq!(Command::decode(&command.encode()), Some(command));
            }
        }
        assert_eq!(Command::decode(b"short"), None);
    }
}
