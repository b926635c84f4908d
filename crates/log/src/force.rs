//! The last resort after a quorum was lost for good: what one server has becomes a cluster of
//! its own.
//!
//! What Raft promises ends here, and a person decides it: entries that this server holds and
//! that were never committed are declared committed, and entries that others had committed
//! beyond its log are lost. The new cluster has a new id, so that no server of the old one,
//! should it ever come back, takes the new one for its own.
//!
//! The identity is changed first. A crash after that leaves a member of a cluster that nobody
//! else belongs to, with the old membership: it can do nothing until this is done again. The
//! other way round it would be a sole ruler under the name of the old cluster.

use std::{fmt, ops::RangeInclusive, path::Path, sync::Arc};

use kontiki_disk::Disk;
use kontiki_raft::{
    Entry, EntryId, HardState, Index, Member, MemberRole, Membership, NodeId, Payload,
    SnapshotMeta, WriteBatch,
};

use crate::{
    Identity, IdentityRequest, Log, LogError, LogOptions, OnDamage, Opened, identity, log, peers,
};

/// What the cluster of one is to be.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "each field is a decision of the caller")]
pub struct ForceRequest {
    /// The id of the new cluster: random, and not that of the old one.
    pub cluster: u64,
    /// Where the server is reached from now on; as before if there is none.
    pub address: Option<Arc<str>>,
    /// Go on though entries of the log are damaged and lost.
    pub accept_loss: bool,
    /// What the state machine has applied and will not forget, if it keeps its state on disk. If
    /// the log ends before that it begins anew after it, and nothing of the state is lost.
    pub applied: Option<EntryId>,
    /// As the server opens its log.
    pub log: LogOptions,
}

/// What became of the log of a lost quorum. Its `Display` is to be shown to who asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForceReport {
    /// The server.
    pub node: NodeId,
    /// The id of the cluster that it left.
    pub old_cluster: u64,
    /// The id of its own.
    pub new_cluster: u64,
    /// The last entry that it had. What others had committed beyond is lost.
    pub last: EntryId,
    /// Up to here the log was known to be committed.
    pub commit: Index,
    /// Entries between the two. They count as committed from now on, though some of them may
    /// never have been, and nobody may have been told of them.
    pub declared_committed: u64,
    /// Entries that were damaged and are lost.
    pub damaged: Option<RangeInclusive<Index>>,
    /// The state machine has this, which is beyond the end of the log, so the log begins here.
    pub begins_after: Option<EntryId>,
    /// The members that are left behind.
    pub left_behind: Vec<NodeId>,
    /// The entry that makes it a cluster of one.
    pub membership: EntryId,
}

impl fmt::Display for ForceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, old_cluster, new_cluster, last, commit, declared_committed, .. } = self;
        writeln!(
            f,
            "{node} left cluster {old_cluster:016x} and is the only member of {new_cluster:016x}."
        )?;
        writeln!(
            f,
            "Its log ends at {last} and was known to be committed up to index {commit}: \
             {declared_committed} entries count as committed now that may never have been \
             acknowledged."
        )?;
        write!(f, "What other servers acknowledged beyond {last} is lost.")?;
        if let Some(damaged) = &self.damaged {
            let (first, last) = (damaged.start(), damaged.end());
            write!(f, "\nEntries {first} to {last} were damaged and are lost, too.")?;
        }
        if let Some(at) = &self.begins_after {
            write!(f, "\nThe state up to {at} is whole and is kept; the log begins after it.")?;
        }
        Ok(())
    }
}

/// Makes the server whose data directory is `dir` the only member of a new cluster.
///
/// For a server that is stopped, when a quorum of its cluster will never come back. To be done
/// on one server only, the one with the longest log: the others join it as new members, with
/// empty data directories. It can be done again if it was interrupted.
///
/// # Errors
///
/// [`LogError::Locked`] if the server is running, [`LogError::Damaged`] if entries are damaged
/// and that is not accepted, and as [`Log::open`] and [`Log::write`]. If the identity was
/// changed already the server cannot do anything before this succeeds.
pub fn force_single_member(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    request: &ForceRequest,
) -> Result<ForceReport, LogError> {
    let Some(identity) = Identity::of_dir(&**disk, dir)? else {
        return Err(LogError::NoIdentity { path: dir.join("identity") });
    };
    let (mut log, opened) = open(disk, dir, &identity, request)?;
    let recovered = &opened.recovered;
    if let Some(damaged) = recovered.damaged.as_ref().filter(|_| !request.accept_loss) {
        let what = format!("entries {} to {} are lost", damaged.start(), damaged.end());
        return Err(LogError::damaged(&dir.join("damaged"), 0, what).at(*damaged.start()));
    }
    let old = recovered.memberships.last().map(|(_, membership)| Arc::clone(membership));
    let old = old.unwrap_or_default();
    let membership = alone(&identity, &old, request);
    let begins_after = request.applied.filter(|at| recovered.last.index < at.index);
    let before = begins_after.unwrap_or(recovered.last);
    let term = recovered.hard_state.term.max(recovered.last.term).max(before.term).next();
    let at = EntryId { index: before.index.next(), term };
    let report = ForceReport {
        node: identity.node,
        old_cluster: identity.cluster,
        new_cluster: request.cluster,
        last: recovered.last,
        commit: recovered.hard_state.commit,
        declared_committed: recovered
            .last
            .index
            .get()
            .saturating_sub(recovered.hard_state.commit.max(recovered.log_start.index).get()),
        damaged: recovered.damaged.clone(),
        begins_after,
        left_behind: old.replicas().into_iter().filter(|&id| id != identity.node).collect(),
        membership: at,
    };

    let new = Identity { cluster: request.cluster, ..identity };
    identity::replace(&**disk, dir, &new)?;
    peers::forget(&**disk, dir)?;
    let hard_state = HardState { term, voted_for: Some(new.node), commit: at.index };
    log.write(vec![WriteBatch {
        hard_state: Some(hard_state),
        entries: vec![Entry::new(at, Payload::Membership(Arc::new(membership)))],
        is_repaired: recovered.damaged.is_some(),
        reset_to: begins_after.map(|last| SnapshotMeta { last, membership: old }),
    }])?;
    log.sync()?;
    Ok(report)
}

fn open(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    identity: &Identity,
    request: &ForceRequest,
) -> Result<(Log, Opened), LogError> {
    let on_damage = if request.accept_loss { OnDamage::SetAside } else { OnDamage::Refuse };
    let options = LogOptions { on_damage, ..request.log.clone() };
    let lock = log::lock(&**disk, dir)?;
    let itself = IdentityRequest {
        cluster: identity.cluster,
        node: identity.node,
        genesis: identity.genesis.clone(),
        new_store: identity.store,
    };
    Log::open_locked(Arc::clone(disk), dir, lock, Some(identity.clone()), &itself, &options)
}

/// The membership of a cluster of one. No id is given twice, not even those of members that
/// nobody will hear of again.
fn alone(identity: &Identity, old: &Membership, request: &ForceRequest) -> Membership {
    let known = old.member(identity.node).or_else(|| identity.genesis.member(identity.node));
    let address = request.address.clone().or_else(|| known.map(|member| member.address.clone()));
    let member = Member {
        id: identity.node,
        role: MemberRole::Voter,
        address: address.unwrap_or_default(),
        store: Some(identity.store),
        context: known.map(|member| member.context.clone()).unwrap_or_default(),
    };
    let highest = old.replicas().into_iter().chain([identity.node]).max().unwrap_or_default();
    let next_id = old.next_id.max(NodeId(highest.get() + 1));
    Membership { members: vec![member], outgoing: Vec::new(), next_id }
}
