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
        Ok(Self { listener, path })
    }

    /// The next order, and where its answer goes.
    pub(super) async fn next(&self) -> io::Result<(Order, UnixStream)> {
        loop {
            let (mut stream, _) = self.listener.accept().await?;
            let mut line = String::new();
            BufReader::new(&mut stream).read_line(&mut line).await?;
            if let Ok(order) = serde_json::from_str(&line) {
                return Ok((order, stream));
            }
        }
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
    stream.write_all(line.as_bytes()).await?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await?;
    let answer: Answer = serde_json::from_str(&answer)
        .map_err(|error| Failure::new(format!("`kontiki dev` has answered nonsense: {error}")))?;
    answer.map_err(Failure::new)
}
