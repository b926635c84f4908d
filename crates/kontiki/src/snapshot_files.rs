//! The snapshot files in the data directory, as the node and its transport use them.

use std::{
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use kontiki_disk::Disk;
use kontiki_log::{LogError, Receiving, SnapshotFileWriter, SnapshotInfo, SnapshotReceiver};
use kontiki_raft::{Bytes, EntryId, Index, SnapshotMeta};

use crate::{
    Reception, SnapshotOffer, SnapshotSink, SnapshotSource, SnapshotStore,
    snapshots::{Kept, SnapshotFile, SnapshotFiles},
};

/// Snapshots in `dir/snapshot`.
#[derive(Debug)]
pub(crate) struct DirSnapshots(kontiki_log::Snapshots);

impl DirSnapshots {
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, LogError> {
        Ok(Self(kontiki_log::Snapshots::open(disk, dir)?))
    }
}

impl SnapshotFiles for DirSnapshots {
    fn newest(&self) -> Option<SnapshotMeta> {
        self.0.newest().map(|info| info.meta)
    }

    fn recover(
        &self,
        is_usable: &mut dyn FnMut(&SnapshotMeta) -> bool,
    ) -> io::Result<Option<SnapshotMeta>> {
        let found = self.0.newest_intact(&mut *is_usable)?.map(|info| info.meta);
        for damaged in self.0.damaged() {
            let path = damaged.path.display();
            tracing::error!(%path, what = damaged.what, "a snapshot is damaged and set aside");
        }
        for info in self.0.list() {
            // It was received, and the log was not reset to it before the crash.
            if !is_usable(&info.meta) {
                tracing::info!(at = %info.meta.last, "a snapshot that the log does not reach goes");
                self.0.remove(info.meta.last)?;
            }
        }
        Ok(found)
    }

    fn settle(&self, durable: Index) {
        self.0.settle(durable);
    }

    fn create(&self, meta: &SnapshotMeta) -> io::Result<Box<dyn SnapshotFile>> {
        Ok(Box::new(Writer(self.0.begin(meta)?)))
    }

    fn open(&self, last: EntryId) -> io::Result<Kept> {
        let source = self.0.source(last)?;
        Ok(Box::new(move || Box::new(source.reader())))
    }
}

struct Writer(SnapshotFileWriter);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl SnapshotFile for Writer {
    fn finish(self: Box<Self>) -> io::Result<()> {
        Ok(self.0.finish().map(|_| ())?)
    }
}

impl SnapshotStore for DirSnapshots {
    fn source(&self, last: EntryId) -> io::Result<Box<dyn SnapshotSource>> {
        let source = self.0.source(last)?;
        let offer = offer_of(source.info());
        Ok(Box::new(Source { snapshots: self.0.clone(), source, offer }))
    }

    fn receive(&self, offer: &SnapshotOffer) -> io::Result<Reception> {
        let SnapshotOffer { meta, bytes, chunk_count, checksum } = offer.clone();
        let info = SnapshotInfo { meta, bytes, chunk_count, checksum };
        Ok(match self.0.receive(&info)? {
            Receiving::Here => Reception::Here,
            Receiving::Wanted(receiver) => Reception::Wanted(Box::new(Sink(receiver))),
        })
    }
}

fn offer_of(info: &SnapshotInfo) -> SnapshotOffer {
    let SnapshotInfo { meta, bytes, chunk_count, checksum } = info.clone();
    SnapshotOffer { meta, bytes, chunk_count, checksum }
}

#[derive(Debug)]
struct Source {
    snapshots: kontiki_log::Snapshots,
    source: kontiki_log::SnapshotSource,
    offer: SnapshotOffer,
}

impl SnapshotSource for Source {
    fn offer(&self) -> &SnapshotOffer {
        &self.offer
    }

    fn chunk(&mut self, number: u64) -> io::Result<Bytes> {
        self.source.chunk(number).map_err(|error| {
            // A file that rots must not be offered again and again.
            if let Err(error) = self.snapshots.verify(self.offer.meta.last) {
                tracing::error!(at = %self.offer.meta.last, %error, "a snapshot cannot be sent");
            }
            error.into()
        })
    }
}

#[derive(Debug)]
struct Sink(SnapshotReceiver);

impl SnapshotSink for Sink {
    fn next_chunk(&self) -> u64 {
        self.0.next_chunk()
    }

    fn put(&mut self, number: u64, chunk: &[u8]) -> io::Result<()> {
        Ok(self.0.put(number, chunk)?)
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        Ok(self.0.finish().map(|_| ())?)
    }
}
