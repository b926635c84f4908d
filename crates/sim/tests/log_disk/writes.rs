//! Things to write.

use std::sync::Arc;

use kontiki_raft::{
    Entry, EntryId, HardState, Index, Membership, NodeId, Payload, SnapshotMeta, Term, WriteBatch,
};

pub(crate) fn batch(entries: impl IntoIterator<Item = Entry>) -> WriteBatch {
    WriteBatch { hard_state: None, entries: entries.into_iter().collect(), ..WriteBatch::default() }
}

/// A term and a vote in it, for nobody if `node` is 0.
pub(crate) fn vote(term: u64, node: u64) -> WriteBatch {
    let voted_for = Some(NodeId(node)).filter(|id| id.get() != 0);
    let hard_state = HardState { term: Term(term), voted_for, commit: Index::ZERO };
    WriteBatch { hard_state: Some(hard_state), entries: Vec::new(), ..WriteBatch::default() }
}

/// A command of so many bytes, different for each index and term.
pub(crate) fn command(index: u64, term: u64, len: usize) -> Entry {
    let bytes: Vec<u8> = (0_u8..=250)
        .cycle()
        .skip(usize::try_from(7 * index + term).expect("small"))
        .take(len)
        .collect();
    Entry::new(EntryId::new(index, term), Payload::Command(bytes.into()))
}

pub(crate) fn membership(index: u64, term: u64, address: &str) -> Entry {
    let membership = Membership::of_voters([(NodeId(1), address)]);
    Entry::new(EntryId::new(index, term), Payload::Membership(Arc::new(membership)))
}

/// A snapshot was received that stands for the log up to here.
pub(crate) fn reset(index: u64, term: u64, entries: impl IntoIterator<Item = Entry>) -> WriteBatch {
    let membership = Arc::new(Membership::of_voters([(NodeId(1), format!("n1:{index}"))]));
    let reset_to = Some(SnapshotMeta { last: EntryId::new(index, term), membership });
    WriteBatch { reset_to, ..batch(entries) }
}

/// Entries, and that the log is committed up to `commit`, in this term.
pub(crate) fn committed(
    term: u64,
    commit: u64,
    entries: impl IntoIterator<Item = Entry>,
) -> WriteBatch {
    let hard_state =
        HardState { term: Term(term), voted_for: Some(NodeId(1)), commit: Index(commit) };
    WriteBatch { hard_state: Some(hard_state), ..batch(entries) }
}
