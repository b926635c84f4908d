//! All file access of the project: the [`Disk`] trait, the real disk, and segment files.
//!
//! A *segment* is a file that was filled with zeros before use and then takes *frames*, one
//! after the other. Frames are chained by their checksums, so that order and completeness are
//! proved by reading them. When the chain breaks, [`Scan`] judges: a frame that the power
//! failure caught half written, which nobody was ever told of, or damage in what was
//! acknowledged. The first is cut, the second never.
//!
//! This crate knows nothing of what the frames hold. Every byte is in `docs/log-format.md`.
//!
//! ```
//! use kontiki_disk::{DiskError, RealDisk, SmallFile};
//!
//! # fn main() -> Result<(), DiskError> {
//! let dir = tempfile::tempdir().expect("a directory for this example");
//! let file = SmallFile::new(dir.path().join("name"), *b"AN EXAMP");
//! assert_eq!(file.read(&RealDisk)?, None);
//! file.replace(&RealDisk, b"Kon-Tiki")?; // the old content or the new one, never a mixture
//! assert_eq!(file.read(&RealDisk)?.as_deref(), Some(&b"Kon-Tiki"[..]));
//! # Ok(())
//! # }
//! ```

mod bytes;
mod disk;
mod error;
mod frame;
mod real;
mod scan;
mod search;
mod segment;
mod small_file;
mod spare;

pub use bytes::ByteReader;
pub use disk::{Disk, DiskFile, DiskLock};
pub use error::DiskError;
pub use frame::{
    Encoded, FRAME_ALIGN, FRAME_USER_BYTES, Frame, FrameSpec, encode_frame, frame_len, unmask,
};
pub use real::RealDisk;
pub use scan::{Scan, Tail};
pub use search::{Survivors, find_survivors};
pub use segment::{SEGMENT_HEADER_BYTES, SEGMENT_USER_BYTES, SegmentHeader, SegmentMagic};
pub use small_file::SmallFile;
pub use spare::{Spare, SparePool};
