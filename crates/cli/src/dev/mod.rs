//! `kontiki dev`: a cluster on this machine, as real processes.
//!
//! `kontiki dev add` and its like, from another terminal, change a cluster that runs.
//!
//! Nothing is started again by itself: a server that was killed is shown as dead, with the
//! command that starts it. Servers cannot outlive this process: each reads a pipe whose other
//! end only we hold, and stops when it ends, however we end.

mod cluster;
mod control;
mod orders;
mod screen;
mod watch;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use tokio::{
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    time,
};

use crate::failure::Failure;
use cluster::Cluster;
use control::Desk;
use orders::DevOrder;
use screen::Screen;
use watch::Watcher;

const HELP: &str = "\
Server i listens for clients on BASE_PORT + 10 i and for the others one above: 2379, 2389, 2399
and 2380, 2390, 2400. What they log is in DATA_DIR/n1.log and so on. Started again on the same
directory, the cluster goes on with its data.

While it runs, from another terminal (with the same --data-dir, if one is given):
  kontiki dev add           a fourth server, which catches up and then votes
  kontiki dev replace n2    n2 loses its disk, and a new server takes its place
  kontiki dev remove n2     n2 leaves the cluster
  kontiki dev kill n1       and start n1, stop n1";

const DATA_DIR: &str = "./kontiki-data";

/// How often the servers are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct DevArgs {
    /// Change a cluster that runs already
    #[command(subcommand)]
    order: Option<DevOrder>,

    /// Number of servers; with 2n+1 the cluster survives the death of n
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: u16,

    /// Where the servers keep their data
    #[arg(long, global = true, value_name = "DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,

    /// The first server's port for clients
    #[arg(long, value_name = "PORT", default_value_t = 2379)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=65_000))]
    base_port: u16,

    /// What --cache-bytes of each server is; see kontiki serve --help
    #[arg(long, value_name = "BYTES")]
    cache_bytes: Option<usize>,

    /// Keep the data in a temporary directory, which goes with the cluster
    #[arg(long, conflicts_with = "data_dir")]
    ephemeral: bool,
}

/// Runs a cluster until Ctrl-C or SIGTERM.
pub(crate) async fn run(args: DevArgs) -> Result<(), Failure> {
    match args.order {
        Some(order) => orders::run(order, &args.data_dir).await,
        None => serve(args).await,
    }
}

async fn serve(args: DevArgs) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::new)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::new)?;
    // Held until the end: the directory goes when it is dropped.
    let temporary = if args.ephemeral {
        let made = tempfile::Builder::new().prefix("kontiki-dev-").tempdir();
        Some(made.map_err(|error| Failure::new(format!("no temporary directory: {error}")))?)
    } else {
        None
    };
    let data_dir = temporary.as_ref().map_or(args.data_dir, |dir| dir.path().to_path_buf());

    control::refuse_used(&data_dir).await?;
    let is_default = data_dir == Path::new(DATA_DIR);
    let mut cluster = Cluster::start(&data_dir, (args.nodes, args.base_port), args.cache_bytes)?;
    let mut screen = Screen::new((!is_default).then_some(&*data_dir));
    let mut desk = match Desk::open(&data_dir) {
        Ok(desk) => Some(desk),
        Err(error) => {
            screen.say(&format!("`kontiki dev add` and its like will not work: {error}"))?;
            None
        }
    };
    screen.say(&cluster.greeting())?;
    let mut watcher = Watcher::new(&cluster);
    let mut look = time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            _ = look.tick() => {
                let view = watcher.look(&mut cluster).await;
                screen.show(&cluster, &view)?;
            }
            ordered = next_order(desk.as_mut()) => {
                let Ok((order, answer)) = ordered else { continue };
                if let Some(said) = control::obey(&mut cluster, &order, answer).await {
                    watcher.follow(&cluster);
                    screen.say(&said)?;
                }
            }
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    screen.say("stopping")?;
    let stopped = tokio::select! {
        stopped = cluster.stop() => stopped,
        _ = interrupt.recv() => cluster.kill(),
        _ = terminate.recv() => cluster.kill(),
    };
    screen.say(if temporary.is_some() {
        "stopped; the data is gone with its temporary directory"
    } else {
        "stopped; the same command goes on with the data"
    })?;
    stopped
}

/// The next order, if there can be any.
async fn next_order(desk: Option<&mut Desk>) -> io::Result<(control::Order, UnixStream)> {
    match desk {
        Some(desk) => desk.next().await,
        None => std::future::pending().await,
    }
}
