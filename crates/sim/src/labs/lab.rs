//! The language of the scenarios: `cut`, `heal`, `crash`, `start`, `submit`, `one`,
//! `check_one_leader` and a few more, with the meanings they have in the Raft course.
//!
//! A node that is *cut* hears nobody and is heard by nobody; two nodes talk if neither is cut.
//! Indexes count *commands*: blank entries of new leaders are left out, as the course's tests
//! know none. A command is submitted to a node only while that node takes itself for the leader.

use std::time::Duration;

use kontiki_raft::{NodeId, Role, Term};

use super::Keeps;
use crate::{
    command::Action,
    dice::{Dice, Draws, Stream},
    machine::MachineKind,
    network::NetworkSettings,
    requests::Ask,
    trace::Failure,
    world::{Setup, World},
};

/// The election timeout of the course's tests, and of ours.
pub(crate) const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// What a server may keep of its log where that is bounded: the entries that neither its newest
/// snapshot nor the policy has made superfluous. Its files are cut by whole segments, later.
const STATE_BYTES_MAX: usize = 2_000;

/// No test may take longer, in virtual time.
const TIME_LIMIT: Duration = Duration::from_secs(120);

pub(crate) type Done<T = ()> = Result<T, Failure>;

/// A cluster on which a scenario is played.
#[derive(Debug)]
pub struct Lab {
    pub(crate) world: World,
    pub(crate) draws: Draws,
    is_cut: Vec<bool>,
    next_value: u64,
    /// Whom `one` asks first next time.
    next_asked: u64,
    keeps: Keeps,
}

/// Where a leader has put a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Counted without blank entries, from 1.
    pub(crate) number: u64,
    pub(crate) term: Term,
    pub(crate) value: u64,
}

/// An agreement that is being waited for: see [`Lab::one`].
#[derive(Debug)]
pub(crate) struct One {
    value: u64,
    padding: usize,
    expected: u64,
    retries: bool,
    begun: Duration,
    /// Where it was put, and when.
    placed: Option<(Place, Duration)>,
    /// When to look again.
    wake: Duration,
}

impl Lab {
    /// A cluster of so many nodes, all of them running. The seed decides about the disks and
    /// clocks, too.
    ///
    /// # Errors
    ///
    /// When an invariant breaks.
    pub(crate) fn new(seed: u64, nodes: u64, keeps: Keeps) -> Done<Self> {
        let mut setup = draw_setup(seed, nodes);
        set_keeps(&mut setup, keeps);
        let mut world = World::new(setup);
        world.set_time_limit(TIME_LIMIT);
        Ok(Self {
            draws: Draws::new(Dice::new(seed), Stream::Scenario, 0),
            is_cut: (0..nodes).map(|_| false).collect(),
            next_value: 1,
            next_asked: 0,
            keeps,
            world,
        })
    }

    pub(crate) fn nodes(&self) -> u64 {
        self.world.setup.nodes
    }

    /// The node `step` places after this one, in a ring.
    pub(crate) fn after(&self, id: NodeId, step: u64) -> NodeId {
        NodeId((id.get() - 1 + step) % self.nodes() + 1)
    }

    pub(crate) fn any_node(&mut self) -> NodeId {
        NodeId(self.draws.within(1..=self.nodes()))
    }

    pub(crate) fn failure(&self, what: impl Into<String>) -> Failure {
        self.world.failure(what)
    }

    pub(crate) fn sleep(&mut self, time: Duration) -> Done {
        self.world.run_for(time)
    }

    // -------------------------------------------------------------------------- faults

    fn is_cut(&self, id: NodeId) -> bool {
        self.is_cut[crate::world::place(id)]
    }

    /// Running and not cut.
    pub(crate) fn is_connected(&self, id: NodeId) -> bool {
        self.world.is_up(id) && !self.is_cut(id)
    }

    fn set_cut(&mut self, id: NodeId, is_cut: bool) {
        self.is_cut[crate::world::place(id)] = is_cut;
        for other in self.world.node_ids() {
            if is_cut || self.is_cut(other) {
                self.world.cut(id, other);
                self.world.cut(other, id);
            } else {
                self.world.heal(id, other);
                self.world.heal(other, id);
            }
        }
    }

    /// Takes a node off the network.
    pub(crate) fn cut(&mut self, id: NodeId) {
        self.set_cut(id, true);
    }

    /// Puts a node back on the network.
    pub(crate) fn heal(&mut self, id: NodeId) {
        self.set_cut(id, false);
    }

    pub(crate) fn heal_all(&mut self) {
        for id in self.world.node_ids() {
            self.heal(id);
        }
    }

    /// The power of a node fails; it is off the network, too.
    pub(crate) fn crash(&mut self, id: NodeId) {
        self.cut(id);
        self.world.crash(id);
    }

    /// A node is started, after a crash if it runs, and put on the network.
    pub(crate) fn start(&mut self, id: NodeId) -> Done {
        self.world.crash(id);
        self.world.start(id)?;
        self.heal(id);
        Ok(())
    }

    /// Starts what is down and heals what is cut.
    pub(crate) fn start_and_heal_all(&mut self) -> Done {
        self.world.start_all()?;
        self.heal_all();
        Ok(())
    }

    /// Servers of one side hear nobody of the other.
    pub(crate) fn part(&mut self, here: &[NodeId], there: &[NodeId]) {
        self.heal_all();
        for &one in here {
            for &other in there {
                self.world.cut(one, other);
                self.world.cut(other, one);
            }
        }
    }

    /// No server that runs keeps more of its log than it is allowed to, or it stops to within a
    /// second: the last snapshot may be on its way to the disk.
    pub(crate) fn check_sizes(&mut self) -> Done {
        if self.keeps == Keeps::All {
            return Ok(());
        }
        let largest = |world: &World| {
            let up = world.node_ids().filter(|&id| world.is_up(id));
            up.map(|id| (world.state_bytes(id), id)).max()
        };
        let is_small =
            |world: &World| largest(world).is_none_or(|(bytes, _)| bytes <= STATE_BYTES_MAX);
        let is_patient = self.keeps == Keeps::Bytes;
        let patience = if is_patient { Duration::from_secs(1) } else { Duration::ZERO };
        if self.world.run_until(patience, is_small)? {
            return Ok(());
        }
        let largest = largest(&self.world);
        Err(self.failure(format!("a log keeps more than {STATE_BYTES_MAX} B: {largest:?}")))
    }

    pub(crate) fn set_unreliable(&mut self, is_unreliable: bool) {
        self.world.set_network(if is_unreliable {
            NetworkSettings::unreliable()
        } else {
            NetworkSettings::reliable()
        });
    }

    pub(crate) fn set_long_reordering(&mut self) {
        let settings = self.world.network().clone();
        self.world.set_network(NetworkSettings { has_long_reordering: true, ..settings });
    }

    // --------------------------------------------------------------------------- looks

    fn leads(&self, id: NodeId) -> Option<Term> {
        let status = self.world.status(id)?;
        (status.role == Role::Leader).then_some(status.term)
    }

    pub(crate) fn term(&self, id: NodeId) -> Option<Term> {
        self.world.status(id).map(|status| status.term)
    }

    /// Ten looks, about half a second apart: there must be a leader among the connected nodes,
    /// and never two in a term. The one of the newest term.
    pub(crate) fn check_one_leader(&mut self) -> Done<NodeId> {
        for _ in 0..10 {
            let pause = self.draws.millis(450..=550);
            self.sleep(pause)?;
            let mut leaders: Vec<(Term, NodeId)> = Vec::new();
            for id in self.world.node_ids().filter(|&id| self.is_connected(id)) {
                if let Some(term) = self.leads(id) {
                    leaders.push((term, id));
                }
            }
            leaders.sort_unstable();
            if let Some(pair) = leaders.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                let [(term, one), (_, other)] = [pair[0], pair[1]];
                return Err(self.failure(format!("{one} and {other} both lead term {term}")));
            }
            if let Some(&(_, leader)) = leaders.last() {
                return Ok(leader);
            }
        }
        Err(self.failure("expected one leader, got none"))
    }

    pub(crate) fn check_no_leader(&self) -> Done {
        let leader =
            self.world.node_ids().find(|&id| self.is_connected(id) && self.leads(id).is_some());
        match leader {
            Some(id) => Err(self.failure(format!("{id} leads without a quorum"))),
            None => Ok(()),
        }
    }

    /// The term that all connected nodes agree on.
    pub(crate) fn check_terms(&self) -> Done<Term> {
        let mut terms = self.world.node_ids().filter(|&id| self.is_connected(id));
        let first = terms.next().and_then(|id| self.term(id)).unwrap_or_default();
        match terms.find(|&id| self.term(id) != Some(first)) {
            Some(id) => Err(self.failure(format!("{id} is not in term {first}"))),
            None => Ok(first),
        }
    }

    /// How many nodes have applied the command of this number, and its value.
    pub(crate) fn committed(&self, number: u64) -> (u64, Option<u64>) {
        let holders = self
            .world
            .node_ids()
            .filter_map(|id| self.world.status(id))
            .filter(|status| number <= status.commands)
            .count();
        let value = (0 < holders).then(|| self.value_at(number)).flatten();
        (u64::try_from(holders).unwrap_or(u64::MAX), value)
    }

    fn value_at(&self, number: u64) -> Option<u64> {
        let request = self.world.committed_command(number)?;
        match self.world.request(request)?.ask {
            Ask::Write { action: Action::Note { value, .. }, .. } => Some(value),
            Ask::Write { .. } | Ask::Read { .. } | Ask::Change => None,
        }
    }

    /// Messages sent so far, two to a call.
    pub(crate) fn rpcs(&self) -> u64 {
        self.world.total_counts().messages / 2
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.world.total_counts().bytes
    }

    // ------------------------------------------------------------------------ commands

    pub(crate) fn new_value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    /// Gives a new command to a node, if it takes itself for the leader.
    pub(crate) fn submit(&mut self, id: NodeId) -> Done<Option<Place>> {
        let value = self.new_value();
        self.submit_value(id, value, 0)
    }

    pub(crate) fn submit_value(
        &mut self,
        id: NodeId,
        value: u64,
        padding: usize,
    ) -> Done<Option<Place>> {
        let Some(term) = self.leads(id) else { return Ok(None) };
        let request = self.world.write(id, None, value, padding)?;
        let last = self.world.ledger.last(id);
        let ledger = &self.world.ledger;
        if ledger.request_at(last) != Some(request) || last.term != term {
            return Ok(None);
        }
        let number = ledger.commands_upto(last).unwrap_or_default();
        Ok(Some(Place { number, term, value }))
    }

    /// Gives a command to whoever takes it, and waits until `expected` nodes have applied it:
    /// 2 s for each try, 10 s in all. Without `retries` the first try must succeed. Returns the
    /// number of the command.
    pub(crate) fn one(&mut self, expected: u64, retries: bool) -> Done<u64> {
        self.one_padded(expected, retries, 0)
    }

    pub(crate) fn one_padded(&mut self, expected: u64, retries: bool, padding: usize) -> Done<u64> {
        let one = self.begin_one(expected, retries, padding);
        let numbers = self.all(vec![one])?;
        Ok(numbers.first().copied().unwrap_or_default())
    }

    pub(crate) fn begin_one(&mut self, expected: u64, retries: bool, padding: usize) -> One {
        let now = self.world.now();
        let value = self.new_value();
        One { value, padding, expected, retries, begun: now, placed: None, wake: now }
    }

    /// Waits for several agreements at once.
    pub(crate) fn all(&mut self, mut ones: Vec<One>) -> Done<Vec<u64>> {
        let mut numbers = Vec::new();
        while !ones.is_empty() {
            let mut open = Vec::new();
            for mut one in ones {
                match self.look_at(&mut one)? {
                    Some(number) => numbers.push(number),
                    None => open.push(one),
                }
            }
            ones = open;
            if let Some(wake) = ones.iter().map(|one| one.wake).min() {
                self.sleep(wake.saturating_sub(self.world.now()))?;
            }
        }
        Ok(numbers)
    }

    /// Takes an agreement one step further. The number of the command when it is reached.
    pub(crate) fn look_at(&mut self, one: &mut One) -> Done<Option<u64>> {
        let now = self.world.now();
        if now < one.wake {
            return Ok(None);
        }
        if let Some((place, since)) = one.placed {
            let (holders, value) = self.committed(place.number);
            if one.expected <= holders && value == Some(one.value) {
                return Ok(Some(place.number));
            }
            if now < since + Duration::from_secs(2) {
                one.wake = now + Duration::from_millis(20);
                return Ok(None);
            }
            one.placed = None;
            if !one.retries {
                return Err(self.no_agreement(one));
            }
        }
        if one.begun + Duration::from_secs(10) <= now {
            return Err(self.no_agreement(one));
        }
        for _ in 0..self.nodes() {
            self.next_asked += 1;
            let id = self.after(NodeId(1), self.next_asked);
            if self.is_connected(id)
                && let Some(place) = self.submit_value(id, one.value, one.padding)?
            {
                one.placed = Some((place, now));
                one.wake = now + Duration::from_millis(20);
                return Ok(None);
            }
        }
        one.wake = now + Duration::from_millis(50);
        Ok(None)
    }

    fn no_agreement(&self, one: &One) -> Failure {
        let taken = self.world.now() - one.begun;
        self.failure(format!(
            "no agreement of {} nodes on command {} within {} ms",
            one.expected,
            one.value,
            taken.as_millis()
        ))
    }

    /// Waits until `expected` nodes have applied the command of this number, and returns its
    /// value. `None` if `since` is given and some node has moved on to a later term.
    pub(crate) fn wait(
        &mut self,
        number: u64,
        expected: u64,
        since: Option<Term>,
    ) -> Done<Option<u64>> {
        let mut pause = Duration::from_millis(10);
        for _ in 0..30 {
            if expected <= self.committed(number).0 {
                break;
            }
            self.sleep(pause)?;
            pause = (pause * 2).min(Duration::from_secs(1));
            let is_over =
                |id| since.is_some_and(|since| self.term(id).is_some_and(|term| since < term));
            if self.world.node_ids().any(is_over) {
                return Ok(None);
            }
        }
        let (holders, value) = self.committed(number);
        if holders < expected {
            return Err(self.failure(format!(
                "only {holders} nodes have applied command number {number}, wanted {expected}"
            )));
        }
        Ok(value)
    }

    /// Command number `number` must not be applied anywhere.
    pub(crate) fn check_not_committed(&self, number: u64) -> Done {
        match self.committed(number).0 {
            0 => Ok(()),
            holders => Err(self.failure(format!(
                "{holders} nodes have applied command number {number}, which has no quorum"
            ))),
        }
    }

    /// The power of all nodes fails at once; every disk must hold what it had acknowledged.
    pub(crate) fn final_power_failure(&mut self) -> Done {
        for id in self.world.node_ids() {
            self.world.crash(id);
        }
        self.world.start_all()
    }
}

/// Where the state is bounded, the machine is in memory, so that a snapshot is all it has.
fn set_keeps(setup: &mut Setup, keeps: Keeps) {
    match keeps {
        Keeps::All => return,
        Keeps::Commands => setup.snapshot_commands = 10,
        Keeps::Bytes => setup.snapshot_bytes = 500,
    }
    // Small states are written quickly.
    setup.snapshot_time = (Duration::from_micros(100), Duration::from_millis(5));
    setup.machine = MachineKind::Memory;
    setup.config.log_keep_bytes = 0;
    setup.config.log_bytes_max = 300;
    setup.config.purge_entries_min = 1;
    setup.log.segment_bytes = 5 * 1024;
}

/// Disks, clocks and sizes are drawn anew for each run: no scenario may depend on them.
fn draw_setup(seed: u64, nodes: u64) -> Setup {
    let mut draws = Draws::new(Dice::new(seed), Stream::Shape, 0);
    let mut setup = Setup::new(seed, nodes);
    let slowest = draws.log_uniform(100..=4_000);
    setup.sync = (Duration::from_micros(slowest / 8), Duration::from_micros(slowest));
    setup.stalls = draws.below(1_000);
    let slowest = draws.log_uniform(10..=1_000);
    setup.apply = (Duration::from_micros(1), Duration::from_micros(slowest));
    setup.clock_drift = draws.log_uniform(1..=10_000);
    setup.timer_lateness = Duration::from_micros(draws.log_uniform(1..=5_000));
    setup.log.segment_bytes = 4096 * draws.within(4..=32);
    if draws.percent(50) {
        setup.machine = MachineKind::Durable;
    }
    if draws.percent(50) {
        // Followers that lag are served from the log, not from memory.
        setup.config.log_cache_bytes_max = 2_000;
    }
    setup
}
