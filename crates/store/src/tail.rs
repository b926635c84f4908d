//! Frames that are applied and not yet on disk: the end of history, as it will lie there. They
//! are in the replicated log, so nothing is lost with them; they are here so that reads find
//! them.
//!
//! ```text
//!   on disk │ sealed chunks: a flush may be writing them │ open: still growing
//! ──────────┴────────────────────────────────────────────┴──────────────────► segment, offset
//! ```
//!
//! The place of a record is known when it is made: the file is appended to by nobody else. So
//! applying never waits for the disk, and the index points to where the record will be.

use std::{collections::VecDeque, mem, sync::Arc};

use crate::{
    error::Fatal,
    files::Files,
    frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, Position},
    record::{Event, decode},
    segment::{Place, SEGMENT_HEADER_BYTES, SegmentHeader},
};

/// A chunk is sealed when it reaches this. Large enough that a write costs little beside its
/// bytes, small enough that no allocation is a matter.
const CHUNK_BYTES: usize = 1 << 20;

/// Whole frames that follow each other in one segment.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// The segment they belong to.
    pub(crate) segment: u32,
    pub(crate) header: SegmentHeader,
    /// Where they begin in its file.
    pub(crate) start: u32,
    pub(crate) bytes: Vec<u8>,
    /// The number of the last of the frames, and what they bring the state to.
    pub(crate) last_frame: u64,
    pub(crate) position: Position,
}

impl Chunk {
    /// Where they end in the file.
    pub(crate) fn end(&self) -> u64 {
        u64::from(self.start) + self.bytes.len() as u64
    }
}

/// The frames between the disk and the current revision.
#[derive(Debug)]
pub(crate) struct Tail {
    sealed: VecDeque<Arc<Chunk>>,
    open: Chunk,
    /// Where the frame that is being made begins in `open`, and how many records it has.
    frame_start: usize,
    frame_count: u32,
    /// The length of everything here.
    bytes: usize,
    segment_bytes: u64,
    next_segment: u32,
    files: Files,
}

impl Tail {
    /// Goes on in the segment `header`, which has the number `segment` and ends at `end`, after
    /// frame `last_frame`.
    pub(crate) fn new(
        files: Files,
        (segment, header, end): (u32, SegmentHeader, u32),
        (last_frame, position): (u64, Position),
        segment_bytes: u64,
    ) -> Self {
        let bytes = Vec::new();
        let open = Chunk { segment, header, start: end, bytes, last_frame, position };
        Self {
            sealed: VecDeque::new(),
            open,
            frame_start: 0,
            frame_count: 0,
            bytes: 0,
            segment_bytes,
            next_segment: segment + 1,
            files,
        }
    }

    /// Begins in a segment that does not exist yet, the first after `last_seq`.
    pub(crate) fn fresh(
        files: Files,
        (last_seq, next_segment): (u64, u32),
        (last_frame, position): (u64, Position),
        segment_bytes: u64,
    ) -> Self {
        let header = files.header(last_seq + 1, last_frame);
        let end = u32::try_from(SEGMENT_HEADER_BYTES).expect("it is 64");
        Self::new(files, (next_segment, header, end), (last_frame, position), segment_bytes)
    }

    /// The length of what is not on disk, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The segment that grows.
    pub(crate) fn segment(&self) -> (u32, SegmentHeader) {
        (self.open.segment, self.open.header)
    }

    /// A number for a segment that nobody has yet.
    pub(crate) fn allocate(&mut self) -> u32 {
        let number = self.next_segment;
        self.next_segment = number.checked_add(1).expect("no process makes that many files");
        number
    }

    /// Begins the frame of a batch.
    pub(crate) fn begin(&mut self) {
        let open = &mut self.open;
        if open.bytes.is_empty() {
            open.bytes.reserve(CHUNK_BYTES + CHUNK_BYTES / 8);
        }
        self.frame_start = open.bytes.len();
        self.frame_count = 0;
        open.bytes.resize(self.frame_start + FRAME_HEADER_BYTES, 0);
    }

    /// Adds an event to the frame. Returns where its record will lie.
    pub(crate) fn push(&mut self, event: &Event<'_>) -> Place {
        let (before, len) = (self.open.bytes.len(), event.encoded_len());
        event.encode(&mut self.open.bytes);
        self.frame_count += 1;
        let offset = u32::try_from(before).ok().and_then(|at| self.open.start.checked_add(at));
        Place {
            segment: self.open.segment,
            offset: offset.expect("a segment is far below 4 GiB"),
            len: u32::try_from(len).expect("a record is far below 4 GiB"),
        }
    }

    /// Ends the frame; one without records is taken back. Returns the bytes of its records.
    pub(crate) fn end(&mut self, position: &Position, durable_frame: u64) -> usize {
        if self.frame_count == 0 {
            self.open.bytes.truncate(self.frame_start);
            return 0;
        }
        let records = self.open.bytes.len() - self.frame_start - FRAME_HEADER_BYTES;
        self.seal_frame(position, durable_frame);
        records
    }

    /// Adds a frame without records, if the position has moved since the last one.
    pub(crate) fn mark(&mut self, position: &Position, durable_frame: u64) {
        if self.open.position != *position {
            self.begin();
            self.seal_frame(position, durable_frame);
        }
    }

    fn seal_frame(&mut self, position: &Position, durable_frame: u64) {
        let seq = self.open.last_frame + 1;
        let open = &mut self.open;
        let what = (FrameKind::Batch, seq, durable_frame);
        let (start, salt) = (self.frame_start, open.header.salt);
        FrameHeader::seal(&mut open.bytes, start, salt, what, position, self.frame_count);
        (open.last_frame, open.position) = (seq, *position);
        self.bytes += open.bytes.len() - self.frame_start;
        if self.segment_bytes <= open.end() {
            self.roll();
        } else if CHUNK_BYTES <= open.bytes.len() {
            self.seal_chunk();
        }
    }

    fn seal_chunk(&mut self) {
        let Chunk { segment, header, last_frame, position, .. } = self.open;
        if self.open.bytes.is_empty() {
            return;
        }
        let start = u32::try_from(self.open.end()).expect("a segment is far below 4 GiB");
        let next = Chunk { segment, header, start, bytes: Vec::new(), last_frame, position };
        self.sealed.push_back(Arc::new(mem::replace(&mut self.open, next)));
    }

    /// The next frame goes into another segment.
    fn roll(&mut self) {
        self.seal_chunk();
        self.open.segment = self.allocate();
        self.open.header = self.files.header(self.open.header.last_seq + 1, self.open.last_frame);
        self.open.start = u32::try_from(SEGMENT_HEADER_BYTES).expect("it is 64");
    }

    /// All frames, sealed. They stay until [`forget`](Self::forget).
    pub(crate) fn seal(&mut self) -> Vec<Arc<Chunk>> {
        self.seal_chunk();
        self.sealed.iter().cloned().collect()
    }

    /// Gives the oldest `chunks` away: they are on disk. To free them takes longer than the
    /// lock should be held.
    pub(crate) fn forget(&mut self, chunks: usize) -> Vec<Arc<Chunk>> {
        let forgotten: Vec<_> = self.sealed.drain(..chunks).collect();
        self.bytes -= forgotten.iter().map(|chunk| chunk.bytes.len()).sum::<usize>();
        forgotten
    }

    /// The event at `place`, if it is not on disk yet. `None` says that a file has it.
    pub(crate) fn find(&self, place: Place) -> Result<Option<Event<'_>>, Fatal> {
        let at = (place.segment, place.offset);
        let is_open = self.open.segment == place.segment && self.open.start <= place.offset;
        let chunk = if is_open {
            &self.open
        } else {
            let after = self.sealed.partition_point(|chunk| (chunk.segment, chunk.start) <= at);
            match after.checked_sub(1).and_then(|before| self.sealed.get(before)) {
                Some(chunk) if chunk.segment == place.segment => chunk,
                _ => return Ok(None),
            }
        };
        let from = usize::try_from(place.offset - chunk.start).expect("an offset in memory");
        let record = chunk.bytes.get(from..from + place.record_len());
        let event = record.map(decode).unwrap_or(Err("a record lies behind the end"));
        event.map(Some).map_err(|what| Fatal::Corrupt {
            file: self.files.segment_path(&chunk.header),
            offset: u64::from(place.offset),
            what: format!("{what}, before it was written"),
        })
    }
}
