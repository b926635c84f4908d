//! Servers whose store is damaged fetch its data anew, and say so while they do.

#![expect(clippy::unwrap_used, reason = "a test fails where it is surprised")]

mod harness;

use std::{fs, path::PathBuf, time::Instant};

use etcd_client::{AlarmAction, AlarmType, Client, GetOptions};
use harness::{Cluster, PATIENCE};
use kontiki_server::{
    Rebuild, RecoverError, RepairError, Server, ServerConfig, ServerFault, StartError,
};
use kontiki_store::Fatal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

fn run(story: impl Future<Output = ()>) {
    harness::runtime().block_on(story);
}

/// Asks `question` until it is answered with something.
async fn eventually<T>(what: &str, mut question: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = question().await {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "still not so: {what}");
        tokio::task::yield_now().await;
    }
}

/// Purges what it can, so that a server without its store needs a snapshot.
fn forgetful(config: &mut ServerConfig) {
    config.log_segment_bytes = 64 << 10;
    config.log_keep_bytes = 0;
    config.log_bytes_max = 256 << 10;
}

fn damage() -> ServerFault {
    ServerFault::Store(Fatal::Corrupt {
        file: "1.seg".into(),
        offset: 7,
        what: "a test says so".to_owned(),
    })
}

async fn client(cluster: &Cluster, at: usize) -> Client {
    Client::connect([cluster.endpoint(at)], None).await.expect("the server listens")
}

async fn fill(cluster: &Cluster, count: usize) {
    let mut client = client(cluster, 0).await;
    for number in 0..count {
        client.put(format!("key{number:04}"), vec![b'v'; 4000], None).await.unwrap();
    }
}

/// Three servers with 300 keys, whose logs do not reach back to their beginning.
async fn purged_cluster() -> Cluster {
    let mut cluster = Cluster::configured(3, forgetful);
    for at in 0..3 {
        cluster.launch(at).await;
    }
    cluster.ready(0).await;
    fill(&cluster, 300).await;
    purged(&cluster, 3).await;
    cluster
}

async fn count(cluster: &Cluster, at: usize) -> i64 {
    let options = GetOptions::new().with_prefix().with_count_only();
    client(cluster, at).await.get("key", Some(options)).await.unwrap().count()
}

async fn alarms(cluster: &Cluster, at: usize) -> Vec<(u64, i32)> {
    let mut client = client(cluster, at).await;
    let answer = client.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap();
    answer.alarms().iter().map(|alarm| (alarm.member_id(), alarm.alarm().into())).collect()
}

fn store(cluster: &Cluster, at: usize) -> PathBuf {
    cluster.config(at).data_dir.join("member").join("store")
}

/// What a server answers to `GET path`.
async fn page(cluster: &Cluster, at: usize, path: &str) -> String {
    let address = cluster.server(at).client_addresses()[0];
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// What a server measures of itself under this name.
async fn measured(cluster: &Cluster, at: usize, name: &str) -> u64 {
    let answer = page(cluster, at, "/metrics").await;
    let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|number| number.parse().ok()).expect("a number")
}

/// Waits until the log of each server begins after its beginning.
async fn purged(cluster: &Cluster, count: usize) {
    for at in 0..count {
        eventually("the log is purged", async || {
            client(cluster, at).await.put("tick", "", None).await.unwrap();
            (1 < measured(cluster, at, "kontiki_log_first_index").await).then_some(())
        })
        .await;
    }
}

#[test]
fn a_damaged_store_is_fetched_from_the_others() {
    run(async {
        let mut cluster = Cluster::configured(3, forgetful);
        for at in 0..3 {
            cluster.launch(at).await;
        }
        for at in 0..3 {
            cluster.ready(at).await;
        }
        fill(&cluster, 300).await;
        purged(&cluster, 3).await;
        let at = (0..3).find(|at| cluster.server(*at).is_leader()).unwrap();
        let other = (at + 1) % 3;
        let server = cluster.servers[at].take().unwrap();
        let recovering = tokio::spawn(server.recover(damage()));
        let raised = eventually("the alarm is raised", async || {
            alarms(&cluster, other).await.first().copied()
        })
        .await;
        let recovered = recovering.await.unwrap().expect("the others have its data");
        cluster.servers[at] = Some(recovered);
        cluster.ready(at).await;
        assert_eq!(count(&cluster, at).await, 300);
        for asked in 0..3 {
            eventually("the alarm is over", async || {
                alarms(&cluster, asked).await.is_empty().then_some(())
            })
            .await;
        }
        let status = client(&cluster, at).await.status().await.unwrap();
        assert_eq!(raised, (status.header().unwrap().member_id(), AlarmType::Corrupt.into()));
        assert!(store(&cluster, at).with_extension("damaged-1").is_dir(), "nothing is deleted");
        cluster.stop_all().await;
    });
}

/// While the log begins at its beginning, it makes the store anew, whoever else there is.
#[test]
fn a_server_alone_fetches_its_store_from_its_log_or_not_at_all() {
    run(async {
        let mut cluster = Cluster::configured(1, forgetful);
        cluster.launch(0).await;
        cluster.ready(0).await;
        fill(&cluster, 20).await;
        let server = cluster.servers[0].take().unwrap();
        cluster.servers[0] = Some(server.recover(damage()).await.expect("the log has all of it"));
        cluster.ready(0).await;
        assert_eq!(count(&cluster, 0).await, 20);

        fill(&cluster, 300).await;
        purged(&cluster, 1).await;
        let server = cluster.servers[0].take().unwrap();
        let refused = server.recover(damage()).await.unwrap_err();
        let is_alone = matches!(
            refused,
            RecoverError::Start(StartError::Damaged { source: RepairError::Alone { .. }, .. })
        );
        assert!(is_alone, "{refused:?}");
        assert!(!store(&cluster, 0).with_extension("damaged-2").exists());
        // The only copy is where it was.
        cluster.launch(0).await;
        cluster.ready(0).await;
        assert_eq!(count(&cluster, 0).await, 300);
        cluster.stop_all().await;
    });
}

/// What is in its store is the beginning of what was there, and nobody is up to send the rest.
#[test]
fn a_server_without_its_state_serves_nothing_and_says_so() {
    run(async {
        let mut cluster = purged_cluster().await;
        cluster.stop_all().await;
        fs::remove_dir_all(store(&cluster, 1)).unwrap();
        cluster.launch(1).await;

        let mut client = client(&cluster, 1).await;
        let options = GetOptions::new().with_serializable();
        let refused = client.get("key0001", Some(options)).await.unwrap_err().to_string();
        assert!(refused.contains("is being fetched from the others"), "{refused}");
        assert_eq!(measured(&cluster, 1, "kontiki_alarms{alarm=\"CORRUPT\"}").await, 1);
        let health = page(&cluster, 1, "/health").await;
        assert!(health.starts_with("HTTP/1.1 503"), "{health}");
        assert!(health.contains("ALARM CORRUPT"), "{health}");
        let excluded = page(&cluster, 1, "/health?exclude=CORRUPT").await;
        assert!(excluded.contains("RAFT NO LEADER"), "{excluded}");
        let ready = page(&cluster, 1, "/readyz/data_corruption").await;
        assert!(ready.contains("[-]data_corruption failed"), "{ready}");
        let status = client.status().await.unwrap();
        let alarm = format!("memberID:{} alarm:CORRUPT ", status.header().unwrap().member_id());
        assert!(status.errors().contains(&alarm), "{:?}", status.errors());

        // One of the others is enough.
        cluster.launch(0).await;
        cluster.ready(1).await;
        assert_eq!(count(&cluster, 1).await, 300);
        cluster.stop_all().await;
    });
}

#[test]
fn another_fault_is_not_repaired() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let server = cluster.servers[0].take().unwrap();
        let fault = server.recover(ServerFault::Removed).await.unwrap_err();
        assert!(matches!(fault, RecoverError::Fault(ServerFault::Removed)), "{fault:?}");
    });
}

/// Three servers, of which the last has stopped in order; the files of its store, by name.
async fn stopped() -> (Cluster, Vec<PathBuf>) {
    let mut cluster = purged_cluster().await;
    cluster.stop(2).await;
    let files = fs::read_dir(store(&cluster, 2)).unwrap();
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    (cluster, files)
}

fn of_kind<'a>(files: &'a [PathBuf], kind: &str) -> impl DoubleEndedIterator<Item = &'a PathBuf> {
    files.iter().filter(move |path| path.extension().is_some_and(|is| is == kind))
}

async fn is_repaired(mut cluster: Cluster) {
    cluster.launch(2).await;
    cluster.ready(2).await;
    assert_eq!(count(&cluster, 2).await, 300);
    assert!(store(&cluster, 2).with_extension("damaged-1").is_dir());
    cluster.stop_all().await;
}

/// A store in which something has changed since it was closed, and of which all is read.
#[test]
fn damage_that_is_found_at_the_start_is_repaired_as_well() {
    run(async {
        let (cluster, files) = stopped().await;
        for checkpoint in of_kind(&files, "ck") {
            fs::remove_file(checkpoint).unwrap();
        }
        let len = |path: &&PathBuf| path.metadata().unwrap().len();
        let path = of_kind(&files, "seg").max_by_key(len).unwrap();
        let mut bytes = fs::read(path).unwrap();
        let places: Vec<_> =
            (0..bytes.len() - 64).filter(|at| bytes[*at..].starts_with(&[b'v'; 64])).collect();
        bytes[places[places.len() / 2]] ^= 1;
        fs::write(path, bytes).unwrap();
        is_repaired(cluster).await;
    });
}

/// A server that stops in order leaves a checkpoint, and the word that all of its store was
/// durable: no crash can have torn the end of it.
#[test]
fn nothing_is_torn_after_a_stop_in_order() {
    run(async {
        let (cluster, files) = stopped().await;
        assert_eq!(of_kind(&files, "ck").count(), 1, "{files:?}");
        let path = of_kind(&files, "seg").next_back().unwrap();
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(path.metadata().unwrap().len() - 8).unwrap();
        is_repaired(cluster).await;
    });
}

/// The only server there is: its log is damaged, and its store has everything.
#[test]
fn a_lone_server_with_a_damaged_log_goes_on_with_what_its_store_has() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        fill(&cluster, 20).await;
        cluster.stop(0).await;
        let data_dir = cluster.config(0).data_dir;
        let wal = fs::read_dir(data_dir.join("member/raft/wal")).unwrap();
        let path = wal.map(|file| file.unwrap().path()).min().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(64).position(|part| part == [b'v'; 64]).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();

        let error = Server::start(cluster.config(0)).await.unwrap_err();
        assert!(matches!(error, StartError::Raft(_)), "{error:?}");
        assert!(error.to_string().contains("kontiki rebuild"), "{error}");
        let mut rebuild = Rebuild::new(data_dir);
        let refused = rebuild.run().unwrap_err().to_string();
        assert!(refused.contains("--accept-damaged-log"), "{refused}");
        rebuild.accept_damage = true;
        let told = rebuild.run().unwrap().to_string();
        assert!(told.contains("is whole and is kept"), "{told}");

        cluster.launch(0).await;
        cluster.ready(0).await;
        assert_eq!(count(&cluster, 0).await, 20);
        fill(&cluster, 30).await;
        assert_eq!(count(&cluster, 0).await, 30);
        cluster.stop_all().await;
    });
}

#[test]
fn an_alarm_is_not_raised_by_hand_and_one_that_is_not_there_is_disarmed() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let mut client = client(&cluster, 0).await;
        let raise = client.alarm(AlarmAction::Activate, AlarmType::Corrupt, None).await;
        let text = "an alarm cannot be raised by hand: it says what is wrong with a member";
        assert!(raise.unwrap_err().to_string().contains(text));
        let none = client.alarm(AlarmAction::Deactivate, AlarmType::Corrupt, None).await.unwrap();
        assert!(none.alarms().is_empty());
        cluster.stop_all().await;
    });
}
