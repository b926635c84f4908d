//! A small store with a little of everything: segments that compaction has rewritten and others
//! that it has not, a checkpoint of the index, frames after that, some of them alone in a flush
//! and some together. Small enough to damage each of its bytes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki_sim::disk::SimDisk;
use kontiki_store::{OpenError, Store, StoreOptions};

use super::{apply_compact, apply_delete, apply_put, compact_fully, delete, quiet, truth::Truth};

pub(crate) const DIR: &str = "/kv";

pub(crate) fn open(disk: &SimDisk) -> Result<Store, OpenError> {
    let options = StoreOptions {
        value_cache_bytes: 0,
        segment_bytes: 700,
        checkpoint_bytes: u64::MAX,
        secret: 7,
        ..quiet()
    };
    Store::open_on(Arc::new(disk.clone()), Path::new(DIR), options)
}

/// A store whose process is gone, and what it answered.
#[derive(Debug)]
pub(crate) struct Small {
    pub(crate) disk: SimDisk,
    /// What it answered after each command of its last life, by the position in the log.
    pub(crate) truths: BTreeMap<u64, Truth>,
}

/// How the last process has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// Killed, with all in the segment that was begun before its last start.
    Killed,
    /// Killed after it had begun another segment.
    KilledLater,
    /// Closed in order.
    Closed,
}

impl Small {
    pub(crate) fn new(end: End) -> Self {
        let disk = SimDisk::new();
        let store = open(&disk).unwrap();
        for n in 0..14 {
            apply_put(&store, ["a", "b", "key"][n % 3], &"v".repeat(n * 3));
            if n % 2 == 0 {
                store.flush().unwrap();
            }
        }
        apply_compact(&store, store.revision() - 3).unwrap();
        compact_fully(&store);
        apply_delete(&store, delete("a", "b"));
        apply_put(&store, "c", "");
        store.close().unwrap();

        let store = open(&disk).unwrap();
        let mut truths = BTreeMap::new();
        let mut note = |flush: bool| {
            if flush {
                store.flush().unwrap();
            }
            let truth = Truth::of(&store).unwrap();
            truths.insert(truth.applied.0, truth);
        };
        note(false);
        let more = if matches!(end, End::Killed) { 1 } else { 10 };
        for n in 0..more {
            apply_put(&store, ["a", "d"][n % 2], &"w".repeat(20 + n));
            note(true);
        }
        apply_compact(&store, store.revision() - 1).unwrap();
        note(false);
        apply_put(&store, "b", "last but one");
        note(false);
        apply_delete(&store, delete("c", ""));
        note(true);
        match end {
            End::Killed | End::KilledLater => drop(store),
            End::Closed => store.close().unwrap(),
        }
        disk.kill();
        Self { disk, truths }
    }

    /// What it answered last.
    pub(crate) fn truth(&self) -> &Truth {
        self.truths.values().next_back().unwrap()
    }

    /// The same disk without the checkpoint of the index.
    pub(crate) fn without_checkpoint(&self) -> SimDisk {
        let disk = self.disk.fork();
        for path in files(&disk, "ck") {
            disk.lose(&path);
        }
        disk
    }
}

/// The files of a kind, in order.
pub(crate) fn files(disk: &SimDisk, extension: &str) -> Vec<PathBuf> {
    let is_it = |path: &PathBuf| path.extension().is_some_and(|found| found == extension);
    disk.files().into_iter().filter(is_it).collect()
}

/// A frame of a segment, as `docs/store-format.md` has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) seq: u64,
    pub(crate) durable_seq: u64,
    pub(crate) index: u64,
}

pub(crate) fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// All frames of an intact segment.
pub(crate) fn frames(bytes: &[u8]) -> Vec<Frame> {
    let (mut frames, mut start) = (Vec::new(), 64);
    while start < bytes.len() {
        let len = u32::from_le_bytes(bytes[start + 8..start + 12].try_into().unwrap());
        let end = start + usize::try_from(len).unwrap();
        frames.push(Frame {
            start,
            end,
            seq: number(bytes, start + 16),
            durable_seq: number(bytes, start + 24),
            index: number(bytes, start + 32),
        });
        start = end;
    }
    frames
}

/// How far `STATE` says that everything is durable: the segment, and where it ends there.
pub(crate) fn durable_mark(disk: &SimDisk) -> (u64, usize) {
    let state = disk.content(&Path::new(DIR).join("STATE"));
    (number(&state, 36), usize::try_from(number(&state, 44)).unwrap())
}
