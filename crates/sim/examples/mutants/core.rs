//! Mutants of elections, replication, reads and transfers.

use super::Mutant;

/// All of them.
pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "commit by counting an old term's entry (§5.4.2, pitfall B2)",
        file: "crates/raft/src/replicate.rs",
        patches: &[(
            "let is_ours = self.log.term_at(quorum) == Some(self.term);",
            "let is_ours = true;",
        )],
    },
    Mutant {
        name: "grant a vote to an older log (§5.4.1)",
        file: "crates/raft/src/election.rs",
        patches: &[(
            "let is_up_to_date = request.last.is_up_to_date_with(self.log.last());",
            "let is_up_to_date = true;",
        )],
    },
    Mutant {
        name: "compare the lengths of logs only (§5.4.1)",
        file: "crates/raft/src/election.rs",
        patches: &[(
            "let is_up_to_date = request.last.is_up_to_date_with(self.log.last());",
            "let is_up_to_date = self.log.last().index <= request.last.index;",
        )],
    },
    Mutant {
        name: "compare the terms of logs only (§5.4.1)",
        file: "crates/raft/src/election.rs",
        patches: &[(
            "let is_up_to_date = request.last.is_up_to_date_with(self.log.last());",
            "let is_up_to_date = self.log.last().term <= request.last.term;",
        )],
    },
    Mutant {
        name: "vote twice in a term (§5.2)",
        file: "crates/raft/src/election.rs",
        patches: &[
            (
                "let is_vote_free = self.voted_for.is_none_or(|voted_for| voted_for == from);",
                "let is_vote_free = true;",
            ),
            ("if self.voted_for.is_none() {", "if self.voted_for != Some(from) {"),
        ],
    },
    Mutant {
        name: "forget to persist the vote (pitfall B5)",
        file: "crates/raft/src/election.rs",
        patches: &[(
            "self.voted_for = Some(from);\n                self.writes.note_hard_state();",
            "self.voted_for = Some(from);",
        )],
    },
    Mutant {
        name: "forget to persist the term (pitfall B5)",
        file: "crates/raft/src/core.rs",
        patches: &[(
            "self.voted_for = None;\n            self.writes.note_hard_state();",
            "self.voted_for = None;",
        )],
    },
    Mutant {
        name: "take a refused vote for a granted one (pitfall B4)",
        file: "crates/raft/src/election.rs",
        patches: &[(
            "*election.votes.entry(from).or_insert(reply.granted) |= reply.granted;",
            "*election.votes.entry(from).or_insert(true) |= true;",
        )],
    },
    Mutant {
        name: "count one's own vote before it is durable (thesis §3.8)",
        file: "crates/raft/src/election.rs",
        patches: &[(
            "let is_ours_cast = is_pre_vote || self.writes.is_hard_state_durable();",
            "let is_ours_cast = true;",
        )],
    },
    Mutant {
        name: "let a pre-vote raise the term (thesis §9.6)",
        file: "crates/raft/src/election.rs",
        patches: &[(
            "self.become_follower(self.term, None);\n        self.stand(VoteKind::PreVote, self.term.next());",
            "self.become_follower(self.term.next(), None);\n        self.stand(VoteKind::PreVote, self.term.next());",
        )],
    },
    Mutant {
        name: "stand before loyalty has ended (pitfall B12)",
        file: "crates/raft/src/election.rs",
        patches: &[(
            "self.now + timeout + self.deference() + self.random_delay(self.patience(timeout));",
            "self.now + self.random_delay(self.patience(timeout));",
        )],
    },
    Mutant {
        name: "be disloyal to a leader that lives (thesis §4.2.3)",
        file: "crates/raft/src/core.rs",
        patches: &[("&& self.is_loyal()\n", "&& self.is_loyal() && self.now.0 == 0\n")],
    },
    Mutant {
        name: "forget a promise over a restart (pitfall R9)",
        file: "crates/raft/src/core.rs",
        patches: &[(
            "let loyal_until = if owes_nobody { now } else { now + config.election_timeout };",
            "let loyal_until = if owes_nobody { now } else { now.max(Timestamp(0)) };",
        )],
    },
    Mutant {
        name: "take whoever is alone for one that was alone before (pitfall R9)",
        file: "crates/raft/src/election.rs",
        patches: &[(
            "find(|(at, _)| at.term < hard_state.term);",
            "find(|(at, _)| at.term <= hard_state.term);",
        )],
    },
    Mutant {
        name: "forget that another got the vote of a lone voter (pitfall R9)",
        file: "crates/raft/src/election.rs",
        patches: &[(
            "let is_vote_ours = hard_state.voted_for == Some(id);",
            "let is_vote_ours = hard_state.voted_for.is_some() && id.get() != 0;",
        )],
    },
    Mutant {
        name: "do not tell a deposed leader (pitfall B9)",
        file: "crates/raft/src/append.rs",
        patches: &[("self.send(from, Body::AppendEntriesReply(reply));", "drop((from, reply));")],
    },
    Mutant {
        name: "do not step down on a higher term (§5.1)",
        file: "crates/raft/src/core.rs",
        patches: &[(
            "if self.term < term {\n            self.become_follower(term, None);\n        }",
            "if self.term < term && !matches!(self.state, State::Leader(_)) {\n            self.become_follower(term, None);\n        }",
        )],
    },
    Mutant {
        name: "lead on without a quorum (pitfall B13)",
        file: "crates/raft/src/replicate.rs",
        patches: &[(
            "let is_deposed = self.quorum_expires(leading) <= self.now;",
            "let is_deposed = self.quorum_expires(leading) < Timestamp(0);",
        )],
    },
    Mutant {
        name: "send what speaks for a term before the term is durable (thesis §3.8)",
        file: "crates/raft/src/core.rs",
        patches: &[(
            "let envelope = Envelope { to, message: Message { term: self.term, body } };\n        if self.writes.is_hard_state_durable() {",
            "let envelope = Envelope { to, message: Message { term: self.term, body } };\n        if self.writes.is_hard_state_durable() || self.term.get() != 0 {",
        )],
    },
    Mutant {
        name: "acknowledge before the disk (pitfall D3)",
        file: "crates/raft/src/append.rs",
        patches: &[(
            "let matched = following.received.min(durable);",
            "let matched = following.received;",
        )],
    },
    Mutant {
        name: "acknowledge entries that were cut away (CCF #5674)",
        file: "crates/raft/src/append.rs",
        patches: &[(
            "following.received = following.received.min(from.prev());\n            following.told = following.told.min(from.prev());",
            "following.received = following.received.max(from.prev());",
        )],
    },
    Mutant {
        name: "count the leader's own entry before the disk (pitfalls D1, D2)",
        file: "crates/raft/src/replicate.rs",
        patches: &[(
            "None if voter == id => durable,",
            "None if voter == id => self.log.last().index.max(durable),",
        )],
    },
    Mutant {
        name: "apply before the disk (pitfall D1)",
        file: "crates/raft/src/apply.rs",
        patches: &[(
            "let target = self.commit_index.min(self.writes.durable_index());",
            "let target = self.commit_index;",
        )],
    },
    Mutant {
        name: "take an overwritten entry's write for its successor's (pitfall B7)",
        file: "crates/raft/src/write.rs",
        patches: &[(
            ".map(|write| write.first)",
            ".map(|write| write.first.max(self.unwritten_from))",
        )],
    },
    Mutant {
        name: "go on after a failed write (pitfall D4)",
        file: "crates/raft/src/core.rs",
        patches: &[(
            "self.become_follower(self.term, None);\n        self.state = State::Stopped;",
            "self.become_follower(self.term, None);",
        )],
    },
    Mutant {
        name: "lead on with a disk that is stuck (storage table, row 13)",
        file: "crates/raft/src/replicate.rs",
        patches: &[("if is_deposed || self.is_storage_stalled() {", "if is_deposed {")],
    },
    Mutant {
        name: "agree where the terms differ (§5.3)",
        file: "crates/raft/src/append.rs",
        patches: &[(
            "Some(term) if term == prev.term => {}",
            "Some(term) if term == prev.term || self.commit_index < prev.index => {}",
        )],
    },
    Mutant {
        name: "keep an entry that conflicts (§5.3)",
        file: "crates/raft/src/append.rs",
        patches: &[(
            "if known == Some(term) || index < self.log.start().index {",
            "if (known.is_some() && self.commit_index < index) || index < self.log.start().index {",
        )],
    },
    Mutant {
        name: "cut entries that agree (pitfall M15)",
        file: "crates/raft/src/append.rs",
        patches: &[(
            "if known == Some(term) || index < self.log.start().index {",
            "if (known == Some(term) && index <= self.commit_index) || index < self.log.start().index {",
        )],
    },
    Mutant {
        name: "believe the leader's commit index beyond one's own entries (Figure 2)",
        file: "crates/raft/src/append.rs",
        patches: &[(
            "let commit = commit.min(following.received);",
            "let commit = commit.min(self.log.last().index);",
        )],
    },
    Mutant {
        name: "count an answer of an earlier term (pitfall M6)",
        file: "crates/raft/src/core.rs",
        patches: &[(
            "if term < self.term {\n            self.answer_the_past(from, &body);",
            "if term < self.term && !matches!(body, Body::AppendEntriesReply(_)) {\n            self.answer_the_past(from, &body);",
        )],
    },
    Mutant {
        name: "let a late refusal take a follower back (pitfall D13)",
        file: "crates/raft/src/progress.rs",
        patches: &[
            (
                "let is_stale = refused <= self.match_index\n",
                "let is_stale = refused < Index::ZERO\n",
            ),
            (
                "self.next_index = hint.min(refused.prev()).max(self.match_index).next();",
                "self.next_index = hint.min(refused.prev()).next();",
            ),
        ],
    },
    Mutant {
        name: "let an old answer lower the match",
        file: "crates/raft/src/progress.rs",
        patches: &[(
            "self.match_index = self.match_index.max(matched);",
            "self.match_index = matched;",
        )],
    },
    Mutant {
        name: "probe at the commit index (openraft #1500, pitfall M6)",
        file: "crates/raft/src/replicate.rs",
        patches: &[(
            "let prev = self.log.id_at(progress.match_index()).unwrap_or(EntryId::ZERO);",
            "let prev = self.log.id_at(self.commit_index).unwrap_or(EntryId::ZERO);",
        )],
    },
    Mutant {
        name: "lose count of what is on its way (pitfall D12)",
        file: "crates/raft/src/progress.rs",
        patches: &[("self.window_bytes -= sent.bytes;", "self.window_bytes -= sent.bytes / 2;")],
    },
    Mutant {
        name: "half is a majority (pitfall B3)",
        file: "crates/raft/src/membership.rs",
        patches: &[("voters.len() / 2 < count", "voters.len() / 2 <= count")],
    },
    Mutant {
        name: "commit what half of an even cluster holds (pitfall B3)",
        file: "crates/raft/src/membership.rs",
        patches: &[("let at = values.len().saturating_sub(1) / 2;", "let at = values.len() / 2;")],
    },
    Mutant {
        name: "do not sort before taking the median (openraft #1802, pitfall B3)",
        file: "crates/raft/src/membership.rs",
        patches: &[("values.sort_unstable();", "values.rotate_left(0);")],
    },
    Mutant {
        name: "answer a read without a round (pitfall R12)",
        file: "crates/raft/src/read.rs",
        patches: &[(
            "while reads.waiting.front().is_some_and(|read| read.after < confirmed) {",
            "while reads.waiting.front().is_some_and(|read| read.after < confirmed || true) {",
        )],
    },
    Mutant {
        name: "let a round that is under way confirm a read (pitfall R3)",
        file: "crates/raft/src/read.rs",
        patches: &[(
            "while reads.waiting.front().is_some_and(|read| read.after < confirmed) {",
            "while reads.waiting.front().is_some_and(|read| read.after <= confirmed) {",
        )],
    },
    Mutant {
        name: "read before the term has committed (TiKV #9239, pitfall R1)",
        file: "crates/raft/src/read.rs",
        patches: &[
            (
                "if self.commit_index < leading.blank {\n            return;",
                "if self.commit_index < Index::ZERO {\n            return;",
            ),
            ("let index = self.commit_index.max(leading.blank);", "let index = self.commit_index;"),
        ],
    },
    Mutant {
        name: "give two batches of reads one number (etcd #20418, pitfall R2)",
        file: "crates/raft/src/read.rs",
        patches: &[("self.next_batch += 1;", "self.next_batch += 0;")],
    },
    Mutant {
        name: "carry out a repeated proposal twice",
        file: "crates/raft/src/propose.rs",
        patches: &[(
            "if leading.seen.entry(from).or_default().insert(number) {",
            "if leading.seen.entry(from).or_default().insert(number) || true {",
        )],
    },
    Mutant {
        name: "hand over to a follower that lacks entries (thesis §3.10)",
        file: "crates/raft/src/transfer.rs",
        patches: &[("if transfer.is_sent || matched < last.index {", "if transfer.is_sent {")],
    },
    Mutant {
        name: "obey an order to stand behind the blank that ended it (pitfall B17)",
        file: "crates/raft/src/transfer.rs",
        patches: &[("&& self.log.last() == last", "&& self.log.last().is_up_to_date_with(last)")],
    },
    Mutant {
        name: "change a membership that nobody has looked at",
        file: "crates/raft/src/change_membership.rs",
        patches: &[("(at.index < entry.index && self", "(at.index != entry.index && self")],
    },
    Mutant {
        name: "obey a late order to stand (pitfall B17)",
        file: "crates/raft/src/transfer.rs",
        patches: &[(
            "self.leader() == Some(from) && self.log.last() == last",
            "self.leader().is_none_or(|leader| leader == from) && (self.log.last() == last || true)",
        )],
    },
    Mutant {
        name: "never give up a transfer (pitfall B17)",
        file: "crates/raft/src/transfer.rs",
        patches: &[(
            "if leading.transfer.as_ref().is_none_or(|transfer| now < transfer.deadline) {",
            "if leading.transfer.as_ref().is_none_or(|transfer| now.0 < transfer.deadline.0.saturating_mul(1000)) {",
        )],
    },
];
