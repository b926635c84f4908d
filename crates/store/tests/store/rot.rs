//! Every byte of every file of a small store is damaged once while the store is open. What it
//! has read is in memory; what it reads from there on, for whomever, is verified.

use std::path::Path;

use kontiki_sim::disk::SimDisk;
use kontiki_store::{Fatal, OpenError, Store};

use crate::support::{
    apply_compact, apply_put,
    small::{End, Small, open},
    truth::{Question, Truth},
};

/// Goes on with a store: writes, compaction, a checkpoint, a clean stop.
fn upkeep(store: Store) -> Result<(), Fatal> {
    for n in 0..6 {
        apply_put(&store, ["a", "b"][n % 2], &"later".repeat(n));
    }
    apply_compact(&store, store.revision() - 2).unwrap();
    store.flush()?;
    while store.compact_step()? {}
    store.close()
}

/// What comes of a store that is not damaged.
fn truth_after_upkeep(small: &Small) -> Truth {
    let disk = small.disk.fork();
    upkeep(open(&disk).unwrap()).unwrap();
    disk.kill();
    Truth::of(&open(&disk).unwrap()).unwrap()
}

/// Goes on with the damaged store, and opens what comes of it. Damage may be found at every
/// step, and always where it is; it is neither copied nor forgotten.
fn upkeep_of(store: Store, disk: &SimDisk, path: &Path, expected: &Truth) {
    match upkeep(store) {
        Ok(()) => {}
        Err(Fatal::Corrupt { file, .. }) => {
            assert_eq!(file, path);
            return;
        }
        Err(error) => panic!("{}: {error}", path.display()),
    }
    disk.kill();
    match open(disk) {
        Ok(store) => match Truth::of(&store) {
            Ok(truth) => assert!(truth == *expected, "{}", path.display()),
            Err(Fatal::Corrupt { file, .. }) => assert_eq!(file, path),
            Err(error) => panic!("{}: {error}", path.display()),
        },
        Err(OpenError::Damaged { path: said, .. }) => assert_eq!(said, path),
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// Never a wrong answer, and no copy of what is wrong: not for any byte.
#[test]
fn a_byte_that_rots_under_an_open_store_is_neither_served_nor_copied() {
    let small = Small::new(End::KilledLater);
    let after = truth_after_upkeep(&small);
    let (mut found, mut harmless) = (0, 0);
    for path in small.disk.files() {
        let is_read = path.extension().is_some_and(|extension| extension == "seg");
        for at in 0..small.disk.content(&path).len() {
            for turn in 0..=Question::ALL.len() {
                let disk = small.disk.fork();
                let store = open(&disk).unwrap();
                disk.flip_bit(&path, (at * 8 + (at + turn) % 8) as u64);
                let Some(question) = Question::ALL.get(turn) else {
                    upkeep_of(store, &disk, &path, &after);
                    continue;
                };
                match small.truth().check(&store, *question) {
                    Ok(()) => harmless += 1,
                    Err(Fatal::Corrupt { file, offset, .. }) if is_read => {
                        assert_eq!(file, path);
                        assert!(offset <= at as u64, "byte {at}, and it said {offset}");
                        found += 1;
                    }
                    Err(error) => panic!("{} byte {at}: {error}", path.display()),
                }
            }
        }
    }
    assert!(1000 < found && 1000 < harmless, "{found} found, {harmless} harmless");
}

/// What the disk does not give back is as damaged as what it gives back changed, be it that the
/// store is open or that it is about to be.
#[test]
fn what_cannot_be_read_is_refused_or_found_and_never_left_out() {
    let small = Small::new(End::KilledLater);
    let after = truth_after_upkeep(&small);
    let (mut found, mut refused) = (0, 0);
    for path in small.disk.files() {
        let len = small.disk.content(&path).len() as u64;
        for start in (0..len).step_by(24) {
            for turn in 0..=Question::ALL.len() {
                let disk = small.disk.fork();
                let store = open(&disk).unwrap();
                disk.make_unreadable(&path, start..start + 8);
                match Question::ALL.get(turn) {
                    None => upkeep_of(store, &disk, &path, &after),
                    Some(question) => match small.truth().check(&store, *question) {
                        Ok(()) => {}
                        Err(Fatal::Corrupt { file, .. }) => {
                            assert_eq!(file, path);
                            found += 1;
                        }
                        Err(error) => panic!("{} at {start}: {error}", path.display()),
                    },
                }
            }
            let disk = small.disk.fork();
            disk.make_unreadable(&path, start..start + 8);
            match open(&disk).map(|store| Truth::of(&store)) {
                Ok(Ok(truth)) => assert!(truth == *small.truth(), "{}", path.display()),
                Ok(Err(Fatal::Corrupt { file, .. })) => assert_eq!(file, path),
                Err(OpenError::Damaged { path: said, .. }) => {
                    assert_eq!(said, path);
                    refused += 1;
                }
                other => panic!("{} at {start}: {other:?}", path.display()),
            }
        }
    }
    assert!(100 < found && 10 < refused, "{found} found, {refused} refused");
}
