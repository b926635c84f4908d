//! Mutants of the key-value store.

use super::Mutant;

/// All of them.
pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "take a frame that has changed for an intact one",
        file: "crates/store/src/frame.rs",
        patches: &[(
            "crc32c::crc32c_append(salt, covered) == self.crc)",
            "crc32c::crc32c_append(salt, covered) == self.crc || self.crc != 0)",
        )],
    },
    Mutant {
        name: "believe the header of a frame without its checksum",
        file: "crates/store/src/frame.rs",
        patches: &[(
            "if crc32c::crc32c_append(salt, reader.rest()) != header_crc {",
            "if crc32c::crc32c_append(salt, reader.rest()) != header_crc && header_crc == 0 {",
        )],
    },
    Mutant {
        name: "cut a frame that a later one knew to be durable (pitfall D7)",
        file: "crates/store/src/frame.rs",
        patches: &[(
            "if frame_seq < header.durable_seq => Some((at, header)),",
            "if frame_seq < header.durable_seq && header.seq == 0 => Some((at, header)),",
        )],
    },
    Mutant {
        name: "serve a record that has changed on disk",
        file: "crates/store/src/record.rs",
        patches: &[(
            "if u32_at(record, 0) != Some(crc32c::crc32c(covered)) {",
            "if u32_at(record, 0) != Some(crc32c::crc32c(covered)) && record.is_empty() {",
        )],
    },
    Mutant {
        name: "cut what STATE knew to be durable (pitfall D7)",
        file: "crates/store/src/open.rs",
        patches: &[
            ("if !is_last || offset < durable_end {", "if !is_last {"),
            (
                "if read.frame_seq < mark.frame_seq {",
                "if read.frame_seq < mark.frame_seq && !read.segments.is_empty() && mark.frame_seq == 0 {",
            ),
        ],
    },
    Mutant {
        name: "do not miss a segment of the store (pitfall D7)",
        file: "crates/store/src/open.rs",
        patches: &[
            ("if header.seq != before + 1 {", "if header.seq <= before {"),
            (
                "if before.is_some_and(|before| before != segment.header.prev_frame_seq) {",
                "if before.is_some_and(|before| before > segment.header.prev_frame_seq) {",
            ),
        ],
    },
    Mutant {
        name: "do not miss the last frames of a complete segment",
        file: "crates/store/src/open.rs",
        patches: &[(
            "if before.is_some_and(|before| before != segment.header.prev_frame_seq) {",
            "if before.is_some_and(|before| before > segment.header.prev_frame_seq) {",
        )],
    },
    Mutant {
        name: "drop a last segment whose header is damaged",
        file: "crates/store/src/open.rs",
        patches: &[(
            "unfinished.judge(files, read.frame_seq)?;",
            "unfinished.judge(files, u64::MAX)?;",
        )],
    },
    Mutant {
        name: "let a checkpoint stand for the end of a file that is gone",
        file: "crates/store/src/open.rs",
        patches: &[(
            "header.last_seq == mark.segment_seq && len < mark.offset",
            "header.last_seq == mark.segment_seq && len < mark.offset.min(1)",
        )],
    },
    Mutant {
        name: "go on after a copy as if nothing had followed it",
        file: "crates/store/src/open.rs",
        patches: &[(
            ".filter(|last| 0 < last.header.generation)",
            ".filter(|last| last.header.generation == u32::MAX)",
        )],
    },
    Mutant {
        name: "skip what cannot be read where damage is judged",
        file: "crates/store/src/open.rs",
        patches: &[(
            "file.read_at(at, &mut buf).map_err(|error| (at, error))?;\n        if let",
            "if file.read_at(at, &mut buf).is_err() {\n            buf.fill(0);\n        }\n        if let",
        )],
    },
    Mutant {
        name: "trust what the kernel shows after a restart (pitfall D4)",
        file: "crates/store/src/open.rs",
        patches: &[("segment.file.write_at(at, &buf).map_err(io)?;", "drop(&buf);")],
    },
    Mutant {
        name: "leave behind the end what a crash has torn",
        file: "crates/store/src/open.rs",
        patches: &[(
            "segment.file.set_len(end).map_err(io)?;",
            "segment.file.set_len(end.max(segment.file.len().map_err(io)?)).map_err(io)?;",
        )],
    },
    Mutant {
        name: "believe a checkpoint of segments that were rewritten since",
        file: "crates/store/src/open.rs",
        patches: &[
            (
                "let is_it = segment.header.generation == generation && is_long_enough;",
                "let is_it = is_long_enough;",
            ),
            (
                "known.is_some_and(|(generation, _)| *generation == header.generation);",
                "known.is_some();",
            ),
        ],
    },
    Mutant {
        name: "forget what only a checkpoint says of durability",
        file: "crates/store/src/open.rs",
        patches: &[(
            "loaded.as_ref().map_or(mark, |loaded| mark.max(loaded.rests_on()));",
            "loaded.as_ref().map_or(mark, |loaded| mark.min(loaded.rests_on()).max(mark));",
        )],
    },
    Mutant {
        name: "promise frames that are not synced (pitfall D3)",
        file: "crates/store/src/writer.rs",
        patches: &[("segment.file.sync_data().map_err(|error| Fatal::io(\"sync\", error))?;", "")],
    },
    Mutant {
        name: "forget the directory of a new segment (pitfall D5)",
        file: "crates/store/src/writer.rs",
        patches: &[(
            "if flushed.mark.segment_seq != first.header.seq {",
            "if flushed.mark.segment_seq == u64::MAX {",
        )],
    },
    Mutant {
        name: "write on after a failed sync of the store (pitfall D4)",
        file: "crates/store/src/writer.rs",
        patches: &[(
            "self.write(&mut flushed, part).map_err(|fatal| self.fail(fatal))? {",
            "self.write(&mut flushed, part)? {",
        )],
    },
    Mutant {
        name: "let the log be purged up to what is not durable",
        file: "crates/store/src/writer.rs",
        patches: &[(
            "self.durable_applied.store(last.position.applied_index, Ordering::Release);",
            "let applied = self.state.read().position.applied_index;\n        self.durable_applied.store(applied, Ordering::Release);",
        )],
    },
    Mutant {
        name: "do not write down that a segment is complete",
        file: "crates/store/src/writer.rs",
        patches: &[(
            "                self.tell(flushed)?;\n                let path",
            "                let path",
        )],
    },
    Mutant {
        name: "let the old state say that it counts",
        file: "crates/store/src/writer.rs",
        patches: &[(
            "let is_due = !flushed.is_replaced && flushed.told != flushed.mark;",
            "let is_due = flushed.told != flushed.mark;",
        )],
    },
    Mutant {
        name: "be closed by a full disk",
        file: "crates/store/src/writer.rs",
        patches: &[(
            "Err(error) if is_no_space(&error) => Ok(None),",
            "Err(error) if is_no_space(&error) && op.is_empty() => Ok(None),",
        )],
    },
    Mutant {
        name: "mix the files of two epochs",
        file: "crates/store/src/files.rs",
        patches: &[(
            "(SEGMENT, Some(&[epoch, seq, generation])) if epoch == self.files.epoch => {",
            "(SEGMENT, Some(&[epoch, seq, generation])) if epoch <= self.files.epoch => {",
        )],
    },
    Mutant {
        name: "call a received state durable that is not synced",
        file: "crates/store/src/restore.rs",
        patches: &[
            ("        output.segment.file.sync_data().map_err(failed)?;\n", ""),
            (
                "        if SYNC_BYTES <= self.unsynced {",
                "        if usize::MAX == self.unsynced {",
            ),
        ],
    },
    Mutant {
        name: "remove the old state before the new one counts",
        file: "crates/store/src/restore.rs",
        patches: &[(
            "let opened = build(&old, at, from)?;",
            "let opened = build(&old, at, from)?;\n        drop(old.files.remove_all());",
        )],
    },
    Mutant {
        name: "do not check the end of a snapshot",
        file: "crates/store/src/restore.rs",
        patches: &[(
            "if u32::from_le_bytes(input.array()?) != crc {",
            "if u32::from_le_bytes(input.array()?) != crc && crc == 0 {",
        )],
    },
    Mutant {
        name: "remove history before the promise is durable (etcd #17780)",
        file: "crates/store/src/compaction.rs",
        patches: &[(
            "(flushed.told_compact_revision, flushed.mark)",
            "(self.state.read().position.compact_revision, flushed.mark)",
        )],
    },
    Mutant {
        name: "remove history before `STATE` says that it was compacted",
        file: "crates/store/src/compaction.rs",
        patches: &[
            (
                "if flushed.told_compact_revision < flushed.position.compact_revision {",
                "if false {",
            ),
            (
                "(flushed.told_compact_revision, flushed.mark)",
                "(flushed.position.compact_revision, flushed.mark)",
            ),
        ],
    },
    Mutant {
        name: "forget a tombstone at the compact revision (etcd #18089)",
        file: "crates/store/src/index.rs",
        patches: &[("!is_tombstone || last.main == compact_revision", "!is_tombstone")],
    },
    Mutant {
        name: "keep one version too few when compacting",
        file: "crates/store/src/index.rs",
        patches: &[(
            "                old -=\n                    usize::from(last.is_some_and(|last| {",
            "                old -= 0 *\n                    usize::from(last.is_some_and(|last| {",
        )],
    },
    Mutant {
        name: "drop a deletion before what it deleted",
        file: "crates/store/src/rewrite.rs",
        patches: &[(
            "&& self.floor < at.main\n",
            "&& self.floor < at.main && self.floor == i64::MIN\n",
        )],
    },
    Mutant {
        name: "drop a deletion when some older segment is clean, not all",
        file: "crates/store/src/rewrite.rs",
        patches: &[(
            "held.graves.clean_at).min().unwrap_or(i64::MAX);",
            "held.graves.clean_at).max().unwrap_or(i64::MAX);",
        )],
    },
    Mutant {
        name: "keep deletions for ever",
        file: "crates/store/src/rewrite.rs",
        patches: &[("if graves <= segment_bytes.max(", "if graves <= u64::MAX.max(")],
    },
    Mutant {
        name: "let a version that is too new cover a deletion",
        file: "crates/store/src/index.rs",
        patches: &[(
            "versions.any(|version| at < version && version.main <= compact_revision)",
            "versions.any(|version| at < version || compact_revision == i64::MIN)",
        )],
    },
    Mutant {
        name: "lose the last position of what is copied",
        file: "crates/store/src/rewrite.rs",
        patches: &[(
            "if 0 < self.frame_count || self.last_written < self.last_read.0 {",
            "if 0 < self.frame_count {",
        )],
    },
    Mutant {
        name: "name a copy that is not synced",
        file: "crates/store/src/rewrite.rs",
        patches: &[("if !self.write_out(0)? || !self.sync()? {", "if !self.write_out(0)? {")],
    },
    Mutant {
        name: "leave a copy that found the disk full beside later ones",
        file: "crates/store/src/rewrite.rs",
        patches: &[(
            "            files.remove(&self.path).map_err(|error| Fatal::io(\"compact\", error))?;\n",
            "",
        )],
    },
    Mutant {
        name: "copy what is damaged without a look",
        file: "crates/store/src/segment.rs",
        patches: &[(
            "        if !header.covers(frame, salt) {",
            "        if !header.covers(frame, salt) && header.seq == 0 {",
        )],
    },
    Mutant {
        name: "name a checkpoint before what it points to is durable",
        file: "crates/store/src/checkpoint.rs",
        patches: &[(
            "        self.flush()?;\n        if self.is_full() {",
            "        if self.is_full() {",
        )],
    },
    Mutant {
        name: "do not check the blocks of a checkpoint",
        file: "crates/store/src/checkpoint/load.rs",
        patches: &[(
            "(crc == block.crc).then_some(content)",
            "(crc == block.crc || !content.is_empty()).then_some(content)",
        )],
    },
    Mutant {
        name: "serve a value that was replaced",
        file: "crates/store/src/index.rs",
        patches: &[(
            "                entry.hot = value;\n                entry",
            "                entry.hot = entry.hot.take().or(value);\n                entry",
        )],
    },
    Mutant {
        name: "put a value back into memory that is not the newest",
        file: "crates/store/src/index.rs",
        patches: &[(
            "let is_newest = entry.newest.at() == at;",
            "let is_newest = entry.newest.at() >= at;",
        )],
    },
    Mutant {
        name: "count keys that are deleted",
        file: "crates/store/src/index.rs",
        patches: &[(
            "(self.deleted == 0).then(|| self.keys.count(bounds))",
            "Some(self.keys.count(bounds))",
        )],
    },
    Mutant {
        name: "give all writes of a transaction one place in history",
        file: "crates/store/src/state.rs",
        patches: &[(
            "        self.next_sub = next_sub(self.next_sub);\n        at",
            "        self.next_sub = next_sub(0);\n        at",
        )],
    },
    Mutant {
        name: "count a transaction that writes nothing as a revision",
        file: "crates/store/src/state.rs",
        patches: &[(
            "if self.next_sub == 0 { self.main - 1 } else { self.main }",
            "if self.next_sub == u32::MAX { self.main - 1 } else { self.main }",
        )],
    },
    Mutant {
        name: "compact at one revision twice",
        file: "crates/store/src/state.rs",
        patches: &[(
            "if request.revision <= compact_revision {",
            "if request.revision < compact_revision {",
        )],
    },
    Mutant {
        name: "read what is compacted",
        file: "crates/store/src/read.rs",
        patches: &[(
            "if asked < state.compact_revision {",
            "if asked < state.compact_revision - 1 {",
        )],
    },
    Mutant {
        name: "go on with a read that compaction has overtaken",
        file: "crates/store/src/store.rs",
        patches: &[(
            "if at < state.position.compact_revision {",
            "if at < state.position.compact_revision.min(0) {",
        )],
    },
    Mutant {
        name: "hash what compaction may have removed",
        file: "crates/store/src/hash.rs",
        patches: &[(
            "let is_retained = self.compact_revision < at.main",
            "let is_retained = 0 < at.main",
        )],
    },
    Mutant {
        name: "tell watchers of events that are compacted",
        file: "crates/store/src/history.rs",
        patches: &[("if at.main <= compact_revision {", "if at.main <= compact_revision.min(0) {")],
    },
    Mutant {
        name: "leave out of a snapshot what is not on disk",
        file: "crates/store/src/history.rs",
        patches: &[(
            "        for chunk in chunks {\n            match parts",
            "        for chunk in chunks.into_iter().take(0) {\n            match parts",
        )],
    },
    Mutant {
        name: "forget a position without events",
        file: "crates/store/src/tail.rs",
        patches: &[(
            "if self.open.position != *position {",
            "if self.open.position.revision != position.revision {",
        )],
    },
    Mutant {
        name: "do not put the compact revision into frames",
        file: "crates/store/src/tail.rs",
        patches: &[(
            "FrameHeader::seal(&mut open.bytes, start, salt, what, position, self.frame_count);",
            "let written = Position { compact_revision: -1, ..*position };\n        FrameHeader::seal(&mut open.bytes, start, salt, what, &written, self.frame_count);",
        )],
    },
    Mutant {
        name: "take for torn what a checkpoint points to (pitfall D7)",
        file: "crates/store/src/checkpoint/load.rs",
        patches: &[("|last| last.max(self.mark))", "|last| last.min(self.mark))")],
    },
    Mutant {
        name: "skip in silence what compaction has taken from a scan",
        file: "crates/store/src/history.rs",
        patches: &[(
            "if is_overtaken { Err(",
            "if is_overtaken && history.position.revision == 0 { Err(",
        )],
    },
    Mutant {
        name: "call compaction done that found the disk full",
        file: "crates/store/src/compaction.rs",
        patches: &[("if *done < *walked && stalled_until.is_none() {", "if *done < *walked {")],
    },
    Mutant {
        name: "remove files before the names that replace them are durable",
        file: "crates/store/src/files.rs",
        patches: &[(
            "        files.sync_dir().map_err(io)?;\n        let mut found =",
            "        let mut found =",
        )],
    },
];
