//! The directory of a store: which files there are, and which of them count.
//!
//! ```text
//!   LOCK                                   held for life
//!   STATE                                  which epoch counts, and how far it is known to be durable
//!   <epoch>-<seq>-<gen>.seg                a segment of events, see `segment`
//!   <epoch>-<frame seq>.ck                 a checkpoint of the index, see `checkpoint`
//!   *.tmp                                  being made; nobody counts on it
//! ```
//!
//! Numbers are hexadecimal. An *epoch* is the life of one state: a snapshot that is restored is
//! a new epoch, written beside the old one, and `STATE` decides in one rename which of the two
//! is there. Files of other epochs are removed at the next start.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki_disk::{ByteReader, Disk, DiskError, DiskLock, SmallFile};

use crate::{
    error::{Fatal, OpenError},
    segment::SegmentHeader,
};

const LOCK: &str = "LOCK";
const STATE: &str = "STATE";
const STATE_MAGIC: [u8; 8] = *b"KTKSTORE";
/// How long it is: 44 bytes, and what every small file has.
pub(crate) const STATE_BYTES: u64 = 64;
/// Version 1 was a file of another kind.
const STATE_VERSION: u32 = 2;
/// What version 1 was kept in.
const FORMER: &str = "events.redb";
const SEGMENT: &str = "seg";
const CHECKPOINT: &str = "ck";
const TEMPORARY: &str = "tmp";

/// What is known to be on disk, from a time when nothing was being written. A hint: frames and
/// their order are the truth, and this tells damage from what a crash has torn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DurableMark {
    /// The segment that was written last, and where it ended.
    pub(crate) segment_seq: u64,
    pub(crate) offset: u64,
    /// The last frame in it.
    pub(crate) frame_seq: u64,
}

/// The files of one epoch. Clones are the same files.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) disk: Arc<dyn Disk>,
    dir: PathBuf,
    pub(crate) epoch: u64,
    secret: u64,
    /// Held for as long as any store of the directory is in use.
    _lock: Arc<dyn DiskLock>,
}

/// What a directory holds.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) files: Files,
    pub(crate) mark: DurableMark,
    /// The segments, by their place in history and their generation.
    pub(crate) segments: BTreeMap<(u64, u32), PathBuf>,
    /// The checkpoints, by the last frame that is in them.
    pub(crate) checkpoints: BTreeMap<u64, PathBuf>,
}

impl Files {
    /// Looks at the directory, or makes it. `secret` is for a store that is new.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path, secret: u64) -> Result<Found, OpenError> {
        let io = |error: io::Error| OpenError::Io { path: dir.to_owned(), source: Arc::new(error) };
        disk.create_dir_all(dir).map_err(io)?;
        let lock = disk.lock(&dir.join(LOCK)).map_err(|error| {
            if error.kind() == io::ErrorKind::WouldBlock {
                OpenError::Locked { path: dir.to_owned() }
            } else {
                io(error)
            }
        })?;
        let names = disk.list(dir).map_err(io)?;
        if names.iter().any(|name| name == Path::new(FORMER)) {
            let path = dir.join(FORMER);
            return Err(OpenError::Version { path, found: 1, known: STATE_VERSION });
        }
        let mut files = Self { disk, dir: dir.to_owned(), epoch: 1, secret, _lock: lock.into() };
        let state = files.state().read(&*files.disk).map_err(|error| state_error(dir, error))?;
        let mark = match state {
            Some(state) => {
                let state = State::decode(&state, dir)?;
                (files.epoch, files.secret) = (state.epoch, state.secret);
                state.mark
            }
            None if names.iter().any(|name| has_extension(name, SEGMENT)) => {
                let what = "there are events, and nothing says which of them count";
                return Err(OpenError::damaged(&dir.join(STATE), 0, what));
            }
            None => {
                let written = files.write_state(DurableMark::default());
                let written = written.map_err(|fatal| OpenError::from_fatal(dir, fatal))?;
                if !written {
                    return Err(io(io::ErrorKind::StorageFull.into()));
                }
                DurableMark::default()
            }
        };
        // What was renamed before a crash may not be durable yet. What it stands for must not go
        // before it is.
        files.sync_dir().map_err(io)?;
        let mut found =
            Found { files, mark, segments: BTreeMap::new(), checkpoints: BTreeMap::new() };
        for name in names {
            found.sort_in(&name).map_err(io)?;
        }
        Ok(found)
    }

    /// The files of the next epoch, which do not count before
    /// [`write_state`](Self::write_state).
    pub(crate) fn next_epoch(&self) -> Self {
        Self { epoch: self.epoch + 1, ..self.clone() }
    }

    /// The header of the segment `seq`, which comes after frame `prev_frame_seq`.
    pub(crate) fn header(&self, seq: u64, prev_frame_seq: u64) -> SegmentHeader {
        self.header_of((seq, seq), 0, prev_frame_seq)
    }

    /// The header of a segment that stands for those of `seqs`.
    pub(crate) fn header_of(
        &self,
        (seq, last_seq): (u64, u64),
        generation: u32,
        prev_frame_seq: u64,
    ) -> SegmentHeader {
        let epoch = self.epoch;
        let name = [self.secret, epoch, seq, u64::from(generation)];
        let salt = name.iter().fold(0, |crc, n| crc32c::crc32c_append(crc, &n.to_le_bytes()));
        SegmentHeader { salt, epoch, seq, last_seq, generation, prev_frame_seq }
    }

    /// Where a segment is.
    pub(crate) fn segment_path(&self, header: &SegmentHeader) -> PathBuf {
        let SegmentHeader { epoch, seq, generation, .. } = header;
        self.dir.join(format!("{epoch:08x}-{seq:016x}-{generation:08x}.{SEGMENT}"))
    }

    /// Where the checkpoint up to a frame is.
    pub(crate) fn checkpoint_path(&self, frame_seq: u64) -> PathBuf {
        self.dir.join(format!("{:08x}-{frame_seq:016x}.{CHECKPOINT}", self.epoch))
    }

    /// The checkpoints that are there.
    pub(crate) fn checkpoints(&self) -> io::Result<Vec<PathBuf>> {
        let prefix = format!("{:08x}-", self.epoch);
        let names = self.disk.list(&self.dir)?.into_iter().filter(|name| {
            let is_ours = name.to_str().is_some_and(|name| name.starts_with(&prefix));
            is_ours && has_extension(name, CHECKPOINT)
        });
        Ok(names.map(|name| self.dir.join(name)).collect())
    }

    /// Where a file is while it is being made.
    pub(crate) fn temporary(path: &Path) -> PathBuf {
        path.with_added_extension(TEMPORARY)
    }

    /// Makes the names in the directory durable.
    pub(crate) fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir(&self.dir)
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        match self.disk.remove(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Removes all files of this epoch.
    pub(crate) fn remove_all(&self) -> io::Result<()> {
        let prefix = format!("{:08x}-", self.epoch);
        for name in self.disk.list(&self.dir)? {
            if name.to_str().is_some_and(|name| name.starts_with(&prefix)) {
                self.remove(&self.dir.join(&name))?;
            }
        }
        Ok(())
    }

    /// Says, durably, that this epoch counts, and how far it goes for certain. False if there
    /// is no room for that.
    pub(crate) fn write_state(&self, mark: DurableMark) -> Result<bool, Fatal> {
        let state = State { epoch: self.epoch, secret: self.secret, mark };
        match self.state().replace(&*self.disk, &state.encode()) {
            Ok(()) => Ok(true),
            Err(DiskError::NoSpace { .. }) => Ok(false),
            Err(error) => Err(Fatal::io("write the state of", error)),
        }
    }

    fn state(&self) -> SmallFile {
        SmallFile::new(self.dir.join(STATE), STATE_MAGIC)
    }
}

impl Found {
    /// Takes note of a file, or removes it if nobody counts on it.
    fn sort_in(&mut self, name: &Path) -> io::Result<()> {
        let path = self.files.dir.join(name);
        let kind = name.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
        let numbers = numbers(name);
        match (kind, numbers.as_deref()) {
            (SEGMENT, Some(&[epoch, seq, generation])) if epoch == self.files.epoch => {
                let generation = u32::try_from(generation).unwrap_or(u32::MAX);
                self.segments.insert((seq, generation), path);
            }
            (CHECKPOINT, Some(&[epoch, frame_seq])) if epoch == self.files.epoch => {
                self.checkpoints.insert(frame_seq, path);
            }
            (SEGMENT | CHECKPOINT, Some(_)) | (TEMPORARY, _) => self.files.remove(&path)?,
            _ => {} // not ours
        }
        Ok(())
    }
}

/// The hexadecimal numbers of a name.
fn numbers(name: &Path) -> Option<Vec<u64>> {
    let stem = name.file_stem()?.to_str()?;
    stem.split('-').map(|part| u64::from_str_radix(part, 16).ok()).collect()
}

fn has_extension(name: &Path, extension: &str) -> bool {
    name.extension().is_some_and(|found| found == extension)
}

fn state_error(dir: &Path, error: DiskError) -> OpenError {
    match error {
        DiskError::Damaged { path, offset, what } => OpenError::damaged(&path, offset, what),
        DiskError::Version { path, found, supported } => {
            OpenError::Version { path, found, known: supported }
        }
        DiskError::Io { op: "read", path, source } => OpenError::unreadable(&path, 0, &source),
        other => OpenError::Io { path: dir.join(STATE), source: Arc::new(other) },
    }
}

/// What is in `STATE`.
struct State {
    epoch: u64,
    secret: u64,
    mark: DurableMark,
}

impl State {
    fn encode(&self) -> Vec<u8> {
        let DurableMark { segment_seq, offset, frame_seq } = self.mark;
        let mut bytes = STATE_VERSION.to_le_bytes().to_vec();
        for number in [self.epoch, self.secret, segment_seq, offset, frame_seq] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8], dir: &Path) -> Result<Self, OpenError> {
        let mut reader = ByteReader::new(bytes);
        let version = reader.u32().unwrap_or_default();
        if version != STATE_VERSION {
            let path = dir.join(STATE);
            return Err(OpenError::Version { path, found: version, known: STATE_VERSION });
        }
        let mut parse = || {
            Some(Self {
                epoch: reader.u64()?,
                secret: reader.u64()?,
                mark: DurableMark {
                    segment_seq: reader.u64()?,
                    offset: reader.u64()?,
                    frame_seq: reader.u64()?,
                },
            })
        };
        parse().ok_or_else(|| OpenError::damaged(&dir.join(STATE), 0, "it is too short"))
    }
}
