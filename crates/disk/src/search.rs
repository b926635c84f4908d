//! What is left of a segment behind a damaged place.
//!
//! A header proves itself by a checksum with a secret of its segment, so it can be found
//! without those before it. What it says was once written here; that the payload behind it is
//! intact it does not say.

use std::path::Path;

use crate::{
    DiskError, DiskFile, FRAME_ALIGN, FrameSpec,
    frame::FrameHeader,
    scan::{SEQ_AHEAD_MAX, WINDOW_BYTES},
};

/// What cannot be read is looked at in pieces of this size.
const PIECE_BYTES: usize = 4096;

/// The headers that are intact from some place of a segment on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Survivors {
    /// What they say, in the order of their places.
    pub frames: Vec<FrameSpec>,
    /// Where the last of them ends, by its own word; where the search began if there is none.
    pub frames_end: u64,
    /// Where the last byte ends that is not zero or cannot be read.
    pub used_end: u64,
}

/// Looks for headers of frames that follow number `seq`, from `from` on, a multiple of 64.
///
/// # Errors
///
/// If the length of the file cannot be told. Bytes that cannot be read are no error.
pub fn find_survivors(
    file: &dyn DiskFile,
    path: &Path,
    salt: u32,
    seq: u64,
    from: u64,
) -> Result<Survivors, DiskError> {
    let len = file.len().map_err(DiskError::io("measure", path))?;
    let mut found = Survivors { frames: Vec::new(), frames_end: from, used_end: from };
    let mut at = from;
    let mut window = vec![0; WINDOW_BYTES];
    while at < len {
        let rest = usize::try_from(len - at).unwrap_or(usize::MAX);
        let step = WINDOW_BYTES.min(rest);
        if file.read_at(at, &mut window[..step]).is_ok() {
            found.look_at(&window[..step], at, salt, seq);
        } else {
            for piece in (0..step).step_by(PIECE_BYTES) {
                let (place, len) = (at + piece as u64, PIECE_BYTES.min(step - piece));
                if file.read_at(place, &mut window[..len]).is_ok() {
                    found.look_at(&window[..len], place, salt, seq);
                } else {
                    found.used_end = place + len as u64;
                }
            }
        }
        at += step as u64;
    }
    Ok(found)
}

impl Survivors {
    fn look_at(&mut self, bytes: &[u8], at: u64, salt: u32, seq: u64) {
        let believed = seq + 1..seq.saturating_add(SEQ_AHEAD_MAX);
        for (offset, chunk) in (at..).step_by(FRAME_ALIGN).zip(bytes.chunks_exact(FRAME_ALIGN)) {
            let header = chunk.first_chunk().and_then(|chunk| FrameHeader::decode(chunk, salt));
            if let Some(header) = header.filter(|header| believed.contains(&header.spec.seq)) {
                self.frames.push(header.spec);
                self.frames_end = offset + header.len as u64;
            }
        }
        if let Some(last) = bytes.iter().rposition(|&byte| byte != 0) {
            self.used_end = at + last as u64 + 1;
        }
    }
}
