//! The head of a segment file: whose it is, where in the chain, and how long.
//!
//! Layout: `docs/log-format.md`, "Segment header". It is durable before the file gets its name,
//! so a header that does not check out is damage, never a torn write.

use std::path::Path;

use crate::{ByteReader, DiskError, DiskFile};

/// Bytes before the first frame: one page, so that appending never rewrites the header.
pub const SEGMENT_HEADER_BYTES: u64 = 4096;

/// Bytes of the header that belong to the user of the segment.
pub const SEGMENT_USER_BYTES: usize = 40;

const SEGMENT_VERSION: u32 = 1;
const ENCODED_BYTES: usize = 100;

/// Frames are counted, and no disk takes so many. What says so is forged.
const SEQ_MAX: u64 = 1 << 62;

/// The first eight bytes of a file: what it is for.
pub type SegmentMagic = [u8; 8];

/// What stands at the beginning of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// What it is for.
    pub magic: SegmentMagic,
    /// Random: seeds the header checksums of the frames.
    pub salt: u32,
    /// Its number, one more than that of the segment before.
    pub seq: u64,
    /// The length of the file.
    pub bytes: u64,
    /// The number of the last frame before this segment.
    pub prev_frame_seq: u64,
    /// The checksum of that frame.
    pub prev_frame_crc: u32,
    /// Whose it is: segments of another store are refused.
    pub store: u64,
    /// Bytes of the user of the segment.
    pub user: [u8; SEGMENT_USER_BYTES],
}

impl SegmentHeader {
    /// The bytes of the header, without the zeros that fill its page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut buf = Vec::with_capacity(ENCODED_BYTES);
        buf.extend_from_slice(&self.magic);
        buf.extend_from_slice(&SEGMENT_VERSION.to_le_bytes());
        buf.extend_from_slice(&self.salt.to_le_bytes());
        buf.extend_from_slice(&self.seq.to_le_bytes());
        buf.extend_from_slice(&self.bytes.to_le_bytes());
        buf.extend_from_slice(&self.prev_frame_seq.to_le_bytes());
        buf.extend_from_slice(&self.prev_frame_crc.to_le_bytes());
        buf.extend_from_slice(&[0; 4]);
        buf.extend_from_slice(&self.store.to_le_bytes());
        buf.extend_from_slice(&self.user);
        let crc = crc32c::crc32c(&buf);
        buf.extend_from_slice(&crc.to_le_bytes());
        buf
    }

    /// Reads and checks the header of an open segment.
    ///
    /// # Errors
    ///
    /// [`DiskError::Damaged`] if it is not what was written or the file has another length,
    /// [`DiskError::Version`] if it is of a newer format.
    pub fn read(file: &dyn DiskFile, path: &Path, magic: SegmentMagic) -> Result<Self, DiskError> {
        let len = file.len().map_err(DiskError::io("measure", path))?;
        if len < SEGMENT_HEADER_BYTES {
            return Err(DiskError::damaged(path, len, "the file ends inside its header"));
        }
        let mut bytes = [0; ENCODED_BYTES];
        file.read_at(0, &mut bytes).map_err(DiskError::io("read", path))?;
        let header = Self::decode(&bytes, path, magic)?;
        if header.bytes != len {
            let what = format!("the file has {len} bytes, it was made with {}", header.bytes);
            return Err(DiskError::damaged(path, len.min(header.bytes), what));
        }
        Ok(header)
    }

    fn decode(
        bytes: &[u8; ENCODED_BYTES],
        path: &Path,
        magic: SegmentMagic,
    ) -> Result<Self, DiskError> {
        let bad = |what: &str| DiskError::damaged(path, 0, what);
        let (covered, crc) = bytes.split_at(ENCODED_BYTES - 4);
        if crc != crc32c::crc32c(covered).to_le_bytes() {
            return Err(bad("the checksum of its header does not fit"));
        }
        let mut reader = ByteReader::new(covered);
        let mut parse = || {
            let found_magic: SegmentMagic = reader.array()?;
            let version = reader.u32()?;
            let salt = reader.u32()?;
            let seq = reader.u64()?;
            let bytes = reader.u64()?;
            let prev_frame_seq = reader.u64()?;
            let prev_frame_crc = reader.u32()?;
            reader.bytes(4)?;
            let store = reader.u64()?;
            let user = reader.array()?;
            let magic = found_magic;
            Some((
                version,
                Self { magic, salt, seq, bytes, prev_frame_seq, prev_frame_crc, store, user },
            ))
        };
        let (version, header) = parse().ok_or_else(|| bad("its header is too short"))?;
        if SEQ_MAX < header.prev_frame_seq {
            return Err(bad("it follows a frame that cannot be"));
        }
        if header.magic != magic {
            return Err(bad("it is not a segment of this log"));
        }
        if version != SEGMENT_VERSION {
            let (path, supported) = (path.to_owned(), SEGMENT_VERSION);
            return Err(DiskError::Version { path, found: version, supported });
        }
        Ok(header)
    }
}
