//! The same layout on redb: keys in memory, an event a row in the order of revisions. Durable
//! every 8 MiB or 100 ms.

use std::{
    collections::BTreeMap,
    ops::Bound,
    path::Path,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use crate::{Subject, load::Batch};

const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
const DURABLE_BYTES: usize = 8 << 20;
const DURABLE_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) struct Redb {
    database: Database,
    index: RwLock<Index>,
    /// Bytes since the last durable commit, and when that was.
    waiting: Mutex<(usize, Instant)>,
}

#[derive(Default)]
struct Index {
    /// The revisions of each key, and whether the newest is a deletion.
    keys: BTreeMap<Vec<u8>, (Vec<u64>, bool)>,
    revision: u64,
}

impl Redb {
    fn value(&self, revisions: &[u64]) -> usize {
        let read = self.database.begin_read().unwrap();
        let events = read.open_table(EVENTS).unwrap();
        revisions.iter().filter(|at| !events.get(**at).unwrap().unwrap().value().is_empty()).count()
    }

    fn each(&self, take: &mut dyn FnMut(&[u8])) {
        // A long read transaction would keep the pages of all that is removed.
        let mut from = 0;
        loop {
            let read = self.database.begin_read().unwrap();
            let events = read.open_table(EVENTS).unwrap();
            let mut count = 0;
            for item in ReadableTable::range(&events, from..).unwrap().take(4096) {
                let (at, event) = item.unwrap();
                from = at.value() + 1;
                take(event.value());
                count += 1;
            }
            if count == 0 {
                return;
            }
        }
    }
}

impl Subject for Redb {
    const NAME: &'static str = "redb";

    fn open(dir: &Path, cache: bool) -> Self {
        let cache = if cache { 512 << 20 } else { 16 << 20 };
        std::fs::create_dir_all(dir).unwrap();
        let path = dir.join("events.redb");
        let database = redb::Builder::new().set_cache_size(cache).create(path).unwrap();
        let write = database.begin_write().unwrap();
        let mut index = Index::default();
        {
            let events = write.open_table(EVENTS).unwrap();
            for item in events.iter().unwrap() {
                let (at, event) = item.unwrap();
                let (key, value) = event.value().split_at(24);
                let entry = index.keys.entry(key.to_vec()).or_default();
                entry.0.push(at.value());
                entry.1 = value.is_empty();
                index.revision = at.value();
            }
        }
        write.commit().unwrap();
        let waiting = Mutex::new((0, Instant::now()));
        Self { database, index: RwLock::new(index), waiting }
    }

    fn apply(&self, batch: &Batch) {
        let mut write = self.database.begin_write().unwrap();
        let mut waiting = self.waiting.lock();
        let is_due = DURABLE_BYTES <= waiting.0 || DURABLE_INTERVAL <= waiting.1.elapsed();
        write
            .set_durability(if is_due { Durability::Immediate } else { Durability::None })
            .unwrap();
        if is_due {
            write.set_quick_repair(true);
            *waiting = (0, Instant::now());
        }
        {
            let mut events = write.open_table(EVENTS).unwrap();
            let mut index = self.index.write();
            for (key, value) in &batch.writes {
                index.revision += 1;
                let revision = index.revision;
                let mut event = key.to_vec();
                event.extend_from_slice(value.as_deref().unwrap_or_default());
                waiting.0 += event.len();
                events.insert(revision, &event[..]).unwrap();
                let entry = index.keys.entry(key.to_vec()).or_default();
                entry.0.push(revision);
                entry.1 = value.is_none();
            }
        }
        write.commit().unwrap();
    }

    fn get(&self, key: &[u8]) -> bool {
        let found = {
            let index = self.index.read();
            index
                .keys
                .get(key)
                .filter(|(_, is_gone)| !is_gone)
                .and_then(|(at, _)| at.last().copied())
        };
        found.is_some_and(|revision| self.value(&[revision]) == 1)
    }

    fn range(&self, from: &[u8], end: &[u8]) -> usize {
        let found: Vec<u64> = {
            let index = self.index.read();
            let bounds = (Bound::Included(from), Bound::Excluded(end));
            let keys = index.keys.range::<[u8], _>(bounds).filter(|(_, (_, is_gone))| !is_gone);
            keys.filter_map(|(_, (at, _))| at.last().copied()).collect()
        };
        self.value(&found)
    }

    fn scan(&self) -> u64 {
        let mut events = 0;
        self.each(&mut |_| events += 1);
        events
    }

    fn snapshot(&self, take: &mut dyn FnMut(&[u8])) {
        let last = self.index.read().revision;
        let mut left = last;
        self.each(&mut |event| {
            if 0 < left {
                left -= 1;
                take(event);
            }
        });
    }

    fn compact_half(&self) {
        let mut dead = Vec::new();
        {
            let mut index = self.index.write();
            let compacted = index.revision / 4 * 3;
            for (revisions, _) in index.keys.values_mut() {
                let old = revisions.partition_point(|at| *at <= compacted);
                dead.extend(revisions.drain(..old.saturating_sub(1)));
            }
        }
        dead.sort_unstable();
        for chunk in dead.chunks(1000) {
            let mut write = self.database.begin_write().unwrap();
            write.set_durability(Durability::None).unwrap();
            {
                let mut events = write.open_table(EVENTS).unwrap();
                for revision in chunk {
                    events.remove(revision).unwrap();
                }
            }
            write.commit().unwrap();
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    fn flush(&self) {
        let write = self.database.begin_write().unwrap();
        write.commit().unwrap();
    }

    fn close(self) {
        self.flush();
    }
}
