//! What a node tells about itself.

use std::{fmt, ops::RangeInclusive, time::Duration};

use crate::{EntryId, Index, Membership, NodeId, Report, SoftState, Term, Timestamp};

/// What a node is at the moment (Figure 4, with the pre-vote of thesis §9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would win an election.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
    /// Takes part no more: its log failed.
    Stopped,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Stopped => "stopped",
        })
    }
}

/// A node at one moment. Borrowed, so that looking costs nothing.
#[derive(Clone, Debug)]
pub struct Status<'a> {
    /// Who it is.
    pub id: NodeId,
    /// Role, term, leader.
    pub soft_state: SoftState,
    /// Its vote in that term.
    pub voted_for: Option<NodeId>,
    /// Committed up to here.
    pub commit_index: Index,
    /// Applied up to here.
    pub applied_index: Index,
    /// The entry before the first of the log.
    pub log_start: EntryId,
    /// The last entry of the log.
    pub last: EntryId,
    /// About how many bytes of entries the log holds.
    pub log_bytes: u64,
    /// Its own disk holds the log up to here.
    pub durable_index: Index,
    /// The membership in force.
    pub membership: &'a Membership,
    /// The entry that it is from.
    pub membership_at: EntryId,
    /// Until when this leader may serve lease reads, if it has a lease.
    pub lease_until: Option<Timestamp>,
    /// To whom the leadership is being handed.
    pub transfer_to: Option<NodeId>,
    /// What is damaged and not refilled yet.
    pub damaged: Option<RangeInclusive<Index>>,
    /// The state machine lacks what the log no longer has, and waits for a snapshot that ends
    /// here or later.
    pub needs_snapshot: Option<Index>,
    /// Whether the disk under the log is full.
    pub is_storage_full: bool,
    /// When the oldest write that is not durable was handed out.
    pub oldest_write: Option<Timestamp>,
    /// What the leader knows of the others, sorted by id. Empty unless this node leads.
    pub progress: Vec<ProgressStatus>,
}

/// What the leader knows of the log of one other node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgressStatus {
    /// Which node.
    pub id: NodeId,
    /// It surely holds the log up to here, durably.
    pub match_index: Index,
    /// The next entry to send.
    pub next_index: Index,
    /// How entries are being sent.
    pub state: ProgressState,
    /// When the newest message that it has answered was sent.
    pub acked_at: Timestamp,
    /// How long its answers take, smoothed: there and back, and what it and this node have to do
    /// before. `None` before the first one.
    pub round_trip: Option<Duration>,
    /// Entries on their way to it, in bytes.
    pub inflight_bytes: usize,
    /// What it says of itself.
    pub report: Report,
}

/// How a leader sends entries to one follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProgressState {
    /// One message at a time, until it is known where the logs agree.
    Probe,
    /// As fast as the window allows.
    Replicate,
    /// The follower needs entries that are purged, and gets a snapshot.
    Snapshot,
}

impl Status<'_> {
    /// The term it is in.
    #[must_use]
    pub fn term(&self) -> Term {
        self.soft_state.term
    }
}
