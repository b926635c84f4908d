//! The whole state as a stream of bytes: taken at once, written while others write on.
//!
//! ```text
//!   0        8         12        20       28         36               44       48
//!   │ magic  │ version │ applied │ term   │ revision │ compact revision │ crc   │   header
//!   │ 1 u8   │ length u32 │ records …                                           │   events, many
//!   │ 0 u8   │ 20 u32     │ events u64 │ bytes of records u64 │ crc u32          │   end
//! ```
//!
//! Integers are little-endian, records are those of the files (see `record`) in the order of
//! their revisions. The crc of the header covers the header; that of the end all bytes before
//! it. Kinds of frames that are not known yet are for what the state may hold one day, leases
//! first: a reader that meets one is too old for the snapshot and says so.
//!
//! What compaction has not removed yet is written like the rest; whoever reads it knows from
//! the compact revision what is dead.

use std::{fmt, io, sync::Arc};

use crate::{
    error::Fatal,
    events::{Checkpoint, EventView},
    record::{BLOCK_BYTES, Block, Records, Revision},
    store::{Shared, Store},
};

pub(crate) const MAGIC: [u8; 8] = *b"ktkstore";
pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER_BYTES: usize = 48;
pub(crate) const END: u8 = 0;
pub(crate) const EVENTS: u8 = 1;
pub(crate) const END_BYTES: usize = 20;

/// The state of a [`Store`] at one moment. Nothing that is written later shows in it.
///
/// While it lives, the space of what is removed from the store is not used again.
pub struct StoreSnapshot {
    checkpoint: Checkpoint,
    view: Box<dyn EventView>,
    /// What was not on disk yet.
    pending: Vec<Arc<Block>>,
    /// The files must stay open for as long as they are read.
    _shared: Arc<Shared>,
}

impl fmt::Debug for StoreSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSnapshot")
            .field("checkpoint", &self.checkpoint)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Freezes the state as it is after the last command that was applied. Quick: nothing is
    /// written, and what is copied is what the disk does not hold yet.
    ///
    /// # Errors
    ///
    /// [`Fatal`] when the store has failed.
    pub fn snapshot(&self) -> Result<StoreSnapshot, Fatal> {
        let shared = self.shared();
        // Under the lock nothing is applied, so no compaction comes due that would remove what
        // this state still needs. A flush may go on: what it writes is in `pending` as well.
        let state = shared.read_state()?;
        let pending = state.pending.snapshot();
        let view = shared.events.view()?;
        let checkpoint = state.checkpoint;
        drop(state);
        Ok(StoreSnapshot { checkpoint, view, pending, _shared: shared })
    }
}

impl StoreSnapshot {
    /// Index and term of the last command in it.
    #[must_use]
    pub fn applied(&self) -> (u64, u64) {
        (self.checkpoint.applied_index, self.checkpoint.applied_term)
    }

    /// The revision that it is at.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.checkpoint.revision
    }

    /// Writes all of it, in pieces of a few KiB. Blocks; the store can be used beside it.
    ///
    /// # Errors
    ///
    /// Those of `out`, and damage in the store: every record is verified on its way.
    pub fn write_to(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let mut writer = Writer { out, crc: 0, failure: None };
        writer.put(&encode_header(&self.checkpoint))?;
        let mut frames = Frames {
            writer,
            upto: self.checkpoint.revision,
            last: Revision::default(),
            packed: Vec::with_capacity(BLOCK_BYTES),
            events: 0,
            bytes: 0,
        };
        let scanned = self
            .view
            .scan(&mut |records| frames.add(records))
            .and_then(|()| self.pending.iter().try_for_each(|block| frames.add(block.records())));
        match (scanned, frames.writer.failure.take()) {
            (Ok(()), _) => frames.finish(),
            (Err(_), Some(failure)) => Err(failure),
            (Err(fatal), None) => Err(io::Error::other(fatal)),
        }
    }
}

/// Writes, and keeps the checksum of what is written.
struct Writer<'a> {
    out: &'a mut dyn io::Write,
    crc: u32,
    /// Why `out` refused: a scan can only end with an error of the store.
    failure: Option<io::Error>,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.out.write_all(bytes)
    }

    fn put_frame(&mut self, kind: u8, content: &[u8]) -> io::Result<()> {
        let length = u32::try_from(content.len()).map_err(io::Error::other)?;
        self.put(&[kind])?;
        self.put(&length.to_le_bytes())?;
        self.put(content)
    }
}

/// Packs records into frames.
struct Frames<'a> {
    writer: Writer<'a>,
    /// Events after this revision are later than the snapshot.
    upto: i64,
    /// What was flushed while the snapshot was taken is met twice.
    last: Revision,
    packed: Vec<u8>,
    events: u64,
    bytes: u64,
}

impl Frames<'_> {
    fn add(&mut self, records: Records<'_>) -> Result<(), Fatal> {
        for item in records {
            let (event, record) = item?;
            let at = event.version.at;
            if at <= self.last || self.upto < at.main {
                continue;
            }
            self.last = at;
            if BLOCK_BYTES < self.packed.len() + record.len() {
                self.put_packed().map_err(|error| self.keep(error))?;
            }
            self.packed.extend_from_slice(record);
            self.events += 1;
            self.bytes += u64::try_from(record.len()).expect("a length fits in 64 bits");
        }
        Ok(())
    }

    fn put_packed(&mut self) -> io::Result<()> {
        if self.packed.is_empty() {
            return Ok(());
        }
        self.writer.put_frame(EVENTS, &self.packed)?;
        self.packed.clear();
        Ok(())
    }

    fn keep(&mut self, error: io::Error) -> Fatal {
        self.writer.failure = Some(error);
        Fatal::io("write a snapshot of", io::Error::other("see the error that is kept"))
    }

    fn finish(mut self) -> io::Result<()> {
        self.put_packed()?;
        self.writer.put(&[END])?;
        let length = u32::try_from(END_BYTES).expect("it is 20");
        self.writer.put(&length.to_le_bytes())?;
        self.writer.put(&self.events.to_le_bytes())?;
        self.writer.put(&self.bytes.to_le_bytes())?;
        let crc = self.writer.crc;
        self.writer.put(&crc.to_le_bytes())
    }
}

fn encode_header(checkpoint: &Checkpoint) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&checkpoint.applied_index.to_le_bytes());
    header.extend_from_slice(&checkpoint.applied_term.to_le_bytes());
    header.extend_from_slice(&checkpoint.revision.to_le_bytes());
    header.extend_from_slice(&checkpoint.compact_revision.to_le_bytes());
    header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
    header
}
