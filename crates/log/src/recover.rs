//! Reading the log back: every segment, every record, in order.
//!
//! Nothing is changed before everything has been read and found good, so a log that is refused
//! is left as it was. Then a change of segments that was interrupted is completed, the remains
//! of a torn record are wiped, and what was read is made durable: it may stand in a cache only.
//! Each of these can be interrupted and done again. Rules and reasons: `docs/log-format.md`,
//! "Recovery".

use std::{
    mem,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki_disk::{Disk, FRAME_ALIGN, Scan, SegmentHeader, Tail, encode_frame};
use kontiki_raft::{HardState, Index, Membership, StoreId};

use crate::{
    LogError,
    entries::Entries,
    record,
    replay::Replay,
    segment::{self, MAGIC, Segment},
};

/// What recovery found, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The log was made just now.
    pub is_new: bool,
    /// Segment files.
    pub segments: usize,
    /// Intact records, those of entries that were replaced later included.
    pub records: u64,
    /// Entries in the log.
    pub entries: usize,
    /// Bytes of records.
    pub bytes: u64,
    /// A write that the last crash interrupted, and that nobody was told of. It was cut.
    pub torn_tail: Option<TornTail>,
    /// The last crash came between the making of a segment and the end of the one before. That
    /// end was written.
    pub completed_roll: bool,
    /// Acknowledged records were found damaged just now, and were set aside.
    pub damage: Option<DamageReport>,
}

/// What was found damaged, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DamageReport {
    /// In which file it showed first.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
    /// The entries that are not in the log any more, or may have been and cannot be told.
    pub entries: RangeInclusive<Index>,
    /// The files that were set aside, under their new names. Nothing reads or removes them.
    pub set_aside: Vec<PathBuf>,
}

/// Where a torn record was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// In which segment.
    pub path: PathBuf,
    /// From where.
    pub offset: u64,
    /// Up to its last byte that was not zero.
    pub bytes: u64,
}

/// Everything that the writer goes on from.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) entries: Entries,
    pub(crate) hard_state: HardState,
    pub(crate) current: Arc<Segment>,
    pub(crate) current_bytes: u64,
    pub(crate) tail: Tail,
    pub(crate) report: RecoveryReport,
}

/// Why a log cannot be gone on with as it is.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) error: LogError,
    /// What was good before the damage, if it is damage of what can be set aside.
    pub(crate) before: Option<Box<Replay>>,
}

impl From<LogError> for Refusal {
    fn from(error: LogError) -> Self {
        Self { error, before: None }
    }
}

/// Reads the segments in `dir`.
pub(crate) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    store: StoreId,
    genesis: Arc<Membership>,
) -> Result<Recovery, Refusal> {
    let numbers = segment::numbers(&disk.list(dir).map_err(LogError::io("list", dir))?);
    let Some(&first) = numbers.first() else {
        // Not one of several copies is gone but the log: a directory that is not mounted, say.
        return Err(LogError::damaged(dir, 0, "all segments of the log are missing").into());
    };
    let mut replay = Replay::new(genesis, first == 1);
    replay.report.segments = numbers.len();
    let ends = match read(disk, dir, store, &numbers, &mut replay) {
        Err(error) if error.is_damage() => {
            return Err(Refusal { error, before: Some(Box::new(replay)) });
        }
        ends => ends?,
    };
    // The names that were seen here may be lost by the next crash, if the process died before it
    // had made them durable. A seal must not be written before the name that it promises.
    disk.sync_dir(dir).map_err(LogError::io("sync", dir))?;
    let start_segment = replay.start_segment;
    let mut recovery = complete(replay, ends)?;
    if let Some(start_segment) = start_segment {
        recovery.remove_leftovers(disk, dir, start_segment)?;
    }
    Ok(recovery)
}

/// Reads everything and judges it. Changes nothing.
fn read(
    disk: &dyn Disk,
    dir: &Path,
    store: StoreId,
    numbers: &[u32],
    replay: &mut Replay,
) -> Result<Vec<SegmentEnd>, LogError> {
    let mut ends: Vec<SegmentEnd> = Vec::new();
    for (at, &number) in numbers.iter().enumerate() {
        let is_last = at + 1 == numbers.len();
        if let Some(end) = ends.last()
            && end.segment.number + 1 != number
        {
            let missing = segment::path(dir, end.segment.number + 1);
            return Err(LogError::damaged(&missing, 0, "the segment is missing"));
        }
        let (segment, header) = open_segment(disk, dir, number, store)?;
        match ends.last() {
            None => replay.begin(&segment, &header)?,
            Some(end) => {
                end.check_is_followed_by(&header, is_last)?;
                if !end.is_sealed && is_in_use(&segment, &header) {
                    let what = "a later segment is in use, but the end of this one is not there";
                    return Err(LogError::damaged(&end.segment.path, end.tail.offset, what));
                }
            }
        }
        ends.push(replay.segment(segment, header.bytes, &header)?);
    }
    let last = ends.last().expect("there is a segment");
    if !replay.is_start_known {
        let path = &ends.first().unwrap_or(last).segment.path;
        return Err(LogError::damaged(path, 0, "the segments before this one are missing"));
    }
    if last.is_sealed {
        let what = "it is sealed, so another segment followed, which is missing";
        let next = replay.entries.last().index.next();
        return Err(LogError::damaged(&last.segment.path, last.tail.offset, what).at(next));
    }
    Ok(ends)
}

/// Whether there is a first record, be it damaged.
fn is_in_use(segment: &Segment, header: &SegmentHeader) -> bool {
    let mut scan = Scan::new(&*segment.file, &segment.path, header);
    !matches!(scan.next_frame(), Ok(None))
}

impl Recovery {
    /// Removes what a crash has left of a purge or a reset.
    fn remove_leftovers(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        start_segment: u32,
    ) -> Result<(), LogError> {
        let entries = &mut self.entries;
        let kept = entries.segments.split_off(&start_segment);
        let leftovers = mem::replace(&mut entries.segments, kept);
        for segment in leftovers.values() {
            disk.remove(&segment.path).map_err(LogError::io("remove", &segment.path))?;
        }
        if !leftovers.is_empty() {
            disk.sync_dir(dir).map_err(LogError::io("sync", dir))?;
        }
        Ok(())
    }
}

/// Cleans up after the last crash, and makes durable what was read.
fn complete(mut replay: Replay, mut ends: Vec<SegmentEnd>) -> Result<Recovery, LogError> {
    let last = ends.pop().expect("there is a segment");
    if let Some(end) = ends.last().filter(|end| !end.is_sealed) {
        end.wipe()?;
        let seal = end.seal.as_ref().expect("made for a segment without one");
        write_durably(&end.segment, end.tail.offset, &seal.bytes)?;
        replay.report.completed_roll = true;
    } else {
        let with_frames = std::iter::once(&last).chain(ends.last()).find(|end| end.has_frames());
        with_frames.map_or(Ok(()), SegmentEnd::make_last_frame_durable)?;
    }
    if last.tail.offset < last.tail.remains_end {
        replay.report.torn_tail = Some(TornTail {
            path: last.segment.path.clone(),
            offset: last.tail.offset,
            bytes: last.tail.remains_end - last.tail.offset,
        });
        last.wipe()?;
    }
    replay.report.entries = replay.entries.len();
    Ok(Recovery {
        entries: replay.entries,
        hard_state: replay.hard_state,
        current: last.segment,
        current_bytes: last.bytes,
        tail: last.tail,
        report: replay.report,
    })
}

fn open_segment(
    disk: &dyn Disk,
    dir: &Path,
    number: u32,
    store: StoreId,
) -> Result<(Arc<Segment>, SegmentHeader), LogError> {
    let path = segment::path(dir, number);
    let file = disk.open(&path).map_err(LogError::io("open", &path))?;
    let header = SegmentHeader::read(&*file, &path, MAGIC)?;
    segment::check_place(&header, &path, number, store)?;
    if u32::try_from(header.bytes).is_err() {
        return Err(LogError::damaged(&path, 0, "it is longer than a segment can be"));
    }
    Ok((Arc::new(Segment { number, path, file, salt: header.salt }), header))
}

/// How a segment ended.
#[derive(Debug)]
pub(crate) struct SegmentEnd {
    pub(crate) segment: Arc<Segment>,
    pub(crate) bytes: u64,
    pub(crate) tail: Tail,
    pub(crate) is_sealed: bool,
    /// Where the last frame begins.
    pub(crate) last_frame: Option<u64>,
    /// The seal that would be next, if there is none.
    pub(crate) seal: Option<Seal>,
}

/// The record that ends a segment.
#[derive(Debug)]
pub(crate) struct Seal {
    pub(crate) bytes: Vec<u8>,
    pub(crate) seq: u64,
    pub(crate) crc: u32,
}

impl Seal {
    /// The seal that follows `tail`. It depends on nothing but the log up to there, so that
    /// recovery can tell what it would have been.
    pub(crate) fn new(tail: &Tail, salt: u32, hard_state: HardState, next_index: Index) -> Self {
        let seq = tail.seq + 1;
        let spec = record::mark(record::SEAL, seq, hard_state, next_index);
        let mut bytes = vec![0; FRAME_ALIGN];
        let crc = encode_frame(&spec, tail.offset, tail.crc, salt, &mut bytes).crc;
        Self { bytes, seq, crc }
    }
}

impl SegmentEnd {
    /// Whether `next` was made when the log ended here. If it is the last one, the seal here may
    /// be missing: the next segment gets its name before this one is sealed.
    fn check_is_followed_by(&self, next: &SegmentHeader, is_last: bool) -> Result<(), LogError> {
        let (seq, crc) = match &self.seal {
            None => (self.tail.seq, self.tail.crc),
            Some(seal) if is_last => (seal.seq, seal.crc),
            Some(_) => {
                let what = "a later segment follows, but the end of this one is not there";
                return Err(LogError::damaged(&self.segment.path, self.tail.offset, what));
            }
        };
        if (next.prev_frame_seq, next.prev_frame_crc) != (seq, crc) {
            let what = format!(
                "the next segment follows record {}, this one ends with record {seq}",
                next.prev_frame_seq
            );
            return Err(LogError::damaged(&self.segment.path, self.tail.offset, what));
        }
        Ok(())
    }

    const fn has_frames(&self) -> bool {
        self.last_frame.is_some()
    }

    /// Writes the last frame again, as it is, and syncs it. That it was read proves nothing: it
    /// may stand in a cache only, and after a failed `fdatasync` the cache may hold it for clean.
    /// All frames before it are durable, since they had to be before it was written.
    fn make_last_frame_durable(&self) -> Result<(), LogError> {
        let Some(offset) = self.last_frame else { return Ok(()) };
        let len = usize::try_from(self.tail.offset - offset).expect("a frame fits into memory");
        let mut bytes = vec![0; len];
        let path = &self.segment.path;
        self.segment.file.read_at(offset, &mut bytes).map_err(LogError::io("read", path))?;
        write_durably(&self.segment, offset, &bytes)
    }

    fn wipe(&self) -> Result<(), LogError> {
        if self.tail.offset < self.tail.remains_end {
            let len = self.tail.remains_end - self.tail.offset;
            let len = usize::try_from(len).expect("a segment fits into memory");
            write_durably(&self.segment, self.tail.offset, &vec![0; len])?;
        }
        Ok(())
    }
}

fn write_durably(segment: &Segment, offset: u64, bytes: &[u8]) -> Result<(), LogError> {
    segment.file.write_at(offset, bytes).map_err(LogError::io("write", &segment.path))?;
    segment.file.sync_data().map_err(LogError::io("sync", &segment.path))
}
