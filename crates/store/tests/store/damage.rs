//! What is damaged is told from what a crash has torn, and neither is ever served.

use std::{path::Path, sync::Arc};

use kontiki_disk::Disk;
use kontiki_store::{OpenError, Store, StoreOptions};

use crate::support::{apply_put, disk::MemoryDisk, quiet, range, read};

const DIR: &str = "/kv";

fn open(disk: &MemoryDisk) -> Result<Store, OpenError> {
    let options = StoreOptions { segment_bytes: 700, checkpoint_bytes: u64::MAX, ..quiet() };
    Store::open_on(Arc::new(disk.clone()), Path::new(DIR), options)
}

fn segment(seq: u64) -> std::path::PathBuf {
    Path::new(DIR).join(format!("00000001-{seq:016x}-00000000.seg"))
}

/// Where each frame of a segment begins, and where the last one ends.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let mut at = vec![64];
    while let Some(len) = bytes[at[at.len() - 1]..].get(8..12) {
        let len = u32::from_le_bytes(len.try_into().unwrap());
        at.push(at[at.len() - 1] + usize::try_from(len).unwrap());
    }
    at
}

/// A store of three puts, each durable before the next, that fit into one segment; its process
/// is gone without a word.
fn killed() -> MemoryDisk {
    let disk = MemoryDisk::default();
    let store = open(&disk).unwrap();
    for n in 1..=3 {
        apply_put(&store, &format!("key-{n}"), "value");
        store.flush().unwrap();
    }
    drop(store);
    disk
}

/// The same after a clean stop, and without the checkpoint of the index.
fn stopped() -> MemoryDisk {
    let disk = killed();
    let store = open(&disk).unwrap();
    apply_put(&store, "key-4", "value");
    store.close().unwrap();
    for name in disk.list(Path::new(DIR)).unwrap() {
        if name.extension().is_some_and(|kind| kind == "ck") {
            disk.remove(&Path::new(DIR).join(name)).unwrap();
        }
    }
    disk
}

fn damage(disk: &MemoryDisk) -> (std::path::PathBuf, u64) {
    match open(disk) {
        Err(OpenError::Damaged { path, offset, .. }) => (path, offset),
        other => panic!("{other:?}"),
    }
}

/// A later frame knew that the broken one was durable.
#[test]
fn a_frame_that_a_later_one_relied_on_is_damaged() {
    let disk = killed();
    let starts = frames(&disk.bytes(&segment(1)));
    assert_eq!(starts.len(), 4);
    for start in [starts[0], starts[1]] {
        // The header, or a record: behind either the next frame is found.
        for byte in [start + 17, start + 90] {
            disk.flip(&segment(1), byte, 3);
            assert_eq!(damage(&disk), (segment(1), u64::try_from(start).unwrap()));
            disk.flip(&segment(1), byte, 3);
        }
    }
    assert_eq!(open(&disk).unwrap().applied().0, 3);
}

/// Nobody was told of the last frame, for all that is known: the log has it.
#[test]
fn the_last_frame_of_a_killed_process_may_be_torn() {
    let disk = killed();
    let starts = frames(&disk.bytes(&segment(1)));
    disk.flip(&segment(1), starts[2] + 90, 0);
    let store = open(&disk).unwrap();
    assert_eq!((store.applied().0, store.durable_applied()), (2, 2));
    assert_eq!(read(&store, &range("a", "z")).count, 2);
    assert_eq!(disk.bytes(&segment(1)).len(), starts[2], "what was torn is cut");
    assert_eq!(apply_put(&store, "key-3", "again"), 4);
}

/// After a clean stop everything was durable, the last frame too.
#[test]
fn after_a_clean_stop_nothing_can_be_torn() {
    let disk = stopped();
    let bytes = disk.bytes(&segment(1));
    let starts = frames(&bytes);
    let last = starts[starts.len() - 2];
    for byte in [last + 4, last + 80] {
        disk.flip(&segment(1), byte, 0);
        assert_eq!(damage(&disk), (segment(1), u64::try_from(last).unwrap()));
        disk.flip(&segment(1), byte, 0);
    }
    // A file that ends at a frame looks sound, and is not.
    let file = disk.open(&segment(1)).unwrap();
    file.set_len(u64::try_from(last).unwrap()).unwrap();
    damage(&disk);
}

/// A checkpoint gets its name when all that it points to is durable, and that goes beyond the
/// place from which a start reads on. A crash may come before `STATE` says so.
#[test]
fn what_a_checkpoint_points_to_cannot_be_torn() {
    let disk = MemoryDisk::default();
    let options = StoreOptions { checkpoint_bytes: 1, ..quiet() };
    let open = || Store::open_on(Arc::new(disk.clone()), Path::new(DIR), options.clone());
    let store = open().unwrap();
    let state = disk.bytes(&Path::new(DIR).join("STATE"));
    apply_put(&store, "key-1", "value");
    store.flush().unwrap();
    assert!(store.compact_step().unwrap(), "a checkpoint begins");
    apply_put(&store, "key-2", "value");
    assert!(store.compact_step().unwrap(), "and ends, after it has written that out");
    drop(store);
    let names = disk.list(Path::new(DIR)).unwrap();
    assert!(names.iter().any(|name| name.extension().is_some_and(|kind| kind == "ck")));
    disk.open(&Path::new(DIR).join("STATE")).unwrap().write_at(0, &state).unwrap();
    assert_eq!(open().unwrap().applied().0, 2, "nothing is damaged yet");
    let starts = frames(&disk.bytes(&segment(1)));
    let last = starts[starts.len() - 2];
    disk.flip(&segment(1), last + 90, 0);
    let found = open().map(|store| store.applied());
    let Err(OpenError::Damaged { offset, .. }) = found else { panic!("{found:?}") };
    assert_eq!(offset, u64::try_from(last).unwrap());
}

/// A segment that another follows was complete.
#[test]
fn a_complete_segment_cannot_be_torn() {
    let fill = || {
        let disk = MemoryDisk::default();
        let store = open(&disk).unwrap();
        for n in 1..=8 {
            apply_put(&store, &format!("key-{n}"), &"x".repeat(100));
        }
        store.flush().unwrap();
        (disk, store)
    };
    let (disk, store) = fill();
    drop(store);
    let starts = frames(&disk.bytes(&segment(1)));
    let last = starts[starts.len() - 2];
    assert!(disk.bytes(&segment(2)).len() > 64, "another follows");
    disk.flip(&segment(1), last + 90, 3);
    assert_eq!(damage(&disk), (segment(1), u64::try_from(last).unwrap()));
    disk.flip(&segment(1), last + 90, 3);
    let file = disk.open(&segment(1)).unwrap();
    file.set_len(u64::try_from(last).unwrap()).unwrap();
    let (path, _) = damage(&disk);
    assert_eq!(path, segment(2), "it follows a frame that is missing");
}
