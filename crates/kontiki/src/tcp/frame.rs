//! Frames: how one message is told from the next on a connection.
//!
//! ```text
//!   0        4        8        8 + n
//!   │ length │ crc32c │ payload │        integers are little-endian
//! ```
//!
//! `length` counts the payload; `crc32c` covers the length and the payload. A frame that is
//! broken ends the connection: after it nothing can be told from anything.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes before the payload.
pub(crate) const HEADER_BYTES: usize = 8;

/// Why a connection carries no more frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {bytes} bytes, more than the {bytes_max} that are allowed")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("the checksum of a frame does not match")]
    Checksum,
}

/// Appends a frame to `out`. `encode` appends its payload.
///
/// # Panics
///
/// When the payload has 4 GiB or more. Bounds on messages are thousands of times smaller.
pub(crate) fn put_frame(out: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]); // filled in below
    encode(out);
    let (_, frame) = out.split_at_mut(start);
    let (header, payload) = frame.split_at_mut(HEADER_BYTES);
    let length = u32::try_from(payload.len()).expect("messages are bounded").to_le_bytes();
    let checksum = checksum(length, payload).to_le_bytes();
    header[..4].copy_from_slice(&length);
    header[4..].copy_from_slice(&checksum);
}

/// Takes the first frame off `buf` and returns its payload, which shares memory with `buf`.
/// `None` if it is not there as a whole yet.
pub(crate) fn take_frame(
    buf: &mut BytesMut,
    bytes_max: usize,
) -> Result<Option<Bytes>, FrameError> {
    let Some(&[l0, l1, l2, l3, c0, c1, c2, c3]) = buf.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = [l0, l1, l2, l3];
    let bytes = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if bytes_max < bytes {
        return Err(FrameError::TooLarge { bytes, bytes_max });
    }
    if buf.len() - HEADER_BYTES < bytes {
        return Ok(None);
    }
    buf.advance(HEADER_BYTES);
    let payload = buf.split_to(bytes).freeze();
    if checksum(length, &payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(FrameError::Checksum);
    }
    Ok(Some(payload))
}

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_frame(&mut out, |out| out.extend_from_slice(payload));
        out
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_the_bytes_arrive() {
        let sent: [&[u8]; 4] = [b"one", b"", b"three", &[7; 1000]];
        let bytes: Vec<u8> = sent.iter().flat_map(|payload| frame(payload)).collect();
        for step in [1, 7, 100, bytes.len()] {
            let (mut buf, mut received) = (BytesMut::new(), Vec::new());
            for part in bytes.chunks(step) {
                buf.extend_from_slice(part);
                while let Some(payload) = take_frame(&mut buf, 1000).unwrap() {
                    received.push(payload);
                }
            }
            assert_eq!(received, sent, "in steps of {step}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let whole = frame(b"a message");
        for bit in 0..whole.len() * 8 {
            let mut bytes = BytesMut::from(&whole[..]);
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A longer length waits for bytes that never come; everything else is an error.
            assert!(!matches!(take_frame(&mut bytes, 1 << 20), Ok(Some(_))), "bit {bit}");
        }
    }

    #[test]
    fn a_huge_length_is_refused_before_anything_is_allocated() {
        let mut bytes = BytesMut::from(&[0xff; HEADER_BYTES][..]);
        let too_large = FrameError::TooLarge { bytes: 0xffff_ffff, bytes_max: 1000 };
        assert_eq!(take_frame(&mut bytes, 1000), Err(too_large));
    }
}
