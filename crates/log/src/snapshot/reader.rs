//! Reading a snapshot file: a chunk at a time, and no byte before its chunk was checked.

use std::{io, path::PathBuf, sync::Arc};

use kontiki_disk::{Disk, DiskFile};
use kontiki_raft::Bytes;

use super::{
    SnapshotInfo,
    format::{CHUNK_HEAD_BYTES, Header, add_to_checksum, check_chunk},
};
use crate::LogError;

/// A snapshot that can be read chunk by chunk, to be sent. It stays readable while this lives,
/// whatever becomes of its name.
#[derive(Clone, Debug)]
pub struct SnapshotSource {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    header: Header,
    info: SnapshotInfo,
}

impl SnapshotSource {
    pub(super) fn open(disk: &dyn Disk, path: PathBuf) -> Result<Self, LogError> {
        let file = disk.open(&path).map_err(LogError::io("open", &path))?;
        Self::of_file(file, path)
    }

    pub(super) fn of_file(file: Arc<dyn DiskFile>, path: PathBuf) -> Result<Self, LogError> {
        let header = Header::read(&*file, &path)?;
        let info = header.read_trailer(&*file, &path)?;
        Ok(Self { path, file, header, info })
    }

    /// What it is.
    #[must_use]
    pub const fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    /// One chunk as it is sent: its length, its checksum, its data.
    ///
    /// # Errors
    ///
    /// [`LogError::Damaged`] if it is not what was written, or there is no such chunk.
    pub fn chunk(&self, number: u64) -> Result<Bytes, LogError> {
        self.read(number).map(|(chunk, _)| chunk)
    }

    /// Its bytes, from their beginning.
    #[must_use]
    pub fn reader(&self) -> SnapshotReader {
        SnapshotReader::new(self.clone())
    }

    fn read(&self, number: u64) -> Result<(Bytes, u32), LogError> {
        let at = self.header.chunk_at(number);
        let bad = |what: &str| LogError::damaged(&self.path, at, format!("chunk {number}: {what}"));
        if self.info.chunk_count <= number {
            return Err(bad("there is no such chunk"));
        }
        let mut chunk = vec![0; self.header.chunk_len(number, &self.info)];
        self.file.read_at(at, &mut chunk).map_err(LogError::io("read", &self.path))?;
        let crc = check_chunk(self.info.meta.last, number, &chunk).map_err(bad)?;
        Ok((Bytes::from(chunk), crc))
    }

    /// Reads and checks all of it.
    pub(super) fn verify(self) -> Result<(), LogError> {
        let mut reader = SnapshotReader::new(self);
        while reader.next_chunk()?.is_some() {}
        Ok(())
    }
}

/// Reads the bytes of a snapshot from their beginning, with one chunk in memory.
///
/// Damage is an error of kind `InvalidData` that holds the [`LogError`], and nothing of a chunk
/// that is damaged is ever handed out.
#[derive(Debug)]
pub struct SnapshotReader {
    source: SnapshotSource,
    next: u64,
    checksum: u32,
    /// What is left of the chunk that was read last.
    rest: Bytes,
}

impl SnapshotReader {
    pub(super) const fn new(source: SnapshotSource) -> Self {
        Self { source, next: 0, checksum: 0, rest: Bytes::new() }
    }

    /// What is read.
    #[must_use]
    pub const fn info(&self) -> &SnapshotInfo {
        &self.source.info
    }

    /// The data of the next chunk, `None` after the last.
    fn next_chunk(&mut self) -> Result<Option<Bytes>, LogError> {
        let info = &self.source.info;
        if self.next == info.chunk_count {
            return Ok(None);
        }
        let (chunk, crc) = self.source.read(self.next)?;
        self.checksum = add_to_checksum(self.checksum, crc);
        self.next += 1;
        if self.next == info.chunk_count && self.checksum != info.checksum {
            let what = "the checksum of the whole snapshot does not fit";
            return Err(LogError::damaged(&self.source.path, 0, what));
        }
        Ok(Some(chunk.slice(CHUNK_HEAD_BYTES..)))
    }
}

impl io::Read for SnapshotReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.next_chunk()? {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let len = buf.len().min(self.rest.len());
        buf[..len].copy_from_slice(&self.rest.split_to(len));
        Ok(len)
    }
}
