//! Who is connected and who is to be: the table that all tasks of the transport share.
//!
//! Members have lanes for as long as they are members, and a little longer. A *stranger* is a
//! node of this cluster that our membership does not name: it has just been added, or leads by a
//! membership that has not reached us yet. What it says is delivered, and it has lanes, to the
//! address that it says itself, for as long as it is connected to us.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use kontiki_raft::{Member, Membership, NodeId};

use super::{
    Shared,
    accept::Incoming,
    handshake::{Hello, Introduction, Refusal},
    lane::LaneSender,
};
use crate::{Backlog, Lane};

/// The table. One lock guards all of it; nothing is done under the lock that waits.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) membership: Arc<Membership>,
    pub(super) incoming: Incoming,
    peers: BTreeMap<NodeId, Peer>,
    next_leave: u64,
}

/// A node that we send to.
#[derive(Debug)]
struct Peer {
    address: String,
    standing: Standing,
    /// In the order of [`Lane::ALL`].
    lanes: [LaneSender; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Member,
    /// It was a member. The number tells one leave from the next.
    Leaving(u64),
    Stranger,
}

/// Nodes at a time that the membership does not name. A joiner meets the members that it does
/// not know yet, a member meets joiners: a handful at most.
const STRANGERS_MAX: usize = 16;

impl Table {
    pub(super) fn new(membership: Arc<Membership>) -> Self {
        Self { membership, incoming: Incoming::default(), peers: BTreeMap::new(), next_leave: 0 }
    }

    pub(super) fn lane(&self, id: NodeId, lane: Lane) -> Option<&LaneSender> {
        let [control, append] = &self.peers.get(&id)?.lanes;
        Some(match lane {
            Lane::Control => control,
            Lane::Append => append,
        })
    }

    /// What waits in the lanes.
    pub(super) fn backlogs(&self) -> impl Iterator<Item = (NodeId, [Backlog; 2])> {
        self.peers.iter().map(|(id, peer)| (*id, peer.lanes.each_ref().map(LaneSender::backlog)))
    }

    /// Where `id` is connected to.
    pub(super) fn address(&self, id: NodeId) -> Option<String> {
        self.peers.get(&id).map(|peer| peer.address.clone())
    }

    /// A peer has just connected, so it is up: no need to wait with connecting to it.
    pub(super) fn wake_lanes(&self, id: NodeId) {
        if let Some(peer) = self.peers.get(&id) {
            peer.lanes.iter().for_each(LaneSender::wake);
        }
    }

    /// Who is at `address`, as far as this node knows.
    pub(super) fn introduce(&self, cluster: u64, address: &str) -> Introduction {
        let at_address = |member: &&Member| *member.address == *address;
        let here = || self.membership.members.iter().rev().filter(at_address);
        // The newest first: an older one at the same address is the one that it replaces.
        if let Some(member) = here().find(|member| member.store.is_none()) {
            let membership = Arc::clone(&self.membership);
            return Introduction::Member { cluster, id: member.id, membership };
        }
        match here().next() {
            Some(member) => Introduction::Bound { cluster, id: member.id },
            None => Introduction::Unknown { cluster },
        }
    }
}

impl Shared {
    /// Connects to who is new, parts from who is gone, and goes where who has moved is now.
    pub(super) fn set_members(self: &Arc<Self>, membership: &Arc<Membership>) {
        let mut table = self.table();
        table.membership = Arc::clone(membership);
        for member in &membership.members {
            if member.id != self.local.id {
                self.set_peer(&mut table, member.id, &member.address, Standing::Member);
            }
        }
        let replicas = membership.replicas();
        let mut leaving = Vec::new();
        let Table { peers, next_leave, .. } = &mut *table;
        for (id, peer) in peers {
            if peer.standing == Standing::Member && !replicas.contains(id) {
                peer.standing = Standing::Leaving(*next_leave);
                leaving.push((*id, *next_leave));
                *next_leave += 1;
            }
        }
        drop(table);
        for (id, leave) in leaving {
            let shared = Arc::clone(self);
            self.spawn(async move {
                tokio::time::sleep(shared.times.grace).await;
                shared.end_leave(id, leave);
            });
        }
    }

    /// The last word to a former member is out, or will never be.
    pub(super) fn end_leave(&self, id: NodeId, leave: u64) {
        let mut table = self.table();
        let is_connected = table.incoming.has(id);
        let Some(peer) = table.peers.get_mut(&id) else { return };
        if peer.standing != Standing::Leaving(leave) {
            return; // it has come back
        }
        if is_connected {
            peer.standing = Standing::Stranger;
        } else {
            table.peers.remove(&id);
        }
    }

    /// Sees to it that a node which is let in can be answered.
    pub(super) fn meet(self: &Arc<Self>, hello: &Hello, from: IpAddr) -> Result<(), Refusal> {
        let mut table = self.table();
        let id = hello.from;
        match table.peers.get(&id).map(|peer| peer.standing) {
            Some(Standing::Member | Standing::Leaving(_)) => return Ok(()),
            Some(Standing::Stranger) => {}
            None => {
                let is_stranger = |peer: &&Peer| peer.standing == Standing::Stranger;
                if STRANGERS_MAX <= table.peers.values().filter(is_stranger).count() {
                    return Err(Refusal::TooManyStrangers { id });
                }
            }
        }
        let address = answer_address(&hello.listen, from).ok_or(Refusal::NotAMember { id })?;
        self.set_peer(&mut table, id, &address, Standing::Stranger);
        Ok(())
    }

    /// A connection has ended. A stranger is forgotten with its last one.
    pub(super) fn part(&self, hello: &Hello, serial: u64) {
        let mut table = self.table();
        table.incoming.remove(hello.from, hello.channel, serial);
        let is_stranger =
            table.peers.get(&hello.from).is_some_and(|peer| peer.standing == Standing::Stranger);
        if is_stranger && !table.incoming.has(hello.from) {
            table.peers.remove(&hello.from);
        }
    }

    fn set_peer(
        self: &Arc<Self>,
        table: &mut Table,
        id: NodeId,
        address: &str,
        standing: Standing,
    ) {
        if let Some(peer) = table.peers.get_mut(&id)
            && peer.address == address
        {
            peer.standing = standing;
            return;
        }
        let lanes = Lane::ALL.map(|lane| {
            let (sender, task) = LaneSender::new(self, id, address, lane);
            self.spawn(task.run());
            sender
        });
        // The tasks of lanes to another address end when they have sent what they have.
        table.peers.insert(id, Peer { address: address.to_owned(), standing, lanes });
    }
}

/// Where to connect to a node that says that it listens at `listen` and connects from `from`.
fn answer_address(listen: &str, from: IpAddr) -> Option<String> {
    match listen.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => None,
        // It listens on all its addresses; this is one of them.
        Ok(address) if address.ip().is_unspecified() => {
            Some(SocketAddr::new(from, address.port()).to_string())
        }
        Ok(address) => Some(address.to_string()),
        Err(_) => (!listen.is_empty()).then(|| listen.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use kontiki_raft::StoreId;

    use super::*;

    #[test]
    fn a_stranger_is_answered_where_it_listens() {
        let from = IpAddr::from([10, 0, 0, 7]);
        let told = |listen| answer_address(listen, from);
        assert_eq!(told("10.0.0.9:7001").as_deref(), Some("10.0.0.9:7001"));
        assert_eq!(told("n7.example:7001").as_deref(), Some("n7.example:7001"));
        assert_eq!(told("0.0.0.0:7001").as_deref(), Some("10.0.0.7:7001"));
        assert_eq!(told("[::]:7001").as_deref(), Some("10.0.0.7:7001"));
        assert_eq!(told(""), None);
        assert_eq!(told("10.0.0.9:0"), None);
    }

    /// While a member is replaced at its own address there are two of them, and the one that
    /// asks is the new one.
    #[test]
    fn the_newest_member_without_a_store_is_who_asks() {
        let voters = [(NodeId(1), "a"), (NodeId(2), "b"), (NodeId(4), "b")];
        let mut membership = Membership::of_voters(voters);
        membership.members[1].store = Some(StoreId(7));
        let table = Table::new(Arc::new(membership.clone()));
        match table.introduce(9, "b") {
            Introduction::Member { cluster: 9, id: NodeId(4), membership: told } => {
                assert_eq!(*told, membership);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(table.introduce(9, "c"), Introduction::Unknown { cluster: 9 });

        membership.members[2].store = Some(StoreId(8));
        let table = Table::new(Arc::new(membership));
        assert_eq!(table.introduce(9, "b"), Introduction::Bound { cluster: 9, id: NodeId(4) });
    }
}
