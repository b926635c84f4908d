//! The frame: what one applied batch has written, and how far the log is applied with it.
//!
//! ```text
//!    0     4            8     12     13        14     16    24            32       40     48         56
//!   │ crc │ header crc │ len │ kind │ version │ zero │ seq │ durable seq │ index  │ term │ revision │ compact revision │
//!   64      68     72
//!   │ count │ zero │ records, padded with zeros to a multiple of 8 │
//! ```
//!
//! Integers are little-endian. `crc` is the CRC-32C of everything from byte 8 on, `header crc`
//! of the bytes from 8 to 72, both seeded with the salt of the segment: neither a frame of
//! another file nor what a client stores in a value passes for one. `seq` counts frames
//! through all segments; `durable seq` is the last one that was known to be on disk when this
//! one was made, by which a torn tail and damage are told apart. `docs/store-format.md` has
//! every byte, with its golden hex.
//!
//! Position and data are one frame with one checksum: they cannot come apart (pitfall D9).
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use kontiki_disk::ByteReader;

use crate::record::Records;

/// The bytes before the records.
pub(crate) const FRAME_HEADER_BYTES: usize = 72;

/// Frames begin at multiples of this.
pub(crate) const FRAME_ALIGN: usize = 8;

/// The newest version of the frame that can be read.
pub(crate) const FRAME_VERSION: u8 = 1;

/// How far the state goes, in the log and in revisions. Always written in one frame with the
/// events themselves: a position stored apart from its data was etcd's worst bug (#13766).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// The last command that is applied, as the host counts.
    pub(crate) applied_index: u64,
    /// Its term.
    pub(crate) applied_term: u64,
    /// The current revision. Kept, for compaction may have removed the last event.
    pub(crate) revision: i64,
    /// Below this no history is readable, whether it is still there or not. -1 at first.
    pub(crate) compact_revision: i64,
}

impl Default for Position {
    /// An empty store, which has revision 1, as in etcd.
    fn default() -> Self {
        Self { applied_index: 0, applied_term: 0, revision: 1, compact_revision: -1 }
    }
}

/// Why a frame was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// A batch was applied, or the position moved.
    Batch,
    /// Compaction has copied what is left of older frames.
    Rewritten,
}

/// A frame without its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// The whole frame, padding included.
    pub(crate) len: u32,
    pub(crate) kind: FrameKind,
    /// One more than that of the frame before; rewritten frames leave gaps.
    pub(crate) seq: u64,
    /// The last frame that was known to be durable.
    pub(crate) durable_seq: u64,
    /// The state after this frame.
    pub(crate) position: Position,
    /// Of records.
    pub(crate) count: u32,
    crc: u32,
}

/// What the bytes at the place of a frame can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderAt {
    Intact(FrameHeader),
    /// An intact header of a version that is not known here.
    Version(u8),
    /// No header of this segment.
    Broken,
}

impl FrameHeader {
    /// Makes a frame out of `frame`, which holds the room of a header and then the records.
    ///
    /// # Panics
    ///
    /// If the frame is as long as 4 GiB: a batch is a thousand times smaller.
    pub(crate) fn seal(
        frame: &mut Vec<u8>,
        start: usize,
        salt: u32,
        (kind, seq, durable_seq): (FrameKind, u64, u64),
        position: &Position,
        count: u32,
    ) {
        let len = frame.len().saturating_sub(start).next_multiple_of(FRAME_ALIGN);
        frame.resize(start.saturating_add(len), 0);
        let len = u32::try_from(len).expect("a batch is far below 4 GiB");
        let (_, frame) = frame.split_at_mut(start);
        let fields: [&[u8]; 10] = [
            &len.to_le_bytes(),
            &[if kind == FrameKind::Batch { 1 } else { 2 }, FRAME_VERSION, 0, 0],
            &seq.to_le_bytes(),
            &durable_seq.to_le_bytes(),
            &position.applied_index.to_le_bytes(),
            &position.applied_term.to_le_bytes(),
            &position.revision.to_le_bytes(),
            &position.compact_revision.to_le_bytes(),
            &count.to_le_bytes(),
            &[0; 4],
        ];
        let (crcs, covered) = frame.split_at_mut(8);
        let mut rest = &mut *covered;
        for field in fields {
            let (place, after) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = after;
        }
        let (header, _) = covered.split_at(FRAME_HEADER_BYTES.saturating_sub(8));
        let header_crc = crc32c::crc32c_append(salt, header);
        let crc = crc32c::crc32c_append(salt, covered);
        let (first, second) = crcs.split_at_mut(4);
        first.copy_from_slice(&crc.to_le_bytes());
        second.copy_from_slice(&header_crc.to_le_bytes());
    }

    /// Reads a header without looking at the records.
    pub(crate) fn read(bytes: &[u8], salt: u32) -> HeaderAt {
        Self::decode(bytes, salt).unwrap_or(HeaderAt::Broken)
    }

    fn decode(bytes: &[u8], salt: u32) -> Option<HeaderAt> {
        let (header, _) = bytes.split_at_checked(FRAME_HEADER_BYTES)?;
        let mut reader = ByteReader::new(header);
        let (crc, header_crc) = (reader.u32()?, reader.u32()?);
        if crc32c::crc32c_append(salt, reader.rest()) != header_crc {
            return None;
        }
        let len = reader.u32()?;
        let [kind, version, ..] = reader.array::<4>()?;
        if version != FRAME_VERSION {
            return Some(HeaderAt::Version(version));
        }
        let kind = match kind {
            1 => FrameKind::Batch,
            2 => FrameKind::Rewritten,
            _ => return None,
        };
        let (seq, durable_seq) = (reader.u64()?, reader.u64()?);
        let position = Position {
            applied_index: reader.u64()?,
            applied_term: reader.u64()?,
            revision: reader.u64()?.cast_signed(),
            compact_revision: reader.u64()?.cast_signed(),
        };
        let count = reader.u32()?;
        let least = u32::try_from(FRAME_HEADER_BYTES).ok()?;
        let is_sane = least <= len
            && len.is_multiple_of(8)
            && durable_seq < seq
            && (1..i64::MAX / 2).contains(&position.revision)
            && (-1..=position.revision).contains(&position.compact_revision);
        let header = Self { len, kind, seq, durable_seq, position, count, crc };
        is_sane.then_some(HeaderAt::Intact(header))
    }

    /// The length of the frame in memory.
    pub(crate) fn frame_len(&self) -> usize {
        usize::try_from(self.len).unwrap_or(usize::MAX)
    }

    /// Whether the whole frame, which begins with this header, is what was written.
    pub(crate) fn covers(&self, frame: &[u8], salt: u32) -> bool {
        frame.get(8..).is_some_and(|covered| crc32c::crc32c_append(salt, covered) == self.crc)
            && frame.len() == self.frame_len()
    }

    /// The records of a whole frame.
    pub(crate) fn records<'a>(&self, frame: &'a [u8]) -> Records<'a> {
        Records::new(frame.get(FRAME_HEADER_BYTES..).unwrap_or_default(), self.count)
    }
}

/// An intact header behind the beginning of `bytes` which says that the frame after `frame_seq`
/// was durable: where it is, and what it says.
pub(crate) fn find_proof(bytes: &[u8], salt: u32, frame_seq: u64) -> Option<(usize, FrameHeader)> {
    (0..bytes.len()).step_by(FRAME_ALIGN).skip(1).find_map(|at| {
        match FrameHeader::read(bytes.get(at..)?, salt) {
            HeaderAt::Intact(header) if frame_seq < header.durable_seq => Some((at, header)),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Event, Revision, Version};

    const SALT: u32 = 0x5A17;

    fn frame() -> Vec<u8> {
        let mut frame = vec![0; FRAME_HEADER_BYTES];
        let at = Revision { main: 7, sub: 0 };
        let version = Version { at, create_revision: 7, version: 1, lease: 0 };
        Event { version, key: b"key", value: b"value" }.encode(&mut frame);
        let position =
            Position { applied_index: 9, applied_term: 2, revision: 7, compact_revision: 3 };
        FrameHeader::seal(&mut frame, 0, SALT, (FrameKind::Batch, 5, 4), &position, 1);
        frame
    }

    #[test]
    fn what_is_sealed_reads_back() {
        let frame = frame();
        assert_eq!(frame.len() % FRAME_ALIGN, 0);
        let HeaderAt::Intact(header) = FrameHeader::read(&frame, SALT) else { panic!() };
        assert!(header.covers(&frame, SALT));
        assert_eq!((header.seq, header.durable_seq, header.count), (5, 4, 1));
        let (event, _) = header.records(&frame).next().unwrap().unwrap();
        assert_eq!((event.key, event.value), (&b"key"[..], &b"value"[..]));
    }

    #[test]
    fn every_flipped_bit_shows() {
        let frame = frame();
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let is_sound = match FrameHeader::read(&damaged, SALT) {
                HeaderAt::Intact(header) => header.covers(&damaged, SALT),
                HeaderAt::Version(_) | HeaderAt::Broken => false,
            };
            assert!(!is_sound, "bit {bit}");
        }
    }

    #[test]
    fn a_frame_of_another_segment_is_none() {
        assert_eq!(FrameHeader::read(&frame(), SALT + 1), HeaderAt::Broken);
    }

    #[test]
    fn a_later_frame_proves_what_was_durable() {
        let mut bytes = vec![0xEE; 24];
        bytes.extend_from_slice(&frame());
        let found = find_proof(&bytes, SALT, 3).map(|(at, header)| (at, header.seq));
        assert_eq!(found, Some((24, 5)));
        assert_eq!(find_proof(&bytes, SALT, 4), None, "it knew of frame 4 alone");
        assert_eq!(find_proof(&frame(), SALT, 0), None, "not the frame at the beginning");
    }
}
