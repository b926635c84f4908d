//! A disk that loses, tears, fills up, fails and rots, all of it from a seed.
//!
//! What is modelled, and what is not: `docs/log-format.md`, "What a disk may do". In short:
//!
//! - Of what was written and not synced, a crash keeps any subset of the 512-byte sectors; of
//!   some it keeps only the front, cut at a multiple of 8 bytes.
//! - Names that were made, changed or removed survive a crash only as a prefix of what was done
//!   in a directory since it was synced. To sync a file says nothing about its name.
//! - After a failed `sync_data` some of the bytes are durable, and the others will never be:
//!   either they are gone at once, or they can be read until the machine restarts. The next
//!   `sync_data` succeeds all the same, as on Linux.
//! - After a crash what the dead machine held open is dead, too.
//!
//! Chance is a hash of the seed and of a stable key, so one fault more changes nothing else.

mod state;

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kontiki_disk::{Disk, DiskFile, DiskLock};

use state::{InodeId, Name, State};

/// The size of what a disk writes at once.
pub const SECTOR_BYTES: usize = 512;

/// How an operation goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a sweep that overlooks a fault must not compile")]
pub enum Fault {
    /// `EIO`. Part of the work may have been done.
    Io,
    /// `ENOSPC`. For a `sync_data` it means what `EIO` means.
    NoSpace,
}

/// A simulated disk. Clones are the same disk; it outlives the machines that use it.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// An empty disk without a bound.
    #[must_use]
    pub fn new() -> Self {
        Self::with_seed(0)
    }

    /// An empty disk whose failed operations do what this seed says.
    #[must_use]
    pub fn with_seed(seed: u64) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(seed))) }
    }

    /// Another disk with the same content, synced and not, and the same faults to come.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { state: Arc::new(Mutex::new(self.state().clone())) }
    }

    /// The power fails. What survives of what was not synced, `seed` decides. Locks are free,
    /// open files are dead, faults to come are forgotten.
    pub fn crash(&self, seed: u64) {
        self.state().crash(seed);
    }

    /// The process dies, the machine does not: nothing is lost. Locks are free, open files are
    /// dead.
    pub fn kill(&self) {
        self.state().end_of_process();
    }

    /// How many operations were carried out that change something, syncs included.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// Lets operation number `op` go wrong, as counted by [`ops`](Self::ops) from 1.
    pub fn fail_at(&self, op: u64, fault: Fault) {
        self.state().faults.insert(op, fault);
    }

    /// Lets every operation after this one fail, as if the power had gone: to be followed by
    /// [`crash`](Self::crash).
    pub fn halt_after(&self, op: u64) {
        self.state().halt_after = op;
    }

    /// How many bytes the files may have together.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// How many bytes the files have together.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// Every file there is, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.state().names.keys().cloned().collect()
    }

    /// What a reader would see in a file.
    ///
    /// # Panics
    ///
    /// If there is no such file.
    #[must_use]
    pub fn content(&self, path: &Path) -> Vec<u8> {
        let mut state = self.state();
        state.inode_at(path).volatile.clone()
    }

    /// One bit of a file rots, on the disk and in every cache.
    ///
    /// # Panics
    ///
    /// If there is no such bit.
    pub fn flip_bit(&self, path: &Path, bit: u64) {
        let at = usize::try_from(bit / 8).expect("inside the file");
        let mut state = self.state();
        let inode = state.inode_at(path);
        inode.volatile[at] ^= 1 << (bit % 8);
        if let Some(byte) = inode.durable.get_mut(at) {
            *byte ^= 1 << (bit % 8);
        }
    }

    /// Puts other bytes into a file, on the disk and in every cache.
    ///
    /// # Panics
    ///
    /// If there is no such file, or it is shorter.
    pub fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).expect("inside the file");
        let mut state = self.state();
        let inode = state.inode_at(path);
        inode.volatile[at..at + bytes.len()].copy_from_slice(bytes);
        if at + bytes.len() <= inode.durable.len() {
            inode.durable[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Cuts a file, durably.
    ///
    /// # Panics
    ///
    /// If there is no such file.
    pub fn cut(&self, path: &Path, len: u64) {
        let len = usize::try_from(len).expect("inside the file");
        let mut state = self.state();
        let inode = state.inode_at(path);
        inode.volatile.truncate(len);
        inode.durable.truncate(len);
    }

    /// A file is lost, durably.
    pub fn lose(&self, path: &Path) {
        self.state().lose(path);
    }

    /// Lets every read that touches these bytes of a file fail with `EIO`, until the file is
    /// gone.
    ///
    /// # Panics
    ///
    /// If there is no such file.
    pub fn make_unreadable(&self, path: &Path, bytes: Range<u64>) {
        self.state().inode_at(path).unreadable.push(bytes);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin_op()?.map_or(Ok(()), Err)?;
        for dir in dir.ancestors() {
            state.dirs.insert(dir.to_owned());
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.state();
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let here = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(here.filter_map(|path| path.file_name().map(PathBuf::from)).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        let inode = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(&mut state, inode))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        state.begin_op()?.map_or(Ok(()), Err)?;
        let inode = state.create(path)?;
        Ok(self.file(&mut state, inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin_op()?.map_or(Ok(()), Err)?;
        if from.parent() != to.parent() {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        if !state.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.name(Name::Renamed { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin_op()?.map_or(Ok(()), Err)?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.name(Name::Removed { path: path.to_owned() });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        let fault = state.begin_op()?;
        state.sync_dir(dir, fault.is_some());
        fault.map_or(Ok(()), Err)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let mut state = self.state();
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (disk, epoch) = (self.clone(), state.epoch);
        Ok(Box::new(SimLock { disk, path: path.to_owned(), epoch }))
    }
}

impl SimDisk {
    fn file(&self, state: &mut State, inode: InodeId) -> Arc<dyn DiskFile> {
        state.inode(inode).handles += 1;
        Arc::new(SimFile { disk: self.clone(), inode, epoch: state.epoch })
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: InodeId,
    /// Of the process that opened it.
    epoch: u64,
}

impl SimFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.epoch != self.epoch {
            return Err(io::Error::other("the process that opened this file is dead"));
        }
        Ok(state)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Ok(mut state) = self.state() {
            state.close(self.inode);
        }
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.state()?.inode(self.inode).read(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state()?;
        let fault = state.begin_op()?;
        state.write(self.inode, offset, bytes, fault)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state()?;
        let fault = state.begin_op()?;
        state.sync_data(self.inode, fault)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.inode(self.inode).volatile.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state()?;
        state.begin_op()?.map_or(Ok(()), Err)?;
        state.set_len(self.inode, len)
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    path: PathBuf,
    epoch: u64,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.epoch == self.epoch {
            state.locks.remove(&self.path);
        }
    }
}
