//! The checksum of the state, by which replicas find that they differ.

use crate::{
    error::{Fatal, StoreError},
    read::readable,
    record::{Records, Revision},
    response::HashKv,
    store::{Shared, Store},
};

/// How many blocks are hashed before writers may pass.
const STEP_BLOCKS: usize = 64;

impl Store {
    /// The hash of every event that history from the compact revision up to `revision` needs;
    /// zero or less means the current revision.
    ///
    /// It depends on the commands alone, not on how far compaction has come in removing what
    /// is not needed, nor on restarts.
    ///
    /// # Errors
    ///
    /// As [`range`](Self::range). [`StoreError::Compacted`] also when history is compacted
    /// while it is read, even if `revision` stays readable.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, StoreError> {
        let shared = self.shared();
        let (checkpoint, at, pending) = {
            let state = shared.read_state()?;
            let at = readable(revision, &state.checkpoint)?;
            (state.checkpoint, at, state.pending.snapshot())
        };
        let compact_revision = checkpoint.compact_revision;
        let mut hasher = Hasher { crc: 0, upto: at, last: Revision::default() };

        let mut from = Some(Revision::default());
        while let Some(name) = from {
            from = hasher.step(&shared, compact_revision, |each| {
                shared.events.scan(name, STEP_BLOCKS, each)
            })?;
        }
        for block in pending {
            // What was flushed meanwhile has been hashed from disk.
            hasher.step(&shared, compact_revision, |each| {
                each(Records::new(block.first, &block.bytes)).map(|()| None)
            })?;
        }
        Ok(HashKv {
            hash: hasher.crc,
            compact_revision,
            hash_revision: at,
            revision: checkpoint.revision,
        })
    }
}

struct Hasher {
    crc: u32,
    upto: i64,
    /// The last event that was looked at. Everything up to it is hashed.
    last: Revision,
}

impl Hasher {
    fn step(
        &mut self,
        shared: &Shared,
        compact_revision: i64,
        read: impl FnOnce(
            &mut dyn FnMut(Records<'_>) -> Result<(), Fatal>,
        ) -> Result<Option<Revision>, Fatal>,
    ) -> Result<Option<Revision>, StoreError> {
        let state = shared.read_state()?;
        if compact_revision != state.checkpoint.compact_revision {
            return Err(StoreError::Compacted);
        }
        Ok(read(&mut |records| {
            for item in records {
                let (event, record) = item?;
                let at = event.version.at;
                if at <= self.last || self.upto < at.main {
                    continue;
                }
                self.last = at;
                let is_retained = compact_revision < at.main
                    || state
                        .index
                        .get(event.key)
                        .is_some_and(|key| key.retains(at, compact_revision));
                if is_retained {
                    // A record holds lengths and numbers too: no two events hash alike
                    // because their bytes follow each other alike.
                    self.crc = crc32c::crc32c_append(self.crc, record);
                }
            }
            Ok(())
        })?)
    }
}
