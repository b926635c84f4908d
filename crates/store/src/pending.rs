//! Events that are applied and not yet on disk. They are in the replicated log, so nothing is
//! lost with them; they are here so that reads find them.
//!
//! ```text
//!   on disk │ sealed: a flush may be writing them │ open: still growing
//! ──────────┴─────────────────────────────────────┴───────────────────► revision
//! ```

use std::{collections::VecDeque, sync::Arc};

use crate::{
    error::Fatal,
    record::{BLOCK_BYTES, Block, Event, Revision},
};

/// The blocks between the disk and the current revision.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    sealed: VecDeque<Arc<Block>>,
    open: Option<Block>,
    /// The length of all records.
    bytes: usize,
}

impl Pending {
    /// The length of all records in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds an event that comes after all others.
    pub(crate) fn push(&mut self, event: &Event<'_>) {
        let len = event.encoded_len();
        let is_full = self
            .open
            .as_ref()
            .is_some_and(|open| BLOCK_BYTES < open.bytes.len().saturating_add(len));
        if is_full {
            self.seal_open();
        }
        let open = self.open.get_or_insert_with(|| Block {
            first: event.version.at,
            bytes: Vec::with_capacity(BLOCK_BYTES.max(len)),
        });
        event.encode(&mut open.bytes);
        self.bytes += len;
    }

    /// The event of `wanted`, if it is not on disk yet.
    pub(crate) fn find(&self, wanted: Revision) -> Result<Option<Event<'_>>, Fatal> {
        let block = match &self.open {
            Some(open) if open.first <= wanted => Some(open),
            _ => {
                let after = self.sealed.partition_point(|block| block.first <= wanted);
                after.checked_sub(1).and_then(|at| self.sealed.get(at)).map(AsRef::as_ref)
            }
        };
        block.map_or(Ok(None), |block| block.records().find(wanted))
    }

    /// All blocks, sealed. They stay until [`forget`](Self::forget).
    pub(crate) fn seal(&mut self) -> Vec<Arc<Block>> {
        self.seal_open();
        self.sealed.iter().cloned().collect()
    }

    /// A copy of all blocks as they are.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Block>> {
        let open = self.open.clone().map(Arc::new);
        self.sealed.iter().cloned().chain(open).collect()
    }

    /// Drops the oldest `blocks` blocks: they are on disk.
    pub(crate) fn forget(&mut self, blocks: usize) {
        for block in self.sealed.drain(..blocks) {
            self.bytes -= block.bytes.len();
        }
    }

    fn seal_open(&mut self) {
        self.sealed.extend(self.open.take().map(Arc::new));
    }
}
