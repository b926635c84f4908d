//! One node of the world: its disk, and the process that runs on it now, if any.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use kontiki::{Event, Replica, RequestId};
use kontiki_log::{Log, LogReader, Snapshots, SpareMaker};
use kontiki_raft::{
    Apply, EntryId, Envelope, Index, Membership, NodeId, Role, Session, StoreId, Term, Timestamp,
    WriteBatch, WriteTicket,
};

use crate::{
    disk::SimDisk,
    host::snapshots::{Bulk, Shipping},
    kv::Kv,
    machine::Machine,
};

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) disk: Arc<SimDisk>,
    /// The state machine, as it was last made durable.
    pub(crate) saved: Machine,
    /// Up to here its store has said that it is durable.
    pub(crate) kv_durable: Index,
    /// Its store was damaged on purpose, and was not opened since.
    pub(crate) kv_is_rotten: bool,
    /// Its store was damaged, and no other server has given back what it held.
    pub(crate) kv_is_lost: bool,
    pub(crate) process: Option<Process>,
    /// The membership that its data directory is made with. `None` before it has joined.
    pub(crate) genesis: Option<Membership>,
    /// Its disk does not answer before this time.
    pub(crate) stalled_until: u64,
    /// Its disk is gone for ever.
    pub(crate) is_dead: bool,
    /// How many processes there have been.
    pub(crate) lives: u64,
    /// What happened to it while it was paused, in order.
    pub(crate) held: Option<Vec<Happening>>,
    /// When it last came back from a pause.
    pub(crate) resumed: Duration,
    pub(crate) counts: Counts,
    /// Keys of the decisions about this node.
    pub(crate) sync_count: u64,
    pub(crate) apply_count: u64,
    pub(crate) other_count: u64,
}

/// What a node has put on the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages.
    pub messages: u64,
    /// Their bytes, as encoded.
    pub bytes: u64,
}

/// All that a crash forgets.
pub(crate) struct Process {
    pub(crate) life: u64,
    pub(crate) clock: Clock,
    pub(crate) replica: Replica,
    pub(crate) log: Log,
    pub(crate) reader: LogReader,
    pub(crate) spares: SpareMaker,
    /// What the state is, be it kept in a store or not.
    pub(crate) machine: Machine,
    /// The store, if the state is kept in one.
    pub(crate) kv: Option<Kv>,
    pub(crate) snapshots: Snapshots,
    pub(crate) shipping: Shipping,
    /// Writes that wait for the disk.
    pub(crate) waiting: Vec<(WriteBatch, WriteTicket)>,
    /// The write that is on its way to the disk.
    pub(crate) syncing: Option<WriteTicket>,
    pub(crate) purge: Option<EntryId>,
    /// The core needs nothing up to here.
    pub(crate) purge_asked: Index,
    /// A write has failed: nothing is written any more.
    pub(crate) has_failed: bool,
    pub(crate) is_filling: bool,
    /// Entries that wait for the state machine, and which of them answer a request.
    pub(crate) to_apply: VecDeque<(Apply, Vec<(Index, RequestId)>)>,
    /// For when its timer is set, in the time of the world.
    pub(crate) timer: Option<u64>,
    /// Its data directory.
    pub(crate) store: StoreId,
    /// The membership in force.
    pub(crate) membership: Arc<Membership>,
    /// The data directories of the peers that it has met in this life.
    pub(crate) met: BTreeMap<NodeId, StoreId>,
    /// Until when it may serve reads by a lease, in the time of the world.
    pub(crate) lease: Option<u64>,
    /// The log has found the disk full.
    pub(crate) is_full: bool,
    /// The protocol was told that the disk is full.
    pub(crate) told_full: bool,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("life", &self.life).finish_non_exhaustive()
    }
}

/// The clock of one process: started somewhere, and never quite right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) started: u64,
    pub(crate) offset: u64,
    /// Nanoseconds it advances in a millisecond of the world.
    pub(crate) rate: u64,
}

const EXACT_RATE: u128 = 1_000_000;

impl Clock {
    pub(crate) fn at(&self, now: u64) -> Timestamp {
        let passed = u128::from(now.saturating_sub(self.started)) * u128::from(self.rate);
        Timestamp(self.offset + narrow(passed / EXACT_RATE))
    }

    /// The first moment of the world at which this clock shows `deadline`.
    pub(crate) fn when(&self, deadline: Timestamp) -> u64 {
        let ahead = u128::from(deadline.get().saturating_sub(self.offset)) * EXACT_RATE;
        self.started + narrow(ahead.div_ceil(u128::from(self.rate)))
    }
}

fn narrow(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX).min(u64::MAX / 4)
}

/// Something that happens to a node at a moment of the world.
#[derive(Debug)]
pub(crate) enum Happening {
    Arrives {
        from: NodeId,
        store: StoreId,
        bytes: kontiki_raft::Bytes,
    },
    /// An event for the process of this life.
    Event {
        life: u64,
        event: Event,
    },
    Timer {
        life: u64,
    },
    Synced {
        life: u64,
    },
    Applied {
        life: u64,
    },
    StoredRead {
        life: u64,
        read: Box<StoredRead>,
    },
    FillSpare {
        life: u64,
    },
    SnapshotMade {
        life: u64,
    },
    /// Something arrives on a connection for snapshots.
    Bulk {
        from: NodeId,
        bulk: Box<Bulk>,
    },
    /// A receiver of a snapshot may have been silent for long.
    BulkSilence {
        life: u64,
        to: NodeId,
        session: Session,
        heard: u64,
    },
    /// What did not fit on the disk is written once more.
    RetryWrite {
        life: u64,
    },
    /// The store writes out what was applied.
    StoreFlush {
        life: u64,
    },
}

#[derive(Debug)]
pub(crate) struct StoredRead {
    pub(crate) envelope: Envelope,
    pub(crate) range: RangeInclusive<Index>,
    pub(crate) bytes_max: usize,
    pub(crate) session: Session,
}

impl Happening {
    pub(crate) fn is_timer(&self) -> bool {
        matches!(self, Self::Timer { .. })
    }

    /// The life that it is meant for; a message is for whoever lives.
    pub(crate) fn life(&self) -> Option<u64> {
        match self {
            Self::Arrives { .. } | Self::Bulk { .. } => None,
            Self::Event { life, .. }
            | Self::Timer { life }
            | Self::Synced { life }
            | Self::Applied { life }
            | Self::StoredRead { life, .. }
            | Self::FillSpare { life }
            | Self::SnapshotMade { life }
            | Self::BulkSilence { life, .. }
            | Self::RetryWrite { life }
            | Self::StoreFlush { life } => Some(*life),
        }
    }
}

/// A node, as one sees it from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// What it takes itself for.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader that it knows of.
    pub leader: Option<NodeId>,
    /// Committed up to here.
    pub commit: Index,
    /// Applied up to here.
    pub applied: Index,
    /// How many commands that are; blank entries are not counted.
    pub commands: u64,
    /// The last entry of its log.
    pub last: EntryId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_has_passed_when_its_moment_has_come() {
        for rate in [950_000, 999_999, 1_000_000, 1_050_001] {
            let clock = Clock { started: 77, offset: 1_234_567, rate };
            for deadline in [1_234_567, 1_234_568, 5_000_000_001] {
                let when = clock.when(Timestamp(deadline));
                assert!(deadline <= clock.at(when).get());
                assert!(when <= 77 || clock.at(when - 2).get() < deadline);
            }
        }
    }
}
