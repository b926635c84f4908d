//! The records of the log: what a frame's kind, user bytes and payload mean.
//!
//! Layouts: `docs/log-format.md`, "Records". A record is one group commit: its hard state and
//! its entries reach the disk together or not at all (pitfall B5).

use std::sync::Arc;

use kontiki_disk::{ByteReader, FRAME_ALIGN, FRAME_USER_BYTES, Frame, FrameSpec};
use kontiki_raft::{
    Bytes, Entry, EntryId, HardState, Index, Membership, NodeId, Payload, SnapshotMeta, Term,
    WriteBatch,
};

use crate::codec::{decode_membership, encode_membership, put_len, put_u32, put_u64};

/// Entries, perhaps with a hard state.
pub(crate) const ENTRIES: u8 = 1;
/// A hard state alone: a term or a vote.
pub(crate) const HARD_STATE: u8 = 2;
/// The log starts later than before.
pub(crate) const START: u8 = 3;
/// Nothing follows in this segment.
pub(crate) const SEAL: u8 = 4;
/// The whole log is dropped and starts anew, perhaps with entries.
pub(crate) const RESET: u8 = 5;
/// The entries from some index on are gone: what stood here was damaged.
pub(crate) const CUT: u8 = 6;

/// Set if the hard state in the user bytes is a new one.
const HAS_HARD_STATE: u8 = 1;

/// What precedes the data of an entry.
pub(crate) const ENTRY_HEADER_BYTES: usize = 24;

const BLANK: u8 = 1;
const COMMAND: u8 = 2;
const MEMBERSHIP: u8 = 3;
const SESSION: u8 = 4;

/// The user bytes of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// Of the first entry of the record; of the next one to come if it has none.
    pub(crate) first_index: Index,
    pub(crate) hard_state: HardState,
    pub(crate) count: u32,
}

impl Head {
    pub(crate) fn encode(&self) -> [u8; FRAME_USER_BYTES] {
        let mut user = Vec::with_capacity(FRAME_USER_BYTES);
        put_u64(&mut user, self.first_index.get());
        put_hard_state(&mut user, self.hard_state);
        put_u32(&mut user, self.count);
        put_u32(&mut user, 0); // the group, when there are several
        user.try_into().expect("as long as its parts")
    }

    pub(crate) fn decode(user: &[u8; FRAME_USER_BYTES]) -> Option<Self> {
        let mut reader = ByteReader::new(user);
        Some(Self {
            first_index: read_index(&mut reader)?,
            hard_state: read_hard_state(&mut reader)?,
            count: reader.u32()?,
        })
    }
}

pub(crate) fn put_hard_state(buf: &mut Vec<u8>, state: HardState) {
    put_u64(buf, state.term.get());
    put_u64(buf, state.voted_for.map_or(0, NodeId::get)); // ids start at 1
    put_u64(buf, state.commit.get());
}

/// An index with room for more after it. No log reaches 2⁶² entries; what says so is forged.
fn read_index(reader: &mut ByteReader<'_>) -> Option<Index> {
    Some(Index(reader.u64()?)).filter(|index| index.get() < 1 << 62)
}

pub(crate) fn read_id(reader: &mut ByteReader<'_>) -> Option<EntryId> {
    Some(EntryId { index: read_index(reader)?, term: Term(reader.u64()?) })
}

pub(crate) fn read_hard_state(reader: &mut ByteReader<'_>) -> Option<HardState> {
    let term = Term(reader.u64()?);
    let voted_for = Some(NodeId(reader.u64()?)).filter(|id| id.get() != 0);
    let commit = Index(reader.u64()?);
    Some(HardState { term, voted_for, commit })
}

/// Several batches as the one change that they are together.
#[derive(Debug, Default)]
pub(crate) struct Merged<'a> {
    pub(crate) hard_state: Option<HardState>,
    pub(crate) entries: Vec<&'a Entry>,
    pub(crate) reset_to: Option<&'a SnapshotMeta>,
    pub(crate) is_repaired: bool,
}

impl<'a> Merged<'a> {
    /// # Panics
    ///
    /// If the entries of a batch do not follow each other, or leave a gap to the batch before.
    pub(crate) fn new(batches: &'a [WriteBatch]) -> Self {
        let mut merged = Self::default();
        for batch in batches {
            merged.hard_state = batch.hard_state.or(merged.hard_state);
            merged.is_repaired |= batch.is_repaired;
            if let Some(meta) = &batch.reset_to {
                merged.entries.clear(); // dropped before they were ever written
                merged.reset_to = Some(meta);
            }
            merged.put(&batch.entries);
        }
        merged
    }

    fn put(&mut self, entries: &'a [Entry]) {
        let Some(first) = entries.first() else { return };
        // A batch replaces what an earlier one has at and after its first entry (§5.3).
        let kept = self.entries.partition_point(|entry| entry.id.index < first.id.index);
        self.entries.truncate(kept);
        for entry in entries {
            if let Some(last) = self.entries.last() {
                assert!(
                    entry.id.index == last.id.index.next() && last.id.term <= entry.id.term,
                    "entries follow each other: {} then {}",
                    last.id,
                    entry.id,
                );
            }
            self.entries.push(entry);
        }
    }

    pub(crate) const fn has_record(&self) -> bool {
        self.hard_state.is_some() || !self.entries.is_empty() || self.reset_to.is_some()
    }

    /// The head of the record, given the state before it.
    pub(crate) fn spec(&self, seq: u64, hard_state: HardState, next_index: Index) -> FrameSpec {
        let head = Head {
            first_index: self.entries.first().map_or(next_index, |entry| entry.id.index),
            hard_state: self.hard_state.unwrap_or(hard_state),
            count: u32::try_from(self.entries.len()).expect("each takes 24 bytes of 1 GiB"),
        };
        FrameSpec {
            kind: match (self.reset_to, self.entries.is_empty()) {
                (Some(_), _) => RESET,
                (None, true) => HARD_STATE,
                (None, false) => ENTRIES,
            },
            flags: if self.hard_state.is_some() { HAS_HARD_STATE } else { 0 },
            seq,
            user: head.encode(),
        }
    }
}

/// Where an entry stands in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) term: Term,
    pub(crate) segment: u32,
    /// Of the entry's header.
    pub(crate) offset: u32,
    /// Of its data.
    pub(crate) len: u32,
    pub(crate) kind: u8,
    /// Of its frame.
    pub(crate) mask: u8,
}

impl Location {
    /// Where an entry was written, and the membership that it carries.
    pub(crate) fn of(
        entry: &Entry,
        segment: u32,
        offset: u32,
        len: u32,
        mask: u8,
    ) -> (Self, Option<Arc<Membership>>) {
        let (kind, membership) = match &entry.payload {
            Payload::Blank => (BLANK, None),
            Payload::Command(_) => (COMMAND, None),
            Payload::Session(_) => (SESSION, None),
            Payload::Membership(membership) => (MEMBERSHIP, Some(Arc::clone(membership))),
        };
        (Self { term: entry.id.term, segment, offset, len, kind, mask }, membership)
    }

    /// Bytes of header and data on disk.
    pub(crate) fn stored_bytes(&self) -> u64 {
        ENTRY_HEADER_BYTES as u64 + u64::from(self.len)
    }
}

/// Appends an entry to the frame that `buf` holds so far. Returns the length of its data.
pub(crate) fn encode_entry(entry: &Entry, buf: &mut Vec<u8>) -> usize {
    let start = buf.len();
    buf.extend_from_slice(&[0; ENTRY_HEADER_BYTES]); // filled in below
    let (kind, checksum) = match &entry.payload {
        Payload::Blank => (BLANK, 0),
        Payload::Command(command) => {
            buf.extend_from_slice(command);
            // The leader's own, not made anew: it has to prove what the leader took.
            (COMMAND, entry.checksum)
        }
        Payload::Session(command) => {
            buf.extend_from_slice(command);
            (SESSION, entry.checksum)
        }
        Payload::Membership(membership) => {
            encode_membership(membership, buf);
            (MEMBERSHIP, crc32c::crc32c(&buf[start + ENTRY_HEADER_BYTES..]))
        }
    };
    let len = buf.len() - start - ENTRY_HEADER_BYTES;
    buf.resize(buf.len().next_multiple_of(8), 0);

    let mut header = Vec::with_capacity(ENTRY_HEADER_BYTES);
    put_len(&mut header, len);
    put_u32(&mut header, checksum);
    put_u64(&mut header, entry.id.term.get());
    header.extend_from_slice(&[kind, 0, 0, 0]);
    let check = header_check(entry.id.index, &header);
    put_u32(&mut header, check);
    buf[start..start + ENTRY_HEADER_BYTES].copy_from_slice(&header);
    len
}

/// Covers the header of an entry and binds it to its place in the log.
fn header_check(index: Index, header: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&index.get().to_le_bytes()), header)
}

/// An entry as it stands in a frame.
#[derive(Debug)]
pub(crate) struct StoredEntry<'a> {
    pub(crate) id: EntryId,
    pub(crate) kind: u8,
    checksum: u32,
    pub(crate) data: &'a [u8],
}

impl<'a> StoredEntry<'a> {
    /// Reads the entry at the front. `None` if it is not the entry `index`.
    pub(crate) fn decode(index: Index, reader: &mut ByteReader<'a>) -> Option<Self> {
        let header = reader.bytes(ENTRY_HEADER_BYTES)?;
        let (covered, check) = header.split_last_chunk::<4>()?;
        if u32::from_le_bytes(*check) != header_check(index, covered) {
            return None;
        }
        let mut fields = ByteReader::new(covered);
        let len = usize::try_from(fields.u32()?).ok()?;
        let checksum = fields.u32()?;
        let term = Term(fields.u64()?);
        let kind = fields.u8()?;
        let data = reader.bytes(len)?;
        Some(Self { id: EntryId { index, term }, kind, checksum, data })
    }

    /// Takes what fills up the last word of the data.
    pub(crate) fn skip_padding(&self, reader: &mut ByteReader<'_>) -> Option<()> {
        reader.bytes(self.data.len().next_multiple_of(8) - self.data.len()).map(|_| ())
    }

    /// The membership that it carries; `Some(None)` if it carries none.
    pub(crate) fn membership(&self) -> Option<Option<Arc<Membership>>> {
        match self.kind {
            BLANK | COMMAND | SESSION => Some(None),
            MEMBERSHIP => decode_membership(self.data).map(|found| Some(Arc::new(found))),
            _ => None,
        }
    }

    /// The entry itself, its command sharing `data`. `None` if it is damaged.
    pub(crate) fn into_entry(self, data: Bytes) -> Option<Entry> {
        if crc32c::crc32c(&data) != self.checksum {
            return None;
        }
        let payload = match self.kind {
            BLANK if data.is_empty() => Payload::Blank,
            COMMAND => Payload::Command(data),
            SESSION => Payload::Session(data),
            MEMBERSHIP => Payload::Membership(Arc::new(decode_membership(&data)?)),
            _ => return None,
        };
        let checksum = if matches!(self.kind, COMMAND | SESSION) { self.checksum } else { 0 };
        Some(Entry { id: self.id, payload, checksum })
    }
}

/// That the log starts later: where, and the membership that is in force there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) at: EntryId,
    pub(crate) membership: (EntryId, Arc<Membership>),
}

impl Start {
    /// Where a log starts that goes on from a snapshot.
    pub(crate) fn after(meta: &SnapshotMeta) -> Self {
        Self { at: meta.last, membership: (meta.last, Arc::clone(&meta.membership)) }
    }

    pub(crate) fn encode(&self, buf: &mut Vec<u8>) {
        for id in [self.at, self.membership.0] {
            put_u64(buf, id.index.get());
            put_u64(buf, id.term.get());
        }
        let start = buf.len();
        put_u32(buf, 0);
        encode_membership(&self.membership.1, buf);
        let mut len = Vec::with_capacity(4);
        put_len(&mut len, buf.len() - start - 4);
        buf[start..start + 4].copy_from_slice(&len);
    }

    /// As [`encode`](Self::encode), then zeros up to where entries may follow. `buf` is a frame.
    pub(crate) fn encode_before_entries(&self, buf: &mut Vec<u8>) {
        self.encode(buf);
        buf.resize(buf.len().next_multiple_of(8), 0);
    }

    pub(crate) fn decode(reader: &mut ByteReader<'_>) -> Option<Self> {
        let at = read_id(reader)?;
        let membership_at = read_id(reader)?;
        let len = usize::try_from(reader.u32()?).ok()?;
        let membership = decode_membership(reader.bytes(len)?)?;
        Some(Self { at, membership: (membership_at, Arc::new(membership)) })
    }

    fn decode_before_entries(reader: &mut ByteReader<'_>) -> Option<Self> {
        let before = reader.rest().len();
        let start = Self::decode(reader)?;
        let len = before - reader.rest().len();
        reader.bytes(len.next_multiple_of(8) - len)?;
        Some(start)
    }
}

/// A record that begins a log anew where it was damaged, and holds the hard state.
pub(crate) fn fresh(kind: u8, seq: u64, hard_state: HardState, next_index: Index) -> FrameSpec {
    FrameSpec { flags: HAS_HARD_STATE, ..mark(kind, seq, hard_state, next_index) }
}

/// A record that marks something, without entries.
pub(crate) fn mark(kind: u8, seq: u64, hard_state: HardState, next_index: Index) -> FrameSpec {
    let head = Head { first_index: next_index, hard_state, count: 0 };
    FrameSpec { kind, flags: 0, seq, user: head.encode() }
}

/// A record that was read.
#[derive(Debug)]
pub(crate) enum Record<'a> {
    Entries { head: Head, entries: ByteReader<'a> },
    HardState,
    Start(Start),
    Reset { start: Start, head: Head, entries: ByteReader<'a> },
    Cut { first: Index },
    Seal,
}

/// Reads the record in a frame, and the hard state if it brings a new one. `None` if an intact
/// frame holds what this program would not have written.
pub(crate) fn decode<'a>(frame: &Frame<'a>) -> Option<(Record<'a>, Option<HardState>)> {
    let head = Head::decode(&frame.spec.user)?;
    let record = match frame.spec.kind {
        ENTRIES => Record::Entries { head, entries: ByteReader::new(frame.payload) },
        HARD_STATE => Record::HardState,
        START => Record::Start(Start::decode(&mut ByteReader::new(frame.payload))?),
        RESET => {
            let mut entries = ByteReader::new(frame.payload);
            let start = Start::decode_before_entries(&mut entries)?;
            Record::Reset { start, head, entries }
        }
        SEAL => Record::Seal,
        CUT => Record::Cut { first: head.first_index },
        _ => return None,
    };
    let has_hard_state = frame.spec.flags & HAS_HARD_STATE != 0;
    Some((record, has_hard_state.then_some(head.hard_state)))
}

/// Where the payload of a frame begins.
pub(crate) const PAYLOAD_AT: usize = FRAME_ALIGN;
