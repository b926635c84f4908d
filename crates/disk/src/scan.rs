//! Reading the frames of a segment one after the other, and the judge of torn tail or damage.
//!
//! The judge rests on one promise of the writer: a frame is written only when the one before
//! it is durable. So whatever a later frame follows had been acknowledged, and only the very
//! last frame can be torn. The rules, their order and their reasons are in
//! `docs/log-format.md`, "Torn tail or damage".

use std::path::Path;

use crate::{
    DiskError, DiskFile, FRAME_ALIGN, Frame, SEGMENT_HEADER_BYTES, SegmentHeader,
    frame::{FrameHeader, HeaderAt, frame_version, has_unwritten_sector, unmask},
};

/// How much is read at a time. A frame that crosses the end is read again with what follows, so
/// this is several times what a large group commit takes.
pub(crate) const WINDOW_BYTES: usize = 4 << 20;

/// How far ahead a frame number is believed when headers are searched for behind a bad place.
/// No segment holds more frames than this; what claims to be further away is chance.
pub(crate) const SEQ_AHEAD_MAX: u64 = 1 << 32;

/// Walks the frames of one segment.
#[derive(Debug)]
pub struct Scan<'a> {
    file: &'a dyn DiskFile,
    path: &'a Path,
    salt: u32,
    len: u64,
    /// Where the next frame begins.
    offset: u64,
    /// Number and checksum of the frame before it.
    seq: u64,
    crc: u32,
    window: Vec<u8>,
    /// Where `window` begins in the file.
    window_offset: u64,
}

/// Where the frames of a segment end, and what is to be done there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Where the next frame belongs.
    pub offset: u64,
    /// Number and checksum of the last frame.
    pub seq: u64,
    /// The checksum of the last frame.
    pub crc: u32,
    /// Where the remains of a torn frame end; `offset` if there are none. To be wiped before
    /// anything is written.
    pub remains_end: u64,
}

impl<'a> Scan<'a> {
    /// Begins at the first frame of a segment whose header was read.
    #[must_use]
    pub fn new(file: &'a dyn DiskFile, path: &'a Path, header: &SegmentHeader) -> Self {
        Self {
            file,
            path,
            salt: header.salt,
            len: header.bytes,
            offset: SEGMENT_HEADER_BYTES,
            seq: header.prev_frame_seq,
            crc: header.prev_frame_crc,
            window: Vec::new(),
            window_offset: 0,
        }
    }

    /// The next intact frame; `None` where they end, be it for good or for bad, which
    /// [`finish`](Self::finish) tells.
    ///
    /// # Errors
    ///
    /// [`DiskError::Damaged`] if there is a frame that was surely acknowledged and is not what
    /// was written, [`DiskError::Version`] if it is of a newer format.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, DiskError> {
        let Some(header) = self.header()? else { return Ok(None) };
        let (offset, crc_before) = (self.offset, self.crc);
        let frame = self.read(offset, header.len)?;
        if crc32c::crc32c_append(crc_before, &frame[8..]) != header.crc {
            if has_unwritten_sector(frame, offset) {
                return Ok(None);
            }
            return Err(self.damaged("a record that was fully written has changed since"));
        }
        self.offset += header.len as u64;
        self.seq = header.spec.seq;
        self.crc = header.crc;
        let salt = self.salt;
        let frame = self.read(offset, header.len)?;
        let payload = &mut frame[FRAME_ALIGN..];
        unmask(salt, header.mask, payload);
        Ok(Some(Frame { offset, crc: header.crc, mask: header.mask, spec: header.spec, payload }))
    }

    /// The header at the current place, if it can be that of the next frame.
    fn header(&mut self) -> Result<Option<FrameHeader>, DiskError> {
        if self.offset == self.len {
            return Ok(None);
        }
        let (offset, salt) = (self.offset, self.salt);
        let bytes = self.read(offset, FRAME_ALIGN)?;
        let bytes = bytes.first_chunk().expect("as many bytes as were asked for");
        let header = match HeaderAt::read(bytes, salt) {
            HeaderAt::Nothing | HeaderAt::Unfinished => return Ok(None),
            HeaderAt::Changed => {
                return Err(self.damaged("the header of a record has changed since it was written"));
            }
            HeaderAt::Intact(header) => header,
        };
        if !header.is_supported() {
            return Err(DiskError::Version {
                path: self.path.to_owned(),
                found: header.version.into(),
                supported: frame_version().into(),
            });
        }
        if header.spec.seq != self.seq + 1 {
            let (found, expected) = (header.spec.seq, self.seq + 1);
            return Err(self.damaged(format!("record {found} stands where {expected} belongs")));
        }
        if self.len - offset < header.len as u64 {
            return Err(self.damaged("a record is longer than its file"));
        }
        Ok(Some(header))
    }

    /// Judges what follows the last intact frame.
    ///
    /// # Errors
    ///
    /// [`DiskError::Damaged`] if a later frame proves that the one here had been acknowledged.
    ///
    /// # Panics
    ///
    /// If [`next_frame`](Self::next_frame) has not answered `None` yet.
    pub fn finish(mut self) -> Result<Tail, DiskError> {
        assert!(self.header()?.is_none() || self.next_frame()?.is_none(), "frames are left");
        let end = self.offset;
        let mut remains_end = end;
        let mut at = end;
        while at < self.len {
            let step = WINDOW_BYTES.min(usize::try_from(self.len - at).unwrap_or(WINDOW_BYTES));
            self.window.clear(); // frames in the window are unmasked, so none is read again
            let salt = self.salt;
            let (first_seq, is_first) = (self.seq + 2, at == end);
            let bytes = &self.read(at, step)?[..step];
            if !is_zero(bytes) {
                if let Some(found) = find_header(bytes, salt, first_seq, is_first) {
                    let (place, seq) = (at + found.0 as u64, found.1);
                    return Err(self.damaged(format!(
                        "an acknowledged record is missing or has changed: record {seq} follows \
                         at byte {place}"
                    )));
                }
                let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
                remains_end = at + used as u64;
            }
            at += step as u64;
        }
        Ok(Tail { offset: end, seq: self.seq, crc: self.crc, remains_end })
    }

    /// At least `len` bytes from `offset` on, as they stand in the window.
    fn read(&mut self, offset: u64, len: usize) -> Result<&mut [u8], DiskError> {
        let window_end = self.window_offset + self.window.len() as u64;
        if offset < self.window_offset || window_end < offset + len as u64 {
            let rest = usize::try_from(self.len - offset).unwrap_or(usize::MAX);
            self.window.resize(len.max(WINDOW_BYTES).min(rest), 0);
            self.window_offset = offset;
            if self.file.read_at(offset, &mut self.window).is_err() {
                // What cannot be read may lie behind what is asked for.
                self.window.resize(len, 0);
                self.file
                    .read_at(offset, &mut self.window)
                    .map_err(DiskError::io("read", self.path))?;
            }
        }
        let start = usize::try_from(offset - self.window_offset).expect("inside the window");
        Ok(&mut self.window[start..start + len])
    }

    fn damaged(&self, what: impl Into<String>) -> DiskError {
        DiskError::damaged(self.path, self.offset, what)
    }
}

/// A header of a later frame among bytes that begin at a multiple of [`FRAME_ALIGN`].
fn find_header(bytes: &[u8], salt: u32, first_seq: u64, skip_first: bool) -> Option<(usize, u64)> {
    let believed = first_seq..first_seq.saturating_add(SEQ_AHEAD_MAX);
    bytes
        .chunks_exact(FRAME_ALIGN)
        .enumerate()
        .skip(usize::from(skip_first))
        .filter_map(|(at, chunk)| Some((at * FRAME_ALIGN, chunk.first_chunk()?)))
        .filter_map(|(at, chunk)| Some((at, FrameHeader::decode(chunk, salt)?)))
        .map(|(at, header)| (at, header.spec.seq))
        .find(|(_, seq)| believed.contains(seq))
}

/// Compared block by block: `memcmp` is fast in every build.
fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| chunk == &ZEROS[..chunk.len()])
}
