//! Making a snapshot file: under a temporary name until all of it is durable and was read back.

use std::{io, mem, path::PathBuf, sync::Arc};

use kontiki_disk::{DiskError, DiskFile};
use kontiki_raft::SnapshotMeta;

use super::{
    Origin, SYNC_CHUNKS, SnapshotInfo, Snapshots,
    format::{CHUNK_HEAD_BYTES, Header, add_to_checksum, finish_chunk},
};
use crate::LogError;

/// Takes the bytes of a snapshot. Nothing counts before [`finish`](Self::finish); when it is
/// dropped before, or has failed, nothing is left of it.
#[derive(Debug)]
pub struct SnapshotFileWriter {
    snapshots: Snapshots,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    header: Header,
    /// The head of the chunk that is being filled, and its data so far.
    chunk: Vec<u8>,
    info: SnapshotInfo,
    is_finished: bool,
}

impl SnapshotFileWriter {
    pub(super) fn new(
        snapshots: &Snapshots,
        path: PathBuf,
        meta: &SnapshotMeta,
    ) -> Result<Self, LogError> {
        let file = snapshots.disk().create(&path).map_err(DiskError::making("create", &path))?;
        let (header, bytes) = Header::encode(meta, snapshots.chunk_bytes());
        let writer = Self {
            snapshots: snapshots.clone(),
            path,
            file,
            header,
            chunk: vec![0; CHUNK_HEAD_BYTES],
            info: SnapshotInfo { meta: meta.clone(), bytes: 0, chunk_count: 0, checksum: 0 },
            is_finished: false,
        };
        writer.write_at(0, &bytes)?; // dropped, and so removed, if that fails
        Ok(writer)
    }

    /// Makes the snapshot durable, reads it back, and gives it its name. It is the one with its
    /// index from then on; of older ones the newest is kept, for the case that this one rots.
    ///
    /// # Errors
    ///
    /// [`LogError::NoSpace`], or as the file system says; [`LogError::Damaged`] if what is read
    /// back is not what was written. Earlier snapshots are as they were, and the log takes no
    /// harm: try again later.
    pub fn finish(mut self) -> Result<SnapshotInfo, LogError> {
        if CHUNK_HEAD_BYTES < self.chunk.len() || self.info.chunk_count == 0 {
            self.write_chunk()?;
        }
        let trailer = self.header.encode_trailer(&self.info);
        self.write_at(self.header.len + self.info.bytes, &trailer)?;
        self.file.sync_data().map_err(DiskError::making("sync", &self.path))?;
        let info = self.info.clone();
        self.snapshots.publish(&self.file, &self.path, &info, Origin::Own)?;
        self.is_finished = true;
        Ok(info)
    }

    /// Takes a part of `bytes`, at least one if there is one, and writes when a chunk is full.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, LogError> {
        let room = CHUNK_HEAD_BYTES + self.header.chunk_bytes - self.chunk.len();
        let taken = room.min(bytes.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if taken == room && 0 < taken {
            self.write_chunk()?;
        }
        Ok(taken)
    }

    fn write_chunk(&mut self) -> Result<(), LogError> {
        let number = self.info.chunk_count;
        let mut chunk = mem::take(&mut self.chunk);
        let crc = finish_chunk(self.info.meta.last, number, &mut chunk);
        self.write_at(self.header.chunk_at(number), &chunk)?;
        self.info.chunk_count += 1;
        self.info.bytes += chunk.len() as u64;
        self.info.checksum = add_to_checksum(self.info.checksum, crc);
        if self.info.chunk_count.is_multiple_of(SYNC_CHUNKS) {
            self.file.sync_data().map_err(DiskError::making("sync", &self.path))?;
        }
        chunk.truncate(CHUNK_HEAD_BYTES);
        self.chunk = chunk;
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), LogError> {
        let result = self.file.write_at(offset, bytes);
        Ok(result.map_err(DiskError::making("write", &self.path))?)
    }
}

impl io::Write for SnapshotFileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.take(bytes)?)
    }

    /// Does nothing: what is not finished is not there.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for SnapshotFileWriter {
    fn drop(&mut self) {
        if !self.is_finished {
            // What cannot be removed is removed at the next start.
            drop(self.snapshots.disk().remove(&self.path));
        }
    }
}
