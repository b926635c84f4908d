//! A segment: a file of frames that grows until it is sealed, and then only shrinks by being
//! rewritten under another name.
//!
//! ```text
//!   0        8         12     16      24    32         40    44     48               56     60
//!   │ magic  │ version │ salt │ epoch │ seq │ last seq │ gen │ zero │ prev frame seq │ zero │ crc │
//!   64
//!   │ frame │ frame │ …
//! ```
//!
//! `seq` is its place in history, counted from 1. A segment that compaction has rewritten takes
//! the place of those from `seq` to `last seq`, and its `gen` is higher than theirs.
//! `prev frame seq` is the number of the last frame before it: a segment that is missing shows.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki_disk::{ByteReader, Disk, DiskFile};

use crate::{
    error::{Fatal, OpenError},
    frame::{FRAME_HEADER_BYTES, FRAME_VERSION, FrameHeader, HeaderAt},
    record::{Event, decode},
};

/// Where the first frame begins.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"KTKEVNT1";
const VERSION: u32 = 1;

/// How much of a segment is read at a time.
const WINDOW_BYTES: usize = 1 << 20;

/// Where a record lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The number that the segment has in this process.
    pub(crate) segment: u32,
    /// Of the record in its file.
    pub(crate) offset: u32,
    /// Of the record.
    pub(crate) len: u32,
}

impl Place {
    /// The record's length in memory.
    pub(crate) fn record_len(self) -> usize {
        usize::try_from(self.len).unwrap_or(usize::MAX)
    }
}

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Seeds its checksums.
    pub(crate) salt: u32,
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
    /// The last of the segments in whose place it is.
    pub(crate) last_seq: u64,
    pub(crate) generation: u32,
    pub(crate) prev_frame_seq: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let fields: [&[u8]; 10] = [
            &MAGIC,
            &VERSION.to_le_bytes(),
            &self.salt.to_le_bytes(),
            &self.epoch.to_le_bytes(),
            &self.seq.to_le_bytes(),
            &self.last_seq.to_le_bytes(),
            &self.generation.to_le_bytes(),
            &[0; 4],
            &self.prev_frame_seq.to_le_bytes(),
            &[0; 4],
        ];
        let mut at = 0;
        for field in fields {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        }
        let crc = crc32c::crc32c(&bytes[..at]);
        bytes[at..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; `Err` with a version that is not known here, or none for damage.
    pub(crate) fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, Option<u32>> {
        let (covered, crc) = bytes.split_at(SEGMENT_HEADER_BYTES - 4);
        if crc != crc32c::crc32c(covered).to_le_bytes() {
            return Err(None);
        }
        let mut reader = ByteReader::new(covered);
        let mut parse = || {
            let (magic, version) = (reader.array::<8>()?, reader.u32()?);
            let (salt, epoch, seq, last_seq) =
                (reader.u32()?, reader.u64()?, reader.u64()?, reader.u64()?);
            let (generation, _, prev_frame_seq) = (reader.u32()?, reader.u32()?, reader.u64()?);
            let header = Self { salt, epoch, seq, last_seq, generation, prev_frame_seq };
            Some((magic, version, header))
        };
        let (magic, version, header) = parse().ok_or(None)?;
        if magic != MAGIC || header.last_seq < header.seq {
            return Err(None);
        }
        if version != VERSION { Err(Some(version)) } else { Ok(header) }
    }
}

/// A segment file.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
}

impl Segment {
    /// Makes the file, with its header. Neither is durable yet.
    pub(crate) fn create(
        disk: &dyn Disk,
        path: PathBuf,
        header: SegmentHeader,
    ) -> io::Result<Self> {
        // An attempt that found the disk full may have left a part of it.
        match disk.remove(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
        let file = disk.create(&path)?;
        file.write_at(0, &header.encode())?;
        Ok(Self { file, path, header })
    }

    /// Opens a file that has a header. `Ok(None)` if it has none that is whole.
    pub(crate) fn open(disk: &dyn Disk, path: &Path) -> Result<Option<Self>, OpenError> {
        let unreadable = |error| OpenError::unreadable(path, 0, &error);
        let io = |error| OpenError::Io { path: path.to_owned(), source: Arc::new(error) };
        let file = disk.open(path).map_err(io)?;
        if file.len().map_err(io)? < SEGMENT_HEADER_BYTES as u64 {
            return Ok(None);
        }
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        file.read_at(0, &mut bytes).map_err(unreadable)?;
        match SegmentHeader::decode(&bytes) {
            Ok(header) => Ok(Some(Self { file, path: path.to_owned(), header })),
            Err(None) => Ok(None),
            Err(Some(found)) => {
                Err(OpenError::Version { path: path.to_owned(), found, known: VERSION })
            }
        }
    }

    /// Reads and verifies one record into `buf`.
    pub(crate) fn read<'b>(&self, place: Place, buf: &'b mut Vec<u8>) -> Result<Event<'b>, Fatal> {
        buf.resize(place.record_len(), 0);
        let offset = u64::from(place.offset);
        self.file.read_at(offset, buf).map_err(|error| self.unreadable(offset, &error))?;
        decode(buf).map_err(|what| self.damaged(offset, what))
    }

    /// The error for bytes that are not what was written.
    pub(crate) fn damaged(&self, offset: u64, what: impl Into<String>) -> Fatal {
        Fatal::Corrupt { file: self.path.clone(), offset, what: what.into() }
    }

    /// The error for bytes that the disk does not give back: as damaged as any.
    pub(crate) fn unreadable(&self, offset: u64, error: &io::Error) -> Fatal {
        self.damaged(offset, format!("the disk does not give it back: {error}"))
    }

    /// Walks its frames from `offset` to `end`, where it ends or is to be read to.
    pub(crate) fn scan(&self, offset: u64, end: u64) -> Scan<'_> {
        Scan { segment: self, offset, end, window: Vec::new(), window_offset: 0 }
    }
}

/// Where a frame is, its header, and all its bytes.
pub(crate) type IntactFrame<'w> = (u64, FrameHeader, &'w [u8]);

/// Walks the frames of a segment, and verifies each.
#[derive(Debug)]
pub(crate) struct Scan<'a> {
    segment: &'a Segment,
    /// Of the next frame.
    offset: u64,
    end: u64,
    window: Vec<u8>,
    window_offset: u64,
}

/// What stands at one place of a segment.
#[derive(Debug)]
pub(crate) enum Step<'w> {
    /// A frame, at this offset, with all its bytes.
    Frame(u64, FrameHeader, &'w [u8]),
    /// Nothing more.
    End,
    /// Something that is no intact frame.
    Broken(u64, &'static str),
}

impl Scan<'_> {
    /// The next frame.
    ///
    /// # Errors
    ///
    /// If the bytes cannot be read, or are of a newer version.
    pub(crate) fn step(&mut self) -> Result<Step<'_>, Fatal> {
        let (offset, left) = (self.offset, self.end.saturating_sub(self.offset));
        if left == 0 {
            return Ok(Step::End);
        }
        if left < FRAME_HEADER_BYTES as u64 {
            return Ok(Step::Broken(offset, "the file ends inside a frame"));
        }
        let salt = self.segment.header.salt;
        let header = match FrameHeader::read(self.read(offset, FRAME_HEADER_BYTES)?, salt) {
            HeaderAt::Intact(header) => header,
            HeaderAt::Broken => return Ok(Step::Broken(offset, "a frame fails its checksum")),
            HeaderAt::Version(found) => {
                let what = format!("a frame has version {found}, this build knows {FRAME_VERSION}");
                return Err(self.segment.damaged(offset, what));
            }
        };
        if left < u64::from(header.len) {
            return Ok(Step::Broken(offset, "the file ends inside a frame"));
        }
        let frame = self.read(offset, header.frame_len())?;
        if !header.covers(frame, salt) {
            return Ok(Step::Broken(offset, "a frame fails its checksum"));
        }
        self.offset += u64::from(header.len);
        let frame = self.read(offset, header.frame_len())?;
        Ok(Step::Frame(offset, header, frame))
    }

    /// The next frame, with its offset, where none may be broken.
    pub(crate) fn next_intact(&mut self) -> Result<Option<IntactFrame<'_>>, Fatal> {
        let segment = self.segment;
        match self.step()? {
            Step::Frame(offset, header, frame) => Ok(Some((offset, header, frame))),
            Step::End => Ok(None),
            Step::Broken(offset, what) => Err(segment.damaged(offset, what)),
        }
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<&[u8], Fatal> {
        let window_end = self.window_offset + self.window.len() as u64;
        if offset < self.window_offset || window_end < offset + len as u64 {
            let rest = usize::try_from(self.end - offset).unwrap_or(usize::MAX);
            self.window.resize(len.max(WINDOW_BYTES).min(rest), 0);
            self.window_offset = offset;
            if let Err(error) = self.segment.file.read_at(offset, &mut self.window) {
                // What cannot be read may lie behind what is asked for.
                self.window.resize(len, 0);
                let again = self.segment.file.read_at(offset, &mut self.window);
                again.map_err(|_| self.segment.unreadable(offset, &error))?;
            }
        }
        let start = usize::try_from(offset - self.window_offset).expect("inside the window");
        Ok(&self.window[start..start + len])
    }
}
