//! The memberships that stand in the log, and which of them is in force (§6, thesis §4.1).
//!
//! A server uses the latest membership in its log, committed or not. So it changes when an entry
//! is appended, and changes back when that entry is cut off: nothing here waits for the state
//! machine (pitfall B15), and every role is derived from it (pitfall M20).
//!
//! ```text
//!   birth or snapshot ≤ log start ──── in force at i ──── i ──── in force, perhaps uncommitted
//! ```

use std::{collections::VecDeque, sync::Arc};

use crate::{EntryId, Index, Membership, SnapshotMeta};

/// Never empty; ascending by index. The first is in force where the log starts.
#[derive(Clone, Debug)]
pub(crate) struct Memberships(VecDeque<(EntryId, Arc<Membership>)>);

impl Memberships {
    /// What was recovered, ascending. `None` if there is none.
    pub(crate) fn new(recovered: Vec<(EntryId, Arc<Membership>)>) -> Option<Self> {
        (!recovered.is_empty()).then(|| Self(recovered.into()))
    }

    /// The membership in force.
    pub(crate) fn current(&self) -> &Arc<Membership> {
        &self.newest().1
    }

    /// The entry of the membership in force.
    pub(crate) fn current_at(&self) -> EntryId {
        self.newest().0
    }

    /// The one that was in force before, unless it is purged.
    pub(crate) fn previous(&self) -> Option<&Arc<Membership>> {
        let nth = self.0.len().checked_sub(2)?;
        self.0.get(nth).map(|(_, membership)| membership)
    }

    fn newest(&self) -> &(EntryId, Arc<Membership>) {
        self.0.back().expect("there is always a membership: the constructor has seen one")
    }

    /// An entry with a membership was appended.
    pub(crate) fn push(&mut self, id: EntryId, membership: Arc<Membership>) {
        let last = self.current_at();
        assert!(last.index < id.index, "memberships ascend: {last} then {id}");
        self.0.push_back((id, membership));
    }

    /// The log was cut: `from` and everything after it are gone.
    pub(crate) fn truncate(&mut self, from: Index) {
        while 1 < self.0.len() && from <= self.current_at().index {
            self.0.pop_back();
        }
        assert!(self.current_at().index < from, "what the log started with is not cut: {from}");
    }

    /// The log starts after `upto`: only what is in force there and later is needed.
    pub(crate) fn purge(&mut self, upto: Index) {
        while self.0.get(1).is_some_and(|(id, _)| id.index <= upto) {
            self.0.pop_front();
        }
    }

    /// The whole log gave way to a snapshot, and with it every membership that stood in it,
    /// however new it looked (pitfall M4).
    pub(crate) fn reset_to(&mut self, snapshot: &SnapshotMeta) {
        self.0.clear();
        self.0.push_back((snapshot.last, Arc::clone(&snapshot.membership)));
    }
}
