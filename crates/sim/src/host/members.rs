//! Who belongs to the cluster, as the transport of a node sees it; and who may serve reads by a
//! lease.

use std::sync::Arc;

use kontiki::Event;
use kontiki_raft::{EntryId, Membership, NodeId, Role, StoreId};

use crate::{
    trace::Note,
    world::{Checked, World, place},
};

impl World {
    /// A message of `from` arrives at `id`. False if it is refused: that data directory is not
    /// the one that the membership names (pitfall M7).
    pub(super) fn meet(&mut self, id: NodeId, from: NodeId, store: StoreId) -> Checked<bool> {
        let has_stores = self.setup.has_stores;
        let process = self.process(id)?;
        let known = process.membership.member(from).and_then(|member| member.store);
        if known.is_some_and(|known| known != store) {
            self.refused += 1;
            return Ok(false);
        }
        if has_stores && process.met.insert(from, store) != Some(store) {
            self.handle(id, Event::PeerStore { id: from, store })?;
        }
        Ok(true)
    }

    pub(super) fn on_membership(
        &mut self,
        id: NodeId,
        at: EntryId,
        membership: Arc<Membership>,
    ) -> Checked {
        // A node that stops keeps to itself what it has just appended: nobody will ever write it.
        if self.process(id)?.replica.status().soft_state.role != Role::Stopped {
            self.ledger.assert_membership(id, at, &membership)?;
        }
        self.note(Note::Membership { node: id, at, voters: voters(&membership) });
        self.process(id)?.membership = membership;
        Ok(())
    }

    /// No two leases at any time, whatever the clocks do within their bound (thesis §6.4.1).
    pub(super) fn observe_lease(&mut self, id: NodeId, lease: Option<u64>) -> Checked {
        let now = self.now;
        if let Some(process) = &mut self.nodes[place(id)].process {
            self.leases += u64::from(process.lease.is_none() && lease.is_some());
            process.lease = lease;
        }
        if lease.is_none() {
            return Ok(());
        }
        let holds = |process: &crate::node::Process| process.lease.is_some_and(|until| now < until);
        let other = self.node_ids().find(|&other| {
            other != id && self.nodes[place(other)].process.as_ref().is_some_and(holds)
        });
        match other {
            Some(other) => Err(format!("{id} and {other} both hold a lease")),
            None => Ok(()),
        }
    }
}

/// The voters as bits, incoming and outgoing.
fn voters(membership: &Membership) -> [u64; 2] {
    let bits = |ids: &mut dyn Iterator<Item = NodeId>| {
        ids.fold(0, |bits, id| {
            bits | 1_u64.checked_shl(u32::try_from(id.get()).unwrap_or(0)).unwrap_or(0)
        })
    };
    [bits(&mut membership.voters()), bits(&mut membership.outgoing.iter().copied())]
}
