//! What fails, fails with a reason, and never in silence.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kontiki::{
    Batch, Command, Disk, DiskFile, DiskLock, EntryId, Fault, Index, LogError, ProposeError, Raft,
    ReadError, RealDisk, Rejection, StartError, StateMachine,
};

use crate::common::{Cluster, List, eventually, leader, quick, small_log};

/// The real disk, until it fails.
#[derive(Debug, Default)]
struct FailingDisk(Arc<AtomicBool>);

#[derive(Debug)]
struct FailingFile(Arc<dyn DiskFile>, Arc<AtomicBool>);

impl FailingDisk {
    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FailingFile(file, Arc::clone(&self.0)))
    }
}

impl Disk for FailingDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        RealDisk.list(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(RealDisk.open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(RealDisk.create(path)?))
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

impl DiskFile for FailingFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.1.load(Ordering::Relaxed) {
            return Err(io::Error::other("input/output error"));
        }
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

/// Pitfall D4.
#[tokio::test]
async fn a_node_whose_disk_fails_stops_and_acknowledges_nothing() {
    let cluster = Cluster::new(1);
    let disk = FailingDisk::default();
    let fails = Arc::clone(&disk.0);
    let node = cluster.builder(1).disk(Arc::new(disk)).start().await.unwrap();
    node.propose("on a sound disk").await.unwrap();

    fails.store(true, Ordering::Relaxed);
    let error = node.propose("on a failing one").await.unwrap_err();
    assert!(
        matches!(error, ProposeError::Stopped(Fault::Log(_)) | ProposeError::Unknown { .. }),
        "{error:?}"
    );
    let fault = node.stopped().await;
    let Fault::Log(cause) = &fault else { panic!("{fault:?}") };
    assert!(cause.to_string().contains("input/output error"), "{cause}");

    // The disk may say what it likes: nothing is tried again.
    fails.store(false, Ordering::Relaxed);
    let error = node.propose("later").await.unwrap_err();
    assert!(matches!(error, ProposeError::Stopped(Fault::Log(_))), "{error:?}");
    let error = node.read(|list| list.0.len()).await.unwrap_err();
    assert!(matches!(error, ReadError::Stopped(Fault::Log(_))), "{error:?}");
    assert!(matches!(node.shutdown().await, Err(Fault::Log(_))));

    // Started anew, it has what it had acknowledged, whatever became of the rest.
    let node = cluster.start(1).await;
    let list = node.read(|list| list.0.clone()).await.unwrap();
    assert_eq!(list[0], b"on a sound disk");
}

#[tokio::test]
async fn the_others_carry_on_when_the_disk_of_the_leader_fails() {
    let cluster = Cluster::new(3);
    let mut disks = Vec::new();
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let disk = FailingDisk::default();
        disks.push(Arc::clone(&disk.0));
        nodes.push(cluster.builder(id).disk(Arc::new(disk)).start().await.unwrap());
    }
    let old = leader(&nodes).await;
    nodes[old].propose("before").await.unwrap();
    disks[old].store(true, Ordering::Relaxed);
    drop(nodes[old].propose("whatever becomes of it").await);
    assert!(matches!(nodes.remove(old).stopped().await, Fault::Log(_)));

    let new = leader(&nodes).await;
    nodes[new].propose("after").await.unwrap();
    let list = nodes[new].read(|list| list.0.clone()).await.unwrap();
    assert_eq!(list.first().unwrap(), b"before");
    assert_eq!(list.last().unwrap(), b"after");
}

#[tokio::test]
async fn two_nodes_cannot_have_one_data_directory() {
    let cluster = Cluster::new(1);
    let _node = cluster.start(1).await;
    let error = cluster.builder(1).start().await.unwrap_err();
    let StartError::Log(cause) = error else { panic!("{error:?}") };
    let cause = cause.downcast::<LogError>().unwrap();
    assert!(matches!(*cause, LogError::Locked { .. }), "{cause}");
}

#[tokio::test]
async fn a_data_directory_serves_one_cluster_only() {
    let cluster = Cluster::new(1);
    cluster.start(1).await.shutdown().await.unwrap();
    let error = cluster.builder(1).cluster_token("another").start().await.unwrap_err();
    let StartError::Log(cause) = error else { panic!("{error:?}") };
    let cause = cause.downcast::<LogError>().unwrap();
    assert!(matches!(*cause, LogError::WrongIdentity { .. }), "{cause}");
}

#[tokio::test]
async fn a_builder_that_contradicts_itself_says_what_is_wrong() {
    let builder = || Raft::builder(1, List::default());
    for (builder, expected) in [
        (builder().bootstrap([(1, "a:1")]), "data_dir"),
        (builder().data_dir("x").bootstrap([(2, "a:1")]), "does not name n1"),
        (builder().data_dir("x").bootstrap([(1, "a:1"), (1, "a:2")]), "twice"),
        (builder().data_dir("x").bootstrap([(1, "a:1"), (0, "a:2")]), "id 0"),
    ] {
        let error = builder.start().await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let cluster = Cluster::new(1);
    let error = cluster.builder(1).listen("no address").start().await.unwrap_err();
    assert!(matches!(error, StartError::Listen { .. }), "{error:?}");
}

/// Pitfall D14.
#[tokio::test]
async fn a_full_inbox_answers_busy_at_once() {
    let cluster = Cluster::new(1);
    let node = cluster
        .builder(1)
        .tune(|config| {
            config.entry_bytes_max = 1000;
            config.uncommitted_bytes_max = 10_000;
        })
        .start()
        .await
        .unwrap();
    node.propose("warm").await.unwrap();
    // The node loop has no chance to run while these are made.
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let node = node.clone();
        tasks.spawn(async move { node.propose(vec![7; 1000]).await });
    }
    let mut busy = 0;
    let mut taken = 0;
    while let Some(result) = tasks.join_next().await {
        match result.unwrap() {
            Ok(_) => taken += 1,
            Err(ProposeError::Rejected(Rejection::Busy)) => busy += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(0 < busy && 0 < taken, "{busy} busy, {taken} taken");
    assert_eq!(node.read(|list| list.0.len()).await.unwrap(), taken + 1);
    // And there is room again.
    node.propose("and on").await.unwrap();
}

/// Pitfall D14.
#[tokio::test]
async fn reads_that_wait_for_the_state_machine_are_bounded() {
    let cluster = Cluster::new(1);
    let tune = |config: &mut kontiki::Config| config.pending_reads_max = 2;
    let node = cluster.builder(1).tune(tune).start().await.unwrap();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let (entered, in_machine) = tokio::sync::oneshot::channel();
    let slow = node.clone();
    let slow = tokio::spawn(async move {
        let read = move |_: &List| {
            entered.send(()).unwrap();
            blocked.recv().unwrap();
        };
        slow.read_stale(read).await
    });
    in_machine.await.unwrap();
    eventually("there is no room", || async {
        // One that is given up takes its room until its turn comes.
        let read = tokio::time::timeout(Duration::from_millis(10), node.read_stale(|_| ())).await;
        matches!(read, Ok(Err(ReadError::Rejected(Rejection::Busy)))).then_some(())
    })
    .await;
    release.send(()).unwrap();
    slow.await.unwrap().unwrap();
    eventually("there is room again", || async { node.read_stale(|_| ()).await.ok() }).await;
}

#[tokio::test]
async fn a_command_that_is_too_large_is_refused() {
    let cluster = Cluster::new(1);
    let tune = |config: &mut kontiki::Config| config.entry_bytes_max = 100;
    let node = cluster.builder(1).tune(tune).start().await.unwrap();
    let error = node.propose(vec![0; 101]).await.unwrap_err();
    let expected = Rejection::TooLarge { bytes_max: 100 };
    assert!(matches!(&error, ProposeError::Rejected(why) if *why == expected), "{error:?}");
}

/// A state machine that does as it is told.
struct Faulty;

impl StateMachine for Faulty {
    type Response = ();
    type Snapshot = Vec<u8>;

    fn apply(&mut self, _command: Command<'_>) {}

    fn snapshot(&mut self) -> io::Result<Vec<u8>> {
        Err(io::Error::other("as it was told"))
    }

    fn restore(&mut self, _: EntryId, _: &mut dyn io::Read) -> io::Result<()> {
        Err(io::Error::other("as it was told"))
    }

    fn apply_batch(&mut self, batch: Batch<'_>, respond: &mut dyn FnMut(())) -> io::Result<()> {
        for command in batch.commands {
            match &command.data[..] {
                b"error" => return Err(io::Error::other("no room")),
                b"panic" => panic!("as it was told"),
                b"silence" => {}
                _ => respond(()),
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_state_machine_that_fails_stops_the_node() {
    for (command, expected) in [
        ("error", "the state machine failed to apply the log up to"),
        ("silence", "the state machine gave 0 responses to 1 commands"),
        ("panic", "has panicked: apply"),
    ] {
        let cluster = Cluster::new(1);
        let node = Raft::builder(1, Faulty)
            .data_dir(cluster.data_dir(1))
            .bootstrap(cluster.members.clone())
            .log_options(small_log())
            .tune(quick)
            .start()
            .await
            .unwrap();
        node.propose("fine").await.unwrap();
        let error = node.propose(command).await.unwrap_err();
        assert!(matches!(error, ProposeError::Stopped(_)), "{command}: {error:?}");
        let fault = node.stopped().await;
        assert!(fault.to_string().contains(expected), "{command}: {fault}");
    }
}

/// A state machine on a disk that loses nothing: it is there before and after the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Durable(
    pub(crate) Arc<Mutex<(u64, Vec<Vec<u8>>)>>,
    /// Its disk is full.
    pub(crate) Arc<AtomicBool>,
);

impl StateMachine for Durable {
    type Response = usize;
    type Snapshot = Vec<u8>;

    fn apply(&mut self, _command: Command<'_>) -> usize {
        unreachable!("it applies batches")
    }

    fn snapshot(&mut self) -> io::Result<Vec<u8>> {
        List(self.0.lock().unwrap().1.clone()).snapshot()
    }

    fn restore(&mut self, at: EntryId, from: &mut dyn io::Read) -> io::Result<()> {
        if self.is_storage_full() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut list = List::default();
        list.restore(at, from)?;
        *self.0.lock().unwrap() = (at.index.get(), list.0);
        Ok(())
    }

    fn durable_applied(&self) -> Option<Index> {
        Some(Index(self.0.lock().unwrap().0))
    }

    fn is_storage_full(&self) -> bool {
        self.1.load(Ordering::Relaxed)
    }

    fn apply_batch(&mut self, batch: Batch<'_>, respond: &mut dyn FnMut(usize)) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        assert!(state.0 < batch.upto.index.get(), "entries are applied once");
        for command in batch.commands {
            state.1.push(command.data.to_vec());
            respond(state.1.len());
        }
        state.0 = batch.upto.index.get();
        Ok(())
    }
}

async fn start_durable(cluster: &Cluster, machine: &Durable) -> Raft<Durable> {
    Raft::builder(1, machine.clone())
        .data_dir(cluster.data_dir(1))
        .bootstrap(cluster.members.clone())
        .log_options(small_log())
        .tune(quick)
        .tune(|config| (config.purge_entries_min, config.log_keep_bytes) = (10, 0))
        .start()
        .await
        .unwrap()
}

/// The machine cannot write: no proposals are taken, and reads go on. It is noticed without any.
#[tokio::test]
async fn a_state_machine_whose_disk_is_full_holds_proposals_back() {
    let cluster = Cluster::new(1);
    let machine = Durable::default();
    let node = start_durable(&cluster, &machine).await;
    node.propose("before").await.unwrap();
    machine.1.store(true, Ordering::Relaxed);
    eventually("a full disk is noticed", || async {
        node.status().await.unwrap().is_storage_full.then_some(())
    })
    .await;
    let refused = node.propose("full").await.unwrap_err();
    assert!(matches!(refused, ProposeError::Rejected(Rejection::NoSpace)), "{refused}");
    assert_eq!(node.read(|machine| machine.0.lock().unwrap().1.len()).await.unwrap(), 1);
    machine.1.store(false, Ordering::Relaxed);
    eventually("there is space again", || async {
        (!node.status().await.unwrap().is_storage_full).then_some(())
    })
    .await;
    assert_eq!(node.propose("after").await.unwrap().response, 2);
    node.shutdown().await.unwrap();
}

/// Pitfall D9.
#[tokio::test]
async fn a_durable_state_machine_goes_on_where_it_was_and_its_log_is_purged() {
    let cluster = Cluster::new(1);
    let machine = Durable::default();
    for round in 1..=3 {
        let node = start_durable(&cluster, &machine).await;
        for count in 0..100 {
            let applied = node.propose(vec![0; 4000]).await.unwrap();
            assert_eq!(applied.response, (round - 1) * 100 + count + 1);
        }
        node.shutdown().await.unwrap();
    }
    let node = start_durable(&cluster, &machine).await;
    let log_start = eventually("the log is purged", || async {
        let log_start = node.status().await.unwrap().log_start;
        (0 < log_start.index.get()).then_some(log_start)
    })
    .await;
    assert!(100 < log_start.index.get(), "{log_start}");
    node.shutdown().await.unwrap();

    // What was purged is gone for ever: a machine that forgot it cannot be served.
    let forgetful = Raft::builder(1, List::default())
        .data_dir(cluster.data_dir(1))
        .bootstrap(cluster.members.clone())
        .start();
    assert!(matches!(forgetful.await, Err(StartError::NoSnapshot { .. })));
}

#[tokio::test]
async fn a_state_machine_in_memory_is_rebuilt_from_the_log() {
    let cluster = Cluster::new(1);
    for round in 0..3 {
        let node = cluster.start(1).await;
        assert_eq!(node.read(|list| list.0.len()).await.unwrap(), round * 100);
        for _ in 0..100 {
            node.propose(vec![1; 300]).await.unwrap();
        }
        node.shutdown().await.unwrap();
    }
}

/// Pitfall M7.
#[tokio::test]
async fn a_node_whose_disk_was_wiped_is_refused_and_stops() {
    let cluster = Cluster::new(3);
    let mut nodes = cluster.start_all().await;
    let first = leader(&nodes).await;
    nodes[first].propose("before").await.unwrap();
    eventually("all have met", || async {
        let lens = [&nodes[0], &nodes[1], &nodes[2]].map(|node| node.read(|list| list.0.len()));
        for len in lens {
            if len.await.ok()? != 1 {
                return None;
            }
        }
        Some(())
    })
    .await;

    let at = (first + 1) % 3;
    let wiped = nodes.remove(at);
    let id = wiped.identity().id.get();
    wiped.shutdown().await.unwrap();
    fs::remove_dir_all(cluster.data_dir(id)).unwrap();

    let back = cluster.start(id).await;
    let fault = back.stopped().await;
    let Fault::StoreChanged { known, ours, .. } = &fault else { panic!("{fault:?}") };
    assert_ne!(known, ours);
    assert!(fault.to_string().contains("start it with its own data directory"), "{fault}");

    leader(&nodes).await;
    nodes[0].propose("after").await.unwrap();
}
