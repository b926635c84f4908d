//! Copying what is left of segments that are mostly dead, so that their space can be given
//! back.
//!
//! ```text
//!   choose neighbours ─► copy live records to a .tmp ─► sync, rename, sync ─► the index points
//!   to the copies, a few hundred at a time ─► remove the old files
//! ```
//!
//! A deletion that is dead, for no reader may ask about the time before it, is not needed, but
//! its record may be: as long as an older segment holds a put of the key that is as dead and not
//! removed yet, whoever reads the segments would take that for the newest version. So it is
//! copied, a *grave*, unless all older segments were copied since compaction has passed it, or a
//! later version covers both. When graves take too much, the segments that they are kept for are
//! copied first, the oldest first, and then they go.
//!
//! A crash before the rename leaves the old files, one after it both: the higher generation
//! stands for those before it. The last frame of what is copied keeps its number and position,
//! be it without records, for it may be the last one of all.

use std::{ops::Range, path::PathBuf, sync::Arc};

use parking_lot::RwLockWriteGuard;

use crate::{
    error::Fatal,
    frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, Position},
    index::KeyEntry,
    key::Key,
    record::{Event, Revision},
    segment::{Place, SEGMENT_HEADER_BYTES, Segment},
    segments::{Graves, Held},
    store::Shared,
    writer::full,
};

/// Below this share of live records a segment is rewritten.
const LIVE_RATIO: f64 = 0.7;

/// When graves take more than one in so many of the bytes that are alive, and more than a
/// segment, they have to go. A guess: all of the store is read for it at worst.
const GRAVES_SHARE: u64 = 4;

/// How many segments become one, at most.
const RUN_MAX: usize = 8;

/// How long they are together, at most: a copy is not longer, and a place in it has 32 bits.
const RUN_BYTES: u64 = 3 << 30;

/// What a step reads.
const STEP_BYTES: u64 = 512 << 10;

/// How many records a step makes the index point to.
const STEP_MOVES: usize = 500;

/// What is copied before it is synced: little enough that nobody else's sync waits for long.
const SYNC_BYTES: usize = 4 << 20;

/// The frames that are written.
const FRAME_BYTES: usize = 256 << 10;

/// What a step has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    More,
    Done,
    /// The disk is full. Everything is as it was.
    NoSpace,
}

/// Segments that are being rewritten into one.
#[derive(Debug)]
pub(crate) struct Rewrite {
    sources: Vec<(u32, Held)>,
    /// The source that is being read, and how far.
    reading: usize,
    offset: u64,
    /// The number of the new segment, its file, and the name that it will get.
    number: u32,
    target: Segment,
    path: PathBuf,
    /// Where `out` begins in the file, and what of the file is not synced.
    out_start: u64,
    unsynced: usize,
    out: Vec<u8>,
    /// The frame in `out` that is growing: where it begins, its records.
    frame_start: usize,
    frame_count: u32,
    /// The last frame that was read, and the last one that was written.
    last_read: (u64, Position),
    last_written: u64,
    /// The compact revision by which versions are dead, and the one up to which all that is
    /// dead in older segments is gone.
    walked: i64,
    floor: i64,
    graves: Graves,
    moves: Vec<Move>,
    /// How many of `moves` the index knows.
    moved: usize,
    is_published: bool,
}

/// What there is to rewrite.
pub(crate) enum Planned {
    Rewrite(Box<Rewrite>),
    Nothing,
    /// Something, and nowhere to put it.
    NoSpace,
}

/// A record that was copied.
#[derive(Debug)]
struct Move {
    key: Key,
    at: Revision,
    from: Place,
    to: Place,
}

impl Shared {
    /// Chooses neighbours that are worth to be rewritten, if there are any. Segments before
    /// `active_seq` are complete.
    /// No version in memory is dead by the compact revision `walked`.
    pub(crate) fn plan_rewrite(&self, active_seq: u64, walked: i64) -> Result<Planned, Fatal> {
        let mut complete = self.state.read().segments.in_order();
        complete.retain(|(_, held)| held.header.last_seq < active_seq);
        let Some(run) = choose(&complete, self.options.segment_bytes) else {
            return Ok(Planned::Nothing);
        };
        let older = complete[..run.start].iter();
        let floor = older.map(|(_, held)| held.graves.clean_at).min().unwrap_or(i64::MAX);
        let sources = complete[run].to_vec();
        let (Some((_, first)), Some((_, last))) = (sources.first(), sources.last()) else {
            return Ok(Planned::Nothing);
        };
        let generation = sources.iter().map(|(_, held)| held.header.generation).max();
        let seqs = (first.header.seq, last.header.last_seq);
        let generation = generation.unwrap_or(0) + 1;
        let header = self.files.header_of(seqs, generation, first.header.prev_frame_seq);
        let path = self.files.segment_path(&header);
        let temporary = crate::files::Files::temporary(&path);
        let made = Segment::create(&*self.files.disk, temporary.clone(), header);
        let Some(target) = full(made, "compact")? else {
            self.compaction_found_no_space(&temporary);
            return Ok(Planned::NoSpace);
        };
        let number = self.state.write().tail.allocate();
        let last_written = header.prev_frame_seq;
        Ok(Planned::Rewrite(Box::new(Rewrite {
            sources,
            reading: 0,
            offset: SEGMENT_HEADER_BYTES as u64,
            number,
            target,
            path,
            out_start: SEGMENT_HEADER_BYTES as u64,
            unsynced: 0,
            out: Vec::new(),
            frame_start: 0,
            frame_count: 0,
            last_read: (last_written, Position::default()),
            last_written,
            walked,
            floor,
            graves: Graves { clean_at: walked, ..Graves::default() },
            moves: Vec::new(),
            moved: 0,
            is_published: false,
        })))
    }

    /// Half a copy on a full disk is in the way. If it cannot be removed either, the next start
    /// does it.
    fn compaction_found_no_space(&self, temporary: &std::path::Path) {
        drop(self.files.remove(temporary));
    }
}

/// The neighbours whose rewriting gives back the most for what it copies.
fn choose(complete: &[(u32, Held)], segment_bytes: u64) -> Option<Range<usize>> {
    let len = |held: &Held| held.end - SEGMENT_HEADER_BYTES as u64;
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let ratio = |held: &Held| held.kept_bytes() as f64 / len(held).max(1) as f64;
    let is_small = |held: &Held| held.end <= segment_bytes / 4;
    let is_worn = |held: &Held| ratio(held) < LIVE_RATIO;
    // One that is worn and still as short as it gets is nothing to begin with, though its
    // neighbours may take it along.
    let worst = (0..complete.len())
        .filter(|&at| is_worn(&complete[at].1) && has_dead(&complete[at].1))
        .min_by(|&a, &b| ratio(&complete[a].1).total_cmp(&ratio(&complete[b].1)));
    // A small one alone gives nothing back; with a small neighbour it does.
    let alone = worst.or_else(|| buried(complete, segment_bytes));
    let start = alone.or_else(|| {
        (1..complete.len()).find(|&at| is_small(&complete[at - 1].1) && is_small(&complete[at].1))
    })?;
    let mut run = start..start + 1;
    let (mut kept, mut bytes) = (complete[start].1.kept_bytes(), complete[start].1.end);
    let mut joins = |held: &Held| {
        let (and_kept, and_bytes) = (kept + held.kept_bytes(), bytes + held.end);
        let fits = and_kept <= segment_bytes && and_bytes <= RUN_BYTES;
        let joins = fits && (is_worn(held) || is_small(held));
        if joins {
            (kept, bytes) = (and_kept, and_bytes);
        }
        joins
    };
    while run.len() < RUN_MAX && complete.get(run.end).is_some_and(|(_, held)| joins(held)) {
        run.end += 1;
    }
    while run.len() < RUN_MAX && 0 < run.start && joins(&complete[run.start - 1].1) {
        run.start -= 1;
    }
    (run.len() > 1 || alone.is_some()).then_some(run)
}

/// The segment to be copied next so that graves can go, if there are too many of them: the
/// oldest that may hold what the oldest graves are kept for, or else that of the graves. What
/// they are kept for does not grow, so this comes to an end.
fn buried(complete: &[(u32, Held)], segment_bytes: u64) -> Option<usize> {
    let sum = |of: fn(&Held) -> u64| complete.iter().map(|(_, held)| of(held)).sum::<u64>();
    let graves = sum(|held| held.graves.bytes);
    if graves <= segment_bytes.max(sum(|held| held.live_bytes) / GRAVES_SHARE) {
        return None;
    }
    let first = complete.iter().position(|(_, held)| 0 < held.graves.bytes)?;
    let upto = complete[first].1.graves.upto;
    complete[..first].iter().position(|(_, held)| held.graves.clean_at < upto).or(Some(first))
}

/// Whether a copy would be shorter: one that holds little more than its last position is not,
/// and to copy it again would never end.
fn has_dead(held: &Held) -> bool {
    let frame = (FRAME_HEADER_BYTES as u64 + held.kept_bytes()).next_multiple_of(8);
    SEGMENT_HEADER_BYTES as u64 + frame < held.end
}

impl Rewrite {
    /// Does a little of it.
    pub(crate) fn step(&mut self, shared: &Shared) -> Result<Progress, Fatal> {
        let outcome = if self.reading < self.sources.len() {
            self.copy(shared)
        } else if !self.is_published {
            self.publish(shared)
        } else if self.moved < self.moves.len() {
            self.point(shared);
            Ok(true)
        } else {
            return self.clean_up(shared).map(|()| Progress::Done);
        }?;
        if !outcome {
            shared.compaction_found_no_space(&self.target.path);
            return Ok(Progress::NoSpace);
        }
        Ok(Progress::More)
    }

    /// Copies what is live of the next frames. False if the disk is full.
    fn copy(&mut self, shared: &Shared) -> Result<bool, Fatal> {
        let (number, source) = self.sources[self.reading].clone();
        let segment = source.segment.expect("what is complete is on disk");
        let until = source.end.min(self.offset + STEP_BYTES);
        let mut scan = segment.scan(self.offset, source.end);
        while self.offset < until {
            let Some((offset, header, frame)) = scan.next_intact()? else { break };
            let mut place = Place { segment: number, offset: 0, len: 0 };
            let mut at = offset + FRAME_HEADER_BYTES as u64;
            let state = shared.read_state()?;
            for item in header.records(frame) {
                let (event, record) = item.map_err(|what| segment.damaged(offset, what))?;
                let too_long = |_| segment.damaged(offset, "a record lies too far away");
                place.offset = u32::try_from(at).map_err(too_long)?;
                place.len = u32::try_from(record.len()).map_err(too_long)?;
                at += record.len() as u64;
                let known = state.index.get(event.key);
                if known.and_then(|key| key.place_of(event.version.at)) == Some(place) {
                    let to = self.keep(place, record);
                    let (key, at) = (event.key.into(), event.version.at);
                    self.moves.push(Move { key, at, from: place, to });
                } else if self.is_grave(&event, known) {
                    self.keep(place, record);
                    self.graves.bytes += record.len() as u64;
                    self.graves.upto = self.graves.upto.max(event.version.at.main);
                }
            }
            drop(state);
            self.offset = offset + u64::from(header.len);
            self.last_read = (header.seq, header.position);
            if FRAME_BYTES <= self.out.len() - self.frame_start {
                self.seal_frame();
            }
        }
        if source.end <= self.offset {
            self.reading += 1;
            self.offset = SEGMENT_HEADER_BYTES as u64;
        }
        self.write_out(SYNC_BYTES / 4)
    }

    /// Whether the index does without a record, and those who read the segments may not.
    fn is_grave(&self, event: &Event<'_>, known: Option<&KeyEntry>) -> bool {
        let at = event.version.at;
        event.version.is_tombstone()
            && self.floor < at.main
            && !known.is_some_and(|key| key.covers(at, self.walked))
    }

    /// Copies a record. Returns where to.
    fn keep(&mut self, from: Place, record: &[u8]) -> Place {
        if self.frame_count == 0 {
            self.begin_frame();
        }
        let offset = self.out_start + self.out.len() as u64;
        let offset = u32::try_from(offset).expect("a copy is shorter than its sources");
        self.out.extend_from_slice(record);
        self.frame_count += 1;
        Place { segment: self.number, offset, len: from.len }
    }

    fn begin_frame(&mut self) {
        self.frame_start = self.out.len();
        self.out.resize(self.frame_start + FRAME_HEADER_BYTES, 0);
    }

    fn seal_frame(&mut self) {
        if self.frame_count == 0 {
            self.begin_frame();
        }
        let (seq, position) = self.last_read;
        let what = (FrameKind::Rewritten, seq, seq - 1);
        let (start, salt) = (self.frame_start, self.target.header.salt);
        FrameHeader::seal(&mut self.out, start, salt, what, &position, self.frame_count);
        self.frame_count = 0;
        self.frame_start = self.out.len();
        self.last_written = seq;
    }

    /// Writes whole frames out when there are `least` bytes of them.
    fn write_out(&mut self, least: usize) -> Result<bool, Fatal> {
        if self.frame_start < least.max(1) {
            return Ok(true);
        }
        let rest = self.out.split_off(self.frame_start);
        let whole = std::mem::replace(&mut self.out, rest);
        let written = self.target.file.write_at(self.out_start, &whole);
        if full(written, "compact")?.is_none() {
            return Ok(false);
        }
        self.out_start += whole.len() as u64;
        self.frame_start = 0;
        self.unsynced += whole.len();
        if SYNC_BYTES <= self.unsynced {
            self.unsynced = 0;
            return self.sync();
        }
        Ok(true)
    }

    /// Nobody counts on the copy yet, so if this finds the disk full all is as it was.
    fn sync(&self) -> Result<bool, Fatal> {
        full(self.target.file.sync_data(), "compact").map(|synced| synced.is_some())
    }

    /// Makes the copy durable under its name.
    fn publish(&mut self, shared: &Shared) -> Result<bool, Fatal> {
        if 0 < self.frame_count || self.last_written < self.last_read.0 {
            self.seal_frame();
        }
        if !self.write_out(0)? || !self.sync()? {
            return Ok(false);
        }
        let files = &shared.files;
        if full(files.disk.rename(&self.target.path, &self.path), "compact")?.is_none() {
            return Ok(false);
        }
        if full(files.sync_dir(), "compact")?.is_none() {
            // It must not stand beside copies that are made later, of other neighbours.
            files.remove(&self.path).map_err(|error| Fatal::io("compact", error))?;
            return Ok(false);
        }
        let Segment { file, header, .. } = &self.target;
        let segment = Segment { file: Arc::clone(file), path: self.path.clone(), header: *header };
        let graves = self.graves;
        let on_disk = Held::on_disk(Arc::new(segment), self.out_start);
        let held = Held { is_copy: true, graves, ..on_disk };
        shared.state.write().segments.insert(self.number, held);
        self.is_published = true;
        Ok(true)
    }

    /// Makes the index point to some of the copies.
    fn point(&mut self, shared: &Shared) {
        let mut state = shared.state.write();
        let state_ref = &mut *state;
        for Move { key, at, from, to } in self.moves.iter().skip(self.moved).take(STEP_MOVES) {
            let entry = state_ref.index.get_mut(key);
            if entry.is_some_and(|entry| entry.move_record(*at, *from, *to)) {
                state_ref.segments.bury(*from);
                state_ref.segments.revive(*to);
            }
        }
        self.moved += STEP_MOVES;
        RwLockWriteGuard::unlock_fair(state);
    }

    /// Removes what the copy stands for.
    fn clean_up(&mut self, shared: &Shared) -> Result<(), Fatal> {
        let sources = self.sources.iter().map(|(number, _)| *number);
        shared.state.write().segments.replace(sources, self.number);
        for (_, source) in &self.sources {
            let path = shared.files.segment_path(&source.header);
            shared.files.remove(&path).map_err(|error| Fatal::io("compact", error))?;
        }
        Ok(())
    }
}
