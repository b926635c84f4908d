//! An oracle that keeps events as many systems do: in a B-tree on disk, redb, by key and
//! revision. It reads every state from them, removes from them what compaction allows, and is
//! copied and opened again as the store is. The rules of etcd it has from the naive model; that
//! has the state after each revision, and no events.
//!
//! Writes of one transaction share the main revision, and a put and a deletion of one key may
//! be two of them: so the sub revision is a part of the key, too.

use std::{borrow::Cow, io, sync::Arc};

use kontiki_store::{Bytes, KeyValue, Request, Response};
use parking_lot::Mutex;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
};

use super::model::{Keys, Past, Refusal, apply};

/// Key, main and sub revision.
type EventKey = (&'static [u8], i64, u32);

/// Create revision, version (zero in a deletion), value.
type EventRow = (i64, i64, &'static [u8]);

const EVENTS: TableDefinition<'_, EventKey, EventRow> = TableDefinition::new("events");
const REVISIONS: TableDefinition<'_, &str, i64> = TableDefinition::new("revisions");

/// An event, with its place in history first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Event {
    pub(crate) main: i64,
    sub: u32,
    pub(crate) key: Bytes,
    pub(crate) create_revision: i64,
    pub(crate) version: i64,
    pub(crate) value: Bytes,
}

#[derive(Debug)]
pub(crate) struct Oracle {
    file: File,
    /// None while it is opened again.
    database: Option<Database>,
    revision: i64,
    compact_revision: i64,
}

impl Past for Oracle {
    fn revisions(&self) -> (i64, i64) {
        (self.revision, self.compact_revision)
    }

    fn keys(&self, revision: i64) -> Cow<'_, Keys> {
        let mut keys = Keys::new();
        for event in self.by_key().into_iter().filter(|event| event.main <= revision) {
            let Event { main, key, create_revision, version, value, .. } = event;
            if version == 0 {
                keys.remove(&key);
                continue;
            }
            let mod_revision = main;
            let kv = KeyValue {
                key: key.clone(),
                create_revision,
                mod_revision,
                version,
                value,
                lease: 0,
            };
            keys.insert(key, kv);
        }
        Cow::Owned(keys)
    }
}

impl Oracle {
    pub(crate) fn new() -> Self {
        let file = File::default();
        let database = Some(open(&file));
        Self { file, database, revision: 1, compact_revision: -1 }
    }

    fn database(&self) -> &Database {
        self.database.as_ref().unwrap()
    }

    pub(crate) fn apply(&mut self, request: &Request) -> Result<Response, Refusal> {
        let applied = apply(self, request)?;
        let revision = self.revision + i64::from(!applied.changes.is_empty());
        let rows = (0..).zip(&applied.changes).map(|(sub, (key, kv))| {
            let kv = kv.clone().unwrap_or_default();
            let (create_revision, version) = (kv.create_revision, kv.version);
            Event {
                main: revision,
                sub,
                key: key.clone(),
                create_revision,
                version,
                value: kv.value,
            }
        });
        let dead = match request {
            Request::Compact(compact) => {
                self.compact_revision = compact.revision;
                self.dead()
            }
            _ => Vec::new(),
        };
        self.revision = revision;
        self.write(rows, &dead, Durability::None);
        Ok(applied.response)
    }

    /// Adds and removes events.
    fn write(&self, new: impl IntoIterator<Item = Event>, dead: &[Event], durability: Durability) {
        let mut write = self.database().begin_write().unwrap();
        write.set_durability(durability).unwrap();
        {
            let mut events = write.open_table(EVENTS).unwrap();
            for Event { main, sub, key, create_revision, version, value } in new {
                let row = (create_revision, version, &value[..]);
                let former = events.insert((&key[..], main, sub), row).unwrap();
                assert!(former.is_none(), "two events have one place in history");
            }
            for event in dead {
                events.remove((&event.key[..], event.main, event.sub)).unwrap();
            }
            let mut revisions = write.open_table(REVISIONS).unwrap();
            revisions.insert("current", self.revision).unwrap();
            revisions.insert("compact", self.compact_revision).unwrap();
        }
        write.commit().unwrap();
    }

    /// All events, by key and revision.
    fn by_key(&self) -> Vec<Event> {
        let read = self.database().begin_read().unwrap();
        let events = read.open_table(EVENTS).unwrap();
        let rows = events.iter().unwrap().map(|row| {
            let (place, row) = row.unwrap();
            let ((key, main, sub), (create_revision, version, value)) =
                (place.value(), row.value());
            let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            Event { main, sub, key, create_revision, version, value }
        });
        rows.collect()
    }

    /// What nobody may read any more: of each key all up to the compact revision but the newest,
    /// and that, too, if it is a deletion before that revision.
    fn dead(&self) -> Vec<Event> {
        let mut dead = Vec::new();
        let mut events = self.by_key();
        events.retain(|event| event.main <= self.compact_revision);
        for (at, event) in events.iter().enumerate() {
            let is_newest = events.get(at + 1).is_none_or(|next| next.key != event.key);
            let is_gone = event.version == 0 && event.main < self.compact_revision;
            if !is_newest || is_gone {
                dead.push(event.clone());
            }
        }
        dead
    }

    /// All events from `revision` on, in their order.
    pub(crate) fn history(&self, revision: i64) -> Vec<Event> {
        let mut events = self.by_key();
        events.retain(|event| revision <= event.main);
        events.sort();
        events
    }

    /// Closes it, and opens it again.
    pub(crate) fn reopen(&mut self) {
        self.write([], &[], Durability::Immediate);
        self.database = None;
        self.database = Some(open(&self.file));
        let read = self.database().begin_read().unwrap();
        let revisions = read.open_table(REVISIONS).unwrap();
        let found =
            ["current", "compact"].map(|name| revisions.get(name).unwrap().unwrap().value());
        assert_eq!(found, [self.revision, self.compact_revision]);
    }

    /// Another one with the same events.
    pub(crate) fn copy(&self) -> Self {
        let (revision, compact_revision) = self.revisions();
        let copy = Self { revision, compact_revision, ..Self::new() };
        copy.write(self.by_key(), &[], Durability::None);
        copy
    }
}

fn open(file: &File) -> Database {
    let builder = &mut redb::Builder::new();
    let database = builder.set_cache_size(4 << 20).create_with_backend(file.clone()).unwrap();
    let write = database.begin_write().unwrap();
    drop(write.open_table(EVENTS).unwrap());
    drop(write.open_table(REVISIONS).unwrap());
    write.commit().unwrap();
    database
}

/// A file in memory. Clones are the same file.
#[derive(Clone, Debug, Default)]
struct File(Arc<Mutex<Vec<u8>>>);

impl File {
    /// Hands the bytes from `offset` on to `with`.
    fn with<T>(&self, offset: u64, len: usize, with: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let mut bytes = self.0.lock();
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let place = bytes.get_mut(from..from + len).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(with(place))
    }
}

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        let bytes = self.0.lock();
        u64::try_from(bytes.len()).map_err(io::Error::other)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(offset, out.len(), |bytes| out.copy_from_slice(bytes))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut bytes = self.0.lock();
        bytes.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(offset, data.len(), |bytes| bytes.copy_from_slice(data))
    }
}
