//! All file access: the `Disk` trait, the real disk, segment frames, torn tail or damage.

mod disk;

pub use disk::{Disk, DiskFile, DiskLock};
