//! Servers as real processes, which end with the test however it ends.

use std::{
    fs::{self, File, OpenOptions},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use etcd_client::{Channel, Client};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tonic::transport::Endpoint;

use crate::proxy::Links;

/// The program under test.
pub(crate) const KONTIKI: &str = env!("CARGO_BIN_EXE_kontiki");

/// Times of `kontiki dev`: leaders are replaced well within the two seconds that are promised.
const TIMES: [&str; 2] = ["--heartbeat-interval=50", "--election-timeout=500"];

/// How long anything may take that is not measured.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Lets one test with servers run at a time: they measure time, and the machine is small.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a test's future on one thread.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// A directory on the disk of the build, where fsync means something.
pub(crate) fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Ports that are free, and not of those that the system gives to outgoing connections: one of
/// them could take the port of a server that is just being started again.
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    let mut held = Vec::new();
    while held.len() < count {
        let port = fastrand::u16(12_000..32_000);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push(listener);
        }
    }
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// A client of one server, which connects when it is used, and again when it must.
pub(crate) async fn client_of(endpoint: &str) -> Client {
    let channel = Endpoint::from_shared(format!("http://{endpoint}"))
        .unwrap()
        .connect_timeout(Duration::from_secs(1))
        .connect_lazy();
    Client::from_channel(Channel::Tonic(channel), None).await.unwrap()
}

/// Calls `attempt` until it gives something.
pub(crate) async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = attempt().await {
            return done;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for a process to end by itself.
pub(crate) async fn end_of(child: &mut Child, what: &str) -> ExitStatus {
    until(what, async || child.try_wait().unwrap()).await
}

/// Runs a command to its end.
pub(crate) fn kontiki(args: &[&str]) -> Output {
    Command::new(KONTIKI).args(args).stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// A cluster. Its processes are killed when it is dropped.
pub(crate) struct Servers {
    pub(crate) dir: TempDir,
    nodes: Vec<Node>,
    /// Where they pass through, if not directly.
    links: Option<Links>,
    /// Beside those that say who a server is.
    flags: Vec<String>,
}

struct Node {
    name: String,
    client_port: u16,
    peer_port: u16,
    /// Where the others find it: its peer port, or that of a proxy.
    advertised_port: u16,
    env: Vec<(&'static str, String)>,
    /// It was added to a cluster that ran already.
    is_joiner: bool,
    /// It was removed: nobody is told of it any more.
    is_removed: bool,
    child: Option<Child>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child {
                drop(child.kill());
                drop(child.wait());
            }
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = fs::read_to_string(self.dir.path().join(format!("{}.log", node.name)));
                let log = log.unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(25)..].join("\n");
                eprintln!("--- the end of {}.log\n{tail}", node.name);
            }
        }
    }
}

impl Servers {
    /// Starts three servers and waits until they serve.
    pub(crate) async fn three() -> Self {
        let mut servers = Self::unstarted();
        servers.start_all().await;
        servers
    }

    /// Starts three servers that reach each other through proxies.
    pub(crate) async fn behind(links: &Links) -> Self {
        let mut servers = Self::unstarted();
        let ports = free_ports(3);
        for (index, (&port, node)) in ports.iter().zip(&mut servers.nodes).enumerate() {
            node.advertised_port = port;
            links.add(index, port, node.peer_port).await;
        }
        servers.links = Some(links.clone());
        servers.start_all().await;
        servers
    }

    /// Three servers that do not run yet.
    pub(crate) fn unstarted() -> Self {
        let mut servers =
            Self { dir: directory(), nodes: Vec::new(), links: None, flags: Vec::new() };
        TIMES.iter().for_each(|flag| servers.set_flag(flag));
        servers.set_flag("--log-segment-bytes=1048576");
        for _ in 0..3 {
            servers.make_node(false);
        }
        servers
    }

    /// A server for a cluster that runs already. It is not started, and nobody knows of it yet.
    pub(crate) fn make_joiner(&mut self) -> usize {
        self.make_node(true)
    }

    fn make_node(&mut self, is_joiner: bool) -> usize {
        let index = self.nodes.len();
        let ports = free_ports(2);
        self.nodes.push(Node {
            name: format!("n{}", index + 1),
            client_port: ports[0],
            peer_port: ports[1],
            advertised_port: ports[1],
            env: Vec::new(),
            is_joiner,
            is_removed: false,
            child: None,
        });
        index
    }

    /// Nobody is told of this server any more.
    pub(crate) fn forget(&mut self, index: usize) {
        self.nodes[index].is_removed = true;
    }

    /// A server that was removed is known again, and joins as a new one.
    pub(crate) fn become_joiner(&mut self, index: usize) {
        self.nodes[index].is_removed = false;
        self.nodes[index].is_joiner = true;
    }

    /// The servers that were started, and neither stopped nor removed.
    pub(crate) fn running(&self) -> Vec<usize> {
        let is_running = |&index: &usize| {
            let node = &self.nodes[index];
            node.child.is_some() && !node.is_removed
        };
        (0..self.nodes.len()).filter(is_running).collect()
    }

    /// Sets a flag, `--name=value`, of all servers, for their next start.
    pub(crate) fn set_flag(&mut self, flag: &str) {
        let name = |flag: &str| flag.split('=').next().unwrap_or_default().to_owned();
        self.flags.retain(|other| name(other) != name(flag));
        self.flags.push(flag.to_owned());
    }

    pub(crate) fn peer_url(&self, index: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[index].advertised_port)
    }

    pub(crate) fn name(&self, index: usize) -> &str {
        &self.nodes[index].name
    }

    /// The process of a server that runs.
    pub(crate) fn process(&self, index: usize) -> u32 {
        self.nodes[index].child.as_ref().unwrap().id()
    }

    /// Starts all servers and waits until they serve.
    pub(crate) async fn start_all(&mut self) {
        for index in 0..self.nodes.len() {
            self.start(index);
        }
        for index in 0..self.nodes.len() {
            self.until_ready(index).await;
        }
    }

    /// Sets an environment variable for the next start of a server.
    pub(crate) fn set_env(&mut self, index: usize, name: &'static str, value: String) {
        self.nodes[index].env.push((name, value));
    }

    /// The flags of a server.
    pub(crate) fn flags(&self, index: usize) -> Vec<String> {
        let node = &self.nodes[index];
        let members: Vec<String> = self
            .nodes
            .iter()
            .filter(|other| !other.is_removed && (node.is_joiner || !other.is_joiner))
            .map(|node| format!("{}=http://127.0.0.1:{}", node.name, node.advertised_port))
            .collect();
        let state = if node.is_joiner { "existing" } else { "new" };
        let mut flags = vec![
            "serve".to_owned(),
            format!("--name={}", node.name),
            format!("--data-dir={}", self.data_dir(index).display()),
            format!("--listen-client-urls=http://127.0.0.1:{}", node.client_port),
            format!("--listen-peer-urls=http://127.0.0.1:{}", node.peer_port),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{}", node.advertised_port),
            format!("--initial-cluster={}", members.join(",")),
            format!("--initial-cluster-state={state}"),
            "--stop-with-stdin".to_owned(),
        ];
        flags.extend(self.flags.iter().cloned());
        flags
    }

    /// Starts a server that does not run.
    pub(crate) fn start(&mut self, index: usize) {
        let log = OpenOptions::new().create(true).append(true).open(self.log_path(index));
        let child = spawn_with(&self.flags(index), &self.nodes[index].env, log.unwrap());
        self.nodes[index].child = Some(child);
        if let Some(links) = &self.links {
            links.set_process(index, Some(self.process(index)));
        }
    }

    pub(crate) fn endpoint(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[index].client_port)
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        (0..self.nodes.len()).map(|index| self.endpoint(index)).collect()
    }

    pub(crate) fn data_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(&self.nodes[index].name)
    }

    fn log_path(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("{}.log", self.nodes[index].name))
    }

    pub(crate) fn log(&self, index: usize) -> String {
        fs::read_to_string(self.log_path(index)).unwrap_or_default()
    }

    pub(crate) fn child(&mut self, index: usize) -> &mut Child {
        self.nodes[index].child.as_mut().unwrap()
    }

    pub(crate) fn signal(&self, index: usize, with: Signal) {
        signal(self.nodes[index].child.as_ref().unwrap(), with);
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.nodes[index].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) async fn client(&self, index: usize) -> Client {
        client_of(&self.endpoint(index)).await
    }

    /// Waits until a server answers a linearizable read, for which it must have caught up.
    pub(crate) async fn until_ready(&self, index: usize) {
        let client = self.client(index).await;
        until("a server that answers", async || {
            let mut client = client.clone();
            let read = client.get("ready?", None);
            tokio::time::timeout(Duration::from_secs(1), read).await.ok()?.ok()
        })
        .await;
    }

    /// The leader that the others know too, by the highest term.
    pub(crate) async fn leader(&self) -> usize {
        until("a leader", async || {
            let mut leader = None;
            for index in 0..self.nodes.len() {
                let mut client = self.client(index).await;
                let asked = tokio::time::timeout(Duration::from_millis(500), client.status());
                let Ok(Ok(status)) = asked.await else { continue };
                let is_leader = status.leader() == status.header().unwrap().member_id();
                if is_leader && leader.is_none_or(|(term, _)| term < status.raft_term()) {
                    leader = Some((status.raft_term(), index));
                }
            }
            leader.map(|(_, index)| index)
        })
        .await
    }
}

/// Starts a server with a lifeline: it stops when the test's process is gone.
pub(crate) fn spawn(flags: &[String], log: File) -> Child {
    spawn_with(flags, &[], log)
}

fn spawn_with(flags: &[String], env: &[(&'static str, String)], log: File) -> Child {
    Command::new(KONTIKI)
        .args(flags)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}
