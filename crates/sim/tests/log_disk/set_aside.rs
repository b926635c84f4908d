//! Damage that is set aside: the log goes on with what is certain, says what it has lost, and
//! keeps the rest for whoever wants to look at it.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki_log::{Log, LogError, Opened, Snapshots};
use kontiki_raft::{EntryId, Index, SnapshotMeta, WriteBatch};
use kontiki_sim::disk::{Fault, SimDisk};

use crate::{
    bit_flips::{small_log, used},
    model::{DIR, Expected, Model, open_setting_aside as open},
    writes::{batch, command, committed, reset, vote},
};

fn segment(number: u64) -> PathBuf {
    Path::new(DIR).join("wal").join(format!("{number:016x}.wal"))
}

fn write(log: &mut Log, batch: WriteBatch) {
    log.write(vec![batch]).expect("nothing fails");
    log.sync().expect("nothing fails");
}

/// Twelve entries in four segments, each committed by the next but the last.
fn twelve_entries() -> (SimDisk, Model) {
    let disk = SimDisk::with_seed(5);
    let (mut log, opened) = open(&disk).expect("nothing fails");
    let mut model = Model::observe(&log, &opened);
    for index in 1..=12 {
        let batch = committed(1, index - 1, [command(index, 1, 1000)]);
        model.write(std::slice::from_ref(&batch));
        write(&mut log, batch);
    }
    drop(log);
    disk.kill();
    assert!(disk.files().contains(&segment(4)) && !disk.files().contains(&segment(5)));
    (disk, model)
}

/// Where each record of a segment begins, and how long it is.
fn records(disk: &SimDisk, path: &Path) -> Vec<(u64, usize)> {
    let content = disk.content(path);
    let mut records = Vec::new();
    let mut at = 4096;
    while let Some(len) = content.get(at..at + 4) {
        let len = u32::from_le_bytes(len.try_into().expect("four bytes"));
        let len = usize::try_from(len).expect("small");
        if len == 0 {
            break;
        }
        records.push((at as u64, len));
        at += len;
    }
    records
}

/// The same log without what follows `last`.
fn truncated(log: &Model, last: Index) -> Model {
    let mut truncated = log.clone();
    truncated.entries.retain(|entry| entry.id.index <= last);
    truncated
}

fn observe(disk: &SimDisk, what: &str) -> (Model, Option<RangeInclusive<Index>>, Opened) {
    let (log, opened) = open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    (Model::observe(&log, &opened), opened.recovered.damaged.clone(), opened)
}

fn range(first: u64, last: u64) -> RangeInclusive<Index> {
    Index(first)..=Index(last)
}

type Harm = (&'static str, fn(&SimDisk), u64);

/// What can happen to twelve entries, and the last one of which nothing is lost.
fn harms() -> Vec<Harm> {
    fn zero(disk: &SimDisk, number: u64, record: usize, part: RangeInclusive<usize>) {
        let (at, len) = records(disk, &segment(number))[record];
        let (from, to) = (len * part.start() / 100, len * part.end() / 100);
        disk.overwrite(&segment(number), at + from as u64, &vec![0; to - from]);
    }
    vec![
        ("a payload changed", |disk| disk.flip_bit(&segment(2), (4096 + 300) * 8), 3),
        ("a header changed", |disk| disk.flip_bit(&segment(2), (4096 + 20) * 8), 2),
        ("a header is gone", |disk| disk.overwrite(&segment(2), 4096, &[0; 64]), 2),
        ("a record is gone", |disk| zero(disk, 3, 1, 0..=100), 6),
        ("half of the last record", |disk| zero(disk, 4, 2, 40..=60), 11),
        ("the last record changed", |disk| disk.flip_bit(&segment(4), used_bit(disk, 4)), 11),
        ("a seal is gone", |disk| zero(disk, 1, 3, 0..=100), 2),
        ("the last seal is gone", |disk| zero(disk, 3, 3, 0..=100), 8),
        ("the header of a segment", |disk| disk.flip_bit(&segment(3), 130), 5),
        ("a segment is missing", |disk| disk.lose(&segment(2)), 2),
        ("the last segment is missing", |disk| disk.lose(&segment(4)), 8),
        ("a segment is cut", |disk| disk.cut(&segment(3), 5000), 5),
        ("the first segment is missing", |disk| disk.lose(&segment(1)), 0),
        ("the first header changed", |disk| disk.flip_bit(&segment(1), 130), 0),
        ("a sector cannot be read", |disk| disk.make_unreadable(&segment(2), 5200..5201), 3),
    ]
}

fn used_bit(disk: &SimDisk, number: u64) -> u64 {
    used(&disk.content(&segment(number))) * 8 - 5
}

/// Pitfall D7. Nothing that was acknowledged is dropped in silence: what is left is right, what
/// is missing is told of, on every start until it is repaired, and what was damaged is kept.
#[test]
fn damage_is_set_aside_and_told_of_until_it_is_repaired() {
    for (what, harm, kept) in harms() {
        let (disk, truth) = twelve_entries();
        harm(&disk);
        let (found, damaged, opened) = observe(&disk, what);
        let mut expected = truncated(&truth, Index(kept));
        expected.hard_state = found.hard_state;
        assert!(found == expected, "{what}: {found} instead of {expected}");
        let lost = damaged.unwrap_or_else(|| panic!("{what}: not a word"));
        assert_eq!(*lost.start(), Index(kept + 1), "{what}");
        let known = if what == "the last segment is missing" { 9 } else { 11 };
        assert!(Index(known) <= *lost.end() && *lost.end() <= Index(12), "{what}: {lost:?}");
        let is_last = |state: u64| truth.hard_state.commit.get() - state <= 3;
        assert!(is_last(found.hard_state.commit.get()), "{what}: {:?}", found.hard_state);
        let report = opened.report.damage.expect("it was found just now");
        assert_eq!(report.entries, lost, "{what}");
        assert!(!report.set_aside.is_empty() || kept == 8, "{what}");
        let aside: Vec<Vec<u8>> = report.set_aside.iter().map(|p| disk.content(p)).collect();

        // Again and again, though more is written, and the power fails.
        for seed in 0..3 {
            disk.crash(seed);
            let (again, damaged, opened) = observe(&disk, what);
            assert!(again == found && damaged.as_ref() == Some(&lost), "{what}");
            assert_eq!(opened.report.damage, None, "{what}: it is known");
        }
        let (mut log, _) = open(&disk).unwrap();
        let missing = truth.entries[usize::try_from(kept).unwrap()..].to_vec();
        write(&mut log, batch(missing));
        drop(log);
        assert_eq!(observe(&disk, what).1.as_ref(), Some(&lost), "{what}");

        let (mut log, _) = open(&disk).unwrap();
        let repaired = WriteBatch { is_repaired: true, ..vote(9, 2) };
        log.write(vec![repaired]).unwrap();
        assert!(disk.files().contains(&Path::new(DIR).join("damaged")), "not durable yet");
        log.sync().unwrap();
        drop(log);
        disk.crash(1);
        let (whole, damaged, _) = observe(&disk, what);
        assert_eq!((damaged, whole.hard_state.term.get()), (None, 9), "{what}");
        assert!(whole.entries == truth.entries, "{what}");
        assert_eq!(aside, report.set_aside.iter().map(|p| disk.content(p)).collect::<Vec<_>>());
    }
}

/// Pitfalls D5 and D6. Interrupted at any operation, by a power failure or an error, it is done
/// at the next start, with the same result.
#[test]
fn setting_aside_may_be_interrupted_after_every_operation_of_the_disk() {
    for (what, harm, _) in harms() {
        let (disk, _) = twelve_entries();
        harm(&disk);
        let expected = {
            let disk = disk.fork();
            let (found, damaged, _) = observe(&disk, what);
            (found, damaged)
        };
        let first = disk.ops();
        let last = {
            let disk = disk.fork();
            open(&disk).unwrap();
            disk.ops()
        };
        for op in first..last {
            for seed in 0..4 {
                let what = format!("{what}, crash {seed} after operation {op}");
                let disk = disk.fork();
                disk.halt_after(op);
                assert!(open(&disk).is_err(), "{what}");
                disk.crash(seed);
                let (found, damaged, _) = observe(&disk, &what);
                assert!((found, damaged) == expected, "{what}");
            }
            for fault in [Fault::Io, Fault::NoSpace] {
                let what = format!("{what}, {fault:?} at operation {}", op + 1);
                let disk = disk.fork();
                disk.fail_at(op + 1, fault);
                if let Err(error) = open(&disk) {
                    let is_typed = matches!(error, LogError::Io { .. } | LogError::NoSpace { .. });
                    assert!(is_typed, "{what}: {error}");
                }
                disk.kill();
                let (found, damaged, _) = observe(&disk, &what);
                assert!((found, damaged) == expected, "{what}");
            }
        }
    }
}

/// etcd #22442. What was replaced does not come back when that which replaced it is damaged,
/// not even if nothing is left to read of it.
#[test]
fn damage_does_not_resurrect_what_was_truncated() {
    let disk = SimDisk::new();
    let (mut log, _) = open(&disk).unwrap();
    for index in 1..=9 {
        write(&mut log, committed(1, (index - 1).min(2), [command(index, 1, 200)]));
    }
    write(&mut log, committed(2, 3, [command(5, 2, 200)])); // 5..=9 of term 1 are gone
    write(&mut log, committed(2, 5, [command(6, 2, 200)]));
    drop(log);
    disk.kill();
    let records = records(&disk, &segment(1));
    let (&(replacing, _), &(last, _)) = (&records[9], &records[10]);
    for (what, at, len, kept, lost) in [
        ("its header tells what it replaced", replacing + 100, 1, EntryId::new(4, 1), 6),
        ("nothing is left of it: back to the commit index", replacing, 64, EntryId::new(2, 1), 6),
        ("it is whole", last + 100, 1, EntryId::new(5, 2), 6),
        ("it is whole, nothing is left behind it", last, 64, EntryId::new(3, 1), 6),
    ] {
        let disk = disk.fork();
        let garbage = vec![0xEE; len];
        disk.overwrite(&segment(1), at, &garbage);
        let (found, damaged, _) = observe(&disk, what);
        assert_eq!(found.last(), kept, "{what}");
        let Some(range) = damaged else { panic!("{what}") };
        assert_eq!(*range.start(), kept.index.next(), "{what}");
        assert!(Index(5) <= *range.end() && *range.end() <= Index(lost + 3), "{what}: {range:?}");
        disk.crash(0);
        assert!(observe(&disk, what).0 == found, "{what}");
    }
}

/// A second damage before the first is repaired: both are told of.
#[test]
fn damage_adds_up() {
    let (disk, truth) = twelve_entries();
    disk.flip_bit(&segment(3), (4096 + 300) * 8);
    let (_, first, _) = observe(&disk, "first");
    assert_eq!(first, Some(range(7, 12)));
    disk.flip_bit(&segment(1), (4096 + 300) * 8);
    let (found, second, opened) = observe(&disk, "second");
    assert_eq!(second, Some(range(1, 12)));
    assert_eq!((found.last(), opened.report.damage.unwrap().set_aside.len()), (EntryId::ZERO, 2));
    let aside = disk.files().into_iter().filter(|p| p.display().to_string().contains(".damaged-"));
    assert_eq!(aside.count(), 5);
    assert_eq!(found.hard_state, truth.hard_state);
}

/// Where the log began is told by a record that may be lost. Then a snapshot tells, or the log
/// begins with the cluster.
#[test]
fn a_log_without_its_start_goes_on_from_a_snapshot() {
    let (disk, truth) = twelve_entries();
    let (mut log, _) = open(&disk).unwrap();
    let start = log.purge(truth.id(Index(6))).unwrap();
    assert!(Index(3) <= start.index);
    drop(log);
    disk.kill();
    let first = disk.files().into_iter().find(|p| p.extension().is_some_and(|e| e == "wal"));
    disk.flip_bit(&first.unwrap(), (4096 + 300) * 8);

    let without = disk.fork();
    let (found, damaged, _) = observe(&without, "without a snapshot");
    assert_eq!((found.start, found.last()), (EntryId::ZERO, EntryId::ZERO));
    assert_eq!(damaged, Some(range(1, 12)));
    assert_eq!(found.hard_state, truth.hard_state);

    let snapshots = Snapshots::open(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
    let membership = truth.purged(EntryId::ZERO).memberships()[0].1.clone();
    let meta = SnapshotMeta { last: EntryId::new(8, 1), membership };
    snapshots.begin(&meta).unwrap().finish().unwrap();
    let (found, damaged, _) = observe(&disk, "with a snapshot");
    assert_eq!((found.start, found.last()), (meta.last, meta.last));
    assert_eq!(damaged, Some(range(9, 12)));

    // And it is a log like any other.
    let (mut log, _) = open(&disk).unwrap();
    let mut expected = Expected::new(found);
    for batches in [vec![batch([command(9, 2, 3000)])], vec![batch([command(10, 2, 3000)])]] {
        expected.write(&batches);
        log.write(batches).unwrap();
        log.sync().unwrap();
        expected.synced();
    }
    drop(log);
    disk.crash(3);
    assert!(expected.allows(&observe(&disk, "gone on").0));
}

/// Pitfall M9. A reset drops what is damaged like everything else; the damage is told of still,
/// for a vote may have been among it.
#[test]
fn a_damaged_log_can_be_reset() {
    let (disk, _) = twelve_entries();
    disk.flip_bit(&segment(2), (4096 + 300) * 8);
    let (mut log, _) = open(&disk).unwrap();
    write(&mut log, reset(40, 7, [command(41, 7, 10)]));
    drop(log);
    disk.crash(2);
    let (found, damaged, _) = observe(&disk, "reset");
    assert_eq!((found.start, found.last()), (EntryId::new(40, 7), EntryId::new(41, 7)));
    assert_eq!(damaged, Some(range(4, 12)));
}

/// What cannot be done without is refused, whatever the options say.
#[test]
fn what_must_not_be_lost_is_refused() {
    let refused = |harm: &dyn Fn(&SimDisk)| {
        let (disk, _) = twelve_entries();
        disk.flip_bit(&segment(2), (4096 + 300) * 8);
        drop(open(&disk).unwrap());
        disk.kill();
        harm(&disk);
        open(&disk).unwrap_err()
    };
    let file = |name: &str| Path::new(DIR).join(name);
    for name in ["identity", "damaged"] {
        let error = refused(&|disk| disk.flip_bit(&file(name), 200));
        assert!(matches!(error, LogError::Damaged { path, .. } if path == file(name)));
    }
    let error = refused(&|disk| disk.lose(&file("identity")));
    assert!(error.to_string().contains("it is missing, but there is a log"), "{error}");
    let error = refused(&|disk| (1..=2).for_each(|number| disk.lose(&segment(number))));
    assert!(error.to_string().contains("all segments of the log are missing"), "{error}");
}

/// No flipped bit brings out an entry that is wrong or was replaced, or loses one in silence.
#[test]
fn every_flipped_bit_is_set_aside_or_harmless() {
    let (pristine, truth) = small_log();
    let mut set_aside = 0;
    for path in pristine.files() {
        let content = pristine.content(&path);
        let bits = used(&content) * 8;
        let sample = (0..800.min(bits)).chain((4096 * 8..bits).step_by(3));
        for bit in sample {
            let what = format!("{} byte {} bit {}", path.display(), bit / 8, bit % 8);
            let disk = pristine.fork();
            disk.flip_bit(&path, bit);
            let (log, opened) = match open(&disk) {
                Ok(opened) => opened,
                Err(LogError::Damaged { path: at, .. }) if at == path => {
                    assert!(path.ends_with("identity"), "{what}");
                    continue;
                }
                Err(error) => panic!("{what}: {error}"),
            };
            let found = Model::observe(&log, &opened);
            let Some(lost) = opened.recovered.damaged else {
                assert!(found == truth, "{what}: {found} instead of {truth}");
                continue;
            };
            set_aside += 1;
            assert!(found.entries.iter().all(|entry| truth.entries.contains(entry)), "{what}");
            assert_eq!(*lost.start(), found.last().index.next(), "{what}");
            assert!(Index(6) <= *lost.end() && *lost.end() <= Index(7), "{what}: {lost:?}");
            assert!(found.hard_state.term.get() <= 3, "{what}");
            assert!(2 <= found.hard_state.term.get(), "{what}: {:?}", found.hard_state);
        }
    }
    assert!(1000 < set_aside, "{set_aside}");
}

/// Pitfalls D6 and D8. Whatever stands in the files, there is an answer and never a panic.
#[test]
fn arbitrary_bytes_are_set_aside_and_never_panic() {
    let (disk, truth) = twelve_entries();
    let mut z: u64 = 1;
    let mut random = || {
        z ^= z << 13;
        z ^= z >> 7;
        z ^= z << 17;
        z
    };
    for _ in 0..400 {
        let disk = disk.fork();
        let files = disk.files();
        for _ in 0..=random() % 3 {
            let path = &files[usize::try_from(random()).unwrap() % files.len()];
            let len = disk.content(path).len() as u64;
            let at = random() % len;
            let count = (1 + random() % 40).min(len - at);
            let bytes: Vec<u8> = (0..count).map(|_| random().to_le_bytes()[0]).collect();
            disk.overwrite(path, at, &bytes);
        }
        if let Ok((log, opened)) = open(&disk) {
            let found = Model::observe(&log, &opened);
            assert!(
                found == truncated(&truth, found.last().index) || found.entries.is_empty() || {
                    let mut same = truncated(&truth, found.last().index);
                    same.hard_state = found.hard_state;
                    same == found
                }
            );
            assert!(found == truth || opened.recovered.damaged.is_some(), "{found}");
        }
    }
}

/// What is cut may lie before the segment that says so, and that before it may be purged.
#[test]
fn a_cut_below_its_segment_survives_a_purge() {
    let disk = SimDisk::new();
    let (mut log, opened) = open(&disk).unwrap();
    let mut expected = Expected::new(Model::observe(&log, &opened));
    for index in 1..=9 {
        write(&mut log, committed(1, (index - 1).min(2), [command(index, 1, 1000)]));
    }
    drop(log);
    disk.kill();
    let (second, _) = records(&disk, &segment(3))[1];
    disk.overwrite(&segment(3), second, &[0xEE; 64]);
    let (found, damaged, _) = observe(&disk, "damaged");
    assert_eq!((found.last(), damaged), (EntryId::new(2, 1), Some(range(3, 9))));

    expected.durable = found;
    let (mut log, _) = open(&disk).unwrap();
    for index in 3..=5 {
        let batches = vec![batch([command(index, 2, 1000)])];
        expected.write(&batches);
        log.write(batches).unwrap();
        log.sync().unwrap();
        expected.synced();
    }
    let start = log.purge(EntryId::new(2, 1)).unwrap();
    assert_eq!(start, EntryId::new(2, 1));
    assert!(!disk.files().contains(&segment(2)));
    expected.purged(start);
    drop(log);
    for seed in 0..4 {
        disk.crash(seed);
        let (found, _, opened) = observe(&disk, "purged");
        assert!(expected.allows(&found), "{found}\n{expected}");
        assert_eq!(opened.report.damage, None);
    }
}
