//! The handle: what a program holds of a node that runs.

use std::{
    fmt,
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use kontiki_raft::{
    Bytes, ChangeSet, EntryId, Index, Membership, NodeId, ProgressStatus, ReadMode, Rejection,
    Role, SnapshotMeta, SoftState, StoreId, Timestamp,
};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

use crate::{
    Fault, ProposeError, ReadError, SnapshotError, StateMachine, TransferError,
    apply_thread::{ReadFn, Reply},
    compaction::SnapshotReply,
};

/// A node of a cluster, and with it the replicated state.
///
/// Cheap to clone; all clones are the same node. It runs until [`shutdown`](Self::shutdown), or
/// until the last clone is dropped, or until it fails.
pub struct Raft<S: StateMachine> {
    requests: mpsc::Sender<Request<S>>,
    room: Arc<Room>,
    phase: watch::Receiver<Phase>,
    soft_state: watch::Receiver<SoftState>,
    identity: NodeIdentity,
    has_sessions: bool,
}

/// Whom a handle speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Its id.
    pub id: NodeId,
    /// Its cluster: a hash of the members that it was born with.
    pub cluster: u64,
    /// Its data directory.
    pub store: StoreId,
}

/// A command that was applied, and what the state machine said to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied<R> {
    /// Its place in the log.
    pub at: EntryId,
    /// What the state machine returned, on this node.
    pub response: R,
}

/// A node at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// Who it is.
    pub identity: NodeIdentity,
    /// Role, term, leader.
    pub soft_state: SoftState,
    /// Committed up to here.
    pub commit_index: Index,
    /// Applied up to here.
    pub applied_index: Index,
    /// Its own disk holds the log up to here.
    pub durable_index: Index,
    /// The entry before the first of the log.
    pub log_start: EntryId,
    /// The last entry of the log, for [`ChangeSet::expect`]: [`membership`](Self::membership) is
    /// in force there.
    pub last: EntryId,
    /// What the entries of the log take, about, in bytes.
    pub log_bytes: u64,
    /// The membership in force.
    pub membership: Membership,
    /// The entry that it is from, or that of the snapshot in which it came.
    pub membership_at: EntryId,
    /// When this was said, by the clock of the node.
    pub now: Timestamp,
    /// Until when this leader may serve lease reads, by the same clock, if it has a lease.
    pub lease_until: Option<Timestamp>,
    /// To whom the leadership is being handed.
    pub transfer_to: Option<NodeId>,
    /// What of its log is damaged and not refilled yet: until then it neither votes nor leads.
    pub damaged: Option<RangeInclusive<Index>>,
    /// Its state machine has lost what the log no longer has, and applies nothing until a snapshot
    /// has come that ends here or later.
    pub needs_snapshot: Option<Index>,
    /// The disk under its log or its state machine is full: as a leader it takes no proposals.
    pub is_storage_full: bool,
    /// Since when the oldest write waits for the disk, by the clock of the node.
    pub oldest_write: Option<Timestamp>,
    /// What the leader knows of the others. Empty unless this node leads.
    pub progress: Vec<ProgressStatus>,
}

impl Status {
    pub(crate) fn new(
        identity: NodeIdentity,
        now: Timestamp,
        status: kontiki_raft::Status<'_>,
    ) -> Self {
        Self {
            identity,
            soft_state: status.soft_state,
            commit_index: status.commit_index,
            applied_index: status.applied_index,
            durable_index: status.durable_index,
            log_start: status.log_start,
            last: status.last,
            log_bytes: status.log_bytes,
            membership: status.membership.clone(),
            membership_at: status.membership_at,
            now,
            lease_until: status.lease_until,
            transfer_to: status.transfer_to,
            damaged: status.damaged,
            needs_snapshot: status.needs_snapshot,
            is_storage_full: status.is_storage_full,
            oldest_write: status.oldest_write,
            progress: status.progress,
        }
    }

    /// How many entries this node surely lacks, as the leader knows: its own are not counted.
    /// `None` unless this node leads and `id` is another one.
    #[must_use]
    pub fn lag(&self, id: NodeId) -> Option<u64> {
        let progress = self.progress.iter().find(|progress| progress.id == id)?;
        Some(self.last.index.get().saturating_sub(progress.match_index.get()))
    }

    /// Whether this node was removed from the cluster, by a decision that is committed.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.membership_at.index <= self.commit_index
            && self.membership.has_removed(self.identity.id)
    }
}

/// What the node loop is asked by its handles.
pub(crate) enum Request<S: StateMachine> {
    Propose(Proposed<S>),
    ProposeMany(Vec<Proposed<S>>),
    ChangeMembership { change: ChangeSet, reply: oneshot::Sender<ChangeResult> },
    Read { mode: ReadMode, serve: ReadFn<S> },
    ReadBarrier { mode: ReadMode, reply: oneshot::Sender<Result<Index, ReadError>> },
    ReadStale(ReadFn<S>),
    ProposeSession { content: Bytes, reply: oneshot::Sender<SessionResult<S>> },
    Snapshot(SnapshotReply),
    Status(oneshot::Sender<Status>),
    WatchStatus(oneshot::Sender<watch::Receiver<Status>>),
    Campaign,
    Transfer { to: Option<NodeId> },
    Shutdown,
}

/// A command, and who waits for the response.
pub(crate) struct Proposed<S: StateMachine> {
    pub(crate) command: Bytes,
    pub(crate) reply: oneshot::Sender<ProposeResult<S>>,
    /// What becomes of it is told in there.
    pub(crate) span: Span,
}

pub(crate) type SessionResult<S> =
    Result<Applied<Reply<<S as StateMachine>::Response>>, ProposeError>;

pub(crate) type ChangeResult = Result<Arc<Membership>, ProposeError>;

pub(crate) type ProposeResult<S> = Result<Applied<<S as StateMachine>::Response>, ProposeError>;

/// How far the life of a node has gone.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    Running,
    /// It does nothing any more, and its threads are being joined.
    Stopping(Fault),
    /// Nothing is left of it.
    Stopped(Fault),
}

/// The bytes that may wait in the inbox, and those that do.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) bytes: AtomicUsize,
    pub(crate) bytes_max: usize,
}

/// What a handle is made of.
pub(crate) struct HandleParts<S: StateMachine> {
    pub(crate) requests: mpsc::Sender<Request<S>>,
    pub(crate) room: Arc<Room>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) soft_state: watch::Receiver<SoftState>,
    pub(crate) identity: NodeIdentity,
    pub(crate) has_sessions: bool,
}

/// Why a request did not reach the node.
enum Refused {
    Busy,
    Stopped,
}

impl<S: StateMachine> Raft<S> {
    pub(crate) fn new(parts: HandleParts<S>) -> Self {
        let HandleParts { requests, room, phase, soft_state, identity, has_sessions } = parts;
        Self { requests, room, phase, soft_state, identity, has_sessions }
    }

    /// Whether the node keeps client sessions.
    pub(crate) fn has_sessions(&self) -> bool {
        self.has_sessions
    }

    /// Proposes what a client session has to say, once.
    pub(crate) async fn propose_session(&self, content: Bytes) -> SessionResult<S> {
        let (reply, response) = oneshot::channel();
        let bytes = content.len();
        self.submit(Request::ProposeSession { content, reply }, bytes)
            .map_err(|refused| self.propose_error(&refused))?;
        response.await.unwrap_or_else(|_| Err(ProposeError::Stopped(self.fault())))
    }

    /// Has `command` applied by every node, and returns what the state machine of this one said
    /// to it. Can be called on any node: the command is passed on to the leader.
    ///
    /// # Errors
    ///
    /// [`Rejected`](ProposeError::Rejected) and [`Superseded`](ProposeError::Superseded) are
    /// certain, [`Unknown`](ProposeError::Unknown) is not. When too much waits already the
    /// answer is `Rejected(Busy)`, at once.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the command may or may not be applied.
    pub async fn propose(&self, command: impl Into<Bytes>) -> ProposeResult<S> {
        let (reply, response) = oneshot::channel();
        let command = command.into();
        let bytes = command.len();
        let span = proposal_span(bytes);
        self.submit(Request::Propose(Proposed { command, reply, span }), bytes)
            .map_err(|refused| self.propose_error(&refused))?;
        response.await.unwrap_or_else(|_| Err(ProposeError::Stopped(self.fault())))
    }

    /// As [`propose`](Self::propose) for many commands, which reach the log together: one write
    /// and one message to each follower, as far as they fit. They are applied in the order given,
    /// perhaps with others between; each has a result of its own, in the same order.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped each of the commands may or may not be applied.
    pub async fn propose_many<C: Into<Bytes>>(
        &self,
        commands: impl IntoIterator<Item = C>,
    ) -> Vec<ProposeResult<S>> {
        let mut bytes = 0;
        let (proposed, responses): (Vec<_>, Vec<_>) = commands
            .into_iter()
            .map(|command| {
                let (reply, response) = oneshot::channel();
                let command = command.into();
                bytes += command.len();
                let span = proposal_span(command.len());
                (Proposed { command, reply, span }, response)
            })
            .unzip();
        if let Err(refused) = self.submit(Request::ProposeMany(proposed), bytes) {
            return responses.iter().map(|_| Err(self.propose_error(&refused))).collect();
        }
        let mut results = Vec::with_capacity(responses.len());
        for response in responses {
            let result = response.await;
            results.push(result.unwrap_or_else(|_| Err(ProposeError::Stopped(self.fault()))));
        }
        results
    }

    /// Changes the members of the cluster, and returns the membership when the last step of the
    /// change is committed. Can be called on any node. Changes of voters go through joint
    /// consensus (§6); while another change is under way this one waits for its turn.
    ///
    /// A server that is to be added has its address in the change, and is started with
    /// nothing else than where the others are; it may be started before or after. Ids are given
    /// by the cluster and never used twice.
    ///
    /// # Errors
    ///
    /// As [`propose`](Self::propose). [`Rejection::InvalidChange`] says what makes no sense;
    /// [`Rejection::MembershipChanged`] that [`ChangeSet::expect`] is not met;
    /// [`Rejection::MembershipInProgress`] that another change took all the time there was.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the change may or may not take place.
    pub async fn change_membership(&self, change: ChangeSet) -> ChangeResult {
        let (reply, response) = oneshot::channel();
        self.submit(Request::ChangeMembership { change, reply }, 0)
            .map_err(|refused| self.propose_error(&refused))?;
        response.await.unwrap_or_else(|_| Err(ProposeError::Stopped(self.fault())))
    }

    /// Reads the state as of now or later: everything that was acknowledged to anyone before
    /// this call is in it. Can be called on any node.
    ///
    /// `read` runs on the thread of the state machine, between two batches: the state machine
    /// waits for it. Machines that can be read concurrently are better served by
    /// [`read_barrier`](Self::read_barrier).
    ///
    /// # Errors
    ///
    /// When it cannot be shown in time that the answer is current.
    ///
    /// # Cancel safety
    ///
    /// A read changes nothing, so the future can be dropped at any time. `read` may run yet.
    pub async fn read<R: Send + 'static>(
        &self,
        read: impl FnOnce(&S) -> R + Send + 'static,
    ) -> Result<R, ReadError> {
        self.read_with(ReadMode::ReadIndex, read).await
    }

    /// As [`read`](Self::read), and the caller chooses how it is shown that the answer is
    /// current. [`ReadMode::Lease`] needs [`Builder::lease_reads`](crate::Builder::lease_reads).
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// As [`read`](Self::read).
    pub async fn read_with<R: Send + 'static>(
        &self,
        mode: ReadMode,
        read: impl FnOnce(&S) -> R + Send + 'static,
    ) -> Result<R, ReadError> {
        self.run_on_machine(|serve| Request::Read { mode, serve }, read).await
    }

    /// Reads whatever is here, which may be older than what was acknowledged elsewhere. Needs no
    /// leader.
    ///
    /// # Errors
    ///
    /// When the node has stopped or has too much to do.
    ///
    /// # Cancel safety
    ///
    /// As [`read`](Self::read).
    pub async fn read_stale<R: Send + 'static>(
        &self,
        read: impl FnOnce(&S) -> R + Send + 'static,
    ) -> Result<R, ReadError> {
        self.run_on_machine(Request::ReadStale, read).await
    }

    /// Returns when the state machine of this node has applied everything that was acknowledged
    /// to anyone before this call: what is then read from it, by whatever way, is linearizable.
    /// Returns the index that had to be applied.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped at any time.
    pub async fn read_barrier(&self) -> Result<Index, ReadError> {
        self.read_barrier_with(ReadMode::ReadIndex).await
    }

    /// As [`read_barrier`](Self::read_barrier), and the caller chooses how it is shown that the
    /// answer is current, as in [`read_with`](Self::read_with).
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped at any time.
    pub async fn read_barrier_with(&self, mode: ReadMode) -> Result<Index, ReadError> {
        let (reply, response) = oneshot::channel();
        self.submit(Request::ReadBarrier { mode, reply }, 0)
            .map_err(|refused| self.read_error(&refused))?;
        response.await.unwrap_or_else(|_| Err(ReadError::Stopped(self.fault())))
    }

    /// What this node would say of itself.
    ///
    /// # Errors
    ///
    /// When it has stopped or has too much to do.
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped at any time.
    pub async fn status(&self) -> Result<Status, ReadError> {
        let (reply, response) = oneshot::channel();
        self.submit(Request::Status(reply), 0).map_err(|refused| self.read_error(&refused))?;
        response.await.map_err(|_| ReadError::Stopped(self.fault()))
    }

    /// As [`status`](Self::status), kept up to date: at once when role, term or leader change,
    /// and otherwise ten times a second at most. Ends when the node stops.
    ///
    /// # Errors
    ///
    /// As [`status`](Self::status).
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped at any time.
    pub async fn watch_status(&self) -> Result<watch::Receiver<Status>, ReadError> {
        let (reply, response) = oneshot::channel();
        self.submit(Request::WatchStatus(reply), 0).map_err(|refused| self.read_error(&refused))?;
        response.await.map_err(|_| ReadError::Stopped(self.fault()))
    }

    /// Returns when this node has heard that it was removed from the cluster: nobody counts on it
    /// any more, and it can be [shut down](Self::shutdown). One that could not be reached at that
    /// time does not hear of it.
    ///
    /// # Errors
    ///
    /// When the node stops before.
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped at any time.
    pub async fn removed(&self) -> Result<(), ReadError> {
        let mut statuses = self.watch_status().await?;
        let heard = statuses.wait_for(Status::is_removed).await;
        heard.map(|_| ()).map_err(|_| ReadError::Stopped(self.fault()))
    }

    /// Saves the state machine now, and returns what the snapshot stands for when it is durable:
    /// everything that was applied before this call. The log can then be purged up to there, and
    /// followers that need more than is left of it get this snapshot.
    ///
    /// # Errors
    ///
    /// When the state machine or the disk refuse, or there is no data directory.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the snapshot is made all the same.
    pub async fn snapshot_now(&self) -> Result<SnapshotMeta, SnapshotError> {
        let (reply, response) = oneshot::channel();
        self.submit(Request::Snapshot(reply), 0).map_err(|refused| match refused {
            Refused::Busy => SnapshotError::Busy,
            Refused::Stopped => SnapshotError::Stopped(self.fault()),
        })?;
        response.await.unwrap_or_else(|_| Err(SnapshotError::Stopped(self.fault())))
    }

    /// Whom this handle speaks for.
    #[must_use]
    pub fn identity(&self) -> NodeIdentity {
        self.identity
    }

    /// Role, term and leader as this node sees them, now and whenever they change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<SoftState> {
        self.soft_state.clone()
    }

    /// Hands the leadership over, to `to` or to the follower that is best prepared, and returns
    /// the new leader.
    ///
    /// # Errors
    ///
    /// When this node does not lead, or nobody has taken over in time.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the leadership may or may not be handed over.
    pub async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        let mut soft_state = self.soft_state.clone();
        let before = *soft_state.borrow_and_update();
        if before.role != Role::Leader {
            return Err(TransferError::NotLeader { leader: before.leader });
        }
        self.submit(Request::Transfer { to }, 0).map_err(|refused| match refused {
            Refused::Busy => TransferError::TimedOut,
            Refused::Stopped => TransferError::Stopped(self.fault()),
        })?;
        let is_decided = |now: &SoftState| now.term != before.term && now.leader.is_some();
        let decided = tokio::time::timeout(TRANSFER_TIMEOUT, soft_state.wait_for(is_decided)).await;
        match decided {
            Ok(Ok(after)) => match after.leader {
                Some(leader) if leader != self.identity.id => Ok(leader),
                Some(_) | None => Err(TransferError::TimedOut),
            },
            Ok(Err(_)) => Err(TransferError::Stopped(self.fault())),
            Err(_) => Err(TransferError::TimedOut),
        }
    }

    /// Has this node stand for election, if no other node leads.
    ///
    /// # Errors
    ///
    /// When it has stopped or has too much to do.
    pub fn campaign(&self) -> Result<(), ReadError> {
        self.submit(Request::Campaign, 0).map_err(|refused| self.read_error(&refused))
    }

    /// Stops this node: takes nothing new, hands the leadership over where it can, makes durable
    /// what was written, and joins every thread. What was proposed and not answered is answered
    /// with [`ProposeError::Stopped`].
    ///
    /// # Errors
    ///
    /// The fault, if the node had failed before.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the node stops all the same.
    pub async fn shutdown(self) -> Result<(), Fault> {
        // Asked before all that waits: a full inbox must not keep a node alive.
        drop(self.requests.send(Request::Shutdown).await);
        match self.stopped().await {
            Fault::Shutdown => Ok(()),
            fault => Err(fault),
        }
    }

    /// Returns when the node has stopped, by itself or by [`shutdown`](Self::shutdown), and
    /// nothing is left of it: no thread, no open file, no port.
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped at any time.
    pub async fn stopped(&self) -> Fault {
        let mut phase = self.phase.clone();
        match phase.wait_for(|phase| matches!(phase, Phase::Stopped(_))).await {
            Ok(phase) => phase.fault(),
            Err(_) => self.fault(),
        }
    }

    async fn run_on_machine<R: Send + 'static>(
        &self,
        request: impl FnOnce(ReadFn<S>) -> Request<S>,
        read: impl FnOnce(&S) -> R + Send + 'static,
    ) -> Result<R, ReadError> {
        let (reply, response) = oneshot::channel();
        let serve: ReadFn<S> = Box::new(move |machine| {
            // Whoever asked may have gone.
            drop(reply.send(machine.map(read)));
        });
        self.submit(request(serve), 0).map_err(|refused| self.read_error(&refused))?;
        response.await.unwrap_or_else(|_| Err(ReadError::Stopped(self.fault())))
    }

    fn submit(&self, request: Request<S>, bytes: usize) -> Result<(), Refused> {
        let waiting = self.room.bytes.fetch_add(bytes, Ordering::Relaxed);
        let sent = if waiting.saturating_add(bytes) <= self.room.bytes_max {
            self.requests.try_send(request).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Refused::Busy,
                mpsc::error::TrySendError::Closed(_) => Refused::Stopped,
            })
        } else {
            Err(Refused::Busy)
        };
        if sent.is_err() {
            self.room.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        sent
    }

    fn propose_error(&self, refused: &Refused) -> ProposeError {
        match refused {
            Refused::Busy => ProposeError::Rejected(Rejection::Busy),
            Refused::Stopped => ProposeError::Stopped(self.fault()),
        }
    }

    fn read_error(&self, refused: &Refused) -> ReadError {
        match refused {
            Refused::Busy => ReadError::Rejected(Rejection::Busy),
            Refused::Stopped => ReadError::Stopped(self.fault()),
        }
    }

    /// Why the node has stopped, asked when it is known that it has.
    fn fault(&self) -> Fault {
        self.phase.borrow().fault()
    }
}

/// The life of a proposal, from the call to the answer. Says nothing unless somebody listens at
/// the level of debugging.
fn proposal_span(bytes: usize) -> Span {
    tracing::debug_span!("proposal", bytes, at = tracing::field::Empty)
}

/// The protocol gives up a transfer after an election timeout; this is for one whose end nobody
/// hears of.
const TRANSFER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

impl Phase {
    fn fault(&self) -> Fault {
        match self {
            // It said nothing before it was gone.
            Self::Running => Fault::Panicked { part: "node loop" },
            Self::Stopping(fault) | Self::Stopped(fault) => fault.clone(),
        }
    }
}

impl<S: StateMachine> Clone for Raft<S> {
    fn clone(&self) -> Self {
        Self {
            requests: self.requests.clone(),
            room: Arc::clone(&self.room),
            phase: self.phase.clone(),
            soft_state: self.soft_state.clone(),
            identity: self.identity,
            has_sessions: self.has_sessions,
        }
    }
}

impl<S: StateMachine> fmt::Debug for Raft<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raft").field("identity", &self.identity).finish_non_exhaustive()
    }
}
