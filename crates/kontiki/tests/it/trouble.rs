//! Disks that are full or that lie, and clocks that are trusted.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kontiki::{
    Compaction, Disk, DiskFile, DiskLock, ProposeError, Raft, ReadMode, RealDisk, Rejection,
};

use crate::common::{Cluster, List, eventually, leader};

/// The real disk, and while it is full no file is made or grows.
#[derive(Clone, Debug, Default)]
struct FullDisk(Arc<AtomicBool>);

#[derive(Debug)]
struct FullFile(Arc<dyn DiskFile>, FullDisk);

impl FullDisk {
    fn check(&self) -> io::Result<()> {
        let is_full = self.0.load(Ordering::Relaxed);
        if is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl Disk for FullDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        RealDisk.list(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(FullFile(RealDisk.open(path)?, self.clone())))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.check()?;
        Ok(Arc::new(FullFile(RealDisk.create(path)?, self.clone())))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        RealDisk.lock(path)
    }
}

impl DiskFile for FullFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.0.len()? < offset + u64::try_from(bytes.len()).unwrap() {
            self.1.check()?;
        }
        self.0.write_at(offset, bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

/// Pitfall D14: with a full disk writes are refused by name, reads go on, and when there is
/// space again so do writes. Nothing that was acknowledged is lost.
#[tokio::test]
async fn a_full_disk_refuses_writes_and_serves_reads_until_there_is_space() {
    let cluster = Cluster::new(1);
    let disk = FullDisk::default();
    let node = cluster.builder(1).disk(Arc::new(disk.clone())).start().await.unwrap();
    node.propose("first").await.unwrap();
    disk.0.store(true, Ordering::Relaxed);
    // What segments there are is used up first, and then a command waits for space.
    eventually("the disk is full", || async {
        let attempt = node.propose(vec![1; 50_000]);
        let answer = tokio::time::timeout(Duration::from_millis(500), attempt).await;
        (!matches!(answer, Ok(Ok(_)))).then_some(())
    })
    .await;
    eventually("it says so", || async {
        node.status().await.unwrap().is_storage_full.then_some(())
    })
    .await;
    let error = node.propose("refused").await.unwrap_err();
    assert!(matches!(error, ProposeError::Rejected(Rejection::NoSpace)), "{error:?}");
    let acknowledged = node.read(|list| list.0.len()).await.unwrap();

    disk.0.store(false, Ordering::Relaxed);
    eventually("there is space again", || async {
        let status = node.status().await.unwrap();
        (!status.is_storage_full).then_some(())
    })
    .await;
    node.propose("last").await.unwrap();
    let list = node.read(|list| list.0.clone()).await.unwrap();
    assert!(acknowledged < list.len());
    assert_eq!(list.last().unwrap(), b"last");
    node.shutdown().await.unwrap();
    let node = cluster.start(1).await;
    assert_eq!(node.read(|list| list.0.clone()).await.unwrap(), list);
}

/// A leader whose disk is full hands over to a node that has space.
#[tokio::test]
async fn a_leader_without_space_hands_over() {
    let cluster = Cluster::new(3);
    let (mut nodes, mut disks) = (Vec::new(), Vec::new());
    for id in 1..=3 {
        let disk = FullDisk::default();
        disks.push(disk.clone());
        nodes.push(cluster.builder(id).disk(Arc::new(disk)).start().await.unwrap());
    }
    let old = leader(&nodes).await;
    nodes[old].propose("before").await.unwrap();
    disks[old].0.store(true, Ordering::Relaxed);
    let id = nodes[old].identity().id;
    let other = nodes[(old + 1) % 3].clone();
    eventually("another one leads", || async {
        // Until then some wait and some are refused.
        let attempt = other.propose(vec![1; 50_000]);
        drop(tokio::time::timeout(Duration::from_millis(200), attempt).await);
        let leader = other.watch().borrow().leader;
        leader.is_some_and(|leader| leader != id).then_some(())
    })
    .await;
    other.propose("after").await.unwrap();
}

/// The largest file of the log of a node: the segment that holds the test's entries.
fn segment(cluster: &Cluster, id: u64, needle: &[u8]) -> (PathBuf, usize) {
    for file in fs::read_dir(cluster.data_dir(id).join("wal")).unwrap() {
        let path = file.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let found = bytes.windows(needle.len()).position(|window| window == needle);
        if let Some(at) = found {
            return (path, at);
        }
    }
    panic!("no segment holds it");
}

/// A byte flips in what a follower has acknowledged: it says so, takes no part in decisions, is
/// given the entries back, and takes part again.
#[tokio::test]
async fn a_damaged_log_is_repaired_from_the_peers() {
    let cluster = Cluster::new(3);
    let mut nodes = cluster.start_all().await;
    leader(&nodes).await;
    for count in 0..100 {
        nodes[0].propose(format!("number {count:04} of them")).await.unwrap();
    }
    let victim = nodes.remove((leader(&nodes).await + 1) % 3);
    let id = victim.identity().id.get();
    eventually("it has them all", || async {
        let len = victim.read_stale(|list| list.0.len()).await.unwrap();
        (len == 100).then_some(())
    })
    .await;
    victim.shutdown().await.unwrap();

    let (path, at) = segment(&cluster, id, b"number 0050 of them");
    let mut bytes = fs::read(&path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(&path, bytes).unwrap();

    let victim = cluster.start(id).await;
    let mut files = fs::read_dir(cluster.data_dir(id).join("wal")).unwrap();
    let is_aside = |name: String| name.contains("damaged");
    assert!(files.any(|file| is_aside(file.unwrap().file_name().into_string().unwrap())));
    eventually("it is repaired", || async {
        let status = victim.status().await.unwrap();
        let len = victim.read_stale(|list| list.0.len()).await.unwrap();
        (status.damaged.is_none() && len == 100).then_some(())
    })
    .await;
    // It counts again: with one of the others gone, it is needed for each write.
    let gone = nodes.remove((leader(&nodes).await + 1) % 2);
    gone.shutdown().await.unwrap();
    eventually("there is a quorum with it", || async { victim.propose("more").await.ok() }).await;
    victim.shutdown().await.unwrap();
    // And nothing of the damage is left.
    let victim = cluster.start(id).await;
    assert_eq!(victim.status().await.unwrap().damaged, None);
    let list = victim.read(|list| list.0.clone()).await.unwrap();
    assert_eq!(list[50], b"number 0050 of them");
}

/// Pitfall R4.
#[tokio::test]
async fn lease_reads_are_current_and_the_status_tells_of_the_lease() {
    let cluster = Cluster::new(3);
    let mut nodes: Vec<Raft<List>> = Vec::new();
    for id in 1..=3 {
        nodes.push(cluster.builder(id).lease_reads(500).start().await.unwrap());
    }
    let at = leader(&nodes).await;
    for count in 1..=50usize {
        nodes[count % 3].propose("x").await.unwrap();
        let reader = &nodes[(count + 1) % 3];
        let len = reader.read_with(ReadMode::Lease, |list| list.0.len()).await.unwrap();
        assert_eq!(len, count);
    }
    let status = nodes[at].status().await.unwrap();
    let lease = status.lease_until.expect("a leader that is followed has a lease");
    assert!(status.now < lease);
    nodes[at].read_barrier_with(ReadMode::Lease).await.unwrap();
    let mut watch = nodes[at].watch_status().await.unwrap();
    nodes[at].propose("seen").await.unwrap();
    let target = nodes[at].status().await.unwrap().last.index;
    watch.wait_for(|status| target <= status.applied_index).await.unwrap();
    for other in (0..3).filter(|other| *other != at) {
        let id = nodes[other].identity().id;
        eventually("no follower lags", || async {
            (nodes[at].status().await.unwrap().lag(id) == Some(0)).then_some(())
        })
        .await;
    }
}

/// Many commands in one message, each with its own result.
#[tokio::test]
async fn many_commands_are_proposed_at_once() {
    let cluster = Cluster::new(3);
    let compaction = Compaction::default();
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let tune = |config: &mut kontiki::Config| config.entry_bytes_max = 100;
        nodes.push(cluster.builder(id).compaction(compaction).tune(tune).start().await.unwrap());
    }
    let at = leader(&nodes).await;
    let mut commands: Vec<Vec<u8>> = (0..200u8).map(|count| vec![count; 20]).collect();
    commands.insert(100, vec![0; 101]);
    let results = nodes[at].propose_many(commands).await;
    assert_eq!(results.len(), 201);
    for (number, result) in (0..201usize).zip(results) {
        match result {
            Ok(applied) => assert_eq!(applied.response, number + usize::from(number < 100)),
            Err(error) => {
                let too_large = ProposeError::Rejected(Rejection::TooLarge { bytes_max: 100 });
                assert_eq!((number, error.to_string()), (100, too_large.to_string()));
            }
        }
    }
    let sizes = nodes[at].read(|list| list.0.iter().map(Vec::len).sum::<usize>()).await.unwrap();
    assert_eq!(sizes, 200 * 20);
}
