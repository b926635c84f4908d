//! A state from the bytes of a snapshot: built beside the one that is there, and put in its
//! place in one step.
//!
//! ```text
//!   snapshot ─► segments of the next epoch, index in memory ─► all of it verified, synced
//!            ─► STATE names the next epoch ─► swap
//! ```
//!
//! A crash before `STATE` is replaced leaves the old state, a crash after it the new one. Reads
//! that are under way end in the old state, whose files are open for as long as they need them.
//! What arrives is verified as if an enemy had sent it; until all of it has been, the old state
//! is what everyone sees.
//!
//! Values stay on disk until somebody reads them, so that no more memory is needed than the
//! index takes, and the index grows in the order of the events: to sort them first would be
//! faster and would need all of them in memory twice.

use std::{io, sync::Arc};

use crate::{
    error::Fatal,
    files::{DurableMark, Files},
    frame::{FRAME_HEADER_BYTES, FrameHeader, HeaderAt, Position},
    index::KeyIndex,
    open::{Opened, place_of},
    record::{Event, Revision, decode},
    segment::{SEGMENT_HEADER_BYTES, Segment, SegmentHeader},
    segments::{Held, Segments},
    snapshot::{END, HEADER_BYTES, MAGIC, SEGMENT, VERSION},
    state::State,
    store::{Shared, Store, StoreOptions},
    tail::Tail,
    writer::Flushed,
};

/// How much is written to a file at a time.
const WRITE_BYTES: usize = 1 << 20;

/// How much is written before it is synced: little enough that nobody else's sync waits long.
const SYNC_BYTES: usize = 8 << 20;

/// The largest frame. A frame holds one batch, and batches are far below this.
const FRAME_BYTES_MAX: u32 = 1 << 30;

/// The most segments: far more than any disk holds.
const SEGMENTS_MAX: u32 = 1 << 20;

/// The highest revision that is believed: so far below the end of the numbers that no command
/// will ever get there.
const REVISION_MAX: i64 = i64::MAX / 2;

/// The highest number of a segment, a copy of one or a frame that is believed, for the same
/// reason.
const NUMBER_MAX: u64 = u64::MAX / 2;
const GENERATION_MAX: u32 = u32::MAX / 2;

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
        let opened = build(&old, at, from)?;
        let told = {
            // The old state must not say again that it is the one that counts.
            let mut flushed = old.flushed.lock();
            let told = opened.files.write_state(opened.flushed.mark);
            // After an error nobody can say which of the two a restart would find.
            flushed.is_replaced = told.map_err(|fatal| old.fail(fatal))?;
            flushed.is_replaced
        };
        if !told {
            drop(opened.files.remove_all());
            let full = io::Error::from(io::ErrorKind::StorageFull);
            return Err(Fatal::io("restore", full).into());
        }
        let former = old.files.clone();
        self.replace(opened).map_err(|error| old.fail(Fatal::io("restore", error)))?;
        // If that fails, the next start does it.
        drop(former.remove_all());
        Ok(())
    }
}

/// The new state, complete and on disk, beside the old one.
fn build(old: &Shared, at: (u64, u64), from: &mut dyn io::Read) -> Result<Opened, RestoreError> {
    let mut input = Input { from, crc: 0 };
    let (position, count) = input.header()?;
    if at < (position.applied_index, position.applied_term) {
        return Err(RestoreError::Damaged("it is later than it should be"));
    }
    let files = old.files.next_epoch();
    files.remove_all().map_err(failed)?;
    let mut builder = Builder {
        files: files.clone(),
        index: KeyIndex::new(old.options.value_cache_bytes),
        segments: Segments::default(),
        upto: position,
        last: Revision::default(),
        last_seq: 0,
        frame_seq: 0,
        position: Position::default(),
        frames: 0,
    };
    let built = builder
        .read_all(&mut input, count)
        .and_then(|()| builder.finish((position, at), old.options.clone()));
    if built.is_err() {
        // If that fails, the next start does it.
        drop(files.remove_all());
    }
    built
}

fn failed(error: io::Error) -> Fatal {
    Fatal::io("restore", error)
}

/// The bytes of the snapshot.
struct Input<'a> {
    from: &'a mut dyn io::Read,
    /// Of all bytes so far.
    crc: u32,
}

impl Input<'_> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), RestoreError> {
        self.from.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => RestoreError::Truncated,
            _ => RestoreError::Read(error),
        })?;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RestoreError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn header(&mut self) -> Result<(Position, u32), RestoreError> {
        let header: [u8; HEADER_BYTES] = self.array()?;
        let mut fields = Fields(&header);
        let what = "its header fails its checksum";
        if fields.take::<8>()? != MAGIC {
            return Err(RestoreError::Damaged("it is no snapshot of a store"));
        }
        let version = u32::from_le_bytes(fields.take()?);
        if version != VERSION {
            return Err(RestoreError::Version { found: version });
        }
        let position = Position {
            applied_index: u64::from_le_bytes(fields.take()?),
            applied_term: u64::from_le_bytes(fields.take()?),
            revision: i64::from_le_bytes(fields.take()?),
            compact_revision: i64::from_le_bytes(fields.take()?),
        };
        let segments = u32::from_le_bytes(fields.take()?);
        let covered = header.split_last_chunk::<4>().map(|(covered, _)| covered);
        if covered.map(crc32c::crc32c) != Some(u32::from_le_bytes(fields.take()?)) {
            return Err(RestoreError::Damaged(what));
        }
        let is_sound = (1..=REVISION_MAX).contains(&position.revision)
            && (-1..=position.revision).contains(&position.compact_revision);
        if !is_sound {
            return Err(RestoreError::Damaged("its revisions make no sense"));
        }
        if SEGMENTS_MAX < segments {
            return Err(RestoreError::Damaged("it says that it has too many parts"));
        }
        Ok((position, segments))
    }

    /// The next frame of a segment, of which `left` bytes are left, into `frame`.
    fn frame(
        &mut self,
        salt: u32,
        left: u64,
        frame: &mut Vec<u8>,
    ) -> Result<FrameHeader, RestoreError> {
        let head: [u8; FRAME_HEADER_BYTES] = self.array()?;
        let header = match FrameHeader::read(&head, salt) {
            HeaderAt::Intact(header) => header,
            HeaderAt::Version(found) => return Err(RestoreError::Version { found: found.into() }),
            HeaderAt::Broken => return Err(RestoreError::Damaged("a frame fails its checksum")),
        };
        if FRAME_BYTES_MAX < header.len || left < u64::from(header.len) {
            return Err(RestoreError::Damaged("a frame of it is too long"));
        }
        frame.clear();
        frame.extend_from_slice(&head);
        // Grows with what arrives: a length is no reason to take memory.
        let rest = u64::from(header.len) - FRAME_HEADER_BYTES as u64;
        let read = io::Read::read_to_end(&mut io::Read::take(&mut *self.from, rest), frame);
        read.map_err(RestoreError::Read)?;
        if frame.len() < header.frame_len() {
            return Err(RestoreError::Truncated);
        }
        self.crc = crc32c::crc32c_append(self.crc, &frame[FRAME_HEADER_BYTES..]);
        if !header.covers(frame, salt) {
            return Err(RestoreError::Damaged("a frame fails its checksum"));
        }
        Ok(header)
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
    files: Files,
    index: KeyIndex,
    segments: Segments,
    /// Where the snapshot ends.
    upto: Position,
    last: Revision,
    /// The last segment and the last frame that were read, and the state after it.
    last_seq: u64,
    frame_seq: u64,
    position: Position,
    frames: u64,
}

impl Builder {
    fn read_all(&mut self, input: &mut Input<'_>, count: u32) -> Result<(), RestoreError> {
        for number in 1..=count {
            let [kind] = input.array()?;
            if kind != SEGMENT {
                return Err(RestoreError::Damaged("a part of it is of an unknown kind"));
            }
            self.segment(input, number)?;
        }
        let [kind] = input.array()?;
        if kind != END {
            return Err(RestoreError::Damaged("it goes on where it should end"));
        }
        if u64::from_le_bytes(input.array()?) != self.frames || self.position != self.upto {
            return Err(RestoreError::Damaged("frames are missing"));
        }
        let crc = input.crc;
        if u32::from_le_bytes(input.array()?) != crc {
            return Err(RestoreError::Damaged("it fails its checksum"));
        }
        input.end()
    }

    /// Reads a segment into a file of its own.
    fn segment(&mut self, input: &mut Input<'_>, number: u32) -> Result<(), RestoreError> {
        let header: [u8; SEGMENT_HEADER_BYTES] = input.array()?;
        let header = SegmentHeader::decode(&header).map_err(|version| match version {
            Some(found) => RestoreError::Version { found },
            None => RestoreError::Damaged("the header of a segment fails its checksum"),
        })?;
        if header.seq != self.last_seq + 1 || header.prev_frame_seq != self.frame_seq {
            return Err(RestoreError::Damaged("a segment is missing"));
        }
        if NUMBER_MAX < header.last_seq || GENERATION_MAX < header.generation {
            return Err(RestoreError::Damaged("the numbers of a segment make no sense"));
        }
        let header = SegmentHeader { epoch: self.files.epoch, ..header };
        let mut left = u64::from_le_bytes(input.array()?);
        let path = self.files.segment_path(&header);
        let segment = Segment::create(&*self.files.disk, path, header).map_err(failed)?;
        let mut output = Output { segment, at: SEGMENT_HEADER_BYTES as u64, unsynced: 0 };
        let (mut waiting, mut frame) = (Vec::new(), Vec::new());
        while 0 < left {
            let frame_header = input.frame(header.salt, left, &mut frame)?;
            left -= u64::from(frame_header.len);
            self.frame(number, output.at + waiting.len() as u64, &frame_header, &frame)?;
            waiting.extend_from_slice(&frame);
            if WRITE_BYTES <= waiting.len() || left == 0 {
                output.write(&waiting).map_err(failed)?;
                waiting.clear();
            }
        }
        output.segment.file.sync_data().map_err(failed)?;
        self.last_seq = header.last_seq;
        let held = Held::on_disk(Arc::new(output.segment), output.at);
        self.segments.insert(number, held);
        Ok(())
    }

    fn frame(
        &mut self,
        number: u32,
        offset: u64,
        header: &FrameHeader,
        frame: &[u8],
    ) -> Result<(), RestoreError> {
        let before = self.position;
        let is_later = self.frame_seq < header.seq
            && header.seq <= NUMBER_MAX
            && before.applied_index <= header.position.applied_index
            && before.revision <= header.position.revision
            && before.compact_revision <= header.position.compact_revision;
        if !is_later {
            return Err(RestoreError::Damaged("a frame is out of order"));
        }
        let mut at = offset + FRAME_HEADER_BYTES as u64;
        for item in header.records(frame) {
            // The checksum of a frame says that it is what was sent, that of a record that it
            // will be what is read.
            let (_, record) = item.map_err(RestoreError::Damaged)?;
            let event = decode(record).map_err(RestoreError::Damaged)?;
            self.check(&event, header.position.revision)?;
            self.last = event.version.at;
            let place = place_of(number, at, record.len());
            let place = place.ok_or(RestoreError::Damaged("a segment of it is too long"))?;
            self.index.replay(event.key, &event.version, place);
            at += record.len() as u64;
        }
        self.frame_seq = header.seq;
        self.position = header.position;
        self.frames += 1;
        Ok(())
    }

    /// Refuses what no store has ever written, and what could not be counted on from.
    fn check(&self, event: &Event<'_>, upto: i64) -> Result<(), RestoreError> {
        let version = event.version;
        if version.at <= self.last || upto < version.at.main || self.upto.revision < upto {
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

    /// Adds a frame that says where in the log this state stands, and makes all of it durable.
    fn finish(
        mut self,
        (position, at): (Position, (u64, u64)),
        options: StoreOptions,
    ) -> Result<Opened, RestoreError> {
        let position = Position { applied_index: at.0, applied_term: at.1, ..position };
        let next = self.segments.iter().next_back().map_or(1, |(number, _)| number + 1);
        let last = (self.frame_seq, self.position);
        let after = (self.last_seq, next);
        let mut tail = Tail::fresh(self.files.clone(), after, last, options.segment_bytes);
        tail.mark(&position, self.frame_seq);
        let mut mark = DurableMark {
            segment_seq: self.last_seq,
            offset: self.segments.iter().next_back().map_or(0, |(_, held)| held.end),
            frame_seq: self.frame_seq,
        };
        for chunk in tail.seal() {
            let path = self.files.segment_path(&chunk.header);
            let made = Segment::create(&*self.files.disk, path, chunk.header).map_err(failed)?;
            made.file.write_at(chunk.start.into(), &chunk.bytes).map_err(failed)?;
            made.file.sync_data().map_err(failed)?;
            self.segments.insert(chunk.segment, Held::on_disk(Arc::new(made), chunk.end()));
            mark.segment_seq = chunk.header.seq;
            (mark.offset, mark.frame_seq) = (chunk.end(), chunk.last_frame);
            drop(tail.forget(1));
        }
        self.files.sync_dir().map_err(failed)?;
        let compact_revision = position.compact_revision;
        let mut index = self.index;
        index.compact_all(compact_revision);
        index.places(&mut |place| self.segments.revive(place));
        let state = State {
            index,
            tail,
            segments: self.segments,
            position,
            durable_frame: mark.frame_seq,
            answer_bytes_max: crate::measure::ANSWER_BYTES_MAX,
        };
        let flushed = Flushed {
            position,
            mark,
            told: mark,
            told_compact_revision: compact_revision,
            since_checkpoint: 0,
            is_replaced: false,
        };
        let (files, walked) = (self.files, compact_revision);
        Ok(Opened { files, state, flushed, walked, options, torn: None })
    }
}

/// A segment that is being written.
struct Output {
    segment: Segment,
    /// Where it ends.
    at: u64,
    unsynced: usize,
}

impl Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.segment.file.write_at(self.at, bytes)?;
        self.at += bytes.len() as u64;
        self.unsynced += bytes.len();
        if SYNC_BYTES <= self.unsynced {
            self.segment.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(())
    }
}
