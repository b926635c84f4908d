//! The writer of the log.
//!
//! # Invariants
//!
//! - A record is written only when the one before it is durable. The judge of torn tail or
//!   damage rests on it.
//! - After a failed write or `fdatasync` nothing is written, ever (pitfall D4).
//! - A full disk shows before anything is written.

use std::{
    io, mem,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kontiki_disk::{
    Disk, DiskLock, FRAME_ALIGN, FrameSpec, SEGMENT_HEADER_BYTES, SegmentHeader, Spare, SparePool,
    Tail, encode_frame,
};
use kontiki_raft::{EntryId, HardState, Index, Recovered, StoreId, WriteBatch};

use crate::{
    Identity, IdentityRequest, LogError, LogReader, RecoveryReport,
    damage::{self, Patient},
    entries::Entries,
    identity,
    record::{self, Location, Merged, Start, encode_entry},
    recover::{Recovery, Refusal, Seal, recover},
    segment::{self, MAGIC, Segment, SegmentStart},
};

/// A record is never larger than this: batches that wait together come nowhere near.
const RECORD_BYTES_MAX: usize = 1 << 30;

/// The buffer is given back after a record larger than this.
const BUFFER_BYTES_MAX: usize = 4 << 20;

/// How a log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// The length of a segment file, in \[5 KiB, 2 GiB\]. What is purged is purged by whole
    /// segments. A record that does not fit gets a longer one. Rounded down to a multiple of 64.
    pub segment_bytes: u64,
    /// How many zero-filled segments are kept ready.
    pub spares: usize,
    /// Makes the secrets of the segments, together with the store's id: a client who knows them
    /// could make a torn write look like damage. Random for a server, fixed for a simulation.
    pub seed: u64,
    /// What to do when acknowledged records are damaged.
    pub on_damage: OnDamage,
}

/// What [`Log::open`] does about acknowledged records that are not what was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is no third way")]
pub enum OnDamage {
    /// They and everything after them are set aside, and the log goes on without. It tells of
    /// the damage ([`Recovered::damaged`]) until a batch says that it is repaired, so that the
    /// node does not vote before a leader has refilled it.
    #[default]
    SetAside,
    /// The log is not opened, and nothing is changed.
    Refuse,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, spares: 2, seed: 0, on_damage: OnDamage::default() }
    }
}

/// What [`Log::open`] found.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Whose log it is.
    pub identity: Identity,
    /// What the protocol goes on from. `applied` is zero: the host fills it in.
    pub recovered: Recovered,
    /// For people.
    pub report: RecoveryReport,
}

/// The writer. Whoever has it owns the log.
#[derive(Debug)]
pub struct Log {
    disk: Arc<dyn Disk>,
    /// The data directory.
    root: PathBuf,
    /// That of the segments.
    dir: PathBuf,
    store: StoreId,
    seed: u64,
    shared: Arc<Mutex<Entries>>,
    spares: SparePool,
    current: Arc<Segment>,
    current_bytes: u64,
    /// Where the next record goes, and what it follows.
    tail: Tail,
    hard_state: HardState,
    /// A record was written and is not durable yet. There is at most one.
    is_unsynced: bool,
    /// What waits for that record: the segments before this one hold nothing any more.
    reset_in: Option<u32>,
    /// Damage was found in this life or an earlier one.
    is_damaged: bool,
    /// What was written last says that it is over.
    is_repaired: bool,
    is_poisoned: bool,
    buf: Vec<u8>,
    _lock: Box<dyn DiskLock>,
}

impl Log {
    /// Opens the log in `dir`, or makes it.
    ///
    /// `identity` is written durably when the log is new, and must agree with what was written
    /// when it is not.
    ///
    /// # Errors
    ///
    /// [`LogError::Locked`] if another process uses the directory, [`LogError::WrongIdentity`]
    /// if it is another server's, [`LogError::Damaged`] if acknowledged bytes are not what was
    /// written and are not to be set aside, or cannot be done without: the identity, or all
    /// segments at once. Nothing was changed then.
    ///
    /// # Panics
    ///
    /// If an option is out of its range.
    #[expect(clippy::needless_pass_by_value, reason = "options belong to the log they are for")]
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: &IdentityRequest,
        options: LogOptions,
    ) -> Result<(Self, Opened), LogError> {
        disk.create_dir_all(dir).map_err(LogError::io("create", dir))?;
        let lock = lock(&*disk, dir)?;
        let known = identity::read(&*disk, dir, identity)?;
        Self::open_locked(disk, dir, lock, known, identity, &options)
    }

    /// Opens the log of whoever the directory belongs to; of the requester if it is new.
    pub(crate) fn open_locked(
        disk: Arc<dyn Disk>,
        dir: &Path,
        lock: Box<dyn DiskLock>,
        known: Option<Identity>,
        identity: &IdentityRequest,
        options: &LogOptions,
    ) -> Result<(Self, Opened), LogError> {
        let &LogOptions { segment_bytes, spares, seed, on_damage } = options;
        assert!(
            (5 << 10..=2 << 30).contains(&segment_bytes),
            "segments of {segment_bytes} bytes are too short or too long"
        );
        let segment_bytes = segment_bytes - segment_bytes % FRAME_ALIGN as u64;
        let segments_dir = dir.join("wal");
        disk.create_dir_all(&segments_dir).map_err(LogError::io("create", &segments_dir))?;
        let is_new = known.is_none();
        if is_new {
            identity::remove_unfinished(&*disk, dir, &segments_dir)?;
        }
        let spares = SparePool::open(Arc::clone(&disk), &segments_dir, segment_bytes, spares)?;
        let store = known.as_ref().map_or(identity.new_store, |known| known.store);
        if is_new {
            // The segment first: an identity without a segment would be a lost log.
            let start = SegmentStart { last: EntryId::ZERO, hard_state: HardState::default() };
            let place = Place { disk: &*disk, dir: &segments_dir, store, seed };
            place.make_segment(spares.take(0, true)?, 1, (0, 0), start)?;
        }
        let identity = match known {
            Some(known) => {
                // Its name may be lost by the next crash, if an earlier life died in time.
                disk.sync_dir(dir).map_err(LogError::io("sync", dir))?;
                known
            }
            None => identity::write(&*disk, dir, identity)?,
        };
        let genesis = Arc::new(identity.genesis.clone());
        let patient = Patient {
            disk: &disk,
            dir,
            segments_dir: &segments_dir,
            store,
            seed,
            segment_bytes,
            genesis: &genesis,
        };
        let (mut recovery, damage) = recover_or_set_aside(&patient, on_damage)?;
        recovery.report.is_new = is_new;
        let is_damaged = damage.is_some();
        let opened = opened(identity, &recovery, damage);
        let log = Self {
            disk,
            root: dir.to_owned(),
            dir: segments_dir,
            store,
            seed,
            shared: Arc::new(Mutex::new(recovery.entries)),
            spares,
            current: recovery.current,
            current_bytes: recovery.current_bytes,
            tail: recovery.tail,
            hard_state: recovery.hard_state,
            is_unsynced: false,
            reset_in: None,
            is_damaged,
            is_repaired: false,
            is_poisoned: false,
            buf: Vec::new(),
            _lock: lock,
        };
        Ok((log, opened))
    }

    /// Writes all batches as one record. Durable only after [`sync`](Self::sync), which is done
    /// first if an earlier record waits for it.
    ///
    /// # Errors
    ///
    /// [`LogError::NoSpace`] and [`LogError::TooLarge`] before anything is written: the log is
    /// as it was, and the same batches can be written when there is room. After any other error
    /// the log takes no more writes.
    ///
    /// # Panics
    ///
    /// If the entries do not follow what is in the log, or reach below its start.
    pub fn write(&mut self, batches: impl AsRef<[WriteBatch]>) -> Result<(), LogError> {
        self.sync()?;
        let merged = Merged::new(batches.as_ref());
        if !merged.has_record() {
            self.is_repaired |= merged.is_repaired;
            return Ok(());
        }
        self.assert_follows(&merged);
        let last = merged.reset_to.map_or_else(|| self.entries().last(), |meta| meta.last);
        let spec = merged.spec(self.tail.seq + 1, self.hard_state, last.index.next());

        let mut places = Vec::with_capacity(merged.entries.len());
        self.begin_record();
        if let Some(meta) = merged.reset_to {
            Start::after(meta).encode_before_entries(&mut self.buf);
        }
        for entry in &merged.entries {
            let start = self.buf.len();
            places.push((start, encode_entry(entry, &mut self.buf)));
        }
        let written = self.append(&spec)?;
        self.hard_state = merged.hard_state.unwrap_or(self.hard_state);
        self.is_repaired |= merged.is_repaired;
        self.publish(&merged, &places, written);
        Ok(())
    }

    /// Makes everything that was written durable.
    ///
    /// # Errors
    ///
    /// Any error is final: what is on the disk is not known until the log is opened again.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.check_is_sound()?;
        if self.is_unsynced {
            let result = self.current.file.sync_data();
            self.or_poison(result.map_err(LogError::io("sync", &self.current.path)))?;
            self.is_unsynced = false;
        }
        if mem::take(&mut self.is_repaired) && mem::take(&mut self.is_damaged) {
            // Not before what repairs it is durable. A crash in between is no harm: the damage
            // is told of once more.
            let result = damage::forget(&*self.disk, &self.root);
            self.or_poison(result)?;
        }
        if let Some(kept) = self.reset_in.take() {
            // What cannot be removed is in nobody's way: the next purge or start tries again.
            drop(self.remove_segments_before(kept));
        }
        Ok(())
    }

    /// Unlinks the segments that hold nothing after `upto`. Returns the new start of the log:
    /// the entry before the first one still there.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write), and if a file cannot be removed: then it is tried again next
    /// time.
    ///
    /// # Panics
    ///
    /// If the log holds another entry at the index of `upto`.
    pub fn purge(&mut self, upto: EntryId) -> Result<EntryId, LogError> {
        self.sync()?;
        let (start, kept) = {
            let entries = self.entries();
            if let Some(known) = entries.id(upto.index) {
                assert_eq!(known, upto, "what is purged is committed, so it is the same anywhere");
            }
            let kept = entries.first_segment_after(upto.index, self.current.number);
            let start = entries.start_without(kept);
            if entries.segments.range(..kept).next().is_none() {
                return Ok(start.at);
            }
            (start, kept)
        };
        // Durable before the first file goes: without it nobody could tell a purged segment
        // from a lost one.
        let spec =
            record::mark(record::START, self.tail.seq + 1, self.hard_state, start.at.index.next());
        self.begin_record();
        start.encode(&mut self.buf);
        self.append(&spec)?;
        self.sync()?;
        self.entries().start_at(start.at, start.membership);
        self.remove_segments_before(kept)?;
        Ok(start.at)
    }

    fn remove_segments_before(&self, kept: u32) -> Result<(), LogError> {
        let segments: Vec<_> =
            self.entries().segments.range(..kept).map(|(_, segment)| Arc::clone(segment)).collect();
        for segment in segments {
            // Ascending, so that a crash leaves no hole. Readers may hold the file still.
            self.disk.remove(&segment.path).map_err(LogError::io("remove", &segment.path))?;
            self.entries().segments.remove(&segment.number);
        }
        self.disk.sync_dir(&self.dir).map_err(LogError::io("sync", &self.dir))
    }

    /// Reads entries beside the writer, from any thread.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }

    /// Makes spare segments, on any thread.
    #[must_use]
    pub fn spares(&self) -> SpareMaker {
        SpareMaker { pool: self.spares.clone() }
    }

    /// The last entry that was written.
    #[must_use]
    pub fn last(&self) -> EntryId {
        self.entries().last()
    }

    /// The entry before the first.
    #[must_use]
    pub fn start(&self) -> EntryId {
        self.entries().start()
    }

    fn begin_record(&mut self) {
        self.buf.clear();
        self.buf.resize(FRAME_ALIGN, 0);
    }

    /// Writes the record that `buf` holds. Returns where it begins and its mask.
    fn append(&mut self, spec: &FrameSpec) -> Result<(u64, u8), LogError> {
        let bytes = self.buf.len();
        if RECORD_BYTES_MAX < bytes {
            self.buf = Vec::new();
            return Err(LogError::TooLarge { bytes, bytes_max: RECORD_BYTES_MAX });
        }
        let len = bytes.next_multiple_of(FRAME_ALIGN) as u64;
        let mut spec = *spec;
        if self.current_bytes - self.tail.offset < len + SEAL_BYTES {
            self.roll(len, spec.kind != record::ENTRIES)?;
            spec.seq = self.tail.seq + 1;
        }
        let offset = self.tail.offset;
        let mut buf = mem::take(&mut self.buf);
        let encoded = encode_frame(&spec, offset, self.tail.crc, self.current.salt, &mut buf);
        let result = self.current.file.write_at(offset, &buf);
        self.or_poison(result.map_err(LogError::io("write", &self.current.path)))?;
        self.is_unsynced = true;
        let end = offset + len;
        self.tail = Tail { offset: end, seq: spec.seq, crc: encoded.crc, remains_end: end };
        if buf.len() <= BUFFER_BYTES_MAX {
            self.buf = buf;
        }
        Ok((offset, encoded.mask))
    }

    /// Goes on in a new segment with room for a record of `record_bytes`.
    ///
    /// The new segment has its name before the old one is sealed. So a seal proves that there
    /// was a next segment, and one that is lost is missed.
    ///
    /// On a full disk the last spare is kept for what must not wait for space: terms and votes,
    /// and the purges and resets that make room.
    fn roll(&mut self, record_bytes: u64, may_take_reserve: bool) -> Result<(), LogError> {
        let number = self.current.number.checked_add(1).expect("segments enough for 10^17 bytes");
        let last = self.entries().last();
        let seal = Seal::new(&self.tail, self.current.salt, self.hard_state, last.index.next());
        let start = SegmentStart { last, hard_state: self.hard_state };
        let bytes = SEGMENT_HEADER_BYTES + record_bytes + SEAL_BYTES;
        let place = Place { disk: &*self.disk, dir: &self.dir, store: self.store, seed: self.seed };
        let made = self
            .spares
            .take(bytes, may_take_reserve)
            .map_err(LogError::from)
            .and_then(|spare| place.make_segment(spare, number, (seal.seq, seal.crc), start));
        let (segment, bytes) = match made {
            Err(error @ LogError::NoSpace { .. }) => return Err(error), // nothing has happened
            made => self.or_poison(made)?,
        };
        let result = self.current.file.write_at(self.tail.offset, &seal.bytes);
        self.or_poison(result.map_err(LogError::io("write", &self.current.path)))?;
        let result = self.current.file.sync_data();
        self.or_poison(result.map_err(LogError::io("sync", &self.current.path)))?;

        let offset = SEGMENT_HEADER_BYTES;
        self.tail = Tail { offset, seq: seal.seq, crc: seal.crc, remains_end: offset };
        self.current = Arc::clone(&segment);
        self.current_bytes = bytes;
        self.entries().segments.insert(number, segment);
        Ok(())
    }

    /// Tells the readers what was written, and where.
    fn publish(&mut self, merged: &Merged<'_>, places: &[(usize, usize)], (at, mask): (u64, u8)) {
        let segment = self.current.number;
        if let Some(meta) = merged.reset_to {
            let Start { at, membership } = Start::after(meta);
            self.entries().reset(at, membership);
            self.reset_in = Some(segment);
        }
        let Some(first) = merged.entries.first() else { return };
        let short = "a segment is shorter than 4 GiB";
        let mut entries = self.entries();
        entries.truncate(first.id.index);
        for (entry, &(start, len)) in merged.entries.iter().zip(places) {
            let offset = u32::try_from(at + start as u64).expect(short);
            let len = u32::try_from(len).expect(short);
            let (location, membership) = Location::of(entry, segment, offset, len, mask);
            entries.push(location, membership);
        }
    }

    fn assert_follows(&self, merged: &Merged<'_>) {
        let entries = self.entries();
        let (start, last) = (entries.start(), entries.last());
        if let Some(meta) = merged.reset_to {
            let after = meta.last;
            assert!(start.index <= after.index, "a reset to {after} of a log after {start}");
            let follows = merged.entries.first().is_none_or(|first| {
                first.id.index == after.index.next() && after.term <= first.id.term
            });
            assert!(follows, "entries that follow a reset to {after}");
            return;
        }
        let Some(first) = merged.entries.first() else { return };
        let before = entries.id(first.id.index.prev());
        assert!(
            start.index < first.id.index
                && before.is_some_and(|before| before.term <= first.id.term),
            "{} does not follow the log, which starts after {start} and ends at {last}",
            first.id,
        );
    }

    fn check_is_sound(&self) -> Result<(), LogError> {
        if self.is_poisoned { Err(LogError::Poisoned) } else { Ok(()) }
    }

    fn or_poison<T>(&mut self, result: Result<T, LogError>) -> Result<T, LogError> {
        self.is_poisoned |= result.is_err();
        result
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for the seal is kept at the end of every segment.
const SEAL_BYTES: u64 = FRAME_ALIGN as u64;

/// Where segments are made, and whose they are.
struct Place<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    store: StoreId,
    seed: u64,
}

impl Place<'_> {
    fn make_segment(
        &self,
        spare: Spare,
        number: u32,
        (prev_frame_seq, prev_frame_crc): (u64, u32),
        start: SegmentStart,
    ) -> Result<(Arc<Segment>, u64), LogError> {
        let header = SegmentHeader {
            magic: MAGIC,
            salt: segment::salt(self.seed, self.store, number),
            seq: number.into(),
            bytes: spare.bytes(),
            prev_frame_seq,
            prev_frame_crc,
            store: self.store.get(),
            user: start.encode(),
        };
        let path = segment::path(self.dir, number);
        let file = spare.become_segment(self.disk, &path, &header)?;
        Ok((Arc::new(Segment { number, path, file, salt: header.salt }), header.bytes))
    }
}

/// Makes zero-filled spare segments. Clones share the work.
#[derive(Clone, Debug)]
pub struct SpareMaker {
    pool: SparePool,
}

impl SpareMaker {
    /// Makes one spare if fewer than wanted are ready. True if it made one.
    ///
    /// # Errors
    ///
    /// [`LogError::NoSpace`] if the disk is full. This is the moment to take no more proposals:
    /// the log goes on with the spares that are left, and keeps the last one for terms and
    /// votes, for purges and for resets. It is over when this succeeds again.
    pub fn fill(&self) -> Result<bool, LogError> {
        Ok(self.pool.fill()?)
    }
}

pub(crate) fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn DiskLock>, LogError> {
    let path = dir.join("LOCK");
    match disk.lock(&path) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(LogError::Locked { path }),
        result => result.map_err(LogError::io("lock", &path)),
    }
}

/// Recovers. What is damaged is set aside, if it may be, and what is left is recovered.
fn recover_or_set_aside(
    patient: &Patient<'_>,
    on_damage: OnDamage,
) -> Result<(Recovery, Option<RangeInclusive<Index>>), LogError> {
    let recover = || {
        let genesis = Arc::clone(patient.genesis);
        recover(&**patient.disk, patient.segments_dir, patient.store, genesis)
    };
    let known = patient.marker()?;
    match recover() {
        Ok(recovery) => Ok((recovery, known.map(|marker| marker.entries))),
        Err(Refusal { error, before: Some(before) }) if on_damage == OnDamage::SetAside => {
            let (marker, report) = patient.set_aside(&error, &before, known.as_ref())?;
            let mut recovery = recover().map_err(|refusal| refusal.error)?;
            recovery.report.damage = Some(report);
            Ok((recovery, Some(marker.entries)))
        }
        Err(refusal) => Err(refusal.error),
    }
}

fn opened(
    identity: Identity,
    recovery: &Recovery,
    damaged: Option<RangeInclusive<Index>>,
) -> Opened {
    let entries = &recovery.entries;
    let recovered = Recovered {
        hard_state: recovery.hard_state,
        log_start: entries.start(),
        term_runs: entries.term_runs(),
        last: entries.last(),
        memberships: entries.memberships().to_vec(),
        log_sizes: entries.sizes(),
        damaged,
        is_pristine: recovery.report.is_new,
        ..Recovered::default()
    };
    Opened { identity, recovered, report: recovery.report.clone() }
}
