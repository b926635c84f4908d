//! What the bytes behind a damaged place still tell: how far the log reached, which term and
//! vote it held, and which of the entries before that place can be trusted.
//!
//! An entry before the damage may have been replaced by a record behind it (§5.3). To bring it
//! back would be to resurrect what was truncated, perhaps in the place of what is committed. So
//! an entry is kept only if every record behind it is accounted for and none goes below it, or
//! if it was known to be committed: that is replaced by nothing.

use kontiki_disk::{FrameSpec, SegmentHeader, find_survivors};
use kontiki_raft::{HardState, Index};

use crate::{
    LogError,
    damage::Patient,
    record::{CUT, ENTRIES, Head, RESET, SEAL},
    replay::{Place, Replay},
    segment::{self, MAGIC, SegmentStart},
};

/// What is known of a damaged log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Findings {
    /// The first entry that is lost, or that nothing vouches for.
    pub(crate) first: Index,
    /// The last entry that was ever heard of.
    pub(crate) last: Index,
    /// The newest term and vote, and the highest commit index.
    pub(crate) hard_state: HardState,
}

pub(crate) fn survey(
    patient: &Patient<'_>,
    numbers: &[u32],
    before: &Replay,
) -> Result<Findings, LogError> {
    let mut survey = Survey {
        last: before.entries.last().index.max(before.hard_state.commit),
        hard_state: before.hard_state,
        lowest: before.entries.last().index.next(),
        next_seq: before.good.map_or(1, |good| good.seq + 1),
        next_segment: before.good.map_or(1, |good| good.segment),
        is_complete: before.good.is_some(),
        is_sealed: false,
    };
    let begin = survey.next_segment;
    for &number in numbers.iter().filter(|&&number| begin <= number) {
        survey.is_complete &= number == survey.next_segment;
        survey.next_segment = number + 1;
        survey.segment(patient, number, before.good)?;
    }
    // A seal proves that a segment followed.
    survey.is_complete &= !survey.is_sealed;
    let start = before.entries.start().index;
    let committed = before.hard_state.commit.max(start).next();
    let first = if survey.is_complete { survey.lowest } else { survey.lowest.min(committed) };
    Ok(Findings {
        first: first.max(start.next()),
        last: survey.last,
        hard_state: survey.hard_state,
    })
}

struct Survey {
    last: Index,
    hard_state: HardState,
    /// The lowest entry that any record wrote.
    lowest: Index,
    next_seq: u64,
    next_segment: u32,
    /// Whether each record so far is accounted for.
    is_complete: bool,
    is_sealed: bool,
}

impl Survey {
    fn segment(
        &mut self,
        patient: &Patient<'_>,
        number: u32,
        good: Option<Place>,
    ) -> Result<(), LogError> {
        let path = segment::path(patient.segments_dir, number);
        let file = patient.disk.open(&path).map_err(LogError::io("open", &path))?;
        let header = SegmentHeader::read(&*file, &path, MAGIC)
            .ok()
            .filter(|header| segment::check_place(header, &path, number, patient.store).is_ok());
        self.is_complete &= header.is_some();
        if let Some(start) = header.as_ref().and_then(|header| SegmentStart::decode(&header.user)) {
            self.heard_of(start.last.index, start.hard_state);
        }
        let salt = header.map_or_else(
            || segment::salt(patient.seed, patient.store, number), // right if the seed is
            |header| header.salt,
        );
        let (seq, from) = match good.filter(|good| good.segment == number) {
            Some(good) => (good.seq, good.offset),
            None => (self.next_seq.saturating_sub(1), kontiki_disk::SEGMENT_HEADER_BYTES),
        };
        let found = find_survivors(&*file, &path, salt, seq, from)?;
        for frame in &found.frames {
            self.record(frame);
        }
        // What is behind the last of them may be a record of which nothing is left to read.
        self.is_complete &= found.used_end <= found.frames_end;
        Ok(())
    }

    fn record(&mut self, frame: &FrameSpec) {
        self.is_complete &= frame.seq == self.next_seq;
        self.next_seq = frame.seq + 1;
        self.is_sealed = frame.kind == SEAL;
        let Some(head) = Head::decode(&frame.user) else {
            self.is_complete = false;
            return;
        };
        let written = u64::from(head.count);
        self.heard_of(Index(head.first_index.prev().get() + written), head.hard_state);
        if frame.kind == CUT || (frame.kind == ENTRIES && 0 < written) {
            self.lowest = self.lowest.min(head.first_index);
        }
        // It dropped a log that did not agree with what is committed.
        self.is_complete &= frame.kind != RESET;
    }

    fn heard_of(&mut self, last: Index, state: HardState) {
        self.last = self.last.max(last).max(state.commit);
        let commit = self.hard_state.commit.max(state.commit);
        let newest = |state: &HardState| (state.term, state.voted_for.is_some());
        if newest(&self.hard_state) < newest(&state) {
            self.hard_state = state;
        }
        self.hard_state.commit = commit;
    }
}
