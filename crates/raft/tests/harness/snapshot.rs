//! Snapshots in a script: files that are whole or not there, moved by hand.

use std::sync::Arc;

use kontiki_raft::{EntryId, Index, Input, NodeId, Session, SnapshotEffect, SnapshotMeta};

use super::{
    cluster::{Cluster, Node, Result},
    command::Link,
};

impl Cluster {
    /// The state machine writes what it has applied.
    pub(crate) fn snapshot(&mut self, id: NodeId) -> Result<()> {
        let meta = self.make_snapshot(id)?;
        self.say_as(id, &format!("snapshot {}", meta.last))?;
        let is_durable = self.is_machine_durable;
        let node = self.node(id)?;
        let (upto, durable) = (node.applied, node.durable_applied(is_durable));
        self.step(id, Input::Applied { upto, durable })
    }

    fn make_snapshot(&mut self, id: NodeId) -> Result<SnapshotMeta> {
        let genesis = Arc::clone(&self.genesis);
        let node = self.node(id)?;
        let log = &node.disk.durable;
        let last = std::iter::once(log.start)
            .chain(log.entries.iter().map(|entry| entry.id))
            .find(|at| at.index == node.applied)
            .ok_or_else(|| format!("{id} has applied nothing that its log holds"))?;
        let (_, membership) = log.membership_at(last.index).unwrap_or((EntryId::ZERO, genesis));
        let meta = SnapshotMeta { last, membership };
        node.disk.snapshots.push(meta.clone());
        Ok(meta)
    }

    /// A leader wants a snapshot to be sent, or not any more.
    pub(crate) fn ship(&mut self, from: NodeId, effect: &SnapshotEffect) -> Result<()> {
        match *effect {
            SnapshotEffect::Send { to, session, at_least } => {
                let known = self.shipments.insert(Link { from, to }, (session, at_least));
                assert!(known.is_none(), "{from} has one snapshot on its way to {to} at a time");
                self.say_as(from, &format!("send snapshot to {to}, at least {at_least}"))
            }
            SnapshotEffect::Cancel { to, session } => {
                let known = self.shipments.remove(&Link { from, to });
                assert!(
                    known.is_none_or(|(sent, _)| sent == session),
                    "{from} cancels what it has sent to {to}"
                );
                self.say_as(from, &format!("cancel snapshot to {to}"))
            }
        }
    }

    /// A snapshot arrives whole.
    pub(crate) fn arrive(&mut self, link: Link, is_heard: bool) -> Result<()> {
        let Link { from, to } = link;
        let (session, at_least) = *self.shipment(link)?;
        let newest = self.node(from)?.disk.snapshots.last().cloned();
        let meta = match newest.filter(|meta| at_least <= meta.last.index) {
            Some(meta) => meta,
            None => self.make_snapshot(from)?,
        };
        let last = meta.last;
        self.say(&format!("{from} => {to} snapshot {last}"));
        self.node(to)?.disk.snapshots.push(meta.clone());
        if self.nodes[&to].core.is_some() {
            self.step(to, Input::SnapshotReceived { from, meta })?;
        }
        if !is_heard {
            return Ok(());
        }
        self.shipments.remove(&link);
        self.step(from, Input::SnapshotSent { to, session, sent: Some(last) })
    }

    /// A snapshot that nobody asked for, or that somebody else was to send.
    pub(crate) fn give(&mut self, link: Link) -> Result<()> {
        let Link { from, to } = link;
        let meta = self.node(from)?.disk.snapshots.last().cloned();
        let meta = meta.ok_or_else(|| format!("{from} has no snapshot"))?;
        self.say(&format!("{from} => {to} snapshot {}", meta.last));
        self.node(to)?.disk.snapshots.push(meta.clone());
        self.step(to, Input::SnapshotReceived { from, meta })
    }

    pub(crate) fn lose_snapshot(&mut self, link: Link) -> Result<()> {
        let Link { from, to } = link;
        let (session, _) = *self.shipment(link)?;
        self.shipments.remove(&link);
        self.step(from, Input::SnapshotSent { to, session, sent: None })
    }

    fn shipment(&self, link: Link) -> Result<&(Session, Index)> {
        let Link { from, to } = link;
        let shipment = self.shipments.get(&link);
        shipment.ok_or_else(|| format!("no snapshot is on its way from {from} to {to}").into())
    }

    /// The state machine takes over the state of a snapshot.
    pub(crate) fn install(&mut self, id: NodeId, meta: &SnapshotMeta) -> Result<()> {
        let node = self.node(id)?;
        assert!(node.handed < meta.last.index, "{id} goes back to {}", meta.last);
        let log = &node.disk.durable;
        let is_held = log.entries.iter().any(|entry| entry.id == meta.last);
        assert!(
            log.start == meta.last || is_held,
            "{id} installs a snapshot before its log has been reset to it"
        );
        node.handed = meta.last.index;
        self.say_as(id, &format!("apply snapshot {}", meta.last))
    }
}

impl Node {
    /// What the state machine will still know after a crash, by itself or from a snapshot.
    pub(crate) fn durable_applied(&self, is_machine_durable: bool) -> Index {
        let machine = if is_machine_durable { self.applied } else { Index::ZERO };
        machine.max(self.disk.snapshots.last().map_or(EntryId::ZERO, |meta| meta.last).index)
    }

    /// A state machine that holds less than the snapshot starts from the snapshot.
    pub(crate) fn recover_machine(&mut self) {
        let snapshot = self.disk.covered_snapshot().map_or(Index::ZERO, |meta| meta.last.index);
        self.applied = self.applied.max(snapshot);
        self.handed = self.applied;
    }
}
