//! The flags of `kontiki serve`: etcd's, where the meaning is the same.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use kontiki_server::ServerConfig;
use tracing::level_filters::LevelFilter;

const HELP: &str = "\
Every flag is also an environment variable, KONTIKI_NAME or ETCD_NAME for --name. The command
line wins over KONTIKI_…, and that over ETCD_…. One dash is as good as two.

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 a fault (the last line on stderr says which),
2 a wrong flag.

Example, the first of three servers:
  kontiki serve --name n1 --data-dir /var/lib/kontiki \\
    --listen-client-urls http://10.0.0.1:2379 --advertise-client-urls http://10.0.0.1:2379 \\
    --listen-peer-urls http://10.0.0.1:2380 --initial-advertise-peer-urls http://10.0.0.1:2380 \\
    --initial-cluster n1=http://10.0.0.1:2380,n2=http://10.0.0.2:2380,n3=http://10.0.0.3:2380";

#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct ServeArgs {
    /// Name of this server, one of those in --initial-cluster
    #[arg(long, default_value = "default")]
    name: String,

    /// Directory of everything durable; by default NAME.kontiki
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Where to listen for clients
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    #[arg(default_value = "http://localhost:2379")]
    listen_client_urls: Vec<String>,

    /// Where clients are told to find this server; by default where it listens
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    advertise_client_urls: Vec<String>,

    /// Where to listen for the other servers
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    #[arg(default_value = "http://localhost:2380")]
    listen_peer_urls: Vec<String>,

    /// Where the other servers find this one; by default where it listens for them
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    initial_advertise_peer_urls: Vec<String>,

    /// All servers of the cluster, NAME=URL each; by default this one alone
    #[arg(long, value_name = "NAME=URL,…", default_value = "", hide_default_value = true)]
    initial_cluster: String,

    /// new, or existing for a server that was added to a running cluster
    #[arg(long, value_name = "STATE", default_value = "new")]
    initial_cluster_state: String,

    /// Tells clusters apart that were made with the same URLs
    #[arg(long, value_name = "TOKEN", default_value = "etcd-cluster")]
    initial_cluster_token: String,

    /// Milliseconds between heartbeats of the leader
    #[arg(long, value_name = "MS", default_value_t = 100)]
    heartbeat_interval: u64,

    /// Milliseconds without a heartbeat until the others look for a new leader
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    election_timeout: u64,

    /// Largest write in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1_572_864)]
    max_request_bytes: usize,

    /// Most operations in one list of a transaction
    #[arg(long, value_name = "COUNT", default_value_t = 128)]
    max_txn_ops: usize,

    /// Most calls in flight on one connection
    #[arg(long, value_name = "COUNT", default_value_t = u32::MAX, hide_default_value = true)]
    max_concurrent_streams: u32,

    /// Length of a file of the Raft log; two more are kept ready
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    log_segment_bytes: u64,

    /// Bytes of the log that are kept for servers that were away
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20)]
    log_keep_bytes: u64,

    /// Bytes of log beyond which a server that needs it gets a snapshot instead
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    log_bytes_max: u64,

    /// Bytes of the newest values that are kept in memory; by default a quarter of the memory of
    /// this machine or control group, at most 1 GiB
    #[arg(long, value_name = "BYTES")]
    cache_bytes: Option<usize>,

    /// Who should lead if all else is equal: the highest
    #[arg(long, value_name = "0-255", default_value_t = 0)]
    priority: u8,

    /// Serve reads under a lease, if clocks drift apart by less than so many millionths; 0 is off
    #[arg(long, value_name = "PPM", default_value_t = 0)]
    experimental_lease_reads_drift_ppm: u32,

    /// What to log on stderr
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,

    /// Threads of the network runtime; one is the fastest on few cores
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = threads)]
    threads: usize,

    /// Stop when stdin ends: for a parent that must not leave servers behind
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

/// etcd's log levels.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
    #[value(alias = "dpanic", alias = "panic", hide = true)]
    Fatal,
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=64) => Ok(count),
        _ => Err("must be from 1 to 64".to_owned()),
    }
}

impl ServeArgs {
    /// The settings of the server; not yet checked.
    pub(super) fn config(&self) -> ServerConfig {
        let or = |urls: &[String], other: &[String]| {
            if urls.is_empty() { other.to_vec() } else { urls.to_vec() }
        };
        let data_dir =
            self.data_dir.clone().unwrap_or_else(|| format!("{}.kontiki", self.name).into());
        ServerConfig {
            name: self.name.clone(),
            data_dir,
            listen_client_urls: self.listen_client_urls.clone(),
            advertise_client_urls: or(&self.advertise_client_urls, &self.listen_client_urls),
            listen_peer_urls: self.listen_peer_urls.clone(),
            initial_advertise_peer_urls: or(
                &self.initial_advertise_peer_urls,
                &self.listen_peer_urls,
            ),
            initial_cluster: self.initial_cluster.clone(),
            initial_cluster_state: self.initial_cluster_state.clone(),
            initial_cluster_token: self.initial_cluster_token.clone(),
            heartbeat_interval: Duration::from_millis(self.heartbeat_interval),
            election_timeout: Duration::from_millis(self.election_timeout),
            max_request_bytes: self.max_request_bytes,
            max_txn_ops: self.max_txn_ops,
            max_concurrent_streams: self.max_concurrent_streams,
            log_segment_bytes: self.log_segment_bytes,
            log_keep_bytes: self.log_keep_bytes,
            log_bytes_max: self.log_bytes_max,
            cache_bytes: self.cache_bytes,
            priority: self.priority,
            lease_reads_drift_ppm: self.experimental_lease_reads_drift_ppm,
        }
    }

    pub(super) const fn log_level(&self) -> LevelFilter {
        match self.log_level {
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Error | LogLevel::Fatal => LevelFilter::ERROR,
        }
    }

    pub(super) const fn threads(&self) -> usize {
        self.threads
    }

    pub(super) const fn stops_with_stdin(&self) -> bool {
        self.stop_with_stdin
    }
}
