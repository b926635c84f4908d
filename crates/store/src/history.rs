//! All that a store holds at one moment, in the order of revisions: segments up to where they
//! are durable, and after them what was in memory.
//!
//! Whoever holds it keeps the files readable, not their names: compaction goes on beside.

use std::sync::Arc;

use crate::{
    error::Fatal,
    frame::{FrameHeader, HeaderAt, Position},
    segment::{SEGMENT_HEADER_BYTES, Segment, SegmentHeader},
    state::State,
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
