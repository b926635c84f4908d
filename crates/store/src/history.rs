//! All that a store holds at one moment, in the order of revisions: segments up to where they
//! are durable, and after them what was in memory.
//!
//! Whoever holds it keeps the files readable, not their names: compaction goes on beside.

use std::{ops::ControlFlow, sync::Arc};

use crate::{
    error::{Fatal, StoreError},
    frame::{FrameHeader, HeaderAt, Position},
    segment::{SEGMENT_HEADER_BYTES, Segment, SegmentHeader},
    state::State,
    store::Store,
    tail::Chunk,
};

/// Frozen when it is made, in microseconds: a reference for each segment and each chunk.
#[derive(Debug)]
pub(crate) struct History {
    pub(crate) position: Position,
    pub(crate) parts: Vec<Part>,
}

/// A segment, or what there is of it.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) header: SegmentHeader,
    /// The file, and how far it is durable.
    pub(crate) file: Option<(Arc<Segment>, u64)>,
    /// What comes after that.
    pub(crate) chunks: Vec<Arc<Chunk>>,
}

/// A frame on its way: its header and its bytes.
pub(crate) type EachFrame<'a> = dyn FnMut(&FrameHeader, &[u8]) -> Result<(), Fatal> + 'a;

/// The same, until it breaks.
type UntilFrame<'a> = dyn FnMut(&FrameHeader, &[u8]) -> Result<ControlFlow<()>, Fatal> + 'a;

/// A put or a deletion, as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredEvent<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its value; empty in a deletion.
    pub value: &'a [u8],
    /// The revision that made it.
    pub mod_revision: i64,
    /// The revision that created the key; zero in a deletion.
    pub create_revision: i64,
    /// Counts the puts since then; zero in a deletion.
    pub version: i64,
    /// The lease, or zero.
    pub lease: i64,
}

impl Store {
    /// Hands every event from `revision` on to `each`, in the order in which they were applied,
    /// until it has enough or there are no more. This is how a watcher catches up.
    ///
    /// Events that are applied meanwhile are not seen.
    ///
    /// # Errors
    ///
    /// [`StoreError::Compacted`] if there may be events that are gone: `revision` has to be
    /// after the compact revision, or at it. If it is at it, and history is compacted further
    /// while it is read, some events may have been handed out before.
    pub fn scan_events(
        &self,
        revision: i64,
        each: &mut dyn FnMut(StoredEvent<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let shared = self.shared();
        let history = {
            let mut state = shared.write_state()?;
            if revision < state.position.compact_revision {
                return Err(StoreError::Compacted);
            }
            History::of(&mut state)
        };
        // At the compact revision itself some are dead: only those after it surely are not.
        let compact_revision = history.position.compact_revision;
        let (mut is_enough, mut is_overtaken) = (false, false);
        history.frames_from(revision, &mut |header, frame| {
            for item in header.records(frame) {
                let (event, _) = item.map_err(|what| Fatal::unsound(header.seq, what))?;
                let at = event.version.at;
                let is_wanted = revision <= at.main && !is_enough;
                if !is_wanted {
                    continue;
                }
                if at.main <= compact_revision {
                    match shared.retains(&event, compact_revision)? {
                        Some(true) => {}
                        Some(false) => continue,
                        None => {
                            is_overtaken = true;
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                }
                let (key, value) = (event.key, event.value);
                let (mod_revision, version) = (at.main, event.version);
                let flow = each(StoredEvent {
                    key,
                    value,
                    mod_revision,
                    create_revision: version.create_revision,
                    version: version.version,
                    lease: version.lease,
                });
                is_enough = flow.is_break();
            }
            Ok(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if is_overtaken { Err(StoreError::Compacted) } else { Ok(()) }
    }
}

impl History {
    /// What `state` holds now, the position included.
    pub(crate) fn of(state: &mut State) -> Self {
        let position = state.position;
        state.tail.mark(&position, state.durable_frame);
        let chunks = state.tail.seal();
        let mut parts: Vec<Part> = state
            .segments
            .in_order()
            .into_iter()
            .filter_map(|(_, held)| {
                let file = (held.segment?, held.end);
                Some(Part::new(held.header, Some(file)))
            })
            .collect();
        for chunk in chunks {
            match parts.last_mut().filter(|part| part.header == chunk.header) {
                Some(part) => part.chunks.push(chunk),
                None => {
                    let mut part = Part::new(chunk.header, None);
                    part.chunks.push(chunk);
                    parts.push(part);
                }
            }
        }
        Self { position, parts }
    }

    /// Hands all frames to `each`, in order. Those of files are verified.
    pub(crate) fn frames(&self, each: &mut EachFrame<'_>) -> Result<(), Fatal> {
        self.parts.iter().try_for_each(|part| part.frames(each))
    }

    /// Hands all frames that may hold events from `revision` on to `each`, until that has
    /// enough.
    fn frames_from(&self, revision: i64, each: &mut UntilFrame<'_>) -> Result<(), Fatal> {
        // A part begins after what the one before it ends with, which its first frame tells.
        let mut first = 0;
        for (at, part) in self.parts.iter().enumerate().skip(1) {
            match part.first_revision()? {
                Some(begins) if begins < revision => first = at,
                Some(_) => break,
                None => {}
            }
        }
        let mut is_enough = false;
        for part in self.parts.iter().skip(first) {
            part.frames(&mut |header, frame| {
                if !is_enough && revision <= header.position.revision {
                    is_enough = each(header, frame)?.is_break();
                }
                Ok(())
            })?;
            if is_enough {
                break;
            }
        }
        Ok(())
    }
}

impl Part {
    fn new(header: SegmentHeader, file: Option<(Arc<Segment>, u64)>) -> Self {
        Self { header, file, chunks: Vec::new() }
    }

    /// The length of its frames.
    pub(crate) fn len(&self) -> u64 {
        let chunks: usize = self.chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        let file = self.file.as_ref().map_or(0, |(_, end)| end - SEGMENT_HEADER_BYTES as u64);
        file + chunks as u64
    }

    /// The revision after its first frame, if it has one.
    fn first_revision(&self) -> Result<Option<i64>, Fatal> {
        if let Some((segment, end)) = &self.file {
            let mut scan = segment.scan(SEGMENT_HEADER_BYTES as u64, *end);
            if let Some((_, header, _)) = scan.next_intact()? {
                return Ok(Some(header.position.revision));
            }
        }
        let first =
            self.chunks.first().map(|chunk| FrameHeader::read(&chunk.bytes, self.header.salt));
        Ok(first.and_then(|header| match header {
            HeaderAt::Intact(header) => Some(header.position.revision),
            HeaderAt::Version(_) | HeaderAt::Broken => None,
        }))
    }

    /// Hands its frames to `each`, in order.
    pub(crate) fn frames(&self, each: &mut EachFrame<'_>) -> Result<(), Fatal> {
        if let Some((segment, end)) = &self.file {
            let mut scan = segment.scan(SEGMENT_HEADER_BYTES as u64, *end);
            while let Some((_, header, frame)) = scan.next_intact()? {
                each(&header, frame)?;
            }
        }
        for chunk in &self.chunks {
            let mut rest = &chunk.bytes[..];
            while !rest.is_empty() {
                let HeaderAt::Intact(header) = FrameHeader::read(rest, self.header.salt) else {
                    unreachable!("frames in memory are those that were made")
                };
                let (frame, after) = rest.split_at(header.frame_len());
                each(&header, frame)?;
                rest = after;
            }
        }
        Ok(())
    }
}
