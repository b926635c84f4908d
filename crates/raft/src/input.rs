//! What the world tells the core.

use crate::{
    ChangeSet, EntryId, Envelope, Index, Message, NodeId, Proposal, ProposalId, ReadId, Session,
    SnapshotMeta, StoreId, WriteTicket,
};

/// How it is shown that a read is current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a host that overlooks a mode must not compile")]
pub enum ReadMode {
    /// By one round of heartbeats, which all waiting reads share (thesis §6.4).
    #[default]
    ReadIndex,
    /// By the leader's lease, while it holds one: no round, but the clocks of the cluster must
    /// not drift apart faster than
    /// [`clock_drift_ppm_max`](crate::Config::clock_drift_ppm_max) (thesis §6.4.1). As
    /// `ReadIndex` otherwise.
    Lease,
}

/// Why the entries that were asked for could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a host that overlooks a reason must not compile")]
pub enum Unavailable {
    /// They were purged meanwhile, or too much else was being read. Asking again is right.
    Retry,
    /// The disk does not give them back. Another leader may have better luck.
    Damaged,
}

/// Something that happened. Given to [`RaftCore::step`](crate::RaftCore::step).
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// A message arrived. It may come from anyone, late, twice, or never.
    Message {
        /// Who sent it, as the transport knows, not as the message claims.
        from: NodeId,
        /// What it says.
        message: Message,
    },
    /// Clients want these commands in the log. Each gets one
    /// [`ProposalOutcome`](crate::ProposalOutcome).
    Propose(Vec<Proposal>),
    /// A client wants to read what is committed now. Gets one
    /// [`ReadOutcome`](crate::ReadOutcome).
    Read {
        /// How the host calls it.
        id: ReadId,
        /// What it rests on.
        mode: ReadMode,
    },
    /// Somebody wants the membership changed. Gets one
    /// [`ProposalOutcome`](crate::ProposalOutcome): the entry that it names is the first of the
    /// change, which is joint when voters change; the final one follows by itself.
    ChangeMembership {
        /// How the host calls it. Shares its numbers with proposals.
        id: ProposalId,
        /// What is wanted.
        change: ChangeSet,
    },
    /// The write with this ticket and all before it are durable.
    Persisted(WriteTicket),
    /// The write failed. The core stops taking part: what is on the disk is not known any
    /// more, and to ask again proves nothing (pitfall D4).
    WriteFailed(WriteTicket),
    /// The state machine has applied everything up to here.
    Applied {
        /// The last index that it has applied.
        upto: Index,
        /// Up to here it will still know after power loss. The log may be purged up to here.
        /// A snapshot beyond `upto` was received and is not installed, and counts for nothing.
        durable: Index,
    },
    /// The entries asked for by [`Outbound::SendStored`](crate::Outbound) could not be read.
    EntriesUnavailable {
        /// Whom they were for.
        to: NodeId,
        /// The session they were for.
        session: Session,
        /// Why.
        why: Unavailable,
    },
    /// A snapshot from this peer is whole, verified and durable here. It counts for nothing
    /// until the core says so: [`WriteBatch::reset_to`](crate::WriteBatch::reset_to) and
    /// [`Apply::Snapshot`](crate::Apply::Snapshot).
    SnapshotReceived {
        /// Who sent it.
        from: NodeId,
        /// What it stands for.
        meta: SnapshotMeta,
    },
    /// The transfer that [`SnapshotEffect::Send`](crate::SnapshotEffect::Send) asked for has
    /// ended. Only the follower's own reply moves its match index (pitfall M11).
    SnapshotSent {
        /// To whom.
        to: NodeId,
        /// The session that was named.
        session: Session,
        /// The last entry that it stands for, if it arrived.
        sent: Option<EntryId>,
    },
    /// The disk under the log has become full, or has space again. While it is full the node
    /// takes no proposals, and hands its leadership over if it can.
    StorageSpace {
        /// Whether it is full.
        is_full: bool,
    },
    /// The transport has met this peer with this data directory.
    PeerStore {
        /// The peer.
        id: NodeId,
        /// Its data directory.
        store: StoreId,
    },
    /// The log was purged: it starts after this entry.
    Purged {
        /// The last entry that is gone.
        upto: EntryId,
    },
    /// The connection to this peer is broken. A hint: what was sent may be lost.
    PeerUnreachable {
        /// The peer.
        id: NodeId,
    },
    /// This message was certainly not sent and will not be: there was no connection. To know it
    /// is worth something where a client waits for what was passed on to the leader.
    NotSent(Envelope),
    /// The operator wants this node to stand for election. It asks first (pre-vote) and
    /// respects the loyalty that it owes to a leader.
    Campaign,
    /// Hand the leadership over (thesis §3.10): to this node, or to the best follower.
    TransferLeadership {
        /// The target.
        to: Option<NodeId>,
    },
    /// [`next_deadline`](crate::RaftCore::next_deadline) has passed.
    Timeout,
}
