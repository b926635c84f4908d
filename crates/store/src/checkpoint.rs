//! The index on disk, so that a start need not read all of history.
//!
//! ```text
//!   │ header: how far history is in it │ block │ block │ … │ footer: the segments it points to │
//! ```
//!
//! It is written in small steps, key by key, while others write on: what is applied meanwhile
//! may be in it or not. A start reads it, and then the frames after the place that the header
//! names; a version that is known already changes nothing. The name of the file is given when
//! all that it points to is durable. It is a shortcut and nothing else: if it is missing or
//! damaged, a start reads the segments from the beginning. `docs/store-format.md` has every
//! byte.

use std::{mem, path::PathBuf, sync::Arc};

use kontiki_disk::DiskFile;
use parking_lot::RwLockReadGuard;

use crate::{
    error::Fatal,
    files::{DurableMark, Files},
    frame::Position,
    index::{KeyEntry, Older},
    key::Key,
    segments::{Held, Segments},
    store::Shared,
    varint,
    writer::full,
};

mod load;

pub(crate) use load::{Loaded, load};

const MAGIC: [u8; 8] = *b"KTKINDX1";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 80;
/// Length of the content, number of keys, checksum.
const BLOCK_HEADER_BYTES: usize = 12;

/// How many keys are encoded under the lock at a time: about 50 µs.
const STEP_KEYS: usize = 500;

/// A block is written when its content has this many bytes.
const BLOCK_BYTES: usize = 256 << 10;

/// What is written before it is synced: little enough that nobody else's sync waits long.
const SYNC_BYTES: usize = 4 << 20;

/// The checkpoint that is being written, if any.
#[derive(Debug, Default)]
pub(crate) struct Checkpointing {
    run: Option<Run>,
}

/// A checkpoint that is being written.
#[derive(Debug)]
struct Run {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// Where the next block goes.
    offset: u64,
    unsynced: usize,
    cursor: Option<Key>,
    block: Block,
    keys: u64,
    is_walked: bool,
}

/// A block that is being filled.
#[derive(Debug, Default)]
struct Block {
    content: Vec<u8>,
    count: u32,
    last_key: Vec<u8>,
}

impl Shared {
    /// Whether one is being written: until it is, no record may move.
    pub(crate) fn is_checkpointing(&self) -> bool {
        self.checkpointing.lock().run.is_some()
    }

    /// Does a little of the checkpoint that is due. Returns whether there was anything to do.
    pub(crate) fn checkpoint_step(&self) -> Result<bool, Fatal> {
        let mut checkpointing = self.checkpointing.lock();
        if checkpointing.run.is_none() {
            let since = self.flushed.lock().since_checkpoint;
            if since < self.options.checkpoint_bytes || self.compaction.lock().is_rewriting() {
                return Ok(false);
            }
            checkpointing.run = self.begin_checkpoint().map_err(|fatal| self.fail(fatal))?;
        }
        let Some(run) = &mut checkpointing.run else { return Ok(false) };
        match self.continue_checkpoint(run).map_err(|fatal| self.fail(fatal))? {
            Step::More => {}
            Step::Done => checkpointing.run = None,
            Step::NoSpace => {
                // Half of it is in the way. If it cannot be removed either, the next start
                // does it.
                drop(self.files.remove(&Files::temporary(&run.path)));
                checkpointing.run = None;
            }
        }
        Ok(true)
    }

    /// Writes a checkpoint of what is durable, from the first key to the last.
    pub(crate) fn checkpoint_now(&self) -> Result<(), Fatal> {
        while self.is_checkpointing() {
            self.checkpoint_step()?;
        }
        if self.flushed.lock().since_checkpoint == 0 || self.compaction.lock().is_rewriting() {
            return Ok(());
        }
        self.checkpointing.lock().run =
            self.begin_checkpoint().map_err(|fatal| self.fail(fatal))?;
        while self.is_checkpointing() {
            self.checkpoint_step()?;
        }
        Ok(())
    }

    fn begin_checkpoint(&self) -> Result<Option<Run>, Fatal> {
        let (mark, position) = {
            let mut flushed = self.flushed.lock();
            flushed.since_checkpoint = 0;
            (flushed.mark, flushed.position)
        };
        let path = self.files.checkpoint_path(mark.frame_seq);
        let temporary = Files::temporary(&path);
        self.files.remove(&temporary).map_err(|error| Fatal::io("checkpoint", error))?;
        let made = self.files.disk.create(&temporary);
        let Some(file) = full(made, "checkpoint")? else { return Ok(None) };
        let header = encode_header(self.files.epoch, &mark, &position);
        if full(file.write_at(0, &header), "checkpoint")?.is_none() {
            // In the way of others. If it cannot be removed either, the next start does it.
            drop(self.files.remove(&temporary));
            return Ok(None);
        }
        Ok(Some(Run {
            path,
            file,
            offset: HEADER_BYTES as u64,
            unsynced: 0,
            cursor: None,
            block: Block::default(),
            keys: 0,
            is_walked: false,
        }))
    }

    fn continue_checkpoint(&self, run: &mut Run) -> Result<Step, Fatal> {
        if run.is_walked {
            return self.finish_checkpoint(run);
        }
        while !run.is_walked && run.block.content.len() < BLOCK_BYTES {
            let state = self.read_state()?;
            let mut seen = 0;
            for (key, entry) in state.index.after(run.cursor.as_deref()).take(STEP_KEYS) {
                run.block.push(key, entry, &state.segments);
                seen += 1;
                if seen == STEP_KEYS {
                    run.cursor = Some(key.clone());
                }
            }
            RwLockReadGuard::unlock_fair(state);
            run.is_walked = seen < STEP_KEYS;
        }
        run.write_block()
    }

    /// Names the file, when all that it points to is durable.
    fn finish_checkpoint(&self, run: &mut Run) -> Result<Step, Fatal> {
        self.flush()?;
        if self.is_full() {
            return Ok(Step::NoSpace);
        }
        let footer = encode_footer(&self.state.read().segments.in_order(), run.keys);
        let written = run.file.write_at(run.offset, &footer);
        let written = written.and_then(|()| run.file.sync_data());
        let Some(()) = full(written, "checkpoint")? else { return Ok(Step::NoSpace) };
        let files = &self.files;
        let renamed = files.disk.rename(&Files::temporary(&run.path), &run.path);
        let renamed = renamed.and_then(|()| files.sync_dir());
        let Some(()) = full(renamed, "checkpoint")? else { return Ok(Step::NoSpace) };
        for path in files.checkpoints().map_err(|error| Fatal::io("checkpoint", error))? {
            if path != run.path {
                files.remove(&path).map_err(|error| Fatal::io("checkpoint", error))?;
            }
        }
        self.tell(&mut self.flushed.lock())?;
        Ok(Step::Done)
    }
}

/// What a step has come to.
enum Step {
    More,
    Done,
    NoSpace,
}

impl Run {
    fn write_block(&mut self) -> Result<Step, Fatal> {
        let Block { content, count, .. } = mem::take(&mut self.block);
        if count == 0 {
            return Ok(Step::More);
        }
        let bytes = encode_block(&content, count);
        let written = self.file.write_at(self.offset, &bytes);
        let Some(()) = full(written, "checkpoint")? else { return Ok(Step::NoSpace) };
        self.offset += bytes.len() as u64;
        self.keys += u64::from(count);
        self.unsynced += bytes.len();
        if SYNC_BYTES <= self.unsynced {
            self.unsynced = 0;
            let synced = self.file.sync_data();
            let Some(()) = full(synced, "checkpoint")? else { return Ok(Step::NoSpace) };
        }
        Ok(Step::More)
    }
}

impl Block {
    /// Adds a key with all its versions.
    fn push(&mut self, key: &[u8], entry: &KeyEntry, segments: &Segments) {
        let shared = key.iter().zip(&self.last_key).take_while(|(a, b)| a == b).count();
        let out = &mut self.content;
        let (_, suffix) = key.split_at(shared);
        varint::put(out, shared as u64);
        varint::put(out, suffix.len() as u64);
        out.extend_from_slice(suffix);
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(suffix);

        let (version, place) = entry.newest();
        let older = entry.older();
        varint::put(out, version.at.main.cast_unsigned());
        varint::put(out, version.at.sub.into());
        varint::put(out, version.version.cast_unsigned());
        varint::put(out, version.create_revision.cast_unsigned());
        varint::put(out, version.lease.cast_unsigned());
        varint::put(out, segments.seq(place.segment));
        varint::put(out, place.offset.into());
        varint::put(out, place.len.into());
        varint::put(out, older.len() as u64);
        for version in older {
            push_older(out, version, segments);
        }
        self.count += 1;
    }
}

fn push_older(out: &mut Vec<u8>, version: &Older, segments: &Segments) {
    let (at, place) = (version.at(), version.place());
    varint::put(out, at.main.cast_unsigned());
    varint::put(out, at.sub.into());
    varint::put(out, segments.seq(place.segment));
    varint::put(out, place.offset.into());
    varint::put(out, u64::from(place.len) << 1 | u64::from(version.is_tombstone()));
}

fn encode_header(epoch: u64, mark: &DurableMark, position: &Position) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&VERSION.to_le_bytes());
    let numbers = [
        epoch,
        mark.segment_seq,
        mark.offset,
        mark.frame_seq,
        position.applied_index,
        position.applied_term,
        position.revision.cast_unsigned(),
        position.compact_revision.cast_unsigned(),
    ];
    for number in numbers {
        header.extend_from_slice(&number.to_le_bytes());
    }
    header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
    assert_eq!(header.len(), HEADER_BYTES, "blocks begin after the header");
    header
}

/// A block of no keys is the footer.
fn encode_block(content: &[u8], count: u32) -> Vec<u8> {
    let len = u32::try_from(content.len()).expect("a block is far below 4 GiB");
    let mut block = Vec::with_capacity(BLOCK_HEADER_BYTES + content.len());
    block.extend_from_slice(&len.to_le_bytes());
    block.extend_from_slice(&count.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&block), content);
    block.extend_from_slice(&crc.to_le_bytes());
    block.extend_from_slice(content);
    block
}

/// The segments that blocks point to, by their place in history, and the number of keys.
fn encode_footer(segments: &[(u32, Held)], keys: u64) -> Vec<u8> {
    let mut content = Vec::new();
    varint::put(&mut content, keys);
    varint::put(&mut content, segments.len() as u64);
    for (_, held) in segments {
        varint::put(&mut content, held.header.seq);
        varint::put(&mut content, held.header.generation.into());
        varint::put(&mut content, held.end);
    }
    encode_block(&content, 0)
}
