//! Reading old entries beside the writer.
//!
//! What the core does not hold in memory any more is read from here, for a follower that lags
//! or a state machine that restarts. Neighbours are read together, and each entry is checked by
//! itself: an error is an error and never the end of the log (pitfall M14).

use std::{
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kontiki_disk::{ByteReader, unmask};
use kontiki_raft::{Bytes, Entry, EntryId, Index};

use crate::{
    LogError,
    entries::{ENTRY_OVERHEAD_BYTES, Entries},
    record::{Location, StoredEntry},
    segment::Segment,
};

/// How much is read at once. Entries share the buffer that they were read into, so this is also
/// what one of them can hold in memory.
const READ_BYTES_MAX: u64 = 1 << 20;

/// Bytes between two entries that are read rather than skipped: a record's header and padding
/// always, a small record that was replaced as well.
const GAP_BYTES_MAX: u64 = 4096;

/// Reads entries that were written, from any thread.
#[derive(Clone, Debug)]
pub struct LogReader {
    shared: Arc<Mutex<Entries>>,
}

impl LogReader {
    pub(crate) const fn new(shared: Arc<Mutex<Entries>>) -> Self {
        Self { shared }
    }

    /// Reads consecutive entries from the start of `range`: at least one, and as many as
    /// `bytes_max` allows.
    ///
    /// # Errors
    ///
    /// [`LogError::Purged`] or [`LogError::NotInLog`] if the first one is not in the log,
    /// [`LogError::Damaged`] if any of them is not what was written; see
    /// [`LogError::is_damage`].
    pub fn read(
        &self,
        range: RangeInclusive<Index>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError> {
        let mut read = Vec::new();
        for span in self.spans(range, bytes_max)? {
            span.read(&mut read)?;
        }
        Ok(read)
    }

    /// The entry before the first, and the last.
    #[must_use]
    pub fn bounds(&self) -> (EntryId, EntryId) {
        let entries = self.entries();
        (entries.start(), entries.last())
    }

    /// What is to be read, in pieces that lie together. Locked for this only: a file that is
    /// unlinked or an entry that is replaced from here on can still be read.
    fn spans(&self, range: RangeInclusive<Index>, bytes_max: usize) -> Result<Vec<Span>, LogError> {
        let entries = self.entries();
        let (mut index, end) = range.into_inner();
        let mut spans: Vec<Span> = Vec::new();
        let bytes_max = u64::try_from(bytes_max).unwrap_or(u64::MAX);
        let mut bytes = 0;
        while index <= end
            && let Some(location) = entries.get(index)
        {
            bytes += ENTRY_OVERHEAD_BYTES + u64::from(location.len);
            if bytes_max < bytes && !spans.is_empty() {
                break;
            }
            match spans.last_mut() {
                Some(span) if span.reaches(location) => span.locations.push(*location),
                _ => {
                    let segment = entries.segments.get(&location.segment);
                    let segment = segment.expect("an entry's segment outlives it");
                    let segment = Arc::clone(segment);
                    spans.push(Span { segment, first: index, locations: vec![*location] });
                }
            }
            index = index.next();
        }
        if spans.is_empty() {
            let (log_start, last) = (entries.start(), entries.last());
            return Err(if index <= log_start.index {
                LogError::Purged { index, log_start }
            } else {
                LogError::NotInLog { index, last }
            });
        }
        Ok(spans)
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Entries that lie together in one segment.
#[derive(Debug)]
struct Span {
    segment: Arc<Segment>,
    first: Index,
    locations: Vec<Location>,
}

impl Span {
    fn start(&self) -> u64 {
        self.locations.first().map_or(0, |first| u64::from(first.offset))
    }

    fn end(&self) -> u64 {
        self.locations.last().map_or(0, |last| u64::from(last.offset) + last.stored_bytes())
    }

    fn reaches(&self, next: &Location) -> bool {
        let (start, end) = (u64::from(next.offset), u64::from(next.offset) + next.stored_bytes());
        next.segment == self.segment.number
            && self.end() <= start
            && start - self.end() <= GAP_BYTES_MAX
            && end - self.start() <= READ_BYTES_MAX
    }

    fn read(&self, read: &mut Vec<Entry>) -> Result<(), LogError> {
        let start = self.start();
        let len = usize::try_from(self.end() - start).expect("a segment fits into memory");
        let mut bytes = vec![0; len];
        let path = &self.segment.path;
        self.segment.file.read_at(start, &mut bytes).map_err(LogError::io("read", path))?;
        let places: Vec<_> = self.locations.iter().map(|location| place(location, start)).collect();
        for (location, place) in self.locations.iter().zip(&places) {
            unmask(self.segment.salt, location.mask, &mut bytes[place.clone()]);
        }
        let bytes = Bytes::from(bytes);
        let mut index = self.first;
        for (location, place) in self.locations.iter().zip(places) {
            let entry = entry(index, location, &bytes.slice(place)).ok_or_else(|| {
                let what = "the entry has changed since it was written";
                LogError::damaged(path, location.offset.into(), what).at(index)
            })?;
            read.push(entry);
            index = index.next();
        }
        Ok(())
    }
}

/// Where the bytes of an entry stand in what was read from `start` on.
fn place(location: &Location, start: u64) -> std::ops::Range<usize> {
    let at = usize::try_from(u64::from(location.offset) - start).expect("inside a segment");
    let len = usize::try_from(location.stored_bytes()).expect("inside a segment");
    at..at + len
}

fn entry(index: Index, location: &Location, bytes: &Bytes) -> Option<Entry> {
    let mut reader = ByteReader::new(bytes);
    let stored = StoredEntry::decode(index, &mut reader)?;
    let is_expected =
        stored.id.term == location.term && stored.kind == location.kind && reader.rest().is_empty();
    let data = bytes.slice_ref(stored.data);
    is_expected.then(|| stored.into_entry(data))?
}
