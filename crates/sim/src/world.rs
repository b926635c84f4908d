//! The world: one heap of things that will happen, one seed, no clock, no thread.
//!
//! Every node runs the real [`Replica`](kontiki::Replica) with the real
//! [`Log`](kontiki_log::Log) on a simulated disk, and messages go through the real codec. What is a thread in production (log writer, state machine, reader
//! of old entries) is here an event that comes later; the seed decides how much later. So every
//! interleaving that threads could have is an order of events, and can be had again.
//!
//! After every event the [`Ledger`] checks the invariants. The first that breaks ends the run.

mod clients;
mod faults;
mod members;

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use kontiki_log::LogOptions;
use kontiki_raft::{Bytes, Config, Index, Membership, NodeId};
use kontiki_store::StoreOptions;

use crate::{
    dice::{Dice, Stream},
    disk::SimDisk,
    ledger::{Broken, Ledger},
    linear::{self, NotLinearizable},
    machine::{Machine, MachineKind},
    network::{Network, NetworkSettings, nanos},
    node::{Counts, Happening, Node, NodeStatus},
    requests::{Request, Requests},
    trace::{Failure, Note, Recorder},
    truth::Truth,
};

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// How many voters there are: 1 to 7.
    pub nodes: u64,
    /// How messages travel.
    pub network: NetworkSettings,
    /// How long a write takes to be durable, from and to.
    pub sync: (Duration, Duration),
    /// How many writes in a million take up to a hundred times as long.
    pub stalls: u64,
    /// How long the state machine takes for a batch, from and to.
    pub apply: (Duration, Duration),
    /// Whether the state machine survives its process.
    pub machine: MachineKind,
    /// How many clocks run too fast or too slow: at most so many in a million.
    pub clock_drift: u64,
    /// Timers fire at most so late.
    pub timer_lateness: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// A node makes a snapshot when it has applied so many bytes since the last one. Zero: it
    /// never does by itself.
    pub snapshot_bytes: u64,
    /// As `snapshot_bytes`, counted in commands.
    pub snapshot_commands: u64,
    /// How long a snapshot takes to be written, from and to.
    pub snapshot_time: (Duration, Duration),
    /// Snapshots travel in pieces of so many bytes.
    pub chunk_bytes: u64,
    /// How many pieces of snapshots in a million are damaged on the way.
    pub chunk_damage: u64,
    /// Of how many lost messages in a million the sender hears that they were not sent.
    pub given_back: u64,
    /// Whether the nodes differ in how much they want to lead.
    pub has_priorities: bool,
    /// Whether transports tell of the data directories that they meet.
    pub has_stores: bool,
    /// The settings of the nodes; identity and seed are filled in.
    pub config: Config,
    /// The settings of their logs.
    pub log: LogOptions,
    /// The settings of their stores, where the state machine is one.
    pub store: StoreOptions,
    /// How long what was applied waits to be written out by a store, from and to.
    pub store_flush: (Duration, Duration),
}

impl Setup {
    /// A world without faults: the labs' network, a quick disk, defaults everywhere else.
    #[must_use]
    pub fn new(seed: u64, nodes: u64) -> Self {
        let log =
            LogOptions { segment_bytes: SEGMENT_BYTES, spares: 1, seed, ..LogOptions::default() };
        Self {
            seed,
            nodes,
            network: NetworkSettings::reliable(),
            sync: (Duration::from_micros(50), Duration::from_micros(500)),
            stalls: 0,
            apply: (Duration::from_micros(5), Duration::from_micros(50)),
            machine: MachineKind::Memory,
            clock_drift: 0,
            timer_lateness: Duration::ZERO,
            request_timeout: Duration::from_secs(5),
            snapshot_bytes: 0,
            snapshot_commands: 0,
            snapshot_time: (Duration::from_micros(100), Duration::from_millis(100)),
            chunk_bytes: 16 * 1024,
            chunk_damage: 0,
            given_back: 0,
            has_priorities: false,
            has_stores: false,
            config: Config::new(NodeId(1), 0),
            log,
            store: StoreOptions { segment_bytes: SEGMENT_BYTES, secret: seed, ..<_>::default() },
            store_flush: (Duration::from_millis(1), Duration::from_millis(100)),
        }
    }
}

/// Small, so that a log has many segments and a restart is cheap.
const SEGMENT_BYTES: u64 = 64 * 1024;

/// A cluster, its network and its disks.
#[derive(Debug)]
pub struct World {
    pub(crate) setup: Setup,
    pub(crate) dice: Dice,
    /// Nanoseconds since the beginning.
    pub(crate) now: u64,
    heap: BinaryHeap<Reverse<Due>>,
    next_due: u64,
    pub(crate) network: Network,
    pub(crate) nodes: Vec<Node>,
    pub(crate) ledger: Ledger,
    pub(crate) truth: Truth,
    pub(crate) requests: Requests,
    pub(crate) recorder: Rc<RefCell<Recorder>>,
    time_limit: Option<Duration>,
    /// The requests behind the committed commands, in the order of the log.
    pub(crate) committed_commands: Vec<u64>,
    pub(crate) actions: Vec<kontiki::Action>,
    pub(crate) stored_reads: u64,
    pub(crate) purges: u64,
    pub(crate) refused: u64,
    pub(crate) leases: u64,
    pub(crate) full_disks: u64,
    pub(crate) snapshots: SnapshotCounts,
    pub(crate) given_back: u64,
    pub(crate) store_flushes: u64,
    pub(crate) store_audits: u64,
    pub(crate) damaged_stores: u64,
    /// State machines that had to be given back by others.
    pub(crate) lost_states: u64,
}

/// What became of snapshots.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SnapshotCounts {
    pub(crate) made: u64,
    pub(crate) sent: u64,
    pub(crate) broken: u64,
    pub(crate) resumed: u64,
    pub(crate) damaged: u64,
    pub(crate) rotten: u64,
    pub(crate) installed: u64,
}

/// Something that will happen. Ordered by time; at the same time, by chance.
#[derive(Debug)]
struct Due {
    at: u64,
    tiebreak: u64,
    number: u64,
    to: NodeId,
    what: Happening,
}

impl Due {
    fn key(&self) -> (u64, u64, u64) {
        (self.at, self.tiebreak, self.number)
    }
}
impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl World {
    /// Makes the world. No process runs yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let dice = Dice::new(setup.seed);
        let mut world = Self {
            dice,
            now: 0,
            heap: BinaryHeap::new(),
            next_due: 0,
            network: Network::new(setup.network.clone(), dice),
            nodes: Vec::new(),
            ledger: Ledger::new(Arc::new(genesis(setup.nodes))),
            truth: Truth::default(),
            requests: Requests::default(),
            recorder: Rc::default(),
            time_limit: None,
            committed_commands: Vec::new(),
            actions: Vec::new(),
            stored_reads: 0,
            purges: 0,
            refused: 0,
            leases: 0,
            full_disks: 0,
            snapshots: SnapshotCounts::default(),
            given_back: 0,
            store_flushes: 0,
            store_audits: 0,
            damaged_stores: 0,
            lost_states: 0,
            setup,
        };
        if world.setup.machine == MachineKind::Store {
            world.truth.keep_history();
        }
        let genesis = genesis(world.setup.nodes);
        for _ in 0..world.setup.nodes {
            let id = world.add_node();
            world.nodes[place(id)].genesis = Some(genesis.clone());
        }
        world
    }

    /// A machine with an empty disk, for the next member.
    pub(crate) fn add_node(&mut self) -> NodeId {
        let id = NodeId(u64::try_from(self.nodes.len()).unwrap_or(u64::MAX) + 1);
        self.nodes.push(Node {
            disk: Arc::new(SimDisk::with_seed(self.dice.roll(Stream::Crash, !id.get(), 0))),
            saved: Machine::default(),
            kv_durable: Index::ZERO,
            kv_is_rotten: false,
            kv_is_lost: false,
            process: None,
            genesis: None,
            stalled_until: 0,
            is_dead: false,
            lives: 0,
            held: None,
            resumed: Duration::ZERO,
            counts: Counts::default(),
            sync_count: 0,
            apply_count: 0,
            other_count: 0,
        });
        self.ledger.add(id);
        self.network.add(id);
        id
    }

    /// Events go to this recorder, which outlives a world that panics.
    pub fn set_recorder(&mut self, recorder: Rc<RefCell<Recorder>>) {
        self.recorder = recorder;
    }

    /// A run that takes longer than this, in virtual time, has failed.
    pub fn set_time_limit(&mut self, limit: Duration) {
        self.time_limit = Some(limit);
    }

    /// All nodes, in order.
    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=u64::try_from(self.nodes.len()).unwrap_or_default()).map(NodeId)
    }

    /// The virtual time since the beginning.
    #[must_use]
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// What happened so far, as one number.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.recorder.borrow().digest()
    }

    /// How many events and actions there were.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.recorder.borrow().count()
    }

    /// What a node has put on the network since the beginning.
    #[must_use]
    pub fn counts(&self, id: NodeId) -> Counts {
        self.nodes[place(id)].counts
    }

    /// What all nodes have put on the network since the beginning.
    #[must_use]
    pub fn total_counts(&self) -> Counts {
        self.nodes.iter().fold(Counts::default(), |sum, node| Counts {
            messages: sum.messages + node.counts.messages,
            bytes: sum.bytes + node.counts.bytes,
        })
    }

    /// How often a leader was elected.
    #[must_use]
    pub fn leader_changes(&self) -> u64 {
        self.ledger.leader_changes
    }

    /// How often entries of a log were replaced by others.
    #[must_use]
    pub fn truncations(&self) -> u64 {
        self.ledger.truncations
    }

    /// How often a restart found that a record on its way to the disk was gone.
    #[must_use]
    pub fn lost_records(&self) -> u64 {
        self.ledger.torn_records
    }

    /// The last committed index.
    #[must_use]
    pub fn committed_index(&self) -> Index {
        self.ledger.committed_index()
    }

    /// The request whose command is the committed one of this number, counted from 1 and
    /// without blank entries.
    #[must_use]
    pub fn committed_command(&self, number: u64) -> Option<u64> {
        let at = usize::try_from(number.checked_sub(1)?).ok()?;
        self.committed_commands.get(at).copied()
    }

    /// What the disk of this node has acknowledged.
    #[must_use]
    pub fn durable_last(&self, id: NodeId) -> kontiki_raft::EntryId {
        self.ledger.durable_last(id)
    }

    /// A request by its number.
    #[must_use]
    pub fn request(&self, number: u64) -> Option<&Request> {
        self.requests.get(number)
    }

    /// Whether what clients were told of the registers is linearizable.
    ///
    /// # Errors
    ///
    /// The first register of which it is not.
    pub fn check_linearizable(&self) -> Result<(), Box<NotLinearizable<u64, Bytes>>> {
        // What is appended to is no register: `truth.rs` judges it, as it does these once more.
        let appended: BTreeSet<u64> =
            self.requests.all().iter().filter_map(Request::appends_to).collect();
        let operations = self.requests.all().iter().filter_map(Request::operation);
        let history: Vec<_> = operations.filter(|op| !appended.contains(&op.key)).collect();
        linear::check(&history)
    }

    /// All requests, by number.
    #[must_use]
    pub fn all_requests(&self) -> &[Request] {
        self.requests.all()
    }

    /// What a node would say of itself, if it runs.
    #[must_use]
    pub fn status(&self, id: NodeId) -> Option<NodeStatus> {
        let process = self.nodes[place(id)].process.as_ref()?;
        let status = process.replica.status();
        Some(NodeStatus {
            role: status.soft_state.role,
            term: status.soft_state.term,
            leader: status.soft_state.leader,
            commit: status.commit_index,
            applied: process.machine.applied,
            commands: process.machine.commands,
            last: status.last,
        })
    }

    /// Whether a process runs there, paused or not.
    #[must_use]
    pub fn is_up(&self, id: NodeId) -> bool {
        self.nodes[place(id)].process.is_some()
    }

    /// Whether a process runs there and is paused.
    #[must_use]
    pub fn is_paused(&self, id: NodeId) -> bool {
        self.nodes[place(id)].held.is_some()
    }

    /// What a node keeps of its log, in bytes of entries: those that it has not been told to
    /// purge.
    #[must_use]
    pub fn state_bytes(&self, id: NodeId) -> usize {
        let asked = self.nodes[place(id)].process.as_ref().map_or(Index::ZERO, |p| p.purge_asked);
        self.ledger.bytes_after(id, asked)
    }

    /// What the newest snapshot of a node takes, in bytes.
    #[must_use]
    pub fn snapshot_bytes(&self, id: NodeId) -> u64 {
        let process = self.nodes[place(id)].process.as_ref();
        process.and_then(|process| process.snapshots.newest()).map_or(0, |info| info.bytes)
    }

    /// The disk of a node.
    #[must_use]
    pub fn disk(&self, id: NodeId) -> &Arc<SimDisk> {
        &self.nodes[place(id)].disk
    }

    // ------------------------------------------------------------------------- running

    /// Lets the next thing happen. False if nothing ever will.
    ///
    /// # Errors
    ///
    /// When an invariant breaks.
    pub fn step(&mut self) -> Result<bool, Failure> {
        let Some(Reverse(due)) = self.heap.pop() else { return Ok(false) };
        self.now = self.now.max(due.at);
        self.recorder.borrow_mut().at(Duration::from_nanos(self.now));
        self.happen(due.to, due.what).map_err(|broken| self.failure(broken))?;
        Ok(true)
    }

    /// Lets everything happen that happens in this time.
    ///
    /// # Errors
    ///
    /// When an invariant breaks, or the time limit is exceeded.
    pub fn run_for(&mut self, time: Duration) -> Result<(), Failure> {
        let end = self.now + nanos(time);
        while self.heap.peek().is_some_and(|Reverse(due)| due.at <= end) {
            self.step()?;
        }
        self.now = end;
        self.recorder.borrow_mut().at(Duration::from_nanos(self.now));
        match self.time_limit {
            Some(limit) if limit < self.now() => {
                Err(self.failure(format!("not done after {} s", limit.as_secs())))
            }
            _ => Ok(()),
        }
    }

    /// Runs until the condition holds, looking after every event, at most for this time. True
    /// if it holds.
    ///
    /// # Errors
    ///
    /// When an invariant breaks, or the time limit is exceeded.
    pub fn run_until(
        &mut self,
        time: Duration,
        mut condition: impl FnMut(&Self) -> bool,
    ) -> Result<bool, Failure> {
        let end = self.now + nanos(time);
        loop {
            if condition(self) {
                return Ok(true);
            }
            let is_next = self.heap.peek().is_some_and(|Reverse(due)| due.at <= end);
            if !is_next {
                self.run_for(Duration::from_nanos(end - self.now))?;
                return Ok(condition(self));
            }
            self.step()?;
        }
    }

    /// A failure with this reason, here and now.
    #[must_use]
    pub fn failure(&self, what: impl Into<String>) -> Failure {
        let events = self.recorder.borrow().lines();
        Failure { what: what.into(), at: self.now(), events }
    }

    pub(crate) fn schedule(&mut self, at: u64, to: NodeId, what: Happening) {
        self.next_due += 1;
        let number = self.next_due;
        let tiebreak = self.dice.roll(Stream::Tiebreak, 0, number);
        self.heap.push(Reverse(Due { at, tiebreak, number, to, what }));
    }

    pub(crate) fn note(&self, note: Note) {
        self.recorder.borrow_mut().note(note);
    }

    // ----------------------------------------------------------------------------- disks

    /// Looks at what would be left if all nodes lost their power now: copies of their disks are
    /// crashed and opened, and must hold what was acknowledged and what is committed.
    ///
    /// # Errors
    ///
    /// When they do not.
    pub fn audit_disks(&mut self) -> Result<(), Failure> {
        self.audit().map_err(|broken| self.failure(broken))
    }

    /// Digests the bytes of all disks into the trace.
    pub fn digest_disks(&mut self) {
        let mut recorder = self.recorder.borrow_mut();
        for node in &self.nodes {
            for path in node.disk.files() {
                recorder.bytes(path.to_string_lossy().as_bytes());
                recorder.bytes(&node.disk.content(&path));
            }
        }
    }
}

/// The membership that a cluster of so many is born with.
pub(crate) fn genesis(nodes: u64) -> Membership {
    Membership::of_voters((1..=nodes).map(|id| (NodeId(id), NodeId(id).to_string())))
}

/// Where a node keeps its log, on its own disk.
pub(crate) fn data_dir(id: NodeId) -> std::path::PathBuf {
    Path::new("/data").join(id.to_string())
}

pub(crate) fn place(id: NodeId) -> usize {
    usize::try_from(id.get().saturating_sub(1)).unwrap_or(usize::MAX)
}

/// Turns a broken invariant into a result.
pub(crate) type Checked<T = ()> = Result<T, Broken>;

pub(crate) fn encode(message: &kontiki_raft::Message) -> Bytes {
    let mut bytes = Vec::with_capacity(128);
    kontiki::codec::encode(message, &mut bytes);
    bytes.into()
}
