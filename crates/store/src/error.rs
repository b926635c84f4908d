//! Why the store refuses, fails, or cannot be opened.
//!
//! One enum for each thing that a caller does about it: [`RequestError`] before a command is
//! replicated, [`StoreError`] as an answer to a client, [`Fatal`] to stop the node,
//! [`OpenError`] at the start. etcd's texts and codes live in the server.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is wrong with a request whatever the state of the store.
///
/// Found by [`validate`](crate::validate()) before a command is proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// A key is empty.
    #[error("key is not provided")]
    EmptyKey,
    /// An operation of a transaction has nothing set. etcd says "key not found" here.
    #[error("operation is not provided")]
    EmptyOperation,
    /// `ignore_value` together with a value.
    #[error("value is provided")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("lease is provided")]
    LeaseProvided,
    /// A list of a transaction is longer than allowed, nested lists included.
    #[error("too many operations in transaction")]
    TooManyOperations,
    /// A transaction would write one key twice.
    #[error("duplicate key in transaction")]
    DuplicateKey,
    /// The sort order or target is a number that the protocol does not define.
    #[error("invalid sort option")]
    InvalidSortOption,
}

/// Why a request was refused, or could not be answered.
///
/// All but [`Fatal`](Self::Fatal) are answers: they are the same on every replica, and the
/// request has changed nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The revision asked for has been compacted.
    #[error("required revision has been compacted")]
    Compacted,
    /// The revision asked for does not exist yet.
    #[error("required revision is a future revision")]
    FutureRevision,
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    #[error("key not found")]
    KeyNotFound,
    /// The lease of a put does not exist.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// The ranges of one write would return more than any server should hold in memory.
    #[error("the answer to this request would be too large")]
    TooLarge,
    /// The disk failed under a read.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

/// Why this store can no longer be used. The node must stop before it answers anything else.
///
/// Final: every later write gets the same error. A failed sync in particular is not tried
/// again, for the kernel may have dropped the pages and would report success.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// The disk, or the engine on it, refused.
    #[error("cannot {op} the event store")]
    Io {
        /// What was tried, as a verb.
        op: &'static str,
        /// What the engine says.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// What was written is damaged or missing. It must not be skipped: that would invent
    /// history. The data has to be fetched anew, from peers.
    #[error("{} is damaged at byte {offset}: {what}", file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where it shows.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
}

impl Fatal {
    /// A frame whose checksum fits holds what none of ours does.
    pub(crate) fn unsound(frame_seq: u64, what: &str) -> Self {
        let what = format!("frame {frame_seq}: {what}");
        Self::Corrupt { file: PathBuf::new(), offset: 0, what }
    }

    pub(crate) fn io(op: &'static str, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Io { op, source: Arc::new(source) }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("store {} is open in another process", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file is of a format that this build does not know.
    #[error("store {} has format {found}, this build knows {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The format of the file.
        found: u32,
        /// The format of this build.
        known: u32,
    },
    /// The content is damaged. Its data has to be fetched anew, from peers.
    #[error("{} is damaged at byte {offset}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it shows.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The file system refused.
    #[error("cannot open store {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<dyn Error + Send + Sync>,
    },
}

impl OpenError {
    pub(crate) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, what: what.into() }
    }

    /// Bytes that the disk does not give back are as damaged as any.
    pub(crate) fn unreadable(path: &Path, offset: u64, error: &io::Error) -> Self {
        Self::damaged(path, offset, format!("the disk does not give it back: {error}"))
    }

    /// What went wrong while the store at `path` was opened.
    pub(crate) fn from_fatal(path: &Path, fatal: Fatal) -> Self {
        match fatal {
            Fatal::Corrupt { file, offset, what } => Self::damaged(&file, offset, what),
            Fatal::Io { source, .. } => Self::Io { path: path.to_owned(), source },
        }
    }
}

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end in the middle.
    #[error("command is cut short")]
    Truncated,
    /// A version of the encoding that this build does not know.
    #[error("unknown version {0} of the command encoding")]
    Version(u8),
    /// A tag, flag or number that stands for nothing.
    #[error("malformed command: {0}")]
    Malformed(&'static str),
}
