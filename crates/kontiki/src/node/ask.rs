//! What the handles of the node ask of it.

use std::sync::atomic::Ordering;

use kontiki_raft::{ReadMode, Rejection, Timestamp};

use super::{Node, Waiter};
use crate::{
    Event, Fault, ProposeError, ReadError, RequestId, StateMachine, Status,
    handle::{Proposed, Request},
    metrics::Depths,
};

impl<S: StateMachine> Node<S> {
    pub(super) fn on_request(&mut self, now: Timestamp, request: Request<S>) {
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
            Request::ReadStale(serve) => match self.replica.status().needs_snapshot {
                None => self.submit_read(serve),
                // There is a state here that never was.
                Some(_) => serve(Err(ReadError::Rejected(Rejection::NoState))),
            },
            Request::ProposeSession { content, reply } => {
                self.room.bytes.fetch_sub(content.len(), Ordering::Relaxed);
                let id = self.enter(Waiter::Session { reply, deadline });
                let (command, is_session) = (content, true);
                self.replica.handle(now, Event::Propose { id, command, is_session, deadline });
            }
            Request::Snapshot(reply) => {
                self.refresh_desk();
                self.desk.ask(reply, &mut self.orders);
            }
            Request::WatchStatus(reply) => {
                self.status.send_replace(self.status_now());
                drop(reply.send(self.status.subscribe()));
            }
            Request::Status(reply) => {
                // Whoever asked may have gone.
                drop(reply.send(self.status_now()));
            }
            Request::Campaign => self.replica.handle(now, Event::Campaign),
            Request::Transfer { to } => {
                self.replica.handle(now, Event::TransferLeadership { to });
            }
            Request::Shutdown => self.begin_stop(now),
        }
    }

    fn propose(&mut self, now: Timestamp, proposed: Proposed<S>) {
        let Proposed { command, reply, span } = proposed;
        self.room.bytes.fetch_sub(command.len(), Ordering::Relaxed);
        if self.stop_at.is_some() {
            drop(reply.send(Err(ProposeError::Stopped(Fault::Shutdown))));
            return;
        }
        let deadline = now + self.times.request_timeout;
        let id = self.enter(Waiter::Propose { reply, span, deadline });
        self.meters.on_proposed(now, id);
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

    pub(super) fn status_now(&self) -> Status {
        Status::new(self.identity, self.clock.now(), self.replica.status())
    }

    /// Sets the gauges, and says when what was damaged is whole again.
    pub(super) fn measure(&mut self) {
        let status = self.status_now();
        let depths = Depths {
            requests: self.sources.requests.len(),
            control: self.sources.outlet.control.len(),
            append: self.sources.outlet.append.len(),
            unanswered: self.waiters.len(),
        };
        self.meters.set(&status, depths);
        self.meters.set_peers(&status, &self.links.backlogs());
        let is_damaged = status.damaged.is_some();
        if self.is_damaged && !is_damaged {
            tracing::info!(id = %self.identity.id, "the log is whole again: this node takes part");
        }
        self.is_damaged = is_damaged;
    }
}
