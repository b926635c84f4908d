//! Mutants of damaged logs, snapshots, leases and full disks.

use super::Mutant;

/// All of them.
pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "vote with a damaged log",
        file: "crates/raft/src/election.rs",
        patches: &[(
            "let is_up_to_date = is_up_to_date && self.damage.is_none();",
            "let is_up_to_date = is_up_to_date;",
        )],
    },
    Mutant {
        name: "stand with a damaged log",
        file: "crates/raft/src/election.rs",
        patches: &[(
            "self.is_electable() && !self.is_storage_stalled() && self.damage.is_none()",
            "self.is_electable() && !self.is_storage_stalled()",
        )],
    },
    Mutant {
        name: "readmit a damaged node before a quorum without it has answered",
        file: "crates/raft/src/damage.rs",
        patches: &[(
            "&& ailing.heard_at < slowest",
            "&& ailing.heard_at <= slowest.max(ailing.heard_at)",
        )],
    },
    Mutant {
        name: "let damaged nodes vouch for each other",
        file: "crates/raft/src/damage.rs",
        patches: &[(
            "Some(progress) if progress.ailing.is_none() => progress.acked_round,",
            "Some(progress) if progress.acked_round != Round::default() => progress.acked_round,",
        )],
    },
    Mutant {
        name: "count what a damaged node acknowledges",
        file: "crates/raft/src/progress.rs",
        patches: &[(
            "if self.ailing.is_none_or(Ailing::is_proven) {",
            "if self.ailing.is_none_or(|ailing| ailing.is_proven() || true) {",
        )],
    },
    Mutant {
        name: "believe what was said to an earlier life of a damaged node",
        file: "crates/raft/src/damage.rs",
        patches: &[("&& damage.life == life", "&& (damage.life == life || life != 0)")],
    },
    Mutant {
        name: "take part again before the hole is filled",
        file: "crates/raft/src/damage.rs",
        patches: &[(
            "if term != self.term || matched < upto.max(damage.applied) {",
            "if term != self.term || upto == Index::ZERO {",
        )],
    },
    Mutant {
        name: "install a snapshot that is older than what is committed",
        file: "crates/raft/src/snapshot.rs",
        patches: &[(
            "if self.commit_index < last.index {",
            "if self.log.start().index < last.index {",
        )],
    },
    Mutant {
        name: "keep a log that contradicts the snapshot (pitfall M9)",
        file: "crates/raft/src/snapshot.rs",
        patches: &[(
            "if self.log.id_at(last.index) == Some(last) {",
            "if self.log.id_at(last.index).is_some() {",
        )],
    },
    Mutant {
        name: "keep a membership that the snapshot has superseded (pitfall M4)",
        file: "crates/raft/src/memberships.rs",
        patches: &[(
            "self.0.clear();\n        self.0.push_back((snapshot.last, Arc::clone(&snapshot.membership)));",
            "if self.current_at().index < snapshot.last.index {\n            self.0.clear();\n            self.0.push_back((snapshot.last, Arc::clone(&snapshot.membership)));\n        }",
        )],
    },
    Mutant {
        name: "apply entries before the snapshot that they follow (pitfall M10)",
        file: "crates/raft/src/apply.rs",
        patches: &[(
            "if self.applying.install.is_some() || self.applying.is_bereft {\n            return;",
            "if self.applying.install.is_some() && target == Index::ZERO {\n            return;",
        )],
    },
    Mutant {
        name: "take the end of a transfer for an acknowledgement (pitfall M11)",
        file: "crates/raft/src/snapshot.rs",
        patches: &[(
            "progress.probe_after(sent.index.min(last));",
            "progress.on_match(sent.index.min(last), sent.index.min(last), Index::ZERO);",
        )],
    },
    Mutant {
        name: "send a snapshot again at once (pitfall M16)",
        file: "crates/raft/src/snapshot.rs",
        patches: &[(
            "if is_leaving || sending.under_way.is_some() || self.now < sending.again_at {",
            "if is_leaving {",
        )],
    },
    Mutant {
        name: "purge what the state machine may still need (pitfall D10)",
        file: "crates/raft/src/apply.rs",
        patches: &[(
            "let durable = self.applying.durable;",
            "let durable = self.applying.applied;",
        )],
    },
    Mutant {
        name: "purge what a follower still needs",
        file: "crates/raft/src/apply.rs",
        patches: &[("let mut upto = self.held_by_all.min(durable);", "let mut upto = durable;")],
    },
    Mutant {
        name: "trust all clocks to agree (lease reads)",
        file: "crates/raft/src/read.rs",
        patches: &[(
            "self.config.election_timeout.as_nanos() * (MILLION - drift) / (MILLION + drift);",
            "self.config.election_timeout.as_nanos() * (MILLION + drift) / (MILLION + drift);",
        )],
    },
    Mutant {
        name: "keep a lease while handing over (pitfall R8)",
        file: "crates/raft/src/read.rs",
        patches: &[(
            "if drift == 0 || self.commit_index < needed || leading.transfer.is_some() {",
            "if drift == 0 || self.commit_index < needed {",
        )],
    },
    Mutant {
        name: "have a lease before the term has committed (pitfall R1)",
        file: "crates/raft/src/read.rs",
        patches: &[(
            "let needed = leading.blank.max(leading.lease_blocked_until.unwrap_or_default());",
            "let needed = leading.lease_blocked_until.unwrap_or_default();",
        )],
    },
    Mutant {
        name: "have a lease again right after a transfer that failed (pitfall R8)",
        file: "crates/raft/src/read.rs",
        patches: &[(
            "let needed = leading.blank.max(leading.lease_blocked_until.unwrap_or_default());",
            "let needed = leading.blank;",
        )],
    },
    Mutant {
        name: "let a lease begin when its round is answered (pitfall R7)",
        file: "crates/raft/src/read.rs",
        patches: &[(
            "Some(Timestamp(self.quorum_round(leading).0) + promised)",
            "Some(self.now.max(Timestamp(self.quorum_round(leading).0)) + promised)",
        )],
    },
    Mutant {
        name: "lead on with a full disk",
        file: "crates/raft/src/storage.rs",
        patches: &[(
            "if !self.could_serve() {\n            self.hand_over();",
            "if !self.could_serve() && self.now < Timestamp(0) {\n            self.hand_over();",
        )],
    },
    Mutant {
        name: "name a snapshot before it was read back",
        file: "crates/log/src/snapshot.rs",
        patches: &[("source.verify()?;\n        let dir", "let dir")],
    },
    Mutant {
        name: "remove the old snapshot before the new one is there",
        file: "crates/log/src/snapshot.rs",
        patches: &[(
            "self.disk().rename(path, &named).map_err(LogError::io(\"rename\", path))?;",
            "for old in self.list() {\n            drop(self.remove(old.meta.last));\n        }\n        self.disk().rename(path, &named).map_err(LogError::io(\"rename\", path))?;",
        )],
    },
    Mutant {
        name: "forget the directory after a snapshot's rename (pitfall D5)",
        file: "crates/log/src/snapshot.rs",
        patches: &[(
            "self.disk().sync_dir(dir).map_err(LogError::io(\"sync\", dir))?;\n        let mut state = self.state();",
            "let mut state = self.state();",
        )],
    },
    Mutant {
        name: "do not check the chunks of a snapshot",
        file: "crates/log/src/snapshot/format.rs",
        patches: &[(
            "if crc != chunk_crc(last, number, chunk) {",
            "if crc != chunk_crc(last, number, chunk) && chunk.is_empty() {",
        )],
    },
];
