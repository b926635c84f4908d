//! Mutants of the log and the disk.

use super::Mutant;

/// All of them.
pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "write to the log and do not sync (pitfall D3)",
        file: "crates/log/src/log.rs",
        patches: &[(
            "        if self.is_unsynced {\n            let result = self.current.file.sync_data();",
            "        if self.is_unsynced && self.current_bytes == 0 {\n            let result = self.current.file.sync_data();",
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
    Mutant {
        name: "write again after a failed sync (pitfall D4)",
        file: "crates/log/src/log.rs",
        patches: &[("self.is_poisoned |= result.is_err();", "self.is_poisoned |= false;")],
    },
    Mutant {
        name: "do not write the vote down (pitfall B5)",
        file: "crates/log/src/record.rs",
        patches: &[(
            "flags: if self.hard_state.is_some() { HAS_HARD_STATE } else { 0 },",
            "flags: if self.hard_state.is_some() && self.entries.is_empty() { HAS_HARD_STATE } else { 0 },",
        )],
    },
    Mutant {
        name: "forget the directory after a small file's rename (pitfall D5)",
        file: "crates/disk/src/small_file.rs",
        patches: &[(
            "disk.sync_dir(dir).map_err(DiskError::io(\"sync\", dir))",
            "{ drop(dir); Ok(()) }",
        )],
    },
    Mutant {
        name: "forget the directory after a segment's rename (pitfall D5)",
        file: "crates/disk/src/spare.rs",
        patches: &[(
            "disk.sync_dir(dir).map_err(DiskError::io(\"sync\", dir))?;\n        Ok(self.file)",
            "drop(dir);\n        Ok(self.file)",
        )],
    },
    Mutant {
        name: "replace a small file in its place (verdi #51)",
        file: "crates/disk/src/small_file.rs",
        patches: &[(
            "let temporary = self.path.with_extension(\"tmp\");",
            "let temporary = self.path.clone();",
        )],
    },
    Mutant {
        name: "do not check a record's checksum",
        file: "crates/disk/src/scan.rs",
        patches: &[(
            "if crc32c::crc32c_append(crc_before, &frame[8..]) != header.crc {",
            "if crc32c::crc32c_append(crc_before, &frame[8..]) != header.crc && crc_before == 0 {",
        )],
    },
    Mutant {
        name: "take a changed record for a torn one (pitfall D7)",
        file: "crates/disk/src/scan.rs",
        patches: &[(
            "if has_unwritten_sector(frame, offset) {",
            "if has_unwritten_sector(frame, offset) || crc_before != 0 {",
        )],
    },
    Mutant {
        name: "do not wipe what a torn write left (etcd #22442)",
        file: "crates/log/src/recover.rs",
        patches: &[(
            "bytes: last.tail.remains_end - last.tail.offset,\n        });\n        last.wipe()?;",
            "bytes: last.tail.remains_end - last.tail.offset,\n        });",
        )],
    },
    Mutant {
        name: "bring cut entries back on opening (etcd #22442)",
        file: "crates/log/src/replay.rs",
        patches: &[(
            "return Err(format!(\"entries between {last} and index {first} are missing\"));\n        }\n        self.entries.truncate(first);",
            "return Err(format!(\"entries between {last} and index {first} are missing\"));\n        }\n        self.entries.truncate(last.index.next());",
        )],
    },
    Mutant {
        name: "do not miss a segment (pitfall D7)",
        file: "crates/log/src/recover.rs",
        patches: &[("&& end.segment.number + 1 != number", "&& end.segment.number == number")],
    },
    Mutant {
        name: "do not miss what a seal promises (pitfall D7)",
        file: "crates/log/src/recover.rs",
        patches: &[("if last.is_sealed {", "if last.is_sealed && last.last_frame.is_none() {")],
    },
    Mutant {
        name: "purge a segment that is still needed (compaction past its bound)",
        file: "crates/log/src/log.rs",
        patches: &[(
            "let kept = entries.first_segment_after(upto.index, self.current.number);",
            "let kept = entries.first_segment_after(upto.index, self.current.number).saturating_add(1).min(self.current.number);",
        )],
    },
    Mutant {
        name: "remove segments before the log says so",
        file: "crates/log/src/log.rs",
        patches: &[(
            "start.encode(&mut self.buf);\n        self.append(&spec)?;\n        self.sync()?;",
            "start.encode(&mut self.buf);\n        drop(spec);",
        )],
    },
    Mutant {
        name: "take an error of reading for the end of the log (openraft #1795, pitfall M14)",
        file: "crates/log/src/reader.rs",
        patches: &[(
            "span.read(&mut read)?;",
            "if span.read(&mut read).is_err() {\n                break;\n            }",
        )],
    },
    Mutant {
        name: "hand out an entry that has changed on disk",
        file: "crates/log/src/record.rs",
        patches: &[(
            "if crc32c::crc32c(&data) != self.checksum {",
            "if crc32c::crc32c(&data) != self.checksum && data.is_empty() {",
        )],
    },
    Mutant {
        name: "be poisoned by a full disk",
        file: "crates/log/src/log.rs",
        patches: &[(
            "Err(error @ LogError::NoSpace { .. }) => return Err(error), // nothing has happened\n",
            "",
        )],
    },
    Mutant {
        name: "bind an entry to no place",
        file: "crates/log/src/record.rs",
        patches: &[(
            "crc32c::crc32c_append(crc32c::crc32c(&index.get().to_le_bytes()), header)",
            "crc32c::crc32c_append(crc32c::crc32c(&(index.get() & 0).to_le_bytes()), header)",
        )],
    },
];
