//! The segment files of the log: their names, and what their headers say.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki_disk::{ByteReader, DiskFile, SEGMENT_USER_BYTES, SegmentHeader, SegmentMagic};
use kontiki_raft::{EntryId, HardState, StoreId};

use crate::{
    LogError,
    codec::put_u64,
    record::{put_hard_state, read_hard_state, read_id},
};

pub(crate) const MAGIC: SegmentMagic = *b"KTKLOG1\n";

const EXTENSION: &str = "wal";

/// An open segment. Purging unlinks it, and a reader may hold it still.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u32,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) salt: u32,
}

/// The user bytes of a segment header: the state of the log where the segment begins. They are
/// what is left of it when the segments before have been purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentStart {
    /// The last entry of the log when the segment was made.
    pub(crate) last: EntryId,
    pub(crate) hard_state: HardState,
}

impl SegmentStart {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_USER_BYTES] {
        let mut user = Vec::with_capacity(SEGMENT_USER_BYTES);
        put_u64(&mut user, self.last.index.get());
        put_u64(&mut user, self.last.term.get());
        put_hard_state(&mut user, self.hard_state);
        user.try_into().expect("as long as its parts")
    }

    pub(crate) fn decode(user: &[u8; SEGMENT_USER_BYTES]) -> Option<Self> {
        let mut reader = ByteReader::new(user);
        let last = read_id(&mut reader)?;
        Some(Self { last, hard_state: read_hard_state(&mut reader)? })
    }
}

pub(crate) fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:016x}.{EXTENSION}"))
}

/// The numbers of the segments among the names of a directory, ascending.
pub(crate) fn numbers(names: &[PathBuf]) -> Vec<u32> {
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| number(name)).collect();
    numbers.sort_unstable();
    numbers
}

fn number(name: &Path) -> Option<u32> {
    let digits = name.to_str()?.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    let is_ours = digits.len() == 16;
    is_ours.then(|| u32::from_str_radix(digits, 16).ok())?
}

/// Checks that a segment stands where its name says, and in the directory of its store.
pub(crate) fn check_place(
    header: &SegmentHeader,
    path: &Path,
    number: u32,
    store: StoreId,
) -> Result<(), LogError> {
    if header.seq != u64::from(number) {
        let what = format!("its name says segment {number}, its header {}", header.seq);
        return Err(LogError::damaged(path, 0, what));
    }
    if header.store != store.get() {
        return Err(LogError::Foreign { path: path.to_owned() });
    }
    Ok(())
}

/// The salt of a segment: not to be guessed by who does not know the seed, and the same in
/// every run of a simulation.
pub(crate) fn salt(seed: u64, store: StoreId, number: u32) -> u32 {
    let mut bytes = Vec::with_capacity(20);
    put_u64(&mut bytes, seed);
    put_u64(&mut bytes, store.get());
    bytes.extend_from_slice(&number.to_le_bytes());
    let low = crc32c::crc32c(&bytes);
    // CRC alone is linear: one multiplication keeps the salts of neighbours unrelated.
    let mixed = u64::from(low).wrapping_add(seed ^ store.get()).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    u32::try_from(mixed >> 32).expect("half of a word")
}
