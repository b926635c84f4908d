//! A node that has been added asks the others who it is: it knows no cluster and no id yet.

use std::{sync::Arc, time::Duration};

use kontiki_raft::{Membership, NodeId};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::handshake::{self, HandshakeError, Introduction};
use crate::error::with_causes;

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// Its cluster.
    pub cluster: u64,
    /// Its id.
    pub id: NodeId,
    /// Everyone, as the peer that answered knows them.
    pub membership: Arc<Membership>,
}

/// Why a node could not learn who it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoverError {
    /// None of the peers could be asked.
    #[error("none of {peers} answers at its peer address: {why}")]
    Unreachable {
        /// Whom it asked.
        peers: String,
        /// What happened with the last of them.
        why: String,
    },
    /// The cluster does not know it.
    #[error(
        "no member of the cluster has the peer address {address}: add it first (with \
         `kontiki members add`, or a change of the membership), then start it"
    )]
    NotAMember {
        /// The address that it asked for.
        address: String,
    },
    /// The member at its address has a data directory, so it is not this one.
    #[error(
        "the member at {address} is {id}, and it has run with another data directory: bring that \
         back, or replace {id} by a new member"
    )]
    Bound {
        /// The address that it asked for.
        address: String,
        /// Whose it is.
        id: NodeId,
    },
    /// The peers that were named are not of one cluster.
    #[error("the peers belong to different clusters ({0:016x} and {1:016x})")]
    Clusters(u64, u64),
}

/// One question, and so a round of them, takes at most this long.
const ROUND_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after a round that has brought nothing.
const ROUND_PAUSE: Duration = Duration::from_millis(250);

/// Asks `peers` who is at `own_address`. A member that was just added may not be known to all of
/// them yet, so they are asked again until `patience` ends, once at least; of several answers the newest id counts.
///
/// # Errors
///
/// When `patience` has ended, and at once when the peers belong to different clusters.
///
/// # Cancel safety
///
/// Nothing is left when the future is dropped.
pub async fn discover(
    peers: &[String],
    own_address: &str,
    patience: Duration,
) -> Result<Discovered, DiscoverError> {
    let end = Instant::now() + patience;
    loop {
        let error = match round(peers, own_address).await {
            Err(error @ DiscoverError::Clusters(..)) => return Err(error),
            Err(error) => error,
            Ok(discovered) => return Ok(discovered),
        };
        if end <= Instant::now() + ROUND_PAUSE {
            return Err(error);
        }
        tracing::info!(error = with_causes(&error), "not known to the cluster yet, asking again");
        sleep(ROUND_PAUSE).await;
    }
}

/// Asks everyone once, at the same time.
async fn round(peers: &[String], own_address: &str) -> Result<Discovered, DiscoverError> {
    let address = || own_address.to_owned();
    let mut questions = JoinSet::new();
    for peer in peers {
        let (peer, address) = (peer.clone(), address());
        questions.spawn(async move {
            let asked = timeout(ROUND_TIMEOUT, ask(&peer, &address)).await;
            asked.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
        });
    }
    let mut found: Option<Discovered> = None;
    let mut cluster = None;
    let (mut is_unknown, mut bound, mut why) = (false, None, "there is nobody to ask".to_owned());
    while let Some(answer) = questions.join_next().await {
        let introduction = match answer {
            Ok(Ok(introduction)) => introduction,
            Ok(Err(error)) => {
                why = with_causes(&error);
                continue;
            }
            Err(_) => continue, // it panicked, and said so
        };
        let theirs = introduction.cluster();
        let other = *cluster.get_or_insert(theirs);
        if other != theirs {
            return Err(DiscoverError::Clusters(other, theirs));
        }
        match introduction {
            Introduction::Member { cluster, id, membership } => {
                if found.as_ref().is_none_or(|found| found.id < id) {
                    found = Some(Discovered { cluster, id, membership });
                }
            }
            Introduction::Unknown { .. } => is_unknown = true,
            Introduction::Bound { id, .. } => bound = bound.max(Some(id)),
        }
    }
    match (found, bound) {
        // Who knows a later one at this address knows better.
        (Some(found), bound) if bound < Some(found.id) => Ok(found),
        (_, Some(id)) => Err(DiscoverError::Bound { address: address(), id }),
        _ if is_unknown => Err(DiscoverError::NotAMember { address: address() }),
        _ => Err(DiscoverError::Unreachable { peers: peers.join(", "), why }),
    }
}

async fn ask(peer: &str, address: &str) -> Result<Introduction, HandshakeError> {
    let mut stream = TcpStream::connect(peer).await?;
    handshake::ask(&mut stream, address).await
}
