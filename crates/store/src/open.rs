//! Opening a store: which segments count, where they end, and the index over them.
//!
//! Frames are read in the order of history, after the newest checkpoint of the index or, without
//! one, from the beginning; each is verified. The first frame that is broken is judged: at a
//! place that was known to be durable it is damage, and the store is not opened; at the very end
//! of history, where a crash may have torn what nobody was promised, it is cut. The replicated
//! log has what was cut.
//!
//! Events lie in the order of revisions and the index is in the order of keys: they are
//! collected, sorted by both processors, and the map is built from its leaves up.

use std::{
    collections::BTreeMap,
    io,
    iter::Peekable,
    path::{Path, PathBuf},
    sync::Arc,
    thread, vec,
};

use kontiki_disk::DiskFile;

use crate::{
    checkpoint::{Loaded, load},
    error::{Fatal, OpenError},
    files::{DurableMark, Files, Found},
    frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, FrameHeader, Position, find_proof},
    index::{KeyEntry, KeyIndex, Older},
    key::Key,
    record::Version,
    segment::{Place, SEGMENT_HEADER_BYTES, Segment, Step},
    segments::{Held, Segments},
    state::State,
    store::{StoreOptions, Torn},
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
    /// What was cut at the end.
    pub(crate) torn: Option<Torn>,
}

/// A version of a key, and where it lies.
type Collected = (Key, Version, Place);

/// The state that the files hold.
pub(crate) fn recover(found: Found, options: StoreOptions) -> Result<Opened, OpenError> {
    let chain = Chain::choose(&found)?;
    let threads = if options.background { 2 } else { 1 };
    let Found { files, mark, checkpoints, .. } = found;
    let newest = checkpoints.values().next_back();
    let loaded = newest.and_then(|path| {
        load(&files, path, threads, &|seq, generation, end| chain.number(seq, generation, end))
    });
    // What a checkpoint points to was durable, whether `STATE` has heard of it or not.
    let mark = loaded.as_ref().map_or(mark, |loaded| mark.max(loaded.rests_on()));
    let with_checkpoint = match loaded {
        Some(mut loaded) => {
            let entries = std::mem::take(&mut loaded.entries);
            let read = chain.read(mark, &files, Some(&loaded), threads)?;
            read.open(&files, &options, Some(entries))
        }
        None => None,
    };
    let built = match with_checkpoint {
        Some(built) => Some(built),
        None => chain.read(mark, &files, None, threads)?.open(&files, &options, None),
    };
    let (state, flushed, torn) = built.expect("every event that was read has its place");
    if let Some(unfinished) = &chain.unfinished {
        remove(&files, &unfinished.path)?;
    }
    let walked = state.position.compact_revision;
    Ok(Opened { files, state, flushed, walked, options, torn })
}

/// The segments that count, in the order of history.
#[derive(Debug)]
struct Chain {
    segments: Vec<Arc<Segment>>,
    /// What follows them without a header, which a crash may have kept from being written.
    unfinished: Option<Unfinished>,
}

/// A file that should be a segment and has no header.
#[derive(Debug)]
struct Unfinished {
    path: PathBuf,
    /// Of the frames that may be in it.
    salt: u32,
}

impl Chain {
    /// Chooses from what lies there, and removes what others stand for.
    fn choose(found: &Found) -> Result<Self, OpenError> {
        let Found { files, mark, segments: paths, .. } = found;
        let mut newest: BTreeMap<u64, (u32, &PathBuf)> = BTreeMap::new();
        let mut former = Vec::new();
        for ((seq, generation), path) in paths {
            former.extend(newest.insert(*seq, (*generation, path)).map(|(_, path)| path));
        }
        let mut chain = Self { segments: Vec::new(), unfinished: None };
        let last = newest.keys().next_back().copied();
        for (seq, (generation, path)) in newest {
            let covered_to = chain.segments.last().map_or(0, |before| before.header.last_seq);
            if seq <= covered_to {
                former.push(path);
                continue;
            }
            match Segment::open(&*files.disk, path)? {
                Some(segment) => chain.push(segment, files.epoch, seq)?,
                // A crash while it was made, unless a frame in it says otherwise. A copy gets
                // its name when all of it is durable.
                None if Some(seq) == last && mark.segment_seq < seq && generation == 0 => {
                    let salt = files.header(seq, 0).salt;
                    chain.unfinished = Some(Unfinished { path: path.clone(), salt });
                }
                None => {
                    return Err(OpenError::damaged(path, 0, "its header is not what was written"));
                }
            }
        }
        // Copies are made of segments that others follow.
        if let Some(copy) = chain.segments.last().filter(|last| 0 < last.header.generation) {
            let missing = files.segment_path(&files.header(copy.header.last_seq + 1, 0));
            return Err(OpenError::damaged(&missing, 0, "the file is missing"));
        }
        for path in former {
            remove(files, path)?;
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

    /// The number of a segment of this generation and at least this length, or 0.
    fn number(&self, seq: u64, generation: u32, end: u64) -> u32 {
        let found = self.segments.binary_search_by_key(&seq, |segment| segment.header.seq);
        let Ok(at) = found else { return 0 };
        let segment = &self.segments[at];
        let is_long_enough = segment.file.len().is_ok_and(|len| end <= len);
        let is_it = segment.header.generation == generation && is_long_enough;
        if is_it { number_of(at) } else { 0 }
    }

    /// Reads all frames that are not in a checkpoint.
    fn read(
        &self,
        mark: DurableMark,
        files: &Files,
        loaded: Option<&Loaded>,
        threads: usize,
    ) -> Result<Read, OpenError> {
        let end = self.segments.last().map_or(0, |last| last.header.last_seq);
        if end < mark.segment_seq {
            let missing = files.segment_path(&files.header(end + 1, 0));
            return Err(OpenError::damaged(&missing, 0, "the file is missing"));
        }
        let jobs: Vec<Job<'_>> = (0..self.segments.len()).map(|at| self.job(at, loaded)).collect();
        let scanned = scan_all(&jobs, threads);
        let begin = loaded.map(|loaded| (loaded.mark.frame_seq, loaded.position));
        let (frame_seq, position) = begin.unwrap_or_default();
        let mut read = Read { frame_seq, position, ..Read::default() };
        let mut before = Some(0);
        let count = jobs.len();
        for (at, (job, scanned)) in jobs.into_iter().zip(scanned).enumerate() {
            let segment = job.segment;
            if before.is_some_and(|before| before != segment.header.prev_frame_seq) {
                return Err(OpenError::damaged(&segment.path, 0, "frames before it are missing"));
            }
            let scanned = scanned.map_err(|e| OpenError::from_fatal(&segment.path, e))?;
            before = scanned.last.map(|(seq, _)| seq).or(job.after_seq);
            read.scanned_bytes += job.from.map_or(0, |from| scanned.len.saturating_sub(from));
            read.add(segment, scanned, at + 1 == count, mark, files)?;
        }
        if read.frame_seq < mark.frame_seq {
            let path = read.segments.last().map_or_else(PathBuf::new, |last| last.0.path.clone());
            return Err(OpenError::damaged(&path, 0, "frames that were durable are missing"));
        }
        if let Some(unfinished) = &self.unfinished {
            unfinished.judge(files, read.frame_seq)?;
        }
        Ok(read)
    }

    /// What has to be read of a segment.
    fn job(&self, at: usize, loaded: Option<&Loaded>) -> Job<'_> {
        let segment = &self.segments[at];
        let header = &segment.header;
        let number = number_of(at);
        let whole = Job {
            segment,
            number,
            from: Some(SEGMENT_HEADER_BYTES as u64),
            after_seq: Some(header.prev_frame_seq),
        };
        let Some(loaded) = loaded else { return whole };
        let known = loaded.segments.get(&header.seq);
        let is_known = known.is_some_and(|(generation, _)| *generation == header.generation);
        let Loaded { mark, .. } = loaded;
        if !is_known || mark.segment_seq < header.seq {
            whole
        } else if mark.segment_seq <= header.last_seq {
            Job { from: Some(mark.offset), after_seq: Some(mark.frame_seq), ..whole }
        } else {
            Job { from: None, after_seq: None, ..whole }
        }
    }
}

fn number_of(at: usize) -> u32 {
    u32::try_from(at).expect("fewer files than that") + 1
}

/// A segment that is to be read.
#[derive(Clone, Copy, Debug)]
struct Job<'a> {
    segment: &'a Arc<Segment>,
    number: u32,
    /// None if all of it is in the checkpoint.
    from: Option<u64>,
    /// The last frame before that, if it is known.
    after_seq: Option<u64>,
}

/// What a segment holds.
#[derive(Debug, Default)]
struct Scanned {
    versions: Vec<Collected>,
    /// The last frame that is intact, and the state after it.
    last: Option<(u64, Position)>,
    len: u64,
    /// Where a frame is broken, and how.
    broken: Option<(u64, &'static str)>,
}

/// Reads segments, on as many threads.
fn scan_all(jobs: &[Job<'_>], threads: usize) -> Vec<Result<Scanned, Fatal>> {
    let share = jobs.len().div_ceil(threads).max(1);
    if threads <= 1 || jobs.len() <= 1 {
        return jobs.iter().map(Job::scan).collect();
    }
    thread::scope(|scope| {
        let running: Vec<_> = jobs
            .chunks(share)
            .map(|jobs| scope.spawn(|| jobs.iter().map(Job::scan).collect::<Vec<_>>()))
            .collect();
        running.into_iter().flat_map(|share| share.join().expect("a scan does not panic")).collect()
    })
}

impl Job<'_> {
    fn scan(&self) -> Result<Scanned, Fatal> {
        let segment = self.segment;
        let len = segment.file.len().map_err(|error| segment.unreadable(0, &error))?;
        let mut scanned = Scanned { len, ..Scanned::default() };
        let Some(from) = self.from else { return Ok(scanned) };
        let mut last = self.after_seq.unwrap_or_default();
        let mut scan = segment.scan(from, len);
        loop {
            match scan.step()? {
                Step::Frame(offset, header, frame) => {
                    if header.seq <= last {
                        return Err(segment.damaged(offset, "a frame is out of order"));
                    }
                    last = header.seq;
                    scanned.last = Some((last, header.position));
                    scanned.collect(segment, (self.number, offset), &header, frame)?;
                }
                Step::End => return Ok(scanned),
                Step::Broken(offset, what) => {
                    scanned.broken = Some((offset, what));
                    return Ok(scanned);
                }
            }
        }
    }
}

impl Scanned {
    fn collect(
        &mut self,
        segment: &Segment,
        (number, offset): (u32, u64),
        header: &FrameHeader,
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
}

/// What was read.
#[derive(Debug, Default)]
struct Read {
    /// With their ends.
    segments: Vec<(Arc<Segment>, u64)>,
    /// In the order of history, segment by segment.
    versions: Vec<Vec<Collected>>,
    /// The last frame, and the state after it.
    frame_seq: u64,
    position: Position,
    /// The length of what was not in a checkpoint.
    scanned_bytes: u64,
    torn: Option<Torn>,
}

impl Read {
    /// Adds the next segment, and judges where it is broken.
    fn add(
        &mut self,
        segment: &Arc<Segment>,
        scanned: Scanned,
        is_last: bool,
        mark: DurableMark,
        files: &Files,
    ) -> Result<(), OpenError> {
        let fatal = |fatal| OpenError::from_fatal(&segment.path, fatal);
        let Scanned { versions, last, len, broken } = scanned;
        if let Some((seq, position)) = last.filter(|(seq, _)| self.frame_seq < *seq) {
            (self.frame_seq, self.position) = (seq, position);
        }
        let header = &segment.header;
        let end = broken.map_or(len, |(offset, _)| offset);
        let durable_end = match mark.segment_seq {
            seq if seq == header.last_seq => mark.offset,
            seq if header.last_seq < seq => u64::MAX,
            _ => 0,
        };
        if let Some((offset, what)) = broken {
            if !is_last || offset < durable_end {
                return Err(fatal(segment.damaged(offset, what)));
            }
            self.judge(segment, offset, len, what)?;
        } else if header.generation == 0 && header.last_seq == mark.segment_seq && len < mark.offset
        {
            // A checkpoint may stand for what is gone; whoever takes over the state needs it.
            return Err(fatal(segment.damaged(len, "it ends before what was durable")));
        }
        if is_last && (end < len || durable_end < end) {
            settle(segment, durable_end.min(end), end, files).map_err(fatal)?;
            let bytes = len - end;
            self.torn =
                (0 < bytes).then(|| Torn { path: segment.path.clone(), offset: end, bytes });
        }
        self.segments.push((Arc::clone(segment), end));
        self.versions.push(versions);
        Ok(())
    }

    /// Whether a later frame proves that the one at `offset`, which is broken, was durable.
    fn judge(&self, segment: &Segment, offset: u64, len: u64, what: &str) -> Result<(), OpenError> {
        let salt = segment.header.salt;
        let proof = later_proof(&*segment.file, salt, (offset, len), self.frame_seq);
        let proof =
            proof.map_err(|(at, error)| OpenError::unreadable(&segment.path, at, &error))?;
        proof.map_or(Ok(()), |later| {
            let what = format!("{what}, though it was durable when frame {} came", later.seq);
            Err(OpenError::damaged(&segment.path, offset, what))
        })
    }

    /// Builds the state, on top of what a checkpoint holds. `None` if that points to what is
    /// not there.
    fn open(
        self,
        files: &Files,
        options: &StoreOptions,
        entries: Option<Vec<Vec<(Key, KeyEntry)>>>,
    ) -> Option<(State, Flushed, Option<Torn>)> {
        let Self { segments: read, versions, frame_seq, position, scanned_bytes, torn } = self;
        let cache = options.value_cache_bytes;
        let mut index = match entries {
            Some(entries) => {
                let mut index = KeyIndex::from_sorted(entries.into_iter().flatten(), cache);
                for (key, version, place) in versions.iter().flatten() {
                    index.replay(key, version, *place);
                }
                index
            }
            None => KeyIndex::from_sorted(sorted(versions, options.background), cache),
        };
        index.compact_all(position.compact_revision);
        let mut segments = Segments::default();
        for (at, (segment, end)) in read.iter().enumerate() {
            segments.insert(number_of(at), Held::on_disk(Arc::clone(segment), *end));
        }
        let mut is_complete = true;
        index.places(&mut |place| match place.segment {
            0 => is_complete = false,
            _ => segments.revive(place),
        });
        if !is_complete {
            return None;
        }
        let (tail, mark) = tail_after(files, &read, (frame_seq, position), options.segment_bytes);
        let state = State {
            index,
            tail,
            segments,
            position,
            durable_frame: frame_seq,
            answer_bytes_max: crate::measure::ANSWER_BYTES_MAX,
        };
        let flushed = Flushed {
            position,
            mark,
            told: DurableMark::default(),
            told_compact_revision: Position::default().compact_revision,
            since_checkpoint: scanned_bytes,
            is_replaced: false,
        };
        Some((state, flushed, torn))
    }
}

impl Unfinished {
    /// Whether a frame in it proves that it was durable once, which comes after `frame_seq`.
    fn judge(&self, files: &Files, frame_seq: u64) -> Result<(), OpenError> {
        let io = |error| OpenError::Io { path: self.path.clone(), source: Arc::new(error) };
        let file = files.disk.open(&self.path).map_err(io)?;
        let len = file.len().map_err(io)?;
        // Where the first frame is, if there is one, is behind the beginning.
        let from = (SEGMENT_HEADER_BYTES - FRAME_ALIGN) as u64;
        if len < from {
            return Ok(());
        }
        let proof = later_proof(&*file, self.salt, (from, len), frame_seq);
        let proof = proof.map_err(|(at, error)| OpenError::unreadable(&self.path, at, &error))?;
        proof.map_or(Ok(()), |later| {
            let what = "its header is not what was written, though it was durable when frame";
            Err(OpenError::damaged(&self.path, 0, format!("{what} {} came", later.seq)))
        })
    }
}

/// A frame behind the beginning of a place in a file that says that the one after `frame_seq`
/// was durable. What cannot be read may be that frame.
fn later_proof(
    file: &dyn DiskFile,
    salt: u32,
    (from, end): (u64, u64),
    frame_seq: u64,
) -> Result<Option<FrameHeader>, (u64, io::Error)> {
    let (mut at, mut buf) = (from, Vec::new());
    loop {
        let step = (end - at).min(SEARCH_BYTES);
        buf.resize(usize::try_from(step).expect("a few megabytes"), 0);
        file.read_at(at, &mut buf).map_err(|error| (at, error))?;
        if let Some((_, later)) = find_proof(&buf, salt, frame_seq) {
            return Ok(Some(later));
        }
        if at + step == end {
            return Ok(None);
        }
        at += step - FRAME_HEADER_BYTES as u64; // a header may cross the border
    }
}

/// Removes a file that does not count.
fn remove(files: &Files, path: &Path) -> Result<(), OpenError> {
    let io = |error| OpenError::Io { path: path.to_owned(), source: Arc::new(error) };
    files.remove(path).map_err(io)
}

/// What follows the segments that were read: the rest of the last one, or a new one.
fn tail_after(
    files: &Files,
    read: &[(Arc<Segment>, u64)],
    last: (u64, Position),
    segment_bytes: u64,
) -> (Tail, DurableMark) {
    let frame_seq = last.0;
    let Some((segment, end)) = read.last() else {
        let mark = DurableMark { frame_seq, ..DurableMark::default() };
        return (Tail::fresh(files.clone(), (0, 1), last, segment_bytes), mark);
    };
    let header = segment.header;
    let mark = DurableMark { segment_seq: header.last_seq, offset: *end, frame_seq };
    let number = number_of(read.len() - 1);
    let is_open = header.generation == 0 && *end < segment_bytes;
    let tail = match u32::try_from(*end) {
        Ok(end) if is_open => Tail::new(files.clone(), (number, header, end), last, segment_bytes),
        _ => Tail::fresh(files.clone(), (header.last_seq, number + 1), last, segment_bytes),
    };
    (tail, mark)
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

/// Entries from the versions of segments.
fn sorted(
    mut segments: Vec<Vec<Collected>>,
    may_use_threads: bool,
) -> impl Iterator<Item = (Key, KeyEntry)> {
    let second: Vec<Collected> =
        segments.split_off(segments.len() / 2).into_iter().flatten().collect();
    let first: Vec<Collected> = segments.into_iter().flatten().collect();
    let (first, second) = if may_use_threads {
        thread::scope(|scope| {
            let first = scope.spawn(|| sort(first));
            (sort(second), first.join().expect("sorting does not panic"))
        })
    } else {
        (sort(first), sort(second))
    };
    Entries { first: first.into_iter().peekable(), second: second.into_iter().peekable() }
}

/// Sorts by key and revision.
fn sort(mut versions: Vec<Collected>) -> Vec<Collected> {
    versions.sort_unstable_by(|a, b| order(a).cmp(&order(b)));
    versions
}

fn order((key, version, _): &Collected) -> (&Key, crate::record::Revision) {
    (key, version.at)
}

/// Entries from two sorted lists of versions.
struct Entries {
    first: Peekable<vec::IntoIter<Collected>>,
    second: Peekable<vec::IntoIter<Collected>>,
}

impl Entries {
    fn next_version(&mut self, key: Option<&Key>) -> Option<Collected> {
        let from = match (self.first.peek(), self.second.peek()) {
            (Some(a), Some(b)) if order(b) < order(a) => &mut self.second,
            (Some(_), _) => &mut self.first,
            (None, _) => &mut self.second,
        };
        from.next_if(|(next, ..)| key.is_none_or(|key| next == key))
    }
}

impl Iterator for Entries {
    type Item = (Key, KeyEntry);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, mut newest, mut place) = self.next_version(None)?;
        let mut older = Vec::new();
        while let Some((_, version, at)) = self.next_version(Some(&key)) {
            older.push(Older::new(newest.at, place, newest.is_tombstone()));
            (newest, place) = (version, at);
        }
        Some((key, KeyEntry::restored(&newest, place, older)))
    }
}
