//! Who belongs to the cluster, and under which ids clients know them.
//!
//! etcd derives a member's id from its peer URLs and the cluster's token, and the cluster's id
//! from those of its members. Ours are the same numbers, so that they mean the same in dashboards
//! and scripts. Raft counts differently: node 1 is the first member by name, and so on.

use std::sync::{Arc, PoisonError, RwLock};

use kontiki::NodeId;
use sha1::{Digest, Sha1};

use crate::proto::etcdserverpb as pb;

/// A member as the flags name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) peer_urls: Vec<String>,
}

/// The cluster of this server.
#[derive(Debug)]
pub(crate) struct Roster {
    pub(crate) cluster_id: u64,
    /// Who this server is.
    pub(crate) me: Member,
    /// Sorted by name, and so by node id.
    pub(crate) members: Vec<Member>,
    /// What the members have said of themselves, in the order of `members`; empty until they
    /// have. Not durable: a server that starts asks the others again.
    client_urls: RwLock<Vec<Arc<[String]>>>,
}

impl Roster {
    /// The cluster that `members` (name, peer URLs) form; `None` if no name is `me`.
    pub(crate) fn new(
        mut members: Vec<(String, Vec<String>)>,
        token: &str,
        me: &str,
    ) -> Option<Self> {
        members.sort();
        let members: Vec<Member> = (1..)
            .zip(members)
            .map(|(node, (name, mut peer_urls))| {
                peer_urls.sort();
                Member { id: member_id(&peer_urls, token), node: NodeId(node), name, peer_urls }
            })
            .collect();
        Some(Self {
            cluster_id: cluster_id(members.iter().map(|member| member.id).collect()),
            me: members.iter().find(|member| member.name == me)?.clone(),
            client_urls: RwLock::new(vec![Arc::default(); members.len()]),
            members,
        })
    }

    /// The id of the member that Raft calls `node`, or 0.
    pub(crate) fn id_of(&self, node: Option<NodeId>) -> u64 {
        let member = self.members.iter().find(|member| Some(member.node) == node);
        member.map_or(0, |member| member.id)
    }

    /// Takes note of where clients reach the member `id`. One that is no member says nothing.
    pub(crate) fn set_client_urls(&self, id: u64, urls: Vec<String>) {
        if let Some(at) = self.members.iter().position(|member| member.id == id) {
            let mut client_urls = self.client_urls.write().unwrap_or_else(PoisonError::into_inner);
            client_urls[at] = urls.into();
        }
    }

    /// All members, as `MemberList` answers.
    pub(crate) fn list(&self) -> Vec<pb::Member> {
        let client_urls = self.client_urls.read().unwrap_or_else(PoisonError::into_inner);
        let members = self.members.iter().zip(client_urls.iter());
        members
            .map(|(member, urls)| pb::Member {
                id: member.id,
                name: member.name.clone(),
                peer_ur_ls: member.peer_urls.clone(),
                client_ur_ls: urls.to_vec(),
                is_learner: false,
            })
            .collect()
    }
}

/// The first eight bytes of the SHA-1 of the sorted URLs and the token.
fn member_id(sorted_urls: &[String], token: &str) -> u64 {
    first_eight(sorted_urls.iter().fold(Sha1::new(), Sha1::chain_update).chain_update(token))
}

/// The first eight bytes of the SHA-1 of the sorted ids of the members.
fn cluster_id(mut members: Vec<u64>) -> u64 {
    members.sort_unstable();
    let bytes = members.into_iter().map(u64::to_be_bytes);
    first_eight(bytes.fold(Sha1::new(), Sha1::chain_update))
}

fn first_eight(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every etcd that was ever started without flags has these two ids.
    #[test]
    fn the_default_member_has_the_ids_that_etcd_gives_it() {
        let members = vec![("default".to_owned(), vec!["http://localhost:2380".to_owned()])];
        let roster = Roster::new(members, "etcd-cluster", "default").unwrap();
        assert_eq!(roster.me.id, 0x8e9e_05c5_2164_694d);
        assert_eq!(roster.cluster_id, 0xcdf8_1819_4e3a_8c32);
    }

    #[test]
    fn nodes_are_numbered_by_name_wherever_they_stand_in_the_flag() {
        let member = |name: &str| (name.to_owned(), vec![format!("http://{name}:2380")]);
        let there = Roster::new(vec![member("b"), member("c"), member("a")], "t", "b").unwrap();
        let here = Roster::new(vec![member("a"), member("b"), member("c")], "t", "b").unwrap();
        assert_eq!(there.members, here.members);
        assert_eq!(there.cluster_id, here.cluster_id);
        assert_eq!(there.me.node, NodeId(2));
        assert_eq!(there.id_of(Some(NodeId(2))), there.me.id);
        assert_eq!(there.id_of(None), 0);
    }

    #[test]
    fn another_token_makes_another_cluster() {
        let member = || vec![("a".to_owned(), vec!["http://a:2380".to_owned()])];
        let one = Roster::new(member(), "one", "a").unwrap();
        let two = Roster::new(member(), "two", "a").unwrap();
        assert_ne!(one.cluster_id, two.cluster_id);
    }
}
