//! A disk in memory that forgets what was not synced, and fails when told to.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use kontiki_disk::{Disk, DiskFile, DiskLock};
use parking_lot::Mutex;

use super::rng::Rng;

type Files = BTreeMap<PathBuf, Arc<MemoryFile>>;

/// A disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryDisk(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    files: Mutex<Files>,
    /// The names that would be there after a power failure.
    durable_names: Mutex<Files>,
    locks: Mutex<BTreeMap<PathBuf, Arc<AtomicBool>>>,
    /// Calls until writes and syncs fail, for ever; negative is never.
    calls_left: Arc<CallsLeft>,
}

#[derive(Debug)]
struct CallsLeft(AtomicI64);

impl Default for CallsLeft {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MAX))
    }
}

impl CallsLeft {
    fn take(&self) -> io::Result<()> {
        if self.0.fetch_sub(1, Ordering::Relaxed) <= 0 {
            self.0.store(0, Ordering::Relaxed);
            return Err(io::Error::other("the disk was told to fail"));
        }
        Ok(())
    }
}

impl MemoryDisk {
    /// Lets `calls` more writes and syncs succeed, and no other after that.
    pub(crate) fn fail_after(&self, calls: i64) {
        self.0.calls_left.0.store(calls, Ordering::Relaxed);
    }

    /// Lets all calls succeed again: the cause of the failure is mended.
    pub(crate) fn mend(&self) {
        self.fail_after(i64::MAX);
    }

    /// How many writes and syncs there were.
    pub(crate) fn calls(&self) -> i64 {
        i64::MAX - self.0.calls_left.0.load(Ordering::Relaxed)
    }

    /// The disk after a power failure: of what was not synced any part may be there.
    pub(crate) fn crash(&self, rng: &mut Rng) -> Self {
        let names = if rng.one_in(2) { &self.0.durable_names } else { &self.0.files };
        let files: Files = names
            .lock()
            .iter()
            .map(|(path, file)| (path.clone(), Arc::new(file.crash(rng))))
            .collect();
        let after = Self::default();
        for file in files.values() {
            *file.calls_left.lock() = Arc::clone(&after.0.calls_left);
        }
        *after.0.files.lock() = files.clone();
        *after.0.durable_names.lock() = files;
        after
    }

    /// Changes one bit of a file.
    pub(crate) fn flip(&self, path: &Path, offset: usize, bit: usize) {
        let files = self.0.files.lock();
        files[path].content.lock().live[offset] ^= 1 << bit;
    }

    /// The bytes of a file.
    pub(crate) fn bytes(&self, path: &Path) -> Vec<u8> {
        let files = self.0.files.lock();
        let content = files[path].content.lock();
        content.live.clone()
    }
}

#[derive(Debug, Default)]
struct MemoryFile {
    content: Mutex<Content>,
    calls_left: Mutex<Arc<CallsLeft>>,
}

#[derive(Debug, Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, written) => {
                let end = offset + written.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(written);
            }
            Self::SetLen(len) => bytes.resize(*len, 0),
        }
    }
}

impl MemoryFile {
    fn crash(&self, rng: &mut Rng) -> Self {
        let content = self.content.lock();
        let mut bytes = content.durable.clone();
        let survives = rng.below(4); // none, few, many, all
        for change in &content.unsynced {
            let lives = match survives {
                0 => false,
                1 => rng.one_in(4),
                2 => !rng.one_in(4),
                _ => true,
            };
            match change {
                // Lengths are never lost before the writes that need them.
                Change::SetLen(_) => change.make(&mut bytes),
                Change::Write(offset, written) if lives && rng.one_in(8) => {
                    let sectors = rng.below(written.len() / 512 + 1);
                    let torn = written[..sectors * 512].to_vec();
                    Change::Write(*offset, torn).make(&mut bytes);
                }
                Change::Write(..) if lives => change.make(&mut bytes),
                Change::Write(..) => {}
            }
        }
        let content = Content { live: bytes.clone(), durable: bytes, unsynced: Vec::new() };
        Self { content: Mutex::new(content), calls_left: Mutex::default() }
    }

    fn change(&self, change: Change) -> io::Result<()> {
        self.calls_left.lock().take()?;
        let mut content = self.content.lock();
        change.make(&mut content.live);
        content.unsynced.push(change);
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let content = self.content.lock();
        let offset = usize::try_from(offset).unwrap();
        let bytes = content.live.get(offset..offset + buf.len());
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(Change::Write(usize::try_from(offset).unwrap(), bytes.to_vec()))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.calls_left.lock().take()?;
        let mut content = self.content.lock();
        let Content { durable, unsynced, .. } = &mut *content;
        for change in unsynced.drain(..) {
            change.make(durable);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(u64::try_from(self.content.lock().live.len()).unwrap())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(usize::try_from(len).unwrap()))
    }
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let files = self.0.files.lock();
        let inside = files.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()).map(PathBuf::from).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let files = self.0.files.lock();
        let file = files.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::clone(file) as Arc<dyn DiskFile>)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = Arc::new(MemoryFile::default());
        *file.calls_left.lock() = Arc::clone(&self.0.calls_left);
        let earlier = self.0.files.lock().insert(path.to_owned(), Arc::clone(&file));
        assert!(earlier.is_none(), "{} exists", path.display());
        Ok(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.0.files.lock();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = self.0.files.lock().remove(path);
        removed.map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.0.calls_left.take()?;
        *self.0.durable_names.lock() = self.0.files.lock().clone();
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let mut locks = self.0.locks.lock();
        let lock = Arc::clone(locks.entry(path.to_owned()).or_default());
        if lock.swap(true, Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemoryLock(lock)))
    }
}

#[derive(Debug)]
struct MemoryLock(Arc<AtomicBool>);

impl DiskLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
