//! Torn tails that are cut, damage that is refused, and what the refusal says.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki_log::{IdentityRequest, KnownPeers, Log, LogError, LogOptions};
use kontiki_raft::{EntryId, Index, NodeId, StoreId, WriteBatch};
use kontiki_sim::disk::{Fault, SimDisk};

use crate::{
    model::{DIR, Model, options, request},
    open,
    writes::{batch, command, vote},
};

fn segment(number: u64) -> PathBuf {
    Path::new(DIR).join("wal").join(format!("{number:016x}.wal"))
}

fn write(log: &mut Log, batch: WriteBatch) {
    log.write(vec![batch]).expect("nothing fails");
    log.sync().expect("nothing fails");
}

/// Nine entries in three segments.
fn nine_entries() -> (SimDisk, Log, Model) {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk).expect("nothing fails");
    let mut model = Model::new();
    for index in 1..=9 {
        let batches = vec![batch([command(index, 1, 1000)])];
        model.write(&batches);
        log.write(batches).expect("nothing fails");
        log.sync().expect("nothing fails");
    }
    assert!(disk.files().contains(&segment(3)) && !disk.files().contains(&segment(4)));
    (disk, log, model)
}

/// Where each record of a segment begins, and how long it is.
fn records(disk: &SimDisk, path: &Path) -> Vec<(u64, u64)> {
    let content = disk.content(path);
    let mut records = Vec::new();
    let mut at = 4096;
    while let Some(len) = content.get(at..at + 4) {
        let len = u32::from_le_bytes(len.try_into().expect("nothing fails"));
        if len == 0 {
            break;
        }
        records.push((at as u64, u64::from(len)));
        at += usize::try_from(len).expect("nothing fails");
    }
    records
}

fn reopen(disk: &SimDisk) -> Model {
    let (log, opened) = open(disk).expect("nothing fails");
    Model::observe(&log, &opened)
}

/// The log is refused, and left as it was.
fn refusal(disk: &SimDisk) -> LogError {
    let content = |disk: &SimDisk| -> Vec<_> {
        disk.files().into_iter().map(|path| (disk.content(&path), path)).collect()
    };
    let before = content(disk);
    let error = open(disk).expect_err("it is damaged");
    assert_eq!(content(disk), before, "what is refused is not changed");
    error
}

#[test]
fn a_torn_tail_is_cut_in_silence_and_reported() {
    let (disk, log, model) = nine_entries();
    drop(log);
    let (mut log, _) = open(&disk).unwrap();
    log.write(vec![batch([command(10, 1, 600)])]).unwrap(); // not synced
    drop(log);
    let &(offset, len) = records(&disk, &segment(3)).last().unwrap();
    let lost_sector = (offset + len - 1) / 512 * 512;
    disk.overwrite(&segment(3), lost_sector, &[0; 512]);

    let (mut log, opened) = open(&disk).unwrap();
    assert!(Model::observe(&log, &opened) == model);
    let torn = opened.report.torn_tail.unwrap();
    assert_eq!((torn.path, torn.offset), (segment(3), offset));
    // Its place is taken by the next record, whose end is not the end of the remains.
    write(&mut log, batch([command(10, 2, 10)]));
    drop(log);
    assert_eq!(reopen(&disk).last(), EntryId::new(10, 2));
}

/// Pitfall D7. Fully written, so it was acknowledged, or might have been: never cut.
#[test]
fn damage_in_the_last_acknowledged_record_is_refused() {
    let (disk, log, _) = nine_entries();
    drop(log);
    let &(offset, len) = records(&disk, &segment(3)).last().unwrap();
    for at in [offset, offset + 20, offset + 57, offset + 62, offset + 300, offset + len - 1] {
        let disk = disk.fork();
        disk.flip_bit(&segment(3), at * 8 + 3);
        let error = refusal(&disk);
        let LogError::Damaged { path, offset: found, index, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!((path, *found, *index), (&segment(3), offset, Some(Index(9))));
        assert!(error.to_string().contains("replace this server by a new member"), "{error}");
    }
}

/// Pitfall D7. A later record proves that the damaged one had been acknowledged.
#[test]
fn damage_in_the_middle_is_refused() {
    let (disk, log, _) = nine_entries();
    drop(log);
    for number in [1, 3] {
        let (offset, len) = records(&disk, &segment(number))[1];
        let start_index = if number == 1 { 2 } else { 8 };
        for (what, at, bytes) in [
            ("its header is gone", offset, vec![0; 64]),
            ("a page is gone", offset / 512 * 512, vec![0; 1024]),
            ("its header is garbage", offset, vec![0xEE; 64]),
            ("its end is gone", offset + len - 100, vec![0; 100]),
        ] {
            let disk = disk.fork();
            disk.overwrite(&segment(number), at, &bytes);
            let error = refusal(&disk);
            let LogError::Damaged { path, index, .. } = &error else { panic!("{what}: {error}") };
            assert_eq!(path, &segment(number), "{what}");
            assert!(index.is_some_and(|index| index <= Index(start_index)), "{what}: {error}");
        }
    }
}

#[test]
fn a_torn_record_in_a_sealed_segment_is_damage() {
    let (disk, log, _) = nine_entries();
    drop(log);
    let seal = records(&disk, &segment(1)).len() - 1;
    for record in [seal - 1, seal] {
        let (offset, len) = records(&disk, &segment(1))[record];
        let disk = disk.fork();
        let from = offset + len / 2;
        disk.overwrite(&segment(1), from, &vec![0; usize::try_from(offset + len - from).unwrap()]);
        assert!(matches!(refusal(&disk), LogError::Damaged { path, .. } if path == segment(1)));
    }
}

#[test]
fn a_missing_segment_is_missed_wherever_it_was() {
    let (disk, mut log, model) = nine_entries();
    for (number, named) in [(1, segment(2)), (2, segment(2)), (3, segment(2))] {
        let disk = disk.fork();
        disk.kill();
        disk.lose(&segment(number));
        let error = refusal(&disk);
        assert!(error.to_string().contains("missing"), "{error}");
        assert!(matches!(error, LogError::Damaged { path, .. } if path == named));
    }
    // After a purge, too.
    let start = log.purge(model.id(Index(4))).unwrap();
    assert!(start.index < Index(5) && Index(0) < start.index);
    drop(log);
    assert_eq!(reopen(&disk).start, start);
    disk.lose(&segment(2));
    assert!(refusal(&disk).to_string().contains("segments before this one are missing"));
}

#[test]
fn lost_identities_and_lost_logs_are_refused() {
    let (disk, log, _) = nine_entries();
    drop(log);
    let identity = Path::new(DIR).join("identity");

    let lost = disk.fork();
    lost.lose(&identity);
    assert!(refusal(&lost).to_string().contains("it is missing, but there is a log"));

    let lost = disk.fork();
    (1..=3).for_each(|number| lost.lose(&segment(number)));
    assert!(refusal(&lost).to_string().contains("all segments of the log are missing"));

    let cut = disk.fork();
    cut.cut(&segment(3), 5000);
    assert!(refusal(&cut).to_string().contains("it was made with"));

    let other = IdentityRequest { cluster: 0xC2, ..request() };
    let error = Log::open(Arc::new(disk), Path::new(DIR), &other, options()).unwrap_err();
    assert!(matches!(error, LogError::WrongIdentity { .. }));
}

#[test]
fn a_segment_of_another_store_or_another_place_is_refused() {
    let (disk, log, _) = nine_entries();
    drop(log);
    let swapped = disk.fork();
    swapped.overwrite(&segment(2), 0, &disk.content(&segment(3)));
    assert!(refusal(&swapped).to_string().contains("its name says segment 2, its header 3"));

    let other = SimDisk::new();
    let request = IdentityRequest { new_store: StoreId(9), ..request() };
    drop(Log::open(Arc::new(other.clone()), Path::new(DIR), &request, options()).unwrap());
    let foreign = disk.fork();
    foreign.overwrite(&segment(1), 0, &other.content(&segment(1)));
    assert!(matches!(refusal(&foreign), LogError::Foreign { .. }));
}

/// Pitfall D4. It is not tried again, and not believed when the kernel calls the next one a
/// success.
#[test]
fn a_failed_fsync_is_final() {
    for seed in 0..8 {
        let disk = SimDisk::with_seed(seed);
        let (mut log, _) = open(&disk).unwrap();
        write(&mut log, vote(1, 1));
        log.write(vec![batch([command(1, 1, 2000)])]).unwrap();
        disk.fail_at(disk.ops() + 1, Fault::Io);
        assert!(matches!(log.sync(), Err(LogError::Io { op: "sync", .. })));
        let ops = disk.ops();
        assert!(matches!(log.sync(), Err(LogError::Poisoned)));
        assert!(matches!(log.write(vec![vote(2, 2)]), Err(LogError::Poisoned)));
        assert!(matches!(log.purge(EntryId::ZERO), Err(LogError::Poisoned)));
        assert_eq!(disk.ops(), ops, "nothing is even tried");
        drop(log);

        // The process restarts and finds what the cache says. What it finds it may build on.
        disk.kill();
        let found = reopen(&disk);
        disk.crash(seed);
        assert!(reopen(&disk) == found, "what was found after the restart is durable");
    }
}

/// Pitfall D5. Names are made durable, not only bytes.
#[test]
fn a_crash_takes_no_name_that_is_needed() {
    for seed in 0..32 {
        let disk = SimDisk::new();
        drop(open(&disk).unwrap());
        disk.crash(seed);
        let request = IdentityRequest { new_store: StoreId(99), ..request() };
        let (mut log, opened) =
            Log::open(Arc::new(disk.clone()), Path::new(DIR), &request, options()).unwrap();
        assert_eq!(opened.identity.store, StoreId(0x5701), "made once");
        for index in 1..=12 {
            write(&mut log, batch([command(index, 1, 1000)]));
        }
        disk.crash(seed);
        assert_eq!(reopen(&disk).last(), EntryId::new(12, 1));

        let mut peers = KnownPeers::open(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
        peers.check_or_remember(NodeId(2), StoreId(22)).unwrap();
        disk.crash(seed);
        let peers = KnownPeers::open(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
        assert_eq!(peers.store(NodeId(2)), Some(StoreId(22)));
    }
}

/// Pitfall D6. Whatever stands in the files, there is an answer and never a panic; and garbage
/// where a record was is not cut.
#[test]
fn arbitrary_bytes_are_refused_and_never_panic() {
    let (disk, log, model) = nine_entries();
    drop(log);
    let mut z: u64 = 1;
    let mut random = || {
        z ^= z << 13;
        z ^= z >> 7;
        z ^= z << 17;
        z
    };
    for _ in 0..1500 {
        let disk = disk.fork();
        let files = disk.files();
        let path = &files[usize::try_from(random()).unwrap() % files.len()];
        let len = disk.content(path).len() as u64;
        let at = random() % len;
        let count = (1 + random() % 40).min(len - at);
        let bytes: Vec<u8> = (0..count).map(|_| random().to_le_bytes()[0]).collect();
        disk.overwrite(path, at, &bytes);
        if let Ok((log, opened)) = open(&disk) {
            let found = Model::observe(&log, &opened);
            assert!(found == model, "{} at {at}: {found}", path.display());
        }
    }
}

/// Pitfall D11. One sync covers all writes before it, whatever their number.
#[test]
fn one_sync_covers_all_writes_before_it() {
    for seed in 0..16 {
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk).unwrap();
        log.write(vec![vote(1, 1)]).unwrap();
        log.write(vec![batch([command(1, 1, 3000)])]).unwrap();
        log.write(vec![batch([command(2, 1, 3000)])]).unwrap(); // the next segment
        log.sync().unwrap();
        disk.crash(seed);
        let found = reopen(&disk);
        assert_eq!(found.last(), EntryId::new(2, 1));
        assert_eq!(found.hard_state.voted_for, Some(NodeId(1)));
    }
}

/// Pitfall B5. A term without its vote, or a vote without the entries under it, is never found.
#[test]
fn hard_state_and_entries_reach_the_disk_together() {
    for seed in 0..64 {
        let disk = SimDisk::new();
        let (mut log, _) = open(&disk).unwrap();
        write(&mut log, vote(1, 1));
        let mut both = vote(2, 3);
        both.entries = (1..=5).map(|index| command(index, 2, 500)).collect();
        log.write(vec![both]).unwrap();
        disk.crash(seed);
        let found = reopen(&disk);
        let is_new = found.hard_state.voted_for == Some(NodeId(3));
        assert_eq!(found.entries.len(), if is_new { 5 } else { 0 }, "seed {seed}");
    }
}

/// etcd #22442. A tail that was replaced does not come back, be it by a restart, a purge, or
/// because the tail was longer than what replaced it.
#[test]
fn a_truncated_tail_is_never_resurrected() {
    for seed in 0..16 {
        let (disk, mut log, mut model) = nine_entries();
        let replaced = vec![batch([command(4, 2, 50)])];
        model.write(&replaced);
        write(&mut log, replaced.into_iter().next().unwrap());
        let start = log.purge(model.id(Index(3))).unwrap();
        assert!(log.reader().read(Index(5)..=Index(5), 1).is_err());
        disk.crash(seed);
        assert!(reopen(&disk) == model.purged(start));

        // All that is left of the old tail goes with its segments.
        let (mut log, _) = open(&disk).unwrap();
        let start = log.purge(EntryId::new(4, 2)).unwrap();
        write(&mut log, batch([command(5, 2, 50)]));
        disk.crash(seed);
        let found = reopen(&disk);
        assert_eq!((found.start, found.last()), (start, EntryId::new(5, 2)));
    }
}

/// A vote may stand in a segment that is purged. It counts all the same.
#[test]
fn a_vote_survives_the_purge_of_its_segment() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk).unwrap();
    write(&mut log, vote(7, 2));
    for index in 1..=9 {
        write(&mut log, batch([command(index, 7, 1000)]));
    }
    log.purge(EntryId::new(7, 7)).unwrap();
    assert!(!disk.files().contains(&segment(1)));
    drop(log);
    let found = reopen(&disk).hard_state;
    assert_eq!((found.term.get(), found.voted_for), (7, Some(NodeId(2))));
}

/// Pitfall M14. What cannot be read is an error, never the end of the log.
#[test]
fn an_unreadable_entry_is_an_error() {
    let (disk, log, _) = nine_entries();
    let (offset, len) = records(&disk, &segment(2))[1];
    let reader = log.reader();
    assert_eq!(reader.read(Index(1)..=Index(9), usize::MAX).unwrap().len(), 9);
    disk.make_unreadable(&segment(2), offset + 100..offset + 101);
    let error = reader.read(Index(1)..=Index(9), usize::MAX).unwrap_err();
    assert!(matches!(error, LogError::Io { op: "read", .. }));
    drop(log);
    assert!(matches!(refusal(&disk), LogError::Io { op: "read", .. }));

    let (disk, log, _) = nine_entries();
    disk.flip_bit(&segment(2), (offset + len - 200) * 8);
    let error = log.reader().read(Index(1)..=Index(9), usize::MAX).unwrap_err();
    let LogError::Damaged { path, index: Some(index), .. } = &error else { panic!("{error}") };
    assert_eq!(path, &segment(2));
    assert!(log.reader().read(Index(1)..=index.prev(), usize::MAX).is_ok());
    assert!(log.reader().read(index.next()..=Index(9), usize::MAX).is_ok());
}

/// What a reader was promised it can read, though the writer has gone on.
#[test]
fn readers_see_the_log_as_it_is() {
    let (_disk, mut log, model) = nine_entries();
    let reader = log.reader();
    write(&mut log, batch([command(7, 2, 10)]));
    assert_eq!(reader.read(Index(6)..=Index(99), usize::MAX).unwrap().len(), 2);
    assert_eq!(reader.read(Index(7)..=Index(7), 0).unwrap(), [command(7, 2, 10)]);
    let start = log.purge(model.id(Index(6))).unwrap();
    assert_eq!(reader.bounds(), (start, EntryId::new(7, 2)));
    let error = reader.read(start.index..=Index(7), 1).unwrap_err();
    assert!(matches!(error, LogError::Purged { log_start, .. } if log_start == start));
    let first = start.index.next();
    assert_eq!(reader.read(first..=first, 1).unwrap()[0].id.index, first);
}

/// A full disk is noticed by whoever makes spares, long before a write needs one.
#[test]
fn a_full_disk_refuses_before_anything_is_written() {
    let (disk, mut log, model) = nine_entries();
    disk.set_capacity(disk.used() + 1000);
    assert!(matches!(log.spares().fill(), Err(LogError::NoSpace { .. })));
    let large = || vec![batch([command(10, 1, 3500)])];
    let error = log.write(large()).unwrap_err();
    assert!(matches!(error, LogError::NoSpace { .. }));
    assert!(error.to_string().contains("nothing is lost"), "{error}");
    write(&mut log, vote(2, 2)); // what fits is taken still
    disk.set_capacity(u64::MAX);
    log.write(large()).unwrap();
    log.sync().unwrap();
    disk.crash(0);
    let found = reopen(&disk);
    assert_eq!(found.last(), EntryId::new(10, 1));
    assert!(found.entries[..9] == model.entries);
}

/// Row 9 of the table of disk faults. The last spare of a full disk is a reserve: entries do
/// not get it, a vote does, and so does the purge that makes room. The same batch that was
/// refused is written when there is room.
#[test]
fn the_last_spare_of_a_full_disk_is_for_votes_and_purges() {
    let full = || {
        let (disk, log, model) = nine_entries();
        while log.spares().fill().unwrap() {}
        disk.set_capacity(disk.used() + 1000);
        let disk_is_full = disk.fork();
        drop(log);
        disk_is_full.kill();
        let options = LogOptions { spares: 2, ..options() };
        let (mut log, _) =
            Log::open(Arc::new(disk_is_full.clone()), Path::new(DIR), &request(), options).unwrap();
        assert!(matches!(log.spares().fill(), Err(LogError::NoSpace { .. })));
        let large = log.write(vec![batch([command(10, 1, 3500)])]);
        assert!(matches!(large, Err(LogError::NoSpace { .. })));
        // Fill what is left of the segment.
        while log.write(vec![vote(2, 2)]).is_ok() && !disk_is_full.files().contains(&segment(4)) {}
        assert!(disk_is_full.files().contains(&segment(4)), "a vote takes the reserve");
        log.sync().unwrap();
        (disk_is_full, log, model)
    };
    let (disk, mut log, model) = full();
    let refused = || vec![batch([command(10, 2, 3950)])];
    assert!(matches!(log.write(refused()), Err(LogError::NoSpace { .. })), "nothing is left");
    log.purge(model.id(Index(6))).unwrap();
    assert!(log.spares().fill().unwrap(), "there is room");
    log.write(refused()).unwrap();
    log.sync().unwrap();
    drop(log);
    disk.crash(4);
    let found = reopen(&disk);
    assert_eq!(found.last(), EntryId::new(10, 2));
    assert_eq!(found.hard_state.voted_for, Some(NodeId(2)));
}
