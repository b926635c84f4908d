//! A small cluster in this process, on real disks and loopback sockets.

use std::{
    future::Future,
    io,
    net::TcpListener,
    path::PathBuf,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use kontiki::{
    Builder, Command, Config, EntryId, LogOptions, Raft, Role, StartError, StateMachine,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// Nothing in these tests takes nearly as long, however busy the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A list of what was proposed. The response is the length of the list.
#[derive(Debug, Default)]
pub(crate) struct List(pub(crate) Vec<Vec<u8>>);

impl StateMachine for List {
    type Response = usize;
    type Snapshot = Vec<u8>;

    fn apply(&mut self, command: Command<'_>) -> usize {
        self.0.push(command.data.to_vec());
        self.0.len()
    }

    fn snapshot(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for item in &self.0 {
            bytes.extend(u32::try_from(item.len()).unwrap().to_le_bytes());
            bytes.extend(item);
        }
        Ok(bytes)
    }

    fn restore(&mut self, _: EntryId, from: &mut dyn io::Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let mut rest = &bytes[..];
        self.0.clear();
        while let Some((len, after)) = rest.split_first_chunk::<4>() {
            let len = usize::try_from(u32::from_le_bytes(*len)).unwrap();
            let (item, after) = after.split_at(len);
            self.0.push(item.to_vec());
            rest = after;
        }
        Ok(())
    }
}

/// Three nodes that are started and stopped one by one.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
    pub(crate) members: Vec<(u64, String)>,
}

impl Cluster {
    pub(crate) fn new(count: u64) -> Self {
        let members = (1..=count).map(|id| (id, free_address())).collect();
        Self { dir: tempfile::tempdir().expect("there is room for test data"), members }
    }

    pub(crate) fn data_dir(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    pub(crate) fn builder(&self, id: u64) -> Builder<List> {
        Raft::builder(id, List::default())
            .data_dir(self.data_dir(id))
            .bootstrap(self.members.clone())
            .log_options(small_log())
            .tune(quick)
    }

    /// Starts a node. An earlier life of it may be about to let go of its directory and port.
    pub(crate) async fn start(&self, id: u64) -> Raft<List> {
        eventually("the node starts", || async {
            match self.builder(id).start().await {
                Ok(raft) => Some(raft),
                Err(StartError::Log(_) | StartError::Listen { .. }) => None,
                Err(error) => panic!("node {id} does not start: {error:?}"),
            }
        })
        .await
    }

    pub(crate) async fn start_all(&self) -> Vec<Raft<List>> {
        let mut nodes = Vec::new();
        for &(id, _) in &self.members {
            nodes.push(self.start(id).await);
        }
        nodes
    }
}

/// Times short enough for tests to be quick, and long enough for a busy machine: a leader that
/// loses its quorum for a moment leaves its proposals without a certain outcome.
pub(crate) fn quick(config: &mut Config) {
    config.heartbeat_interval = Duration::from_millis(25);
    config.election_timeout = Duration::from_millis(500);
}

/// Small files, so that tests do not fill the disk.
pub(crate) fn small_log() -> LogOptions {
    LogOptions { segment_bytes: 256 << 10, spares: 1, ..LogOptions::default() }
}

/// Polls until `attempt` returns something.
pub(crate) async fn eventually<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// The position of the node that leads, as soon as there is one.
pub(crate) async fn leader<S: StateMachine>(nodes: &[Raft<S>]) -> usize {
    eventually("there is a leader", || async {
        nodes.iter().position(|node| node.watch().borrow().role == Role::Leader)
    })
    .await
}

/// An address that nobody uses, below the range from which the kernel takes the other ends of
/// connections: there it could be taken while its node is down.
pub(crate) fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// As [`free_address`].
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = u16::try_from(std::process::id() % 200).expect("below 200") * 100;
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (spread + offset) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
