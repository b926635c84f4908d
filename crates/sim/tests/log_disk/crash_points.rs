//! One workload that does everything a log does, interrupted at every single operation of the
//! disk: by a power failure, by an error, by a full disk.

use std::ops::{Range, RangeInclusive};

use kontiki_log::{Log, LogError};
use kontiki_raft::{EntryId, Index, WriteBatch};
use kontiki_sim::disk::{Fault, SimDisk};

use crate::{
    model::{Expected, Model},
    open,
    writes::{batch, command, membership, reset, vote},
};

enum Step {
    Write(Vec<WriteBatch>),
    WriteAndSync(Vec<WriteBatch>),
    Sync,
    /// Up to this index.
    Purge(u64),
    FillSpares,
}

/// Votes, entries, truncations, several writes under one sync, memberships, records that end at
/// the end of a sector, a record longer than a segment, changes of segments, purges, resets.
fn workload() -> Vec<Step> {
    use Step::{FillSpares, Purge, Sync, Write, WriteAndSync};
    vec![
        WriteAndSync(vec![vote(1, 1)]),
        Write(vec![batch([command(1, 1, 10), command(2, 1, 300)])]),
        Write(vec![batch([command(3, 1, 0)])]),
        Sync,
        WriteAndSync(vec![batch([membership(4, 1, "n1:2")]), batch([command(5, 1, 1000)])]),
        FillSpares,
        WriteAndSync(vec![batch([command(6, 1, 3000)])]),
        WriteAndSync(vec![vote(2, 2), batch([command(4, 2, 1500)])]), // truncates, changes segment
        WriteAndSync(vec![batch([command(5, 2, 424)])]),
        WriteAndSync(vec![batch([command(6, 2, 3000)])]), // changes segment without a spare
        Purge(4),
        WriteAndSync(vec![batch([membership(7, 2, "n1:3"), command(8, 2, 9000)])]), // a long one
        WriteAndSync(vec![vote(3, 0)]),
        Write(vec![batch([command(8, 3, 40)]), vote(4, 1)]),
        FillSpares,
        WriteAndSync(vec![batch([command(9, 4, 3500)])]),
        WriteAndSync(vec![batch([command(10, 4, 3500)])]),
        Purge(8),
        WriteAndSync(vec![batch([command(11, 4, 600), command(12, 4, 600)])]),
        WriteAndSync(vec![reset(20, 5, []), vote(6, 2)]), // nothing follows
        WriteAndSync(vec![batch([command(21, 6, 600)])]),
        WriteAndSync(vec![batch([command(22, 6, 100)]), reset(30, 6, [command(31, 6, 3500)])]),
        Write(vec![batch([command(32, 6, 600)])]),
    ]
}

/// Carries out steps until one fails.
fn work(log: &mut Log, expected: &mut Expected) -> Result<(), LogError> {
    for step in workload() {
        match step {
            Step::Write(batches) => {
                write(log, expected, batches)?;
            }
            Step::WriteAndSync(batches) => {
                write(log, expected, batches)?;
                log.sync()?;
                expected.synced();
            }
            Step::Sync => {
                log.sync()?;
                expected.synced();
            }
            Step::Purge(upto) => {
                expected.purging = Some(Index(upto));
                let upto: EntryId = expected.latest().id(Index(upto));
                let start = log.purge(upto)?;
                expected.purged(start);
            }
            Step::FillSpares => drop(log.spares().fill()?),
        }
    }
    Ok(())
}

fn write(log: &mut Log, expected: &mut Expected, batches: Vec<WriteBatch>) -> Result<(), LogError> {
    expected.write(&batches);
    let result = log.write(batches);
    if matches!(result, Err(LogError::NoSpace { .. })) {
        expected.written.pop(); // refused before anything was written
    }
    result
}

/// A log on an empty disk, and how many operations it took to make it.
fn fresh() -> (SimDisk, Log, Expected) {
    let disk = SimDisk::with_seed(1);
    let (log, opened) = open(&disk).expect("an empty disk");
    let expected = Expected::new(Model::observe(&log, &opened));
    (disk, log, expected)
}

fn ops_of_workload() -> RangeInclusive<u64> {
    let (disk, mut log, mut expected) = fresh();
    let first = disk.ops();
    work(&mut log, &mut expected).expect("nothing fails");
    assert!(Index(4) <= expected.durable.start.index, "something was purged");
    first..=disk.ops()
}

fn reopen(disk: &SimDisk, what: &str) -> Model {
    let (log, opened) = open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    Model::observe(&log, &opened)
}

/// Opens what a crash has left, twice, with another crash in between. Returns the operations of
/// the recovery.
fn check_once(disk: &SimDisk, expected: &Expected, what: &str) -> Range<u64> {
    let disk = disk.fork();
    let before = disk.ops();
    let found = reopen(&disk, what);
    assert!(expected.allows(&found), "{what}\n{expected}\nfound   {found}");
    let recovery = before..disk.ops();
    disk.crash(1);
    let again = reopen(&disk, what);
    assert!(again == found, "{what}: opened twice\n{found}\n{again}");
    recovery
}

/// The same, and with a crash at every operation of the recovery itself.
fn check(disk: &SimDisk, expected: &Expected, what: &str) {
    let recovery = check_once(disk, expected, what);
    for op in recovery {
        for seed in 0..2 {
            let what = format!("{what}, crash {seed} in recovery after operation {op}");
            let interrupted = disk.fork();
            interrupted.halt_after(op);
            assert!(open(&interrupted).is_err(), "{what}");
            interrupted.crash(seed);
            let found = reopen(&interrupted, &what);
            assert!(expected.allows(&found), "{what}\n{expected}\nfound   {found}");
        }
    }
}

/// Pitfalls D5, D6, M9 and M10. Whatever the disk keeps of what was not synced, bytes and names,
/// be it in the middle of a reset to a snapshot: the log opens, holds all that was acknowledged,
/// and holds the same when it is opened again.
#[test]
fn the_power_may_fail_after_every_operation_of_the_disk() {
    let ops = ops_of_workload();
    for op in ops.clone() {
        let (disk, mut log, mut expected) = fresh();
        disk.halt_after(op);
        let result = work(&mut log, &mut expected);
        assert_eq!(result.is_ok(), op == *ops.end());
        for seed in 0..6 {
            let crashed = disk.fork();
            crashed.crash(seed);
            let what = format!("crash {seed} after operation {op}");
            if seed < 2 {
                check(&crashed, &expected, &what);
            } else {
                check_once(&crashed, &expected, &what);
            }
        }
    }
}

/// The same while the log is made: it is new again, or made. It never has another store.
#[test]
fn the_power_may_fail_while_the_log_is_made() {
    let (made, ..) = fresh();
    for op in 0..=made.ops() {
        for seed in 0..8 {
            let disk = SimDisk::with_seed(1);
            disk.halt_after(op);
            drop(open(&disk));
            disk.crash(seed);
            let what = format!("crash {seed} after operation {op}");
            check(&disk, &Expected::new(Model::new()), &what);
            let (log, opened) = open(&disk).unwrap();
            assert_eq!(opened.recovered.is_pristine, opened.report.is_new);
            assert!(op < made.ops() || !opened.report.is_new, "{what}: made, and new again");
            drop(log);
        }
    }
}

/// Pitfall D4. Every operation fails once. A log that has failed takes no more writes, and what
/// it had acknowledged is there after the next start, be it of the process or of the machine.
#[test]
fn every_operation_of_the_disk_may_fail() {
    for op in ops_of_workload() {
        for fault in [Fault::Io, Fault::NoSpace] {
            let (disk, mut log, mut expected) = fresh();
            disk.fail_at(op, fault);
            let Err(error) = work(&mut log, &mut expected) else { continue };
            let what = format!("{fault:?} at operation {op}: {error}");
            let is_poisoned = matches!(log.sync(), Err(LogError::Poisoned));
            if is_poisoned {
                let again = log.write(vec![vote(9, 1)]);
                assert!(matches!(again, Err(LogError::Poisoned)), "{what}");
                assert!(matches!(log.purge(EntryId::ZERO), Err(LogError::Poisoned)), "{what}");
            } else if matches!(error, LogError::NoSpace { .. }) {
                // There is room again, and the log goes on.
                write(&mut log, &mut expected, vec![vote(9, 1)]).expect("there is room");
                log.sync().expect("there is room");
                expected.synced();
            }
            let killed = disk.fork();
            killed.kill();
            check(&killed, &expected, &format!("{what}, killed"));
            for seed in 0..3 {
                let crashed = disk.fork();
                crashed.crash(seed);
                check_once(&crashed, &expected, &format!("{what}, crash {seed}"));
            }
        }
    }
}
