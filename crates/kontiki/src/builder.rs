//! The builder: three lines for a newcomer, and everything that an expert may swap.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use kontiki_disk::{Disk, RealDisk};
use kontiki_log::LogOptions;
use kontiki_raft::{Config, NodeId};

use crate::{
    Clock, Compaction, LogStore, Raft, SessionResponse, StateMachine, TcpTransport, Transport,
    snapshots::SessionCodec,
};

/// Everything that a node is told before it starts. Made by [`Raft::builder`].
#[must_use = "a node runs when it is started"]
pub struct Builder<S: StateMachine> {
    pub(crate) config: Config,
    pub(crate) machine: S,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) listen: Option<String>,
    pub(crate) bootstrap: Vec<(u64, String)>,
    pub(crate) join: Option<Vec<String>>,
    pub(crate) advertise: Option<String>,
    pub(crate) cluster_token: String,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) log_options: LogOptions,
    pub(crate) log_store: Option<Box<dyn LogStore>>,
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) clock: Option<Arc<dyn Clock>>,
    pub(crate) compaction: Compaction,
    pub(crate) sessions: Option<SessionCodec<S::Response>>,
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
            join: None,
            advertise: None,
            cluster_token: String::new(),
            request_timeout: None,
            disk: Arc::new(RealDisk),
            log_options: LogOptions::default(),
            log_store: None,
            transport: Box::new(TcpTransport::new()),
            clock: None,
            compaction: Compaction::default(),
            sessions: None,
        }
    }
}

impl<S: StateMachine> Raft<S> {
    /// Starts to describe a node that is to join a cluster: it has no id yet. Where the others are
    /// is said with [`Builder::join`].
    pub fn joiner(machine: S) -> Builder<S> {
        Self::builder(0, machine)
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

    /// Joins a cluster that exists, instead of making one. `peers` are addresses of some of its
    /// members; a node with a data directory needs them no more. The node has to be a member
    /// already, or to become one within a minute: see [`Raft::change_membership`]. The cluster
    /// knows it by the address where it listens, or that of [`advertise`](Self::advertise), and
    /// gives it its id.
    pub fn join<A: Into<String>>(mut self, peers: impl IntoIterator<Item = A>) -> Self {
        self.join = Some(peers.into_iter().map(Into::into).collect());
        self
    }

    /// The address by which the members know a node that joins, if it is not the one where it
    /// listens.
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertise = Some(address.into());
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

    /// When the state machine is saved, and how much of the log is kept.
    pub fn compaction(mut self, compaction: Compaction) -> Self {
        self.config.log_keep_bytes = compaction.keep_bytes;
        self.config.log_bytes_max = compaction.slow_follower_bytes_max;
        self.compaction = compaction;
        self
    }

    /// Keeps client sessions, so that [`Raft::session`] can be used: commands that are applied
    /// exactly once, however often they are tried. To be said on every node, before the first
    /// session is opened on any.
    ///
    /// For state machines in memory only: the table of sessions is a part of every snapshot, and
    /// one that keeps its state on disk would have to keep the table in the same transaction.
    pub fn sessions(mut self) -> Self
    where
        S::Response: SessionResponse,
    {
        self.sessions = Some(SessionCodec::new());
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
}

impl<S: StateMachine> fmt::Debug for Builder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("id", &self.config.id)
            .field("data_dir", &self.data_dir)
            .field("listen", &self.listen)
            .field("bootstrap", &self.bootstrap)
            .finish_non_exhaustive()
    }
}
