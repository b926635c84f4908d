//! What the world tells the core.

use crate::{EntryId, Index, Message, NodeId, Proposal, ReadId, Session, WriteTicket};

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
        durable: Index,
    },
    /// The entries asked for by [`Outbound::SendStored`](crate::Outbound) could not be read.
    EntriesUnavailable {
        /// Whom they were for.
        to: NodeId,
        /// The session they were for.
        session: Session,
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
