//! Snapshot files on the simulated disk: interrupted everywhere, damaged everywhere.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki_log::{LogError, Receiving, SnapshotInfo, SnapshotReceiver, Snapshots};
use kontiki_raft::{EntryId, Index, Membership, NodeId, SnapshotMeta};
use kontiki_sim::disk::{Fault, SimDisk};

use crate::model::DIR;

const CHUNK_BYTES: usize = 100;

fn open(disk: &SimDisk) -> Result<Snapshots, LogError> {
    Snapshots::open_with_chunks(Arc::new(disk.clone()), Path::new(DIR), CHUNK_BYTES)
}

fn meta(index: u64) -> SnapshotMeta {
    let membership = Arc::new(Membership::of_voters([(NodeId(1), format!("n1:{index}"))]));
    SnapshotMeta { last: EntryId::new(index, 3), membership }
}

fn path(index: u64) -> PathBuf {
    Path::new(DIR).join("snapshot").join(format!("{index:016x}-0000000000000003.snap"))
}

/// A few chunks and a bit, different for each index.
fn content(index: u64) -> Vec<u8> {
    let len = usize::try_from(1050 + index).expect("small");
    (0..len as u64).map(|at| (at * index % 251).to_le_bytes()[0]).collect()
}

fn make(snapshots: &Snapshots, index: u64) -> Result<SnapshotInfo, LogError> {
    let mut writer = snapshots.begin(&meta(index))?;
    for part in content(index).chunks(170) {
        if let Err(error) = writer.write_all(part) {
            return Err(error.downcast().expect("an error of ours"));
        }
    }
    writer.finish()
}

fn read(snapshots: &Snapshots, index: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    snapshots.reader(meta(index).last)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What is listed is whole and right. Returns the indexes.
fn observe(snapshots: &Snapshots, what: &str) -> Vec<u64> {
    assert_eq!(snapshots.damaged(), [], "{what}: nothing was damaged");
    let indexes = snapshots.list().into_iter().map(|info| {
        let index = info.meta.last.index.get();
        assert_eq!(info.meta, meta(index), "{what}");
        assert!(read(snapshots, index).expect("it is intact") == content(index), "{what}");
        index
    });
    indexes.collect()
}

fn receiver(snapshots: &Snapshots, offer: &SnapshotInfo) -> Result<SnapshotReceiver, LogError> {
    match snapshots.receive(offer)? {
        Receiving::Wanted(receiver) => Ok(receiver),
        Receiving::Here => panic!("it is not here"),
    }
}

/// Takes all chunks that are missing from another disk.
fn transfer(to: &Snapshots, from: &Snapshots, index: u64) -> Result<SnapshotInfo, LogError> {
    let source = from.source(meta(index).last).expect("it is there");
    let mut receiver = receiver(to, source.info())?;
    while receiver.next_chunk() < source.info().chunk_count {
        let number = receiver.next_chunk();
        receiver.put(number, &source.chunk(number).expect("it is intact"))?;
    }
    receiver.finish()
}

/// A disk with one snapshot.
fn sender(index: u64) -> (SimDisk, Snapshots) {
    let disk = SimDisk::new();
    let snapshots = open(&disk).expect("nothing fails");
    make(&snapshots, index).expect("nothing fails");
    (disk, snapshots)
}

#[test]
fn what_is_written_is_read_whatever_its_length() {
    let disk = SimDisk::new();
    let snapshots = open(&disk).unwrap();
    let other = open(&SimDisk::new()).unwrap();
    for (index, len) in [0_usize, 1, 99, 100, 101, 200, 1000].into_iter().enumerate() {
        let meta = meta(index as u64 + 1);
        let bytes: Vec<u8> = content(7)[..len].to_vec();
        let mut writer = snapshots.begin(&meta).unwrap();
        writer.write_all(&bytes).unwrap();
        let info = writer.finish().unwrap();
        assert_eq!(snapshots.newest(), Some(info.clone()));
        assert_eq!(info.chunk_count, (len as u64).div_ceil(100).max(1));
        assert!(matches!(transfer(&other, &snapshots, meta.last.index.get()), Ok(i) if i == info));
        for snapshots in [&snapshots, &other] {
            let mut read = Vec::new();
            snapshots.reader(meta.last).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, bytes);
        }
        assert!(matches!(other.receive(&info), Ok(Receiving::Here)));
        assert!(snapshots.list().len() <= 2, "the newest and the one before");
    }
    let unfinished = snapshots.begin(&meta(50)).unwrap();
    assert!(disk.files().iter().any(|path| path.extension().is_some_and(|e| e == "tmp")));
    drop(unfinished);
    assert!(!disk.files().iter().any(|path| path.extension().is_some_and(|e| e == "tmp")));
    let missing = snapshots.reader(meta(50).last).unwrap_err();
    assert!(matches!(missing, LogError::NoSnapshot { .. }));
}

/// Pitfalls D5 and M10. A crash or an error at any operation leaves the old snapshots or the
/// new one with them, whole; and the next attempt succeeds.
#[test]
fn making_may_be_interrupted_after_every_operation_of_the_disk() {
    let fresh = || {
        let disk = SimDisk::with_seed(3);
        let snapshots = open(&disk).unwrap();
        make(&snapshots, 10).unwrap();
        make(&snapshots, 20).unwrap();
        (disk, snapshots)
    };
    let (disk, snapshots) = fresh();
    let first = disk.ops();
    make(&snapshots, 30).unwrap();
    let ops = first..=disk.ops();
    let check = |disk: &SimDisk, is_made: bool, what: &str| {
        let snapshots = open(disk).unwrap();
        let found = observe(&snapshots, what);
        let allowed: &[&[u64]] = match is_made {
            true => &[&[20, 30], &[10, 20, 30]],
            false => &[&[10, 20], &[10, 20, 30]],
        };
        assert!(allowed.contains(&&found[..]), "{what}: {found:?}");
        make(&snapshots, 30).unwrap();
        assert_eq!(observe(&snapshots, what), [20, 30]);
    };
    for op in ops.clone() {
        let (disk, snapshots) = fresh();
        disk.halt_after(op);
        let is_made = make(&snapshots, 30).is_ok();
        for seed in 0..6 {
            let crashed = disk.fork();
            crashed.crash(seed);
            check(&crashed, is_made, &format!("crash {seed} after operation {op}"));
        }
        for fault in [Fault::Io, Fault::NoSpace] {
            let (disk, snapshots) = fresh();
            disk.fail_at(op.max(first + 1), fault);
            let is_made = make(&snapshots, 30).is_ok();
            let what = format!("{fault:?} at operation {op}");
            // The same process goes on (row 8 of the table of disk faults).
            assert_eq!(read(&snapshots, 20).unwrap(), content(20), "{what}");
            make(&snapshots, 40).expect("it fails once");
            let crashed = disk.fork();
            crashed.crash(1);
            let found = observe(&open(&crashed).unwrap(), &what);
            assert_eq!(found.last(), Some(&40), "{what}");
            assert!(!is_made || found.contains(&30), "{what}: {found:?}");
        }
    }
}

/// Pitfalls M11 and M16. The same for the side that receives, and what was received before the
/// crash is not fetched again, unless the disk has lost it.
#[test]
fn receiving_may_be_interrupted_after_every_operation_of_the_disk() {
    let (_, from) = sender(30);
    let fresh = || {
        let disk = SimDisk::with_seed(3);
        let snapshots = open(&disk).unwrap();
        make(&snapshots, 20).unwrap();
        (disk, snapshots)
    };
    let (disk, snapshots) = fresh();
    let first = disk.ops();
    transfer(&snapshots, &from, 30).unwrap();
    let last = disk.ops();
    let mut resumed = 0;
    for op in first..=last {
        let (disk, snapshots) = fresh();
        disk.halt_after(op);
        let is_received = transfer(&snapshots, &from, 30).is_ok();
        assert_eq!(is_received, op == last);
        for seed in 0..6 {
            let crashed = disk.fork();
            if seed == 0 {
                crashed.kill();
            } else {
                crashed.crash(seed);
            }
            let what = format!("crash {seed} after operation {op}");
            let snapshots = open(&crashed).unwrap();
            let found = observe(&snapshots, &what);
            assert!(found == [20, 30] || (!is_received && found == [20]), "{what}: {found:?}");
            if found == [20] {
                let next = receiver(&snapshots, from.source(meta(30).last).unwrap().info());
                resumed += u64::from(0 < next.unwrap().next_chunk());
                transfer(&snapshots, &from, 30).unwrap();
            }
            crashed.crash(seed);
            assert_eq!(observe(&open(&crashed).unwrap(), &what), [20, 30]);
        }
        for fault in [Fault::Io, Fault::NoSpace] {
            let (disk, snapshots) = fresh();
            disk.fail_at(op + 1, fault);
            let what = format!("{fault:?} at operation {}", op + 1);
            if let Err(error) = transfer(&snapshots, &from, 30) {
                assert!(matches!(error, LogError::Io { .. } | LogError::NoSpace { .. }), "{what}");
                transfer(&snapshots, &from, 30).expect("it fails once");
            }
            disk.crash(op);
            assert_eq!(observe(&open(&disk).unwrap(), &what), [20, 30], "{what}");
        }
    }
    assert!(10 < resumed, "{resumed}");
}

/// Pitfall M16. A chunk that was damaged on the way is refused, and asked for again; and so is
/// every other chunk that is not the next one.
#[test]
fn a_wrong_chunk_is_refused_and_can_be_put_again() {
    let (_, from) = sender(30);
    let source = from.source(meta(30).last).unwrap();
    let to = open(&SimDisk::new()).unwrap();
    let mut receiver = receiver(&to, source.info()).unwrap();
    for number in 0..source.info().chunk_count {
        let chunk = source.chunk(number).unwrap();
        for bit in (0..chunk.len() * 8).step_by(13) {
            let mut damaged = chunk.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = receiver.put(number, &damaged).unwrap_err();
            assert!(matches!(error, LogError::BadChunk { number: n, .. } if n == number));
        }
        for len in [0, 3, 8, chunk.len() - 1] {
            assert!(receiver.put(number, &chunk[..len]).is_err());
        }
        let other = source.chunk(if number == 0 { 1 } else { 0 }).unwrap();
        assert!(receiver.put(number, &other).is_err(), "bound to its number");
        assert!(receiver.put(number + 1, &chunk).is_err());
        assert_eq!(receiver.next_chunk(), number);
        receiver.put(number, &chunk).unwrap();
    }
    assert!(receiver.put(source.info().chunk_count, &source.chunk(0).unwrap()).is_err());
    receiver.finish().unwrap();
    assert_eq!(observe(&to, "received"), [30]);
}

/// A snapshot that is not what was offered does not become one.
#[test]
fn the_whole_is_checked_against_the_offer() {
    let (_, from) = sender(30);
    let source = from.source(meta(30).last).unwrap();
    let disk = SimDisk::new();
    let to = open(&disk).unwrap();
    let offer = SnapshotInfo { checksum: 1, ..source.info().clone() };
    let mut wrong = receiver(&to, &offer).unwrap();
    for number in 0..offer.chunk_count {
        wrong.put(number, &source.chunk(number).unwrap()).unwrap();
    }
    assert!(matches!(wrong.finish(), Err(LogError::Damaged { .. })));
    assert_eq!((to.newest(), disk.files()), (None, vec![]));

    let mut early = receiver(&to, source.info()).unwrap();
    early.put(0, &source.chunk(0).unwrap()).unwrap();
    assert!(early.finish().is_err(), "chunks are missing");
}

/// One at a time: another snapshot replaces the partial one, and its receiver is told.
#[test]
fn a_newer_snapshot_replaces_one_that_is_being_received() {
    let (_, from) = sender(30);
    make(&from, 40).unwrap();
    let disk = SimDisk::new();
    let to = open(&disk).unwrap();
    let old = from.source(meta(30).last).unwrap();
    let mut receiving = receiver(&to, old.info()).unwrap();
    receiving.put(0, &old.chunk(0).unwrap()).unwrap();
    transfer(&to, &from, 40).unwrap();
    let error = receiving.put(1, &old.chunk(1).unwrap()).unwrap_err();
    assert!(matches!(error, LogError::Replaced));
    assert!(matches!(receiving.finish(), Err(LogError::Replaced)));
    assert_eq!(disk.files(), [path(40)]);
}

/// A snapshot that is being sent stays readable though newer ones have replaced it.
/// A reset of the log that is not durable may or may not survive a crash, and the next one, too.
/// What the log would begin after is there, whichever it is.
#[test]
fn what_the_log_may_begin_after_stays_until_it_is_known() {
    let snapshots = open(&SimDisk::new()).unwrap();
    for index in [3, 4, 5] {
        make(&snapshots, index).unwrap();
    }
    for index in 10..14 {
        let (_, from) = sender(index);
        transfer(&snapshots, &from, index).unwrap();
    }
    assert_eq!(observe(&snapshots, "nothing is known"), [4, 5, 10, 11, 12, 13]);
    snapshots.settle(Index(9));
    assert_eq!(observe(&snapshots, "nothing new is known"), [4, 5, 10, 11, 12, 13]);
    snapshots.settle(Index(11));
    assert_eq!(observe(&snapshots, "the log begins after 11, or will"), [10, 11, 12, 13]);
    snapshots.settle(Index(20));
    assert_eq!(observe(&snapshots, "all is known"), [12, 13]);
    make(&snapshots, 21).unwrap();
    assert_eq!(observe(&snapshots, "its own"), [13, 21]);
}

#[test]
fn a_source_outlives_its_name() {
    let (_, from) = sender(30);
    let source = from.source(meta(30).last).unwrap();
    for index in [40, 50, 60] {
        make(&from, index).unwrap();
    }
    assert!(from.source(meta(30).last).is_err());
    assert!((0..source.info().chunk_count).all(|number| source.chunk(number).is_ok()));
}

/// Rows 4 and 5 of the table of disk faults. No flipped bit brings a wrong byte out: the
/// snapshot is refused, and the one before it is the newest.
#[test]
fn every_flipped_bit_is_noticed() {
    let (disk, snapshots) = sender(20);
    make(&snapshots, 30).unwrap();
    let bits = disk.content(&path(30)).len() as u64 * 8;
    for bit in 0..bits {
        let disk = disk.fork();
        disk.flip_bit(&path(30), bit);
        let what = format!("byte {} bit {}", bit / 8, bit % 8);
        let snapshots = open(&disk).unwrap();
        if snapshots.newest().unwrap().meta == meta(30) {
            // A chunk is damaged, and all before it come out.
            let mut reader = snapshots.reader(meta(30).last).unwrap();
            let mut bytes = Vec::new();
            let error = reader.read_to_end(&mut bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}");
            let error = error.downcast::<LogError>().unwrap();
            assert!(matches!(error, LogError::Damaged { path: p, .. } if p == path(30)));
            assert!(content(30).starts_with(&bytes), "{what}");
            let source = snapshots.source(meta(30).last).unwrap();
            let chunks = 0..source.info().chunk_count;
            assert_eq!(chunks.filter(|&number| source.chunk(number).is_err()).count(), 1);
        }
        let intact = snapshots.newest_intact(|_| true).unwrap().unwrap();
        assert_eq!(intact.meta, meta(20), "{what}");
        assert_eq!(snapshots.damaged().len(), 1, "{what}");
        assert_eq!(snapshots.list().len(), 1, "{what}");
        assert_eq!(observe(&open(&disk).unwrap(), &what), [20]);
    }
}

/// Pitfall D6. Whatever stands in the files, there is an answer and never a panic.
#[test]
fn arbitrary_bytes_are_refused_and_never_panic() {
    let (disk, snapshots) = sender(20);
    make(&snapshots, 30).unwrap();
    let len = disk.content(&path(30)).len() as u64;
    for seed in 0..2000_u64 {
        let disk = disk.fork();
        let mix = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16;
        let at = if seed % 2 == 0 { mix % 150 } else { mix % len };
        let count = (1 + mix % 37).min(len - at);
        let bytes = [[0x00, 0xFF, 0x7F, 0x01][usize::try_from(seed % 4).unwrap()]; 64];
        let before = disk.content(&path(30));
        disk.overwrite(&path(30), at, &bytes[..usize::try_from(count).unwrap()]);
        let is_same = before == disk.content(&path(30));
        let intact = open(&disk).unwrap().newest_intact(|_| true).unwrap().unwrap();
        assert_eq!(intact.meta == meta(30), is_same, "{count} bytes at {at}");
    }
    for cut in 0..len {
        let disk = disk.fork();
        disk.cut(&path(30), cut);
        let snapshots = open(&disk).unwrap();
        assert_eq!(observe_newest(&snapshots), 20, "cut to {cut}");
    }
    let disk = disk.fork();
    disk.make_unreadable(&path(30), 500..501);
    assert_eq!(observe_newest(&open(&disk).unwrap()), 20);
}

fn observe_newest(snapshots: &Snapshots) -> u64 {
    let intact = snapshots.newest_intact(|_| true).expect("nothing fails").expect("one is left");
    intact.meta.last.index.get()
}

/// Pitfall M10. What the log does not reach is not used, if the caller says so.
#[test]
fn the_newest_usable_one_is_asked_for() {
    let (_, snapshots) = sender(20);
    make(&snapshots, 30).unwrap();
    let below = |index| {
        snapshots.newest_intact(|meta| meta.last.index.get() < index).unwrap().map(|i| i.meta)
    };
    assert_eq!(below(31), Some(meta(30)));
    assert_eq!(below(30), Some(meta(20)));
    assert_eq!(below(20), None);
    snapshots.remove(meta(30).last).unwrap();
    assert_eq!(snapshots.newest().unwrap().meta, meta(20));
}
