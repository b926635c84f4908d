//! The commands of simulated clients: each is unique, so that the checker can follow it.

use kontiki_raft::Bytes;

/// What a simulated client wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    /// The request that it belongs to. No two commands share one.
    pub(crate) request: u64,
    /// The register to write, if this is not just a value for the log.
    pub(crate) key: Option<u64>,
    /// The value.
    pub(crate) value: u64,
    /// Bytes to add, so that large commands can be told apart from small ones.
    pub(crate) padding: usize,
}

const HEADER_BYTES: usize = 24;
const NO_KEY: u64 = u64::MAX;

impl Command {
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.padding);
        bytes.extend_from_slice(&self.request.to_le_bytes());
        bytes.extend_from_slice(&self.key.unwrap_or(NO_KEY).to_le_bytes());
        bytes.extend_from_slice(&self.value.to_le_bytes());
        bytes.resize(HEADER_BYTES + self.padding, 0x5a);
        bytes.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let word = bytes.get(at..at + 8)?;
            Some(u64::from_le_bytes(word.try_into().ok()?))
        };
        let key = word(8)?;
        Some(Self {
            request: word(0)?,
            key: (key != NO_KEY).then_some(key),
            value: word(16)?,
            padding: bytes.len() - HEADER_BYTES,
        })
    }
}
