//! Every single bit of a small log flips once.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki_log::{Log, LogError, LogOptions};
use kontiki_raft::{Entry, EntryId, Payload};
use kontiki_sim::disk::SimDisk;

use crate::{
    model::{DIR, Model, options, request},
    open,
    writes::{batch, command, membership, vote},
};

/// Three segments: the first purged and gone, the second sealed, the third in use. The last
/// record carries what looks like a sector that was never written.
pub(crate) fn small_log() -> (SimDisk, Model) {
    let disk = SimDisk::new();
    let options = LogOptions { segment_bytes: 5 << 10, ..options() };
    let (mut log, _) = Log::open(Arc::new(disk.clone()), Path::new(DIR), &request(), options)
        .expect("an empty disk");
    let mut write = |batches| {
        log.write(batches).expect("nothing fails");
        log.sync().expect("nothing fails");
    };
    write(vec![vote(1, 1), batch([command(1, 1, 20), command(2, 1, 700)])]);
    write(vec![batch([command(3, 1, 100), membership(4, 1, "n1:2")])]);
    write(vec![vote(2, 2), batch([command(4, 2, 100), command(5, 2, 200)])]);
    write(vec![batch([command(6, 2, 150)])]);
    log.purge(EntryId::new(3, 1)).expect("nothing fails");
    // Fills its record to the last byte, so no padding ends it.
    let zeros = Payload::Command(vec![0; 232].into());
    let zeros = Entry::new(EntryId::new(7, 3), zeros);
    log.write(vec![vote(3, 1), batch([zeros])]).expect("nothing fails");
    log.sync().expect("nothing fails");
    drop(log);
    let (log, opened) = open(&disk).expect("it was closed in order");
    assert_eq!(opened.report.segments, 2, "one was purged, one is sealed, one is in use");
    let truth = Model::observe(&log, &opened);
    drop(log);
    (disk, truth)
}

/// What became of a flip.
#[derive(Debug, PartialEq)]
enum Fate {
    Refused,
    Harmless,
}

/// Flips a bit, opens the log, and leaves the disk as it was.
fn flip(disk: &mut SimDisk, pristine: &SimDisk, truth: &Model, path: &Path, bit: u64) -> Fate {
    let place = || format!("{} byte {} bit {}", path.display(), bit / 8, bit % 8);
    disk.flip_bit(path, bit);
    match open(disk) {
        Err(
            LogError::Damaged { .. } | LogError::Version { .. } | LogError::WrongIdentity { .. },
        ) => {
            disk.flip_bit(path, bit); // what is refused is not changed
            Fate::Refused
        }
        Err(error) => panic!("{}: {error}", place()),
        Ok((log, opened)) => {
            let found = Model::observe(&log, &opened);
            assert!(found == *truth, "{}: {found} instead of {truth}", place());
            goes_on(log, disk, &found);
            *disk = pristine.fork();
            Fate::Harmless
        }
    }
}

/// A log that took no harm takes writes, and is found again with them.
fn goes_on(mut log: Log, disk: &SimDisk, found: &Model) {
    let next = vec![batch([command(found.last().index.get() + 1, 9, 700)])];
    let mut expected = found.clone();
    expected.write(&next);
    log.write(next).expect("nothing fails");
    log.sync().expect("nothing fails");
    drop(log);
    disk.crash(0);
    let (log, opened) = open(disk).expect("it goes on");
    assert!(Model::observe(&log, &opened) == expected);
}

/// Where the records of a segment end.
pub(crate) fn used(content: &[u8]) -> u64 {
    content.iter().rposition(|&byte| byte != 0).map_or(0, |at| at as u64 + 1)
}

/// Never a wrong entry, never one that is missing in silence: not for any bit.
#[test]
fn every_flipped_bit_is_refused_or_harmless() {
    let (pristine, truth) = small_log();
    let mut disk = pristine.fork();
    let mut fates = [0_u32; 2];
    for path in disk.files() {
        let content = disk.content(&path);
        let (used, all) = (used(&content) * 8, content.len() as u64 * 8);
        let header = used.min(100 * 8);
        let records = used.min(4096 * 8);
        // Where nothing was written one bit is like another: the next few are tried, then some.
        let behind = (header..records).step_by(97).chain(used..all.min(used + 600));
        let behind = behind.chain((used..all).step_by(397));
        for bit in (0..header).chain(records..used).chain(behind) {
            let fate = flip(&mut disk, &pristine, &truth, &path, bit);
            let is_record = (4096 * 8..used).contains(&bit);
            assert!(!is_record || fate == Fate::Refused, "{} bit {bit}", path.display());
            fates[usize::from(fate == Fate::Harmless)] += 1;
        }
    }
    assert!(fates.iter().all(|&count| 100 < count), "both happen: {fates:?}");
}

/// A whole sector of an acknowledged record rots, to zeros or to ones.
#[test]
fn every_lost_sector_before_the_last_record_is_refused() {
    let (disk, truth) = small_log();
    let segments: Vec<PathBuf> =
        disk.files().into_iter().filter(|path| path.starts_with(format!("{DIR}/wal"))).collect();
    for path in segments.iter().filter(|path| path.extension().is_some_and(|e| e == "wal")) {
        let used = used(&disk.content(path));
        for sector in (0..used.div_ceil(512)).map(|sector| sector * 512) {
            for value in [0x00, 0xFF] {
                let disk = disk.fork();
                let before = disk.content(path);
                disk.overwrite(path, sector, &[value; 512]);
                let is_same = disk.content(path) == before;
                match open(&disk) {
                    Err(LogError::Damaged { .. }) => {}
                    Err(error) => panic!("{} at {sector}: {error}", path.display()),
                    Ok((log, opened)) => {
                        let found = Model::observe(&log, &opened);
                        // The last record, gone without a trace, is what nobody can see; the
                        // state machine knows more and refuses then.
                        let lost_last = value == 0 && used - 512 < sector + 512;
                        assert!(
                            is_same || found == truth || lost_last,
                            "{} at {sector} set to {value}: {found}",
                            path.display()
                        );
                    }
                }
            }
        }
    }
}
