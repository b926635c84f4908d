//! What the node loop hears from its own threads and from the transport.

use std::io;

use kontiki_raft::{EntryId, Index, SnapshotMeta, Timestamp};

use super::{Internal, Node, Waiter};
use crate::{
    Applied, Event, Fault, RequestId, StateMachine,
    apply_thread::{ApplyEvent, Reply},
    error::with_causes,
    log_thread::{LogEvent, StoredEvent},
    snapshots::SnapshotEvent,
    transport::Notice,
};

impl<S: StateMachine> Node<S> {
    pub(super) fn on_internal(&mut self, now: Timestamp, event: Internal<S::Response>) {
        match event {
            Internal::Log(LogEvent::Persisted { ticket, last }) => {
                if let Some(last) = last {
                    self.meters.on_persisted(now, last);
                }
                self.replica.handle(now, Event::Persisted(ticket));
                self.settle();
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
                    tracing::error!(%id, "the disk is full: no writes until there is space");
                } else {
                    tracing::info!(%id, "there is space on the disk again");
                }
                self.replica.handle(now, Event::StorageSpace { is_full });
            }
            Internal::Stored(StoredEvent::Send(envelope)) => self.links.send(envelope),
            Internal::Stored(StoredEvent::Unavailable { to, session, why }) => {
                self.replica.handle(now, Event::EntriesUnavailable { to, session, why });
            }
            Internal::Apply(event) => self.on_apply_event(now, event),
            Internal::Snapshot(SnapshotEvent { result }) => self.on_snapshot(now, result),
            Internal::Panicked { part } => self.fail(Fault::Panicked { part }),
        }
    }

    /// Tells the files how far the log is durable, if one of them waits for that.
    fn settle(&mut self) {
        let (Some(unsettled), Some(files)) = (self.unsettled, &self.snapshots) else { return };
        let durable = self.replica.status().durable_index;
        files.settle(durable);
        self.unsettled = self.unsettled.filter(|_| durable < unsettled);
    }

    fn on_apply_event(&mut self, now: Timestamp, event: ApplyEvent<S::Response>) {
        match event {
            ApplyEvent::Applied { upto, durable, bytes, done, responses } => {
                self.desk.on_applied(now, upto, bytes, &mut self.orders);
                self.note_applied(now, upto, durable);
                let before = done.elapsed();
                for (id, at, reply) in responses {
                    self.meters.on_answered(now, id, before);
                    self.respond(id, at, reply);
                }
            }
            ApplyEvent::Restored { meta, durable } => {
                tracing::info!(id = %self.identity.id, at = %meta.last, "snapshot installed");
                self.meters.on_restored();
                let upto = meta.last.index;
                self.desk.on_restored(&meta, &mut self.orders);
                self.note_applied(now, upto, durable);
            }
            ApplyEvent::NotFrozen(error) => self.on_snapshot(now, Err(error)),
            ApplyEvent::Failed(fault) => self.fail(fault),
        }
    }

    /// The state machine has applied the log up to here.
    fn note_applied(&mut self, now: Timestamp, upto: Index, durable: Index) {
        self.applied_index = upto;
        self.machine_durable = durable;
        self.tell_applied(now);
    }

    /// What a snapshot holds survives power loss as well.
    pub(super) fn tell_applied(&mut self, now: Timestamp) {
        let durable = self.machine_durable.max(self.desk.durable_index());
        self.replica.handle(now, Event::Applied { upto: self.applied_index, durable });
    }

    /// A snapshot is durable, or there is none.
    fn on_snapshot(&mut self, now: Timestamp, result: Result<SnapshotMeta, io::Error>) {
        let id = self.identity.id;
        match &result {
            Ok(meta) => tracing::info!(%id, at = %meta.last, "snapshot made"),
            Err(error) => {
                tracing::error!(%id, error = with_causes(error), "no snapshot could be made");
            }
        }
        self.meters.on_snapshot_made(result.is_ok());
        self.desk.on_written(now, result, &mut self.orders);
        self.tell_applied(now);
    }

    /// The state machine has answered a request.
    fn respond(&mut self, id: RequestId, at: EntryId, reply: Reply<S::Response>) {
        // Whoever asked may have gone.
        match (self.waiters.remove(&id), reply) {
            (Some(Waiter::Propose { reply: waiter, span, .. }), Reply::Response(response)) => {
                span.record("at", tracing::field::display(at));
                span.in_scope(|| tracing::debug!("applied"));
                drop(waiter.send(Ok(Applied { at, response })));
            }
            (Some(Waiter::Session { reply: waiter, .. }), response) => {
                drop(waiter.send(Ok(Applied { at, response })));
            }
            _ => {}
        }
    }

    pub(super) fn on_notice(&mut self, now: Timestamp, notice: Notice) {
        let event = match notice {
            Notice::Fault(fault) => return self.fail(fault),
            Notice::Unreachable(id) => Event::PeerUnreachable { id },
            Notice::NotSent(envelope) => Event::NotSent(envelope),
            Notice::SnapshotReceived { from, meta } => {
                let id = self.identity.id;
                tracing::info!(%id, %from, at = %meta.last, "snapshot received");
                self.meters.on_snapshot_received();
                self.unsettled = self.unsettled.max(Some(meta.last.index));
                Event::SnapshotReceived { from, meta }
            }
            Notice::SnapshotSent { to, session, sent } => {
                let (id, at) = (self.identity.id, sent.map(tracing::field::display));
                tracing::info!(%id, %to, at, "transfer of a snapshot has ended");
                if sent.is_some() {
                    self.meters.on_snapshot_sent();
                }
                Event::SnapshotSent { to, session, sent }
            }
            Notice::PeerStore { id, store } => Event::PeerStore { id, store },
        };
        self.replica.handle(now, event);
    }
}
