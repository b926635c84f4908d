//! `kontiki dev`: a cluster on this machine, as real processes.
//!
//! Nothing is started again by itself: a server that was killed is shown as dead, with the
//! command that starts it. Servers cannot outlive this process: each reads a pipe whose other
//! end only we hold, and stops when it ends, however we end.

mod cluster;
mod screen;
mod watch;

use std::{path::PathBuf, time::Duration};

use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    time,
};

use crate::failure::Failure;
use cluster::Cluster;
use screen::Screen;
use watch::Watcher;

const HELP: &str = "\
Server i listens for clients on BASE_PORT + 10 i and for the others one above: 2379, 2389, 2399
and 2380, 2390, 2400. What they log is in DATA_DIR/n1.log and so on. Started again on the same
directory, the cluster goes on with its data.";

/// How often the servers are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct DevArgs {
    /// Number of servers; with 2n+1 the cluster survives the death of n
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: u16,

    /// Where the servers keep their data
    #[arg(long, value_name = "DIR", default_value = "./kontiki-data")]
    data_dir: PathBuf,

    /// The first server's port for clients
    #[arg(long, value_name = "PORT", default_value_t = 2379)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=65_000))]
    base_port: u16,

    /// Keep the data in a temporary directory, which goes with the cluster
    #[arg(long, conflicts_with = "data_dir")]
    ephemeral: bool,
}

/// Runs a cluster until Ctrl-C or SIGTERM.
pub(crate) async fn run(args: DevArgs) -> Result<(), Failure> {
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

    let mut cluster = Cluster::start(&data_dir, args.nodes, args.base_port)?;
    let mut screen = Screen::new();
    screen.say(&cluster.greeting())?;
    let mut watcher = Watcher::new(&cluster);
    let mut look = time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            _ = look.tick() => {
                let view = watcher.look(&mut cluster).await;
                screen.show(&cluster, &view)?;
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
