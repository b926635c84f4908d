//! A state from the bytes of a snapshot: built beside the one that is there, and put in its
//! place in one step.
//!
//! ```text
//!   snapshot ─► events.redb.new, index in memory ─► all of it verified ─► rename, sync ─► swap
//! ```
//!
//! A crash before the rename leaves the old state, a crash after it the new one. Reads that
//! are under way end in the old state, whose file is open for as long as they need it. What
//! arrives is verified as if an enemy had sent it; until all of it has been, the old state is
//! what everyone sees.
//!
//! Values stay on disk until somebody reads them, so that no more memory is needed than the
//! index takes, and the index grows in the order of the events: to sort them first would be
//! faster and would need all of them in memory twice.

use std::{io, sync::Arc};

use crate::{
    compaction::Compaction,
    error::Fatal,
    events::{Checkpoint, EventStore},
    index::KeyIndex,
    pending::Pending,
    record::{Block, Event, Records, Revision},
    snapshot::{END, END_BYTES, EVENTS, HEADER_BYTES, MAGIC, VERSION},
    state::State,
    store::{Shared, Store, StoreOptions},
};

/// Events are written out when this many bytes have come: a sync for each.
const WRITE_BYTES: usize = 16 << 20;

/// The largest frame. A frame holds a few KiB, or one event, and requests are far below this.
const FRAME_BYTES_MAX: u32 = 64 << 20;

/// The highest revision that is believed: so far below the end of the numbers that no command
/// will ever get there.
const REVISION_MAX: i64 = i64::MAX / 2;

/// Why a snapshot was not restored. The store is as it was, but after [`Fatal`](Self::Fatal).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The bytes cannot be read.
    #[error("cannot read the snapshot")]
    Read(#[source] io::Error),
    /// The bytes end in the middle.
    #[error("the snapshot is cut short")]
    Truncated,
    /// It is of a version of this software that this one does not know.
    #[error("the snapshot has format {found}, this build knows {VERSION}")]
    Version {
        /// The format that it says it has.
        found: u32,
    },
    /// The bytes are no snapshot, or damaged.
    #[error("the snapshot is damaged: {0}")]
    Damaged(&'static str),
    /// The disk failed. If it did so before the last step, the store goes on; its
    /// [`check`](Store::check) says whether.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

impl Store {
    /// Replaces the whole state by that of a snapshot, which stands for the log up to index and
    /// term `at`. When this returns it is durable, and [`applied`](Self::applied) is `at`.
    ///
    /// Blocks for as long as it takes; reads go on meanwhile, in the state that was.
    ///
    /// # Errors
    ///
    /// [`RestoreError`]: the bytes are not right, or the disk has failed.
    pub fn restore(&self, at: (u64, u64), from: &mut dyn io::Read) -> Result<(), RestoreError> {
        let old = self.shared();
        old.check()?;
        let (shared, compaction) = build(&old, at, from)?;
        // After this nobody can say which of the two a restart would find.
        shared.events.take_over().map_err(|fatal| old.fail(fatal))?;
        *shared.compaction.lock() = compaction;
        self.replace(shared).map_err(|error| old.fail(Fatal::io("restore", error)))?;
        Ok(())
    }
}

/// The new state, complete and on disk, beside the old one.
fn build(
    old: &Shared,
    at: (u64, u64),
    from: &mut dyn io::Read,
) -> Result<(Shared, Compaction), RestoreError> {
    let mut input = Input { from, crc: 0 };
    let mut checkpoint = input.header()?;
    if at < (checkpoint.applied_index, checkpoint.applied_term) {
        return Err(RestoreError::Damaged("it is later than it should be"));
    }
    (checkpoint.applied_index, checkpoint.applied_term) = at;
    let mut builder = Builder {
        events: old.events.beside()?,
        index: KeyIndex::new(old.options.value_cache_bytes),
        upto: checkpoint.revision,
        last: Revision::default(),
        blocks: Vec::new(),
        waiting_bytes: 0,
        event_count: 0,
        record_bytes: 0,
    };
    loop {
        let (kind, content) = input.frame()?;
        match kind {
            EVENTS => builder.add(content)?,
            END => {
                builder.check_end(&content, input.crc)?;
                input.end()?;
                return builder.finish(checkpoint, old.options.clone());
            }
            _ => return Err(RestoreError::Damaged("a part of it is of an unknown kind")),
        }
    }
}

/// The bytes of the snapshot.
struct Input<'a> {
    from: &'a mut dyn io::Read,
    /// Of all bytes up to the last frame; of the end frame, up to its own checksum.
    crc: u32,
}

impl Input<'_> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), RestoreError> {
        self.from.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => RestoreError::Truncated,
            _ => RestoreError::Read(error),
        })
    }

    fn header(&mut self) -> Result<Checkpoint, RestoreError> {
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header)?;
        self.crc = crc32c::crc32c(&header);
        let mut fields = Fields(&header);
        let what = "its header fails its checksum";
        if fields.take::<8>()? != MAGIC {
            return Err(RestoreError::Damaged("it is no snapshot of a store"));
        }
        let version = u32::from_le_bytes(fields.take()?);
        if version != VERSION {
            return Err(RestoreError::Version { found: version });
        }
        let checkpoint = Checkpoint {
            applied_index: u64::from_le_bytes(fields.take()?),
            applied_term: u64::from_le_bytes(fields.take()?),
            revision: i64::from_le_bytes(fields.take()?),
            compact_revision: i64::from_le_bytes(fields.take()?),
        };
        let covered = header.split_last_chunk::<4>().map(|(covered, _)| covered);
        if covered.map(crc32c::crc32c) != Some(u32::from_le_bytes(fields.take()?)) {
            return Err(RestoreError::Damaged(what));
        }
        let is_sound = (1..=REVISION_MAX).contains(&checkpoint.revision)
            && (-1..=checkpoint.revision).contains(&checkpoint.compact_revision);
        if !is_sound {
            return Err(RestoreError::Damaged("its revisions make no sense"));
        }
        Ok(checkpoint)
    }

    /// The next frame: its kind and content.
    fn frame(&mut self) -> Result<(u8, Vec<u8>), RestoreError> {
        let mut head = [0; 5];
        self.fill(&mut head)?;
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length);
        if FRAME_BYTES_MAX < length {
            return Err(RestoreError::Damaged("a part of it is too long"));
        }
        // Grows with what arrives: a length is no reason to take memory.
        let mut content = Vec::new();
        let limit = u64::from(length);
        let read = io::Read::read_to_end(&mut io::Read::take(&mut *self.from, limit), &mut content);
        if read.map_err(RestoreError::Read)? < usize::try_from(length).unwrap_or(usize::MAX) {
            return Err(RestoreError::Truncated);
        }
        self.crc = crc32c::crc32c_append(self.crc, &head);
        let covered = match (kind, content.split_last_chunk::<4>()) {
            (END, Some((covered, _))) => covered,
            _ => &content,
        };
        self.crc = crc32c::crc32c_append(self.crc, covered);
        Ok((kind, content))
    }

    /// Nothing may follow.
    fn end(&mut self) -> Result<(), RestoreError> {
        match self.fill(&mut [0]) {
            Err(RestoreError::Truncated) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(RestoreError::Damaged("bytes follow its end")),
        }
    }
}

/// Takes numbers off the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], RestoreError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(RestoreError::Truncated)?;
        self.0 = rest;
        Ok(*field)
    }
}

/// Builds a state from events in their order.
struct Builder {
    events: Box<dyn EventStore>,
    index: KeyIndex,
    /// The revision of the snapshot.
    upto: i64,
    last: Revision,
    /// Not written yet.
    blocks: Vec<Arc<Block>>,
    waiting_bytes: usize,
    event_count: u64,
    record_bytes: u64,
}

impl Builder {
    fn add(&mut self, content: Vec<u8>) -> Result<(), RestoreError> {
        let before = self.last;
        let mut first = None;
        for item in Records::new(before, &content) {
            let (event, _) = item.map_err(|_| RestoreError::Damaged("an event is damaged"))?;
            self.check(&event)?;
            self.last = event.version.at;
            first.get_or_insert(event.version.at);
            self.index.replay(event.key, event.version);
            self.event_count += 1;
        }
        let first = first.ok_or(RestoreError::Damaged("a part of it is empty"))?;
        self.record_bytes += u64::try_from(content.len()).expect("a length fits in 64 bits");
        self.waiting_bytes += content.len();
        self.blocks.push(Arc::new(Block { first, bytes: content }));
        if WRITE_BYTES <= self.waiting_bytes {
            // Nobody opens this file before the checkpoint that counts is in it.
            self.events.write(&self.blocks, &Checkpoint::default())?;
            self.blocks.clear();
            self.waiting_bytes = 0;
        }
        Ok(())
    }

    /// Refuses what no store has ever written, and what could not be counted on from.
    fn check(&self, event: &Event<'_>) -> Result<(), RestoreError> {
        let version = event.version;
        if version.at <= self.last || self.upto < version.at.main {
            return Err(RestoreError::Damaged("an event is out of order"));
        }
        let is_sound = if version.is_tombstone() {
            version.create_revision == 0 && event.value.is_empty()
        } else {
            (1..=version.at.main).contains(&version.create_revision)
                && (1..=version.at.main).contains(&version.version)
        };
        if event.key.is_empty() || !is_sound {
            return Err(RestoreError::Damaged("an event makes no sense"));
        }
        Ok(())
    }

    fn check_end(&self, content: &[u8], crc: u32) -> Result<(), RestoreError> {
        if content.len() != END_BYTES {
            return Err(RestoreError::Damaged("its end is malformed"));
        }
        let mut fields = Fields(content);
        if u64::from_le_bytes(fields.take()?) != self.event_count
            || u64::from_le_bytes(fields.take()?) != self.record_bytes
        {
            return Err(RestoreError::Damaged("events are missing"));
        }
        if u32::from_le_bytes(fields.take()?) != crc {
            return Err(RestoreError::Damaged("it fails its checksum"));
        }
        Ok(())
    }

    fn finish(
        mut self,
        checkpoint: Checkpoint,
        options: StoreOptions,
    ) -> Result<(Shared, Compaction), RestoreError> {
        self.events.write(&self.blocks, &checkpoint)?;
        let mut dead = Vec::new();
        let compact_revision = checkpoint.compact_revision;
        let mut cursor = None;
        loop {
            cursor = self.index.compact(cursor.as_deref(), 1000, compact_revision, &mut dead);
            if cursor.is_none() {
                break;
            }
        }
        let state = State {
            index: self.index,
            pending: Pending::default(),
            checkpoint,
            answer_bytes_max: crate::measure::ANSWER_BYTES_MAX,
        };
        let shared = Shared::new(self.events, state, self.record_bytes, options);
        Ok((shared, Compaction::resume(compact_revision, dead)))
    }
}
