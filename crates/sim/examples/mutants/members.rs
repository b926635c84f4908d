//! Mutants of membership changes.

use super::Mutant;

/// All of them.
pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "decide with one half of a joint membership (§6)",
        file: "crates/raft/src/membership.rs",
        patches: &[(
            "                values.into_iter().nth(at).unwrap_or_default()\n            })\n            .min()",
            "                values.into_iter().nth(at).unwrap_or_default()\n            })\n            .max()",
        )],
    },
    Mutant {
        name: "elect with one half of a joint membership (§6)",
        file: "crates/raft/src/membership.rs",
        patches: &[("self.halves().all(|voters| {", "self.halves().any(|voters| {")],
    },
    Mutant {
        name: "count a learner (thesis §4.2.1)",
        file: "crates/raft/src/membership.rs",
        patches: &[(
            "self.members.iter().filter(|m| m.role == MemberRole::Voter).map(|m| m.id)",
            "self.members.iter().filter(|m| m.role != MemberRole::Leaving).map(|m| m.id)",
        )],
    },
    Mutant {
        name: "change the membership before the term has committed (pitfall B1)",
        file: "crates/raft/src/change_membership.rs",
        patches: &[(
            "if self.commit_index < leading.blank {\n            return Err(Rejection::NotReady);",
            "if self.commit_index < Index::ZERO {\n            return Err(Rejection::NotReady);",
        )],
    },
    Mutant {
        name: "begin a change while another is under way",
        file: "crates/raft/src/change_membership.rs",
        patches: &[(
            "if self.commit_index < at.index || current.is_joint() {",
            "if self.commit_index < Index::ZERO {",
        )],
    },
    Mutant {
        name: "keep a membership whose entry was cut (thesis §4.1)",
        file: "crates/raft/src/change_membership.rs",
        patches: &[("self.memberships.truncate(from);", "drop(from);")],
    },
    Mutant {
        name: "go from old voters to new without a joint membership (§6)",
        file: "crates/raft/src/reconfigure.rs",
        patches: &[("target.outgoing = outgoing;", "target.outgoing = Vec::new();")],
    },
    Mutant {
        name: "leave a joint membership before it is committed (pitfall M2)",
        file: "crates/raft/src/change_membership.rs",
        patches: &[(
            "leading.blank.max(self.memberships.current_at().index) <= self.commit_index",
            "leading.blank <= self.commit_index",
        )],
    },
    Mutant {
        name: "leave a joint membership only if one has entered it oneself (pitfall M1)",
        file: "crates/raft/src/change_membership.rs",
        patches: &[(
            "if current.is_joint() {\n            return Some(reconfigure::leave(current));",
            "if current.is_joint() {\n            if self.memberships.current_at().index < leading.blank {\n                return None;\n            }\n            return Some(reconfigure::leave(current));",
        )],
    },
    Mutant {
        name: "lead on after one's own removal (thesis §4.2.2)",
        file: "crates/raft/src/change_membership.rs",
        patches: &[(
            "if is_voter || !self.is_membership_settled(leading) || leading.transfer.is_some() {",
            "if is_voter || leading.blank <= self.commit_index || leading.transfer.is_some() {",
        )],
    },
    Mutant {
        name: "go before the others have heard of one's removal (pitfall B18)",
        file: "crates/raft/src/change_membership.rs",
        patches: &[("Some(since) if since < heard => {", "Some(_) if heard.get() < u64::MAX => {")],
    },
    Mutant {
        name: "continue the session of a server that was removed and added again (pitfall M5)",
        file: "crates/raft/src/replicate.rs",
        patches: &[(
            "if session != progress.session || leading.round < round || last < received {",
            "if leading.round < round || last < received {",
        )],
    },
    Mutant {
        name: "give an id twice (pitfall M7)",
        file: "crates/raft/src/reconfigure.rs",
        patches: &[("self.next_id = NodeId(id.get() + 1);", "self.next_id = id;")],
    },
    Mutant {
        name: "forget the other half's answers when the membership changes (pitfall R4)",
        file: "crates/raft/src/change_membership.rs",
        patches: &[(
            "// Who counts has changed, so what waits for a quorum may have one (pitfall R4).\n        self.confirm_reads();",
            "",
        )],
    },
];
