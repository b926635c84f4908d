//! Opening a store: which segments count, where they end, and the index over them.
//!
//! Segments are read in the order of history and every frame is verified. The first frame that
//! is broken is judged: at a place that was known to be durable it is damage, and the store is
//! not opened; at the very end of history, where a crash may have torn what nobody was promised,
//! it is cut. The replicated log has what was cut.
//!
//! Events lie in the order of revisions and the index is in the order of keys: they are
//! collected, sorted by both processors, and the map is built from its leaves up.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use crate::{
    error::{Fatal, OpenError},
    files::{DurableMark, Files, Found},
    frame::{FRAME_HEADER_BYTES, Position, find_proof},
    index::{KeyEntry, KeyIndex, Older},
    key::Key,
    record::Version,
    segment::{Place, SEGMENT_HEADER_BYTES, Segment, Step},
    segments::{Held, Segments},
    state::State,
    store::StoreOptions,
    tail::Tail,
    writer::Flushed,
};

/// How much is read at a time when something is looked for behind a broken place.
const SEARCH_BYTES: u64 = 4 << 20;

/// A store that has been read, before anybody uses it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) files: Files,
    pub(crate) state: State,
    pub(crate) flushed: Flushed,
    /// Up to this compact revision no version in memory is dead.
    pub(crate) walked: i64,
    pub(crate) options: StoreOptions,
}

/// A version of a key, and where it lies.
type Collected = (Key, Version, Place);

/// The state that the files hold.
pub(crate) fn recover(found: Found, options: StoreOptions) -> Result<Opened, OpenError> {
    let chain = Chain::choose(&found)?;
    let read = chain.read(found.mark, &found.files)?;
    let opened = read.open(found.files, options)?;
    for path in found.checkpoints.values() {
        // Nobody reads it.
        drop(opened.files.remove(path));
    }
    Ok(opened)
}

/// The segments that count, in the order of history.
#[derive(Debug)]
struct Chain {
    segments: Vec<Arc<Segment>>,
}

impl Chain {
    /// Chooses from what lies there, and removes what others stand for.
    fn choose(found: &Found) -> Result<Self, OpenError> {
        let Found { files, mark, segments: paths, .. } = found;
        let mut newest: BTreeMap<u64, &PathBuf> = BTreeMap::new();
        let mut former = Vec::new();
        for ((seq, _), path) in paths {
            former.extend(newest.insert(*seq, path));
        }
        let mut chain = Self { segments: Vec::new() };
        let last = newest.keys().next_back().copied();
        for (seq, path) in newest {
            let covered_to = chain.segments.last().map_or(0, |before| before.header.last_seq);
            if seq <= covered_to {
                former.push(path);
                continue;
            }
            match Segment::open(&*files.disk, path)? {
                Some(segment) => chain.push(segment, files.epoch, seq)?,
                // A crash while it was made: nothing in it was promised.
                None if Some(seq) == last && mark.segment_seq < seq => former.push(path),
                None => {
                    return Err(OpenError::damaged(path, 0, "its header is not what was written"));
                }
            }
        }
        let end = chain.segments.last().map_or(0, |last| last.header.last_seq);
        if end < mark.segment_seq {
            let missing = files.segment_path(&files.header(end + 1, 0));
            return Err(OpenError::damaged(&missing, 0, "the file is missing"));
        }
        for path in former {
            let removed = files.remove(path);
            removed.map_err(|e| OpenError::Io { path: path.clone(), source: Arc::new(e) })?;
        }
        Ok(chain)
    }

    /// Adds the next segment, which must follow the last one.
    fn push(&mut self, segment: Segment, epoch: u64, seq: u64) -> Result<(), OpenError> {
        let header = segment.header;
        let before = self.segments.last().map_or(0, |before| before.header.last_seq);
        let refuse = |what: &str| Err(OpenError::damaged(&segment.path, 0, what));
        if header.epoch != epoch || header.seq != seq {
            return refuse("it is another segment than its name says");
        }
        if header.seq != before + 1 {
            return refuse("the segment before it is missing");
        }
        self.segments.push(Arc::new(segment));
        Ok(())
    }

    /// Reads all frames.
    fn read(self, mark: DurableMark, files: &Files) -> Result<Read, OpenError> {
        let mut read = Read::default();
        let count = self.segments.len();
        for (at, segment) in self.segments.into_iter().enumerate() {
            let number = u32::try_from(at).expect("fewer files than that") + 1;
            if segment.header.prev_frame_seq != read.frame_seq {
                let what = "frames before it are missing";
                return Err(OpenError::damaged(&segment.path, 0, what));
            }
            let is_last = at + 1 == count;
            let end = read.segment(number, &segment, is_last, mark, files)?;
            read.segments.push((number, segment, end));
        }
        if read.frame_seq < mark.frame_seq {
            let path = read.segments.last().map_or_else(PathBuf::new, |last| last.1.path.clone());
            return Err(OpenError::damaged(&path, 0, "frames that were durable are missing"));
        }
        Ok(read)
    }
}

/// What was read.
#[derive(Debug, Default)]
struct Read {
    /// With their numbers and ends.
    segments: Vec<(u32, Arc<Segment>, u64)>,
    versions: Vec<Collected>,
    /// The last frame, and the state after it.
    frame_seq: u64,
    position: Position,
}

impl Read {
    /// Reads a segment. Returns where it ends.
    fn segment(
        &mut self,
        number: u32,
        segment: &Segment,
        is_last: bool,
        mark: DurableMark,
        files: &Files,
    ) -> Result<u64, OpenError> {
        let fatal = |fatal| OpenError::from_fatal(&segment.path, fatal);
        let len = segment.file.len();
        let len = len.map_err(|error| OpenError::unreadable(&segment.path, 0, &error))?;
        let mut scan = segment.scan(SEGMENT_HEADER_BYTES as u64, len);
        let broken = loop {
            match scan.step().map_err(fatal)? {
                Step::Frame(offset, header, frame) => {
                    if header.seq <= self.frame_seq {
                        let what = "a frame is out of order";
                        return Err(fatal(segment.damaged(offset, what)));
                    }
                    (self.frame_seq, self.position) = (header.seq, header.position);
                    self.collect(segment, number, offset, &header, frame).map_err(fatal)?;
                }
                Step::End => break None,
                Step::Broken(offset, what) => break Some((offset, what)),
            }
        };
        let end = broken.map_or(len, |(offset, _)| offset);
        let durable_end = match mark.segment_seq {
            seq if seq == segment.header.seq => mark.offset,
            seq if segment.header.seq < seq => u64::MAX,
            _ => 0,
        };
        if let Some((offset, what)) = broken {
            if !is_last || offset < durable_end {
                return Err(fatal(segment.damaged(offset, what)));
            }
            self.judge(segment, offset, len, what)?;
        }
        if is_last && (end < len || durable_end < end) {
            settle(segment, durable_end.min(end), end, files).map_err(fatal)?;
        }
        Ok(end)
    }

    /// Whether a later frame proves that the one at `offset`, which is broken, was durable.
    fn judge(&self, segment: &Segment, offset: u64, len: u64, what: &str) -> Result<(), OpenError> {
        let salt = segment.header.salt;
        let (mut at, mut buf) = (offset, Vec::new());
        loop {
            let step = (len - at).min(SEARCH_BYTES);
            buf.resize(usize::try_from(step).expect("a few megabytes"), 0);
            let is_readable = segment.file.read_at(at, &mut buf).is_ok();
            let proof = is_readable.then(|| find_proof(&buf, salt, self.frame_seq)).flatten();
            if let Some((_, later)) = proof {
                let what = format!("{what}, though it was durable when frame {} came", later.seq);
                return Err(OpenError::damaged(&segment.path, offset, what));
            }
            if at + step == len {
                return Ok(());
            }
            at += step - FRAME_HEADER_BYTES as u64; // a header may cross the border
        }
    }

    fn collect(
        &mut self,
        segment: &Segment,
        number: u32,
        offset: u64,
        header: &crate::frame::FrameHeader,
        frame: &[u8],
    ) -> Result<(), Fatal> {
        let mut at = offset + FRAME_HEADER_BYTES as u64;
        for item in header.records(frame) {
            let (event, record) = item.map_err(|what| segment.damaged(at, what))?;
            let place = place_of(number, at, record.len());
            let place = place.ok_or_else(|| segment.damaged(at, "it lies too far away"))?;
            self.versions.push((event.key.into(), event.version, place));
            at += record.len() as u64;
        }
        Ok(())
    }

    /// Builds the state.
    fn open(mut self, files: Files, options: StoreOptions) -> Result<Opened, OpenError> {
        let position = self.position;
        sort(&mut self.versions);
        let mut index =
            KeyIndex::from_sorted(Entries::new(self.versions), options.value_cache_bytes);
        let mut segments = Segments::default();
        for (number, segment, end) in &self.segments {
            segments.insert(*number, Held::on_disk(Arc::clone(segment), *end));
        }
        let mut cursor = None;
        loop {
            let dead = &mut Vec::new();
            cursor = index.compact(cursor.as_deref(), 4096, position.compact_revision, dead);
            if cursor.is_none() {
                break;
            }
        }
        index.places(&mut |place| segments.revive(place));
        let last = (self.frame_seq, position);
        let mut mark = DurableMark { frame_seq: self.frame_seq, ..DurableMark::default() };
        let tail = match self.segments.last() {
            Some((number, segment, end)) => {
                let header = segment.header;
                (mark.segment_seq, mark.offset) = (header.last_seq, *end);
                let is_open = header.generation == 0 && *end < options.segment_bytes;
                match u32::try_from(*end) {
                    Ok(end) if is_open => {
                        let at = (*number, header, end);
                        Tail::new(files.clone(), at, last, options.segment_bytes)
                    }
                    _ => {
                        let after = (header.last_seq, number + 1);
                        Tail::fresh(files.clone(), after, last, options.segment_bytes)
                    }
                }
            }
            None => Tail::fresh(files.clone(), (0, 1), last, options.segment_bytes),
        };
        let state = State {
            index,
            tail,
            segments,
            position,
            durable_frame: self.frame_seq,
            answer_bytes_max: crate::measure::ANSWER_BYTES_MAX,
        };
        let told = DurableMark::default();
        let flushed = Flushed { position, mark, told, since_checkpoint: 0 };
        Ok(Opened { files, state, flushed, walked: position.compact_revision, options })
    }
}

/// Where a record lies, if a place can say so.
pub(crate) fn place_of(segment: u32, offset: u64, len: usize) -> Option<Place> {
    Some(Place { segment, offset: u32::try_from(offset).ok()?, len: u32::try_from(len).ok()? })
}

/// Cuts what is behind `end`, and makes sure that what is before it is on the disk and not in
/// the memory of the kernel alone, where a failed sync of an earlier life may have left it.
fn settle(segment: &Segment, from: u64, end: u64, files: &Files) -> Result<(), Fatal> {
    let io = |error| Fatal::io("mend the end of", error);
    segment.file.set_len(end).map_err(io)?;
    let (mut at, mut buf) = (from, Vec::new());
    while at < end {
        let step = (end - at).min(SEARCH_BYTES);
        buf.resize(usize::try_from(step).expect("a few megabytes"), 0);
        segment.file.read_at(at, &mut buf).map_err(|error| segment.unreadable(at, &error))?;
        segment.file.write_at(at, &buf).map_err(io)?;
        at += step;
    }
    segment.file.sync_data().map_err(io)?;
    files.sync_dir().map_err(io)
}

/// Sorts by key and revision.
fn sort(versions: &mut [Collected]) {
    versions.sort_unstable_by(|(a_key, a, _), (b_key, b, _)| {
        a_key.cmp(b_key).then_with(|| a.at.cmp(&b.at))
    });
}

/// Entries from sorted versions.
struct Entries {
    versions: std::iter::Peekable<std::vec::IntoIter<Collected>>,
}

impl Entries {
    fn new(versions: Vec<Collected>) -> Self {
        Self { versions: versions.into_iter().peekable() }
    }
}

impl Iterator for Entries {
    type Item = (Key, KeyEntry);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, mut newest, mut place) = self.versions.next()?;
        let mut older = Vec::new();
        while let Some((_, version, at)) = self.versions.next_if(|(next, ..)| *next == key) {
            older.push(Older::new(newest.at, place, newest.is_tombstone()));
            (newest, place) = (version, at);
        }
        Some((key, KeyEntry::restored(&newest, place, older)))
    }
}
