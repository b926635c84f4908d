//! Clients that write and read registers, and the history of what they saw.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use etcd_client::{Client, GetOptions};
use kontiki_sim::linear::{self, Action, Operation};
use tokio::task::JoinHandle;

use crate::servers::{Servers, client_of, until};

/// Few, so that clients meet.
const REGISTERS: usize = 8;

/// After this a write has an unknown outcome.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// Longer than any pause: an answer that comes late must still be right.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// A write that was acknowledged.
#[derive(Clone)]
struct Acknowledged {
    key: String,
    value: String,
    revision: i64,
    started: Instant,
    ended: Instant,
}

#[derive(Default)]
struct History {
    operations: Vec<Operation<String, String>>,
    acknowledged: Vec<Acknowledged>,
}

/// Clients at work.
pub(crate) struct Load {
    endpoints: Vec<String>,
    history: Rc<RefCell<History>>,
    is_stopping: Rc<Cell<bool>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts clients, spread over the servers. One that fails goes on with the next server.
    pub(crate) async fn start(servers: &Servers, clients: usize) -> Self {
        let endpoints = servers.endpoints();
        let history = Rc::new(RefCell::new(History::default()));
        let is_stopping = Rc::new(Cell::new(false));
        let origin = Instant::now();
        let mut tasks = Vec::new();
        for number in 0..clients {
            let mut connections = Vec::new();
            for endpoint in &endpoints {
                connections.push(client_of(endpoint).await);
            }
            connections.rotate_left(number % endpoints.len());
            let worker = Worker {
                number,
                connections,
                history: Rc::clone(&history),
                is_stopping: Rc::clone(&is_stopping),
                origin,
            };
            tasks.push(tokio::task::spawn_local(worker.work()));
        }
        Self { endpoints, history, is_stopping, clients: tasks }
    }

    /// How long after `moment` the first write was done that was begun after it.
    pub(crate) async fn resumed_after(&self, moment: Instant) -> Duration {
        until("a write after the fault", async || {
            let history = self.history.borrow();
            let begun_after = history.acknowledged.iter().filter(|write| moment <= write.started);
            begun_after.map(|write| write.ended - moment).min()
        })
        .await
    }

    /// Stops the clients and checks everything that they saw, against the servers and against
    /// itself. Returns how many writes were acknowledged.
    pub(crate) async fn finish(self) -> usize {
        self.is_stopping.set(true);
        for client in self.clients {
            client.await.unwrap();
        }
        let History { operations, acknowledged } = self.history.take();
        assert!(!acknowledged.is_empty(), "nothing was ever acknowledged");
        if let Err(violation) = linear::check(&operations) {
            panic!("{violation}");
        }
        check_revisions(&acknowledged);
        check_presence(&self.endpoints, &acknowledged).await;
        acknowledged.len()
    }
}

struct Worker {
    number: usize,
    /// The preferred server is the first.
    connections: Vec<Client>,
    history: Rc<RefCell<History>>,
    is_stopping: Rc<Cell<bool>>,
    origin: Instant,
}

impl Worker {
    async fn work(mut self) {
        let mut sequence = 0;
        while !self.is_stopping.get() {
            let key = format!("register/{}", fastrand::usize(..REGISTERS));
            sequence += 1;
            let is_done = if fastrand::bool() {
                self.write(key, format!("{}-{sequence}", self.number)).await
            } else {
                self.read(key).await
            };
            if !is_done {
                self.connections.rotate_left(1);
            }
            // Enough to be always at work, and little enough for a small machine.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(2..12))).await;
        }
    }

    async fn write(&mut self, key: String, value: String) -> bool {
        let started = Instant::now();
        let put = self.connections[0].put(key.as_str(), value.as_str(), None);
        let answer = tokio::time::timeout(WRITE_TIMEOUT, put).await;
        let ended = Instant::now();
        // Whatever the error says, it is not believed: the write may have been done.
        let revision = answer.ok().and_then(Result::ok).map(|put| put.header().unwrap().revision());
        let end = revision.map(|_| ended);
        self.record(key.clone(), Action::Write(Some(value.clone())), started, end);
        if let Some(revision) = revision {
            let write = Acknowledged { key, value, revision, started, ended };
            self.history.borrow_mut().acknowledged.push(write);
        }
        revision.is_some()
    }

    async fn read(&mut self, key: String) -> bool {
        let started = Instant::now();
        let get = self.connections[0].get(key.as_str(), None);
        let Ok(Ok(answer)) = tokio::time::timeout(READ_TIMEOUT, get).await else { return false };
        let ended = Instant::now();
        let value = answer.kvs().first().map(|pair| pair.value_str().unwrap().to_owned());
        self.record(key, Action::Read(value), started, Some(ended));
        true
    }

    fn record(&self, key: String, action: Action<String>, start: Instant, end: Option<Instant>) {
        let nanos = |at: Instant| u64::try_from((at - self.origin).as_nanos()).unwrap();
        let (start, end) = (nanos(start), end.map(nanos));
        self.history.borrow_mut().operations.push(Operation { key, action, start, end });
    }
}

/// Revisions are unique and keep to real time.
fn check_revisions(acknowledged: &[Acknowledged]) {
    let mut by_revision: Vec<&Acknowledged> = acknowledged.iter().collect();
    by_revision.sort_by_key(|write| write.revision);
    let mut latest_start: Option<&Acknowledged> = None;
    for pair in by_revision.windows(2) {
        assert!(pair[0].revision < pair[1].revision, "revision {} twice", pair[0].revision);
    }
    for write in by_revision {
        if let Some(before) = latest_start {
            assert!(
                before.started <= write.ended,
                "revision {} was done before revision {} was begun",
                write.revision,
                before.revision
            );
        }
        if latest_start.is_none_or(|before| before.started < write.started) {
            latest_start = Some(write);
        }
    }
}

/// Every acknowledged write is there, at its revision, on every server.
async fn check_presence(endpoints: &[String], acknowledged: &[Acknowledged]) {
    let mut readers = Vec::new();
    for (number, endpoint) in endpoints.iter().enumerate() {
        let client = client_of(endpoint).await;
        // One linearizable read, and the server has caught up with all of them.
        until("a server that answers", async || client.clone().get("caught up?", None).await.ok())
            .await;
        for part in 0..4 {
            let mut client = client.clone();
            // Each server is asked for a third, in four parts at once.
            let (step, first) = (4 * endpoints.len(), 4 * number + part);
            let writes: Vec<Acknowledged> =
                acknowledged.iter().skip(first).step_by(step).cloned().collect();
            readers.push(tokio::task::spawn_local(async move {
                for Acknowledged { key, value, revision, .. } in writes {
                    let options = GetOptions::new().with_revision(revision).with_serializable();
                    let answer = client.get(key.as_str(), Some(options)).await.unwrap();
                    let found =
                        answer.kvs().first().map(|pair| (pair.value(), pair.mod_revision()));
                    assert_eq!(found, Some((value.as_bytes(), revision)), "{key} is lost");
                }
            }));
        }
    }
    for reader in readers {
        reader.await.unwrap();
    }
}
