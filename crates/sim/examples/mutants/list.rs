//! The mutants: small lies that the tests must notice.

/// A change of one source file that breaks one rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mutant {
    /// What it does, in words.
    pub(crate) name: &'static str,
    /// The file, from the root of the workspace.
    pub(crate) file: &'static str,
    /// What is replaced by what. Each text must stand in the file exactly once.
    pub(crate) patches: &'static [(&'static str, &'static str)],
}

/// All of them.
pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "commit by counting an old term's entry (pitfall B2)",
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
        name: "acknowledge before the disk (pitfall D3)",
        file: "crates/raft/src/append.rs",
        patches: &[(
            "let matched = following.received.min(durable);",
            "let matched = following.received;",
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
        name: "do not step down on a higher term (§5.1)",
        file: "crates/raft/src/core.rs",
        patches: &[(
            "if self.term < term {\n            self.become_follower(term, None);\n        }",
            "if self.term < term && !matches!(self.state, State::Leader(_)) {\n            \
             self.become_follower(term, None);\n        }",
        )],
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
        name: "half is a majority (pitfall B3)",
        file: "crates/raft/src/membership.rs",
        patches: &[("voters.len() / 2 < count", "voters.len() / 2 <= count")],
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
        name: "cut entries that agree (pitfall M15)",
        file: "crates/raft/src/append.rs",
        patches: &[(
            "if known == Some(term) || index < self.log.start().index {",
            "if (known == Some(term) && index <= self.commit_index) \
             || index < self.log.start().index {",
        )],
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
        name: "write to the log and do not sync (pitfall D3)",
        file: "crates/log/src/log.rs",
        patches: &[(
            "if !self.is_unsynced {\n            return Ok(());",
            "if !self.is_unsynced || 0 < self.current_bytes {\n            return Ok(());",
        )],
    },
    Mutant {
        name: "trust what is read back after a failed sync (pitfall D4)",
        file: "crates/log/src/recover.rs",
        patches: &[(
            "let Some(offset) = self.last_frame else { return Ok(()) };",
            "let Some(offset) = self.last_frame.filter(|_| false) else { return Ok(()) };",
        )],
    },
];
