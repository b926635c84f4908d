//! The dozen calls through which the project reaches a file system.
//!
//! Everything that is written goes through here, so that one simulated disk can lose, tear,
//! fill and rot everything that is written. Paths are relative to nothing: callers name whole
//! paths. All calls block.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A file system, as far as this project needs one.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Makes a directory and its parents. The names are durable when this returns. No error if
    /// it is there already.
    ///
    /// # Errors
    ///
    /// As the file system says.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// The names of the files in a directory, sorted: names only, without the directory, and
    /// without the directories in it.
    ///
    /// # Errors
    ///
    /// As the file system says; `NotFound` if there is no such directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// Opens a file that exists, for reading and writing.
    ///
    /// # Errors
    ///
    /// As the file system says; `NotFound` if there is no such file.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Makes a file that does not exist, for reading and writing. Its name is durable only
    /// after [`sync_dir`](Self::sync_dir).
    ///
    /// # Errors
    ///
    /// As the file system says; `AlreadyExists` if it exists.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name, replacing what had it. Durable only after
    /// [`sync_dir`](Self::sync_dir).
    ///
    /// # Errors
    ///
    /// As the file system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable only after [`sync_dir`](Self::sync_dir).
    ///
    /// # Errors
    ///
    /// As the file system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    ///
    /// As the file system says. After an error nothing is known about the names.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes a lock that one holder at a time can have, for as long as the value lives. Makes
    /// the file if it does not exist.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if another process or another part of this one holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>>;
}

/// An open file. Positioned reads and writes only: there is no cursor to share.
#[expect(clippy::len_without_is_empty, reason = "nobody asks a segment whether it is empty")]
pub trait DiskFile: fmt::Debug + Send + Sync + 'static {
    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    ///
    /// As the file system says; `UnexpectedEof` if the file ends before.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, making the file longer where needed. Durable only
    /// after [`sync_data`](Self::sync_data).
    ///
    /// # Errors
    ///
    /// As the file system says. After an error any part may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written durable, and the length of the file with it (`fdatasync`).
    ///
    /// # Errors
    ///
    /// As the file system says. After an error nothing is known about what was written since
    /// the last success, and to ask again proves nothing.
    fn sync_data(&self) -> io::Result<()>;

    /// The length of the file in bytes.
    ///
    /// # Errors
    ///
    /// As the file system says.
    fn len(&self) -> io::Result<u64>;

    /// Cuts the file, or makes it longer with zeros.
    ///
    /// # Errors
    ///
    /// As the file system says.
    fn set_len(&self, len: u64) -> io::Result<()>;
}

/// Holds a lock until it is dropped.
pub trait DiskLock: fmt::Debug + Send + Sync + 'static {}
