//! What the tests of the server share: servers in this process, a client, a language.

#![allow(dead_code, clippy::allow_attributes, reason = "each test uses its part of it")]

pub(crate) mod client;
pub(crate) mod language;

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use kontiki_server::{RunningServer, Server, ServerConfig};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// The runtime that a server is designed for.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Nothing that is expected to happen takes longer, on the slowest of machines.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Servers in this process, with their data in directories that go with it.
pub(crate) struct Cluster {
    configs: Vec<ServerConfig>,
    pub(crate) servers: Vec<Option<RunningServer>>,
    dir: TempDir,
}

impl Cluster {
    /// Starts `count` servers, and waits until all of them can serve.
    pub(crate) async fn start(count: usize) -> Self {
        let mut cluster = Self::configured(count, |_| {});
        for at in 0..count {
            cluster.launch(at).await;
        }
        for at in 0..count {
            cluster.ready(at).await;
        }
        cluster
    }

    /// The settings of `count` servers, changed by `change`. None of them is started.
    pub(crate) fn configured(count: usize, change: impl Fn(&mut ServerConfig)) -> Self {
        let dir = TempDir::new().expect("a directory");
        let peers: Vec<String> =
            free_ports(count).iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
        let names: Vec<String> = (1..=count).map(|number| format!("n{number}")).collect();
        let initial_cluster: Vec<String> =
            names.iter().zip(&peers).map(|(name, url)| format!("{name}={url}")).collect();
        let configs = names.iter().zip(&peers).map(|(name, peer)| {
            let mut config = ServerConfig {
                name: name.clone(),
                data_dir: dir.path().join(name),
                listen_client_urls: vec!["http://127.0.0.1:0".to_owned()],
                advertise_client_urls: vec![],
                listen_peer_urls: vec![peer.clone()],
                initial_advertise_peer_urls: vec![peer.clone()],
                initial_cluster: initial_cluster.join(","),
                // A tenth of the defaults, because nobody likes to wait.
                heartbeat_interval: Duration::from_millis(20),
                election_timeout: Duration::from_millis(200),
                // And disks are shared.
                log_segment_bytes: 4 << 20,
                ..ServerConfig::default()
            };
            change(&mut config);
            config
        });
        let configs: Vec<_> = configs.collect();
        Self { configs, servers: (0..count).map(|_| None).collect(), dir }
    }

    /// The settings of a server that joins this cluster, once it has been added.
    pub(crate) fn joiner(&self, name: &str) -> ServerConfig {
        let peer = format!("http://127.0.0.1:{}", free_ports(1)[0]);
        ServerConfig {
            name: name.to_owned(),
            data_dir: self.dir.path().join(name),
            listen_peer_urls: vec![peer.clone()],
            initial_advertise_peer_urls: vec![peer],
            initial_cluster_state: "existing".to_owned(),
            ..self.configs[0].clone()
        }
    }

    /// Starts a server that does not run.
    pub(crate) async fn launch(&mut self, at: usize) {
        let server = Server::start(self.configs[at].clone()).await.expect("the server starts");
        assert!(self.servers[at].replace(server).is_none(), "it runs already");
    }

    /// Waits until a server can serve.
    pub(crate) async fn ready(&self, at: usize) {
        let is_ready = tokio::time::timeout(PATIENCE, self.server(at).ready()).await;
        assert!(is_ready.expect("the server becomes ready"));
    }

    /// Stops a server.
    pub(crate) async fn stop(&mut self, at: usize) {
        let server = self.servers[at].take().expect("it runs");
        server.shutdown().await.expect("it had not failed");
    }

    /// Stops all that run.
    pub(crate) async fn stop_all(&mut self) {
        for at in 0..self.servers.len() {
            if self.servers[at].is_some() {
                self.stop(at).await;
            }
        }
    }

    pub(crate) fn config(&self, at: usize) -> ServerConfig {
        self.configs[at].clone()
    }

    pub(crate) fn server(&self, at: usize) -> &RunningServer {
        self.servers[at].as_ref().expect("it runs")
    }

    /// A new connection to a server.
    pub(crate) async fn client(&self, at: usize) -> client::Client {
        client::Client::connect(self.server(at).client_addresses()[0]).await
    }

    /// Where a server listens, as etcd's clients are told.
    pub(crate) fn endpoint(&self, at: usize) -> String {
        self.server(at).client_addresses()[0].to_string()
    }
}

/// Ports that nobody listens on. They are below those that the system gives to connections that
/// go out, and no two calls in a process get the same.
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let process = u16::try_from(std::process::id() % 200).expect("it is less than 200");
    let mut ports = Vec::new();
    while ports.len() < count {
        let port = 12_000 + process * 100 + NEXT.fetch_add(1, Ordering::Relaxed) % 100;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            ports.push(port);
        }
    }
    ports
}
