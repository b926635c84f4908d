//! Client sessions: a command that is proposed twice is applied once (§8, thesis §6.3).
//!
//! A client opens a session and numbers its commands. Every node keeps the same table of
//! sessions, as a part of the replicated state: which commands were applied, and what the state
//! machine said to those whose answer may not have arrived. A command that comes again gets that
//! answer, and does nothing.
//!
//! ```text
//!   sequence    1 2 3 │ 4 5 6 7 8
//!               ──────┼──────────
//!                     │ answers are kept, of those that were applied
//!                     lowest_unanswered: the client has the answers of all below
//! ```
//!
//! The table is bounded, and what expires is decided by the log alone, never by a clock: when
//! there are too many sessions, or too many bytes of answers, the session that was used least
//! recently goes. A command of a session that is gone is refused, for it may have been applied.
//!
//! I/O-free and deterministic: the apply thread and the simulator run the same table.

use std::{collections::BTreeMap, fmt};

use kontiki_raft::{Bytes, Index};

/// One session, for ever: the index of the entry that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// What an entry of a session says: the content of
/// [`Payload::Session`](crate::Payload::Session).
///
/// ```text
///   0        1          9           17                    25
///   │ kind 1 │                                             open
///   │ kind 2 │ session │                                   close
///   │ kind 3 │ session │ sequence │ lowest_unanswered │ command …     integers are little-endian
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "whoever applies sessions must decide about each kind")]
pub enum SessionCommand {
    /// A new session.
    Open,
    /// The session has ended.
    Close {
        /// Which.
        session: SessionId,
    },
    /// A command for the state machine.
    Command {
        /// The session that it belongs to.
        session: SessionId,
        /// Its number in the session, from 1 on.
        sequence: u64,
        /// The client has the answers to all below.
        lowest_unanswered: u64,
        /// What the state machine is given.
        command: Bytes,
    },
}

const OPEN: u8 = 1;
const CLOSE: u8 = 2;
const COMMAND: u8 = 3;

impl SessionCommand {
    /// What is proposed.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::new();
        match self {
            Self::Open => bytes.push(OPEN),
            Self::Close { session } => {
                bytes.push(CLOSE);
                bytes.extend(session.0.to_le_bytes());
            }
            Self::Command { session, sequence, lowest_unanswered, command } => {
                bytes.reserve(COMMAND_HEAD + command.len());
                bytes.push(COMMAND);
                for number in [session.0, *sequence, *lowest_unanswered] {
                    bytes.extend(number.to_le_bytes());
                }
                bytes.extend(command);
            }
        }
        bytes.into()
    }

    /// Reads what was proposed. `None` if it is of a later version, or not of a session at all.
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let (kind, mut rest) = bytes.split_first()?;
        match *kind {
            OPEN => rest.is_empty().then_some(Self::Open),
            CLOSE => {
                let session = SessionId(take_u64(&mut rest)?);
                rest.is_empty().then_some(Self::Close { session })
            }
            COMMAND => Some(Self::Command {
                session: SessionId(take_u64(&mut rest)?),
                sequence: take_u64(&mut rest)?,
                lowest_unanswered: take_u64(&mut rest)?,
                command: bytes.slice(COMMAND_HEAD..),
            }),
            _ => None,
        }
    }
}

/// What a command of a session has before what the state machine is given.
const COMMAND_HEAD: usize = 1 + 3 * 8;

/// How much a table remembers. A part of the replicated state: the same on every node, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Open sessions.
    pub session_count_max: usize,
    /// Answers of all sessions together, in bytes, with 32 more for each.
    pub answer_bytes_max: usize,
}

impl Default for SessionLimits {
    /// 4,096 sessions and 64 MiB of answers: guesses, for clients that hold a session each.
    fn default() -> Self {
        Self { session_count_max: 4_096, answer_bytes_max: 64 << 20 }
    }
}

/// What an entry of a session comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a fresh command is to be applied"]
#[expect(clippy::exhaustive_enums, reason = "whoever applies sessions must decide about each")]
pub enum SessionStep {
    /// There is a new session.
    Opened(SessionId),
    /// There is no such session any more.
    Closed,
    /// Give this to the state machine, then [`record`](SessionTable::record) what it says, before
    /// the next step.
    Fresh {
        /// The session.
        session: SessionId,
        /// The number of the command.
        sequence: u64,
        /// The command.
        command: Bytes,
    },
    /// It was applied before, and this is what the state machine said.
    Repeated(Bytes),
    /// It is not applied now. It may have been before.
    Refused(SessionRefusal),
}

/// Why a command of a session was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionRefusal {
    /// The session has expired or was closed: it is not known whether the command was applied.
    Expired,
    /// The client has said that it has the answer already.
    Answered,
    /// The entry cannot be read.
    Malformed,
}

impl fmt::Display for SessionRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "the session has expired",
            Self::Answered => "the command was answered before",
            Self::Malformed => "the command of a session cannot be read",
        })
    }
}

impl std::error::Error for SessionRefusal {}

/// All open sessions, as the log up to one entry makes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionTable {
    limits: SessionLimits,
    sessions: BTreeMap<SessionId, Session>,
    /// By the entry that used them last. Each entry uses one session at most.
    by_use: BTreeMap<Index, SessionId>,
    answer_bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    last_used: Index,
    lowest_unanswered: u64,
    /// By sequence, none below `lowest_unanswered`.
    answers: BTreeMap<u64, Bytes>,
}

impl SessionTable {
    /// No sessions.
    #[must_use]
    pub fn new(limits: SessionLimits) -> Self {
        Self { limits, sessions: BTreeMap::new(), by_use: BTreeMap::new(), answer_bytes: 0 }
    }

    /// How many sessions are open.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// What all answers take, as the limit counts it.
    #[must_use]
    pub fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    /// The entry `at` is applied, and holds this.
    pub fn step(&mut self, at: Index, content: &Bytes) -> SessionStep {
        match SessionCommand::decode(content) {
            Some(SessionCommand::Open) => self.open(at),
            Some(SessionCommand::Close { session }) => {
                self.remove(session);
                SessionStep::Closed
            }
            Some(SessionCommand::Command { session, sequence, lowest_unanswered, command }) => {
                self.on_command(at, session, sequence, lowest_unanswered, command)
            }
            None => SessionStep::Refused(SessionRefusal::Malformed),
        }
    }

    /// What the state machine said to a [`Fresh`](SessionStep::Fresh) command.
    pub fn record(&mut self, session: SessionId, sequence: u64, answer: Bytes) {
        let Some(open) = self.sessions.get_mut(&session) else { return };
        self.answer_bytes += answer_cost(&answer);
        open.answers.insert(sequence, answer);
        // The session itself was used last, so it goes last: when its own answers are too large.
        while self.limits.answer_bytes_max < self.answer_bytes && self.expire_one() {}
    }

    fn open(&mut self, at: Index) -> SessionStep {
        while self.limits.session_count_max.max(1) <= self.sessions.len() && self.expire_one() {}
        let id = SessionId(at.get());
        let session = Session { last_used: at, lowest_unanswered: 1, answers: BTreeMap::new() };
        self.sessions.insert(id, session);
        self.by_use.insert(at, id);
        SessionStep::Opened(id)
    }

    fn on_command(
        &mut self,
        at: Index,
        id: SessionId,
        sequence: u64,
        lowest_unanswered: u64,
        command: Bytes,
    ) -> SessionStep {
        let Some(session) = self.sessions.get_mut(&id) else {
            return SessionStep::Refused(SessionRefusal::Expired);
        };
        self.by_use.remove(&session.last_used);
        session.last_used = at;
        self.by_use.insert(at, id);
        if session.lowest_unanswered < lowest_unanswered {
            session.lowest_unanswered = lowest_unanswered;
            let kept = session.answers.split_off(&lowest_unanswered);
            let told = std::mem::replace(&mut session.answers, kept);
            self.answer_bytes -= told.values().map(answer_cost).sum::<usize>();
        }
        if sequence < session.lowest_unanswered {
            return SessionStep::Refused(SessionRefusal::Answered);
        }
        match session.answers.get(&sequence) {
            Some(answer) => SessionStep::Repeated(answer.clone()),
            None => SessionStep::Fresh { session: id, sequence, command },
        }
    }

    /// The session that was used least recently goes. `false` if there is none.
    fn expire_one(&mut self) -> bool {
        let Some((_, &id)) = self.by_use.first_key_value() else { return false };
        self.remove(id);
        true
    }

    fn remove(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.remove(&id) {
            self.by_use.remove(&session.last_used);
            self.answer_bytes -= session.answers.values().map(answer_cost).sum::<usize>();
        }
    }

    /// The table as a part of a snapshot.
    ///
    /// ```text
    ///   version 1 │ count │ of each session: id │ last_used │ lowest_unanswered │ count │
    ///                       of each answer: sequence │ length │ bytes
    /// ```
    ///
    /// All numbers but the version, which is a byte, are 8 bytes, little-endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![TABLE_VERSION];
        put_u64(&mut bytes, count(self.sessions.len()));
        for (id, session) in &self.sessions {
            put_u64(&mut bytes, id.0);
            put_u64(&mut bytes, session.last_used.get());
            put_u64(&mut bytes, session.lowest_unanswered);
            put_u64(&mut bytes, count(session.answers.len()));
            for (sequence, answer) in &session.answers {
                put_u64(&mut bytes, *sequence);
                put_u64(&mut bytes, count(answer.len()));
                bytes.extend(answer);
            }
        }
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote. `None` if it is anything else.
    #[must_use]
    pub fn decode(bytes: &[u8], limits: SessionLimits) -> Option<Self> {
        let (&version, mut rest) = bytes.split_first()?;
        if version != TABLE_VERSION {
            return None;
        }
        let mut table = Self::new(limits);
        for _ in 0..take_u64(&mut rest)? {
            let id = SessionId(take_u64(&mut rest)?);
            let last_used = Index(take_u64(&mut rest)?);
            let lowest_unanswered = take_u64(&mut rest)?;
            let mut answers = BTreeMap::new();
            for _ in 0..take_u64(&mut rest)? {
                let sequence = take_u64(&mut rest)?;
                let len = usize::try_from(take_u64(&mut rest)?).ok()?;
                let (answer, after) = rest.split_at_checked(len)?;
                rest = after;
                let answer = Bytes::copy_from_slice(answer);
                table.answer_bytes += answer_cost(&answer);
                if answers.insert(sequence, answer).is_some() {
                    return None;
                }
            }
            table.by_use.insert(last_used, id);
            table.sessions.insert(id, Session { last_used, lowest_unanswered, answers });
        }
        let is_sound = table.by_use.len() == table.sessions.len();
        (is_sound && rest.is_empty()).then_some(table)
    }
}

const TABLE_VERSION: u8 = 1;

/// What an answer takes of the limit.
fn answer_cost(answer: &Bytes) -> usize {
    const ANSWER_OVERHEAD: usize = 32;
    ANSWER_OVERHEAD + answer.len()
}

fn put_u64(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend(number.to_le_bytes());
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (number, after) = rest.split_first_chunk::<8>()?;
    *rest = after;
    Some(u64::from_le_bytes(*number))
}

fn count(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits in 64 bits")
}

/// A response that can be kept in a [`SessionTable`]: it is a part of the replicated state, so
/// its bytes must say all of it, and the same on every node.
pub trait SessionResponse: Sized {
    /// The response as bytes.
    fn to_bytes(&self) -> Bytes;

    /// The response that these bytes say. `None` if they say none.
    fn from_bytes(bytes: &Bytes) -> Option<Self>;
}

impl SessionResponse for Bytes {
    fn to_bytes(&self) -> Bytes {
        self.clone()
    }

    fn from_bytes(bytes: &Bytes) -> Option<Self> {
        Some(bytes.clone())
    }
}

impl SessionResponse for Vec<u8> {
    fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self)
    }

    fn from_bytes(bytes: &Bytes) -> Option<Self> {
        Some(bytes.to_vec())
    }
}

impl SessionResponse for String {
    fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.as_bytes())
    }

    fn from_bytes(bytes: &Bytes) -> Option<Self> {
        Self::from_utf8(bytes.to_vec()).ok()
    }
}

impl SessionResponse for () {
    fn to_bytes(&self) -> Bytes {
        Bytes::new()
    }

    fn from_bytes(bytes: &Bytes) -> Option<Self> {
        bytes.is_empty().then_some(())
    }
}

impl SessionResponse for u64 {
    fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.to_le_bytes())
    }

    fn from_bytes(bytes: &Bytes) -> Option<Self> {
        Some(Self::from_le_bytes(bytes[..].try_into().ok()?))
    }
}

impl SessionResponse for usize {
    fn to_bytes(&self) -> Bytes {
        count(*self).to_bytes()
    }

    fn from_bytes(bytes: &Bytes) -> Option<Self> {
        Self::try_from(u64::from_bytes(bytes)?).ok()
    }
}

impl SessionResponse for bool {
    fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&[u8::from(*self)])
    }

    fn from_bytes(bytes: &Bytes) -> Option<Self> {
        match bytes[..] {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}
