//! What the node loop does: the actions of its replica, and the orders of its desk of snapshots.

use std::sync::Arc;

use kontiki_raft::{Index, Rejection, Role, SoftState, Timestamp, Unavailable};

use super::{Node, Waiter};
use crate::{
    Action, Answer, Event, ProposeError, ReadError, RequestId, SnapshotTransfer, StateMachine,
    apply_thread::{ApplyJob, ReadFn},
    compaction::Order,
    log_thread::{LogJob, StoredRead},
};

impl<S: StateMachine> Node<S> {
    pub(super) fn carry_out(&mut self, now: Timestamp, action: Action) {
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
            Action::Write(write) => {
                if write.batch.is_repaired {
                    let id = self.identity.id;
                    tracing::info!(%id, "the log is repaired: this node takes part again");
                }
                drop(self.threads.log.send(LogJob::Write(write)));
            }
            Action::Purge { upto } => drop(self.threads.log.send(LogJob::Purge(upto))),
            Action::Apply { what, waiters } => {
                self.meters.on_committed(now, &waiters);
                self.trace_committed(&waiters);
                self.handed.extend(waiters.iter().map(|(_, id)| *id));
                self.submit_apply(ApplyJob::Apply { what, waiters });
            }
            Action::SendSnapshot { to, session, at_least } => {
                self.refresh_desk();
                self.desk.send(to, session, at_least, &mut self.orders);
            }
            Action::CancelSnapshot { to, session } => {
                if !self.desk.cancel(to, session) {
                    self.links.cancel_snapshot(to, session);
                }
            }
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
                let needed = self.replica.status().needs_snapshot;
                if let (Role::Leader, Some(upto)) = (role, needed) {
                    tracing::error!(
                        id = %self.identity.id, %upto,
                        "this node leads without its state, and hands over to the first server \
                         that has its own; if every server has lost it, what was written up to \
                         there is lost unless there is a backup",
                    );
                }
                self.meters.on_soft_state(soft_state);
                self.soft_state.send_replace(soft_state);
                self.status_at = Timestamp(0);
            }
        }
    }

    /// Tells the spans of proposals that they are committed, if anyone listens.
    fn trace_committed(&self, waiters: &[(Index, RequestId)]) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        for (index, id) in waiters {
            if let Some(Waiter::Propose { span, .. }) = self.waiters.get(id) {
                span.in_scope(|| tracing::debug!(%index, "committed"));
            }
        }
    }

    pub(super) fn answer(&mut self, id: RequestId, answer: Answer) {
        self.meters.forget(id);
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
            (Waiter::Session { reply, .. }, answer) => drop(reply.send(Err(propose_error(answer)))),
            (Waiter::Propose { reply, .. }, answer) => drop(reply.send(Err(propose_error(answer)))),
            (Waiter::Change(reply), answer) => drop(reply.send(Err(propose_error(answer)))),
            (Waiter::Read(_) | Waiter::ReadBarrier(_), answer) => {
                unreachable!("a read was answered as a proposal: {answer:?}")
            }
        }
    }

    /// Has a read run by the state machine, if not too many wait for it already.
    pub(super) fn submit_read(&self, serve: ReadFn<S>) {
        match Arc::clone(&self.read_room).try_acquire_owned() {
            Ok(room) => self.submit_apply(ApplyJob::Read { serve, room }),
            Err(_) => serve(Err(ReadError::Rejected(Rejection::Busy))),
        }
    }

    fn submit_apply(&self, job: ApplyJob<S>) {
        // As with the log: a thread that is gone has told why.
        drop(self.threads.apply.send(job));
    }

    /// Another snapshot may have come, from a leader: the newest one is sent.
    pub(super) fn refresh_desk(&mut self) {
        let newest = self.snapshots.as_ref().and_then(|files| files.newest());
        if let Some(newest) = newest
            && newest.last.index <= self.applied_index
        {
            self.desk.on_found(newest);
        }
    }

    /// Does what the desk of snapshots says.
    pub(super) fn carry_out_orders(&mut self) {
        for order in std::mem::take(&mut self.orders) {
            match order {
                Order::Take => self.submit_apply(ApplyJob::Snapshot),
                Order::Send { to, session, last } => {
                    let term = self.soft_state.borrow().term;
                    tracing::info!(id = %self.identity.id, %to, at = %last, "sending a snapshot");
                    self.links.send_snapshot(SnapshotTransfer { to, session, term, last });
                }
                Order::NotSent { to, session } => {
                    self.again.push(Event::SnapshotSent { to, session, sent: None });
                }
                // Whoever asked may have gone.
                Order::Answer { reply, result } => drop(reply.send(result)),
            }
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
