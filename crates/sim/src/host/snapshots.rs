//! Snapshots: made now and then beside apply, sent in pieces beside all messages, received into
//! a file, restored from it.
//!
//! A transfer is pulled: the receiver of an offer names the piece that it wants next, and so goes
//! on where it stopped when the offer comes again, after a broken connection or in another life.
//! A piece that is lost breaks the transfer; one that is damaged is asked for once more.

use std::{
    io::{Read, Write as _},
    time::Duration,
};

use kontiki::Event;
use kontiki_log::{
    LogError, Receiving, SnapshotFileWriter, SnapshotInfo, SnapshotReceiver, SnapshotSource,
};
use kontiki_raft::{Bytes, EntryId, Index, NodeId, Session, SnapshotMeta};
use kontiki_store::StoreSnapshot;

use crate::{
    dice::Stream,
    kv::Kv,
    machine::{Machine, MachineKind},
    network::nanos,
    node::Happening,
    trace::Note,
    world::{Checked, World, place},
};

/// A sender that hears nothing for so long takes the connection for broken.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a process knows of snapshots, and forgets when it ends.
#[derive(Debug, Default)]
pub(crate) struct Shipping {
    /// Applied since the last snapshot, in bytes.
    pub(crate) bytes_since: u64,
    /// How many commands the last one stands for.
    commands_at: u64,
    /// With the store as it was when it was begun; a machine is written at once.
    making: Option<(SnapshotMeta, SnapshotFileWriter, Option<StoreSnapshot>)>,
    /// Followers that wait for a snapshot to be made.
    wanted: Vec<(NodeId, Session, Index)>,
    outgoing: Vec<Outgoing>,
    incoming: Option<Incoming>,
}

#[derive(Debug)]
struct Outgoing {
    to: NodeId,
    session: Session,
    source: SnapshotSource,
    /// How often something was heard.
    heard: u64,
}

#[derive(Debug)]
struct Incoming {
    from: NodeId,
    session: Session,
    receiver: SnapshotReceiver,
    chunk_count: u64,
}

/// What travels on a connection for snapshots.
#[derive(Clone, Debug)]
pub(crate) enum Bulk {
    Offer { session: Session, info: SnapshotInfo },
    Want { session: Session, number: u64 },
    Chunk { session: Session, number: u64, bytes: Bytes },
    Done { session: Session, last: EntryId },
}

impl World {
    // ------------------------------------------------------------------------- making

    /// A batch was applied: is it time for a snapshot?
    pub(super) fn maybe_snapshot(&mut self, id: NodeId) -> Checked {
        if self.setup.machine == MachineKind::Store {
            return Ok(()); // it saves itself, and a snapshot is made for who asks
        }
        let (bytes, commands) = (self.setup.snapshot_bytes, self.setup.snapshot_commands);
        let process = self.process(id)?;
        let newer = process.machine.commands.saturating_sub(process.shipping.commands_at);
        let is_due = (0 < bytes && bytes <= process.shipping.bytes_since)
            || (0 < commands && commands <= newer);
        if is_due {
            return self.begin_snapshot(id);
        }
        Ok(())
    }

    /// Freezes the state and begins to write it, beside everything else.
    pub(crate) fn begin_snapshot(&mut self, id: NodeId) -> Checked {
        let process = self.process(id)?;
        let applied = process.machine.applied;
        let newest = process.snapshots.newest().map_or(Index::ZERO, |info| info.meta.last.index);
        let kv_failed = process.kv.as_ref().is_some_and(|kv| kv.has_failed);
        if process.shipping.making.is_some() || applied <= newest || process.has_failed || kv_failed
        {
            return Ok(());
        }
        let meta = self
            .ledger
            .snapshot_meta(applied)
            .ok_or_else(|| format!("{id} has applied {applied}, which is not committed"))?;
        let process = self.process(id)?;
        process.shipping.bytes_since = 0;
        process.shipping.commands_at = process.machine.commands;
        let frozen = match process.kv.as_ref().map(Kv::snapshot).transpose() {
            Ok(frozen) => frozen,
            Err(fatal) => return self.fail_kv(id, &fatal),
        };
        let bytes = if frozen.is_some() { Vec::new() } else { process.machine.encode() };
        // What fails here is tried again with a later batch.
        let begun = process.snapshots.begin(&meta).ok();
        let Some(writer) = begun.and_then(|mut w| w.write_all(&bytes).ok().map(|()| w)) else {
            return self.disappoint(id);
        };
        process.shipping.making = Some((meta, writer, frozen));
        let life = process.life;
        let delay = self.snapshot_delay(id);
        self.schedule(self.now + delay, id, Happening::SnapshotMade { life });
        Ok(())
    }

    /// Nobody who waits for this snapshot gets one.
    fn disappoint(&mut self, id: NodeId) -> Checked {
        let wanted = std::mem::take(&mut self.process(id)?.shipping.wanted);
        wanted.into_iter().try_for_each(|(to, session, _)| self.end_transfer(id, to, session, None))
    }

    fn snapshot_delay(&mut self, id: NodeId) -> u64 {
        let count = self.count(id);
        let range = nanos(self.setup.snapshot_time.0)..=nanos(self.setup.snapshot_time.1);
        self.dice.within(&range, Stream::Snapshot, id.get(), count)
    }

    pub(super) fn on_snapshot_made(&mut self, id: NodeId) -> Checked {
        let process = self.process(id)?;
        let Some((meta, mut writer, frozen)) = process.shipping.making.take() else {
            return Ok(());
        };
        let written = frozen.map_or(Ok(()), |snapshot| snapshot.write_to(&mut writer));
        if written.is_err() || writer.finish().is_err() {
            return self.disappoint(id); // the disk has its reasons; there will be another one
        }
        let upto = process.machine.applied;
        self.snapshots.made += 1;
        self.note(Note::SnapshotMade { node: id, last: meta.last });
        let durable = self.durable_applied(id)?;
        self.handle(id, Event::Applied { upto, durable })?;
        let process = self.process(id)?;
        for (to, session, at_least) in std::mem::take(&mut process.shipping.wanted) {
            self.send_snapshot(id, to, session, at_least)?;
        }
        self.maybe_snapshot(id)
    }

    /// Up to here the state is known after a crash.
    pub(super) fn durable_applied(&mut self, id: NodeId) -> Checked<Index> {
        let saved = match self.setup.machine {
            MachineKind::Memory => Index::ZERO,
            MachineKind::Durable => self.node(id).saved.applied,
            MachineKind::Store => {
                self.process(id)?.kv.as_ref().map_or(Index::ZERO, Kv::durable_applied)
            }
        };
        let process = self.process(id)?;
        let newest = process.snapshots.newest().map_or(Index::ZERO, |info| info.meta.last.index);
        // A snapshot that was received counts when it is restored.
        Ok(saved.max(newest).min(process.machine.applied))
    }

    // ------------------------------------------------------------------------ sending

    /// A follower needs a snapshot that reaches `at_least`.
    pub(super) fn send_snapshot(
        &mut self,
        id: NodeId,
        to: NodeId,
        session: Session,
        at_least: Index,
    ) -> Checked {
        let process = self.process(id)?;
        process.shipping.outgoing.retain(|outgoing| outgoing.to != to);
        let newest = process.snapshots.newest().filter(|info| at_least <= info.meta.last.index);
        let Some(info) = newest else {
            if process.machine.applied < at_least || process.has_failed {
                return self.end_transfer(id, to, session, None);
            }
            process.shipping.wanted.retain(|(other, _, _)| *other != to);
            process.shipping.wanted.push((to, session, at_least));
            return self.begin_snapshot(id);
        };
        let Ok(source) = process.snapshots.source(info.meta.last) else {
            return self.end_transfer(id, to, session, None);
        };
        process.shipping.outgoing.push(Outgoing { to, session, source, heard: 0 });
        self.snapshots.sent += 1;
        self.note(Note::SnapshotOffered { node: id, to, last: info.meta.last });
        self.send_bulk(id, to, Bulk::Offer { session, info });
        self.expect_word(id, to, session, 0)
    }

    pub(super) fn cancel_snapshot(&mut self, id: NodeId, to: NodeId, session: Session) -> Checked {
        let shipping = &mut self.process(id)?.shipping;
        shipping.outgoing.retain(|outgoing| outgoing.to != to || outgoing.session != session);
        shipping.wanted.retain(|(other, named, _)| *other != to || *named != session);
        Ok(())
    }

    fn expect_word(&mut self, id: NodeId, to: NodeId, session: Session, heard: u64) -> Checked {
        let life = self.process(id)?.life;
        let at = self.now + nanos(PATIENCE);
        self.schedule(at, id, Happening::BulkSilence { life, to, session, heard });
        Ok(())
    }

    /// Nothing was heard of a receiver since then.
    pub(super) fn on_bulk_silence(
        &mut self,
        id: NodeId,
        to: NodeId,
        session: Session,
        heard: u64,
    ) -> Checked {
        let outgoing = &mut self.process(id)?.shipping.outgoing;
        let is_it = |o: &Outgoing| o.to == to && o.session == session && o.heard == heard;
        let count = outgoing.len();
        outgoing.retain(|outgoing| !is_it(outgoing));
        if outgoing.len() < count {
            self.snapshots.broken += 1;
            return self.end_transfer(id, to, session, None);
        }
        Ok(())
    }

    fn end_transfer(
        &mut self,
        id: NodeId,
        to: NodeId,
        session: Session,
        sent: Option<EntryId>,
    ) -> Checked {
        let life = self.process(id)?.life;
        let event = Event::SnapshotSent { to, session, sent };
        self.schedule(self.now, id, Happening::Event { life, event });
        Ok(())
    }

    fn send_bulk(&mut self, id: NodeId, to: NodeId, bulk: Bulk) {
        if self.nodes.len() <= place(to) {
            return;
        }
        // In order, and whole or not at all: what a link loses breaks the connection.
        let Some(at) = self.network.send_bulk(self.now, id, to) else { return };
        let bulk = Box::new(bulk);
        self.schedule(at, to, Happening::Bulk { from: id, bulk });
    }

    // ---------------------------------------------------------------------- receiving

    pub(super) fn on_bulk(&mut self, id: NodeId, from: NodeId, bulk: Bulk) -> Checked {
        if !self.network.delivers(from, id) {
            return Ok(());
        }
        match bulk {
            Bulk::Offer { session, info } => self.on_offer(id, from, session, &info),
            Bulk::Want { session, number } => self.on_want(id, from, session, number),
            Bulk::Chunk { session, number, bytes } => {
                self.on_chunk(id, from, session, (number, bytes))
            }
            Bulk::Done { session, last } => {
                let outgoing = &mut self.process(id)?.shipping.outgoing;
                let count = outgoing.len();
                outgoing.retain(|o| o.to != from || o.session != session);
                if outgoing.len() < count {
                    self.end_transfer(id, from, session, Some(last))?;
                }
                Ok(())
            }
        }
    }

    fn on_offer(
        &mut self,
        id: NodeId,
        from: NodeId,
        session: Session,
        info: &SnapshotInfo,
    ) -> Checked {
        let process = self.process(id)?;
        if process.has_failed {
            return Ok(());
        }
        process.shipping.incoming = None;
        match process.snapshots.receive(info) {
            Ok(Receiving::Here) => self.on_whole(id, from, session, info.meta.clone()),
            Ok(Receiving::Wanted(receiver)) => {
                if receiver.next_chunk() != 0 {
                    self.snapshots.resumed += 1;
                }
                let chunk_count = info.chunk_count;
                let incoming = Incoming { from, session, receiver, chunk_count };
                self.process(id)?.shipping.incoming = Some(incoming);
                self.want_next(id)
            }
            Err(_) => Ok(()), // the sender hears nothing, and the leader tries again
        }
    }

    /// Asks for the next piece, or finishes.
    fn want_next(&mut self, id: NodeId) -> Checked {
        let Some(incoming) = self.process(id)?.shipping.incoming.take() else { return Ok(()) };
        let (from, session) = (incoming.from, incoming.session);
        let number = incoming.receiver.next_chunk();
        if number < incoming.chunk_count {
            self.process(id)?.shipping.incoming = Some(incoming);
            self.send_bulk(id, from, Bulk::Want { session, number });
            return Ok(());
        }
        match incoming.receiver.finish() {
            Ok(info) => self.on_whole(id, from, session, info.meta),
            Err(_) => Ok(()),
        }
    }

    fn on_whole(
        &mut self,
        id: NodeId,
        from: NodeId,
        session: Session,
        meta: SnapshotMeta,
    ) -> Checked {
        let last = meta.last;
        self.note(Note::SnapshotReceived { node: id, from, last });
        self.handle(id, Event::SnapshotReceived { from, meta })?;
        self.send_bulk(id, from, Bulk::Done { session, last });
        Ok(())
    }

    fn on_want(&mut self, id: NodeId, from: NodeId, session: Session, number: u64) -> Checked {
        let process = self.process(id)?;
        let found = |o: &&mut Outgoing| o.to == from && o.session == session;
        let Some(outgoing) = process.shipping.outgoing.iter_mut().find(found) else {
            return Ok(());
        };
        outgoing.heard += 1;
        let heard = outgoing.heard;
        let last = outgoing.source.info().meta.last;
        let Ok(chunk) = outgoing.source.chunk(number) else {
            // Rotten: it is set aside, and another one is made for the next attempt.
            process.shipping.outgoing.retain(|o| o.to != from);
            if process.snapshots.verify(last).is_err() {
                self.snapshots.rotten += 1;
            }
            return self.end_transfer(id, from, session, None);
        };
        let bytes = self.maybe_damage(id, chunk);
        self.send_bulk(id, from, Bulk::Chunk { session, number, bytes });
        self.expect_word(id, from, session, heard)
    }

    /// Now and then a bit flips on the way.
    fn maybe_damage(&mut self, id: NodeId, chunk: Bytes) -> Bytes {
        let count = self.count(id);
        if !self.dice.chance(self.setup.chunk_damage, Stream::Snapshot, !id.get(), count) {
            return chunk;
        }
        self.snapshots.damaged += 1;
        let mut bytes = chunk.to_vec();
        let len = u64::try_from(bytes.len()).unwrap_or(1).max(1);
        let at = self.dice.below(len, Stream::Snapshot, !id.get(), !count);
        if let Some(byte) = bytes.get_mut(usize::try_from(at).unwrap_or_default()) {
            *byte ^= 0x10;
        }
        bytes.into()
    }

    fn on_chunk(
        &mut self,
        id: NodeId,
        from: NodeId,
        session: Session,
        (number, bytes): (u64, Bytes),
    ) -> Checked {
        let process = self.process(id)?;
        let Some(incoming) = &mut process.shipping.incoming else { return Ok(()) };
        if incoming.from != from || incoming.session != session {
            return Ok(());
        }
        match incoming.receiver.put(number, &bytes) {
            Ok(()) | Err(LogError::BadChunk { .. }) => self.want_next(id),
            Err(_) => {
                process.shipping.incoming = None;
                Ok(())
            }
        }
    }

    // ---------------------------------------------------------------------- restoring

    /// The machine that a snapshot file holds. `None` if it cannot be read.
    pub(super) fn read_snapshot(&self, id: NodeId, last: EntryId) -> Option<Machine> {
        let process = self.node(id).process.as_ref()?;
        machine_of(&process.snapshots, last)
    }
}

/// The machine that a snapshot file holds. `None` if it cannot be read.
pub(super) fn machine_of(snapshots: &kontiki_log::Snapshots, last: EntryId) -> Option<Machine> {
    let mut bytes = Vec::new();
    snapshots.reader(last).ok()?.read_to_end(&mut bytes).ok()?;
    Machine::decode(&bytes).filter(|machine| machine.applied == last.index)
}
