//! Receiving a snapshot chunk by chunk, across lost connections and restarts.
//!
//! What arrives is written to a partial file whose name says which snapshot it will be. What
//! is synced on the way is no promise: after a restart the chunks are checked one by one, and the first
//! that is not whole is the next one wanted (pitfall M16).

use std::{path::PathBuf, sync::Arc};

use kontiki_disk::{DiskError, DiskFile};

use super::{
    Origin, SYNC_CHUNKS, SnapshotInfo, Snapshots,
    format::{CHUNK_BYTES, CHUNK_HEAD_BYTES, Header, add_to_checksum, check_chunk},
};
use crate::LogError;

/// What becomes of a snapshot that is offered.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a receiver that overlooks one must not compile")]
pub enum Receiving {
    /// It is here already, verified and durable.
    Here,
    /// To be written here.
    Wanted(SnapshotReceiver),
}

/// A snapshot that is being received. When it is dropped before it is finished, what was put
/// stays for the next attempt.
#[derive(Debug)]
pub struct SnapshotReceiver {
    snapshots: Snapshots,
    /// Only the newest receiver of a directory may write.
    turn: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    offer: SnapshotInfo,
    /// Known from the first chunk on: if there are several, it is as long as all but the last.
    header: Option<Header>,
    next: u64,
    bytes: u64,
    checksum: u32,
}

impl SnapshotReceiver {
    /// Goes on with the partial file at `path`, or makes it.
    pub(super) fn open(
        snapshots: &Snapshots,
        turn: u64,
        path: PathBuf,
        offer: SnapshotInfo,
    ) -> Result<Self, LogError> {
        let disk = snapshots.disk();
        let (file, is_old) = match disk.open(&path) {
            Ok(file) => (file, true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                (disk.create(&path).map_err(DiskError::making("create", &path))?, false)
            }
            Err(error) => return Err(LogError::io("open", &path)(error)),
        };
        let snapshots = snapshots.clone();
        let (header, next, bytes, checksum) = (None, 0, 0, 0);
        let mut receiver =
            Self { snapshots, turn, path, file, offer, header, next, bytes, checksum };
        if is_old {
            receiver.resume();
        }
        Ok(receiver)
    }

    /// Finds out how much of the partial file can be trusted. What cannot be read or does not
    /// check out is fetched again, so there is nothing to report.
    fn resume(&mut self) {
        let header = Header::read(&*self.file, &self.path);
        let Some(header) = header.ok().filter(|header| header.meta == self.offer.meta) else {
            return;
        };
        while self.next < self.offer.chunk_count {
            let mut chunk = vec![0; header.chunk_len(self.next, &self.offer)];
            let is_read = self.file.read_at(header.chunk_at(self.next), &mut chunk).is_ok();
            match self.check(Some(&header), self.next, &chunk) {
                Ok(crc) if is_read => self.count(&chunk, crc),
                _ => break,
            }
        }
        self.header = (0 < self.next).then_some(header);
    }

    /// The first chunk that is not here; their count when all are.
    #[must_use]
    pub const fn next_chunk(&self) -> u64 {
        self.next
    }

    /// Writes the next chunk, as [`SnapshotSource::chunk`](super::SnapshotSource::chunk) gave it.
    ///
    /// # Errors
    ///
    /// [`LogError::BadChunk`] if it is not the next one, or not what its sender wrote: nothing
    /// was written, and [`next_chunk`](Self::next_chunk) can be asked for once more.
    /// [`LogError::Replaced`] if another receiver was opened. All other errors are of the disk.
    pub fn put(&mut self, number: u64, chunk: &[u8]) -> Result<(), LogError> {
        self.snapshots.check_turn(self.turn)?;
        let crc = self
            .check(self.header.as_ref(), number, chunk)
            .map_err(|what| LogError::BadChunk { number, what })?;
        let header = match self.header.take() {
            Some(header) => header,
            None => self.write_header(chunk)?,
        };
        let result = self.file.write_at(header.chunk_at(number), chunk);
        self.header = Some(header);
        result.map_err(DiskError::making("write", &self.path))?;
        self.count(chunk, crc);
        if self.next.is_multiple_of(SYNC_CHUNKS)
            && let Err(error) = self.file.sync_data()
        {
            // The next one proves nothing about the same bytes: another attempt begins anew.
            drop(self.snapshots.disk().remove(&self.path));
            return Err(DiskError::io("sync", &self.path)(error).into());
        }
        Ok(())
    }

    /// The checksum of a chunk that is the next one and intact.
    fn check(
        &self,
        header: Option<&Header>,
        number: u64,
        chunk: &[u8],
    ) -> Result<u32, &'static str> {
        if number != self.next || self.offer.chunk_count <= number {
            return Err("it is not the next one");
        }
        let is_last = number + 1 == self.offer.chunk_count;
        let bytes = self.bytes + chunk.len() as u64;
        let fits = match header {
            Some(header) => chunk.len() == header.chunk_len(number, &self.offer),
            None => is_last || CHUNK_HEAD_BYTES < chunk.len(),
        };
        if !fits || self.offer.bytes < bytes || is_last != (self.offer.bytes == bytes) {
            return Err("it has another length than was offered");
        }
        check_chunk(self.offer.meta.last, number, chunk)
    }

    fn count(&mut self, chunk: &[u8], crc: u32) {
        self.next += 1;
        self.bytes += chunk.len() as u64;
        self.checksum = add_to_checksum(self.checksum, crc);
    }

    fn write_header(&self, first: &[u8]) -> Result<Header, LogError> {
        let is_only = self.offer.chunk_count == 1;
        let chunk_bytes = if is_only { CHUNK_BYTES } else { first.len() - CHUNK_HEAD_BYTES };
        let (header, bytes) = Header::encode(&self.offer.meta, chunk_bytes);
        self.file.write_at(0, &bytes).map_err(DiskError::making("write", &self.path))?;
        Ok(header)
    }

    /// Verifies the whole and makes it durable under its name. Nothing of it counts before.
    ///
    /// # Errors
    ///
    /// [`LogError::Damaged`] if the whole is not what was offered, or chunks are missing. All
    /// other errors are of the disk. What was put stays if it is not to blame.
    pub fn finish(self) -> Result<SnapshotInfo, LogError> {
        self.snapshots.check_turn(self.turn)?;
        let result = self.complete();
        let is_lost = |error: &LogError| {
            // After a failed sync the next one proves nothing about the same bytes.
            error.is_damage() || matches!(error, LogError::Io { op: "sync", .. })
        };
        if result.as_ref().is_err_and(is_lost) {
            drop(self.snapshots.disk().remove(&self.path));
        }
        result.map(|()| self.offer)
    }

    fn complete(&self) -> Result<(), LogError> {
        let is_whole = self.next == self.offer.chunk_count && self.checksum == self.offer.checksum;
        let Some(header) = self.header.as_ref().filter(|_| is_whole) else {
            let what = "the snapshot that was received is not the one that was offered";
            return Err(LogError::damaged(&self.path, 0, what));
        };
        let trailer = header.encode_trailer(&self.offer);
        let at = header.len + self.offer.bytes;
        self.file.write_at(at, &trailer).map_err(DiskError::making("write", &self.path))?;
        // An attempt of another length may have left more than that.
        self.file
            .set_len(at + trailer.len() as u64)
            .map_err(DiskError::making("cut", &self.path))?;
        self.file.sync_data().map_err(DiskError::io("sync", &self.path))?;
        self.snapshots.publish(&self.file, &self.path, &self.offer, Origin::Received)
    }
}
