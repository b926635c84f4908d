//! The clients of a swarm: each asks one thing at a time, and waits, though not for ever.

use std::time::Duration;

use kontiki_raft::{NodeId, ReadMode, Role};

use crate::{
    command::{Action, Stamp, number},
    dice::{Dice, Draws, Stream},
    machine::MachineKind,
    requests::Outcome,
    trace::Failure,
    world::World,
};

/// A client. Every other one has a session, and tries an operation again until it is done.
pub(super) struct Client {
    draws: Draws,
    session: Option<u64>,
    sequence: u64,
    /// An operation of the session that is not known to be done, and how often it was asked for.
    open: Option<(Stamp, Action, u64)>,
    waits_for: Option<u64>,
    wake: Duration,
    patience: Duration,
    pub(super) lease_reads: u64,
}

/// How many keys a client of a store knows. Fewer than [`APPENDED`].
const MANY_KEYS: u64 = 24;

/// Of the writes of clients without a session so many forget history.
const COMPACT_PERCENT: u64 = 15;

/// So many take away a key.
const DELETE_PERCENT: u64 = 15;

/// Then a client leaves its operation, done or not, and goes on to the next.
const TRIES_MAX: u64 = 6;

impl Client {
    pub(super) fn new(seed: u64, client: u64) -> Self {
        Self {
            draws: Draws::new(Dice::new(seed), Stream::Client, client),
            session: client.is_multiple_of(2).then_some(client),
            sequence: 0,
            open: None,
            waits_for: None,
            wake: Duration::ZERO,
            patience: Duration::ZERO,
            lease_reads: 0,
        }
    }

    /// Looks at what has come, and asks for something new when it is time.
    pub(super) fn act(&mut self, world: &mut World) -> Result<(), Failure> {
        let now = world.now();
        if let Some(request) = self.waits_for {
            let outcome = world.request(request).and_then(|r| r.outcome.as_ref());
            if outcome.is_none() && now < self.patience {
                return Ok(());
            }
            if matches!(outcome, Some((_, Outcome::Applied(_)))) {
                self.open = None;
            }
            self.waits_for = None;
            self.wake = now + Duration::from_micros(self.draws.log_uniform(100..=300_000));
        }
        if now < self.wake {
            return Ok(());
        }
        let nodes = u64::try_from(world.node_ids().count()).unwrap_or(1);
        let any = NodeId(self.draws.within(1..=nodes));
        let asks_leader = self.draws.percent(30);
        let id = leader(world).filter(|_| asks_leader).unwrap_or(any);
        if !world.is_up(id) {
            // The connection is refused.
            self.wake = now + Duration::from_millis(20);
            return Ok(());
        }
        self.patience = now + self.draws.millis(50..=4_000);
        self.waits_for = Some(self.ask(world, id)?);
        Ok(())
    }

    fn ask(&mut self, world: &mut World, id: NodeId) -> Result<u64, Failure> {
        // A store has keys that are in use, and others that are let be for long.
        let is_store = world.setup.machine == MachineKind::Store;
        let keys = if is_store && self.draws.percent(50) { MANY_KEYS } else { 3 };
        let key = self.draws.below(keys);
        let is_read = self.draws.percent(50);
        let padding = usize::try_from(self.draws.log_uniform(1..=2_000)).unwrap_or_default();
        let by_lease = self.draws.percent(50);
        if let Some((stamp, action, tries)) = self.open.take() {
            if tries < TRIES_MAX {
                self.open = Some((stamp, action.clone(), tries + 1));
                return world.call(id, action, Some(stamp));
            }
        } else if is_read {
            let lease = 0 < world.setup.config.clock_drift_ppm_max && by_lease;
            self.lease_reads += u64::from(lease);
            // Half of the reads are of what the sessions append to.
            let key = if by_lease { key } else { key + APPENDED };
            return world.read_with(
                id,
                key,
                if lease { ReadMode::Lease } else { ReadMode::ReadIndex },
            );
        }
        if is_store && self.session.is_none() {
            let luck = self.draws.below(100);
            if luck < COMPACT_PERCENT {
                let keep = self.draws.log_uniform(1..=40);
                return world.call(id, Action::Compact { keep }, None);
            } else if luck < COMPACT_PERCENT + DELETE_PERCENT {
                return world.call(id, Action::Delete { key }, None);
            }
        }
        // Every value is written once: a read tells which write it has seen.
        let value = world.requests.next_number();
        let Some(session) = self.session else {
            return world.write(id, Some(key), value, padding);
        };
        self.sequence += 1;
        let stamp = Stamp { session, sequence: self.sequence };
        let action = Action::Append { key: key + APPENDED, value: number(value) };
        self.open = Some((stamp, action.clone(), 1));
        world.call(id, action, Some(stamp))
    }
}

/// Keys from here on are appended to, those before are overwritten.
const APPENDED: u64 = 100;

/// Who leads, or believes so.
pub(super) fn leader(world: &World) -> Option<NodeId> {
    let leads = |id: &NodeId| world.status(*id).is_some_and(|status| status.role == Role::Leader);
    world.node_ids().filter(leads).max_by_key(|&id| world.status(id).map(|status| status.term))
}
