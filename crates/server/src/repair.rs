//! A damaged store is moved aside, and filled anew from the log or by the other servers.
//!
//! Nothing of it is served and nothing deleted. Whether there is anybody to fetch it from is
//! found out first: a server that has the only copy keeps it where it is. Damage that comes again
//! and again is a dying disk, and to go on would only wear it out.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use kontiki::{
    Disk, DiskLock, Fault, FileLog, Identity, IdentityRequest, Index, LogOptions, LogStore as _,
    RealDisk,
};
use kontiki_store::Fatal;

use crate::{ServerFault, rebuild::log_dir};

/// A store may be moved aside so often …
const REPAIRS_MAX: usize = 3;

/// … within this time.
const REPAIRS_SPAN: Duration = Duration::from_secs(600);

/// Goes first, and the store without it is refused: a crash in between opens no half of one.
const STATE_FILE: &str = "STATE";

/// Stays, and is held meanwhile: whoever has the store open must not write into the next one.
const LOCK_FILE: &str = "LOCK";

/// How long a read that is under way may hold up a store that is to be moved.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked at.
const LOCK_INTERVAL: Duration = Duration::from_millis(50);

/// Why a damaged store is not fetched anew. It is where it was, if nothing else is said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// It was damaged again and again.
    #[error(
        "the store was damaged {count} times within {} minutes: the disk under {dir} is dying; \
         replace it, then replace this server", REPAIRS_SPAN.as_secs() / 60, dir = dir.display()
    )]
    TooOften {
        /// How often.
        count: usize,
        /// The store.
        dir: PathBuf,
    },
    /// There is no other server, and the log does not reach back to its beginning.
    #[error(
        "the store is damaged, and there is nobody to fetch its data from: this server is alone, \
         and its log begins after index {log_start}; restore a backup, or look after {dir}",
        dir = dir.display()
    )]
    Alone {
        /// Where the log begins.
        log_start: u64,
        /// The store.
        dir: PathBuf,
    },
    /// The log cannot be read, so it is not known whether there is anybody else.
    #[error("the store is damaged, and so the log is needed, which cannot be read")]
    Log(#[source] kontiki::LogFailure),
    /// It cannot be moved. A part of it may have been.
    #[error("the damaged store {dir} cannot be moved aside", dir = dir.display())]
    Move {
        /// The store.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where a server keeps its store.
pub(crate) fn store_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("member").join("store")
}

/// What damage of the store a server has failed of, if that was it.
pub(crate) fn damage_of(fault: &ServerFault) -> Option<Fatal> {
    match fault {
        ServerFault::Store(fatal) => damage(fatal),
        ServerFault::Raft(Fault::Machine { source, .. } | Fault::Restore { source, .. }) => {
            damage_in(source)
        }
        _ => None,
    }
}

/// Damage that the store has met under another name.
pub(crate) fn damage_in(error: &io::Error) -> Option<Fatal> {
    error.get_ref().and_then(|source| source.downcast_ref()).and_then(damage)
}

fn damage(fatal: &Fatal) -> Option<Fatal> {
    matches!(fatal, Fatal::Corrupt { .. }).then(|| fatal.clone())
}

/// Moves the store of `data_dir` aside, if its data can be had elsewhere. The caller has closed
/// it, and the log. Returns where it is now.
pub(crate) fn move_aside(data_dir: &Path) -> Result<PathBuf, RepairError> {
    let dir = store_dir(data_dir);
    let count = recent_repairs(&dir, SystemTime::now());
    if REPAIRS_MAX <= count {
        return Err(RepairError::TooOften { count, dir });
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    if let Some(log_start) = nobody_else(&disk, &log_dir(data_dir))? {
        return Err(RepairError::Alone { log_start: log_start.get(), dir });
    }
    set_aside(&*disk, &dir).map_err(|source| RepairError::Move { dir, source })
}

/// How often this store was moved aside lately, in this process or in one before it.
fn recent_repairs(dir: &Path, now: SystemTime) -> usize {
    (1..)
        .map(|number| fs::metadata(aside(dir, number)))
        .take_while(Result::is_ok)
        .filter_map(|found| found.and_then(|found| found.modified()).ok())
        .filter(|&moved| now.duration_since(moved).is_ok_and(|ago| ago < REPAIRS_SPAN))
        .count()
}

/// Where the log starts, if the data of this server is nowhere else: it is alone, and its log
/// does not begin at the beginning.
fn nobody_else(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<Index>, RepairError> {
    let found = Identity::of_dir(&**disk, dir).map_err(|e| RepairError::Log(e.into()))?;
    let Some(Identity { cluster, node, genesis, store }) = found else { return Ok(None) };
    let request = IdentityRequest { cluster, node, genesis, new_store: store };
    let log = FileLog::new(Arc::clone(disk), dir.to_owned(), LogOptions::default());
    let recovered = Box::new(log).open(&request).map_err(RepairError::Log)?.recovered;
    let has_others = recovered
        .memberships
        .last()
        .is_some_and(|(_, membership)| membership.replicas().iter().any(|other| *other != node));
    let log_start = recovered.log_start.index;
    Ok((!has_others && log_start != Index::ZERO).then_some(log_start))
}

fn aside(dir: &Path, number: u32) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(format!(".damaged-{number}"));
    name.into()
}

/// Moves all files of a store to a directory beside it that does not exist yet.
fn set_aside(disk: &dyn Disk, dir: &Path) -> io::Result<PathBuf> {
    let _lock = lock(disk, dir, LOCK_PATIENCE)?;
    let mut number = 1;
    while !is_missing(disk.list(&aside(dir, number)))? {
        number += 1;
    }
    let to = aside(dir, number);
    disk.create_dir_all(&to)?;
    let mut names = disk.list(dir)?;
    names.retain(|name| name.as_os_str() != LOCK_FILE);
    names.sort_by_key(|name| (name.as_os_str() != STATE_FILE, name.clone()));
    for name in names {
        disk.rename(&dir.join(&name), &to.join(&name))?;
        if name.as_os_str() == STATE_FILE {
            disk.sync_dir(&to)?;
            disk.sync_dir(dir)?;
        }
    }
    disk.sync_dir(&to)?;
    disk.sync_dir(dir)?;
    Ok(to)
}

/// Waits until nobody has the store open.
fn lock(disk: &dyn Disk, dir: &Path, patience: Duration) -> io::Result<Box<dyn DiskLock>> {
    let began = Instant::now();
    loop {
        match disk.lock(&dir.join(LOCK_FILE)) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && began.elapsed() < patience => {
                thread::sleep(LOCK_INTERVAL);
            }
            locked => return locked,
        }
    }
}

fn is_missing(listed: io::Result<Vec<PathBuf>>) -> io::Result<bool> {
    match listed {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use kontiki_store::{Store, StoreOptions};

    use super::*;

    #[test]
    fn a_store_is_moved_file_by_file_and_never_onto_another() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        for round in 1..=2 {
            fs::create_dir_all(&store).unwrap();
            fs::write(store.join("STATE"), "state").unwrap();
            fs::write(store.join("1.seg"), format!("round {round}")).unwrap();
            let to = set_aside(&RealDisk, &store).unwrap();
            assert_eq!(to, dir.path().join(format!("store.damaged-{round}")));
            assert_eq!(fs::read_to_string(to.join("STATE")).unwrap(), "state");
            assert_eq!(fs::read_to_string(to.join("1.seg")).unwrap(), format!("round {round}"));
            assert_eq!(RealDisk.list(&store).unwrap(), [PathBuf::from("LOCK")]);
        }
        assert_eq!(recent_repairs(&store, SystemTime::now()), 2);
        assert_eq!(recent_repairs(&store, SystemTime::now() + REPAIRS_SPAN * 2), 0);
    }

    /// Whoever still reads from it has a thread that writes.
    #[test]
    fn a_store_that_is_open_is_not_moved() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions { background: false, ..StoreOptions::default() };
        let store = Store::open(dir.path(), options).unwrap();
        let refused = lock(&RealDisk, dir.path(), Duration::ZERO).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WouldBlock);
        drop(store);
        lock(&RealDisk, dir.path(), Duration::ZERO).unwrap();
        assert!(dir.path().join(STATE_FILE).exists(), "so it is called");
    }

    #[test]
    fn damage_again_and_again_is_a_dying_disk() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_dir(dir.path());
        for round in 1..=4 {
            fs::create_dir_all(&store).unwrap();
            fs::write(store.join("file"), "x").unwrap();
            match move_aside(dir.path()) {
                Ok(_) => assert!(round <= 3, "round {round}"),
                Err(RepairError::TooOften { count: 3, .. }) => assert_eq!(round, 4),
                Err(other) => panic!("round {round}: {other}"),
            }
        }
        assert!(store.join("file").exists(), "it stays where it is");
    }

    #[test]
    fn only_damage_is_repaired() {
        let corrupt = Fatal::Corrupt { file: "1.seg".into(), offset: 7, what: "a test".to_owned() };
        let io = Fatal::Io { op: "read", source: Arc::new(io::Error::other("a test")) };
        assert!(damage_of(&ServerFault::Store(corrupt.clone())).is_some());
        assert!(damage_of(&ServerFault::Store(io)).is_none());
        assert!(damage_of(&ServerFault::Removed).is_none());
        let source = Arc::new(io::Error::other(corrupt.clone()));
        let upto = kontiki::EntryId::new(9, 2);
        let restore = Fault::Restore { at: upto, source: Arc::clone(&source) };
        assert!(damage_of(&ServerFault::Raft(restore)).is_some());
        assert!(damage_of(&ServerFault::Raft(Fault::Machine { upto, source })).is_some());
        assert!(damage_in(&io::Error::other(corrupt)).is_some());
        assert!(damage_in(&ErrorKind::NotFound.into()).is_none());
    }
}
