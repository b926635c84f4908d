//! The frame: the unit that a segment takes, checks and gives back.
//!
//! Layout and reasons: `docs/log-format.md`, "Frame". This module encodes frames, and tells
//! what the bytes at one place can be. What they *mean*, given what follows, is judged in
//! [`scan`](crate::Scan).
//!
//! Three properties carry that judgement; all are made here, by choosing the mask:
//!
//! - the first word of a frame has at least two bits set, so no single flipped bit makes a
//!   frame look as if nothing had been written;
//! - so has its last word, and the last word of each 512-byte sector that it fills. A sector
//!   that was not written, or not to its end, shows by a zero word there, and a flipped bit
//!   cannot make one;
//! - a header carries a checksum seeded with a secret of its segment, so that what a client
//!   stores in a value cannot pass for one.

use crate::ByteReader;

/// Frames begin and end at multiples of this. A header never crosses a sector.
pub const FRAME_ALIGN: usize = 64;

/// Bytes of the header that belong to the user of the segment.
pub const FRAME_USER_BYTES: usize = 40;

/// The unit that a disk writes whole, or in pieces of 8 bytes from the front, or not at all.
pub(crate) const SECTOR: u64 = 512;

const WORD: usize = 8;
const FRAME_VERSION: u8 = 1;
const PADDING: u8 = 0xA5;

/// A frame to be written, except for its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameSpec {
    /// What it is. Never zero.
    pub kind: u8,
    /// Bits of the user of the segment.
    pub flags: u8,
    /// One more than that of the frame before.
    pub seq: u64,
    /// Bytes of the user of the segment.
    pub user: [u8; FRAME_USER_BYTES],
}

/// An intact frame that was read.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Where it begins in its segment.
    pub offset: u64,
    /// Its checksum: the seed of the next.
    pub crc: u32,
    /// What its payload was masked with, for those who read parts of it later.
    pub mask: u8,
    /// What was written.
    pub spec: FrameSpec,
    /// What follows the header, padding included, unmasked.
    pub payload: &'a [u8],
}

/// What became of a frame when it was encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Its checksum: the seed of the next.
    pub crc: u32,
    /// What its payload was masked with.
    pub mask: u8,
}

/// The length of a frame with a payload of this length.
#[must_use]
pub const fn frame_len(payload_len: usize) -> usize {
    (FRAME_ALIGN + payload_len).next_multiple_of(FRAME_ALIGN)
}

/// Makes a frame out of `buf`, which holds [`FRAME_ALIGN`] bytes of any value and then the
/// payload.
///
/// `offset` is where it will be written, `chain` the checksum of the frame before, `salt` that
/// of the segment.
///
/// # Panics
///
/// If `buf` is shorter than a header, or as long as 4 GiB.
pub fn encode_frame(
    spec: &FrameSpec,
    offset: u64,
    chain: u32,
    salt: u32,
    buf: &mut Vec<u8>,
) -> Encoded {
    assert!(spec.kind != 0, "a frame of kind 0 could not be told from zeros");
    let len = buf.len().next_multiple_of(FRAME_ALIGN);
    buf.resize(len, PADDING);
    let len_bytes = u32::try_from(len).expect("a frame is shorter than 4 GiB").to_le_bytes();
    buf[0..4].copy_from_slice(&len_bytes);
    buf[8..16].copy_from_slice(&spec.seq.to_le_bytes());
    buf[16..56].copy_from_slice(&spec.user);

    let fitting = (0..=u8::MAX).find(|&mask| has_telling_tails(buf, offset, pattern(salt, mask)));
    // That none fits has a chance of less than one in 2^60 for a client who does not know the
    // salt. The frame is sound even then; only, damage to it may pass for a torn write.
    let mut mask = fitting.unwrap_or(u8::MAX);
    loop {
        unmask(salt, mask, &mut buf[FRAME_ALIGN..]);
        buf[56..60].copy_from_slice(&[spec.kind, spec.flags, mask, FRAME_VERSION]);
        let header_crc = header_crc(salt, buf);
        buf[60..64].copy_from_slice(&header_crc.to_le_bytes());
        let crc = crc32c::crc32c_append(chain, &buf[8..]);
        if crc != 0 || mask == u8::MAX {
            buf[4..8].copy_from_slice(&crc.to_le_bytes());
            return Encoded { crc, mask };
        }
        // One bit of `len` alone would be left in the first word.
        unmask(salt, mask, &mut buf[FRAME_ALIGN..]);
        mask += 1;
    }
}

/// Undoes the mask of bytes that were read from a multiple of 8 in the payload of a frame.
pub fn unmask(salt: u32, mask: u8, bytes: &mut [u8]) {
    let pattern = pattern(salt, mask);
    if pattern == 0 {
        return;
    }
    for word in bytes.chunks_mut(WORD) {
        for (byte, key) in word.iter_mut().zip(pattern.to_le_bytes()) {
            *byte ^= key;
        }
    }
}

/// What each word of a payload is combined with. Mask 0 leaves it as it is.
fn pattern(salt: u32, mask: u8) -> u64 {
    if mask == 0 {
        return 0;
    }
    // The finalizer of splitmix64: a client who does not know the salt cannot aim at it.
    let mut z = (u64::from(salt) << 8 | u64::from(mask)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Whether each tail word would have two bits set under this pattern.
fn has_telling_tails(frame: &[u8], offset: u64, pattern: u64) -> bool {
    tail_words(frame, offset)
        .filter(|&(at, _)| FRAME_ALIGN <= at) // the last word of a header always has
        .all(|(_, word)| 2 <= (word ^ pattern).count_ones())
}

/// Whether a sector of this frame was not written, or not to its end.
pub(crate) fn has_unwritten_sector(frame: &[u8], offset: u64) -> bool {
    tail_words(frame, offset).any(|(_, word)| word == 0)
}

/// The last word of each sector that the frame reaches the end of, and its own last word.
fn tail_words(frame: &[u8], offset: u64) -> impl Iterator<Item = (usize, u64)> {
    let into_sector = usize::try_from(offset % SECTOR).expect("a remainder is small");
    let sector = usize::try_from(SECTOR).expect("a sector is small");
    (sector - into_sector..frame.len())
        .step_by(sector)
        .chain(std::iter::once(frame.len()))
        .map(move |end| (end - WORD, word_at(frame, end - WORD)))
}

fn word_at(bytes: &[u8], at: usize) -> u64 {
    ByteReader::new(&bytes[at..]).u64().expect("frames are made of whole words")
}

fn header_crc(salt: u32, header: &[u8]) -> u32 {
    let len = crc32c::crc32c_append(salt, &header[0..4]);
    crc32c::crc32c_append(len, &header[8..60])
}

/// The header of a frame whose header checksum fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) len: usize,
    pub(crate) crc: u32,
    pub(crate) mask: u8,
    pub(crate) version: u8,
    pub(crate) spec: FrameSpec,
}

/// What 64 bytes at the place of a header can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderAt {
    /// A header, as it was written.
    Intact(FrameHeader),
    /// The first word is missing: nothing was written here, or it was wiped.
    Nothing,
    /// The last word is missing: the disk stopped in the middle.
    Unfinished,
    /// All of it was written, and it has changed since.
    Changed,
}

impl HeaderAt {
    pub(crate) fn read(bytes: &[u8; FRAME_ALIGN], salt: u32) -> Self {
        if word_at(bytes, 0) == 0 {
            return Self::Nothing;
        }
        match FrameHeader::decode(bytes, salt) {
            Some(header) => Self::Intact(header),
            None if word_at(bytes, FRAME_ALIGN - WORD) == 0 => Self::Unfinished,
            None => Self::Changed,
        }
    }
}

impl FrameHeader {
    pub(crate) fn decode(bytes: &[u8; FRAME_ALIGN], salt: u32) -> Option<Self> {
        let mut reader = ByteReader::new(bytes);
        let len = usize::try_from(reader.u32()?).ok()?;
        let crc = reader.u32()?;
        let seq = reader.u64()?;
        let user = reader.array()?;
        let [kind, flags, mask, version] = reader.array()?;
        let stored_crc = reader.u32()?;
        let is_sane = FRAME_ALIGN <= len && len.is_multiple_of(FRAME_ALIGN) && kind != 0;
        (is_sane && stored_crc == header_crc(salt, bytes)).then_some(Self {
            len,
            crc,
            mask,
            version,
            spec: FrameSpec { kind, flags, seq, user },
        })
    }

    pub(crate) const fn is_supported(&self) -> bool {
        self.version == FRAME_VERSION
    }
}

/// The newest version of the frame that can be read.
pub(crate) const fn frame_version() -> u8 {
    FRAME_VERSION
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    const SPEC: FrameSpec = FrameSpec { kind: 1, flags: 0, seq: 7, user: [0; 40] };

    fn encode(payload: &[u8], offset: u64) -> Vec<u8> {
        let mut buf = vec![0; FRAME_ALIGN];
        buf.extend_from_slice(payload);
        encode_frame(&SPEC, offset, 99, 0x5A17, &mut buf);
        buf
    }

    fn head(frame: &[u8]) -> &[u8; FRAME_ALIGN] {
        frame.first_chunk().unwrap()
    }

    #[test]
    fn what_is_encoded_reads_back() {
        let frame = encode(b"hello", 4096);
        assert_eq!(frame.len(), 128);
        let HeaderAt::Intact(header) = HeaderAt::read(head(&frame), 0x5A17) else { panic!() };
        assert_eq!(header.spec, SPEC);
        assert_eq!(header.crc, crc32c::crc32c_append(99, &frame[8..]));
        assert_eq!(&frame[64..69], b"hello");
        assert_eq!(header.mask, 0, "an ordinary payload stays readable in a hex dump");
    }

    #[test]
    fn the_header_of_another_segment_is_none() {
        let frame = encode(b"hello", 4096);
        assert_eq!(HeaderAt::read(head(&frame), 0x5A18), HeaderAt::Changed);
    }

    #[test]
    fn a_payload_of_zeros_leaves_no_sector_that_looks_unwritten() {
        for payload in [vec![0; 5000], vec![0; 448], [1, 0, 0, 0, 0, 0, 0, 0].repeat(700)] {
            for offset in (4096..4608).step_by(64) {
                let mut frame = encode(&payload, offset);
                assert!(!has_unwritten_sector(&frame, offset));
                let HeaderAt::Intact(header) = HeaderAt::read(head(&frame), 0x5A17) else {
                    panic!()
                };
                unmask(0x5A17, header.mask, &mut frame[FRAME_ALIGN..]);
                assert_eq!(&frame[FRAME_ALIGN..][..payload.len()], payload);
            }
        }
    }

    #[test]
    fn no_flipped_bit_makes_a_frame_look_unwritten() {
        let mut frame = encode(&[0; 1500], 4096 + 448);
        for bit in 0..frame.len() * 8 {
            frame[bit / 8] ^= 1 << (bit % 8);
            assert!(!has_unwritten_sector(&frame, 4096 + 448), "bit {bit}");
            assert!(
                !matches!(
                    HeaderAt::read(head(&frame), 0x5A17),
                    HeaderAt::Nothing | HeaderAt::Unfinished
                ),
                "bit {bit}"
            );
            frame[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_frame_cut_at_any_word_shows_it() {
        let offset = 4096 + 320;
        let frame = encode(&[0; 1500], offset);
        let sectors = [0..192, 192..704, 704..1216, 1216..frame.len()];
        for Range { start: sector_start, end: sector_end } in sectors {
            for cut in (sector_start..sector_end).step_by(WORD) {
                let mut torn = frame.clone();
                torn[cut..sector_end].fill(0);
                let shows = has_unwritten_sector(&torn, offset)
                    || !matches!(HeaderAt::read(head(&torn), 0x5A17), HeaderAt::Intact(_));
                assert!(shows, "cut at {cut}");
            }
        }
    }
}
