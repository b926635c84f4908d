//! Snapshot files: made here or received, verified before they count, read without trust.
//!
//! Layout and rules: `docs/log-format.md`, "Snapshots". This module knows which files there
//! are. What a snapshot means, and whether the log goes on from it, is decided elsewhere.
//!
//! # Invariants
//!
//! - A file has the name of a snapshot only when all of it is durable and was read back.
//! - The one before the newest is kept: should the newest rot, the log may still reach it.
//! - No error here is one of the log (it is another set of files), and none is fatal.

mod format;
mod reader;
mod receive;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use kontiki_disk::{Disk, DiskFile};
use kontiki_raft::{EntryId, Index, SnapshotMeta, Term};

use crate::LogError;

pub use reader::{SnapshotReader, SnapshotSource};
pub use receive::{Receiving, SnapshotReceiver};
pub use writer::SnapshotFileWriter;

/// A file that is being made is synced whenever so many chunks were written, 4 MiB: a sync of
/// more at once would be long in the way of the log's.
const SYNC_CHUNKS: u64 = 4;

/// How many are kept of those that the log reaches: the newest and the one before.
const KEPT: usize = 2;

const COMPLETE: &str = "snap";
const PARTIAL: &str = "part";
const TEMPORARY: &str = "tmp";
const DAMAGED: &str = "damaged";

/// What is known of a snapshot without reading it. Two that are equal have the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "transports make it from what a sender offers")]
pub struct SnapshotInfo {
    /// What it stands for.
    pub meta: SnapshotMeta,
    /// The length of all chunks, each with the 8 bytes before its data.
    pub bytes: u64,
    /// How many chunks there are, at least one. Their numbers start at 0.
    pub chunk_count: u64,
    /// The checksum of the whole.
    pub checksum: u32,
}

/// Where a snapshot comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The state of this server, which is as old as its log.
    Own,
    /// Another server: it stands for what the log does not hold yet.
    Received,
}

/// A snapshot file that was found damaged. It was renamed, and is never used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DamagedSnapshot {
    /// What it was called.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

/// The snapshot files of a data directory. Clones are the same.
#[derive(Clone, Debug)]
pub struct Snapshots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    chunk_bytes: usize,
    next_temporary: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<(Index, Term), SnapshotInfo>,
    damaged: Vec<DamagedSnapshot>,
    /// Received, and the log may not be reset to them durably yet.
    unsettled: BTreeSet<(Index, Term)>,
    /// Of the newest receiver.
    turn: u64,
}

impl Snapshots {
    /// Looks at the snapshots in `dir/snapshot`, without reading them whole, and removes what a
    /// crash has left half made. Partial files that were being received stay.
    ///
    /// To be called by whoever holds the lock of `dir`, once.
    ///
    /// # Errors
    ///
    /// As the file system says, and [`LogError::Version`]. A damaged file is no error: see
    /// [`damaged`](Self::damaged).
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, LogError> {
        Self::open_with_chunks(disk, dir, format::CHUNK_BYTES)
    }

    /// As [`open`](Self::open), to make snapshots with chunks of this many bytes. Those that
    /// exist keep theirs.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    ///
    /// # Panics
    ///
    /// If `chunk_bytes` is not in \[1, 1 MiB\].
    pub fn open_with_chunks(
        disk: Arc<dyn Disk>,
        dir: &Path,
        chunk_bytes: usize,
    ) -> Result<Self, LogError> {
        assert!((1..=format::CHUNK_BYTES).contains(&chunk_bytes), "chunks of {chunk_bytes} bytes");
        let dir = dir.join("snapshot");
        disk.create_dir_all(&dir).map_err(LogError::io("create", &dir))?;
        let names = disk.list(&dir).map_err(LogError::io("list", &dir))?;
        let (next_temporary, state) = (AtomicU64::new(0), Mutex::default());
        let shared = Arc::new(Shared { disk, dir, chunk_bytes, next_temporary, state });
        let snapshots = Self { shared };
        for name in names {
            snapshots.take_over(&snapshots.shared.dir.join(name))?;
        }
        // The names that were seen may be lost by the next crash, if an earlier life died in time.
        let dir = &snapshots.shared.dir;
        snapshots.disk().sync_dir(dir).map_err(LogError::io("sync", dir))?;
        Ok(snapshots)
    }

    fn take_over(&self, path: &Path) -> Result<(), LogError> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension == Some(TEMPORARY) {
            return self.disk().remove(path).map_err(LogError::io("remove", path));
        }
        if extension != Some(COMPLETE) {
            return Ok(());
        }
        match SnapshotSource::open(self.disk(), path.to_owned()) {
            Ok(source) if self.path(source.info().meta.last) == path => {
                let info = source.info().clone();
                self.state().files.insert(key(info.meta.last), info);
                Ok(())
            }
            Ok(_) => self.set_aside(path, "it is not the snapshot that its name says".to_owned()),
            Err(error) if error.is_damage() => self.set_aside(path, error.to_string()),
            Err(error) => Err(error),
        }
    }

    /// The newest snapshot, by its last entry.
    #[must_use]
    pub fn newest(&self) -> Option<SnapshotInfo> {
        self.state().files.values().next_back().cloned()
    }

    /// All snapshots, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<SnapshotInfo> {
        self.state().files.values().cloned().collect()
    }

    /// What was found damaged since the start.
    #[must_use]
    pub fn damaged(&self) -> Vec<DamagedSnapshot> {
        self.state().damaged.clone()
    }

    /// The newest snapshot among those that are `usable` of which every byte is as it was
    /// written. Reads it whole. Newer ones that are damaged are set aside.
    ///
    /// # Errors
    ///
    /// As the file system says.
    pub fn newest_intact(
        &self,
        mut usable: impl FnMut(&SnapshotMeta) -> bool,
    ) -> Result<Option<SnapshotInfo>, LogError> {
        for info in self.list().into_iter().rev().filter(|info| usable(&info.meta)) {
            match self.verify(info.meta.last) {
                Ok(()) => return Ok(Some(info)),
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Reads a snapshot whole. If it is damaged it is set aside: it is not listed any more.
    ///
    /// # Errors
    ///
    /// [`LogError::Damaged`], [`LogError::NoSnapshot`], or as the file system says.
    pub fn verify(&self, last: EntryId) -> Result<(), LogError> {
        let result = self.source(last).and_then(SnapshotSource::verify);
        if let Err(error) = &result
            && error.is_damage()
        {
            self.set_aside(&self.path(last), error.to_string())?;
        }
        result
    }

    /// Begins to make a snapshot.
    ///
    /// # Errors
    ///
    /// [`LogError::NoSpace`], or as the file system says. Nothing was changed.
    pub fn begin(&self, meta: &SnapshotMeta) -> Result<SnapshotFileWriter, LogError> {
        let number = self.shared.next_temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.dir.join(format!("making-{number}.{TEMPORARY}"));
        SnapshotFileWriter::new(self, path, meta)
    }

    /// Reads the bytes of the snapshot that ends at `last`.
    ///
    /// # Errors
    ///
    /// [`LogError::NoSnapshot`] if there is none; [`LogError::Damaged`] if that shows at once.
    pub fn reader(&self, last: EntryId) -> Result<SnapshotReader, LogError> {
        Ok(SnapshotReader::new(self.source(last)?))
    }

    /// Opens the snapshot that ends at `last`, to be sent. If one of its chunks turns out to be
    /// damaged, tell by [`verify`](Self::verify).
    ///
    /// # Errors
    ///
    /// As [`reader`](Self::reader).
    pub fn source(&self, last: EntryId) -> Result<SnapshotSource, LogError> {
        if !self.state().files.contains_key(&key(last)) {
            return Err(LogError::NoSnapshot { last });
        }
        SnapshotSource::open(self.disk(), self.path(last))
    }

    /// Gets ready to receive what is offered, or goes on where an earlier attempt to receive
    /// this very snapshot has stopped, be it in an earlier life. What was received of another
    /// one is thrown away, and an earlier receiver takes nothing more.
    ///
    /// # Errors
    ///
    /// [`LogError::NoSpace`], or as the file system says.
    pub fn receive(&self, offer: &SnapshotInfo) -> Result<Receiving, LogError> {
        let last = offer.meta.last;
        if self.state().files.contains_key(&key(last)) {
            match self.verify(last) {
                Ok(()) => return Ok(Receiving::Here),
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        let turn = {
            let mut state = self.state();
            state.turn += 1;
            state.turn
        };
        let (dir, disk) = (&self.shared.dir, self.disk());
        let SnapshotInfo { bytes, checksum, .. } = offer;
        let path = dir.join(format!("{}-{bytes:x}-{checksum:08x}.{PARTIAL}", name(last)));
        for name in disk.list(dir).map_err(LogError::io("list", dir))? {
            let other = dir.join(name);
            if other.extension().is_some_and(|extension| extension == PARTIAL) && other != path {
                disk.remove(&other).map_err(LogError::io("remove", &other))?;
            }
        }
        SnapshotReceiver::open(self, turn, path, offer.clone()).map(Receiving::Wanted)
    }

    /// Removes a snapshot. No error if there is none.
    ///
    /// # Errors
    ///
    /// As the file system says.
    pub fn remove(&self, last: EntryId) -> Result<(), LogError> {
        let mut state = self.state();
        state.unsettled.remove(&key(last));
        if state.files.remove(&key(last)).is_none() {
            return Ok(());
        }
        drop(state);
        let path = self.path(last);
        self.disk().remove(&path).map_err(LogError::io("remove", &path))?;
        self.disk().sync_dir(&self.shared.dir).map_err(LogError::io("sync", &self.shared.dir))
    }

    /// The log is durable up to here, be it because it was reset to a snapshot that was received.
    /// Until it has reached that one, a crash may leave the log as it was before, or reset to any
    /// that was received since: so none of them is removed, nor what the old log needs.
    pub fn settle(&self, durable: Index) {
        let mut state = self.state();
        let before = state.unsettled.len();
        state.unsettled.retain(|(last, _)| durable < *last);
        let has_settled = state.unsettled.len() < before;
        drop(state);
        if has_settled {
            self.remove_old();
        }
    }

    /// Gives a file that is durable the name of a snapshot, if what is read back from it is what
    /// was written. Then those that are not needed any more are removed.
    fn publish(
        &self,
        file: &Arc<dyn DiskFile>,
        path: &Path,
        info: &SnapshotInfo,
        origin: Origin,
    ) -> Result<(), LogError> {
        let source = SnapshotSource::of_file(Arc::clone(file), path.to_owned())?;
        if source.info() != info {
            return Err(LogError::damaged(path, 0, "it reads back as another snapshot"));
        }
        source.verify()?;
        let dir = &self.shared.dir;
        let named = self.path(info.meta.last);
        self.disk().rename(path, &named).map_err(LogError::io("rename", path))?;
        self.disk().sync_dir(dir).map_err(LogError::io("sync", dir))?;
        let mut state = self.state();
        state.files.insert(key(info.meta.last), info.clone());
        if origin == Origin::Received {
            state.unsettled.insert(key(info.meta.last));
        }
        drop(state);
        self.remove_old();
        Ok(())
    }

    /// Best effort: what stays is in nobody's way, and is removed after the next one.
    fn remove_old(&self) {
        let mut settled = self.list();
        let unsettled = self.state().unsettled.clone();
        settled.retain(|info| !unsettled.contains(&key(info.meta.last)));
        let old = settled.len().saturating_sub(KEPT);
        for info in &settled[..old] {
            drop(self.remove(info.meta.last));
        }
        for name in self.disk().list(&self.shared.dir).unwrap_or_default() {
            if name.extension().is_some_and(|extension| extension == DAMAGED) {
                drop(self.disk().remove(&self.shared.dir.join(name)));
            }
        }
    }

    /// Takes its name from a damaged file, so that it is never used. It stays until the next
    /// snapshot is durable, for whoever wants to know.
    fn set_aside(&self, path: &Path, what: String) -> Result<(), LogError> {
        let mut state = self.state();
        state.files.retain(|_, info| self.path(info.meta.last) != path);
        state.damaged.push(DamagedSnapshot { path: path.to_owned(), what });
        drop(state);
        let aside = path.with_extension(DAMAGED);
        self.disk().rename(path, &aside).map_err(LogError::io("rename", path))
    }

    fn check_turn(&self, turn: u64) -> Result<(), LogError> {
        if self.state().turn == turn { Ok(()) } else { Err(LogError::Replaced) }
    }

    fn disk(&self) -> &dyn Disk {
        &*self.shared.disk
    }

    fn chunk_bytes(&self) -> usize {
        self.shared.chunk_bytes
    }

    fn path(&self, last: EntryId) -> PathBuf {
        self.shared.dir.join(format!("{}.{COMPLETE}", name(last)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn key(last: EntryId) -> (Index, Term) {
    (last.index, last.term)
}

fn name(last: EntryId) -> String {
    format!("{:016x}-{:016x}", last.index.get(), last.term.get())
}

impl From<LogError> for io::Error {
    /// For the traits of `std::io`: the kind tells damage and a full disk from the rest.
    fn from(error: LogError) -> Self {
        let kind = match &error {
            LogError::Io { source, .. } => source.kind(),
            LogError::NoSpace { .. } => io::ErrorKind::StorageFull,
            LogError::Damaged { .. } | LogError::BadChunk { .. } => io::ErrorKind::InvalidData,
            LogError::NoSnapshot { .. } => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
