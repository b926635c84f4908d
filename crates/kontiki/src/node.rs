//! The node loop: one task that owns the [`Replica`], and the only place from which it changes.
//!
//! Everything that waits is taken in, then the replica is polled once and its actions are handed
//! out: to the log thread, the apply thread, the transport, and those who asked. So one
//! `fdatasync`, one message to each follower and one wake-up pay for all that came together.
//!
//! Nothing here blocks. What could waits on a thread of its own, behind a queue.

mod act;
mod ask;
mod hear;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        mpsc::{Sender, SyncSender},
    },
    thread::JoinHandle,
    time::Duration,
};

use kontiki_raft::{Index, Role, SoftState, Timestamp};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::Span;

use crate::{
    Action, Answer, BoxFuture, Clock, Event, Fault, Inbox, Links, NodeIdentity, ReadError, Replica,
    RequestId, StateMachine, Status,
    apply_thread::{ApplyEvent, ApplyJob, ReadFn},
    compaction::{Order, SnapshotDesk},
    handle::{ChangeResult, Phase, ProposeResult, Request, Room, SessionResult},
    log_thread::{LogEvent, LogJob, StoredEvent, StoredRead},
    metrics::{GAUGE_INTERVAL, Meters},
    snapshots::{SnapshotEvent, SnapshotFiles},
    transport::{Delivery, Notice, Outlet},
};

/// What the threads of the node tell it.
pub(crate) enum Internal<R> {
    Log(LogEvent),
    Stored(StoredEvent),
    Apply(ApplyEvent<R>),
    Snapshot(SnapshotEvent),
    Panicked { part: &'static str },
}

impl<R> From<LogEvent> for Internal<R> {
    fn from(event: LogEvent) -> Self {
        Self::Log(event)
    }
}

impl<R> From<StoredEvent> for Internal<R> {
    fn from(event: StoredEvent) -> Self {
        Self::Stored(event)
    }
}

impl<R> From<SnapshotEvent> for Internal<R> {
    fn from(event: SnapshotEvent) -> Self {
        Self::Snapshot(event)
    }
}

impl<R> From<ApplyEvent<R>> for Internal<R> {
    fn from(event: ApplyEvent<R>) -> Self {
        Self::Apply(event)
    }
}

/// Where the loop sends work. When it is dropped the threads finish what they have and end.
pub(crate) struct Threads<S: StateMachine> {
    pub(crate) log: Sender<LogJob>,
    pub(crate) apply: Sender<ApplyJob<S>>,
    pub(crate) stored: SyncSender<StoredRead>,
    pub(crate) joins: Vec<JoinHandle<()>>,
}

/// Where the loop hears from the world.
pub(crate) struct Sources<S: StateMachine> {
    pub(crate) internal: mpsc::UnboundedReceiver<Internal<S::Response>>,
    pub(crate) outlet: Outlet,
    pub(crate) requests: mpsc::Receiver<Request<S>>,
    /// Kept so that the channels stay open when a thread or the transport has gone.
    pub(crate) _keep: (mpsc::UnboundedSender<Internal<S::Response>>, Inbox),
}

/// What was taken from the sources and is to be handled in this turn.
struct Gathered<S: StateMachine> {
    internal: Vec<Internal<S::Response>>,
    notices: Vec<Notice>,
    control: Vec<Delivery>,
    append: Vec<Delivery>,
    requests: Vec<Request<S>>,
}

/// Who waits for the answer to a request.
enum Waiter<S: StateMachine> {
    Propose { reply: oneshot::Sender<ProposeResult<S>>, span: Span, deadline: Timestamp },
    Session { reply: oneshot::Sender<SessionResult<S>>, deadline: Timestamp },
    Change(oneshot::Sender<ChangeResult>),
    Read(ReadFn<S>),
    ReadBarrier(oneshot::Sender<Result<Index, ReadError>>),
}

impl<S: StateMachine> Waiter<S> {
    /// Until when whoever has proposed something waits.
    fn deadline(&self) -> Option<Timestamp> {
        match self {
            Self::Propose { deadline, .. } | Self::Session { deadline, .. } => Some(*deadline),
            Self::Change(_) | Self::Read(_) | Self::ReadBarrier(_) => None,
        }
    }
}

/// The node loop and all that it owns.
pub(crate) struct Node<S: StateMachine> {
    replica: Replica,
    identity: NodeIdentity,
    clock: Arc<dyn Clock>,
    links: Box<dyn Links>,
    threads: Threads<S>,
    sources: Sources<S>,
    gathered: Gathered<S>,
    actions: Vec<Action>,
    /// Never iterated: its order would be chance.
    waiters: HashMap<RequestId, Waiter<S>>,
    /// Those whose entry is with the state machine, in its order. The first may have its answer,
    /// if others behind it do not.
    handed: VecDeque<RequestId>,
    next_request: u64,
    times: Times,
    desk: SnapshotDesk,
    /// What the desk has said and is to be done in this turn.
    orders: Vec<Order>,
    snapshots: Option<Arc<dyn SnapshotFiles>>,
    /// A snapshot up to here was received, and the log may not be reset to it durably yet.
    unsettled: Option<Index>,
    /// The state machine has applied the log up to here …
    applied_index: Index,
    /// … and will still know it up to here after power loss.
    machine_durable: Index,
    room: Arc<Room>,
    /// For the reads that wait for the state machine.
    read_room: Arc<Semaphore>,
    soft_state: watch::Sender<SoftState>,
    /// Kept up to date while somebody looks.
    status: watch::Sender<Status>,
    /// It is due then.
    status_at: Timestamp,
    meters: Meters,
    /// The gauges are to be set then.
    measure_at: Timestamp,
    /// The log was damaged when the gauges were set.
    is_damaged: bool,
    phase: watch::Sender<Phase>,
    /// What the next turn has to do and did not come from outside.
    again: Vec<Event>,
    timer: Option<Timer>,
    /// The leadership is being handed over, until then at most.
    stop_at: Option<Timestamp>,
    fault: Option<Fault>,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// A request is answered within this time.
    pub(crate) request_timeout: Duration,
    /// A leadership is handed over within this time, or not at all.
    pub(crate) transfer_timeout: Duration,
}

/// A wait that is under way.
struct Timer {
    at: Timestamp,
    sleep: BoxFuture<'static, ()>,
}

/// What a node is made of.
pub(crate) struct NodeParts<S: StateMachine> {
    pub(crate) replica: Replica,
    pub(crate) identity: NodeIdentity,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) links: Box<dyn Links>,
    pub(crate) threads: Threads<S>,
    pub(crate) sources: Sources<S>,
    pub(crate) times: Times,
    pub(crate) desk: SnapshotDesk,
    pub(crate) snapshots: Option<Arc<dyn SnapshotFiles>>,
    pub(crate) applied_index: Index,
    pub(crate) machine_durable: Index,
    pub(crate) room: Arc<Room>,
    pub(crate) read_room: Arc<Semaphore>,
    pub(crate) soft_state: watch::Sender<SoftState>,
    pub(crate) phase: watch::Sender<Phase>,
}

/// Taken from one source in one turn, so that no source waits for long behind another.
const TURN_MAX: usize = 4096;

/// Who watches the status is told of changes this often.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

impl<S: StateMachine> Node<S> {
    pub(crate) fn new(parts: NodeParts<S>) -> Self {
        let NodeParts { replica, identity, clock, links, threads, sources, times, .. } = parts;
        let (status, _) = watch::channel(Status::new(identity, clock.now(), replica.status()));
        Self {
            replica,
            identity,
            clock,
            links,
            threads,
            sources,
            gathered: Gathered::default(),
            actions: Vec::new(),
            waiters: HashMap::new(),
            handed: VecDeque::new(),
            next_request: 0,
            times,
            desk: parts.desk,
            orders: Vec::new(),
            snapshots: parts.snapshots,
            unsettled: None,
            applied_index: parts.applied_index,
            machine_durable: parts.machine_durable,
            room: parts.room,
            read_room: parts.read_room,
            soft_state: parts.soft_state,
            status,
            status_at: Timestamp(0),
            meters: Meters::new(identity.id),
            measure_at: Timestamp(0),
            is_damaged: false,
            phase: parts.phase,
            again: Vec::new(),
            timer: None,
            stop_at: None,
            fault: None,
        }
    }

    /// Runs until the node is stopped or fails, and then until nothing is left of it.
    pub(crate) async fn run(mut self) {
        self.tell_applied(self.clock.now());
        let fault = loop {
            self.turn();
            if let Some(fault) = self.fault.take() {
                break fault;
            }
            if self.sources.is_empty() && self.again.is_empty() {
                self.wait().await;
            } else {
                // Whoever else is on this thread goes first: what they have to say makes the
                // next batch larger, and messages of this turn get on their way.
                tokio::task::yield_now().await;
            }
            self.gathered.take_from(&mut self.sources);
        };
        self.stop(fault).await;
    }

    /// Waits until there is something to do.
    async fn wait(&mut self) {
        self.arm_timer();
        let Sources { internal, outlet, requests, .. } = &mut self.sources;
        let gathered = &mut self.gathered;
        let timer = async {
            match &mut self.timer {
                Some(timer) => timer.sleep.as_mut().await,
                None => std::future::pending().await,
            }
        };
        // Dropping the branches that lose loses nothing: `recv_many` is cancel safe.
        tokio::select! {
            biased;
            _ = internal.recv_many(&mut gathered.internal, TURN_MAX) => {}
            _ = outlet.notices.recv_many(&mut gathered.notices, TURN_MAX) => {}
            _ = outlet.control.recv_many(&mut gathered.control, TURN_MAX) => {}
            _ = outlet.append.recv_many(&mut gathered.append, TURN_MAX) => {}
            count = requests.recv_many(&mut gathered.requests, TURN_MAX) => if count == 0 {
                self.fault = Some(Fault::Shutdown); // every handle was dropped
            },
            () = timer => self.timer = None,
        }
    }

    /// Sets the timer for the next deadline. A timer that fires too early costs a turn, one
    /// that is set anew for every message costs more; so an earlier one is left alone.
    fn arm_timer(&mut self) {
        let status_at = (0 < self.status.receiver_count()).then_some(self.status_at);
        let own = self.stop_at.into_iter().chain(status_at).chain(self.handed_deadline());
        let Some(at) = self.replica.next_deadline().into_iter().chain(own).min() else {
            self.timer = None;
            return;
        };
        if self.timer.as_ref().is_none_or(|timer| at < timer.at) {
            self.timer = Some(Timer { at, sleep: self.clock.sleep_until(at) });
        }
    }

    /// Handles all that was gathered, polls once, and hands the actions out.
    fn turn(&mut self) {
        let now = self.clock.now();
        let mut gathered = std::mem::take(&mut self.gathered);
        for event in self.again.drain(..) {
            self.replica.handle(now, event);
        }
        for event in gathered.internal.drain(..) {
            self.on_internal(now, event);
        }
        for notice in gathered.notices.drain(..) {
            self.on_notice(now, notice);
        }
        let messages = gathered.control.drain(..).chain(gathered.append.drain(..));
        for Delivery { from, message, .. } in messages {
            self.replica.handle(now, Event::Message { from, message });
        }
        for request in gathered.requests.drain(..) {
            self.on_request(now, request);
        }
        self.gathered = gathered;
        if self.replica.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.replica.handle(now, Event::Timeout);
        }

        let mut actions = std::mem::take(&mut self.actions);
        self.replica.poll(now, &mut actions);
        for action in actions.drain(..) {
            self.carry_out(now, action);
        }
        self.actions = actions;
        self.carry_out_orders();
        self.expire_handed(now);
        self.maybe_publish(now);
        if self.measure_at <= now {
            self.measure_at = now + GAUGE_INTERVAL;
            self.measure();
        }
        self.maybe_stop(now);
    }

    /// Who watches the status is told of it, if not too often.
    fn maybe_publish(&mut self, now: Timestamp) {
        if self.status_at <= now && 0 < self.status.receiver_count() {
            self.status.send_replace(self.status_now());
            self.status_at = now + STATUS_INTERVAL;
        }
    }

    /// When the first of those whose entry is with the state machine runs out of time.
    fn handed_deadline(&self) -> Option<Timestamp> {
        self.waiters.get(self.handed.front()?)?.deadline()
    }

    /// A state machine that cannot go on, for want of space most often, keeps nobody waiting:
    /// what becomes of a command is not known then.
    fn expire_handed(&mut self, now: Timestamp) {
        while let Some(&id) = self.handed.front() {
            match self.handed_deadline() {
                Some(deadline) if now < deadline => return,
                Some(_) => self.answer(id, Answer::Unknown { at: None }),
                None => {} // it has its answer
            }
            self.handed.pop_front();
        }
    }

    /// The first fault is the cause; what follows from it is noise.
    fn fail(&mut self, fault: Fault) {
        if self.fault.is_none() {
            let error = crate::error::with_causes(&fault);
            tracing::error!(id = %self.identity.id, error, "the node stops");
            self.fault = Some(fault);
        }
    }

    /// A leader hands its leadership over first, so that the others need not miss it.
    fn begin_stop(&mut self, now: Timestamp) {
        if self.stop_at.is_some() {
            return;
        }
        let others = self.replica.status().membership.voters().any(|id| id != self.identity.id);
        if others && self.soft_state.borrow().role == Role::Leader {
            self.replica.handle(now, Event::TransferLeadership { to: None });
            self.stop_at = Some(now + self.times.transfer_timeout);
        } else {
            self.stop_at = Some(now);
        }
    }

    /// Stops when there is another leader. To step down is not enough: the vote of this node
    /// may be the one that makes the other one leader.
    fn maybe_stop(&mut self, now: Timestamp) {
        let leader = self.soft_state.borrow().leader;
        let is_handed_over = leader.is_some_and(|leader| leader != self.identity.id);
        if self.stop_at.is_some_and(|at| at <= now || is_handed_over) {
            self.fault.get_or_insert(Fault::Shutdown);
        }
    }

    /// Tells everyone, and leaves nothing behind.
    async fn stop(self, fault: Fault) {
        // Before anyone sees that there will be no answer: they will ask why.
        self.phase.send_replace(Phase::Stopping(fault.clone()));
        drop((self.sources, self.gathered, self.waiters, self.desk, self.orders, self.status));
        self.links.close().await;
        let Threads { log, apply, stored, joins } = self.threads;
        drop((log, apply, stored)); // the threads write and apply what they have, and end
        let joined = tokio::task::spawn_blocking(move || {
            for join in joins {
                // A panic has been reported by the thread itself.
                drop(join.join());
            }
        });
        drop(joined.await);
        self.phase.send_replace(Phase::Stopped(fault));
    }
}

impl<S: StateMachine> Sources<S> {
    fn is_empty(&self) -> bool {
        self.internal.is_empty()
            && self.outlet.notices.is_empty()
            && self.outlet.control.is_empty()
            && self.outlet.append.is_empty()
            && self.requests.is_empty()
    }
}

impl<S: StateMachine> Gathered<S> {
    /// Takes what is there, without waiting.
    fn take_from(&mut self, sources: &mut Sources<S>) {
        fill(&mut self.internal, || sources.internal.try_recv().ok());
        fill(&mut self.notices, || sources.outlet.notices.try_recv().ok());
        fill(&mut self.control, || sources.outlet.control.try_recv().ok());
        fill(&mut self.append, || sources.outlet.append.try_recv().ok());
        fill(&mut self.requests, || sources.requests.try_recv().ok());
    }
}

impl<S: StateMachine> Default for Gathered<S> {
    fn default() -> Self {
        Self {
            internal: Vec::new(),
            notices: Vec::new(),
            control: Vec::new(),
            append: Vec::new(),
            requests: Vec::new(),
        }
    }
}

fn fill<T>(items: &mut Vec<T>, mut next: impl FnMut() -> Option<T>) {
    while items.len() < TURN_MAX
        && let Some(item) = next()
    {
        items.push(item);
    }
}
