//! The builder: three lines for a newcomer, and everything that an expert may swap.

use std::{
    collections::BTreeSet,
    fmt, io,
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize, mpsc as std_mpsc},
    thread::JoinHandle,
    time::Duration,
};

use kontiki_disk::{Disk, RealDisk};
use kontiki_log::{IdentityRequest, KnownPeers, LogOptions};
use kontiki_raft::{Config, Index, Membership, NodeId, Recovered, RestoreError, StoreId};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::{
    Clock, FileLog, Inbox, KnownStores, Local, LogStore, MonotonicClock, NodeIdentity, OpenedLog,
    Raft, Replica, StartError, StateMachine, TcpTransport, Transport,
    apply_thread::Applier,
    handle::{HandleParts, Phase, Room},
    log_thread::{LogLoop, Space, run_stored_reads, run_upkeep},
    node::{Internal, Node, NodeParts, Sources, Threads, Times},
};

/// Everything that a node is told before it starts. Made by [`Raft::builder`].
#[must_use = "a node runs when it is started"]
pub struct Builder<S> {
    config: Config,
    machine: S,
    data_dir: Option<PathBuf>,
    listen: Option<String>,
    bootstrap: Vec<(u64, String)>,
    cluster_token: String,
    request_timeout: Option<Duration>,
    disk: Arc<dyn Disk>,
    log_options: LogOptions,
    log_store: Option<Box<dyn LogStore>>,
    transport: Box<dyn Transport>,
    clock: Option<Arc<dyn Clock>>,
}

impl<S: StateMachine> Raft<S> {
    /// Starts to describe the node `id`, which replicates `machine`.
    pub fn builder(id: u64, machine: S) -> Builder<S> {
        Builder {
            config: Config::new(NodeId(id), 0),
            machine,
            data_dir: None,
            listen: None,
            bootstrap: Vec::new(),
            cluster_token: String::new(),
            request_timeout: None,
            disk: Arc::new(RealDisk),
            log_options: LogOptions::default(),
            log_store: None,
            transport: Box::new(TcpTransport::new()),
            clock: None,
        }
    }
}

impl<S: StateMachine> Builder<S> {
    /// Where the node keeps its data. Each node has a directory of its own, and it must survive
    /// for as long as the node is a member.
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(dir.into());
        self
    }

    /// Where the node listens for its peers. If this is not said, at its own address in
    /// [`bootstrap`](Self::bootstrap).
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = Some(address.into());
        self
    }

    /// The first members, with the addresses under which they reach each other. The same on
    /// every one of them and at every start: it makes the identity of the cluster, and nodes
    /// of different clusters refuse each other.
    pub fn bootstrap<A: Into<String>>(
        mut self,
        voters: impl IntoIterator<Item = (u64, A)>,
    ) -> Self {
        self.bootstrap = voters.into_iter().map(|(id, address)| (id, address.into())).collect();
        self
    }

    /// Tells two clusters apart that would have the same members at the same addresses.
    pub fn cluster_token(mut self, token: impl Into<String>) -> Self {
        self.cluster_token = token.into();
        self
    }

    /// Changes the times and bounds of the protocol.
    pub fn tune(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Lets [`ReadMode::Lease`](crate::ReadMode::Lease) do without a round of messages while the
    /// leader holds a lease. The clocks of the cluster must not drift apart faster than by
    /// `drift_ppm_max` millionths, monotonic and while the computer runs: 500 is what an operating
    /// system corrects at most, and virtual machines that are paused break it. Where they do
    /// drift faster a read may be stale.
    pub fn lease_reads(mut self, drift_ppm_max: u32) -> Self {
        self.config.clock_drift_ppm_max = drift_ppm_max;
        self
    }

    /// Who should lead if all else is equal: the higher, the sooner. Never part of a vote.
    pub fn priority(mut self, priority: u8) -> Self {
        self.config.priority = priority;
        self
    }

    /// Proposals and reads are answered within this time. Five seconds and two election
    /// timeouts, if this is not said: long enough to find a new leader.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = Some(timeout);
        self
    }

    /// How the log keeps its files.
    pub fn log_options(mut self, options: LogOptions) -> Self {
        self.log_options = options;
        self
    }

    /// The file system under the data directory.
    pub fn disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// Keeps the log elsewhere than in segment files in the data directory. A data directory is
    /// then needed only to remember the peers.
    pub fn log_store(mut self, log: impl LogStore) -> Self {
        self.log_store = Some(Box::new(log));
        self
    }

    /// Reaches the peers by other means than TCP.
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.transport = Box::new(transport);
        self
    }

    /// Takes the time from elsewhere.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Starts the node on the current tokio runtime, which needs I/O and time.
    ///
    /// # Errors
    ///
    /// When a setting is missing, the log cannot be opened, or the address is in use.
    ///
    /// # Panics
    ///
    /// When there is no current tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the node does not start, or is stopped again.
    pub async fn start(mut self) -> Result<Raft<S>, StartError> {
        self.config.seed = random()?;
        if self.log_options.seed == 0 {
            self.log_options.seed = random()?;
        }
        let (genesis, listen) = self.check_members()?;
        let request = IdentityRequest {
            cluster: cluster_hash(&genesis, &self.cluster_token),
            node: self.config.id,
            genesis,
            new_store: StoreId(random()?),
        };
        let Opened { log, known_stores } = self.open(request).await?;
        let OpenedLog { identity, mut recovered, writer, reader, upkeep } = log;
        recovered.applied = self.machine.durable_applied().unwrap_or(Index::ZERO);
        let membership = newest_membership(&recovered)?;

        let clock = self.clock.take().unwrap_or_else(|| Arc::new(MonotonicClock::new()));
        let config = self.config;
        let times = Times {
            request_timeout: self
                .request_timeout
                .unwrap_or(Duration::from_secs(5) + 2 * config.election_timeout),
            transfer_timeout: config.election_timeout,
        };
        let room =
            Arc::new(Room { bytes: AtomicUsize::new(0), bytes_max: config.uncommitted_bytes_max });
        let read_room = Arc::new(Semaphore::new(config.pending_reads_max));
        let identity =
            NodeIdentity { id: identity.node, cluster: identity.cluster, store: identity.store };
        let (inbox, outlet) = Inbox::new();
        let local = Local {
            id: identity.id,
            cluster: identity.cluster,
            store: identity.store,
            listen: listen.clone(),
            membership,
            known_stores,
            snapshots: None,
            message_bytes_max: message_bytes_max(&config),
        };
        let replica = Replica::new(config, recovered, clock.now()).map_err(StartError::Restore)?;
        let links = self
            .transport
            .start(local, inbox.clone())
            .await
            .map_err(|source| StartError::Listen { address: listen, source })?;

        let (events, internal) = mpsc::unbounded_channel();
        let threads = start_threads(identity.id, self.machine, writer, reader, upkeep, &events)
            .map_err(StartError::System)?;
        let (requests, request_source) = mpsc::channel(REQUESTS_MAX);
        let (soft_state, soft_state_source) = watch::channel(replica.status().soft_state);
        let (phase, phase_source) = watch::channel(Phase::Running);
        let sources =
            Sources { internal, outlet, requests: request_source, _keep: (events, inbox) };
        let node = Node::new(NodeParts {
            replica,
            identity,
            clock,
            links,
            threads,
            sources,
            times,
            room: Arc::clone(&room),
            read_room,
            soft_state,
            phase,
        });
        tokio::spawn(node.run());
        let (soft_state, phase) = (soft_state_source, phase_source);
        Ok(Raft::new(HandleParts { requests, room, phase, soft_state, identity }))
    }

    /// Opens the log and the file of known peers. Blocks for as long as recovery takes, so it
    /// is done beside the runtime.
    async fn open(&mut self, request: IdentityRequest) -> Result<Opened, StartError> {
        let disk = Arc::clone(&self.disk);
        let dir = self.data_dir.clone();
        let store = match (self.log_store.take(), &dir) {
            (Some(store), _) => store,
            (None, Some(dir)) => {
                let (disk, options) = (Arc::clone(&disk), self.log_options.clone());
                Box::new(FileLog::new(disk, dir.clone(), options))
            }
            (None, None) => return Err(setting("data_dir is missing: where is the log kept?")),
        };
        let open = move || {
            let log = store.open(&request).map_err(StartError::Log)?;
            let known_stores = match dir {
                None => KnownStores::in_memory(),
                Some(dir) => match KnownPeers::open(disk, &dir) {
                    Ok(peers) => KnownStores::in_file(peers),
                    Err(source) => {
                        return Err(StartError::Peers { dir, source: source.into() });
                    }
                },
            };
            Ok(Opened { log, known_stores: Arc::new(known_stores) })
        };
        tokio::task::spawn_blocking(open)
            .await
            .map_err(|panic| StartError::System(io::Error::other(panic)))?
    }

    /// The first membership, and where to listen.
    fn check_members(&self) -> Result<(Membership, String), StartError> {
        let id = self.config.id;
        let ids: BTreeSet<u64> = self.bootstrap.iter().map(|(id, _)| *id).collect();
        if ids.len() != self.bootstrap.len() {
            return Err(setting("bootstrap names an id twice"));
        }
        if ids.contains(&0) {
            return Err(setting("bootstrap names the id 0; ids start at 1"));
        }
        let Some((_, own_address)) = self.bootstrap.iter().find(|(voter, _)| *voter == id.get())
        else {
            return Err(setting(format!("bootstrap does not name {id}, this node")));
        };
        let listen = self.listen.clone().unwrap_or_else(|| own_address.clone());
        let voters = self.bootstrap.iter().map(|(id, address)| (NodeId(*id), address.as_str()));
        Ok((Membership::of_voters(voters), listen))
    }
}

/// What is read from the disk before anything else.
struct Opened {
    log: OpenedLog,
    known_stores: Arc<KnownStores>,
}

/// Requests of the handles that wait in the inbox, beside the bound in bytes.
const REQUESTS_MAX: usize = 65_536;

/// Stored reads that wait. A follower has a few at a time; when there are more, it asks again.
const STORED_READS_MAX: usize = 64;

fn start_threads<S: StateMachine>(
    id: NodeId,
    machine: S,
    writer: Box<dyn crate::LogWriter>,
    reader: Arc<dyn crate::LogReader>,
    upkeep: Option<Box<dyn crate::Upkeep>>,
    events: &mpsc::UnboundedSender<Internal<S::Response>>,
) -> io::Result<Threads<S>> {
    let (log, log_jobs) = std_mpsc::channel();
    let (apply, apply_jobs) = std_mpsc::channel();
    let (stored, stored_jobs) = std_mpsc::sync_channel(STORED_READS_MAX);
    let mut joins = Vec::new();

    let space = Arc::new(Space::new(events.clone()));
    let wake_upkeep = match upkeep {
        None => None,
        Some(upkeep) => {
            let (wake, wakes) = std_mpsc::sync_channel(1);
            let space = Arc::clone(&space);
            joins.push(spawn(id, "upkeep", events, move || run_upkeep(upkeep, &wakes, &space))?);
            Some(wake)
        }
    };
    let (tell, upkeep) = (events.clone(), wake_upkeep);
    let log_loop = LogLoop { log: writer, jobs: log_jobs, events: tell, space, upkeep };
    joins.push(spawn(id, "log", events, move || log_loop.run())?);
    let (tell, log_reader) = (events.clone(), Arc::clone(&reader));
    joins.push(spawn(id, "reads", events, move || {
        run_stored_reads(&log_reader, &stored_jobs, &tell);
    })?);
    let applier = Applier::new(machine, reader, events.clone());
    joins.push(spawn(id, "apply", events, move || applier.run(&apply_jobs))?);
    Ok(Threads { log, apply, stored, joins })
}

/// Starts a thread that tells the node if it panics.
fn spawn<R: Send + 'static>(
    id: NodeId,
    part: &'static str,
    events: &mpsc::UnboundedSender<Internal<R>>,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let alarm = Alarm { part, events: events.clone() };
    std::thread::Builder::new().name(format!("kontiki-{id}-{part}")).spawn(move || {
        let _alarm = alarm;
        run();
    })
}

/// Says so when its thread panics.
struct Alarm<R> {
    part: &'static str,
    events: mpsc::UnboundedSender<Internal<R>>,
}

impl<R> Drop for Alarm<R> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A node that has stopped cannot stop again.
            drop(self.events.send(Internal::Panicked { part: self.part }));
        }
    }
}

fn newest_membership(recovered: &Recovered) -> Result<Arc<Membership>, StartError> {
    let newest = recovered.memberships.last().map(|(_, membership)| Arc::clone(membership));
    newest.ok_or(StartError::Restore(RestoreError::NoVoters))
}

/// An encoded message is never larger: all proposals that may wait in one, or a message full of
/// entries and one entry more, and what surrounds them.
fn message_bytes_max(config: &Config) -> usize {
    let entries = config.append_bytes_max.saturating_add(config.entry_bytes_max);
    // What surrounds a tiny command is larger than the command.
    2 * config.uncommitted_bytes_max.max(entries) + (1 << 20)
}

/// Tells one cluster from another (FNV-1a). Not a secret: it protects from mistakes.
fn cluster_hash(genesis: &Membership, token: &str) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut mix = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for member in &genesis.members {
        mix(&member.id.get().to_le_bytes());
        mix(member.address.as_bytes());
        mix(&[0]);
    }
    mix(token.as_bytes());
    hash
}

fn random() -> Result<u64, StartError> {
    getrandom::u64().map_err(|error| StartError::System(io::Error::other(error)))
}

fn setting(what: impl Into<String>) -> StartError {
    StartError::Setting { what: what.into() }
}

impl<S> fmt::Debug for Builder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("id", &self.config.id)
            .field("data_dir", &self.data_dir)
            .field("listen", &self.listen)
            .field("bootstrap", &self.bootstrap)
            .finish_non_exhaustive()
    }
}
