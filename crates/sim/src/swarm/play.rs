//! Plays a scenario: first everything goes wrong, then enough of it ends.

use std::time::Duration;

use kontiki_raft::{EntryId, NodeId};

use super::{
    Seen,
    clients::{Client, leader},
    members::NO_MEMBERSHIP,
};
use crate::{
    disk,
    network::NetworkSettings,
    requests::Outcome,
    scenario::{LEADER, Scenario, Step, What},
    trace::Failure,
    world::World,
};

/// A scenario that is being played.
pub(super) struct Play {
    pub(super) world: World,
    pub(super) seen: Seen,
    scenario: Scenario,
    clients: Vec<Client>,
    /// Writes to a disk that will fail, and have not yet.
    failing: Vec<NodeId>,
    /// The committed membership that was looked at last.
    pub(super) membership_at: EntryId,
    /// How many addresses were given to servers that join.
    pub(super) addresses: u64,
    /// When a change of the membership was last asked for.
    pub(super) last_change: Duration,
}

impl Play {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let seed = scenario.setup.seed;
        Self {
            world: World::new(scenario.setup.clone()),
            seen: Seen::default(),
            clients: (1..=scenario.clients).map(|client| Client::new(seed, client)).collect(),
            scenario: scenario.clone(),
            failing: Vec::new(),
            membership_at: NO_MEMBERSHIP,
            addresses: 0,
            last_change: Duration::ZERO,
        }
    }

    /// The whole run. What it has seen, and the digest of all that happened.
    pub(super) fn run(mut self) -> Result<(Seen, u64), Failure> {
        self.world.start_all()?;
        for step in self.scenario.steps.clone() {
            self.run_until(step.at)?;
            self.bury_the_dead();
            self.take(step)?;
        }
        self.run_until(self.scenario.end)?;
        let mut core = self.end_faults()?;
        self.check_liveness(&mut core)?;
        self.world.check_linearizable().map_err(|error| self.world.failure(error.to_string()))?;
        self.world.audit_disks()?;
        self.world.digest_disks();
        self.count();
        Ok((self.seen, self.world.digest()))
    }

    fn run_until(&mut self, end: Duration) -> Result<(), Failure> {
        while self.world.now() < end {
            self.set_up()?;
            for client in &mut self.clients {
                client.act(&mut self.world)?;
            }
            let step = Duration::from_millis(5).min(end - self.world.now());
            self.world.run_for(step)?;
        }
        Ok(())
    }

    // ------------------------------------------------------------------------- faults

    /// The node that an argument means.
    fn node(&self, arg: u64) -> NodeId {
        let count = u64::try_from(self.world.node_ids().count()).unwrap_or(1).max(1);
        let any = NodeId((arg.wrapping_sub(1)) % count + 1);
        if arg == LEADER { leader(&self.world).unwrap_or(NodeId(1)) } else { any }
    }

    fn take(&mut self, step: Step) -> Result<(), Failure> {
        let [first, second] = step.args;
        let id = self.node(first);
        match step.what {
            What::Crash => self.crash(id),
            What::CrashAll => self.world.node_ids().for_each(|id| self.crash(id)),
            What::Kill => self.kill(id),
            What::Start => self.world.start(id)?,
            What::StartAll => {
                for id in self.world.node_ids() {
                    self.world.start(id)?;
                    self.world.resume(id)?;
                }
            }
            What::Pause => {
                self.seen.pauses += 1;
                self.world.pause(id);
            }
            What::Resume => self.world.resume(id)?,
            What::Cut | What::Isolate | What::Mute | What::Deafen | What::Split | What::Bridge => {
                self.part(step.what, id, step.args);
            }
            What::Heal => {
                for other in self.world.node_ids() {
                    self.world.heal(id, other);
                    self.world.heal(other, id);
                }
            }
            What::HealAll => self.world.heal_all(),
            What::Loss => {
                self.seen.storms += 1;
                let settings = NetworkSettings { loss: first, ..self.world.network().clone() };
                self.world.set_network(settings);
            }
            What::Transfer => {
                if let Some(leader) = leader(&self.world) {
                    self.seen.transfers += 1;
                    self.world.transfer_leadership(leader, (first != 0).then_some(id))?;
                }
            }
            What::DiskFails | What::DiskFull | What::DiskSpace | What::Stall => {
                self.trouble_disk(step.what, id, second);
            }
            What::Rot => self.rot(id, second),
            What::Destroy => self.destroy(id),
            What::Snapshot => self.world.make_snapshot(id)?,
            What::AddLearner
            | What::Promote
            | What::Demote
            | What::Remove
            | What::Replace
            | What::Update => {
                // What is asked for is decided before the faults end: nobody takes away a server
                // that the others cannot do without any more.
                let decided = step.at + self.world.setup.request_timeout + Duration::from_secs(2);
                if decided < self.scenario.end {
                    self.change_members(step.what, first)?;
                }
            }
        }
        Ok(())
    }

    fn part(&mut self, what: What, id: NodeId, [first, second]: [u64; 2]) {
        let side = |bits: u64, other: NodeId| (bits >> (other.get() % 64)) & 1 == 1;
        let is_one_way = matches!(what, What::Cut | What::Mute | What::Deafen);
        self.seen.one_way_cuts += u64::from(is_one_way);
        self.seen.cuts += u64::from(!is_one_way);
        let other_end = self.node(second);
        let bits = if what == What::Split { first } else { second };
        for from in self.world.node_ids() {
            for to in self.world.node_ids() {
                let is_cut = match what {
                    What::Cut => from == id && to == other_end,
                    What::Isolate => (from == id) != (to == id),
                    What::Mute => from == id,
                    What::Deafen => to == id,
                    What::Bridge => from != id && to != id && side(bits, from) != side(bits, to),
                    _ => side(bits, from) != side(bits, to),
                };
                if is_cut {
                    self.world.cut(from, to);
                }
            }
        }
    }

    fn crash(&mut self, id: NodeId) {
        if self.world.is_up(id) {
            self.seen.crashes += 1;
            self.world.crash(id);
        }
        self.failing.retain(|&other| other != id);
    }

    fn kill(&mut self, id: NodeId) {
        // A fault that is still to come must not hit the next process while it recovers.
        if self.failing.contains(&id) {
            return self.crash(id);
        }
        if self.world.is_up(id) {
            self.seen.kills += 1;
            self.world.stop(id);
        }
    }

    fn trouble_disk(&mut self, what: What, id: NodeId, arg: u64) {
        if what == What::DiskSpace {
            for id in self.world.node_ids() {
                self.world.disk(id).set_capacity(u64::MAX);
            }
        }
        if !self.world.is_up(id) || self.failing.contains(&id) {
            return;
        }
        let disk = self.world.disk(id);
        match what {
            What::DiskFails => {
                disk.fail_at(disk.ops() + 1 + arg, disk::Fault::Io);
                self.failing.push(id);
            }
            What::DiskFull => disk.set_capacity(disk.used() + arg),
            What::Stall => {
                self.seen.stalls += 1;
                self.world.stall(id, Duration::from_millis(arg));
            }
            _ => {}
        }
    }

    /// A bit flips on a disk, if the others can do without what it held.
    fn rot(&mut self, id: NodeId, luck: u64) {
        if self.world.is_set_up(id) && self.world.can_lose(id) && !self.is_changing() {
            self.crash(id);
            self.seen.damaged += u64::from(self.world.rot(id, luck));
        }
    }

    fn destroy(&mut self, id: NodeId) {
        if self.world.is_set_up(id) && self.world.can_lose(id) && !self.is_changing() {
            self.crash(id);
            self.seen.destroyed += 1;
            self.world.destroy(id);
        }
    }

    /// A node whose disk has failed takes part no more; its process exits, as the real one does.
    fn bury_the_dead(&mut self) {
        for id in self.world.node_ids() {
            if self.world.has_failed(id) {
                self.seen.disk_failures += 1;
                // With the machine, or alone: then the next process may read back what the disk
                // has never got (fsyncgate).
                self.failing.retain(|&other| other != id);
                if (self.world.event_count() + id.get()).is_multiple_of(2) {
                    self.crash(id);
                } else {
                    self.kill(id);
                }
            }
        }
    }

    // ------------------------------------------------------------------------ liveness

    /// The faults end for a quorum; the others are healed, down or cut off, as the scenario says.
    fn end_faults(&mut self) -> Result<Vec<NodeId>, Failure> {
        self.bury_the_dead();
        for &id in &self.failing.clone() {
            self.crash(id);
        }
        self.world.set_network(NetworkSettings::reliable());
        self.world.heal_all();
        for id in self.world.node_ids() {
            self.world.disk(id).set_capacity(u64::MAX);
            self.world.end_stall(id);
            self.world.resume(id)?;
        }
        self.set_up()?;
        let core = self.world.choose_core(self.scenario.first, self.scenario.rest == 0);
        for id in self.world.node_ids() {
            if core.contains(&id) {
                self.world.start(id)?;
            } else if self.scenario.rest == 2 {
                self.world.start(id)?;
                for other in self.world.node_ids() {
                    self.world.cut(id, other);
                    self.world.cut(other, id);
                }
            } else {
                self.crash(id);
            }
        }
        Ok(core)
    }

    /// Clients that try again are served soon, and all that run catch up.
    fn check_liveness(&mut self, core: &mut Vec<NodeId>) -> Result<(), Failure> {
        // An election or two, with timeouts of up to two seconds each, slow disks, a snapshot.
        const LIMIT: Duration = Duration::from_secs(30);
        self.world.setup.request_timeout = Duration::from_secs(2);
        let end = self.world.now() + LIMIT;
        for is_read in [false, true] {
            loop {
                self.widen(core)?;
                // A change that was under way may have removed whoever was asked last.
                let Some(id) = self.world.any_member(core) else { return Ok(()) };
                let number = if is_read {
                    self.world.read(id, 0)?
                } else {
                    let value = self.world.requests.next_number();
                    self.world.write(id, Some(0), value, 0)?
                };
                let outcome = |world: &World| world.request(number)?.outcome.clone();
                let has_outcome = |world: &World| outcome(world).is_some();
                self.world.run_until(Duration::from_secs(3), has_outcome)?;
                match outcome(&self.world) {
                    Some((_, Outcome::Applied(_) | Outcome::Read(_))) => break,
                    other if end < self.world.now() => {
                        return Err(self.world.failure(format!(
                            "{id} serves nobody long after the faults have ended: {other:?}; {}",
                            self.world.describe(core)
                        )));
                    }
                    _ => self.world.run_for(Duration::from_millis(50))?,
                }
                self.set_up()?;
            }
        }
        let core = &*core;
        let is_caught_up = |world: &World| {
            let (_, membership) = world.committed_membership();
            let counts = |id| membership.member(id).is_some() && !world.is_dead(id);
            // Who has lost something is let in when every other voter was heard of.
            let can_repair = membership.voters().all(|id| core.contains(&id) && world.is_up(id));
            core.iter().filter(|&&id| counts(id)).all(|&id| {
                world.status(id).is_some_and(|s| s.applied == world.committed_index())
                    && (!can_repair || !world.is_damaged(id))
            })
        };
        if !self.world.run_until(LIMIT, is_caught_up)? {
            let states = self.world.describe(core);
            return Err(self.world.failure(format!("not all have caught up: {states}")));
        }
        // Whatever is still open is answered by its deadline.
        self.world.run_for(Duration::from_secs(9))
    }

    /// A change that was on its way when the nodes were chosen may ask for more of them.
    fn widen(&mut self, core: &mut Vec<NodeId>) -> Result<(), Failure> {
        let needed = self.world.choose_core(self.scenario.first, false);
        if needed.iter().all(|id| core.contains(id)) || self.world.is_quorum(core) {
            return Ok(());
        }
        for id in needed {
            if !core.contains(&id) {
                core.push(id);
            }
            self.world.start(id)?;
        }
        for &from in &*core {
            for &to in &*core {
                self.world.heal(from, to);
            }
        }
        Ok(())
    }

    fn count(&mut self) {
        let (seen, world) = (&mut self.seen, &self.world);
        seen.worlds += 1;
        seen.virtual_millis += u64::try_from(world.now().as_millis()).unwrap_or_default();
        seen.leader_changes += world.leader_changes();
        seen.truncations += world.truncations();
        seen.torn_records += world.lost_records();
        seen.stored_reads += world.stored_reads;
        seen.purges += world.purges;
        seen.full_disks += world.full_disks;
        seen.leases += world.leases;
        seen.repeats += world.truth.repeats();
        seen.damaged_restarts += world.ledger.damaged_restarts;
        seen.repairs += world.ledger.repairs;
        seen.membership_changes += world.ledger.membership_changes;
        seen.joint_changes += world.ledger.joint_changes;
        seen.snapshots_made += world.snapshots.made;
        seen.snapshots_sent += world.snapshots.sent;
        seen.snapshots_broken += world.snapshots.broken;
        seen.snapshots_resumed += world.snapshots.resumed;
        seen.chunks_damaged += world.snapshots.damaged;
        seen.snapshots_installed += world.snapshots.installed;
        seen.given_back += world.given_back;
        seen.store_flushes += world.store_flushes;
        seen.store_audits += world.store_audits;
        seen.damaged_stores += world.damaged_stores;
        seen.lost_states += world.lost_states;
        seen.lease_reads += self.clients.iter().map(|client| client.lease_reads).sum::<u64>();
        for request in world.all_requests() {
            match &request.outcome {
                Some((_, Outcome::Applied(_))) => seen.acknowledged += 1,
                Some((_, Outcome::Read(_))) => seen.reads += 1,
                Some((_, Outcome::Changed(_))) => {}
                Some((_, Outcome::Rejected(_))) => seen.rejected += 1,
                Some((_, Outcome::Superseded)) => seen.superseded += 1,
                Some((_, Outcome::Unknown | Outcome::Gone)) | None => {
                    seen.unknown += 1;
                    seen.lost_writes += u64::from(request.committed.is_none());
                }
            }
        }
    }
}
