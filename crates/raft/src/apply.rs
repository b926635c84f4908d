//! From committed to applied, and what may be purged (§5.3, §7).
//!
//! An entry is handed to the state machine once it is committed *and* durable on this very
//! node. There is no way to have one without the other, a cluster of one included: what a
//! client was told is done is on the disk of whoever told it (pitfall D1).

use std::collections::VecDeque;

use crate::{Apply, Entry, EntryId, Index, NodeId, RaftCore, SnapshotMeta};

/// Entries on their way through the state machine.
#[derive(Clone, Debug)]
pub(crate) struct Applying {
    handed_out: Index,
    applied: Index,
    /// The state machine will still know up to here after power loss.
    durable: Index,
    /// The state machine lacks what the log no longer has: nothing is applied before a snapshot
    /// has come.
    is_bereft: bool,
    /// A snapshot that replaces the whole state, and comes before any further entry. Waits for
    /// the log to be reset to it.
    install: Option<SnapshotMeta>,
    /// The last entry that the state machine was told to read from the log.
    stored_upto: Index,
    /// A snapshot that has arrived while the state machine reads from the log that it replaces,
    /// and from whom.
    held: Option<(NodeId, SnapshotMeta)>,
    /// Batches that are handed out and not applied: last index and bytes.
    outstanding: VecDeque<(Index, usize)>,
    outstanding_bytes: usize,
    purge_asked: Index,
}

/// Entries of one [`Apply::Stored`]. Their size is not known here; a thousand of the usual
/// commands are less than a message.
const STORED_ENTRIES_MAX: u64 = 1024;

impl Applying {
    pub(crate) fn new(applied: Index, log_start: Index) -> Self {
        Self {
            handed_out: applied,
            applied,
            durable: Index::ZERO,
            is_bereft: applied < log_start,
            install: None,
            stored_upto: Index::ZERO,
            held: None,
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            purge_asked: Index::ZERO,
        }
    }

    pub(crate) fn applied(&self) -> Index {
        self.applied
    }

    pub(crate) fn handed_out(&self) -> Index {
        self.handed_out
    }

    pub(crate) fn on_applied(&mut self, upto: Index, durable: Index) {
        assert!(
            upto <= self.handed_out,
            "only what was handed out is applied: {upto} of {}",
            self.handed_out,
        );
        self.applied = self.applied.max(upto);
        // A snapshot beyond that was received and is not installed: if the log is never reset to
        // it, it stands for nothing, and what is before it is still needed.
        if durable <= self.applied {
            self.durable = self.durable.max(durable);
        }
        while self.outstanding.front().is_some_and(|&(last, _)| last <= upto) {
            if let Some((_, bytes)) = self.outstanding.pop_front() {
                self.outstanding_bytes -= bytes;
            }
        }
    }

    /// The state of this snapshot comes next, in the place of everything up to its last entry.
    pub(crate) fn install(&mut self, meta: &SnapshotMeta) {
        if self.handed_out < meta.last.index {
            self.install = Some(meta.clone());
            self.is_bereft = false;
        }
    }

    /// Whether the state machine lacks what the log no longer has.
    pub(crate) fn is_bereft(&self) -> bool {
        self.is_bereft
    }

    /// Keeps a snapshot for later if the state machine reads from the log: it would find the
    /// entries gone that it is to apply. The newest one is kept.
    pub(crate) fn hold(&mut self, from: NodeId, meta: &SnapshotMeta) -> bool {
        let is_reading = self.applied < self.stored_upto;
        let is_newer = |(_, held): &(NodeId, SnapshotMeta)| held.last.index <= meta.last.index;
        if is_reading && self.held.as_ref().is_none_or(is_newer) {
            self.held = Some((from, meta.clone()));
        }
        is_reading
    }

    /// The snapshot that was kept, once nothing is read from the log any more.
    fn take_held(&mut self) -> Option<(NodeId, SnapshotMeta)> {
        if self.applied < self.stored_upto { None } else { self.held.take() }
    }

    /// What the snapshot stands for that is to be installed next.
    pub(crate) fn installs(&self) -> Option<EntryId> {
        self.install.as_ref().map(|meta| meta.last)
    }

    fn on_handed_out(&mut self, last: Index, bytes: usize) {
        assert!(self.handed_out < last, "entries are handed out once: {last}");
        self.handed_out = last;
        self.outstanding.push_back((last, bytes));
        self.outstanding_bytes += bytes;
    }
}

impl RaftCore {
    /// The state machine has applied everything up to `upto`.
    pub(crate) fn on_applied(&mut self, upto: Index, durable: Index) {
        self.applying.on_applied(upto, durable);
        if let Some((from, meta)) = self.applying.take_held() {
            self.on_snapshot_received(from, meta);
        }
    }

    pub(crate) fn hand_out_apply(&mut self, out: &mut Vec<Apply>) {
        let target = self.commit_index.min(self.writes.durable_index());
        if let Some(meta) = self.applying.install.take_if(|meta| meta.last.index <= target) {
            self.applying.on_handed_out(meta.last.index, 0);
            out.push(Apply::Snapshot(meta));
        }
        if self.applying.install.is_some() || self.applying.is_bereft {
            return; // the entries before it are gone, those after it come after it (pitfall M10)
        }
        while self.applying.handed_out < target
            && self.applying.outstanding_bytes < self.config.unapplied_bytes_max
        {
            let first = self.applying.handed_out.next();
            let entries = self.log.cached(first..=target, self.config.unapplied_bytes_max);
            if let Some(last) = entries.last() {
                let bytes = entries.iter().map(Entry::byte_len).sum();
                self.applying.on_handed_out(last.id.index, bytes);
                out.push(Apply::Entries(entries));
            } else if self.applying.outstanding.is_empty() {
                let upto = Index(first.get() + STORED_ENTRIES_MAX - 1)
                    .min(target)
                    .min(self.log.cache_start().prev());
                self.applying.on_handed_out(upto, 0);
                self.applying.stored_upto = upto;
                out.push(Apply::Stored(first..=upto));
            } else {
                break; // one range of old entries at a time
            }
        }
    }

    /// What the state machine will not need again and no voter will ask for, all but the newest
    /// part, which a server that was away might want.
    ///
    /// A log that is too large is purged though a follower still needs it: a disk that fills up
    /// because one server is away would take the others with it. That one gets a snapshot.
    pub(crate) fn maybe_purge(&mut self) -> Option<EntryId> {
        self.update_held_by_all();
        let (sizes, config, last) = (self.log.sizes(), &self.config, self.log.last().index);
        let durable = self.applying.durable;
        let from = self.applying.purge_asked.max(self.log.start().index);
        let enough = Index(from.get().saturating_add(config.purge_entries_min));
        let mut upto = self.held_by_all.min(durable);
        if enough <= upto {
            upto = upto.min(sizes.before_newest(config.log_keep_bytes, last));
        }
        if upto < enough {
            upto = Index::ZERO;
        }
        if config.log_bytes_max < sizes.total() {
            // A little more than must be, so that it is not done for each entry.
            let bytes = config.log_keep_bytes.max(config.log_bytes_max / 8 * 7);
            upto = upto.max(sizes.before_newest(bytes, last).min(durable));
        }
        if upto <= from {
            return None;
        }
        self.applying.purge_asked = upto;
        self.log.id_at(upto)
    }

    /// Keeps recent entries in memory for the followers, and always those that are not durable
    /// or not committed. What waits for a slow state machine can be read back.
    pub(crate) fn evict_cache(&mut self) {
        let keep_after = self.writes.durable_index().min(self.commit_index);
        self.log.evict(self.config.log_cache_bytes_max, keep_after);
    }
}
