//! What a server is told at its start. Names and defaults are those of etcd's flags.
//!
//! A setting is checked before anything is opened, and what is wrong with it is said in the words
//! of the flag that set it.

use std::{fmt, path::PathBuf, time::Duration};

use crate::members::Roster;

const MIB: usize = 1 << 20;

/// The settings of one server. Start from [`ServerConfig::default`] and change what you must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// `--name`: which member of the initial cluster this server is.
    pub name: String,
    /// `--data-dir`: where everything durable lives.
    pub data_dir: PathBuf,
    /// `--listen-client-urls`: where clients are listened for. Port 0 lets the system choose.
    pub listen_client_urls: Vec<String>,
    /// `--advertise-client-urls`: where clients are told to go. Empty: as listened.
    pub advertise_client_urls: Vec<String>,
    /// `--listen-peer-urls`: where the other members are listened for.
    pub listen_peer_urls: Vec<String>,
    /// `--initial-advertise-peer-urls`: where the others find this member.
    pub initial_advertise_peer_urls: Vec<String>,
    /// `--initial-cluster`: all members as `name=URL,…`. Empty: this server alone.
    pub initial_cluster: String,
    /// `--initial-cluster-state`: `new`, or `existing` for a server that joins a cluster to which
    /// it was added.
    pub initial_cluster_state: String,
    /// `--initial-cluster-token`: tells clusters apart that were made with the same URLs.
    pub initial_cluster_token: String,
    /// `--heartbeat-interval`: how often a leader shows that it is alive.
    pub heartbeat_interval: Duration,
    /// `--election-timeout`: for how long a silent leader is still believed in.
    pub election_timeout: Duration,
    /// `--max-request-bytes`: a larger write is refused.
    pub max_request_bytes: usize,
    /// `--max-txn-ops`: a transaction with more guards, or operations in one branch, is refused.
    pub max_txn_ops: usize,
    /// `--max-concurrent-streams`: calls in flight on one connection.
    pub max_concurrent_streams: u32,
    /// `--log-segment-bytes`: the length of a file of the Raft log. Two more are kept ready, and
    /// space is given back by whole files. Not a flag of etcd, which has 64 MB as a constant.
    pub log_segment_bytes: u64,
    /// `--log-keep-bytes`: so much of the log is kept though every server has it, so that one
    /// that was away needs no snapshot. etcd counts entries: `--snapshot-catchup-entries`.
    pub log_keep_bytes: u64,
    /// `--log-bytes-max`: beyond this the log is given up though a server still needs it; that
    /// one gets a snapshot. etcd counts entries: `--snapshot-count`.
    pub log_bytes_max: u64,
    /// `--cache-bytes`: the newest values are kept in so much memory. `None`: a quarter of the
    /// memory of this machine or control group, at most 1 GiB. Not a flag of etcd.
    pub cache_bytes: Option<usize>,
    /// `--priority`: who should lead if all else is equal. Not a flag of etcd.
    pub priority: u8,
    /// `--experimental-lease-reads-drift-ppm`: reads are served under a lease of the leader, which
    /// is safe as long as the clocks of the servers drift apart by less than so many millionths.
    /// 0, the default, is off.
    pub lease_reads_drift_ppm: u32,
}

impl Default for ServerConfig {
    fn default() -> Self {
        let client = vec!["http://localhost:2379".to_owned()];
        let peer = vec!["http://localhost:2380".to_owned()];
        Self {
            name: "default".to_owned(),
            data_dir: PathBuf::from("default.kontiki"),
            listen_client_urls: client.clone(),
            advertise_client_urls: client,
            listen_peer_urls: peer.clone(),
            initial_advertise_peer_urls: peer,
            initial_cluster: String::new(),
            initial_cluster_state: "new".to_owned(),
            initial_cluster_token: "etcd-cluster".to_owned(),
            heartbeat_interval: Duration::from_millis(100),
            election_timeout: Duration::from_secs(1),
            max_request_bytes: MIB + MIB / 2,
            max_txn_ops: 128,
            max_concurrent_streams: u32::MAX,
            log_segment_bytes: 64 << 20,
            log_keep_bytes: 16 << 20,
            log_bytes_max: 1 << 30,
            cache_bytes: None,
            priority: 0,
            lease_reads_drift_ppm: 0,
        }
    }
}

/// A setting that cannot be right: which flag, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{flag}: {why}")]
pub struct ConfigError {
    flag: &'static str,
    why: String,
}

impl ConfigError {
    fn new(flag: &'static str, why: impl fmt::Display) -> Self {
        Self { flag, why: why.to_string() }
    }

    /// The flag that is to be changed, without its dashes.
    #[must_use]
    pub fn flag(&self) -> &'static str {
        self.flag
    }
}

/// What remains of the settings when they have been checked.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) roster: Roster,
    /// `host:port` each.
    pub(crate) listen_clients: Vec<String>,
    /// `host:port`.
    pub(crate) listen_peers: String,
    /// `host:port` under which the others find this server.
    pub(crate) advertised: String,
    pub(crate) birth: Birth,
}

/// How the server comes to its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Birth {
    /// It is one of the founders: number and `host:port` of each, and which one it is.
    Founder { me: u64, voters: Vec<(u64, String)> },
    /// It was added, and asks these who it is: `host:port` each.
    Joiner { others: Vec<String> },
}

impl ServerConfig {
    /// How long a request may take: etcd's rule, five seconds for the queue and the disk, and
    /// two election timeouts for a change of the leader.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election_timeout
    }

    /// Checks that the settings can work together.
    ///
    /// # Errors
    ///
    /// The first one that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check().map(drop)
    }

    pub(crate) fn check(&self) -> Result<Checked, ConfigError> {
        self.check_times()?;
        self.check_limits()?;
        let listen_clients = addresses("listen-client-urls", &self.listen_client_urls)?;
        addresses_or_none("advertise-client-urls", &self.advertise_client_urls)?;
        let listen_peers = single("listen-peer-urls", &self.listen_peer_urls)?;
        let is_any_free_port = listen_peers.ends_with(":0");
        if listen_clients.contains(&listen_peers) && !is_any_free_port {
            let why = format!("{listen_peers} is taken by --listen-client-urls");
            return Err(ConfigError::new("listen-peer-urls", why));
        }
        let advertised = "initial-advertise-peer-urls";
        single(advertised, &self.initial_advertise_peer_urls)?;

        let members = self.members()?;
        let birth = self.birth(&members)?;
        if let Some((_, mine)) = members.iter().find(|(name, _)| *name == self.name)
            && *mine != self.initial_advertise_peer_urls
        {
            let (theirs, ours) = (mine.join(","), self.initial_advertise_peer_urls.join(","));
            let why = format!("has {theirs} for {:?}, but --{advertised} is {ours}", self.name);
            return Err(ConfigError::new("initial-cluster", why));
        }
        let is_founder = matches!(birth, Birth::Founder { .. });
        let roster = Roster::new(&members, &self.initial_cluster_token, &self.name, is_founder);
        let advertised = single(advertised, &self.initial_advertise_peer_urls)?;
        Ok(Checked { roster, listen_clients, listen_peers, advertised, birth })
    }

    fn birth(&self, members: &[(String, Vec<String>)]) -> Result<Birth, ConfigError> {
        let mut addresses = Vec::new();
        for (name, urls) in members {
            addresses.push((name, single("initial-cluster", urls)?));
        }
        if self.initial_cluster_state == "existing" {
            let others = addresses.into_iter().filter(|(name, _)| **name != self.name);
            let others: Vec<String> = others.map(|(_, address)| address).collect();
            if others.is_empty() {
                let why = "names no other server; one that joins must know whom to ask";
                return Err(ConfigError::new("initial-cluster", why));
            }
            return Ok(Birth::Joiner { others });
        }
        let voters = (1..).zip(addresses);
        let voters: Vec<_> = voters.map(|(number, (name, at))| (number, name, at)).collect();
        let Some(&(me, ..)) = voters.iter().find(|(_, name, _)| **name == self.name) else {
            let why = format!("has no member {:?}, which is the --name of this server", self.name);
            return Err(ConfigError::new("initial-cluster", why));
        };
        let voters = voters.into_iter().map(|(number, _, at)| (number, at)).collect();
        Ok(Birth::Founder { me, voters })
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        let (heartbeat, election) = (self.heartbeat_interval, self.election_timeout);
        if heartbeat.is_zero() {
            return Err(ConfigError::new("heartbeat-interval", "must not be 0"));
        }
        // etcd's rule: a leader must be able to miss a few heartbeats without being replaced.
        if election < 5 * heartbeat {
            let why = format!(
                "{} ms is less than five times --heartbeat-interval ({} ms)",
                election.as_millis(),
                heartbeat.as_millis()
            );
            return Err(ConfigError::new("election-timeout", why));
        }
        // etcd's bound as well.
        if Duration::from_secs(50) < election {
            let why = format!("{} ms is more than 50000 ms", election.as_millis());
            return Err(ConfigError::new("election-timeout", why));
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), ConfigError> {
        // An entry of the log, with what surrounds the request, must fit Raft's limit of 8 MiB.
        if !(1..=7 * MIB).contains(&self.max_request_bytes) {
            return Err(ConfigError::new("max-request-bytes", "must be from 1 to 7340032"));
        }
        if self.max_txn_ops == 0 {
            return Err(ConfigError::new("max-txn-ops", "must not be 0"));
        }
        if self.max_concurrent_streams == 0 {
            return Err(ConfigError::new("max-concurrent-streams", "must not be 0"));
        }
        if !(8 << 10..=2 << 30).contains(&self.log_segment_bytes) {
            return Err(ConfigError::new("log-segment-bytes", "must be from 8192 to 2147483648"));
        }
        if self.log_bytes_max < self.log_keep_bytes {
            let why = format!("must not be more than --log-bytes-max ({})", self.log_bytes_max);
            return Err(ConfigError::new("log-keep-bytes", why));
        }
        if 10_000 < self.lease_reads_drift_ppm {
            let flag = "experimental-lease-reads-drift-ppm";
            return Err(ConfigError::new(flag, "must be from 0 to 10000"));
        }
        match self.initial_cluster_state.as_str() {
            "new" | "existing" => Ok(()),
            other => {
                let why = format!("must be new or existing, not {other:?}");
                Err(ConfigError::new("initial-cluster-state", why))
            }
        }
    }

    /// The members that `--initial-cluster` names, sorted by name; this server alone if it is
    /// empty.
    fn members(&self) -> Result<Vec<(String, Vec<String>)>, ConfigError> {
        let wrong = |why: String| Err(ConfigError::new("initial-cluster", why));
        if self.name.is_empty() {
            return Err(ConfigError::new("name", "must not be empty"));
        }
        if self.initial_cluster.is_empty() {
            return Ok(vec![(self.name.clone(), self.initial_advertise_peer_urls.clone())]);
        }
        let mut members: Vec<(String, Vec<String>)> = Vec::new();
        for part in self.initial_cluster.split(',') {
            let Some((name, url)) = part.split_once('=').filter(|(name, _)| !name.is_empty())
            else {
                return wrong(format!("{part:?} is not of the form name=URL"));
            };
            if members.iter().any(|(_, urls)| urls.iter().any(|known| known == url)) {
                return wrong(format!("{url} is given twice"));
            }
            match members.iter_mut().find(|(known, _)| known == name) {
                Some((_, urls)) => urls.push(url.to_owned()),
                None => members.push((name.to_owned(), vec![url.to_owned()])),
            }
        }
        if 7 < members.len() && self.initial_cluster_state == "new" {
            return wrong(format!("{} members are more than 7", members.len()));
        }
        members.sort();
        Ok(members)
    }
}

/// What stands before an error of the replication that a flag of the server is to blame for.
pub(crate) const fn flag_at_fault(error: &kontiki::StartError) -> &'static str {
    match error {
        kontiki::StartError::Listen { .. } => "--listen-peer-urls: ",
        _ => "",
    }
}

/// The one address of a flag that could name several.
fn single(flag: &'static str, urls: &[String]) -> Result<String, ConfigError> {
    let mut addresses = addresses(flag, urls)?;
    match (addresses.pop(), addresses.is_empty()) {
        (Some(address), true) => Ok(address),
        _ => Err(ConfigError::new(flag, "more than one URL for a member is not supported yet")),
    }
}

/// The addresses of a flag that must name at least one.
fn addresses(flag: &'static str, urls: &[String]) -> Result<Vec<String>, ConfigError> {
    if urls.is_empty() {
        return Err(ConfigError::new(flag, "must not be empty"));
    }
    addresses_or_none(flag, urls)
}

fn addresses_or_none(flag: &'static str, urls: &[String]) -> Result<Vec<String>, ConfigError> {
    let address = |url: &String| {
        host_and_port(url).map_err(|why| ConfigError::new(flag, format!("{url:?} {why}")))
    };
    urls.iter().map(address).collect()
}

/// The `host:port` of an `http` URL without a path.
pub(crate) fn host_and_port(url: &str) -> Result<String, &'static str> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err("is not a URL: it lacks http://");
    };
    match scheme {
        "http" => {}
        "https" => return Err("asks for TLS, which is not supported yet"),
        "unix" | "unixs" => return Err("is a unix socket, which is not supported yet"),
        _ => return Err("must begin with http://"),
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return Err("must be no more than http://host:port");
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
            Ok(authority.to_owned())
        }
        _ => Err("must name a host and a port"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> ServerConfig {
        ServerConfig {
            name: "b".to_owned(),
            initial_advertise_peer_urls: vec!["http://h2:2380".to_owned()],
            initial_cluster: "c=http://h3:2380,a=http://h1:2380,b=http://h2:2380".to_owned(),
            ..ServerConfig::default()
        }
    }

    #[test]
    fn the_defaults_are_a_server_of_its_own() {
        let checked = ServerConfig::default().check().unwrap();
        let voters = vec![(1, "localhost:2380".to_owned())];
        assert_eq!(checked.birth, Birth::Founder { me: 1, voters });
        assert_eq!(checked.listen_clients, ["localhost:2379"]);
        assert_eq!(checked.roster.me().node.get(), 1);
        assert_eq!(ServerConfig::default().request_timeout(), Duration::from_secs(7));
    }

    #[test]
    fn members_and_their_addresses_are_in_the_order_of_their_names() {
        let checked = three().check().unwrap();
        let voters = ["h1:2380", "h2:2380", "h3:2380"].map(str::to_owned);
        let voters = (1..).zip(voters).collect();
        assert_eq!(checked.birth, Birth::Founder { me: 2, voters });
        assert_eq!(checked.roster.me().node.get(), 2);
    }

    #[test]
    fn whoever_joins_asks_the_others() {
        let mut config = three();
        config.initial_cluster_state = "existing".to_owned();
        let others = vec!["h1:2380".to_owned(), "h3:2380".to_owned()];
        assert_eq!(config.check().unwrap().birth, Birth::Joiner { others });
        // It may leave itself out.
        config.name = "d".to_owned();
        config.initial_advertise_peer_urls = vec!["http://h4:2380".to_owned()];
        let Birth::Joiner { others } = config.check().unwrap().birth else { panic!("it joins") };
        assert_eq!(others.len(), 3);
        config.initial_cluster = "d=http://h4:2380".to_owned();
        let error = config.validate().unwrap_err().to_string();
        let why = "names no other server; one that joins must know whom to ask";
        assert_eq!(error, format!("--initial-cluster: {why}"));
    }

    #[test]
    fn clients_and_peers_need_ports_of_their_own() {
        let mut config = three();
        config.listen_peer_urls = config.listen_client_urls.clone();
        let error = config.validate().unwrap_err().to_string();
        assert!(error.ends_with("is taken by --listen-client-urls"), "{error}");
    }

    #[test]
    fn a_wrong_setting_is_refused_in_the_words_of_its_flag() {
        let cases: &[(Change, &str)] = &[
            (|c| c.name.clear(), "--name: must not be empty"),
            (
                |c| c.name = "x".into(),
                "--initial-cluster: has no member \"x\", which is the --name of this server",
            ),
            (
                |c| c.initial_advertise_peer_urls = vec!["http://h9:1".into()],
                "--initial-cluster: has http://h2:2380 for \"b\", \
                 but --initial-advertise-peer-urls is http://h9:1",
            ),
            (
                |c| c.initial_cluster = "a".into(),
                "--initial-cluster: \"a\" is not of the form name=URL",
            ),
            (
                |c| c.initial_cluster = "b=http://h2:1,c=http://h2:1".into(),
                "--initial-cluster: http://h2:1 is given twice",
            ),
            (
                |c| c.initial_cluster = (1..9).map(|n| format!("{n}=http://h:{n},")).collect(),
                "--initial-cluster: \"\" is not of the form name=URL",
            ),
            (
                |c| c.initial_cluster = "b=http://h2:1,b=http://h3:1".into(),
                "--initial-cluster: more than one URL for a member is not supported yet",
            ),
            (|c| c.listen_client_urls.clear(), "--listen-client-urls: must not be empty"),
            (
                |c| c.listen_client_urls = vec!["localhost:1".into()],
                "--listen-client-urls: \"localhost:1\" is not a URL: it lacks http://",
            ),
            (
                |c| c.listen_peer_urls = vec!["https://h:1".into()],
                "--listen-peer-urls: \"https://h:1\" asks for TLS, which is not supported yet",
            ),
            (
                |c| c.listen_peer_urls = vec!["http://h".into()],
                "--listen-peer-urls: \"http://h\" must name a host and a port",
            ),
            (
                |c| c.advertise_client_urls = vec!["http://h:1/x".into()],
                "--advertise-client-urls: \"http://h:1/x\" must be no more than http://host:port",
            ),
            (
                |c| c.heartbeat_interval = Duration::from_millis(201),
                "--election-timeout: 1000 ms is less than five times \
                 --heartbeat-interval (201 ms)",
            ),
            (
                |c| c.election_timeout = Duration::from_secs(51),
                "--election-timeout: 51000 ms is more than 50000 ms",
            ),
        ];
        assert_refused(cases);
    }

    #[test]
    fn a_wrong_bound_is_refused_in_the_words_of_its_flag() {
        assert_refused(&[
            (|c| c.max_request_bytes = 0, "--max-request-bytes: must be from 1 to 7340032"),
            (
                |c| c.log_segment_bytes = 4096,
                "--log-segment-bytes: must be from 8192 to 2147483648",
            ),
            (
                |c| c.log_keep_bytes = c.log_bytes_max + 1,
                "--log-keep-bytes: must not be more than --log-bytes-max (1073741824)",
            ),
            (
                |c| c.lease_reads_drift_ppm = 10_001,
                "--experimental-lease-reads-drift-ppm: must be from 0 to 10000",
            ),
            (
                |c| c.initial_cluster_state = "old".into(),
                "--initial-cluster-state: must be new or existing, not \"old\"",
            ),
        ]);
    }

    type Change = fn(&mut ServerConfig);

    fn assert_refused(cases: &[(Change, &str)]) {
        for (change, message) in cases {
            let mut config = three();
            change(&mut config);
            assert_eq!(config.validate().unwrap_err().to_string(), *message);
        }
    }
}
