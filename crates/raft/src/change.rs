//! What can be asked of a membership, and why it may be refused (§6, thesis §4).

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::{EntryId, NodeId};

/// One step of a [`ChangeSet`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a codec that overlooks a change must not compile")]
pub enum Change {
    /// Adds a server that receives the log and does not vote. It gets the next free id.
    AddLearner {
        /// Where its peers reach it.
        address: Arc<str>,
        /// What the application wants to be known of it.
        context: Bytes,
        /// Whether the leader makes it a voter once it has caught up.
        auto_promote: bool,
    },
    /// Makes a learner a voter. Refused unless it has caught up.
    Promote(NodeId),
    /// Makes a voter a learner, which stays one until it is promoted by hand.
    Demote(NodeId),
    /// Removes a member.
    Remove(NodeId),
    /// Adds a learner that takes the place of a member, voter for voter in one step, once it has
    /// caught up. Until then `old` keeps its vote.
    Replace {
        /// Who is to go.
        old: NodeId,
        /// Where the new server is reached.
        address: Arc<str>,
        /// What the application wants to be known of it.
        context: Bytes,
    },
    /// Changes where a member is reached, and what is known of it.
    Update {
        /// Who.
        id: NodeId,
        /// Where from now on.
        address: Arc<str>,
        /// What from now on.
        context: Bytes,
    },
}

/// Changes that take place together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// In this order.
    pub changes: Vec<Change>,
    /// Only if the membership has not changed since this entry (compare-and-swap): the one that
    /// it is from, or a later one of the log.
    pub expect: Option<EntryId>,
}

impl ChangeSet {
    /// One change, whatever the membership is.
    #[must_use]
    pub fn one(change: Change) -> Self {
        Self { changes: vec![change], expect: None }
    }
}

/// Why a change makes no sense for the membership in force.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a codec that overlooks a reason must not compile")]
pub enum ChangeError {
    /// Nothing was asked for, or what was asked for is so already.
    Empty,
    /// There is no such member.
    NoSuchMember(NodeId),
    /// Only a learner can be promoted.
    NotALearner(NodeId),
    /// Only a voter can be demoted.
    NotAVoter(NodeId),
    /// The learner has not caught up yet.
    NotCaughtUp(NodeId),
    /// Somebody would be left who decides nothing: the cluster would have no voters.
    NoVoters,
    /// More voters than are supported.
    TooManyVoters {
        /// How many there would be.
        count: usize,
    },
    /// Another member has this address.
    AddressInUse(NodeId),
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("there is nothing to change"),
            Self::NoSuchMember(id) => write!(f, "{id} is not a member"),
            Self::NotALearner(id) => write!(f, "{id} is not a learner"),
            Self::NotAVoter(id) => write!(f, "{id} is not a voter"),
            Self::NotCaughtUp(id) => write!(f, "{id} has not caught up with the leader yet"),
            Self::NoVoters => f.write_str("the cluster would have no voters"),
            Self::TooManyVoters { count } => {
                write!(f, "the cluster would have {count} voters, at most 7 are supported")
            }
            Self::AddressInUse(id) => write!(f, "{id} has this address already"),
        }
    }
}

impl std::error::Error for ChangeError {}
