//! What can go wrong with a file.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a segment or a small file cannot be read or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The file system refused. Nothing is known to be damaged.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// What was tried: `open`, `write`, …
        op: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },

    /// There is no room for another segment. Nothing was written to the ones in use.
    #[error("no space left to make {}: {source}", path.display())]
    NoSpace {
        /// The file that was being made.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },

    /// Bytes that were durable are not what was written.
    #[error("{} is damaged at byte {offset}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it shows.
        offset: u64,
        /// What is wrong there.
        what: String,
    },

    /// Written by a program that is newer than this one.
    #[error(
        "{} has format version {found}, this program knows versions up to {supported}",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version that can be read.
        supported: u32,
    },
}

impl DiskError {
    /// Says which call on which file failed.
    pub fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { op, path: path.to_owned(), source }
    }

    /// Says which call failed while a new file was made: a full disk is told from the rest.
    pub fn making(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Self::NoSpace { path, source }
                }
                _ => Self::Io { op, path, source },
            }
        }
    }

    /// Says what is damaged, and where.
    pub fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, what: what.into() }
    }
}
