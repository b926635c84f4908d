//! How a node starts: what its disk holds is read back, the state machine is brought to where
//! the log goes on, and the threads are started.

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize, mpsc as std_mpsc},
    thread::JoinHandle,
    time::Duration,
};

use kontiki_disk::Disk;
use kontiki_log::{Identity, IdentityRequest, KnownPeers, LogOptions};
use kontiki_raft::{
    Config, EntryId, Index, Membership, NodeId, Recovered, RestoreError, SnapshotMeta, StoreId,
    Term,
};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::{
    Builder, Clock, Discovered, FileLog, Inbox, KnownStores, Local, LogStore, MonotonicClock,
    NodeIdentity, OpenedLog, Raft, Replica, SnapshotStore, StartError, StateMachine, Transport,
    apply_thread::{Applier, ApplyParts, SnapshotEnd},
    compaction::SnapshotDesk,
    discover,
    handle::{HandleParts, Phase, Room},
    log_thread::{LogLoop, Space, run_stored_reads, run_upkeep},
    metrics::log_sync_seconds,
    node::{Internal, Node, NodeParts, Sources, Threads, Times},
    snapshot_files::DirSnapshots,
    snapshots::{Sessions, SnapshotFiles, is_no_space, restore, run_snapshots},
};

impl<S: StateMachine> Builder<S> {
    /// Starts the node on the current tokio runtime, which needs I/O and time.
    ///
    /// # Errors
    ///
    /// When a setting is missing, the log cannot be opened, the state cannot be brought to where
    /// the log goes on, or the address is in use.
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
        let sessions = self.check_sessions()?;
        self.config.keeps_sessions = sessions.is_some();
        let (request, listen) = self.introduce().await?;
        self.config.id = request.node;
        let clock = self.clock.take().unwrap_or_else(|| Arc::new(MonotonicClock::new()));
        let times = Times {
            request_timeout: self
                .request_timeout
                .unwrap_or(Duration::from_secs(5) + 2 * self.config.election_timeout),
            transfer_timeout: self.config.election_timeout,
        };
        let (config, after_bytes, transport) =
            (self.config.clone(), self.compaction.snapshot_after_bytes, self.transport);
        let disks = Disks {
            disk: self.disk,
            dir: self.data_dir,
            log_store: self.log_store,
            log_options: self.log_options,
        };
        // Recovery blocks for as long as it takes, so it is done beside the runtime.
        let machine = self.machine;
        let opened = tokio::task::spawn_blocking(move || disks.open(&request, machine, sessions))
            .await
            .map_err(|panic| StartError::System(io::Error::other(panic)))??;
        let ready = Ready { config, after_bytes, clock, times, listen, opened };
        ready.start(transport).await
    }

    /// Who this node is, and where it listens. Borrowed to change, though nothing is changed: so
    /// the future can be sent to another thread, as what is only shared could not.
    async fn introduce(&mut self) -> Result<(IdentityRequest, String), StartError> {
        if let Some(peers) = self.join.take() {
            return self.ask_to_join(&peers).await;
        }
        let (genesis, listen) = self.check_members()?;
        let request = IdentityRequest {
            cluster: cluster_hash(&genesis, &self.cluster_token),
            node: self.config.id,
            genesis,
            new_store: StoreId(random()?),
        };
        Ok((request, listen))
    }

    /// A node that has joined knows who it is; one that is new asks the others.
    async fn ask_to_join(
        &mut self,
        peers: &[String],
    ) -> Result<(IdentityRequest, String), StartError> {
        let Some(listen) = self.listen.clone() else {
            return Err(setting("a node that joins has to be told where it listens"));
        };
        if !self.bootstrap.is_empty() {
            return Err(setting("a node either bootstraps a cluster or joins one"));
        }
        let new_store = StoreId(random()?);
        if let Some(dir) = &self.data_dir {
            let (disk, dir) = (Arc::clone(&self.disk), dir.clone());
            let found = tokio::task::spawn_blocking(move || Identity::of_dir(&*disk, &dir))
                .await
                .map_err(|panic| StartError::System(io::Error::other(panic)))?
                .map_err(|error| StartError::Log(error.into()))?;
            if let Some(Identity { cluster, node, genesis, .. }) = found {
                return Ok((IdentityRequest { cluster, node, genesis, new_store }, listen));
            }
        }
        let address = self.advertise.as_ref().unwrap_or(&listen);
        let found = discover(peers, address, JOIN_PATIENCE).await.map_err(StartError::Join)?;
        let Discovered { cluster, id, membership } = found;
        tracing::info!(%id, cluster = format!("{cluster:016x}"), "this node joins a cluster");
        let genesis = Membership::clone(&membership);
        Ok((IdentityRequest { cluster, node: id, genesis, new_store }, listen))
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

    fn check_sessions(&self) -> Result<Option<Sessions<S::Response>>, StartError> {
        if self.sessions.is_some() && self.machine.durable_applied().is_some() {
            return Err(setting(
                "client sessions are for state machines in memory: one that keeps its state on \
                 disk would have to keep them in the same transaction",
            ));
        }
        Ok(self.sessions.map(Sessions::new))
    }
}

/// A node that joins is told of by an operator, about when it is started.
const JOIN_PATIENCE: Duration = Duration::from_secs(60);

/// Everything that a node is made of, read back and checked, before it is at work.
struct Ready<S: StateMachine> {
    config: Config,
    /// A state machine in memory is saved after so many bytes.
    after_bytes: u64,
    clock: Arc<dyn Clock>,
    times: Times,
    listen: String,
    opened: Opened<S>,
}

impl<S: StateMachine> Ready<S> {
    async fn start(self, transport: Box<dyn Transport>) -> Result<Raft<S>, StartError> {
        let Self { config, after_bytes, clock, times, listen, opened } = self;
        let Opened { log, known_stores, state, snapshots } = opened;
        let OpenedLog { identity, recovered, writer, reader, upkeep } = log;
        let identity =
            NodeIdentity { id: identity.node, cluster: identity.cluster, store: identity.store };
        let bytes_max = config.uncommitted_bytes_max;
        let room = Arc::new(Room { bytes: AtomicUsize::new(0), bytes_max });
        let read_room = Arc::new(Semaphore::new(config.pending_reads_max));
        let (inbox, outlet) = Inbox::new();
        let local = Local {
            id: identity.id,
            cluster: identity.cluster,
            store: identity.store,
            listen: listen.clone(),
            membership: newest_membership(&recovered)?,
            known_stores,
            snapshots: snapshots.clone().map(|files| files as Arc<dyn SnapshotStore>),
            message_bytes_max: message_bytes_max(&config),
        };
        say_damaged(identity.id, &recovered);
        say_bereft(identity.id, &recovered);
        let replica = Replica::new(config, recovered, clock.now()).map_err(StartError::Restore)?;
        let links = transport
            .start(local, inbox.clone())
            .await
            .map_err(|source| StartError::Listen { address: listen, source })?;

        let (events, internal) = mpsc::unbounded_channel();
        let (desk, applied_index) =
            (state.desk(snapshots.is_some(), after_bytes), state.applied.index);
        let machine_durable = if state.is_in_memory { Index::ZERO } else { applied_index };
        let has_sessions = state.sessions.is_some();
        let starter = Starter { id: identity.id, events: &events, joins: Vec::new() };
        let threads = starter
            .start(state, LogEnds { writer, reader, upkeep }, snapshots.clone())
            .map_err(StartError::System)?;
        let (requests, request_source) = mpsc::channel(REQUESTS_MAX);
        let (soft_state, soft_state_source) = watch::channel(replica.status().soft_state);
        let (phase, phase_source) = watch::channel(Phase::Running);
        let node = Node::new(NodeParts {
            replica,
            identity,
            clock,
            links,
            threads,
            sources: Sources { internal, outlet, requests: request_source, _keep: (events, inbox) },
            times,
            desk,
            snapshots,
            applied_index,
            machine_durable,
            room: Arc::clone(&room),
            read_room,
            soft_state,
            phase,
        });
        tokio::spawn(node.run());
        let (soft_state, phase) = (soft_state_source, phase_source);
        Ok(Raft::new(HandleParts { requests, room, phase, soft_state, identity, has_sessions }))
    }
}

fn say_damaged(id: NodeId, recovered: &Recovered) {
    if let Some(damaged) = &recovered.damaged {
        let (first, last) = (damaged.start(), damaged.end());
        tracing::error!(
            %id, %first, %last,
            "the log is damaged: this node neither votes nor leads until its peers have given \
             these entries back",
        );
    }
}

fn say_bereft(id: NodeId, recovered: &Recovered) {
    let Recovered { applied, log_start, .. } = recovered;
    if *applied < log_start.index {
        tracing::error!(
            %id, %applied, %log_start,
            "the state machine has lost what the log no longer has: this node applies nothing \
             until a leader has sent a snapshot",
        );
    }
}

/// Where a node keeps what must survive it.
struct Disks {
    disk: Arc<dyn Disk>,
    dir: Option<PathBuf>,
    log_store: Option<Box<dyn LogStore>>,
    log_options: LogOptions,
}

/// What was read back from the disk.
struct Opened<S: StateMachine> {
    log: OpenedLog,
    known_stores: Arc<KnownStores>,
    snapshots: Option<Arc<dyn SnapshotFiles>>,
    state: State<S>,
}

/// The state machine, and where in the log it is.
struct State<S: StateMachine> {
    machine: S,
    sessions: Option<Sessions<S::Response>>,
    is_in_memory: bool,
    /// The machine lacks what the log no longer has.
    is_bereft: bool,
    applied: EntryId,
    /// In force at `applied`.
    membership: Arc<Membership>,
    newest: Option<SnapshotMeta>,
}

impl<S: StateMachine> State<S> {
    fn desk(&self, can_save: bool, after_bytes: u64) -> SnapshotDesk {
        let after_bytes = self.is_in_memory.then_some(after_bytes);
        SnapshotDesk::new(can_save, after_bytes, self.newest.clone(), self.applied.index)
    }
}

impl Disks {
    /// Opens everything in the data directory, and brings the state machine to where the log
    /// goes on.
    fn open<S: StateMachine>(
        self,
        request: &IdentityRequest,
        machine: S,
        sessions: Option<Sessions<S::Response>>,
    ) -> Result<Opened<S>, StartError> {
        let store = match (self.log_store, &self.dir) {
            (Some(store), _) => store,
            (None, Some(dir)) => {
                let disk = Arc::clone(&self.disk);
                Box::new(FileLog::new(disk, dir.clone(), self.log_options))
            }
            (None, None) => return Err(setting("data_dir is missing: where is the log kept?")),
        };
        let mut log = store.open(request).map_err(StartError::Log)?;
        let (mut known_stores, mut snapshots) = (KnownStores::in_memory(), None);
        if let Some(dir) = self.dir {
            let failed = |dir| move |source| StartError::Peers { dir, source };
            let peers = KnownPeers::open(Arc::clone(&self.disk), &dir)
                .map_err(|source| failed(dir.clone())(source.into()))?;
            known_stores = KnownStores::in_file(peers);
            let files =
                DirSnapshots::open(self.disk, &dir).map_err(|e| StartError::Log(e.into()))?;
            snapshots = Some(Arc::new(files) as Arc<dyn SnapshotFiles>);
        }
        let recovery = Recovery { id: log.identity.node, recovered: &mut log.recovered };
        let state = recovery.run(machine, sessions, snapshots.as_deref())?;
        Ok(Opened { log, known_stores: Arc::new(known_stores), snapshots, state })
    }
}

/// Brings the state machine to where the log goes on.
struct Recovery<'a> {
    id: NodeId,
    recovered: &'a mut Recovered,
}

impl Recovery<'_> {
    /// Restores the state machine from the newest snapshot, if it needs that, and says in
    /// `recovered` where it is: before the start of the log, if it has lost its state and there
    /// is a leader to be asked for a snapshot.
    fn run<S: StateMachine>(
        self,
        mut machine: S,
        mut sessions: Option<Sessions<S::Response>>,
        snapshots: Option<&dyn SnapshotFiles>,
    ) -> Result<State<S>, StartError> {
        let Self { id, recovered } = self;
        let log_start = recovered.log_start;
        let mut newest = match snapshots {
            None => None,
            Some(files) => files
                .recover(&mut |meta| is_covered(recovered, meta))
                .map_err(|error| StartError::Log(error.into()))?,
        };
        let durable = machine.durable_applied();
        let is_in_memory = durable.is_none();
        let mut applied = id_at(recovered, durable.unwrap_or(Index::ZERO));
        let is_behind = applied.index < log_start.index || is_in_memory;
        match (&newest, snapshots) {
            (Some(meta), Some(files)) if is_behind => {
                let may_wait = !is_in_memory && !is_alone(id, recovered);
                if restore_newest(&mut machine, sessions.as_mut(), files, meta, may_wait)? {
                    applied = meta.last;
                }
            }
            // Nobody could send one, or it could not be kept.
            _ if applied.index < log_start.index
                && (is_alone(id, recovered) || snapshots.is_none()) =>
            {
                return Err(StartError::NoSnapshot { log_start, applied: applied.index });
            }
            _ => {}
        }
        recovered.applied = applied.index;
        let known = recovered.memberships.iter().rev().find(|(at, _)| at.index <= applied.index);
        let membership = match (known, &newest, recovered.memberships.first()) {
            (Some((at, membership)), ..) => {
                machine.membership_changed(*at, membership);
                Arc::clone(membership)
            }
            (None, Some(meta), _) => Arc::clone(&meta.membership),
            // A snapshot will bring its own.
            (None, None, Some((_, first))) => Arc::clone(first),
            (None, None, None) => return Err(StartError::Restore(RestoreError::NoVoters)),
        };
        let is_bereft = applied.index < log_start.index;
        if is_bereft {
            newest = None; // it is not to be had here
        }
        Ok(State { machine, sessions, is_in_memory, is_bereft, applied, membership, newest })
    }
}

/// Restores the state machine from its newest snapshot. False if there is no space for that, and
/// it `may_wait`: a leader offers it again, and then it waits for space. Meanwhile the log
/// counts, and so does the vote.
fn restore_newest<S: StateMachine>(
    machine: &mut S,
    sessions: Option<&mut Sessions<S::Response>>,
    files: &dyn SnapshotFiles,
    meta: &SnapshotMeta,
    may_wait: bool,
) -> Result<bool, StartError> {
    let at = meta.last;
    match files.open(at).and_then(|kept| restore(machine, sessions, &kept, meta)) {
        Ok(()) => {
            tracing::info!(%at, "restored from a snapshot");
            Ok(true)
        }
        Err(error) if is_no_space(&error) && may_wait => {
            tracing::error!(%at, %error, "no space to restore the snapshot");
            Ok(false)
        }
        Err(source) => Err(StartError::Snapshot { at, source }),
    }
}

/// Whether there is nobody to send a snapshot.
fn is_alone(id: NodeId, recovered: &Recovered) -> bool {
    recovered
        .memberships
        .last()
        .is_some_and(|(_, membership)| membership.is_voter(id) && membership.replicas().len() == 1)
}

/// Whether the log goes on from this snapshot. One that it does not reach was received, and the
/// process died before the log was reset to it: then nothing counts on it. A damaged log was
/// longer once, and what a snapshot stands for is committed.
fn is_covered(recovered: &Recovered, meta: &SnapshotMeta) -> bool {
    let SnapshotMeta { last, .. } = meta;
    if recovered.last.index < last.index {
        return recovered.damaged.is_some();
    }
    recovered.log_start.index <= last.index && id_at(recovered, last.index) == *last
}

/// The entry at `index`. Its term is 0 where the log does not tell.
fn id_at(recovered: &Recovered, index: Index) -> EntryId {
    let Recovered { log_start, last, term_runs, .. } = recovered;
    let runs = term_runs.partition_point(|run| run.index <= index);
    let term = match runs.checked_sub(1).and_then(|run| term_runs.get(run)) {
        _ if index == log_start.index => log_start.term,
        Some(run) if log_start.index < index && index <= last.index => run.term,
        _ => Term(0),
    };
    EntryId { index, term }
}

/// Requests of the handles that wait in the inbox, beside the bound in bytes.
const REQUESTS_MAX: usize = 65_536;

/// Stored reads that wait. A follower has a few at a time; when there are more, it asks again.
const STORED_READS_MAX: usize = 64;

/// The log, in parts for the threads that use it.
struct LogEnds {
    writer: Box<dyn crate::LogWriter>,
    reader: Arc<dyn crate::LogReader>,
    upkeep: Option<Box<dyn crate::Upkeep>>,
}

/// Starts threads that tell the node if they panic.
struct Starter<'a, R> {
    id: NodeId,
    events: &'a mpsc::UnboundedSender<Internal<R>>,
    joins: Vec<JoinHandle<()>>,
}

impl<R: Send + 'static> Starter<'_, R> {
    fn start<S: StateMachine<Response = R>>(
        mut self,
        state: State<S>,
        log_ends: LogEnds,
        snapshots: Option<Arc<dyn SnapshotFiles>>,
    ) -> io::Result<Threads<S>> {
        let LogEnds { writer, reader, upkeep } = log_ends;
        let (log, jobs) = std_mpsc::channel();
        let (apply, apply_jobs) = std_mpsc::channel();
        let (stored, stored_jobs) = std_mpsc::sync_channel(STORED_READS_MAX);

        let events = self.events.clone();
        let space = Arc::new(Space::new(events.clone()));
        let wake_upkeep = match upkeep {
            None => None,
            Some(upkeep) => {
                let (wake, wakes) = std_mpsc::sync_channel(1);
                let space = Arc::clone(&space);
                self.spawn("upkeep", move || run_upkeep(upkeep, &wakes, &space))?;
                Some(wake)
            }
        };
        let syncs = log_sync_seconds(self.id);
        let of_machine = Arc::clone(&space);
        let log_loop = LogLoop { log: writer, jobs, events, space, upkeep: wake_upkeep, syncs };
        self.spawn("log", move || log_loop.run())?;
        let (tell, log_reader) = (self.events.clone(), Arc::clone(&reader));
        self.spawn("reads", move || run_stored_reads(&log_reader, &stored_jobs, &tell))?;

        let snapshots = match snapshots {
            None => None,
            Some(files) => {
                let (writer, frozen) = std_mpsc::channel();
                let (tell, to) = (self.events.clone(), Arc::clone(&files));
                self.spawn("snapshot", move || run_snapshots(&to, &frozen, &tell))?;
                Some(SnapshotEnd { files, writer })
            }
        };
        let State { machine, sessions, is_bereft, applied, membership, .. } = state;
        let parts = ApplyParts {
            machine,
            log: reader,
            applied,
            membership,
            is_bereft,
            sessions,
            snapshots,
        };
        let applier = Applier::new(parts, apply_jobs, self.events.clone(), of_machine);
        self.spawn("apply", move || applier.run())?;
        Ok(Threads { log, apply, stored, joins: self.joins })
    }

    fn spawn(&mut self, part: &'static str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let alarm = Alarm { part, events: self.events.clone() };
        let name = format!("kontiki-{}-{part}", self.id);
        self.joins.push(std::thread::Builder::new().name(name).spawn(move || {
            let _alarm = alarm;
            run();
        })?);
        Ok(())
    }
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
