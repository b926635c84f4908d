//! The data directories of the peers, remembered: one that comes back with another directory
//! has forgotten what it promised, and must not vote under its old name (pitfall M7).
//!
//! Layout: `docs/log-format.md`, "peers".

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use kontiki_disk::{ByteReader, Disk, SmallFile};
use kontiki_raft::{NodeId, StoreId};

use crate::{LogError, codec::put_u64};

const MAGIC: [u8; 8] = *b"KTKPEERS";

/// Which data directory each peer was seen with first.
#[derive(Debug)]
pub struct KnownPeers {
    disk: Arc<dyn Disk>,
    file: SmallFile,
    stores: BTreeMap<NodeId, StoreId>,
}

/// A peer has another data directory than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{node} came back with another data directory (store {found:x}, was {known:x}): it was wiped \
     and has forgotten its votes. Bring the old directory back, or replace it by a new member",
    found = found.get(),
    known = known.get()
)]
pub struct StoreChanged {
    /// The peer.
    pub node: NodeId,
    /// What it had.
    pub known: StoreId,
    /// What it has.
    pub found: StoreId,
}

/// Why a peer is not let in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// It was wiped.
    #[error(transparent)]
    StoreChanged(#[from] StoreChanged),
    /// It is new and cannot be remembered.
    #[error("a peer's data directory cannot be remembered: {0}")]
    NotRemembered(#[from] LogError),
}

impl KnownPeers {
    /// Reads the file in `dir`, if there is one.
    ///
    /// # Errors
    ///
    /// [`LogError::Damaged`] if it is not what was written.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, LogError> {
        let file = SmallFile::new(dir.join("peers"), MAGIC);
        let stores = match file.read(&*disk)? {
            None => BTreeMap::new(),
            Some(content) => decode(&content)
                .ok_or_else(|| LogError::damaged(file.path(), 0, "it does not hold peers"))?,
        };
        // What is seen here may be lost by the next crash, if an earlier life died in time.
        disk.sync_dir(dir).map_err(LogError::io("sync", dir))?;
        Ok(Self { disk, file, stores })
    }

    /// Lets in a peer that has the data directory that it had before, and remembers one that
    /// was never seen, durably before this returns.
    ///
    /// # Errors
    ///
    /// [`PeerError::StoreChanged`] if it has another one, [`PeerError::NotRemembered`] if the
    /// file cannot be written.
    pub fn check_or_remember(&mut self, node: NodeId, found: StoreId) -> Result<(), PeerError> {
        match self.stores.get(&node) {
            Some(&known) if known == found => Ok(()),
            Some(&known) => Err(StoreChanged { node, known, found }.into()),
            None => {
                let mut stores = self.stores.clone();
                stores.insert(node, found);
                self.file.replace(&*self.disk, &encode(&stores)).map_err(LogError::from)?;
                self.stores = stores;
                Ok(())
            }
        }
    }

    /// What a peer was seen with.
    #[must_use]
    pub fn store(&self, node: NodeId) -> Option<StoreId> {
        self.stores.get(&node).copied()
    }
}

/// Forgets all peers, durably.
pub(crate) fn forget(disk: &dyn Disk, dir: &Path) -> Result<(), LogError> {
    let path = dir.join("peers");
    match disk.remove(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => result.map_err(LogError::io("remove", &path))?,
    }
    disk.sync_dir(dir).map_err(LogError::io("sync", dir))
}

fn encode(stores: &BTreeMap<NodeId, StoreId>) -> Vec<u8> {
    let mut buf = Vec::with_capacity(16 * stores.len());
    for (node, store) in stores {
        put_u64(&mut buf, node.get());
        put_u64(&mut buf, store.get());
    }
    buf
}

fn decode(content: &[u8]) -> Option<BTreeMap<NodeId, StoreId>> {
    let mut reader = ByteReader::new(content);
    let mut stores = BTreeMap::new();
    while !reader.rest().is_empty() {
        stores.insert(NodeId(reader.u64()?), StoreId(reader.u64()?));
    }
    Some(stores)
}
