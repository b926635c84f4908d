//! Building the index from the events on disk.
//!
//! Events lie in the order of revisions and the index is in the order of keys: all of them are
//! collected, sorted once, and the tree is built from its leaves up. That is three times as
//! fast as to insert them one by one.

use bytes::Bytes;

use crate::{
    compaction::Compaction,
    error::Fatal,
    events::{Checkpoint, EventStore},
    index::KeyIndex,
    key::Key,
    pending::Pending,
    record::{Records, Revision, Version},
    state::State,
    store::{Shared, StoreOptions},
};

/// How many blocks are read at a time, so that no read transaction grows old.
const STEP_BLOCKS: usize = 256;

/// A version of a key, and its value while there is room.
type Collected = (Key, Version, Option<Bytes>);

/// The state that `events` hold, and the compaction that an earlier life has left undone.
pub(crate) fn recover(
    events: Box<dyn EventStore>,
    checkpoint: Checkpoint,
    options: StoreOptions,
) -> Result<(Shared, Compaction), Fatal> {
    let mut collector = Collector {
        versions: Vec::new(),
        last: Revision::default(),
        bytes: 0,
        room: options.value_cache_bytes,
    };
    let mut from = Some(Revision::default());
    while let Some(name) = from {
        from = events.scan(name, STEP_BLOCKS, &mut |records| collector.add(records))?;
    }
    if checkpoint.revision < collector.last.main {
        let what = "event is newer than the checkpoint";
        return Err(Fatal::Corrupt { revision: collector.last.main, what });
    }

    if collector.bytes != events.record_bytes()? {
        let what = "events before this one are missing";
        return Err(Fatal::Corrupt { revision: checkpoint.revision, what });
    }

    let mut versions = collector.versions;
    versions.sort_unstable_by(|(a_key, a, _), (b_key, b, _)| {
        a_key.cmp(b_key).then_with(|| a.at.cmp(&b.at))
    });
    let mut dead = Vec::new();
    let compact_revision = checkpoint.compact_revision;
    let index = KeyIndex::build(versions, compact_revision, options.value_cache_bytes, &mut dead);
    let answer_bytes_max = crate::measure::ANSWER_BYTES_MAX;
    let state = State { index, pending: Pending::default(), checkpoint, answer_bytes_max };
    let shared = Shared::new(events, state, collector.bytes, options);
    Ok((shared, Compaction::resume(compact_revision, dead)))
}

struct Collector {
    versions: Vec<Collected>,
    last: Revision,
    bytes: u64,
    /// Bytes of values that may still be kept.
    room: usize,
}

impl Collector {
    fn add(&mut self, records: Records<'_>) -> Result<(), Fatal> {
        for item in records {
            let (event, record) = item?;
            let at = event.version.at;
            if at <= self.last {
                return Err(Fatal::Corrupt { revision: at.main, what: "event is out of order" });
            }
            self.last = at;
            self.bytes += u64::try_from(record.len()).expect("a length fits in 64 bits");
            let has_room = event.value.len() < self.room && !event.version.is_tombstone();
            let value = has_room.then(|| {
                self.room -= event.value.len();
                Bytes::copy_from_slice(event.value)
            });
            self.versions.push((event.key.into(), event.version, value));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        events::MemoryEvents,
        record::{Block, Event},
    };

    fn event(main: i64) -> Block {
        let at = Revision { main, sub: 0 };
        let version = Version { at, create_revision: main, version: 1, lease: 0 };
        let mut bytes = Vec::new();
        Event { version, key: b"k", value: b"v" }.encode(&mut bytes);
        Block { first: at, bytes }
    }

    /// What opening says of these blocks, under a checkpoint of revision 9.
    fn open(blocks: Vec<Block>) -> Result<i64, Fatal> {
        let events = MemoryEvents::default();
        let blocks: Vec<Arc<Block>> = blocks.into_iter().map(Arc::new).collect();
        let checkpoint = Checkpoint { revision: 9, ..Checkpoint::default() };
        events.write(&blocks, &checkpoint).unwrap();
        let options = StoreOptions { background: false, ..StoreOptions::default() };
        let (shared, _) = recover(Box::new(events), checkpoint, options)?;
        let state = shared.state.read();
        Ok(state.index.get(b"k").and_then(|entry| entry.live()).map_or(0, |key| key.at.main))
    }

    #[test]
    fn the_newest_event_is_the_newest_version() {
        assert_eq!(open(vec![event(3), event(5)]).unwrap(), 5);
    }

    #[test]
    fn an_event_out_of_order_is_damage() {
        let mut early = event(7);
        early.first = Revision { main: 2, sub: 0 }; // a block under another's name
        assert!(matches!(open(vec![early, event(5)]), Err(Fatal::Corrupt { revision: 5, .. })));
        assert!(open(vec![event(5), event(5)]).is_ok(), "one name, one block");
    }

    #[test]
    fn an_event_after_the_checkpoint_is_damage() {
        assert!(matches!(open(vec![event(10)]), Err(Fatal::Corrupt { revision: 10, .. })));
    }
}
