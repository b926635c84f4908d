//! Setting aside what is damaged, so that the log can go on without it.
//!
//! Acknowledged entries that are lost here are still held by a quorum (that is what the quorum
//! is for), so this server may come back as one that has promised something and has forgotten
//! what. It says so until a leader has refilled it: `Recovered::damaged`. Rules and reasons:
//! `docs/log-format.md`, "Damage".
//!
//! A *marker* is durable before anything is moved. It holds the plan, so that a crash at any
//! point is followed by the same steps, and what was lost is never judged by what is left.

use std::{
    io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki_disk::{
    ByteReader, Disk, DiskError, DiskFile, FRAME_ALIGN, FrameSpec, SEGMENT_HEADER_BYTES,
    SegmentHeader, SmallFile, encode_frame,
};
use kontiki_raft::{EntryId, HardState, Index, Membership, StoreId};

use crate::{
    LogError, Snapshots,
    codec::{put_u32, put_u64},
    record::{self, Start, put_hard_state, read_hard_state},
    recover::DamageReport,
    replay::{Place, Replay},
    segment::{self, MAGIC, SegmentStart},
    survey::survey,
};

const MARKER_MAGIC: [u8; 8] = *b"KTKDAMAG";

/// What is written to a new file at once.
const STEP_BYTES: usize = 1 << 20;

const DONE: u8 = 0;
const CUT_PENDING: u8 = 1;
const NEW_PENDING: u8 = 2;

/// The damage that is known, and what is left to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) entries: RangeInclusive<Index>,
    plan: Option<Plan>,
}

/// How a damaged log becomes one that can be gone on with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    /// What is set aside gets this number at the end of its name.
    number: u32,
    hard_state: HardState,
    kind: PlanKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum PlanKind {
    /// The log ends at this place, and before this entry.
    Cut { at: Place, first: Index },
    /// Nothing is left: it starts anew, in this segment.
    New { segment: u32, start: Start },
}

/// The directory whose log is damaged.
pub(crate) struct Patient<'a> {
    pub(crate) disk: &'a Arc<dyn Disk>,
    /// The data directory.
    pub(crate) dir: &'a Path,
    /// The directory of its segments.
    pub(crate) segments_dir: &'a Path,
    pub(crate) store: StoreId,
    pub(crate) seed: u64,
    /// Of a segment that is made anew.
    pub(crate) segment_bytes: u64,
    pub(crate) genesis: &'a Arc<Membership>,
}

impl Patient<'_> {
    /// What was found damaged before and is not refilled yet. A plan that was interrupted is
    /// carried out.
    pub(crate) fn marker(&self) -> Result<Option<Marker>, LogError> {
        let file = marker_file(self.dir);
        let Some(content) = file.read(&**self.disk)? else { return Ok(None) };
        let mut marker = Marker::decode(&content)
            .ok_or_else(|| LogError::damaged(file.path(), 0, "it does not tell of damage"))?;
        if let Some(plan) = marker.plan.take() {
            self.carry_out(&plan)?;
            file.replace(&**self.disk, &marker.encode())?;
        }
        Ok(Some(marker))
    }

    /// Sets aside everything from the first damaged record on.
    pub(crate) fn set_aside(
        &self,
        error: &LogError,
        before: &Replay,
        known: Option<&Marker>,
    ) -> Result<(Marker, DamageReport), LogError> {
        let names = self.names()?;
        let numbers = segment::numbers(&names);
        let found = survey(self, &numbers, before)?;
        let number = 1 + names.iter().filter_map(|name| aside_number(name)).max().unwrap_or(0);
        let (kind, first) = match before.good.filter(|_| before.is_start_known) {
            Some(at) => (PlanKind::Cut { at, first: found.first }, found.first),
            None => {
                // Where the log began stands in a record that is not there. A snapshot knows.
                let start = self.newest_start()?;
                let first = start.at.index.next();
                let segment = numbers.last().map_or(1, |last| last + 1);
                (PlanKind::New { segment, start }, first)
            }
        };
        let last = found.last.max(first);
        let entries = known.map_or(first..=last, |known| {
            first.min(*known.entries.start())..=last.max(*known.entries.end())
        });
        let plan = Plan { number, hard_state: found.hard_state, kind };
        let mut marker = Marker { entries: entries.clone(), plan: Some(plan.clone()) };
        let file = marker_file(self.dir);
        file.replace(&**self.disk, &marker.encode())?;
        let set_aside = self.carry_out(&plan)?;
        marker.plan = None;
        file.replace(&**self.disk, &marker.encode())?;

        let (path, offset) = match error {
            LogError::Damaged { path, offset, .. } => (path.clone(), *offset),
            LogError::Io { path, .. } => (path.clone(), before.good.map_or(0, |at| at.offset)),
            _ => (self.segments_dir.to_owned(), 0),
        };
        let what = match error {
            LogError::Damaged { what, .. } => what.clone(),
            error => error.to_string(),
        };
        Ok((marker, DamageReport { path, offset, what, entries, set_aside }))
    }

    fn newest_start(&self) -> Result<Start, LogError> {
        let snapshots = Snapshots::open(Arc::clone(self.disk), self.dir)?;
        let newest = snapshots.newest_intact(|_| true)?;
        Ok(newest.map_or_else(
            || Start { at: EntryId::ZERO, membership: (EntryId::ZERO, Arc::clone(self.genesis)) },
            |info| Start::after(&info.meta),
        ))
    }

    /// Can be interrupted at any point and done again. Returns what is set aside.
    fn carry_out(&self, plan: &Plan) -> Result<Vec<PathBuf>, LogError> {
        let numbers = segment::numbers(&self.names()?);
        match &plan.kind {
            PlanKind::Cut { at, first } => {
                let later = numbers.iter().copied().filter(|&number| at.segment < number);
                self.move_aside(later, plan.number)?;
                let source = aside(self.segments_dir, at.segment, plan.number);
                if !self.exists(&source)? {
                    self.move_aside(std::iter::once(at.segment), plan.number)?;
                }
                let path = segment::path(self.segments_dir, at.segment);
                if !self.exists(&path)? {
                    let record = record::fresh(record::CUT, at.seq + 1, plan.hard_state, *first);
                    self.rebuild(&source, *at, &record)?;
                }
            }
            PlanKind::New { segment, start } => {
                let earlier = numbers.iter().copied().filter(|number| number < segment);
                self.move_aside(earlier, plan.number)?;
                if !self.exists(&segment::path(self.segments_dir, *segment))? {
                    self.begin_anew(*segment, start, plan.hard_state)?;
                }
            }
        }
        let mut aside = self.names()?;
        aside.retain(|name| aside_number(name) == Some(plan.number));
        Ok(aside.iter().map(|name| self.segments_dir.join(name)).collect())
    }

    fn move_aside(&self, numbers: impl Iterator<Item = u32>, number: u32) -> Result<(), LogError> {
        for segment in numbers {
            let path = segment::path(self.segments_dir, segment);
            let aside = aside(self.segments_dir, segment, number);
            self.disk.rename(&path, &aside).map_err(LogError::io("rename", &path))?;
        }
        let dir = self.segments_dir;
        self.disk.sync_dir(dir).map_err(LogError::io("sync", dir))
    }

    /// Makes a segment again from what is good of it, followed by one record.
    fn rebuild(&self, source: &Path, at: Place, record: &FrameSpec) -> Result<(), LogError> {
        let old = self.disk.open(source).map_err(LogError::io("open", source))?;
        let mut header = SegmentHeader::read(&*old, source, MAGIC)?;
        // Where the seal was there is no room for a record and a seal.
        header.bytes = header.bytes.max(at.offset + 2 * FRAME_ALIGN as u64);
        let mut frame = vec![0; FRAME_ALIGN];
        encode_frame(record, at.offset, at.crc, header.salt, &mut frame);
        self.make(at.segment, &header, |file, path| {
            let mut offset = SEGMENT_HEADER_BYTES;
            let mut buf = vec![0; STEP_BYTES];
            while offset < at.offset {
                let rest = usize::try_from(at.offset - offset).unwrap_or(STEP_BYTES);
                let part = &mut buf[..STEP_BYTES.min(rest)];
                old.read_at(offset, part).map_err(LogError::io("read", source))?;
                file.write_at(offset, part).map_err(DiskError::making("write", path))?;
                offset += part.len() as u64;
            }
            Ok(file.write_at(offset, &frame).map_err(DiskError::making("write", path))?)
        })
    }

    /// Makes the first segment of a log that starts anew.
    fn begin_anew(
        &self,
        number: u32,
        start: &Start,
        hard_state: HardState,
    ) -> Result<(), LogError> {
        let salt = segment::salt(self.seed, self.store, number);
        let record = record::fresh(record::RESET, 1, hard_state, start.at.index.next());
        let mut frame = vec![0; FRAME_ALIGN];
        start.encode_before_entries(&mut frame);
        encode_frame(&record, SEGMENT_HEADER_BYTES, 0, salt, &mut frame);
        let needed = SEGMENT_HEADER_BYTES + (frame.len() + FRAME_ALIGN) as u64;
        let header = SegmentHeader {
            magic: MAGIC,
            salt,
            seq: number.into(),
            bytes: self.segment_bytes.max(needed),
            prev_frame_seq: 0,
            prev_frame_crc: 0,
            store: self.store.get(),
            user: SegmentStart { last: start.at, hard_state }.encode(),
        };
        self.make(number, &header, |file, path| {
            let result = file.write_at(SEGMENT_HEADER_BYTES, &frame);
            Ok(result.map_err(DiskError::making("write", path))?)
        })
    }

    /// Makes a segment: all of it is durable before it has its name.
    fn make(
        &self,
        number: u32,
        header: &SegmentHeader,
        fill: impl FnOnce(&dyn DiskFile, &Path) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let temporary = self.segments_dir.join("rebuilt.tmp");
        match self.disk.remove(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(LogError::io("remove", &temporary))?,
        }
        let file = self.disk.create(&temporary).map_err(DiskError::making("create", &temporary))?;
        let zeros = vec![0; STEP_BYTES];
        let mut at = 0;
        while at < header.bytes {
            let step = usize::try_from(header.bytes - at).unwrap_or(STEP_BYTES).min(STEP_BYTES);
            let result = file.write_at(at, &zeros[..step]);
            result.map_err(DiskError::making("write", &temporary))?;
            at += step as u64;
        }
        let result = file.write_at(0, &header.encode());
        result.map_err(DiskError::making("write", &temporary))?;
        fill(&*file, &temporary)?;
        file.sync_data().map_err(DiskError::making("sync", &temporary))?;
        let path = segment::path(self.segments_dir, number);
        self.disk.rename(&temporary, &path).map_err(LogError::io("rename", &temporary))?;
        let dir = self.segments_dir;
        self.disk.sync_dir(dir).map_err(LogError::io("sync", dir))
    }

    fn names(&self) -> Result<Vec<PathBuf>, LogError> {
        self.disk.list(self.segments_dir).map_err(LogError::io("list", self.segments_dir))
    }

    fn exists(&self, path: &Path) -> Result<bool, LogError> {
        Ok(self.names()?.iter().any(|name| self.segments_dir.join(name) == path))
    }
}

/// Forgets the damage, durably.
pub(crate) fn forget(disk: &dyn Disk, dir: &Path) -> Result<(), LogError> {
    let path = marker_file(dir).path().to_owned();
    disk.remove(&path).map_err(LogError::io("remove", &path))?;
    disk.sync_dir(dir).map_err(LogError::io("sync", dir))
}

fn marker_file(dir: &Path) -> SmallFile {
    SmallFile::new(dir.join("damaged"), MARKER_MAGIC)
}

/// The name of a segment that was set aside.
fn aside(dir: &Path, segment: u32, number: u32) -> PathBuf {
    let mut name = segment::path(dir, segment).into_os_string();
    name.push(format!(".damaged-{number}"));
    name.into()
}

fn aside_number(name: &Path) -> Option<u32> {
    let (_, number) = name.to_str()?.rsplit_once(".damaged-")?;
    number.parse().ok()
}

impl Marker {
    fn encode(&self) -> Vec<u8> {
        let mut buf = Vec::new();
        put_u64(&mut buf, self.entries.start().get());
        put_u64(&mut buf, self.entries.end().get());
        let Some(Plan { number, hard_state, kind }) = &self.plan else {
            buf.push(DONE);
            return buf;
        };
        buf.push(match kind {
            PlanKind::Cut { .. } => CUT_PENDING,
            PlanKind::New { .. } => NEW_PENDING,
        });
        put_u32(&mut buf, *number);
        put_hard_state(&mut buf, *hard_state);
        match kind {
            PlanKind::Cut { at, first } => {
                put_u32(&mut buf, at.segment);
                put_u64(&mut buf, at.offset);
                put_u64(&mut buf, at.seq);
                put_u32(&mut buf, at.crc);
                put_u64(&mut buf, first.get());
            }
            PlanKind::New { segment, start } => {
                put_u32(&mut buf, *segment);
                start.encode(&mut buf);
            }
        }
        buf
    }

    fn decode(content: &[u8]) -> Option<Self> {
        let mut reader = ByteReader::new(content);
        let entries = Index(reader.u64()?)..=Index(reader.u64()?);
        let stage = reader.u8()?;
        if stage == DONE {
            return Some(Self { entries, plan: None });
        }
        let number = reader.u32()?;
        let hard_state = read_hard_state(&mut reader)?;
        let segment = reader.u32()?;
        let kind = match stage {
            CUT_PENDING => {
                let (offset, seq, crc) = (reader.u64()?, reader.u64()?, reader.u32()?);
                let at = Place { segment, offset, seq, crc };
                PlanKind::Cut { at, first: Index(reader.u64()?) }
            }
            NEW_PENDING => PlanKind::New { segment, start: Start::decode(&mut reader)? },
            _ => return None,
        };
        Some(Self { entries, plan: Some(Plan { number, hard_state, kind }) })
    }
}
