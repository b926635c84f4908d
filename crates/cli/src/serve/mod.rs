//! `kontiki serve`: one server, until a signal or a fault ends it.

mod args;
mod log;
mod variables;

use std::{
    env,
    io::{self, Read as _},
    thread,
    time::Duration,
};

use kontiki_server::{RunningServer, Server, StartError, metrics};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::failure::{Failure, with_causes};

pub(crate) use args::ServeArgs;
pub(crate) use variables::advice;

/// Runs a server until it has been stopped in order, or cannot go on.
pub(crate) fn run(args: &ServeArgs) -> Result<(), Failure> {
    let config = args.config();
    config
        .validate()
        .map_err(|error| Failure::usage(format!("{error}; see kontiki serve --help")))?;
    let unknown = variables::unknown(environment());
    if !unknown.tls.is_empty() {
        let names = unknown.tls.join(", ");
        return Err(Failure::usage(format!(
            "{names}: TLS is not supported yet; unset what asks for it"
        )));
    }
    log::to_stderr(args.log_level());
    for name in unknown.ignored {
        tracing::warn!("{name} is a setting that this server does not know, and is ignored");
    }
    metrics::install();
    let runtime = runtime(args.threads()).map_err(Failure::new)?;
    let outcome = runtime.block_on(async {
        let mut stop = Stop::new(args.stops_with_stdin()).map_err(Failure::new)?;
        let name = config.name.as_str();
        tracing::info!(name, data_dir = %config.data_dir.display(), "starting");
        // One that joins may wait for a while until it is known.
        let server = tokio::select! {
            started = Server::start(config.clone()) => started.map_err(|error| cannot_start(&error))?,
            reason = stop.asked() => {
                tracing::info!(reason, "stopped before it had started");
                return Ok(());
            }
        };
        until_stopped(server, stop).await
    });
    // A task that hangs must not keep a stopped server alive.
    runtime.shutdown_background();
    outcome.map_err(|failure| {
        // The last line of the log says it, and nothing else does.
        tracing::error!("{failure}");
        failure.into_told()
    })
}

/// All variables that are text.
fn environment() -> impl Iterator<Item = (String, String)> {
    env::vars_os().filter_map(|(name, value)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    })
}

/// One thread is the default: a wake-up on another thread costs more than a small request.
fn runtime(threads: usize) -> io::Result<runtime::Runtime> {
    if threads == 1 {
        runtime::Builder::new_current_thread().enable_all().build()
    } else {
        runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
    }
}

/// Signals that come this close after each other are one wish to stop.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

async fn until_stopped(mut server: RunningServer, mut stop: Stop) -> Result<(), Failure> {
    let reason = loop {
        let fault = tokio::select! {
            fault = server.failed() => fault,
            reason = stop.asked() => break reason,
        };
        // A damaged store is fetched anew; anything else ends the process.
        server = tokio::select! {
            recovered = server.recover(fault) => {
                recovered.map_err(|error| Failure::new(with_causes(&error)))?
            }
            reason = stop.asked() => {
                tracing::info!(reason, "stopped while its store was moved aside");
                return Ok(());
            }
        };
    };
    tracing::info!(reason, "stopping");
    let second = async {
        // What signals a process and its group asks once, and is heard twice.
        drop(tokio::time::timeout(SAME_SIGNAL, stop.asked()).await);
        stop.asked().await
    };
    tokio::select! {
        done = server.shutdown() => done.map_err(|fault| Failure::new(with_causes(&fault)))?,
        reason = second => {
            return Err(Failure::new(format!("stopped at once by a second {reason}")));
        }
    }
    tracing::info!("stopped");
    Ok(())
}

fn cannot_start(error: &StartError) -> Failure {
    match error {
        StartError::Config(error) => Failure::usage(error),
        other => Failure::new(with_causes(other)),
    }
}

/// What asks a server to stop.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    stdin_closed: Option<oneshot::Receiver<()>>,
}

impl Stop {
    fn new(with_stdin: bool) -> io::Result<Self> {
        let stdin_closed = if with_stdin { Some(watch_stdin()?) } else { None };
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            stdin_closed,
        })
    }

    /// Waits for the next request to stop, and names it. Can be dropped and asked again.
    async fn asked(&mut self) -> &'static str {
        let stdin_closed = &mut self.stdin_closed;
        let closed = async {
            match stdin_closed {
                // Its sender is dropped, and never sends: this is the end.
                Some(closed) => drop(closed.await),
                None => std::future::pending().await,
            }
            *stdin_closed = None;
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = closed => "end of stdin",
        }
    }
}

/// Its receiver ends when stdin does: whoever started this server is gone then, however it died.
fn watch_stdin() -> io::Result<oneshot::Receiver<()>> {
    let (closed, is_closed) = oneshot::channel::<()>();
    thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut buffer = [0; 64];
        let mut stdin = io::stdin().lock();
        while !matches!(stdin.read(&mut buffer), Ok(0) | Err(_)) {}
        drop(closed);
    })?;
    Ok(is_closed)
}
