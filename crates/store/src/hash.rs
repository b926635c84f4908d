//! The checksum of the state, by which replicas find that they differ.

use crate::{
    error::{Fatal, StoreError},
    frame::FrameHeader,
    history::History,
    read::readable,
    record::Event,
    response::HashKv,
    store::{Shared, Store},
};

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
        let (history, at) = {
            let mut state = shared.write_state()?;
            let at = readable(revision, &state.position)?;
            (History::of(&mut state), at)
        };
        let compact_revision = history.position.compact_revision;
        let mut hasher =
            Hasher { shared: &shared, crc: 0, upto: at, compact_revision, is_late: false };
        history.frames(&mut |header, frame| hasher.add(header, frame))?;
        if hasher.is_late {
            return Err(StoreError::Compacted);
        }
        Ok(HashKv {
            hash: hasher.crc,
            compact_revision,
            hash_revision: at,
            revision: history.position.revision,
        })
    }
}

impl Shared {
    /// Whether history needs an event that is not after `compact_revision`. `None` if history
    /// was compacted further meanwhile: then nobody knows any more.
    pub(crate) fn retains(
        &self,
        event: &Event<'_>,
        compact_revision: i64,
    ) -> Result<Option<bool>, Fatal> {
        let state = self.read_state()?;
        if state.position.compact_revision != compact_revision {
            return Ok(None);
        }
        let entry = state.index.get(event.key);
        Ok(Some(entry.is_some_and(|key| key.retains(event.version.at, compact_revision))))
    }
}

struct Hasher<'a> {
    shared: &'a Shared,
    crc: u32,
    upto: i64,
    compact_revision: i64,
    /// History was compacted meanwhile.
    is_late: bool,
}

impl Hasher<'_> {
    fn add(&mut self, header: &FrameHeader, frame: &[u8]) -> Result<(), Fatal> {
        if self.is_late {
            return Ok(());
        }
        let state = self.shared.read_state()?;
        self.is_late = self.compact_revision != state.position.compact_revision;
        for item in header.records(frame) {
            let (event, record) = item.map_err(|what| Fatal::unsound(header.seq, what))?;
            let at = event.version.at;
            if self.upto < at.main {
                break;
            }
            let is_retained = self.compact_revision < at.main
                || state
                    .index
                    .get(event.key)
                    .is_some_and(|key| key.retains(at, self.compact_revision));
            if is_retained {
                // A record holds lengths and numbers too: no two events hash alike because
                // their bytes follow each other alike.
                self.crc = crc32c::crc32c_append(self.crc, record);
            }
        }
        Ok(())
    }
}
