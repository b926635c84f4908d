//! Clients that write small values as fast as they are answered, and when they were.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use etcd_client::Client;
use tokio::task::JoinHandle;

use crate::servers::{Servers, client_of};

/// Longer than any failure that is measured.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A put that takes longer is given up, and tried elsewhere.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Length of the values of the state.
const VALUE_BYTES: usize = 16 << 10;

pub(crate) struct Writers {
    /// Of the writes that were answered: when they were begun and when they ended.
    done: Rc<RefCell<Vec<(Instant, Instant)>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Writers {
    pub(crate) async fn start(servers: &Servers, count: usize) -> Self {
        let done = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..count {
            let mut connections = connections(servers).await;
            let places = connections.len();
            connections.rotate_left(number % places);
            let done = Rc::clone(&done);
            tasks.push(tokio::task::spawn_local(async move {
                loop {
                    let began = Instant::now();
                    let put = connections[0].put(format!("writer/{number}"), "value", None);
                    match tokio::time::timeout(TIMEOUT, put).await {
                        Ok(Ok(_)) => done.borrow_mut().push((began, Instant::now())),
                        Ok(Err(_)) | Err(_) => connections.rotate_left(1),
                    }
                    // A thousand or two a second: a load, and not all that the machine can do.
                    tokio::time::sleep(Duration::from_millis(8)).await;
                }
            }));
        }
        Self { done, tasks }
    }

    pub(crate) fn count(&self) -> usize {
        self.done.borrow().len()
    }

    /// Whether a write was begun after `moment` and is done.
    pub(crate) fn has_written_since(&self, moment: Instant) -> Option<()> {
        self.done.borrow().iter().rev().any(|(began, _)| moment < *began).then_some(())
    }

    /// The longest time without an answer between two moments.
    pub(crate) fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        self.gaps(from, to).into_iter().max().unwrap_or_default()
    }

    /// How many were longer than this.
    pub(crate) fn gaps_over(&self, from: Instant, to: Instant, limit: Duration) -> usize {
        self.gaps(from, to).into_iter().filter(|gap| limit < *gap).count()
    }

    fn gaps(&self, from: Instant, to: Instant) -> Vec<Duration> {
        let done = self.done.borrow();
        let mut moments: Vec<Instant> =
            done.iter().map(|(_, ended)| *ended).filter(|at| from < *at && *at < to).collect();
        moments.push(to);
        moments.sort_unstable();
        let starts = std::iter::once(from).chain(moments.iter().copied());
        starts.zip(&moments).map(|(before, after)| *after - before).collect()
    }
}

async fn connections(servers: &Servers) -> Vec<Client> {
    let mut connections = Vec::new();
    for endpoint in servers.endpoints() {
        connections.push(client_of(&endpoint).await);
    }
    connections
}

/// Writes so much state to the servers other than `down`.
pub(crate) async fn fill(servers: &Servers, down: usize, megabytes: usize) {
    let count = (megabytes << 20) / VALUE_BYTES;
    let next = Rc::new(RefCell::new(0..count));
    let mut tasks = Vec::new();
    for number in 0..32 {
        let endpoint = servers.endpoint((down + 1 + number % 2) % 3);
        let mut client = client_of(&endpoint).await;
        let next = Rc::clone(&next);
        tasks.push(tokio::task::spawn_local(async move {
            let mut value = vec![0; VALUE_BYTES];
            loop {
                let Some(key) = next.borrow_mut().next() else { return };
                value.fill_with(|| fastrand::u8(..));
                let key = format!("state/{key}");
                while client.put(key.as_str(), value.as_slice(), None).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// Waits until a server answers a linearizable read.
pub(crate) async fn until_caught_up(servers: &Servers, index: usize) {
    let deadline = Instant::now() + PATIENCE;
    let mut client = servers.client(index).await;
    loop {
        let read = client.get("caught up?", None);
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(1), read).await {
            return;
        }
        assert!(Instant::now() < deadline, "not caught up within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
