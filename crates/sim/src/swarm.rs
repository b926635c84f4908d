//! Random worlds: random size, random weather, random faults, clients with a history.
//!
//! Each seed draws which faults there are at all and how often they come, so that rare
//! combinations get runs of their own. A run has two phases. In the *safety* phase anything may
//! go wrong at any time, and the invariants must hold. In the *liveness* phase the faults end,
//! at least for a majority: within bounded time there must be a leader, a fresh write must be
//! acknowledged, all must catch up, and what the clients have seen must be linearizable.

use std::time::Duration;

use kontiki_raft::{NodeId, Role};

use crate::{
    dice::{Dice, Draws, Stream},
    disk,
    machine::MachineKind,
    network::NetworkSettings,
    requests::Outcome,
    trace::Failure,
    world::{Setup, World},
};

/// What a run has seen: a test asks for what it is meant to see, lest it checks nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Elections that were won.
    pub leader_changes: u64,
    /// Entries of a log that were replaced.
    pub truncations: u64,
    /// Records that were on their way to a disk when the power failed, and were gone.
    pub torn_records: u64,
    /// Writes without an answer that were lost.
    pub lost_writes: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Reads that were served.
    pub reads: u64,
    /// Requests that were rejected.
    pub rejected: u64,
    /// Proposals whose place was taken by another entry.
    pub superseded: u64,
    /// Requests whose outcome was unknown.
    pub unknown: u64,
    /// Power failures.
    pub crashes: u64,
    /// Processes that were killed.
    pub kills: u64,
    /// Processes that were paused.
    pub pauses: u64,
    /// Links that were cut in one direction only.
    pub one_way_cuts: u64,
    /// Attempts to hand leadership over.
    pub transfers: u64,
    /// Nodes that stopped because their disk failed.
    pub disk_failures: u64,
    /// Old entries that were read back from a log for a follower.
    pub stored_reads: u64,
    /// Purges that removed something.
    pub purges: u64,
}

impl Seen {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            leader_changes: self.leader_changes + other.leader_changes,
            truncations: self.truncations + other.truncations,
            torn_records: self.torn_records + other.torn_records,
            lost_writes: self.lost_writes + other.lost_writes,
            acknowledged: self.acknowledged + other.acknowledged,
            reads: self.reads + other.reads,
            rejected: self.rejected + other.rejected,
            superseded: self.superseded + other.superseded,
            unknown: self.unknown + other.unknown,
            crashes: self.crashes + other.crashes,
            kills: self.kills + other.kills,
            pauses: self.pauses + other.pauses,
            one_way_cuts: self.one_way_cuts + other.one_way_cuts,
            transfers: self.transfers + other.transfers,
            disk_failures: self.disk_failures + other.disk_failures,
            stored_reads: self.stored_reads + other.stored_reads,
            purges: self.purges + other.purges,
        }
    }
}

/// Runs the world of this seed.
///
/// # Errors
///
/// When an invariant breaks, the cluster does not come round, or the history is not
/// linearizable.
pub fn run(seed: u64) -> Result<Seen, Failure> {
    run_with_digest(seed).map(|(seen, _)| seen)
}

/// As [`run`], with the digest of all that happened.
///
/// # Errors
///
/// As [`run`].
pub fn run_with_digest(seed: u64) -> Result<(Seen, u64), Failure> {
    let mut swarm = Swarm::new(seed);
    swarm.world.start_all()?;
    let end = swarm.draws.millis(3_000..=30_000);
    while swarm.world.now() < end {
        let pause = Duration::from_micros(swarm.draws.log_uniform(1_000..=swarm.calm));
        swarm.run_for(pause)?;
        swarm.one_fault()?;
        if swarm.draws.percent(5) {
            swarm.world.audit_disks()?;
        }
    }
    swarm.end_faults()?;
    swarm.check_liveness()?;
    swarm.check_history()?;
    swarm.count();
    for id in swarm.world.node_ids() {
        swarm.world.crash(id);
    }
    swarm.world.start_all()?;
    swarm.world.digest_disks();
    Ok((swarm.seen, swarm.world.digest()))
}

struct Swarm {
    world: World,
    draws: Draws,
    seen: Seen,
    faults: Vec<Fault>,
    /// The longest pause between two faults, in microseconds.
    calm: u64,
    clients: Vec<Client>,
    /// Writes to a disk that will fail, and have not yet.
    failing: Vec<NodeId>,
}

/// What may go wrong in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Crash,
    CrashAll,
    Kill,
    Pause,
    CutOneWay,
    Isolate,
    Split,
    Transfer,
    DiskFails,
}

const FAULTS: [Fault; 9] = [
    Fault::Crash,
    Fault::CrashAll,
    Fault::Kill,
    Fault::Pause,
    Fault::CutOneWay,
    Fault::Isolate,
    Fault::Split,
    Fault::Transfer,
    Fault::DiskFails,
];

/// One at a time it asks something of some node, and waits, though not for ever.
struct Client {
    draws: Draws,
    waits_for: Option<u64>,
    wake: Duration,
    patience: Duration,
}

impl Swarm {
    fn new(seed: u64) -> Self {
        let dice = Dice::new(seed);
        let mut shape = Draws::new(dice, Stream::Shape, 0);
        let setup = draw_setup(seed, &mut shape);
        let faults = FAULTS.into_iter().filter(|_| shape.percent(50)).collect();
        let clients = (1..=shape.within(1..=6))
            .map(|client| Client {
                draws: Draws::new(dice, Stream::Client, client),
                waits_for: None,
                wake: Duration::ZERO,
                patience: Duration::ZERO,
            })
            .collect();
        Self {
            world: World::new(setup),
            draws: Draws::new(dice, Stream::Scenario, 0),
            seen: Seen::default(),
            faults,
            calm: shape.log_uniform(50_000..=5_000_000),
            clients,
            failing: Vec::new(),
        }
    }

    fn any_node(&mut self) -> NodeId {
        NodeId(self.draws.within(1..=self.world.setup.nodes))
    }

    fn leader(&self) -> Option<NodeId> {
        let leads =
            |id: &NodeId| self.world.status(*id).is_some_and(|status| status.role == Role::Leader);
        self.world.node_ids().find(leads)
    }

    // ------------------------------------------------------------------------- clients

    fn run_for(&mut self, time: Duration) -> Result<(), Failure> {
        let end = self.world.now() + time;
        while self.world.now() < end {
            for at in 0..self.clients.len() {
                self.act(at)?;
            }
            let step = Duration::from_millis(5).min(end - self.world.now());
            self.world.run_for(step)?;
        }
        Ok(())
    }

    fn act(&mut self, at: usize) -> Result<(), Failure> {
        let now = self.world.now();
        let (client, nodes) = (&mut self.clients[at], self.world.setup.nodes);
        if let Some(number) = client.waits_for {
            let is_open = self.world.request(number).is_none_or(|r| r.outcome.is_none());
            if is_open && now < client.patience {
                return Ok(());
            }
            client.waits_for = None;
            client.wake = now + Duration::from_micros(client.draws.log_uniform(100..=300_000));
        }
        if now < client.wake {
            return Ok(());
        }
        let any = NodeId(client.draws.within(1..=nodes));
        let asks_leader = client.draws.percent(30);
        let id = self.leader().filter(|_| asks_leader).unwrap_or(any);
        let client = &mut self.clients[at];
        if !self.world.is_up(id) {
            // The connection is refused.
            client.wake = now + Duration::from_millis(20);
            return Ok(());
        }
        let key = client.draws.below(3);
        let is_read = client.draws.percent(50);
        client.patience = now + client.draws.millis(50..=4_000);
        let padding = usize::try_from(client.draws.log_uniform(1..=2_000)).unwrap_or_default();
        let number = if is_read {
            self.world.read(id, key)?
        } else {
            // Every value is written once: a read tells which write it has seen.
            let value = self.world.requests.next_number();
            self.world.write(id, Some(key), value, padding)?
        };
        self.clients[at].waits_for = Some(number);
        Ok(())
    }

    // -------------------------------------------------------------------------- faults

    /// Something breaks, or something is repaired.
    fn one_fault(&mut self) -> Result<(), Failure> {
        self.bury_the_dead();
        if self.faults.is_empty() || self.draws.percent(55) {
            return self.repair();
        }
        let fault = *self.draws.pick(&self.faults);
        let id = self.any_node();
        match fault {
            Fault::Crash => self.crash(id),
            Fault::CrashAll if self.draws.percent(80) => {}
            Fault::CrashAll => {
                for id in self.world.node_ids() {
                    self.crash(id);
                }
            }
            Fault::Kill => self.kill(id),
            Fault::Pause => {
                self.seen.pauses += 1;
                self.world.pause(id);
            }
            Fault::CutOneWay => {
                self.seen.one_way_cuts += 1;
                let to = self.any_node();
                self.world.cut(id, to);
            }
            Fault::Isolate => {
                // The leader is the one that hurts.
                let id = self.leader().filter(|_| self.draws.percent(60)).unwrap_or(id);
                self.separate(|other| other == id);
            }
            Fault::Split => {
                let side = self.draws.bits();
                self.separate(|other| (side >> other.get()) & 1 == 1);
            }
            Fault::Transfer => {
                let to = self.draws.percent(50).then_some(id);
                if let Some(leader) = self.leader() {
                    self.seen.transfers += 1;
                    self.world.transfer_leadership(leader, to)?;
                }
            }
            Fault::DiskFails => self.fail_disk(id),
        }
        Ok(())
    }

    /// Cuts all links between those on this side and the others.
    fn separate(&mut self, is_here: impl Fn(NodeId) -> bool) {
        for from in self.world.node_ids() {
            for to in self.world.node_ids() {
                if is_here(from) != is_here(to) {
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

    fn fail_disk(&mut self, id: NodeId) {
        if self.world.is_up(id) && !self.failing.contains(&id) {
            let disk = self.world.disk(id);
            let kind = if self.draws.percent(50) { disk::Fault::Io } else { disk::Fault::NoSpace };
            disk.fail_at(disk.ops() + 1 + self.draws.below(3), kind);
            self.failing.push(id);
        }
    }

    /// A node whose disk has failed takes part no more; its process exits, as the real one does.
    fn bury_the_dead(&mut self) {
        for id in self.world.node_ids() {
            let is_stopped = |status: crate::NodeStatus| status.role == Role::Stopped;
            if self.world.status(id).is_some_and(is_stopped) {
                self.seen.disk_failures += 1;
                // With the machine, or alone: then the next process may read back what the disk
                // has never got (fsyncgate).
                self.failing.retain(|&other| other != id);
                if self.draws.percent(50) {
                    self.crash(id);
                } else {
                    self.kill(id);
                }
            }
        }
    }

    fn repair(&mut self) -> Result<(), Failure> {
        let id = self.any_node();
        match self.draws.below(4) {
            0 => self.world.heal_all(),
            1 => {
                for other in self.world.node_ids() {
                    self.world.heal(id, other);
                }
            }
            2 => self.world.resume(id)?,
            _ => self.world.start(id)?,
        }
        // Most of the time most nodes are up; otherwise nothing happens at all.
        for id in self.world.node_ids() {
            if self.draws.percent(40) {
                self.world.start(id)?;
                self.world.resume(id)?;
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------------------ liveness

    /// The faults end, for all or for a majority; in the second case the others are gone.
    fn end_faults(&mut self) -> Result<(), Failure> {
        self.bury_the_dead();
        for &id in &self.failing.clone() {
            self.crash(id);
        }
        self.world.set_network(NetworkSettings::reliable());
        self.world.heal_all();
        for id in self.world.node_ids() {
            self.world.resume(id)?;
        }
        let nodes = self.world.setup.nodes;
        let away = if self.draws.percent(50) { (nodes - 1) / 2 } else { 0 };
        let first = self.draws.below(nodes);
        for step in 0..nodes {
            let id = NodeId((first + step) % nodes + 1);
            if step < away {
                self.crash(id);
            } else {
                self.world.start(id)?;
            }
        }
        Ok(())
    }

    /// Clients that try again are served soon, and all that run catch up.
    fn check_liveness(&mut self) -> Result<(), Failure> {
        // An election or two, with timeouts of up to two seconds each, and slow disks.
        const LIMIT: Duration = Duration::from_secs(20);
        self.world.setup.request_timeout = Duration::from_secs(2);
        let id = self.world.node_ids().find(|&id| self.world.is_up(id)).unwrap_or(NodeId(1));
        let end = self.world.now() + LIMIT;
        for is_read in [false, true] {
            loop {
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
                            "{id} serves nobody long after the faults have ended: {other:?}"
                        )));
                    }
                    _ => self.world.run_for(Duration::from_millis(50))?,
                }
            }
        }
        let is_caught_up = |world: &World| {
            let mut running = world.node_ids().filter_map(|id| world.status(id));
            running.all(|status| status.applied == world.committed_index())
        };
        if !self.world.run_until(LIMIT, is_caught_up)? {
            let states: Vec<_> = self.world.node_ids().map(|id| self.world.status(id)).collect();
            return Err(self.world.failure(format!("not all have caught up: {states:?}")));
        }
        // Whatever is still open is answered by its deadline.
        self.world.run_for(Duration::from_secs(9))
    }

    fn check_history(&self) -> Result<(), Failure> {
        self.world.check_linearizable().map_err(|error| self.world.failure(error.to_string()))
    }

    fn count(&mut self) {
        let seen = &mut self.seen;
        seen.leader_changes += self.world.leader_changes();
        seen.truncations += self.world.truncations();
        seen.torn_records += self.world.lost_records();
        seen.stored_reads += self.world.stored_reads;
        seen.purges += self.world.purges;
        for request in self.world.all_requests() {
            match &request.outcome {
                Some((_, Outcome::Applied(_))) => seen.acknowledged += 1,
                Some((_, Outcome::Read(_))) => seen.reads += 1,
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

fn draw_setup(seed: u64, shape: &mut Draws) -> Setup {
    let micros = Duration::from_micros;
    let mut setup = Setup::new(seed, shape.within(1..=7));
    let slowest = shape.log_uniform(200..=50_000);
    setup.network = NetworkSettings {
        delay: (micros(slowest / 10), micros(slowest)),
        loss: if shape.percent(50) { shape.log_uniform(1_000..=300_000) } else { 0 },
        duplicates: if shape.percent(50) { shape.log_uniform(1_000..=300_000) } else { 0 },
        stragglers: if shape.percent(50) { shape.log_uniform(1_000..=50_000) } else { 0 },
        has_long_reordering: shape.percent(10),
        is_ordered: shape.percent(50),
        keeps_in_flight: shape.percent(50),
    };
    let slowest = shape.log_uniform(50..=30_000);
    setup.sync = (micros(slowest / 20), micros(slowest));
    setup.stalls = if shape.percent(50) { shape.log_uniform(100..=20_000) } else { 0 };
    let slowest = shape.log_uniform(10..=50_000);
    setup.apply = (micros(1), micros(slowest));
    if shape.percent(50) {
        setup.machine = MachineKind::Durable;
    }
    setup.clock_drift = shape.log_uniform(1..=50_000);
    setup.timer_lateness = micros(shape.log_uniform(1..=20_000));
    setup.request_timeout = shape.millis(100..=8_000);
    setup.log.segment_bytes = 4_096 * shape.log_uniform(2..=16);
    setup.log.spares = usize::try_from(shape.below(3)).unwrap_or_default();

    let small = |shape: &mut Draws, low, high| {
        usize::try_from(shape.log_uniform(low..=high)).unwrap_or_default()
    };
    let config = &mut setup.config;
    config.purge_entries_min = shape.log_uniform(1..=200);
    config.log_keep_bytes = 0;
    if shape.percent(50) {
        config.append_bytes_max = small(shape, 1, 20_000);
        config.inflight_messages_max = small(shape, 1, 16);
        config.inflight_bytes_max = small(shape, 1, 50_000);
    }
    if shape.percent(50) {
        config.log_cache_bytes_max = small(shape, 1, 10_000);
    }
    if shape.percent(20) {
        config.entry_bytes_max = small(shape, 1_000, 4_000);
        config.uncommitted_bytes_max = config.entry_bytes_max + small(shape, 1, 4_000);
        config.unapplied_bytes_max = small(shape, 1, 10_000);
        config.pending_reads_max = small(shape, 1, 4);
    }
    setup
}
