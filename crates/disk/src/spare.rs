//! Spare segments: files of zeros, made before they are needed.
//!
//! Writing into blocks that were written before costs no journal commit of the file system:
//! 1.5 times the throughput of blocks that were only reserved (`docs/log-format.md`, "Spares").
//! And a full disk shows here, where nothing has been promised yet, never inside a write.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{Disk, DiskError, DiskFile, SEGMENT_HEADER_BYTES, SegmentHeader};

/// Zeros are written in steps of this, so that they do not stand in the way of the log for
/// long: one step takes about as long as five small `fdatasync`s.
const STEP_BYTES: usize = 1 << 20;

const PREFIX: &str = "spare-";

/// The spare segments of one directory. Clones share them.
#[derive(Clone, Debug)]
pub struct SparePool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    wanted: usize,
    next_name: AtomicU64,
    /// The last attempt to make one found the disk full.
    is_full: AtomicBool,
    /// Ready to be used: durable zeros of the usual length. Not held during I/O.
    ready: Mutex<Vec<Spare>>,
}

/// A file of durable zeros.
#[derive(Debug)]
pub struct Spare {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    bytes: u64,
}

impl Spare {
    /// The length of the file.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Becomes a segment: the header is durable before the name is, and the name is when this
    /// returns (pitfall D5).
    ///
    /// # Errors
    ///
    /// As the file system says. After an error it is not known whether the segment exists.
    ///
    /// # Panics
    ///
    /// If the header speaks of another length, or the path has no directory.
    pub fn become_segment(
        self,
        disk: &dyn Disk,
        path: &Path,
        header: &SegmentHeader,
    ) -> Result<Arc<dyn DiskFile>, DiskError> {
        assert_eq!(header.bytes, self.bytes, "a header tells the length of its file");
        self.file.write_at(0, &header.encode()).map_err(DiskError::io("write", &self.path))?;
        self.file.sync_data().map_err(DiskError::io("sync", &self.path))?;
        disk.rename(&self.path, path).map_err(DiskError::io("rename", &self.path))?;
        let dir = path.parent().expect("a segment lies in a directory");
        disk.sync_dir(dir).map_err(DiskError::io("sync", dir))?;
        Ok(self.file)
    }
}

impl SparePool {
    /// Takes over the spares that an earlier life left in `dir` and removes what is none.
    ///
    /// # Errors
    ///
    /// As the file system says.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        segment_bytes: u64,
        wanted: usize,
    ) -> Result<Self, DiskError> {
        let mut ready = Vec::new();
        let mut next_name = 0;
        for name in disk.list(dir).map_err(DiskError::io("list", dir))? {
            let Some(number) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
                continue;
            };
            next_name = next_name.max(number.parse::<u64>().map_or(0, |number| number + 1));
            let path = dir.join(&name);
            let file = disk.open(&path).map_err(DiskError::io("open", &path))?;
            if ready.len() < wanted && is_unused(&*file, &path, segment_bytes)? {
                file.sync_data().map_err(DiskError::io("sync", &path))?;
                ready.push(Spare { path, file, bytes: segment_bytes });
            } else {
                disk.remove(&path).map_err(DiskError::io("remove", &path))?;
            }
        }
        let shared = Shared {
            disk,
            dir: dir.to_owned(),
            segment_bytes,
            wanted,
            next_name: AtomicU64::new(next_name),
            is_full: AtomicBool::new(false),
            ready: Mutex::new(ready),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Makes one spare if fewer than wanted are there. True if it made one.
    ///
    /// # Errors
    ///
    /// [`DiskError::NoSpace`] if the disk is full. What is in use is not touched.
    pub fn fill(&self) -> Result<bool, DiskError> {
        if self.shared.wanted <= self.ready().len() {
            return Ok(false);
        }
        let spare = self.make(self.shared.segment_bytes)?;
        self.ready().push(spare);
        Ok(true)
    }

    /// A spare of at least `bytes`: one that is ready, or one made on the spot.
    ///
    /// When the disk is full the last one that is ready is a reserve: it is given only to those
    /// who say so.
    ///
    /// # Errors
    ///
    /// [`DiskError::NoSpace`] if none is to be had and the disk is full. Nothing was written.
    pub fn take(&self, bytes: u64, may_take_reserve: bool) -> Result<Spare, DiskError> {
        if self.shared.segment_bytes < bytes {
            return self.make(bytes);
        }
        let is_full = self.shared.is_full.load(Ordering::Relaxed);
        if is_full && !may_take_reserve && self.ready().len() <= 1 {
            return self.make(self.shared.segment_bytes); // there may be room again
        }
        let ready = self.ready().pop();
        ready.map_or_else(|| self.make(self.shared.segment_bytes), Ok)
    }

    fn make(&self, bytes: u64) -> Result<Spare, DiskError> {
        let number = self.shared.next_name.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.dir.join(format!("{PREFIX}{number}"));
        let made = self.write_zeros(&path, bytes);
        let is_full = matches!(made, Err(DiskError::NoSpace { .. }));
        self.shared.is_full.store(is_full, Ordering::Relaxed);
        if made.is_err() {
            // Half a spare on a full disk is in the way. If it cannot be removed either, then
            // the next start does it, and the error that counts is the first one.
            drop(self.shared.disk.remove(&path));
        }
        Ok(Spare { file: made?, path, bytes })
    }

    fn write_zeros(&self, path: &Path, bytes: u64) -> Result<Arc<dyn DiskFile>, DiskError> {
        let file = self.shared.disk.create(path).map_err(DiskError::making("create", path))?;
        let zeros = vec![0; STEP_BYTES];
        let mut at = 0;
        while at < bytes {
            let step = STEP_BYTES.min(usize::try_from(bytes - at).unwrap_or(STEP_BYTES));
            file.write_at(at, &zeros[..step]).map_err(DiskError::making("write", path))?;
            at += step as u64;
        }
        file.sync_data().map_err(DiskError::making("sync", path))?;
        Ok(file)
    }

    fn ready(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.shared.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether nothing but zeros was ever written to it. A spare that was being put into use has a
/// header, and its first word is the first to be written.
fn is_unused(file: &dyn DiskFile, path: &Path, bytes: u64) -> Result<bool, DiskError> {
    if file.len().map_err(DiskError::io("measure", path))? != bytes {
        return Ok(false);
    }
    let mut head = [0; 8];
    let header_fits = SEGMENT_HEADER_BYTES <= bytes;
    if header_fits {
        file.read_at(0, &mut head).map_err(DiskError::io("read", path))?;
    }
    Ok(header_fits && head == [0; 8])
}
