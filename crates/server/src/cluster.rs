//! The service `Cluster`: who the members are, and changes of them.
//!
//! A server that is added is a learner first, whatever was asked for, and becomes a voter by
//! itself once it has caught up: one that cannot be reached never counts, so adding it costs
//! the cluster nothing. A change may be asked of any member. While another one is under way it
//! waits; it is planned on the membership in force, and planned anew when that has changed
//! meanwhile.

use std::{collections::BTreeSet, time::Duration};

use kontiki::{Change, ChangeSet, ProposeError, Rejection};
use tokio::time::{self, Instant};

use crate::{
    config,
    grpc::Received,
    members::{self, Member},
    proto::{etcdserverpb as pb, kontikipb},
    service::Service,
    status::{self, Failure, Refusal},
};

/// As many learners may wait to be promoted by hand: etcd's `--max-learners`.
const LEARNERS_MAX: usize = 1;

/// How long to wait before a change is planned anew.
const REPLAN_PAUSE: Duration = Duration::from_millis(10);

/// For how long a change waits for voters that it needs and that are not there, and how often it
/// asks. A guess: longer than a server that is well takes to answer a heartbeat.
const PATIENCE: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// `Cluster.MemberList`. The revision of its header is unset, as in etcd.
pub(crate) async fn member_list(
    service: &Service,
    call: Received<pb::MemberListRequest>,
) -> Result<pb::MemberListResponse, Failure> {
    if call.message.linearizable {
        service.raft.read_barrier().await?;
    }
    let header = Some(service.header(0));
    Ok(pb::MemberListResponse { header, members: service.roster.list() })
}

/// `Cluster.MemberAdd`.
pub(crate) async fn member_add(
    service: &Service,
    call: Received<pb::MemberAddRequest>,
) -> Result<pb::MemberAddResponse, Failure> {
    let pb::MemberAddRequest { peer_ur_ls, is_learner } = call.message;
    let peer_urls = checked_urls(&peer_ur_ls)?;
    let newcomer = service.roster.newcomer(peer_urls);
    change(service, |members| {
        refuse_used(members, &newcomer.peer_urls, None)?;
        if is_learner && LEARNERS_MAX <= members.iter().filter(|member| member.waits).count() {
            return Err(Refusal::TooManyLearners.into());
        }
        Ok(Change::AddLearner {
            address: members::address(&newcomer.peer_urls),
            context: service.roster.record(&newcomer),
            auto_promote: !is_learner,
        })
    })
    .await?;
    tracing::info!(id = %format_args!("{:x}", newcomer.id), peer_urls = ?newcomer.peer_urls,
        "added a member, as a learner");
    Ok(added(service, &newcomer))
}

/// `Cluster.MemberReplace` of our own service: a new server takes the place of a member, in one
/// step, once it has caught up.
pub(crate) async fn member_replace(
    service: &Service,
    call: Received<kontikipb::MemberReplaceRequest>,
) -> Result<pb::MemberAddResponse, Failure> {
    let kontikipb::MemberReplaceRequest { id, peer_urls } = call.message;
    let peer_urls = if peer_urls.is_empty() {
        service.roster.member(id).ok_or(Refusal::MemberNotFound)?.peer_urls
    } else {
        checked_urls(&peer_urls)?
    };
    let newcomer = service.roster.newcomer(peer_urls);
    change(service, |members| {
        let old = found(members, id)?;
        refuse_used(members, &newcomer.peer_urls, Some(id))?;
        Ok(Change::Replace {
            old: old.node,
            address: members::address(&newcomer.peer_urls),
            context: service.roster.record(&newcomer),
        })
    })
    .await?;
    tracing::info!(id = %format_args!("{:x}", newcomer.id), old = %format_args!("{id:x}"),
        "added a member that replaces another");
    Ok(added(service, &newcomer))
}

fn added(service: &Service, newcomer: &Member) -> pb::MemberAddResponse {
    pb::MemberAddResponse {
        header: Some(service.header(0)),
        member: service.roster.shown(newcomer.id),
        members: service.roster.list(),
    }
}

/// `Cluster.MemberRemove`.
pub(crate) async fn member_remove(
    service: &Service,
    call: Received<pb::MemberRemoveRequest>,
) -> Result<pb::MemberRemoveResponse, Failure> {
    let id = call.message.id;
    if service.roster.member(id).is_some_and(|member| !member.is_learner) {
        // The leader refuses to remove a voter that is needed because another is gone, and finds
        // out who is gone within this time.
        time::sleep(service.limits.election_timeout).await;
    }
    change(service, |members| Ok(Change::Remove(found(members, id)?.node))).await?;
    tracing::info!(id = %format_args!("{id:x}"), "removed a member");
    let header = Some(service.header(0));
    Ok(pb::MemberRemoveResponse { header, members: service.roster.list() })
}

/// `Cluster.MemberUpdate`: where the others find a member.
pub(crate) async fn member_update(
    service: &Service,
    call: Received<pb::MemberUpdateRequest>,
) -> Result<pb::MemberUpdateResponse, Failure> {
    let pb::MemberUpdateRequest { id, peer_ur_ls } = call.message;
    let peer_urls = checked_urls(&peer_ur_ls)?;
    change(service, |members| {
        let member = found(members, id)?;
        refuse_used(members, &peer_urls, Some(id))?;
        Ok(service.roster.update(&Member { peer_urls: peer_urls.clone(), ..member.clone() }))
    })
    .await?;
    let header = Some(service.header(0));
    Ok(pb::MemberUpdateResponse { header, members: service.roster.list() })
}

/// `Cluster.MemberPromote`.
pub(crate) async fn member_promote(
    service: &Service,
    call: Received<pb::MemberPromoteRequest>,
) -> Result<pb::MemberPromoteResponse, Failure> {
    let id = call.message.id;
    change(service, |members| {
        let member = found(members, id)?;
        if !member.is_learner {
            return Err(Refusal::MemberNotLearner.into());
        }
        Ok(Change::Promote(member.node))
    })
    .await?;
    let header = Some(service.header(0));
    Ok(pb::MemberPromoteResponse { header, members: service.roster.list() })
}

/// Has a member write down what it is called, and the leader what only the flags say so far:
/// from then on the log knows who everyone is.
pub(crate) async fn publish(service: &Service) -> Result<(), Failure> {
    change_all(service, |members| {
        let mut changes = Vec::new();
        let me = service.roster.me();
        let name = service.roster.own_name();
        if let Some(me) = members.iter().find(|member| member.node == me.node)
            && me.name != name
        {
            changes.push(service.roster.update(&Member { name: name.to_owned(), ..me.clone() }));
        }
        Ok(changes)
    })
    .await
}

async fn change(
    service: &Service,
    plan: impl Fn(&[Member]) -> Result<Change, Failure>,
) -> Result<(), Failure> {
    change_all(service, |members| plan(members).map(|change| vec![change])).await
}

/// Carries out what `plan` makes of the members, together with the records that are missing.
async fn change_all(
    service: &Service,
    plan: impl Fn(&[Member]) -> Result<Vec<Change>, Failure>,
) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        service.raft.read_barrier().await?;
        let status = service.raft.status().await?;
        let members = service.roster.read(&status.membership);
        let mut changes = service.roster.unrecorded(&members);
        changes.extend(plan(&members)?);
        if changes.is_empty() {
            return Ok(());
        }
        let change = ChangeSet { changes, expect: Some(status.last) };
        match service.raft.change_membership(change).await {
            Ok(_) => {
                // It is with the state machine: what comes behind it finds the roster changed.
                // One that is stuck keeps nobody waiting.
                let followed = service.raft.read_stale(|_| ());
                drop(time::timeout(service.limits.request_timeout, followed).await);
                return Ok(());
            }
            // Another change came in between: see what is left to do.
            Err(ProposeError::Rejected(Rejection::MembershipChanged { .. }))
                if began.elapsed() < service.limits.request_timeout =>
            {
                time::sleep(REPLAN_PAUSE).await;
            }
            // Who is missing may be about to come back.
            Err(ProposeError::Rejected(Rejection::NoQuorum)) if began.elapsed() < PATIENCE => {
                time::sleep(RETRY_PAUSE).await;
            }
            Err(error) => return Err(status::of_change(error)),
        }
    }
}

fn found(members: &[Member], id: u64) -> Result<&Member, Failure> {
    let member = members.iter().find(|member| member.id == id);
    member.ok_or_else(|| Refusal::MemberNotFound.into())
}

/// Peer URLs that a member can be reached at. The first error is etcd's, whatever is wrong.
fn checked_urls(urls: &[String]) -> Result<Vec<String>, Failure> {
    let are_urls = urls.iter().all(|url| config::host_and_port(url).is_ok());
    let distinct: BTreeSet<&String> = urls.iter().collect();
    if urls.is_empty() || !are_urls || distinct.len() != urls.len() {
        return Err(Refusal::InvalidMemberUrls.into());
    }
    if 1 < urls.len() {
        return Err(status::one_peer_url().into());
    }
    Ok(members::canonical(urls))
}

/// Refuses URLs at which another member than `except` is.
fn refuse_used(members: &[Member], urls: &[String], except: Option<u64>) -> Result<(), Failure> {
    let others = members.iter().filter(|member| Some(member.id) != except);
    if others.flat_map(|member| &member.peer_urls).any(|used| urls.contains(used)) {
        return Err(Refusal::PeerUrlsExist.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases that were tried on an etcd.
    #[test]
    fn peer_urls_are_checked_as_in_etcd() {
        let bad: [&[&str]; 8] = [
            &[],
            &["badurl"],
            &["http://h"],
            &["http://h:1/path"],
            &["ftp://h:1"],
            &["h:1"],
            &["http://h:1", "x"],
            &["http://h:1", "http://h:1"],
        ];
        for urls in bad {
            let urls: Vec<String> = urls.iter().map(|&url| url.to_owned()).collect();
            let Failure(status) = checked_urls(&urls).unwrap_err();
            assert_eq!(status.message(), "etcdserver: given member URLs are invalid", "{urls:?}");
        }
        let good = ["http://h:1/".to_owned()];
        assert_eq!(checked_urls(&good).unwrap(), ["http://h:1"]);
    }
}
