//! Reading the log back: every segment, every record, in order.
//!
//! Nothing is changed before everything has been read and found good, so a log that is refused
//! is left as it was. Then a change of segments that was interrupted is completed, the remains
//! of a torn record are wiped, and what was read is made durable: it may stand in a cache only.
//! Each of these can be interrupted and done again. Rules and reasons: `docs/log-format.md`,
//! "Recovery".

use std::{
    mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki_disk::{
    ByteReader, Disk, DiskError, DiskFile, FRAME_ALIGN, Frame, Scan, SegmentHeader, Tail,
    encode_frame,
};
use kontiki_raft::{EntryId, HardState, Index, Membership, StoreId};

use crate::{
    LogError,
    entries::Entries,
    record::{self, Head, Location, PAYLOAD_AT, Record, StoredEntry},
    segment::{self, MAGIC, Segment, SegmentStart},
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

/// Reads the segments in `dir`.
pub(crate) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    store: StoreId,
    genesis: Arc<Membership>,
) -> Result<Recovery, LogError> {
    let numbers = segment::numbers(&disk.list(dir).map_err(LogError::io("list", dir))?);
    let Some(&first) = numbers.first() else {
        return Err(LogError::damaged(dir, 0, "all segments of the log are missing"));
    };
    if let Some(pair) = numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        let missing = segment::path(dir, pair[0] + 1);
        return Err(LogError::damaged(&missing, 0, "the segment is missing"));
    }
    let mut replay = Replay {
        entries: Entries::new(EntryId::ZERO, (EntryId::ZERO, genesis)),
        hard_state: HardState::default(),
        is_start_known: first == 1,
        start_segment: None,
        report: RecoveryReport { segments: numbers.len(), ..Default::default() },
    };
    let mut ends: Vec<SegmentEnd> = Vec::new();
    for &number in &numbers {
        let (segment, header) = open_segment(disk, dir, number, store)?;
        match ends.last() {
            None => replay.begin(&segment, &header)?,
            Some(end) => end.check_is_followed_by(&header, number == numbers[numbers.len() - 1])?,
        }
        ends.push(replay.segment(segment, header.bytes, &header)?);
    }
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

impl Recovery {
    /// Removes what a crash has left of a purge or a reset: segments before the one with the
    /// first entry. The record that tells where the log starts must stay.
    fn remove_leftovers(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        start_segment: u32,
    ) -> Result<(), LogError> {
        let entries = &mut self.entries;
        let first = entries.first_segment_after(entries.start().index, self.current.number);
        let kept = entries.segments.split_off(&first.min(start_segment));
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

/// Checks what can be checked only when all was read, and then cleans up.
fn complete(mut replay: Replay, mut ends: Vec<SegmentEnd>) -> Result<Recovery, LogError> {
    let last = ends.pop().expect("there is a segment");
    if !replay.is_start_known {
        let path = &ends.first().unwrap_or(&last).segment.path;
        return Err(LogError::damaged(path, 0, "the segments before this one are missing"));
    }
    if last.is_sealed {
        let what = "it is sealed, so another segment followed, which is missing";
        return Err(LogError::damaged(&last.segment.path, last.tail.offset, what).at(replay
            .entries
            .last()
            .index
            .next()));
    }
    if let Some(end) = ends.last().filter(|end| !end.is_sealed) {
        if last.has_frames() {
            let what = "a later segment is in use, but the end of this one is not there";
            return Err(LogError::damaged(&end.segment.path, end.tail.offset, what));
        }
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
struct SegmentEnd {
    segment: Arc<Segment>,
    bytes: u64,
    tail: Tail,
    is_sealed: bool,
    /// Where the last frame begins.
    last_frame: Option<u64>,
    /// The seal that would be next, if there is none.
    seal: Option<Seal>,
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

/// The log as far as it was read.
struct Replay {
    entries: Entries,
    hard_state: HardState,
    /// While it is false the segments before the first that is left may have been purged or
    /// lost. A later record tells which.
    is_start_known: bool,
    /// Which segment holds the record that tells it.
    start_segment: Option<u32>,
    report: RecoveryReport,
}

impl Replay {
    /// Takes the state of the log before the first segment from its header.
    fn begin(&mut self, segment: &Segment, header: &SegmentHeader) -> Result<(), LogError> {
        let start = SegmentStart::decode(&header.user);
        let start = start.ok_or_else(|| LogError::damaged(&segment.path, 0, "bad header"))?;
        let genesis = self.entries.membership_at(Index::ZERO);
        self.entries.start_at(start.last, genesis);
        self.hard_state = start.hard_state;
        Ok(())
    }

    fn segment(
        &mut self,
        segment: Arc<Segment>,
        bytes: u64,
        header: &SegmentHeader,
    ) -> Result<SegmentEnd, LogError> {
        let (file, path): (&dyn DiskFile, _) = (&*segment.file, &segment.path);
        let mut is_sealed = false;
        let mut last_frame = None;
        let mut scan = Scan::new(file, path, header);
        let at_end = |replay: &Self, error: DiskError| {
            LogError::from(error).at(replay.entries.last().index.next())
        };
        while let Some(frame) = scan.next_frame().map_err(|error| at_end(self, error))? {
            last_frame = Some(frame.offset);
            if is_sealed {
                return Err(LogError::damaged(path, frame.offset, "a record follows the seal"));
            }
            is_sealed = frame.spec.kind == record::SEAL;
            let next = self.entries.last().index.next();
            self.record(&frame, segment.number)
                .map_err(|what| LogError::damaged(path, frame.offset, what).at(next))?;
            self.report.records += 1;
            self.report.bytes += (PAYLOAD_AT + frame.payload.len()) as u64;
        }
        let tail = scan.finish().map_err(|error| at_end(self, error))?;
        self.entries.segments.insert(segment.number, Arc::clone(&segment));
        let next_index = self.entries.last().index.next();
        let seal =
            (!is_sealed).then(|| Seal::new(&tail, segment.salt, self.hard_state, next_index));
        Ok(SegmentEnd { segment, bytes, tail, is_sealed, last_frame, seal })
    }

    /// Carries out what one record says. The error says what is wrong with it.
    fn record(&mut self, frame: &Frame<'_>, segment: u32) -> Result<(), String> {
        let (record, hard_state) = record::decode(frame)
            .ok_or("an intact record holds what no version of this program writes")?;
        match record {
            Record::Entries { head, entries } => self.entries(frame, segment, &head, entries)?,
            Record::HardState | Record::Seal => {}
            Record::Start(start) => self.start(start, segment)?,
            Record::Reset { start, head, entries } => {
                let known = self.entries.start();
                if self.is_start_known && start.at.index < known.index {
                    return Err(format!("a reset to {}, but {known} was purged", start.at));
                }
                self.entries.reset(start.at, start.membership);
                self.is_start_known = true;
                self.start_segment = Some(segment);
                self.entries(frame, segment, &head, entries)?;
            }
        }
        self.hard_state = hard_state.unwrap_or(self.hard_state);
        Ok(())
    }

    fn entries(
        &mut self,
        frame: &Frame<'_>,
        segment: u32,
        head: &Head,
        mut reader: ByteReader<'_>,
    ) -> Result<(), String> {
        let first = head.first_index;
        let start = self.entries.start();
        if first <= start.index {
            if self.is_start_known || first == Index::ZERO {
                return Err(format!("entry {first} is written again after {start} was purged"));
            }
            self.entries.restart_at(first);
        }
        let last = self.entries.last();
        if last.index.next() < first {
            return Err(format!("entries between {last} and index {first} are missing"));
        }
        self.entries.truncate(first);
        let payload_len = frame.payload.len();
        for _ in 0..head.count {
            let last = self.entries.last();
            let index = last.index.next();
            let offset = PAYLOAD_AT + payload_len - reader.rest().len();
            let (entry, membership) = decode_entry(index, &mut reader)
                .ok_or_else(|| format!("entry {index} is not what its record says"))?;
            if entry.id.term < last.term {
                return Err(format!("entry {} follows {last}", entry.id));
            }
            let location = Location {
                term: entry.id.term,
                segment,
                offset: u32::try_from(frame.offset + offset as u64)
                    .map_err(|_| "a segment of 4 GiB or more")?,
                len: u32::try_from(entry.data.len()).map_err(|_| "an entry of 4 GiB or more")?,
                kind: entry.kind,
                mask: frame.mask,
            };
            self.entries.push(location, membership);
        }
        Ok(())
    }

    fn start(&mut self, start: record::Start, segment: u32) -> Result<(), String> {
        let known = self.entries.start();
        if start.at.index < known.index {
            if self.is_start_known {
                return Err(format!("the log starts after {}, but {known} was purged", start.at));
            }
            // An older one: what it left in the segments before has been replaced since, or is
            // missing. The newest one tells.
            return Ok(());
        }
        let is_placeholder = !self.is_start_known && start.at.index == known.index;
        if let Some(found) = self.entries.id(start.at.index)
            && found != start.at
            && !is_placeholder
        {
            return Err(format!("the log starts after {}, but holds {found} there", start.at));
        }
        self.entries.start_at(start.at, start.membership);
        self.is_start_known = true;
        self.start_segment = Some(segment);
        Ok(())
    }
}

type Decoded<'a> = (StoredEntry<'a>, Option<Arc<Membership>>);

fn decode_entry<'a>(index: Index, reader: &mut ByteReader<'a>) -> Option<Decoded<'a>> {
    let entry = StoredEntry::decode(index, reader)?;
    entry.skip_padding(reader)?;
    let membership = entry.membership()?;
    Some((entry, membership))
}

#[cfg(test)]
mod tests {
    use kontiki_disk::FrameSpec;
    use kontiki_raft::{Entry, NodeId, Payload, WriteBatch};

    use super::*;
    use crate::record::{ENTRIES, HARD_STATE, Merged, SEAL, START, Start, encode_entry, mark};

    fn replay() -> Replay {
        let genesis = Arc::new(Membership::of_voters([(NodeId(1), "a")]));
        Replay {
            entries: Entries::new(EntryId::new(2, 1), (EntryId::ZERO, genesis)),
            hard_state: HardState::default(),
            is_start_known: false,
            start_segment: None,
            report: RecoveryReport::default(),
        }
    }

    fn replayed(spec: FrameSpec, payload: &[u8]) -> Result<(), String> {
        replay().record(&Frame { offset: 4096, crc: 1, mask: 0, spec, payload }, 1)
    }

    /// A record of entries, and one that tells of a later start.
    fn records() -> [(FrameSpec, Vec<u8>); 2] {
        let membership = Arc::new(Membership::of_voters([(NodeId(1), "a"), (NodeId(2), "b")]));
        let payloads = [
            Payload::Blank,
            Payload::Command(vec![7; 9].into()),
            Payload::Membership(Arc::clone(&membership)),
        ];
        let entries: Vec<Entry> = (3..)
            .zip(payloads)
            .map(|(index, payload)| Entry::new(EntryId::new(index, 4), payload))
            .collect();
        let mut encoded = Vec::new();
        for entry in &entries {
            encode_entry(entry, &mut encoded);
        }
        let batches = [WriteBatch { hard_state: None, entries, ..WriteBatch::default() }];
        let spec = Merged::new(&batches).spec(5, HardState::default(), Index(3));

        let mut start = Vec::new();
        let at = EntryId::new(9, 4);
        Start { at, membership: (EntryId::new(5, 4), membership) }.encode(&mut start);
        [(spec, encoded), (mark(START, 5, HardState::default(), Index(3)), start)]
    }

    /// Pitfall D15, for the disk's bytes. A checksum that fits is no proof of sense: whatever
    /// stands in a record, there is an answer.
    #[test]
    fn hostile_records_with_fitting_checksums_never_panic() {
        for (spec, payload) in records() {
            assert_eq!(replayed(spec, &payload), Ok(()));
            for kind in [ENTRIES, HARD_STATE, START, SEAL, 0, 99] {
                drop(replayed(FrameSpec { kind, ..spec }, &payload));
                for len in 0..payload.len() {
                    drop(replayed(FrameSpec { kind, ..spec }, &payload[..len]));
                }
            }
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                for at in 0..payload.len() {
                    let mut payload = payload.clone();
                    payload[at..].iter_mut().take(8).for_each(|byte| *byte = value);
                    drop(replayed(spec, &payload));
                }
                for at in 0..spec.user.len() {
                    let mut spec = spec;
                    spec.user[at..].iter_mut().take(8).for_each(|byte| *byte = value);
                    drop(replayed(spec, &payload));
                }
            }
        }
    }

    #[test]
    fn an_entry_is_bound_to_its_place() {
        let (mut spec, payload) = records()[0].clone();
        spec.user[0] = 2; // one lower
        assert!(replayed(spec, &payload).unwrap_err().contains("entry 2 is not"));
    }
}
