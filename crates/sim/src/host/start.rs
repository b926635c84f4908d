//! How a process begins: what the disk holds, a clock, and a seed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use kontiki::Replica;
use kontiki_log::{IdentityRequest, Log, LogError, Opened, Snapshots};
use kontiki_raft::{Config, NodeId, Recovered, RestoreError, SnapshotMeta, StoreId};

use super::{
    kv::Found,
    snapshots::{Shipping, machine_of},
};
use crate::{
    dice::Stream,
    disk::SimDisk,
    machine::{Machine, MachineKind},
    node::{Clock, Process},
    trace::Note,
    view::LogView,
    world::{Checked, World, data_dir},
};

impl World {
    pub(crate) fn start_process(&mut self, id: NodeId) -> Checked {
        let count = self.count(id);
        let disk = Arc::clone(&self.node(id).disk);
        let (log, opened) = match self.open_log(id, Arc::clone(&disk), count) {
            Ok(opened) => opened,
            Err(error) if error.is_damage() && self.ledger.is_damaged(id) => {
                return self.give_up_disk(id);
            }
            Err(LogError::NoSpace { .. }) => return self.stay_down(id),
            Err(error) => return Err(format!("the log of {id} does not open: {error}")),
        };
        let mut recovered = opened.recovered;
        let chunk_bytes = usize::try_from(self.setup.chunk_bytes).unwrap_or(1);
        let snapshots = match Snapshots::open_with_chunks(disk, &data_dir(id), chunk_bytes) {
            Ok(snapshots) => snapshots,
            Err(LogError::NoSpace { .. }) => return self.stay_down(id),
            Err(error) => return Err(format!("the snapshots of {id} do not open: {error}")),
        };
        let (machine, kv) = match self.recover_state(id, &snapshots, &recovered)? {
            Found::State(machine, kv) => (machine, kv),
            Found::NoSpace => return self.stay_down(id),
            Found::Lost => return self.give_up_disk(id),
        };
        recovered.applied = machine.applied;
        self.truth.assert_machine(id, &machine)?;
        self.ledger.on_restart(id, &recovered)?;

        let log_start = recovered.log_start.index;
        let newest = recovered.memberships.last().map(|(_, membership)| Arc::clone(membership));
        let membership = newest.ok_or_else(|| format!("{id} has no membership"))?;
        let clock = self.new_clock(id, count);
        let config = self.config_of(id, count);
        let replica = match Replica::new(config, recovered, clock.at(self.now)) {
            Ok(replica) => replica,
            Err(RestoreError::DamagedAlone { .. }) => return self.give_up_disk(id),
            Err(error) => return Err(format!("{id} does not start: {error}")),
        };
        let node = self.node_mut(id);
        node.lives += 1;
        node.process = Some(Process {
            life: node.lives,
            clock,
            replica,
            reader: log.reader(),
            spares: log.spares(),
            log,
            machine,
            kv,
            snapshots,
            shipping: Shipping::default(),
            waiting: Vec::new(),
            syncing: None,
            purge: None,
            purge_asked: log_start,
            has_failed: false,
            is_filling: false,
            to_apply: VecDeque::new(),
            timer: None,
            store: opened.identity.store,
            membership,
            met: BTreeMap::new(),
            lease: None,
            is_full: false,
            told_full: false,
        });
        self.finish(id)
    }

    fn config_of(&self, id: NodeId, count: u64) -> Config {
        let priority = if self.setup.has_priorities { id.get() % 3 } else { 0 };
        Config {
            id,
            seed: self.dice.roll(Stream::Process, !id.get(), count),
            priority: u8::try_from(priority).unwrap_or(0),
            ..self.setup.config.clone()
        }
    }

    /// The state that a node starts from: what it has saved, or, if the log begins after that,
    /// its newest snapshot that the log goes on from.
    fn recover_state(
        &mut self,
        id: NodeId,
        snapshots: &Snapshots,
        recovered: &Recovered,
    ) -> Checked<Found> {
        if self.setup.machine == MachineKind::Store {
            return self.recover_kv(id, snapshots, recovered);
        }
        let saved = match self.setup.machine {
            MachineKind::Memory | MachineKind::Store => Machine::default(),
            MachineKind::Durable => self.node(id).saved.clone(),
        };
        let view = LogView::of(recovered);
        let is_covered = |meta: &SnapshotMeta| view.holds(meta.last);
        let newest = snapshots
            .newest_intact(is_covered)
            .map_err(|error| format!("the snapshots of {id} cannot be read: {error}"))?;
        // A file that the log does not know of was received, and the log not yet reset to it.
        for info in snapshots.list().iter().filter(|info| !is_covered(&info.meta)) {
            snapshots
                .remove(info.meta.last)
                .map_err(|error| format!("a snapshot of {id} cannot be removed: {error}"))?;
        }
        let is_needed =
            saved.applied < recovered.log_start.index || self.setup.machine == MachineKind::Memory;
        let restored = newest
            .filter(|info| is_needed && saved.applied < info.meta.last.index)
            .and_then(|info| machine_of(snapshots, info.meta.last));
        let machine = restored.unwrap_or(saved);
        if recovered.log_start.index <= machine.applied {
            return Ok(Found::State(machine, None));
        }
        if self.ledger.is_damaged(id) {
            return Ok(Found::Lost);
        }
        Err(format!(
            "{id} has a log after {} and a state of {}: the entries between are gone",
            recovered.log_start, machine.applied
        ))
    }

    /// There is no room to recover: the process exits, and may be started again.
    fn stay_down(&mut self, id: NodeId) -> Checked {
        self.note(Note::Full { node: id });
        self.node_mut(id).disk.kill();
        Ok(())
    }

    /// A disk that was damaged on purpose cannot be started from: the server has to be replaced.
    fn give_up_disk(&mut self, id: NodeId) -> Checked {
        self.note(Note::Lost { node: id });
        let node = self.node_mut(id);
        node.is_dead = true;
        node.disk.kill();
        Ok(())
    }

    fn open_log(
        &self,
        id: NodeId,
        disk: Arc<SimDisk>,
        count: u64,
    ) -> Result<(Log, Opened), LogError> {
        let identity = IdentityRequest {
            cluster: 0x6b6f_6e74_696b_6921,
            node: id,
            genesis: self.node(id).genesis.clone().unwrap_or_default(),
            new_store: StoreId(self.dice.roll(Stream::Process, id.get(), count)),
        };
        Log::open(disk, &data_dir(id), &identity, self.setup.log.clone())
    }

    /// Looks at what would be left if all lost their power now. Copies of the disks are crashed;
    /// the world does not notice.
    pub(crate) fn audit(&mut self) -> Checked {
        let mut found = Vec::new();
        for id in self.node_ids() {
            let node = self.node(id);
            if node.is_dead || node.lives == 0 || self.ledger.is_damaged(id) {
                continue;
            }
            let count = self.count(id);
            let disk = Arc::new(self.node(id).disk.fork());
            disk.crash(self.dice.roll(Stream::Crash, id.get(), count));
            self.audit_kv_on(id, Arc::clone(&disk))?;
            let opened = self
                .open_log(id, disk, count)
                .map_err(|error| format!("the log of {id} would not open: {error}"))?;
            found.push((id, opened.1.recovered));
        }
        self.ledger.audit(&found)
    }

    fn new_clock(&self, id: NodeId, count: u64) -> Clock {
        let drift = self.setup.clock_drift;
        let rate = self.dice.within(
            &(1_000_000 - drift..=1_000_000 + drift),
            Stream::Clock,
            id.get(),
            count,
        );
        // No two clocks show the same time, and a later life may see an earlier time.
        let offset = self.dice.below(1 << 50, Stream::Clock, !id.get(), count);
        Clock { started: self.now, offset, rate }
    }
}
