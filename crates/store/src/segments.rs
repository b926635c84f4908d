//! The segments of a store, and how much of each is still needed.

use std::{
    collections::{BTreeMap, btree_map::Range},
    sync::Arc,
};

use crate::segment::{Place, Segment, SegmentHeader};

/// All segments, by the numbers that they have in this process.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    held: BTreeMap<u32, Held>,
    /// Of all segments together.
    live_bytes: u64,
}

/// A segment.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) header: SegmentHeader,
    /// None while all of it is in memory.
    pub(crate) segment: Option<Arc<Segment>>,
    /// What is durable of its file.
    pub(crate) end: u64,
    /// Bytes of records that the index points to.
    pub(crate) live_bytes: u64,
    /// A copy of others, which still count.
    pub(crate) is_copy: bool,
    pub(crate) graves: Graves,
}

/// What compaction knows of the dead records in a segment that it has copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Graves {
    /// Bytes of deletions that are kept for what lies in older segments (see
    /// [`rewrite`](crate::rewrite)),
    pub(crate) bytes: u64,
    /// and the highest of their revisions.
    pub(crate) upto: i64,
    /// But for those it holds nothing that is dead by this compact revision.
    pub(crate) clean_at: i64,
}

impl Default for Graves {
    fn default() -> Self {
        Self { bytes: 0, upto: 0, clean_at: -1 }
    }
}

impl Held {
    /// A segment of which nothing is on disk.
    pub(crate) fn unwritten(header: SegmentHeader) -> Self {
        let graves = Graves::default();
        Self { header, segment: None, end: 0, live_bytes: 0, is_copy: false, graves }
    }

    /// A segment whose file ends at `end`.
    pub(crate) fn on_disk(segment: Arc<Segment>, end: u64) -> Self {
        let unwritten = Self::unwritten(segment.header);
        Self { segment: Some(segment), end, ..unwritten }
    }

    /// Bytes of records that a copy would hold.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.live_bytes + self.graves.bytes
    }
}

impl Segments {
    pub(crate) fn get(&self, number: u32) -> Option<&Held> {
        self.held.get(&number)
    }

    /// The place in history of a segment that is known.
    pub(crate) fn seq(&self, number: u32) -> u64 {
        self.get(number).map_or(0, |held| held.header.seq)
    }

    /// The file in which a record lies that is not in memory.
    pub(crate) fn file(&self, place: Place) -> Option<&Arc<Segment>> {
        self.get(place.segment)?.segment.as_ref()
    }

    pub(crate) fn insert(&mut self, number: u32, held: Held) {
        self.live_bytes += held.live_bytes;
        let former = self.held.insert(number, held);
        assert!(former.is_none(), "segment {number} is there already");
    }

    /// Lets the copy `number` count in the place of `sources`, to which the index points no more.
    pub(crate) fn replace(&mut self, sources: impl IntoIterator<Item = u32>, number: u32) {
        for source in sources {
            let held = self.held.remove(&source).expect("what was copied is there");
            assert_eq!(held.live_bytes, 0, "the index points to a segment that was rewritten");
        }
        self.held.get_mut(&number).expect("a copy is there").is_copy = false;
    }

    /// Notes what is on disk of a segment.
    pub(crate) fn written(&mut self, number: u32, segment: &Arc<Segment>, end: u64) {
        let held = self.held.entry(number).or_insert_with(|| Held::unwritten(segment.header));
        held.segment.get_or_insert_with(|| Arc::clone(segment));
        held.end = end;
    }

    /// Counts records that the index points to from here on.
    pub(crate) fn grow(&mut self, number: u32, header: SegmentHeader, bytes: u64) {
        let held = self.held.entry(number).or_insert_with(|| Held::unwritten(header));
        held.live_bytes += bytes;
        self.live_bytes += bytes;
    }

    /// Counts a record that the index points to, in a segment that is there.
    pub(crate) fn revive(&mut self, place: Place) {
        let held = self.held.get_mut(&place.segment).expect("the index points to what is there");
        held.live_bytes += u64::from(place.len);
        self.live_bytes += u64::from(place.len);
    }

    /// Counts a record that nothing points to any more.
    pub(crate) fn bury(&mut self, place: Place) {
        let held = self.held.get_mut(&place.segment).expect("the index points to what is there");
        held.live_bytes -= u64::from(place.len);
        self.live_bytes -= u64::from(place.len);
    }

    /// Bytes of records that the index points to.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Bytes that are durable in files.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.held.values().map(|held| held.end).sum()
    }

    pub(crate) fn iter(&self) -> Range<'_, u32, Held> {
        self.held.range(..)
    }

    /// Those that are on disk and count, in the order of history.
    pub(crate) fn in_order(&self) -> Vec<(u32, Held)> {
        let on_disk = self.iter().filter(|(_, held)| held.segment.is_some() && !held.is_copy);
        let mut held: Vec<_> = on_disk.map(|(number, held)| (*number, held.clone())).collect();
        held.sort_unstable_by_key(|(_, held)| held.header.seq);
        held
    }
}
