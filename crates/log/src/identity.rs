//! Whose data directory it is: a small file, written once.
//!
//! Layout: `docs/log-format.md`, "identity".

use std::path::{Path, PathBuf};

use kontiki_disk::{ByteReader, Disk, SEGMENT_HEADER_BYTES, SmallFile};
use kontiki_raft::{Membership, NodeId, StoreId};

use crate::{
    LogError,
    codec::{decode_membership, encode_membership, put_u64},
    segment,
};

const MAGIC: [u8; 8] = *b"KTKIDENT";

/// Who opens a data directory.
#[derive(Clone, Debug)]
pub struct IdentityRequest {
    /// A hash of what the cluster was started with: tells one cluster from another.
    pub cluster: u64,
    /// The server's id.
    pub node: NodeId,
    /// The first membership of the cluster. Used when the directory is new.
    pub genesis: Membership,
    /// A random number for the directory. Used when it is new.
    pub new_store: StoreId,
}

/// Whose a data directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// A hash of what the cluster was started with.
    pub cluster: u64,
    /// The server's id.
    pub node: NodeId,
    /// Made with the directory: tells a wiped one from the one that was there before.
    pub store: StoreId,
    /// The first membership of the cluster.
    pub genesis: Membership,
}

impl Identity {
    /// Whose the data directory `dir` is, `None` if it is new or not there. Changes nothing.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn of_dir(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, LogError> {
        let file = file(dir);
        let Some(content) = file.read(disk)? else { return Ok(None) };
        let identity = decode(&content)
            .ok_or_else(|| LogError::damaged(file.path(), 0, "it does not hold an identity"))?;
        Ok(Some(identity))
    }
}

/// The identity of a directory, `None` if it is new.
pub(crate) fn read(
    disk: &dyn Disk,
    dir: &Path,
    request: &IdentityRequest,
) -> Result<Option<Identity>, LogError> {
    let Some(identity) = Identity::of_dir(disk, dir)? else { return Ok(None) };
    if (identity.cluster, identity.node) != (request.cluster, request.node) {
        return Err(LogError::WrongIdentity {
            path: file(dir).path().to_owned(),
            found: name(identity.node, identity.cluster),
            asked: name(request.node, request.cluster),
        });
    }
    Ok(Some(identity))
}

fn name(node: NodeId, cluster: u64) -> String {
    format!("{node} of cluster {cluster:016x}")
}

/// Makes the directory the requester's for ever.
pub(crate) fn write(
    disk: &dyn Disk,
    dir: &Path,
    request: &IdentityRequest,
) -> Result<Identity, LogError> {
    let identity = Identity {
        cluster: request.cluster,
        node: request.node,
        store: request.new_store,
        genesis: request.genesis.clone(),
    };
    replace(disk, dir, &identity)?;
    Ok(identity)
}

/// Makes the directory that of another cluster.
pub(crate) fn replace(disk: &dyn Disk, dir: &Path, identity: &Identity) -> Result<(), LogError> {
    Ok(file(dir).replace(disk, &encode(identity))?)
}

/// Removes the first segment that an interrupted start left without an identity. Anything more
/// is a log whose identity was lost.
pub(crate) fn remove_unfinished(
    disk: &dyn Disk,
    dir: &Path,
    segments_dir: &Path,
) -> Result<(), LogError> {
    let names = disk.list(segments_dir).map_err(LogError::io("list", segments_dir))?;
    let numbers = segment::numbers(&names);
    let lost = || {
        let what = "it is missing, but there is a log";
        LogError::damaged(file(dir).path(), 0, what)
    };
    let path: PathBuf = match numbers[..] {
        [] => return Ok(()),
        [1] => segment::path(segments_dir, 1),
        _ => return Err(lost()),
    };
    let segment = disk.open(&path).map_err(LogError::io("open", &path))?;
    let mut first_record = [0; 8];
    if SEGMENT_HEADER_BYTES + 8 <= segment.len().map_err(LogError::io("measure", &path))? {
        segment
            .read_at(SEGMENT_HEADER_BYTES, &mut first_record)
            .map_err(LogError::io("read", &path))?;
    }
    if first_record != [0; 8] {
        return Err(lost());
    }
    disk.remove(&path).map_err(LogError::io("remove", &path))
}

fn file(dir: &Path) -> SmallFile {
    SmallFile::new(dir.join("identity"), MAGIC)
}

fn encode(identity: &Identity) -> Vec<u8> {
    let mut buf = Vec::new();
    put_u64(&mut buf, identity.cluster);
    put_u64(&mut buf, identity.node.get());
    put_u64(&mut buf, identity.store.get());
    encode_membership(&identity.genesis, &mut buf);
    buf
}

fn decode(content: &[u8]) -> Option<Identity> {
    let mut reader = ByteReader::new(content);
    Some(Identity {
        cluster: reader.u64()?,
        node: NodeId(reader.u64()?),
        store: StoreId(reader.u64()?),
        genesis: decode_membership(reader.rest())?,
    })
}
