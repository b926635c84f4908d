//! What the core asks of the world.
//!
//! An effect is safe to carry out the moment it is seen. Whatever has to come first has come:
//! no message leaves the core before the term, vote and entries that it speaks for are durable
//! (thesis §3.8). So a host may run effects concurrently, in batches, or late, and cannot break
//! safety.
//!
//! Two promises are asked in return: writes and entries to apply keep their order, and a
//! [`WriteTicket`] is handed back only when its write is durable. Only messages may be dropped.

use std::{fmt, ops::RangeInclusive, sync::Arc};

use crate::{
    ChangeError, Entry, EntryId, Envelope, HardState, Index, Membership, NodeId, ProposalId,
    ReadId, Role, Session, SnapshotMeta, Term,
};

/// Everything that one [`poll`](crate::RaftCore::poll) asks for. The caller keeps one and hands
/// it in again and again, so that a steady state allocates little.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be sent at any time, before, during or after `write`; may be dropped.
    pub messages: Vec<Outbound>,
    /// To be made durable. Writes are carried out in the order in which they come.
    pub write: Option<LogWrite>,
    /// To be applied, in order. Committed, and durable here.
    pub apply: Vec<Apply>,
    /// What became of proposals.
    pub proposals: Vec<ProposalOutcome>,
    /// What became of reads.
    pub reads: Vec<ReadOutcome>,
    /// Role, term or known leader have changed to this.
    pub soft_state: Option<SoftState>,
    /// The log may be purged up to here: every voter holds it, and the state machine has made
    /// it durable.
    pub purge: Option<EntryId>,
    /// Snapshots to be sent, or not any more.
    pub snapshots: Vec<SnapshotEffect>,
    /// The membership in force has changed to that of this entry: whom to connect to.
    pub membership: Option<(EntryId, Arc<Membership>)>,
}

impl Effects {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
            && self.write.is_none()
            && self.apply.is_empty()
            && self.proposals.is_empty()
            && self.reads.is_empty()
            && self.soft_state.is_none()
            && self.purge.is_none()
            && self.snapshots.is_empty()
            && self.membership.is_none()
    }

    pub(crate) fn clear(&mut self) {
        self.messages.clear();
        self.write = None;
        self.apply.clear();
        self.proposals.clear();
        self.reads.clear();
        self.soft_state = None;
        self.purge = None;
        self.snapshots.clear();
        self.membership = None;
    }
}

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a host that overlooks a kind must not compile")]
pub enum Outbound {
    /// Send this.
    Send(Envelope),
    /// Read entries of `range` from the log, as many as fit `bytes_max` but at least one, put
    /// them into the [`AppendEntries`](crate::AppendEntries) that `envelope` holds, and send
    /// it. If they cannot be read, say
    /// [`EntriesUnavailable`](crate::Input::EntriesUnavailable); never send fewer than one.
    SendStored {
        /// The message, without its entries.
        envelope: Envelope,
        /// Which entries. The first follows `prev` of the message.
        range: RangeInclusive<Index>,
        /// At most this many bytes.
        bytes_max: usize,
        /// The session to name if they cannot be read.
        session: Session,
    },
}

/// Entries for the state machine. Blank ones are among them: they have nothing to apply, but
/// they move the applied index.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a host that overlooks a kind must not compile")]
pub enum Apply {
    /// Apply these.
    Entries(Vec<Entry>),
    /// Read these from the log and apply them: the core does not hold them any more. If a
    /// reset has dropped them meanwhile, skip them: the snapshot that stands for them comes next.
    Stored(RangeInclusive<Index>),
    /// Replace the whole state by that of this snapshot, which the host has received.
    Snapshot(SnapshotMeta),
}

/// A snapshot that somebody needs, or does not need any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a host that overlooks a kind must not compile")]
pub enum SnapshotEffect {
    /// Send the newest snapshot to this follower, which needs entries that are purged; make one
    /// if there is none that reaches `at_least`. Say
    /// [`SnapshotSent`](crate::Input::SnapshotSent) when it has ended, well or not.
    Send {
        /// The follower.
        to: NodeId,
        /// To be named when it has ended.
        session: Session,
        /// It must stand for the log up to here or more.
        at_least: Index,
    },
    /// The transfer to this follower has become pointless.
    Cancel {
        /// The follower.
        to: NodeId,
        /// The session of the transfer.
        session: Session,
    },
}

/// A write to the log, and the ticket to hand back when it is durable.
#[derive(Debug)]
#[must_use = "a write that is not carried out stops the node"]
pub struct LogWrite {
    /// What to write, in one atomic record.
    pub batch: WriteBatch,
    /// The proof to hand back.
    pub ticket: WriteTicket,
}

/// One atomic change of the log: entries and hard state reach the disk together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    /// The term, the vote and a lower bound of the commit index, if any of them changed.
    pub hard_state: Option<HardState>,
    /// Entries with consecutive indexes. The first may lie below the end of the log: then it
    /// replaces what was there, and everything after it is gone (§5.3).
    pub entries: Vec<Entry>,
    /// Before anything else the whole log is dropped, and starts again after the last entry of
    /// this snapshot (§7). `entries` follow it.
    pub reset_to: Option<SnapshotMeta>,
    /// What was damaged is refilled: the log may forget that it ever was.
    pub is_repaired: bool,
}

/// Proof that a write was carried out.
///
/// It can be neither cloned nor made up, so it cannot be handed back twice or too early by
/// mistake. The replies that depend on it stay inside the core until it comes back; one that
/// is dropped means silence, never a false acknowledgement.
#[derive(Debug)]
#[must_use = "hand it back with Input::Persisted or Input::WriteFailed"]
pub struct WriteTicket {
    pub(crate) node: NodeId,
    pub(crate) sequence: u64,
}

impl WriteTicket {
    /// One `fdatasync` covers several writes: keep the latest ticket only.
    ///
    /// # Panics
    ///
    /// When `later` is not later, or of another node.
    pub fn merge(self, later: Self) -> Self {
        assert!(
            self.node == later.node && self.sequence < later.sequence,
            "tickets are merged in the order in which they were given out: {} {} then {} {}",
            self.node,
            self.sequence,
            later.node,
            later.sequence,
        );
        later
    }
}

/// What became of a proposal. There is exactly one for each.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a host that overlooks an outcome must not compile")]
pub enum ProposalOutcome {
    /// It stands in the leader's log under this id. If an entry with this very id is applied,
    /// it was this one; if another one is applied at its index, it is lost for certain.
    Appended {
        /// How the host calls it.
        id: ProposalId,
        /// Its place.
        at: EntryId,
    },
    /// It is certainly not in any log. Safe to try again.
    Rejected {
        /// How the host calls it.
        id: ProposalId,
        /// Why.
        why: Rejection,
    },
    /// It was passed on to a leader, and what that leader did is not known: it may commit yet.
    Unknown {
        /// How the host calls it.
        id: ProposalId,
    },
}

/// What became of a read. There is exactly one for each.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a host that overlooks an outcome must not compile")]
pub enum ReadOutcome {
    /// Serve it as soon as the state machine has applied `index`: the leader was still the
    /// leader after the read was asked for (thesis §6.4).
    Ready {
        /// How the host calls it.
        id: ReadId,
        /// What has to be applied first.
        index: Index,
    },
    /// It cannot be served here and now.
    Rejected {
        /// How the host calls it.
        id: ReadId,
        /// Why.
        why: Rejection,
    },
}

/// Why the core did not take something. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a codec that overlooks a reason must not compile")]
pub enum Rejection {
    /// This node does not lead. Try the leader, if one is known.
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// The leadership is being handed to this node.
    Transferring {
        /// The next leader, if all goes well.
        to: NodeId,
    },
    /// Too much is on its way. Try again after a pause.
    Busy,
    /// The command is larger than this.
    TooLarge {
        /// The bound, in bytes.
        bytes_max: usize,
    },
    /// The leader has not committed an entry of its own term yet (§8). Try again.
    NotReady,
    /// The leader could not reach a quorum, or the answer did not come in time.
    NoQuorum,
    /// This node has stopped taking part.
    Stopped,
    /// Another change of the membership is under way, at this entry. Try again when it is done.
    MembershipInProgress {
        /// The entry.
        at: EntryId,
    },
    /// The membership is not the one that was expected.
    MembershipChanged {
        /// The entry of the one in force.
        now: EntryId,
    },
    /// The change makes no sense for the membership in force.
    InvalidChange(ChangeError),
    /// The disk of the leader is full. Reads go on.
    NoSpace,
    /// The state machine of this node, or of the leader, has lost its state and waits for a
    /// snapshot. Try again.
    NoState,
    /// The leader keeps no client sessions.
    NoSessions,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader { leader: Some(leader) } => write!(f, "not the leader, {leader} is"),
            Self::NotLeader { leader: None } => f.write_str("no leader is known"),
            Self::Transferring { to } => write!(f, "the leadership is being handed to {to}"),
            Self::Busy => f.write_str("too much is on its way"),
            Self::TooLarge { bytes_max } => {
                write!(f, "the command is larger than {bytes_max} bytes")
            }
            Self::NotReady => f.write_str("the leader has not committed in its term yet"),
            Self::NoQuorum => f.write_str("no quorum could be reached in time"),
            Self::Stopped => f.write_str("this node has stopped"),
            Self::MembershipInProgress { at } => {
                write!(f, "another change of the membership is under way, at {at}")
            }
            Self::MembershipChanged { now } => {
                write!(f, "the membership has changed meanwhile, to that of {now}")
            }
            Self::InvalidChange(why) => write!(f, "{why}"),
            Self::NoSpace => f.write_str("the disk of the leader is full"),
            Self::NoSessions => {
                f.write_str("the leader keeps no client sessions: start it with sessions")
            }
            Self::NoState => f.write_str("the state was lost, and a snapshot has not come yet"),
        }
    }
}

impl std::error::Error for Rejection {}

/// What may change without a trace on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftState {
    /// What this node is.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader of that term, as far as it knows.
    pub leader: Option<NodeId>,
}
