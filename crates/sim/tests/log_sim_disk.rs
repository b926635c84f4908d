//! The simulated disk keeps its own promises, and breaks those that a disk may break.

use std::{io, path::Path, sync::Arc};

use kontiki_disk::{Disk, DiskFile};
use kontiki_sim::disk::{Fault, SECTOR_BYTES, SimDisk};

const FILE: &str = "/d/file";

/// A file with four durable sectors of 1s.
fn disk(seed: u64) -> (SimDisk, Arc<dyn DiskFile>) {
    let disk = SimDisk::with_seed(seed);
    disk.create_dir_all(Path::new("/d")).expect("nothing fails");
    let file = disk.create(Path::new(FILE)).expect("nothing fails");
    file.write_at(0, &[1; 4 * SECTOR_BYTES]).expect("nothing fails");
    file.sync_data().expect("nothing fails");
    disk.sync_dir(Path::new("/d")).expect("nothing fails");
    (disk, file)
}

fn content(disk: &SimDisk) -> Vec<u8> {
    disk.content(Path::new(FILE))
}

#[test]
fn what_was_synced_survives_every_crash() {
    for seed in 0..64 {
        let (disk, file) = disk(0);
        file.write_at(512, &[2; 512]).unwrap();
        disk.crash(seed);
        let found = content(&disk);
        assert_eq!(found[..512], [1; 512]);
        assert_eq!(found[1024..], [1; 1024]);
    }
}

#[test]
fn of_what_was_not_synced_any_subset_of_sectors_survives_and_some_are_torn() {
    let mut kept = [0; 3];
    let mut subsets = std::collections::BTreeSet::new();
    let mut torn = 0;
    for seed in 0..400 {
        let (disk, file) = disk(0);
        file.write_at(0, &[2; 3 * SECTOR_BYTES]).unwrap();
        disk.crash(seed);
        let found = content(&disk);
        let sectors: Vec<&[u8]> = found.chunks(SECTOR_BYTES).take(3).collect();
        subsets.insert(sectors.iter().map(|sector| sector[0]).collect::<Vec<u8>>());
        for (kept, sector) in kept.iter_mut().zip(sectors) {
            let front = sector.iter().take_while(|&&byte| byte == 2).count();
            assert!(sector[front..].iter().all(|&byte| byte == 1), "the rest is old");
            assert!(front % 8 == 0, "torn at a word");
            *kept += u32::from(front == SECTOR_BYTES);
            torn += u32::from(0 < front && front < SECTOR_BYTES);
        }
    }
    assert_eq!(subsets.len(), 8, "any subset");
    assert!(kept.iter().all(|&count| (100..300).contains(&count)), "{kept:?}");
    assert!(10 < torn, "{torn}");
}

#[test]
fn a_crash_is_decided_by_its_seed_alone() {
    let after = |seed| {
        let (disk, file) = disk(3);
        file.write_at(100, &[2; 1500]).unwrap();
        disk.crash(seed);
        content(&disk)
    };
    assert_eq!(after(5), after(5));
    assert!((0..32).any(|seed| after(seed) != after(5)));
}

#[test]
fn names_survive_as_a_prefix_unless_their_directory_is_synced() {
    let names = |synced: bool, seed| {
        let (disk, _) = disk(0);
        for name in ["/d/a", "/d/b"] {
            let file = disk.create(Path::new(name)).unwrap();
            file.write_at(0, b"x").unwrap();
            file.sync_data().unwrap(); // says nothing about the name
        }
        disk.rename(Path::new("/d/a"), Path::new("/d/c")).unwrap();
        disk.remove(Path::new(FILE)).unwrap();
        if synced {
            disk.sync_dir(Path::new("/d")).unwrap();
        }
        disk.crash(seed);
        disk.list(Path::new("/d")).unwrap().iter().map(|n| n.display().to_string()).collect()
    };
    let found: std::collections::BTreeSet<Vec<String>> =
        (0..100).map(|seed| names(false, seed)).collect();
    let prefixes: [&[&str]; 5] =
        [&["file"], &["a", "file"], &["a", "b", "file"], &["b", "c", "file"], &["b", "c"]];
    assert_eq!(
        found,
        prefixes.iter().map(|p| p.iter().map(ToString::to_string).collect()).collect()
    );
    assert!((0..20).all(|seed| names(true, seed) == ["b", "c"]));
}

#[test]
fn a_failed_sync_loses_bytes_and_the_next_one_succeeds() {
    let (mut dropped, mut cached) = (0, 0);
    for seed in 0..64 {
        let (disk, file) = disk(seed);
        file.write_at(0, &[2; 4 * SECTOR_BYTES]).unwrap();
        disk.fail_at(disk.ops() + 1, Fault::Io);
        assert!(file.sync_data().is_err());
        let is_visible = content(&disk) == [2; 4 * SECTOR_BYTES];
        file.sync_data().unwrap();
        disk.crash(seed);
        let is_durable = content(&disk) == [2; 4 * SECTOR_BYTES];
        dropped += u32::from(!is_visible);
        cached += u32::from(is_visible && !is_durable);
    }
    assert!(10 < dropped && 10 < cached, "{dropped} {cached}");
}

#[test]
fn a_full_disk_takes_what_fits_and_no_more() {
    let (disk, file) = disk(0);
    disk.set_capacity(disk.used() + 10);
    file.write_at(0, &[2; 100]).unwrap();
    file.write_at(4 * SECTOR_BYTES as u64, &[2; 10]).unwrap();
    let error = file.write_at(4 * SECTOR_BYTES as u64 + 10, &[2; 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    disk.remove(Path::new(FILE)).unwrap();
    let other = disk.create(Path::new("/d/a")).unwrap();
    assert!(other.write_at(0, &[2; 100]).is_err(), "a file that is open still has its bytes");
    drop(file);
    other.write_at(0, &[2; 100]).unwrap();
}

#[test]
fn the_dead_hold_no_files_and_no_locks() {
    let (disk, file) = disk(0);
    let lock = disk.lock(Path::new("/d/LOCK")).unwrap();
    assert_eq!(disk.lock(Path::new("/d/LOCK")).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    disk.kill();
    let next = disk.lock(Path::new("/d/LOCK")).unwrap();
    drop(lock); // of a dead process: frees nothing
    assert!(disk.lock(Path::new("/d/LOCK")).is_err());
    assert!(file.write_at(0, b"x").is_err() && file.sync_data().is_err());
    drop(next);
    assert!(disk.lock(Path::new("/d/LOCK")).is_ok());
}

#[test]
fn after_the_power_is_gone_nothing_is_done() {
    let (disk, file) = disk(0);
    disk.halt_after(disk.ops() + 1);
    file.write_at(0, &[2; 10]).unwrap();
    assert!(file.write_at(0, &[3; 10]).is_err() && file.sync_data().is_err());
    assert!(disk.create(Path::new("/d/a")).is_err());
    disk.crash(0);
    assert!(disk.create(Path::new("/d/a")).is_ok());
}
