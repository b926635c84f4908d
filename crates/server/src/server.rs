//! A whole server: its store, its replication, its sockets, and how it comes and goes.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kontiki::{Identity, LogOptions, Raft, ReadMode, RealDisk, with_causes};
use kontiki_store::{OpenError, Store, StoreOptions, Torn};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time};

use crate::{
    cluster,
    config::{Birth, Checked, ConfigError, ServerConfig},
    health::Health,
    listener,
    machine::{self, Cues, KvMachine},
    members::Roster,
    memory,
    rebuild::log_dir,
    repair::{self, RepairError},
    service::{Limits, Service},
    status::{Failure, Refusal},
};

/// How long to wait before something that failed at once is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How often the store is asked whether its own thread has failed.
const STORE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often a server looks whether its alarms are still true.
const ALARM_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be made or used.
    #[error("cannot use --data-dir {path}", path = path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The address of a `--listen-client-urls` cannot be listened on.
    #[error("--listen-client-urls: cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// Why; most often it is in use.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error("cannot open the store")]
    Store(#[source] OpenError),
    /// The replication cannot be started.
    #[error("{}cannot start the replication{}", crate::config::flag_at_fault(.0), advice(.0))]
    Raft(#[source] kontiki::StartError),
    /// The store is damaged, and cannot be fetched anew.
    #[error("{damage}")]
    Damaged {
        /// What is damaged.
        damage: String,
        /// Why it cannot.
        source: RepairError,
    },
}

/// Starts servers.
#[derive(Debug)]
#[non_exhaustive]
pub struct Server;

/// A server that runs until [`shutdown`](Self::shutdown).
#[derive(Debug)]
pub struct RunningServer {
    service: Arc<Service>,
    client_addresses: Vec<std::net::SocketAddr>,
    is_ready: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    listeners: JoinSet<()>,
    companions: JoinSet<()>,
    config: ServerConfig,
    client_urls: Vec<String>,
}

impl Server {
    /// Starts a server on the current tokio runtime; one with a single thread serves best.
    ///
    /// When this returns, the server listens; it can serve once it has found or become a leader,
    /// for which [`RunningServer::ready`] waits.
    ///
    /// # Errors
    ///
    /// When a setting is wrong, or something that the server needs is not to be had.
    pub async fn start(config: ServerConfig) -> Result<RunningServer, StartError> {
        Self::start_with(config, false).await
    }

    /// As [`start`](Self::start); `is_repaired` if the store was damaged and is empty now.
    async fn start_with(
        config: ServerConfig,
        is_repaired: bool,
    ) -> Result<RunningServer, StartError> {
        let Checked { roster, listen_clients, listen_peers, advertised, birth } = config.check()?;
        let roster = Arc::new(roster);
        let data_dir = config.data_dir.join("member");
        let make_dir = tokio::fs::create_dir_all(&data_dir);
        make_dir.await.map_err(|source| StartError::DataDir { path: data_dir.clone(), source })?;
        let listeners = listen(&listen_clients).await?;

        let (store, is_empty) = open_store(&config).await?;
        let cues = Arc::new(Cues::new());
        let machine = KvMachine {
            store: Arc::clone(&store),
            roster: Arc::clone(&roster),
            cues: Arc::clone(&cues),
        };
        let raft_dir = log_dir(&config.data_dir);
        let builder = match born(birth, &raft_dir, &advertised)? {
            Birth::Founder { me, voters } => Raft::builder(me, machine).bootstrap(voters),
            Birth::Joiner { others } => Raft::joiner(machine).join(others).advertise(advertised),
        };
        let raft = builder
            .data_dir(raft_dir)
            .listen(listen_peers)
            .cluster_token(config.initial_cluster_token.clone())
            .request_timeout(config.request_timeout())
            .log_options(LogOptions {
                segment_bytes: config.log_segment_bytes,
                ..LogOptions::default()
            })
            .priority(config.priority)
            .lease_reads(config.lease_reads_drift_ppm)
            .tune(|tuned| {
                tuned.heartbeat_interval = config.heartbeat_interval;
                tuned.election_timeout = config.election_timeout;
                tuned.log_keep_bytes = config.log_keep_bytes;
                tuned.log_bytes_max = config.log_bytes_max;
            })
            .start()
            .await
            .map_err(StartError::Raft)?;
        roster.set_node(raft.identity().id);
        if let Ok(status) = raft.status().await {
            roster.expect(&status.membership);
            let corrupt = is_repaired || is_empty || status.needs_snapshot.is_some();
            roster.change_own_alarms(|alarms| alarms.corrupt = corrupt);
        }
        Ok(RunningServer::assemble(config, raft, store, roster, listeners, cues))
    }
}

/// What to do about a log that the server cannot start from.
fn advice(error: &kontiki::StartError) -> &'static str {
    use kontiki::RestoreError::{AppliedBeyondLog, CommitBeyondLog, DamagedAlone};
    let kontiki::StartError::Restore(why) = error else { return "" };
    match why {
        DamagedAlone { .. } | AppliedBeyondLog { .. } | CommitBeyondLog { .. } => {
            " (if no other server has what is missing, kontiki rebuild goes on without it and keeps \
             what the store has; if others do, add this server anew with an empty data directory)"
        }
        _ => "",
    }
}

/// How the server has come to its cluster, if it has done so already. Whoever comes back is who
/// it was: the flags of a founder may name other members by then than at its birth, as in etcd,
/// and a cluster that was rebuilt is another one than the flags make.
/// A directory that was made for another server is left to be refused.
fn born(birth: Birth, dir: &Path, advertised: &str) -> Result<Birth, StartError> {
    let Birth::Founder { me, voters } = birth else { return Ok(birth) };
    let found = Identity::of_dir(&RealDisk, dir)
        .map_err(|source| StartError::DataDir { path: dir.to_owned(), source: source.into() })?;
    let genesis = found.as_ref().map(|identity| &identity.genesis.members).into_iter().flatten();
    let was: Vec<(u64, &str)> = genesis.map(|member| (member.id.get(), &*member.address)).collect();
    let is: Vec<(u64, &str)> = voters.iter().map(|(id, at)| (*id, at.as_str())).collect();
    let own = found.as_ref().map(|identity| (identity.node.get(), advertised));
    if own.is_some_and(|own| was.contains(&own)) {
        if was != is {
            tracing::info!("--initial-cluster is not what this server was born with: ignored");
        }
        let others = voters.into_iter().map(|(_, at)| at).collect();
        return Ok(Birth::Joiner { others });
    }
    Ok(Birth::Founder { me, voters })
}

/// Opens the store beside the runtime: it reads all keys, and that takes as long as it takes. One
/// that is damaged is moved aside; says whether that was so.
async fn open_store(config: &ServerConfig) -> Result<(Arc<Store>, bool), StartError> {
    let data_dir = config.data_dir.clone();
    let path = repair::store_dir(&data_dir);
    let value_cache_bytes = config.cache_bytes.unwrap_or_else(memory::default_cache_bytes);
    tracing::info!(value_cache_bytes, "opening the store");
    let options = StoreOptions { value_cache_bytes, ..StoreOptions::default() };
    beside(move || match Store::open(&path, options.clone()) {
        Ok(store) => {
            if let Some(Torn { path, offset, bytes }) = store.torn() {
                tracing::warn!(
                    file = %path.display(),
                    offset,
                    bytes,
                    "a crash has torn the end of the store; it was cut, and what it held comes \
                     from the log",
                );
            }
            Ok((Arc::new(store), false))
        }
        Err(error @ OpenError::Damaged { .. }) => {
            let damage = with_causes(&error);
            move_aside(&data_dir, &damage)
                .map_err(|source| StartError::Damaged { damage, source })?;
            let store = Store::open(&path, options).map_err(StartError::Store)?;
            Ok((Arc::new(store), true))
        }
        Err(error) => Err(StartError::Store(error)),
    })
    .await
}

/// Moves a damaged store aside, and says so.
fn move_aside(data_dir: &Path, damage: &str) -> Result<(), RepairError> {
    tracing::error!(damage, "the store is damaged");
    let moved_to = repair::move_aside(data_dir)?;
    tracing::error!(
        moved_to = %moved_to.display(),
        "the damaged store was moved aside; its data is fetched anew from the log or from the \
         other servers",
    );
    Ok(())
}

/// Runs what may block beside the runtime.
async fn beside<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(run).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Binds all sockets, so that a wrong address is found before the disk is touched.
async fn listen(addresses: &[String]) -> Result<Vec<TcpListener>, StartError> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind(address).await;
        listeners.push(
            listener.map_err(|source| StartError::Listen { address: address.clone(), source })?,
        );
    }
    Ok(listeners)
}

impl RunningServer {
    /// Sets everything going.
    fn assemble(
        config: ServerConfig,
        raft: Raft<KvMachine>,
        store: Arc<Store>,
        roster: Arc<Roster>,
        sockets: Vec<TcpListener>,
        cues: Arc<Cues>,
    ) -> Self {
        let (set_ready, is_ready) = watch::channel(false);
        let (set_serving, can_serve) = watch::channel(false);
        let (stop, is_stopping) = watch::channel(false);
        let client_addresses: Vec<_> = sockets.iter().filter_map(|s| s.local_addr().ok()).collect();
        let mut client_urls = config.advertise_client_urls.clone();
        if client_urls.is_empty() {
            client_urls = client_addresses.iter().map(|at| format!("http://{at}")).collect();
        }
        let limits = Limits {
            request_bytes_max: config.max_request_bytes,
            txn_ops_max: config.max_txn_ops,
            request_timeout: config.request_timeout(),
            election_timeout: config.election_timeout,
            read_mode: match config.lease_reads_drift_ppm {
                0 => ReadMode::ReadIndex,
                _ => ReadMode::Lease,
            },
        };
        let health = Health::new(can_serve);
        let service = Arc::new(Service::new(raft, store, roster, limits, health, cues));
        let raft = &service.raft;

        let mut listeners = JoinSet::new();
        for socket in sockets {
            let (service, is_stopping) = (Arc::clone(&service), is_stopping.clone());
            let streams_max = config.max_concurrent_streams;
            listeners.spawn(listener::serve(socket, service, streams_max, is_stopping));
        }
        let mut companions = JoinSet::new();
        companions.spawn(become_ready(raft.clone(), set_ready));
        companions.spawn(follow_health(raft.clone(), is_ready.clone(), set_serving));
        companions.spawn(count_leaders(Arc::clone(&service)));
        companions.spawn(announce(Arc::clone(&service), client_urls.clone()));
        companions.spawn(follow_alarms(Arc::clone(&service), is_ready.clone()));
        companions.spawn(publish(Arc::clone(&service), is_ready.clone()));
        Self {
            service,
            client_addresses,
            is_ready,
            stop,
            listeners,
            companions,
            config,
            client_urls,
        }
    }

    /// Waits until this server can serve: it knows a leader, and has applied what was committed
    /// when it asked. `false` when it has stopped instead.
    pub async fn ready(&self) -> bool {
        self.is_ready.clone().wait_for(|is_ready| *is_ready).await.is_ok()
    }

    /// Waits until the replication has stopped by itself, because its disk failed for example,
    /// or the store has failed, and says why. A server that has failed has to be stopped: it
    /// answers no one any more, and only a new start finds out what is on the disk.
    pub async fn failed(&self) -> ServerFault {
        tokio::select! {
            fault = self.service.raft.stopped() => ServerFault::Raft(fault),
            fatal = store_failed(&self.service.store) => ServerFault::Store(fatal),
            fatal = store_damaged(&self.service.cues) => ServerFault::Store(fatal),
            () = removed(&self.service) => ServerFault::Removed,
        }
    }

    /// Starts this server anew after a fault, if that was a damaged store: the store is moved
    /// aside, and its data is fetched from the log or from the other servers.
    ///
    /// # Errors
    ///
    /// The fault, if it was another one; or why the server does not come up again.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the server stops, or is stopped already.
    pub async fn recover(self, fault: ServerFault) -> Result<Self, RecoverError> {
        let Some(fatal) = repair::damage_of(&fault) else {
            if matches!(fault, ServerFault::Removed) {
                // It may lead still, and answer whoever has asked for its removal.
                drop(self.shutdown().await);
            }
            return Err(RecoverError::Fault(fault));
        };
        let damage = with_causes(&fatal);
        self.raise_corrupt().await;
        let config = self.config.clone();
        if let Err(error) = self.shutdown().await {
            tracing::debug!(error = with_causes(&error), "what is to be fetched anew has failed");
        }
        let data_dir = config.data_dir.clone();
        let moved = beside(move || {
            move_aside(&data_dir, &damage).map_err(|source| StartError::Damaged { damage, source })
        });
        moved.await.map_err(RecoverError::Start)?;
        Server::start_with(config, true).await.map_err(RecoverError::Start)
    }

    /// Tells the others that this server is about to fetch its store anew. If they cannot be told
    /// now, they are when it is back.
    async fn raise_corrupt(&self) {
        let service = &self.service;
        service.roster.change_own_alarms(|alarms| alarms.corrupt = true);
        let proposed = service.raft.propose(announcement(service, &self.client_urls, false));
        let patience = service.limits.election_timeout;
        if !matches!(time::timeout(patience, proposed).await, Ok(Ok(_))) {
            tracing::warn!("the others are told of the damage later");
        }
    }

    /// Where clients are listened for, with the ports that the system chose.
    #[must_use]
    pub fn client_addresses(&self) -> &[std::net::SocketAddr] {
        &self.client_addresses
    }

    /// Whether this server leads the cluster.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.service.soft_state().role == kontiki::Role::Leader
    }

    /// Ends the calls in flight, hands the leadership over if it can, and makes everything
    /// durable.
    ///
    /// # Errors
    ///
    /// When the replication or the store had failed before.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the server stops, less gracefully.
    pub async fn shutdown(mut self) -> Result<(), ShutdownError> {
        self.stop.send_replace(true);
        while self.listeners.join_next().await.is_some() {}
        self.companions.shutdown().await;
        let store = Arc::clone(&self.service.store);
        store.wait_no_more();
        // It hands the leadership over by itself.
        let stopped = self.service.raft.clone().shutdown().await;
        // What is intact of the store is closed in any case: the next start is quicker then.
        let closed = beside(move || store.finish()).await;
        stopped.map_err(ShutdownError::Raft)?;
        closed.map_err(ShutdownError::Store)
    }
}

/// Why a server has stopped working by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerFault {
    /// Its replication failed.
    #[error(transparent)]
    Raft(kontiki::Fault),
    /// Its store failed: most often a disk that did not write out what it was given.
    #[error("the store has failed; check the disk and start this server anew")]
    Store(#[source] kontiki_store::Fatal),
    /// It was removed from the cluster.
    #[error(
        "this server was removed from its cluster and serves no more; its data directory is of \
         no use to any other server"
    )]
    Removed,
}

/// Why a server that has failed does not come up again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// What it failed of cannot be helped while it runs.
    #[error(transparent)]
    Fault(ServerFault),
    /// It could not be started anew.
    #[error(transparent)]
    Start(StartError),
}

/// What a server that is being stopped had suffered before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShutdownError {
    /// Its replication had failed.
    #[error("the replication had failed")]
    Raft(#[source] kontiki::Fault),
    /// Its store cannot be written out. Nothing is lost: the log has it.
    #[error("the store cannot be written out")]
    Store(#[source] kontiki_store::Fatal),
}

/// Waits until the store has failed. Its thread writes to the disk and compacts by itself, and
/// without a write of a client nothing else would hear of its errors.
async fn store_failed(store: &Store) -> kontiki_store::Fatal {
    let mut ticks = time::interval(STORE_CHECK_INTERVAL);
    loop {
        ticks.tick().await;
        if let Err(fatal) = store.check() {
            return fatal;
        }
    }
}

/// Waits until a read has met damage.
async fn store_damaged(cues: &Cues) -> kontiki_store::Fatal {
    let mut faults = cues.store_fault.subscribe();
    loop {
        if let Some(fatal) = faults.borrow_and_update().clone() {
            return fatal;
        }
        if faults.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Keeps the alarms of this server true, and the others told.
async fn follow_alarms(service: Arc<Service>, is_ready: watch::Receiver<bool>) {
    let mut ticks = time::interval(ALARM_CHECK_INTERVAL);
    loop {
        ticks.tick().await;
        let Ok(status) = service.raft.status().await else { continue };
        let is_whole = *is_ready.borrow();
        let is_news = service.roster.change_own_alarms(|alarms| {
            alarms.no_space = status.is_storage_full;
            alarms.corrupt &= !is_whole;
        });
        if is_news {
            let alarms = service.roster.own_alarms();
            tracing::info!(?alarms, "the alarms of this server have changed");
            service.cues.asked.notify_one();
        }
    }
}

/// Waits for a first read to be possible, and says so.
async fn become_ready(raft: Raft<KvMachine>, set_ready: watch::Sender<bool>) {
    while let Err(error) = raft.read_barrier().await {
        if matches!(error, kontiki::ReadError::Stopped(_)) {
            return;
        }
        time::sleep(RETRY_INTERVAL).await;
    }
    tracing::info!("ready to serve client requests");
    set_ready.send_replace(true);
    // Kept until the server goes, so that whoever waits does not hear of an end.
    std::future::pending::<()>().await;
}

/// Keeps the answer to health checks true.
async fn follow_health(
    raft: Raft<KvMachine>,
    mut is_ready: watch::Receiver<bool>,
    set_serving: watch::Sender<bool>,
) {
    if is_ready.wait_for(|is_ready| *is_ready).await.is_err() {
        return;
    }
    let mut leadership = raft.watch();
    loop {
        let can_serve = leadership.borrow_and_update().leader.is_some();
        set_serving.send_if_modified(|serving| std::mem::replace(serving, can_serve) != can_serve);
        if leadership.changed().await.is_err() {
            set_serving.send_replace(false);
            return;
        }
    }
}

/// Names and counts the leaders that this server comes to know.
async fn count_leaders(service: Arc<Service>) {
    let mut soft_state = service.raft.watch();
    let mut last = None;
    loop {
        let leader = soft_state.borrow_and_update().leader;
        if let Some(leader) = leader.filter(|_| leader != last) {
            service.meters.leader_seen();
            tracing::info!(leader = service.roster.name_of(leader), "knows a leader");
        }
        last = leader;
        if soft_state.changed().await.is_err() {
            return;
        }
    }
}

/// Tells the others where clients reach this server: at the start and after a snapshot, when it
/// asks the same of them, and whenever one of them asks.
async fn announce(service: Arc<Service>, client_urls: Vec<String>) {
    let (cues, mut is_question) = (Arc::clone(&service.cues), true);
    loop {
        match service.raft.propose(announcement(&service, &client_urls, is_question)).await {
            Ok(_) => {
                is_question = tokio::select! {
                    () = cues.asked.notified() => false,
                    () = cues.restored.notified() => true,
                };
            }
            Err(kontiki::ProposeError::Stopped(_)) => return,
            Err(_) => time::sleep(RETRY_INTERVAL).await,
        }
    }
}

/// What this server says of itself.
fn announcement(service: &Service, client_urls: &[String], is_question: bool) -> Vec<u8> {
    let (id, name) = (service.roster.me().id, service.roster.own_name());
    let alarms = service.roster.own_alarms();
    machine::announcement(id, name, client_urls.to_vec(), alarms, is_question)
}

/// Sees to it that the log knows who this server is, and the leader that it knows of all others.
async fn publish(service: Arc<Service>, mut is_ready: watch::Receiver<bool>) {
    if is_ready.wait_for(|is_ready| *is_ready).await.is_err() {
        return;
    }
    while let Err(Failure(status)) = cluster::publish(&service).await {
        if service.roster.is_removed() || status.message() == Refusal::Stopped.message() {
            return;
        }
        tracing::debug!(error = status.message(), "cannot write down who the members are yet");
        time::sleep(RETRY_INTERVAL).await;
    }
}

/// Waits until this server is a member no more.
async fn removed(service: &Service) {
    while !service.roster.is_removed() {
        service.cues.removed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use kontiki::{SnapshotWriter as _, StateMachine as _};
    use kontiki_store::{Bytes, PutRequest, Request};

    use super::*;

    /// Replaces `from` wherever it lies in the file.
    fn damage(path: &Path, from: &[u8]) {
        let mut content = std::fs::read(path).unwrap();
        let places: Vec<usize> =
            (0..content.len()).filter(|&at| content[at..].starts_with(from)).collect();
        assert!(!places.is_empty(), "the value is on disk");
        places.iter().for_each(|&at| content[at] ^= 1);
        std::fs::write(path, content).unwrap();
    }

    fn corrupt() -> kontiki_store::Fatal {
        kontiki_store::Fatal::Corrupt { file: "1.seg".into(), offset: 7, what: "a test".to_owned() }
    }

    /// What a read has met is served to nobody, and heard of though nothing is written.
    #[tokio::test]
    async fn damage_that_a_read_meets_ends_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let config = ServerConfig {
            data_dir: dir.path().join("data"),
            listen_client_urls: vec!["http://127.0.0.1:0".into()],
            listen_peer_urls: vec!["http://127.0.0.1:0".into()],
            ..ServerConfig::default()
        };
        let server = Server::start(config).await.unwrap();
        let read = server.service.noted::<()>(Err(corrupt().into()));
        assert!(read.is_err());
        let fault = time::timeout(Duration::from_secs(30), server.failed()).await.unwrap();
        assert!(repair::damage_of(&fault).is_some(), "{fault}");
        server.shutdown().await.unwrap();
    }

    /// A leader that cannot send what it has must not try for ever.
    #[test]
    fn damage_that_a_snapshot_meets_is_heard_of() {
        let dir = tempfile::tempdir().unwrap();
        let options =
            StoreOptions { value_cache_bytes: 0, background: false, ..StoreOptions::default() };
        let store = Arc::new(Store::open(dir.path(), options).unwrap());
        let value = Bytes::from_static(b"a value that is nowhere else");
        let put = PutRequest { key: "k".into(), value: value.clone(), ..PutRequest::default() };
        store.apply(&[(1, 1, Request::Put(put))], (1, 1)).unwrap();
        store.flush().unwrap();
        let roster = Arc::new(Roster::new(&[], "t", "a", false));
        let cues = Arc::new(Cues::new());
        let mut machine = KvMachine { store, roster, cues: Arc::clone(&cues) };
        damage(&dir.path().join("00000001-0000000000000001-00000000.seg"), &value);
        let snapshot = machine.snapshot().unwrap();
        assert!(snapshot.write_to(&mut Vec::new()).is_err());
        let fault = cues.store_fault.borrow().clone();
        assert!(matches!(fault, Some(kontiki_store::Fatal::Corrupt { .. })), "{fault:?}");
    }

    /// Pitfall D4: a server whose store has failed must not go on because nobody writes.
    #[tokio::test]
    async fn a_failed_store_is_heard_of_without_a_write() {
        let dir = tempfile::tempdir().unwrap();
        let options =
            StoreOptions { value_cache_bytes: 0, background: false, ..StoreOptions::default() };
        let store = Store::open(dir.path(), options).unwrap();
        let value = Bytes::from_static(b"a value that is nowhere else");
        let put = PutRequest { key: "k".into(), value: value.clone(), ..PutRequest::default() };
        store.apply(&[(1, 1, Request::Put(put.clone()))], (1, 1)).unwrap();
        store.flush().unwrap();
        let well = time::timeout(Duration::from_millis(10), store_failed(&store)).await;
        assert!(well.is_err());

        damage(&dir.path().join("00000001-0000000000000001-00000000.seg"), &value);
        let put = PutRequest { prev_kv: true, ..put };
        assert!(store.apply(&[(2, 1, Request::Put(put))], (2, 1)).is_err());
        let fatal = time::timeout(Duration::from_secs(30), store_failed(&store)).await.unwrap();
        assert!(matches!(fatal, kontiki_store::Fatal::Corrupt { .. }), "{fatal}");
    }
}
