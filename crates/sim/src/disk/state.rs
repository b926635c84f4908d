//! What is on the simulated disk, in its caches, and on its way from one to the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{Fault, SECTOR_BYTES};
use crate::dice::splitmix;

pub(super) type InodeId = u64;

/// Sectors are torn at multiples of this.
const WORD_BYTES: usize = 8;

/// Of the sectors that survive a crash so many in a hundred are torn.
const TORN_PERCENT: u64 = 5;

#[derive(Clone, Debug)]
pub(super) struct State {
    seed: u64,
    pub(super) ops: u64,
    pub(super) faults: BTreeMap<u64, Fault>,
    pub(super) halt_after: u64,
    pub(super) capacity: u64,
    /// Of the process that uses the disk now.
    pub(super) epoch: u64,
    pub(super) locks: BTreeSet<PathBuf>,
    /// Durable as soon as they are made.
    pub(super) dirs: BTreeSet<PathBuf>,
    /// As a process sees them.
    pub(super) names: BTreeMap<PathBuf, InodeId>,
    durable_names: BTreeMap<PathBuf, InodeId>,
    /// What happened to names since their directories were synced.
    pending: Vec<Name>,
    inodes: BTreeMap<InodeId, Inode>,
    next_inode: InodeId,
}

/// Something that happened to a name.
#[derive(Clone, Debug)]
pub(super) enum Name {
    Made { path: PathBuf, inode: InodeId },
    Renamed { from: PathBuf, to: PathBuf },
    Removed { path: PathBuf },
}

impl Name {
    fn dir(&self) -> Option<&Path> {
        match self {
            Self::Made { path, .. } | Self::Removed { path } | Self::Renamed { to: path, .. } => {
                path.parent()
            }
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, InodeId>) {
        match self {
            Self::Made { path, inode } => {
                names.insert(path.clone(), *inode);
            }
            Self::Renamed { from, to } => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            Self::Removed { path } => {
                names.remove(path);
            }
        }
    }
}

/// A file.
#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    /// The name it was made with: a key for chance that other files do not move.
    key: u64,
    pub(super) durable: Vec<u8>,
    /// As a process sees it.
    pub(super) volatile: Vec<u8>,
    /// Which sectors of `volatile` a sync would write.
    dirty: BTreeSet<usize>,
    pub(super) unreadable: Vec<Range<u64>>,
    /// How often the process has it open.
    pub(super) handles: u32,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            ops: 0,
            faults: BTreeMap::new(),
            halt_after: u64::MAX,
            capacity: u64::MAX,
            epoch: 0,
            locks: BTreeSet::new(),
            dirs: BTreeSet::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending: Vec::new(),
            inodes: BTreeMap::new(),
            next_inode: 1,
        }
    }

    /// Counts an operation. The inner error is a fault that may leave half of the work done.
    pub(super) fn begin_op(&mut self) -> io::Result<Option<io::Error>> {
        if self.halt_after <= self.ops {
            return Err(io::Error::other("the power is gone"));
        }
        self.ops += 1;
        Ok(self.faults.remove(&self.ops).map(|fault| match fault {
            Fault::Io => io::Error::other("simulated I/O error"),
            Fault::NoSpace => io::ErrorKind::StorageFull.into(),
        }))
    }

    /// What a file without a name has counts as long as the file is open.
    pub(super) fn used(&self) -> u64 {
        let named: BTreeSet<InodeId> = self.names.values().copied().collect();
        let counts = |(id, inode): &(&InodeId, &Inode)| named.contains(id) || 0 < inode.handles;
        self.inodes.iter().filter(counts).map(|(_, inode)| inode.volatile.len() as u64).sum()
    }

    pub(super) fn close(&mut self, id: InodeId) {
        self.inode(id).handles -= 1;
        self.forget_unused();
    }

    /// Drops the files that nothing can reach any more, not even after a crash.
    fn forget_unused(&mut self) {
        let made = self.pending.iter().filter_map(|name| match name {
            Name::Made { inode, .. } => Some(*inode),
            Name::Renamed { .. } | Name::Removed { .. } => None,
        });
        let named = self.names.values().chain(self.durable_names.values()).copied();
        let used: BTreeSet<InodeId> = named.chain(made).collect();
        self.inodes.retain(|id, inode| used.contains(id) || 0 < inode.handles);
    }

    pub(super) fn inode(&mut self, id: InodeId) -> &mut Inode {
        self.inodes.get_mut(&id).expect("files live as long as their process")
    }

    pub(super) fn inode_at(&mut self, path: &Path) -> &mut Inode {
        let id = *self.names.get(path).unwrap_or_else(|| panic!("no file {}", path.display()));
        self.inode(id)
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<InodeId> {
        if self.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if path.parent().is_none_or(|dir| !self.dirs.contains(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inode = self.next_inode;
        self.next_inode += 1;
        let bytes = path.as_os_str().as_encoded_bytes();
        let key = bytes.iter().fold(0, |key, &byte| mix(key, byte.into()));
        self.inodes.insert(inode, Inode { key, ..Inode::default() });
        self.name(Name::Made { path: path.to_owned(), inode });
        Ok(inode)
    }

    pub(super) fn name(&mut self, name: Name) {
        name.apply(&mut self.names);
        self.pending.push(name);
    }

    /// Makes the names of a directory durable, all or, when it fails, those done first.
    pub(super) fn sync_dir(&mut self, dir: &Path, is_faulty: bool) {
        let pending = std::mem::take(&mut self.pending);
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            pending.into_iter().partition(|name| name.dir() == Some(dir));
        let kept = if is_faulty {
            chance_below(here.len() + 1, mix(self.seed, self.ops))
        } else {
            here.len()
        };
        for name in &here[..kept] {
            name.apply(&mut self.durable_names);
        }
        self.pending = elsewhere;
        self.pending.extend(here.into_iter().skip(kept));
        self.forget_unused();
    }

    pub(super) fn lose(&mut self, path: &Path) {
        self.names.remove(path);
        self.durable_names.remove(path);
    }

    pub(super) fn write(
        &mut self,
        id: InodeId,
        offset: u64,
        bytes: &[u8],
        fault: Option<io::Error>,
    ) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let grown = end.saturating_sub(self.inode(id).volatile.len() as u64);
        if self.capacity - self.capacity.min(self.used()) < grown {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let luck = mix(self.seed, self.ops);
        let start = to_usize(offset);
        let inode = self.inode(id);
        match fault {
            None => {
                inode.write(start, bytes, luck);
                Ok(())
            }
            Some(error) => {
                // Some of the sectors reached the cache before it failed.
                for (sector, part) in sectors(start, bytes) {
                    if mix(luck, sector as u64).is_multiple_of(2) {
                        inode.write(part.start, &bytes[part.start - start..part.end - start], luck);
                    }
                }
                Err(error)
            }
        }
    }

    pub(super) fn set_len(&mut self, id: InodeId, len: u64) -> io::Result<()> {
        let inode = self.inode(id);
        let grown = len.saturating_sub(inode.volatile.len() as u64);
        inode.volatile.resize(to_usize(len), 0);
        let end = inode.volatile.len().div_ceil(SECTOR_BYTES);
        inode.dirty.retain(|&sector| sector < end);
        if self.capacity < self.used() {
            let len = len - grown;
            self.inode(id).volatile.truncate(to_usize(len));
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    pub(super) fn sync_data(&mut self, id: InodeId, fault: Option<io::Error>) -> io::Result<()> {
        let luck = mix(self.seed, self.ops);
        let inode = self.inode(id);
        match fault {
            None => {
                inode.flush();
                Ok(())
            }
            Some(error) => {
                inode.fail_to_flush(mix(luck, inode.key));
                Err(error)
            }
        }
    }

    pub(super) fn end_of_process(&mut self) {
        self.epoch += 1;
        for inode in self.inodes.values_mut() {
            inode.handles = 0;
        }
        self.locks.clear();
        self.faults.clear();
        self.halt_after = u64::MAX;
    }

    pub(super) fn crash(&mut self, seed: u64) {
        self.end_of_process();
        self.crash_names(seed);
        self.forget_unused();
        for inode in self.inodes.values_mut() {
            inode.crash(mix(seed, inode.key));
        }
    }

    /// Of what happened in each directory the first so many survive.
    fn crash_names(&mut self, seed: u64) {
        let pending = std::mem::take(&mut self.pending);
        let dirs: BTreeSet<Option<PathBuf>> =
            pending.iter().map(|name| name.dir().map(Path::to_owned)).collect();
        for (number, dir) in (0..).zip(dirs) {
            let here = || pending.iter().filter(|name| name.dir() == dir.as_deref());
            let kept = chance_below(here().count() + 1, mix(mix(seed, 0xD1), number));
            for name in here().take(kept) {
                name.apply(&mut self.durable_names);
            }
        }
        self.names = self.durable_names.clone();
    }
}

impl Inode {
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        if (self.volatile.len() as u64) < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.unreadable.iter().any(|bad| bad.start < end && offset < bad.end) {
            return Err(io::Error::other("simulated unreadable sector"));
        }
        let start = to_usize(offset);
        buf.copy_from_slice(&self.volatile[start..start + buf.len()]);
        Ok(())
    }

    fn write(&mut self, start: usize, bytes: &[u8], luck: u64) {
        let end = start + bytes.len();
        if self.volatile.len() < end {
            self.volatile.resize(end, 0);
        }
        for (sector, _) in sectors(start, bytes) {
            // The cache may have written back what was there before, unasked.
            if !self.dirty.insert(sector) && mix(luck, sector as u64).is_multiple_of(2) {
                self.write_back(sector, SECTOR_BYTES);
            }
        }
        self.volatile[start..end].copy_from_slice(bytes);
    }

    /// Makes the first `bytes` of a sector durable.
    fn write_back(&mut self, sector: usize, bytes: usize) {
        let start = sector * SECTOR_BYTES;
        let end = (start + bytes).min(self.volatile.len());
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        if start < end {
            self.durable[start..end].copy_from_slice(&self.volatile[start..end]);
        }
    }

    fn flush(&mut self) {
        self.durable.resize(self.volatile.len(), 0);
        let (Some(&first), Some(&last)) = (self.dirty.first(), self.dirty.last()) else { return };
        if last - first + 1 == self.dirty.len() {
            let end = ((last + 1) * SECTOR_BYTES).min(self.volatile.len());
            let start = first * SECTOR_BYTES;
            self.durable[start..end].copy_from_slice(&self.volatile[start..end]);
        } else {
            for sector in std::mem::take(&mut self.dirty) {
                self.write_back(sector, SECTOR_BYTES);
            }
        }
        self.dirty.clear();
    }

    /// Some sectors become durable. The others are clean in the eyes of the kernel, and will
    /// never be written: their bytes are dropped at once, or stay to be read until the restart.
    fn fail_to_flush(&mut self, luck: u64) {
        let are_dropped = luck.is_multiple_of(2);
        for sector in std::mem::take(&mut self.dirty) {
            if mix(luck, sector as u64).is_multiple_of(2) {
                self.write_back(sector, SECTOR_BYTES);
            } else if are_dropped {
                let start = sector * SECTOR_BYTES;
                let end = (start + SECTOR_BYTES).min(self.volatile.len());
                let old = self.durable.get(start..end.min(self.durable.len())).unwrap_or(&[]);
                let (kept, lost) = self.volatile[start..end].split_at_mut(old.len());
                kept.copy_from_slice(old);
                lost.fill(0);
            }
        }
    }

    fn crash(&mut self, luck: u64) {
        // Some crashes lose all, some nothing: a coin for each sector alone would hardly ever.
        let mood = mix(luck, 1) % 4;
        for sector in std::mem::take(&mut self.dirty) {
            let luck = mix(luck, sector as u64 + 2);
            let survives = match mood {
                0 => false,
                1 => true,
                _ => luck.is_multiple_of(2),
            };
            if survives {
                let is_torn = mix(luck, 3) % 100 < TORN_PERCENT;
                let cut = chance_below(SECTOR_BYTES / WORD_BYTES, mix(luck, 4)) * WORD_BYTES;
                self.write_back(sector, if is_torn { cut } else { SECTOR_BYTES });
            }
        }
        // The length travels by itself: it may be there before the bytes.
        if self.durable.len() != self.volatile.len() && mix(luck, 5).is_multiple_of(2) {
            self.durable.resize(self.volatile.len(), 0);
        }
        self.volatile.clone_from(&self.durable);
    }
}

/// The sectors that `bytes` touch when they are written at `start`, and which places in the
/// file each of them takes.
fn sectors(start: usize, bytes: &[u8]) -> impl Iterator<Item = (usize, Range<usize>)> {
    let end = start + bytes.len();
    (start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES)).map(move |sector| {
        let from = (sector * SECTOR_BYTES).max(start);
        (sector, from..((sector + 1) * SECTOR_BYTES).min(end))
    })
}

fn to_usize(offset: u64) -> usize {
    usize::try_from(offset).expect("a simulated file fits into memory")
}

fn chance_below(bound: usize, luck: u64) -> usize {
    to_usize(luck % (bound as u64))
}

/// Every bit of the output depends on every bit of both inputs.
const fn mix(seed: u64, key: u64) -> u64 {
    splitmix(seed ^ key.rotate_left(32))
}
