//! The peers' language as bytes: one [`Message`], compact, versioned, checked.
//!
//! ```text
//!   version │ kind │ term │ what the kind has …
//! ```
//!
//! Numbers are LEB128, but for checksums and store ids, which are fixed little-endian. The
//! indexes of entries are not sent: they follow `prev`. Whole frames have a checksum of their
//! own in the transport; here each entry's checksum is compared with its command, so that damage
//! in the sender's memory does not reach our log.
//!
//! Decoding takes bytes from anyone: nothing in it panics, and it allocates no more than a small
//! multiple of what it was given. Commands are slices of the buffer that came in, not copies.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::Arc;

mod change;

use bytes::Buf;
use kontiki_log::{decode_membership, encode_membership};
use kontiki_raft::{
    AppendEntries, AppendEntriesReply, AppendResult, Body, Bytes, Entry, EntryId, Index,
    Membership, Message, NodeId, Payload, Proposal, ProposalId, Readmission, Rejection, Report,
    RequestVote, RequestVoteReply, Round, Session, Term, VoteKind,
};

/// The first byte of every message. Both ends of a connection have agreed on it before.
const VERSION: u8 = 3;

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Made by another version of this code.
    #[error("version {found} of the peer protocol is not supported")]
    Version {
        /// What the bytes say.
        found: u8,
    },
    /// The bytes end in the middle.
    #[error("the message ends too early")]
    Truncated,
    /// There is something after the end.
    #[error("the message has {bytes} bytes too many")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
    /// A tag that names nothing.
    #[error("unknown {what} {tag}")]
    Tag {
        /// What the tag is of.
        what: &'static str,
        /// The tag.
        tag: u8,
    },
    /// A number beyond what its place can hold.
    #[error("a number is out of range")]
    Range,
    /// An address that is not UTF-8.
    #[error("an address is not UTF-8")]
    Text,
    /// Bytes that are no membership.
    #[error("a membership is malformed")]
    Membership,
    /// The command is not what the leader took: it was damaged on its way.
    #[error("the checksum of entry {at} does not match")]
    Checksum {
        /// The damaged entry.
        at: EntryId,
    },
}

mod tag {
    pub(super) const REQUEST_VOTE: u8 = 1;
    pub(super) const REQUEST_VOTE_REPLY: u8 = 2;
    pub(super) const APPEND_ENTRIES: u8 = 3;
    pub(super) const APPEND_ENTRIES_REPLY: u8 = 4;
    pub(super) const TIMEOUT_NOW: u8 = 5;
    pub(super) const PROPOSE: u8 = 6;
    pub(super) const PROPOSE_REPLY: u8 = 7;
    pub(super) const READ_INDEX: u8 = 8;
    pub(super) const READ_INDEX_REPLY: u8 = 9;
    pub(super) const CHANGE_MEMBERSHIP: u8 = 10;
}

/// Appends the encoding of `message` to `buf`.
///
/// # Panics
///
/// When the entries of an `AppendEntries` do not follow its `prev`: a hole in the log is never
/// sent (pitfall M14).
pub fn encode(message: &Message, buf: &mut Vec<u8>) {
    buf.push(VERSION);
    let kind_at = buf.len();
    buf.push(0); // the kind, filled in below
    put(buf, message.term.get());
    let kind = put_body(buf, &message.body);
    if let Some(place) = buf.get_mut(kind_at) {
        *place = kind;
    }
}

fn put_body(buf: &mut Vec<u8>, body: &Body) -> u8 {
    match body {
        Body::RequestVote(request) => {
            buf.push(vote_tag(request.kind));
            put(buf, request.for_term.get());
            put_entry_id(buf, request.last);
            tag::REQUEST_VOTE
        }
        Body::RequestVoteReply(reply) => {
            buf.push(vote_tag(reply.kind));
            put(buf, reply.for_term.get());
            buf.push(u8::from(reply.granted));
            tag::REQUEST_VOTE_REPLY
        }
        Body::AppendEntries(append) => {
            put_append(buf, append);
            tag::APPEND_ENTRIES
        }
        Body::AppendEntriesReply(reply) => {
            put_append_reply(buf, reply);
            tag::APPEND_ENTRIES_REPLY
        }
        Body::TimeoutNow { last } => {
            put_entry_id(buf, *last);
            tag::TIMEOUT_NOW
        }
        Body::Propose(proposals) => {
            put_len(buf, proposals.len());
            for proposal in proposals {
                put(buf, proposal.id.get());
                put_bytes(buf, &proposal.command);
                buf.push(u8::from(proposal.is_session));
            }
            tag::PROPOSE
        }
        Body::ChangeMembership { id, change } => {
            put(buf, id.get());
            change::put_change_set(buf, change);
            tag::CHANGE_MEMBERSHIP
        }
        Body::ProposeReply(replies) => {
            put_len(buf, replies.len());
            for (id, result) in replies {
                put(buf, id.get());
                put_result(buf, result, |buf, at| put_entry_id(buf, *at));
            }
            tag::PROPOSE_REPLY
        }
        Body::ReadIndex { batch } => {
            put(buf, *batch);
            tag::READ_INDEX
        }
        Body::ReadIndexReply { batch, result } => {
            put(buf, *batch);
            put_result(buf, result, |buf, index| put(buf, index.get()));
            tag::READ_INDEX_REPLY
        }
    }
}

fn put_append_reply(buf: &mut Vec<u8>, reply: &AppendEntriesReply) {
    put(buf, reply.session.get());
    put(buf, reply.round.get());
    put(buf, reply.received.get());
    match reply.result {
        AppendResult::Match(index) => {
            buf.push(0);
            put(buf, index.get());
        }
        AppendResult::Conflict { prev, hint } => {
            buf.push(1);
            put_entry_id(buf, prev);
            put_entry_id(buf, hint);
        }
    }
    put_report(buf, reply.report);
}

fn put_append(buf: &mut Vec<u8>, append: &AppendEntries) {
    put(buf, append.session.get());
    put(buf, append.round.get());
    put_entry_id(buf, append.prev);
    put(buf, append.commit.get());
    put(buf, append.held_by_all.get());
    match append.readmission {
        None => buf.push(0),
        Some(Readmission { life, upto }) => {
            buf.push(1);
            put(buf, life);
            put(buf, upto.get());
        }
    }
    put_len(buf, append.entries.len());
    let mut prev = append.prev.index;
    for entry in &append.entries {
        assert!(
            entry.id.index == prev.next(),
            "entries that are sent follow each other: {} after index {prev}",
            entry.id
        );
        prev = entry.id.index;
        put(buf, entry.id.term.get());
        buf.extend_from_slice(&entry.checksum.to_le_bytes());
        match &entry.payload {
            Payload::Blank => buf.push(0),
            Payload::Command(command) => {
                buf.push(1);
                put_bytes(buf, command);
            }
            Payload::Membership(membership) => {
                buf.push(2);
                put_membership(buf, membership);
            }
            Payload::Session(command) => {
                buf.push(3);
                put_bytes(buf, command);
            }
        }
    }
}

fn put_membership(buf: &mut Vec<u8>, membership: &Membership) {
    let mut encoded = Vec::new();
    encode_membership(membership, &mut encoded);
    put_bytes(buf, &encoded);
}

fn put_report(buf: &mut Vec<u8>, report: Report) {
    buf.push(report.priority);
    buf.push(u8::from(report.is_full));
    put_option(buf, report.damaged);
    put_option(buf, report.needs_snapshot.map(Index::get));
}

fn put_option(buf: &mut Vec<u8>, number: Option<u64>) {
    buf.push(u8::from(number.is_some()));
    if let Some(number) = number {
        put(buf, number);
    }
}

fn put_result<T>(buf: &mut Vec<u8>, result: &Result<T, Rejection>, ok: fn(&mut Vec<u8>, &T)) {
    match result {
        Ok(value) => {
            buf.push(0);
            ok(buf, value);
        }
        Err(why) => put_rejection(buf, why),
    }
}

/// Tags from 1 on: zero stands for success beside it.
fn put_rejection(buf: &mut Vec<u8>, why: &Rejection) {
    match why {
        Rejection::NotLeader { leader } => {
            buf.push(1);
            put(buf, leader.map_or(0, NodeId::get)); // ids start at 1
        }
        Rejection::Transferring { to } => {
            buf.push(2);
            put(buf, to.get());
        }
        Rejection::Busy => buf.push(3),
        Rejection::TooLarge { bytes_max } => {
            buf.push(4);
            put_len(buf, *bytes_max);
        }
        Rejection::NotReady => buf.push(5),
        Rejection::NoQuorum => buf.push(6),
        Rejection::Stopped => buf.push(7),
        Rejection::MembershipInProgress { at } => {
            buf.push(8);
            put_entry_id(buf, *at);
        }
        Rejection::MembershipChanged { now } => {
            buf.push(9);
            put_entry_id(buf, *now);
        }
        Rejection::InvalidChange(why) => {
            buf.push(10);
            change::put_change_error(buf, why);
        }
        Rejection::NoSpace => buf.push(11),
        Rejection::NoState => buf.push(12),
        Rejection::NoSessions => buf.push(13),
    }
}

fn vote_tag(kind: VoteKind) -> u8 {
    match kind {
        VoteKind::PreVote => 0,
        VoteKind::Vote => 1,
        VoteKind::Transfer => 2,
    }
}

pub(crate) fn put_entry_id(buf: &mut Vec<u8>, id: EntryId) {
    put(buf, id.index.get());
    put(buf, id.term.get());
}

pub(crate) fn put_bytes(buf: &mut Vec<u8>, bytes: &[u8]) {
    put_len(buf, bytes.len());
    buf.extend_from_slice(bytes);
}

fn put_len(buf: &mut Vec<u8>, len: usize) {
    put(buf, u64::try_from(len).expect("a usize fits in 64 bits"));
}

/// LEB128: seven bits a byte, the lowest first.
pub(crate) fn put(buf: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            buf.push(low & 0x7f);
            return;
        }
        buf.push(low | 0x80);
    }
}

/// Decodes a message. Its commands share the memory of `bytes`.
///
/// # Errors
///
/// When `bytes` is not exactly one intact message.
pub fn decode(bytes: Bytes) -> Result<Message, DecodeError> {
    let mut reader = Reader(bytes);
    let version = reader.u8()?;
    if version != VERSION {
        return Err(DecodeError::Version { found: version });
    }
    let kind = reader.u8()?;
    let term = Term(reader.number()?);
    let body = reader.body(kind)?;
    reader.finish()?;
    Ok(Message { term, body })
}

/// What is left to decode.
#[derive(Debug)]
pub(crate) struct Reader(pub(crate) Bytes);

impl Reader {
    fn body(&mut self, kind: u8) -> Result<Body, DecodeError> {
        Ok(match kind {
            tag::REQUEST_VOTE => Body::RequestVote(RequestVote {
                kind: self.vote_kind()?,
                for_term: Term(self.number()?),
                last: self.entry_id()?,
            }),
            tag::REQUEST_VOTE_REPLY => Body::RequestVoteReply(RequestVoteReply {
                kind: self.vote_kind()?,
                for_term: Term(self.number()?),
                granted: self.bool()?,
            }),
            tag::APPEND_ENTRIES => Body::AppendEntries(self.append()?),
            tag::APPEND_ENTRIES_REPLY => Body::AppendEntriesReply(AppendEntriesReply {
                session: Session(self.number()?),
                round: Round(self.number()?),
                received: Index(self.number()?),
                result: match self.u8()? {
                    0 => AppendResult::Match(Index(self.number()?)),
                    1 => AppendResult::Conflict { prev: self.entry_id()?, hint: self.entry_id()? },
                    tag => return Err(DecodeError::Tag { what: "append result", tag }),
                },
                report: self.report()?,
            }),
            tag::TIMEOUT_NOW => Body::TimeoutNow { last: self.entry_id()? },
            tag::PROPOSE => Body::Propose(self.list(|reader| {
                let id = ProposalId(reader.number()?);
                Ok(Proposal { id, command: reader.bytes()?, is_session: reader.bool()? })
            })?),
            tag::CHANGE_MEMBERSHIP => Body::ChangeMembership {
                id: ProposalId(self.number()?),
                change: self.change_set()?,
            },
            tag::PROPOSE_REPLY => Body::ProposeReply(self.list(|reader| {
                let id = ProposalId(reader.number()?);
                Ok((id, reader.result(Self::entry_id)?))
            })?),
            tag::READ_INDEX => Body::ReadIndex { batch: self.number()? },
            tag::READ_INDEX_REPLY => Body::ReadIndexReply {
                batch: self.number()?,
                result: self.result(|reader| Ok(Index(reader.number()?)))?,
            },
            tag => return Err(DecodeError::Tag { what: "kind of message", tag }),
        })
    }

    fn append(&mut self) -> Result<AppendEntries, DecodeError> {
        let session = Session(self.number()?);
        let round = Round(self.number()?);
        let prev = self.entry_id()?;
        let commit = Index(self.number()?);
        let held_by_all = Index(self.number()?);
        let readmission = match self.bool()? {
            false => None,
            true => Some(Readmission { life: self.number()?, upto: Index(self.number()?) }),
        };
        let mut index = prev.index;
        let entries = self.list(|reader| {
            index = Index(index.get().checked_add(1).ok_or(DecodeError::Range)?);
            reader.entry(index)
        })?;
        Ok(AppendEntries { session, round, prev, commit, held_by_all, readmission, entries })
    }

    fn entry(&mut self, index: Index) -> Result<Entry, DecodeError> {
        let id = EntryId { index, term: Term(self.number()?) };
        let checksum = u32::from_le_bytes(self.array()?);
        let payload = match self.u8()? {
            0 => Payload::Blank,
            1 => Payload::Command(self.bytes()?),
            2 => Payload::Membership(Arc::new(self.membership()?)),
            3 => Payload::Session(self.bytes()?),
            tag => return Err(DecodeError::Tag { what: "payload", tag }),
        };
        let entry = Entry { id, payload, checksum };
        if !entry.is_intact() {
            return Err(DecodeError::Checksum { at: id });
        }
        Ok(entry)
    }

    pub(crate) fn membership(&mut self) -> Result<Membership, DecodeError> {
        decode_membership(&self.bytes()?).ok_or(DecodeError::Membership)
    }

    fn report(&mut self) -> Result<Report, DecodeError> {
        let (priority, is_full) = (self.u8()?, self.bool()?);
        let (damaged, needs_snapshot) = (self.option()?, self.option()?.map(Index));
        Ok(Report { priority, is_full, damaged, needs_snapshot })
    }

    fn option(&mut self) -> Result<Option<u64>, DecodeError> {
        Ok(match self.bool()? {
            false => None,
            true => Some(self.number()?),
        })
    }

    fn result<T>(
        &mut self,
        ok: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Result<T, Rejection>, DecodeError> {
        Ok(Err(match self.u8()? {
            0 => return Ok(Ok(ok(self)?)),
            1 => {
                let leader = self.number()?;
                Rejection::NotLeader { leader: (leader != 0).then_some(NodeId(leader)) }
            }
            2 => Rejection::Transferring { to: NodeId(self.number()?) },
            3 => Rejection::Busy,
            4 => Rejection::TooLarge { bytes_max: self.len()? },
            5 => Rejection::NotReady,
            6 => Rejection::NoQuorum,
            7 => Rejection::Stopped,
            8 => Rejection::MembershipInProgress { at: self.entry_id()? },
            9 => Rejection::MembershipChanged { now: self.entry_id()? },
            10 => Rejection::InvalidChange(self.change_error()?),
            11 => Rejection::NoSpace,
            12 => Rejection::NoState,
            13 => Rejection::NoSessions,
            tag => return Err(DecodeError::Tag { what: "rejection", tag }),
        }))
    }

    fn vote_kind(&mut self) -> Result<VoteKind, DecodeError> {
        match self.u8()? {
            0 => Ok(VoteKind::PreVote),
            1 => Ok(VoteKind::Vote),
            2 => Ok(VoteKind::Transfer),
            tag => Err(DecodeError::Tag { what: "kind of vote", tag }),
        }
    }

    pub(crate) fn entry_id(&mut self) -> Result<EntryId, DecodeError> {
        Ok(EntryId { index: Index(self.number()?), term: Term(self.number()?) })
    }

    /// A count and that many items. Each takes a byte at least, so a count that is larger than
    /// what is left is refused before anything is allocated for it.
    fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.len()?;
        if self.0.len() < count {
            return Err(DecodeError::Truncated);
        }
        let mut items = Vec::with_capacity(count.min(LIST_RESERVE_MAX));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.len()?;
        if self.0.len() < len {
            return Err(DecodeError::Truncated);
        }
        Ok(self.0.split_to(len))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(DecodeError::Tag { what: "truth value", tag }),
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let array = *self.0.first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.0.advance(N);
        Ok(array)
    }

    fn len(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(self.number()?).map_err(|_| DecodeError::Range)
    }

    pub(crate) fn number(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0;
        for (shift, at) in (0..64).step_by(7).zip(0..) {
            let &byte = self.0.get(at).ok_or(DecodeError::Truncated)?;
            let bits = u64::from(byte & 0x7f);
            if bits.leading_zeros() < shift {
                break; // a bit would fall off at the top
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                self.0.advance(at.saturating_add(1));
                return Ok(number);
            }
        }
        Err(DecodeError::Range)
    }

    pub(crate) fn finish(&self) -> Result<(), DecodeError> {
        match self.0.len() {
            0 => Ok(()),
            bytes => Err(DecodeError::TrailingBytes { bytes }),
        }
    }
}

/// A list of more items grows as they come in: what is reserved up front is paid for by a
/// count alone, which costs the sender nothing.
const LIST_RESERVE_MAX: usize = 1024;
