//! What happened: the digest of all of it, and the last of it as lines for a person.
//!
//! Every event and every action of a world becomes a [`Note`]. The digest over all notes and
//! their times is what "same seed, same trace, bit for bit" means. Of the notes themselves only
//! the last few are kept, as plain values; they are put into words when something went wrong,
//! or at once for a listener.

use std::{
    collections::VecDeque,
    fmt,
    hash::{Hash, Hasher},
    time::Duration,
};

use kontiki_raft::{
    AppendResult, Body, Entry, EntryId, Envelope, Index, NodeId, Role, SoftState, Term, VoteKind,
    WriteBatch,
};

use crate::dice::splitmix;

/// How many of the last events a failure shows.
const NOTES_KEPT: usize = 48;

/// Is told each event in a line.
type Listener = Box<dyn FnMut(&str)>;

/// Remembers the last events of a world and digests all of them.
#[derive(Default)]
pub struct Recorder {
    now: Duration,
    notes: VecDeque<(Duration, Note)>,
    digest: Digest,
    count: u64,
    listener: Option<Listener>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Recorder");
        shown.field("now", &self.now).field("count", &self.count).finish_non_exhaustive()
    }
}

impl Recorder {
    /// Tells `listener` each event in a line when it happens, too: even a run that ends its
    /// process has been told of to the end.
    #[must_use]
    pub fn telling(listener: impl FnMut(&str) + 'static) -> Self {
        Self { listener: Some(Box::new(listener)), ..Self::default() }
    }

    pub(crate) fn at(&mut self, now: Duration) {
        self.now = now;
    }

    pub(crate) fn note(&mut self, note: Note) {
        self.digest.word(u64::try_from(self.now.as_nanos()).unwrap_or(u64::MAX));
        note.hash(&mut self.digest);
        self.count += 1;
        if let Some(listener) = &mut self.listener {
            listener(&line(self.now, &note));
        }
        if self.notes.len() == NOTES_KEPT {
            self.notes.pop_front();
        }
        self.notes.push_back((self.now, note));
    }

    /// Digests bytes: of a message, of a disk.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.digest.write(bytes);
    }

    /// One number for all that has happened so far.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest.0
    }

    /// How many events and actions there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The virtual time of the last event.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// The last events, one line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.notes.iter().map(|(at, note)| line(*at, note)).collect()
    }
}

fn line(at: Duration, note: &Note) -> String {
    format!("{:>11.6} s  {note}", at.as_secs_f64())
}

/// A 64-bit digest. Not cryptographic: it tells two runs apart that should be the same.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Digest(pub(crate) u64);

impl Digest {
    pub(crate) fn word(&mut self, word: u64) {
        self.0 = splitmix(self.0.rotate_left(5) ^ word);
    }
}

// The integers are written out, because `Hasher` would pass them on in the byte order of the
// machine, and a digest should be the same on all.
impl Hasher for Digest {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.word(u64::from_le_bytes(chunk.try_into().unwrap_or_default()));
        }
        let mut tail = [0; 8];
        tail[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        self.word(u64::from_le_bytes(tail));
        self.word(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    }
    fn write_u8(&mut self, value: u8) {
        self.word(value.into());
    }
    fn write_u32(&mut self, value: u32) {
        self.word(value.into());
    }
    fn write_u64(&mut self, value: u64) {
        self.word(value);
    }
    fn write_usize(&mut self, value: usize) {
        self.word(u64::try_from(value).unwrap_or(u64::MAX));
    }
    fn write_isize(&mut self, value: isize) {
        self.word(u64::from_le_bytes(i64::try_from(value).unwrap_or(i64::MAX).to_le_bytes()));
    }
}

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Note {
    Sent { message: Summary, fate: Fate },
    Delivered(Summary),
    Wrote { node: NodeId, entries: Option<Run>, term_and_vote: Option<(Term, Option<NodeId>)> },
    Durable { node: NodeId, last: EntryId },
    WriteFailed { node: NodeId },
    Applied { node: NodeId, upto: Index },
    Committed { node: NodeId, upto: Index },
    Became { node: NodeId, role: Role, term: Term, leader: Option<NodeId> },
    Purged { node: NodeId, upto: EntryId },
    Membership { node: NodeId, at: EntryId, voters: [u64; 2] },
    Full { node: NodeId },
    SnapshotMade { node: NodeId, last: EntryId },
    SnapshotOffered { node: NodeId, to: NodeId, last: EntryId },
    SnapshotReceived { node: NodeId, from: NodeId, last: EntryId },
    Restored { node: NodeId, last: EntryId },
    Lost { node: NodeId },
    Asked { node: NodeId, request: u64, is_read: bool },
    Answered { node: NodeId, request: u64, how: How },
    Fault(Fault),
}

/// Consecutive entries, named by the first and the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Run {
    pub(crate) first: EntryId,
    pub(crate) last: EntryId,
}

/// What the network did with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    Travels,
    Lost,
    Twice,
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum How {
    Applied(EntryId),
    ReadReady(Index),
    Rejected,
    Superseded,
    Unknown,
}

/// What was done to the world on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    Crash(NodeId),
    Stop(NodeId),
    Start(NodeId),
    Pause(NodeId),
    Rot(NodeId),
    Resume(NodeId),
    Cut { from: NodeId, to: NodeId },
    Heal { from: NodeId, to: NodeId },
}

/// A message without its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Summary {
    from: NodeId,
    to: NodeId,
    term: Term,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    RequestVote { kind: VoteKind, for_term: Term, last: EntryId },
    RequestVoteReply { kind: VoteKind, for_term: Term, granted: bool },
    AppendEntries { prev: EntryId, entries: Option<Run>, commit: Index },
    Match(Index),
    Conflict { prev: EntryId, hint: EntryId },
    TimeoutNow { last: EntryId },
    Propose { count: usize },
    ProposeReply { count: usize },
    ReadIndex { batch: u64 },
    ReadIndexReply { batch: u64, index: Option<Index> },
}

impl Summary {
    pub(crate) fn new(from: NodeId, envelope: &Envelope) -> Self {
        let kind = match &envelope.message.body {
            Body::RequestVote(vote) => {
                Kind::RequestVote { kind: vote.kind, for_term: vote.for_term, last: vote.last }
            }
            Body::RequestVoteReply(reply) => Kind::RequestVoteReply {
                kind: reply.kind,
                for_term: reply.for_term,
                granted: reply.granted,
            },
            Body::AppendEntries(append) => Kind::AppendEntries {
                prev: append.prev,
                entries: Run::of(&append.entries),
                commit: append.commit,
            },
            Body::AppendEntriesReply(reply) => match reply.result {
                AppendResult::Match(index) => Kind::Match(index),
                AppendResult::Conflict { prev, hint } => Kind::Conflict { prev, hint },
            },
            Body::TimeoutNow { last } => Kind::TimeoutNow { last: *last },
            Body::Propose(proposals) => Kind::Propose { count: proposals.len() },
            Body::ChangeMembership { .. } => Kind::Propose { count: 1 },
            Body::ProposeReply(outcomes) => Kind::ProposeReply { count: outcomes.len() },
            Body::ReadIndex { batch } => Kind::ReadIndex { batch: *batch },
            Body::ReadIndexReply { batch, result } => {
                Kind::ReadIndexReply { batch: *batch, index: result.as_ref().ok().copied() }
            }
        };
        Self { from, to: envelope.to, term: envelope.message.term, kind }
    }
}

impl Run {
    pub(crate) fn of(entries: &[Entry]) -> Option<Self> {
        Some(Self { first: entries.first()?.id, last: entries.last()?.id })
    }
}

impl Note {
    pub(crate) fn wrote(node: NodeId, batch: &WriteBatch) -> Self {
        let term_and_vote = batch.hard_state.map(|state| (state.term, state.voted_for));
        Self::Wrote { node, entries: Run::of(&batch.entries), term_and_vote }
    }

    pub(crate) fn became(node: NodeId, state: SoftState) -> Self {
        Self::Became { node, role: state.role, term: state.term, leader: state.leader }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "[{}]", self.first)
        } else {
            write!(f, "[{} .. {}]", self.first, self.last)
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} -> {} {}", self.from, self.term, self.to, self.kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RequestVote { kind, for_term, last } => {
                write!(f, "RequestVote {kind:?} for={for_term} last={last}")
            }
            Self::RequestVoteReply { kind, for_term, granted } => {
                let verdict = if *granted { "granted" } else { "refused" };
                write!(f, "RequestVoteReply {kind:?} for={for_term} {verdict}")
            }
            Self::AppendEntries { prev, entries: None, commit } => {
                write!(f, "AppendEntries prev={prev} commit={commit}")
            }
            Self::AppendEntries { prev, entries: Some(run), commit } => {
                write!(f, "AppendEntries prev={prev} {run} commit={commit}")
            }
            Self::Match(index) => write!(f, "AppendEntriesReply match={index}"),
            Self::Conflict { prev, hint } => {
                write!(f, "AppendEntriesReply conflict prev={prev} hint={hint}")
            }
            Self::TimeoutNow { last } => write!(f, "TimeoutNow last={last}"),
            Self::Propose { count } => write!(f, "Propose count={count}"),
            Self::ProposeReply { count } => write!(f, "ProposeReply count={count}"),
            Self::ReadIndex { batch } => write!(f, "ReadIndex batch={batch}"),
            Self::ReadIndexReply { batch, index: Some(index) } => {
                write!(f, "ReadIndexReply batch={batch} index={index}")
            }
            Self::ReadIndexReply { batch, index: None } => {
                write!(f, "ReadIndexReply batch={batch} refused")
            }
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent { message, fate: Fate::Travels } => write!(f, "{message}"),
            Self::Sent { message, fate: Fate::Lost } => write!(f, "{message}  (lost)"),
            Self::Sent { message, fate: Fate::Twice } => write!(f, "{message}  (twice)"),
            Self::Delivered(message) => write!(f, "    arrives: {message}"),
            Self::Wrote { node, entries, term_and_vote } => {
                write!(f, "{node} write")?;
                if let Some(run) = entries {
                    write!(f, " {run}")?;
                }
                match term_and_vote {
                    Some((term, Some(vote))) => write!(f, " term={term} vote={vote}"),
                    Some((term, None)) => write!(f, " term={term} vote=none"),
                    None => Ok(()),
                }
            }
            Self::Durable { node, last } => write!(f, "{node} durable last={last}"),
            Self::WriteFailed { node } => write!(f, "{node} write failed"),
            Self::Applied { node, upto } => write!(f, "{node} applied={upto}"),
            Self::Committed { node, upto } => write!(f, "{node} commit={upto}"),
            Self::Became { node, role, term, leader: Some(leader) } => {
                write!(f, "{node}/{term} {role}, leader {leader}")
            }
            Self::Became { node, role, term, leader: None } => write!(f, "{node}/{term} {role}"),
            Self::Purged { node, upto } => write!(f, "{node} purged upto={upto}"),
            Self::Membership { node, at, voters: [incoming, outgoing] } => {
                write!(f, "{node} goes by the membership of {at}: voters {}", Bits(*incoming))?;
                if *outgoing == 0 { Ok(()) } else { write!(f, " and {}", Bits(*outgoing)) }
            }
            Self::Full { node } => write!(f, "{node} has a full disk"),
            Self::SnapshotMade { node, last } => write!(f, "{node} has a snapshot of {last}"),
            Self::SnapshotOffered { node, to, last } => {
                write!(f, "{node} offers {to} its snapshot of {last}")
            }
            Self::SnapshotReceived { node, from, last } => {
                write!(f, "{node} has the snapshot of {last} from {from}")
            }
            Self::Restored { node, last } => write!(f, "{node} restores the snapshot of {last}"),
            Self::Lost { node } => write!(f, "{node} cannot start: its disk is damaged"),
            Self::Asked { node, request, is_read: true } => write!(f, "read #{request} at {node}"),
            Self::Asked { node, request, is_read: false } => {
                write!(f, "proposal #{request} at {node}")
            }
            Self::Answered { node, request, how } => {
                write!(f, "{node} answers #{request}: {how}")
            }
            Self::Fault(fault) => write!(f, "{fault}"),
        }
    }
}

/// A set of nodes.
struct Bits(u64);

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gap = "";
        for id in (0..64).filter(|id| (self.0 >> id) & 1 == 1) {
            write!(f, "{gap}n{id}")?;
            gap = " ";
        }
        Ok(())
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied(at) => write!(f, "applied as {at}"),
            Self::ReadReady(index) => write!(f, "read at {index}"),
            Self::Rejected => f.write_str("rejected"),
            Self::Superseded => f.write_str("superseded"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash(node) => write!(f, "--- {node} loses power"),
            Self::Stop(node) => write!(f, "--- {node} is killed"),
            Self::Start(node) => write!(f, "--- {node} starts"),
            Self::Pause(node) => write!(f, "--- {node} is paused"),
            Self::Rot(node) => write!(f, "--- a bit on the disk of {node} flips"),
            Self::Resume(node) => write!(f, "--- {node} goes on"),
            Self::Cut { from, to } => write!(f, "--- {from} -> {to} is cut"),
            Self::Heal { from, to } => write!(f, "--- {from} -> {to} is whole again"),
        }
    }
}

/// Something that must not happen has happened.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What, in a sentence.
    pub what: String,
    /// When, in virtual time.
    pub at: Duration,
    /// The last events before it.
    pub events: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.events {
            writeln!(f, "  {line}")?;
        }
        write!(f, "at {:.6} s: {}", self.at.as_secs_f64(), self.what)
    }
}

impl std::error::Error for Failure {}
