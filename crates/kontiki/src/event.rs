//! What a [`Replica`](crate::Replica) is told, and what it asks for.

use std::{ops::RangeInclusive, sync::Arc};

use kontiki_raft::{
    Apply, Bytes, ChangeSet, EntryId, Envelope, Index, LogWrite, Membership, Message, NodeId,
    ReadMode, Rejection, Session, SnapshotMeta, SoftState, StoreId, Timestamp, Unavailable,
    WriteTicket,
};

/// A request, as its host calls it. Unique in the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Something that happened. There is no other way in.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a simulator that overlooks an event must not compile")]
pub enum Event {
    /// A message arrived.
    Message {
        /// Who sent it, as the transport knows.
        from: NodeId,
        /// What it says.
        message: Message,
    },
    /// A client wants this command applied. If this node applies it, the answer is a waiter of
    /// [`Action::Apply`]; otherwise an [`Action::Answer`].
    Propose {
        /// How the host calls it.
        id: RequestId,
        /// What the state machine will be given.
        command: Bytes,
        /// Whether it is for the [`SessionTable`](crate::SessionTable) rather than the state
        /// machine.
        is_session: bool,
        /// When to give up waiting.
        deadline: Timestamp,
    },
    /// A client wants to read what is committed now. Gets one [`Action::Answer`].
    Read {
        /// How the host calls it.
        id: RequestId,
        /// What it rests on.
        mode: ReadMode,
        /// When to give up waiting.
        deadline: Timestamp,
    },
    /// Somebody wants the membership changed. Gets one [`Action::Answer`]. While another change
    /// is under way it waits for its turn.
    ChangeMembership {
        /// How the host calls it.
        id: RequestId,
        /// What is wanted.
        change: ChangeSet,
        /// When to give up waiting.
        deadline: Timestamp,
    },
    /// The write with this ticket and all before it are durable.
    Persisted(WriteTicket),
    /// The write failed. The node takes part no more (pitfall D4).
    WriteFailed(WriteTicket),
    /// The state machine has applied everything up to `upto`.
    Applied {
        /// The last index that it has applied.
        upto: Index,
        /// Up to here it will still know after power loss.
        durable: Index,
    },
    /// The entries asked for by [`Action::SendStored`] could not be read.
    EntriesUnavailable {
        /// Whom they were for.
        to: NodeId,
        /// The session they were for.
        session: Session,
        /// Why.
        why: Unavailable,
    },
    /// A snapshot from this peer is whole, verified and durable here. It counts for nothing
    /// until [`Action::Apply`] says so.
    SnapshotReceived {
        /// Who sent it.
        from: NodeId,
        /// What it stands for.
        meta: SnapshotMeta,
    },
    /// What [`Action::SendSnapshot`] asked for has ended, well or not.
    SnapshotSent {
        /// To whom.
        to: NodeId,
        /// The session that was named.
        session: Session,
        /// The last entry that it stands for, if it arrived.
        sent: Option<EntryId>,
    },
    /// The disk under the log has become full, or has space again.
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
    /// The connection to this peer is broken, or a message to it was dropped.
    PeerUnreachable {
        /// The peer.
        id: NodeId,
    },
    /// This message was certainly not sent and will not be.
    NotSent(Envelope),
    /// The operator wants this node to stand for election.
    Campaign,
    /// Hand the leadership over, to this node or to the best follower.
    TransferLeadership {
        /// The target.
        to: Option<NodeId>,
    },
    /// [`next_deadline`](crate::Replica::next_deadline) has passed.
    Timeout,
}

/// Something that the host must do. Safe to carry out the moment it is seen; writes and
/// applies keep their order, and only messages may be dropped.
#[derive(Debug)]
#[must_use = "an action does nothing until the host carries it out"]
#[expect(clippy::exhaustive_enums, reason = "a host that overlooks an action must not compile")]
pub enum Action {
    /// Send this.
    Send(Envelope),
    /// Read entries of `range` from the log, as many as fit `bytes_max` but at least one, put
    /// them into the `AppendEntries` of `envelope`, and send it. If they cannot be read, say
    /// [`Event::EntriesUnavailable`].
    SendStored {
        /// The message, without its entries.
        envelope: Envelope,
        /// Which entries.
        range: RangeInclusive<Index>,
        /// At most this many bytes.
        bytes_max: usize,
        /// The session to name if they cannot be read.
        session: Session,
    },
    /// Make this durable, then hand its ticket back.
    Write(LogWrite),
    /// Apply these entries, or replace the whole state by that of a snapshot, then say
    /// [`Event::Applied`].
    Apply {
        /// Which entries, or which snapshot.
        what: Apply,
        /// Which of them answer a request of this host, ascending by index. What the state
        /// machine returns for them is the answer; there is no other.
        waiters: Vec<(Index, RequestId)>,
    },
    /// The one answer to a request.
    Answer {
        /// Which request.
        id: RequestId,
        /// What became of it.
        answer: Answer,
    },
    /// The log may be purged up to here. If it is, say [`Event::Purged`].
    Purge {
        /// The last entry that nobody needs.
        upto: EntryId,
    },
    /// Send the newest snapshot to this follower; make one if there is none that reaches
    /// `at_least`. Say [`Event::SnapshotSent`] when it has ended, well or not.
    SendSnapshot {
        /// The follower.
        to: NodeId,
        /// To be named when it has ended.
        session: Session,
        /// It must stand for the log up to here or more.
        at_least: Index,
    },
    /// The transfer of a snapshot to this follower has become pointless.
    CancelSnapshot {
        /// The follower.
        to: NodeId,
        /// The session of the transfer.
        session: Session,
    },
    /// The membership in force has changed to that of this entry: whom to connect to.
    Membership(EntryId, Arc<Membership>),
    /// Role, term or known leader have changed to this.
    SoftState(SoftState),
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a host that overlooks an answer must not compile")]
pub enum Answer {
    /// The read may be served from the state machine as it is here and now.
    ReadReady {
        /// Up to here the state machine had to be, and is.
        index: Index,
    },
    /// The membership was changed as asked: this one is committed, and not joint.
    MembershipChanged {
        /// Its entry.
        at: EntryId,
        /// The membership.
        membership: Arc<Membership>,
    },
    /// The proposal is certainly not in any log; the read was not served. Safe to try again.
    Rejected(Rejection),
    /// The proposal was appended here and another entry has taken its place: certainly lost.
    Superseded {
        /// Where it stood.
        at: EntryId,
    },
    /// The proposal may or may not be applied, now or later.
    Unknown {
        /// Where it stands, if that much is known.
        at: Option<EntryId>,
    },
}
