//! Where entries and hard state are kept: the traits that a log implements, and the default one
//! on segment files.

use std::{fmt, ops::RangeInclusive, path::PathBuf, sync::Arc};

use kontiki_disk::Disk;
use kontiki_log::{DamageReport, Identity, IdentityRequest, Log, LogOptions, SpareMaker};
use kontiki_raft::{Entry, EntryId, Index, Recovered, WriteBatch};

use crate::LogFailure;

/// A log that can be opened. Plugged in with [`Builder::log_store`](crate::Builder::log_store).
pub trait LogStore: fmt::Debug + Send + 'static {
    /// Opens the log, or makes it if it is new. May block for as long as recovery takes.
    ///
    /// `request` is written durably when the log is new and must agree with what was written
    /// when it is not. `applied` of what is recovered is filled in by the node.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, belongs to another node or cluster, or holds less than was
    /// ever acknowledged.
    fn open(self: Box<Self>, request: &IdentityRequest) -> Result<OpenedLog, LogFailure>;
}

/// A log that is open.
#[derive(Debug)]
pub struct OpenedLog {
    /// Whose log it is.
    pub identity: Identity,
    /// What the protocol needs to know of it.
    pub recovered: Recovered,
    /// For the log thread.
    pub writer: Box<dyn LogWriter>,
    /// For everyone else.
    pub reader: Arc<dyn LogReader>,
    /// What a background thread does to make later writes cheaper, if there is something.
    pub upkeep: Option<Box<dyn Upkeep>>,
}

/// The one writer of a log. Lives on the log thread and may block.
///
/// What is asked of it: writes are carried out in the order in which they come; after
/// [`sync`](Self::sync) everything that was written survives power loss, each [`WriteBatch`]
/// whole; and after one failure nothing succeeds any more.
pub trait LogWriter: fmt::Debug + Send + 'static {
    /// Writes all batches, in order. Need not be durable yet.
    ///
    /// # Errors
    ///
    /// [`LogError::NoSpace`](crate::LogError::NoSpace) says that nothing was written for want of
    /// space: the same batches are tried again, and more with them, until there is some. Any
    /// other error is final: the node stops.
    fn write(&mut self, batches: &[WriteBatch]) -> Result<(), LogFailure>;

    /// Makes durable what was written.
    ///
    /// # Errors
    ///
    /// Any error is final: the node stops.
    fn sync(&mut self) -> Result<(), LogFailure>;

    /// Drops entries up to `upto`, or fewer. Returns the last entry that is gone.
    ///
    /// # Errors
    ///
    /// After [`LogError::NoSpace`](crate::LogError::NoSpace) it is asked again some time. Any
    /// other error is final: the node stops.
    fn purge(&mut self, upto: EntryId) -> Result<EntryId, LogFailure>;
}

/// Reads entries beside the writer, from any thread. May block.
pub trait LogReader: fmt::Debug + Send + Sync + 'static {
    /// Consecutive entries from the start of `range`, at least one, and as many as fit
    /// `bytes_max`.
    ///
    /// # Errors
    ///
    /// When they are not there any more, or cannot be read intact. A leader that meets
    /// [`LogError::Damaged`](crate::LogError::Damaged) or [`LogError::Io`](crate::LogError::Io)
    /// hands over to another, whose disk may do better.
    fn read(
        &self,
        range: RangeInclusive<Index>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogFailure>;
}

/// Work that a log wants done in the background.
pub trait Upkeep: fmt::Debug + Send + 'static {
    /// Does one piece of work. `false` when there is nothing left to do for now.
    ///
    /// # Errors
    ///
    /// The log works without; the node goes on and tries again later. After
    /// [`LogError::NoSpace`](crate::LogError::NoSpace) it counts as full until it succeeds.
    fn run(&mut self) -> Result<bool, LogFailure>;
}

/// The default log: segment files in a directory, one `fdatasync` for all that waits.
#[derive(Debug)]
pub struct FileLog {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: LogOptions,
}

impl FileLog {
    /// A log in `dir`.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf, options: LogOptions) -> Self {
        Self { disk, dir, options }
    }
}

impl LogStore for FileLog {
    fn open(self: Box<Self>, request: &IdentityRequest) -> Result<OpenedLog, LogFailure> {
        let (log, opened) = Log::open(self.disk, &self.dir, request, self.options)?;
        let report = &opened.report;
        tracing::info!(dir = %self.dir.display(), ?report, "log is open");
        if let Some(DamageReport { path, offset, what, entries, set_aside, .. }) = &report.damage {
            tracing::error!(
                file = %path.display(),
                offset,
                what,
                first = %entries.start(),
                last = %entries.end(),
                ?set_aside,
                "the log is damaged: these entries are not certain any more; the files are set \
                 aside, and nothing reads or removes them",
            );
        }
        Ok(OpenedLog {
            identity: opened.identity,
            recovered: opened.recovered,
            reader: Arc::new(log.reader()),
            upkeep: Some(Box::new(Spares(log.spares()))),
            writer: Box::new(log),
        })
    }
}

impl LogWriter for Log {
    fn write(&mut self, batches: &[WriteBatch]) -> Result<(), LogFailure> {
        Ok(Self::write(self, batches)?)
    }

    fn sync(&mut self) -> Result<(), LogFailure> {
        Ok(Self::sync(self)?)
    }

    fn purge(&mut self, upto: EntryId) -> Result<EntryId, LogFailure> {
        Ok(Self::purge(self, upto)?)
    }
}

impl LogReader for kontiki_log::LogReader {
    fn read(
        &self,
        range: RangeInclusive<Index>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogFailure> {
        Ok(Self::read(self, range, bytes_max)?)
    }
}

/// Zero-filled segments, made before they are needed.
#[derive(Debug)]
struct Spares(SpareMaker);

impl Upkeep for Spares {
    fn run(&mut self) -> Result<bool, LogFailure> {
        Ok(self.0.fill()?)
    }
}
