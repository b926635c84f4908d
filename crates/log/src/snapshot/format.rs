//! What stands in a snapshot file: a header, chunks, a trailer.
//!
//! Layout: `docs/log-format.md`, "Snapshots". Chunks have one length, so each can be read,
//! checked and fetched again by itself; its checksum binds it to its snapshot and its number.

use std::{path::Path, sync::Arc};

use kontiki_disk::{ByteReader, DiskFile};
use kontiki_raft::{EntryId, SnapshotMeta};

use crate::{
    LogError, SnapshotInfo,
    codec::{decode_membership, encode_membership, put_len, put_u32, put_u64},
    record::read_id,
};

/// What a chunk holds at most: large enough that its checksum costs nothing, small enough that
/// one more in memory does not matter.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// Before the data of a chunk: its length and its checksum.
pub(crate) const CHUNK_HEAD_BYTES: usize = 8;

pub(crate) const TRAILER_BYTES: usize = 32;

const MAGIC: [u8; 8] = *b"KTKSNAP1";
const END_MAGIC: [u8; 8] = *b"KTKSNEND";
const VERSION: u32 = 1;

/// Up to the membership.
const FIXED_HEADER_BYTES: usize = 36;

/// A membership is a few hundred bytes for each member.
const MEMBERSHIP_BYTES_MAX: usize = 16 << 20;

/// The first bytes of a file: what the snapshot stands for, and how long its chunks are.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) meta: SnapshotMeta,
    /// What each chunk but the last holds. In \[1, [`CHUNK_BYTES`]\].
    pub(crate) chunk_bytes: usize,
    /// Where the first chunk begins.
    pub(crate) len: u64,
    crc: u32,
}

impl Header {
    /// The header and its bytes.
    pub(crate) fn encode(meta: &SnapshotMeta, chunk_bytes: usize) -> (Self, Vec<u8>) {
        let mut buf = Vec::new();
        buf.extend_from_slice(&MAGIC);
        put_u32(&mut buf, VERSION);
        put_len(&mut buf, chunk_bytes);
        put_u64(&mut buf, meta.last.index.get());
        put_u64(&mut buf, meta.last.term.get());
        let mut membership = Vec::new();
        encode_membership(&meta.membership, &mut membership);
        put_len(&mut buf, membership.len());
        buf.extend_from_slice(&membership);
        let crc = crc32c::crc32c(&buf);
        put_u32(&mut buf, crc);
        (Self { meta: meta.clone(), chunk_bytes, len: buf.len() as u64, crc }, buf)
    }

    pub(crate) fn read(file: &dyn DiskFile, path: &Path) -> Result<Self, LogError> {
        let bad = |what: &str| LogError::damaged(path, 0, what);
        let len = file.len().map_err(LogError::io("measure", path))?;
        let mut buf = vec![0; FIXED_HEADER_BYTES];
        if len < buf.len() as u64 {
            return Err(bad("the snapshot ends inside its header"));
        }
        file.read_at(0, &mut buf).map_err(LogError::io("read", path))?;
        let too_short = || bad("the header of the snapshot is too short");
        let mut reader = ByteReader::new(&buf);
        if reader.array() != Some(MAGIC) {
            return Err(bad("it is not a snapshot"));
        }
        let version = reader.u32().ok_or_else(too_short)?;
        let chunk_bytes = reader.u32().and_then(|bytes| usize::try_from(bytes).ok());
        let last = read_id(&mut reader);
        let membership_len = reader.u32().and_then(|len| usize::try_from(len).ok());
        let membership_len = membership_len
            .filter(|&bytes| bytes <= MEMBERSHIP_BYTES_MAX && bytes as u64 <= len)
            .ok_or_else(|| bad("the membership of the snapshot is too long"))?;

        let rest_at = buf.len();
        buf.resize(rest_at + membership_len + 4, 0);
        if len < buf.len() as u64 {
            return Err(bad("the snapshot ends inside its header"));
        }
        let rest = &mut buf[rest_at..];
        file.read_at(rest_at as u64, rest).map_err(LogError::io("read", path))?;
        let (covered, crc) = buf.split_last_chunk::<4>().ok_or_else(too_short)?;
        let crc = u32::from_le_bytes(*crc);
        if crc != crc32c::crc32c(covered) {
            return Err(bad("the checksum of the snapshot's header does not fit"));
        }
        if version != VERSION {
            let path = path.to_owned();
            return Err(LogError::Version { path, found: version, supported: VERSION });
        }
        let membership = decode_membership(&covered[rest_at..]);
        let chunk_bytes = chunk_bytes.filter(|bytes| (1..=CHUNK_BYTES).contains(bytes));
        let (Some(last), Some(membership), Some(chunk_bytes)) = (last, membership, chunk_bytes)
        else {
            return Err(bad("the header of the snapshot makes no sense"));
        };
        let meta = SnapshotMeta { last, membership: Arc::new(membership) };
        Ok(Self { meta, chunk_bytes, len: buf.len() as u64, crc })
    }

    /// Where a chunk begins.
    pub(crate) fn chunk_at(&self, number: u64) -> u64 {
        self.len.saturating_add(number.saturating_mul(self.stored_chunk_bytes()))
    }

    /// What each chunk but the last takes.
    const fn stored_chunk_bytes(&self) -> u64 {
        (CHUNK_HEAD_BYTES + self.chunk_bytes) as u64
    }

    /// The bytes of a chunk in the file, given what the snapshot has.
    pub(crate) fn chunk_len(&self, number: u64, info: &SnapshotInfo) -> usize {
        let before = number.saturating_mul(self.stored_chunk_bytes());
        let len = info.bytes.saturating_sub(before).min(self.stored_chunk_bytes());
        usize::try_from(len).expect("a chunk fits into memory")
    }

    /// Whether so many chunks of this length can have so many bytes.
    fn is_possible(&self, count: u64, bytes: u64) -> bool {
        let Some(full) = count.checked_sub(1) else { return false };
        let Some(before) = full.checked_mul(self.stored_chunk_bytes()) else { return false };
        let last = bytes.saturating_sub(before);
        // Only an empty snapshot has an empty chunk.
        let shortest = (CHUNK_HEAD_BYTES + usize::from(0 < full)) as u64;
        (shortest..=self.stored_chunk_bytes()).contains(&last)
    }

    pub(crate) fn encode_trailer(&self, info: &SnapshotInfo) -> Vec<u8> {
        let mut buf = Vec::with_capacity(TRAILER_BYTES);
        buf.extend_from_slice(&END_MAGIC);
        put_u64(&mut buf, info.chunk_count);
        put_u64(&mut buf, info.bytes);
        put_u32(&mut buf, info.checksum);
        let crc = crc32c::crc32c_append(self.crc, &buf);
        put_u32(&mut buf, crc);
        buf
    }

    /// Reads the last bytes of the file, and checks that it has the length that they say.
    pub(crate) fn read_trailer(
        &self,
        file: &dyn DiskFile,
        path: &Path,
    ) -> Result<SnapshotInfo, LogError> {
        let len = file.len().map_err(LogError::io("measure", path))?;
        let Some(at) = len.checked_sub(TRAILER_BYTES as u64).filter(|&at| self.len <= at) else {
            return Err(LogError::damaged(path, len, "the snapshot has no trailer"));
        };
        let bad = |what: &str| LogError::damaged(path, at, what);
        let mut buf = [0; TRAILER_BYTES];
        file.read_at(at, &mut buf).map_err(LogError::io("read", path))?;
        let (covered, crc) = buf.split_at(TRAILER_BYTES - 4);
        if crc != crc32c::crc32c_append(self.crc, covered).to_le_bytes() {
            return Err(bad("the checksum of the snapshot's trailer does not fit"));
        }
        let mut reader = ByteReader::new(covered);
        let magic = reader.array();
        let (Some(chunk_count), Some(bytes), Some(checksum)) =
            (reader.u64(), reader.u64(), reader.u32())
        else {
            return Err(bad("the trailer of the snapshot is too short"));
        };
        let is_sane = magic == Some(END_MAGIC)
            && self.len.checked_add(bytes) == Some(at)
            && self.is_possible(chunk_count, bytes);
        if !is_sane {
            return Err(bad("the trailer of the snapshot makes no sense"));
        }
        Ok(SnapshotInfo { meta: self.meta.clone(), bytes, chunk_count, checksum })
    }
}

/// Fills in the head of a chunk, whose data follow in `buf`. Returns its checksum.
pub(crate) fn finish_chunk(last: EntryId, number: u64, buf: &mut [u8]) -> u32 {
    let len = u32::try_from(buf.len() - CHUNK_HEAD_BYTES).expect("a chunk is 1 MiB at most");
    buf[..4].copy_from_slice(&len.to_le_bytes());
    let crc = chunk_crc(last, number, buf);
    buf[4..CHUNK_HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// The checksum of a chunk, head and all, if it is what was written.
pub(crate) fn check_chunk(last: EntryId, number: u64, chunk: &[u8]) -> Result<u32, &'static str> {
    let mut reader = ByteReader::new(chunk);
    let (Some(len), Some(crc)) = (reader.u32(), reader.u32()) else {
        return Err("it is too short");
    };
    if usize::try_from(len).ok() != Some(reader.rest().len()) || CHUNK_BYTES < reader.rest().len() {
        return Err("its length does not fit");
    }
    if crc != chunk_crc(last, number, chunk) {
        return Err("its checksum does not fit");
    }
    Ok(crc)
}

fn chunk_crc(last: EntryId, number: u64, chunk: &[u8]) -> u32 {
    let mut place = Vec::with_capacity(24);
    put_u64(&mut place, last.index.get());
    put_u64(&mut place, last.term.get());
    put_u64(&mut place, number);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&place), &chunk[..4]);
    crc32c::crc32c_append(crc, &chunk[CHUNK_HEAD_BYTES..])
}

/// The checksum of the whole after one more chunk.
pub(crate) fn add_to_checksum(checksum: u32, chunk_crc: u32) -> u32 {
    crc32c::crc32c_append(checksum, &chunk_crc.to_le_bytes())
}
