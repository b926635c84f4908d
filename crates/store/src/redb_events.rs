//! The event store on redb: a file with two tables.
//!
//! ```text
//!   events   revision of the first event, main u64 ‖ sub u32, big-endian  →  block
//!   meta     "record_bytes" →  the length of all records in `events`, u64
//!            "checkpoint"  →  │ crc u32 │ format u32 │ index u64 │ term u64 │ revision i64 │ compact i64 │
//! ```
//!
//! Durable commits save redb's allocator state with them (quick repair), or opening after a
//! crash would read the whole file. Removals are committed without being made durable: a crash
//! brings events back that nobody can see, and the next compaction finds them again.
//!
//! redb verifies nothing that it reads. A damaged record fails its own checksum, and a lost
//! page shows in `record_bytes`. Damage in redb's own pages can make redb panic (measured: one
//! flipped bit in two hundred): the process stops, which is right, if not polite.
//!
//! All access to the file goes through [`Disk`], which the simulator replaces.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use kontiki_disk::{Disk, DiskFile, DiskLock};
use redb::{
    AccessGuard, Builder, Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable,
    StorageBackend, Table, TableDefinition,
};

use crate::{
    error::{Fatal, OpenError},
    events::{Blocks, Checkpoint, Each, EventStore, EventView, Found, Removed, remove_events},
    record::{Block, Event, Records, Revision},
};

const EVENTS: TableDefinition<'_, [u8; 12], &[u8]> = TableDefinition::new("events");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const CHECKPOINT: &str = "checkpoint";
const RECORD_BYTES: &str = "record_bytes";
const FORMAT: u32 = 1;

const FILE: &str = "events.redb";
const FILE_IN_MAKING: &str = "events.redb.tmp";
/// What a snapshot is read into until it takes over.
const FILE_BESIDE: &str = "events.redb.new";
const LOCK: &str = "LOCK";

/// Events in a redb file.
#[derive(Debug)]
pub(crate) struct RedbEvents {
    database: Database,
    file: Arc<dyn DiskFile>,
    place: Place,
    /// It has not taken over: when it goes, its file goes.
    is_beside: AtomicBool,
}

impl Drop for RedbEvents {
    fn drop(&mut self) {
        if self.is_beside.load(Ordering::Relaxed) {
            // If that fails, the next start removes it.
            drop(remove_if_there(&*self.place.disk, &self.place.dir.join(FILE_BESIDE)));
        }
    }
}

/// Where the file is.
#[derive(Clone, Debug)]
struct Place {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    cache_bytes: usize,
    /// Held for as long as any store of the directory is in use.
    _lock: Arc<dyn DiskLock>,
}

impl RedbEvents {
    /// Opens the store in `dir`, or makes an empty one.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        cache_bytes: usize,
    ) -> Result<(Self, Checkpoint), OpenError> {
        let path = dir.join(FILE);
        let io = |error: io::Error| OpenError::Io { path: path.clone(), source: Arc::new(error) };
        disk.create_dir_all(dir).map_err(io)?;
        let lock = disk.lock(&dir.join(LOCK)).map_err(|error| {
            if error.kind() == io::ErrorKind::WouldBlock {
                OpenError::Locked { path: path.clone() }
            } else {
                io(error)
            }
        })?;
        remove_if_there(&*disk, &dir.join(FILE_BESIDE)).map_err(io)?;
        let file = match disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(&*disk, dir, &path).map_err(io)?;
                disk.open(&path)
            }
            result => result,
        }
        .map_err(io)?;
        let damaged = |source| OpenError::Damaged { path: path.clone(), source };
        let database = Builder::new()
            .set_cache_size(cache_bytes)
            .create_with_backend(Backend(Arc::clone(&file)))
            .map_err(|error| damaged(failed("open", error)))?;
        let place = Place { disk, dir: dir.to_owned(), cache_bytes, _lock: lock.into() };
        let events = Self { database, file, place, is_beside: AtomicBool::new(false) };
        let checkpoint = match events.checkpoint().map_err(damaged)? {
            Ok(checkpoint) => checkpoint,
            Err(found) => return Err(OpenError::Version { path, found, known: FORMAT }),
        };
        Ok((events, checkpoint))
    }

    /// The checkpoint, or the format that is not ours.
    fn checkpoint(&self) -> Result<Result<Checkpoint, u32>, Fatal> {
        let transaction = self.database.begin_read().map_err(|error| failed("read", error))?;
        let meta = transaction.open_table(META).map_err(|error| failed("read", error))?;
        let record = meta.get(CHECKPOINT).map_err(|error| failed("read", error))?;
        let corrupt = |what| Fatal::Corrupt { revision: 0, what };
        let record = record.ok_or(corrupt("checkpoint is missing"))?;
        decode_checkpoint(record.value()).ok_or(corrupt("checkpoint fails its checksum"))
    }
}

/// Makes a file that holds an empty store. It gets its name when it is complete, so that a
/// crash leaves either nothing or a store.
fn create(disk: &dyn Disk, dir: &Path, path: &Path) -> io::Result<()> {
    let in_making = dir.join(FILE_IN_MAKING);
    remove_if_there(disk, &in_making)?;
    let file = disk.create(&in_making)?;
    let database = Builder::new().create_with_backend(Backend(file)).map_err(io::Error::other)?;
    commit(&database, &[], &Checkpoint::default()).map_err(io::Error::other)?;
    database.close().map_err(io::Error::other)?;
    disk.rename(&in_making, path)?;
    disk.sync_dir(dir)
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn failed(op: &'static str, error: impl Into<redb::Error>) -> Fatal {
    Fatal::io(op, error.into())
}

fn commit(
    database: &Database,
    blocks: &[Arc<Block>],
    checkpoint: &Checkpoint,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_quick_repair(true);
    let mut events = transaction.open_table(EVENTS)?;
    for block in blocks {
        events.insert(block.first.to_key(), block.bytes.as_slice())?;
    }
    drop(events);
    let mut meta = transaction.open_table(META)?;
    meta.insert(CHECKPOINT, encode_checkpoint(checkpoint).as_slice())?;
    let added: usize = blocks.iter().map(|block| block.bytes.len()).sum();
    count(&mut meta, |bytes| bytes.wrapping_add(added.try_into().unwrap_or(u64::MAX)))?;
    drop(meta);
    transaction.commit()?;
    Ok(())
}

/// Changes the length of all records, in the transaction that changes the records.
fn count(
    meta: &mut Table<'_, &'static str, &'static [u8]>,
    change: impl FnOnce(u64) -> u64,
) -> Result<(), redb::Error> {
    let bytes = meta.get(RECORD_BYTES)?.and_then(|bytes| decode_count(bytes.value())).unwrap_or(0);
    meta.insert(RECORD_BYTES, change(bytes).to_le_bytes().as_slice())?;
    Ok(())
}

fn decode_count(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
}

impl EventStore for RedbEvents {
    fn write(&self, blocks: &[Arc<Block>], checkpoint: &Checkpoint) -> Result<(), Fatal> {
        commit(&self.database, blocks, checkpoint).map_err(|error| failed("write", error))
    }

    fn read(&self, wanted: &[Revision], found: &mut Found<'_>) -> Result<(), Fatal> {
        let transaction = self.database.begin_read().map_err(|error| failed("read", error))?;
        let table = transaction.open_table(EVENTS).map_err(|error| failed("read", error))?;
        // Neighbours in history are often in one block.
        let mut held = None;
        for (position, at) in wanted.iter().enumerate() {
            if let Some(event) = find_in(held.as_ref(), *at)? {
                found(position, event)?;
                continue;
            }
            let mut blocks = ReadableTable::range::<[u8; 12]>(&table, ..=at.to_key())
                .map_err(|error| failed("read", error))?;
            held = blocks.next_back().transpose().map_err(|error| failed("read", error))?;
            if let Some(event) = find_in(held.as_ref(), *at)? {
                found(position, event)?;
            }
        }
        Ok(())
    }

    fn scan(
        &self,
        from: Revision,
        blocks_max: usize,
        each: &mut Each<'_>,
    ) -> Result<Option<Revision>, Fatal> {
        let read_failed = |error| failed("read", redb::Error::from(error));
        let transaction = self.database.begin_read().map_err(|error| failed("read", error))?;
        let table = transaction.open_table(EVENTS).map_err(|error| failed("read", error))?;
        let mut before =
            ReadableTable::range::<[u8; 12]>(&table, ..=from.to_key()).map_err(read_failed)?;
        let start = match before.next_back() {
            Some(item) => item.map_err(read_failed)?.0.value(),
            None => from.to_key(),
        };
        let mut blocks = ReadableTable::range::<[u8; 12]>(&table, start..).map_err(read_failed)?;
        for item in blocks.by_ref().take(blocks_max) {
            let (name, bytes) = item.map_err(read_failed)?;
            each(Records::new(Revision::from_key(name.value()), bytes.value()))?;
        }
        let next = blocks.next().transpose().map_err(read_failed)?;
        Ok(next.map(|(name, _)| Revision::from_key(name.value())))
    }

    fn remove(&self, dead: &[Revision], blocks_max: usize) -> Result<Removed, Fatal> {
        let mut transaction =
            self.database.begin_write().map_err(|error| failed("compact", error))?;
        transaction.set_durability(Durability::None).map_err(|error| failed("compact", error))?;
        let removed = {
            let table = transaction.open_table(EVENTS).map_err(|error| failed("compact", error))?;
            remove_events(&mut TableBlocks(table), dead, blocks_max)?
        };
        {
            let mut meta =
                transaction.open_table(META).map_err(|error| failed("compact", error))?;
            count(&mut meta, |bytes| bytes.wrapping_sub(removed.bytes))
                .map_err(|error| failed("compact", error))?;
        }
        transaction.commit().map_err(|error| failed("compact", error))?;
        Ok(removed)
    }

    fn record_bytes(&self) -> Result<u64, Fatal> {
        let transaction = self.database.begin_read().map_err(|error| failed("read", error))?;
        let meta = transaction.open_table(META).map_err(|error| failed("read", error))?;
        let bytes = meta.get(RECORD_BYTES).map_err(|error| failed("read", error))?;
        let bytes = bytes.and_then(|bytes| decode_count(bytes.value()));
        bytes.ok_or(Fatal::Corrupt { revision: 0, what: "length of the records is missing" })
    }

    fn size_bytes(&self) -> Result<u64, Fatal> {
        self.file.len().map_err(|error| Fatal::io("measure", error))
    }

    fn view(&self) -> Result<Box<dyn EventView>, Fatal> {
        let transaction = self.database.begin_read().map_err(|error| failed("read", error))?;
        Ok(Box::new(View(transaction)))
    }

    fn beside(&self) -> Result<Box<dyn EventStore>, Fatal> {
        let Place { disk, dir, cache_bytes, .. } = &self.place;
        let path = dir.join(FILE_BESIDE);
        let make = |path: &Path| {
            remove_if_there(&**disk, path)?;
            disk.create(path)
        };
        let file = make(&path).map_err(|error| Fatal::io("restore", error))?;
        let database = Builder::new()
            .set_cache_size(*cache_bytes)
            .create_with_backend(Backend(Arc::clone(&file)))
            .map_err(|error| failed("restore", error))?;
        commit(&database, &[], &Checkpoint::default()).map_err(|error| failed("restore", error))?;
        let place = self.place.clone();
        Ok(Box::new(Self { database, file, place, is_beside: AtomicBool::new(true) }))
    }

    fn take_over(&self) -> Result<(), Fatal> {
        let Place { disk, dir, .. } = &self.place;
        self.is_beside.store(false, Ordering::Relaxed);
        disk.rename(&dir.join(FILE_BESIDE), &dir.join(FILE))
            .and_then(|()| disk.sync_dir(dir))
            .map_err(|error| Fatal::io("restore", error))
    }
}

/// A read transaction: redb keeps the pages that it can see.
struct View(ReadTransaction);

impl EventView for View {
    fn scan(&self, each: &mut Each<'_>) -> Result<(), Fatal> {
        let read_failed = |error| failed("read", redb::Error::from(error));
        let table = self.0.open_table(EVENTS).map_err(|error| failed("read", error))?;
        for item in ReadableTable::iter(&table).map_err(read_failed)? {
            let (name, bytes) = item.map_err(read_failed)?;
            each(Records::new(Revision::from_key(name.value()), bytes.value()))?;
        }
        Ok(())
    }
}

type Item<'a> = (AccessGuard<'a, [u8; 12]>, AccessGuard<'a, &'static [u8]>);

fn find_in<'a>(block: Option<&'a Item<'_>>, at: Revision) -> Result<Option<Event<'a>>, Fatal> {
    let Some((name, bytes)) = block else { return Ok(None) };
    Records::new(Revision::from_key(name.value()), bytes.value()).find(at)
}

/// The table of events in a write transaction.
struct TableBlocks<'a>(Table<'a, [u8; 12], &'static [u8]>);

impl Blocks for TableBlocks<'_> {
    fn holding(&self, at: Revision) -> Result<Option<Block>, Fatal> {
        let mut blocks = ReadableTable::range::<[u8; 12]>(&self.0, ..=at.to_key())
            .map_err(|error| failed("compact", error))?;
        let block = blocks.next_back().transpose().map_err(|error| failed("compact", error))?;
        Ok(block.map(|(name, bytes)| Block {
            first: Revision::from_key(name.value()),
            bytes: bytes.value().to_vec(),
        }))
    }

    fn before(&self, name: Revision) -> Result<Option<Revision>, Fatal> {
        let mut blocks = ReadableTable::range::<[u8; 12]>(&self.0, ..name.to_key())
            .map_err(|error| failed("compact", error))?;
        let block = blocks.next_back().transpose().map_err(|error| failed("compact", error))?;
        Ok(block.map(|(name, _)| Revision::from_key(name.value())))
    }

    fn insert(&mut self, block: &Block) -> Result<(), Fatal> {
        self.0
            .insert(block.first.to_key(), block.bytes.as_slice())
            .map_err(|error| failed("compact", error))?;
        Ok(())
    }

    fn remove(&mut self, name: Revision) -> Result<(), Fatal> {
        self.0.remove(name.to_key()).map_err(|error| failed("compact", error))?;
        Ok(())
    }
}

fn encode_checkpoint(checkpoint: &Checkpoint) -> [u8; 40] {
    let mut record = [0; 40];
    let fields: [&[u8]; 5] = [
        &FORMAT.to_le_bytes(),
        &checkpoint.applied_index.to_le_bytes(),
        &checkpoint.applied_term.to_le_bytes(),
        &checkpoint.revision.to_le_bytes(),
        &checkpoint.compact_revision.to_le_bytes(),
    ];
    let (crc, mut rest) = record.split_at_mut(4);
    for field in fields {
        let (place, after) = rest.split_at_mut(field.len());
        place.copy_from_slice(field);
        rest = after;
    }
    let value = crc32c::crc32c(&fields.concat());
    crc.copy_from_slice(&value.to_le_bytes());
    record
}

/// None if the bytes are damaged; the format if it is not ours.
fn decode_checkpoint(record: &[u8]) -> Option<Result<Checkpoint, u32>> {
    let (crc, covered) = record.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*crc) != crc32c::crc32c(covered) {
        return None;
    }
    let (format, rest) = covered.split_first_chunk::<4>()?;
    let format = u32::from_le_bytes(*format);
    if format != FORMAT {
        return Some(Err(format));
    }
    let (index, rest) = rest.split_first_chunk::<8>()?;
    let (term, rest) = rest.split_first_chunk::<8>()?;
    let (revision, rest) = rest.split_first_chunk::<8>()?;
    let (compact_revision, _) = rest.split_first_chunk::<8>()?;
    Some(Ok(Checkpoint {
        applied_index: u64::from_le_bytes(*index),
        applied_term: u64::from_le_bytes(*term),
        revision: i64::from_le_bytes(*revision),
        compact_revision: i64::from_le_bytes(*compact_revision),
    }))
}

/// A file of a [`Disk`] as redb wants it.
#[derive(Debug)]
struct Backend(Arc<dyn DiskFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}
