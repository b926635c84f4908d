//! The whole state as a stream of bytes: taken at once, written while others write on.
//!
//! ```text
//!   0        8         12      20     28         36                 44         48
//!   │ magic  │ version │ index │ term │ revision │ compact revision │ segments │ crc   │   header
//!   │ 1 u8   │ header of the segment, 64 bytes │ length u64 │ frames …               │   segments
//!   │ 0 u8   │ frames u64 │ crc u32                                                 │   end
//! ```
//!
//! Integers are little-endian. Segments are those of the files, frame by frame (see `segment`
//! and `frame`), so nothing is taken apart to be sent. The crc of the header covers the header;
//! that of the end all bytes before it.
//!
//! What compaction has not removed yet is written like the rest; whoever reads it knows from
//! the compact revision what is dead.

use std::{fmt, io};

use crate::{
    error::Fatal,
    frame::Position,
    history::{History, Part},
    store::Store,
};

pub(crate) const MAGIC: [u8; 8] = *b"ktkstore";
pub(crate) const VERSION: u32 = 2;
pub(crate) const HEADER_BYTES: usize = 52;
pub(crate) const END: u8 = 0;
pub(crate) const SEGMENT: u8 = 1;

/// Frames are handed on when this much has come together.
const WRITE_BYTES: usize = 1 << 20;

/// The state of a [`Store`] at one moment. Nothing that is written later shows in it.
///
/// While it lives, the files that it needs take space, be they removed from the store or not.
pub struct StoreSnapshot {
    history: History,
}

impl fmt::Debug for StoreSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSnapshot")
            .field("position", &self.history.position)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Freezes the state as it is after the last command that was applied. Quick: nothing is
    /// copied and nothing is written.
    ///
    /// # Errors
    ///
    /// [`Fatal`] when the store has failed.
    pub fn snapshot(&self) -> Result<StoreSnapshot, Fatal> {
        let shared = self.shared();
        let mut state = shared.write_state()?;
        Ok(StoreSnapshot { history: History::of(&mut state) })
    }
}

impl StoreSnapshot {
    /// Index and term of the last command in it.
    #[must_use]
    pub fn applied(&self) -> (u64, u64) {
        (self.history.position.applied_index, self.history.position.applied_term)
    }

    /// The revision that it is at.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.history.position.revision
    }

    /// Writes all of it, in pieces of about 1 MiB. Blocks; the store can be used beside it.
    ///
    /// # Errors
    ///
    /// Those of `out`, and damage in the store: every frame is verified on its way.
    pub fn write_to(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let mut writer = Writer { out, crc: 0, waiting: Vec::new(), frames: 0, failure: None };
        let parts = &self.history.parts;
        writer.put(&encode_header(&self.history.position, parts.len())?)?;
        for part in parts {
            writer.put_part(part)?;
        }
        writer.finish()
    }
}

/// Writes, and keeps the checksum of what is written.
struct Writer<'a> {
    out: &'a mut dyn io::Write,
    crc: u32,
    waiting: Vec<u8>,
    frames: u64,
    /// Why `out` refused: a walk over frames can only end with an error of the store.
    failure: Option<io::Error>,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.out.write_all(bytes)
    }

    fn put_part(&mut self, part: &Part) -> io::Result<()> {
        self.put(&[SEGMENT])?;
        self.put(&part.header.encode())?;
        self.put(&part.len().to_le_bytes())?;
        let walked = part.frames(&mut |_, frame| {
            self.frames += 1;
            self.waiting.extend_from_slice(frame);
            if self.waiting.len() < WRITE_BYTES {
                return Ok(());
            }
            self.put_waiting().map_err(|error| self.keep(error))
        });
        match (walked, self.failure.take()) {
            (Ok(()), _) => self.put_waiting(),
            (Err(_), Some(failure)) => Err(failure),
            (Err(fatal), None) => Err(io::Error::other(fatal)),
        }
    }

    fn put_waiting(&mut self) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.put(&waiting)?;
        self.waiting = waiting;
        self.waiting.clear();
        Ok(())
    }

    fn keep(&mut self, error: io::Error) -> Fatal {
        self.failure = Some(error);
        Fatal::io("write a snapshot of", io::Error::other("see the error that is kept"))
    }

    fn finish(mut self) -> io::Result<()> {
        self.put(&[END])?;
        let frames = self.frames;
        self.put(&frames.to_le_bytes())?;
        let crc = self.crc;
        self.out.write_all(&crc.to_le_bytes())
    }
}

fn encode_header(position: &Position, segments: usize) -> io::Result<Vec<u8>> {
    let segments = u32::try_from(segments).map_err(io::Error::other)?;
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&position.applied_index.to_le_bytes());
    header.extend_from_slice(&position.applied_term.to_le_bytes());
    header.extend_from_slice(&position.revision.to_le_bytes());
    header.extend_from_slice(&position.compact_revision.to_le_bytes());
    header.extend_from_slice(&segments.to_le_bytes());
    header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
    Ok(header)
}
