//! What survives a restart: the durable state of Figure 2, as the host read it from its disk.

use std::{fmt, ops::RangeInclusive, sync::Arc};

use crate::{ConfigError, EntryId, Index, Membership, NodeId, Term};

/// The durable state beside the log (Figure 2), written together with entries in one record:
/// a term without its vote, or a vote without its term, would be a second vote (pitfall B5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term this node has seen.
    pub term: Term,
    /// Who got its vote in that term.
    pub voted_for: Option<NodeId>,
    /// Known to be committed when this was written. A hint: it may lag behind, and is written
    /// only along with something else.
    pub commit: Index,
}

/// A snapshot stands for the log up to its last entry (§7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry that it stands for.
    pub last: EntryId,
    /// The membership in force at `last`.
    pub membership: Arc<Membership>,
}

/// What the host read from its disk before it started the core.
///
/// The core never reads storage: it knows the terms of the whole log from `term_runs`, and
/// entries that it does not hold in memory are fetched by the host.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Term, vote, and a lower bound of the commit index.
    pub hard_state: HardState,
    /// The entry before the first of the log: zero, or the last one compacted away.
    pub log_start: EntryId,
    /// The first entry of each term in the log, ascending. Entries themselves are not needed.
    pub term_runs: Vec<EntryId>,
    /// The last entry of the log, `log_start` if it is empty.
    pub last: EntryId,
    /// The memberships in force, ascending: the one that the cluster was born with (or of the
    /// snapshot), then those of the log.
    pub memberships: Vec<(EntryId, Arc<Membership>)>,
    /// About how many bytes of entries the log holds from an index on, up to the next: one pair a
    /// segment, ascending.
    pub log_sizes: Vec<(Index, u64)>,
    /// Entries in this range were durable here once, and are damaged or gone: the log ends before
    /// them. Until a leader has shown that they are whole again, this node neither votes nor
    /// stands for election.
    pub damaged: Option<RangeInclusive<Index>>,
    /// Up to where the state machine holds the effects of the log. If that is before `log_start`
    /// the node waits for a snapshot from a leader before it applies anything.
    pub applied: Index,
    /// No server of this cluster ever ran on this data directory. Then there is no promise of
    /// an earlier life to wait out.
    pub is_pristine: bool,
}

/// Why a node cannot start from what was recovered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestoreError {
    /// The settings contradict each other.
    Config(ConfigError),
    /// The state machine is ahead of the log: entries that were acknowledged are gone.
    AppliedBeyondLog {
        /// What the state machine holds.
        applied: Index,
        /// Where the log ends.
        last: EntryId,
    },
    /// The log starts after what the state machine holds: the entries between are gone, and there
    /// is nobody to get a snapshot from.
    LogStartsAfterApplied {
        /// What the state machine holds.
        applied: Index,
        /// The entry before the first of the log.
        log_start: EntryId,
    },
    /// The commit index recorded on disk lies beyond the end of the log.
    CommitBeyondLog {
        /// What was recorded.
        commit: Index,
        /// Where the log ends.
        last: EntryId,
    },
    /// The terms of the log do not ascend, or one is above the recorded term.
    TermsOutOfOrder {
        /// The entry at which it shows.
        at: EntryId,
    },
    /// There is no membership, or it has no voter.
    NoVoters,
    /// A quorum of this size is not supported.
    TooManyVoters {
        /// How many there are.
        count: usize,
    },
    /// Entries that were acknowledged are damaged, and there is nobody to get them back from.
    DamagedAlone {
        /// Which.
        damaged: RangeInclusive<Index>,
    },
    /// A membership contradicts itself, or is not where it can be.
    MembershipImpossible {
        /// The entry that it is from.
        at: EntryId,
    },
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => write!(f, "{error}"),
            Self::AppliedBeyondLog { applied, last } => write!(
                f,
                "the state machine has applied index {applied}, but the log ends at {last}: \
                 acknowledged entries are missing from the log"
            ),
            Self::LogStartsAfterApplied { applied, log_start } => write!(
                f,
                "the log starts after {log_start}, but the state machine has applied only index \
                 {applied}: the entries between are missing, and no other server has them"
            ),
            Self::CommitBeyondLog { commit, last } => write!(
                f,
                "index {commit} was recorded as committed, but the log ends at {last}: \
                 acknowledged entries are missing from the log"
            ),
            Self::TermsOutOfOrder { at } => {
                write!(f, "the terms of the log are out of order at {at}")
            }
            Self::NoVoters => f.write_str("the membership has no voters"),
            Self::TooManyVoters { count } => {
                write!(f, "the membership has {count} voters, at most 7 are supported")
            }
            Self::DamagedAlone { damaged } => write!(
                f,
                "the entries from index {} to {} of the log are damaged, and no other server has \
                 them",
                damaged.start(),
                damaged.end(),
            ),
            Self::MembershipImpossible { at } => {
                write!(f, "the membership of {at} contradicts itself or the rest of the log")
            }
        }
    }
}

impl std::error::Error for RestoreError {}
