//! Clients that write and read a few keys, and the history of what they saw.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use etcd_client::{
    Client, Compare, CompareOp, GetOptions, GetResponse, ResponseHeader, Txn, TxnOp,
};
use kontiki_sim::linear::{
    Call,
    store::{self, Answer, Exchange, Found, Request, Store},
};
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
    calls: Vec<Call<Exchange>>,
    acknowledged: Vec<Acknowledged>,
}

/// Clients at work.
pub(crate) struct Load {
    endpoints: Vec<String>,
    /// The revision before the first of their writes. Nobody else may write.
    initial: Store,
    history: Rc<RefCell<History>>,
    is_stopping: Rc<Cell<bool>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts clients, spread over the servers. One that fails goes on with the next server.
    pub(crate) async fn start(servers: &Servers, clients: usize) -> Self {
        Self::with_values(servers, clients, 0).await
    }

    /// As [`start`](Self::start), with values of at least so many bytes.
    pub(crate) async fn with_values(servers: &Servers, clients: usize, bytes: usize) -> Self {
        let endpoints = servers.endpoints();
        let first = client_of(&endpoints[0]).await;
        let before =
            until("a first read", async || first.clone().get(FIRST, Some(all())).await.ok());
        let initial = Store::at(revision_of(before.await.header()));
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
                bytes,
                connections,
                history: Rc::clone(&history),
                is_stopping: Rc::clone(&is_stopping),
                origin,
            };
            tasks.push(tokio::task::spawn_local(worker.work()));
        }
        Self { endpoints, initial, history, is_stopping, clients: tasks }
    }

    /// Who is asked at the end, if not all servers that were there at the start.
    pub(crate) fn ask(&mut self, servers: &Servers) {
        self.endpoints =
            servers.running().into_iter().map(|index| servers.endpoint(index)).collect();
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

    /// Waits until no write has been done for so long.
    pub(crate) async fn stopped_for(&self, time: Duration) {
        until("no more writes", async || {
            let history = self.history.borrow();
            let last = history.acknowledged.last().map(|write| write.ended);
            last.is_none_or(|last| time < last.elapsed()).then_some(())
        })
        .await;
    }

    /// Stops the clients and checks everything that they saw, against the servers and against
    /// itself. Returns how many writes were acknowledged.
    pub(crate) async fn finish(self) -> usize {
        self.is_stopping.set(true);
        for client in self.clients {
            client.await.unwrap();
        }
        let History { calls, acknowledged } = self.history.take();
        assert!(!acknowledged.is_empty(), "nothing was ever acknowledged");
        if let Err(unexplained) = store::check(&self.initial, &calls) {
            panic!("{unexplained}");
        }
        check_presence(&self.endpoints, &acknowledged).await;
        acknowledged.len()
    }
}

struct Worker {
    number: usize,
    /// Length of a value, at least.
    bytes: usize,
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
            let value = format!("{:0<1$}", format!("{}-{sequence}.", self.number), self.bytes);
            let is_done = match fastrand::usize(..10) {
                0..4 => self.put(key, value).await,
                4 => self.swap(key, value).await,
                5 => self.read(None).await,
                _ => self.read(Some(key)).await,
            };
            if !is_done {
                self.connections.rotate_left(1);
            }
            // Enough to be always at work, and little enough for a small machine.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(2..12))).await;
        }
    }

    async fn put(&mut self, key: String, value: String) -> bool {
        let started = Instant::now();
        let put = self.connections[0].put(key.as_str(), value.as_str(), None);
        let answer = tokio::time::timeout(WRITE_TIMEOUT, put).await.ok().and_then(Result::ok);
        let revision = answer.map(|put| revision_of(put.header()));
        let answer = revision.map(|revision| (revision, true));
        let request = Request::Put { key: key.clone(), value: value.clone() };
        self.record_write(request, answer, &[(key, value)], started)
    }

    /// Reads a key, and then writes it and its neighbour if nobody else has in the meantime.
    async fn swap(&mut self, key: String, value: String) -> bool {
        let read = self.connections[0].get(key.as_str(), None);
        let Ok(Ok(read)) = tokio::time::timeout(READ_TIMEOUT, read).await else { return false };
        let seen = read.kvs().first().map_or(0, |pair| pair.mod_revision());
        let mut puts = vec![(key.clone(), value.clone())];
        let neighbour = format!("register/{}", fastrand::usize(..REGISTERS));
        puts.extend((neighbour != key).then_some((neighbour, value)));

        let started = Instant::now();
        let guard = Compare::mod_revision(key.as_str(), CompareOp::Equal, seen);
        let operations: Vec<TxnOp> = puts
            .iter()
            .map(|(key, value)| TxnOp::put(key.as_str(), value.as_str(), None))
            .collect();
        let swap = self.connections[0].txn(Txn::new().when([guard]).and_then(operations));
        let answer = tokio::time::timeout(WRITE_TIMEOUT, swap).await.ok().and_then(Result::ok);
        let answer = answer.map(|swap| (revision_of(swap.header()), swap.succeeded()));
        let unchanged_since = u64::try_from(seen).unwrap();
        let request = Request::PutIf { guard: key, unchanged_since, puts: puts.clone() };
        self.record_write(request, answer, &puts, started)
    }

    /// Reads one key, or all of them at one moment.
    async fn read(&mut self, key: Option<String>) -> bool {
        let started = Instant::now();
        let (from, options) = match &key {
            Some(key) => (key.as_str(), None),
            None => (FIRST, Some(all())),
        };
        let get = self.connections[0].get(from, options);
        let Ok(Ok(answer)) = tokio::time::timeout(READ_TIMEOUT, get).await else { return false };
        let to = key.is_none().then(|| AFTER_LAST.to_owned());
        let request = Request::Range { from: from.to_owned(), to };
        let revision = revision_of(answer.header());
        let answer = Answer { revision, is_changed: false, found: found(&answer) };
        self.record(request, Some(answer), started, Instant::now());
        true
    }

    /// Whatever an error says, it is not believed: the write may have been done.
    fn record_write(
        &self,
        request: Request,
        answer: Option<(u64, bool)>,
        puts: &[(String, String)],
        started: Instant,
    ) -> bool {
        let ended = Instant::now();
        if let Some((revision, true)) = answer {
            let revision = i64::try_from(revision).unwrap();
            let mut history = self.history.borrow_mut();
            history.acknowledged.extend(puts.iter().map(|(key, value)| {
                let (key, value) = (key.clone(), value.clone());
                Acknowledged { key, value, revision, started, ended }
            }));
        }
        let is_done = answer.is_some();
        let answer = answer.map(|(revision, is_changed)| {
            let found = Vec::new();
            Answer { revision, is_changed, found }
        });
        self.record(request, answer, started, ended);
        is_done
    }

    fn record(&self, request: Request, answer: Option<Answer>, start: Instant, end: Instant) {
        let nanos = |at: Instant| u64::try_from((at - self.origin).as_nanos()).unwrap();
        let end = answer.is_some().then(|| nanos(end));
        let action = Exchange { request, answer };
        self.history.borrow_mut().calls.push(Call { action, start: nanos(start), end });
    }
}

const FIRST: &str = "register/";
const AFTER_LAST: &str = "register0";

fn all() -> GetOptions {
    GetOptions::new().with_range(AFTER_LAST)
}

fn revision_of(header: Option<&ResponseHeader>) -> u64 {
    u64::try_from(header.unwrap().revision()).unwrap()
}

fn found(answer: &GetResponse) -> Vec<Found> {
    let found = answer.kvs().iter().map(|pair| Found {
        key: pair.key_str().unwrap().to_owned(),
        value: pair.value_str().unwrap().to_owned(),
        mod_revision: u64::try_from(pair.mod_revision()).unwrap(),
    });
    found.collect()
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
