//! Which writes are under way, and what is durable because of it (thesis §3.8, §10.2.1).
//!
//! Writes are numbered. An index is durable when no write that touches it is still under way,
//! and the *last* write that touched it counts: comparing terms or indexes alone would take the
//! completion of an overwritten entry for that of its successor (pitfall B7).
//!
//! ```text
//!   ── durable ──┬── in flight: handed out, no ticket back ──┬── pending: not handed out ──
//! ```
//!
//! A reset drops the whole log and starts it again after a snapshot (§7). Until it is durable a
//! crash leaves the log of before, so what counts as durable is what both have in common: what
//! was committed and durable before.

use std::collections::VecDeque;

use crate::{Index, SnapshotMeta, Timestamp};

/// The ledger of writes.
#[derive(Clone, Debug)]
pub(crate) struct Writes {
    /// Number of the next write to be handed out.
    next_sequence: u64,
    /// All up to this number are durable.
    persisted: u64,
    in_flight: VecDeque<InFlight>,
    /// Entries from here on are not handed out.
    unwritten_from: Index,
    /// A reset that is not handed out, and the lowest index that it touches.
    reset: Option<(SnapshotMeta, Index)>,
    /// Term or vote changed and is not handed out.
    hard_state_pending: bool,
    /// What was damaged is whole, and that is not handed out.
    repair_pending: bool,
    /// Number of the newest write that carries a changed term or vote.
    hard_state_sequence: u64,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    sequence: u64,
    /// The lowest index that it touches; one past the end if it has no entries.
    first: Index,
    handed_out: Timestamp,
}

impl Writes {
    /// Everything up to `last` was read from the disk.
    pub(crate) fn new(last: Index) -> Self {
        Self {
            next_sequence: 1,
            persisted: 0,
            in_flight: VecDeque::new(),
            unwritten_from: last.next(),
            reset: None,
            hard_state_pending: false,
            repair_pending: false,
            hard_state_sequence: 0,
        }
    }

    /// Term or vote have changed.
    pub(crate) fn note_hard_state(&mut self) {
        self.hard_state_pending = true;
    }

    /// Entries from `first` on are new, perhaps in the place of others.
    pub(crate) fn note_entries(&mut self, first: Index) {
        self.unwritten_from = self.unwritten_from.min(first);
    }

    /// The whole log is replaced by a snapshot. Up to `committed` it was right before.
    pub(crate) fn note_reset(&mut self, committed: Index, meta: SnapshotMeta) {
        let mut first = self.unwritten_from.min(committed.next());
        if let Some((_, earlier)) = &self.reset {
            first = first.min(*earlier);
        }
        self.unwritten_from = meta.last.index.next();
        self.reset = Some((meta, first));
    }

    /// The log may forget that it was damaged, together with a changed term or vote.
    pub(crate) fn note_repair(&mut self) {
        self.repair_pending = true;
    }

    pub(crate) fn is_reset_pending(&self) -> bool {
        self.reset.is_some()
    }

    /// The first index that is not handed out.
    pub(crate) fn unwritten_from(&self) -> Index {
        self.unwritten_from
    }

    pub(crate) fn is_hard_state_pending(&self) -> bool {
        self.hard_state_pending
    }

    /// Hands out a write of everything that waits, up to `last`: its number, the snapshot that
    /// it resets the log to, if it does, and whether it ends a damage.
    pub(crate) fn hand_out(
        &mut self,
        last: Index,
        now: Timestamp,
    ) -> (u64, Option<SnapshotMeta>, bool) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let first = self.first_pending();
        let reset_to = self.reset.take().map(|(meta, _)| meta);
        self.in_flight.push_back(InFlight { sequence, first, handed_out: now });
        self.unwritten_from = last.next();
        if self.hard_state_pending {
            self.hard_state_pending = false;
            self.hard_state_sequence = sequence;
        }
        (sequence, reset_to, std::mem::take(&mut self.repair_pending))
    }

    /// The lowest index that the next write will touch.
    fn first_pending(&self) -> Index {
        self.reset
            .as_ref()
            .map_or(self.unwritten_from, |&(_, first)| first.min(self.unwritten_from))
    }

    /// The write `sequence` and all before it are durable. Reports may come out of order: a
    /// later one covers the earlier (pitfall D11).
    pub(crate) fn persisted(&mut self, sequence: u64) {
        assert!(sequence < self.next_sequence, "only what was handed out becomes durable");
        self.persisted = self.persisted.max(sequence);
        while self.in_flight.front().is_some_and(|write| write.sequence <= sequence) {
            self.in_flight.pop_front();
        }
    }

    /// The log is durable up to here.
    pub(crate) fn durable_index(&self) -> Index {
        self.in_flight.iter().map(|write| write.first).fold(self.first_pending(), Index::min).prev()
    }

    /// The write after which the present term and vote are durable.
    pub(crate) fn hard_state_sequence(&self) -> u64 {
        if self.hard_state_pending { self.next_sequence } else { self.hard_state_sequence }
    }

    /// Whether the present term and vote are durable.
    pub(crate) fn is_hard_state_durable(&self) -> bool {
        self.hard_state_sequence() <= self.persisted
    }

    /// Whether the write `sequence` is durable.
    pub(crate) fn is_durable(&self, sequence: u64) -> bool {
        sequence <= self.persisted
    }

    /// When the oldest write that is still under way was handed out.
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.in_flight.front().map(|write| write.handed_out)
    }
}
