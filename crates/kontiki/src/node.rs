//! The node loop: one task that owns the [`Replica`], and the only place from which it changes.
//!
//! Everything that waits is taken in, then the replica is polled once and its actions are handed
//! out: to the log thread, the apply thread, the transport, and those who asked. So one
//! `fdatasync`, one message to each follower and one wake-up pay for all that came together.
//!
//! Nothing here blocks. What could waits on a thread of its own, behind a queue.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Sender, SyncSender},
    },
    thread::JoinHandle,
    time::Duration,
};

use kontiki_raft::{Index, ReadMode, Rejection, Role, SoftState, Timestamp, Unavailable};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::{
    Action, Answer, Applied, BoxFuture, Clock, Event, Fault, Inbox, Links, NodeIdentity,
    ProposeError, ReadError, Replica, RequestId, StateMachine, Status,
    apply_thread::{ApplyEvent, ApplyJob, ReadFn},
    handle::{ChangeResult, Phase, ProposeResult, Proposed, Request, Room},
    log_thread::{LogEvent, LogJob, StoredEvent, StoredRead},
    transport::{Delivery, Notice, Outlet},
};

/// What the threads of the node tell it.
pub(crate) enum Internal<R> {
    Log(LogEvent),
    Stored(StoredEvent),
    Apply(ApplyEvent<R>),
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
    Propose(oneshot::Sender<ProposeResult<S>>),
    Change(oneshot::Sender<ChangeResult>),
    Read(ReadFn<S>),
    ReadBarrier(oneshot::Sender<Result<Index, ReadError>>),
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
    next_request: u64,
    times: Times,
    room: Arc<Room>,
    /// For the reads that wait for the state machine.
    read_room: Arc<Semaphore>,
    soft_state: watch::Sender<SoftState>,
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
    pub(crate) room: Arc<Room>,
    pub(crate) read_room: Arc<Semaphore>,
    pub(crate) soft_state: watch::Sender<SoftState>,
    pub(crate) phase: watch::Sender<Phase>,
}

/// Taken from one source in one turn, so that no source waits for long behind another.
const TURN_MAX: usize = 4096;

impl<S: StateMachine> Node<S> {
    pub(crate) fn new(parts: NodeParts<S>) -> Self {
        let NodeParts { replica, identity, clock, links, threads, sources, times, .. } = parts;
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
            next_request: 0,
            times,
            room: parts.room,
            read_room: parts.read_room,
            soft_state: parts.soft_state,
            phase: parts.phase,
            again: Vec::new(),
            timer: None,
            stop_at: None,
            fault: None,
        }
    }

    /// Runs until the node is stopped or fails, and then until nothing is left of it.
    pub(crate) async fn run(mut self) {
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
        let Some(at) = self.replica.next_deadline().into_iter().chain(self.stop_at).min() else {
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
            match notice {
                Notice::Unreachable(id) => {
                    self.replica.handle(now, Event::PeerUnreachable { id });
                }
                Notice::Fault(fault) => self.fail(fault),
                Notice::SnapshotReceived { from, meta } => {
                    self.replica.handle(now, Event::SnapshotReceived { from, meta });
                }
                Notice::SnapshotSent { to, session, sent } => {
                    self.replica.handle(now, Event::SnapshotSent { to, session, sent });
                }
                Notice::PeerStore { id, store } => {
                    self.replica.handle(now, Event::PeerStore { id, store });
                }
            }
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
            self.carry_out(action);
        }
        self.actions = actions;
        self.maybe_stop(now);
    }

    fn on_internal(&mut self, now: Timestamp, event: Internal<S::Response>) {
        match event {
            Internal::Log(LogEvent::Persisted(ticket)) => {
                self.replica.handle(now, Event::Persisted(ticket));
            }
            Internal::Log(LogEvent::Failed { ticket, error }) => {
                if let Some(ticket) = ticket {
                    self.replica.handle(now, Event::WriteFailed(ticket));
                }
                self.fail(Fault::Log(error.into()));
            }
            Internal::Log(LogEvent::Purged { upto }) => {
                self.replica.handle(now, Event::Purged { upto });
            }
            Internal::Log(LogEvent::Space { is_full }) => {
                let id = self.identity.id;
                if is_full {
                    tracing::error!(%id, "no space for the log: no writes until there is some");
                } else {
                    tracing::info!(%id, "there is space for the log again");
                }
                self.replica.handle(now, Event::StorageSpace { is_full });
            }
            Internal::Stored(StoredEvent::Send(envelope)) => self.links.send(envelope),
            Internal::Stored(StoredEvent::Unavailable { to, session, why }) => {
                self.replica.handle(now, Event::EntriesUnavailable { to, session, why });
            }
            Internal::Apply(ApplyEvent::Applied { upto, durable, responses }) => {
                self.replica.handle(now, Event::Applied { upto, durable });
                for (id, at, response) in responses {
                    if let Some(Waiter::Propose(reply)) = self.waiters.remove(&id) {
                        // Whoever asked may have gone.
                        drop(reply.send(Ok(Applied { at, response })));
                    }
                }
            }
            Internal::Apply(ApplyEvent::Failed(fault)) => self.fail(fault),
            Internal::Panicked { part } => self.fail(Fault::Panicked { part }),
        }
    }

    fn on_request(&mut self, now: Timestamp, request: Request<S>) {
        let deadline = now + self.times.request_timeout;
        match request {
            Request::Propose(proposed) => self.propose(now, proposed),
            Request::ProposeMany(many) => {
                many.into_iter().for_each(|proposed| self.propose(now, proposed));
            }
            Request::ChangeMembership { change, reply } => {
                let id = self.enter(Waiter::Change(reply));
                self.replica.handle(now, Event::ChangeMembership { id, change, deadline });
            }
            Request::Read { mode, serve } => self.read(now, mode, Waiter::Read(serve)),
            Request::ReadBarrier { mode, reply } => {
                self.read(now, mode, Waiter::ReadBarrier(reply));
            }
            Request::ReadStale(serve) => self.submit_read(serve),
            Request::Status(reply) => {
                // Whoever asked may have gone.
                drop(reply.send(self.status()));
            }
            Request::Campaign => self.replica.handle(now, Event::Campaign),
            Request::Transfer { to } => {
                self.replica.handle(now, Event::TransferLeadership { to });
            }
            Request::Shutdown => self.begin_stop(now),
        }
    }

    fn propose(&mut self, now: Timestamp, proposed: Proposed<S>) {
        let Proposed { command, reply } = proposed;
        self.room.bytes.fetch_sub(command.len(), Ordering::Relaxed);
        if self.stop_at.is_some() {
            drop(reply.send(Err(ProposeError::Stopped(Fault::Shutdown))));
            return;
        }
        let deadline = now + self.times.request_timeout;
        let id = self.enter(Waiter::Propose(reply));
        let is_session = false;
        self.replica.handle(now, Event::Propose { id, command, is_session, deadline });
    }

    fn read(&mut self, now: Timestamp, mode: ReadMode, waiter: Waiter<S>) {
        let deadline = now + self.times.request_timeout;
        let id = self.enter(waiter);
        self.replica.handle(now, Event::Read { id, mode, deadline });
    }

    fn enter(&mut self, waiter: Waiter<S>) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.waiters.insert(id, waiter);
        id
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Send(envelope) => self.links.send(envelope),
            Action::SendStored { envelope, range, bytes_max, session } => {
                let to = envelope.to;
                let job = StoredRead { envelope, range, bytes_max, session };
                if self.threads.stored.try_send(job).is_err() {
                    // Too much to read already: the protocol asks again.
                    let why = Unavailable::Retry;
                    self.again.push(Event::EntriesUnavailable { to, session, why });
                }
            }
            // A thread that is gone has told why, or will have before the next turn.
            Action::Write(write) => drop(self.threads.log.send(LogJob::Write(write))),
            Action::Purge { upto } => drop(self.threads.log.send(LogJob::Purge(upto))),
            Action::Apply { what, waiters } => {
                self.submit_apply(ApplyJob::Apply { what, waiters });
            }
            Action::SendSnapshot { to, session, .. } => {
                self.again.push(Event::SnapshotSent { to, session, sent: None });
            }
            Action::CancelSnapshot { to, session } => self.links.cancel_snapshot(to, session),
            Action::Membership(at, membership) => {
                let members = membership.members.len();
                tracing::info!(id = %self.identity.id, %at, members, "membership in force");
                self.links.set_members(&membership);
            }
            Action::Answer { id, answer } => self.answer(id, answer),
            Action::SoftState(soft_state) => {
                let SoftState { role, term, leader } = soft_state;
                let leader = leader.map(tracing::field::display);
                tracing::info!(id = %self.identity.id, %role, %term, leader, "role changed");
                self.soft_state.send_replace(soft_state);
            }
        }
    }

    fn answer(&mut self, id: RequestId, answer: Answer) {
        let Some(waiter) = self.waiters.remove(&id) else { return };
        match (waiter, answer) {
            (Waiter::Read(serve), Answer::ReadReady { .. }) => {
                self.submit_read(serve);
            }
            (Waiter::ReadBarrier(reply), Answer::ReadReady { index }) => {
                drop(reply.send(Ok(index)));
            }
            (Waiter::Read(serve), Answer::Rejected(why)) => serve(Err(ReadError::Rejected(why))),
            (Waiter::ReadBarrier(reply), Answer::Rejected(why)) => {
                drop(reply.send(Err(ReadError::Rejected(why))));
            }
            (Waiter::Change(reply), Answer::MembershipChanged { membership, .. }) => {
                drop(reply.send(Ok(membership)));
            }
            (Waiter::Propose(reply), answer) => drop(reply.send(Err(propose_error(answer)))),
            (Waiter::Change(reply), answer) => drop(reply.send(Err(propose_error(answer)))),
            (Waiter::Read(_) | Waiter::ReadBarrier(_), answer) => {
                unreachable!("a read was answered as a proposal: {answer:?}")
            }
        }
    }

    /// Has a read run by the state machine, if not too many wait for it already.
    fn submit_read(&self, serve: ReadFn<S>) {
        match Arc::clone(&self.read_room).try_acquire_owned() {
            Ok(room) => self.submit_apply(ApplyJob::Read { serve, room }),
            Err(_) => serve(Err(ReadError::Rejected(Rejection::Busy))),
        }
    }

    fn submit_apply(&self, job: ApplyJob<S>) {
        // As with the log: a thread that is gone has told why.
        drop(self.threads.apply.send(job));
    }

    fn status(&self) -> Status {
        let now = self.clock.now();
        let status = self.replica.status();
        Status {
            identity: self.identity,
            soft_state: status.soft_state,
            commit_index: status.commit_index,
            applied_index: status.applied_index,
            durable_index: status.durable_index,
            log_start: status.log_start,
            last: status.last,
            membership: status.membership.clone(),
            membership_at: status.membership_at,
            now,
            lease_until: status.lease_until,
            transfer_to: status.transfer_to,
            damaged: status.damaged,
            is_storage_full: status.is_storage_full,
            oldest_write: status.oldest_write,
            progress: status.progress,
        }
    }

    /// The first fault is the cause; what follows from it is noise.
    fn fail(&mut self, fault: Fault) {
        if self.fault.is_none() {
            let error = crate::error::chain(&fault);
            tracing::error!(id = %self.identity.id, error, "the node stops");
            self.fault = Some(fault);
        }
    }

    /// A leader hands its leadership over first, so that the others need not miss it.
    fn begin_stop(&mut self, now: Timestamp) {
        if self.stop_at.is_some() {
            return;
        }
        let others = self.replica.status().membership.voters().count() > 1;
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
        drop((self.sources, self.gathered, self.waiters));
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

/// Why a proposal was not applied.
fn propose_error(answer: Answer) -> ProposeError {
    match answer {
        Answer::Rejected(why) => ProposeError::Rejected(why),
        Answer::Superseded { at } => ProposeError::Superseded { at },
        Answer::Unknown { at } => ProposeError::Unknown { at },
        Answer::ReadReady { .. } | Answer::MembershipChanged { .. } => {
            unreachable!("a proposal was answered as something else: {answer:?}")
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
