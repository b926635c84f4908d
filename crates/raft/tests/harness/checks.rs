//! What must hold in every script, whatever it tells (Figure 3, and persistence before promises).

use std::collections::BTreeMap;

use kontiki_raft::{AppendResult, Body, Entry, EntryId, Index, Message, NodeId, Term};

use super::disk::{Disk, Image};

/// What has happened so far, as far as the rules need it.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    leaders: BTreeMap<Term, NodeId>,
    votes: BTreeMap<(NodeId, Term), NodeId>,
    applied: BTreeMap<Index, Entry>,
}

impl Checks {
    /// Election safety: at most one leader can be elected in a term (§5.2).
    pub(crate) fn leads(&mut self, node: NodeId, term: Term) {
        let leader = *self.leaders.entry(term).or_insert(node);
        assert_eq!(leader, node, "term {term} has two leaders");
    }

    /// A message leaves only when what it promises is durable (thesis §3.8).
    pub(crate) fn sends(&self, node: NodeId, message: &Message, disk: &Disk) {
        let durable = &disk.durable;
        match &message.body {
            Body::RequestVote(request) if request.for_term == message.term => {
                assert_eq!(durable.hard_state.voted_for, Some(node), "asks before it is durable");
                assert!(message.term <= durable.hard_state.term, "asks before it is durable");
            }
            Body::RequestVoteReply(reply) if reply.granted && reply.for_term == message.term => {
                assert_eq!(message.term, durable.hard_state.term, "votes before it is durable");
                assert!(durable.hard_state.voted_for.is_some(), "votes before it is durable");
            }
            Body::AppendEntriesReply(reply) => {
                if let AppendResult::Match(index) = reply.result {
                    assert!(index <= durable.last().index, "{node} acknowledges what it may lose");
                }
            }
            Body::RequestVote(_)
            | Body::RequestVoteReply(_)
            | Body::AppendEntries(_)
            | Body::TimeoutNow { .. }
            | Body::Propose(_)
            | Body::ChangeMembership { .. }
            | Body::ProposeReply(_)
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. } => {}
        }
    }

    /// One vote a term, over all lives of a node (§5.2).
    pub(crate) fn persists(&mut self, node: NodeId, durable: &Image) {
        let hard_state = durable.hard_state;
        if let Some(candidate) = hard_state.voted_for {
            let vote = *self.votes.entry((node, hard_state.term)).or_insert(candidate);
            assert_eq!(vote, candidate, "{node} voted twice in term {}", hard_state.term);
        }
    }

    /// State machine safety: no two nodes apply different entries at an index (§5.4.3). And
    /// nothing is applied that a crash could take.
    pub(crate) fn applies(&mut self, node: NodeId, entry: &Entry, durable: &Image) {
        let index = entry.id.index;
        assert!(
            durable.entries.contains(entry),
            "{node} applies {} before it is durable",
            entry.id
        );
        let first = self.applied.entry(index).or_insert_with(|| entry.clone());
        assert_eq!(first, entry, "{node} applies another entry at {index}");
    }

    /// Log matching: logs with a common entry are the same up to it (§5.3).
    pub(crate) fn logs_match<'a>(&self, logs: impl Iterator<Item = &'a Image>) {
        let mut before: BTreeMap<(Index, Term), EntryId> = BTreeMap::new();
        let mut seen: BTreeMap<(Index, Term), &Entry> = BTreeMap::new();
        for log in logs {
            let mut prev = log.start;
            for entry in &log.entries {
                let key = (entry.id.index, entry.id.term);
                let same = *seen.entry(key).or_insert(entry);
                assert_eq!(same, entry, "two entries are called {}", entry.id);
                if prev != log.start || prev == EntryId::ZERO {
                    let same = *before.entry(key).or_insert(prev);
                    assert_eq!(same, prev, "logs agree on {} but not before it", entry.id);
                }
                prev = entry.id;
            }
        }
    }
}
