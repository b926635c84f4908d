//! The vocabulary: positions, epochs, members and clocks as types that cannot be mixed up.
//!
//! Each is a thin wrapper around `u64`. An entry is named by its [`EntryId`], index and term
//! together (§5.3): two entries with the same id are the same entry, and a bare index names
//! nothing for sure until it is committed.

use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

macro_rules! id {
    ($(#[$meta:meta])* $name:ident, $prefix:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The number itself.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A member of the cluster, for ever: an id is never given twice. Starts at 1.
    ///
    /// ```
    /// use kontiki_raft::NodeId;
    ///
    /// let id = NodeId(2);
    /// assert_eq!(id.get(), 2);
    /// assert_eq!(id.to_string(), "n2");
    /// ```
    NodeId, "n");
id!(
    /// A period with at most one leader (§5.1). Zero is before every election.
    Term, "");
id!(
    /// A position in the log. The first entry is at 1; zero is before the log.
    Index, "");
id!(
    /// When the leader sent a request, in nanoseconds, strictly increasing. Echoed by every
    /// reply, so that one number serves check-quorum, reads and leases (thesis §6.2, §6.4).
    Round, "r");
id!(
    /// One leader's dealings with one follower. A reply of an earlier session counts for nothing.
    Session, "s");
id!(
    /// Random, made with the data directory: tells a wiped disk from a restart.
    StoreId, "");
id!(
    /// A proposal, as its host calls it. Unique in the life of a process.
    ProposalId, "p");
id!(
    /// A linearizable read, as its host calls it. Unique in the life of a process.
    ReadId, "q");
id!(
    /// Nanoseconds on a monotonic clock that the host chose. Never wall-clock time.
    Timestamp, "");

impl Index {
    /// Before the first entry.
    pub const ZERO: Self = Self(0);

    /// The index after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The index before this one, or zero.
    #[must_use]
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Term {
    /// Before every election.
    pub const ZERO: Self = Self(0);

    /// The term after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Self> for Timestamp {
    type Output = Duration;
    /// The time from `earlier` to `self`, zero if it is not earlier.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The name of an entry: printed `5@2` for index 5, written in term 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EntryId {
    /// Where it stands in the log.
    pub index: Index,
    /// The term of the leader that wrote it.
    pub term: Term,
}

impl EntryId {
    /// Before the first entry.
    pub const ZERO: Self = Self { index: Index(0), term: Term(0) };

    /// Names the entry at `index` of `term`.
    #[must_use]
    pub const fn new(index: u64, term: u64) -> Self {
        Self { index: Index(index), term: Term(term) }
    }

    /// Whether a log that ends here is at least as up-to-date as one that ends at `other`:
    /// the later term wins, within a term the longer log (§5.4.1).
    #[must_use]
    pub fn is_up_to_date_with(self, other: Self) -> bool {
        (other.term, other.index) <= (self.term, self.index)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}
