//! What nodes say to each other (Figure 2).
//!
//! Every message carries the term of its sender in one place, so that one line of the core
//! settles which term counts (§5.1). A request for a vote names the term it is for beside it:
//! a pre-vote speaks of a term that nobody has entered, and must not drag anyone there
//! (thesis §9.6).
//!
//! Messages may be lost, late, repeated or overtaken. They must not be altered.

use crate::{
    ChangeSet, Entry, EntryId, Index, NodeId, ProposalId, Rejection, Round, Session, Term,
};
use bytes::Bytes;

/// What one node says to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The term the sender was in when it made the message.
    pub term: Term,
    /// What it says.
    pub body: Body,
}

/// The kinds of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a codec that overlooks a kind must not compile")]
pub enum Body {
    /// A candidate asks for a vote (§5.2), or whether it would get one (thesis §9.6).
    RequestVote(RequestVote),
    /// The answer.
    RequestVoteReply(RequestVoteReply),
    /// The leader replicates entries; without entries it is the heartbeat (§5.3).
    AppendEntries(AppendEntries),
    /// The answer.
    AppendEntriesReply(AppendEntriesReply),
    /// The leader asks the receiver to become leader at once (thesis §3.10). It names the end
    /// of the leader's log, which the receiver must hold.
    TimeoutNow {
        /// Where the leader's log ends.
        last: EntryId,
    },
    /// A follower passes on what its clients proposed.
    Propose(Vec<Proposal>),
    /// A follower passes on a change of the membership that its host wants. Answered by
    /// `ProposeReply`.
    ChangeMembership {
        /// The follower's number for it, out of those of its proposals.
        id: ProposalId,
        /// What is wanted.
        change: ChangeSet,
    },
    /// What became of each: appended under this id, or certainly not appended.
    ProposeReply(Vec<(ProposalId, Result<EntryId, Rejection>)>),
    /// A follower asks up to where it must have applied before it may serve a batch of reads
    /// (thesis §6.4).
    ReadIndex {
        /// The follower's number for the batch. Never used twice (pitfall R2).
        batch: u64,
    },
    /// The answer to the batch of that number.
    ReadIndexReply {
        /// The number that was asked under.
        batch: u64,
        /// Up to where to apply, or why not.
        result: Result<Index, Rejection>,
    },
}

/// A command on its way into the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// How its host calls it.
    pub id: ProposalId,
    /// What the state machine will be given.
    pub command: Bytes,
    /// Whether it belongs to a client session. The protocol only keeps it so.
    pub is_session: bool,
}

/// A candidate asks for a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestVote {
    /// For real, or to find out.
    pub kind: VoteKind,
    /// The term to be leader of. For a pre-vote it is one more than the sender's.
    pub for_term: Term,
    /// Where the candidate's log ends (§5.4.1).
    pub last: EntryId,
}

/// What is asked for in [`RequestVote`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a codec that overlooks a kind must not compile")]
pub enum VoteKind {
    /// Would you vote for me? Changes nothing at the receiver (thesis §9.6).
    PreVote,
    /// Vote for me (§5.2).
    Vote,
    /// Vote for me: the leader itself asked me to stand, so do not shield it (thesis §4.2.3).
    Transfer,
}

/// The answer to [`RequestVote`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestVoteReply {
    /// The kind that was asked for.
    pub kind: VoteKind,
    /// The term that was asked for. The voter's own is in [`Message::term`]; to see a higher
    /// term there is not to be granted anything (pitfall B4).
    pub for_term: Term,
    /// Whether the vote was given.
    pub granted: bool,
}

/// The leader replicates, or shows that it is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendEntries {
    /// The leader's dealings with this follower, echoed.
    pub session: Session,
    /// When it was sent, echoed.
    pub round: Round,
    /// The entry before the first of `entries`. In a heartbeat, the last that the follower is
    /// known to hold.
    pub prev: EntryId,
    /// The leader's commit index. It may lie beyond the entries sent so far.
    pub commit: Index,
    /// Every voter holds the log durably up to here, so nobody will ask for it again.
    pub held_by_all: Index,
    /// The follower may take part again, if it is damaged and this is about its present life.
    pub readmission: Option<Readmission>,
    /// Consecutive entries from `prev.index + 1` on.
    pub entries: Vec<Entry>,
}

/// The answer to [`AppendEntries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendEntriesReply {
    /// The session of the request.
    pub session: Session,
    /// The newest round that the follower has seen from this leader.
    pub round: Round,
    /// The logs agree up to here in the follower's memory, perhaps not durably yet. Tells what
    /// was lost on the way from what waits for the disk; nothing is committed by it.
    pub received: Index,
    /// What came of it.
    pub result: AppendResult,
    /// What the leader should know of the follower.
    pub report: Report,
}

/// A leader that a quorum has followed *without* the damaged follower, after it heard of the
/// damage, lets it take part again once it holds the log up to `upto`: whatever it had
/// acknowledged and lost is in there, if it was committed (Leader Completeness, §5.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readmission {
    /// The number of [`Report::damaged`].
    pub life: u64,
    /// Where the leader's log ended when that quorum had answered.
    pub upto: Index,
}

/// What a follower says of itself with every reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Who should lead if all else is equal: see [`Config::priority`](crate::Config::priority).
    pub priority: u8,
    /// Its disk is full: it could not lead.
    pub is_full: bool,
    /// Its log was damaged and is not whole yet. The number is of this life of it, at random.
    pub damaged: Option<u64>,
    /// Its state machine lacks what its log no longer has: it applies nothing until it gets a
    /// snapshot that ends here or later.
    pub needs_snapshot: Option<Index>,
}

/// What came of an [`AppendEntries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a codec that overlooks a kind must not compile")]
pub enum AppendResult {
    /// The follower's log agrees with the leader's up to here, *durably*.
    Match(Index),
    /// The follower does not hold `prev`. `hint` is its last entry that may agree: the largest
    /// index whose term is not above that of `prev` (the fast back-up of §5.3).
    Conflict {
        /// The `prev` that was refused.
        prev: EntryId,
        /// Where to try next.
        hint: EntryId,
    },
}

impl Message {
    /// Whether this is an [`AppendEntries`] with entries: bulk data, which must not be sent
    /// ahead of heartbeats and replies.
    #[must_use]
    pub fn is_bulk(&self) -> bool {
        match &self.body {
            Body::AppendEntries(append) => !append.entries.is_empty(),
            Body::Propose(_) | Body::ChangeMembership { .. } => true,
            Body::RequestVote(_)
            | Body::RequestVoteReply(_)
            | Body::AppendEntriesReply(_)
            | Body::TimeoutNow { .. }
            | Body::ProposeReply(_)
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. } => false,
        }
    }
}

/// A message and its receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Who is to get it.
    pub to: NodeId,
    /// What it says.
    pub message: Message,
}
