//! When snapshots are made, and who gets them.
//!
//! A state machine in memory is saved after so many bytes of log, for only what a snapshot holds
//! may be purged. One that keeps its state on disk needs none for itself: it is saved when a
//! follower needs entries that are purged. One snapshot is written at a time, and the newest
//! serves everyone.
//!
//! I/O-free: told what happened, it says what to do.

use std::{io, sync::Arc, time::Duration};

use kontiki_raft::{EntryId, Index, NodeId, Session, SnapshotMeta, Timestamp};
use tokio::sync::oneshot;

use crate::SnapshotError;

/// What is kept of the log, and when the state machine is saved so that the rest can go. Set
/// with [`Builder::compaction`](crate::Builder::compaction).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// A state machine in memory is saved when so many bytes of log were applied since the last
    /// time. 64 MiB: a start reads back as much at most.
    pub snapshot_after_bytes: u64,
    /// The newest entries are kept, up to this many bytes, so that a server that was away for a
    /// moment needs no snapshot. 16 MiB.
    pub keep_bytes: u64,
    /// Entries that a slow or absent server still needs are kept up to this many bytes. Beyond
    /// it that one gets a snapshot. 1 GiB.
    pub slow_follower_bytes_max: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Self {
            snapshot_after_bytes: 64 << 20,
            keep_bytes: 16 << 20,
            slow_follower_bytes_max: 1 << 30,
        }
    }
}

/// Who asked for a snapshot by hand.
pub(crate) type SnapshotReply = oneshot::Sender<Result<SnapshotMeta, SnapshotError>>;

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Order {
    /// Have the state machine saved.
    Take,
    /// Send the snapshot that ends at `last`.
    Send { to: NodeId, session: Session, last: EntryId },
    /// There is none to be sent to this follower.
    NotSent { to: NodeId, session: Session },
    /// The answer to who asked by hand.
    Answer { reply: SnapshotReply, result: Result<SnapshotMeta, SnapshotError> },
}

/// A follower that waits for a snapshot that is not there yet.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    to: NodeId,
    session: Session,
    at_least: Index,
}

/// What is known of snapshots and of those who wait for them.
#[derive(Debug)]
pub(crate) struct SnapshotDesk {
    /// There is a place for them.
    can_save: bool,
    /// The state machine is saved after so many bytes. `None` if it saves itself.
    after_bytes: Option<u64>,
    newest: Option<SnapshotMeta>,
    is_writing: bool,
    /// Bytes of log that were applied since the last one was begun.
    applied_bytes: u64,
    applied_index: Index,
    /// After a failure there is none of itself before this.
    not_before: Timestamp,
    wanted: Vec<Wanted>,
    /// Each with the index that it must reach.
    asked: Vec<(Index, SnapshotReply)>,
}

/// A snapshot that could not be written is tried again after this time, if nobody asks for it:
/// most likely the disk is full, and each attempt writes a lot.
const RETRY: Duration = Duration::from_secs(30);

impl SnapshotDesk {
    pub(crate) fn new(
        can_save: bool,
        after_bytes: Option<u64>,
        newest: Option<SnapshotMeta>,
        applied_index: Index,
    ) -> Self {
        Self {
            can_save,
            after_bytes,
            newest,
            is_writing: false,
            applied_bytes: 0,
            applied_index,
            not_before: Timestamp(0),
            wanted: Vec::new(),
            asked: Vec::new(),
        }
    }

    /// A snapshot is durable up to here.
    pub(crate) fn durable_index(&self) -> Index {
        self.newest.as_ref().map_or(Index::ZERO, |meta| meta.last.index)
    }

    /// Entries were applied.
    pub(crate) fn on_applied(
        &mut self,
        now: Timestamp,
        upto: Index,
        bytes: u64,
        orders: &mut Vec<Order>,
    ) {
        self.applied_index = self.applied_index.max(upto);
        self.applied_bytes += bytes;
        let is_due = self.after_bytes.is_some_and(|after| after <= self.applied_bytes);
        if is_due && self.not_before <= now {
            self.take(orders);
        }
    }

    /// The state machine has taken the place of its state by that of a received snapshot.
    pub(crate) fn on_restored(&mut self, meta: &SnapshotMeta, orders: &mut Vec<Order>) {
        self.applied_index = self.applied_index.max(meta.last.index);
        self.applied_bytes = 0;
        self.on_newer(meta, orders);
    }

    /// There is one that nobody has told of.
    pub(crate) fn on_found(&mut self, meta: SnapshotMeta) {
        if self.durable_index() < meta.last.index {
            self.newest = Some(meta);
        }
    }

    /// A follower needs a snapshot.
    pub(crate) fn send(
        &mut self,
        to: NodeId,
        session: Session,
        at_least: Index,
        orders: &mut Vec<Order>,
    ) {
        match &self.newest {
            Some(meta) if at_least <= meta.last.index => {
                orders.push(Order::Send { to, session, last: meta.last });
            }
            _ if self.can_save && at_least <= self.applied_index => {
                self.wanted.push(Wanted { to, session, at_least });
                self.take(orders);
            }
            _ => orders.push(Order::NotSent { to, session }),
        }
    }

    /// A follower does not need its snapshot any more. Whether it was still to be begun.
    pub(crate) fn cancel(&mut self, to: NodeId, session: Session) -> bool {
        let before = self.wanted.len();
        self.wanted.retain(|wanted| (wanted.to, wanted.session) != (to, session));
        self.wanted.len() < before
    }

    /// Somebody wants a snapshot of what is applied now.
    pub(crate) fn ask(&mut self, reply: SnapshotReply, orders: &mut Vec<Order>) {
        match &self.newest {
            Some(meta) if self.applied_index <= meta.last.index => {
                let result = Ok(meta.clone());
                orders.push(Order::Answer { reply, result });
            }
            _ if self.can_save => {
                self.asked.push((self.applied_index, reply));
                self.take(orders);
            }
            _ => {
                let result = Err(SnapshotError::Unsupported);
                orders.push(Order::Answer { reply, result });
            }
        }
    }

    /// The snapshot that was taken is durable, or there is none.
    pub(crate) fn on_written(
        &mut self,
        now: Timestamp,
        result: Result<SnapshotMeta, io::Error>,
        orders: &mut Vec<Order>,
    ) {
        self.is_writing = false;
        match result {
            Ok(meta) => {
                self.on_newer(&meta, orders);
                // What was applied meanwhile may be enough for another: if nothing more comes,
                // nobody else will notice.
                let is_due = self.after_bytes.is_some_and(|after| after <= self.applied_bytes);
                if is_due || !self.wanted.is_empty() || !self.asked.is_empty() {
                    self.take(orders);
                }
            }
            Err(error) => {
                self.not_before = now + RETRY;
                let error = Arc::new(error);
                orders.extend(self.wanted.drain(..).map(|wanted| {
                    let Wanted { to, session, .. } = wanted;
                    Order::NotSent { to, session }
                }));
                orders.extend(self.asked.drain(..).map(|(_, reply)| {
                    let result = Err(SnapshotError::Failed(Arc::clone(&error)));
                    Order::Answer { reply, result }
                }));
            }
        }
    }

    /// There is a new snapshot: whoever waited for one like it gets it.
    fn on_newer(&mut self, meta: &SnapshotMeta, orders: &mut Vec<Order>) {
        let last = meta.last;
        self.on_found(meta.clone());
        self.wanted.retain(|&Wanted { to, session, at_least }| {
            let is_enough = at_least <= last.index;
            if is_enough {
                orders.push(Order::Send { to, session, last });
            }
            !is_enough
        });
        for (index, reply) in std::mem::take(&mut self.asked) {
            if index <= last.index {
                orders.push(Order::Answer { reply, result: Ok(meta.clone()) });
            } else {
                self.asked.push((index, reply));
            }
        }
    }

    fn take(&mut self, orders: &mut Vec<Order>) {
        if self.can_save && !self.is_writing {
            self.is_writing = true;
            self.applied_bytes = 0;
            orders.push(Order::Take);
        }
    }
}

#[cfg(test)]
mod tests {
    use kontiki_raft::Membership;

    use super::*;

    fn meta(index: u64) -> SnapshotMeta {
        let membership = Membership::of_voters([(NodeId(1), "n1")]).into();
        SnapshotMeta { last: EntryId::new(index, 1), membership }
    }

    const FOLLOWER: (NodeId, Session) = (NodeId(2), Session(7));

    fn desk(after_bytes: Option<u64>) -> SnapshotDesk {
        SnapshotDesk::new(true, after_bytes, None, Index(0))
    }

    fn orders(f: impl FnOnce(&mut Vec<Order>)) -> Vec<Order> {
        let mut orders = Vec::new();
        f(&mut orders);
        orders
    }

    #[test]
    fn a_machine_in_memory_is_saved_by_bytes_and_never_twice_at_once() {
        let mut desk = desk(Some(100));
        let now = Timestamp(0);
        assert!(orders(|out| desk.on_applied(now, Index(1), 99, out)).is_empty());
        let due = orders(|out| desk.on_applied(now, Index(2), 1, out));
        assert!(matches!(due[..], [Order::Take]), "{due:?}");
        assert!(orders(|out| desk.on_applied(now, Index(3), 500, out)).is_empty());
        // What came meanwhile is enough for another, even if nothing more comes.
        let due = orders(|out| desk.on_written(now, Ok(meta(2)), out));
        assert!(matches!(due[..], [Order::Take]), "{due:?}");
        assert_eq!(desk.durable_index(), Index(2));
        assert!(orders(|out| desk.on_written(now, Ok(meta(3)), out)).is_empty());
    }

    #[test]
    fn a_machine_on_disk_is_saved_when_a_follower_needs_it() {
        let mut desk = desk(None);
        let now = Timestamp(0);
        assert!(orders(|out| desk.on_applied(now, Index(9), 1 << 40, out)).is_empty());
        let (to, session) = FOLLOWER;
        let sent = orders(|out| desk.send(to, session, Index(5), out));
        assert!(matches!(sent[..], [Order::Take]), "{sent:?}");
        let sent = orders(|out| desk.send(NodeId(3), session, Index(9), out));
        assert!(sent.is_empty(), "the same one serves both");
        let sent = orders(|out| desk.on_written(now, Ok(meta(9)), out));
        assert!(matches!(sent[..], [Order::Send { .. }, Order::Send { .. }]), "{sent:?}");
        let sent = orders(|out| desk.send(to, session, Index(9), out));
        assert!(matches!(sent[..], [Order::Send { last, .. }] if last.index == Index(9)));
    }

    #[test]
    fn one_that_is_too_old_is_followed_by_another() {
        let mut desk = desk(None);
        let now = Timestamp(0);
        desk.on_applied(now, Index(5), 0, &mut Vec::new());
        let (reply, mut answer) = oneshot::channel();
        assert!(matches!(orders(|out| desk.ask(reply, out))[..], [Order::Take]));
        desk.on_applied(now, Index(8), 0, &mut Vec::new());
        let (to, session) = FOLLOWER;
        assert!(orders(|out| desk.send(to, session, Index(8), out)).is_empty());
        let next = orders(|out| desk.on_written(now, Ok(meta(5)), out));
        assert!(matches!(next[..], [Order::Answer { .. }, Order::Take]), "{next:?}");
        assert!(answer.try_recv().is_err(), "the host tells it");
        let sent = orders(|out| desk.on_written(now, Ok(meta(8)), out));
        assert!(matches!(sent[..], [Order::Send { .. }]), "{sent:?}");
    }

    #[test]
    fn a_failure_is_told_to_all_who_wait_and_not_repeated_at_once() {
        let mut desk = desk(Some(100));
        let now = Timestamp(0);
        desk.on_applied(now, Index(5), 0, &mut Vec::new());
        let (to, session) = FOLLOWER;
        assert!(matches!(orders(|out| desk.send(to, session, Index(5), out))[..], [Order::Take]));
        let (reply, _answer) = oneshot::channel();
        assert!(orders(|out| desk.ask(reply, out)).is_empty());
        let told = orders(|out| desk.on_written(now, Err(io::Error::other("full")), out));
        assert!(matches!(told[..], [Order::NotSent { .. }, Order::Answer { .. }]), "{told:?}");
        assert!(orders(|out| desk.on_applied(now, Index(6), 500, out)).is_empty());
        let later = now + RETRY;
        assert!(matches!(
            orders(|out| desk.on_applied(later, Index(7), 0, out))[..],
            [Order::Take]
        ));
    }

    #[test]
    fn who_does_not_wait_any_more_is_sent_nothing() {
        let mut desk = desk(None);
        let now = Timestamp(0);
        desk.on_applied(now, Index(5), 0, &mut Vec::new());
        let (to, session) = FOLLOWER;
        desk.send(to, session, Index(5), &mut Vec::new());
        assert!(desk.cancel(to, session));
        assert!(orders(|out| desk.on_written(now, Ok(meta(5)), out)).is_empty());
        assert!(!desk.cancel(to, session));
    }

    #[test]
    fn without_a_place_for_them_there_are_none() {
        let mut desk = SnapshotDesk::new(false, Some(1), None, Index(9));
        assert!(orders(|out| desk.on_applied(Timestamp(0), Index(10), 99, out)).is_empty());
        let (to, session) = FOLLOWER;
        let told = orders(|out| desk.send(to, session, Index(1), out));
        assert!(matches!(told[..], [Order::NotSent { .. }]), "{told:?}");
        let (reply, _answer) = oneshot::channel();
        let told = orders(|out| desk.ask(reply, out));
        assert!(matches!(
            told[..],
            [Order::Answer { result: Err(SnapshotError::Unsupported), .. }]
        ));
    }
}
