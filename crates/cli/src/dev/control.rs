//! How a second `kontiki dev …` has the first one do something: over a socket in the data
//! directory, one line of JSON each way.
//!
//! The first one owns the processes and does only what is done at once: start, stop, end, tell.
//! What takes time, to change the members and to wait, the second one does by itself.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
};

use super::cluster::{Cluster, Seat};
use crate::failure::Failure;

const SOCKET: &str = "dev.sock";

/// What is asked for.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) enum Order {
    /// Which servers there are.
    List,
    /// Which one would be added next.
    Plan,
    /// Start it.
    Start(String),
    /// Start it with an empty directory, as a member that joins.
    Join(String),
    /// Ask it to stop.
    Stop(String),
    /// End it at once.
    Kill(String),
    /// End it, and know it no more.
    Forget(String),
}

/// The answer: servers, or why not.
type Answer = Result<Vec<Seat>, String>;

/// Takes orders.
pub(super) struct Desk {
    listener: UnixListener,
    path: PathBuf,
    /// Who has connected, and what has come of the order.
    waiting: Option<(BufReader<UnixStream>, Vec<u8>)>,
}

impl Drop for Desk {
    fn drop(&mut self) {
        // What is left behind is replaced by the next one.
        drop(std::fs::remove_file(&self.path));
    }
}

impl Desk {
    /// Listens in `data_dir`, whose ports this process holds: nobody else does.
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        Ok(Self { listener, path, waiting: None })
    }

    /// The next order, and where its answer goes.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped nothing is lost: the next one goes on with what has come.
    pub(super) async fn next(&mut self) -> io::Result<(Order, UnixStream)> {
        loop {
            let (stream, line) = match &mut self.waiting {
                Some(waiting) => waiting,
                None => {
                    let (stream, _) = self.listener.accept().await?;
                    self.waiting.insert((BufReader::new(stream), Vec::new()))
                }
            };
            let read = stream.read_until(b'\n', line).await;
            let Some((stream, line)) = self.waiting.take() else { continue };
            read?;
            if let Ok(order) = serde_json::from_slice(&line) {
                return Ok((order, stream.into_inner()));
            }
        }
    }
}

/// Refuses a directory on which another `kontiki dev` runs.
pub(super) async fn refuse_used(data_dir: &Path) -> Result<(), Failure> {
    match UnixStream::connect(data_dir.join(SOCKET)).await {
        Ok(_) => Err(Failure::new(format!(
            "a `kontiki dev` runs on {} already: change its cluster with `kontiki dev add` and \
             its like, stop it with Ctrl-C, or make a second cluster with another --data-dir and \
             --base-port",
            data_dir.display()
        ))),
        // One that was killed leaves its socket behind.
        Err(_) => Ok(()),
    }
}

/// Carries out an order and answers it. Returns what is to be said of it.
pub(super) async fn obey(
    cluster: &mut Cluster,
    order: &Order,
    mut to: UnixStream,
) -> Option<String> {
    let (done, said) = match order {
        Order::List => (Ok(cluster.seats()), None),
        Order::Plan => (cluster.planned().map(|seat| vec![seat]), None),
        Order::Start(name) => (changed(cluster, |c| c.start_one(name)), Some(("started", name))),
        Order::Join(name) => (changed(cluster, |c| c.join(name)), Some(("started, new:", name))),
        Order::Stop(name) => (changed(cluster, |c| c.stop_one(name)), Some(("stopping", name))),
        Order::Kill(name) => (changed(cluster, |c| c.end(name)), Some(("killed", name))),
        Order::Forget(name) => (changed(cluster, |c| c.forget(name)), Some(("removed", name))),
    };
    let answer: Answer = done.map_err(|failure| failure.to_string());
    let said = said.filter(|_| answer.is_ok()).map(|(what, name)| format!("{what} {name}"));
    let mut line = serde_json::to_string(&answer).unwrap_or_default();
    line.push('\n');
    // Whoever asked may have gone.
    drop(to.write_all(line.as_bytes()).await);
    said
}

fn changed(
    cluster: &mut Cluster,
    change: impl FnOnce(&mut Cluster) -> Result<(), Failure>,
) -> Result<Vec<Seat>, Failure> {
    change(cluster)?;
    Ok(cluster.seats())
}

/// Has the `kontiki dev` that runs on `data_dir` do something.
pub(super) async fn ask(data_dir: &Path, order: &Order) -> Result<Vec<Seat>, Failure> {
    let path = data_dir.join(SOCKET);
    let mut stream = UnixStream::connect(&path).await.map_err(|error| {
        Failure::new(format!(
            "no `kontiki dev` runs on {}: {error}; start one, or name its --data-dir",
            data_dir.display()
        ))
    })?;
    let mut line = serde_json::to_string(order).map_err(Failure::new)?;
    line.push('\n');
    // An error of this connection is none of the terminal, which may be closed without a word.
    let lost = |error: io::Error| Failure::new(format!("`kontiki dev` has hung up: {error}"));
    stream.write_all(line.as_bytes()).await.map_err(lost)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await.map_err(lost)?;
    let answer: Answer = serde_json::from_str(&answer)
        .map_err(|error| Failure::new(format!("`kontiki dev` has answered nonsense: {error}")))?;
    answer.map_err(Failure::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `dev` looks at its servers between two orders, whatever it is waiting for.
    #[tokio::test]
    async fn an_order_is_not_lost_when_something_else_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut desk = Desk::open(dir.path()).unwrap();
        let mut client = UnixStream::connect(dir.path().join(SOCKET)).await.unwrap();
        let line = serde_json::to_string(&Order::Kill("n2".to_owned())).unwrap() + "\n";
        let (first, rest) = line.as_bytes().split_at(3);
        client.write_all(first).await.unwrap();
        while desk.waiting.as_ref().is_none_or(|(_, line)| line.len() < first.len()) {
            tokio::select! {
                biased;
                next = desk.next() => panic!("half an order: {next:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
        client.write_all(rest).await.unwrap();
        let (order, _) = desk.next().await.unwrap();
        assert!(matches!(&order, Order::Kill(name) if name == "n2"), "{order:?}");
    }
}
