//! The log as far as its records were read, and what each record does to it.

use std::sync::Arc;

use kontiki_disk::{
    ByteReader, DiskError, DiskFile, Frame, SEGMENT_HEADER_BYTES, Scan, SegmentHeader,
};
use kontiki_raft::{EntryId, HardState, Index, Membership};

use crate::{
    LogError,
    entries::Entries,
    record::{self, Head, Location, PAYLOAD_AT, Record, StoredEntry},
    recover::{RecoveryReport, Seal, SegmentEnd},
    segment::{Segment, SegmentStart},
};

/// A place between two records: what is before it is intact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    pub(crate) offset: u64,
    /// Number and checksum of the record before.
    pub(crate) seq: u64,
    pub(crate) crc: u32,
}

/// The log as far as it was read.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) entries: Entries,
    pub(crate) hard_state: HardState,
    /// While it is false the segments before the first that is left may have been purged or
    /// lost. A later record tells which.
    pub(crate) is_start_known: bool,
    /// The first segment that was needed when that record was written: those before it are
    /// leftovers. Later ones may be of no use today, but the record may rely on them.
    pub(crate) start_segment: Option<u32>,
    /// Behind the last record that was carried out, and before a seal. `None` while nothing was
    /// found good.
    pub(crate) good: Option<Place>,
    pub(crate) report: RecoveryReport,
}

impl Replay {
    /// Of the log of a cluster that began with this membership, before anything was read.
    pub(crate) fn new(genesis: Arc<Membership>, is_start_known: bool) -> Self {
        Self {
            entries: Entries::new(EntryId::ZERO, (EntryId::ZERO, genesis)),
            hard_state: HardState::default(),
            is_start_known,
            start_segment: None,
            good: None,
            report: RecoveryReport::default(),
        }
    }

    /// Takes the state of the log before the first segment from its header.
    pub(crate) fn begin(
        &mut self,
        segment: &Segment,
        header: &SegmentHeader,
    ) -> Result<(), LogError> {
        let start = SegmentStart::decode(&header.user);
        let start = start.ok_or_else(|| LogError::damaged(&segment.path, 0, "bad header"))?;
        let genesis = self.entries.membership_at(Index::ZERO);
        self.entries.start_at(start.last, genesis);
        self.hard_state = start.hard_state;
        self.good = Some(Place {
            segment: segment.number,
            offset: SEGMENT_HEADER_BYTES,
            seq: header.prev_frame_seq,
            crc: header.prev_frame_crc,
        });
        Ok(())
    }

    pub(crate) fn segment(
        &mut self,
        segment: Arc<Segment>,
        bytes: u64,
        header: &SegmentHeader,
    ) -> Result<SegmentEnd, LogError> {
        let (file, path): (&dyn DiskFile, _) = (&*segment.file, &segment.path);
        let mut is_sealed = false;
        let mut last_frame = None;
        let mut scan = Scan::new(file, path, header);
        let at_end = |replay: &Self, error: DiskError| {
            LogError::from(error).at(replay.entries.last().index.next())
        };
        while let Some(frame) = scan.next_frame().map_err(|error| at_end(self, error))? {
            last_frame = Some(frame.offset);
            if is_sealed {
                return Err(LogError::damaged(path, frame.offset, "a record follows the seal"));
            }
            is_sealed = frame.spec.kind == record::SEAL;
            let next = self.entries.last().index.next();
            self.record(&frame, segment.number)
                .map_err(|what| LogError::damaged(path, frame.offset, what).at(next))?;
            if !is_sealed {
                self.good = Some(Place {
                    segment: segment.number,
                    offset: frame.offset + (PAYLOAD_AT + frame.payload.len()) as u64,
                    seq: frame.spec.seq,
                    crc: frame.crc,
                });
            }
            self.report.records += 1;
            self.report.bytes += (PAYLOAD_AT + frame.payload.len()) as u64;
        }
        let tail = scan.finish().map_err(|error| at_end(self, error))?;
        self.entries.segments.insert(segment.number, Arc::clone(&segment));
        let next_index = self.entries.last().index.next();
        let seal =
            (!is_sealed).then(|| Seal::new(&tail, segment.salt, self.hard_state, next_index));
        Ok(SegmentEnd { segment, bytes, tail, is_sealed, last_frame, seal })
    }

    /// Carries out what one record says. The error says what is wrong with it.
    fn record(&mut self, frame: &Frame<'_>, segment: u32) -> Result<(), String> {
        let (record, hard_state) = record::decode(frame)
            .ok_or("an intact record holds what no version of this program writes")?;
        match record {
            Record::Entries { head, entries } => self.entries(frame, segment, &head, entries)?,
            Record::HardState | Record::Seal => {}
            Record::Start(start) => self.start(start, segment)?,
            Record::Reset { start, head, entries } => {
                let known = self.entries.start();
                if self.is_start_known && start.at.index < known.index {
                    return Err(format!("a reset to {}, but {known} was purged", start.at));
                }
                if head.first_index != start.at.index.next() {
                    return Err(format!("{} does not follow {}", head.first_index, start.at));
                }
                // Not known before all of it was carried out: what there was is gone already.
                self.is_start_known = false;
                self.entries.reset(start.at, start.membership);
                self.entries(frame, segment, &head, entries)?;
                self.is_start_known = true;
                self.start_segment = Some(segment);
            }
            Record::Cut { first } => {
                self.go_back_to(first)?;
                self.entries.truncate(first);
            }
        }
        self.hard_state = hard_state.unwrap_or(self.hard_state);
        Ok(())
    }

    /// Where the log starts is not known while only its later segments were read: what is
    /// replaced may lie before.
    fn go_back_to(&mut self, first: Index) -> Result<(), String> {
        let start = self.entries.start();
        if first <= start.index {
            if self.is_start_known || first == Index::ZERO {
                return Err(format!("entry {first} is replaced after {start} was purged"));
            }
            self.entries.restart_at(first);
        }
        Ok(())
    }

    fn entries(
        &mut self,
        frame: &Frame<'_>,
        segment: u32,
        head: &Head,
        mut reader: ByteReader<'_>,
    ) -> Result<(), String> {
        let first = head.first_index;
        self.go_back_to(first)?;
        let last = self.entries.last();
        if last.index.next() < first {
            return Err(format!("entries between {last} and index {first} are missing"));
        }
        self.entries.truncate(first);
        let payload_len = frame.payload.len();
        for _ in 0..head.count {
            let last = self.entries.last();
            let index = last.index.next();
            let offset = PAYLOAD_AT + payload_len - reader.rest().len();
            let (entry, membership) = decode_entry(index, &mut reader)
                .ok_or_else(|| format!("entry {index} is not what its record says"))?;
            if entry.id.term < last.term {
                return Err(format!("entry {} follows {last}", entry.id));
            }
            let location = Location {
                term: entry.id.term,
                segment,
                offset: u32::try_from(frame.offset + offset as u64)
                    .map_err(|_| "a segment of 4 GiB or more")?,
                len: u32::try_from(entry.data.len()).map_err(|_| "an entry of 4 GiB or more")?,
                kind: entry.kind,
                mask: frame.mask,
            };
            self.entries.push(location, membership);
        }
        Ok(())
    }

    fn start(&mut self, start: record::Start, segment: u32) -> Result<(), String> {
        let known = self.entries.start();
        if start.at.index < known.index {
            if self.is_start_known {
                return Err(format!("the log starts after {}, but {known} was purged", start.at));
            }
            // An older one: what it left in the segments before has been replaced since, or is
            // missing. The newest one tells.
            return Ok(());
        }
        let is_placeholder = !self.is_start_known && start.at.index == known.index;
        if let Some(found) = self.entries.id(start.at.index)
            && found != start.at
            && !is_placeholder
        {
            return Err(format!("the log starts after {}, but holds {found} there", start.at));
        }
        self.entries.start_at(start.at, start.membership);
        self.is_start_known = true;
        self.start_segment = Some(self.entries.first_segment_after(start.at.index, segment));
        Ok(())
    }
}

type Decoded<'a> = (StoredEntry<'a>, Option<Arc<Membership>>);

fn decode_entry<'a>(index: Index, reader: &mut ByteReader<'a>) -> Option<Decoded<'a>> {
    let entry = StoredEntry::decode(index, reader)?;
    entry.skip_padding(reader)?;
    let membership = entry.membership()?;
    Some((entry, membership))
}

#[cfg(test)]
mod tests {
    use kontiki_disk::FrameSpec;
    use kontiki_raft::{Entry, NodeId, Payload, SnapshotMeta, WriteBatch};

    use super::*;
    use crate::record::{
        CUT, ENTRIES, HARD_STATE, Merged, RESET, SEAL, START, Start, encode_entry, mark,
    };

    fn replay() -> Replay {
        let genesis = Arc::new(Membership::of_voters([(NodeId(1), "a")]));
        let mut replay = Replay::new(Arc::clone(&genesis), false);
        replay.entries = Entries::new(EntryId::new(2, 1), (EntryId::ZERO, genesis));
        replay
    }

    fn replayed(spec: FrameSpec, payload: &[u8]) -> Result<(), String> {
        replay().record(&Frame { offset: 4096, crc: 1, mask: 0, spec, payload }, 1)
    }

    /// A record of entries, one that resets the log, and one that tells of a later start.
    fn records() -> [(FrameSpec, Vec<u8>); 3] {
        let membership = Arc::new(Membership::of_voters([(NodeId(1), "a"), (NodeId(2), "b")]));
        let payloads = [
            Payload::Blank,
            Payload::Command(vec![7; 9].into()),
            Payload::Membership(Arc::clone(&membership)),
        ];
        let entries: Vec<Entry> = (3..)
            .zip(payloads)
            .map(|(index, payload)| Entry::new(EntryId::new(index, 4), payload))
            .collect();
        let mut encoded = Vec::new();
        for entry in &entries {
            encode_entry(entry, &mut encoded);
        }
        let batches = [WriteBatch { hard_state: None, entries, ..WriteBatch::default() }];
        let spec = Merged::new(&batches).spec(5, HardState::default(), Index(3));

        let mut start = Vec::new();
        let at = EntryId::new(9, 4);
        let entry = Start { at, membership: (EntryId::new(5, 4), membership) };
        entry.encode(&mut start);
        let mut reset = Vec::new();
        entry.encode_before_entries(&mut reset);
        let first = Entry::new(EntryId::new(10, 4), Payload::Blank);
        encode_entry(&first, &mut reset);
        let meta = SnapshotMeta { last: at, membership: entry.membership.1 };
        let batches =
            [WriteBatch { entries: vec![first], reset_to: Some(meta), ..WriteBatch::default() }];
        let reset_spec = Merged::new(&batches).spec(5, HardState::default(), Index(3));
        [
            (spec, encoded),
            (reset_spec, reset),
            (mark(START, 5, HardState::default(), Index(3)), start),
        ]
    }

    /// Pitfall D15, for the disk's bytes. A checksum that fits is no proof of sense: whatever
    /// stands in a record, there is an answer.
    #[test]
    fn hostile_records_with_fitting_checksums_never_panic() {
        for (spec, payload) in records() {
            assert_eq!(replayed(spec, &payload), Ok(()));
            for kind in [ENTRIES, HARD_STATE, START, SEAL, RESET, CUT, 0, 99] {
                drop(replayed(FrameSpec { kind, ..spec }, &payload));
                for len in 0..payload.len() {
                    drop(replayed(FrameSpec { kind, ..spec }, &payload[..len]));
                }
            }
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                for at in 0..payload.len() {
                    let mut payload = payload.clone();
                    payload[at..].iter_mut().take(8).for_each(|byte| *byte = value);
                    drop(replayed(spec, &payload));
                }
                for at in 0..spec.user.len() {
                    let mut spec = spec;
                    spec.user[at..].iter_mut().take(8).for_each(|byte| *byte = value);
                    drop(replayed(spec, &payload));
                }
            }
        }
    }

    #[test]
    fn an_entry_is_bound_to_its_place() {
        let (mut spec, payload) = records()[0].clone();
        spec.user[0] = 2; // one lower
        assert!(replayed(spec, &payload).unwrap_err().contains("entry 2 is not"));
    }
}
