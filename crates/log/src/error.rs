//! Why a log cannot be opened, written or read.

use std::{
    io,
    path::{Path, PathBuf},
};

use kontiki_disk::DiskError;
use kontiki_raft::{EntryId, Index};

/// Why a log cannot be opened, written or read. One variant for each thing that an operator
/// would do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
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

    /// There is no room for another segment. Nothing was written, and the log is as it was:
    /// the same batches can be written again when there is room.
    #[error("no space left to make {}: {source}; free some, nothing is lost", path.display())]
    NoSpace {
        /// The file that was being made.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },

    /// Bytes that were acknowledged are not what was written. To cut or skip them would be to
    /// go back on a promise, so nothing was changed.
    #[error(
        "{} is damaged at byte {offset}{}: {what}. Nothing was cut or changed. Check the disk; if \
         the bytes cannot be brought back, replace this server by a new member with an empty \
         data directory",
        path.display(),
        index.map(|index| format!(", at log index {index}")).unwrap_or_default()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it shows.
        offset: u64,
        /// The first entry that is affected, where that is known.
        index: Option<Index>,
        /// What is wrong there.
        what: String,
    },

    /// Written by a program that is newer than this one.
    #[error(
        "{} has format version {found}, this program knows versions up to {supported}: use the \
         newer program",
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

    /// An earlier write or `fdatasync` failed. The kernel may have dropped the bytes and will
    /// then report success, so to ask again proves nothing. Restart: recovery reads back what
    /// is really there.
    #[error("the log takes no more writes since one failed; restart this server")]
    Poisoned,

    /// Another process uses this data directory.
    #[error("{} is locked: another process uses this data directory", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },

    /// There is no data directory here.
    #[error("{} is missing, so this is nobody's data directory", path.display())]
    NoIdentity {
        /// The identity file.
        path: PathBuf,
    },

    /// The data directory belongs to another server or another cluster.
    #[error(
        "{} is the data directory of {found}, this server was started as {asked}; give it its \
         own directory",
        path.display()
    )]
    WrongIdentity {
        /// The identity file.
        path: PathBuf,
        /// Whose directory it is.
        found: String,
        /// Who wanted to use it.
        asked: String,
    },

    /// A segment belongs to another data directory. It was put here by mistake: take it away.
    #[error("{} belongs to another data directory; nothing was changed", path.display())]
    Foreign {
        /// The segment.
        path: PathBuf,
    },

    /// The entry was purged: a snapshot stands for it.
    #[error("entry {index} was purged, the log starts after {log_start}")]
    Purged {
        /// What was asked for.
        index: Index,
        /// The entry before the first of the log.
        log_start: EntryId,
    },

    /// The entry is not there: not yet, or not any more since it was replaced.
    #[error("entry {index} is not in the log, which ends at {last}")]
    NotInLog {
        /// What was asked for.
        index: Index,
        /// The last entry of the log.
        last: EntryId,
    },

    /// A chunk of a snapshot is not the next one, or not what its sender wrote. Nothing was
    /// written: it can be asked for again.
    #[error("chunk {number} of the snapshot is refused: {what}")]
    BadChunk {
        /// Its number, as the sender says.
        number: u64,
        /// What is wrong with it.
        what: &'static str,
    },

    /// There is no such snapshot, or not any more.
    #[error("there is no snapshot that ends at {last}")]
    NoSnapshot {
        /// What was asked for.
        last: EntryId,
    },

    /// Another snapshot is being received in the place of this one.
    #[error("another snapshot is being received")]
    Replaced,

    /// What was to be written at once is larger than a record can be. Nothing was written.
    #[error("a record of {bytes} bytes is larger than {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
}

impl LogError {
    /// Says which call on which file failed.
    pub(crate) fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { op, path: path.to_owned(), source }
    }

    /// Says what is damaged, and where.
    pub(crate) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, index: None, what: what.into() }
    }

    /// Whether bytes that were written cannot be had back: they have changed, or the disk does
    /// not give them out. Trying again does not help; others may have them still.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Io { op: "read", .. })
    }

    /// Adds the first entry that is affected.
    pub(crate) fn at(mut self, at: Index) -> Self {
        if let Self::Damaged { index, .. } = &mut self {
            *index = Some(at);
        }
        self
    }
}

impl From<DiskError> for LogError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Io { op, path, source } => Self::Io { op, path, source },
            DiskError::NoSpace { path, source } => Self::NoSpace { path, source },
            DiskError::Damaged { path, offset, what } => {
                Self::Damaged { path, offset, index: None, what }
            }
            DiskError::Version { path, found, supported } => {
                Self::Version { path, found, supported }
            }
            error => unreachable!("an error of our own crate that nobody translates: {error}"),
        }
    }
}
