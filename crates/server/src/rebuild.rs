//! After a quorum was lost for good: a cluster of one, made of what one server has.
//!
//! Offline, and the last resort. The server keeps its id, its name and its data; everyone else is
//! gone, and comes back as a new member with an empty directory.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki::{
    Disk, EntryId, ForceReport, ForceRequest, Identity, LogError, LogOptions, RealDisk,
    force_single_member,
};

use kontiki_store::{OpenError, Store, StoreOptions};

use crate::{config::host_and_port, repair};

/// What is to be done.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Rebuild {
    /// The server's `--data-dir`.
    pub data_dir: PathBuf,
    /// Where servers that join will find it; as before if there is none.
    pub peer_url: Option<String>,
    /// Go on though entries of the log are damaged and lost.
    pub accept_damage: bool,
}

/// Why a cluster was not rebuilt. Nothing was changed, unless the log says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    /// There is no server in the directory.
    #[error("{dir} is not the data directory of a server", dir = dir.display())]
    NoServer {
        /// The directory.
        dir: PathBuf,
    },
    /// The URL cannot be one.
    #[error("{url:?} {why}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Its log is damaged, and that was not accepted.
    #[error(
        "its log is damaged; if no other server has what is missing, --accept-damaged-log goes on \
         without it, and keeps what the store has of it"
    )]
    Damaged(#[source] LogError),
    /// Its store cannot be opened, most often because the server runs.
    #[error("cannot open the store")]
    Store(#[source] OpenError),
    /// The log refused, most often because the server runs.
    #[error("cannot rebuild the log")]
    Log(#[source] LogError),
}

/// Whom a data directory belongs to.
#[derive(Clone, Debug)]
pub struct Survivor(Identity);

impl fmt::Display for Survivor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { node, cluster, genesis, .. } = &self.0;
        let members = genesis.members.len();
        write!(f, "server {node} of cluster {cluster:016x}, which began with {members} members")
    }
}

/// What was done, to be shown to the person who asked for it.
#[derive(Clone, Debug)]
pub struct Rebuilt(ForceReport);

impl fmt::Display for Rebuilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Rebuild {
    /// The rebuilding of the cluster from what is in `data_dir`.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        Self { data_dir, ..Self::default() }
    }

    /// Whom the directory belongs to. Changes nothing.
    ///
    /// # Errors
    ///
    /// When it belongs to nobody.
    pub fn survivor(&self) -> Result<Survivor, RebuildError> {
        let dir = self.log_dir();
        let found = Identity::of_dir(&RealDisk, &dir).map_err(RebuildError::Log)?;
        found.map(Survivor).ok_or_else(|| RebuildError::NoServer { dir: self.data_dir.clone() })
    }

    /// Makes the server the only member of a new cluster. Blocks.
    ///
    /// # Errors
    ///
    /// When there is no server, when it runs, or when its log is damaged and that was not
    /// accepted.
    pub fn run(&self) -> Result<Rebuilt, RebuildError> {
        self.survivor()?;
        let address = match &self.peer_url {
            None => None,
            Some(url) => {
                let address = host_and_port(url);
                let address = address.map_err(|why| RebuildError::Url { url: url.clone(), why })?;
                Some(address.into())
            }
        };
        let request = ForceRequest {
            // Random, as the seed of a hash map is.
            cluster: RandomState::new().hash_one(&self.data_dir),
            address,
            accept_loss: self.accept_damage,
            applied: self.applied()?,
            log: LogOptions::default(),
        };
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let report = force_single_member(&disk, &self.log_dir(), &request);
        report.map(Rebuilt).map_err(|error| match error {
            LogError::Damaged { .. } if !self.accept_damage => RebuildError::Damaged(error),
            error => RebuildError::Log(error),
        })
    }

    /// What the store has applied. One that is damaged or not there is filled from the log.
    fn applied(&self) -> Result<Option<EntryId>, RebuildError> {
        let dir = repair::store_dir(&self.data_dir);
        if !dir.is_dir() {
            return Ok(None);
        }
        let options = StoreOptions { value_cache_bytes: 0, ..StoreOptions::default() };
        match Store::open(&dir, options) {
            Ok(store) => {
                let (index, term) = store.applied();
                Ok(Some(EntryId::new(index, term)))
            }
            Err(OpenError::Damaged { .. }) => Ok(None),
            Err(error) => Err(RebuildError::Store(error)),
        }
    }

    fn log_dir(&self) -> PathBuf {
        log_dir(&self.data_dir)
    }
}

/// Where a server keeps its log.
pub(crate) fn log_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("member").join("raft")
}

impl From<RebuildError> for io::Error {
    fn from(error: RebuildError) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_nobody_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = Rebuild::new(dir.path().to_owned()).run().unwrap_err();
        assert!(refused.to_string().ends_with("is not the data directory of a server"));
    }
}
