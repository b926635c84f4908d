//! Why the store refuses, fails, or cannot be opened.
//!
//! One enum for each thing that a caller does about it: [`RequestError`] before a command is
//! replicated, [`StoreError`] as an answer to a client, [`Fatal`] to stop the node,
//! [`OpenError`] at the start. etcd's texts and codes live in the server.

use std::{error::Error, path::PathBuf, sync::Arc};

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
    /// An event is damaged or missing. It must not be skipped: that would invent history.
    #[error("event store is damaged at revision {revision}: {what}")]
    Corrupt {
        /// The main revision of the event.
        revision: i64,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Fatal {
    pub(crate) fn io(op: &'static str, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Io { op, source: Arc::new(source) }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("store {path} is open in another process")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file is of a format that this build does not know.
    #[error("store {path} has format {found}, this build knows {known}")]
    Version {
        /// The file.
        path: PathBuf,
        /// The format of the file.
        found: u32,
        /// The format of this build.
        known: u32,
    },
    /// The content is damaged. This node has to be rebuilt from its peers.
    #[error("store {path} cannot be read")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        source: Fatal,
    },
    /// The file system refused.
    #[error("cannot open store {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<dyn Error + Send + Sync>,
    },
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
