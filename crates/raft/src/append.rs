//! A follower takes in what its leader appends (§5.3).
//!
//! The reply that claims entries waits for the disk (thesis §3.8). It is not a message that
//! lies about until then: the follower remembers up to where its log agrees with the leader's,
//! and what it may say follows from that and from what is durable at the moment of saying. So
//! several acknowledgements become one, and one for entries that were cut away meanwhile cannot
//! exist (pitfall B7, CCF #5674).

use crate::{
    AppendEntries, AppendEntriesReply, AppendResult, Body, EntryId, Index, NodeId, Payload,
    RaftCore, Round, Session, Term,
    core::{NUMBER_MAX, State},
};

/// What a follower knows of its leader.
#[derive(Clone, Debug, Default)]
pub(crate) struct Following {
    pub(crate) leader: Option<NodeId>,
    /// The connection to the leader broke and it has not been heard of since. What would be
    /// passed on to it now would be lost, and its outcome unknown.
    pub(crate) is_leader_unreachable: bool,
    session: Session,
    /// The newest round seen in this session.
    round: Round,
    /// The log agrees with this leader's up to here.
    received: Index,
    /// The last durable match that the leader was told.
    told: Index,
    /// The leader waits for an answer that need not wait for the disk.
    owes_reply: bool,
}

/// How an append relates to the log.
enum Merged {
    /// The logs agree up to here.
    Agreed(Index),
    /// They do not at `prev`; they may here.
    Conflict(EntryId),
    /// No leader of this term could have sent it.
    Impossible,
}

impl Following {
    pub(crate) fn of(leader: Option<NodeId>) -> Self {
        Self { leader, ..Self::default() }
    }

    /// The log agrees with the leader's up to here.
    pub(crate) fn note_received(&mut self, upto: Index) {
        self.received = self.received.max(upto);
    }

    pub(crate) fn received(&self) -> Index {
        self.received
    }

    /// The leader waits for an answer, or has reason to be glad of one.
    pub(crate) fn owe_reply(&mut self) {
        self.owes_reply = true;
    }
}

impl RaftCore {
    pub(crate) fn on_append_entries(&mut self, from: NodeId, append: AppendEntries) {
        if !is_well_formed(&append, self.term) || !self.try_follow(from) {
            return;
        }
        self.pledge_loyalty(self.now);
        let State::Follower(following) = &mut self.state else { return };
        following.is_leader_unreachable = false;
        if append.session < following.session {
            return; // sent before the leader started anew with us
        }
        if following.session < append.session {
            following.session = append.session;
            following.round = Round::default();
        }
        following.round = following.round.max(append.round);

        self.note_readmission(append.readmission);
        let (prev, is_heartbeat) = (append.prev, append.entries.is_empty());
        let (commit, held_by_all) = (append.commit, append.held_by_all);
        match self.merge(append) {
            Merged::Agreed(upto) => self.on_agreed(upto, commit, held_by_all, is_heartbeat),
            Merged::Conflict(hint) => self.reply_conflict(from, prev, hint),
            Merged::Impossible => {}
        }
    }

    /// Follows the sender, if it can be the leader of this term. There is one leader a term
    /// (§5.2), so a second one is a liar, and is not listened to (pitfall D15).
    fn try_follow(&mut self, from: NodeId) -> bool {
        match &self.state {
            State::Follower(following) => match following.leader {
                Some(leader) => return leader == from,
                None => self.become_follower(self.term, Some(from)),
            },
            State::PreCandidate(_) | State::Candidate(_) => {
                self.become_follower(self.term, Some(from));
            }
            State::Leader(_) | State::Stopped => return false,
        }
        true
    }

    /// Adds what is new. Cuts the log only at the first entry that conflicts: a late or
    /// repeated message must not take back what a newer one has brought (pitfall M15).
    fn merge(&mut self, append: AppendEntries) -> Merged {
        let AppendEntries { prev, entries, .. } = append;
        let is_prev_committed = prev.index <= self.commit_index;
        match self.log.term_at(prev.index) {
            Some(term) if term == prev.term => {}
            // Purged, so it was committed, so every later leader has it (§5.4.3).
            None if prev.index < self.log.start().index => {}
            // A leader that contradicts what is committed does not exist.
            Some(_) | None if is_prev_committed => return Merged::Impossible,
            Some(_) | None => return Merged::Conflict(self.log.last_not_after(prev)),
        }

        let upto = entries.last().map_or(prev.index, |entry| entry.id.index);
        for entry in entries {
            let EntryId { index, term } = entry.id;
            let known = self.log.term_at(index);
            if known == Some(term) || index < self.log.start().index {
                continue;
            }
            if index == self.log.start().index {
                return Merged::Impossible; // it contradicts what is purged, so committed
            }
            if known.is_some() {
                if index <= self.commit_index {
                    return Merged::Impossible;
                }
                self.cut_log(index);
                self.forget_received(index);
            }
            self.take_entry(entry);
        }
        Merged::Agreed(upto)
    }

    /// The log was cut at `from`. An honest leader never contradicts what it sent in the same
    /// term; of another one we must not believe both (pitfall D15).
    pub(crate) fn forget_received(&mut self, from: Index) {
        if let State::Follower(following) = &mut self.state {
            following.received = following.received.min(from.prev());
            following.told = following.told.min(from.prev());
        }
    }

    fn on_agreed(&mut self, upto: Index, commit: Index, held_by_all: Index, is_heartbeat: bool) {
        let is_durable = upto <= self.writes.durable_index();
        let State::Follower(following) = &mut self.state else { return };
        following.received = following.received.max(upto);
        // What the disk has to take first is answered when it has.
        following.owes_reply |= is_heartbeat || is_durable;
        // Beyond `received` our entries may be those of another leader (Figure 2: the minimum
        // of the leader's commit and the last new entry).
        let commit = commit.min(following.received);
        self.commit_index = self.commit_index.max(commit);
        self.held_by_all = self.held_by_all.max(held_by_all.min(self.commit_index));
    }

    fn reply_conflict(&mut self, leader: NodeId, prev: EntryId, hint: EntryId) {
        let report = self.report();
        let State::Follower(following) = &self.state else { return };
        let &Following { session, round, received, .. } = following;
        let result = AppendResult::Conflict { prev, hint };
        self.send(
            leader,
            Body::AppendEntriesReply(AppendEntriesReply {
                session,
                round,
                received,
                result,
                report,
            }),
        );
    }

    /// Tells the leader what is durable here, if it waits for an answer or there is news.
    ///
    /// Deviation: in Figure 2 each request is answered by `success`. One answer with an index
    /// speaks for all requests before it.
    pub(crate) fn maybe_reply_to_leader(&mut self) {
        let (durable, report) = (self.writes.durable_index(), self.report());
        let State::Follower(following) = &mut self.state else { return };
        let Some(leader) = following.leader else { return };
        let matched = following.received.min(durable);
        if !following.owes_reply && matched <= following.told {
            return;
        }
        following.owes_reply = false;
        following.told = matched;
        let &mut Following { session, round, received, .. } = following;
        let result = AppendResult::Match(matched);
        self.send(
            leader,
            Body::AppendEntriesReply(AppendEntriesReply {
                session,
                round,
                received,
                result,
                report,
            }),
        );
    }

    /// Lets a leader of an earlier term hear of ours. Nothing is claimed.
    pub(crate) fn reject_append(&mut self, from: NodeId, append: &AppendEntries) {
        let reply = AppendEntriesReply {
            session: append.session,
            round: append.round,
            received: Index::ZERO,
            result: AppendResult::Match(Index::ZERO),
            report: self.report(),
        };
        self.send(from, Body::AppendEntriesReply(reply));
    }
}

/// Whether a leader of `term` could have sent it: consecutive entries whose terms ascend and
/// are not of the future, and memberships that could decide something. The bytes came from
/// outside.
fn is_well_formed(append: &AppendEntries, term: Term) -> bool {
    let mut last = append.prev;
    append.entries.iter().all(|entry| {
        let follows = last.index.get().checked_add(1) == Some(entry.id.index.get())
            && last.term <= entry.id.term
            && is_payload_sound(&entry.payload);
        last = entry.id;
        follows
    }) && last.term <= term
        && last.index.get() < NUMBER_MAX
}

fn is_payload_sound(payload: &Payload) -> bool {
    match payload {
        Payload::Membership(membership) => membership.is_sound(),
        Payload::Blank | Payload::Command(_) | Payload::Session(_) => true,
    }
}
